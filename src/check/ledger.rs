//! The ledger of a check: what is damaged, and which paths of which snapshots that affects.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::catalog::tables::{Index, Table};
use crate::ids::{CommitNumber, GroupId, PackNumber, SnapshotNumber};
use crate::view::display_path;

/// Damages that are kept each by itself; further ones are counted in one that stands for the rest.
const DAMAGES_KEPT: usize = 10_000;
/// Paths that are listed, over all damages; further ones are counted.
const PATHS_KEPT: usize = 100_000;
/// Snapshots that are listed for one path; further ones are counted.
const SNAPSHOTS_KEPT: usize = 1_000;

/// What kind of thing is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// A commit file: the catalogue could not be rebuilt. Nothing else is lost with it.
    CommitFile,
    /// The catalogue.
    Catalog,
    /// A pack.
    Pack,
    /// A snapshot as a whole.
    Snapshot,
    /// config.json.
    Config,
}

/// A path that damage affects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedPath {
    /// The path within its snapshots, fit for people. It ends with a slash if entries of the directory are lost.
    pub path: String,
    /// Identifiers of the snapshots that hold it so.
    pub snapshots: Vec<String>,
}

/// One thing that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its kind.
    pub kind: DamageKind,
    /// What is damaged.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
    /// The paths that cannot be had, or not as they were.
    pub paths: Vec<DamagedPath>,
    /// How many there are, each counted in each snapshot.
    pub affected: u64,
    /// How many of those `paths` does not list.
    pub unlisted: u64,
}

/// Names a damaged thing, so that it is noted once however often it is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A commit file.
    Commit(CommitNumber),
    /// A checkpoint.
    Checkpoint(CommitNumber),
    /// A row of a table.
    Row(Table, u64),
    /// Rows of a table that are missing.
    Missing(Table, u64),
    /// A table that is not as it should be in some other way.
    Table(Table, &'static str),
    /// An index that is not as it should be.
    Index(Index, &'static str),
    /// A pack.
    Pack(PackNumber),
    /// A link group.
    Group(GroupId),
    /// A snapshot.
    Snapshot(SnapshotNumber, &'static str),
    /// config.json.
    Config,
    /// A step that could not be completed.
    Step(&'static str),
    /// Whatever else there is.
    Rest,
}

/// Number of a damage in the ledger.
pub(super) type DamageNumber = usize;

#[derive(Default)]
struct Draft {
    kind: Option<DamageKind>,
    what: String,
    reason: String,
    paths: BTreeMap<Box<[u8]>, Vec<u32>>,
    affected: u64,
    listed: u64,
}

#[derive(Default)]
struct Inner {
    drafts: Vec<Draft>,
    by_key: HashMap<Key, DamageNumber>,
    snapshots: Vec<String>,
    listed_paths: usize,
    count: u64,
}

/// Gathers damage from all steps and threads of a check.
#[derive(Default)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a damage and returns its number; for a key that was noted before, that of then.
    pub(super) fn note(&self, kind: DamageKind, key: Key, what: String, reason: String) -> DamageNumber {
        let mut inner = self.lock();
        if let Some(number) = inner.by_key.get(&key) {
            return *number;
        }
        inner.count += 1;
        if inner.drafts.len() >= DAMAGES_KEPT {
            let count = inner.count - DAMAGES_KEPT as u64;
            let known = inner.by_key.get(&Key::Rest).copied();
            let rest = known.unwrap_or(inner.drafts.len());
            if known.is_none() {
                inner.drafts.push(Draft { kind: Some(kind), what: "More damage".to_owned(), ..Draft::default() });
                inner.by_key.insert(Key::Rest, rest);
            }
            inner.drafts[rest].reason = format!("{count} more cases of damage are not listed");
            return rest;
        }
        let number = inner.drafts.len();
        inner.drafts.push(Draft { kind: Some(kind), what, reason, ..Draft::default() });
        inner.by_key.insert(key, number);
        number
    }

    /// Returns whether nothing was noted.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().count == 0
    }

    /// Sets the identifiers of the snapshots, which [`Ledger::affects`] names by their place.
    pub(super) fn name_snapshots(&self, ids: Vec<String>) {
        self.lock().snapshots = ids;
    }

    /// Notes that a path of a snapshot is affected by a damage.
    pub(super) fn affects(&self, damage: DamageNumber, snapshot: usize, path: &[u8]) {
        let mut inner = self.lock();
        let room = inner.listed_paths < PATHS_KEPT;
        let Some(draft) = inner.drafts.get_mut(damage) else { return };
        draft.affected += 1;
        if let Some(snapshots) = draft.paths.get_mut(path) {
            if snapshots.len() < SNAPSHOTS_KEPT {
                snapshots.push(snapshot as u32);
                draft.listed += 1;
            }
        } else if room {
            draft.paths.insert(path.into(), vec![snapshot as u32]);
            draft.listed += 1;
            inner.listed_paths += 1;
        }
    }

    /// Returns all damages and how many there are.
    pub(super) fn finish(self) -> (Vec<Damage>, u64) {
        let Inner { drafts, snapshots, count, .. } = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        let id = |place: &u32| snapshots.get(*place as usize).cloned().unwrap_or_default();
        let damages = drafts
            .into_iter()
            .map(|draft| Damage {
                kind: draft.kind.unwrap_or(DamageKind::Catalog),
                what: draft.what,
                reason: draft.reason,
                affected: draft.affected,
                unlisted: draft.affected - draft.listed,
                paths: draft
                    .paths
                    .into_iter()
                    .map(|(path, mut places)| {
                        places.sort_unstable();
                        DamagedPath { path: display_path(&path), snapshots: places.iter().map(id).collect() }
                    })
                    .collect(),
            })
            .collect();
        (damages, count)
    }
}
