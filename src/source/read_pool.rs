//! Reading inodes by a pool of threads, answered in the order of the requests.
//!
//! Requests are sent in batches. Each batch has a bounded channel of its own for its answers, and the receiver drains the batches in order, so
//! the oldest batch always makes progress, whatever the others wait for. Only `BATCHES_AHEAD` batches more than there are threads are under way, so
//! memory is bounded by that many x `PARTS_AHEAD` x `PART_BYTES`: some 16 MB with two threads.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::chunker::SinkClosed;
use super::read::{CutChunk, EventSink, InodeReader, ReadEvent, ReadRequest, Want};

/// An answer part is sent on when it holds this many bytes.
const PART_BYTES: usize = 1 << 20;
/// Parts of one batch that may wait for the receiver.
const PARTS_AHEAD: usize = 4;
/// Batches under way beyond one for each thread.
const BATCHES_AHEAD: usize = 2;
/// A batch is handed over when it has this many requests ...
const BATCH_REQUESTS: usize = 64;
/// ... or files of this many bytes together.
const BATCH_BYTES: u64 = 1 << 20;

/// The reading threads are gone: one of them panicked.
#[derive(Debug, thiserror::Error)]
#[error("The threads that read the source ended early; this is a bug in zmreplica")]
pub struct ReadersGone;

struct Batch {
    requests: Vec<ReadRequest>,
    answers: Sender<Vec<ReadEvent<CutChunk>>>,
}

/// A pool of threads that read inodes below one root.
pub struct ReadPool {
    jobs: Option<Sender<Batch>>,
    gathering: Vec<ReadRequest>,
    gathering_bytes: u64,
    /// Batches that no thread was given yet.
    waiting: VecDeque<Vec<ReadRequest>>,
    /// Answers of the batches under way, the oldest first.
    answers: VecDeque<Receiver<Vec<ReadEvent<CutChunk>>>>,
    part: std::vec::IntoIter<ReadEvent<CutChunk>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// Fails when the root cannot be opened or a thread cannot be started.
    pub fn start(root: &Path, threads: usize) -> io::Result<ReadPool> {
        let root = Arc::new(OwnedFd::from(File::open(root)?));
        let (jobs, queue) = unbounded::<Batch>();
        let threads = (0..threads.max(1))
            .map(|number| {
                let (root, queue) = (Arc::clone(&root), queue.clone());
                std::thread::Builder::new()
                    .name(format!("read-{number}"))
                    .spawn(move || run_batches(InodeReader::new(root), &queue))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(ReadPool {
            jobs: Some(jobs),
            gathering: Vec::new(),
            gathering_bytes: 0,
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
            part: Vec::new().into_iter(),
            threads,
        })
    }

    /// Adds a request. It may wait in a batch until [`ReadPool::flush`].
    pub fn submit(&mut self, request: ReadRequest) {
        if request.want == Want::Content {
            self.gathering_bytes += request.stat.size;
        }
        self.gathering.push(request);
        if self.gathering.len() >= BATCH_REQUESTS || self.gathering_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Hands over the requests gathered so far.
    pub fn flush(&mut self) {
        if self.gathering.is_empty() {
            return;
        }
        self.waiting.push_back(std::mem::take(&mut self.gathering));
        self.gathering_bytes = 0;
        self.hand_over();
    }

    /// Gives waiting batches to the threads, as many as may be under way.
    fn hand_over(&mut self) {
        while self.answers.len() < self.threads.len() + BATCHES_AHEAD
            && let Some(requests) = self.waiting.pop_front()
        {
            let (answers, receiver) = bounded(PARTS_AHEAD);
            self.answers.push_back(receiver);
            if let Some(jobs) = &self.jobs {
                // Fails only when all threads are gone, which `receive` reports.
                let _ = jobs.send(Batch { requests, answers });
            }
        }
    }

    /// Returns the next part of the answers, in the order of the requests. Call it only while answers are due.
    ///
    /// # Errors
    /// [`ReadersGone`] when no answer can come.
    pub fn receive(&mut self) -> Result<ReadEvent<CutChunk>, ReadersGone> {
        loop {
            if let Some(event) = self.part.next() {
                return Ok(event);
            }
            if self.answers.is_empty() {
                self.flush();
            }
            let front = self.answers.front().ok_or(ReadersGone)?;
            match front.recv() {
                Ok(part) => self.part = part.into_iter(),
                Err(_) => {
                    self.answers.pop_front();
                    self.hand_over();
                }
            }
        }
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        // Closed channels end the threads at their next send or receive.
        self.jobs = None;
        self.answers.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run_batches(mut reader: InodeReader, queue: &Receiver<Batch>) {
    while let Ok(batch) = queue.recv() {
        let mut sink = PartSink { part: Vec::new(), part_bytes: 0, answers: batch.answers };
        for request in &batch.requests {
            let outcome = reader.read(request, &mut sink);
            if outcome.and_then(|outcome| sink.event(ReadEvent::Done(Box::new(outcome)), 256)).is_err() {
                break;
            }
        }
        let _ = sink.send();
    }
}

/// Gathers events into parts.
struct PartSink {
    part: Vec<ReadEvent<CutChunk>>,
    part_bytes: usize,
    answers: Sender<Vec<ReadEvent<CutChunk>>>,
}

impl EventSink for PartSink {
    fn event(&mut self, event: ReadEvent<CutChunk>, bytes: usize) -> Result<(), SinkClosed> {
        self.part.push(event);
        self.part_bytes += bytes + 64;
        if self.part_bytes >= PART_BYTES { self.send() } else { Ok(()) }
    }
}

impl PartSink {
    fn send(&mut self) -> Result<(), SinkClosed> {
        self.part_bytes = 0;
        if self.part.is_empty() {
            return Ok(());
        }
        self.answers.send(std::mem::take(&mut self.part)).map_err(|_| SinkClosed)
    }
}
