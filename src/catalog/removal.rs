//! Writing the catalogue, continued: taking rows away.
//!
//! Whoever removes keeps an order, so that after each commit every row that is left finds what it refers to: snapshots first, then link groups,
//! then objects, then chunks, then packs; the packs themselves only when the commit is durable.

use super::CatalogError;
use super::chunk::{self, ChunkRow};
use super::group;
use super::meta::COUNTERS;
use super::row_id::RowKind;
use super::tables::{Change, Index, Table};
use super::writer::CatalogWriter;

/// What a change of an index takes in memory, in bytes.
const INDEX_CHANGE_BYTES: usize = 64;

impl CatalogWriter {
    /// Removes a row.
    pub fn remove(&mut self, table: Table, number: u64) {
        self.pending_bytes += INDEX_CHANGE_BYTES;
        self.changes.push(Change::Delete(table, number));
    }

    /// Makes the next commit happen though nothing changes: a checkpoint of its number then has a name that none had before.
    pub fn touch(&mut self) {
        self.put(Table::Meta, COUNTERS, self.counters().encode());
    }

    /// Removes an entry of an index.
    pub fn remove_from_index(&mut self, index: Index, hash: [u8; 32]) {
        self.pending_bytes += INDEX_CHANGE_BYTES;
        self.changes.push(Change::DeleteIndex(index, hash));
    }

    /// Lets an index name a number by a hash.
    pub fn put_into_index(&mut self, index: Index, hash: [u8; 32], number: u64) {
        self.pending_bytes += INDEX_CHANGE_BYTES;
        self.changes.push(Change::PutIndex(index, hash, number));
    }

    /// Writes a page of link groups anew with the rows for whose places `keep` holds, or removes it if none is left. Rows that were added since the last commit
    /// are not looked at.
    ///
    /// # Errors
    /// [`CatalogDamage::Row`](super::CatalogDamage::Row) when the page is damaged.
    pub fn retain_groups(&mut self, page: u64, keep: impl Fn(usize) -> bool) -> Result<(), CatalogError> {
        let left = self.reader().database()?.get(Table::Groups, page, |payload| {
            CatalogError::decode_row(RowKind::GroupPage.row(page), || group::retain_rows(payload, keep))
        })?;
        match left.flatten() {
            Some(encoded) => self.put(Table::Groups, page, encoded),
            None => self.remove(Table::Groups, page),
        }
        Ok(())
    }

    /// Writes a page of chunk rows anew, or removes it if it has no row. Not to be mixed with
    /// [`place_chunk`](CatalogWriter::place_chunk) for the same page in one commit.
    pub fn replace_chunks(&mut self, page: u64, rows: &[Option<ChunkRow>]) {
        match last_row(rows) {
            0 => self.remove(Table::Chunks, page),
            count => self.put(Table::Chunks, page, chunk::encode_page(&rows[..count])),
        }
    }
}

/// Returns how many slots there are up to the last row.
fn last_row<T>(rows: &[Option<T>]) -> usize {
    rows.iter().rposition(Option::is_some).map_or(0, |at| at + 1)
}
