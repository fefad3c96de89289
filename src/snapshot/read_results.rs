//! From answers to link groups: what a name of a listing turns out to stand for.

use rustix::io::Errno;

use super::SnapshotError;
use super::chunk_writer::ChunkWriter;
use super::content_builder::ContentBuilder;
use super::inode_cache::{CachedInode, content_fingerprint};
use super::inodes::Slot;
use super::options::RunProblem;
use super::owners::Owners;
use super::progress::Progress;
use super::run::BackupRun;
use super::tree_builder::Resolved;
use crate::catalog::directory::DirectoryAttributes;
use crate::catalog::group::{Content, LinkGroup, Segment};
use crate::catalog::writer::CatalogWriter;
use crate::model::{self, Kind, NAME_MAX_BYTES, Stat, Xattr};
use crate::source::cut::SinkClosed;
use crate::source::read::{EventSink, ReadEvent, ReadOutcome, ReadRequest, ReadResult, Want};
use crate::source::scan::{Listing, ProblemKind};

/// What is still to be done for one name.
pub(super) enum Pending {
    /// Nothing.
    Ready(Resolved),
    /// It is left out.
    Dropped,
    /// Its inode was asked for.
    Read(Box<InFlightRead>),
    /// It is a further name of the inode of this slot.
    Same(u32),
}

/// A request under way.
pub(super) struct InFlightRead {
    pub(super) slot: Option<u32>,
    pub(super) file_system: u32,
    pub(super) stat: Stat,
    pub(super) want: Want,
    /// What was known under the inode's number.
    pub(super) known: Option<CachedInode>,
    /// Whether the known content still holds unless the answer brings another.
    pub(super) same_content: bool,
}

/// A listing that waits for answers.
pub(super) struct PendingListing {
    pub(super) name: Box<[u8]>,
    /// Path of the directory, with a slash behind it unless it is the root.
    pub(super) prefix: Vec<u8>,
    pub(super) attributes: Option<DirectoryAttributes>,
    pub(super) entries: Vec<(Box<[u8]>, Pending)>,
    /// Requests that the listing waits for.
    pub(super) requests: usize,
    /// What it counts for, in names.
    names: usize,
}

/// Bytes of a name that waits, roughly: longer paths and extended attributes count as further names.
const NAME_BYTES: usize = 270;

impl PendingListing {
    /// Returns how many names it is, its own included, or how many small ones take as much memory.
    pub(super) fn names(&self) -> usize {
        self.names
    }

    /// Counts what it holds, once all of it is there.
    pub(super) fn weigh(&mut self) {
        let xattrs = self.attributes.iter().flat_map(|attributes| &attributes.xattrs);
        let xattr_bytes: usize = xattrs.map(|xattr| xattr.name.len() + xattr.value.len() + 64).sum();
        self.names = self.entries.len() + 1 + (self.prefix.len() + xattr_bytes) / NAME_BYTES;
    }

    pub(super) fn new(listing: &Listing, owners: &mut Owners) -> PendingListing {
        let name = listing.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let vanished = listing.unreadable.as_ref().is_some_and(|problem| problem.kind == ProblemKind::Vanished);
        let unreadable = listing.unreadable.as_ref().map(|problem| problem.errno.unsigned_abs());
        let attributes = (!vanished).then(|| {
            owners.note(listing.stat.uid, listing.stat.gid);
            directory_attributes(&listing.stat, listing.xattrs.clone(), unreadable)
        });
        PendingListing {
            name: name.into(),
            prefix: Vec::new(),
            attributes,
            entries: Vec::with_capacity(listing.entries.len()),
            requests: 0,
            names: 1,
        }
    }
}

pub(super) fn directory_attributes(stat: &Stat, xattrs: Vec<Xattr>, unreadable: Option<u32>) -> DirectoryAttributes {
    DirectoryAttributes {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        xattrs,
        unreadable,
        is_mount_point: false,
    }
}

/// Problems that are kept by name ...
const PROBLEMS_KEPT: usize = 100_000;
/// ... unless their list would be so long, in bytes; further ones are counted.
const PROBLEMS_KEPT_BYTES: usize = 48 << 20;

/// Returns how long a problem is in the list that a snapshot keeps, at most and in bytes.
fn listed_bytes(path: &[u8], message: &str) -> usize {
    // What is escaped is escaped once more as JSON.
    let message: usize = message.bytes().map(|byte| if byte < 0x20 { 6 } else { 2 }).sum();
    2 * path.escape_ascii().count() + message + 64
}

/// Returns whether a path has a name that is longer than any directory of a snapshot has.
pub(super) fn has_long_name(path: &[u8]) -> bool {
    path.len() > NAME_MAX_BYTES && path.split(|byte| *byte == b'/').any(|name| name.len() > NAME_MAX_BYTES)
}

/// Takes the events of an inode that is read out of turn, on the run's own thread.
struct DirectSink<'r> {
    writer: &'r mut CatalogWriter,
    chunks: &'r mut ChunkWriter,
    progress: &'r Progress,
    builder: ContentBuilder,
    failure: Option<SnapshotError>,
}

impl EventSink for DirectSink<'_> {
    fn event(&mut self, event: ReadEvent, _bytes: usize) -> Result<(), SinkClosed> {
        take_event(event, self.writer, self.chunks, self.progress, &mut self.builder).map_err(|error| {
            self.failure = Some(error);
            SinkClosed
        })
    }
}

/// Takes one event that is not the end of an answer.
fn take_event(
    event: ReadEvent,
    writer: &mut CatalogWriter,
    chunks: &mut ChunkWriter,
    progress: &Progress,
    builder: &mut ContentBuilder,
) -> Result<(), SnapshotError> {
    match event {
        ReadEvent::Literal(bytes) => builder.push(writer, Segment::Literal(bytes.into()))?,
        ReadEvent::Zeros(length) => builder.push(writer, Segment::Zeros(length))?,
        ReadEvent::Chunk(hash, plain) => {
            let length = plain.len() as u32;
            Progress::add(&progress.read_bytes, u64::from(length));
            let number = chunks.chunk(writer, hash, plain)?;
            builder.push(writer, Segment::Chunk { number, length })?;
        }
        ReadEvent::Stored { number, length } => {
            Progress::add(&progress.read_bytes, u64::from(length));
            builder.push(writer, Segment::Chunk { number, length })?;
        }
        ReadEvent::Restart => builder.clear(),
        ReadEvent::Done(_) => {}
    }
    Ok(())
}

impl BackupRun<'_> {
    /// Reads an inode out of turn.
    pub(super) fn read_apart(&mut self, request: &ReadRequest) -> Result<(ReadOutcome, ContentBuilder), SnapshotError> {
        let mut sink = DirectSink {
            writer: &mut self.writer,
            chunks: &mut self.chunks,
            progress: self.progress,
            builder: ContentBuilder::default(),
            failure: None,
        };
        match (self.source_tree.read_apart(request, &mut sink), sink.failure) {
            (_, Some(failure)) => Err(failure),
            (outcome, None) => Ok((outcome?, sink.builder)),
        }
    }

    /// Takes the answer to the oldest request.
    pub(super) fn answer(
        &mut self,
        prefix: &[u8],
        name: &[u8],
        read: InFlightRead,
    ) -> Result<Option<Resolved>, SnapshotError> {
        let mut builder = ContentBuilder::default();
        let outcome = loop {
            match self.with_intake(|tree, intake| tree.receive(intake))? {
                ReadEvent::Done(outcome) => break *outcome,
                event => take_event(event, &mut self.writer, &mut self.chunks, self.progress, &mut builder)?,
            }
            // One file may be most of a tree.
            self.check_interrupt()?;
            self.commit_if_large()?;
        };
        self.finish_inode(&[prefix, name].concat(), read, outcome, builder)
    }

    /// Makes a link group of what was read, or finds that it is the one already known.
    pub(super) fn finish_inode(
        &mut self,
        path: &[u8],
        read: InFlightRead,
        mut outcome: ReadOutcome,
        mut builder: ContentBuilder,
    ) -> Result<Option<Resolved>, SnapshotError> {
        let has_all_attributes = self.bound_xattrs(path, &mut outcome.xattrs, model::XATTRS_MAX_BYTES);
        if builder.is_too_large() && matches!(outcome.result, ReadResult::Read | ReadResult::Changed) {
            outcome.result = ReadResult::Failed(Errno::FBIG.raw_os_error());
        }
        self.work.read_bytes += outcome.read_bytes;
        self.acls.note(&outcome.xattrs);
        if read.want == Want::Content {
            Progress::add(&self.progress.read_files, 1);
        }
        let (stat, content, changed) = match outcome.result {
            ReadResult::Vanished => {
                self.totals.count(&read.stat, -1);
                self.problem(path.to_vec(), "Vanished during the run; the snapshot does not hold it".to_owned());
                self.lose(&read);
                return Ok(None);
            }
            ReadResult::Failed(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.problem(
                    path.to_vec(),
                    format!("Cannot be read ({error}); the snapshot holds its attributes only"),
                );
                builder.clear();
                (read.stat, Content::Unreadable(errno as u32), false)
            }
            ReadResult::Read | ReadResult::Changed => {
                let changed = matches!(outcome.result, ReadResult::Changed);
                if changed {
                    let message =
                        "Kept changing while it was read; the snapshot may hold it as it never was at one time";
                    self.problem(path.to_vec(), message.to_owned());
                }
                let content = self.content(&read, &outcome, &mut builder)?;
                (outcome.stat, content, changed)
            }
        };
        self.totals.count(&read.stat, -1);
        self.totals.count(&stat, 1);
        let exchanged = (stat.ino, stat.btime) != (read.stat.ino, read.stat.btime);
        if exchanged {
            // The other names of the inode that the scan saw must not take this content.
            self.lose(&read);
        }
        let failed = matches!(content, Content::Unreadable(_));
        let row = LinkGroup { attributes: stat.attributes(outcome.xattrs), content, has_changed_while_read: changed };
        let known = read.known.filter(|_| !exchanged);
        let (group, digest) = self.number(row, known)?;
        self.inodes.note(read.file_system, &stat, group, digest, !changed && !failed && has_all_attributes);
        if exchanged {
            if stat.nlink > 1 {
                self.inodes.add_slot(read.file_system, &stat, Slot::Group(group, digest));
            }
        } else if let Some(slot) = read.slot {
            self.inodes.set(slot, Slot::Group(group, digest));
        }
        Ok(Some(Resolved::Group(group, digest)))
    }

    pub(super) fn problem(&mut self, path: Vec<u8>, message: String) {
        self.problem_count += 1;
        let bytes = listed_bytes(&path, &message);
        if self.problems.len() < PROBLEMS_KEPT && self.problem_bytes + bytes <= PROBLEMS_KEPT_BYTES {
            self.problem_bytes += bytes;
            self.problems.push(RunProblem { path, message });
        }
    }

    /// Says that a name is longer than any that is taken.
    pub(super) fn leave_out_long_name(&mut self, prefix: &[u8], name: &[u8]) {
        let length = name.len();
        let message = format!(
            "Its name has {length} bytes, more than {NAME_MAX_BYTES}; the snapshot does not hold it, nor what is below"
        );
        self.problem([prefix, name].concat(), message);
    }

    /// Keeps extended attributes within what is taken of one inode, and says so where there are more. Returns whether all are there.
    fn bound_xattrs(&mut self, path: &[u8], xattrs: &mut Vec<Xattr>, most: usize) -> bool {
        let are_all = model::bound_xattrs(xattrs, most);
        if !are_all {
            let most = most >> 10;
            let message = format!(
                "Has more than {most} KiB of extended attributes; the snapshot holds it without those of users (user.*)"
            );
            self.problem(path.to_vec(), message);
        }
        are_all
    }

    pub(super) fn bound_directory_xattrs(&mut self, listing: &mut Listing) {
        let most = if listing.path.is_empty() { model::ROOT_XATTRS_MAX_BYTES } else { model::XATTRS_MAX_BYTES };
        self.bound_xattrs(&listing.path, &mut listing.xattrs, most);
    }

    fn lose(&mut self, read: &InFlightRead) {
        if let Some(slot) = read.slot {
            self.inodes.set(slot, Slot::Lost(read.stat, read.file_system));
        }
    }

    /// Returns the content: what was delivered, or what is known when nothing needed to be.
    fn content(
        &mut self,
        read: &InFlightRead,
        outcome: &ReadOutcome,
        builder: &mut ContentBuilder,
    ) -> Result<Content, SnapshotError> {
        let as_scanned =
            outcome.stat.ino == read.stat.ino && content_fingerprint(&outcome.stat) == content_fingerprint(&read.stat);
        if read.want == Want::Attributes && as_scanned {
            if let Some(known) = read.known.filter(|_| read.same_content) {
                self.work.attribute_inodes += 1;
                return Ok(self.writer.reader().group(known.group)?.content.clone());
            }
            return Ok(Content::Empty);
        }
        if outcome.stat.kind == Kind::File {
            self.work.read_files += 1;
        }
        Ok(builder.finish(&mut self.writer)?)
    }

    /// Returns the number and the digest of a row; those of the known group if that is the same.
    fn number(&mut self, row: LinkGroup, known: Option<CachedInode>) -> Result<(u64, u64), SnapshotError> {
        if let Some(known) = known
            && *self.writer.reader().group(known.group)? == row
        {
            return Ok((known.group, known.row_digest));
        }
        let digest = row.digest();
        Ok((self.writer.add_group(row)?, digest))
    }
}
