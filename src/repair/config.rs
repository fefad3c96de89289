//! `config.json`: made again when it is missing, damaged, or not that of this store.
//!
//! ```text
//! row 3 of `meta`     what the file held: in the catalogue, or in the newest checkpoint and the commit files after it
//! snapshot records    without that row, in a store of format 1: which identifier the snapshots' own were made with
//! objects             without that row: when the oldest was written; whether any pack is of format 2
//! ```
//!
//! The identifier of a store of format 1 is looked for in what is left of the damaged file, with every single changed byte put right; the snapshots show which
//! is the true one. Where none is, the store gets a new one, and `id_since_snapshot` says from which snapshot on it counts.
//!
//! Order of writes: the damaged file is copied to `config.json.damaged-<time>`, then the new one takes its place by rename. A crash leaves work for the next
//! repair.
//!
//! Memory: some 300 bytes a snapshot, and one commit file or part of a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::RepairError;
use crate::access::write_durably;
use crate::catalog::commit::{self, CommitFile};
use crate::catalog::commit_log::{self, last_commit, read_whole};
use crate::catalog::database::CatalogDatabase;
use crate::catalog::database_reader::DatabaseReader;
use crate::catalog::meta::{COUNTERS, Counters, STORE};
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::tables::{Change, Table};
use crate::catalog::{CatalogError, checkpoint};
use crate::ids::{CommitNumber, SnapshotNumber};
use crate::replica::{
    CATALOG, CONFIG, ReplicaError, StoreConfig, Unusable, is_id, is_like_store, oldest_object, take_lock,
};
use crate::store::backend::Backend;
use crate::store::pack::PACK_PREFIX;

/// The first bytes of a pack of format 2.
const PACKS_2: &[u8; 8] = b"ZMRPACK2";
/// More of a damaged file is not searched for the identifier.
const SEARCHED_BYTES: usize = 4096;

/// What config.json was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigSource {
    /// From the catalogue.
    Catalog,
    /// From a checkpoint or commit files.
    CommitFiles,
    /// From what the objects of the store show.
    Objects,
}

/// What became of config.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigRepair {
    /// What was wrong with it.
    pub reason: String,
    /// What it was made from.
    pub from: ConfigSource,
    /// Whether the store's identifier was recorded nowhere any more, so that it has a new one.
    pub new_id: bool,
    /// Name of the copy of the damaged file, if there was one.
    pub kept_as: Option<String>,
}

/// Makes config.json again if that is needed; returns what was done.
///
/// # Errors
/// [`ReplicaError::NotAStore`] for a directory that is evidently none, and whatever shows that a later version wrote the store; nothing is changed then.
pub(super) fn ensure(path: &Path, backend: &dyn Backend) -> Result<Option<ConfigRepair>, RepairError> {
    let (found, mut reason) = match StoreConfig::read(path) {
        Ok(config) => (Some(config), None),
        Err(ReplicaError::NotAStore { .. }) if is_like_store(path) => (None, Some("it is missing".to_owned())),
        Err(ReplicaError::Config { fault, .. }) => (None, Some(fault.to_string())),
        Err(error) => return Err(error.into()),
    };
    let lock = take_lock(path)?;
    let mut evidence = Evidence::default();
    evidence.catalog(path, &lock);
    if found.is_none() {
        evidence.commit_files(backend)?;
    }
    let row = evidence.row(path)?;
    let from = if row.is_some() { evidence.from } else { ConfigSource::Objects };
    let damaged = fs::read(path.join(CONFIG)).unwrap_or_default();
    let mut new_id = false;
    let config = match (&found, row) {
        (Some(found), Some(row)) => found.merged(&row),
        (None, Some(row)) => row,
        (Some(found), None) => {
            let id = if evidence.fits(found) { None } else { evidence.identifier(&damaged) };
            let mut config = found.clone();
            config.id = id.unwrap_or(config.id);
            config
        }
        (None, None) => {
            let id = evidence.identifier(&damaged);
            new_id = id.is_none();
            evidence.guess(path, backend, id)?
        }
    };
    if found.as_ref() == Some(&config) {
        return Ok(None);
    }
    let kept_as = keep(path, &damaged)?;
    config.write(path)?;
    let reason = reason.take().unwrap_or_else(|| "it is not that of this store".to_owned());
    Ok(Some(ConfigRepair { reason, from, new_id, kept_as }))
}

/// Copies the damaged file, if there is anything in it.
fn keep(path: &Path, damaged: &[u8]) -> Result<Option<String>, ReplicaError> {
    if damaged.is_empty() {
        return Ok(None);
    }
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let mut name = format!("{CONFIG}.damaged-{stamp}");
    // Two repairs may fall into one second.
    for number in 2.. {
        if !path.join(&name).exists() {
            break;
        }
        name = format!("{CONFIG}.damaged-{stamp}-{number}");
    }
    let file = path.join(&name);
    write_durably(&file, damaged).map_err(|source| ReplicaError::Io {
        action: "Cannot write",
        path: file.display().to_string(),
        source,
    })?;
    Ok(Some(name))
}

/// What the store records of its settings.
struct Evidence {
    row: Option<Vec<u8>>,
    from: ConfigSource,
    snapshots: BTreeMap<SnapshotNumber, SnapshotRecord>,
    /// A number that no snapshot has yet.
    next_snapshot: SnapshotNumber,
    /// Number of the last commit in the catalogue.
    last: CommitNumber,
}

impl Default for Evidence {
    fn default() -> Evidence {
        let (row, snapshots) = (None, BTreeMap::new());
        Evidence {
            row,
            from: ConfigSource::Objects,
            snapshots,
            next_snapshot: SnapshotNumber(0),
            last: CommitNumber(0),
        }
    }
}

impl Evidence {
    /// Reads the catalogue, as far as it can be read.
    fn catalog(&mut self, path: &Path, lock: &File) {
        let file = path.join(CATALOG);
        // redb may panic on a damaged file; what was read before counts.
        let _ = catch_unwind(AssertUnwindSafe(|| -> Result<(), CatalogError> {
            let database = match (CatalogDatabase::open_read_only(&file), lock.try_clone()) {
                // Its last writer died.
                (Err(error), Ok(lock)) if error.needs_repair() => CatalogDatabase::open_repaired(&file, lock)?,
                (opened, _) => opened?,
            };
            self.rows(&database.read()?)
        }));
    }

    fn rows(&mut self, reader: &DatabaseReader) -> Result<(), CatalogError> {
        self.last = last_commit(reader)?.0;
        reader.get(Table::Meta, STORE, |payload| {
            self.change(&Change::Put(Table::Meta, STORE, payload.to_vec()), ConfigSource::Catalog);
            Ok(())
        })?;
        self.next_snapshot = self.next_snapshot.max(Counters::read(reader)?.snapshot);
        reader.scan(Table::Snapshots, 0, |number, payload| {
            self.change(&Change::Put(Table::Snapshots, number, payload?.to_vec()), ConfigSource::Catalog);
            Ok(())
        })
    }

    /// Reads the newest checkpoint and the commit files after it, but those that the catalogue has seen if it has the row. Damaged ones are passed over.
    fn commit_files(&mut self, backend: &dyn Backend) -> Result<(), CatalogError> {
        // A catalogue without the row may be one that can be read in part only.
        let mut last = if self.row.is_some() { self.last } else { CommitNumber(0) };
        let folded = match checkpoint::newest(backend) {
            Err(error) if error.is_damaged_file() => None,
            other => other?.filter(|folded| folded.number > last),
        };
        if let Some(folded) = folded {
            last = folded.number;
            let mut result = Ok(());
            folded.for_each_readable_part(backend, |part| match part {
                Ok(changes) => changes.iter().for_each(|change| self.change(change, ConfigSource::CommitFiles)),
                Err(error) if error.is_damaged_file() => {}
                Err(error) => result = Err(error),
            });
            result?;
        }
        for number in commit_log::commit_files(backend)?.into_iter().filter(|number| *number > last) {
            let key = commit::key(number);
            let read = read_whole(backend, &key).and_then(|file| {
                CommitFile::open(&key, &file)?.for_each_batch(|changes| {
                    changes.iter().for_each(|change| self.change(change, ConfigSource::CommitFiles));
                    Ok(())
                })
            });
            match read {
                Err(error) if error.is_damaged_file() => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn change(&mut self, change: &Change, from: ConfigSource) {
        match change {
            Change::Put(Table::Meta, STORE, payload) => {
                self.row = Some(payload.clone());
                self.from = from;
            }
            Change::Put(Table::Meta, COUNTERS, payload) => {
                let counters = Counters::decode(payload).unwrap_or_default();
                self.next_snapshot = self.next_snapshot.max(counters.snapshot);
            }
            Change::Put(Table::Snapshots, number, payload) => {
                self.next_snapshot = self.next_snapshot.max(SnapshotNumber(number.saturating_add(1)));
                if let Ok(record) = SnapshotRecord::decode(payload) {
                    self.snapshots.insert(SnapshotNumber(*number), record);
                }
            }
            _ => {}
        }
    }

    /// Returns what the row says.
    ///
    /// # Errors
    /// When a later version wrote it.
    fn row(&self, path: &Path) -> Result<Option<StoreConfig>, ReplicaError> {
        let Some(payload) = &self.row else { return Ok(None) };
        match StoreConfig::from_row(payload) {
            Ok(row) => {
                row.refuse_unknown(path)?;
                Ok(Some(row))
            }
            Err(newer @ Unusable::Format(_)) => Err(newer.of(path)),
            Err(Unusable::Damaged(_)) => Ok(None),
        }
    }

    /// Returns whether the newest snapshot is one of the store with these settings; true without snapshots.
    fn fits(&self, config: &StoreConfig) -> bool {
        self.snapshots.last_key_value().is_none_or(|(number, record)| config.is_of(*number, record))
    }

    /// Looks for the identifier in what is left of the file. Without snapshots, which show the true one, it must be there unchanged.
    fn identifier(&self, damaged: &[u8]) -> Option<String> {
        let newest = self.snapshots.last_key_value().map(|(_, record)| record);
        let is_it = |id: &str| newest.is_none_or(|record| record.compute_id(id) == record.id);
        let searched = &damaged[..damaged.len().min(SEARCHED_BYTES)];
        let windows = || searched.windows(32).map(|window| window.to_vec());
        let text = |window: &[u8]| String::from_utf8(window.to_vec()).ok().filter(|_| is_id(window));
        if let Some(found) = windows().filter_map(|window| text(&window)).find(|id| is_it(id)) {
            return Some(found);
        }
        newest?;
        windows().find_map(|window| {
            // One byte may be wrong, and it may be one that looks right.
            let wrong = window.iter().filter(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')).count();
            if wrong > 1 {
                return None;
            }
            let mended = (0..32).flat_map(|at| b"0123456789abcdef".iter().map(move |digit| (at, *digit)));
            mended.into_iter().find_map(|(at, digit)| {
                let mut mended = window.clone();
                mended[at] = digit;
                text(&mended).filter(|id| is_it(id))
            })
        })
    }

    /// Makes settings of what the objects show.
    fn guess(&self, path: &Path, backend: &dyn Backend, id: Option<String>) -> Result<StoreConfig, RepairError> {
        let oldest = self.snapshots.values().map(|record| record.time).chain(oldest_object(path)).min();
        let raised = StoreConfig::new(oldest.unwrap_or_else(Timestamp::now))?;
        let packs = backend.list(PACK_PREFIX).map_err(ReplicaError::from)?;
        let is_new = packs.iter().any(|(key, _)| backend.read_at(key, 0, PACKS_2.len()).is_ok_and(|it| it == PACKS_2));
        let mut config = if is_new { raised } else { raised.of_format_1() };
        match id {
            Some(id) => config.id = id,
            None => config.id_since_snapshot = Some(self.next_snapshot).filter(|next| next.0 > 0),
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_found_in_what_is_left_of_the_file() {
        let id = "00112233445566778899aabbccddeeff";
        let text = format!("{{\"format\": 1, \"id\": \"{id}\", \"created\": \"2026-11-26T01:02:03Z\"}}");
        let without = Evidence::default();
        assert_eq!(without.identifier(text.as_bytes()).as_deref(), Some(id));
        assert_eq!(without.identifier(b""), None);
    }
}
