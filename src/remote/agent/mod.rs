//! The agent: scans and reads a tree on its own host for a run on another, over one stream of bytes each way.
//!
//! ```text
//!  input -> this thread -+-> scan thread: blocks ----------------------------+
//!                        +-> answer thread: events, chunks held -+            +-> outbox -> output
//!                        +-> apart thread                        +-> compress +
//! ```
//!
//! It serves one connection and ends with it. It writes nothing to any file system, and opens nothing outside of its root: everything goes through
//! [`crate::source`], which resolves each path below an open directory and follows no symbolic link. Should that be wrong, the kernel refuses it ([`sandbox`]).
//!
//! Memory: 24 MiB of chunks offered, 2 MiB of frames, 4 MiB of chunks for each compressing thread, the reading threads (some 16 MB with two), the scan's
//! look-ahead of 20,000 names (some 7 MB), and 16 to 40 bytes for each inode of several names. A run that keeps to the protocol has 8 MiB of requests waiting;
//! one that does not is cut off at 64 MiB (see `waiting`).

mod devices;
mod names;
mod news;
mod outbox;
mod read;
mod restore;

mod scan;
mod throttle;
mod waiting;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::{Sender, bounded, unbounded};
use tracing::info;

use super::protocol::frame::{self, Frame, Kind};
use super::protocol::messages::{
    Figures, decode_owners, decode_requests, encode_owner_names, encode_root_stat, request_bytes,
};
use super::protocol::{Hello, PREAMBLE_BYTES, Start, Task, VERSION, preamble};
use crate::areas;
use crate::cause::{Cause, During, Explained};
use crate::coding::{DecodeError, Decoder};
use crate::ids::DictionaryId;
use crate::sandbox;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::source::read::{ReadRequest, stat_at};
use crate::source::read_pool::ReadPool;
use crate::source::scan::{Scan, ScanOptions};
use crate::store::codec::Dictionary;
use devices::Devices;
use names::Names;
use outbox::Outbox;
use read::{Answers, COMPRESS_AHEAD, Control, CurrentDictionary, ReadCounters, answer_apart, compress};
use waiting::Waiting;

/// Most threads of each sort. Each compressing one takes some 12 MB at the highest level.
const THREADS_MAX: usize = 16;
/// Most exclude patterns, and most bytes of them together.
const EXCLUDES_MAX: usize = 1000;
const EXCLUDES_MAX_BYTES: usize = 64 << 10;
/// Names that the agent's scan may be ahead of what is sent: fewer than in a run on one host, for memory there belongs to the mail server.
const AHEAD_ENTRIES: usize = 20_000;

/// How an agent is started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Only this directory and what is below it may be requested; `None` leaves it to the user's permissions.
    pub root: Option<PathBuf>,
    /// Whether a restore below the root may be requested. Without it the agent never writes.
    pub writable: bool,
    /// Whether an agent that only reads has the kernel confine it: the calling thread, and all that it starts later.
    pub confine: bool,
}

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection failed.
    #[error("The connection failed: {0}")]
    Connection(#[from] io::Error),
    /// The other side does not keep to the protocol.
    #[error("The run broke the protocol: {0}")]
    Protocol(#[source] Cause),
    /// The request was refused, and that was reported to the run.
    #[error("{0}")]
    Refused(#[source] Cause),
}

impl From<DecodeError> for AgentError {
    fn from(error: DecodeError) -> AgentError {
        AgentError::Protocol(error.into())
    }
}

/// Serves one connection to its end.
///
/// # Errors
/// See [`AgentError`]. The end of the input is none.
pub fn serve(
    mut input: impl Read + Send,
    mut output: impl Write + Send,
    options: &AgentOptions,
) -> Result<(), AgentError> {
    output.write_all(&preamble())?;
    frame::write(&mut output, Kind::Hello, &to_json(&hello())?)?;
    let mut greeting = [0; PREAMBLE_BYTES];
    input.read_exact(&mut greeting)?;
    if greeting != preamble() {
        return Err(AgentError::Protocol(format!("it does not speak version {VERSION}").into()));
    }
    let start = frame::read(&mut input)?;
    if start.kind != Kind::Start {
        return Err(AgentError::Protocol("it does not say what it wants".into()));
    }
    let start: Start = serde_json::from_slice(&start.payload).map_err(|error| AgentError::Protocol(error.into()))?;
    match begin(&start, options) {
        Err(refused) => {
            let message = refused.to_string();
            frame::write(&mut output, Kind::Failed, message.as_bytes())?;
            Err(refused)
        }
        Ok(root) => {
            if start.task == Task::Restore {
                frame::write(&mut output, Kind::Started, &[])?;
                return restore::serve(input, output, &root);
            }
            // Both look at what is out of reach afterwards.
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            let names = Names::start()?;
            let confined = options.confine.then(|| sandbox::read_only(&root).to_byte());
            frame::write(&mut output, Kind::Started, &Vec::from_iter(confined))?;
            info!(target: areas::REMOTE, root = %root.display(), task = ?start.task, confinement = confined, "agent started");
            let served = Session::start(&root, &start, cores, names)?.serve(input, output);
            info!(target: areas::REMOTE, is_done = served.is_ok(), "agent finished");
            served
        }
    }
}

fn hello() -> Hello {
    // Read in pieces: the program is larger than all that the agent needs.
    let binary = std::fs::File::open("/proc/self/exe")
        .and_then(|file| Ok(blake3::Hasher::new().update_reader(file)?.finalize().to_hex().to_string()));
    Hello {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        binary: binary.unwrap_or_default(),
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, AgentError> {
    serde_json::to_vec(value).map_err(|error| AgentError::Protocol(error.into()))
}

/// Decides whether the agent may do what is requested; returns the directory, all symbolic links of its path resolved.
fn begin(start: &Start, options: &AgentOptions) -> Result<PathBuf, AgentError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let requested = Path::new(&start.root);
    let resolve = match start.task {
        // A restore may make its destination.
        Task::Restore => resolve_to_be_made,
        Task::Pull | Task::Scan => Path::canonicalize,
    };
    let refused = |error: io::Error| {
        let cause = Explained::new(error, ". Check the path, and that this user may read it");
        AgentError::Refused(During::new(format!("Cannot use {} on {host}", start.root), cause).into())
    };
    // What the agent is confined to comes first: where that is missing, nothing else is to blame. A run requests the root that it started the agent with.
    let confines = options.root.as_deref().map(|root| {
        resolve(root).map_err(|error| match root == requested {
            true => refused(error),
            false => {
                let what = format!("The agent on {host} is confined to {}, which it cannot use", root.display());
                let cause = Explained::new(
                    error,
                    ". Create it there, or correct --root of the agent (command= in authorized_keys)",
                );
                AgentError::Refused(During::new(what, cause).into())
            }
        })
    });
    let confines = confines.transpose()?;
    if start.task == Task::Restore {
        crate::restore::refuse_foreign_link(requested).map_err(refused)?;
    }
    let real = resolve(requested).map_err(refused)?;
    if let Some(root) = &confines
        && !real.starts_with(root)
    {
        let allowed = root.display();
        return Err(AgentError::Refused(
            format!("The agent on {host} is confined to {allowed}, and {} is not below it", start.root).into(),
        ));
    }
    if start.task == Task::Restore && !options.writable {
        return Err(AgentError::Refused(format!("The agent on {host} only reads").into()));
    }
    // A restore decides itself which symbolic link at the end it follows. Where the path is the very one that the agent is confined to, it may.
    let is_confined_to_it = options.root.as_deref().is_none_or(|root| root == requested);
    Ok(if start.task == Task::Restore && is_confined_to_it { requested.to_owned() } else { real })
}

/// Resolves a path whose end may not be there yet.
fn resolve_to_be_made(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
                Ok(Path::new(".").canonicalize()?.join(name))
            }
            // A name, and so neither `..` nor a link that leads nowhere: the restore follows none at its end.
            (Some(parent), Some(name)) => Ok(resolve_to_be_made(parent)?.join(name)),
            _ => Err(error),
        },
        other => other,
    }
}

/// One pull.
struct Session {
    scan: Scan,
    pool: Option<ReadPool>,
    root: Arc<OwnedFd>,
    names: Names,
    level: i32,
    threads: usize,
    bytes_per_second: u64,
}

impl Session {
    fn start(root: &Path, start: &Start, cores: usize, names: Names) -> Result<Session, AgentError> {
        let bytes: usize = start.excludes.iter().map(String::len).sum();
        if start.excludes.len() > EXCLUDES_MAX || bytes > EXCLUDES_MAX_BYTES {
            return Err(AgentError::Protocol(
                format!("{} exclude patterns of {bytes} bytes", start.excludes.len()).into(),
            ));
        }
        let excludes =
            ExcludePatterns::new(&start.excludes, false).map_err(|error| AgentError::Refused(error.into()))?;
        let threads = if start.threads == 0 { cores.min(4) } else { start.threads.min(THREADS_MAX) };
        let options = ScanOptions {
            excludes,
            cross_file_systems: start.cross_file_systems,
            threads: start.threads.min(THREADS_MAX),
            ahead_entries: AHEAD_ENTRIES,
        };
        let scan = Scan::start(root, options).map_err(|error| AgentError::Refused(error.into()))?;
        let pool = match start.task {
            Task::Pull => Some(ReadPool::start(root, threads)?),
            Task::Scan | Task::Restore => None,
        };
        let root = Arc::new(OwnedFd::from(std::fs::File::open(root)?));
        let level = start.level.clamp(0, 19);
        Ok(Session { scan, pool, root, names, level, threads, bytes_per_second: start.bytes_per_second })
    }

    fn serve(self, input: impl Read, mut output: impl Write + Send) -> Result<(), AgentError> {
        let (devices, outbox, counters) = (Devices::default(), Outbox::default(), ReadCounters::default());
        let waiting = Waiting::default();
        let dictionary = CurrentDictionary::default();
        let scan_counters = self.scan.counters();
        let (block_answers, blocks_wanted) = unbounded();
        let (control, controls) = unbounded();
        let (apart, apart_requests) = unbounded();
        let (to_compress, compress_queue) = bounded(COMPRESS_AHEAD * self.threads);
        std::thread::scope(|scope| {
            let (devices, outbox, counters, dictionary) = (&devices, &outbox, &counters, &dictionary);
            let waiting = &waiting;
            // What ends early is reported to the other side, unless that is what went away.
            let end = move |part: &str, ended: Result<(), outbox::Closed>| {
                if ended.is_err() {
                    outbox.fail(&format!("The agent's {part} ended early"));
                }
            };
            let bytes_per_second = self.bytes_per_second;
            let mut reported = Figures::default();
            let write = move || {
                outbox.write_all(&mut output, bytes_per_second, || {
                    let now = Figures {
                        names: scan_counters.names.load(Ordering::Relaxed),
                        files: counters.files.load(Ordering::Relaxed),
                        bytes: counters.bytes.load(Ordering::Relaxed),
                    };
                    (now != reported).then(|| {
                        reported = now;
                        now.encode()
                    })
                });
            };
            std::thread::Builder::new().spawn_scoped(scope, write)?;
            let scan = self.scan;
            start(scope, outbox, move || end("scan", scan::send(scan, devices, outbox, waiting, &blocks_wanted)));
            if let Some(pool) = self.pool {
                for _ in 0..self.threads {
                    let queue = compress_queue.clone();
                    let level = self.level;
                    start(scope, outbox, move || end("compression", compress(level, dictionary, outbox, &queue)));
                }
                let (control, compress) = (controls, to_compress);
                let answers = Answers { pool, devices, outbox, waiting, control, compress, counters };
                start(scope, outbox, move || end("reading", answers.run()));
                let root = Arc::clone(&self.root);
                let apart = move || end("reading", answer_apart(root, devices, outbox, waiting, &apart_requests));
                start(scope, outbox, apart);
            }
            // The threads' own are the last: when these end, whoever hands them chunks hears of it.
            drop(compress_queue);
            let inbox = Inbox {
                root: &self.root,
                names: &self.names,
                devices,
                outbox,
                dictionary,
                waiting,
                block_answers,
                control,
                apart,
            };
            // Drops the input at its end: whoever gave it hears of that, also where a thread waits for the other side to read.
            let ended = inbox.take_all(input);
            outbox.break_off();
            ended
        })
    }
}

/// Starts a thread. That it cannot be started is reported to the other side, which ends the connection then.
fn start<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, outbox: &Outbox, work: impl FnOnce() + Send + 'scope) {
    if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, work) {
        outbox.fail(&format!("The agent cannot start a thread: {error}"));
    }
}

/// Takes the frames of the other side.
struct Inbox<'a> {
    root: &'a OwnedFd,
    names: &'a Names,
    devices: &'a Devices,
    outbox: &'a Outbox,
    dictionary: &'a CurrentDictionary,
    waiting: &'a Waiting,
    block_answers: Sender<Vec<bool>>,
    control: Sender<Control>,
    apart: Sender<ReadRequest>,
}

impl Inbox<'_> {
    fn take_all(self, mut input: impl Read) -> Result<(), AgentError> {
        loop {
            match frame::read(&mut input) {
                Ok(frame) => self.take(frame)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), AgentError> {
        // A receiver that is gone has reported why, or is not there in a scan.
        match frame.kind {
            Kind::Alive => {}
            Kind::BlocksWanted => {
                let bits = self.waiting.blocks.answers(&frame.payload)?;
                if !bits.is_empty() {
                    drop(self.block_answers.send(bits));
                }
            }
            Kind::Reads => {
                let requests = decode_requests(&frame.payload)?;
                self.waiting.add(requests.iter().map(request_bytes).sum())?;
                if !requests.is_empty() {
                    drop(self.control.send(Control::Reads(requests)));
                }
            }
            Kind::ChunksWanted => {
                let bits = self.waiting.chunks.answers(&frame.payload)?;
                if !bits.is_empty() {
                    drop(self.control.send(Control::Wanted(bits)));
                }
            }
            Kind::Taken => {
                if self.waiting.add_taken(Decoder::new(&frame.payload).varint()?) {
                    drop(self.control.send(Control::Taken));
                }
            }
            Kind::ReadApart => {
                for request in decode_requests(&frame.payload)? {
                    self.waiting.add(request_bytes(&request))?;
                    drop(self.apart.send(request));
                }
            }
            Kind::Dictionary => {
                let mut decoder = Decoder::new(&frame.payload);
                let id = DictionaryId::decoded(decoder.varint32()?)?;
                let bytes = decoder.take(decoder.remaining())?.to_vec();
                let made = Dictionary::new(id, bytes);
                *self.dictionary.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(made));
            }
            Kind::StatRoot => {
                // A name, not a path: nothing but what is directly below the root.
                let name = &frame.payload;
                let plain = !name.contains(&b'/') && !matches!(name.as_slice(), b"" | b"." | b"..");
                let stat = plain.then(|| stat_at(self.root.as_fd(), name).ok()).flatten();
                let stat = stat.map(|stat| self.devices.to_scan(&stat));
                let _ = self.outbox.send(Kind::RootStat, &encode_root_stat(stat.as_ref()));
            }
            Kind::Owners => {
                let (users, groups) = decode_owners(&frame.payload)?;
                let names = self.names.of(users.into_iter().collect(), groups.into_iter().collect());
                let _ = self.outbox.send_compressed(Kind::OwnerNames, &encode_owner_names(&names));
            }
            other => return Err(AgentError::Protocol(format!("a frame {other:?} that only agents send").into())),
        }
        Ok(())
    }
}
