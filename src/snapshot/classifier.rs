//! Decides for each name whether its inode has to be read, and makes a link group of what was read.

use rustix::io::Errno;

use super::SnapshotError;
use super::content_builder::ContentBuilder;
use super::findings::Findings;
use super::inode_cache::{CachedInode, InodeCache, content_fingerprint};
use super::listings_in_flight::{Pending, PendingListing, directory_attributes};
use super::owners::Acls;
use super::progress::Progress;
use super::read_results::{Answer, InFlightRead};
use super::run_inodes::{RunInodes, Slot, Verdict};
use super::storage::Storage;
use super::tree_builder::Resolved;
use crate::catalog::directory::DirectoryAttributes;
use crate::catalog::group::{Content, LinkGroup};
use crate::ids::GroupId;
use crate::model::{Kind, NAME_MAX_BYTES, ROOT_XATTRS_MAX_BYTES, Stat, XATTRS_MAX_BYTES};
use crate::source::read::{ReadOutcome, ReadRequest, ReadResult, Want};
use crate::source::scan::{Found, Listing};
use crate::source::tree::{SourceError, SourceTree};

/// Knows the inodes of the tree, and what is found out about them.
pub(super) struct Classifier<'a> {
    inodes: RunInodes,
    findings: Findings,
    progress: &'a Progress,
}

impl<'a> Classifier<'a> {
    /// Starts with what is known from last time. With `rescan` every content counts as changed.
    pub(super) fn new(
        known: InodeCache,
        rescan: bool,
        started: jiff::Timestamp,
        progress: &'a Progress,
    ) -> Classifier<'a> {
        let acls = if known.is_empty() || rescan { Acls::none() } else { Acls(known.acls) };
        Classifier { inodes: RunInodes::new(known, rescan, started), findings: Findings::new(acls), progress }
    }

    /// Classifies the names of a directory, and requests the inodes that have to be read.
    pub(super) fn classify(
        &mut self,
        mut listing: Listing,
        tree: &mut dyn SourceTree,
    ) -> Result<PendingListing, SourceError> {
        Progress::add(&self.progress.names, listing.entries.len() as u64);
        let xattrs_max_bytes = if listing.path.is_empty() { ROOT_XATTRS_MAX_BYTES } else { XATTRS_MAX_BYTES };
        self.findings.take_xattrs(&listing.path, &mut listing.xattrs, xattrs_max_bytes);
        let mut pending = PendingListing::new(&listing, &mut self.findings.owners);
        self.findings.problems.extend(&listing.unreadable);
        for entry in listing.entries {
            if entry.name.len() > NAME_MAX_BYTES {
                self.findings.leave_out_long_name(&[&pending.prefix, &*entry.name].concat(), &entry.name);
                continue;
            }
            let state = match entry.what {
                Found::Directory => Pending::Ready(Resolved::Directory),
                Found::Boundary(stat) => {
                    self.findings.owners.note(stat.uid, stat.gid);
                    let attributes = directory_attributes(&stat, Vec::new(), None);
                    let attributes = DirectoryAttributes { is_mount_point: true, ..attributes };
                    Pending::Ready(Resolved::Leaf(Box::new(attributes)))
                }
                Found::Inode { file_system, ino, stat } => {
                    let file_system = self.inodes.file_system(file_system, || tree.file_systems());
                    let path = [&pending.prefix, &*entry.name];
                    self.classify_inode(path, file_system, ino, stat.map(|stat| *stat), tree)?
                }
            };
            pending.entries.push((entry.name, state));
        }
        Ok(pending)
    }

    fn classify_inode(
        &mut self,
        path: [&[u8]; 2],
        file_system: u32,
        ino: u64,
        stat: Option<Stat>,
        tree: &mut dyn SourceTree,
    ) -> Result<Pending, SourceError> {
        let known_slot = self.inodes.slot(file_system, ino);
        let stat = match (stat, known_slot) {
            (None, Some(slot)) => return Ok(Pending::Same(slot)),
            (Some(stat), Some(slot)) if self.inodes.is_same(slot, &stat) => return Ok(Pending::Same(slot)),
            (Some(stat), _) => stat,
            (None, None) => return Ok(Pending::LeftOut),
        };
        self.findings.owners.note(stat.uid, stat.gid);
        self.findings.add(&stat);
        let verdict = self.inodes.judge(file_system, &stat);
        let has_several_names = stat.nlink > 1;
        let (want, known) = match verdict {
            Verdict::Unchanged(known) => {
                self.findings.work.unchanged_inodes += 1;
                self.inodes.keep(known);
                if has_several_names {
                    self.inodes.add_slot(file_system, &stat, Slot::Group(known.group, known.row_digest));
                }
                return Ok(Pending::Ready(Resolved::Group(known.group, known.row_digest)));
            }
            Verdict::Attributes(known) => (Want::Attributes, Some(known)),
            // An empty file and a device have nothing to read.
            Verdict::Content(known) if stat.size == 0 && stat.kind != Kind::Symlink => (Want::Attributes, known),
            Verdict::Content(known) => (Want::Content, known),
        };
        if want == Want::Content {
            Progress::add(&self.progress.requested_files, 1);
            Progress::add(&self.progress.requested_bytes, stat.size);
        }
        let slot = has_several_names.then(|| self.inodes.add_slot(file_system, &stat, Slot::Requested));
        tree.submit(ReadRequest { path: path.concat(), stat, want })?;
        let same_content = matches!(verdict, Verdict::Attributes(_));
        Ok(Pending::Read(Box::new(InFlightRead { slot, file_system, stat, want, known, same_content })))
    }

    /// Returns where an inode with several names stands.
    pub(super) fn slot(&self, slot: u32) -> Slot {
        self.inodes.get(slot)
    }

    /// Begins to read an inode by a further name.
    pub(super) fn read_again(&mut self, slot: u32, stat: Stat, file_system: u32) -> InFlightRead {
        self.findings.add(&stat);
        InFlightRead { slot: Some(slot), file_system, stat, want: Want::Content, known: None, same_content: false }
    }

    /// Makes a link group of what was read, or finds that it is the one already known.
    pub(super) fn finish_inode(
        &mut self,
        path: &[u8],
        read: &InFlightRead,
        answer: Answer,
        storage: &mut Storage,
    ) -> Result<Option<Resolved>, SnapshotError> {
        let Answer { mut outcome, mut content } = answer;
        let has_all_attributes = self.findings.take_xattrs(path, &mut outcome.xattrs, XATTRS_MAX_BYTES);
        if content.is_too_large() && matches!(outcome.result, ReadResult::Read | ReadResult::Changed) {
            outcome.result = ReadResult::Failed(Errno::FBIG.raw_os_error());
        }
        self.findings.work.read_bytes += outcome.read_bytes;
        if read.want == Want::Content {
            Progress::add(&self.progress.read_files, 1);
        }
        let (stat, content, changed) = match outcome.result {
            ReadResult::Vanished => {
                self.findings.remove(&read.stat);
                self.findings.problem(path, "Vanished during the run; it is not in the snapshot");
                self.lose(read);
                return Ok(None);
            }
            ReadResult::Failed(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.findings.problem(path, format!("Cannot be read ({error}); the snapshot has only its attributes"));
                (read.stat, Content::Unreadable(errno as u32), false)
            }
            ReadResult::Read => (outcome.stat, self.content(read, &outcome, &mut content, storage)?, false),
            ReadResult::Changed => {
                let message = "Kept changing while it was read; its content in the snapshot may mix several states";
                self.findings.problem(path, message);
                (outcome.stat, self.content(read, &outcome, &mut content, storage)?, true)
            }
        };
        self.findings.remove(&read.stat);
        self.findings.add(&stat);
        let exchanged = (stat.ino, stat.btime) != (read.stat.ino, read.stat.btime);
        if exchanged {
            // The other names of the inode that the scan saw must not take this content.
            self.lose(read);
        }
        let failed = matches!(content, Content::Unreadable(_));
        let row = LinkGroup { attributes: stat.attributes(outcome.xattrs), content, has_changed_while_read: changed };
        let (group, digest) = number(row, read.known.filter(|_| !exchanged), storage)?;
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
        delivered: &mut ContentBuilder,
        storage: &mut Storage,
    ) -> Result<Content, SnapshotError> {
        let as_scanned =
            outcome.stat.ino == read.stat.ino && content_fingerprint(&outcome.stat) == content_fingerprint(&read.stat);
        if read.want == Want::Attributes && as_scanned {
            if let Some(known) = read.known.filter(|_| read.same_content) {
                self.findings.work.attribute_inodes += 1;
                return Ok(storage.catalog.reader().group(known.group)?.content.clone());
            }
            return Ok(Content::Empty);
        }
        if outcome.stat.kind == Kind::File {
            self.findings.work.read_files += 1;
        }
        Ok(delivered.finish(&mut storage.catalog)?)
    }

    /// Returns the findings so far, to add to them.
    pub(super) fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }

    /// Returns what the next run may know of the inodes if this one ends here.
    pub(super) fn known_so_far(&self) -> InodeCache {
        self.inodes.so_far(self.findings.acls.answer())
    }

    /// Ends the run. Returns the findings, what the next run may know of the inodes, and whether that differs from before.
    pub(super) fn finish(self) -> (Findings, InodeCache, bool) {
        let (known, changed) = self.inodes.finish(self.findings.acls.answer());
        (self.findings, known, changed)
    }
}

/// Returns the number and the digest of a row; those of the known group if that is the same.
fn number(row: LinkGroup, known: Option<CachedInode>, storage: &mut Storage) -> Result<(GroupId, u64), SnapshotError> {
    if let Some(known) = known
        && *storage.catalog.reader().group(known.group)? == row
    {
        return Ok((known.group, known.row_digest));
    }
    let digest = row.digest();
    Ok((storage.catalog.add_group(row)?, digest))
}
