//! The redb database: tables of sealed values, read and written by number or by hash.
//!
//! Every value but the numbers of the two hash indexes ends with eight bytes of check value, a BLAKE3 over the table's number, the key and
//! the payload. A flipped bit, or a value that turns up under another key, is therefore an error and never data. The
//! indexes need none: whoever looks a hash up confirms the answer against the row that it names.
//!
//! redb panics on some damaged pages. Every call of it, here and in `database_reader`, goes through `guarded`, which makes an error of that.

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadableDatabase, TableDefinition};

use super::CatalogError;
pub use super::database_reader::DatabaseReader;
use super::guarded::guarded;
use super::overlay::Overlay;

/// A table of rows, by number. The tables' numbers are part of the format: commit files name tables by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// Counters and sources; key is one of [`meta`](crate::catalog::writer).
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Index {
    /// Chunk hash to chunk number.
    Chunks = 1,
    /// Object hash to object number.
    Objects = 5,
}

impl Index {
    /// Both of them.
    pub const ALL: [Index; 2] = [Index::Chunks, Index::Objects];

    /// Returns the index for its number in a commit file.
    pub fn from_number(number: u8) -> Option<Index> {
        Index::ALL.into_iter().find(|index| *index as u8 == number)
    }

    /// Returns the word for one entry in messages.
    pub fn entry_name(self) -> &'static str {
        match self {
            Index::Chunks => "chunk index entry",
            Index::Objects => "object index entry",
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
    /// All of them.
    pub const ALL: [Table; 10] = [
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

    /// Returns the table for its number in a commit file.
    pub fn from_number(number: u8) -> Option<Table> {
        Table::ALL.into_iter().find(|table| *table as u8 == number)
    }

    /// Returns whether catalogues of earlier versions lack the table.
    pub(super) fn may_be_absent(self) -> bool {
        matches!(self, Table::Marks | Table::Condemned)
    }

    /// Returns the word for one row of the table in messages.
    pub fn row_name(self) -> &'static str {
        match self {
            Table::Meta => "meta row",
            Table::Chunks => "page of chunk rows",
            Table::Packs => "pack row",
            Table::Groups => "page of link groups",
            Table::Objects => "object",
            Table::Snapshots => "snapshot record",
            Table::Commits => "commit row",
            Table::Dictionaries => "dictionary",
            Table::Marks => "marks of snapshot",
            Table::Condemned => "condemned object",
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

pub(super) fn unseal(table: Table, key: u64, sealed: &[u8]) -> Result<&[u8], CatalogError> {
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
    /// Only while it is dropped.
    Closed,
}

/// An open catalogue database.
pub struct CatalogDatabase {
    handle: Handle,
    path: PathBuf,
}

impl Drop for CatalogDatabase {
    fn drop(&mut self) {
        let handle = std::mem::replace(&mut self.handle, Handle::Closed);
        // redb writes when it is closed, and may meet a damaged page then. Whoever opens it next is told.
        let _ = guarded(|| {
            drop(handle);
            Ok(())
        });
    }
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
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) if !CatalogError::is_of_file(&source) => {
                CatalogError::Unreadable { path, source }
            }
            other => CatalogError::Open { path, message: other.to_string() },
        }
    }

    fn not_for_writing(&self) -> CatalogError {
        let message = "it was opened for reading only".to_owned();
        CatalogError::Open { path: self.path.display().to_string(), message }
    }

    /// Creates the database with all tables, or opens it when it exists. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when the file cannot be created or is no redb database.
    pub fn open_or_create(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        guarded(|| {
            // Made here, for redb leaves its mode and owner to chance; an empty file is a new database to it.
            match crate::access::create(path, crate::access::FILE_MODE) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Self::open_error(path, redb::StorageError::Io(error).into()));
                }
                _ => {}
            }
            let database = Self::builder().create(path).map_err(|error| Self::open_error(path, error))?;
            let transaction = database.begin_write()?;
            let complete = transaction.list_tables()?.count() == Table::ALL.len() + Index::ALL.len();
            if complete {
                transaction.abort()?;
            } else {
                for table in Table::ALL {
                    transaction.open_table(table.definition())?;
                }
                for index in Index::ALL {
                    transaction.open_table(index.definition())?;
                }
                transaction.commit()?;
            }
            Ok(CatalogDatabase { handle: Handle::Writer(database), path: path.to_owned() })
        })
    }

    /// Opens an existing database for writing. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when there is none, or it is no redb database.
    pub fn open(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        guarded(|| {
            let database = Self::builder().open(path).map_err(|error| Self::open_error(path, error))?;
            Ok(CatalogDatabase { handle: Handle::Writer(database), path: path.to_owned() })
        })
    }

    /// Opens an existing database for reading, beside a writer in another process.
    ///
    /// # Errors
    /// [`CatalogError::NeedsRepair`] when a writer died and nobody has written since.
    pub fn open_read_only(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        guarded(|| {
            let database = Self::builder().open_read_only(path).map_err(|error| Self::open_error(path, error))?;
            Ok(CatalogDatabase { handle: Handle::Reader(database), path: path.to_owned() })
        })
    }

    /// Opens an existing database for reading whose writer died and that cannot be repaired where it is, on a full disk or one that is read only: it is repaired in memory. `lock`, the
    /// store's lock, is held as long as it is read.
    ///
    /// # Errors
    /// [`CatalogError::Open`] when it cannot be read, or not be repaired.
    pub fn open_repaired(path: &Path, lock: File) -> Result<CatalogDatabase, CatalogError> {
        let database = guarded(|| Self::open_in_memory(path))?;
        Ok(CatalogDatabase { handle: Handle::Repaired(database, lock), path: path.to_owned() })
    }

    fn open_in_memory(path: &Path) -> Result<Database, CatalogError> {
        let opened = File::open(path).and_then(Overlay::new);
        let overlay = opened.map_err(|error| Self::open_error(path, redb::StorageError::Io(error).into()))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder.create_with_backend(overlay).map_err(|error| Self::open_error(path, error))
    }

    /// Does what every writer does to the database, over a copy of the changed pages in memory: opens it for writing, changes every table, commits. redb
    /// has pages that only a writer reads, and a damaged one shows in no other way. Nothing is written to the file.
    ///
    /// # Errors
    /// What a writer would meet; also when another process writes to the file meanwhile, so without the store's lock only a success means something.
    pub fn try_writing(path: &Path) -> Result<(), CatalogError> {
        /// No row has this number.
        const NUMBER: u64 = u64::MAX;
        const HASH: [u8; 32] = [0xff; 32];
        guarded(|| {
            let database = Self::open_in_memory(path)?;
            // The second commit sees to the pages that the first one has freed.
            for _ in 0..2 {
                let transaction = database.begin_write()?;
                for table in Table::ALL {
                    let mut open = transaction.open_table(table.definition())?;
                    open.insert(NUMBER, [0; CHECK_BYTES].as_slice())?;
                    open.remove(NUMBER)?;
                }
                for index in Index::ALL {
                    let mut open = transaction.open_table(index.definition())?;
                    open.insert(&HASH, NUMBER)?;
                    open.remove(&HASH)?;
                }
                transaction.commit()?;
            }
            Ok(())
        })
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
        let transaction = guarded(|| match &self.handle {
            Handle::Writer(database) | Handle::Repaired(database, _) => Ok(database.begin_read()?),
            Handle::Reader(database) => Ok(database.begin_read()?),
            Handle::Closed => Err(self.not_for_writing()),
        })?;
        DatabaseReader::open(transaction)
    }

    fn writer(&self) -> Result<&Database, CatalogError> {
        let Handle::Writer(database) = &self.handle else { return Err(self.not_for_writing()) };
        Ok(database)
    }

    /// Applies all changes in one durable transaction.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails; nothing is changed then.
    pub fn apply(&self, changes: &[Change]) -> Result<(), CatalogError> {
        let database = self.writer()?;
        guarded(|| {
            let transaction = database.begin_write()?;
            apply_in(&transaction, changes)?;
            transaction.commit()?;
            Ok(())
        })
    }

    /// Applies all changes that `feed` hands on, batch by batch, in one durable transaction.
    ///
    /// # Errors
    /// Fails when the database was opened read-only, redb fails, or `feed` does; nothing is changed then.
    pub fn apply_all(
        &self,
        feed: impl FnOnce(&mut dyn FnMut(Vec<Change>) -> Result<(), CatalogError>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let database = self.writer()?;
        guarded(|| {
            let transaction = database.begin_write()?;
            feed(&mut |changes| apply_in(&transaction, &changes))?;
            transaction.commit()?;
            Ok(())
        })
    }

    /// Moves pages to the front of the file and cuts it behind them. Takes time with the size of the file.
    ///
    /// # Errors
    /// Fails when the database was opened read-only, someone reads it, or redb fails; nothing is lost then.
    pub fn compact(&mut self) -> Result<(), CatalogError> {
        if let Handle::Writer(database) = &mut self.handle {
            guarded(|| Ok(database.compact()?))?;
        }
        Ok(())
    }

    /// Returns the length of the database file and how much of it is in use, in bytes. Takes a look at every page.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails.
    pub fn usage(&self) -> Result<(u64, u64), CatalogError> {
        let Handle::Writer(database) = &self.handle else { return Err(self.not_for_writing()) };
        let stats = guarded(|| {
            let transaction = database.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            Ok(stats)
        })?;
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        Ok((length, stats.allocated_pages() * stats.page_size() as u64))
    }

    /// Lets redb verify the checksums of its own pages and repair what it can from them.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails.
    pub fn check_pages(&mut self) -> Result<bool, CatalogError> {
        match &mut self.handle {
            Handle::Writer(database) | Handle::Repaired(database, _) => guarded(|| Ok(database.check_integrity()?)),
            Handle::Reader(_) | Handle::Closed => Ok(true),
        }
    }
}

/// Applies changes in order of the tables, and of each table's in the order in which they come.
fn apply_in(transaction: &redb::WriteTransaction, changes: &[Change]) -> Result<(), CatalogError> {
    for table in Table::ALL {
        let mut open = None;
        for change in changes {
            match change {
                Change::Put(into, key, payload) if *into == table => {
                    if open.is_none() {
                        open = Some(transaction.open_table(table.definition())?);
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
                        open = Some(transaction.open_table(table.definition())?);
                    }
                    if let Some(open) = &mut open {
                        open.remove(key)?;
                    }
                }
                _ => {}
            }
        }
    }
    for index in Index::ALL {
        let mut puts: Vec<(&[u8; 32], Option<u64>)> = changes
            .iter()
            .filter_map(|change| match change {
                Change::PutIndex(into, hash, number) if *into == index => Some((hash, Some(*number))),
                Change::DeleteIndex(from, hash) if *from == index => Some((hash, None)),
                _ => None,
            })
            .collect();
        if puts.is_empty() {
            continue;
        }
        // Stable, so a delete and a put of one hash keep their order; sorted inserts are several times faster.
        puts.sort_by_key(|(hash, _)| *hash);
        let mut open = transaction.open_table(index.definition())?;
        for (hash, number) in puts {
            match number {
                Some(number) => open.insert(hash, number)?,
                None => open.remove(hash)?,
            };
        }
    }
    Ok(())
}
