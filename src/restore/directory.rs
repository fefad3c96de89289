//! Directories of the target: opening, making, removing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, chmod, fchmod, fgetxattr, fstat, mkdirat, openat,
    openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::{DEFAULT_ACL, Present, apply_open};
use super::environment::Environment;
use crate::catalog::directory::DirectoryAttributes;

/// Flags of a directory that is worked in.
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory of the target that is being filled. Everything under way in or below it holds it; when the last lets go, the directory gets its
/// attributes.
pub(super) struct Place<'e> {
    environment: &'e Environment<'e>,
    /// `None` in a dry run, where the directory is not there.
    fd: Option<OwnedFd>,
    /// Path below the destination.
    path: Box<[u8]>,
    /// Attributes to give at the end, and whether they are all that is known of it.
    finish: Option<(DirectoryAttributes, Option<Stat>)>,
    /// Whether what is made here gets a default ACL.
    inherits: bool,
    /// Held so that a directory is done after all that are in it.
    _parent: Option<Arc<Place<'e>>>,
}

impl<'e> Place<'e> {
    /// Takes an open directory. `found` is what it had before, `None` for one that was just made.
    pub(super) fn new(
        environment: &'e Environment<'e>,
        parent: Option<Arc<Place<'e>>>,
        fd: Option<OwnedFd>,
        path: Box<[u8]>,
        finish: Option<(DirectoryAttributes, Option<Stat>)>,
    ) -> Place<'e> {
        environment.directory_opened();
        let inherits = match (&fd, &finish, &parent) {
            (Some(_), Some((_, None)), Some(parent)) => parent.inherits,
            (Some(fd), ..) => fgetxattr(fd, DEFAULT_ACL, &mut [0; 0][..]).is_ok(),
            (None, ..) => false,
        };
        Place { environment, fd, path, finish, inherits, _parent: parent }
    }

    /// Returns the directory, which every caller knows to be there.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Returns its path below the destination.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the path of a name in it.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Returns whether what is made in it gets a default ACL.
    pub(super) fn inherits(&self) -> bool {
        self.inherits
    }

    /// Returns what a name stands for, without following it; `None` when it is not there.
    pub(super) fn stat(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        let Some(fd) = self.fd() else { return Ok(None) };
        match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Returns all names, sorted.
    pub(super) fn names(&self) -> Result<Vec<Box<[u8]>>, Errno> {
        let Some(fd) = self.fd() else { return Ok(Vec::new()) };
        names_of(fd)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let (Some(fd), Some((attributes, found))) = (&self.fd, &self.finish)
            && !self.environment.options.dry_run
        {
            // What happened inside has changed the time of modification, so the one that was found says nothing.
            let touched = found.map(|mut stat| {
                stat.st_mtime = i64::MIN;
                stat
            });
            let present = match &touched {
                Some(stat) => Present::Found(stat),
                None => Present::New { inherits: self.inherits },
            };
            apply_open(self.environment, fd.as_fd(), &self.path, attributes.into(), present);
        }
        self.fd = None;
        self.environment.directory_closed();
    }
}

fn names_of(fd: BorrowedFd<'_>) -> Result<Vec<Box<[u8]>>, Errno> {
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

/// Makes a directory and opens it.
pub(super) fn make(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    mkdirat(parent, name, Mode::RWXU)?;
    openat(parent, name, OPEN, Mode::empty())
}

/// Opens an existing directory, never through a symbolic link. With `force`, one that its owner may not list or write gets the permissions.
pub(super) fn open(parent: BorrowedFd<'_>, name: &[u8], force: bool) -> Result<OwnedFd, Errno> {
    let fd = match openat(parent, name, OPEN, Mode::empty()) {
        Err(Errno::ACCESS) if force => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let passage = openat(parent, name, flags, Mode::empty())?;
            let mode = Mode::from_bits_retain(fstat(&passage)?.st_mode & 0o7777) | Mode::RWXU;
            chmod(format!("/proc/self/fd/{}", passage.as_raw_fd()), mode)?;
            openat(parent, name, OPEN, Mode::empty())?
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
