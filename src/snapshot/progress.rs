//! What a run tells while it works: counters that any thread may read.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::ingest::IngestCounters;

/// Counters of a run under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names that the run has seen.
    pub names: AtomicU64,
    /// Names in the last snapshot of this source, 0 if there is none: what `names` may reach.
    pub expected_names: AtomicU64,
    /// Files asked to be read so far.
    pub asked_files: AtomicU64,
    /// Their bytes.
    pub asked_bytes: AtomicU64,
    /// Files read.
    pub read_files: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Whether the scan is complete, so that `asked_bytes` grows no more.
    pub scanned: AtomicBool,
    /// Whether the run is writing its commit.
    pub committing: AtomicBool,
    /// What was stored.
    pub ingest: Arc<IngestCounters>,
    /// Set from outside to end the run at the next chance.
    pub interrupt: AtomicBool,
    /// The directory being completed, for people.
    pub current: Mutex<Vec<u8>>,
}

impl Progress {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    /// Returns whether the run was asked to end.
    pub fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }
}
