//! Repair: a catalogue from commit files, chunks from damaged packs, and a clear word on what is lost.
//!
//! ```text
//! config    config.json: made again from the catalogue, else from checkpoints and commit files, else from what the objects show
//! rebuild   the catalogue: from commit files; else kept where it is intact; else put together from what is left of both
//! salvage   packs: what a damaged one still has is copied, what other packs have is found there, the rest is given up
//! ```
//!
//! What is given up stays known by its hash: a chunk keeps its number and its row says that its bytes are lost. The inodes whose content needs
//! it are forgotten, so the next snapshot reads them again, and if the source still has the same bytes they are stored under the old number: older
//! snapshots are whole again too. `check` reports which files need lost chunks.
//!
//! What a later version wrote ends the repair, and nothing is changed: it is not damaged, and this version could not write it again.
//!
//! Order of writes: new packs durable, files of known inodes durable, commit, damaged packs deleted. A crash leaves work for the next repair.
//!
//! Memory: 100 bytes for each pack, some 80 for each chunk of damaged packs, a pack being filled; for a catalogue that has to be put together also
//! the bitmaps of a prune.

mod config;
mod rebuild;
mod salvage;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::access::Depth;
use crate::catalog::{CatalogError, checkpoint};
use crate::check::CheckError;
use crate::prune::{Phase, PruneError, PruneProgress};
use crate::replica::{LockedReplica, ReplicaError, StoreConfig, refuse_denied};
use crate::store::backend::Backend;
use crate::store::local::LocalBackend;

pub use config::{ConfigRepair, ConfigSource};

/// How to repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Whether all packs are read, so that damage is found that only reading reveals. Otherwise only packs that are missing or have the wrong length are
    /// repaired.
    pub read_data: bool,
}

/// What became of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum CatalogOutcome {
    /// It was made anew from the newest checkpoint and so many commit files.
    Rebuilt {
        /// Commit files applied.
        commit_files: u64,
        /// Whether there was an old one, which is kept.
        had_old: bool,
    },
    /// Commit files are damaged or missing and it is intact: it stays, and a checkpoint of it was written in their place.
    Kept {
        /// What is wrong with the commit files.
        reason: String,
    },
    /// It and commit files are damaged: it was put together from what could be read of both.
    PutTogether {
        /// Why the commit files alone did not do.
        reason: String,
        /// Commit files and parts of checkpoints that are missing or cannot be read.
        lost_files: Vec<String>,
        /// Whether there was an old one, which is kept.
        had_old: bool,
    },
}

/// A snapshot that could not be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostSnapshot {
    /// Its identifier.
    pub id: String,
    /// When it was begun.
    pub time: jiff::Timestamp,
    /// What of it is missing.
    pub reason: String,
}

/// A pack that was damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedPack {
    /// The pack.
    pub pack: String,
    /// What is wrong with it.
    pub reason: String,
    /// Chunks that it still had, or that were found elsewhere.
    pub saved_chunks: u64,
    /// Chunks whose bytes are lost.
    pub lost_chunks: u64,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// What became of config.json; `None` when it was intact.
    pub config: Option<ConfigRepair>,
    /// The format that the store was of, when it was raised to that of this version.
    pub raised_from: Option<u32>,
    /// What became of the catalogue.
    pub catalog: CatalogOutcome,
    /// Snapshots in it.
    pub snapshots: u64,
    /// Snapshots whose directories could not be had any more, and which are gone.
    pub lost_snapshots: Vec<LostSnapshot>,
    /// Packs that were damaged or missing. What was left of them was copied, and they are gone.
    pub damaged_packs: Vec<DamagedPack>,
    /// Packs that the system could not read, with what it said. They were left as they are: the disk may answer later.
    pub unreadable_packs: Vec<(String, String)>,
    /// Chunks that were found in packs that nothing named.
    pub found_chunks: u64,
    /// Packs that nothing names and that had nothing to find: of an interrupted run, or of commits that left no other trace.
    pub unnamed_packs: u64,
    /// Chunks whose bytes are lost, all in all.
    pub lost_chunks: u64,
    /// Inodes that the next snapshots read again because of that.
    pub forgotten_inodes: u64,
    /// Whether all packs were read.
    pub read_data: bool,
    /// Wall time, in milliseconds.
    pub elapsed_ms: u64,
}

impl RepairReport {
    /// Returns whether everything is as it was before the damage.
    pub fn is_whole(&self) -> bool {
        self.lost_chunks == 0 && self.lost_snapshots.is_empty() && self.unreadable_packs.is_empty()
    }
}

/// What can end a repair.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The store cannot be opened or its catalogue not be replaced.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Copying what is left failed.
    #[error(transparent)]
    Salvage(#[from] PruneError),
    /// The catalogue could not be verified.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// Nothing is left to make a catalogue of.
    #[error(
        "Neither the catalogue nor any commit file can be read, so it is unknown what the packs belong to: {0}. Nothing was changed"
    )]
    NothingLeft(#[source] CatalogError),
}

impl From<CatalogError> for RepairError {
    fn from(error: CatalogError) -> RepairError {
        RepairError::Replica(error.into())
    }
}

/// Repairs a store.
///
/// # Errors
/// See [`RepairError`]. Damage is not an error: it is in the report.
pub fn repair(path: &Path, options: RepairOptions, progress: &PruneProgress) -> Result<RepairReport, RepairError> {
    // What may not be read is not lost.
    refuse_denied(path, Depth::AllObjects)?;
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::open(path).map_err(ReplicaError::from)?);
    repair_over(path, backend, options, progress)
}

/// Repairs a store whose objects another backend holds than the files below its directory.
///
/// # Errors
/// As [`repair`].
pub fn repair_over(
    path: &Path,
    backend: Arc<dyn Backend>,
    options: RepairOptions,
    progress: &PruneProgress,
) -> Result<RepairReport, RepairError> {
    let clock = Instant::now();
    progress.enter(Phase::Rebuild, 0);
    let config = config::ensure(path, backend.as_ref())?;
    let format = StoreConfig::read(path)?.format;
    let catalog = rebuild::catalog(path, &backend)?;
    let mut report = RepairReport {
        config,
        raised_from: None,
        catalog,
        snapshots: 0,
        lost_snapshots: Vec::new(),
        damaged_packs: Vec::new(),
        unreadable_packs: Vec::new(),
        found_chunks: 0,
        unnamed_packs: 0,
        lost_chunks: 0,
        forgotten_inodes: 0,
        read_data: options.read_data,
        elapsed_ms: 0,
    };
    let replica = LockedReplica::open_over(path, Arc::clone(&backend))?;
    report.raised_from = (replica.config().format != format).then_some(format);
    // Also where it was made without a damaged checkpoint, which gets a successor.
    let is_rebuilt = matches!(report.catalog, CatalogOutcome::Rebuilt { .. });
    if !is_rebuilt || checkpoint::is_newest_damaged(backend.as_ref())? {
        rebuild::complete(&replica, &mut report, progress)?;
    }
    salvage::packs(&replica, options, &mut report, progress)?;
    report.snapshots = replica.catalog()?.snapshots()?.len() as u64;
    report.elapsed_ms = clock.elapsed().as_millis() as u64;
    Ok(report)
}
