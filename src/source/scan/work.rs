//! Shares the directories among the threads and hands their listings over.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::inodes::SeenInodes;
use super::mounts::{FileSystems, parents_of_mounts};
use super::queue::WorkList;
use super::read::{self, Reader};
use super::{Listing, Problem, ProblemKind, ScanCounters, ScanOptions, join, lock};
use crate::model::Timestamp;
use crate::source::exclude::Excludes;

/// How long before the start of a scan a change still counts as one during it: the kernel stamps changes with a
/// clock that lags by up to one tick (10 ms at most).
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// Bytes of a listing's path that count as one entry in the look-ahead: paths of very deep trees weigh more than
/// what they lead to.
const PATH_BYTES_PER_ENTRY: usize = 64;

/// What all threads share.
pub(super) struct Engine {
    pub(super) root: OwnedFd,
    pub(super) excludes: Excludes,
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
    /// Whether there are other threads than the caller's.
    shared: bool,
    list: Mutex<WorkList>,
    /// Waited for by idle threads, with `list`.
    work: Condvar,
    idle: AtomicUsize,
    stopped: AtomicBool,
    /// Cost of what is scanned and not delivered.
    ahead: AtomicUsize,
    most_ahead: usize,
}

/// One directory: waiting, being read, or read.
pub(super) struct Node {
    state: Mutex<State>,
    done: Condvar,
    /// Its place in the work list, while it has one.
    slot: AtomicU32,
}

enum State {
    Waiting(Task),
    /// `awaited`: the caller's thread sleeps until it is read.
    Running {
        awaited: bool,
    },
    Done(Box<Outcome>),
    Taken,
}

/// A directory to read.
pub(super) struct Task {
    /// The directory that holds it; `None` for the root.
    pub(super) parent: Option<Arc<Opened>>,
    pub(super) name: Box<[u8]>,
    /// The file system that it was on when its parent was read.
    pub(super) file_system: u32,
}

/// A directory that was read and has subdirectories.
pub(super) struct Opened {
    pub(super) path: Vec<u8>,
    /// `None` if too many are open already: subdirectories are then opened by path.
    pub(super) fd: Option<OwnedFd>,
    kept_open: Arc<AtomicUsize>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.fd.is_some() {
            self.kept_open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What reading a directory gave.
pub(super) struct Outcome {
    /// Numbers of file systems are those of [`FileSystems`]; names of inodes with several names have no stat yet.
    pub(super) listing: Listing,
    pub(super) subdirectories: Vec<Arc<Node>>,
    pub(super) problems: Vec<Problem>,
    /// Its share in the look-ahead.
    pub(super) cost: usize,
}

impl Outcome {
    pub(super) fn new(listing: Listing) -> Outcome {
        let cost = 1 + listing.entries.len() + listing.path.len() / PATH_BYTES_PER_ENTRY;
        Outcome { listing, subdirectories: Vec::new(), problems: Vec::new(), cost }
    }
}

impl Node {
    pub(super) fn new(task: Task) -> Arc<Node> {
        Arc::new(Node { state: Mutex::new(State::Waiting(task)), done: Condvar::new(), slot: AtomicU32::new(0) })
    }

    pub(super) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// Takes the task if nobody has.
    fn claim(&self) -> Option<Task> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Running { awaited: false }) {
            State::Waiting(task) => Some(task),
            other => {
                *state = other;
                None
            }
        }
    }

    fn complete(&self, outcome: Box<Outcome>) {
        let before = std::mem::replace(&mut *lock(&self.state), State::Done(outcome));
        if matches!(before, State::Running { awaited: true }) {
            self.done.notify_one();
        }
    }
}

impl Task {
    pub(super) fn path(&self) -> Vec<u8> {
        match &self.parent {
            None => Vec::new(),
            Some(parent) => join(&parent.path, &self.name),
        }
    }
}

impl Engine {
    pub(super) fn new(
        root: OwnedFd,
        options: &ScanOptions,
        most_kept_open: usize,
        shared: bool,
    ) -> io::Result<(Engine, Arc<Node>)> {
        let stat = read::stat_of(root.as_fd(), c"")?;
        let file_systems = FileSystems::default();
        let file_system = file_systems.index_of(stat.dev, || root.try_clone().ok());
        let node = Node::new(Task { parent: None, name: Box::default(), file_system });
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_SLACK);
        let engine = Engine {
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
            shared,
            list: Mutex::new(WorkList::new(Arc::clone(&node))),
            work: Condvar::new(),
            idle: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            ahead: AtomicUsize::new(0),
            most_ahead: options.ahead_entries.max(1),
        };
        Ok((engine, node))
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

    /// Reads directories until the scan is over: the life of a thread.
    pub(super) fn work(&self) {
        let mut reader = Reader::new();
        while let Some((node, task)) = self.wait_for_work() {
            self.run(&node, task, &mut reader);
        }
    }

    fn wait_for_work(&self) -> Option<(Arc<Node>, Task)> {
        let mut list = lock(&self.list);
        let mut most = self.most_ahead;
        loop {
            if list.stopped {
                return None;
            }
            if let Some(found) = self.first_waiting(&list, most) {
                return Some(found);
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
            // Once the look-ahead is full, half of it must be delivered before reading goes on: one
            // long sleep instead of many short ones.
            if self.ahead.load(Ordering::SeqCst) >= self.most_ahead {
                most = self.most_ahead / 2 + 1;
            }
            // Looked at again after `idle` was raised, or a delivery in between could fail to wake this thread.
            if self.ahead.load(Ordering::SeqCst) >= most || self.is_dry(&list) {
                list = self.work.wait(list).unwrap_or_else(PoisonError::into_inner);
            }
            self.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn first_waiting(&self, list: &WorkList, most_ahead: usize) -> Option<(Arc<Node>, Task)> {
        if self.ahead.load(Ordering::SeqCst) >= most_ahead {
            return None;
        }
        list.first(|node| node.claim().map(|task| (Arc::clone(node), task)))
    }

    fn is_dry(&self, list: &WorkList) -> bool {
        list.first(|node| matches!(*lock(&node.state), State::Waiting(_)).then_some(())).is_none()
    }

    /// Reads a claimed directory and leaves its listing in the node.
    fn run(&self, node: &Arc<Node>, task: Task, reader: &mut Reader) {
        let guard = Completion { engine: self, node, path: task.path(), file_system: task.file_system, done: false };
        let outcome = read::directory(self, reader, task);
        guard.complete(outcome);
    }

    /// Puts the subdirectories of a directory that was read in its place.
    fn share(&self, node: &Node, subdirectories: &[Arc<Node>], spare: usize) {
        let mut list = lock(&self.list);
        if list.stopped {
            return;
        }
        list.replace(node.slot.load(Ordering::Relaxed), subdirectories);
        // The one who read the directory goes on with the first of them.
        self.wake(list, subdirectories.len().saturating_sub(spare));
    }

    fn wake(&self, list: MutexGuard<'_, WorkList>, tasks: usize) {
        let idle = self.idle.load(Ordering::SeqCst);
        drop(list);
        match tasks.min(idle) {
            0 => {}
            1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
    }

    /// Returns the listing of `node`: takes it, makes it, or waits for the thread that is making it.
    pub(super) fn outcome_of(&self, node: &Arc<Node>, reader: &mut Reader) -> Outcome {
        loop {
            if let Some(task) = node.claim() {
                let outcome = read::directory(self, reader, task);
                if self.shared {
                    self.share(node, &outcome.subdirectories, 1);
                }
                // Delivered at once, but counted like all others.
                self.ahead.fetch_add(outcome.cost, Ordering::SeqCst);
                *lock(&node.state) = State::Taken;
                return outcome;
            }
            if let Some(outcome) = self.take(node, false) {
                return outcome;
            }
            // Rather than sleep, read another directory meanwhile.
            let other = self.first_waiting(&lock(&self.list), self.most_ahead);
            match other {
                Some((other, task)) => self.run(&other, task, reader),
                None => {
                    if let Some(outcome) = self.take(node, true) {
                        return outcome;
                    }
                }
            }
        }
    }

    fn take(&self, node: &Node, wait: bool) -> Option<Outcome> {
        let mut state = lock(&node.state);
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Done(outcome) => return Some(*outcome),
                State::Running { .. } if wait => {
                    *state = State::Running { awaited: true };
                    state = node.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                other => {
                    *state = other;
                    return None;
                }
            }
        }
    }

    /// Takes a delivered listing off the look-ahead, and wakes the threads when there is room again.
    pub(super) fn delivered(&self, cost: usize) {
        let before = self.ahead.fetch_sub(cost, Ordering::SeqCst);
        let room = self.most_ahead / 2;
        if before > room && before - cost <= room && self.idle.load(Ordering::SeqCst) > 0 {
            // Under the lock, or a thread that is just about to sleep would miss it.
            let list = lock(&self.list);
            self.wake(list, usize::MAX);
        }
    }

    /// Makes all threads end.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut list = lock(&self.list);
        list.stopped = true;
        let left = list.clear();
        drop(list);
        self.work.notify_all();
        dismantle(left);
    }

    /// Tells whether the scan was given up, so that a thread need not read a large directory to its end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// Completes a node even if reading it panics: the caller would wait for it for ever.
struct Completion<'a> {
    engine: &'a Engine,
    node: &'a Arc<Node>,
    path: Vec<u8>,
    file_system: u32,
    done: bool,
}

impl Completion<'_> {
    fn complete(mut self, outcome: Outcome) {
        self.done = true;
        self.finish(Box::new(outcome));
    }

    fn finish(&self, outcome: Box<Outcome>) {
        self.engine.ahead.fetch_add(outcome.cost, Ordering::SeqCst);
        self.engine.share(self.node, &outcome.subdirectories, 1);
        self.node.complete(outcome);
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let message = "an internal error ended the scan of this directory".to_owned();
        let problem = Problem {
            path: path.clone(),
            kind: ProblemKind::Unreadable,
            message,
            errno: rustix::io::Errno::IO.raw_os_error(),
        };
        self.finish(Box::new(Outcome::new(read::unreadable(path, self.file_system, problem))));
    }
}

/// Takes nodes apart one by one: a chain of directories that was read far ahead is as deep as the
/// tree, too deep for nested drops.
pub(super) fn dismantle(mut nodes: Vec<Arc<Node>>) {
    while let Some(node) = nodes.pop() {
        let mut state = lock(&node.state);
        // One that is being read still gets its outcome from its thread.
        if !matches!(*state, State::Running { .. })
            && let State::Done(outcome) = std::mem::replace(&mut *state, State::Taken)
        {
            nodes.extend(outcome.subdirectories);
        }
    }
}
