//! Calendar arithmetic in UTC: session labels, mail dates, zip time stamps.

/// Milliseconds of a day.
pub const DAY_MS: i64 = 86_400_000;

/// A moment in UTC, split into calendar fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// Year of the Gregorian calendar.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, 1 to 31.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute.
    pub minute: u32,
    /// Second.
    pub second: u32,
    /// Millisecond.
    pub milli: u32,
    /// Day of the week, 0 is Sunday.
    pub weekday: u32,
}

impl Civil {
    /// Splits milliseconds since 1970 into calendar fields.
    ///
    /// The year is counted from March, so that the leap day is the last of its year; 146,097 days are 400 years.
    pub fn from_ms(ms: i64) -> Self {
        let (days, in_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u32,
            day: (of_year - (153 * from_march + 2) / 5 + 1) as u32,
            hour: (in_day / 3_600_000) as u32,
            minute: (in_day / 60_000 % 60) as u32,
            second: (in_day / 1000 % 60) as u32,
            milli: (in_day % 1000) as u32,
            weekday: (days + 4).rem_euclid(7) as u32,
        }
    }

    /// Joins the fields to milliseconds since 1970 (the weekday is ignored).
    pub fn to_ms(self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let from_march = i64::from((self.month + 9) % 12);
        let of_year = (153 * from_march + 2) / 5 + i64::from(self.day) - 1;
        let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468;
        let seconds = i64::from(self.hour * 3600 + self.minute * 60 + self.second);
        days * DAY_MS + seconds * 1000 + i64::from(self.milli)
    }
}

/// Formats the time stamp of a label or redo log: `yyyyMMdd.HHmmss.SSS`.
pub fn stamp(ms: i64) -> String {
    let c = Civil::from_ms(ms);
    format!("{:04}{:02}{:02}.{:02}{:02}{:02}.{:03}", c.year, c.month, c.day, c.hour, c.minute, c.second, c.milli)
}

/// Formats a date as RFC 5322 wants it in a header.
pub fn mail_date(ms: i64) -> String {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let c = Civil::from_ms(ms);
    format!(
        "{}, {} {} {} {:02}:{:02}:{:02} +0000",
        DAYS[c.weekday as usize],
        c.day,
        MONTHS[c.month as usize - 1],
        c.year,
        c.hour,
        c.minute,
        c.second
    )
}

/// Packs a moment into the time (low half) and date (high half) words of a zip entry; two seconds are one unit.
pub fn dos_time(ms: i64) -> u32 {
    let c = Civil::from_ms(ms);
    let date = ((c.year - 1980).clamp(0, 127) as u32) << 9 | c.month << 5 | c.day;
    let time = c.hour << 11 | c.minute << 5 | (c.second / 2);
    date << 16 | time
}

/// Parses `2026-08-01T01:00:00Z` or `2026-08-01` to milliseconds since 1970.
pub fn parse(text: &str) -> Option<i64> {
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, time.strip_suffix('Z').unwrap_or(time)),
        None => (text, "00:00:00"),
    };
    let date: Vec<u32> = date.split('-').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let time: Vec<u32> = time.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let (&[year, month, day], &[hour, minute, second]) = (date.as_slice(), time.as_slice()) else {
        return None;
    };
    let fields = Civil { year: i64::from(year), month, day, hour, minute, second, milli: 0, weekday: 0 };
    let in_range = (1970..2200).contains(&year) && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    // Joining and splitting again refuses days that the month doesn't have.
    (in_range && day >= 1 && Civil::from_ms(fields.to_ms()).day == day).then(|| fields.to_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_and_dates_match_known_moments() {
        let ms = parse("2026-08-01T05:00:04Z").unwrap() + 118;
        assert_eq!(ms, 1_785_560_404_118);
        assert_eq!(stamp(ms), "20260801.050004.118");
        assert_eq!(mail_date(ms), "Sat, 1 Aug 2026 05:00:04 +0000");
        assert_eq!(parse("2024-02-29"), Some(1_709_164_800_000));
        assert_eq!(parse("2026-02-29"), None);
        assert_eq!(parse("yesterday"), None);
        assert_eq!(
            dos_time(parse("2026-08-01T01:02:04Z").unwrap()),
            (46 << 9 | 8 << 5 | 1) << 16 | (1 << 11 | 2 << 5 | 2)
        );
    }
}
