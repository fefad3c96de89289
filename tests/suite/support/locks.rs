//! The lock of a store, taken by a process whose other tests start programs. A process that another test is just starting holds a copy of each open file, locks
//! included, until it runs its own program. So a lock that was let go may still be held for a moment.

use std::path::Path;
use std::time::Duration;

use zmreplica::replica::{LockedReplica, ReplicaError, lock_holder};
use zmreplica::store::LocalBackend;

use super::mounted::eventually;

/// Takes a store's lock, or whatever needs it.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T, ReplicaError>) -> T {
    for _ in 0..500 {
        match attempt() {
            Err(ReplicaError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("the store stays locked");
}

/// Rebuilds the catalogue of a store from its commit files.
pub fn rebuild(store: &Path) -> Result<u64, ReplicaError> {
    LockedReplica::rebuild_over(store, &LocalBackend::open(store)?)
}

/// Opens a store for writing.
pub fn open(store: &Path) -> LockedReplica {
    patiently(|| LockedReplica::open(store))
}

/// Waits until nobody has a store's lock: for what takes it next and does not wait.
pub fn wait_until_free(store: &Path) {
    eventually("the lock of the store is free", || lock_holder(store).is_none());
}

/// Does something that needs a store's lock, and waits until the lock is free.
pub fn locked<T>(store: &Path, work: impl FnOnce(&LockedReplica) -> T) -> T {
    let replica = open(store);
    let done = work(&replica);
    drop(replica);
    wait_until_free(store);
    done
}
