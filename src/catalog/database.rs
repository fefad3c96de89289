//! The redb database: tables of sealed values, read and written by number or by hash.
//!
//! Every value but the numbers of the two hash indexes ends with eight bytes of check value, a BLAKE3 over the table's number, the key and
//! the payload. A flipped bit, or a value that turns up under another key, is therefore an error and never data. The
//! indexes need none: whoever looks a hash up confirms the answer against the row that it names.

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{
    ConcurrencyMode, Database, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition,
};

use super::CatalogError;
use super::overlay::Overlay;

/// A table of the catalogue. The numbers are part of the format: commit files name tables by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// Counters and sources; key is one of [`meta`](crate::catalog::writer).
    Meta = 0,
    /// Chunk hash to chunk number.
    ChunkIndex = 1,
    /// Chunk rows, 256 to a page; key is the chunk number divided by 256.
    Chunks = 2,
    /// Pack number to pack row.
    Packs = 3,
    /// Link groups, 256 to a page; key is the group number divided by 256.
    Groups = 4,
    /// Object hash to object number.
    ObjectIndex = 5,
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

/// The tables whose keys are numbers.
pub const NUMBERED: [Table; 10] = [
    Table::Meta,
    Table::Chunks,
    Table::Packs,
    Table::Groups,
    Table::Objects,
    Table::Snapshots,
    Table::Commits,
    Table::Dictionaries,
    Table::Marks,
    Table::Condemned,
];

impl Table {
    /// Returns the table for its number in a commit file.
    pub fn from_number(number: u8) -> Option<Table> {
        Some(match number {
            0 => Table::Meta,
            1 => Table::ChunkIndex,
            2 => Table::Chunks,
            3 => Table::Packs,
            4 => Table::Groups,
            5 => Table::ObjectIndex,
            6 => Table::Objects,
            7 => Table::Snapshots,
            8 => Table::Commits,
            9 => Table::Dictionaries,
            10 => Table::Marks,
            11 => Table::Condemned,
            _ => return None,
        })
    }

    /// Returns whether catalogues of earlier versions lack the table.
    fn may_be_absent(self) -> bool {
        matches!(self, Table::Marks | Table::Condemned)
    }

    /// Returns whether the table's keys are hashes.
    pub fn is_index(self) -> bool {
        matches!(self, Table::ChunkIndex | Table::ObjectIndex)
    }

    /// Returns the word for one row of the table in messages.
    pub fn row_name(self) -> &'static str {
        match self {
            Table::Meta => "meta row",
            Table::ChunkIndex => "chunk index entry",
            Table::Chunks => "page of chunk rows",
            Table::Packs => "pack row",
            Table::Groups => "page of link groups",
            Table::ObjectIndex => "object index entry",
            Table::Objects => "object",
            Table::Snapshots => "snapshot record",
            Table::Commits => "commit row",
            Table::Dictionaries => "dictionary",
            Table::Marks => "marks of snapshot",
            Table::Condemned => "condemned object",
        }
    }

    fn numbered(self) -> TableDefinition<'static, u64, &'static [u8]> {
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
            Table::ChunkIndex | Table::ObjectIndex => "unused",
        })
    }

    fn index(self) -> TableDefinition<'static, &'static [u8; 32], u64> {
        TableDefinition::new(match self {
            Table::ObjectIndex => "object_index",
            _ => "chunk_index",
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
    PutIndex(Table, [u8; 32], u64),
    /// Forgets the hash.
    DeleteIndex(Table, [u8; 32]),
}

/// Bytes of check value behind each payload.
const CHECK_BYTES: usize = 8;

/// Memory that redb may use for its page cache, in bytes.
const CACHE_BYTES: usize = 48 << 20;

fn check_value(table: Table, key: u64, payload: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[table as u8]);
    hasher.update(&key.to_le_bytes());
    hasher.update(payload);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
    check
}

fn unseal(table: Table, key: u64, sealed: &[u8]) -> Result<&[u8], CatalogError> {
    let split = sealed.len().checked_sub(CHECK_BYTES);
    let payload = split.map(|at| sealed.split_at(at));
    match payload {
        Some((payload, check)) if check == check_value(table, key, payload) => Ok(payload),
        _ => Err(CatalogError::Damaged {
            what: table.row_name(),
            number: key,
            reason: "its check value does not fit its bytes".to_owned(),
        }),
    }
}

enum Handle {
    Writer(Database),
    Reader(ReadOnlyDatabase),
    /// Repaired in memory only; nobody else may write as long as it is read.
    Repaired(Database, #[expect(dead_code, reason = "held, not used")] File),
}

/// An open catalogue database.
pub struct CatalogDatabase {
    handle: Handle,
    path: PathBuf,
}

impl CatalogDatabase {
    fn builder() -> redb::Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::SingleWriter);
        builder
    }

    fn open_error(path: &Path, error: redb::DatabaseError) -> CatalogError {
        let path = path.display().to_string();
        match error {
            redb::DatabaseError::RepairAborted => CatalogError::NeedsRepair { path },
            // Not its fault, and to be told apart.
            redb::DatabaseError::Storage(redb::StorageError::Io(error)) if CatalogError::is_full(&error) => {
                redb::StorageError::Io(error).into()
            }
            other => CatalogError::Open { path, message: other.to_string() },
        }
    }

    /// Creates the database with all tables, or opens it when it exists. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when the file cannot be created or is no redb database.
    pub fn open_or_create(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        // Made here, for redb leaves its mode and owner to chance; an empty file is a new database to it.
        match crate::access::create(path, crate::access::FILE_MODE) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Self::open_error(path, redb::StorageError::Io(error).into()));
            }
            _ => {}
        }
        let database = Self::builder().create(path).map_err(|error| Self::open_error(path, error))?;
        let transaction = database.begin_write()?;
        let complete = transaction.list_tables()?.count() == NUMBERED.len() + 2;
        if complete {
            transaction.abort()?;
        } else {
            for table in NUMBERED {
                transaction.open_table(table.numbered())?;
            }
            transaction.open_table(Table::ChunkIndex.index())?;
            transaction.open_table(Table::ObjectIndex.index())?;
            transaction.commit()?;
        }
        Ok(CatalogDatabase { handle: Handle::Writer(database), path: path.to_owned() })
    }

    /// Opens an existing database for writing. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when there is none, or it is no redb database.
    pub fn open(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        let database = Self::builder().open(path).map_err(|error| Self::open_error(path, error))?;
        Ok(CatalogDatabase { handle: Handle::Writer(database), path: path.to_owned() })
    }

    /// Opens an existing database for reading, beside a writer in another process.
    ///
    /// # Errors
    /// [`CatalogError::NeedsRepair`] when a writer died and nobody has written since.
    pub fn open_read_only(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        let database = Self::builder().open_read_only(path).map_err(|error| Self::open_error(path, error))?;
        Ok(CatalogDatabase { handle: Handle::Reader(database), path: path.to_owned() })
    }

    /// Opens an existing database for reading whose writer died and that cannot be repaired where it is, on a full disk or one that is read only: it is repaired in memory. `lock`, the
    /// store's lock, is held as long as it is read.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when it cannot be read, or not be repaired.
    pub fn open_repaired(path: &Path, lock: File) -> Result<CatalogDatabase, CatalogError> {
        let overlay = File::open(path).and_then(Overlay::new).map_err(|error| {
            let path = path.display().to_string();
            CatalogError::Open { path, message: error.to_string() }
        })?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create_with_backend(overlay).map_err(|error| Self::open_error(path, error))?;
        Ok(CatalogDatabase { handle: Handle::Repaired(database, lock), path: path.to_owned() })
    }

    /// Returns whether it was repaired in memory: nobody can write then.
    pub fn is_repaired_in_memory(&self) -> bool {
        matches!(self.handle, Handle::Repaired(..))
    }

    /// Returns the path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a read transaction that sees the last commit. Keep it short: it pins every page it could still read.
    ///
    /// # Errors
    /// Fails when redb fails or a table is missing.
    pub fn read(&self) -> Result<DatabaseReader, CatalogError> {
        let transaction = match &self.handle {
            Handle::Writer(database) | Handle::Repaired(database, _) => database.begin_read()?,
            Handle::Reader(database) => database.begin_read()?,
        };
        DatabaseReader::open(transaction)
    }

    /// Applies all changes in one durable transaction.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails; nothing is changed then.
    pub fn apply(&self, changes: &[Change]) -> Result<(), CatalogError> {
        let Handle::Writer(database) = &self.handle else {
            return Err(CatalogError::Open {
                path: self.path.display().to_string(),
                message: "it was opened for reading only".to_owned(),
            });
        };
        let transaction = database.begin_write()?;
        for table in NUMBERED {
            let mut open = None;
            for change in changes {
                match change {
                    Change::Put(into, key, payload) if *into == table => {
                        if open.is_none() {
                            open = Some(transaction.open_table(table.numbered())?);
                        }
                        let mut sealed = Vec::with_capacity(payload.len() + CHECK_BYTES);
                        sealed.extend_from_slice(payload);
                        sealed.extend_from_slice(&check_value(table, *key, payload));
                        if let Some(open) = &mut open {
                            open.insert(key, sealed.as_slice())?;
                        }
                    }
                    Change::Delete(from, key) if *from == table => {
                        if open.is_none() {
                            open = Some(transaction.open_table(table.numbered())?);
                        }
                        if let Some(open) = &mut open {
                            open.remove(key)?;
                        }
                    }
                    _ => {}
                }
            }
        }
        for table in [Table::ChunkIndex, Table::ObjectIndex] {
            let mut puts: Vec<(&[u8; 32], Option<u64>)> = changes
                .iter()
                .filter_map(|change| match change {
                    Change::PutIndex(into, hash, number) if *into == table => Some((hash, Some(*number))),
                    Change::DeleteIndex(from, hash) if *from == table => Some((hash, None)),
                    _ => None,
                })
                .collect();
            if puts.is_empty() {
                continue;
            }
            // Stable, so a delete and a put of one hash keep their order; sorted inserts are several times faster.
            puts.sort_by_key(|(hash, _)| *hash);
            let mut open = transaction.open_table(table.index())?;
            for (hash, number) in puts {
                match number {
                    Some(number) => open.insert(hash, number)?,
                    None => open.remove(hash)?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Moves pages to the front of the file and cuts it behind them. Takes time with the size of the file.
    ///
    /// # Errors
    /// Fails when the database was opened read-only, someone reads it, or redb fails; nothing is lost then.
    pub fn compact(&mut self) -> Result<(), CatalogError> {
        if let Handle::Writer(database) = &mut self.handle {
            database.compact()?;
        }
        Ok(())
    }

    /// Returns the length of the database file and how much of it is in use, in bytes. Takes a look at every page.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails.
    pub fn usage(&self) -> Result<(u64, u64), CatalogError> {
        let Handle::Writer(database) = &self.handle else {
            return Err(CatalogError::Open {
                path: self.path.display().to_string(),
                message: "it was opened for reading only".to_owned(),
            });
        };
        let transaction = database.begin_write()?;
        let stats = transaction.stats()?;
        transaction.abort()?;
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        Ok((length, stats.allocated_pages() * stats.page_size() as u64))
    }

    /// Lets redb verify the checksums of its own pages and repair what it can from them.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails.
    pub fn check_pages(&mut self) -> Result<bool, CatalogError> {
        match &mut self.handle {
            Handle::Writer(database) | Handle::Repaired(database, _) => Ok(database.check_integrity()?),
            Handle::Reader(_) => Ok(true),
        }
    }
}

/// A read transaction over all tables.
pub struct DatabaseReader {
    numbered: Vec<(Table, ReadOnlyTable<u64, &'static [u8]>)>,
    chunk_index: ReadOnlyTable<&'static [u8; 32], u64>,
    object_index: ReadOnlyTable<&'static [u8; 32], u64>,
}

impl DatabaseReader {
    fn open(transaction: ReadTransaction) -> Result<DatabaseReader, CatalogError> {
        let mut numbered = Vec::with_capacity(NUMBERED.len());
        for table in NUMBERED {
            match transaction.open_table(table.numbered()) {
                // A catalogue from before there was such a table gets it with its first row.
                Err(redb::TableError::TableDoesNotExist(_)) if table.may_be_absent() => {}
                opened => numbered.push((table, opened?)),
            }
        }
        Ok(DatabaseReader {
            numbered,
            chunk_index: transaction.open_table(Table::ChunkIndex.index())?,
            object_index: transaction.open_table(Table::ObjectIndex.index())?,
        })
    }

    /// Returns a table, or `None` when the catalogue is from before there was such a one.
    fn table(&self, table: Table) -> Result<Option<&ReadOnlyTable<u64, &'static [u8]>>, CatalogError> {
        match self.numbered.iter().find(|(name, _)| *name == table) {
            Some((_, open)) => Ok(Some(open)),
            None if table.may_be_absent() => Ok(None),
            None => Err(CatalogError::Missing { what: "table", number: table as u64 }),
        }
    }

    /// Reads the payload of a row and hands it to `use_payload`, or returns `None` when there is no such row.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] when the check value does not fit.
    pub fn get<T>(
        &self,
        table: Table,
        key: u64,
        use_payload: impl FnOnce(&[u8]) -> Result<T, CatalogError>,
    ) -> Result<Option<T>, CatalogError> {
        let Some(open) = self.table(table)? else { return Ok(None) };
        match open.get(key)? {
            None => Ok(None),
            Some(guard) => use_payload(unseal(table, key, guard.value())?).map(Some),
        }
    }

    /// Looks a hash up in one of the two indexes.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn find(&self, table: Table, hash: &[u8; 32]) -> Result<Option<u64>, CatalogError> {
        let index = if table == Table::ObjectIndex { &self.object_index } else { &self.chunk_index };
        Ok(index.get(hash)?.map(|guard| guard.value()))
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
        for row in open.range(first..)? {
            let (key, value) = row?;
            visit(key.value(), unseal(table, key.value(), value.value()))?;
        }
        Ok(())
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
        for row in open.iter()? {
            visit(row?.0.value())?;
        }
        Ok(())
    }

    /// Returns the hash by which an index names a number, given the hash's first bytes; `None` when it names it by none that begins so.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn hash_of(&self, table: Table, prefix: [u8; 8], number: u64) -> Result<Option<[u8; 32]>, CatalogError> {
        let index = if table == Table::ObjectIndex { &self.object_index } else { &self.chunk_index };
        let (mut first, mut last) = ([0; 32], [0xff; 32]);
        first[..8].copy_from_slice(&prefix);
        last[..8].copy_from_slice(&prefix);
        for row in index.range::<&[u8; 32]>(&first..=&last)? {
            let (hash, named) = row?;
            if named.value() == number {
                return Ok(Some(*hash.value()));
            }
        }
        Ok(None)
    }

    /// Calls `visit` for every entry of an index, in order of the hashes.
    ///
    /// # Errors
    /// Fails when redb fails or `visit` fails.
    pub fn scan_index(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8; 32], u64) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let index = if table == Table::ObjectIndex { &self.object_index } else { &self.chunk_index };
        for row in index.iter()? {
            let (key, value) = row?;
            visit(key.value(), value.value())?;
        }
        Ok(())
    }
}
