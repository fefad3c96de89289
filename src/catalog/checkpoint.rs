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
//!
//! Order of writes: parts, a barrier, the head, a barrier; then a commit that condemns what it takes the place of. After the grace older heads, older
//! parts and the folded commit files are deleted, in this order. A crash before the head leaves parts that mean nothing; one after it leaves files that
//! go with the next fold.

use std::collections::BTreeSet;

use super::CatalogError;
use super::commit::{self, CommitId};
use super::database::{Change, DatabaseReader, Index, Table};
use super::replay::{RowHashes, TableHashes, payload_hash};
use super::writer::{last_commit, read_whole};
use crate::coding::{DecodeError, Decoder, put_varint};
use crate::store::backend::Backend;

const HEAD_MAGIC: &[u8; 8] = b"ZMRCKPT1";
const PART_MAGIC: &[u8; 8] = b"ZMRCKPP1";
/// A head is at most so long, plain, in bytes: a million parts.
const HEAD_MAX_BYTES: u64 = 16 << 20;
const PREFIX: &str = "checkpoints/";
/// A part is full when its changes take so many bytes, plain.
const PART_BYTES: usize = 8 << 20;
/// Commit files that take less than this together are not worth a fold.
const FOLD_FROM_BYTES: u64 = 128 << 10;
/// Commit files are folded when they take this share of what the last checkpoint takes: a quarter. Each byte of a commit file is so written some four
/// times more, and a rebuild reads a quarter more than it must.
const FOLD_SHARE: u64 = 4;

/// The newest checkpoint, its head read and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the commit that it stands for.
    pub number: u64,
    /// Identifier of that commit.
    pub commit: CommitId,
    /// Bytes of its parts.
    pub bytes: u64,
    parts: Vec<CommitId>,
}

/// Returns the key of a checkpoint's head.
pub fn key(number: u64) -> String {
    format!("{PREFIX}{number:016x}")
}

fn part_key(number: u64, part: u64) -> String {
    format!("{PREFIX}{number:016x}.{part:08x}")
}

/// Returns the numbers of all commit files, ascending.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn commit_files(backend: &dyn Backend) -> Result<BTreeSet<u64>, CatalogError> {
    let keys = backend.list("commits/")?.into_iter();
    let named = keys.filter_map(|(key, _)| commit::number_of_key(&key).filter(|number| commit::key(*number) == key));
    Ok(named.collect())
}

/// Returns the numbers of all checkpoints that have a head, newest first.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn heads(backend: &dyn Backend) -> Result<Vec<u64>, CatalogError> {
    let keys = backend.list(PREFIX)?.into_iter();
    let mut heads: Vec<u64> = keys
        .filter_map(|(name, _)| {
            let number = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
            (key(number) == name).then_some(number)
        })
        .collect();
    heads.sort_unstable_by(|left, right| right.cmp(left));
    Ok(heads)
}

/// Returns the newest checkpoint; where its head is damaged, and an older one is still there, that one.
///
/// # Errors
/// [`CatalogError::CommitFile`] when there are heads and all are damaged.
pub fn newest(backend: &dyn Backend) -> Result<Option<Checkpoint>, CatalogError> {
    let mut failure = None;
    for number in heads(backend)? {
        match read_head(backend, number) {
            Ok(head) => return Ok(Some(head)),
            Err(error @ CatalogError::CommitFile { .. }) => failure = failure.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Returns the newest checkpoint of which every part can be read: what a rebuild begins with. Until a prune deletes them, an older checkpoint and the
/// commit files behind it are still there, and do as well. `None` where there is no checkpoint, or none is whole and the commit files begin with the first.
///
/// # Errors
/// [`CatalogError::CommitFile`] when no checkpoint is whole and the commit files do not go back to the first.
pub fn newest_whole(backend: &dyn Backend) -> Result<Option<Checkpoint>, CatalogError> {
    match whole_since(backend, 0) {
        Err(CatalogError::CommitFile { .. }) if commit_files(backend)?.first() == Some(&1) => Ok(None),
        found => found,
    }
}

/// Returns the newest checkpoint from a number on of which every part can be read; `None` where there is no such number.
///
/// # Errors
/// [`CatalogError::CommitFile`] when there are some, and none is whole.
fn whole_since(backend: &dyn Backend, first: u64) -> Result<Option<Checkpoint>, CatalogError> {
    let mut failure = None;
    for number in heads(backend)?.into_iter().filter(|number| *number >= first) {
        let whole = read_head(backend, number).and_then(|head| {
            head.for_each_part(backend, |_| Ok(()))?;
            Ok(head)
        });
        match whole {
            Ok(head) => return Ok(Some(head)),
            Err(error @ CatalogError::CommitFile { .. }) => failure = failure.or(Some(error)),
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
/// [`CatalogError::CommitFile`] when it is missing or damaged.
pub fn read_head(backend: &dyn Backend, number: u64) -> Result<Checkpoint, CatalogError> {
    let key = key(number);
    let file = read_whole(backend, &key)?;
    let frame = commit::unframe(HEAD_MAGIC, &key, &file)?;
    let body = frame.body(&key, HEAD_MAX_BYTES)?;
    let damaged = |error: DecodeError| CatalogError::CommitFile { key: key.clone(), reason: error.to_string() };
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
    read().map_err(damaged)
}

impl Checkpoint {
    /// Calls `visit` for the changes of each part, in order, a batch at a time.
    ///
    /// # Errors
    /// [`CatalogError::CommitFile`] when a part is missing, damaged or of another checkpoint, or `visit` fails.
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
        let damaged = |reason: &str| CatalogError::CommitFile { key: key.clone(), reason: reason.to_owned() };
        let file = read_whole(backend, &key)?;
        let frame = commit::unframe(PART_MAGIC, &key, &file)?;
        if frame.id != *id || frame.number != self.number || frame.named != self.commit {
            return Err(damaged("it is a part of another checkpoint"));
        }
        frame.for_each_batch(&key, visit)
    }
}

/// Writes the head and the parts of one checkpoint.
struct PartWriter<'a> {
    backend: &'a dyn Backend,
    number: u64,
    commit: CommitId,
    body: Vec<u8>,
    parts: Vec<CommitId>,
    bytes: u64,
}

impl PartWriter<'_> {
    fn flush_if(&mut self, from_bytes: usize) -> Result<(), CatalogError> {
        if self.body.len() < from_bytes || self.body.is_empty() {
            return Ok(());
        }
        let key = part_key(self.number, self.parts.len() as u64);
        let (file, id) = commit::frame(PART_MAGIC, self.number, &self.commit, &self.body)?;
        self.backend.put(&key, &[&file])?;
        self.bytes += file.len() as u64;
        self.parts.push(id);
        self.body.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Checkpoint, CatalogError> {
        self.flush_if(0)?;
        self.backend.sync()?;
        let mut body = Vec::new();
        put_varint(&mut body, self.parts.len() as u64);
        put_varint(&mut body, self.bytes);
        self.parts.iter().for_each(|id| body.extend_from_slice(id));
        let key = key(self.number);
        let (file, _) = commit::frame(HEAD_MAGIC, self.number, &self.commit, &body)?;
        self.backend.put(&key, &[&file])?;
        self.backend.sync()?;
        Ok(Checkpoint { number: self.number, commit: self.commit, bytes: self.bytes, parts: self.parts })
    }
}

/// Writes a checkpoint of the last commit; it is durable on return. The caller holds the store's lock.
///
/// With `expected` each row is compared with what the commit files say, so that no damage of the catalogue replaces them.
///
/// # Errors
/// Fails when a row is damaged, missing or not as expected; the commit files are what counts then.
pub fn write(
    database: &DatabaseReader,
    backend: &dyn Backend,
    expected: Option<&RowHashes>,
) -> Result<Checkpoint, CatalogError> {
    let (number, commit) = last_commit(database)?;
    match read_head(backend, number) {
        Ok(found) if found.commit == commit => return Ok(found),
        // It is whole, and this version could not write it again.
        Err(error @ CatalogError::Unsupported { .. }) => return Err(error),
        _ => {}
    }
    // What an interrupted fold left under the same names.
    let left = format!("{PREFIX}{number:016x}");
    for (key, _) in backend.list(&left)? {
        backend.delete(&key)?;
    }
    backend.sync()?;
    let mut writer = PartWriter { backend, number, commit, body: Vec::new(), parts: Vec::new(), bytes: 0 };
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Commits) {
        write_table(&mut writer, database, table, expected.map(|expected| expected.of_table(table)))?;
    }
    for index in Index::ALL {
        database.scan_index(index, |hash, number| {
            commit::put_index(&mut writer.body, index, hash, number);
            writer.flush_if(PART_BYTES)
        })?;
    }
    writer.flush_if(1)?;
    write_table(&mut writer, database, Table::Commits, None)?;
    writer.finish()
}

fn write_table(
    writer: &mut PartWriter<'_>,
    database: &DatabaseReader,
    table: Table,
    expected: Option<TableHashes<'_>>,
) -> Result<(), CatalogError> {
    let damaged =
        |number: u64, reason: &str| CatalogError::Damaged { what: table.row_name(), number, reason: reason.to_owned() };
    let mut rows = 0;
    database.scan(table, 0, |number, payload| {
        let payload = payload?;
        if let Some(expected) = expected
            && expected.get(number) != Some(payload_hash(payload))
        {
            return Err(damaged(number, "it is not as the commit files have it"));
        }
        rows += 1;
        commit::put_row(&mut writer.body, table, number, payload);
        // The rows of commits stay together in the last part.
        if table == Table::Commits { Ok(()) } else { writer.flush_if(PART_BYTES) }
    })?;
    let wanted = expected.map(TableHashes::len);
    if wanted.is_some_and(|wanted| wanted != rows) {
        return Err(damaged(0, "rows that the commit files have are missing"));
    }
    Ok(())
}

/// Returns whether the commit files have grown so much that they are worth folding.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn is_due(backend: &dyn Backend) -> Result<bool, CatalogError> {
    let folded = newest(backend)?;
    let (number, bytes) = folded.map_or((0, 0), |folded| (folded.number, folded.bytes));
    let files = backend.list("commits/")?.into_iter();
    let since = files.filter(|(key, _)| commit::number_of_key(key).is_some_and(|found| found > number));
    let since_bytes: u64 = since.map(|(_, bytes)| bytes).sum();
    Ok(since_bytes > FOLD_FROM_BYTES.max(bytes / FOLD_SHARE))
}

/// Lists what the checkpoint of that number makes superfluous, in the order in which it is to be deleted, with bytes: older checkpoints, and the commit
/// files that it stands for.
///
/// # Errors
/// Fails when the backend cannot be listed.
pub fn superseded(backend: &dyn Backend, checkpoint: u64) -> Result<Vec<(String, u64)>, CatalogError> {
    let older = |(name, _): &(String, u64)| {
        let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next());
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).is_some_and(|number| number < checkpoint)
    };
    let mut doomed: Vec<(String, u64)> = backend.list(PREFIX)?.into_iter().filter(older).collect();
    // Heads have no dot, and go first: a head without its parts would be damage.
    doomed.sort_by_key(|(name, _)| name.contains('.'));
    let folded = |(name, _): &(String, u64)| {
        commit::number_of_key(name).is_some_and(|number| number <= checkpoint && commit::key(number) == *name)
    };
    doomed.extend(backend.list("commits/")?.into_iter().filter(folded));
    Ok(doomed)
}

/// Deletes what the checkpoint of that number makes superfluous, and returns the bytes that this frees. Without a checkpoint of that number, or a newer
/// one, nothing is deleted. The caller holds the store's lock.
///
/// # Errors
/// [`CatalogError::CommitFile`] when no such checkpoint is whole, its parts included: what it took the place of is all that there is, and stays. Fails, too,
/// when something cannot be deleted; what is left means nothing.
pub fn tidy(backend: &dyn Backend, checkpoint: u64) -> Result<u64, CatalogError> {
    let doomed = superseded(backend, checkpoint)?;
    if doomed.is_empty() || whole_since(backend, checkpoint)?.is_none() {
        return Ok(0);
    }
    let heads = doomed.iter().filter(|(name, _)| name.starts_with(PREFIX) && !name.contains('.')).count();
    let mut freed = 0;
    for (at, (name, bytes)) in doomed.iter().enumerate() {
        if at == heads && heads > 0 {
            backend.sync()?;
        }
        backend.delete(name)?;
        freed += bytes;
    }
    if !doomed.is_empty() {
        backend.sync()?;
    }
    Ok(freed)
}
