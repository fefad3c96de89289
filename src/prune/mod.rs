//! Pruning: snapshots that no rule keeps go, and with them everything that only they need.
//!
//! ```text
//! retention   which snapshots stay                                     a value
//! mark        what those need: objects, link groups, chunks            bitmaps
//! plan        what goes, which packs are deleted and which repacked     a value, printed or carried out
//! carry_out   removes rows, repacks, deletes packs, writes a checkpoint, compacts the catalogue
//! ```
//!
//! A plan belongs to one commit and is carried out by whoever holds the store's lock, so never beside a run; mounts may be there. Every step is
//! one or more commits, and after each the store is whole: a crash leaves rows that no snapshot needs, or packs that no row names, and
//! the next prune removes both.
//!
//! 1. Snapshot records go, with the gate of the leases closed.
//! 2. Link groups, objects and chunk rows that nothing needs go, in this order, so that what is left finds what it refers to; then the rows of
//!    packs without chunks, and these packs are condemned.
//! 3. Packs that no row names are condemned.
//! 4. Of what earlier runs condemned, that is deleted whose grace is over (`catalog/condemned.rs` has the rule).
//! 5. Packs of which too much is unused are repacked: new packs durable, then one commit that condemns the old ones, some 256 MiB at a time.
//! 6. Commit files are folded into a checkpoint when that pays, and condemned; the catalogue is compacted when that pays.
//!
//! With a grace of nothing, what is condemned is deleted at once, in each step behind its commit: that is for a disk that fills up.
//!
//! Memory: the bitmaps of `mark`, twice, and that of link groups once more if the newest snapshot of a source goes; 100 bytes for each pack; 48 MiB of pending
//! changes; a pack being filled and 8 MiB being read; 24 bytes for each chunk of at most 500,000 that are being moved; and 8 bytes for each row of the
//! catalogue while commit files are folded.
//!
//! Architecture invariant: whatever is damaged or missing of what snapshots that stay need, nothing is removed.

mod bitmap;
pub(crate) mod caches;
mod carry_out;
pub(crate) mod mark;
mod plan;
pub(crate) mod repack;
mod sweep;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tracing::info;

use crate::areas;
use crate::catalog::CatalogError;
use crate::store::backend::BackendError;
use crate::store::entry::ChunkError;
use crate::store::pack::PackError;

pub use bitmap::Bitmap;
pub use carry_out::{PruneReport, carry_out};
pub use plan::{PruneFigures, PrunePlan, plan};

/// How much of the packs may be unused, by default, in per cent.
pub const MAX_UNUSED_PERCENT: u8 = 10;

/// How long what is condemned stays at least, by default: a copy or a slow reader has a day to end.
pub const GRACE: Duration = Duration::from_secs(86_400);

/// How to prune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How much of the packs may be unused afterwards, in per cent; 100 repacks none.
    pub max_unused_percent: u8,
    /// How long what nothing needs any more stays at least before it is deleted; zero deletes it at once.
    pub grace: Duration,
    /// The present time.
    pub now: jiff::Timestamp,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { max_unused_percent: MAX_UNUSED_PERCENT, grace: GRACE, now: jiff::Timestamp::now() }
    }
}

/// A step of a prune, or of a repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
pub enum Phase {
    /// What is in use is being found out.
    #[default]
    Mark = 0,
    /// Rows are removed.
    Remove = 1,
    /// Packs are deleted.
    Delete = 2,
    /// Packs are repacked.
    Repack = 3,
    /// A checkpoint takes the place of commit files, the catalogue is compacted.
    Checkpoint = 4,
    /// Of a repair: the catalogue is brought back.
    Rebuild = 5,
    /// Of a repair: packs are looked at, or read.
    Inspect = 6,
}

impl Phase {
    /// Returns the phase's name, for people.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Mark => "finding what is in use",
            Phase::Remove => "removing rows",
            Phase::Delete => "deleting packs",
            Phase::Repack => "repacking",
            Phase::Checkpoint => "writing a checkpoint",
            Phase::Rebuild => "rebuilding the catalogue",
            Phase::Inspect => "packs, in bytes",
        }
    }
}

/// How far a prune or a repair has come; any thread may read it.
#[derive(Debug, Default)]
pub struct PruneProgress {
    phase: AtomicU8,
    /// Units done in this phase: pages and objects, rows, packs, bytes.
    pub done: AtomicU64,
    /// Units to do in this phase; 0 when that is not known.
    pub total: AtomicU64,
    /// Set from outside to end the prune at the next chance; what is done stays done, and the store is whole.
    pub interrupt: AtomicBool,
}

impl PruneProgress {
    /// Returns the phase under way.
    pub fn phase(&self) -> Phase {
        Phase::from_repr(self.phase.load(Ordering::Relaxed)).unwrap_or_default()
    }

    pub(crate) fn enter(&self, phase: Phase, total: u64) {
        info!(target: areas::PRUNE, total = (total > 0).then_some(total), "{}", phase.label());
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Counts units done and ends the prune when it was interrupted.
    pub(crate) fn add(&self, units: u64) -> Result<(), PruneError> {
        self.done.fetch_add(units, Ordering::Relaxed);
        if self.interrupt.load(Ordering::Relaxed) { Err(PruneError::Interrupted) } else { Ok(()) }
    }

    pub(crate) fn step(&self) -> Result<(), PruneError> {
        self.add(1)
    }
}

/// What can end a prune.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The user interrupted it.
    #[error("Interrupted. The store is intact; run the same command again to continue")]
    Interrupted,
    /// The store changed after the plan was made.
    #[error("The store has changed since the plan was made; nothing was removed. Make a new plan")]
    Outdated,
    /// A snapshot that was to go is in use.
    #[error("Snapshot {id} was mounted since the plan was made; nothing was removed. Make a new plan")]
    Leased {
        /// The snapshot.
        id: String,
    },
    /// A pack that is needed is missing or not as long as it should be.
    #[error("Pack {pack}, which kept snapshots need, {reason}. Nothing was removed")]
    Pack {
        /// The pack.
        pack: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A chunk that is to be moved cannot be read.
    #[error("{source}. Its pack was not changed, and nothing that is needed was removed")]
    Chunk {
        /// What the chunk reader found.
        source: ChunkError,
    },
    /// The catalogue failed or is damaged.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A pack could not be built.
    #[error(transparent)]
    Build(#[from] PackError),
    /// A file beside the objects could not be read or written.
    #[error("Cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl PruneError {
    /// Returns whether the error means that the store is damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            PruneError::Pack { .. } => true,
            PruneError::Chunk { source } => source.is_damage(),
            PruneError::Catalog(error) => error.is_damage(),
            _ => false,
        }
    }
}
