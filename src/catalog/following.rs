//! A view of the catalogue that follows its commits, for a reader that stays for days.
//!
//! A read transaction pins every page that it could still read, and keeps the file from being compacted. A long-lived reader therefore takes a
//! new one every second, and gives it back when nothing reads. This is sound because rows never change their meaning: a number, once
//! given, stands for the same link group, object or chunk for ever. Only the place of a chunk moves (when packs are rewritten), and rows that no
//! snapshot needs any more vanish.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::CatalogError;
use super::database::{CatalogDatabase, DatabaseReader, Table};

/// How long one read transaction serves.
const TRANSACTION_AGE: Duration = Duration::from_secs(1);

/// Opens the catalogue's database for reading, after a repair if need be.
pub type OpenDatabase = Box<dyn Fn() -> Result<Arc<CatalogDatabase>, CatalogError> + Send + Sync>;

/// Where a reader's rows come from.
pub(super) enum Rows {
    /// One commit.
    Fixed(Arc<DatabaseReader>),
    /// The last commit, whichever that is.
    Following(Following),
    /// Another host, row by row.
    Asked(Arc<dyn RowSource>),
}

/// Gives single rows of a catalogue that lies elsewhere.
pub trait RowSource: Send + Sync {
    /// Returns the payload of a row, `None` when there is no such row.
    ///
    /// # Errors
    /// When it cannot be had.
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError>;
}

impl Rows {
    pub(super) fn get(&self) -> Result<Arc<DatabaseReader>, CatalogError> {
        match self {
            Rows::Fixed(reader) => Ok(Arc::clone(reader)),
            Rows::Following(following) => following.get(),
            Rows::Asked(_) => {
                let (path, message) = ("another host".to_owned(), "only single rows can be had from there".to_owned());
                Err(CatalogError::Open { path, message })
            }
        }
    }

    /// Reads the payload of a row and hands it to `use_payload`, or returns `None` when there is no such row.
    pub(super) fn payload<T>(
        &self,
        table: Table,
        key: u64,
        use_payload: impl FnOnce(&[u8]) -> Result<T, CatalogError>,
    ) -> Result<Option<T>, CatalogError> {
        match self {
            Rows::Asked(source) => source.row(table, key)?.map(|payload| use_payload(&payload)).transpose(),
            _ => self.get()?.get(table, key, use_payload),
        }
    }
}

pub(super) struct Following {
    path: PathBuf,
    open: OpenDatabase,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The open file, by device and inode number: a rebuilt catalogue is another file under the same path.
    file: Option<(u64, u64)>,
    database: Option<Arc<CatalogDatabase>>,
    transaction: Option<(Arc<DatabaseReader>, Instant)>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Following {
    pub(super) fn new(path: PathBuf, open: OpenDatabase) -> Following {
        Following { path, open, state: Mutex::default() }
    }

    fn get(&self) -> Result<Arc<DatabaseReader>, CatalogError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((reader, since)) = &state.transaction
            && since.elapsed() < TRANSACTION_AGE
        {
            return Ok(Arc::clone(reader));
        }
        match self.renew(&mut state) {
            Ok(reader) => Ok(reader),
            // A writer that died, or a catalogue that is just being replaced: what was seen last is still there, and as good as ever.
            Err(error) => match &mut state.transaction {
                Some((reader, since)) => {
                    *since = Instant::now();
                    Ok(Arc::clone(reader))
                }
                None => Err(error),
            },
        }
    }

    fn renew(&self, state: &mut State) -> Result<Arc<DatabaseReader>, CatalogError> {
        let file = identity(&self.path);
        let usable = state.database.take().filter(|_| file.is_some() && file == state.file);
        let (database, reader) = match usable.map(|database| (database.read(), database)) {
            Some((Ok(reader), database)) => (database, reader),
            _ => {
                let database = (self.open)()?;
                let reader = database.read()?;
                (database, reader)
            }
        };
        let reader = Arc::new(reader);
        state.file = file;
        state.database = Some(database);
        state.transaction = Some((Arc::clone(&reader), Instant::now()));
        Ok(reader)
    }

    /// Gives the read transaction back if its time is over, or at once. Where reads are under way, theirs ends with them.
    pub(super) fn release(&self, at_once: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if at_once || state.transaction.as_ref().is_some_and(|(_, since)| since.elapsed() >= TRANSACTION_AGE) {
            state.transaction = None;
        }
    }
}
