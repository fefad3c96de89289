//! Hard links: which inode of the target stands for which link group of several names, and how it gets a further name.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, linkat, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::environment::Environment;
use super::inode::{Identity, LOOK, identity_of, magic_path};
use super::target_dir::TargetDir;
use crate::ids::GroupId;
use crate::source::beneath::open_beneath;

/// A further name of a link group whose first is being written.
pub(super) struct WaitingName<'e> {
    pub(super) dir: Arc<TargetDir<'e>>,
    pub(super) name: Box<[u8]>,
    pub(super) replace: bool,
}

/// A name that a link group has in the target.
#[derive(Clone, Debug)]
pub(super) struct PlacedName {
    /// Path of its directory below the destination.
    pub(super) directory: Arc<[u8]>,
    pub(super) name: Box<[u8]>,
    pub(super) identity: Identity,
}

pub(super) enum GroupState<'e> {
    /// A thread writes it; these names wait.
    Writing(Vec<WaitingName<'e>>),
    /// It is there.
    Placed(PlacedName),
    /// It could not be written.
    Failed,
}

/// The link groups of several names, and the inodes found in the target that stand for one.
#[derive(Default)]
pub(super) struct LinkGroups<'e> {
    groups: Mutex<HashMap<GroupId, GroupState<'e>>>,
}

impl<'e> LinkGroups<'e> {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<GroupId, GroupState<'e>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes links, keeping the last directory that one led to.
#[derive(Default)]
pub(super) struct Linker {
    last: Option<(Arc<[u8]>, OwnedFd)>,
}

impl Linker {
    /// Gives the inode of `placed` the name in `directory`; with `replace` it takes the place of what has the name.
    pub(super) fn link(
        &mut self,
        environment: &Environment<'_>,
        root: BorrowedFd<'_>,
        placed: &PlacedName,
        directory: BorrowedFd<'_>,
        name: &[u8],
        replace: bool,
    ) -> Result<(), Errno> {
        let handles = &environment.handles;
        let from = match &mut self.last {
            Some((path, fd)) if **path == *placed.directory => fd,
            last => {
                // The last one is closed first.
                *last = None;
                let fd = handles.with_room(|| {
                    open_beneath(root, &placed.directory, OFlags::PATH | OFlags::DIRECTORY)
                        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                })?;
                &mut last.insert((Arc::clone(&placed.directory), fd)).1
            }
        };
        let make = |name: &[u8]| {
            if !environment.watches_links.load(Ordering::Relaxed) {
                return linkat(&*from, &*placed.name, directory, name, AtFlags::empty());
            }
            let inode = handles.with_room(|| openat(&*from, &*placed.name, LOOK, Mode::empty()))?;
            if identity_of(&fstat(&inode)?) != placed.identity {
                return Err(Errno::STALE);
            }
            linkat(CWD, magic_path(inode.as_fd()), directory, name, AtFlags::SYMLINK_FOLLOW)
        };
        if !replace {
            return make(name);
        }
        let temporary = environment.temporary_name();
        make(&temporary)?;
        let renamed = renameat(directory, temporary.as_slice(), directory, name);
        // Also when it worked: between two names of one inode a rename does nothing, and a file system whose inode numbers do not last, such as sshfs,
        // hides that they are of one.
        let _ = unlinkat(directory, temporary.as_slice(), AtFlags::empty());
        renamed
    }
}

/// Returns whether a copy is the way out: the file system has no more links for the inode, or none at all.
pub(super) fn needs_copy(errno: Errno) -> bool {
    matches!(errno, Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::NOTSUP)
}

/// Says why a name became an inode of its own.
pub(super) fn copy_message(errno: Errno) -> String {
    format!("Restored as a copy: the file system refuses one more link ({})", std::io::Error::from(errno))
}
