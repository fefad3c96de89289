//! What the charts show: nights in a calendar, growth, sessions over time, and the times to which accounts can be restored.

use std::collections::BTreeMap;

use jiff::civil::{Date, Weekday};
use jiff::{Timestamp, ToSpan};

use super::{Night, NightState, Report, SessionBar};
use crate::figures::bytes;

/// Weeks that the calendar shows at most, the newest.
const WEEKS_MAX: i64 = 60;
/// Sessions that are drawn at most, the newest.
const BARS_MAX: usize = 250;

/// A column of the calendar.
pub(super) struct Week {
    /// The month, in its first week.
    pub(super) month: Option<String>,
    /// From Monday on; the last week may end sooner.
    pub(super) days: Vec<Day>,
}

/// A day of the calendar, with the worst state of its snapshots.
pub(super) struct Day {
    pub(super) class: &'static str,
    pub(super) words: String,
}

/// Returns the weeks of the calendar, up to the day of the newest snapshot.
pub(super) fn calendar(report: &Report) -> Vec<Week> {
    let mut nights: BTreeMap<Date, Vec<&Night>> = BTreeMap::new();
    for night in &report.nights {
        nights.entry(night.time.to_zoned(report.zone.clone()).date()).or_default().push(night);
    }
    let (Some((first, _)), Some((last, _))) = (nights.first_key_value(), nights.last_key_value()) else {
        return Vec::new();
    };
    let monday = |date: &Date| date.saturating_sub(i64::from(date.weekday().since(Weekday::Monday)).days());
    let start = monday(first).max(monday(last).saturating_sub((WEEKS_MAX - 1).weeks()));
    let dates: Vec<Date> = start.series(1.day()).take_while(|date| date <= last).collect();
    let mut month = 0;
    let week = |dates: &[Date]| {
        let before = std::mem::replace(&mut month, dates[0].month());
        Week {
            month: (before != month).then(|| dates[0].strftime("%b").to_string()),
            days: dates.iter().map(|date| day(*date, nights.get(date).map_or(&[], Vec::as_slice))).collect(),
        }
    };
    dates.chunks(7).map(week).collect()
}

fn day(date: Date, nights: &[&Night]) -> Day {
    let worst = [NightState::Attention, NightState::Problems, NightState::Complete]
        .into_iter()
        .find(|state| nights.iter().any(|night| night.state == *state));
    let mut words = vec![date.to_string()];
    if nights.is_empty() {
        words.push("no snapshot".to_owned());
    }
    for night in nights {
        let remark = if night.remark.is_empty() { String::new() } else { format!(", {}", night.remark) };
        words.push(format!("{}: {}{remark}", night.id, night.state.words()));
    }
    Day { class: worst.map_or("none", NightState::class), words: words.join("; ") }
}

/// A scale from a span of time onto pixels.
pub(super) struct TimeScale {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) start: f64,
    pub(super) length: f64,
}

impl TimeScale {
    /// Returns where a time lies.
    pub(super) fn at(&self, time: &Timestamp) -> f64 {
        let seconds = |time: &Timestamp| time.as_second() as f64;
        let from = seconds(&self.from);
        to_tenth(self.start + (seconds(time) - from) / (seconds(&self.to) - from).max(1.0) * self.length)
    }

    /// Returns how wide a span of time is, but at least `least`, so that it can be seen.
    pub(super) fn width(&self, from: &Timestamp, to: &Timestamp, least: f64) -> f64 {
        to_tenth(self.at(to) - self.at(from)).max(least)
    }
}

/// Rounds a length: a page is not made longer by digits that nobody sees.
fn to_tenth(pixels: f64) -> f64 {
    (pixels * 10.0).round() / 10.0
}

/// The growth of the source and of the store.
pub(super) struct Growth {
    pub(super) times: TimeScale,
    /// Lines for sizes, with the size in words.
    pub(super) grid: Vec<(f64, String)>,
    pub(super) points: Vec<GrowthPoint>,
}

/// One night's place on the lines of growth.
pub(super) struct GrowthPoint {
    pub(super) x: f64,
    pub(super) source: f64,
    pub(super) store: f64,
    pub(super) words: String,
}

/// Returns the growth, or `None` without a snapshot.
pub(super) fn growth(report: &Report) -> Option<Growth> {
    let (first, last) = (report.nights.first()?, report.nights.last()?);
    let times = TimeScale { from: first.time, to: last.time, start: 70.0, length: 680.0 };
    let most_in_source = report.nights.iter().map(|night| night.source_bytes).max()?;
    let most = most_in_source.max(report.nights.iter().map(|night| night.stored_bytes).sum()).max(1);
    let y = |value: u64| to_tenth(176.0 - value as f64 / most as f64 * 160.0);
    let mut stored = 0;
    let point = |night: &Night| {
        stored += night.stored_bytes;
        GrowthPoint {
            x: times.at(&night.time),
            source: y(night.source_bytes),
            store: y(stored),
            words: format!(
                "{}: source {}, store {}, new {} stored as {}",
                report.minute(&night.time),
                bytes(night.source_bytes),
                bytes(stored),
                bytes(night.new_bytes),
                bytes(night.stored_bytes)
            ),
        }
    };
    let points = report.nights.iter().map(point).collect();
    Some(Growth {
        grid: [0, 1, 2].map(|part| most / 2 * part).map(|size| (y(size), bytes(size))).into(),
        points,
        times,
    })
}

/// The sessions as bars.
pub(super) struct Sessions<'a> {
    pub(super) times: TimeScale,
    /// Where the snapshots lie.
    pub(super) nights: Vec<f64>,
    pub(super) bars: Vec<Bar<'a>>,
    /// Older sessions, which are not shown.
    pub(super) skipped: usize,
}

/// One session's bar.
pub(super) struct Bar<'a> {
    pub(super) label: &'a str,
    pub(super) class: &'static str,
    pub(super) words: String,
    /// Where the session began.
    pub(super) start: f64,
    /// From there to the first snapshot that has it.
    pub(super) faint_width: f64,
    /// Where that snapshot lies.
    pub(super) seen: f64,
    /// From there to the last snapshot that has it.
    pub(super) width: f64,
}

/// Returns the sessions' bars, or `None` without a session.
pub(super) fn sessions(report: &Report) -> Option<Sessions<'_>> {
    let skipped = report.sessions.len().saturating_sub(BARS_MAX);
    let sessions = &report.sessions[skipped..];
    let from = sessions.iter().map(|session| session.start.min(session.appeared)).min()?;
    let to = sessions.iter().map(|session| session.vanished.unwrap_or(session.last_seen)).max()?;
    let times = TimeScale { from, to, start: 190.0, length: 560.0 };
    Some(Sessions {
        nights: report.nights.iter().map(|night| night.time).filter(|at| *at >= from).map(|at| times.at(&at)).collect(),
        bars: sessions.iter().map(|session| bar(report, session, &times)).collect(),
        times,
        skipped,
    })
}

fn bar<'a>(report: &Report, session: &'a SessionBar, times: &TimeScale) -> Bar<'a> {
    let (appeared, last) = (report.minute(&session.appeared), report.minute(&session.last_seen));
    let mut words = format!("{}: in snapshots of {appeared} to {last}", session.label);
    if let Some(gone) = &session.vanished {
        words += &format!(", gone in that of {}", report.minute(gone));
    }
    if let Some(reason) = &session.unexpected {
        words += &format!(" ({reason})");
    }
    let class = match (&session.vanished, &session.unexpected) {
        (_, Some(_)) => "bad",
        (Some(_), None) => "gone",
        (None, None) if session.is_full => "full",
        (None, None) => "incr",
    };
    let seen = session.appeared.max(session.start);
    Bar {
        label: &session.label,
        class,
        words,
        start: times.at(&session.start),
        faint_width: times.width(&session.start, &seen, 0.0),
        seen: times.at(&seen),
        width: times.width(&seen, &session.last_seen, 2.0),
    }
}

/// Returns the scale of the accounts' bars, which spans all of them.
pub(super) fn restorable(report: &Report) -> TimeScale {
    let all = || report.accounts.iter().flat_map(|account| &account.intervals);
    let from = all().map(|interval| interval.0).min().unwrap_or(report.made);
    let to = all().map(|interval| interval.1).max().unwrap_or(report.made);
    TimeScale { from, to, start: 0.0, length: 120.0 }
}
