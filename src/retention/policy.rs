//! The rules by which snapshots are kept.

use std::fmt;
use std::str::FromStr;

use jiff::{Span, Zoned};
use serde::{Deserialize, Serialize};

/// The longest span that a rule may name, in years; the others follow from it.
const MAX_YEARS: u32 = 1000;

/// Why a rule is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The span of `keep-within` cannot be read.
    #[error("`{text}` is not a span of time: give a number and one of d, w, m, y, such as 90d, 12w, 3m or 1y")]
    Within {
        /// What was given.
        text: String,
    },
}

/// The unit of a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithinUnit {
    /// Days, `d`.
    Days,
    /// Weeks, `w`.
    Weeks,
    /// Months, `m`: as in Zimbra's own spelling, not minutes.
    Months,
    /// Years, `y`.
    Years,
}

/// A span of time as Zimbra spells it: `90d`, `12w`, `3m`, `1y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Within {
    /// How many units; at least one.
    pub count: u32,
    /// The unit.
    pub unit: WithinUnit,
}

impl Within {
    /// Returns the moment so long before another, by the calendar of that one's time zone: one month before 31 March is the last day of February,
    /// at the same time of day. Before the calendar's beginning it is the earliest moment that there is.
    pub fn before(&self, moment: &Zoned) -> jiff::Timestamp {
        self.span().and_then(|span| moment.checked_sub(span)).map_or(jiff::Timestamp::MIN, |start| start.timestamp())
    }

    /// Returns the moment so long after another, in the same way; at most the latest moment that there is.
    pub fn after(&self, moment: &Zoned) -> jiff::Timestamp {
        self.span().and_then(|span| moment.checked_add(span)).map_or(jiff::Timestamp::MAX, |end| end.timestamp())
    }

    fn span(&self) -> Result<Span, jiff::Error> {
        let count = i64::from(self.count);
        match self.unit {
            WithinUnit::Days => Span::new().try_days(count),
            WithinUnit::Weeks => Span::new().try_weeks(count),
            WithinUnit::Months => Span::new().try_months(count),
            WithinUnit::Years => Span::new().try_years(count),
        }
    }
}

impl FromStr for Within {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Within, PolicyError> {
        let bad = || PolicyError::Within { text: text.to_owned() };
        let (unit, per_year) = match text.bytes().last() {
            Some(b'd') => (WithinUnit::Days, 366),
            Some(b'w') => (WithinUnit::Weeks, 53),
            Some(b'm') => (WithinUnit::Months, 12),
            Some(b'y') => (WithinUnit::Years, 1),
            _ => return Err(bad()),
        };
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        match digits.parse::<u32>() {
            Ok(count) if count > 0 && count <= MAX_YEARS * per_year => Ok(Within { count, unit }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            WithinUnit::Days => 'd',
            WithinUnit::Weeks => 'w',
            WithinUnit::Months => 'm',
            WithinUnit::Years => 'y',
        };
        write!(f, "{}{unit}", self.count)
    }
}

impl<'de> Deserialize<'de> for Within {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Within, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Within {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Rules by which snapshots are kept, for each source by itself. A count of 0 is no rule.
///
/// In a configuration file it is the table `[retention]`, with the names of the options as keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Keeps so many of the newest.
    pub keep_last: u32,
    /// Keeps the newest of each of the last so many hours that have one.
    pub keep_hourly: u32,
    /// Keeps the newest of each of the last so many days that have one.
    pub keep_daily: u32,
    /// Keeps the newest of each of the last so many weeks that have one; weeks begin on Mondays.
    pub keep_weekly: u32,
    /// Keeps the newest of each of the last so many months that have one.
    pub keep_monthly: u32,
    /// Keeps the newest of each of the last so many years that have one.
    pub keep_yearly: u32,
    /// Keeps all that are at most so much older than the newest.
    pub keep_within: Option<Within>,
    /// Keeps all that have one of these tags.
    pub keep_tags: Vec<String>,
    /// Keeps the last from which an account can be restored whole, for so long after the account vanished. It adds to the other rules: alone it lets nothing
    /// go. Which snapshots those are, [`plan`](super::plan) has to learn from [`Protections`](super::Protections), for it takes a look into them.
    pub keep_accounts: Option<Within>,
}

impl Policy {
    /// Returns whether there is no rule that lets anything go, which means that nothing does.
    pub fn is_empty(&self) -> bool {
        let counts =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        counts.iter().all(|count| *count == 0) && self.keep_within.is_none() && self.keep_tags.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_spelled_as_zimbra_does() {
        for text in ["1d", "90d", "12w", "3m", "1y", "1000y"] {
            assert_eq!(text.parse::<Within>().unwrap().to_string(), text);
        }
        for text in ["", "d", "3", "0d", "-1d", "3M", "3 m", "3mo", "1001y", "99999999999d", "1.5d", "+1d", "٣d"] {
            assert!(text.parse::<Within>().is_err(), "{text}");
        }
    }

    #[test]
    fn months_end_where_the_shorter_one_does() {
        let before = |span: &str, moment: &str| {
            let moment: Zoned = moment.parse().unwrap();
            let start = span.parse::<Within>().unwrap().before(&moment);
            start.to_zoned(moment.time_zone().clone()).strftime("%Y-%m-%d %H:%M").to_string()
        };
        assert_eq!(before("1m", "2028-03-31T03:00[Europe/Berlin]"), "2028-02-29 03:00");
        assert_eq!(before("1y", "2028-02-29T03:00[Europe/Berlin]"), "2027-02-28 03:00");
        // A day is a day of the calendar: 23 hours at the beginning of summer time.
        assert_eq!(before("1d", "2026-03-29T12:00[Europe/Berlin]"), "2026-03-28 12:00");
        assert!("1000y".parse::<Within>().unwrap().before(&Zoned::now()).as_second() < 0);
    }

    #[test]
    fn counts_of_zero_are_no_rule() {
        assert!(Policy::default().is_empty());
        assert!(Policy { keep_last: 0, ..Policy::default() }.is_empty());
        assert!(!Policy { keep_tags: vec!["x".to_owned()], ..Policy::default() }.is_empty());
    }
}
