//! The destination as the user names it: the one path that symbolic links are followed in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::directory;
use super::environment::Environment;
use super::inode::{LOOK, OPEN};
use super::{Overwrite, exposure};

/// Symbolic links that are followed from one to the next, as many as the system follows.
const MOST_LINKS: usize = 40;

/// Opens the destination, making it and the directories above it if need be. Returns what it was before, `None` when it was
/// made. Its owner gets the permission to write to it, unless attributes stay as they are.
pub(super) fn open_destination(
    environment: &Environment<'_>,
    destination: &Path,
) -> io::Result<(Option<OwnedFd>, Option<Stat>)> {
    let options = environment.options;
    let destination = &plain(destination);
    let fd = match open_directory(environment.is_privileged, destination) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if options.dry_run {
                return Ok((None, None));
            }
            match make(environment, destination)? {
                Some(fd) => return Ok((Some(fd), None)),
                // Such as `there/..`, or a symbolic link that leads nowhere: the answer says so.
                None => open_directory(environment.is_privileged, destination)?,
            }
        }
        answer => answer?,
    };
    if options.overwrite != Overwrite::Never && !options.dry_run {
        directory::let_owner_write(&fd)?;
    }
    let found = fstat(&fd)?;
    Ok((Some(fd), Some(found)))
}

/// Makes the destination and the directories above it. Returns `None` when the name is taken.
fn make(environment: &Environment<'_>, destination: &Path) -> io::Result<Option<OwnedFd>> {
    let path = std::path::absolute(destination)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    std::fs::create_dir_all(parent)?;
    let parent = open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let exposed = exposure::is_exposed(environment, parent.as_fd(), &fstat(&parent)?);
    match directory::make(environment, parent.as_fd(), name.as_bytes(), exposed) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::EXIST) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns a path without what makes the system follow a symbolic link at its end: slashes and dots behind it.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Splits a path into that of a directory and a name in it. No name where it ends in `..` or is the root: neither is a symbolic link.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let name = path.file_name()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some((parent, name))
}

/// Opens the directory that a [`plain`] path names. At its end root (`is_privileged`) follows no symbolic link that another user made, who may let it lead
/// anywhere.
fn open_directory(is_privileged: bool, path: &Path) -> io::Result<OwnedFd> {
    let follow = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if !is_privileged {
        return Ok(open(path, follow, Mode::empty())?);
    }
    let mut above: Option<OwnedFd> = None;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let from = above.as_ref().map_or(CWD, AsFd::as_fd);
        let Some((parent, name)) = split(&path) else { return Ok(openat(from, &path, follow, Mode::empty())?) };
        let parent = openat(from, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match openat(&parent, name, OPEN, Mode::empty()) {
            // What a symbolic link answers, and what is no directory.
            Err(Errno::LOOP | Errno::NOTDIR) => {}
            answer => return Ok(answer?),
        }
        let inode = openat(&parent, name, LOOK, Mode::empty())?;
        let stat = fstat(&inode)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(Errno::NOTDIR.into());
        }
        if stat.st_uid != 0 {
            let message = format!("it is a symbolic link of user {}: name the directory that it leads to", stat.st_uid);
            return Err(io::Error::other(message));
        }
        let target = readlinkat(&inode, c"", Vec::new())?;
        path = plain(Path::new(OsStr::from_bytes(target.as_bytes())));
        above = Some(parent);
    }
    Err(Errno::LOOP.into())
}

/// Refuses a destination at whose end is a symbolic link that [`restore`](super::restore()) would not follow, for those who resolve the path before.
///
/// # Errors
/// That it is one.
pub fn refuse_foreign_link(destination: &Path) -> io::Result<()> {
    match open_directory(geteuid().is_root(), &plain(destination)) {
        Err(error) if error.kind() == io::ErrorKind::Other => Err(error),
        _ => Ok(()),
    }
}

/// Opens the directory that a single file is restored to, and returns it with the name there; no directory in a dry run where it is missing.
pub(super) fn dir_of_file(
    environment: &Environment<'_>,
    subtree: &[u8],
    destination: &Path,
) -> io::Result<(Option<OwnedFd>, Box<[u8]>)> {
    let destination = plain(destination);
    match open_directory(environment.is_privileged, &destination) {
        Ok(fd) => {
            let name = subtree.split(|byte| *byte == b'/').rfind(|name| !matches!(*name, b"" | b"."));
            return Ok((Some(fd), name.ok_or(Errno::INVAL)?.into()));
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(error),
    }
    let (parent, name) = split(&destination).ok_or(Errno::INVAL)?;
    let fd = match open_directory(environment.is_privileged, parent) {
        Err(error) if environment.options.dry_run && error.kind() == io::ErrorKind::NotFound => None,
        answer => Some(answer?),
    };
    Ok((fd, name.as_bytes().into()))
}
