//! Shares the directories among the threads and hands their listings over.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::context::{ScanContext, ScanOptions};
use super::listing::{Problem, ProblemKind};
use super::node::{Node, Outcome, Task, dismantle};
use super::queue::WorkList;
use super::read::{self, Reader};
use crate::mutex::lock;

/// Who reads which directory, and what waits for delivery.
pub(super) struct Engine {
    pub(super) context: ScanContext,
    /// Whether there are other threads than the caller's.
    shared: bool,
    list: Mutex<WorkList>,
    /// Waited for by idle threads, with `list`.
    work: Condvar,
    idle: AtomicUsize,
    /// Cost of what is scanned and not delivered.
    ahead: AtomicUsize,
    most_ahead: usize,
}

impl Engine {
    pub(super) fn new(
        root: OwnedFd,
        options: &ScanOptions,
        most_kept_open: usize,
        shared: bool,
    ) -> io::Result<(Engine, Arc<Node>)> {
        let (context, node) = ScanContext::new(root, options, most_kept_open)?;
        let engine = Engine {
            context,
            shared,
            list: Mutex::new(WorkList::new(Arc::clone(&node))),
            work: Condvar::new(),
            idle: AtomicUsize::new(0),
            ahead: AtomicUsize::new(0),
            most_ahead: options.ahead_entries.max(1),
        };
        Ok((engine, node))
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
        list.first(|node| node.is_waiting().then_some(())).is_none()
    }

    /// Reads a claimed directory and leaves its listing in the node.
    fn run(&self, node: &Arc<Node>, task: Task, reader: &mut Reader) {
        let guard = Completion { engine: self, node, path: task.path(), file_system: task.file_system, done: false };
        let outcome = read::directory(&self.context, reader, task);
        guard.complete(outcome);
    }

    /// Puts the subdirectories of a directory that was read in its place.
    fn share(&self, node: &Node, subdirectories: &[Arc<Node>], spare: usize) {
        let mut list = lock(&self.list);
        if list.stopped {
            return;
        }
        list.replace(node.slot(), subdirectories);
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
                let outcome = read::directory(&self.context, reader, task);
                if self.shared {
                    self.share(node, &outcome.subdirectories, 1);
                }
                // Delivered at once, but counted like all others.
                self.ahead.fetch_add(outcome.cost, Ordering::SeqCst);
                node.set_taken();
                return outcome;
            }
            if let Some(outcome) = node.take(false) {
                return outcome;
            }
            // Rather than sleep, read another directory meanwhile.
            let other = self.first_waiting(&lock(&self.list), self.most_ahead);
            match other {
                Some((other, task)) => self.run(&other, task, reader),
                None => {
                    if let Some(outcome) = node.take(true) {
                        return outcome;
                    }
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
        self.context.stop();
        let mut list = lock(&self.list);
        list.stopped = true;
        let left = list.clear();
        drop(list);
        self.work.notify_all();
        dismantle(left);
    }
}

/// Completes a node even if reading it panics: the caller would wait for it forever.
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
