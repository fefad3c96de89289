//! The tables of the catalogue, the changes of their rows, and the seal of each value.
//!
//! Every value but the numbers of the two hash indexes ends with eight bytes of check value, a BLAKE3 over the table's number, the key and
//! the payload. A flipped bit, or a value that turns up under another key, is therefore an error and never data. The
//! indexes need none: whoever looks a hash up confirms the answer against the row that it names.

use redb::TableDefinition;
use strum::{FromRepr, VariantArray};

use super::CatalogError;
use super::damage::RowFault;
use super::row_id::RowKind;

/// A table of rows, by number. The tables' numbers are part of the format: commit files name tables by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromRepr, VariantArray)]
#[repr(u8)]
pub enum Table {
    /// Counters and sources; key is one of [`meta`](super::meta).
    Meta = 0,
    /// Chunk rows, 256 to a page; key is the chunk number divided by 256.
    Chunks = 2,
    /// Pack number to pack row.
    Packs = 3,
    /// Link groups, 256 to a page; key is the group number divided by 256.
    Groups = 4,
    /// Object number to object.
    Objects = 6,
    /// Snapshot number to snapshot record.
    Snapshots = 7,
    /// Commit number to the identifier of its commit file.
    Commits = 8,
    /// Dictionary number to the dictionary's bytes.
    Dictionaries = 9,
    /// Snapshot number to what people said of it since.
    Marks = 10,
    /// Objects that nothing needs any more and a later run deletes; the key only orders them.
    Condemned = 11,
}

/// A table of hashes, each of which names the number of a row. Its number is one of the same series as those of [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromRepr, VariantArray)]
#[repr(u8)]
pub enum Index {
    /// Chunk hash to chunk number.
    Chunks = 1,
    /// Object hash to object number.
    Objects = 5,
}

impl Index {
    /// Returns the name of its entries in errors.
    pub fn entry_kind(self) -> RowKind {
        match self {
            Index::Chunks => RowKind::ChunkIndexEntry,
            Index::Objects => RowKind::ObjectIndexEntry,
        }
    }

    pub(super) fn definition(self) -> TableDefinition<'static, &'static [u8; 32], u64> {
        TableDefinition::new(match self {
            Index::Chunks => "chunk_index",
            Index::Objects => "object_index",
        })
    }
}

impl Table {
    /// Returns whether catalogues of earlier versions lack the table.
    pub(super) fn is_optional(self) -> bool {
        matches!(self, Table::Marks | Table::Condemned)
    }

    /// Returns the name of its rows in errors.
    pub fn row_kind(self) -> RowKind {
        match self {
            Table::Meta => RowKind::Meta,
            Table::Chunks => RowKind::ChunkPage,
            Table::Packs => RowKind::Pack,
            Table::Groups => RowKind::GroupPage,
            Table::Objects => RowKind::Object,
            Table::Snapshots => RowKind::Snapshot,
            Table::Commits => RowKind::Commit,
            Table::Dictionaries => RowKind::Dictionary,
            Table::Marks => RowKind::Marks,
            Table::Condemned => RowKind::Condemned,
        }
    }

    pub(super) fn definition(self) -> TableDefinition<'static, u64, &'static [u8]> {
        TableDefinition::new(match self {
            Table::Meta => "meta",
            Table::Chunks => "chunks",
            Table::Packs => "packs",
            Table::Groups => "groups",
            Table::Objects => "objects",
            Table::Snapshots => "snapshots",
            Table::Commits => "commits",
            Table::Dictionaries => "dictionaries",
            Table::Marks => "marks",
            Table::Condemned => "condemned",
        })
    }
}

/// One change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes the payload under the number, in place of what was there.
    Put(Table, u64, Vec<u8>),
    /// Removes the row of that number.
    Delete(Table, u64),
    /// Lets the hash name the number.
    PutIndex(Index, [u8; 32], u64),
    /// Forgets the hash.
    DeleteIndex(Index, [u8; 32]),
}

/// Bytes of check value behind each payload.
pub(super) const CHECK_BYTES: usize = 8;

/// Returns a payload with its check value behind it.
pub(super) fn seal(table: Table, key: u64, payload: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(payload.len() + CHECK_BYTES);
    sealed.extend_from_slice(payload);
    sealed.extend_from_slice(&check_value(table, key, payload));
    sealed
}

fn check_value(table: Table, key: u64, payload: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[table as u8]);
    hasher.update(&key.to_le_bytes());
    hasher.update(payload);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
    check
}

/// Returns the payload of a sealed value.
pub(super) fn unseal(table: Table, key: u64, sealed: &[u8]) -> Result<&[u8], CatalogError> {
    let split = sealed.len().checked_sub(CHECK_BYTES);
    let payload = split.map(|at| sealed.split_at(at));
    match payload {
        Some((payload, check)) if check == check_value(table, key, payload) => Ok(payload),
        _ => Err(CatalogError::of_row(table.row_kind().row(key), RowFault::CheckValue)),
    }
}
