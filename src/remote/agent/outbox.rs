//! What the agent sends: a queue of frames, bounded in bytes, and the thread that writes it out.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::protocol::ALIVE_SECONDS;
use super::super::protocol::frame::{self, Kind};
use super::throttle::Throttle;
use crate::mutex::lock;

/// Bytes that may wait to be written; whoever has more to send waits.
const WAITING_MAX_BYTES: usize = 1 << 20;
/// How often figures are sent while there is something to report.
const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// The connection is gone; whoever hears of it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed;

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<Queued>,
    changed: Condvar,
}

#[derive(Default)]
struct Queued {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Nothing more is taken.
    closed: bool,
    /// Nothing more is written either: the other side is gone.
    broken: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queued> {
        lock(&self.state)
    }

    /// Queues a frame; waits while too much is queued.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), Closed> {
        let mut bytes = Vec::with_capacity(payload.len() + frame::HEADER_BYTES);
        frame::put(&mut bytes, kind, payload);
        self.push(bytes)
    }

    /// Queues a frame that is worth compressing.
    pub(super) fn send_compressed(&self, kind: Kind, payload: &[u8]) -> Result<(), Closed> {
        let mut bytes = Vec::new();
        frame::put_compressed(&mut bytes, kind, payload);
        self.push(bytes)
    }

    fn push(&self, bytes: Vec<u8>) -> Result<(), Closed> {
        let mut state = self.lock();
        while state.bytes > WAITING_MAX_BYTES && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(Closed);
        }
        state.bytes += bytes.len();
        state.frames.push_back(bytes);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Queues why the agent ends, as the last frame.
    pub(super) fn fail(&self, message: &str) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, Kind::Failed, &message.as_bytes()[..message.len().min(16 << 10)]);
        let mut state = self.lock();
        if !state.closed {
            state.frames.push_back(bytes);
            state.closed = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the queue: what waits is still written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Ends the queue at once.
    pub(super) fn break_off(&self) {
        let mut state = self.lock();
        (state.closed, state.broken) = (true, true);
        drop(state);
        self.changed.notify_all();
    }

    /// Returns what waits, all of it in one piece; nothing when it is time for a sign of life, `None` at the end.
    fn take(&self, idle_timeout: Duration) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let until = Instant::now() + idle_timeout;
        loop {
            if state.broken {
                return None;
            }
            if !state.frames.is_empty() {
                let all = state.frames.drain(..).collect::<Vec<_>>().concat();
                state.bytes = 0;
                drop(state);
                self.changed.notify_all();
                return Some(all);
            }
            if state.closed {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(Vec::new());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes frames until the queue ends: the life of a thread. `figures` provides what to report every second.
    pub(super) fn write_all(
        &self,
        output: &mut dyn Write,
        bytes_per_second: u64,
        mut figures: impl FnMut() -> Option<Vec<u8>>,
    ) {
        let mut throttle = Throttle::new(bytes_per_second);
        let (mut last_figures, mut last_write) = (Instant::now(), Instant::now());
        while let Some(mut bytes) = self.take(FIGURES_EVERY) {
            if last_figures.elapsed() >= FIGURES_EVERY {
                last_figures = Instant::now();
                if let Some(payload) = figures() {
                    frame::put(&mut bytes, Kind::Figures, &payload);
                }
            }
            if bytes.is_empty() {
                if last_write.elapsed() < Duration::from_secs(ALIVE_SECONDS) {
                    continue;
                }
                frame::put(&mut bytes, Kind::Alive, &[]);
            }
            if throttle.write(output, &bytes).is_err() {
                self.break_off();
                return;
            }
            last_write = Instant::now();
        }
    }
}
