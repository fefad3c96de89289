//! What the system knows of an inode.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags, makedev, statx};

use crate::model::{Kind, Stat, Timestamp};

/// Calls `statx` for `name` in `directory`, without following a symbolic link; for `directory` itself if it is empty.
pub(crate) fn stat_of(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_SYNC_AS_STAT;
    let flags = if name.is_empty() { flags | AtFlags::EMPTY_PATH } else { flags };
    let found = statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |time: rustix::fs::StatxTimestamp| Timestamp { seconds: time.tv_sec, nanos: time.tv_nsec };
    // What no kind fits is read as a file.
    let kind = Kind::from_raw_mode(found.stx_mode.into()).unwrap_or(Kind::File);
    let device_node = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    Ok(Stat {
        kind,
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        nlink: found.stx_nlink,
        size: found.stx_size,
        allocated_bytes: found.stx_blocks * 512,
        rdev: if device_node { makedev(found.stx_rdev_major, found.stx_rdev_minor) } else { 0 },
        ino: found.stx_ino,
        dev: makedev(found.stx_dev_major, found.stx_dev_minor),
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
        btime: (found.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(found.stx_btime)),
    })
}
