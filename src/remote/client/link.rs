//! A running connection to an agent: two threads that carry frames, queues for each kind of answer, and what was counted.
//!
//! The reading thread never waits for whoever takes the frames, and the run never for the writing thread: the queues have no bound of their own, and what may
//! be in them, counted as it lies in memory, is bounded by the protocol's windows. An agent that exceeds these is cut off, and so is one that reads nothing of
//! what it is sent.
//!
//! Time: an agent that says nothing but that it is alive for as long as the user's timeout is given up, and so is one that brings next to nothing over
//! [`IDLE_TIMEOUTS`] times as long (see [`crate::remote::transport::least_rate`]). What it says of its own progress counts for the first, and not for the
//! second.

use std::error::Error;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};

use crate::cause::{Cause, Explained};
use crate::remote::protocol::frame::{self, Frame, HEADER_BYTES, Kind};
use crate::remote::protocol::messages::Figures;
use crate::remote::protocol::{ALIVE_SECONDS, EVENTS_AHEAD_BYTES, OFFERED_AHEAD_BYTES};
use crate::remote::transport::least_rate::LeastRate;
use crate::remote::transport::{Connection, Control};
use crate::source::tree::SourceError;

/// Bytes of frames that an agent which keeps to the windows can have under way; above that it is cut off.
pub(super) const UNDER_WAY_MAX_BYTES: usize = 2 * (OFFERED_AHEAD_BYTES + EVENTS_AHEAD_BYTES) + (32 << 20);
/// How long a call waits, by default, while the agent says nothing but that it is alive: a scan of a directory on a sick disk may take minutes.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Over so many times that long of waiting, however many answers it is for, something must have come.
const IDLE_TIMEOUTS: u32 = 6;
/// What a frame takes in a queue beside its payload.
const FRAME_BYTES: usize = 96;
/// Bytes that may wait to be sent. Requests and answers to offers in transit, and a dictionary, are much less.
const OUTGOING_MAX_BYTES: usize = 64 << 20;
/// So many bytes of a frame that is not complete are a sign of life, as a complete one is.
const PIECE_BYTES: u64 = 64;
/// Frames are written together up to so many bytes.
const WRITE_BYTES: usize = 1 << 20;
/// How often a waiting call looks whether to go on.
const TICK: Duration = Duration::from_millis(200);

/// What is transferred, and what the remote host has done: counters that any thread may read.
#[derive(Debug, Default)]
pub struct WireCounters {
    /// Bytes that came, frames and all, before the transport's own.
    pub received_bytes: AtomicU64,
    /// Bytes that went.
    pub sent_bytes: AtomicU64,
    /// How often the run had nothing to do until the remote host answered: round trips that it waited for.
    pub waits: AtomicU64,
    /// How often a connection was made.
    pub connections: AtomicU64,
    /// Names that the remote host's scan has read.
    pub remote_names: AtomicU64,
    /// Files that the remote host has read.
    pub remote_files: AtomicU64,
    /// Bytes that the remote host has read.
    pub remote_bytes: AtomicU64,
}

/// Frames of the agent, by who takes them.
struct Senders {
    offers: Sender<Frame>,
    blocks: Sender<Frame>,
    reads: Sender<Frame>,
    apart: Sender<Frame>,
    answers: Sender<Frame>,
}

/// What both threads and the run share.
struct Shared {
    counters: Arc<WireCounters>,
    failure: Mutex<Option<Arc<dyn Error + Send + Sync>>>,
    /// What the agent said before it ended.
    refused: Mutex<Option<String>>,
    under_way: AtomicUsize,
    /// Bytes that wait to be sent.
    outgoing: AtomicUsize,
    /// Bytes that came on this connection.
    came: AtomicU64,
    /// Of these, signs of life and figures: they bring nothing.
    idle: AtomicU64,
    /// Bytes that need not come, for they are known.
    credit: AtomicU64,
    /// Milliseconds after the start when the agent last said more than that it is alive.
    heard: AtomicU64,
    started: Instant,
    ended: AtomicBool,
    control: Arc<dyn Control>,
}

impl Shared {
    /// Returns the bytes that brought something.
    fn useful(&self) -> u64 {
        let came = self.came.load(Ordering::Relaxed).saturating_sub(self.idle.load(Ordering::Relaxed));
        came + self.credit.load(Ordering::Relaxed)
    }

    fn fail(&self, reason: impl Into<Cause>) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Arc::from(reason.into()));
        self.ended.store(true, Ordering::Relaxed);
        self.control.abort();
    }
}

/// Returns whether the run is to end.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Returns the bytes that a frame takes in a queue.
pub(super) fn held_bytes(frame: &Frame) -> usize {
    frame.payload.capacity() + FRAME_BYTES
}

/// Which queue a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Offers of listing blocks, and the end of the scan.
    Offers,
    Blocks,
    Reads,
    Apart,
    Answers,
}

/// The connection.
pub(super) struct Link {
    idle_timeout: Duration,
    least_rate: Mutex<LeastRate>,
    stop: Stop,
    shared: Arc<Shared>,
    out: Option<Sender<Vec<u8>>>,
    offers: Receiver<Frame>,
    blocks: Receiver<Frame>,
    reads: Receiver<Frame>,
    apart: Receiver<Frame>,
    answers: Receiver<Frame>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Starts the threads over a connection whose handshake is done.
    pub(super) fn start(
        connection: Connection,
        counters: Arc<WireCounters>,
        idle_timeout: Duration,
    ) -> io::Result<Link> {
        let Connection { input, output, control } = connection;
        let shared = Arc::new(Shared {
            counters,
            failure: Mutex::default(),
            refused: Mutex::default(),
            under_way: AtomicUsize::new(0),
            outgoing: AtomicUsize::new(0),
            came: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            credit: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            started: Instant::now(),
            ended: AtomicBool::new(false),
            control,
        });
        let (to_offers, offers) = unbounded();
        let (to_blocks, blocks) = unbounded();
        let (to_reads, reads) = unbounded();
        let (to_apart, apart) = unbounded();
        let (to_answers, answers) = unbounded();
        let (out, outgoing) = unbounded();
        let senders =
            Senders { offers: to_offers, blocks: to_blocks, reads: to_reads, apart: to_apart, answers: to_answers };
        let least_rate = Mutex::new(LeastRate::new(idle_timeout * IDLE_TIMEOUTS));
        let stop: Stop = Arc::new(|| false);
        let (out, threads) = (Some(out), Vec::new());
        let mut link =
            Link { idle_timeout, least_rate, stop, shared, out, offers, blocks, reads, apart, answers, threads };
        let (reader, writer) = (Arc::clone(&link.shared), Arc::clone(&link.shared));
        let spawn =
            |name: &str, work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.to_owned()).spawn(work);
        link.threads.push(spawn("link-read", Box::new(move || take_in(&reader, input, &senders)))?);
        link.threads.push(spawn("link-write", Box::new(move || send_out(&writer, output, &outgoing)))?);
        Ok(link)
    }

    /// Asks `stop` now and then whether to go on.
    pub(super) fn stop_when(&mut self, stop: Stop) {
        self.stop = stop;
    }

    /// Counts bytes that need not come as if they had: they are what the agent has found.
    pub(super) fn credit(&self, bytes: usize) {
        self.shared.credit.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Sends a frame; that it cannot be sent shows at the next wait.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put_compressed(&mut bytes, kind, payload);
        let held = bytes.capacity() + FRAME_BYTES;
        if self.shared.outgoing.fetch_add(held, Ordering::Relaxed) > OUTGOING_MAX_BYTES {
            return self.shared.fail("the agent does not read its input");
        }
        if let Some(out) = &self.out {
            let _ = out.send(bytes);
        }
    }

    fn queue(&self, queue: Queue) -> &Receiver<Frame> {
        match queue {
            Queue::Offers => &self.offers,
            Queue::Blocks => &self.blocks,
            Queue::Reads => &self.reads,
            Queue::Apart => &self.apart,
            Queue::Answers => &self.answers,
        }
    }

    /// Returns a frame that is there already.
    pub(super) fn ready(&self, queue: Queue) -> Option<Frame> {
        self.queue(queue).try_recv().ok().inspect(|frame| self.taken(frame))
    }

    /// Waits for a frame.
    ///
    /// # Errors
    /// [`SourceError::Lost`] or what the agent gave as its reason.
    pub(super) fn wait(&self, queue: Queue) -> Result<Frame, SourceError> {
        let receiver = self.queue(queue);
        match receiver.try_recv() {
            Ok(frame) => {
                self.taken(&frame);
                return Ok(frame);
            }
            Err(TryRecvError::Disconnected) => return Err(self.failure()),
            Err(TryRecvError::Empty) => {}
        }
        self.shared.counters.waits.fetch_add(1, Ordering::Relaxed);
        let (mut moved, mut piece) = (Instant::now(), self.shared.useful());
        loop {
            let started = Instant::now();
            let answer = receiver.recv_timeout(TICK);
            let useful = self.shared.useful();
            let mut least_rate = self.least_rate.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = least_rate.add(started.elapsed(), useful) {
                self.shared.fail(reason);
            }
            drop(least_rate);
            match answer {
                Ok(frame) => {
                    self.taken(&frame);
                    return Ok(frame);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure()),
                Err(RecvTimeoutError::Timeout) => {
                    if useful >= piece + PIECE_BYTES {
                        (moved, piece) = (Instant::now(), useful);
                    }
                    let heard = Duration::from_millis(self.shared.heard.load(Ordering::Relaxed));
                    let silent = self.shared.started.elapsed().saturating_sub(heard).min(moved.elapsed());
                    if silent > self.idle_timeout {
                        self.shared.fail(format!("the agent has not answered for {} s", silent.as_secs()));
                    }
                    if (self.stop)() {
                        return Err(SourceError::Lost { reason: "the run is to end".into() });
                    }
                }
            }
        }
    }

    fn taken(&self, frame: &Frame) {
        self.shared.under_way.fetch_sub(held_bytes(frame), Ordering::Relaxed);
    }

    /// Returns why nothing more comes.
    fn failure(&self) -> SourceError {
        if let Some(message) = self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return SourceError::Refused { message };
        }
        let reason = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let words = self.shared.control.exit_info();
        let reason: Cause = match reason {
            // Each waiting queue gets the error.
            Some(reason) if words.stderr.trim().is_empty() => Box::new(reason),
            Some(reason) => Explained::new(Box::new(reason) as Cause, format!("; {words}")).into(),
            None => words.to_string().into(),
        };
        SourceError::Lost { reason }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.out = None;
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.control.abort();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Counted<'s, R> {
    inner: R,
    shared: &'s Shared,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        // Programs behind the one that was broken off may go on to write byte by byte.
        if self.shared.ended.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was broken off"));
        }
        self.shared.counters.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        self.shared.came.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Carries frames in: the life of a thread. Its end closes the queues.
fn take_in(shared: &Shared, input: Box<dyn Read + Send>, senders: &Senders) {
    let mut input = io::BufReader::with_capacity(256 << 10, Counted { inner: input, shared });
    loop {
        let frame = match frame::read(&mut input) {
            Ok(frame) => frame,
            Err(error) => {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    shared.fail(error);
                }
                return;
            }
        };
        if frame.kind != Kind::Alive {
            let now = shared.started.elapsed().as_millis() as u64;
            shared.heard.store(now, Ordering::Relaxed);
        }
        if matches!(frame.kind, Kind::Alive | Kind::Figures) {
            shared.idle.fetch_add((frame.payload.len() + HEADER_BYTES) as u64, Ordering::Relaxed);
        }
        let sender = match frame.kind {
            Kind::BlocksOffered | Kind::ScanEnds => &senders.offers,
            Kind::Block => &senders.blocks,
            Kind::Events | Kind::Chunk => &senders.reads,
            Kind::ApartEvents => &senders.apart,
            Kind::RootStat | Kind::OwnerNames => &senders.answers,
            Kind::Alive => continue,
            Kind::Figures => {
                if let Ok(figures) = Figures::decode(&frame.payload) {
                    shared.counters.remote_names.store(figures.names, Ordering::Relaxed);
                    shared.counters.remote_files.store(figures.files, Ordering::Relaxed);
                    shared.counters.remote_bytes.store(figures.bytes, Ordering::Relaxed);
                }
                continue;
            }
            Kind::Failed => {
                let message = String::from_utf8_lossy(&frame.payload).into_owned();
                *shared.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
                return;
            }
            other => return shared.fail(format!("the agent sent {other:?}, which it never should")),
        };
        let bytes = held_bytes(&frame);
        if shared.under_way.fetch_add(bytes, Ordering::Relaxed) > UNDER_WAY_MAX_BYTES {
            return shared.fail("the agent sent more than was requested");
        }
        if sender.send(frame).is_err() {
            return;
        }
    }
}

/// Carries frames out: the life of a thread.
fn send_out(shared: &Shared, mut output: Box<dyn Write + Send>, outgoing: &Receiver<Vec<u8>>) {
    loop {
        let mut held = 0;
        let mut bytes = match outgoing.recv_timeout(Duration::from_secs(ALIVE_SECONDS)) {
            Ok(bytes) => {
                held += bytes.capacity() + FRAME_BYTES;
                bytes
            }
            Err(RecvTimeoutError::Timeout) => {
                let mut alive = Vec::new();
                frame::put(&mut alive, Kind::Alive, &[]);
                alive
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while bytes.len() < WRITE_BYTES
            && let Ok(more) = outgoing.try_recv()
        {
            held += more.capacity() + FRAME_BYTES;
            bytes.extend_from_slice(&more);
        }
        shared.counters.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Err(error) = output.write_all(&bytes).and_then(|()| output.flush()) {
            // Where the agent has said why it ended, that counts.
            if !shared.ended.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                shared.fail(error);
            }
            return;
        }
        shared.outgoing.fetch_sub(held, Ordering::Relaxed);
    }
}
