//! What a run reports while it works: counters that any thread may read, and messages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::SnapshotError;
use super::chunk_writer::ChunkCounters;
use crate::catalog::snapshot::Work;
use crate::mutex::lock;
use crate::remote::client::WireCounters;

/// Counters of a run under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names that the run has seen.
    pub names: AtomicU64,
    /// Names in the last snapshot of this source, 0 if there is none: what `names` may reach.
    pub expected_names: AtomicU64,
    /// Files requested from the source so far.
    pub requested_files: AtomicU64,
    /// Their bytes.
    pub requested_bytes: AtomicU64,
    /// Files read.
    pub read_files: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Whether the scan is complete, so that `requested_bytes` grows no more.
    pub scanned: AtomicBool,
    /// Whether the run is writing its commit.
    pub committing: AtomicBool,
    /// What was stored.
    pub chunks: Arc<ChunkCounters>,
    /// Set from outside to end the run at the next chance.
    pub interrupt: AtomicBool,
    /// The directory being completed, for people.
    pub current: Mutex<Vec<u8>>,
    /// What was transferred, and what the remote host has done. Stays zero with a source on this host.
    pub wire: Arc<WireCounters>,
    /// What is reported to people while the run goes on.
    messages: Mutex<Vec<String>>,
    details: Mutex<Vec<String>>,
    /// When the run has to end at the latest, and the span that it was given.
    limit: OnceLock<(Instant, Duration)>,
    /// Files and bytes read by earlier attempts of this run.
    earlier_reads: Mutex<(u64, u64)>,
}

impl Progress {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    /// Leaves a message for people.
    pub(crate) fn report(&self, message: String) {
        lock(&self.messages).push(message);
    }

    pub(crate) fn report_detail(&self, detail: String) {
        lock(&self.details).push(detail);
    }

    /// Returns what only those want to know who want to know everything, left since the last call.
    pub fn take_details(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.details))
    }

    /// Returns the messages left since the last call.
    pub fn take_messages(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.messages))
    }

    /// Notes what an attempt had read when its connection broke.
    pub(crate) fn add_reads(&self, files: u64, bytes: u64) {
        let mut earlier = lock(&self.earlier_reads);
        earlier.0 += files;
        earlier.1 += bytes;
    }

    /// Fills in what is counted here of a run's work.
    pub(crate) fn add_to(&self, work: &mut Work) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        work.new_chunks = read(&self.chunks.new_chunks);
        work.new_bytes = read(&self.chunks.new_bytes);
        work.stored_bytes = read(&self.chunks.stored_bytes);
        let (files, bytes) = *lock(&self.earlier_reads);
        work.read_files += files;
        work.read_bytes += bytes;
        work.received_bytes = read(&self.wire.received_bytes);
        work.sent_bytes = read(&self.wire.sent_bytes);
        work.round_trips = read(&self.wire.waits);
        work.connections = read(&self.wire.connections);
    }

    /// Ends the run at the next chance after `span`, from now on. The first call counts.
    pub fn end_after(&self, span: Duration) {
        let _ = self.limit.set((Instant::now() + span, span));
    }

    /// Returns whether the run is to end, or its time is over.
    pub fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed) || self.limit.get().is_some_and(|(end, _)| Instant::now() >= *end)
    }

    /// Fails if the run is to end, or its time is over.
    pub(crate) fn check_interrupt(&self) -> Result<(), SnapshotError> {
        if self.interrupted() { Err(self.interruption()) } else { Ok(()) }
    }

    /// Returns the error that says why a run was interrupted.
    pub(crate) fn interruption(&self) -> SnapshotError {
        match self.limit.get() {
            Some((_, span)) if !self.interrupt.load(Ordering::Relaxed) => SnapshotError::TooLong { span: *span },
            _ => SnapshotError::Interrupted,
        }
    }
}
