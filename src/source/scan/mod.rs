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
mod listing;
mod mounts;
mod node;
mod queue;
mod read;
#[cfg(test)]
mod tests;
mod work;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::limits;
pub use context::{ScanCounters, ScanOptions};
use listing::join;
pub use listing::{Entry, Found, Listing, Problem, ProblemKind};
use node::{Node, Outcome};
use read::Reader;
use work::Engine;

/// Why a scan could not start.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The root is no directory, does not exist, or may not be read.
    #[error("Cannot scan {}: {source}. Check the path, and that this user may read it", path.display())]
    Root {
        /// The root as it was given.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A scanning thread could not be started.
    #[error("Cannot start a thread to scan {}: {source}", path.display())]
    Thread {
        /// The root as it was given.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
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
