//! Whether others than root may exchange the names of a directory in which root works.
//!
//! Guarding against that rests on owners: what root makes is root's, and closed to all others. Some file systems give every inode an owner or a mode of
//! their own choice (FAT and exFAT, SMB, sshfs, NFS that maps root to nobody). The guards cannot work there, and are not needed to keep root's files:
//! no inode of such a file system is root's alone. Each file system is tried once, when a directory of it looks exposed.
//!
//! Memory: some 20 bytes for each file system that was tried.

use std::os::fd::BorrowedFd;
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat, futimens, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::environment::Environment;

/// Bits of a mode that let others than the owner write; with an access control list, its mask is among them.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Modes that are tried: a file system with a mode of its own choice has at most one of them.
const TRIED_MODES: [u32; 2] = [0o600, 0o601];

/// Returns whether others than root may exchange the names of a directory in which root works, as far as root can guard against it.
pub(super) fn is_exposed(environment: &Environment<'_>, directory: BorrowedFd<'_>, stat: &Stat) -> bool {
    let looks_exposed = environment.is_privileged && (stat.st_uid != 0 || stat.st_mode & WRITABLE_BY_OTHERS != 0);
    // A dry run makes nothing, not even to try it.
    if !looks_exposed || environment.options.dry_run {
        return looks_exposed;
    }
    let mut tried = environment.keeps_owners.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(keeps) = tried.get(&stat.st_dev) {
        return *keeps;
    }
    // What cannot be tried here is taken for exposed, and tried again elsewhere.
    let Ok(keeps) = keeps_owners(environment, directory, stat) else { return true };
    tried.insert(stat.st_dev, keeps);
    if !keeps {
        environment.count(|report| report.unguarded = true);
    }
    keeps
}

/// Returns whether a new file in a directory is ours, and has the modes that it is given.
///
/// It is looked at through the descriptor that made it: nobody can exchange it, and only its owner could change its mode.
fn keeps_owners(environment: &Environment<'_>, directory: BorrowedFd<'_>, found: &Stat) -> Result<bool, Errno> {
    let name = environment.temporary_name();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = environment.handles.with_room(|| openat(directory, name.as_slice(), flags, Mode::RUSR | Mode::WUSR))?;
    let has = |mode| {
        let _ = fchmod(&file, Mode::from_bits_retain(mode));
        let stat = fstat(&file)?;
        Ok::<_, Errno>(stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o7777 == mode)
    };
    let keeps = TRIED_MODES.into_iter().try_fold(true, |keeps, mode| Ok(keeps && has(mode)?));
    // Closed first: some file systems keep a file that is open.
    drop(file);
    let _ = unlinkat(directory, name.as_slice(), AtFlags::empty());
    // The directory is as it was: its time may be all that this restore leaves alone.
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec as _ },
    };
    let _ = futimens(directory, &times);
    keeps
}
