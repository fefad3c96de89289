//! What the other side has under way, counted as it lies in memory. The thread that takes frames in never waits, so nothing but these counts bounds what it
//! hands on.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::super::protocol::REQUESTS_WAITING_MAX_BYTES;
use super::super::protocol::messages::decode_bits;
use super::AgentError;

/// Offers that wait for an answer. Whoever offers adds before the offer is sent; whoever takes the answer in takes away.
#[derive(Default)]
pub(super) struct Offers(AtomicUsize);

impl Offers {
    /// Counts an offer.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Decodes the answers to some offers; there are no more than there were offers.
    pub(super) fn answers(&self, payload: &[u8]) -> Result<Vec<bool>, AgentError> {
        let bits = decode_bits(payload, self.0.load(Ordering::SeqCst))?;
        self.0.fetch_sub(bits.len(), Ordering::SeqCst);
        Ok(bits)
    }
}

/// The counts of one session.
#[derive(Default)]
pub(super) struct Waiting {
    request_bytes: AtomicUsize,
    pub(super) chunks: Offers,
    pub(super) blocks: Offers,
    taken: AtomicU64,
    /// The reading side knows that there is something in `taken`.
    is_reported: AtomicBool,
}

impl Waiting {
    /// Counts requests in.
    pub(super) fn add(&self, bytes: usize) -> Result<(), AgentError> {
        if self.request_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes > REQUESTS_WAITING_MAX_BYTES {
            return Err(AgentError::Protocol("it requests more than may wait for an answer".into()));
        }
        Ok(())
    }

    /// Counts a request out.
    pub(super) fn answered(&self, bytes: usize) {
        self.request_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Notes that the other side took so many bytes of events; returns whether the reading side has to hear of it.
    pub(super) fn add_taken(&self, bytes: u64) -> bool {
        // What is beyond all that can be untaken is as good as all of it.
        self.taken.fetch_add(bytes.min(u64::from(u32::MAX)), Ordering::SeqCst);
        !self.is_reported.swap(true, Ordering::SeqCst)
    }

    /// Returns the bytes that were taken since the last call.
    pub(super) fn take_taken(&self) -> usize {
        self.is_reported.store(false, Ordering::SeqCst);
        usize::try_from(self.taken.swap(0, Ordering::SeqCst)).unwrap_or(usize::MAX)
    }
}
