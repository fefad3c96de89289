//! The lock of a store: held by the one process that writes, or shared by those that keep writers out.
//!
//! Whoever waits for the lock tries it again and again. `flock` knows no time limit: a thread that is blocked in it could not be called back when the time is
//! over, or when the user interrupts the wait. A try costs some microseconds, so five in a second cost nothing that could be measured; and as nothing is kept
//! open between two tries, a store may be unmounted or replaced meanwhile. Of several that wait, any may be the next.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::config::StoreConfig;
use super::error::{ReplicaError, io_error, refused};
use super::format::LOCK;
use crate::access;
use crate::flock::{self, Hold};

/// How long a lock is waited for: a program that its holder was just starting keeps a copy of it until it runs.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How often the lock is tried while another run has it: soon enough for people, and seldom enough for a network file system.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// A wait for another run to end.
pub struct LockWait<'a> {
    /// How long it may take.
    pub limit: Duration,
    /// Ends it when it is set.
    pub interrupt: &'a AtomicBool,
    /// Called once, when it begins, with the error that says who has the lock.
    pub begins: &'a mut dyn FnMut(&ReplicaError),
}

impl LockWait<'_> {
    /// Does some work without waiting for another run.
    pub(super) fn none<T>(work: impl FnOnce(LockWait<'_>) -> T) -> T {
        work(LockWait { limit: Duration::ZERO, interrupt: &AtomicBool::new(false), begins: &mut |_| {} })
    }

    /// Takes the writer's lock as soon as nobody else has it; also returns how long that took.
    pub(super) fn take_lock(self, path: &Path) -> Result<(File, Duration), ReplicaError> {
        let started = Instant::now();
        let mut waited = Duration::ZERO;
        loop {
            // Where there is no store, or none any more, no lock is made.
            StoreConfig::read(path)?;
            let patience = if waited.is_zero() { LOCK_WAIT } else { Duration::ZERO };
            let locked = match try_lock(path, patience) {
                Err(error @ ReplicaError::Locked { .. }) => error,
                other => return Ok((other?, waited)),
            };
            if waited.is_zero() && !self.limit.is_zero() {
                (self.begins)(&locked);
            }
            waited = started.elapsed();
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(ReplicaError::WaitInterrupted { path: path.display().to_string() });
            }
            if waited >= self.limit {
                return Err(locked);
            }
            std::thread::sleep(TRY_EVERY.min(self.limit - waited));
        }
    }
}

/// Waits until no other run has the lock of a store. Another one may take it right away. What is wrong with the store is left to others to find.
///
/// # Errors
/// [`ReplicaError::Locked`] when the time is over, [`ReplicaError::WaitInterrupted`].
pub fn wait_until_unlocked(path: &Path, wait: LockWait<'_>) -> Result<(), ReplicaError> {
    match wait.take_lock(path) {
        Err(error @ (ReplicaError::Locked { .. } | ReplicaError::WaitInterrupted { .. })) => Err(error),
        _ => Ok(()),
    }
}

/// Takes the writer's lock, or says who has it. The lock ends with the process, however it ends.
pub(crate) fn take_lock(path: &Path) -> Result<File, ReplicaError> {
    try_lock(path, LOCK_WAIT)
}

fn try_lock(path: &Path, patience: Duration) -> Result<File, ReplicaError> {
    let file_path = path.join(LOCK);
    let mut file = access::open_or_create(&file_path).map_err(refused(path, "Cannot open", &file_path))?;
    match flock::acquire(&file, Hold::Alone, patience) {
        Ok(()) => {
            // Only for people to read; nothing depends on it.
            let _ = file.set_len(0);
            let _ = file
                .write_all(format!("process {}, since {}\n", std::process::id(), jiff::Timestamp::now()).as_bytes());
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Err(locked(path, &mut file)),
        Err(error) => Err(io_error("Cannot lock", &file_path)(error.into())),
    }
}

/// Keeps writers out, together with others that do the same.
pub(crate) fn share_lock(path: &Path) -> Result<File, ReplicaError> {
    let file_path = path.join(LOCK);
    let mut file = File::open(&file_path).map_err(refused(path, "Cannot open", &file_path))?;
    match flock::acquire(&file, Hold::Shared, LOCK_WAIT) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(locked(path, &mut file)),
        Err(error) => Err(io_error("Cannot lock", &file_path)(error.into())),
    }
}

fn locked(path: &Path, file: &mut File) -> ReplicaError {
    let mut text = String::new();
    let _ = file.rewind();
    let _ = file.read_to_string(&mut text);
    // The text is that of the last run, which need not be who holds it now.
    let holders = flock::holders(file);
    let is_run = holders.is_empty() || holders.iter().any(|process| names(&text, *process));
    let holder = match (is_run, text.trim()) {
        (true, "") => String::new(),
        (true, text) => format!(" ({text})"),
        (false, _) => format!(" ({})", flock::in_words(&holders)),
    };
    ReplicaError::Locked { path: path.display().to_string(), holder }
}

/// Returns whether a lock's text is that of a process. One that is not visible from here is 0.
fn names(text: &str, process: u32) -> bool {
    process == 0 || text.starts_with(&format!("process {process},"))
}

/// Returns which process writes to the store now, as its lock says; `None` when none does, as far as this host can see.
///
/// It reads the kernel's list of locks and does not try the lock, lest a run that begins right now finds it taken.
pub fn lock_holder(path: &Path) -> Option<String> {
    let mut file = File::open(path.join(LOCK)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    // One elsewhere may hold a file that has the same number by chance.
    flock::holders(&file).into_iter().any(|process| names(&text, process)).then(|| text.trim().to_owned())
}
