//! Known inodes: what lets a night read nothing that did not change.
//!
//! After each snapshot of a source, one file `cache/inodes-<source>` lists every inode that is not a directory: what identified it and its link
//! group. The file is a cache: without it (or with one that does not fit the catalogue) everything is read and hashed once more and
//! nothing is stored again.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `ZMRINOD2` |
//! | 8 | 8 + 16 | number and identifier of the commit that it belongs to |
//! | 32 | 1 | whether any of them has an access control list: 0 unknown, 1 no, 2 yes |
//! | 33 | 4 | count of file systems, then for each the length (4) and path of its mount point in the tree; number 0 is the root's |
//! | - | 8 | count of inodes |
//! | - | 44 each | file system (4), inode, content fingerprint, metadata fingerprint, link group, row digest (8 each), sorted by file system and inode |
//! | - | 32 | BLAKE3 of everything before |
//!
//! All integers are little endian. The *content fingerprint* is 64 bits of a BLAKE3 over kind, birth time, size and mtime: while it stays, the content is
//! unchanged. The *metadata fingerprint* covers mode, owner, device number and ctime: while it stays too,
//! nothing is. A content fingerprint of 0 is never matched.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::access::Replacement;
use crate::cache_file;
use crate::catalog::CatalogError;
use crate::catalog::chunk::PAGE_ROWS;
use crate::catalog::commit::CommitId;
use crate::catalog::commit_log::commit_id;
use crate::catalog::link_counts;
use crate::catalog::object::ObjectKind;
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::coding::{DecodeError, Decoder};
use crate::ids::{CommitNumber, GroupId, SourceId};
use crate::model::Stat;
use crate::replica::Replica;
use crate::sparse_vec::SparseVec;

const MAGIC: &[u8; 8] = b"ZMRINOD2";
/// The file of a source is named by this and the source's number.
const FILE_PREFIX: &str = "inodes-";
const ENTRY_BYTES: usize = 44;

/// One inode of the last snapshot. 48 bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedInode {
    /// Number of its file system in [`InodeCache::file_systems`].
    pub file_system: u32,
    /// Inode number.
    pub ino: u64,
    /// Changes when the content may have changed.
    pub content_fingerprint: u64,
    /// Changes when anything may have changed.
    pub metadata_fingerprint: u64,
    /// Its link group.
    pub group: GroupId,
    /// Digest of the link group's row.
    pub row_digest: u64,
}

/// Computes what stays the same while the content of an inode does.
pub fn content_fingerprint(stat: &Stat) -> u64 {
    let btime = stat.btime.unwrap_or_default();
    fold(&[
        stat.kind as u64,
        u64::from(stat.btime.is_some()),
        btime.seconds as u64,
        u64::from(btime.nanos),
        stat.size,
        stat.mtime.seconds as u64,
        u64::from(stat.mtime.nanos),
    ])
}

/// Computes what stays the same while nothing else of an inode changes.
pub fn metadata_fingerprint(stat: &Stat) -> u64 {
    fold(&[
        u64::from(stat.mode),
        u64::from(stat.uid),
        u64::from(stat.gid),
        stat.rdev,
        stat.ctime.seconds as u64,
        u64::from(stat.ctime.nanos),
    ])
}

fn fold(values: &[u64]) -> u64 {
    let mut bytes = [0u8; 64];
    for (slot, value) in bytes.chunks_exact_mut(8).zip(values) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
    // 0 is kept for "never matches".
    u64::from_le_bytes(first).max(1)
}

/// The inodes of the last snapshot of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InodeCache {
    /// Whether any of them has an access control list, if that is known.
    pub acls: Option<bool>,
    /// Where each file system is mounted in the tree; the root's is first and empty.
    pub file_systems: Vec<Vec<u8>>,
    /// Sorted by file system and inode number.
    inodes: Vec<CachedInode>,
}

impl InodeCache {
    /// Takes inodes in any order. Of several with one number the last counts.
    pub fn new(acls: Option<bool>, file_systems: Vec<Vec<u8>>, mut inodes: Vec<CachedInode>) -> InodeCache {
        inodes.reverse();
        inodes.sort_by_key(|inode| (inode.file_system, inode.ino));
        inodes.dedup_by_key(|inode| (inode.file_system, inode.ino));
        InodeCache { acls, file_systems, inodes }
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// Returns all of them, in order.
    pub fn inodes(&self) -> &[CachedInode] {
        &self.inodes
    }

    /// Finds an inode.
    pub fn find(&self, file_system: u32, ino: u64) -> Option<&CachedInode> {
        let at = self.inodes.binary_search_by_key(&(file_system, ino), |inode| (inode.file_system, inode.ino));
        at.ok().map(|at| &self.inodes[at])
    }

    /// Returns the number of a file system by its mount point, adding it if need be.
    pub fn file_system(&mut self, mount_point: &[u8]) -> u32 {
        let at = self.file_systems.iter().position(|known| known == mount_point);
        at.unwrap_or_else(|| {
            self.file_systems.push(mount_point.to_vec());
            self.file_systems.len() - 1
        }) as u32
    }

    /// Forgets inodes whose link group the catalogue does not have: a forged file must not end a run or get into a snapshot. Such inodes are read again.
    ///
    /// `is_vouched_for` holds for link groups that need no look, since a snapshot names them. Pages are decoded for the others only, so a night without changes
    /// decodes none. A group that cannot be read counts as missing.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read at all.
    pub fn retain_present(
        &mut self,
        catalog: &CatalogReader,
        is_vouched_for: impl Fn(GroupId) -> bool,
    ) -> Result<(), CatalogError> {
        let others = self.inodes.iter().map(|inode| inode.group).filter(|group| !is_vouched_for(*group));
        let pages: BTreeSet<u64> = others.map(|group| group.0 / PAGE_ROWS).collect();
        let mut present: SparseVec<bool> = SparseVec::new();
        for page in pages {
            let groups = page * PAGE_ROWS..(page + 1) * PAGE_ROWS;
            let read = catalog.for_each_group(page, |at, row| {
                *present.entry(groups.start + at as u64) = row.is_some();
                Ok::<_, CatalogError>(true)
            });
            match read {
                Err(error) if error.is_damage() => groups.for_each(|group| *present.entry(group) = false),
                other => other?,
            }
        }
        self.inodes.retain(|inode| is_vouched_for(inode.group) || present.get(inode.group.0));
        Ok(())
    }

    /// Encodes the file.
    pub fn encode(&self, commit: CommitNumber, commit_id: &CommitId) -> Vec<u8> {
        cache_file::seal(MAGIC, self.inodes.len() * ENTRY_BYTES + 256, |out| {
            out.extend_from_slice(&commit.0.to_le_bytes());
            out.extend_from_slice(commit_id);
            out.push(match self.acls {
                None => 0,
                Some(false) => 1,
                Some(true) => 2,
            });
            out.extend_from_slice(&(self.file_systems.len() as u32).to_le_bytes());
            for mount_point in &self.file_systems {
                out.extend_from_slice(&(mount_point.len() as u32).to_le_bytes());
                out.extend_from_slice(mount_point);
            }
            out.extend_from_slice(&(self.inodes.len() as u64).to_le_bytes());
            for inode in &self.inodes {
                out.extend_from_slice(&inode.file_system.to_le_bytes());
                for value in
                    [inode.ino, inode.content_fingerprint, inode.metadata_fingerprint, inode.group.0, inode.row_digest]
                {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
        })
    }

    /// Decodes the file; also returns the commit that it belongs to.
    ///
    /// # Errors
    /// Fails for any byte that is not as written.
    pub fn decode(bytes: &[u8]) -> Result<(InodeCache, CommitNumber, CommitId), DecodeError> {
        let mut decoder = Decoder::new(cache_file::unseal(MAGIC, bytes)?);
        let commit = CommitNumber(u64::from_le_bytes(decoder.array()?));
        let commit_id = decoder.array()?;
        let acls = match decoder.byte()? {
            0 => None,
            1 => Some(false),
            2 => Some(true),
            _ => return Err(DecodeError("an unknown answer about access control lists")),
        };
        let mut file_systems = Vec::new();
        for _ in 0..u32::from_le_bytes(decoder.array()?) {
            let length = u32::from_le_bytes(decoder.array()?) as usize;
            file_systems.push(decoder.take(length)?.to_vec());
        }
        let count = u64::from_le_bytes(decoder.array()?);
        if count.checked_mul(ENTRY_BYTES as u64) != Some(decoder.remaining() as u64) {
            return Err(DecodeError("its count does not fit its length"));
        }
        let mut inodes = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let inode = CachedInode {
                file_system: u32::from_le_bytes(decoder.array()?),
                ino: u64::from_le_bytes(decoder.array()?),
                content_fingerprint: u64::from_le_bytes(decoder.array()?),
                metadata_fingerprint: u64::from_le_bytes(decoder.array()?),
                group: GroupId::decoded(u64::from_le_bytes(decoder.array()?))?,
                row_digest: u64::from_le_bytes(decoder.array()?),
            };
            let key = |inode: &CachedInode| (inode.file_system, inode.ino);
            if inodes.last().is_some_and(|last| key(last) >= key(&inode)) {
                return Err(DecodeError("its inodes are not in order"));
            }
            if inode.file_system as usize >= file_systems.len().max(1) {
                return Err(DecodeError("an inode on a file system that is not named"));
            }
            inodes.push(inode);
        }
        Ok((InodeCache { acls, file_systems, inodes }, commit, commit_id))
    }

    /// Reads a file, if it is whole and `is_commit` confirms the commit that it belongs to.
    pub fn read(path: &Path, is_commit: impl FnOnce(CommitNumber, &CommitId) -> bool) -> Option<InodeCache> {
        let (known, commit, id) = InodeCache::decode(&fs::read(path).ok()?).ok()?;
        is_commit(commit, &id).then_some(known)
    }

    /// Writes the file of a source in place of the one before. Not synced: a torn file is detected and costs a rereading.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn save(&self, path: &Path, commit: CommitNumber, commit_id: &CommitId) -> io::Result<()> {
        let mut new = Replacement::in_store(path)?;
        new.write_all(&self.encode(commit, commit_id))?;
        new.finish()
    }
}

/// Returns the file of a source.
pub(super) fn path(store: &Path, source: SourceId) -> PathBuf {
    cache_file::path(store, &format!("{FILE_PREFIX}{source}"))
}

/// Returns the source that a file belongs to.
pub(crate) fn source_of(path: &Path) -> Option<SourceId> {
    let number = path.file_name()?.to_str()?.strip_prefix(FILE_PREFIX)?;
    number.parse().ok().map(SourceId)
}

/// Forgets what is known of a source's inodes: its next run reads everything.
///
/// # Errors
/// Fails when the file cannot be removed.
pub fn forget(store: &Path, source: SourceId) -> io::Result<()> {
    match fs::remove_file(path(store, source)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives what is known of one source's inodes to another, in place of what was known of those.
///
/// # Errors
/// Fails when the file cannot be renamed.
pub fn move_to(store: &Path, from: SourceId, into: SourceId) -> io::Result<()> {
    match fs::rename(path(store, from), path(store, into)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the files of all sources, sorted.
///
/// # Errors
/// Fails when the directory is there and cannot be listed.
pub(crate) fn paths(store: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(cache_file::directory(store)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in listing {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(FILE_PREFIX));
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Loads what is known of a source's inodes. `last` is its newest snapshot.
pub(super) fn load(replica: &Replica, source: SourceId, last: Option<&SnapshotRecord>) -> Option<InodeCache> {
    let reader = replica.database().read().ok()?;
    let mut cache = InodeCache::read(&path(replica.path(), source), |number, id| {
        commit_id(&reader, number).is_ok_and(|found| found == Some(*id))
    })?;
    let catalog = replica.catalog().ok()?;
    let named = last.map(|last| named_groups(&catalog, last)).unwrap_or_default();
    cache.retain_present(&catalog, |group| named.get(group.0)).ok()?;
    Some(cache)
}

/// Returns the link groups that a snapshot names, by its link counts. Those whose counts cannot be read are left out. A byte for each.
fn named_groups(catalog: &CatalogReader, snapshot: &SnapshotRecord) -> SparseVec<bool> {
    let mut named = SparseVec::new();
    for object in &snapshot.links {
        let Ok(page) = catalog.object(ObjectKind::Links, *object) else { continue };
        let Ok((_, counts)) = link_counts::decode_page(&page) else { continue };
        counts.iter().for_each(|(group, _)| *named.entry(group.0) = true);
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(ino: u64, group: u64) -> CachedInode {
        let group = GroupId(group);
        CachedInode { file_system: 0, ino, content_fingerprint: 5, metadata_fingerprint: 6, group, row_digest: 7 }
    }

    #[test]
    fn round_trip_and_damage() {
        let known = InodeCache::new(
            Some(false),
            vec![Vec::new(), b"mnt".to_vec()],
            vec![inode(9, 1), inode(3, 2), inode(9, 4)],
        );
        for group in [crate::coding::NUMBER_LIMIT, u64::MAX] {
            let wild = InodeCache::new(None, vec![Vec::new()], vec![inode(3, group)]);
            assert!(
                InodeCache::decode(&wild.encode(CommitNumber(12), &[3; 16])).is_err(),
                "a number that no catalogue has"
            );
        }
        assert_eq!(known.find(0, 9).map(|inode| inode.group), Some(GroupId(4)));
        assert_eq!(known.find(1, 9), None);
        let bytes = known.encode(CommitNumber(12), &[3; 16]);
        assert_eq!(InodeCache::decode(&bytes), Ok((known, CommitNumber(12), [3; 16])));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(InodeCache::decode(&bad).is_err());
            assert!(InodeCache::decode(&bytes[..at]).is_err());
        }
    }
}
