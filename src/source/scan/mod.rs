//! Scans a directory tree: one listing per directory, one `statx` per inode.
//!
//! Directory entries carry inode numbers, so the second name of a hard-linked file costs no system call. Several
//! threads read directories, but the listings come out in one fixed order, depth-first by name, and say the same
//! whatever the number of threads: the tree alone decides. Nothing is followed out of the tree, and what cannot be
//! read becomes a [`Problem`] while the scan goes on.
//!
//! # When the tree changes meanwhile
//!
//! Inode numbers are used again after a file is deleted. A directory that was changed after the scan began (by its
//! own change time, which cannot be set back) can hold such a new inode, so all its names are stat'ed, and a stat
//! is delivered again at a name whose number was met before. See [`Found::Inode`] for what that means to the reader.

mod context;
mod inodes;
mod mounts;
mod node;
mod queue;
mod read;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::limits;
use crate::model::{Stat, Xattr};
use crate::source::exclude::Excludes;
use node::{Node, Outcome};
use read::Reader;
use work::Engine;

/// Says how to scan.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Names to leave out.
    pub excludes: Excludes,
    /// Whether to enter directories on other file systems.
    pub cross_file_systems: bool,
    /// Number of scanning threads, the caller's own included: it works while it waits. 0 chooses.
    pub threads: usize,
    /// How many entries may be scanned and not yet delivered; bounds the memory of the scan.
    pub ahead_entries: usize,
}

impl Default for ScanOptions {
    fn default() -> ScanOptions {
        ScanOptions { excludes: Excludes::default(), cross_file_systems: false, threads: 0, ahead_entries: 200_000 }
    }
}

/// One directory of the tree.
///
/// Listings come in depth-first order: a directory, then its subdirectories in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Path relative to the root, components separated by `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// The directory's own attributes. All zero but the kind if not even they could be read.
    pub stat: Stat,
    /// The directory's own extended attributes.
    pub xattrs: Vec<Xattr>,
    /// Number of the file system it is on: an index into [`Scan::file_systems`].
    pub file_system: u32,
    /// What it holds, sorted by the bytes of the names.
    pub entries: Vec<Entry>,
    /// Set if it could not be read, or not to its end; `entries` is then incomplete.
    pub unreadable: Option<Problem>,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: any bytes but `/` and NUL.
    pub name: Box<[u8]>,
    /// What it leads to.
    pub what: Found,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A directory. Its listing follows in depth-first order, even if it cannot be read or vanishes meanwhile.
    Directory,
    /// A directory that is not entered, because it is on another file system. No listing follows.
    Boundary(Box<Stat>),
    /// Anything else.
    ///
    /// The first delivered name of an inode always carries its stat. A later name without one belongs to the inode
    /// whose stat was delivered last under that number. A later name may carry a stat all the same: the same birth
    /// time tells that it is the same inode, another one that the number went to a new file during the scan.
    Inode {
        /// Number of the file system: an index into [`Scan::file_systems`].
        file_system: u32,
        /// Inode number.
        ino: u64,
        /// What `statx` told.
        stat: Option<Box<Stat>>,
    },
}

/// Something of the tree that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {:?}: {message}", String::from_utf8_lossy(path))]
pub struct Problem {
    /// Path relative to the root.
    pub path: Vec<u8>,
    /// What sort of problem it is.
    pub kind: ProblemKind,
    /// What the system answered.
    pub message: String,
    /// The system's error number.
    pub errno: i32,
}

/// Sorts problems by what to make of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// It is there, but could not be read: permissions, or an error of the file system.
    Unreadable,
    /// It was gone, or no longer a directory, when its turn came. Normal in a tree that is in use.
    Vanished,
    /// Its name or path is too long for the system.
    TooLong,
    /// Another file system was mounted there during the scan.
    Mounted,
    /// All file descriptors of the process or the system are in use.
    TooManyOpenFiles,
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProblemKind::Unreadable => "Cannot read",
            ProblemKind::Vanished => "Vanished during the scan:",
            ProblemKind::TooLong => "Name too long:",
            ProblemKind::Mounted => "Mounted during the scan:",
            ProblemKind::TooManyOpenFiles => "Too many open files (raise `ulimit -n`) to read",
        })
    }
}

impl Problem {
    pub(crate) fn new(path: Vec<u8>, error: &io::Error) -> Problem {
        use rustix::io::Errno;
        let kind = match Errno::from_io_error(error) {
            // A directory that has become a symbolic link answers LOOP, one that has become a file NOTDIR.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => ProblemKind::Vanished,
            Some(Errno::NAMETOOLONG) => ProblemKind::TooLong,
            Some(Errno::MFILE | Errno::NFILE) => ProblemKind::TooManyOpenFiles,
            _ => ProblemKind::Unreadable,
        };
        Problem {
            path,
            kind,
            message: error.to_string(),
            errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        }
    }
}

/// Why a scan could not start.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The root is no directory, does not exist, or may not be read.
    #[error("Cannot scan {path:?}: {source}. Check the path, and that this user may read it")]
    Root {
        /// The root as it was given.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A scanning thread could not be started.
    #[error("Cannot start a thread to scan {path:?}: {source}")]
    Thread {
        /// The root as it was given.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// How far a scan has come. All figures only grow, and run ahead of what is delivered.
#[derive(Debug, Default)]
pub struct ScanCounters {
    /// Names read, those left out included.
    pub names: AtomicU64,
    /// `statx` calls made.
    pub stats: AtomicU64,
    /// Directories read.
    pub directories: AtomicU64,
    /// Names left out by a pattern.
    pub excluded: AtomicU64,
}

/// A running scan. Call [`Scan::next`] until it returns `None`; dropping it stops the threads.
pub struct Scan {
    engine: Arc<Engine>,
    reader: Reader,
    workers: Vec<JoinHandle<()>>,
    /// Directories still to be delivered, the next one last.
    pending: Vec<Arc<Node>>,
    problems: Vec<Problem>,
    /// The delivered number of each file system, by the number that the threads use. Threads number
    /// file systems as they happen to meet them, deliveries in their fixed order.
    numbers: Vec<Option<u32>>,
    mounted_at: Vec<Vec<u8>>,
}

impl Scan {
    /// Starts to scan the directory `root`, which may itself be a symbolic link to one.
    ///
    /// Raises the limit of open files of the process to what it may have, should its caller not have done so.
    ///
    /// # Errors
    /// [`ScanError::Root`] if `root` is no readable directory. An empty directory is no error here.
    pub fn start(root: &Path, options: ScanOptions) -> Result<Scan, ScanError> {
        let open_files = limits::raise_open_files();
        // A quarter: the rest belongs to those who read the files, talk to the other side and keep the store.
        Scan::start_with(root, options, (open_files / 4).max(8))
    }

    fn start_with(root: &Path, options: ScanOptions, kept_open: usize) -> Result<Scan, ScanError> {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4)),
            threads => threads,
        };
        let fail = |source: io::Error| ScanError::Root { path: root.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, root, flags, Mode::empty()).map_err(|error| fail(error.into()))?;
        let (engine, node) = Engine::new(opened, &options, kept_open, threads > 1).map_err(fail)?;
        let engine = Arc::new(engine);
        let mut scan = Scan {
            engine,
            reader: Reader::new(),
            workers: Vec::new(),
            pending: vec![node],
            problems: Vec::new(),
            numbers: Vec::new(),
            mounted_at: Vec::new(),
        };
        for number in 1..threads {
            let engine = Arc::clone(&scan.engine);
            let worker = std::thread::Builder::new()
                .name(format!("scan-{number}"))
                .spawn(move || engine.work())
                // Dropping `scan` ends those already started.
                .map_err(|source| ScanError::Thread { path: root.to_owned(), source })?;
            scan.workers.push(worker);
        }
        Ok(scan)
    }

    /// Returns the next directory, or `None` when all were delivered.
    ///
    /// Scans itself rather than wait for the threads.
    #[allow(clippy::should_implement_trait, reason = "the other methods are called between two calls")]
    pub fn next(&mut self) -> Option<Listing> {
        let node = self.pending.pop()?;
        let outcome = self.engine.outcome_of(&node, &mut self.reader);
        Some(self.deliver(outcome))
    }

    /// Returns the problems found so far that belong to no listing, each once: names that could not be stat'ed.
    ///
    /// They come with the listing of their directory, in the order of the names, so their order is fixed too.
    pub fn problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    /// Returns where each file system met so far begins in the tree: the path of its first delivered directory or
    /// file. The index is the number in listings and entries; number 0 is the root's, at the empty path.
    pub fn file_systems(&self) -> Vec<Vec<u8>> {
        self.mounted_at.clone()
    }

    /// Returns the counters, which can be read while the scan runs.
    pub fn counters(&self) -> Arc<ScanCounters> {
        Arc::clone(&self.engine.context.counters)
    }

    fn deliver(&mut self, outcome: Outcome) -> Listing {
        let Outcome { mut listing, subdirectories, mut problems, cost } = outcome;
        self.pending.extend(subdirectories.into_iter().rev());
        self.problems.append(&mut problems);
        let own = listing.file_system;
        listing.file_system = self.number_of(own, &listing.path, b"");
        for entry in &mut listing.entries {
            let Found::Inode { file_system, ino, stat } = &mut entry.what else {
                continue;
            };
            match stat {
                None => *stat = self.engine.context.seen.take_undelivered(*file_system, *ino),
                Some(found) if found.nlink > 1 => {
                    // Stat'ed again in a changed directory: this is now the first delivered name, if none was before.
                    self.engine.context.seen.take_undelivered(*file_system, *ino);
                }
                Some(_) => {}
            }
            *file_system = if *file_system == own {
                listing.file_system
            } else {
                self.number_of(*file_system, &listing.path, &entry.name)
            };
        }
        self.engine.delivered(cost);
        listing
    }

    /// Returns the delivered number of a file system, and gives it one at its first appearance.
    fn number_of(&mut self, internal: u32, directory: &[u8], name: &[u8]) -> u32 {
        let internal = internal as usize;
        if internal >= self.numbers.len() {
            self.numbers.resize(internal + 1, None);
        }
        if let Some(number) = self.numbers[internal] {
            return number;
        }
        let number = self.mounted_at.len() as u32;
        self.numbers[internal] = Some(number);
        self.mounted_at.push(if name.is_empty() { directory.to_vec() } else { join(directory, name) });
        number
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.engine.stop();
        for worker in self.workers.drain(..) {
            // A panic of a worker has already been reported by the panic hook.
            let _ = worker.join();
        }
        node::dismantle(std::mem::take(&mut self.pending));
    }
}

/// Joins a directory's relative path and a name.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Locks a mutex. A panic elsewhere does not make the data wrong: every change under a lock is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to a counter.
fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
