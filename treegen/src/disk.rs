//! Files with exact modes, owners and times.
//!
//! Writing never replaces: a file that exists already is left alone, so that a session begun under `tmp/` can be finished
//! without giving any of its files a new inode.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Mode of directories.
pub const DIR_MODE: u32 = 0o750;
/// Mode of ordinary files.
pub const FILE_MODE: u32 = 0o640;
/// Mode of the table dumps in `sys/`.
pub const READ_ONLY: u32 = 0o444;

/// Creates files for one owner.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// User and group; none leaves them as they come.
    pub owner: Option<(u32, u32)>,
}

fn times(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000) as _,
        },
    }
}

impl Disk {
    fn own(&self, file: impl AsFd) -> rustix::io::Result<()> {
        match self.owner {
            Some((uid, gid)) => rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            None => Ok(()),
        }
    }

    /// Creates a directory with its parents, unless it exists.
    pub fn mkdir(&self, path: &Path, mode: u32) -> Result<()> {
        match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                let dir = open_dir(path).context("open the directory", path)?;
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).context("set the mode of", path)?;
                self.own(&dir).context("set the owner of", path)
            }
            Err(Errno::EXIST) => Ok(()),
            Err(Errno::NOENT) if path.parent().is_some() => {
                if let Some(parent) = path.parent() {
                    self.mkdir(parent, DIR_MODE)?;
                }
                self.mkdir(path, mode)
            }
            Err(e) => Err(e).context("create the directory", path),
        }
    }

    /// Opens a new file below a directory; none if the name is taken.
    pub fn create_at(&self, dir: impl AsFd, name: impl rustix::path::Arg, mode: u32) -> io::Result<Option<File>> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // The caller's umask may have taken bits away.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        self.own(&fd)?;
        Ok(Some(File::from(fd)))
    }

    /// Writes a whole file below a directory.
    pub fn write_at(
        &self,
        dir: impl AsFd,
        name: impl rustix::path::Arg,
        mode: u32,
        mtime_ns: i64,
        bytes: &[u8],
    ) -> io::Result<()> {
        if let Some(mut file) = self.create_at(dir, name, mode)? {
            file.write_all(bytes)?;
            rustix::fs::futimens(&file, &times(mtime_ns))?;
        }
        Ok(())
    }

    /// Writes a whole file.
    pub fn write(&self, path: &Path, mode: u32, mtime_ns: i64, bytes: &[u8]) -> Result<()> {
        self.write_at(CWD, path, mode, mtime_ns, bytes).context("write", path)
    }

    /// Opens a new file for writing piece by piece; none if it exists.
    pub fn create(&self, path: &Path) -> Result<Option<BufWriter<File>>> {
        let file = self.create_at(CWD, path, FILE_MODE).context("create", path)?;
        Ok(file.map(|f| BufWriter::with_capacity(256 * 1024, f)))
    }

    /// Completes a file written piece by piece.
    pub fn finish(&self, path: &Path, file: BufWriter<File>, mtime_ns: i64) -> Result<()> {
        let file = file.into_inner().map_err(io::IntoInnerError::into_error).context("write", path)?;
        rustix::fs::futimens(&file, &times(mtime_ns)).context("set the time of", path)
    }
}

/// Opens a directory for the `*_at` calls.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Links a name of one directory into another; false if there is nothing to link.
pub fn link_at(from: impl AsFd, old: &str, to: impl AsFd, new: &str) -> io::Result<bool> {
    match rustix::fs::linkat(from, old, to, new, AtFlags::empty()) {
        Ok(()) | Err(Errno::EXIST) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Links a file by path; false if there is nothing to link.
pub fn link(old: &Path, new: &Path) -> Result<bool> {
    match rustix::fs::link(old, new) {
        Ok(()) | Err(Errno::EXIST) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e).context("link", new),
    }
}

/// Sets the modification time of a file or directory.
pub fn touch(path: &Path, mtime_ns: i64) -> Result<()> {
    rustix::fs::utimensat(CWD, path, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW).context("set the time of", path)
}

/// Sets the modification time of a directory and those below it, `depth` levels down, children first.
pub fn touch_dirs(path: &Path, depth: u32, mtime_ns: i64) -> Result<()> {
    if depth > 0 {
        for entry in std::fs::read_dir(path).context("list", path)? {
            let entry = entry.context("list", path)?;
            if entry.file_type().context("look at", &entry.path())?.is_dir() {
                touch_dirs(&entry.path(), depth - 1, mtime_ns)?;
            }
        }
    }
    touch(path, mtime_ns)
}
