//! The threads that write regular files.
//!
//! Small files come in batches, whose chunks are read together; a large file is a batch of its own and streams through a window.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, ftruncate, openat, renameat, unlinkat};
use rustix::io::{Errno, pwrite};

use super::attributes::{Present, apply_open};
use super::environment::Environment;
use super::hard_links::{GroupState, LinkGroups, Linker, PlacedName, WaitingName, copy_message, needs_copy};
use super::inode::{Identity, identity_of};
use super::target_dir::TargetDir;
use crate::catalog::CatalogError;
use crate::catalog::group::{LinkGroup, Segment};
use crate::ids::{ChunkId, GroupId};
use crate::store::entry::ChunkAddress;

/// Plain bytes of chunks held for one file at a time.
const WINDOW_BYTES: u64 = 4 << 20;

/// A regular file to write.
pub(super) struct FileJob<'e> {
    pub(super) dir: Arc<TargetDir<'e>>,
    pub(super) name: Box<[u8]>,
    pub(super) group: GroupId,
    pub(super) row: Arc<LinkGroup>,
    /// Whether the link group has other names.
    pub(super) has_other_names: bool,
}

/// Why a file was not written.
enum FileError {
    /// The store does not have its bytes.
    Content { message: String, damage: bool },
    /// The system refused.
    System(&'static str, Errno),
    /// The restore ended.
    Stopped,
}

impl From<CatalogError> for FileError {
    fn from(error: CatalogError) -> FileError {
        FileError::Content { damage: error.is_damage(), message: error.to_string() }
    }
}

/// Chunks by number, each its plain bytes or why it has none.
type Chunks = HashMap<ChunkId, Result<Vec<u8>, (String, bool)>>;

/// Writes batches until there are no more.
pub(super) fn work<'e>(
    environment: &'e Environment<'e>,
    links: &LinkGroups<'e>,
    root: &TargetDir<'e>,
    batches: &Receiver<Vec<FileJob<'e>>>,
) {
    let mut worker = Worker { environment, links, root, linker: Linker::default() };
    for batch in batches {
        worker.batch(batch);
        environment.batch_ends();
    }
}

struct Worker<'w, 'e> {
    environment: &'e Environment<'e>,
    links: &'w LinkGroups<'e>,
    root: &'w TargetDir<'e>,
    linker: Linker,
}

impl<'e> Worker<'_, 'e> {
    fn batch(&mut self, batch: Vec<FileJob<'e>>) {
        let mut numbers = Vec::new();
        if batch.len() > 1 {
            for job in &batch {
                // What fails here fails again, and is reported, when the file is written.
                let _ = self.environment.view.catalog().for_each_segment(&job.row.content, |segment| {
                    if let Segment::Chunk { number, .. } = segment {
                        numbers.push(*number);
                    }
                    Ok::<_, CatalogError>(())
                });
            }
        }
        let chunks = load(self.environment, numbers);
        for job in batch {
            let outcome = self.write(&job, &chunks);
            self.finish(job, outcome);
        }
    }

    /// Reports a file and gives its other names what they wait for.
    fn finish(&mut self, job: FileJob<'e>, outcome: Result<Identity, FileError>) {
        let environment = self.environment;
        let written = match outcome {
            Ok(identity) => {
                environment.count(|report| report.files += 1);
                environment.progress.files.fetch_add(1, Ordering::Relaxed);
                Some(identity)
            }
            Err(error) => {
                report(environment, &job.dir.path_of(&job.name), error);
                None
            }
        };
        if !job.has_other_names {
            return;
        }
        let Some(identity) = written else {
            let before = self.links.lock().insert(job.group, GroupState::Failed);
            if let Some(GroupState::Writing(waiting)) = before {
                for other in waiting {
                    other_name_failed(environment, &other.dir, &other.name);
                    environment.link_done();
                }
            }
            return;
        };
        let mut placed = PlacedName { directory: job.dir.path().into(), name: job.name.clone(), identity };
        let before = self.links.lock().insert(job.group, GroupState::Placed(placed.clone()));
        if let Some(GroupState::Writing(waiting)) = before {
            for other in waiting {
                if let Some(moved) = self.link_or_copy(&placed, &job, &other) {
                    // The walk may have met the same refusal, and have another copy written.
                    if let Some(state @ GroupState::Placed(_)) = self.links.lock().get_mut(&job.group) {
                        *state = GroupState::Placed(moved.clone());
                    }
                    placed = moved;
                }
                environment.link_done();
            }
        }
    }

    /// Links a waiting name; returns where further names are to be linked when it became a copy.
    fn link_or_copy(&mut self, placed: &PlacedName, job: &FileJob<'e>, other: &WaitingName<'e>) -> Option<PlacedName> {
        let environment = self.environment;
        let linked = match (self.root.fd(), other.dir.fd()) {
            (Ok(Some(root)), Ok(Some(directory))) => {
                self.linker.link(environment, root.as_fd(), placed, directory.as_fd(), &other.name, other.replace)
            }
            (Err(errno), _) | (_, Err(errno)) => Err(errno),
            _ => return None,
        };
        match linked {
            Ok(()) => {
                environment.count(|report| report.links += 1);
                None
            }
            Err(errno) if needs_copy(errno) => {
                let path = other.dir.path_of(&other.name);
                environment.problem(&path, copy_message(errno), false);
                let copy = FileJob {
                    dir: Arc::clone(&other.dir),
                    name: other.name.clone(),
                    group: job.group,
                    row: Arc::clone(&job.row),
                    has_other_names: true,
                };
                match self.write(&copy, &Chunks::new()) {
                    Ok(identity) => {
                        environment.count(|report| report.files += 1);
                        Some(PlacedName { directory: copy.dir.path().into(), name: copy.name, identity })
                    }
                    Err(error) => {
                        report(environment, &path, error);
                        None
                    }
                }
            }
            Err(errno) => {
                environment.refused(&other.dir.path_of(&other.name), "Cannot link it", errno);
                None
            }
        }
    }

    /// Writes one file under a temporary name, and renames it when it is complete. Returns its identity.
    fn write(&self, job: &FileJob<'e>, chunks: &Chunks) -> Result<Identity, FileError> {
        let directory = job.dir.fd().map_err(|errno| FileError::System("Cannot create it", errno))?;
        let Some(directory) = directory else { return Err(FileError::Stopped) };
        let directory = directory.as_fd();
        if self.environment.is_stopped() {
            return Err(FileError::Stopped);
        }
        let temporary = self.environment.temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handles = &self.environment.handles;
        let file = handles
            .with_room(|| openat(directory, temporary.as_slice(), flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| FileError::System("Cannot create it", errno))?;
        let outcome = self.fill(job, file, chunks).and_then(|identity| {
            renameat(directory, temporary.as_slice(), directory, &*job.name)
                .map_err(|errno| FileError::System("Cannot give it its name", errno))?;
            Ok(identity)
        });
        if outcome.is_err() {
            let _ = unlinkat(directory, temporary.as_slice(), AtFlags::empty());
        }
        outcome
    }

    fn fill(&self, job: &FileJob<'e>, file: OwnedFd, chunks: &Chunks) -> Result<Identity, FileError> {
        let environment = self.environment;
        let attributes = &job.row.attributes;
        let mut writer = Writer { environment, file: &file, offset: 0, end: 0, window: Vec::new(), window_bytes: 0 };
        environment.view.catalog().for_each_segment(&job.row.content, |segment| {
            if writer.offset.saturating_add(segment.length()) > attributes.size {
                return Err(wrong_size(writer.offset.saturating_add(segment.length()), attributes.size));
            }
            writer.segment(segment, chunks)
        })?;
        writer.flush()?;
        let (offset, end) = (writer.offset, writer.end);
        if offset != attributes.size {
            return Err(wrong_size(offset, attributes.size));
        }
        if end < offset {
            ftruncate(&file, offset).map_err(|errno| FileError::System("Cannot set its size", errno))?;
        }
        let present = Present::New { inherits: job.dir.inherits_acl() };
        apply_open(environment, file.as_fd(), &job.dir.path_of(&job.name), attributes.into(), present);
        if !job.has_other_names {
            return Ok((0, 0));
        }
        let stat = fstat(&file).map_err(|errno| FileError::System("Cannot look at it", errno))?;
        Ok(identity_of(&stat))
    }
}

fn wrong_size(found: u64, size: u64) -> FileError {
    let message = format!("Its content has {found} bytes and should have {size}");
    FileError::Content { message, damage: true }
}

/// Reports a file that could not be written.
fn report(environment: &Environment<'_>, path: &[u8], error: FileError) {
    match error {
        FileError::Content { message, damage } => environment.problem(path, message, damage),
        FileError::System(action, errno) => environment.refused(path, action, errno),
        FileError::Stopped => {}
    }
}

/// Reports a name whose link group could not be restored under its first name.
pub(super) fn other_name_failed(environment: &Environment<'_>, dir: &TargetDir<'_>, name: &[u8]) {
    if !environment.is_stopped() {
        let message = "Not restored: it is another name of a file that could not be restored";
        environment.problem(&dir.path_of(name), message, false);
    }
}

/// Reads chunks, those that lie together with one read.
fn load(environment: &Environment<'_>, mut numbers: Vec<ChunkId>) -> Chunks {
    numbers.sort_unstable();
    numbers.dedup();
    let mut chunks = Chunks::with_capacity(numbers.len());
    load_from(environment, numbers, &mut chunks);
    let damaged = chunks.iter().filter(|(_, chunk)| matches!(chunk, Err((_, true)))).map(|(number, _)| *number);
    let damaged: Vec<ChunkId> = damaged.collect();
    // A prune that runs at the same time may have repacked them.
    if !damaged.is_empty() && environment.view.catalog().refresh() {
        load_from(environment, damaged, &mut chunks);
    }
    chunks
}

fn load_from(environment: &Environment<'_>, numbers: Vec<ChunkId>, chunks: &mut Chunks) {
    let mut addresses: Vec<(ChunkAddress, ChunkId)> = Vec::with_capacity(numbers.len());
    for number in numbers {
        match environment.view.catalog().chunk_address(number) {
            Ok(address) => addresses.push((address, number)),
            Err(error) => {
                chunks.insert(number, Err((error.to_string(), error.is_damage())));
            }
        }
    }
    addresses.sort_unstable_by_key(|(address, _)| address.location);
    let run: Vec<ChunkAddress> = addresses.iter().map(|(address, _)| *address).collect();
    environment.view.chunks().read_run(&run, |index, plain| {
        let plain = plain.map_err(|error| (error.to_string(), error.is_damage()));
        chunks.insert(addresses[index].1, plain);
    });
}

/// Writes the segments of one file in order.
struct Writer<'a> {
    environment: &'a Environment<'a>,
    file: &'a OwnedFd,
    /// Where the next segment goes.
    offset: u64,
    /// End of the last byte written; behind it, all is a hole.
    end: u64,
    /// Chunks not read yet: where they go, number, length.
    window: Vec<(u64, ChunkId, u32)>,
    window_bytes: u64,
}

impl Writer<'_> {
    fn segment(&mut self, segment: &Segment, chunks: &Chunks) -> Result<(), FileError> {
        match segment {
            // Nothing is written, so that a hole stays one.
            Segment::Zeros(_) => {}
            Segment::Literal(bytes) => self.write(self.offset, bytes)?,
            Segment::Chunk { number, length } => match chunks.get(number) {
                Some(plain) => self.chunk(self.offset, *length, *number, plain)?,
                None => {
                    self.window.push((self.offset, *number, *length));
                    self.window_bytes += u64::from(*length);
                }
            },
        }
        self.offset += segment.length();
        if self.window_bytes >= WINDOW_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), FileError> {
        if self.window.is_empty() {
            return Ok(());
        }
        if self.environment.is_stopped() {
            return Err(FileError::Stopped);
        }
        let window = std::mem::take(&mut self.window);
        self.window_bytes = 0;
        let chunks = load(self.environment, window.iter().map(|(_, number, _)| *number).collect());
        for (offset, number, length) in window {
            match chunks.get(&number) {
                Some(plain) => self.chunk(offset, length, number, plain)?,
                None => {
                    return Err(FileError::Content { message: format!("Chunk {number} was not read"), damage: false });
                }
            }
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        offset: u64,
        length: u32,
        number: ChunkId,
        plain: &Result<Vec<u8>, (String, bool)>,
    ) -> Result<(), FileError> {
        match plain {
            Ok(plain) if plain.len() as u64 == u64::from(length) => self.write(offset, plain),
            Ok(plain) => {
                let message = format!("Chunk {number} has {} bytes and should have {length}", plain.len());
                Err(FileError::Content { message, damage: true })
            }
            Err((message, damage)) => Err(FileError::Content { message: message.clone(), damage: *damage }),
        }
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), FileError> {
        self.environment.progress.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        while !bytes.is_empty() {
            match pwrite(self.file, bytes, offset) {
                Ok(0) => return Err(FileError::System("Cannot write it", Errno::IO)),
                Ok(count) => {
                    offset += count as u64;
                    bytes = &bytes[count..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(FileError::System("Cannot write it", errno)),
            }
        }
        self.end = self.end.max(offset);
        Ok(())
    }
}
