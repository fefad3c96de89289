//! Labels of sessions: `full-yyyyMMdd.HHmmss.SSS` and `incr-...`, the time in UTC.

use std::fmt;

use jiff::civil;
use jiff::tz::TimeZone;

/// Kind of a session, as its label has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelKind {
    /// Everything of some accounts.
    Full,
    /// Redo logs.
    Incremental,
}

/// A session's label. Labels sort by kind, then by time: the time stamp tells when a session began, the directory's mtime does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// Its kind.
    pub kind: LabelKind,
    /// When it began, in UTC.
    pub started: jiff::Timestamp,
    name: String,
}

impl Label {
    /// Reads a label; `None` for any other name.
    pub fn parse(name: &[u8]) -> Option<Label> {
        let text = std::str::from_utf8(name).ok()?;
        let (kind, stamp) = match text.split_at_checked(5)? {
            ("full-", stamp) => (LabelKind::Full, stamp),
            ("incr-", stamp) => (LabelKind::Incremental, stamp),
            _ => return None,
        };
        let bytes = stamp.as_bytes();
        let is_form = bytes.len() == 19
            && bytes.iter().enumerate().all(|(at, byte)| match at {
                8 | 15 => *byte == b'.',
                _ => byte.is_ascii_digit(),
            });
        if !is_form {
            return None;
        }
        let number = |from: usize, to: usize| stamp[from..to].parse::<i16>().ok();
        let part = |from: usize, to: usize| number(from, to).and_then(|value| i8::try_from(value).ok());
        let time = civil::DateTime::new(
            number(0, 4)?,
            part(4, 6)?,
            part(6, 8)?,
            part(9, 11)?,
            part(11, 13)?,
            part(13, 15)?,
            i32::from(number(16, 19)?) * 1_000_000,
        );
        let started = time.ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Some(Label { kind, started, name: text.to_owned() })
    }

    /// Returns the label as it stands in the tree.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_sorted_by_their_time() {
        let label = Label::parse(b"full-20260801.050004.118").unwrap();
        assert_eq!((label.kind, label.started.to_string()), (LabelKind::Full, "2026-08-01T05:00:04.118Z".to_owned()));
        let older = Label::parse(b"full-20251231.235959.999").unwrap();
        let incremental = Label::parse(b"incr-20200101.000000.000").unwrap();
        assert!(older < label && label < incremental);
        for other in [
            &b"full-1"[..],
            b"full-20260801.050004.11",
            b"full-20260801.050004.1180",
            b"full-20260832.050004.118",
            b"full-20260801-050004.118",
            b"incr-2026080\xff.050004.118",
            "füll-20260801.050004.11".as_bytes(),
            b"TO_DELETE-full-20260801.050004.118",
            b"",
        ] {
            assert_eq!(Label::parse(other), None, "{}", other.escape_ascii());
        }
    }
}
