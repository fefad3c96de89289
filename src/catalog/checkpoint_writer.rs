//! Writing a checkpoint, and deleting what it takes the place of.
//!
//! Order of writes: parts, a barrier, the head, a barrier; then a commit that condemns what it takes the place of. After the grace older heads, older
//! parts and the folded commit files are deleted, in this order. A crash before the head leaves parts that mean nothing; one after it leaves files that
//! go with the next fold.

use super::CatalogError;
use super::checkpoint::{Checkpoint, HEAD_MAGIC, PART_MAGIC, PREFIX, key, newest, part_key, read_head, whole_since};
use super::commit::{self, CommitId};
use super::commit_log::last_commit;
use super::damage::RowFault;
use super::database_reader::DatabaseReader;
use super::row_hashes::{RowHashes, TableHashes, payload_hash};
use super::tables::{Index, Table};
use crate::coding::put_varint;
use crate::ids::CommitNumber;
use crate::store::backend::Backend;
use strum::VariantArray;

/// A part is full when its changes take so many bytes, plain.
const PART_BYTES: usize = 8 << 20;
/// Commit files that take less than this together are not worth a fold.
const FOLD_FROM_BYTES: u64 = 128 << 10;
/// Commit files are folded when they take this share of what the last checkpoint takes: a quarter. Each byte of a commit file is so written some four
/// times more, and a rebuild reads a quarter more than it must.
const FOLD_SHARE: u64 = 4;

/// Writes the head and the parts of one checkpoint.
struct PartWriter<'a> {
    backend: &'a dyn Backend,
    number: CommitNumber,
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
        Ok(_) => {}
        Err(error) if error.is_damage() => {}
        // It may be whole: a later version wrote it, or it cannot be read now.
        Err(error) => return Err(error),
    }
    // What an interrupted fold left under the same names.
    for (key, _) in backend.list(&key(number))? {
        backend.delete(&key)?;
    }
    backend.sync()?;
    let mut writer = PartWriter { backend, number, commit, body: Vec::new(), parts: Vec::new(), bytes: 0 };
    for table in Table::VARIANTS.iter().copied().filter(|table| *table != Table::Commits) {
        write_table(&mut writer, database, table, expected.map(|expected| expected.of_table(table)))?;
    }
    for &index in Index::VARIANTS {
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
    let damaged = |number, fault: RowFault| CatalogError::of_row(table.row_kind().row(number), fault);
    let mut rows = 0;
    database.scan(table, 0, |number, payload| {
        let payload = payload?;
        if let Some(expected) = expected
            && expected.get(number) != Some(payload_hash(payload))
        {
            return Err(damaged(number, RowFault::NotAsCommitted));
        }
        rows += 1;
        commit::put_row(&mut writer.body, table, number, payload);
        // The rows of commits stay together in the last part.
        if table == Table::Commits { Ok(()) } else { writer.flush_if(PART_BYTES) }
    })?;
    let wanted = expected.map(TableHashes::count);
    if wanted.is_some_and(|wanted| wanted != rows) {
        return Err(damaged(0, RowFault::RowsMissing));
    }
    Ok(())
}

/// Returns whether the commit files have grown so much that they are worth folding.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn is_due(backend: &dyn Backend) -> Result<bool, CatalogError> {
    let folded = newest(backend)?;
    let (number, bytes) = folded.map_or((CommitNumber(0), 0), |folded| (folded.number, folded.bytes));
    let files = backend.list("commits/")?.into_iter();
    let since = files.filter(|(key, _)| commit::parse_key(key).is_some_and(|found| found > number));
    let since_bytes: u64 = since.map(|(_, bytes)| bytes).sum();
    Ok(since_bytes > FOLD_FROM_BYTES.max(bytes / FOLD_SHARE))
}

/// Lists what the checkpoint of that number makes superfluous, in the order in which it is to be deleted, with bytes: older checkpoints, and the commit
/// files that it stands for.
///
/// # Errors
/// Fails when the backend cannot be listed.
pub fn list_superseded(backend: &dyn Backend, checkpoint: CommitNumber) -> Result<Vec<(String, u64)>, CatalogError> {
    let older = |(name, _): &(String, u64)| {
        let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next());
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).is_some_and(|number| number < checkpoint.0)
    };
    let mut doomed: Vec<(String, u64)> = backend.list(PREFIX)?.into_iter().filter(older).collect();
    // Heads have no dot, and go first: a head without its parts would be damage.
    doomed.sort_by_key(|(name, _)| name.contains('.'));
    let folded = |(name, _): &(String, u64)| {
        commit::parse_key(name).is_some_and(|number| number <= checkpoint && commit::key(number) == *name)
    };
    doomed.extend(backend.list("commits/")?.into_iter().filter(folded));
    Ok(doomed)
}

/// Deletes what the checkpoint of that number makes superfluous, and returns the bytes that this frees. Without a checkpoint of that number, or a newer
/// one, nothing is deleted. The caller holds the store's lock.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when no such checkpoint is whole, its parts included: what it took the place of is all that there is,
/// and stays. Fails, too, when something cannot be deleted; what is left means nothing.
pub fn delete_superseded(backend: &dyn Backend, checkpoint: CommitNumber) -> Result<u64, CatalogError> {
    let doomed = list_superseded(backend, checkpoint)?;
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
