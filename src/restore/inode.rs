//! Inodes of the target: what identifies one, and how one is opened and named.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, Stat};

/// Device and inode number.
pub(super) type Identity = (u64, u64);

/// Flags of a directory that is worked in.
pub(super) const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags of an inode that is only looked at, or changed in its attributes.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns what identifies an inode.
pub(super) fn identity_of(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// Returns a path that leads to exactly the inode of a descriptor, also to a symbolic link and not to its target.
pub(super) fn magic_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
