//! Reading inodes in batches: a look at those whose content is known, a tar stream of the others, and `find` over them once more behind it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::archive::{Archive, Member};
use super::find::{self, RECORD_MAX_BYTES, relative};
use super::shell::{Shell, breach, shown};
use super::spool::Spool;
use super::tar_messages::{TarMessages, Trouble};
use super::xattr_probe::probe_xattrs;
use crate::cause::During;
use crate::model::{Kind, Stat, ZERO_STAT};
use crate::source::chunker::{Chunker, ChunkerError};
use crate::source::read::{ATTEMPTS, EventSink, Hashing, ReadEvent, ReadOutcome, ReadRequest, ReadResult, Want};
use crate::source::tree::SourceError;

/// How often and how long a vanished name directly below the root is waited for.
const VANISHED_WAITS: u32 = 5;
const VANISHED_WAIT: Duration = Duration::from_millis(100);
/// Bytes of content taken at a time.
const DATA_BYTES: usize = 128 << 10;
/// The longest target of a symbolic link, in bytes.
const TARGET_MAX_BYTES: usize = 4096;

/// Returns the path of a member, relative to the root.
fn path_of(member: &Member) -> Option<&[u8]> {
    let name = member.name.strip_suffix(b"/").unwrap_or(&member.name);
    relative(name)
}

/// Brings the headers of directories and device nodes, which have no content, by path. Those that could not be read whole are missing.
pub(super) fn headers<'p>(
    shell: &mut Shell,
    paths: impl Iterator<Item = &'p [u8]>,
) -> Result<Vec<(Vec<u8>, Member)>, SourceError> {
    let mut found = Vec::new();
    let count = shell.command_on("tar", paths);
    if count == 0 {
        return Ok(found);
    }
    let mut archive = Archive::new(&mut *shell);
    let ended = loop {
        match archive.next() {
            Ok(Some(member)) if found.len() < count => match path_of(&member) {
                Some(path) => found.push((path.to_vec(), member)),
                None => break Err(breach("a tar member that was not requested")),
            },
            Ok(Some(_)) => break Err(breach("more tar members than were requested")),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ended.map_err(|error| shell.failed(error))?;
    let said = shell.end("tar")?;
    let words = TarMessages::parse(&said);
    found.retain(|(path, _)| words.understood() && words.of(path).is_none());
    Ok(found)
}

/// What `find` reports for a name now.
#[derive(Clone, Copy)]
struct Now {
    stat: Stat,
    readable: bool,
}

/// Asks what is at some names now. Names that are not there are missing in the answer; those that could not be looked at have the system's error number.
fn stat_paths<'p>(
    shell: &mut Shell,
    paths: impl Iterator<Item = &'p [u8]> + Clone,
) -> Result<HashMap<Vec<u8>, Result<Now, i32>>, SourceError> {
    let mut found = HashMap::new();
    let count = shell.command_on("stat", paths.clone());
    if count == 0 {
        return Ok(found);
    }
    loop {
        let record = shell.record(RECORD_MAX_BYTES)?;
        if record == b"E" {
            break;
        }
        let parsed = record.split_at_checked(2).and_then(|(mark, rest)| {
            let (fields, path) = find::split(rest)?;
            Some((path.to_vec(), Now { stat: find::stat(fields)?, readable: mark == b"r " }))
        });
        let (path, now) = parsed.ok_or_else(|| shell.breach("a record of a name that none can have"))?;
        found.insert(path, Ok(now));
        if found.len() > count {
            return Err(shell.breach("more names than were requested"));
        }
    }
    let said = shell.end("stat")?;
    let complaints = find::complaints(&said);
    // xargs ends with 123 when find did not find all of them. Anything else is an answer that was cut short.
    if !matches!(complaints.code, Some(0 | 123)) {
        return Err(SourceError::Lost { reason: format!("find ended early: {}", shown(&said)).into() });
    }
    let errnos: HashMap<Vec<u8>, i32> = complaints.of_paths.into_iter().collect();
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::STALE].map(Errno::raw_os_error);
    for path in paths {
        if !found.contains_key(path) {
            // Only a name that is said to be gone is gone.
            let errno = errnos.get(path).copied().unwrap_or(Errno::IO.raw_os_error());
            if !gone.contains(&errno) {
                found.insert(path.to_vec(), Err(errno));
            }
        }
    }
    Ok(found)
}

/// Forgets what was found through a symbolic link that took the place of a directory: a shell resolves paths anew with each command, and what lies there
/// is not of this tree. Only names that lead to another inode than the scan saw are looked at.
fn forget_elsewhere<'r>(
    shell: &mut Shell,
    requests: impl Iterator<Item = &'r ReadRequest>,
    now: &mut HashMap<Vec<u8>, Result<Now, i32>>,
) -> Result<(), SourceError> {
    let above = |path: &'r [u8]| memchr::memchr_iter(b'/', path).map(move |slash| &path[..slash]);
    let moved = requests.map(|request| (request.path.as_slice(), &request.stat)).filter(|(path, requested)| {
        matches!(now.get(*path), Some(Ok(now)) if (now.stat.ino, now.stat.dev) != (requested.ino, requested.dev))
    });
    let moved: Vec<&[u8]> = moved.map(|(path, _)| path).collect();
    let directories: BTreeSet<&[u8]> = moved.iter().flat_map(|path| above(path)).collect();
    let seen = stat_paths(shell, directories.iter().copied())?;
    for path in moved {
        let inside =
            above(path).all(|path| matches!(seen.get(path), Some(Ok(now)) if now.stat.kind == Kind::Directory));
        if !inside {
            now.remove(path);
        }
    }
    Ok(())
}

/// Looks at one name.
pub(super) fn stat_one(shell: &mut Shell, path: &[u8]) -> Result<Option<Stat>, SourceError> {
    match stat_paths(shell, std::iter::once(path))?.remove(path) {
        None => Ok(None),
        Some(Ok(now)) => Ok(Some(now.stat)),
        Some(Err(errno)) => {
            let error = io::Error::from_raw_os_error(errno);
            Err(SourceError::Lost {
                reason: During::new(format!("{} cannot be looked at", path.escape_ascii()), error).into(),
            })
        }
    }
}

/// A member as it was taken in.
struct Taken {
    member: Member,
    /// Its content was left out: it is known, if the inode is still the same.
    skipped: bool,
    /// Bytes of content that were delivered.
    delivered: u64,
}

/// What an attempt found at one name.
struct Evidence {
    taken: Option<Taken>,
    /// What tar says of it.
    trouble: Option<Trouble>,
    /// Whether tar's silence means that it is as tar wrote it.
    sound: bool,
    now: Option<Result<Now, i32>>,
}

/// Which request is looked at, and how.
#[derive(Clone, Copy)]
struct Turn {
    place: usize,
    attempt: u32,
    /// It is alone, and its content still waits to be cut.
    single: bool,
}

/// How one attempt on one request ended.
enum Attempt {
    Done(Box<ReadOutcome>),
    /// It changed meanwhile.
    Again,
    /// Nothing is there.
    Vanished,
}

/// Takes the events of a batch; each call names the request by its place.
pub(super) trait BatchSink {
    /// Returns the sink for the events of one request. What an earlier attempt on it brought is void.
    fn of(&mut self, place: usize) -> &mut dyn EventSink;
}

/// Reads batches.
pub(super) struct Reader {
    spool: Spool,
    chunker: Chunker,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(spool: Spool) -> Reader {
        Reader { spool, chunker: Chunker::new(), buffer: vec![0; DATA_BYTES] }
    }

    /// Reads all requests of a batch; returns how each ended, in their order.
    pub(super) fn batch(
        &mut self,
        shell: &mut Shell,
        requests: &[ReadRequest],
        sinks: &mut dyn BatchSink,
    ) -> Result<Vec<ReadOutcome>, SourceError> {
        let known = known_content(shell, requests)?;
        let mut outcomes = Vec::with_capacity(requests.len());
        let rest: Vec<usize> = (0..requests.len()).filter(|place| known[*place].is_none()).collect();
        outcomes.extend(known);
        let attempts = self.attempt(shell, requests, &rest, sinks, 1)?;
        for (place, attempt) in rest.into_iter().zip(attempts) {
            let outcome = self.retried(shell, requests, place, sinks, attempt)?;
            outcomes[place] = Some(outcome);
        }
        let whole: Option<Vec<ReadOutcome>> = outcomes.into_iter().collect();
        whole.ok_or_else(|| shell.breach("fewer answers than questions"))
    }

    /// Tries again, one by one, what did not work at first.
    fn retried(
        &mut self,
        shell: &mut Shell,
        requests: &[ReadRequest],
        place: usize,
        sinks: &mut dyn BatchSink,
        mut attempt: Attempt,
    ) -> Result<ReadOutcome, SourceError> {
        let request = &requests[place];
        let waits = if request.path.contains(&b'/') { 1 } else { VANISHED_WAITS };
        let (mut attempts, mut waited) = (1, 1);
        loop {
            match attempt {
                Attempt::Done(outcome) => return Ok(*outcome),
                Attempt::Vanished if waited >= waits => {
                    let (stat, result) = (request.stat, ReadResult::Vanished);
                    return Ok(ReadOutcome { stat, xattrs: Vec::new(), result, read_bytes: 0 });
                }
                Attempt::Vanished => {
                    std::thread::sleep(VANISHED_WAIT);
                    waited += 1;
                }
                Attempt::Again => attempts += 1,
            }
            shell.check_interrupt()?;
            let mut again = self.attempt(shell, requests, &[place], sinks, attempts)?;
            attempt = again.pop().unwrap_or(Attempt::Vanished);
        }
    }

    /// Reads some of the requests once. A single one is cut only when it is known to be as it was.
    fn attempt(
        &mut self,
        shell: &mut Shell,
        requests: &[ReadRequest],
        places: &[usize],
        sinks: &mut dyn BatchSink,
        attempt: u32,
    ) -> Result<Vec<Attempt>, SourceError> {
        let single = places.len() == 1;
        let path = |place: &usize| requests[*place].path.as_slice();
        // tar skips sockets, and prints nothing of them; at a second look it may be none any more.
        let with_header = |place: &&usize| attempt > 1 || requests[**place].stat.kind != Kind::Socket;
        let mut taken: Vec<Option<Taken>> = places.iter().map(|_| None).collect();
        let mut words = None;
        if shell.command_on("tar", places.iter().filter(with_header).map(path)) > 0 {
            words = Some(self.take_members(shell, requests, places, sinks, attempt, &mut taken)?);
        }
        let sound = words.as_ref().is_none_or(TarMessages::understood);
        let said = words.unwrap_or_default();
        let mut now = stat_paths(shell, places.iter().map(path))?;
        forget_elsewhere(shell, places.iter().map(|place| &requests[*place]), &mut now)?;
        let mut ended = Vec::with_capacity(places.len());
        for (place, taken) in places.iter().zip(taken) {
            let request = &requests[*place];
            let (now, trouble) = (now.get(&request.path).copied(), said.of(&request.path));
            let evidence = Evidence { taken, trouble, sound, now };
            ended.push(self.judge(request, evidence, Turn { place: *place, attempt, single }, sinks)?);
        }
        Ok(ended)
    }

    fn take_members(
        &mut self,
        shell: &mut Shell,
        requests: &[ReadRequest],
        places: &[usize],
        sinks: &mut dyn BatchSink,
        attempt: u32,
        taken: &mut [Option<Taken>],
    ) -> Result<TarMessages, SourceError> {
        let mut archive = Archive::new(&mut *shell);
        let mut next = 0;
        let ended = loop {
            let member = match archive.next() {
                Ok(Some(member)) => member,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            archive.input().check_interrupt()?;
            // Members come in the order of the names; those that tar could not read are missing.
            let found =
                path_of(&member).and_then(|path| places[next..].iter().position(|place| requests[*place].path == path));
            let Some(found) = found else { break Err(breach("a tar member that was not requested")) };
            let at = next + found;
            next = at + 1;
            let request = &requests[places[at]];
            let skipped = attempt == 1
                && request.want == Want::Attributes
                && (member.kind, member.size, member.mtime)
                    == (request.stat.kind, request.stat.size, request.stat.mtime);
            let mut delivered = 0;
            if member.kind == Kind::File && !skipped {
                match self.spool_data(&mut archive, &member) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(self.spool_failed(error)),
                    Err(error) => break Err(error),
                }
                if places.len() > 1 {
                    delivered = self.cut(&member, member.size, sinks.of(places[at]))?;
                }
            }
            taken[at] = Some(Taken { member, skipped, delivered });
        };
        ended.map_err(|error| shell.failed(error))?;
        let said = shell.end("tar")?;
        Ok(TarMessages::parse(&said))
    }

    fn spool_failed(&self, source: io::Error) -> SourceError {
        SourceError::Spool { directory: self.spool.directory().to_owned(), source }
    }

    /// Puts the content of a member into the temporary file. The outer error is the stream's, the inner one the file's.
    fn spool_data(&mut self, archive: &mut Archive<&mut Shell>, member: &Member) -> io::Result<io::Result<()>> {
        if let Err(error) = self.spool.begin(member.size, member.regions.is_some()) {
            return Ok(Err(error));
        }
        let whole = [(0, member.size)];
        for (offset, length) in member.regions.as_deref().unwrap_or(&whole) {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let most = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let count = archive.data(&mut self.buffer[..most])?;
                if count == 0 {
                    return Err(breach("a tar member that ends early"));
                }
                if let Err(error) = self.spool.write(&self.buffer[..count], at) {
                    return Ok(Err(error));
                }
                at += count as u64;
                archive.input().check_interrupt().map_err(|_| io::Error::other("the run was interrupted"))?;
            }
        }
        Ok(Ok(()))
    }

    /// Cuts the file that was taken in, up to `size` bytes of it.
    fn cut(&mut self, member: &Member, size: u64, sink: &mut dyn EventSink) -> Result<u64, SourceError> {
        // The chunker looks for holes where less is allocated than the file is long.
        let allocated_bytes = if member.regions.is_some() { 0 } else { size };
        let stat = Stat { size, allocated_bytes, ..ZERO_STAT };
        let cut = self.chunker.split(self.spool.file(), &stat, &mut Hashing { sink });
        cut.map_err(|error| match error {
            ChunkerError::SinkClosed => SourceError::Intake,
            ChunkerError::Read(error) => self.spool_failed(error),
        })
    }

    /// Puts together what tar and `find` reported for one request.
    fn judge(
        &mut self,
        request: &ReadRequest,
        evidence: Evidence,
        turn: Turn,
        sinks: &mut dyn BatchSink,
    ) -> Result<Attempt, SourceError> {
        let Evidence { taken, trouble, sound, now } = evidence;
        let last = turn.attempt >= ATTEMPTS;
        let done = |stat, xattrs, result, read_bytes| {
            Ok(Attempt::Done(Box::new(ReadOutcome { stat, xattrs, result, read_bytes })))
        };
        let now = match now {
            Some(Ok(now)) if now.stat.kind != Kind::Directory => now,
            Some(Err(errno)) => return done(request.stat, Vec::new(), ReadResult::Failed(errno), 0),
            // A directory that took the name will be seen the next time.
            Some(Ok(_)) | None => return Ok(Attempt::Vanished),
        };
        if !sound && !last {
            return Ok(Attempt::Again);
        }
        let Some(taken) = taken else {
            if now.stat.kind == Kind::Socket {
                return done(now.stat, Vec::new(), ReadResult::Read, 0);
            }
            let errno = match trouble {
                Some(Trouble::Failed(errno) | Trouble::Unread(errno)) => {
                    return done(now.stat, Vec::new(), ReadResult::Failed(errno), 0);
                }
                _ if now.readable => Errno::IO.raw_os_error(),
                _ => Errno::ACCESS.raw_os_error(),
            };
            return if now.readable && !last {
                Ok(Attempt::Again)
            } else {
                done(now.stat, Vec::new(), ReadResult::Failed(errno), 0)
            };
        };
        let Taken { member, skipped, mut delivered } = taken;
        let mut stat = Stat { rdev: member.rdev, ..now.stat };
        let requested = &request.stat;
        let as_scanned = (stat.kind, stat.ino, stat.size, stat.mtime)
            == (requested.kind, requested.ino, requested.size, requested.mtime);
        if skipped && !as_scanned {
            return Ok(Attempt::Again);
        }
        let changed = match member.kind {
            _ if trouble == Some(Trouble::Changed) => true,
            Kind::File => (member.kind, member.size, member.mtime) != (stat.kind, stat.size, stat.mtime),
            kind => kind != stat.kind || member.mtime != stat.mtime,
        };
        if changed && !last {
            return Ok(Attempt::Again);
        }
        // What came in place of what could not be read is not its content.
        match trouble {
            // It was not wanted.
            Some(Trouble::Unread(_)) if skipped => {}
            Some(Trouble::Failed(errno) | Trouble::Unread(errno)) => {
                return done(now.stat, member.xattrs, ReadResult::Failed(errno), 0);
            }
            _ if !sound => return done(now.stat, Vec::new(), ReadResult::Failed(Errno::IO.raw_os_error()), 0),
            _ => {}
        }
        if member.kind != stat.kind {
            return done(now.stat, Vec::new(), ReadResult::Failed(Errno::IO.raw_os_error()), 0);
        }
        match member.kind {
            Kind::File if !skipped => {
                if turn.single {
                    // What tar makes up for a file that became shorter is not made up here.
                    delivered = self.cut(&member, member.size.min(stat.size), sinks.of(turn.place))?;
                }
                stat.size = delivered;
            }
            Kind::Symlink if request.want == Want::Content || !as_scanned => {
                let length = member.target.len();
                if length == 0 || length > TARGET_MAX_BYTES {
                    return done(now.stat, Vec::new(), ReadResult::Failed(Errno::IO.raw_os_error()), 0);
                }
                let sink = sinks.of(turn.place);
                sink.event(ReadEvent::Literal(member.target), length).map_err(|_| SourceError::Intake)?;
                delivered = length as u64;
                stat.size = delivered;
            }
            _ => {}
        }
        let result = if changed { ReadResult::Changed } else { ReadResult::Read };
        done(stat, member.xattrs, result, delivered)
    }
}

/// Finds the answers to requests for attributes alone, of files: where the file is as it was scanned and has no extended attributes, that is all.
fn known_content(shell: &mut Shell, requests: &[ReadRequest]) -> Result<Vec<Option<ReadOutcome>>, SourceError> {
    let alone = |request: &&ReadRequest| request.want == Want::Attributes && request.stat.kind == Kind::File;
    let paths = || requests.iter().filter(alone).map(|request| request.path.as_slice());
    let looked = probe_xattrs(shell, paths())?;
    let now = stat_paths(shell, paths())?;
    let answers = requests.iter().map(|request| {
        if !alone(&request) || looked.get(&request.path) != Some(&false) {
            return None;
        }
        let (stat, requested) = (now.get(&request.path)?.as_ref().ok()?.stat, &request.stat);
        let same = (stat.kind, stat.ino, stat.dev, stat.size, stat.mtime)
            == (requested.kind, requested.ino, requested.dev, requested.size, requested.mtime);
        same.then(|| ReadOutcome { stat, xattrs: Vec::new(), result: ReadResult::Read, read_bytes: 0 })
    });
    Ok(answers.collect())
}
