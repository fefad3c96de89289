//! Directories of the target: opening, making, removing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chmod, fchmod, fstat, mkdirat, openat,
    openat2, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::environment::Environment;
use super::inode::{Identity, LOOK, OPEN, identity_of, magic_path};
use crate::limits;

/// Returns the names in a directory, sorted.
pub(super) fn names_of(fd: BorrowedFd<'_>) -> Result<Vec<Box<[u8]>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(Box::from(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Does something in a new directory that nobody else may enter, beside the names of `parent`: no name in it can be exchanged.
///
/// `work` has to leave it empty.
pub(super) fn apart<T>(
    environment: &Environment<'_>,
    parent: BorrowedFd<'_>,
    work: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let name = environment.temporary_name();
    mkdirat(parent, name.as_slice(), Mode::RWXU)?;
    let opened = environment.handles.with_room(|| openat(parent, name.as_slice(), OPEN, Mode::empty()));
    let outcome = opened.and_then(|fd| {
        let stat = fstat(&fd)?;
        // Its own name may have been exchanged.
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(Errno::STALE);
        }
        work(fd.as_fd())
    });
    let _ = unlinkat(parent, name.as_slice(), AtFlags::REMOVEDIR);
    outcome
}

/// Makes a directory and opens it. Where others may exchange names (`exposed`), it gets its name when it is open.
pub(super) fn make(
    environment: &Environment<'_>,
    parent: BorrowedFd<'_>,
    name: &[u8],
    exposed: bool,
) -> Result<OwnedFd, Errno> {
    let make_in = |directory: BorrowedFd<'_>| {
        mkdirat(directory, name, Mode::RWXU)?;
        environment.handles.with_room(|| openat(directory, name, OPEN, Mode::empty()))
    };
    if !exposed {
        return make_in(parent);
    }
    apart(environment, parent, |directory| {
        let made = make_in(directory)?;
        let named = match renameat_with(directory, name, parent, name, RenameFlags::NOREPLACE) {
            // File systems without it; an empty directory is all that a plain one replaces.
            Err(Errno::INVAL | Errno::NOSYS) => renameat(directory, name, parent, name),
            answer => answer,
        };
        if let Err(errno) = named {
            let _ = unlinkat(directory, name, AtFlags::REMOVEDIR);
            return Err(errno);
        }
        Ok(made)
    })
}

/// Opens the existing directory that was found under a name, never through a symbolic link. With `force`, one that its owner may not list or write
/// gets the permissions.
///
/// # Errors
/// `STALE` when it is not the one that was found.
pub(super) fn open(
    environment: &Environment<'_>,
    parent: BorrowedFd<'_>,
    name: &[u8],
    found: &Stat,
    force: bool,
) -> Result<OwnedFd, Errno> {
    let open_with = |flags| {
        let fd = environment.handles.with_room(|| openat(parent, name, flags, Mode::empty()))?;
        if identity_of(&fstat(&fd)?) == identity_of(found) { Ok(fd) } else { Err(Errno::STALE) }
    };
    let fd = match open_with(OPEN) {
        Err(Errno::ACCESS) if force => {
            let passage = open_with(LOOK | OFlags::DIRECTORY)?;
            let mode = Mode::from_bits_retain(fstat(&passage)?.st_mode & 0o7777) | Mode::RWXU;
            chmod(magic_path(passage.as_fd()), mode)?;
            open_with(OPEN)?
        }
        answer => answer?,
    };
    if force {
        permit(&fd)?;
    }
    Ok(fd)
}

/// Lets the owner of a directory work in it until it gets its own mode.
pub(super) fn permit(fd: &OwnedFd) -> Result<(), Errno> {
    let mode = Mode::from_bits_retain(fstat(fd)?.st_mode & 0o7777);
    if !mode.contains(Mode::RWXU) {
        // Refused to others than its owner, who then fail with what they do in it.
        let _ = fchmod(fd, mode | Mode::RWXU);
    }
    Ok(())
}

/// Most directories that are held open while a tree is removed, if the process may open so many; those further up are found again from below.
const OPEN_LEVELS: usize = 64;
/// Fewest: the one that is emptied, and the one above it.
const FEWEST_LEVELS: usize = 2;

/// A directory that is being emptied.
struct Level {
    name: Box<[u8]>,
    /// `None` while it is far above the one that is worked in.
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
/// Whatever is removed or refused is noted. The directories on the way down are in a list and not on the stack, and few of them are open: trees may be of any depth.
pub(super) fn remove(environment: &Environment<'_>, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> bool {
    let mut path = path.to_vec();
    let mut levels = match stray(environment, parent, name, &path) {
        Stray::Done(gone) => return gone,
        Stray::Directory(level) => vec![level],
    };
    let mut most_open = None;
    while let Some(mut level) = levels.pop() {
        if environment.stopped() {
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
            let far = levels.len().checked_sub(FEWEST_LEVELS).and_then(|_| {
                // The other half is for all else. Asked only where a tree is deep: it takes a look at /proc.
                let most =
                    most_open.get_or_insert_with(|| (limits::open_files_left() / 2).clamp(FEWEST_LEVELS, OPEN_LEVELS));
                levels.len().checked_sub(*most)
            });
            if let Some(above) = far.and_then(|at| levels.get_mut(at)) {
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
