//! The top directory of a writable mount.
//!
//! An overlay shows the attributes of the directory that takes the changes as those of its own top. So this one is made like the snapshot's root, as
//! a mount shows it: owner, mode, time, extended attributes and access control lists. It gets its name when it has them all, and is left as it is ever after:
//! what is changed in the mount, its top included, is kept.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, fstat, futimens,
    open, statat,
};
use rustix::io::Errno;
use zmreplica_fuse::Log;

use crate::source::xattrs;

/// Names of the attributes that the overlay keeps for itself begin so: in the directory of changes they would be orders to it.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
/// Names of access control lists begin so.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Makes the directory `changes`, if there is none yet, with the attributes of the directory `shown`.
///
/// # Errors
/// Fails when it cannot be made, or given an owner, mode, time or access control list. Another attribute that it cannot have is logged.
pub(super) fn make(changes: &Path, shown: &Path, log: &Log) -> io::Result<()> {
    match statat(rustix::fs::CWD, changes, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
        Ok(_) => return Ok(()),
    }
    let unfinished = changes.with_extension("unfinished");
    match fs::remove_dir(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    rustix::fs::mkdir(&unfinished, Mode::RWXU)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(&unfinished, flags, Mode::empty())?;
    dress(&directory, &File::open(shown)?.into(), log)?;
    rustix::fs::fsync(&directory)?;
    fs::rename(&unfinished, changes)
}

fn dress(directory: &OwnedFd, model: &OwnedFd, log: &Log) -> io::Result<()> {
    // A directory of somebody else may have been put in its place.
    if fstat(directory)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::STALE.into());
    }
    let stat = fstat(model)?;
    fchown(directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for xattr in xattrs::of_fd(model.as_fd())? {
        if xattr.name.starts_with(OVERLAY_PREFIX) {
            continue;
        }
        match fsetxattr(directory, &*xattr.name, &xattr.value, XattrFlags::empty()) {
            Ok(()) => {}
            // Without its list, the mode lets in others than it should.
            Err(errno) if xattr.name.starts_with(ACL_PREFIX) => return Err(errno.into()),
            Err(errno) => log(&format!(
                "the top directory lacks its extended attribute {}: {}",
                String::from_utf8_lossy(&xattr.name),
                io::Error::from(errno)
            )),
        }
    }
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    Ok(futimens(directory, &Timestamps { last_access: time, last_modification: time })?)
}
