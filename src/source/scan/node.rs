//! One directory on its way through the scan: waiting, being read, or read.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::listing::{Listing, Problem, join};
use crate::mutex::lock;

/// Bytes of a listing's path that count as one entry in the look-ahead: paths of very deep trees weigh more than
/// what they lead to.
const PATH_BYTES_PER_ENTRY: usize = 64;

/// One directory: waiting, being read, or read.
pub(super) struct Node {
    state: Mutex<NodeState>,
    done: Condvar,
    /// Its place in the work list, while it has one.
    slot: AtomicU32,
}

enum NodeState {
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
    /// How many directories are open.
    pub(super) kept_open: Arc<AtomicUsize>,
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
    /// Numbers of file systems are those of [`FileSystems`](super::mounts::FileSystems); names of inodes with several names have no stat yet.
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
        Arc::new(Node { state: Mutex::new(NodeState::Waiting(task)), done: Condvar::new(), slot: AtomicU32::new(0) })
    }

    pub(super) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// Returns its place in the work list.
    pub(super) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Returns whether nobody has taken the task.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(*lock(&self.state), NodeState::Waiting(_))
    }

    /// Notes that the one who claimed the task has handed on its outcome, too.
    pub(super) fn set_taken(&self) {
        *lock(&self.state) = NodeState::Taken;
    }

    /// Takes the task if nobody has.
    pub(super) fn claim(&self) -> Option<Task> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, NodeState::Running { awaited: false }) {
            NodeState::Waiting(task) => Some(task),
            other => {
                *state = other;
                None
            }
        }
    }

    pub(super) fn complete(&self, outcome: Box<Outcome>) {
        let before = std::mem::replace(&mut *lock(&self.state), NodeState::Done(outcome));
        if matches!(before, NodeState::Running { awaited: true }) {
            self.done.notify_one();
        }
    }

    /// Takes the outcome; if `wait`, waits for the thread that is making it.
    pub(super) fn take(&self, wait: bool) -> Option<Outcome> {
        let mut state = lock(&self.state);
        loop {
            match std::mem::replace(&mut *state, NodeState::Taken) {
                NodeState::Done(outcome) => return Some(*outcome),
                NodeState::Running { .. } if wait => {
                    *state = NodeState::Running { awaited: true };
                    state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                other => {
                    *state = other;
                    return None;
                }
            }
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

/// Takes nodes apart one by one: a chain of directories that was read far ahead is as deep as the
/// tree, too deep for nested drops.
pub(super) fn dismantle(mut nodes: Vec<Arc<Node>>) {
    while let Some(node) = nodes.pop() {
        let mut state = lock(&node.state);
        // One that is being read still gets its outcome from its thread.
        if !matches!(*state, NodeState::Running { .. })
            && let NodeState::Done(outcome) = std::mem::replace(&mut *state, NodeState::Taken)
        {
            nodes.extend(outcome.subdirectories);
        }
    }
}
