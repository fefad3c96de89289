//! Kinds of values in the configuration file, and what each may be.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A value that is written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text<T>(pub(crate) T);

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Text).map_err(serde::de::Error::custom)
    }
}

/// A span of time by the clock: `90s` or plainly `90`, `5min` or `5m`, `2h`, `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(given: &str) -> Result<Span, String> {
        let end = given.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(given.len());
        let (digits, unit) = given.split_at(end);
        let seconds = match unit.trim() {
            "" | "s" => 1,
            "min" | "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => {
                return Err(format!(
                    "`{given}` is not a span of time: give a number and s, min, h or d, such as 90s or 2h"
                ));
            }
        };
        let number: u64 = digits.parse().map_err(|_| format!("`{given}` is not a span of time: it has no number"))?;
        let seconds = number.checked_mul(seconds).filter(|seconds| *seconds <= 366 * 86_400);
        seconds.map(|seconds| Span(Duration::from_secs(seconds))).ok_or_else(|| format!("`{given}` is too long"))
    }
}

/// A longest age, or none: a span of time, or `off` or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgeLimit(pub(crate) Option<Duration>);

impl FromStr for AgeLimit {
    type Err = String;

    fn from_str(given: &str) -> Result<AgeLimit, String> {
        if given == "off" {
            return Ok(AgeLimit(None));
        }
        let span: Span = given.parse().map_err(|error| format!("{error}; `off` is no limit"))?;
        Ok(AgeLimit(Some(span.0).filter(|span| !span.is_zero())))
    }
}

/// A share: a number from 0 to 1, or per cent as text, `"20%"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Share, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Number(f64),
            Text(String),
        }
        let share = match Given::deserialize(deserializer) {
            Ok(Given::Number(number)) => Some(number),
            Ok(Given::Text(text)) => text
                .strip_suffix('%')
                .and_then(|number| number.trim().parse::<f64>().ok())
                .map(|percent| percent / 100.0),
            Err(_) => None,
        };
        share
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Share)
            .ok_or_else(|| serde::de::Error::custom("give a number from 0 to 1, or per cent as text, such as \"20%\""))
    }
}

/// Permission bits of a file, in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileMode(pub(crate) u32);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(given: &str) -> Result<FileMode, String> {
        let mode = u32::from_str_radix(given, 8).ok().filter(|mode| mode & 0o600 == 0o600 && *mode <= 0o777);
        mode.map(FileMode).ok_or_else(|| {
            format!("`{given}` is not a file mode: give it in octal, such as \"0640\"; its owner reads and writes it")
        })
    }
}

/// Where the nightly run logs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogTarget {
    /// The system's log, which is the journal where systemd runs.
    System,
    /// A file.
    File(PathBuf),
}

impl FromStr for LogTarget {
    type Err = String;

    fn from_str(given: &str) -> Result<LogTarget, String> {
        match given {
            "syslog" | "journal" => Ok(LogTarget::System),
            path if path.starts_with('/') => Ok(LogTarget::File(path.into())),
            other => {
                Err(format!("`{other}` is not a log: give \"journal\", \"syslog\" or the absolute path of a file"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_leave_the_file_to_its_owner() {
        assert_eq!(
            ["0640", "644", "600"].map(|text| text.parse().map(|mode: FileMode| mode.0)),
            [Ok(0o640), Ok(0o644), Ok(0o600)]
        );
        for other in ["", "0040", "4755", "rw", "-640", "0888"] {
            assert!(other.parse::<FileMode>().is_err(), "{other}");
        }
    }

    #[test]
    fn an_age_may_be_off() {
        let limit = |text: &str| text.parse::<AgeLimit>().map(|limit| limit.0.map(|span| span.as_secs()));
        assert_eq!(
            [limit("3d"), limit("off"), limit("0"), limit("0d")],
            [Ok(Some(259_200)), Ok(None), Ok(None), Ok(None)]
        );
        assert!(limit("never").is_err_and(|error| error.contains("`off` is no limit")));
    }

    #[test]
    fn spans_are_by_the_clock() {
        let span = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!([span("90s"), span("5min"), span("2h"), span("0s")], [Ok(90), Ok(300), Ok(7200), Ok(0)]);
        assert_eq!([span("90"), span("5m"), span("1d")], [Ok(90), Ok(300), Ok(86_400)]);
        for other in ["", "5y", "h", "-5s", "1.5h", "400d", "99999999999999999999s"] {
            assert!(span(other).is_err(), "{other}");
        }
    }
}
