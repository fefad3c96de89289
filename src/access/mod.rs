//! Who may read and write the files that the program makes.
//!
//! A store holds mail. Its directories are their owner's alone (0700), and so are its files (0600; objects, which never change, 0400), whatever the
//! umask says. What is written for others, such as a log or a page of metrics, has a mode that its caller names; a file that is there already keeps its own.
//!
//! A new file of a store gets the owner of the directory that it is made in. So root may look into the store of another user, or take a snapshot
//! there, and that user's runs go on.
//!
//! Root works in directories of other users that way, and they may exchange names meanwhile. Therefore a file is new (`O_EXCL`) when it is given an
//! owner, all changes go through its descriptor, a symbolic link in place of a file is never followed, and one in place of its directory only if
//! it is root's or the caller's own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, Stat, fchmod, fchown, fstat, fsync, mkdirat, open, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

/// Mode of the directories of a store.
const DIRECTORY_MODE: RawMode = 0o700;
/// Mode of the files of a store.
pub(crate) const FILE_MODE: RawMode = 0o600;
/// Mode of objects: nobody has to write to one again.
pub(crate) const OBJECT_MODE: RawMode = 0o400;
/// The mark of a file that is being written.
pub(crate) const TEMPORARY_MARK: &str = ".tmp-";

/// Mode bits that let others than the owner in.
const OTHERS: RawMode = 0o077;
const PERMISSIONS: RawMode = 0o7777;

/// The answers of a file system that has no owners or modes.
fn has_none(error: Errno) -> bool {
    matches!(error, Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::ACCESS)
}

fn unless_it_has_none(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if !has_none(error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn name_of(path: &Path) -> io::Result<&OsStr> {
    path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))
}

/// Opens the directory of a file. A symbolic link in its place is followed if root or the caller made it.
fn directory_of(path: &Path) -> io::Result<OwnedFd> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = statat(CWD, parent, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_link = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
    let is_foreign = found.st_uid != 0 && found.st_uid != geteuid().as_raw();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let flags = if is_link && !is_foreign { flags } else { flags | OFlags::NOFOLLOW };
    Ok(open(parent, flags, Mode::empty())?)
}

/// Gives a file that was just made its mode, whatever the umask, and the owner, if the caller may.
fn set_mode_and_owner(file: impl AsFd, mode: RawMode, owner: Option<&Stat>) -> io::Result<()> {
    let made = fstat(&file)?;
    if made.st_mode & PERMISSIONS != mode {
        unless_it_has_none(fchmod(&file, Mode::from_raw_mode(mode)))?;
    }
    match owner.filter(|owner| geteuid().is_root() && (owner.st_uid, owner.st_gid) != (made.st_uid, made.st_gid)) {
        Some(owner) => {
            let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
            unless_it_has_none(fchown(&file, Some(uid), Some(gid)))
        }
        None => Ok(()),
    }
}

fn create_in(directory: &OwnedFd, name: &OsStr, mode: RawMode, owner: Option<&Stat>) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::from_raw_mode(mode))?);
    set_mode_and_owner(&file, mode, owner)?;
    Ok(file)
}

/// Makes a new file of a store.
///
/// # Errors
/// Fails with `AlreadyExists` when there is one.
pub(crate) fn create(path: &Path, mode: RawMode) -> io::Result<File> {
    let directory = directory_of(path)?;
    create_in(&directory, name_of(path)?, mode, Some(&fstat(&directory)?))
}

/// Opens a file of a store for reading and writing; makes it if there is none.
///
/// # Errors
/// Fails when it is no regular file, or one that has other names, too: in a directory of somebody else they may be anywhere.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    let (directory, name) = (directory_of(path)?, name_of(path)?);
    loop {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&directory, name, flags, Mode::empty()) {
            Ok(file) => {
                let found = fstat(&file)?;
                let is_regular = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
                return if is_regular && found.st_nlink <= 1 {
                    Ok(File::from(file))
                } else {
                    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file of its own"))
                };
            }
            Err(Errno::NOENT) => match create_in(&directory, name, FILE_MODE, Some(&fstat(&directory)?)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a directory of a store; one that is there stays as it is.
///
/// # Errors
/// Fails when the directory above is missing, or nothing can be made there.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    let above = directory_of(path)?;
    let owner = fstat(&above)?;
    make_directory(&above, name_of(path)?, Some(&owner))
}

/// Makes a directory that is the caller's own, whoever owns the one above it, and those above as usual. One that is there stays as it is.
///
/// # Errors
/// Fails when it cannot be made.
pub(crate) fn create_own_directory(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above)?;
    }
    if !path.is_dir() {
        make_directory(&directory_of(path)?, name_of(path)?, None)?;
    }
    Ok(())
}

fn make_directory(above: &OwnedFd, name: &OsStr, owner: Option<&Stat>) -> io::Result<()> {
    match mkdirat(above, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(above, name, flags, Mode::empty()) {
        Ok(made) => set_mode_and_owner(&made, DIRECTORY_MODE, owner),
        // Not root, and a umask that keeps even the owner out.
        Err(Errno::ACCESS) => {
            Ok(rustix::fs::chmodat(above, name, Mode::from_raw_mode(DIRECTORY_MODE), AtFlags::empty())?)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file that takes the place of another, or its name, when it is complete. Until then it stands beside it, under a name that cannot be guessed, and
/// goes away with this value.
pub(crate) struct Replacement {
    directory: OwnedFd,
    temporary: OsString,
    name: OsString,
    file: File,
    is_done: bool,
}

impl Replacement {
    /// Begins a file of a store.
    ///
    /// # Errors
    /// Fails when its directory cannot be written to.
    pub(crate) fn in_store(path: &Path) -> io::Result<Replacement> {
        let directory = directory_of(path)?;
        let owner = fstat(&directory)?;
        Replacement::begin(directory, name_of(path)?, FILE_MODE, Some(&owner))
    }

    /// Begins a file that people or other programs read. One that is replaced hands on its owner and, unless `wanted` says otherwise, its mode; a new one
    /// is the caller's, and gets the mode `usual`.
    ///
    /// # Errors
    /// Fails when its directory cannot be written to.
    pub(crate) fn beside_store(path: &Path, wanted: Option<RawMode>, usual: RawMode) -> io::Result<Replacement> {
        let (directory, name) = (directory_of(path)?, name_of(path)?);
        let old = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let old = old.filter(|old| FileType::from_raw_mode(old.st_mode) == FileType::RegularFile);
        let mode = wanted.or(old.map(|old| old.st_mode & 0o777)).unwrap_or(usual);
        Replacement::begin(directory, name, mode, old.as_ref())
    }

    fn begin(directory: OwnedFd, name: &OsStr, mode: RawMode, owner: Option<&Stat>) -> io::Result<Replacement> {
        loop {
            // Hidden: a collector of metrics reads all files that end as it likes.
            let mut temporary = OsString::from(".");
            temporary.push(name);
            temporary.push(format!("{TEMPORARY_MARK}{:016x}", getrandom::u64()?));
            match create_in(&directory, &temporary, mode, owner) {
                Ok(file) => {
                    return Ok(Replacement { directory, temporary, name: name.to_owned(), file, is_done: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns how many bytes were written.
    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Fails when the name cannot be given; the file before it stays then.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        renameat(&self.directory, &self.temporary, &self.directory, &self.name)?;
        self.is_done = true;
        Ok(())
    }

    /// Makes the file durable and gives it its name, durably.
    ///
    /// # Errors
    /// Fails when it cannot be synced or named.
    pub(crate) fn finish_durably(self) -> io::Result<()> {
        self.file.sync_all()?;
        let directory = openat(&self.directory, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.finish()?;
        Ok(fsync(directory)?)
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_done {
            // The error that made it stay unfinished is the one to report.
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

/// Writes a file of a store so that it is there complete or not at all, and durable on return.
///
/// # Errors
/// Fails when it cannot be written; the one before stays then.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = Replacement::in_store(path)?;
    new.write_all(bytes)?;
    new.finish_durably()
}

/// Opens a log to append to. A new one gets the mode `usual` unless `wanted` names another, one that is there gets only the latter.
///
/// # Errors
/// Fails when it cannot be opened, or is a symbolic link that neither root nor the caller made.
pub fn open_log(path: &Path, wanted: Option<u32>, usual: u32) -> io::Result<File> {
    let (directory, name) = (directory_of(path)?, name_of(path)?);
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    loop {
        let found = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let mode = wanted.unwrap_or(usual);
                match openat(&directory, name, flags, Mode::from_raw_mode(mode)) {
                    Err(Errno::EXIST) => continue,
                    made => {
                        let file = File::from(made?);
                        set_mode_and_owner(&file, mode, None)?;
                        return Ok(file);
                    }
                }
            }
            found => found?,
        };
        let is_link = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
        let is_foreign = found.st_uid != 0 && found.st_uid != geteuid().as_raw();
        let flags = if is_link && !is_foreign { flags } else { flags | OFlags::NOFOLLOW };
        let file = File::from(openat(&directory, name, flags, Mode::empty())?);
        if let Some(mode) = wanted {
            unless_it_has_none(fchmod(&file, Mode::from_raw_mode(mode)))?;
        }
        return Ok(file);
    }
}

/// Returns the mode of a regular file, if there is one.
pub fn mode_of(path: &Path) -> Option<u32> {
    let found = rustix::fs::lstat(path).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::RegularFile).then_some(found.st_mode & 0o777)
}

/// What [`narrow`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Only its owner gets into the store.
    Private,
    /// Others could get in, with this mode of its directory; they cannot any more.
    Narrowed(u32),
    /// Others can get in, and the caller cannot change that: the store is somebody else's, or its file system has no modes or is read-only.
    Wide(u32),
}

/// Closes a store to others than its owner, with all that is in it.
pub fn narrow(store: &Path) -> Width {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = open(store, flags, Mode::empty()) else { return Width::Private };
    let mode = |directory: &OwnedFd| fstat(directory).map_or(0, |found| found.st_mode & PERMISSIONS);
    let was = mode(&directory);
    if was & OTHERS == 0 {
        return Width::Private;
    }
    let _ = fchmod(&directory, Mode::from_raw_mode(was & !OTHERS));
    if mode(&directory) & OTHERS != 0 {
        return Width::Wide(was);
    }
    // What lies inside cannot be reached any more; it should not depend on that. What belongs to others stays as it is.
    narrow_entries(&directory);
    Width::Narrowed(was)
}

fn narrow_entries(directory: &OwnedFd) {
    let Ok(listing) = Dir::read_from(directory) else { return };
    for entry in listing.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(found) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = FileType::from_raw_mode(found.st_mode);
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            continue;
        }
        let Ok(opened) = openat(directory, name, flags, Mode::empty()) else { continue };
        let Ok(found) = fstat(&opened) else { continue };
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        let mode = found.st_mode & PERMISSIONS;
        // A file with other names may be no part of the store.
        if mode & OTHERS != 0 && (is_directory || found.st_nlink <= 1) {
            let _ = fchmod(&opened, Mode::from_raw_mode(mode & !OTHERS));
        }
        if is_directory {
            narrow_entries(&opened);
        }
    }
}

/// How much of a store [`denied`] tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// One object of each kind: enough to know whose store it is.
    FirstObjects,
    /// Every object.
    AllObjects,
}

/// Returns a file or directory of a store that the caller may not read.
pub(crate) fn denied(store: &Path, depth: Depth) -> Option<PathBuf> {
    let is_denied = |path: &Path| matches!(File::open(path), Err(error) if is_denial(&error));
    let beside = [store.to_owned(), store.join("config.json"), store.join("catalog.redb")];
    let objects = ["packs", "commits", "checkpoints"].iter().map(|name| store.join(name));
    beside
        .into_iter()
        .find(|path| is_denied(path))
        .or_else(|| objects.into_iter().find_map(|at| denied_below(at, depth)))
}

fn denied_below(path: PathBuf, depth: Depth) -> Option<PathBuf> {
    match File::open(&path) {
        Err(error) if is_denial(&error) => return Some(path),
        Err(_) => return None,
        Ok(_) => {}
    }
    let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
    let wanted = if depth == Depth::AllObjects { usize::MAX } else { 1 };
    entries.take(wanted).find_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() || kind.is_file() => denied_below(entry.path(), depth),
        _ => None,
    })
}

/// Returns whether the system refused for want of permission.
pub(crate) fn is_denial(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Names the owner of a file, if the caller may look.
pub(crate) fn owner_name(path: &Path) -> Option<String> {
    Some(user_name(rustix::fs::stat(path).ok()?.st_uid))
}

/// Names the user that the program runs as.
pub(crate) fn own_name() -> String {
    user_name(geteuid().as_raw())
}

/// Names a user, by number where this host has no name.
pub(crate) fn user_name(uid: u32) -> String {
    let name = uzers::get_user_by_uid(uid).map(|user| user.name().to_string_lossy().into_owned());
    name.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests;
