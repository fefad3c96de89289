//! Locks of files (`flock`): waiting for one no longer than a limit, and who holds one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::access::user_name;

/// How often a lock that is waited for is tried.
const TICK: Duration = Duration::from_millis(20);

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Together with others.
    Shared,
    /// Alone.
    Alone,
}

/// Takes a lock, waiting at most `limit` for it.
///
/// # Errors
/// `WOULDBLOCK` when somebody else holds it all the time.
pub(crate) fn acquire(file: &File, hold: Hold, limit: Duration) -> Result<(), Errno> {
    let operation = match hold {
        Hold::Shared => FlockOperation::NonBlockingLockShared,
        Hold::Alone => FlockOperation::NonBlockingLockExclusive,
    };
    let started = Instant::now();
    loop {
        match flock(file, operation) {
            Err(Errno::WOULDBLOCK) if started.elapsed() < limit => std::thread::sleep(TICK),
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Waits for a lock, at most `limit`.
///
/// # Errors
/// `TimedOut` when somebody else holds it all the time; the text names them.
pub(crate) fn wait(file: &File, path: &Path, hold: Hold, limit: Duration) -> io::Result<()> {
    match acquire(file, hold, limit) {
        Err(Errno::WOULDBLOCK) => {
            let text = format!(
                "{} was locked for {} s by {}. Wait for that to end, or end it; then run the same command again",
                path.display(),
                limit.as_secs(),
                in_words(&holders(file))
            );
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
        other => Ok(other?),
    }
}

/// Returns the processes that hold a lock on a file, as far as this host's kernel reports them; 0 for one that cannot be seen from here.
pub(crate) fn holders(file: &File) -> Vec<u32> {
    let Ok(inode) = file.metadata().map(|metadata| metadata.ino().to_string()) else { return Vec::new() };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`: process, then device and inode. Who waits has `->` before the kind.
    let held = locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let process = words.nth(2)?;
        (words.next()?.rsplit(':').next() == Some(&inode)).then(|| process.parse().unwrap_or(0))
    });
    held.collect()
}

/// Names processes: number, program and user.
pub(crate) fn in_words(processes: &[u32]) -> String {
    let one = |process: &u32| {
        let directory = Path::new("/proc").join(process.to_string());
        let program = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        match fs::metadata(&directory) {
            Ok(metadata) if *process != 0 => {
                format!("process {process} ({}, user {})", program.trim_end(), user_name(metadata.uid()))
            }
            _ => "a process that cannot be seen from here".to_owned(),
        }
    };
    let words: Vec<String> = processes.iter().map(one).collect();
    if words.is_empty() { "a process on another host".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_a_lock_ends_and_names_who_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gate");
        let held = File::create(&path).unwrap();
        flock(&held, FlockOperation::LockShared).unwrap();
        let other = File::open(&path).unwrap();
        wait(&other, &path, Hold::Shared, Duration::ZERO).unwrap();
        flock(&other, FlockOperation::Unlock).unwrap();
        let error = wait(&other, &path, Hold::Alone, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let text = error.to_string();
        let own = format!("process {}", std::process::id());
        assert!(text.contains(&own) && text.contains(path.to_str().unwrap()) && text.contains("user "), "{text}");
        assert_eq!(holders(&other), [std::process::id()]);
        drop(held);
        wait(&other, &path, Hold::Alone, Duration::from_millis(50)).unwrap();
    }
}
