//! Removing what the snapshot does not have, with all below it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, ResolveFlags, fstat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::directory::names_of;
use super::environment::Environment;
use super::inode::{Identity, OPEN, identity_of};
use crate::limits;

/// Most directories that are held open while a tree is removed, if the process may open so many; those further up are found again from below.
const OPEN_LEVELS: usize = 64;
/// Fewest: the one that is emptied, and the one above it.
const FEWEST_LEVELS: usize = 2;

/// A directory that is being emptied.
struct Level {
    name: Box<[u8]>,
    /// `None` while it is many levels above the current one.
    fd: Option<OwnedFd>,
    identity: Identity,
    names: std::vec::IntoIter<Box<[u8]>>,
    /// Whether all in it is gone so far.
    is_empty: bool,
}

/// What was found under a name that is to go.
enum Stray {
    /// It is gone, or was refused.
    Done(bool),
    /// It is a directory, which is to be emptied first.
    Directory(Level),
}

/// Removes a name that the snapshot does not have, with all below it. Stays on this mount. Returns whether it is gone.
///
/// Whatever is removed or refused is noted. The directories on the way down are in a list and not on the stack, and few of them are open: trees may be of any
/// depth.
pub(super) fn remove_tree(environment: &Environment<'_>, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> bool {
    let mut path = path.to_vec();
    let mut levels = match stray(environment, parent, name, &path) {
        Stray::Done(gone) => return gone,
        Stray::Directory(level) => vec![level],
    };
    let mut most_open = None;
    while let Some(mut level) = levels.pop() {
        if environment.is_stopped() {
            return false;
        }
        let (Some(fd), Some(inner)) = (&level.fd, level.names.next()) else {
            let gone = leave(environment, parent, &mut levels, level, &path);
            path.truncate(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            match levels.last_mut() {
                Some(above) => above.is_empty &= gone,
                None => return gone,
            }
            continue;
        };
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(&inner);
        let found = stray(environment, fd.as_fd(), &inner, &path);
        if let Stray::Done(gone) = &found {
            level.is_empty &= gone;
            path.truncate(length);
        }
        levels.push(level);
        if let Stray::Directory(deeper) = found {
            let to_close = levels.len().checked_sub(FEWEST_LEVELS).and_then(|_| {
                // The other half is for all else. Asked only where a tree is deep: it takes a look at /proc.
                let most =
                    most_open.get_or_insert_with(|| (limits::open_files_left() / 2).clamp(FEWEST_LEVELS, OPEN_LEVELS));
                levels.len().checked_sub(*most)
            });
            if let Some(above) = to_close.and_then(|at| levels.get_mut(at)) {
                above.fd = None;
            }
            levels.push(deeper);
        }
    }
    false
}

/// Removes what is no directory, and opens what is one.
fn stray(environment: &Environment<'_>, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Stray {
    let refused = |action, errno| {
        environment.refused(path, action, errno);
        Stray::Done(false)
    };
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Stray::Done(true),
        Err(errno) => return refused("Cannot remove it", errno),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        if !environment.options.dry_run
            && let Err(errno) = unlinkat(parent, name, AtFlags::empty())
        {
            return refused("Cannot remove it", errno);
        }
        environment.deleted(path);
        return Stray::Done(true);
    }
    if environment.protected.contains(&identity_of(&stat)) {
        environment.problem(path, "Not removed: it is the store", false);
        return Stray::Done(false);
    }
    let handles = &environment.handles;
    let opened = handles.with_room(|| open_same_mount(parent, name, stat.st_dev)).and_then(|fd| Ok((fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok(opened) => opened,
        Err(Errno::XDEV) => {
            environment.problem(path, "Not removed: another file system is mounted on it", false);
            return Stray::Done(false);
        }
        Err(errno) => return refused("Cannot remove it", errno),
    };
    match handles.with_room(|| names_of(fd.as_fd())) {
        Ok(names) => Stray::Directory(Level {
            name: name.into(),
            fd: Some(fd),
            identity: identity_of(&stat),
            names: names.into_iter(),
            is_empty: true,
        }),
        Err(errno) => refused("Cannot list it", errno),
    }
}

/// Removes a directory that was emptied, from the one above it, the last of `levels` or `parent`. Returns whether it is gone.
fn leave(
    environment: &Environment<'_>,
    parent: BorrowedFd<'_>,
    levels: &mut [Level],
    level: Level,
    path: &[u8],
) -> bool {
    let refused = |errno| {
        environment.refused(path, "Cannot remove it", errno);
        false
    };
    let above = match levels.last_mut() {
        None => parent,
        Some(above) => {
            if above.fd.is_none() {
                match level.fd.as_ref().map(|fd| back(environment, fd, above.identity)) {
                    Some(Ok(fd)) => above.fd = Some(fd),
                    Some(Err(errno)) => return refused(errno),
                    None => return refused(Errno::STALE),
                }
            }
            match &above.fd {
                Some(fd) => fd.as_fd(),
                None => return false,
            }
        }
    };
    // Closed first: some file systems keep a directory that is open.
    drop(level.fd);
    if !level.is_empty {
        return false;
    }
    if !environment.options.dry_run
        && let Err(errno) = unlinkat(above, &*level.name, AtFlags::REMOVEDIR)
    {
        return refused(errno);
    }
    environment.deleted(path);
    true
}

/// Opens the directory above one, if that is still the same: it may have been moved meanwhile.
fn back(environment: &Environment<'_>, fd: &OwnedFd, identity: Identity) -> Result<OwnedFd, Errno> {
    let above = environment.handles.with_room(|| openat(fd, c"..", OPEN, Mode::empty()))?;
    let stat = fstat(&above)?;
    if identity_of(&stat) == identity { Ok(above) } else { Err(Errno::STALE) }
}

/// Opens a directory to empty it; `EXDEV` when something is mounted there, be it the same file system once more.
fn open_same_mount(parent: BorrowedFd<'_>, name: &[u8], device: u64) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(parent, name, OPEN, Mode::empty(), resolve) {
        // Kernels before 5.6, and container filters that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            if fstat(parent)?.st_dev != device {
                return Err(Errno::XDEV);
            }
            openat(parent, name, OPEN, Mode::empty())
        }
        answer => answer,
    }
}
