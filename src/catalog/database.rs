//! The redb database: opened, repaired, changed in transactions.
//!
//! Every call of redb, here and in `database_reader`, goes through `redb_call`, which distinguishes the kinds of errors and turns a panic into one.

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadableDatabase};
use strum::VariantArray;

use super::CatalogError;
use super::database_reader::DatabaseReader;
use super::error::OpenError;
use super::overlay::Overlay;
use super::redb_call;
use super::tables::{CHECK_BYTES, Change, Index, Table, seal};

/// Memory that redb may use for its page cache, in bytes.
const CACHE_BYTES: usize = 48 << 20;

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
        redb_call::dropping(std::mem::replace(&mut self.handle, Handle::Closed));
    }
}

impl CatalogDatabase {
    fn builder() -> redb::Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::SingleWriter);
        builder
    }

    fn read_only(&self) -> CatalogError {
        OpenError::ReadOnly { path: self.path.display().to_string() }.into()
    }

    /// Creates the database with all tables, or opens it when it exists. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be created or is no redb database.
    pub fn open_or_create(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        redb_call::opening(path, || {
            // Made here, for redb leaves its mode and owner to chance; an empty file is a new database to it.
            match crate::access::create(path, crate::access::FILE_MODE) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(redb::Error::Io(error)),
                _ => {}
            }
            let database = Self::builder().create(path)?;
            let transaction = database.begin_write()?;
            let complete = transaction.list_tables()?.count() == Table::VARIANTS.len() + Index::VARIANTS.len();
            if complete {
                transaction.abort()?;
            } else {
                for &table in Table::VARIANTS {
                    transaction.open_table(table.definition())?;
                }
                for &index in Index::VARIANTS {
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
    /// [`OpenError`] when there is none, or it is no redb database.
    pub fn open(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        redb_call::opening(path, || {
            let database = Self::builder().open(path)?;
            Ok(CatalogDatabase { handle: Handle::Writer(database), path: path.to_owned() })
        })
    }

    /// Opens an existing database for reading, beside a writer in another process.
    ///
    /// # Errors
    /// [`OpenError::NeedsRepair`] when a writer died and nobody has written since.
    pub fn open_read_only(path: &Path) -> Result<CatalogDatabase, CatalogError> {
        redb_call::opening(path, || {
            let database = Self::builder().open_read_only(path)?;
            Ok(CatalogDatabase { handle: Handle::Reader(database), path: path.to_owned() })
        })
    }

    /// Opens an existing database for reading whose writer died and that cannot be repaired where it is, on a full disk or one that is read only: it is
    /// repaired in memory. `lock`, the store's lock, is held as long as it is read.
    ///
    /// # Errors
    /// [`OpenError`] when it cannot be read, or not be repaired.
    pub fn open_repaired(path: &Path, lock: File) -> Result<CatalogDatabase, CatalogError> {
        let database = redb_call::opening(path, || Self::open_in_memory(path))?;
        Ok(CatalogDatabase { handle: Handle::Repaired(database, lock), path: path.to_owned() })
    }

    fn open_in_memory(path: &Path) -> Result<Database, redb::Error> {
        let overlay = File::open(path).and_then(Overlay::new).map_err(redb::Error::Io)?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        Ok(builder.create_with_backend(overlay)?)
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
        let database = redb_call::opening(path, || Self::open_in_memory(path))?;
        let tried = redb_call::reading(|| {
            // The second commit sees to the pages that the first one has freed.
            for _ in 0..2 {
                let transaction = database.begin_write()?;
                for &table in Table::VARIANTS {
                    let mut open = transaction.open_table(table.definition())?;
                    open.insert(NUMBER, [0; CHECK_BYTES].as_slice())?;
                    open.remove(NUMBER)?;
                }
                for &index in Index::VARIANTS {
                    let mut open = transaction.open_table(index.definition())?;
                    open.insert(&HASH, NUMBER)?;
                    open.remove(&HASH)?;
                }
                transaction.commit()?;
            }
            Ok(())
        });
        redb_call::dropping(database);
        tried
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
        let transaction = redb_call::reading(|| match &self.handle {
            Handle::Writer(database) | Handle::Repaired(database, _) => Ok(database.begin_read()?),
            Handle::Reader(database) => Ok(database.begin_read()?),
            Handle::Closed => Err(redb::Error::DatabaseClosed),
        })?;
        DatabaseReader::open(transaction)
    }

    fn writer(&self) -> Result<&Database, CatalogError> {
        let Handle::Writer(database) = &self.handle else { return Err(self.read_only()) };
        Ok(database)
    }

    /// Applies all changes in one durable transaction.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails; nothing is changed then.
    pub fn apply(&self, changes: &[Change]) -> Result<(), CatalogError> {
        let database = self.writer()?;
        redb_call::writing(|| {
            let transaction = database.begin_write()?;
            apply_in(&transaction, changes)?;
            Ok(transaction.commit()?)
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
        let transaction = redb_call::writing(|| Ok(database.begin_write()?))?;
        // A decoder that panics means damage, and the transaction must not be dropped while unwinding.
        let fed = redb_call::catching(|| feed(&mut |changes| redb_call::writing(|| apply_in(&transaction, &changes))));
        match fed.unwrap_or_else(|damage| Err(damage.into())) {
            Ok(()) => redb_call::writing(|| Ok(transaction.commit()?)),
            Err(error) => {
                redb_call::dropping(transaction);
                Err(error)
            }
        }
    }

    /// Moves pages to the front of the file and cuts it behind them. Takes time with the size of the file.
    ///
    /// # Errors
    /// Fails when the database was opened read-only, someone reads it, or redb fails; nothing is lost then.
    pub fn compact(&mut self) -> Result<(), CatalogError> {
        if let Handle::Writer(database) = &mut self.handle {
            redb_call::writing(|| Ok(database.compact()?))?;
        }
        Ok(())
    }

    /// Returns how much of the database file is in use, in bytes. Takes a look at every page.
    ///
    /// # Errors
    /// Fails when the database was opened read-only or redb fails.
    pub fn used_bytes(&self) -> Result<u64, CatalogError> {
        let database = self.writer()?;
        let stats = redb_call::writing(|| {
            let transaction = database.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            Ok(stats)
        })?;
        Ok(stats.allocated_pages() * stats.page_size() as u64)
    }
}

/// Applies changes in order of the tables, and of each table's in the order in which they come.
fn apply_in(transaction: &redb::WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    for &table in Table::VARIANTS {
        let mut open = None;
        for change in changes {
            match change {
                Change::Put(into, key, payload) if *into == table => {
                    if open.is_none() {
                        open = Some(transaction.open_table(table.definition())?);
                    }
                    if let Some(open) = &mut open {
                        open.insert(key, seal(table, *key, payload).as_slice())?;
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
    for &index in Index::VARIANTS {
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
