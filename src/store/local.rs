//! Objects as files below one directory.
//!
//! [`Backend::put`] writes `<key>.tmp-<pid>-<number>`, makes its data durable with fdatasync and gives it its name
//! with a rename that refuses to replace. Where the file system has no such rename, a hard link does the same; where it has neither, the name is looked
//! up before an ordinary rename, which is as good while only the holder of the store's lock puts objects. Data before name: so even after a loss of power a key
//! never leads to half an object. [`Backend::sync`] then has only the directories to fsync. One fdatasync for a pack of tens of megabytes costs little more
//! than the disk needs for the bytes anyway, and spares a list of open files to flush later.
//!
//! A crash between write and rename leaves a `.tmp-` file, which is never listed; [`LocalBackend::clean_leftovers`]
//! removes it. A crash between rename and sync leaves a whole object or none.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use quick_cache::unsync::Cache;
use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;
use tracing::{debug, warn};
use walkdir::WalkDir;

use super::backend::{Backend, BackendError, TEMPORARY_MARK, check_key};
use crate::access;
use crate::areas;
use crate::cause::{Cause, During};
use crate::limits;
use crate::mutex::lock;

/// Beginning of the name of a file that is written only to see whether that is possible.
pub(crate) const PROBE: &str = "probe-";

/// Most files kept open for reading, and the share of those that the process may have open that they may be.
const OPEN_FILES: usize = 64;
const OPEN_FILES_SHARE: usize = 8;

const CACHE: &str = "cache";
/// What directories of a store begin with that hold no objects; one of them may be a cache that was set aside.
const BESIDE_OBJECTS: [&str; 2] = ["cache", "leases"];

/// Keeps objects as files below a directory, readable by their owner only: they hold mail.
pub struct LocalBackend {
    root: PathBuf,
    /// Directories whose entries changed since the last sync.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// Held during a sync: a second one must not return before the first has done what both were called for.
    syncing: Mutex<()>,
    /// Files open for reading, by key.
    open_files: Mutex<Cache<String, Arc<File>>>,
    next_temporary: AtomicU64,
}

impl LocalBackend {
    /// Opens the backend over an existing directory.
    ///
    /// # Errors
    ///
    /// [`BackendError::Io`] if `root` is not a directory that can be looked at.
    pub fn open(root: impl Into<PathBuf>) -> Result<LocalBackend, BackendError> {
        let root = root.into();
        let fail = |source| BackendError::io("open the store directory", root.display().to_string(), source);
        let metadata = fs::metadata(&root).map_err(fail)?;
        if !metadata.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(LocalBackend {
            root,
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
            open_files: Mutex::new(Cache::new(most_open())),
            next_temporary: AtomicU64::new(0),
        })
    }

    /// Removes the files that interrupted writes left behind and returns their number and their bytes.
    ///
    /// Only the one process that may write to the store may call this: it would take the files another is writing.
    ///
    /// # Errors
    ///
    /// [`BackendError::Io`] if a directory cannot be read or a file cannot be removed.
    pub fn clean_leftovers(&self) -> Result<(u64, u64), BackendError> {
        let mut found = Vec::new();
        let mut find = |path: &Path, name: &str, length| {
            if name.contains(TEMPORARY_MARK) {
                found.push((path.to_owned(), length));
            }
        };
        self.visit(&self.root, "", &|below| !BESIDE_OBJECTS.iter().any(|beside| below.starts_with(beside)), &mut find)?;
        // A cache that cannot be read is no reason to fail, and leases are swept by whoever takes one.
        let _ = self.visit(&self.root.join(CACHE), &format!("{CACHE}/"), &|_| true, &mut find);
        let (mut files, mut bytes) = (0, 0);
        for (path, length) in found {
            fs::remove_file(&path).map_err(|e| BackendError::io("remove", path.display().to_string(), e))?;
            files += 1;
            bytes += length;
        }
        Ok((files, bytes))
    }

    /// Tries whether the file system does all that objects need, and leaves nothing behind. Says what it does not do.
    ///
    /// # Errors
    /// [`BackendError::NoSpace`] if there is no room to try.
    pub(crate) fn probe(&self) -> Result<Result<(), Cause>, BackendError> {
        let key = format!("{PROBE}{}", std::process::id());
        let failed = |what: &'static str| move |error: BackendError| Cause::from(During::new(what, error));
        match self.put(&key, &[b"probe"]) {
            Ok(()) => {}
            Err(error @ BackendError::NoSpace { .. }) => return Err(error),
            Err(error) => return Ok(Err(failed("a file cannot be written and named")(error))),
        }
        let tried = (|| {
            match self.put(&key, &[b"other"]) {
                Err(BackendError::Exists { .. }) => {}
                Err(error) => return Err(failed("a name that is taken gives another error than that")(error)),
                Ok(()) => return Err("a file can be put in place of another unnoticed".into()),
            }
            let bytes = self.read_at(&key, 0, 5).map_err(failed("a file cannot be read back"))?;
            if bytes != b"probe" {
                return Err("a file reads back as something else".into());
            }
            self.sync().map_err(failed("a directory cannot be synced"))
        })();
        let deleted = self.delete(&key).map_err(failed("a file cannot be deleted"));
        Ok(tried.and(deleted))
    }

    fn path(&self, key: &str) -> Result<PathBuf, BackendError> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    /// Returns the directory of an object; a checked key always has one.
    fn parent<'a>(&'a self, path: &'a Path) -> &'a Path {
        path.parent().unwrap_or(&self.root)
    }

    /// Remembers that the name of an object must be made durable, and those of all directories above it: one of them
    /// may have been made by a process that died before it synced.
    fn mark_unsynced(&self, path: &Path) {
        let above = path.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.root));
        lock(&self.unsynced).extend(above.map(Path::to_owned));
    }

    /// Creates a directory and those above it, but never the root: a store that is gone must not come back empty.
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        match access::create_directory(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if !self.parent(directory).is_dir() {
                    self.create_directory(self.parent(directory))?;
                }
                self.create_directory(directory)
            }
            other => other,
        }
    }

    /// Creates a file of its own beside `path` to write an object into.
    fn create_temporary(&self, path: &Path) -> io::Result<(PathBuf, File)> {
        loop {
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let mut name = path.as_os_str().to_owned();
            name.push(format!("{TEMPORARY_MARK}{}-{number}", std::process::id()));
            let temporary = PathBuf::from(name);
            match access::create(&temporary, access::OBJECT_MODE) {
                Ok(file) => return Ok((temporary, file)),
                // Left over from a dead process that had our number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.create_directory(self.parent(path))?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let (temporary, mut file) = self.create_temporary(path)?;
        let written = (|| {
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_data()?;
            match publish(&temporary, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.move_aside(path)? => {
                    publish(&temporary, path)
                }
                published => published,
            }
        })();
        if written.is_err() {
            // The first error is the one to report; a file that stays is a leftover like after a crash.
            let _ = fs::remove_file(&temporary);
        }
        // Also when the key was taken: whoever put it may have died before it was synced.
        self.mark_unsynced(path);
        written
    }

    /// Gives another name to what lies in the place of an object and is no regular file, such as a directory: nothing else could ever be put there. Returns
    /// whether there was such a thing.
    fn move_aside(&self, path: &Path) -> io::Result<bool> {
        if fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(false);
        }
        // No name of an object ends so.
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".in-the-way-{}", self.next_temporary.fetch_add(1, Ordering::Relaxed)));
        rustix::fs::renameat_with(CWD, path, CWD, Path::new(&aside), RenameFlags::NOREPLACE)?;
        Ok(true)
    }

    /// Returns an open file for a key, from the cache if it is still the one the name leads to.
    fn file(&self, key: &str) -> Result<Arc<File>, BackendError> {
        let path = self.path(key)?;
        let cached = lock(&self.open_files).get(key).cloned();
        if let Some(file) = &cached {
            // A file without a name was deleted, and perhaps written anew by a repair while we kept it open.
            if file.metadata().is_ok_and(|metadata| metadata.nlink() > 0) {
                return Ok(Arc::clone(file));
            }
        }
        let opened = File::open(&path).or_else(|error| {
            if !is_out_of_files(&error) {
                return Err(error);
            }
            // Those kept open are the first to do without.
            lock(&self.open_files).clear();
            File::open(&path)
        });
        match opened {
            Ok(file) => {
                let file = Arc::new(file);
                lock(&self.open_files).insert(key.to_owned(), Arc::clone(&file));
                Ok(file)
            }
            // Still readable for who had it open, as anywhere on Unix.
            Err(e) if is_missing(&e) => cached.ok_or_else(|| BackendError::NotFound { key: key.to_owned() }),
            Err(e) => Err(BackendError::io("open", key, e)),
        }
    }

    /// Calls `found` with path, key and length of every regular file below `directory`, in no particular order.
    ///
    /// `wanted` says whether a subdirectory (as the beginning of a key, with its slash) is worth a look.
    fn visit(
        &self,
        directory: &Path,
        prefix: &str,
        wanted: &dyn Fn(&str) -> bool,
        found: &mut dyn FnMut(&Path, &str, u64),
    ) -> Result<(), BackendError> {
        let mut walk = WalkDir::new(directory).min_depth(1).into_iter();
        while let Some(entry) = walk.next() {
            let looked_at = entry.and_then(|entry| {
                let metadata = if entry.file_type().is_file() { Some(entry.metadata()?) } else { None };
                Ok((entry, metadata))
            });
            let (entry, metadata) = match looked_at {
                Ok(looked_at) => looked_at,
                // Deleted, or renamed to its key, since the directory was read; or there is no directory.
                Err(error) if error.io_error().is_some_and(is_missing) => continue,
                Err(error) => {
                    let path = error.path().unwrap_or(directory).display().to_string();
                    return Err(BackendError::io("list", path, io_error(error)));
                }
            };
            // A name that is not text can't be a key, so it isn't ours.
            let below = entry.path().strip_prefix(directory).ok().and_then(Path::to_str);
            match (below, metadata) {
                (Some(below), Some(metadata)) => found(entry.path(), &format!("{prefix}{below}"), metadata.len()),
                (Some(below), None) if wanted(&format!("{prefix}{below}/")) => {}
                _ if entry.file_type().is_dir() => walk.skip_current_dir(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Backend for LocalBackend {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        let path = self.path(key)?;
        let (started, length) = (Instant::now(), parts.iter().map(|part| part.len() as u64).sum::<u64>());
        let put = self.write(&path, parts).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BackendError::Exists { key: key.to_owned() },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                BackendError::NoSpace { key: key.to_owned(), length, source }
            }
            _ => BackendError::io("write", key, source),
        });
        traced(format_args!("put {key}, {length} bytes"), started, put)
    }

    fn sync(&self) -> Result<(), BackendError> {
        let started = Instant::now();
        let _one_at_a_time = lock(&self.syncing);
        let directories = std::mem::take(&mut *lock(&self.unsynced));
        let failed = directories.iter().find_map(|directory| {
            // A directory that is gone has no entries left to keep.
            let synced = File::open(directory).and_then(|file| file.sync_all());
            synced
                .err()
                .filter(|e| !is_missing(e))
                .map(|e| BackendError::io("sync", directory.display().to_string(), e))
        });
        let (count, synced) = (directories.len(), failed.map_or(Ok(()), Err));
        if synced.is_err() {
            lock(&self.unsynced).extend(directories);
        }
        traced(format_args!("sync {count} directories"), started, synced)
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        self.file(key)?.read_exact_at(buffer, offset).map_err(|e| {
            warn!(target: areas::STORE, %key, offset, length = buffer.len(), error = %e, "read failed");
            match e.kind() {
                io::ErrorKind::UnexpectedEof => BackendError::out_of_range(key, offset, buffer.len()),
                // Something else lies in its place.
                io::ErrorKind::IsADirectory => BackendError::NotFound { key: key.to_owned() },
                _ => BackendError::io("read", key, e),
            }
        })
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        match fs::metadata(self.path(key)?) {
            Ok(metadata) => Ok(Some(metadata.len()).filter(|_| metadata.is_file())),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(BackendError::io("look up", key, e)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        let (started, mut objects) = (Instant::now(), Vec::new());
        let wanted = |below: &str| below.starts_with(prefix) || prefix.starts_with(below);
        let listed = self.visit(&self.root, "", &wanted, &mut |_, key, length| {
            if key.starts_with(prefix) && check_key(key).is_ok() {
                objects.push((key.to_owned(), length));
            }
        });
        traced(format_args!("list {prefix}, {} objects", objects.len()), started, listed)?;
        objects.sort_unstable();
        Ok(objects)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        let (started, path) = (Instant::now(), self.path(key)?);
        let deleted = match fs::remove_file(&path) {
            Ok(()) => {
                lock(&self.open_files).remove(key);
                self.mark_unsynced(&path);
                Ok(())
            }
            Err(e) if is_missing(&e) => Err(BackendError::NotFound { key: key.to_owned() }),
            Err(e) => Err(BackendError::io("delete", key, e)),
        };
        traced(format_args!("delete {key}"), started, deleted)
    }
}

/// Emits an event for a call that has ended.
fn traced<T>(call: fmt::Arguments<'_>, started: Instant, result: Result<T, BackendError>) -> Result<T, BackendError> {
    let elapsed_us = started.elapsed().as_micros() as u64;
    match &result {
        Ok(_) => debug!(target: areas::STORE, elapsed_us, "{call}"),
        // Callers expect both.
        Err(error @ (BackendError::NotFound { .. } | BackendError::Exists { .. })) => {
            debug!(target: areas::STORE, elapsed_us, %error, "{call}");
        }
        Err(error) => warn!(target: areas::STORE, elapsed_us, %error, "{call}"),
    }
    result
}

/// Gives a written file its name unless that name is taken.
fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
        // Network file systems often lack this rename; a hard link refuses to replace as well.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::linkat(CWD, temporary, CWD, path, AtFlags::empty()) {
                Ok(()) => fs::remove_file(temporary),
                // Others, such as exFAT, lack both.
                Err(Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    rename_unless_taken(temporary, path)
                }
                Err(error) => Err(error.into()),
            }
        }
        other => Ok(other?),
    }
}

/// Renames a file unless the name is taken. Between look and rename nobody takes it who keeps to the store's lock.
fn rename_unless_taken(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(temporary, path),
        Err(error) => Err(error),
    }
}

/// Returns how many files may be kept open.
fn most_open() -> usize {
    (limits::open_files() / OPEN_FILES_SHARE).clamp(1, OPEN_FILES)
}

/// Returns the system's own error. Without links to follow there is no other.
fn io_error(error: walkdir::Error) -> io::Error {
    error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of directories"))
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
