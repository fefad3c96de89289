//! Objects in memory, with the failures a disk has: what was not synced can get lost, and any operation can fail.
//!
//! It is the second implementation of [`Backend`], made for tests of crash safety: run a scenario, let operation N
//! fail, [`MemoryBackend::crash`], open everything again and look, for every N.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::{Backend, BackendError, check_key};

/// One operation on a [`MemoryBackend`], in its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// An object was put.
    Put {
        /// The key.
        key: String,
        /// Its length in bytes.
        length: u64,
    },
    /// Everything was synced.
    Sync,
    /// A range was read.
    Read {
        /// The key.
        key: String,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// The length of an object was requested.
    Size {
        /// The key.
        key: String,
    },
    /// Objects were listed.
    List {
        /// The prefix.
        prefix: String,
    },
    /// An object was deleted.
    Delete {
        /// The key.
        key: String,
    },
}

type Objects = BTreeMap<String, Arc<[u8]>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Never,
    /// The operation after so many more fails, those after it succeed.
    Once(u64),
    /// From the operation after so many more on, all fail.
    From(u64),
}

struct State {
    current: Objects,
    durable: Objects,
    log: Vec<Operation>,
    failure: Failure,
}

/// Keeps objects in memory, logs all operations, and fails and forgets on demand.
pub struct MemoryBackend {
    state: Mutex<State>,
}

impl Default for MemoryBackend {
    fn default() -> Self {
        MemoryBackend::new()
    }
}

impl MemoryBackend {
    /// Creates an empty backend that does not fail.
    pub fn new() -> MemoryBackend {
        let (current, durable) = (Objects::new(), Objects::new());
        MemoryBackend { state: Mutex::new(State { current, durable, log: Vec::new(), failure: Failure::Never }) }
    }

    /// Makes a backend of its own with the same objects, synced or not as they are here, and without log and failures.
    pub fn fork(&self) -> MemoryBackend {
        let state = self.state();
        let (current, durable) = (state.current.clone(), state.durable.clone());
        MemoryBackend { state: Mutex::new(State { current, durable, log: Vec::new(), failure: Failure::Never }) }
    }

    /// Undoes every put and delete since the last sync, and ends any failure that was set.
    pub fn crash(&self) {
        let mut state = self.state();
        state.current = state.durable.clone();
        state.failure = Failure::Never;
    }

    /// Undoes a random part, chosen by `seed`, of the puts and deletes since the last sync, as a real disk does.
    pub fn crash_keeping_some(&self, seed: u64) {
        let mut state = self.state();
        let mut random = seed;
        let State { current, durable, .. } = &mut *state;
        let mut changed: Vec<String> = current.keys().chain(durable.keys()).cloned().collect();
        changed.sort_unstable();
        changed.dedup();
        for key in changed {
            if current.get(&key) == durable.get(&key) {
                continue;
            }
            if split_mix(&mut random) & 1 == 0 {
                match durable.get(&key) {
                    Some(bytes) => current.insert(key, Arc::clone(bytes)),
                    None => current.remove(&key),
                };
            }
        }
        state.durable = state.current.clone();
        state.failure = Failure::Never;
    }

    /// Makes the `n`-th operation from now fail (1 is the next), once; those after it work again.
    pub fn fail_after(&self, n: u64) {
        self.state().failure = Failure::Once(n.saturating_sub(1));
    }

    /// Makes the `n`-th operation from now (1 is the next) and all after it fail until the next crash, as if the
    /// process had died there.
    pub fn die_after(&self, n: u64) {
        self.state().failure = Failure::From(n.saturating_sub(1));
    }

    /// Returns all operations so far, failed ones included.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().log.clone()
    }

    /// Empties the log.
    pub fn clear_operations(&self) {
        self.state().log.clear();
    }

    /// Replaces the bytes of an object, or removes it with `None`, durably and unlogged: damage for tests.
    pub fn damage(&self, key: &str, bytes: Option<Vec<u8>>) {
        let mut state = self.state();
        match bytes.map(Arc::<[u8]>::from) {
            Some(bytes) => {
                state.current.insert(key.to_owned(), Arc::clone(&bytes));
                state.durable.insert(key.to_owned(), bytes);
            }
            None => {
                state.current.remove(key);
                state.durable.remove(key);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs an operation and lets it fail if it is its turn; else returns the state to carry it out on.
    fn begin(&self, operation: Operation) -> Result<MutexGuard<'_, State>, BackendError> {
        let mut state = self.state();
        let (fails, failure) = match state.failure {
            Failure::Never => (false, Failure::Never),
            Failure::Once(0) => (true, Failure::Never),
            Failure::Once(left) => (false, Failure::Once(left - 1)),
            Failure::From(0) => (true, Failure::From(0)),
            Failure::From(left) => (false, Failure::From(left - 1)),
        };
        state.failure = failure;
        let refused = fails.then(|| BackendError::io("carry out", format!("{operation:?}"), injected()));
        state.log.push(operation);
        refused.map_or(Ok(state), Err)
    }
}

impl Backend for MemoryBackend {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        check_key(key)?;
        let bytes = parts.concat();
        let mut state = self.begin(Operation::Put { key: key.to_owned(), length: bytes.len() as u64 })?;
        if state.current.contains_key(key) {
            return Err(BackendError::Exists { key: key.to_owned() });
        }
        state.current.insert(key.to_owned(), bytes.into());
        Ok(())
    }

    fn sync(&self) -> Result<(), BackendError> {
        let mut state = self.begin(Operation::Sync)?;
        state.durable = state.current.clone();
        Ok(())
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        check_key(key)?;
        let length = buffer.len() as u64;
        let state = self.begin(Operation::Read { key: key.to_owned(), offset, length })?;
        let bytes = state.current.get(key).ok_or_else(|| BackendError::NotFound { key: key.to_owned() })?;
        let wanted = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| BackendError::out_of_range(key, offset, buffer.len()))?;
        buffer.copy_from_slice(wanted);
        Ok(())
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        check_key(key)?;
        let state = self.begin(Operation::Size { key: key.to_owned() })?;
        Ok(state.current.get(key).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        let state = self.begin(Operation::List { prefix: prefix.to_owned() })?;
        let matching = state.current.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(matching.map(|(key, bytes)| (key.clone(), bytes.len() as u64)).collect())
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        check_key(key)?;
        let mut state = self.begin(Operation::Delete { key: key.to_owned() })?;
        state.current.remove(key).map(drop).ok_or_else(|| BackendError::NotFound { key: key.to_owned() })
    }
}

fn injected() -> io::Error {
    io::Error::other("this failure was set")
}

/// Steps the SplitMix64 generator (Steele, Lea and Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
