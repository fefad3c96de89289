//! Labels of sessions, and the time stamps in them and in the names of redo logs.
//!
//! A label is `full-yyyyMMdd.HHmmss.SSS` or `incr-...`: the start of the session in UTC. Sessions are ordered by it, never by a file's mtime.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Length of `yyyyMMdd.HHmmss.SSS`.
const STAMP_LEN: usize = 19;

/// Names the kind of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKind {
    /// Everything of the accounts that it lists.
    Full,
    /// Redo logs, and the LDAP data of the accounts.
    Incremental,
}

impl SessionKind {
    /// Returns the word for the kind.
    pub fn word(self) -> &'static str {
        match self {
            SessionKind::Full => "full",
            SessionKind::Incremental => "incremental",
        }
    }

    /// Returns what labels of this kind begin with, without the hyphen.
    fn prefix(self) -> &'static str {
        match self {
            SessionKind::Full => "full",
            SessionKind::Incremental => "incr",
        }
    }
}

/// The label of a session. Labels sort by kind, then by start; their text is the name in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Full or incremental.
    pub kind: SessionKind,
    /// When the session started, to the millisecond.
    pub start: Timestamp,
}

impl Label {
    /// Reads a label; `None` when the text is none.
    pub fn parse(text: &str) -> Option<Label> {
        let (kind, stamp) = text.split_once('-')?;
        let kind = [SessionKind::Full, SessionKind::Incremental].into_iter().find(|known| known.prefix() == kind)?;
        Some(Label { kind, start: parse_stamp(stamp)? })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.kind.prefix(), stamp_in(self.start, &TimeZone::UTC))
    }
}

/// Reads a time stamp `yyyyMMdd.HHmmss.SSS`, in UTC; `None` when the text is none.
pub fn parse_stamp(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let is_stamp = bytes.len() == STAMP_LEN
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if at == 8 || at == 15 { *byte == b'.' } else { byte.is_ascii_digit() });
    if !is_stamp {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
    let small = |from: usize, to: usize| Some(number(from, to)? as i8);
    let nanos = i32::from(number(16, 19)?) * 1_000_000;
    let civil =
        DateTime::new(number(0, 4)?, small(4, 6)?, small(6, 8)?, small(9, 11)?, small(11, 13)?, small(13, 15)?, nanos)
            .ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Returns the time stamp of a time in a zone, to the millisecond.
pub fn stamp_in(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    format!("{}.{:03}", zoned.strftime("%Y%m%d.%H%M%S"), zoned.millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_ordered_by_kind_and_start() {
        let label = Label::parse("full-20260801.050004.118").unwrap();
        assert_eq!((label.kind, label.start.as_millisecond()), (SessionKind::Full, 1_785_560_404_118));
        assert_eq!(stamp_in(label.start, &TimeZone::UTC), "20260801.050004.118");
        let later = Label::parse("incr-20260801.050004.119").unwrap();
        assert!(later.start > label.start && later.kind == SessionKind::Incremental);
        let older = Label::parse("full-20251231.235959.999").unwrap();
        let incremental = Label::parse("incr-20200101.000000.000").unwrap();
        assert!(older < label && label < incremental);
    }

    #[test]
    fn a_label_is_shown_as_it_stands_in_the_tree() {
        for text in [
            "full-20260801.050004.118",
            "incr-20251231.235959.999",
            "full-00010101.000000.000",
            "incr-99990101.000000.007",
        ] {
            assert_eq!(Label::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for text in [
            "full-1",
            "full-20260801.050004.11",
            "full-20260801.050004.1180",
            "full-20260832.050004.118",
            "f\u{fc}ll-20260801.050004.11",
            "full-20260801.050004",
            "full-20261301.050004.118",
            "full-20260230.050004.118",
            "full-20260801.250004.118",
            "TO_DELETE-full-20260801.050004.118",
            "full-20260801x050004.118",
            "full-+2260801.050004.118",
            "",
            "-",
        ] {
            assert_eq!(Label::parse(text), None, "{text}");
        }
    }
}
