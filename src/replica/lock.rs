//! The lock of a store: held by the one process that writes, or shared by those that keep writers out.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use super::error::{ReplicaError, io_error, refused};
use super::format::LOCK;
use crate::access;
use crate::flock::{self, Hold};

/// How long a lock is waited for: a program that its holder was just starting keeps a copy of it until it runs.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Takes the writer's lock, or says who has it. The lock ends with the process, however it ends.
pub(crate) fn take_lock(path: &Path) -> Result<File, ReplicaError> {
    let file_path = path.join(LOCK);
    let mut file = access::open_or_create(&file_path).map_err(refused(path, "Cannot open", &file_path))?;
    match flock::acquire(&file, Hold::Alone, LOCK_WAIT) {
        Ok(()) => {
            // Only told to people; nothing depends on it.
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
/// It asks the kernel's list of locks and does not try the lock, lest a run that begins right now finds it taken.
pub fn lock_holder(path: &Path) -> Option<String> {
    let mut file = File::open(path.join(LOCK)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    // One elsewhere may hold a file that has the same number by chance.
    flock::holders(&file).into_iter().any(|process| names(&text, process)).then(|| text.trim().to_owned())
}
