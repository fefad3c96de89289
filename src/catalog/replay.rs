//! What commit files say that the catalogue must hold: for every row the hash of its payload.
//!
//! Eight bytes for each number up to the highest, table by table. The two indexes are left out: they follow from the other rows.

use std::collections::HashMap;

use super::CatalogError;
use super::checkpoint;
use super::commit;
use super::database::{Change, Table};
use super::writer::read_whole;
use crate::store::backend::Backend;

/// No catalogue has a row of so high a number; a commit file that says so makes no sense.
const MAX_KEY: u64 = 1 << 36;

/// Returns the hash of a payload as [`RowHashes`] holds it, which is never 0.
pub fn payload_hash(payload: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    u64::from_le_bytes(first) | 1
}

/// The rows that the catalogue must hold.
#[derive(Default)]
pub struct RowHashes {
    rows: HashMap<Table, Vec<u64>>,
}

impl RowHashes {
    /// Gathers what the newest checkpoint and the commit files after it say, up to commit number `last`.
    ///
    /// # Errors
    /// [`CatalogError::CommitFile`] when one is missing, damaged or does not follow the one before.
    pub fn read(backend: &dyn Backend, last: u64) -> Result<RowHashes, CatalogError> {
        let mut hashes = RowHashes::default();
        let (mut number, mut id) = (0, commit::CommitId::default());
        if let Some(checkpoint) = checkpoint::newest(backend)?.filter(|checkpoint| checkpoint.number <= last) {
            checkpoint.for_each_part(backend, |changes| hashes.apply(&checkpoint::key(checkpoint.number), &changes))?;
            (number, id) = (checkpoint.number, checkpoint.commit);
        }
        while number < last {
            number += 1;
            let key = commit::key(number);
            let decoded = commit::decode(&key, &read_whole(backend, &key)?)?;
            if decoded.previous != id {
                let reason = "it does not follow the commit before it".to_owned();
                return Err(CatalogError::CommitFile { key, reason });
            }
            hashes.apply(&key, &decoded.changes)?;
            id = decoded.id;
        }
        Ok(hashes)
    }

    /// Takes the changes of one file.
    ///
    /// # Errors
    /// [`CatalogError::CommitFile`] when a number makes no sense.
    pub fn apply(&mut self, key: &str, changes: &[Change]) -> Result<(), CatalogError> {
        for change in changes {
            let (table, number, hash) = match change {
                Change::Put(table, number, payload) => (*table, *number, payload_hash(payload)),
                Change::Delete(table, number) => (*table, *number, 0),
                Change::PutIndex(..) | Change::DeleteIndex(..) => continue,
            };
            if number >= MAX_KEY {
                let reason = format!("it has a {} of number {number}", table.row_name());
                return Err(CatalogError::CommitFile { key: key.to_owned(), reason });
            }
            let hashes = self.rows.entry(table).or_default();
            let at = number as usize;
            if hashes.len() <= at {
                hashes.resize(at + 1, 0);
            }
            hashes[at] = hash;
        }
        Ok(())
    }

    /// Returns the hashes of a table's rows by number, 0 where there is no row.
    pub fn of_table(&self, table: Table) -> &[u64] {
        self.rows.get(&table).map_or(&[], Vec::as_slice)
    }
}
