//! One name of a link group: whether the target's inode is kept, linked to, or made anew.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::{AtFlags, FileType, Mode, Stat, fstat, mknodat, openat, readlinkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::Overwrite;
use super::attributes::{ACL_PREFIX, Present, SET_ID_BITS, apply_path, mtime_of};
use super::directory;
use super::environment::Environment;
use super::file_writer::{FileJob, other_name_failed};
use super::hard_links::{GroupState, LinkGroups, Linker, PlacedName, WaitingName, copy_message, needs_copy};
use super::inode::{Identity, LOOK, identity_of};
use super::remove_tree::remove_tree;
use super::target_dir::TargetDir;
use crate::catalog::group::{Content, LinkGroup};
use crate::ids::GroupId;
use crate::model::{Attributes, Kind, Xattr};
use crate::source::xattrs;
use crate::view::{Node, ViewError};

/// Most small files in a batch ...
const BATCH_FILES: usize = 32;
/// ... and most of their bytes. A file larger than this goes alone.
const BATCH_BYTES: u64 = 1 << 20;
/// The walk waits for the threads when so many directories are worked in, beside those on the way down.
const BUSY_DIRECTORIES: usize = 400;
/// It also waits when so many names wait for the first name of their link group.
const WAITING_LINKS: usize = 4096;
/// Extended attribute of a file that lets who runs it do more than they may.
const CAPABILITIES: &[u8] = b"security.capability";
/// Names of extended attributes that only root may set begin so.
const PRIVILEGED: [&[u8]; 2] = [b"security.", b"trusted."];

/// Restores the names of link groups. What is a regular file goes to the threads, in batches.
pub(super) struct GroupRestorer<'w, 'e> {
    environment: &'e Environment<'e>,
    links: &'w LinkGroups<'e>,
    linker: Linker,
    root: Arc<TargetDir<'e>>,
    sender: Sender<Vec<FileJob<'e>>>,
    batch: Vec<FileJob<'e>>,
    batch_bytes: u64,
    /// Inodes of several names that were in the target and stand for a link group now.
    claimed: HashMap<Identity, GroupId>,
}

impl<'w, 'e> GroupRestorer<'w, 'e> {
    /// Starts in the directory `root`, which all names are below.
    pub(super) fn new(
        environment: &'e Environment<'e>,
        links: &'w LinkGroups<'e>,
        root: &Arc<TargetDir<'e>>,
        sender: Sender<Vec<FileJob<'e>>>,
    ) -> GroupRestorer<'w, 'e> {
        let root = Arc::clone(root);
        let (linker, batch, batch_bytes, claimed) = (Linker::default(), Vec::new(), 0, HashMap::new());
        GroupRestorer { environment, links, linker, root, sender, batch, batch_bytes, claimed }
    }

    /// Restores one name of a link group.
    pub(super) fn restore(&mut self, dir: &Arc<TargetDir<'e>>, name: &[u8], group: GroupId, found: Option<Stat>) {
        let environment = self.environment;
        let options = environment.options;
        let path = dir.path_of(name);
        let row = match environment.view.group(group) {
            Ok(row) => row,
            Err(error) => return environment.view_problem(&path, &error),
        };
        if self.leaves_out(&row.attributes) {
            return;
        }
        let mut found = found;
        if let Some(stat) = &found {
            if options.overwrite == Overwrite::Never {
                return environment.count(|report| report.unchanged += 1);
            }
            if Kind::from_raw_mode(stat.st_mode) == Some(Kind::Directory) {
                if !options.delete {
                    let message =
                        "Not restored: there is a directory in its place, which is removed only on request (delete)";
                    return environment.problem(&path, message, false);
                }
                let parent = match dir.fd() {
                    Ok(Some(parent)) => parent,
                    Ok(None) => return,
                    Err(errno) => return environment.refused(&path, "Cannot replace the directory", errno),
                };
                if !remove_tree(environment, parent.as_fd(), name, &path) {
                    return environment.problem(
                        &path,
                        "Not restored: a directory in its place could not be removed",
                        false,
                    );
                }
                found = None;
            }
        }
        // When the count cannot be had, the group is treated as one of several names, which is always right.
        let has_other_names = environment.view.link_count(&Node::Group(group)).map_or(true, |count| count > 1);
        if has_other_names && self.further_name(dir, name, group, &row, &found) {
            return;
        }
        if let Some(stat) = &found
            && options.overwrite == Overwrite::Changed
        {
            match self.keep(dir, name, group, &row, stat) {
                Ok(false) => {}
                Ok(true) => {
                    if has_other_names {
                        self.note_placed(group, dir, name, identity_of(stat));
                    }
                    return environment.count(|report| report.unchanged += 1);
                }
                Err(errno) => return environment.refused(&path, "Cannot look at it", errno),
            }
        }
        self.create(dir, name, group, &row, has_other_names, found.is_some());
    }

    /// Counts what belongs in no tree of mail, and returns whether it is left out.
    fn leaves_out(&self, attributes: &Attributes) -> bool {
        let environment = self.environment;
        let is_device = matches!(attributes.kind, Kind::CharDevice | Kind::BlockDevice);
        let has_capabilities = || attributes.xattrs.iter().any(|xattr| &*xattr.name == CAPABILITIES);
        let is_set_id = attributes.kind == Kind::File && (attributes.mode & SET_ID_BITS != 0 || has_capabilities());
        let is_left_out = environment.options.no_specials && (is_device || is_set_id);
        if is_device || is_set_id {
            environment.count(|report| {
                report.device_nodes += u64::from(is_device);
                report.set_id_files += u64::from(is_set_id);
                report.left_out += u64::from(is_left_out);
            });
        }
        is_left_out
    }

    /// Deals with a name whose link group was seen before. Returns whether it was.
    fn further_name(
        &mut self,
        dir: &Arc<TargetDir<'e>>,
        name: &[u8],
        group: GroupId,
        row: &Arc<LinkGroup>,
        found: &Option<Stat>,
    ) -> bool {
        let environment = self.environment;
        let mut groups = self.links.lock();
        let placed = match groups.get_mut(&group) {
            None => return false,
            Some(GroupState::Failed) => {
                drop(groups);
                other_name_failed(environment, dir, name);
                return true;
            }
            Some(GroupState::Writing(waiting)) => {
                environment.link_waits();
                waiting.push(WaitingName { dir: Arc::clone(dir), name: name.into(), replace: found.is_some() });
                drop(groups);
                self.throttle(0);
                return true;
            }
            Some(GroupState::Placed(placed)) => placed.clone(),
        };
        drop(groups);
        let same = |stat: &Stat| identity_of(stat) == placed.identity && !environment.options.dry_run;
        if found.as_ref().is_some_and(same) {
            environment.count(|report| report.unchanged += 1);
            return true;
        }
        let linked = match (self.root.fd(), dir.fd()) {
            (Ok(Some(root)), Ok(Some(directory))) if !environment.options.dry_run => {
                self.linker.link(environment, root.as_fd(), &placed, directory.as_fd(), name, found.is_some())
            }
            (Err(errno), _) | (_, Err(errno)) => Err(errno),
            _ => Ok(()),
        };
        match linked {
            Ok(()) => environment.count(|report| report.links += 1),
            Err(errno) if needs_copy(errno) => {
                environment.problem(&dir.path_of(name), copy_message(errno), false);
                self.create(dir, name, group, row, true, found.is_some());
            }
            Err(errno) => environment.refused(&dir.path_of(name), "Cannot link it", errno),
        }
        true
    }

    /// Takes an inode of the target for a link group, unless it stands for another one already.
    fn claim(&mut self, stat: &Stat, group: GroupId) -> bool {
        // An inode of one name cannot be met again.
        stat.st_nlink <= 1 || *self.claimed.entry(identity_of(stat)).or_insert(group) == group
    }

    fn note_placed(&self, group: GroupId, dir: &TargetDir<'e>, name: &[u8], identity: Identity) {
        let placed = PlacedName { directory: dir.path().into(), name: name.into(), identity };
        self.links.lock().insert(group, GroupState::Placed(placed));
    }

    /// Keeps what the target has, and brings its attributes in line, if it is by all that can be seen without reading it what the snapshot has.
    /// Returns whether it is kept.
    fn keep(
        &mut self,
        dir: &TargetDir<'e>,
        name: &[u8],
        group: GroupId,
        row: &LinkGroup,
        found: &Stat,
    ) -> Result<bool, Errno> {
        let environment = self.environment;
        let Some(directory) = dir.fd()? else { return Ok(false) };
        let inode = environment.handles.with_room(|| openat(&*directory, name, LOOK, Mode::empty()));
        // From here on it cannot be exchanged.
        let inode = inode.map_err(|errno| if errno == Errno::NOENT { Errno::STALE } else { errno })?;
        let stat = fstat(&inode)?;
        if identity_of(&stat) != identity_of(found) {
            return Err(Errno::STALE);
        }
        let wanted = &row.attributes;
        if dir.is_reached_by_exposed() && wanted.kind == Kind::File && self.is_foreign(inode.as_fd(), wanted, &stat) {
            return Ok(false);
        }
        if !self.matches(inode.as_fd(), group, row, &stat) {
            return Ok(false);
        }
        if !self.claim(&stat, group) {
            return Ok(false);
        }
        if !environment.options.dry_run {
            apply_path(environment, inode.as_fd(), &dir.path_of(name), wanted.into(), Present::Found(&stat));
        }
        Ok(true)
    }

    /// Returns whether a file may be another one than the snapshot's, put under its name by somebody who would gain from what the restore does to it:
    /// it has another owner, it is root's and its permissions would change, or it would get what its owner cannot give it. Size and time do not
    /// prove that it is the same.
    fn is_foreign(&self, inode: BorrowedFd<'_>, wanted: &Attributes, stat: &Stat) -> bool {
        let owner = self.environment.owner(wanted.uid, wanted.gid);
        if stat.st_uid != owner.0 {
            return true;
        }
        let Ok(xattrs) = xattrs::of_path_fd(inode) else { return true };
        if owner.0 != 0 {
            // With a set-group-ID bit it runs as a group, with capabilities as more than its owner.
            let changes = stat.st_gid != owner.1 || stat.st_mode & 0o7777 != wanted.mode;
            let is_given = |xattr: &Xattr| PRIVILEGED.iter().any(|prefix| xattr.name.starts_with(prefix));
            return wanted.mode & SET_ID_BITS != 0 && changes
                || wanted.xattrs.iter().any(|xattr| is_given(xattr) && !xattrs.contains(xattr));
        }
        let is_stray_acl = |xattr: &Xattr| xattr.name.starts_with(ACL_PREFIX) && !wanted.xattrs.contains(xattr);
        stat.st_gid != owner.1
            || stat.st_mode & 0o7777 != wanted.mode
            || wanted.xattrs.iter().any(|xattr| !xattrs.contains(xattr))
            || xattrs.iter().any(is_stray_acl)
    }

    /// Returns whether an inode of the target is, by all that can be seen without reading it, what the snapshot has.
    fn matches(&self, inode: BorrowedFd<'_>, group: GroupId, row: &LinkGroup, stat: &Stat) -> bool {
        let wanted = &row.attributes;
        if Kind::from_raw_mode(stat.st_mode) != Some(wanted.kind) {
            return false;
        }
        match wanted.kind {
            Kind::File => stat.st_size as u64 == wanted.size && mtime_of(stat) == wanted.mtime,
            Kind::Symlink => match (readlinkat(inode, c"", Vec::new()), self.environment.view.readlink(group)) {
                (Ok(target), Ok(wanted)) => target.as_bytes() == wanted,
                _ => false,
            },
            Kind::CharDevice | Kind::BlockDevice => stat.st_rdev == wanted.rdev,
            Kind::Fifo | Kind::Socket => true,
            Kind::Directory => false,
        }
    }

    /// Makes the inode of a link group under its first name.
    fn create(
        &mut self,
        dir: &Arc<TargetDir<'e>>,
        name: &[u8],
        group: GroupId,
        row: &Arc<LinkGroup>,
        has_other_names: bool,
        replace: bool,
    ) {
        let environment = self.environment;
        if let Content::Unreadable(errno) = row.content {
            let error = ViewError::Unreadable { group, errno };
            return environment.view_problem(&dir.path_of(name), &error);
        }
        if environment.options.dry_run {
            if has_other_names {
                self.note_placed(group, dir, name, (0, 0));
            }
            return environment.count(|report| match row.attributes.kind {
                Kind::File => report.files += 1,
                _ => report.others += 1,
            });
        }
        if row.attributes.kind == Kind::File {
            if has_other_names {
                self.links.lock().insert(group, GroupState::Writing(Vec::new()));
            }
            let size = row.attributes.size;
            let (dir, row) = (Arc::clone(dir), Arc::clone(row));
            let job = FileJob { dir, name: name.into(), group, row, has_other_names };
            if size > BATCH_BYTES {
                return self.send(vec![job]);
            }
            self.batch.push(job);
            self.batch_bytes += size;
            if self.batch.len() >= BATCH_FILES || self.batch_bytes >= BATCH_BYTES {
                self.flush();
            }
            return;
        }
        match self.special(dir, name, group, row, replace) {
            Ok(identity) => {
                environment.count(|report| report.others += 1);
                if has_other_names {
                    self.note_placed(group, dir, name, identity);
                }
            }
            Err(SpecialError::View(error)) => environment.view_problem(&dir.path_of(name), &error),
            Err(SpecialError::System(errno)) => environment.refused(&dir.path_of(name), "Cannot make it", errno),
        }
    }

    /// Makes a symbolic link, a fifo, a socket or a device.
    fn special(
        &self,
        dir: &TargetDir<'e>,
        name: &[u8],
        group: GroupId,
        row: &LinkGroup,
        replace: bool,
    ) -> Result<Identity, SpecialError> {
        let environment = self.environment;
        let Some(directory) = dir.fd()? else { return Ok((0, 0)) };
        let directory = directory.as_fd();
        let attributes = &row.attributes;
        let target = match attributes.kind {
            Kind::Symlink => environment.view.readlink(group).map_err(SpecialError::View)?,
            _ => Vec::new(),
        };
        // Makes it in `from`, and gives it its name when it is as it should be.
        let make_in = |from: BorrowedFd<'_>, first: &[u8]| {
            let node = |kind, device| mknodat(from, first, kind, Mode::RUSR | Mode::WUSR, device);
            match attributes.kind {
                Kind::Symlink => symlinkat(target.as_slice(), from, first)?,
                Kind::Fifo => node(FileType::Fifo, 0)?,
                Kind::Socket => node(FileType::Socket, 0)?,
                Kind::CharDevice => node(FileType::CharacterDevice, attributes.rdev)?,
                Kind::BlockDevice => node(FileType::BlockDevice, attributes.rdev)?,
                Kind::File | Kind::Directory => return Err(Errno::INVAL),
            }
            let made = environment.handles.with_room(|| openat(from, first, LOOK, Mode::empty()));
            let named = made.and_then(|inode| {
                let present = Present::New { inherits: dir.inherits_acl() };
                apply_path(environment, inode.as_fd(), &dir.path_of(name), attributes.into(), present);
                let is_named = !dir.is_exposed() && first == name;
                if !is_named {
                    renameat(from, first, directory, name)?;
                }
                Ok(identity_of(&fstat(&inode)?))
            });
            if named.is_err() {
                let _ = unlinkat(from, first, AtFlags::empty());
            }
            named
        };
        let identity = if dir.is_exposed() {
            directory::in_private_directory(environment, directory, |apart| make_in(apart, name))?
        } else if replace {
            make_in(directory, &environment.temporary_name())?
        } else {
            make_in(directory, name)?
        };
        Ok(identity)
    }

    /// Hands the batch to the threads.
    pub(super) fn flush(&mut self) {
        self.batch_bytes = 0;
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.send(batch);
        }
    }

    fn send(&mut self, batch: Vec<FileJob<'e>>) {
        self.environment.batch_begins();
        // The threads outlive the sender; should all have died, the scope passes their panic on.
        if self.sender.send(batch).is_err() {
            self.environment.batch_ends();
        }
    }

    /// Waits while too much is under way; `depth` directories are open for the walk itself.
    pub(super) fn throttle(&mut self, depth: usize) {
        let directories = BUSY_DIRECTORIES + depth;
        if self.environment.is_overloaded(directories, WAITING_LINKS) {
            self.flush();
            self.environment.wait(directories, WAITING_LINKS);
        }
    }
}

enum SpecialError {
    View(ViewError),
    System(Errno),
}

impl From<Errno> for SpecialError {
    fn from(errno: Errno) -> SpecialError {
        SpecialError::System(errno)
    }
}
