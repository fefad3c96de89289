//! The pictures of a report: calendar, growth, sessions over time, and an account's restorable times.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::html::{Escaped, day_and_time};
use super::{AccountRow, Night, NightState, Report};
use crate::figures::bytes;

/// Weeks that the calendar shows at most, the newest.
const WEEKS_MAX: usize = 60;
/// Sessions that are drawn at most, the newest.
const BARS_MAX: usize = 250;

/// Writes the calendar: a column a week, a cell a day, with the worst state of its snapshots.
pub(super) fn calendar(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut days: BTreeMap<Date, Vec<&Night>> = BTreeMap::new();
    for night in &report.nights {
        days.entry(night.time.to_zoned(report.zone.clone()).date()).or_default().push(night);
    }
    writeln!(out, "<section id=\"calendar\"><h2>Nights</h2>")?;
    let (Some((first, _)), Some((last, _))) = (days.first_key_value(), days.last_key_value()) else {
        return writeln!(out, "<p>No snapshot yet.</p></section>");
    };
    let back = i64::from(first.weekday().since(Weekday::Monday));
    let mut monday = first.checked_sub(back.days()).unwrap_or(*first);
    let weeks = (last.since(monday).map_or(0, |span| span.get_days()) / 7 + 1) as usize;
    if weeks > WEEKS_MAX {
        let skipped = 7 * (weeks - WEEKS_MAX) as i64;
        monday = monday.checked_add(skipped.days()).unwrap_or(monday);
    }
    let weeks = weeks.min(WEEKS_MAX);
    let (cell, left, top) = (18, 34, 18);
    writeln!(
        out,
        "<div class=\"scroll\"><svg class=\"fixed\" role=\"img\" aria-label=\"Calendar of nights\" width=\"{}\" height=\"{}\">",
        left + cell * weeks + 4,
        top + cell * 7 + 4
    )?;
    for (row, name) in ["Mon", "", "Wed", "", "Fri", "", "Sun"].iter().enumerate() {
        writeln!(out, "<text x=\"0\" y=\"{}\">{name}</text>", top + cell * row + 12)?;
    }
    let mut month = 0;
    for week in 0..weeks {
        for row in 0..7 {
            let offset = (7 * week + row) as i64;
            let Ok(date) = monday.checked_add(offset.days()) else { continue };
            let (x, y) = (left + cell * week, top + cell * row);
            if row == 0 && date.month() != month {
                month = date.month();
                writeln!(out, "<text x=\"{x}\" y=\"12\">{}</text>", date.strftime("%b"))?;
            }
            if date > *last {
                continue;
            }
            let nights = days.get(&date).map_or(&[][..], Vec::as_slice);
            let worst = [NightState::Attention, NightState::Problems, NightState::Complete]
                .into_iter()
                .find(|state| nights.iter().any(|night| night.state == *state));
            let class = worst.map_or("none", NightState::class);
            let mut words = vec![date.to_string()];
            if nights.is_empty() {
                words.push("no snapshot".to_owned());
            }
            for night in nights {
                let remark = if night.remark.is_empty() { String::new() } else { format!(", {}", night.remark) };
                words.push(format!("{}: {}{remark}", night.id, night.state.words()));
            }
            writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"15\" height=\"15\" rx=\"3\"><title>{}</title></rect>",
                Escaped(&words.join("; "))
            )?;
        }
    }
    writeln!(
        out,
        "</svg></div>\n<p class=\"legend\"><i class=\"good\"></i>complete <i class=\"warn\"></i>with problems <i class=\"bad\"></i>needs attention \
         <i class=\"none\"></i>no snapshot</p></section>"
    )
}

/// A scale from one range onto another.
struct Scale {
    from: f64,
    span: f64,
    start: f64,
    length: f64,
}

impl Scale {
    fn times(from: Timestamp, to: Timestamp, start: f64, length: f64) -> Scale {
        let from = from.as_second() as f64;
        Scale { from, span: (to.as_second() as f64 - from).max(1.0), start, length }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value - self.from) / self.span * self.length
    }

    fn time(&self, time: Timestamp) -> f64 {
        self.at(time.as_second() as f64)
    }
}

/// Writes the growth of the source and of the store.
pub(super) fn growth(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "<section id=\"growth\"><h2>Growth</h2>")?;
    let (Some(first), Some(last)) = (report.nights.first(), report.nights.last()) else {
        return writeln!(out, "<p>No snapshot yet.</p></section>");
    };
    let (width, height, left) = (760.0, 200.0, 70.0);
    let x = Scale::times(first.time, last.time, left, width - left - 10.0);
    let mut stored = 0u64;
    let stored: Vec<u64> = report
        .nights
        .iter()
        .map(|night| {
            stored += night.stored_bytes;
            stored
        })
        .collect();
    let most =
        report.nights.iter().map(|night| night.source_bytes).chain(stored.iter().copied()).max().unwrap_or(1).max(1);
    let y = |value: u64| height - 24.0 - value as f64 / most as f64 * (height - 40.0);
    writeln!(
        out,
        "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Growth of source and store\">"
    )?;
    for part in 0..=2u64 {
        let value = most / 2 * part;
        writeln!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text x=\"0\" y=\"{2:.1}\">{3}</text>",
            width - 10.0,
            y(value),
            y(value) + 4.0,
            bytes(value)
        )?;
    }
    let line = |values: &mut dyn Iterator<Item = (Timestamp, u64)>| {
        values.map(|(time, value)| format!("{:.1},{:.1}", x.time(time), y(value))).collect::<Vec<_>>().join(" ")
    };
    let source = line(&mut report.nights.iter().map(|night| (night.time, night.source_bytes)));
    let store = line(&mut report.nights.iter().zip(&stored).map(|(night, stored)| (night.time, *stored)));
    for (class, points) in [("source", source), ("store", store)] {
        writeln!(out, "<polyline class=\"line {class}\" points=\"{points}\"/>")?;
    }
    for (night, stored) in report.nights.iter().zip(&stored) {
        for (class, value) in [("source", night.source_bytes), ("store", *stored)] {
            writeln!(
                out,
                "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}: source {}, store {}, new {} stored as {}</title></circle>",
                x.time(night.time),
                y(value),
                day_and_time(night.time, &report.zone),
                bytes(night.source_bytes),
                bytes(*stored),
                bytes(night.new_bytes),
                bytes(night.stored_bytes)
            )?;
        }
    }
    axis(&x, first.time, last.time, height - 6.0, &report.zone, out)?;
    writeln!(
        out,
        "</svg>\n<p class=\"legend\"><i class=\"source\"></i>one snapshot of the source <i class=\"store\"></i>added to the store by all snapshots</p></section>"
    )
}

fn axis(x: &Scale, from: Timestamp, to: Timestamp, y: f64, zone: &TimeZone, out: &mut dyn Write) -> io::Result<()> {
    let day = |time: Timestamp| time.to_zoned(zone.clone()).strftime("%Y-%m-%d").to_string();
    writeln!(out, "<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", x.start, day(from))?;
    if day(from) != day(to) {
        let end = x.start + x.length;
        writeln!(out, "<text x=\"{end:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", day(to))?;
    }
    Ok(())
}

/// Writes the sessions as bars, from their start to the last snapshot that has them.
pub(super) fn sessions(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "<section id=\"sessions\"><h2>Sessions</h2>")?;
    let skipped = report.sessions.len().saturating_sub(BARS_MAX);
    let sessions = &report.sessions[skipped..];
    let from = sessions.iter().map(|session| session.start.min(session.appeared)).min();
    let to = sessions.iter().map(|session| session.vanished.unwrap_or(session.last_seen)).max();
    let (Some(from), Some(to)) = (from, to) else {
        return writeln!(out, "<p>No sessions.</p></section>");
    };
    let (width, row, left) = (760.0, 14.0, 190.0);
    let height = row * sessions.len() as f64 + 24.0;
    let x = Scale::times(from, to, left, width - left - 10.0);
    writeln!(
        out,
        "<div class=\"scroll\"><svg class=\"wide\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Sessions over time\">"
    )?;
    for night in report.nights.iter().filter(|night| night.time >= from) {
        let at = x.time(night.time);
        writeln!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{:.1}\"/>", height - 20.0)?;
    }
    for (at, session) in sessions.iter().enumerate() {
        let top = row * at as f64;
        let (start, seen) = (x.time(session.start), x.time(session.appeared.max(session.start)));
        let end = x.time(session.last_seen).max(seen + 2.0);
        let class = match (&session.vanished, &session.unexpected) {
            (_, Some(_)) => "bad",
            (Some(_), None) => "gone",
            (None, None) if session.is_full => "full",
            (None, None) => "incr",
        };
        let mut words = format!(
            "{}: in snapshots of {} to {}",
            session.label,
            day_and_time(session.appeared, &report.zone),
            day_and_time(session.last_seen, &report.zone)
        );
        if let Some(gone) = session.vanished {
            words += &format!(", gone in that of {}", day_and_time(gone, &report.zone));
        }
        if let Some(reason) = &session.unexpected {
            words += &format!(" ({reason})");
        }
        writeln!(
            out,
            "<g><title>{}</title><text x=\"0\" y=\"{:.1}\">{}</text><rect class=\"faint {class}\" x=\"{start:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"9\"/>\
             <rect class=\"{class}\" x=\"{seen:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"9\"/></g>",
            Escaped(&words),
            top + 10.0,
            Escaped(&session.label),
            top + 2.0,
            (seen - start).max(0.0),
            top + 2.0,
            (end - seen).max(2.0)
        )?;
    }
    axis(&x, from, to, height - 6.0, &report.zone, out)?;
    write!(
        out,
        "</svg></div>\n<p class=\"legend\"><i class=\"full\"></i>full <i class=\"incr\"></i>incremental <i class=\"gone\"></i>deleted in its time \
         <i class=\"bad\"></i>vanished before it. Faint: before the first snapshot with it."
    )?;
    if skipped > 0 {
        write!(out, " The {skipped} oldest are not shown.")?;
    }
    writeln!(out, "</p></section>")
}

/// Writes an account's restorable times as a bar, and in words.
pub(super) fn intervals(
    account: &AccountRow,
    span: (Timestamp, Timestamp),
    zone: &TimeZone,
    out: &mut dyn Write,
) -> io::Result<()> {
    if account.intervals.is_empty() {
        return write!(out, "not at all");
    }
    let x = Scale::times(span.0, span.1, 0.0, 120.0);
    write!(
        out,
        "<svg class=\"bar\" width=\"120\" height=\"10\" aria-hidden=\"true\"><rect class=\"none\" width=\"120\" height=\"10\"/>"
    )?;
    for (from, to) in &account.intervals {
        let (start, end) = (x.time(*from), x.time(*to));
        write!(out, "<rect class=\"good\" x=\"{start:.1}\" width=\"{:.1}\" height=\"10\"/>", (end - start).max(1.0))?;
    }
    write!(out, "</svg>")?;
    for (from, to) in &account.intervals {
        write!(out, "<div class=\"time\">{} to {}</div>", day_and_time(*from, zone), day_and_time(*to, zone))?;
    }
    Ok(())
}
