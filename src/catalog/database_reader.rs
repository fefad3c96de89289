//! A read transaction of the database: rows by number, by hash and in order.

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata};
use strum::VariantArray;

use super::CatalogError;
use super::damage::RowFault;
use super::redb_call::{self, reading};
use super::row_id::RowKind;
use super::tables::{Index, Table, unseal};

type Numbered = ReadOnlyTable<u64, &'static [u8]>;
type Hashed = ReadOnlyTable<&'static [u8; 32], u64>;

struct Tables {
    numbered: Vec<(Table, Numbered)>,
    chunk_index: Hashed,
    object_index: Hashed,
}

/// A read transaction over all tables.
pub struct DatabaseReader {
    /// `None` only while it is dropped.
    tables: Option<Tables>,
}

impl Drop for DatabaseReader {
    fn drop(&mut self) {
        // After a panic of redb its locks are poisoned.
        redb_call::dropping(self.tables.take());
    }
}

impl DatabaseReader {
    pub(super) fn open(transaction: ReadTransaction) -> Result<DatabaseReader, CatalogError> {
        reading(|| {
            let mut numbered = Vec::with_capacity(Table::VARIANTS.len());
            for &table in Table::VARIANTS {
                match transaction.open_table(table.definition()) {
                    // A catalogue from before there was such a table gets it with its first row.
                    Err(redb::TableError::TableDoesNotExist(_)) if table.is_optional() => {}
                    opened => numbered.push((table, opened?)),
                }
            }
            let chunk_index = transaction.open_table(Index::Chunks.definition())?;
            let object_index = transaction.open_table(Index::Objects.definition())?;
            Ok(DatabaseReader { tables: Some(Tables { numbered, chunk_index, object_index }) })
        })
    }

    /// Returns a table, or `None` when the catalogue is from before there was such a one.
    fn table(&self, table: Table) -> Result<Option<&Numbered>, CatalogError> {
        let tables = self.tables.iter().flat_map(|tables| &tables.numbered);
        match tables.into_iter().find(|(name, _)| *name == table) {
            Some((_, open)) => Ok(Some(open)),
            None if table.is_optional() => Ok(None),
            None => Err(CatalogError::missing(RowKind::Table.row(table as u64))),
        }
    }

    fn index(&self, index: Index) -> Result<&Hashed, CatalogError> {
        let tables = self.tables.as_ref().ok_or(CatalogError::missing(RowKind::Table.row(index as u64)))?;
        Ok(match index {
            Index::Chunks => &tables.chunk_index,
            Index::Objects => &tables.object_index,
        })
    }

    /// Reads the payload of a row and hands it to `use_payload`, or returns `None` when there is no such row.
    ///
    /// # Errors
    /// [`CatalogDamage::Row`](super::CatalogDamage::Row) when the check value does not fit.
    pub fn get<T>(
        &self,
        table: Table,
        key: u64,
        use_payload: impl FnOnce(&[u8]) -> Result<T, CatalogError>,
    ) -> Result<Option<T>, CatalogError> {
        let Some(open) = self.table(table)? else { return Ok(None) };
        let Some(guard) = reading(|| Ok(open.get(key)?))? else { return Ok(None) };
        let sealed = reading(|| Ok(guard.value()))?;
        use_payload(unseal(table, key, sealed)?).map(Some)
    }

    /// Looks a hash up in one of the two indexes.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn find(&self, index: Index, hash: &[u8; 32]) -> Result<Option<u64>, CatalogError> {
        let index = self.index(index)?;
        reading(|| Ok(index.get(hash)?.map(|guard| guard.value())))
    }

    /// Calls `visit` for every row from `first` on, in order of their numbers.
    ///
    /// # Errors
    /// Fails when redb fails, a check value does not fit or `visit` fails.
    pub fn scan(
        &self,
        table: Table,
        first: u64,
        mut visit: impl FnMut(u64, Result<&[u8], CatalogError>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let Some(open) = self.table(table)? else { return Ok(()) };
        let mut rows = reading(|| Ok(open.range(first..)?))?;
        let mut order = Order::new(table.row_kind());
        while let Some((number, value)) = reading(|| Ok(rows.next().transpose()?.map(|(key, row)| (key.value(), row))))?
        {
            order.next(number, number)?;
            let sealed = reading(|| Ok(value.value()))?;
            visit(number, unseal(table, number, sealed))?;
        }
        if first == 0 { order.end(reading(|| Ok(open.len()?))?) } else { Ok(()) }
    }

    /// Calls `visit` for the number of every row, in order, without looking at the rows.
    ///
    /// # Errors
    /// Fails when redb fails or `visit` fails.
    pub fn scan_numbers(
        &self,
        table: Table,
        mut visit: impl FnMut(u64) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let Some(open) = self.table(table)? else { return Ok(()) };
        let mut rows = reading(|| Ok(open.iter()?))?;
        let mut order = Order::new(table.row_kind());
        while let Some(number) = reading(|| Ok(rows.next().transpose()?.map(|(key, _)| key.value())))? {
            order.next(number, number)?;
            visit(number)?;
        }
        order.end(reading(|| Ok(open.len()?))?)
    }

    /// Returns the hash by which an index names a number, given the hash's first bytes; `None` when it names it by none that begins so.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn hash_of(&self, index: Index, prefix: [u8; 8], number: u64) -> Result<Option<[u8; 32]>, CatalogError> {
        let index = self.index(index)?;
        let (mut first, mut last) = ([0; 32], [0xff; 32]);
        first[..8].copy_from_slice(&prefix);
        last[..8].copy_from_slice(&prefix);
        reading(|| {
            for row in index.range::<&[u8; 32]>(&first..=&last)? {
                let (hash, named) = row?;
                if named.value() == number {
                    return Ok(Some(*hash.value()));
                }
            }
            Ok(None)
        })
    }

    /// Calls `visit` for every entry of an index, in order of the hashes.
    ///
    /// # Errors
    /// Fails when redb fails or `visit` fails.
    pub fn scan_index(
        &self,
        index: Index,
        mut visit: impl FnMut(&[u8; 32], u64) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let mut order = Order::new(index.entry_kind());
        let index = self.index(index)?;
        let mut rows = reading(|| Ok(index.iter()?))?;
        while let Some((hash, number)) =
            reading(|| Ok(rows.next().transpose()?.map(|(key, value)| (*key.value(), value.value()))))?
        {
            order.next(hash, number)?;
            visit(&hash, number)?;
        }
        order.end(reading(|| Ok(index.len()?))?)
    }
}

/// Sees to it that a scan ends and meets every row: a damaged page can make redb go in circles, or pass over what it held.
struct Order<K> {
    kind: RowKind,
    last: Option<K>,
    rows: u64,
}

impl<K: PartialOrd> Order<K> {
    fn new(kind: RowKind) -> Order<K> {
        Order { kind, last: None, rows: 0 }
    }

    fn next(&mut self, key: K, number: u64) -> Result<(), CatalogError> {
        if self.last.as_ref().is_some_and(|last| key <= *last) {
            return Err(CatalogError::of_row(self.kind.row(number), RowFault::Order));
        }
        self.last = Some(key);
        self.rows += 1;
        Ok(())
    }

    /// Ends a scan of a table that should have had so many rows.
    fn end(&self, rows: u64) -> Result<(), CatalogError> {
        if self.rows == rows {
            return Ok(());
        }
        let fault = RowFault::Unreachable { stated: rows, readable: self.rows };
        Err(CatalogError::of_row(self.kind.row(self.rows), fault))
    }
}
