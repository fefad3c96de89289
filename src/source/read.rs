//! Reading single inodes: attributes and content, cut and hashed. Memory: what the chunker holds of one file (`chunker`).
//!
//! A file that changes while it is read is read again, up to [`ATTEMPTS`] times. One that disappears or is exchanged under its name is looked
//! for again: `accounts.xml` is replaced by two renames, between which there is none. A directory that took the name, and a name that leads to
//! another inode in every attempt, count as vanished: the next run sees what is there.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;

use super::beneath::open_beneath;
use super::chunker::{Chunker, ChunkerError, SegmentSink, SinkClosed};
use super::stat::stat_of;
use super::xattrs;
use crate::model::{ChunkHash, Kind, Stat, Xattr};

/// How often a file that keeps changing is read before it is taken as it is.
pub const ATTEMPTS: u32 = 3;
/// How often and how long a vanished name directly below the root is waited for.
const VANISHED_WAITS: u32 = 5;
const VANISHED_WAIT: Duration = Duration::from_millis(100);

/// What is wanted of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Its extended attributes; the content too, if it is no longer as the scan saw it.
    Attributes,
    /// Its extended attributes and its content.
    Content,
}

/// Asks for one inode by one of its names.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The name, relative to the root.
    pub path: Vec<u8>,
    /// What the scan saw there.
    pub stat: Stat,
    /// What is wanted.
    pub want: Want,
}

/// How reading one inode ended.
#[derive(Clone, Debug)]
pub enum ReadResult {
    /// It was read, and did not change meanwhile.
    Read,
    /// It was read, and changed in each of [`ATTEMPTS`] attempts; what was delivered last is of no single moment.
    Changed,
    /// The name is gone.
    Vanished,
    /// The content or the attributes could not be read; the system's error number.
    Failed(i32),
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct ReadOutcome {
    /// What is at the name now; another inode than the scan saw, if it was exchanged.
    pub stat: Stat,
    /// Its extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// How it ended.
    pub result: ReadResult,
    /// Bytes of content that were read, all attempts together.
    pub read_bytes: u64,
}

/// A chunk that was cut and hashed in this process.
#[derive(Debug)]
pub struct CutChunk {
    /// The hash of its bytes.
    pub hash: ChunkHash,
    /// Its bytes.
    pub plain: Vec<u8>,
}

impl CutChunk {
    /// Hashes a chunk.
    pub fn new(plain: Vec<u8>) -> CutChunk {
        CutChunk { hash: ChunkHash::of(&plain), plain }
    }
}

/// A part of an answer. `C` is what there is of a chunk: [`CutChunk`] where it was read, and
/// [`NumberedChunk`](super::chunk_intake::NumberedChunk) for a run.
#[derive(Debug)]
pub enum ReadEvent<C> {
    /// A segment that is kept as it is.
    Literal(Vec<u8>),
    /// A hole of so many bytes.
    Zeros(u64),
    /// A chunk.
    Chunk(C),
    /// The segments so far are void: the file is read again.
    Restart,
    /// Nothing more comes for this request.
    Done(Box<ReadOutcome>),
}

/// Takes the events of one reader.
pub trait EventSink {
    /// Takes one event; `bytes` is roughly the memory it holds.
    ///
    /// # Errors
    /// [`SinkClosed`] when nobody listens any more.
    fn event(&mut self, event: ReadEvent<CutChunk>, bytes: usize) -> Result<(), SinkClosed>;
}

/// Hashes chunks on their way to the sink.
pub(crate) struct Hashing<'a> {
    pub(crate) sink: &'a mut dyn EventSink,
}

impl SegmentSink for Hashing<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        self.sink.event(ReadEvent::Literal(bytes.to_vec()), bytes.len())
    }

    fn zeros(&mut self, length: u64) -> Result<(), SinkClosed> {
        self.sink.event(ReadEvent::Zeros(length), 0)
    }

    fn chunk(&mut self, plain: Vec<u8>) -> Result<(), SinkClosed> {
        let bytes = plain.len();
        self.sink.event(ReadEvent::Chunk(CutChunk::new(plain)), bytes)
    }
}

/// Reads single inodes; each thread has its own.
pub struct InodeReader {
    root: Arc<OwnedFd>,
    chunker: Chunker,
    /// The directory opened last: requests come directory by directory.
    parent: Option<(Vec<u8>, OwnedFd)>,
}

impl InodeReader {
    /// Prepares to read below an open root directory.
    pub fn new(root: Arc<OwnedFd>) -> InodeReader {
        InodeReader { root, chunker: Chunker::new(), parent: None }
    }

    /// Reads one inode: its segments go to the sink, and what ends the answer is returned.
    ///
    /// # Errors
    /// [`SinkClosed`] when nobody listens any more; every other trouble is an outcome.
    pub fn read(&mut self, request: &ReadRequest, sink: &mut dyn EventSink) -> Result<ReadOutcome, SinkClosed> {
        let mut outcome =
            ReadOutcome { stat: request.stat, xattrs: Vec::new(), result: ReadResult::Vanished, read_bytes: 0 };
        let waits = if request.path.contains(&b'/') { 1 } else { VANISHED_WAITS };
        for attempt in 0..waits {
            if attempt > 0 {
                std::thread::sleep(VANISHED_WAIT);
            }
            match self.attempts(request, sink, &mut outcome)? {
                Ok(()) => return Ok(outcome),
                Err(error) => {
                    sink.event(ReadEvent::Restart, 0)?;
                    self.parent = None;
                    outcome.result = match error.raw_os_error() {
                        Some(code) if is_vanished(code) => ReadResult::Vanished,
                        code => ReadResult::Failed(code.unwrap_or(Errno::IO.raw_os_error())),
                    };
                    // What has this name now is not what was requested.
                    (outcome.stat, outcome.xattrs) = (request.stat, Vec::new());
                    if !matches!(outcome.result, ReadResult::Vanished) {
                        return Ok(outcome);
                    }
                }
            }
        }
        Ok(outcome)
    }

    fn attempts(
        &mut self,
        request: &ReadRequest,
        sink: &mut dyn EventSink,
        outcome: &mut ReadOutcome,
    ) -> Result<io::Result<()>, SinkClosed> {
        for attempt in 1..=ATTEMPTS {
            match self.attempt(request, sink, outcome) {
                Ok(Attempt::Same) => {
                    outcome.result = ReadResult::Read;
                    return Ok(Ok(()));
                }
                Ok(_) if attempt < ATTEMPTS => sink.event(ReadEvent::Restart, 0)?,
                Ok(Attempt::Changed) => {
                    outcome.result = ReadResult::Changed;
                    return Ok(Ok(()));
                }
                // What was seen of it belongs to no single inode.
                Ok(Attempt::Exchanged) => return Ok(Err(Errno::NOENT.into())),
                Err(ChunkerError::SinkClosed) => return Err(SinkClosed),
                Err(ChunkerError::Read(error)) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Reads once.
    fn attempt(
        &mut self,
        request: &ReadRequest,
        sink: &mut dyn EventSink,
        outcome: &mut ReadOutcome,
    ) -> Result<Attempt, ChunkerError> {
        let (parent, name) = self.open_parent(&request.path).map_err(ChunkerError::Read)?;
        let before = stat_at(parent, name).map_err(ChunkerError::Read)?;
        outcome.stat = before;
        if request.want == Want::Attributes && is_as_scanned(&before, &request.stat) {
            outcome.xattrs = xattrs::at(parent, name).map_err(ChunkerError::Read)?;
            return still_there(parent, name, &before);
        }
        match before.kind {
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(parent, name, flags | OFlags::NOATIME, Mode::empty()).or_else(|error| match error {
                    // Only the owner may leave the access time alone.
                    Errno::PERM => openat(parent, name, flags, Mode::empty()),
                    other => Err(other),
                });
                let file = match file {
                    Ok(file) => File::from(file),
                    // A symbolic link, a socket and a device answer so: it was exchanged since the look at it.
                    Err(error @ (Errno::LOOP | Errno::NXIO | Errno::NODEV)) => {
                        return exchanged(parent, name, &before, error);
                    }
                    Err(error) => return Err(ChunkerError::Read(error.into())),
                };
                let opened = stat_at(file.as_fd(), b"").map_err(ChunkerError::Read)?;
                if opened.kind != Kind::File {
                    return Ok(Attempt::Exchanged);
                }
                outcome.stat = opened;
                outcome.xattrs = xattrs::of_fd(file.as_fd()).map_err(ChunkerError::Read)?;
                let delivered = self.chunker.split(&file, &opened, &mut Hashing { sink })?;
                outcome.read_bytes += delivered;
                let after = stat_at(file.as_fd(), b"").map_err(ChunkerError::Read)?;
                outcome.stat = Stat { size: delivered, ..after };
                let same = delivered == opened.size && (opened.size, opened.mtime) == (after.size, after.mtime);
                Ok(if same { Attempt::Same } else { Attempt::Changed })
            }
            Kind::Symlink => {
                let target = match readlinkat(parent, name, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    // It is no link any more.
                    Err(error @ Errno::INVAL) => return exchanged(parent, name, &before, error),
                    Err(error) => return Err(ChunkerError::Read(error.into())),
                };
                outcome.xattrs = xattrs::at(parent, name).map_err(ChunkerError::Read)?;
                outcome.stat.size = target.len() as u64;
                outcome.read_bytes += target.len() as u64;
                let length = target.len();
                sink.event(ReadEvent::Literal(target), length).map_err(|_| ChunkerError::SinkClosed)?;
                still_there(parent, name, &before)
            }
            // The scan saw something else there, and will see the directory the next time.
            Kind::Directory => Err(ChunkerError::Read(Errno::NOENT.into())),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                outcome.xattrs = xattrs::at(parent, name).map_err(ChunkerError::Read)?;
                still_there(parent, name, &before)
            }
        }
    }

    fn open_parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            // Names of directories, one of them above the root.
            return Err(Errno::INVAL.into());
        }
        if parent.is_empty() {
            return Ok((self.root.as_fd(), name));
        }
        if self.parent.as_ref().is_none_or(|(open, _)| open != parent) {
            self.parent = None;
            let fd = open_beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
            self.parent = Some((parent.to_vec(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Err(Errno::NOENT.into()),
        }
    }
}

/// How one attempt to read an inode ended.
#[derive(Clone, Copy)]
enum Attempt {
    /// It was read, and stayed as it was.
    Same,
    /// It was read, and changed meanwhile.
    Changed,
    /// The name led to another inode from one call to the next.
    Exchanged,
}

/// Returns whether content that is known of the inode that the scan saw still holds. The birth time counts: an inode number is used again at once, and
/// whoever replaces a file may give it the time of the old one.
fn is_as_scanned(now: &Stat, scanned: &Stat) -> bool {
    (now.dev, now.ino, now.kind, now.btime) == (scanned.dev, scanned.ino, scanned.kind, scanned.btime)
        && (now.size, now.mtime) == (scanned.size, scanned.mtime)
}

/// Checks the inode again after calls that take a path.
fn still_there(parent: BorrowedFd<'_>, name: &[u8], before: &Stat) -> Result<Attempt, ChunkerError> {
    let after = stat_at(parent, name).map_err(ChunkerError::Read)?;
    let same = (after.dev, after.ino, after.kind, after.btime) == (before.dev, before.ino, before.kind, before.btime);
    Ok(if same { Attempt::Same } else { Attempt::Exchanged })
}

/// Judges an error that another kind of inode gives: what still is what it was cannot be read, and did not vanish.
fn exchanged(parent: BorrowedFd<'_>, name: &[u8], before: &Stat, error: Errno) -> Result<Attempt, ChunkerError> {
    match still_there(parent, name, before)? {
        Attempt::Same => Err(ChunkerError::Read(error.into())),
        other => Ok(other),
    }
}

/// Calls `statx` for a name in a directory, or with an empty name for the open file itself; symbolic links are not followed.
///
/// # Errors
/// What the system answers; `EINVAL` for a name with a NUL byte.
pub fn stat_at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    let name = CString::new(name).map_err(|_| io::Error::from(Errno::INVAL))?;
    stat_of(directory, &name)
}

fn is_vanished(code: i32) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::STALE].iter().any(|errno| errno.raw_os_error() == code)
}
