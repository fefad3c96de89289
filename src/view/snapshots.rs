//! Finding the snapshot that a person means.
//!
//! A snapshot is named by `latest` (the one of its source that was committed last), by its identifier or the beginning of it, or by a time: the newest
//! snapshot of the source begun at or before it, where one whose date cannot be right counts as taken between its neighbours
//! ([`dates`](crate::catalog::dates)). A time stands for the whole of the unit it is given in, so `2026-11-22` includes that day to its end and
//! `2026-11-22T03:00` that minute. Times without `Z` or an offset are local.
//!
//! In a store with several sources, `latest` and a time are of one of them: of the source in front (`mail1/latest`), else of the one that was chosen for the
//! whole command. Without either they are refused, because any choice would be a guess.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned, civil};

use super::display_path;
use crate::catalog::CatalogError;
use crate::catalog::dates::Dates;
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::sources::{NamingError, Sources};
use crate::ids::{SnapshotNumber, SourceId};

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
    /// The store has several sources, and none was chosen.
    #[error("{spec} could be of any of {count} sources: give {choices}")]
    SeveralSources {
        /// The name given.
        spec: String,
        /// How many sources have snapshots.
        count: usize,
        /// What to give in its place.
        choices: String,
    },
    /// The source has no snapshot.
    #[error("The source {name} has no snapshots yet")]
    EmptySource {
        /// Its name.
        name: String,
    },
    /// The snapshot is of another source than the one that was chosen.
    #[error("The snapshot {id} is of the source {owner}, not of {name}")]
    OtherSource {
        /// Its identifier.
        id: String,
        /// Its source.
        owner: String,
        /// The source that was chosen.
        name: String,
    },
    /// No such source.
    #[error(transparent)]
    Source(#[from] NamingError),
    /// The name is none of the forms there are.
    #[error(
        "{spec} names no snapshot: give `latest`, an id or its first digits, or a time such as 2026-11-22 or 2026-11-22T03:00; with several sources, SOURCE/latest or SOURCE/2026-11-22"
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
    sources: Sources,
    /// The source that `latest` and times are of.
    chosen: Option<SourceId>,
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
        let sources = match catalog.sources() {
            Err(error) if error.is_damage() => Sources::default(),
            sources => sources?,
        };
        Ok(Snapshots { all: all.collect(), sources, chosen: None })
    }

    /// Chooses the source that `latest` and times are of, by its name or its location. Snapshots of others are not found any more.
    ///
    /// # Errors
    /// [`ResolveError::Source`] when there is no such source.
    pub fn choose(self, source: &str) -> Result<Snapshots, ResolveError> {
        let chosen = Some(self.sources.find(source)?);
        Ok(Snapshots { chosen, ..self })
    }

    /// Returns the sources of the store.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Returns the source that was chosen.
    pub fn chosen(&self) -> Option<SourceId> {
        self.chosen
    }

    /// Returns the name of the source of a snapshot.
    pub fn source_name(&self, snapshot: &StoredSnapshot) -> &str {
        self.sources.name(snapshot.record.source_id)
    }

    /// Returns the snapshots of the source that was chosen, or all, in order of commits.
    pub fn listed(&self) -> impl Iterator<Item = &StoredSnapshot> {
        self.all.iter().filter(|snapshot| self.chosen.is_none() || snapshot.record.source_id == self.chosen)
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
        if self.all.is_empty() {
            return Err(ResolveError::Empty);
        }
        match spec.split_once('/') {
            Some((name, rest)) => {
                let source = self.sources.find(name)?;
                self.resolve_of(spec, rest, Some(source), zone)
            }
            None => self.resolve_of(spec, spec, self.chosen, zone),
        }
    }

    /// Finds what `name` stands for among the snapshots of one source, or of all. `spec` is the whole of what was given.
    fn resolve_of(
        &self,
        spec: &str,
        name: &str,
        source: Option<SourceId>,
        zone: &TimeZone,
    ) -> Result<&StoredSnapshot, ResolveError> {
        if !name.is_empty() && name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return self.by_prefix(name, source);
        }
        let shown = || display_path(spec.as_bytes());
        let end = match name {
            "latest" => None,
            _ => Some(end_of(name, zone).ok_or_else(|| ResolveError::Malformed { spec: shown() })?),
        };
        let own: Vec<&StoredSnapshot> = match source {
            Some(id) => self.all.iter().filter(|snapshot| snapshot.record.source_id == Some(id)).collect(),
            None => {
                self.refuse_several(spec, name)?;
                self.all.iter().collect()
            }
        };
        let oldest = own.iter().min_by_key(|snapshot| snapshot.moment);
        let Some(oldest) = oldest else {
            return Err(ResolveError::EmptySource { name: self.sources.name(source).to_owned() });
        };
        let found = match end {
            None => own.iter().max_by_key(|snapshot| snapshot.number),
            Some(end) => {
                let at_or_before = own.iter().filter(|snapshot| snapshot.moment <= end);
                at_or_before.max_by_key(|snapshot| (snapshot.moment, snapshot.number))
            }
        };
        found.copied().ok_or_else(|| ResolveError::TooOld { spec: shown(), oldest: describe(oldest) })
    }

    /// Refuses `latest` and times where they could be of several sources.
    fn refuse_several(&self, spec: &str, name: &str) -> Result<(), ResolveError> {
        let with_snapshots: BTreeSet<Option<SourceId>> =
            self.all.iter().map(|snapshot| snapshot.record.source_id).collect();
        if with_snapshots.len() < 2 {
            return Ok(());
        }
        let names = with_snapshots.iter().map(|source| format!("{}/{name}", self.sources.name(*source)));
        let mut choices: Vec<String> = names.take(NAMED_CANDIDATES).collect();
        if with_snapshots.len() > NAMED_CANDIDATES {
            choices.push("...".to_owned());
        }
        let (spec, count) = (display_path(spec.as_bytes()), with_snapshots.len());
        Err(ResolveError::SeveralSources { spec, count, choices: choices.join(" or ") })
    }

    fn by_prefix(&self, spec: &str, source: Option<SourceId>) -> Result<&StoredSnapshot, ResolveError> {
        let prefix = spec.to_ascii_lowercase();
        let begins = |snapshot: &&StoredSnapshot| snapshot.record.id.starts_with(&prefix);
        let is_own = |snapshot: &&StoredSnapshot| source.is_none() || snapshot.record.source_id == source;
        let (found, others): (Vec<&StoredSnapshot>, Vec<&StoredSnapshot>) =
            self.all.iter().filter(begins).partition(|snapshot| is_own(snapshot));
        match (found.as_slice(), others.first()) {
            ([], Some(other)) => Err(ResolveError::OtherSource {
                id: other.record.short_id().to_owned(),
                owner: self.source_name(other).to_owned(),
                name: self.sources.name(source).to_owned(),
            }),
            ([], None) => Err(ResolveError::Unknown { spec: spec.to_owned() }),
            ([one], _) => Ok(one),
            (many, _) => {
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
/// time wins, also behind the name of a source.
pub fn split_spec(spec: &[u8]) -> (&[u8], Option<&[u8]>) {
    let source =
        spec.iter().position(|byte| b"/:".contains(byte)).filter(|at| spec[*at] == b'/').map_or(0, |at| at + 1);
    let (snapshot, path) = split_unnamed(&spec[source..]);
    (&spec[..source + snapshot.len()], path)
}

/// Splits what has no name of a source in front.
fn split_unnamed(spec: &[u8]) -> (&[u8], Option<&[u8]>) {
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
