//! Directories of the target: opening, making, listing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, Stat, chmod, fchmod, fstat, mkdirat, openat, renameat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::environment::Environment;
use super::inode::{LOOK, OPEN, identity_of, magic_path};

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
pub(super) fn in_private_directory<T>(
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
    in_private_directory(environment, parent, |directory| {
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
        let_owner_write(&fd)?;
    }
    Ok(fd)
}

/// Lets the owner of a directory work in it until it gets its own mode.
pub(super) fn let_owner_write(fd: &OwnedFd) -> Result<(), Errno> {
    let mode = Mode::from_bits_retain(fstat(fd)?.st_mode & 0o7777);
    if !mode.contains(Mode::RWXU) {
        // Refused to others than its owner, who then fail with what they do in it.
        let _ = fchmod(fd, mode | Mode::RWXU);
    }
    Ok(())
}
