//! What all threads of a scan share while they read directories; which of them reads which is `work.rs`'s.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::inodes::SeenInodes;
use super::mounts::{FileSystems, parents_of_mounts};
use super::node::{Node, Opened, Task};
use crate::model::Timestamp;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::source::stat::stat_of;

/// How long before the start of a scan a change still counts as one during it: the kernel stamps changes with a
/// clock that lags by up to one tick (10 ms at most).
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// Says how to scan.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Names to leave out.
    pub excludes: ExcludePatterns,
    /// Whether to enter directories on other file systems.
    pub cross_file_systems: bool,
    /// Number of scanning threads, the caller's own included: it works while it waits. 0 chooses.
    pub threads: usize,
    /// How many entries may be scanned and not yet delivered; bounds the memory of the scan.
    pub ahead_entries: usize,
}

impl Default for ScanOptions {
    fn default() -> ScanOptions {
        ScanOptions {
            excludes: ExcludePatterns::default(),
            cross_file_systems: false,
            threads: 0,
            ahead_entries: 200_000,
        }
    }
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

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// What the reading of every directory uses, and adds to.
pub(super) struct ScanContext {
    pub(super) root: OwnedFd,
    pub(super) excludes: ExcludePatterns,
    pub(super) cross_file_systems: bool,
    pub(super) counters: Arc<ScanCounters>,
    pub(super) seen: SeenInodes,
    pub(super) file_systems: FileSystems,
    /// Directories that hold mount points, by path.
    pub(super) parents_of_mounts: HashSet<Vec<u8>>,
    /// A directory changed at or after this time is taken as changed during the scan.
    pub(super) began: Timestamp,
    /// Directories kept open for their subdirectories, and how many there may be.
    kept_open: Arc<AtomicUsize>,
    most_kept_open: usize,
    stopped: AtomicBool,
}

impl ScanContext {
    /// Looks at the root; also returns it as the first directory to read.
    pub(super) fn new(
        root: OwnedFd,
        options: &ScanOptions,
        most_kept_open: usize,
    ) -> io::Result<(ScanContext, Arc<Node>)> {
        let stat = stat_of(root.as_fd(), c"")?;
        let file_systems = FileSystems::default();
        let file_system = file_systems.index_of(stat.dev, || root.try_clone().ok());
        let node = Node::new(Task { parent: None, name: Box::default(), file_system });
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_SLACK);
        let context = ScanContext {
            parents_of_mounts: parents_of_mounts(root.as_fd()),
            root,
            excludes: options.excludes.clone(),
            cross_file_systems: options.cross_file_systems,
            counters: Arc::default(),
            seen: SeenInodes::new(),
            file_systems,
            began: Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
            kept_open: Arc::default(),
            most_kept_open,
            stopped: AtomicBool::new(false),
        };
        Ok((context, node))
    }

    /// Keeps a directory open for its subdirectories, unless too many are.
    pub(super) fn keep(&self, path: Vec<u8>, fd: OwnedFd) -> Arc<Opened> {
        let before = self.kept_open.fetch_add(1, Ordering::Relaxed);
        let fd = if before < self.most_kept_open {
            Some(fd)
        } else {
            self.kept_open.fetch_sub(1, Ordering::Relaxed);
            None
        };
        Arc::new(Opened { path, fd, kept_open: Arc::clone(&self.kept_open) })
    }

    /// Gives the scan up.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns whether the scan was given up, so that a thread need not read a large directory to its end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
