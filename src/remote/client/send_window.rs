//! How much a restore on another host may send: rows ahead of their queries, and bytes that wait to be written.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::remote::protocol::restore::ROWS_AHEAD_BYTES;

/// Bytes that may wait to be written before no further query is answered. Rows sent ahead are bounded apart.
const UNWRITTEN_MAX_BYTES: usize = 16 << 20;

/// Counts what was sent, and has those wait who would send too much.
pub(super) struct SendWindow {
    flow: Mutex<Flow>,
    changed: Condvar,
}

struct Flow {
    /// Bytes of rows that were sent ahead and not taken.
    ahead: usize,
    unwritten: usize,
    is_closed: bool,
    /// When something that the agent needs was written last.
    last_written: Instant,
}

impl Flow {
    fn is_full(&self) -> bool {
        self.unwritten > UNWRITTEN_MAX_BYTES
    }
}

impl SendWindow {
    pub(super) fn new() -> SendWindow {
        let flow = Flow { ahead: 0, unwritten: 0, is_closed: false, last_written: Instant::now() };
        SendWindow { flow: Mutex::new(flow), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.lock();
        change(&mut flow);
        self.changed.notify_all();
    }

    /// Notes that the agent took rows that were sent ahead.
    pub(super) fn taken(&self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.change(|flow| flow.ahead = flow.ahead.saturating_sub(bytes));
    }

    /// Ends all waiting for room ahead: the restore is over.
    pub(super) fn close(&self) {
        self.change(|flow| flow.is_closed = true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Notes bytes that wait to be written.
    pub(super) fn queued(&self, bytes: usize) {
        self.change(|flow| flow.unwritten += bytes);
    }

    /// Notes that such bytes have been written.
    pub(super) fn written(&self, bytes: usize) {
        self.change(|flow| {
            flow.unwritten = flow.unwritten.saturating_sub(bytes);
            flow.last_written = Instant::now();
        });
    }

    /// Returns when something that the agent needs was written last.
    pub(super) fn last_written(&self) -> Instant {
        self.lock().last_written
    }

    /// Waits for room for an answer, no longer than `longest`; returns whether there is room.
    pub(super) fn wait_for_room(&self, longest: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), longest, |flow| flow.is_full());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_full()
    }

    /// Waits for room ahead and takes it; `false` once the window is closed.
    pub(super) fn reserve_ahead(&self, bytes: usize) -> bool {
        let no_room = |flow: &mut Flow| !flow.is_closed && (flow.ahead > ROWS_AHEAD_BYTES || flow.is_full());
        let mut flow = self.changed.wait_while(self.lock(), no_room).unwrap_or_else(PoisonError::into_inner);
        flow.ahead += bytes;
        !flow.is_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change between the look and the wait would have the wait last an hour.
    #[test]
    fn no_change_is_missed() {
        const LONG: Duration = Duration::from_secs(3600);
        let window = SendWindow::new();
        let (queue, queued) = crossbeam_channel::unbounded();
        std::thread::scope(|scope| {
            let window = &window;
            scope.spawn(move || queued.into_iter().for_each(|bytes| window.written(bytes)));
            for _ in 0..20_000 {
                window.queued(UNWRITTEN_MAX_BYTES + 1);
                queue.send(UNWRITTEN_MAX_BYTES + 1).unwrap();
                assert!(window.wait_for_room(LONG));
            }
            drop(queue);
        });
        window.queued(UNWRITTEN_MAX_BYTES + 1);
        assert!(!window.wait_for_room(Duration::ZERO));
        window.written(UNWRITTEN_MAX_BYTES + 1);
        assert!(window.reserve_ahead(ROWS_AHEAD_BYTES + 1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| window.reserve_ahead(1));
            window.taken(2);
            assert!(waiting.join().unwrap());
            let waiting = scope.spawn(|| window.reserve_ahead(1) && window.reserve_ahead(1));
            window.close();
            assert!(!waiting.join().unwrap());
        });
    }
}
