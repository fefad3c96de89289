//! Checkpoints: the whole catalogue as of one commit, which takes the place of all commit files up to that one.
//!
//! ```text
//! checkpoints/<16 hex>            the head, written last: without it there is no checkpoint
//! checkpoints/<16 hex>.<8 hex>    its parts, numbered from 0
//! ```
//!
//! The digits are the number of the commit. Head and parts have the form of commit files, with other magics (`ZMRCKPT1`, `ZMRCKPP1`) and, in place of
//! the identifier of the commit before, the identifier of the commit that the checkpoint stands for. The body of a part is a list of changes, all of them
//! puts, some 8 MiB plain. The body of the head is the number of parts and the bytes that they take (varints), then for each its identifier (16 bytes).
//! The rows of the table of commits are in the last part, so that a database which got a part of a checkpoint holds no commit.

use super::CatalogError;
use super::commit::{self, CommitId};
use super::commit_log::{commit_files, read_whole};
use super::damage::FileFault;
use super::tables::Change;
use crate::coding::{DecodeError, Decoder};
use crate::ids::CommitNumber;
use crate::store::backend::Backend;

pub(super) const HEAD_MAGIC: &[u8; 8] = b"ZMRCKPT1";
pub(super) const PART_MAGIC: &[u8; 8] = b"ZMRCKPP1";
/// A head is at most so long, plain, in bytes: a million parts.
const HEAD_MAX_BYTES: u64 = 16 << 20;
pub(super) const PREFIX: &str = "checkpoints/";
/// The newest checkpoint, its head read and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the commit that it stands for.
    pub number: CommitNumber,
    /// Identifier of that commit.
    pub commit: CommitId,
    /// Bytes of its parts.
    pub bytes: u64,
    pub(super) parts: Vec<CommitId>,
}

/// Returns the key of a checkpoint's head.
pub fn key(number: CommitNumber) -> String {
    format!("{PREFIX}{:016x}", number.0)
}

pub(super) fn part_key(number: CommitNumber, part: u64) -> String {
    format!("{}.{part:08x}", key(number))
}

/// Returns the numbers of all checkpoints that have a head, newest first.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn heads(backend: &dyn Backend) -> Result<Vec<CommitNumber>, CatalogError> {
    let keys = backend.list(PREFIX)?.into_iter();
    let mut heads: Vec<CommitNumber> = keys
        .filter_map(|(name, _)| {
            let number = CommitNumber(u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?);
            (key(number) == name).then_some(number)
        })
        .collect();
    heads.sort_unstable_by(|left, right| right.cmp(left));
    Ok(heads)
}

/// Returns the newest checkpoint; where its head is damaged, and an older one is still there, that one.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when there are heads and all are damaged.
pub fn newest(backend: &dyn Backend) -> Result<Option<Checkpoint>, CatalogError> {
    let mut failure = None;
    for number in heads(backend)? {
        match read_head(backend, number) {
            Ok(head) => return Ok(Some(head)),
            Err(error) if error.is_damaged_file() => failure = failure.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Returns the newest checkpoint of which every part can be read: what a rebuild begins with. Until a prune deletes them, an older checkpoint and the
/// commit files behind it are still there, and do as well. `None` where there is no checkpoint, or none is whole and the commit files begin with the first.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when no checkpoint is whole and the commit files do not go back to the first.
pub fn newest_whole(backend: &dyn Backend) -> Result<Option<Checkpoint>, CatalogError> {
    match whole_since(backend, CommitNumber(0)) {
        Err(error) if error.is_damaged_file() && commit_files(backend)?.first() == Some(&CommitNumber(1)) => Ok(None),
        found => found,
    }
}

/// Returns the newest checkpoint from a number on of which every part can be read; `None` where there is no such number.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when there are some, and none is whole.
pub(super) fn whole_since(backend: &dyn Backend, first: CommitNumber) -> Result<Option<Checkpoint>, CatalogError> {
    let mut failure = None;
    for number in heads(backend)?.into_iter().filter(|number| *number >= first) {
        let whole = read_head(backend, number).and_then(|head| {
            head.for_each_part(backend, |_| Ok(()))?;
            Ok(head)
        });
        match whole {
            Ok(head) => return Ok(Some(head)),
            Err(error) if error.is_damaged_file() => failure = failure.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Returns whether the newest checkpoint is damaged, its head or a part of it.
///
/// # Errors
/// Fails when the backend cannot be read.
pub fn is_newest_damaged(backend: &dyn Backend) -> Result<bool, CatalogError> {
    let Some(number) = heads(backend)?.first().copied() else { return Ok(false) };
    match newest_whole(backend) {
        Ok(whole) => Ok(whole.is_none_or(|whole| whole.number != number)),
        Err(error) if error.is_damage() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Reads and verifies the head of a checkpoint.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when it is missing or damaged.
pub fn read_head(backend: &dyn Backend, number: CommitNumber) -> Result<Checkpoint, CatalogError> {
    let key = key(number);
    let file = read_whole(backend, &key)?;
    let frame = commit::unframe(HEAD_MAGIC, &key, &file)?;
    let body = frame.body(&key, HEAD_MAX_BYTES)?;
    let mut decoder = Decoder::new(&body);
    let mut read = || {
        let count = decoder.count()?;
        let bytes = decoder.varint()?;
        let parts = (0..count).map(|_| decoder.array()).collect::<Result<Vec<CommitId>, DecodeError>>()?;
        if frame.number != number || !decoder.is_empty() {
            return Err(DecodeError("it does not fit its name or its length"));
        }
        Ok(Checkpoint { number, commit: frame.named, bytes, parts })
    };
    read().map_err(|error| CatalogError::of_file(&key, error))
}

impl Checkpoint {
    /// Calls `visit` for the changes of each part, in order, a batch at a time.
    ///
    /// # Errors
    /// [`CatalogDamage::File`](super::CatalogDamage::File) when a part is missing, damaged or of another checkpoint, or `visit` fails.
    pub fn for_each_part(
        &self,
        backend: &dyn Backend,
        mut visit: impl FnMut(Vec<Change>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        for (part, id) in (0..).zip(&self.parts) {
            self.part(backend, part, id, &mut visit)?;
        }
        Ok(())
    }

    /// Calls `visit` for the changes of each part, as far as it can be read, and with the error where it cannot.
    pub fn for_each_readable_part(
        &self,
        backend: &dyn Backend,
        mut visit: impl FnMut(Result<Vec<Change>, CatalogError>),
    ) {
        for (part, id) in (0..).zip(&self.parts) {
            let read = self.part(backend, part, id, &mut |changes| {
                visit(Ok(changes));
                Ok(())
            });
            if let Err(error) = read {
                visit(Err(error));
            }
        }
    }

    fn part(
        &self,
        backend: &dyn Backend,
        part: u64,
        id: &CommitId,
        visit: &mut dyn FnMut(Vec<Change>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let key = part_key(self.number, part);
        let file = read_whole(backend, &key)?;
        let frame = commit::unframe(PART_MAGIC, &key, &file)?;
        if frame.id != *id || frame.number != self.number || frame.named != self.commit {
            return Err(CatalogError::of_file(&key, FileFault::OtherCheckpoint));
        }
        frame.for_each_batch(&key, visit)
    }
}
