//! The destination as the user names it: the one path that symbolic links are followed in.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat};
use rustix::io::Errno;

use super::directory;

/// Opens the destination, making it and the directories above it if need be. Returns what it was before, `None` when it was
/// made. With `force`, its owner gets the permission to write to it.
pub(super) fn open_destination(
    destination: &Path,
    dry_run: bool,
    force: bool,
) -> io::Result<(Option<OwnedFd>, Option<Stat>)> {
    if dry_run && !destination.exists() {
        return Ok((None, None));
    }
    let made = match DirBuilder::new().mode(0o700).create(destination) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = destination.parent() {
                std::fs::create_dir_all(parent)?;
            }
            DirBuilder::new().mode(0o700).create(destination)?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let directory = std::fs::File::open(destination)?;
    if !directory.metadata()?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    let fd = OwnedFd::from(directory);
    if force && !dry_run {
        directory::permit(&fd)?;
    }
    let found = if made { None } else { Some(fstat(&fd)?) };
    Ok((Some(fd), found))
}

/// Returns the directory and the name that a single file is restored to.
pub(super) fn place_of_file(subtree: &[u8], destination: &Path) -> io::Result<(PathBuf, Box<[u8]>)> {
    if destination.is_dir() {
        let name = subtree.split(|byte| *byte == b'/').rfind(|name| !matches!(*name, b"" | b"."));
        return match name {
            Some(name) => Ok((destination.to_owned(), name.into())),
            None => Err(Errno::INVAL.into()),
        };
    }
    let name = destination.file_name().ok_or(Errno::INVAL)?;
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_owned(), name.as_bytes().into()))
}
