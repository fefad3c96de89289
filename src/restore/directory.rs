//! Directories of the target: opening, making, removing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chmod, fchmod, fstat, mkdirat, openat,
    openat2, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::attributes::magic_path;
use super::environment::Environment;
use super::links::Identity;

/// Flags of a directory that is worked in.
pub(super) const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags of an inode that is only looked at, or changed in its attributes.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns what tells an inode from all others.
pub(super) fn identity_of(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

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

/// Removes a name that the snapshot does not have, with all below it. Stays on this mount. Returns whether it is gone.
///
/// Whatever is removed or refused is noted.
pub(super) fn remove(environment: &Environment<'_>, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> bool {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return true,
        Err(errno) => {
            environment.refused(path, "Cannot remove it", errno);
            return false;
        }
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        if !environment.options.dry_run
            && let Err(errno) = unlinkat(parent, name, AtFlags::empty())
        {
            environment.refused(path, "Cannot remove it", errno);
            return false;
        }
        environment.deleted(path);
        return true;
    }
    if environment.protected.contains(&(stat.st_dev, stat.st_ino)) {
        environment.problem(path, "Not removed: it is the store", false);
        return false;
    }
    let fd = match open_same_mount(parent, name, stat.st_dev) {
        Ok(fd) => fd,
        Err(Errno::XDEV) => {
            environment.problem(path, "Not removed: another file system is mounted on it", false);
            return false;
        }
        Err(errno) => {
            environment.refused(path, "Cannot remove it", errno);
            return false;
        }
    };
    let mut empty = true;
    match names_of(fd.as_fd()) {
        Ok(names) => {
            for inner in names {
                if environment.stopped() {
                    return false;
                }
                let mut inner_path = path.to_vec();
                inner_path.push(b'/');
                inner_path.extend_from_slice(&inner);
                empty &= remove(environment, fd.as_fd(), &inner, &inner_path);
            }
        }
        Err(errno) => {
            environment.refused(path, "Cannot list it", errno);
            return false;
        }
    }
    // Closed first: a tree deeper than the limit of open files is emptied from below.
    drop(fd);
    if !empty {
        return false;
    }
    if !environment.options.dry_run
        && let Err(errno) = unlinkat(parent, name, AtFlags::REMOVEDIR)
    {
        environment.refused(path, "Cannot remove it", errno);
        return false;
    }
    environment.deleted(path);
    true
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
