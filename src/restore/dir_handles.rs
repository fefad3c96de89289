//! Directories of the target that are open.
//!
//! Of the directories that are worked in only so many are open as the process can spare. The others are closed and opened again when they are needed: from a
//! directory below by `..`, or from one above by name, and only if device and inode are still the same.
//!
//! Memory: some 100 bytes for each directory that is worked in.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::io::Errno;

use super::inode::Identity;
use crate::mutex::lock;

/// Most directories held open, however many may be: enough to find each again where it is, save in trees that are very deep.
const MOST_DIRECTORIES: usize = 512;
/// Fewest: those that one step needs at a time.
const FEWEST_DIRECTORIES: usize = 4;
/// Files that a thread of the restore has open at a time: the one it writes, the pack that it reads, a directory that it links from, and one that it
/// looks at.
const FILES_OF_A_THREAD: usize = 4;
/// Files that all else may need meanwhile: packs kept open, the catalogue, a look at the owners' names.
const SPARE_FILES: usize = 8;
/// How often and how long a full table of files is waited for, which other threads, or other programs, empty again.
const RETRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// One directory that is worked in.
pub(super) struct DirHandle {
    /// Device and inode.
    pub(super) identity: Identity,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    open: Arc<AtomicUsize>,
}

impl DirHandle {
    /// Returns the directory if it is open.
    pub(super) fn get(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.fd).clone()
    }

    /// Closes the directory unless somebody uses it. Returns whether it did.
    fn close(&self) -> bool {
        let mut fd = lock(&self.fd);
        let is_idle = fd.as_ref().is_some_and(|fd| Arc::strong_count(fd) == 1);
        if is_idle {
            *fd = None;
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        is_idle
    }
}

impl Drop for DirHandle {
    fn drop(&mut self) {
        if lock(&self.fd).take().is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How many threads a restore may have with so many files that it may open.
pub(super) fn threads(wanted: usize, files_left: usize) -> usize {
    wanted.min(files_left.saturating_sub(SPARE_FILES) / 2 / FILES_OF_A_THREAD).max(1)
}

/// All directories that are worked in.
pub(super) struct DirHandles {
    most: usize,
    open: Arc<AtomicUsize>,
    /// In the order in which they were opened. Some may be closed again, or done.
    order: Mutex<VecDeque<Weak<DirHandle>>>,
}

impl DirHandles {
    /// Takes the share of the files that `threads` leave.
    pub(super) fn new(files_left: usize, threads: usize) -> DirHandles {
        let share = files_left.saturating_sub(SPARE_FILES + threads * FILES_OF_A_THREAD);
        DirHandles {
            most: share.clamp(FEWEST_DIRECTORIES, MOST_DIRECTORIES),
            open: Arc::default(),
            order: Mutex::default(),
        }
    }

    /// Takes an open directory, and closes another one if there are too many.
    pub(super) fn admit(&self, fd: OwnedFd, identity: Identity) -> (Arc<DirHandle>, Arc<OwnedFd>) {
        let handle = Arc::new(DirHandle { identity, fd: Mutex::default(), open: Arc::clone(&self.open) });
        let fd = self.reopened(&handle, fd);
        (handle, fd)
    }

    /// Takes a directory that was opened again.
    pub(super) fn reopened(&self, handle: &Arc<DirHandle>, fd: OwnedFd) -> Arc<OwnedFd> {
        while self.open.load(Ordering::Relaxed) >= self.most && self.close_one() {}
        let fd = {
            let mut held = lock(&handle.fd);
            if let Some(other) = &*held {
                // Another thread was quicker.
                return Arc::clone(other);
            }
            Arc::clone(held.insert(Arc::new(fd)))
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut order = lock(&self.order);
        if order.len() > 2 * self.most + RETRIES as usize {
            order.retain(|handle| handle.strong_count() > 0);
        }
        order.push_back(Arc::downgrade(handle));
        fd
    }

    /// Closes the directory that was opened first of those that nobody uses. Returns whether there was one.
    fn close_one(&self) -> bool {
        let mut order = lock(&self.order);
        for _ in 0..order.len() {
            let Some(handle) = order.pop_front().and_then(|handle| handle.upgrade()) else { continue };
            if handle.close() {
                return true;
            }
            if lock(&handle.fd).is_some() {
                order.push_back(Arc::downgrade(&handle));
            }
        }
        false
    }

    /// Does what opens a file. Where the process, or the system, has no more of them, a directory is closed or another thread waited for.
    pub(super) fn with_room<T>(&self, work: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        for _ in 0..RETRIES {
            match work() {
                Err(Errno::MFILE | Errno::NFILE) => {
                    if !self.close_one() {
                        std::thread::sleep(PAUSE);
                    }
                }
                answer => return answer,
            }
        }
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> OwnedFd {
        std::fs::File::open("/").unwrap().into()
    }

    #[test]
    fn few_files_are_shared_out_and_none_is_taken_from_who_uses_it() {
        assert_eq!((threads(8, 10_000), threads(8, 40), threads(8, 0)), (8, 4, 1));
        assert_eq!(DirHandles::new(1 << 20, 8).most, MOST_DIRECTORIES);
        assert_eq!(DirHandles::new(30, 2).most, 14);
        let handles = DirHandles::new(0, 1);
        assert_eq!(handles.most, FEWEST_DIRECTORIES);
        let (first, used) = handles.admit(directory(), (0, 0));
        let idle: Vec<_> = (1..100).map(|number| handles.admit(directory(), (0, number)).0).collect();
        let open = |all: &[Arc<DirHandle>]| all.iter().filter(|handle| handle.get().is_some()).count();
        assert_eq!((open(&idle), handles.open.load(Ordering::Relaxed)), (FEWEST_DIRECTORIES - 1, FEWEST_DIRECTORIES));
        assert!(first.get().is_some(), "one in use was closed");
        drop(used);
        handles.reopened(&idle[0], directory());
        handles.reopened(&idle[1], directory());
        handles.reopened(&idle[2], directory());
        handles.reopened(&idle[3], directory());
        assert!(first.get().is_none());
        drop((first, idle));
        assert_eq!(handles.open.load(Ordering::Relaxed), 0);
        // Those that are done are forgotten.
        for number in 0..10_000 {
            handles.admit(directory(), (0, number));
        }
        assert!(lock(&handles.order).len() < 1000);
    }
}
