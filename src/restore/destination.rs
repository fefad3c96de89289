//! The destination as the user names it: the one path that symbolic links are followed in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat};
use rustix::io::Errno;

use super::environment::Environment;
use super::{Overwrite, directory};

/// Opens the destination, making it and the directories above it if need be. Returns what it was before, `None` when it was
/// made. Its owner gets the permission to write to it, unless attributes stay as they are.
pub(super) fn open_destination(
    environment: &Environment<'_>,
    destination: &Path,
) -> io::Result<(Option<OwnedFd>, Option<Stat>)> {
    let options = environment.options;
    refuse_foreign_link(environment, destination)?;
    if !destination.exists() {
        if options.dry_run {
            return Ok((None, None));
        }
        let path = std::path::absolute(destination)?;
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            std::fs::create_dir_all(parent)?;
            let parent = OwnedFd::from(File::open(parent)?);
            let exposed = environment.is_exposed(&fstat(&parent)?);
            match directory::make(environment, parent.as_fd(), name.as_bytes(), exposed) {
                Ok(fd) => return Ok((Some(fd), None)),
                // Such as `there/..`, or a symbolic link that leads nowhere: what follows says so.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    let directory = File::open(destination)?;
    if !directory.metadata()?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    let fd = OwnedFd::from(directory);
    if options.overwrite != Overwrite::Never && !options.dry_run {
        directory::permit(&fd)?;
    }
    let found = fstat(&fd)?;
    Ok((Some(fd), Some(found)))
}

/// Refuses to restore as root through a symbolic link that another user made, who may let it lead anywhere.
fn refuse_foreign_link(environment: &Environment<'_>, destination: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(destination) else { return Ok(()) };
    if environment.privileged && found.is_symlink() && found.uid() != 0 {
        let message = format!("it is a symbolic link of user {}: name the directory that it leads to", found.uid());
        return Err(io::Error::other(message));
    }
    Ok(())
}

/// Returns the directory and the name that a single file is restored to.
pub(super) fn place_of_file(
    environment: &Environment<'_>,
    subtree: &[u8],
    destination: &Path,
) -> io::Result<(PathBuf, Box<[u8]>)> {
    refuse_foreign_link(environment, destination)?;
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
