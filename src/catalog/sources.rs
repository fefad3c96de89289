//! The sources of a store. A source has a number for ever, a name that people call it by, and a location, and both may change.
//!
//! The row of `meta` is a JSON list with one object for each source, in order of their numbers. Stores of earlier versions lack it. They have a list of
//! locations alone, and each location is a source: it gets a name that follows from the location. The names are the same at each reading, because both lists
//! only grow. The row is written when something of it changes, and at the first snapshot of a source.
//!
//! A snapshot's record has the number of its source. Records of earlier versions have the location only, which is that of one source at most.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::database_reader::DatabaseReader;
use super::meta::{LOCATIONS, SOURCES};
use super::row_id::RowKind;
use super::snapshot::SnapshotRecord;
use super::tables::Table;
use crate::ids::SourceId;

/// A name has at most so many bytes: with a time beside it, it still fits into a column.
pub const NAME_MAX_BYTES: usize = 63;

/// A source remembers so many locations that it had; older ones are dropped. It bounds the row.
const FORMER_LOCATIONS: usize = 32;

/// The name of a source: 1 to 63 of `a-z 0-9 . _ -`, beginning with a letter, and never `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

impl SourceName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name of a location: the short name of the host, or the last part of a local path.
    fn of_location(location: &str) -> SourceName {
        let is_local = location.starts_with('/');
        let word = if is_local {
            location.rsplit('/').find(|part| !part.is_empty()).unwrap_or("root")
        } else {
            host(location)
        };
        let is_address = word.contains(':') || word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let word = if is_local || is_address { word } else { word.split('.').next().unwrap_or(word) };
        let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c) { c } else { '-' };
        let word: String = word.chars().map(|c| allowed(c.to_ascii_lowercase())).collect();
        let begins_well = word.starts_with(|c: char| c.is_ascii_lowercase());
        let mut name = if begins_well { word } else { format!("source-{}", word.trim_start_matches(['.', '-', '_'])) };
        // Leaves room for a number behind it.
        name.truncate(NAME_MAX_BYTES - 8);
        SourceName(if name == "latest" { "source-latest".to_owned() } else { name })
    }

    fn numbered(&self, number: usize) -> SourceName {
        SourceName(format!("{}-{number}", self.0))
    }
}

/// Returns the host of a location that is not local.
fn host(location: &str) -> &str {
    let place = location.strip_prefix("ssh://").unwrap_or(location);
    let end = place.find('/').unwrap_or(place.len());
    let place = &place[..end];
    let place = place.rsplit_once('@').map_or(place, |(_, host)| host);
    match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => place.split(':').next().unwrap_or(place),
    }
}

impl FromStr for SourceName {
    type Err = NamingError;

    fn from_str(text: &str) -> Result<SourceName, NamingError> {
        let is_valid = text.len() <= NAME_MAX_BYTES
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte))
            && text != "latest";
        if is_valid { Ok(SourceName(text.to_owned())) } else { Err(NamingError::Invalid { name: text.to_owned() }) }
    }
}

impl TryFrom<String> for SourceName {
    type Error = NamingError;

    fn try_from(text: String) -> Result<SourceName, NamingError> {
        text.parse()
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> String {
        name.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a source cannot be named, found or changed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// The text is no name.
    #[error("`{}` is no name for a source: a name is 1 to 63 of a-z 0-9 . _ -, begins with a letter, and is not `latest`", crate::plain::escape_text(.name))]
    Invalid {
        /// The text.
        name: String,
    },
    /// No source has the name.
    #[error("No source is named {}; {}", crate::plain::escape_text(.name), named(.names))]
    Unknown {
        /// The name, or the location.
        name: String,
        /// The names that there are.
        names: Vec<SourceName>,
    },
    /// Another source has the name.
    #[error("Another source has the name {name} already: {location}")]
    Taken {
        /// The name.
        name: SourceName,
        /// Where that source is.
        location: String,
    },
    /// Another source is there.
    #[error("{location} is the location of the source {owner}, not of {name}")]
    LocationTaken {
        /// The location.
        location: String,
        /// Whose it is.
        owner: SourceName,
        /// The source that was meant.
        name: SourceName,
    },
    /// The source is to be removed.
    #[error("The source {name} is removed; its snapshots go with the next prune")]
    Removed {
        /// Its name.
        name: SourceName,
    },
    /// A source cannot be merged into itself.
    #[error("{name} cannot be merged into itself")]
    Itself {
        /// Its name.
        name: SourceName,
    },
}

fn named(names: &[SourceName]) -> String {
    match names {
        [] => "the store has no source yet".to_owned(),
        _ => format!("there are {}", names.iter().map(SourceName::as_str).collect::<Vec<_>>().join(", ")),
    }
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name. No two sources that are in use have the same.
    pub name: SourceName,
    /// Where it is, in the form that snapshots are taken with.
    pub location: String,
    /// Locations that it had before, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_locations: Vec<String>,
    /// Since when it is retired: kept, and not missed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
    /// Since when it is removed: a prune removes its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Timestamp>,
    /// The source that its snapshots belong to since it was merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_into: Option<SourceId>,
    /// Whether it has no snapshots any more after it was removed: its name is free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gone: bool,
}

impl Source {
    fn new(name: SourceName, location: String) -> Source {
        Source {
            name,
            location,
            former_locations: Vec::new(),
            retired: None,
            removed: None,
            merged_into: None,
            is_gone: false,
        }
    }

    fn is_in_use(&self) -> bool {
        !self.is_gone && self.merged_into.is_none()
    }

    fn move_to(&mut self, location: &str) {
        if self.location == location {
            return;
        }
        let before = std::mem::replace(&mut self.location, location.to_owned());
        self.remember(before);
    }

    fn remember(&mut self, location: String) {
        self.former_locations.retain(|former| *former != location && *former != self.location);
        if location != self.location {
            self.former_locations.push(location);
        }
        let extra = self.former_locations.len().saturating_sub(FORMER_LOCATIONS);
        self.former_locations.drain(..extra);
    }
}

/// All sources of a store, as of one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    all: Vec<Source>,
    /// The first location of each, by number: what records of earlier versions name.
    first_locations: Vec<String>,
}

/// What a snapshot of a location is taken as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The source.
    pub id: SourceId,
    /// Its name.
    pub name: SourceName,
    /// Where it was until now, if that was another place.
    pub moved_from: Option<String>,
    /// Whether the store had no snapshot of it.
    pub is_new: bool,
}

impl Sources {
    /// Reads the sources of a store.
    ///
    /// # Errors
    /// Fails when a row is damaged.
    pub(super) fn read(database: &DatabaseReader) -> Result<Sources, CatalogError> {
        let damaged = |row: u64| move |error| CatalogError::of_row(RowKind::Meta.row(row), error);
        let listed: Option<Vec<Source>> =
            database.get(Table::Meta, SOURCES, |payload| serde_json::from_slice(payload).map_err(damaged(SOURCES)))?;
        let locations: Option<Vec<String>> = database
            .get(Table::Meta, LOCATIONS, |payload| serde_json::from_slice(payload).map_err(damaged(LOCATIONS)))?;
        Ok(Sources::of(listed.unwrap_or_default(), locations.unwrap_or_default()))
    }

    /// Adds to what is listed a source for each location that is not: an earlier version has written it.
    fn of(listed: Vec<Source>, first_locations: Vec<String>) -> Sources {
        let mut sources = Sources { all: listed, first_locations };
        // Both lists have the same numbers.
        let missing = sources.all.iter().skip(sources.first_locations.len()).map(|source| source.location.clone());
        let missing: Vec<String> = missing.collect();
        sources.first_locations.extend(missing);
        for number in sources.all.len()..sources.first_locations.len() {
            let location = sources.first_locations[number].clone();
            let name = sources.free_name(&location);
            sources.all.push(Source::new(name, location));
        }
        sources
    }

    fn free_name(&self, location: &str) -> SourceName {
        let name = SourceName::of_location(location);
        if self.by_name(name.as_str()).is_none() {
            return name;
        }
        let mut number = 2;
        while self.by_name(name.numbered(number).as_str()).is_some() {
            number += 1;
        }
        name.numbered(number)
    }

    /// Returns the source that a number stands for now: of a merged one that which it was merged into.
    pub fn resolve(&self, id: SourceId) -> SourceId {
        let mut id = id;
        // A chain is no longer than the list, whatever the row says.
        for _ in &self.all {
            match self.get(id).and_then(|source| source.merged_into) {
                Some(next) if self.get(next).is_some() => id = next,
                _ => break,
            }
        }
        id
    }

    /// Returns the source of a snapshot.
    pub fn of_record(&self, record: &SnapshotRecord) -> Option<SourceId> {
        let by_location =
            || self.first_locations.iter().position(|known| *known == record.source).map(|at| SourceId(at as u64));
        record.source_id.or_else(by_location).map(|id| self.resolve(id))
    }

    /// Returns a source by its number, merges not followed.
    pub fn get(&self, id: SourceId) -> Option<&Source> {
        self.all.get(usize::try_from(id.0).ok()?)
    }

    fn get_mut(&mut self, id: SourceId) -> Option<&mut Source> {
        self.all.get_mut(usize::try_from(id.0).ok()?)
    }

    /// Returns the name of a source as messages say it.
    pub fn name(&self, id: Option<SourceId>) -> &str {
        id.and_then(|id| self.get(self.resolve(id))).map_or("unknown", |source| source.name.as_str())
    }

    /// Returns the sources that are in use, retired and removed ones included, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        let numbered = self.all.iter().enumerate().map(|(at, source)| (SourceId(at as u64), source));
        numbered.filter(|(_, source)| source.is_in_use())
    }

    /// Returns the sources that are removed, by number.
    pub fn removed(&self) -> BTreeMap<SourceId, SourceName> {
        let removed = self.iter().filter(|(_, source)| source.removed.is_some());
        removed.map(|(id, source)| (id, source.name.clone())).collect()
    }

    /// Finds a source by its name.
    pub fn by_name(&self, name: &str) -> Option<SourceId> {
        self.iter().find(|(_, source)| source.name.as_str() == name).map(|(id, _)| id)
    }

    /// Finds a source by where it is, or was.
    pub fn by_location(&self, location: &str) -> Option<SourceId> {
        let was = || self.iter().find(|(_, source)| source.former_locations.iter().any(|former| former == location));
        self.at_location(location).or_else(|| was().map(|(id, _)| id))
    }

    /// Finds a source by where it is now.
    fn at_location(&self, location: &str) -> Option<SourceId> {
        self.iter().find(|(_, source)| source.location == location).map(|(id, _)| id)
    }

    /// Finds a source by its name, or where it is or was.
    ///
    /// # Errors
    /// [`NamingError::Unknown`] when there is none.
    pub fn find(&self, text: &str) -> Result<SourceId, NamingError> {
        self.by_name(text).or_else(|| self.by_location(text)).ok_or_else(|| NamingError::Unknown {
            name: text.to_owned(),
            names: self.iter().map(|(_, source)| source.name.clone()).collect(),
        })
    }

    /// Chooses the source that a snapshot of a location belongs to: the one of that name, else the one at that location, else a new one. The location is
    /// noted, and a retired source is in use again.
    ///
    /// # Errors
    /// When the source is removed, or another one is at the location.
    pub fn choose(&mut self, location: &str, name: Option<&SourceName>) -> Result<Chosen, NamingError> {
        let id = match name {
            Some(name) => self.by_name(name.as_str()),
            None => self.by_location(location),
        };
        let Some(id) = id else {
            // Where a source was before, another may be now, if that is said by its name.
            if let (Some(name), Some(owner)) = (name, self.at_location(location)) {
                return Err(self.is_at(location, owner, name.clone()));
            }
            let name = name.cloned().unwrap_or_else(|| self.free_name(location));
            self.all.push(Source::new(name.clone(), location.to_owned()));
            self.first_locations.push(location.to_owned());
            return Ok(Chosen { id: SourceId(self.all.len() as u64 - 1), name, moved_from: None, is_new: true });
        };
        let before = self.get(id).map(|source| source.location.clone());
        self.relocate(id, location)?;
        if let Some(source) = self.get_mut(id) {
            source.retired = None;
        }
        let name = name.cloned().or_else(|| self.get(id).map(|source| source.name.clone()));
        let name = name.unwrap_or_else(|| SourceName::of_location(location));
        Ok(Chosen { id, name, moved_from: before.filter(|before| before != location), is_new: false })
    }

    fn is_at(&self, location: &str, owner: SourceId, name: SourceName) -> NamingError {
        let owner = self.get(owner).map_or_else(|| name.clone(), |owner| owner.name.clone());
        NamingError::LocationTaken { location: location.to_owned(), owner, name }
    }

    /// Notes where a source is now.
    ///
    /// # Errors
    /// When it is removed, or another one is there.
    pub fn relocate(&mut self, id: SourceId, location: &str) -> Result<(), NamingError> {
        let taken = self.at_location(location).filter(|other| *other != id);
        let Some(source) = self.get_mut(id) else { return Ok(()) };
        if source.removed.is_some() {
            return Err(NamingError::Removed { name: source.name.clone() });
        }
        if let Some(owner) = taken {
            let name = source.name.clone();
            return Err(self.is_at(location, owner, name));
        }
        source.move_to(location);
        Ok(())
    }

    /// Gives a source another name.
    ///
    /// # Errors
    /// When another source has it.
    pub fn rename(&mut self, id: SourceId, name: SourceName) -> Result<(), NamingError> {
        if let Some(owner) = self.by_name(name.as_str()).filter(|owner| *owner != id).and_then(|owner| self.get(owner))
        {
            return Err(NamingError::Taken { name, location: owner.location.clone() });
        }
        if let Some(source) = self.get_mut(id) {
            source.name = name;
        }
        Ok(())
    }

    /// Gives the snapshots of one source to another, which also remembers where the first one was.
    ///
    /// # Errors
    /// When both are the same, or one is removed.
    pub fn merge(&mut self, from: SourceId, into: SourceId) -> Result<(), NamingError> {
        for id in [from, into] {
            if let Some(source) = self.get(id).filter(|source| source.removed.is_some() || from == into) {
                let name = source.name.clone();
                return Err(if from == into { NamingError::Itself { name } } else { NamingError::Removed { name } });
            }
        }
        let Some(source) = self.get_mut(from) else { return Ok(()) };
        source.merged_into = Some(into);
        let locations: Vec<String> = source.former_locations.iter().cloned().chain([source.location.clone()]).collect();
        if let Some(into) = self.get_mut(into) {
            locations.into_iter().for_each(|location| into.remember(location));
        }
        Ok(())
    }

    /// Notes since when a source is retired, or that it is in use again.
    pub fn set_retired(&mut self, id: SourceId, since: Option<Timestamp>) {
        if let Some(source) = self.get_mut(id) {
            source.retired = since;
        }
    }

    /// Notes since when a source is removed, or that it stays.
    pub fn set_removed(&mut self, id: SourceId, since: Option<Timestamp>) {
        if let Some(source) = self.get_mut(id) {
            source.removed = since;
        }
    }

    /// Frees the names of removed sources of which none of the snapshots that are left is. Returns whether there were any.
    pub fn free_removed<'a>(&mut self, left: impl Iterator<Item = &'a SnapshotRecord>) -> bool {
        let left: BTreeSet<SourceId> = left.filter_map(|record| record.source_id).collect();
        let has_snapshots = |id: SourceId| left.contains(&id);
        let gone: Vec<SourceId> = self
            .iter()
            .filter(|(id, source)| source.removed.is_some() && !has_snapshots(*id))
            .map(|(id, _)| id)
            .collect();
        for id in &gone {
            if let Some(source) = self.get_mut(*id) {
                source.is_gone = true;
            }
        }
        !gone.is_empty()
    }

    /// Returns the payloads of the two rows: of the list of sources and of their first locations.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, Vec<u8>), serde_json::Error> {
        Ok((serde_json::to_vec(&self.all)?, serde_json::to_vec(&self.first_locations)?))
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
