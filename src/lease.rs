//! Leases: which snapshots a process still reads, so that no prune removes them.
//!
//! A lease is a file in `leases/` of the store that its holder keeps locked (`flock`) as long as it lives. The lock ends with the process, however
//! that ends, and the lease with it; the file that is left means nothing and is swept away. Whoever removes snapshots holds `leases/gate` alone
//! while it reads the leases and commits the removal; whoever takes a lease shares it meanwhile, and looks afterwards whether what it leased is
//! still there. So nothing that is leased is removed, and nothing that is being removed is leased.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::access;
use crate::flock::{self, Hold};

const DIRECTORY: &str = "leases";
const GATE: &str = "gate";
const SUFFIX: &str = ".lease";
/// The gate is held for as long as a commit takes, or a look. Who finds it closed for longer says so instead of waiting forever.
const GATE_LIMIT: Duration = Duration::from_secs(60);
/// Longer files are no leases.
const MAX_BYTES: u64 = 1 << 20;

/// Who holds what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Process that holds it.
    pub pid: u32,
    /// Host that the process runs on.
    pub host: String,
    /// Since when.
    pub since: jiff::Timestamp,
    /// Where the snapshots are mounted.
    pub mount_point: String,
    /// Identifiers of the snapshots that must stay.
    pub snapshots: Vec<String>,
}

impl LeaseInfo {
    /// Describes this process as the holder.
    pub fn of_this_process(mount_point: &Path, snapshots: Vec<String>) -> LeaseInfo {
        LeaseInfo {
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            since: jiff::Timestamp::now(),
            mount_point: mount_point.display().to_string(),
            snapshots,
        }
    }
}

/// A lease that is held until it is dropped.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    _file: File,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // While the lock still holds, so nobody else can have a file under this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Numbers the leases of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes a lease. The caller then looks whether the snapshots are still there.
///
/// # Errors
/// Fails when the store cannot be written to.
pub fn take(store: &Path, info: &LeaseInfo) -> io::Result<Lease> {
    let directory = store.join(DIRECTORY);
    let gate = open_gate(&directory)?;
    if flock(&gate, FlockOperation::NonBlockingLockExclusive).is_ok() {
        sweep(&directory)?;
    }
    flock::wait(&gate, &directory.join(GATE), Hold::Shared, GATE_LIMIT)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let stamp = info.since.as_nanosecond();
    let path = directory.join(format!("{}-{stamp}-{number}{SUFFIX}", info.pid));
    let mut file = access::create(&path, access::FILE_MODE)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(&serde_json::to_vec(info)?)?;
    Ok(Lease { path, _file: file })
}

/// The gate, closed: nobody takes a lease until it is dropped.
#[derive(Debug)]
pub struct ClosedGate {
    _file: File,
}

/// Closes the gate: waits for those who are just taking a lease, and lets nobody take one until the result is dropped. Held while snapshots
/// are removed, from reading the leases to the end of the commit.
///
/// # Errors
/// Fails when the store cannot be written to, and with `TimedOut` when somebody else holds the gate for a minute; the text names them.
pub fn close_gate(store: &Path) -> io::Result<ClosedGate> {
    close_gate_within(store, GATE_LIMIT)
}

fn close_gate_within(store: &Path, limit: Duration) -> io::Result<ClosedGate> {
    let directory = store.join(DIRECTORY);
    let file = open_gate(&directory)?;
    flock::wait(&file, &directory.join(GATE), Hold::Alone, limit)?;
    Ok(ClosedGate { _file: file })
}

fn open_gate(directory: &Path) -> io::Result<File> {
    access::create_directory(directory)?;
    access::open_or_create(&directory.join(GATE))
}

/// Returns the leases that are held now, in order of their files' names.
///
/// # Errors
/// Fails when the store cannot be read.
pub fn list(store: &Path) -> io::Result<Vec<LeaseInfo>> {
    let mut held = Vec::new();
    for (_, file) in open_all(&store.join(DIRECTORY))? {
        if is_held(&file)? {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
            // A lease just being written has no text yet; its holder looks again whether its snapshots are there.
            held.extend(serde_json::from_slice::<LeaseInfo>(&bytes).ok());
        }
    }
    Ok(held)
}

fn is_held(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            flock(file, FlockOperation::Unlock)?;
            Ok(false)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn open_all(directory: &Path) -> io::Result<Vec<(PathBuf, File)>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in listing {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        match File::open(&path) {
            Ok(file) => files.push((path, file)),
            // Given back meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Removes the files of leases whose holders died. The caller holds the gate alone, so none is just being made.
fn sweep(directory: &Path) -> io::Result<()> {
    for (path, file) in open_all(directory)? {
        if !is_held(&file)? {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_somebody_else_holds_is_not_waited_for_for_ever() {
        let store = tempfile::tempdir().unwrap();
        let gate = open_gate(&store.path().join(DIRECTORY)).unwrap();
        flock(&gate, FlockOperation::LockShared).unwrap();
        let error = close_gate_within(store.path(), Duration::from_millis(20)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("process {} (", std::process::id())) && text.contains("leases/gate"), "{text}");
        drop(gate);
        close_gate_within(store.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_lease_lasts_as_long_as_its_holder() {
        let store = tempfile::tempdir().unwrap();
        assert_eq!(list(store.path()).unwrap(), []);
        let info = LeaseInfo::of_this_process(Path::new("/mnt/a"), vec!["0a".to_owned()]);
        let lease = take(store.path(), &info).unwrap();
        let other = take(store.path(), &LeaseInfo { snapshots: vec!["0b".to_owned()], ..info.clone() }).unwrap();
        let held = list(store.path()).unwrap();
        assert_eq!(held.len(), 2);
        assert_eq!(held[0], info);
        drop(lease);
        assert_eq!(list(store.path()).unwrap()[0].snapshots, ["0b"]);

        // A holder that died leaves a file without a lock.
        let left = store.path().join("leases/1-2-3.lease");
        fs::write(&left, serde_json::to_vec(&info).unwrap()).unwrap();
        assert_eq!(list(store.path()).unwrap().len(), 1);
        drop(other);
        let third = take(store.path(), &info).unwrap();
        assert!(!left.exists(), "swept away");
        drop(third);
        assert_eq!(fs::read_dir(store.path().join("leases")).unwrap().count(), 1, "the gate stays");
    }
}
