//! Finding the snapshot that a person means.
//!
//! A snapshot is named by `latest` (the one that was committed last), by its identifier or the beginning of it, or by a time: the newest snapshot begun at or
//! before it, where one whose date cannot be right counts as taken between its neighbours ([`dates`](crate::catalog::dates)). A time
//! stands for the whole of the unit it is given in, so `2026-11-22` includes that day to its end and `2026-11-22T03:00` that minute.
//! Times without `Z` or an offset are local.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned, civil};

use super::display_path;
use crate::catalog::CatalogError;
use crate::catalog::dates::Dates;
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::SnapshotNumber;

/// Most snapshots that a message about an ambiguous name lists.
const NAMED_CANDIDATES: usize = 8;

/// Why a name selects no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The store has no snapshot.
    #[error("The store has no snapshots yet")]
    Empty,
    /// No identifier begins so.
    #[error("No snapshot is named {spec}")]
    Unknown {
        /// The name given.
        spec: String,
    },
    /// Several identifiers begin so.
    #[error("{spec} could be any of {count} snapshots: {candidates}; give more digits")]
    Ambiguous {
        /// The name given.
        spec: String,
        /// How many there are.
        count: usize,
        /// Some of them, with their times.
        candidates: String,
    },
    /// The snapshot was there when it was looked for.
    #[error("A prune has just removed the snapshot {id}")]
    Gone {
        /// Its identifier.
        id: String,
    },
    /// All snapshots are newer than the time.
    #[error("No snapshot is as old as {spec}; the oldest is {oldest}")]
    TooOld {
        /// The time given.
        spec: String,
        /// The oldest snapshot.
        oldest: String,
    },
    /// The name is none of the forms there are.
    #[error(
        "{spec} names no snapshot: give `latest`, an id or its first digits, or a time such as 2026-11-22 or 2026-11-22T03:00"
    )]
    Malformed {
        /// The name given.
        spec: String,
    },
}

/// One snapshot of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Its number, in order of commits.
    pub number: SnapshotNumber,
    /// Its record.
    pub record: SnapshotRecord,
    /// When it was taken: its record's time, unless that cannot be right.
    pub moment: Timestamp,
}

/// All snapshots of a store, as of one commit.
#[derive(Clone, Debug, Default)]
pub struct Snapshots {
    all: Vec<StoredSnapshot>,
}

impl Snapshots {
    /// Reads the records of all snapshots.
    ///
    /// # Errors
    /// Fails when a record is damaged.
    pub fn read(catalog: &CatalogReader) -> Result<Snapshots, CatalogError> {
        let dates = Dates::read(catalog, Timestamp::now())?;
        let all = catalog.snapshots()?.into_iter().map(|(number, record)| {
            let moment = dates.moment(number).unwrap_or(record.time);
            StoredSnapshot { number, record, moment }
        });
        Ok(Snapshots { all: all.collect() })
    }

    /// Returns all snapshots, in order of commits, which is oldest first.
    pub fn all(&self) -> &[StoredSnapshot] {
        &self.all
    }

    /// Returns the newest snapshot: the one that was committed last, whatever clocks said.
    ///
    /// # Errors
    /// [`ResolveError::Empty`] when there is none.
    pub fn newest(&self) -> Result<&StoredSnapshot, ResolveError> {
        self.all.iter().max_by_key(|snapshot| snapshot.number).ok_or(ResolveError::Empty)
    }

    /// Finds the snapshot that a name stands for, times read in the system's time zone.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve(&self, spec: &str) -> Result<&StoredSnapshot, ResolveError> {
        self.resolve_in(spec, &TimeZone::system())
    }

    /// Finds what `SNAP` or `SNAP:PATH` stands for: the snapshot, and the path, empty when none was given.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve_path(&self, spec: &OsStr) -> Result<(&StoredSnapshot, Vec<u8>), ResolveError> {
        let (name, path) = split_spec(spec.as_bytes());
        let name = std::str::from_utf8(name).map_err(|_| ResolveError::Malformed { spec: display_path(name) })?;
        Ok((self.resolve(name)?, path.unwrap_or_default().to_vec()))
    }

    fn resolve_in(&self, spec: &str, zone: &TimeZone) -> Result<&StoredSnapshot, ResolveError> {
        let newest = self.newest()?;
        if spec == "latest" {
            return Ok(newest);
        }
        if !spec.is_empty() && spec.len() <= 32 && spec.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return self.by_prefix(spec);
        }
        let shown = || display_path(spec.as_bytes());
        let end = end_of(spec, zone).ok_or_else(|| ResolveError::Malformed { spec: shown() })?;
        let at_or_before = self.all.iter().filter(|snapshot| snapshot.moment <= end);
        at_or_before.max_by_key(|snapshot| (snapshot.moment, snapshot.number)).ok_or_else(|| {
            let oldest = self.all.iter().min_by_key(|snapshot| snapshot.moment);
            ResolveError::TooOld { spec: shown(), oldest: oldest.map(describe).unwrap_or_default() }
        })
    }

    fn by_prefix(&self, spec: &str) -> Result<&StoredSnapshot, ResolveError> {
        let prefix = spec.to_ascii_lowercase();
        let found: Vec<&StoredSnapshot> =
            self.all.iter().filter(|snapshot| snapshot.record.id.starts_with(&prefix)).collect();
        match found.as_slice() {
            [] => Err(ResolveError::Unknown { spec: spec.to_owned() }),
            [one] => Ok(one),
            many => {
                let mut candidates: Vec<String> =
                    many.iter().take(NAMED_CANDIDATES).map(|snapshot| describe(snapshot)).collect();
                if many.len() > NAMED_CANDIDATES {
                    candidates.push("...".to_owned());
                }
                let candidates = candidates.join(", ");
                Err(ResolveError::Ambiguous { spec: spec.to_owned(), count: many.len(), candidates })
            }
        }
    }
}

fn describe(snapshot: &StoredSnapshot) -> String {
    let record = &snapshot.record;
    let id = record.id.get(..12).unwrap_or(&record.id);
    format!("{id} of {}", record.time.strftime("%Y-%m-%dT%H:%M:%SZ"))
}

/// Splits `SNAP:PATH` into its parts. The path begins behind the first colon that is no part of a time: the longest beginning that is a
/// time wins.
pub fn split_spec(spec: &[u8]) -> (&[u8], Option<&[u8]>) {
    let colons = || spec.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    if looks_like_a_date(spec) {
        let ends = std::iter::once(spec.len()).chain(colons().collect::<Vec<_>>().into_iter().rev());
        for end in ends {
            // A time is short; a long path must not be tried at each of its colons.
            if end <= 64
                && let Ok(text) = std::str::from_utf8(&spec[..end])
                && end_of(text, &TimeZone::UTC).is_some()
            {
                return (&spec[..end], spec.get(end + 1..));
            }
        }
    }
    match colons().next() {
        Some(at) => (&spec[..at], Some(&spec[at + 1..])),
        None => (spec, None),
    }
}

/// Returns whether the text begins with four digits, a minus sign and two digits, which no identifier does.
fn looks_like_a_date(spec: &[u8]) -> bool {
    spec.len() >= 10 && spec[..4].iter().all(u8::is_ascii_digit) && spec[4] == b'-' && spec[7] == b'-'
}

/// Returns the last instant of the time that a text gives, local unless it says otherwise: `2026-11-22` stands for that day to its end. `None` when
/// it is no time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    end_of(text, &TimeZone::system())
}

/// Returns the last instant of the time that a text gives, or `None` when it is no time.
fn end_of(spec: &str, zone: &TimeZone) -> Option<Timestamp> {
    if !looks_like_a_date(spec.as_bytes()) {
        return None;
    }
    if spec.len() == 10 {
        let next = spec.parse::<civil::Date>().ok()?.tomorrow().ok()?;
        return before(next.to_zoned(zone.clone()).ok()?.timestamp());
    }
    // The clock's part: behind the `T`, without a zone. A fraction names an instant, else the smallest unit given is meant whole.
    let clock = spec.get(11..)?;
    let digits: usize =
        clock.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b':').filter(u8::is_ascii_digit).count();
    let unit = match digits {
        _ if clock.contains('.') || clock.contains(',') => None,
        2 => Some(Span::new().hours(1)),
        4 => Some(Span::new().minutes(1)),
        6 => Some(Span::new().seconds(1)),
        _ => return None,
    };
    let start = if let Ok(start) = spec.parse::<Timestamp>() {
        start
    } else if let Ok(start) = spec.parse::<Zoned>() {
        start.timestamp()
    } else {
        spec.parse::<civil::DateTime>().ok()?.to_zoned(zone.clone()).ok()?.timestamp()
    };
    match unit {
        None => Some(start),
        Some(unit) => before(start.checked_add(unit).ok()?),
    }
}

fn before(end: Timestamp) -> Option<Timestamp> {
    end.checked_sub(Span::new().nanoseconds(1)).ok()
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
mod tests;
