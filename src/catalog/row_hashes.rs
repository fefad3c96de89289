//! What commit files say that the catalogue must hold: for every row the hash of its payload.
//!
//! 16 bytes for each row, and while they are gathered for each change up to twice as many as there are rows, whatever numbers they have. The two indexes are
//! left out: they follow from the other rows.

use std::collections::HashMap;

use super::CatalogError;
use super::checkpoint;
use super::commit::{self, CommitFile};
use super::commit_log::read_whole;
use super::damage::FileFault;
use super::tables::{Change, Table};
use crate::ids::CommitNumber;
use crate::store::backend::Backend;

/// Changes of a table that are gathered before they are sorted in, at least.
const GATHERED_MIN: usize = 1 << 16;

/// Returns the hash of a payload as [`RowHashes`] holds it, which is never 0.
pub fn payload_hash(payload: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    u64::from_le_bytes(first) | 1
}

/// The rows of one table while they are gathered.
#[derive(Default)]
struct TableBuilder {
    /// Number and hash, 0 for a row that was removed. Sorted up to `sorted`, the later changes in order behind.
    rows: Vec<(u64, u64)>,
    sorted: usize,
}

impl TableBuilder {
    fn push(&mut self, number: u64, hash: u64) {
        self.rows.push((number, hash));
        if self.rows.len() - self.sorted > self.sorted.max(GATHERED_MIN) {
            self.sort_and_dedup();
        }
    }

    /// Sorts, and lets the last change of each number count.
    fn sort_and_dedup(&mut self) {
        // Stable, so of equal numbers the last stays the last.
        self.rows.sort_by_key(|(number, _)| *number);
        let mut kept = 0;
        for at in 0..self.rows.len() {
            let row = self.rows[at];
            let is_last = self.rows.get(at + 1).is_none_or(|next| next.0 != row.0);
            if is_last && row.1 != 0 {
                self.rows[kept] = row;
                kept += 1;
            }
        }
        self.rows.truncate(kept);
        self.sorted = kept;
    }
}

/// Gathers what commit files say.
#[derive(Default)]
pub struct RowHashesBuilder {
    tables: HashMap<Table, TableBuilder>,
}

impl RowHashesBuilder {
    /// Takes changes.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            let (table, number, hash) = match change {
                Change::Put(table, number, payload) => (*table, *number, payload_hash(payload)),
                Change::Delete(table, number) => (*table, *number, 0),
                Change::PutIndex(..) | Change::DeleteIndex(..) => continue,
            };
            self.tables.entry(table).or_default().push(number, hash);
        }
    }

    /// Ends the gathering.
    pub fn finish(self) -> RowHashes {
        let tables = self.tables.into_iter().map(|(table, mut gathered)| {
            gathered.sort_and_dedup();
            gathered.rows.shrink_to_fit();
            (table, gathered.rows)
        });
        RowHashes { tables: tables.collect() }
    }
}

/// The rows that the catalogue must hold.
#[derive(Default)]
pub struct RowHashes {
    tables: HashMap<Table, Vec<(u64, u64)>>,
}

impl RowHashes {
    /// Gathers what the newest checkpoint and the commit files after it say, up to commit number `last`.
    ///
    /// # Errors
    /// [`CatalogDamage::File`](super::CatalogDamage::File) when one is missing, damaged or does not follow the one before.
    pub fn read(backend: &dyn Backend, last: CommitNumber) -> Result<RowHashes, CatalogError> {
        let mut builder = RowHashesBuilder::default();
        let (mut number, mut id) = <(CommitNumber, commit::CommitId)>::default();
        if let Some(checkpoint) = checkpoint::newest(backend)?.filter(|checkpoint| checkpoint.number <= last) {
            checkpoint.for_each_part(backend, |changes| {
                builder.apply(&changes);
                Ok(())
            })?;
            (number, id) = (checkpoint.number, checkpoint.commit);
        }
        while number < last {
            number = number.next();
            let key = commit::key(number);
            let file = read_whole(backend, &key)?;
            let commit = CommitFile::open(&key, &file)?;
            if commit.previous != id {
                return Err(CatalogError::of_file(&key, FileFault::Sequence));
            }
            commit.for_each_batch(|changes| {
                builder.apply(&changes);
                Ok(())
            })?;
            id = commit.id;
        }
        Ok(builder.finish())
    }

    /// Returns the hashes of a table's rows.
    pub fn of_table(&self, table: Table) -> TableHashes<'_> {
        TableHashes { rows: self.tables.get(&table).map_or(&[], Vec::as_slice) }
    }
}

/// The rows that one table must hold.
#[derive(Clone, Copy)]
pub struct TableHashes<'a> {
    rows: &'a [(u64, u64)],
}

impl<'a> TableHashes<'a> {
    /// Returns the hash of a row's payload, or `None` when there is no such row.
    pub fn get(self, number: u64) -> Option<u64> {
        let at = self.rows.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.rows[at].1)
    }

    /// Returns how many rows there are.
    pub fn count(self) -> usize {
        self.rows.len()
    }

    /// Returns the numbers of the rows from `from` on and below `to`, ascending.
    pub fn numbers(self, from: u64, to: u64) -> impl Iterator<Item = u64> + 'a {
        let first = self.rows.partition_point(|(number, _)| *number < from);
        self.rows[first..].iter().map(|(number, _)| *number).take_while(move |number| *number < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::NUMBER_LIMIT;

    #[test]
    fn the_last_change_of_each_number_counts() {
        let mut builder = RowHashesBuilder::default();
        let put = |number: u64, text: &[u8]| Change::Put(Table::Objects, number, text.to_vec());
        builder.apply(&[put(7, b"old"), put(NUMBER_LIMIT - 1, b"far"), put(3, b"gone")]);
        for round in 0..3 * GATHERED_MIN as u64 {
            builder.apply(&[put(1_000_000 - round, b"many")]);
        }
        builder.apply(&[put(7, b"new"), Change::Delete(Table::Objects, 3), Change::Delete(Table::Objects, 5)]);
        let rows = builder.finish();
        let objects = rows.of_table(Table::Objects);
        assert_eq!(objects.get(7), Some(payload_hash(b"new")));
        assert_eq!((objects.get(3), objects.get(5), objects.get(8)), (None, None, None));
        assert_eq!(objects.count(), 3 * GATHERED_MIN + 2);
        assert_eq!(objects.numbers(0, 1000).collect::<Vec<_>>(), [7]);
        assert_eq!(objects.numbers(1_000_001, u64::MAX).collect::<Vec<_>>(), [NUMBER_LIMIT - 1]);
        assert_eq!(rows.of_table(Table::Packs).count(), 0);
    }
}
