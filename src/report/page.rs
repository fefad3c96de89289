//! The page: what the templates `page.html`, `sections.html` and `charts.html` are given.
//!
//! Every text is escaped where a template names it. The page goes out piece by piece, so what it takes in memory beside the report is one chart at a time:
//! 420 days, 250 sessions, or a point for each night.

use std::fmt;

use askama::Template;
use askama::filters::{Escaper, Html};

use super::{Report, RestoreState, charts};
use crate::figures::{bytes, count};
use crate::plain::escape_text;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// One report as a page.
#[derive(Template)]
#[template(path = "page.html", config = "src/report/askama.toml")]
pub(super) struct Page<'a> {
    pub(super) report: &'a Report,
}

/// Escapes a text so that it shows as what it is: nothing in it is markup, and control characters, and marks that turn the direction of writing, are
/// visible.
#[derive(Clone, Copy, Default)]
struct Visible;

impl Escaper for Visible {
    fn write_escaped_str<W: fmt::Write>(&self, dest: W, text: &str) -> fmt::Result {
        Html.write_escaped_str(dest, &escape_text(text))
    }
}

/// A figure that stands at the top.
struct Card {
    class: &'static str,
    value: String,
    words: String,
}

/// Returns the figures that matter first.
fn cards(report: &Report) -> Vec<Card> {
    let of = |state: RestoreState| report.accounts.iter().filter(|account| account.state == state).count() as u64;
    let total = report.accounts.len() as u64;
    let whole = of(RestoreState::UpToDate);
    let others: Vec<String> = [RestoreState::WithGaps, RestoreState::Behind, RestoreState::Lost]
        .into_iter()
        .filter(|state| of(*state) > 0)
        .map(|state| format!("{} {}", count(of(state)), state.words()))
        .collect();
    let others = match (total, others.is_empty()) {
        (0, _) => "the snapshot knows no account".to_owned(),
        (_, true) => "nothing is missing".to_owned(),
        (_, false) => others.join(", "),
    };
    let mut cards = vec![Card {
        class: if total > 0 && whole == total { "good" } else { "bad" },
        value: format!("{} of {}", count(whole), count(total)),
        words: format!("accounts are up to date; {others}"),
    }];
    if let Some(night) = report.nights.last() {
        let (class, value) = (night.state.class(), report.minute(&night.time));
        cards.push(Card { class, value, words: format!("newest snapshot, {}: {}", night.id, night.state.words()) });
        let held: u64 = report.nights.iter().map(|night| night.source_bytes).sum();
        let ratio = if report.pack_bytes > 0 { held as f64 / report.pack_bytes as f64 } else { 0.0 };
        let (nights, value) = (count(report.nights.len() as u64), bytes(report.pack_bytes));
        let words = format!("hold {nights} snapshots of together {}: {ratio:.1} times less", bytes(held));
        cards.push(Card { class: "plain", value, words });
    }
    cards
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use jiff::tz::TimeZone;
    use jiff::{Timestamp, ToSpan};
    use proptest::prelude::*;

    use super::*;
    use crate::report::{AccountRow, Event, Night, NightState, SessionBar, write};

    /// A report in which every text is `text`, and every table and chart has `rows` rows.
    fn report(text: &str, rows: i64) -> Report {
        let text = || text.to_owned();
        let time = |row: i64| Timestamp::UNIX_EPOCH + (24 * row).hours();
        let night = |row| Night {
            id: text(),
            time: time(row),
            state: NightState::Attention,
            remark: format!("-{}", text()),
            source_bytes: 4_000_000,
            new_bytes: 3_000,
            stored_bytes: 2_000,
        };
        let session = |row| SessionBar {
            label: text(),
            is_full: true,
            start: time(row),
            appeared: time(row),
            last_seen: time(row),
            vanished: Some(time(row + 1)),
            unexpected: Some(text()),
        };
        let account = |row| AccountRow {
            email: text(),
            state: RestoreState::Behind,
            newest_full: text(),
            intervals: vec![(time(row), time(row + 1))],
            missing: vec![text(), text()],
            last_up_to_date: Some(text()),
        };
        Report {
            made: time(rows),
            zone: TimeZone::UTC,
            source: text(),
            store: text(),
            pack_bytes: 1_000_000,
            nights: (0..rows).map(night).collect(),
            sessions: (0..rows).map(session).collect(),
            accounts: (0..rows).map(account).collect(),
            events: (0..rows).map(|row| Event { time: time(row), is_bad: true, text: text() }).collect(),
            remarks: vec![text()],
        }
    }

    fn page(report: &Report) -> String {
        let mut page = Vec::new();
        write(report, &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// Each place of the page that shows a text of the report, with `rows` rows.
    const fn places(rows: usize) -> usize {
        // The source twice, the store, the remark, and the card of the newest night; then the calendar, the sessions, the events and the accounts.
        5 + rows * (2 + 3 + 1 + 5)
    }

    #[test]
    fn every_text_is_shown_and_none_is_markup() {
        let page = page(&report("<b a='1'>\"&\u{7}\u{202e}\u{e9}{{ 1 }}", 3));
        let shown = "&#60;b a=&#39;1&#39;&#62;&#34;&#38;\\x07\\xe2\\x80\\xae\u{e9}{{ 1 }}";
        assert_eq!(page.matches(shown).count(), places(3));
        assert!(!page.contains("<b a") && !page.contains(['\u{7}', '\u{202e}']));
    }

    proptest! {
        #[test]
        fn no_name_changes_the_markup(name in prop::collection::vec(any::<u8>(), 0..40)) {
            let markup = |page: &str| page.matches(['<', '>', '"', '\'']).collect::<String>();
            let named = page(&report(&String::from_utf8_lossy(&name), 2));
            prop_assert_eq!(markup(&named), markup(&page(&report("x", 2))));
            prop_assert!(named.chars().all(|letter| letter == '\n' || crate::plain::is_plain(letter)));
        }
    }

    /// Takes some pieces of a page, then fails.
    struct Disk {
        pieces_left: usize,
        longest: usize,
    }

    impl Write for Disk {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.pieces_left = self.pieces_left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            self.longest = self.longest.max(piece.len());
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_long_table_goes_out_row_by_row() {
        let report = report("account@example.com", 2_000);
        let mut disk = Disk { pieces_left: usize::MAX, longest: 0 };
        write(&report, &mut disk).unwrap();
        assert!(disk.longest <= STYLE.len(), "{} bytes at once", disk.longest);
        let mut full = Disk { pieces_left: 5_000, longest: 0 };
        assert_eq!(write(&report, &mut full).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
