//! The files of known inodes: what they name must stay as long as they count.
//!
//! After a complete run they name nothing that the newest snapshot does not; after one that was interrupted they name what it had committed, and
//! the next run goes on from there. What they name of a newest snapshot that somebody had removed does not stay: a run passes over inodes whose link
//! group is gone. A file is bound to a commit of the catalogue and written without a sync, so before anything is removed those that
//! count are made durable, and those that do not are deleted: neither may change places with an older one in a crash.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::PruneError;
use crate::access::write_durably;
use crate::cache_file;
use crate::catalog::commit::CommitId;
use crate::catalog::commit_log::commit_id;
use crate::ids::{CommitNumber, GroupId};
use crate::replica::Replica;
use crate::snapshot::inode_cache::{self, CachedInode, InodeCache};

/// What is known of the inodes of one source.
pub(crate) struct Cache {
    path: PathBuf,
    pub(crate) known: InodeCache,
    commit: (CommitNumber, CommitId),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PruneError {
    let path = path.display().to_string();
    move |source| PruneError::Io { action, path, source }
}

/// Returns the paths of all files of known inodes.
pub(crate) fn paths(store: &Path) -> Result<Vec<PathBuf>, PruneError> {
    inode_cache::paths(store).map_err(failed("list", &cache_file::directory(store)))
}

/// Loads a file as [`load`] does, without the inodes whose link group is not there; `is_vouched_for` holds for link groups that are known to be.
pub(crate) fn load_present(
    replica: &Replica,
    path: &Path,
    is_vouched_for: impl Fn(GroupId) -> bool,
) -> Result<Option<Cache>, PruneError> {
    let Some(mut cache) = load(replica, path)? else { return Ok(None) };
    cache.known.retain_present(&replica.catalog()?, is_vouched_for)?;
    Ok(Some(cache))
}

/// Loads a file if it counts: it is whole and belongs to a commit of the catalogue.
pub(crate) fn load(replica: &Replica, path: &Path) -> Result<Option<Cache>, PruneError> {
    let reader = replica.database().read()?;
    let mut commit = <(CommitNumber, CommitId)>::default();
    let known = InodeCache::read(path, |number, id| {
        commit = (number, *id);
        commit_id(&reader, number).is_ok_and(|found| found == Some(*id))
    });
    Ok(known.map(|known| Cache { path: path.to_owned(), known, commit }))
}

impl Cache {
    /// Lets the inodes for which `is_stale` holds be read again by the next run; durable on return.
    pub(crate) fn forget(&mut self, is_stale: impl Fn(&CachedInode) -> bool) -> Result<u64, PruneError> {
        let mut inodes = self.known.inodes().to_vec();
        let mut count = 0;
        for inode in inodes.iter_mut().filter(|inode| is_stale(inode)) {
            // Never matched by any inode.
            inode.content_fingerprint = 0;
            count += 1;
        }
        if count > 0 {
            self.known = InodeCache::new(self.known.acls, self.known.file_systems.clone(), inodes);
            let (number, id) = &self.commit;
            write_durably(&self.path, &self.known.encode(*number, id)).map_err(failed("write", &self.path))?;
        }
        Ok(count)
    }
}

/// Makes the files that count durable and deletes the others.
pub(crate) fn sync_or_remove(replica: &Replica) -> Result<(), PruneError> {
    for path in paths(replica.path())? {
        if load(replica, &path)?.is_some() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        } else {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    let directory = cache_file::directory(replica.path());
    match File::open(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened.and_then(|directory| directory.sync_all()).map_err(failed("sync", &directory)),
    }
}
