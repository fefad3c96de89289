//! The replica store as a whole: its directory, its settings, its lock.
//!
//! ```text
//! STORE/
//!   config.json      what the store says of itself: format, features, identifier; see `config`
//!   lock             flock'ed by the one process that writes
//!   catalog.redb     the catalogue; can be rebuilt from commits/
//!   commits/         commit files
//!   packs/           pack files
//!   cache/           known inodes of each source; may be deleted at any time
//! ```
//!
//! All of it is its owner's alone (module `access`).
//!
//! [`Replica`] reads, beside a writer if need be; [`LockedReplica`] is the only type that writes.

mod config;
mod error;
mod format;
mod lock;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::access;
use crate::catalog::commit;
use crate::catalog::commit_log::last_commit;
use crate::catalog::database::CatalogDatabase;
use crate::catalog::meta::STORE;
use crate::catalog::reader::CatalogReader;
use crate::catalog::roll_forward::roll_forward;
use crate::catalog::writer::CatalogWriter;
use crate::catalog::{CatalogError, FileFault, OpenError, RowKind, WriteError};
use crate::cause::During;
use crate::ids::CommitNumber;
use crate::store::backend::Backend;
use crate::store::codec::DictionarySet;
use crate::store::local::{LocalBackend, PROBE};
use crate::store::pack::PACK_PREFIX;
use crate::store::reader::ChunkReader;

pub use config::StoreConfig;
pub(crate) use config::{Unusable, is_id, is_like_store, oldest_object};
pub use error::ReplicaError;
use error::io_error;
pub(crate) use error::refuse_denied;
use format::LOCK;
pub(crate) use format::{CATALOG, CONFIG};
pub use format::{FEATURES, FORMAT_VERSION};
pub use lock::{LockWait, lock_holder, wait_until_unlocked};
pub(crate) use lock::{share_lock, take_lock};

/// A catalogue up to this size is small: to compact it takes some hundredths of a second. redb grows its file by doubling, which a small store would notice;
/// a large one finds use for its free pages in the nights to come.
pub const SMALL_CATALOG_BYTES: u64 = 32 << 20;

/// The directories of a new store.
const DIRECTORIES: [&str; 4] = ["commits", "packs", "cache", "leases"];

/// An open store that can be read.
pub struct Replica {
    path: PathBuf,
    config: StoreConfig,
    backend: Arc<dyn Backend>,
    database: Arc<CatalogDatabase>,
    dictionaries: Arc<DictionarySet>,
}

/// Makes a new store in a directory that does not exist or is empty.
///
/// # Errors
/// [`ReplicaError::NotEmpty`] when something is there already, a store included.
pub fn init(path: &Path) -> Result<StoreConfig, ReplicaError> {
    access::create_own_directory(path).map_err(io_error("Cannot create the directory", path))?;
    refuse_unless_empty(path)?;
    let config = StoreConfig::new(jiff::Timestamp::now())?;
    access::narrow(path);
    let _lock = probe(path)?;
    // Another one may have made a store here until now.
    refuse_unless_empty(path)?;
    // What a killed `init` left may be half a file, and holds nothing.
    let catalog = path.join(CATALOG);
    match fs::remove_file(&catalog) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("Cannot remove", &catalog)(error));
        }
        _ => {}
    }
    CatalogDatabase::open_or_create(&catalog)?;
    for directory in DIRECTORIES {
        let directory = path.join(directory);
        access::create_directory(&directory).map_err(io_error("Cannot create the directory", &directory))?;
    }
    // The settings come last: a directory without them is no store.
    config.write(path)?;
    Ok(config)
}

/// Tries whether a file system can hold a store, and returns the lock of the new one.
fn probe(path: &Path) -> Result<File, ReplicaError> {
    let unfit = |reason| ReplicaError::Unfit { path: path.display().to_string(), reason };
    LocalBackend::open(path)?.probe()?.map_err(unfit)?;
    let lock_path = path.join(LOCK);
    let locked = take_lock(path).and_then(|lock| {
        let other = File::open(&lock_path).map_err(io_error("Cannot open", &lock_path))?;
        match flock(&other, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(lock),
            Ok(()) => Err(unfit("two processes get the same lock (flock), so nothing keeps runs apart".into())),
            Err(error) => Err(unfit(During::new("files cannot be locked (flock)", error).into())),
        }
    });
    locked.map_err(|error| {
        let _ = fs::remove_file(&lock_path);
        match error {
            ReplicaError::Io { action: "Cannot lock", source, .. } => {
                unfit(During::new("files cannot be locked (flock)", source).into())
            }
            other => other,
        }
    })
}

/// Puts a fresh directory in place of a cache that cannot be listed or written to, as one may be that root made in the store of another user: a cache is no
/// reason to fail. A prune has to know all of it, so it is not enough to do without.
fn set_cache_aside_if_denied(path: &Path) {
    let cache = path.join("cache");
    // It may be deleted at any time.
    let _ = access::create_directory(&cache);
    let listed = fs::read_dir(&cache).map(drop);
    let tried = listed.and_then(|()| access::Replacement::in_store(&cache.join("probe")).map(drop));
    if tried.is_err_and(|error| access::is_denial(&error)) {
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        // Where that is not possible either, what needs the cache says so.
        if fs::rename(&cache, path.join(format!("cache.unusable-{stamp}"))).is_ok() {
            let _ = access::create_directory(&cache);
        }
    }
}

/// Refuses a directory that holds anything but what an `init` that was killed leaves: the lock, a catalogue, empty directories, files not yet named, and no
/// settings. Objects without settings are a store that has lost them.
fn refuse_unless_empty(path: &Path) -> Result<(), ReplicaError> {
    let is_ours = |entry: fs::DirEntry| -> io::Result<bool> {
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        Ok(match name.to_str() {
            Some(LOCK | CATALOG) => kind.is_file(),
            Some(name) if DIRECTORIES.contains(&name) => kind.is_dir() && fs::read_dir(entry.path())?.next().is_none(),
            Some(name) => kind.is_file() && (name.contains(access::TEMPORARY_MARK) || name.starts_with(PROBE)),
            None => false,
        })
    };
    let failed = || io_error("Cannot list", path);
    for entry in fs::read_dir(path).map_err(failed())? {
        if !entry.and_then(is_ours).map_err(failed())? {
            return Err(ReplicaError::NotEmpty { path: path.display().to_string() });
        }
    }
    Ok(())
}

/// Returns the number of the last commit in a catalogue that may be damaged or missing; `None` when that cannot be determined.
fn last_known_commit(file: &Path) -> Option<CommitNumber> {
    let read = || Ok::<_, CatalogError>(last_commit(&CatalogDatabase::open_read_only(file)?.read()?)?.0);
    read().ok()
}

/// Returns whether the store has a catalogue, in whatever state.
pub(crate) fn has_catalog(path: &Path) -> Result<bool, ReplicaError> {
    let file = path.join(CATALOG);
    file.try_exists().map_err(io_error("Cannot look at", &file))
}

/// Puts a new catalogue in place of the one that is there, which is kept under another name. There is a catalogue at every moment, and after an error it is the
/// old one.
fn replace_catalog(path: &Path, fresh: &Path) -> Result<(), ReplicaError> {
    let current = path.join(CATALOG);
    let kept = if has_catalog(path)? { Some(keep(path, &current)?) } else { None };
    if let Err(error) = fs::rename(fresh, &current) {
        if let Some(kept) = kept {
            // Where the old one had to be renamed this gives its name back; where it has two names nothing needs the second.
            let undone = if current.exists() { fs::remove_file(&kept) } else { fs::rename(&kept, &current) };
            undone.map_err(io_error("Cannot rename", &kept))?;
        }
        return Err(io_error("Cannot rename", fresh)(error));
    }
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("Cannot sync", path))
}

/// Gives the catalogue a second name, or another one where the file system knows no hard links, and returns it.
fn keep(path: &Path, current: &Path) -> Result<PathBuf, ReplicaError> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut number = 1;
    loop {
        // Two repairs may fall into one second.
        let more = if number == 1 { String::new() } else { format!("-{number}") };
        let kept = path.join(format!("{CATALOG}.damaged-{stamp}{more}"));
        match fs::hard_link(current, &kept) {
            Ok(()) => return Ok(kept),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(_) if kept.exists() => number += 1,
            Err(_) => {
                fs::rename(current, &kept).map_err(io_error("Cannot rename", current))?;
                return Ok(kept);
            }
        }
    }
}

impl Replica {
    /// Opens a store for reading. When its last writer died, the catalogue is repaired first, if nobody else writes.
    ///
    /// # Errors
    /// See [`ReplicaError`].
    pub fn open(path: &Path) -> Result<Replica, ReplicaError> {
        let config = StoreConfig::read(path)?;
        refuse_denied(path, access::Depth::FirstObjects)?;
        let backend: Arc<dyn Backend> = Arc::new(LocalBackend::open(path)?);
        let database = Replica::open_database(path)?;
        Replica::assemble(path, config, backend, database)
    }

    /// Opens a store for reading whose objects another backend holds than the files below its directory.
    ///
    /// # Errors
    /// As [`open`](Replica::open).
    pub fn open_over(path: &Path, backend: Arc<dyn Backend>) -> Result<Replica, ReplicaError> {
        let config = StoreConfig::read(path)?;
        let database = Replica::open_database(path)?;
        Replica::assemble(path, config, backend, database)
    }

    fn open_database(path: &Path) -> Result<CatalogDatabase, ReplicaError> {
        let file = path.join(CATALOG);
        match CatalogDatabase::open_read_only(&file) {
            Err(error) if error.needs_repair() => {
                match take_lock(path) {
                    Ok(_lock) => {
                        // A full disk shows when it is closed, and closing reports no error.
                        let repaired = CatalogDatabase::open(&file).map(drop);
                        if let Ok(database) = repaired.and_then(|()| CatalogDatabase::open_read_only(&file)) {
                            return Ok(database);
                        }
                    }
                    // A run, or others that read it repaired in memory.
                    Err(ReplicaError::Locked { .. }) => {}
                    Err(ReplicaError::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                    Err(error) => return Err(error),
                }
                let lock = share_lock(path)?;
                match CatalogDatabase::open_read_only(&file) {
                    Err(error) if error.needs_repair() => Ok(CatalogDatabase::open_repaired(&file, lock)?),
                    other => Ok(other?),
                }
            }
            other => Ok(other?),
        }
    }

    fn assemble(
        path: &Path,
        config: StoreConfig,
        backend: Arc<dyn Backend>,
        database: CatalogDatabase,
    ) -> Result<Replica, ReplicaError> {
        let replica = Replica {
            path: path.to_owned(),
            config,
            backend,
            database: Arc::new(database),
            dictionaries: Arc::new(DictionarySet::default()),
        };
        replica.catalog()?.load_dictionaries(&replica.dictionaries)?;
        Ok(replica)
    }

    /// Returns the store's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the store's settings.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Returns the backend that holds packs and commit files.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Returns the catalogue's database.
    pub fn database(&self) -> &Arc<CatalogDatabase> {
        &self.database
    }

    /// Returns the dictionaries that chunks may be compressed with.
    pub fn dictionaries(&self) -> &Arc<DictionarySet> {
        &self.dictionaries
    }

    /// Starts reading the catalogue as of the last commit.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn catalog(&self) -> Result<CatalogReader, CatalogError> {
        CatalogReader::new(&self.database)
    }

    /// Starts to read the catalogue for a long time: always as of the last commit, also when another process rebuilds it.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be opened.
    pub fn following_catalog(&self) -> Result<CatalogReader, CatalogError> {
        let path = self.path.clone();
        let only = self.database.is_repaired_in_memory().then(|| Arc::clone(&self.database));
        let open = move || {
            if let Some(only) = &only {
                return Ok(Arc::clone(only));
            }
            match Replica::open_database(&path) {
                Ok(database) => Ok(Arc::new(database)),
                Err(ReplicaError::Catalog(error)) => Err(error),
                Err(other) => Err(OpenError::Store(Box::new(other)).into()),
            }
        };
        CatalogReader::following(self.path.join(CATALOG), Box::new(open))
    }

    /// Returns a reader of chunks.
    pub fn chunks(&self) -> ChunkReader {
        ChunkReader::new(Arc::clone(&self.backend), Arc::clone(&self.dictionaries))
    }
}

/// The lock of a store and its settings, which are those of this version.
struct Raised {
    lock: File,
    config: StoreConfig,
    /// What they were, if they were different.
    before: Option<StoreConfig>,
    /// How long another run was waited for.
    waited: Duration,
}

/// An open store that this process alone may write to, until it is dropped.
pub struct LockedReplica {
    replica: Replica,
    _lock: File,
    recovered_commits: u64,
    before: Option<StoreConfig>,
    waited: Duration,
}

impl LockedReplica {
    /// Opens a store for writing: takes the lock, repairs the catalogue after an unclean end, applies commit files that it
    /// has not seen.
    ///
    /// # Errors
    /// [`ReplicaError::Locked`] when another process writes.
    pub fn open(path: &Path) -> Result<LockedReplica, ReplicaError> {
        LockWait::none(|wait| LockedReplica::open_after(path, wait))
    }

    /// Opens a store for writing as [`open`](LockedReplica::open) does, as soon as no other process writes.
    ///
    /// # Errors
    /// [`ReplicaError::Locked`] when another process writes all the time, [`ReplicaError::WaitInterrupted`].
    pub fn open_after(path: &Path, wait: LockWait<'_>) -> Result<LockedReplica, ReplicaError> {
        StoreConfig::read(path)?;
        refuse_denied(path, access::Depth::FirstObjects)?;
        let raised = LockedReplica::lock_and_raise(path, wait)?;
        set_cache_aside_if_denied(path);
        let local = LocalBackend::open(path)?;
        local.clean_leftovers()?;
        LockedReplica::assemble(path, raised, Arc::new(local))
    }

    /// Opens a store for writing whose objects another backend holds than the files below its directory.
    ///
    /// # Errors
    /// As [`open`](LockedReplica::open).
    pub fn open_over(path: &Path, backend: Arc<dyn Backend>) -> Result<LockedReplica, ReplicaError> {
        let raised = LockWait::none(|wait| LockedReplica::lock_and_raise(path, wait))?;
        LockedReplica::assemble(path, raised, backend)
    }

    /// Takes the lock and brings the settings to this version, before anything else is written.
    fn lock_and_raise(path: &Path, wait: LockWait<'_>) -> Result<Raised, ReplicaError> {
        let (lock, waited) = wait.take_lock(path)?;
        let found = StoreConfig::read(path)?;
        let config = found.raised();
        if config == found {
            return Ok(Raised { lock, config, before: None, waited });
        }
        config.write(path)?;
        Ok(Raised { lock, config, before: Some(found), waited })
    }

    fn assemble(path: &Path, raised: Raised, backend: Arc<dyn Backend>) -> Result<LockedReplica, ReplicaError> {
        let Raised { lock, config, before, waited } = raised;
        let database = CatalogDatabase::open(&path.join(CATALOG))?;
        let recovered_commits = roll_forward(&database, backend.as_ref())?;
        let replica = Replica::assemble(path, config, backend, database)?;
        Ok(LockedReplica { replica, _lock: lock, recovered_commits, before, waited })
    }

    /// Rebuilds the catalogue from the newest checkpoint and the commit files after it, which the backend holds, beside the old one, which is kept as
    /// `catalog.redb.damaged-<time>`. Returns the number of commit files applied.
    ///
    /// # Errors
    /// Fails, and leaves the old catalogue in place, when a commit file is missing or damaged.
    pub fn rebuild_over(path: &Path, backend: &dyn Backend) -> Result<u64, ReplicaError> {
        LockedReplica::replace_catalog_with(path, |fresh, current| {
            let applied = roll_forward(fresh, backend)?;
            let (last, _) = last_commit(&fresh.read()?)?;
            // The newest commit files may be gone without a trace among the others; the catalogue, as far as it can be read, knows of them, and so do packs.
            let known = last_known_commit(current);
            let none_left = last.0 == 0 && known.is_none() && !backend.list(PACK_PREFIX)?.is_empty();
            if known > Some(last) || none_left {
                return Err(CatalogError::of_file(&commit::key(last.next()), FileFault::Missing));
            }
            Ok(applied)
        })
    }

    /// Lets `fill` fill a fresh catalogue, with a look at the old one, and puts it in place of that.
    ///
    /// # Errors
    /// Fails, and leaves the old catalogue in place, when `fill` does.
    pub(crate) fn replace_catalog_with<T>(
        path: &Path,
        fill: impl FnOnce(&CatalogDatabase, &Path) -> Result<T, CatalogError>,
    ) -> Result<T, ReplicaError> {
        StoreConfig::read(path)?;
        let _lock = take_lock(path)?;
        let (current, fresh) = (path.join(CATALOG), path.join("catalog.redb.rebuild"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("Cannot remove", &fresh)(error));
            }
            _ => {}
        }
        let database = CatalogDatabase::open_or_create(&fresh)?;
        let filled = fill(&database, &current)?;
        drop(database);
        replace_catalog(path, &fresh)?;
        Ok(filled)
    }

    /// Returns how many commits were found complete but not applied, and were applied at opening.
    pub fn recovered_commits(&self) -> u64 {
        self.recovered_commits
    }

    /// Returns how long another run was waited for before the lock could be had.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns the format that the store had, when it was of an earlier one, or had fewer features, and was raised at opening. Versions that do not know what
    /// it has now refuse it.
    pub fn raised_from(&self) -> Option<u32> {
        self.before.as_ref().map(|before| before.format)
    }

    /// Returns the features that the store has since it was opened.
    pub fn added_features(&self) -> Vec<String> {
        let before = self.before.as_ref().map(|before| &before.features);
        let added = before.map(|before| self.config().features.difference(before).cloned().collect());
        added.unwrap_or_default()
    }

    /// Cuts the free pages off a catalogue of at most `most_bytes` if they are a third of it, or a tenth of a small one. Returns its length before and after,
    /// in bytes, or `None` when nothing was done: it was not worth it, or a reader holds the catalogue, or redb failed, which leaves it as it was.
    pub fn compact_catalog_if_worth(&mut self, most_bytes: u64) -> Option<(u64, u64)> {
        let length = fs::metadata(self.replica.path.join(CATALOG)).ok()?.len();
        let database = Arc::get_mut(&mut self.replica.database).filter(|_| length <= most_bytes)?;
        let used = database.used_bytes().ok()?;
        let wanted = if length <= SMALL_CATALOG_BYTES { used + used / 9 } else { used + used / 2 };
        if length <= wanted {
            return None;
        }
        database.compact().ok()?;
        let after = fs::metadata(self.replica.path.join(CATALOG)).map_or(length, |file| file.len());
        (after < length).then_some((length, after))
    }

    /// Starts writing to the catalogue.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn writer(&self) -> Result<CatalogWriter, CatalogError> {
        let mut writer = CatalogWriter::new(Arc::clone(&self.replica.database), Arc::clone(&self.replica.backend))?;
        let row = self.replica.config.to_row();
        writer.describe_store(row.map_err(|source| WriteError::Encode { row: RowKind::Meta.row(STORE), source })?)?;
        Ok(writer)
    }
}

impl std::ops::Deref for LockedReplica {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_that_cannot_be_replaced_stays() {
        let store = tempfile::tempdir().unwrap();
        let (current, fresh) = (store.path().join(CATALOG), store.path().join("fresh"));
        fs::write(&current, "old").unwrap();
        // Nothing there to rename, as where a rename fails.
        assert!(replace_catalog(store.path(), &fresh).is_err());
        assert_eq!(fs::read(&current).unwrap(), b"old");
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 1, "under one name");
        fs::write(&fresh, "new").unwrap();
        replace_catalog(store.path(), &fresh).unwrap();
        assert_eq!(fs::read(&current).unwrap(), b"new");
        assert_eq!(fs::read_dir(store.path()).unwrap().count(), 2, "and the old one");
    }
}
