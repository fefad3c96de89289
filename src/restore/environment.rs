//! What all parts of one restore share: choices, counters, problems, owners.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::dir_handles::DirHandles;
use super::inode::Identity;
use super::{RestoreError, RestoreOptions, RestoreProblem, RestoreProgress, RestoreReport};
use crate::mutex::lock;
use crate::view::{OwnerMap, SnapshotView, ViewError, display_path};

/// Problems, and names of deletions, kept for the report.
const KEPT_PROBLEMS: usize = 10_000;
/// How long a wait for other threads lasts before the reason is looked at again.
const WAIT: Duration = Duration::from_millis(50);

/// Work under way, which the walk waits for when it is too much.
#[derive(Default)]
struct Load {
    batches: usize,
    directories: usize,
    waiting_links: usize,
}

pub(super) struct Environment<'v> {
    pub(super) view: &'v SnapshotView,
    pub(super) options: &'v RestoreOptions,
    pub(super) progress: &'v RestoreProgress,
    /// Device and inode numbers of directories that must not be touched.
    pub(super) protected: Vec<Identity>,
    pub(super) is_privileged: bool,
    owners: OwnerMap,
    report: Mutex<RestoreReport>,
    owners_lost: AtomicBool,
    stopped: AtomicBool,
    fatal: Mutex<Option<RestoreError>>,
    /// The directories that are open.
    pub(super) handles: DirHandles,
    /// Whether names of directories that are done may be exchanged by others, so that what one leads to has to be looked at.
    pub(super) watches_links: AtomicBool,
    /// The file systems that were tried, by device number, and whether they keep owners and modes.
    pub(super) keeps_owners: Mutex<HashMap<u64, bool>>,
    temporary: String,
    temporaries: AtomicU64,
    load: Mutex<Load>,
    load_fell: Condvar,
}

impl<'v> Environment<'v> {
    pub(super) fn new(
        view: &'v SnapshotView,
        options: &'v RestoreOptions,
        progress: &'v RestoreProgress,
        protected: Vec<Identity>,
        threads: usize,
        files_left: usize,
    ) -> io::Result<Environment<'v>> {
        let record = view.record();
        let owners = if options.numeric_ids { OwnerMap::by_number() } else { OwnerMap::by_name(record) };
        Ok(Environment {
            view,
            options,
            progress,
            protected,
            is_privileged: rustix::process::geteuid().is_root(),
            owners,
            report: Mutex::default(),
            owners_lost: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            fatal: Mutex::default(),
            handles: DirHandles::new(files_left, threads),
            watches_links: AtomicBool::new(false),
            keeps_owners: Mutex::default(),
            temporary: format!("{:016x}", getrandom::u64()?),
            temporaries: AtomicU64::new(0),
            load: Mutex::default(),
            load_fell: Condvar::new(),
        })
    }

    /// Returns the owner and group here of numbers in the snapshot.
    pub(super) fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        self.owners.owner(uid, gid)
    }

    /// Notes that an owner could not be restored.
    pub(super) fn owner_lost(&self) {
        self.owners_lost.store(true, Ordering::Relaxed);
    }

    /// Returns a name for a file that is not complete yet. It begins with a dot and is in no snapshot but by malice, and is only ever
    /// created with `O_EXCL` or its like.
    pub(super) fn temporary_name(&self) -> Vec<u8> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        format!(".zmreplica-{}-{number:x}", self.temporary).into_bytes()
    }

    /// Changes the report.
    pub(super) fn count(&self, change: impl FnOnce(&mut RestoreReport)) {
        change(&mut lock(&self.report));
        self.progress.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a name that was removed.
    pub(super) fn deleted(&self, path: &[u8]) {
        self.count(|report| {
            report.deleted += 1;
            if report.deletions.len() < KEPT_PROBLEMS {
                report.deletions.push(display_path(path));
            }
        });
    }

    /// Reports that a path could not be restored as it was.
    pub(super) fn problem(&self, path: &[u8], message: impl Into<String>, damage: bool) {
        self.count(|report| {
            report.problem_count += 1;
            report.damaged += u64::from(damage);
            if report.problems.len() < KEPT_PROBLEMS {
                report.problems.push(RestoreProblem { path: display_path(path), message: message.into(), damage });
            }
        });
    }

    /// Reports what the view said of a path.
    pub(super) fn view_problem(&self, path: &[u8], error: &ViewError) {
        self.problem(path, error.to_string(), error.is_damage());
    }

    /// Reports what the system refused, and ends the restore where nothing else can succeed either.
    pub(super) fn refused(&self, path: &[u8], action: &str, errno: Errno) {
        let source = io::Error::from(errno);
        if errno == Errno::STALE {
            self.problem(
                path,
                format!("{action}: it was replaced by something else meanwhile; restore it again"),
                false,
            );
        } else if matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::ROFS) {
            self.stop(RestoreError::Full { path: display_path(path), source });
        } else {
            self.problem(path, format!("{action}: {source}"), false);
        }
    }

    /// Reports what an inode cannot have. That nothing may be written at all ends the restore; want of room does not, for it may be of this one thing.
    pub(super) fn cannot_have(&self, path: &[u8], action: &str, errno: Errno) {
        if matches!(errno, Errno::NOSPC | Errno::DQUOT) {
            self.problem(path, format!("{action}: {}", io::Error::from(errno)), false);
        } else {
            self.refused(path, action, errno);
        }
    }

    /// Ends the restore; the first reason is kept.
    pub(super) fn stop(&self, error: RestoreError) {
        lock(&self.fatal).get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
        self.load_fell.notify_all();
    }

    /// Returns whether the restore was ended, from inside or outside.
    pub(super) fn is_stopped(&self) -> bool {
        if self.progress.interrupt.load(Ordering::Relaxed) && !self.stopped.load(Ordering::Relaxed) {
            self.stop(RestoreError::Interrupted);
        }
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn batch_begins(&self) {
        lock(&self.load).batches += 1;
    }

    pub(super) fn batch_ends(&self) {
        lock(&self.load).batches -= 1;
        self.load_fell.notify_all();
    }

    pub(super) fn directory_opened(&self) {
        lock(&self.load).directories += 1;
    }

    pub(super) fn directory_closed(&self) {
        lock(&self.load).directories -= 1;
        self.load_fell.notify_all();
    }

    pub(super) fn link_waits(&self) {
        lock(&self.load).waiting_links += 1;
    }

    pub(super) fn link_done(&self) {
        lock(&self.load).waiting_links -= 1;
        self.load_fell.notify_all();
    }

    /// Returns whether more directories are open, or links waiting, than should be.
    pub(super) fn is_overloaded(&self, directories: usize, links: usize) -> bool {
        let load = lock(&self.load);
        load.directories > directories || load.waiting_links > links
    }

    /// Waits until the load is below the limits or no batch is under way.
    pub(super) fn wait(&self, directories: usize, links: usize) {
        let mut load = lock(&self.load);
        while load.batches > 0
            && (load.directories > directories || load.waiting_links > links)
            && !self.stopped.load(Ordering::Relaxed)
        {
            load = self.load_fell.wait_timeout(load, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the report, or why the restore ended early.
    pub(super) fn finish(self) -> Result<RestoreReport, RestoreError> {
        if let Some(error) = self.fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.owners_kept = !self.owners_lost.into_inner();
        report.problems.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(report)
    }
}
