//! Setting owner, mode, extended attributes and times of one inode, in the order that keeps each.
//!
//! A change of owner clears set-user-ID bits and capabilities, so the owner comes first; an ACL's mask replaces group bits, so ACLs
//! that do not belong go before the mode and those that do come after it; times come last.
//!
//! What one inode cannot have is a problem of that inode, also when the system says that there is no room: an attribute may be too large for the file system,
//! or an owner have used up a quota, while there is plenty of room for all else.

use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod, chownat, fchmod, fchown,
    fremovexattr, fsetxattr, fstat, futimens, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::environment::Environment;
use super::inode::magic_path;
use crate::catalog::directory::DirectoryAttributes;
use crate::model::{Attributes, Kind, Timestamp, Xattr};
use crate::source::xattrs;

/// Name of the ACL that a directory hands on to what is made in it.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Seconds since 1970 that every file system keeps.
const USUAL_TIMES: std::ops::Range<i64> = 0..1 << 31;
/// Names of access control lists begin so.
pub(super) const ACL_PREFIX: &[u8] = b"system.posix_acl_";
/// Set-user-ID and set-group-ID.
pub(super) const SET_ID_BITS: u32 = 0o6000;

/// What an inode shall have.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: &'a [Xattr],
}

impl<'a> From<&'a Attributes> for Wanted<'a> {
    fn from(attributes: &'a Attributes) -> Wanted<'a> {
        let Attributes { kind, mode, uid, gid, mtime, xattrs, .. } = attributes;
        Wanted { kind: *kind, mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs }
    }
}

impl<'a> From<&'a DirectoryAttributes> for Wanted<'a> {
    fn from(attributes: &'a DirectoryAttributes) -> Wanted<'a> {
        let DirectoryAttributes { mode, uid, gid, mtime, xattrs, .. } = attributes;
        Wanted { kind: Kind::Directory, mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs }
    }
}

/// What is known of an inode's present attributes.
#[derive(Clone, Copy)]
pub(super) enum Present<'a> {
    /// Just made by us: no extended attributes but those that its directory hands on, which it may or may not.
    New {
        /// Whether the directory has a default ACL.
        inherits: bool,
    },
    /// Found in the target.
    Found(&'a Stat),
}

/// An inode that is changed, by its descriptor and never by a name, which may lead to another inode meanwhile.
#[derive(Clone, Copy)]
enum Inode<'a> {
    /// Open for reading or writing.
    Open(BorrowedFd<'a>),
    /// Opened with `O_PATH`, as symbolic links and devices have to be.
    Path(BorrowedFd<'a>),
}

impl Inode<'_> {
    fn chown(self, uid: Uid, gid: Gid) -> Result<(), Errno> {
        match self {
            Inode::Open(fd) => fchown(fd, Some(uid), Some(gid)),
            Inode::Path(fd) => chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_bits_retain(mode);
        match self {
            Inode::Open(fd) => fchmod(fd, mode),
            Inode::Path(fd) => chmod(magic_path(fd), mode),
        }
    }

    fn xattrs(self) -> std::io::Result<Vec<Xattr>> {
        match self {
            Inode::Open(fd) => xattrs::of_fd(fd),
            Inode::Path(fd) => xattrs::of_path_fd(fd),
        }
    }

    fn set_xattr(self, xattr: &Xattr) -> Result<(), Errno> {
        match self {
            Inode::Open(fd) => fsetxattr(fd, &*xattr.name, &xattr.value, XattrFlags::empty()),
            Inode::Path(fd) => setxattr(magic_path(fd), &*xattr.name, &xattr.value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Inode::Open(fd) => fremovexattr(fd, name),
            Inode::Path(fd) => removexattr(magic_path(fd), name),
        }
    }

    fn mtime(self) -> Result<Timestamp, Errno> {
        let (Inode::Open(fd) | Inode::Path(fd)) = self;
        Ok(mtime_of(&fstat(fd)?))
    }

    fn set_mtime(self, mtime: Timestamp) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
        };
        match self {
            Inode::Open(fd) => futimens(fd, &times),
            Inode::Path(fd) => utimensat(CWD, magic_path(fd), &times, AtFlags::empty()),
        }
    }
}

/// Brings an open file or directory in line. What the system refuses is reported for `path`.
pub(super) fn apply_open(
    environment: &Environment<'_>,
    fd: BorrowedFd<'_>,
    path: &[u8],
    wanted: Wanted<'_>,
    present: Present<'_>,
) {
    apply(environment, Inode::Open(fd), path, wanted, present);
}

/// Brings an inode in line that was opened with `O_PATH`. What the system refuses is reported for `path`.
pub(super) fn apply_path(
    environment: &Environment<'_>,
    fd: BorrowedFd<'_>,
    path: &[u8],
    wanted: Wanted<'_>,
    present: Present<'_>,
) {
    apply(environment, Inode::Path(fd), path, wanted, present);
}

fn apply(environment: &Environment<'_>, inode: Inode<'_>, path: &[u8], wanted: Wanted<'_>, present: Present<'_>) {
    let found = match present {
        Present::Found(stat) => Some(stat),
        Present::New { .. } => None,
    };
    let (uid, gid) = environment.owner(wanted.uid, wanted.gid);
    let mut mode = wanted.mode;
    let same_owner = found.is_some_and(|stat| (stat.st_uid, stat.st_gid) == (uid, gid));
    if !same_owner && !set_owner(environment, inode, path, uid, gid) && wanted.kind != Kind::Directory {
        mode &= !SET_ID_BITS;
    }

    // A new inode has none, unless its directory hands some on.
    let listed = match present {
        Present::New { inherits: false } => Ok(Vec::new()),
        _ => inode.xattrs(),
    };
    let listed = listed.unwrap_or_else(|error| {
        environment.problem(path, format!("Cannot read the extended attributes: {error}"), false);
        Vec::new()
    });
    for stray in &listed {
        if is_removable(environment, &stray.name) && !wanted.xattrs.iter().any(|xattr| xattr.name == stray.name) {
            match inode.remove_xattr(&stray.name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => environment.cannot_have(path, "Cannot remove an extended attribute", errno),
            }
        }
    }
    // Removing and inheriting ACLs and changing owners all touch the mode, so only an inode that saw none of it may be trusted.
    let same_mode = same_owner && listed.is_empty() && found.is_some_and(|stat| stat.st_mode & 0o7777 == mode);
    if wanted.kind != Kind::Symlink
        && !same_mode
        && let Err(errno) = inode.chmod(mode)
    {
        environment.cannot_have(path, "Cannot set the mode", errno);
    }
    let mut unfit: Option<(String, Errno)> = None;
    let mut unfit_count = 0;
    for xattr in wanted.xattrs {
        if same_owner && listed.contains(xattr) {
            continue;
        }
        match inode.set_xattr(xattr) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS) if !environment.is_privileged && !is_owners_to_set(&xattr.name) => {
                environment.owner_lost();
            }
            Err(errno) => {
                let name = String::from_utf8_lossy(&xattr.name);
                unfit.get_or_insert_with(|| (format!("{name} ({} bytes)", xattr.value.len()), errno));
                unfit_count += 1;
            }
        }
    }
    // One problem, however many attributes there are.
    if let Some((name, errno)) = unfit {
        let rest = if unfit_count > 1 { format!(" and {} more", unfit_count - 1) } else { String::new() };
        environment.cannot_have(path, &format!("Cannot set the extended attribute {name}{rest}"), errno);
    }
    let same_time = found.is_some_and(|stat| mtime_of(stat) == wanted.mtime);
    // Changing anything above leaves the time of modification alone.
    if !same_time {
        match inode.set_mtime(wanted.mtime) {
            // The system says nothing where a file system has no such time, and takes the nearest.
            Ok(()) if USUAL_TIMES.contains(&wanted.mtime.seconds) => {}
            Ok(()) => match inode.mtime() {
                Ok(mtime) if mtime.seconds != wanted.mtime.seconds => {
                    environment.problem(path, "The file system cannot store its modification time", false);
                }
                _ => {}
            },
            Err(errno) => environment.cannot_have(path, "Cannot set the modification time", errno),
        }
    }
}

/// Sets owner and group, without privileges as far as that goes. Returns whether both are right.
fn set_owner(environment: &Environment<'_>, inode: Inode<'_>, path: &[u8], uid: u32, gid: u32) -> bool {
    // The two highest numbers mean "leave it" to the system and cannot be owners.
    if uid == u32::MAX || gid == u32::MAX {
        environment.problem(path, "The system does not accept its owner's number", false);
        return false;
    }
    match inode.chown(Uid::from_raw(uid), Gid::from_raw(gid)) {
        Ok(()) => true,
        Err(Errno::PERM) if !environment.is_privileged => {
            environment.owner_lost();
            false
        }
        Err(errno) => {
            environment.cannot_have(path, "Cannot set the owner", errno);
            false
        }
    }
}

/// Returns whether any owner of a file may set attributes of this name.
fn is_owners_to_set(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.")
}

/// Returns whether an attribute that the snapshot does not have is to be removed: not the labels that the system itself gives.
fn is_removable(environment: &Environment<'_>, name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(ACL_PREFIX)
        || environment.is_privileged && (name.starts_with(b"trusted.") || name == b"security.capability")
}

/// Returns the time of modification that a `stat` call returned.
pub(super) fn mtime_of(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }
}
