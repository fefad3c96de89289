//! Figures, times and names as people read them.

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::Serialize;
pub(crate) use zmreplica::figures::{bytes, count};
use zmreplica::model;
pub(crate) use zmreplica::plain::escape;

/// Accounts or sessions that a line names.
const NAMED: usize = 8;

/// Says that a store was raised to the format and the features of this version when it was opened for writing.
pub(crate) fn raised(from_format: u32, format: u32, added_features: &[String]) -> String {
    if from_format < format {
        return format!(
            "The store was of format {from_format} and is of format {format} now; versions of zmreplica that know only format {from_format} refuse it."
        );
    }
    format!(
        "The store has features now that it did not have before: {}; versions of zmreplica that do not know them refuse it.",
        added_features.join(", ")
    )
}

/// Reads a count of bytes: `4096`, `64K`, `256M`, `2G`, in binary units.
pub(crate) fn parse_bytes(given: &str) -> Result<u64, String> {
    let end = given.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(given.len());
    let (digits, unit) = given.split_at(end);
    let shift = match unit.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("give a number of bytes, with K, M or G if needed".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "give a number of bytes, such as 256M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too much".to_owned())
}

/// Returns a number and its noun, in the plural unless it is one.
pub(crate) fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Returns a span of time: `0.4 s`, `12.3 s`, `4 min 5 s`, `3 h 20 min`.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Returns an age in its two largest units.
pub(crate) fn age(seconds: i64) -> String {
    let minutes = seconds.max(0) / 60;
    match minutes {
        0..60 => format!("{minutes} min"),
        60..2880 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} days {} h", minutes / 1440, minutes % 1440 / 60),
    }
}

/// Returns how many times the first figure holds the second: `3.2`, or `-` when the second is 0.
pub(crate) fn ratio(whole: u64, part: u64) -> String {
    if part == 0 { "-".to_owned() } else { format!("{:.2}", whole as f64 / part as f64) }
}

/// Returns a time in the local zone, to the second.
pub(crate) fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns the time of a file in UTC, to the nanosecond.
pub(crate) fn exact_time(time: model::Timestamp) -> String {
    match jiff::Timestamp::new(time.seconds, i32::try_from(time.nanos).unwrap_or(0)) {
        Ok(time) => time.to_string(),
        Err(_) => format!("@{}.{:09}", time.seconds, time.nanos),
    }
}

/// Returns the time of a file in the local zone, to the second.
pub(crate) fn local_file_time(time: model::Timestamp) -> String {
    jiff::Timestamp::from_second(time.seconds).map_or_else(|_| format!("@{}", time.seconds), local_time)
}

/// A path in JSON: `path` as text, and `path_bytes` in hexadecimal when the path is not UTF-8 and `path` only shows it.
#[derive(Serialize)]
pub(crate) struct JsonPath {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

impl JsonPath {
    /// Prepares a path.
    pub(crate) fn new(path: &[u8]) -> JsonPath {
        match std::str::from_utf8(path) {
            Ok(text) => JsonPath { path: text.to_owned(), path_bytes: None },
            Err(_) => JsonPath { path: escape(path), path_bytes: Some(HEXLOWER.encode(path)) },
        }
    }
}

/// Lists the first few of some names.
pub(crate) fn first_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let first: Vec<String> = names.take(NAMED).map(|name| escape(name.as_bytes())).collect();
    let rest = if more > 0 { format!(" and {} more", count(more as u64)) } else { String::new() };
    format!("{}{rest}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(duration(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(3_700)), "1 h 1 min");
        assert_eq!([ratio(3, 2), ratio(1, 0)], ["1.50", "-"]);
    }

    #[test]
    fn ages_read_well() {
        assert_eq!([age(-5), age(59), age(3600)], ["0 min", "0 min", "1 h 0 min"]);
        assert_eq!([age(36 * 3600), age(86_400 * 5 + 7200)], ["36 h 0 min", "5 days 2 h"]);
    }

    #[test]
    fn paths_in_json_lose_nothing() {
        let json = serde_json::to_string(&JsonPath::new(b"a\xff")).unwrap();
        assert_eq!(json, r#"{"path":"a\\xff","path_bytes":"61ff"}"#);
        assert_eq!(serde_json::to_string(&JsonPath::new(b"a\n")).unwrap(), r#"{"path":"a\n"}"#);
    }
}
