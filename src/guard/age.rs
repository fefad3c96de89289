//! Ages as Zimbra's tools spell them: `8d`, `2w`, `3m` (months), `1y`.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// A text that is no age.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no age: give a number and d, w, m (months) or y, such as 8d or 3m")]
pub struct AgeError {
    /// The text.
    pub given: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Day,
    Week,
    Month,
    Year,
}

/// An age in calendar units, counted in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    amount: u16,
    unit: Unit,
}

impl Age {
    /// Returns the time at which something is exactly of this age now.
    pub fn before(self, now: Timestamp) -> Timestamp {
        let amount = i64::from(self.amount);
        let span = match self.unit {
            Unit::Day => Span::new().days(amount),
            Unit::Week => Span::new().weeks(amount),
            Unit::Month => Span::new().months(amount),
            // Ten thousand years are the whole calendar, and more than a span may have is the same to us.
            Unit::Year => Span::new().years(amount.min(9_999)),
        };
        now.to_zoned(TimeZone::UTC).checked_sub(span).map_or(Timestamp::MIN, |time| time.timestamp())
    }
}

impl FromStr for Age {
    type Err = AgeError;

    fn from_str(given: &str) -> Result<Age, AgeError> {
        let parse = || {
            let (at, letter) = given.char_indices().next_back()?;
            let unit = match letter {
                'd' => Unit::Day,
                'w' => Unit::Week,
                'm' => Unit::Month,
                'y' => Unit::Year,
                _ => return None,
            };
            let digits = &given[..at];
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let amount = digits.parse::<u16>().ok().filter(|amount| plain && *amount > 0)?;
            Some(Age { amount, unit })
        };
        parse().ok_or_else(|| AgeError { given: given.to_owned() })
    }
}

impl fmt::Display for Age {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Day => "d",
            Unit::Week => "w",
            Unit::Month => "m",
            Unit::Year => "y",
        };
        write!(formatter, "{}{unit}", self.amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_calendar_time() {
        let now: Timestamp = "2026-05-31T03:00:00Z".parse().unwrap();
        for (given, before) in [
            ("8d", "2026-05-23T03:00:00Z"),
            ("2w", "2026-05-17T03:00:00Z"),
            ("3m", "2026-02-28T03:00:00Z"),
            ("1y", "2025-05-31T03:00:00Z"),
        ] {
            let age: Age = given.parse().unwrap();
            assert_eq!((age.before(now).to_string(), age.to_string()), (before.to_owned(), given.to_owned()));
        }
        assert!(
            "65535y".parse::<Age>().unwrap().before(now) < Timestamp::UNIX_EPOCH,
            "the calendar ends, nothing else does"
        );
        for other in ["", "3", "m", "0d", "-3d", "+3d", "3 m", "3min", "3M", "99999d", "3é"] {
            assert!(other.parse::<Age>().is_err(), "{other}");
        }
    }
}
