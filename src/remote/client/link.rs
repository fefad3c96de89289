//! A running connection to an agent: two threads that carry frames, queues for each kind of answer, and what was counted.
//!
//! The reading thread never waits for whoever takes the frames: the queues are unbounded, and what may be in them is bounded by the protocol's windows. An agent that
//! exceeds these is cut off.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};

use crate::remote::protocol::frame::{self, Frame, HEADER_BYTES, Kind};
use crate::remote::protocol::messages::Figures;
use crate::remote::protocol::{ALIVE_SECONDS, EVENTS_AHEAD_BYTES, OFFERED_AHEAD_BYTES};
use crate::remote::transport::{Connection, Control};
use crate::source::tree::SourceError;

/// Payload bytes that an agent which keeps to the windows can have under way; above that it is cut off.
const UNDER_WAY_MAX_BYTES: usize = 2 * (OFFERED_AHEAD_BYTES + EVENTS_AHEAD_BYTES) + (32 << 20);
/// How long a call waits, unless told otherwise, while the agent says nothing but that it is alive: a scan of a directory on a sick disk may take minutes.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// A call waits so many times as long for one answer, whatever else the agent says meanwhile.
const PATIENCE_AT_MOST: u32 = 6;
/// How often a waiting call looks whether to go on.
const TICK: Duration = Duration::from_millis(200);

/// What travels, and what the far side has done: counters that any thread may read.
#[derive(Debug, Default)]
pub struct WireCounters {
    /// Bytes that came, frames and all, before the transport's own.
    pub received_bytes: AtomicU64,
    /// Bytes that went.
    pub sent_bytes: AtomicU64,
    /// How often the run had nothing to do until the far side answered: round trips that it waited for.
    pub waits: AtomicU64,
    /// How often a connection was made.
    pub connections: AtomicU64,
    /// Names that the far side's scan has read.
    pub far_names: AtomicU64,
    /// Files that the far side has read.
    pub far_files: AtomicU64,
    /// Bytes that the far side has read.
    pub far_bytes: AtomicU64,
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
    failure: Mutex<Option<String>>,
    /// What the agent said before it ended.
    refused: Mutex<Option<String>>,
    under_way: AtomicUsize,
    /// Milliseconds after the start when the agent last said more than that it is alive.
    heard: AtomicU64,
    started: Instant,
    ended: AtomicBool,
    control: Arc<dyn Control>,
}

impl Shared {
    fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.ended.store(true, Ordering::Relaxed);
        self.control.abort();
    }
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
    patience: Duration,
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
    pub(super) fn start(connection: Connection, counters: Arc<WireCounters>, patience: Duration) -> io::Result<Link> {
        let Connection { input, output, control } = connection;
        let shared = Arc::new(Shared {
            counters,
            failure: Mutex::default(),
            refused: Mutex::default(),
            under_way: AtomicUsize::new(0),
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
        let mut link =
            Link { patience, shared, out: Some(out), offers, blocks, reads, apart, answers, threads: Vec::new() };
        let (reader, writer) = (Arc::clone(&link.shared), Arc::clone(&link.shared));
        let spawn =
            |name: &str, work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.to_owned()).spawn(work);
        link.threads.push(spawn("link-read", Box::new(move || take_in(&reader, input, &senders)))?);
        link.threads.push(spawn("link-write", Box::new(move || send_out(&writer, output, &outgoing)))?);
        Ok(link)
    }

    /// Sends a frame; that it cannot be sent shows at the next wait.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put_compressed(&mut bytes, kind, payload);
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
        let began = Instant::now();
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(frame) => {
                    self.taken(&frame);
                    return Ok(frame);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure()),
                Err(RecvTimeoutError::Timeout) => {
                    let heard = Duration::from_millis(self.shared.heard.load(Ordering::Relaxed));
                    let silent = self.shared.started.elapsed().saturating_sub(heard).min(began.elapsed());
                    if silent > self.patience || began.elapsed() > self.patience * PATIENCE_AT_MOST {
                        let seconds = began.elapsed().as_secs();
                        self.shared.fail(format!("the agent has not answered for {seconds} s"));
                    }
                }
            }
        }
    }

    fn taken(&self, frame: &Frame) {
        self.shared.under_way.fetch_sub(frame.payload.len() + HEADER_BYTES, Ordering::Relaxed);
    }

    /// Returns why nothing more comes.
    fn failure(&self) -> SourceError {
        if let Some(message) = self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return SourceError::Refused { message };
        }
        let reason = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let words = self.shared.control.last_words();
        let reason = match reason {
            Some(reason) if words.stderr.trim().is_empty() => reason,
            Some(reason) => format!("{reason}; {words}"),
            None => words.to_string(),
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

struct Counted<R> {
    inner: R,
    counters: Arc<WireCounters>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.counters.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Carries frames in: the life of a thread. Its end closes the queues.
fn take_in(shared: &Shared, input: Box<dyn Read + Send>, senders: &Senders) {
    let counted = Counted { inner: input, counters: Arc::clone(&shared.counters) };
    let mut input = io::BufReader::with_capacity(256 << 10, counted);
    loop {
        let frame = match frame::read(&mut input) {
            Ok(frame) => frame,
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::UnexpectedEof => None,
                    _ => Some(error.to_string()),
                };
                if let Some(reason) = reason {
                    shared.fail(reason);
                }
                return;
            }
        };
        if frame.kind != Kind::Alive {
            let now = shared.started.elapsed().as_millis() as u64;
            shared.heard.store(now, Ordering::Relaxed);
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
                    shared.counters.far_names.store(figures.names, Ordering::Relaxed);
                    shared.counters.far_files.store(figures.files, Ordering::Relaxed);
                    shared.counters.far_bytes.store(figures.bytes, Ordering::Relaxed);
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
        let bytes = frame.payload.len() + HEADER_BYTES;
        if shared.under_way.fetch_add(bytes, Ordering::Relaxed) > UNDER_WAY_MAX_BYTES {
            return shared.fail("the agent sent more than was asked for".to_owned());
        }
        if sender.send(frame).is_err() {
            return;
        }
    }
}

/// Carries frames out: the life of a thread.
fn send_out(shared: &Shared, mut output: Box<dyn Write + Send>, outgoing: &Receiver<Vec<u8>>) {
    loop {
        let mut bytes = match outgoing.recv_timeout(Duration::from_secs(ALIVE_SECONDS)) {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Timeout) => {
                let mut alive = Vec::new();
                frame::put(&mut alive, Kind::Alive, &[]);
                alive
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Ok(more) = outgoing.try_recv() {
            bytes.extend_from_slice(&more);
        }
        shared.counters.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Err(error) = output.write_all(&bytes).and_then(|()| output.flush()) {
            // Where the agent has said why it ended, that counts.
            if !shared.ended.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                shared.fail(error.to_string());
            }
            return;
        }
    }
}
