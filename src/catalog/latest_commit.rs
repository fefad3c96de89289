//! The latest commit: a view of the catalogue that follows its commits, for a reader that stays for days.
//!
//! A read transaction pins every page that it could still read, and keeps the file from being compacted. A long-lived reader therefore takes a
//! new one every second, and gives it back when nothing reads. This is sound because rows never change their meaning: a number, once
//! given, stands for the same link group, object or chunk for ever. Only the place of a chunk moves (when packs are rewritten), and rows that no
//! snapshot needs any more vanish.
//!
//! redb reads page by page, each where the one before points. When the kernel has let go of the file, as it does in a mount that nobody
//! used for a night, that is hundreds of small reads one after the other; so the kernel is asked to fetch a file of moderate size whole
//! ([`Prefetch`]).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::CatalogError;
use super::database::CatalogDatabase;
use super::database_reader::DatabaseReader;
use crate::mutex::lock;
use crate::prefetch::prefetch;

/// How long one read transaction serves.
const TRANSACTION_AGE: Duration = Duration::from_secs(1);

/// Largest catalogue in bytes that the kernel is asked to fetch whole.
const PREFETCH_MAX_BYTES: u64 = 64 << 20;
/// Most bytes in a second that are requested: what a host short of memory reads again and again.
const PREFETCH_BYTES_PER_SECOND: u64 = 64 << 20;
/// Shortest time between two requests, however small the file is.
const PREFETCH_PAUSE: Duration = Duration::from_millis(100);

/// Opens the catalogue's database for reading, after a repair if need be.
pub type OpenDatabase = Box<dyn Fn() -> Result<Arc<CatalogDatabase>, CatalogError> + Send + Sync>;

/// Reads the last commit, whichever that is.
pub(super) struct LatestCommitReader {
    path: PathBuf,
    open: OpenDatabase,
    state: Mutex<OpenCatalog>,
}

#[derive(Default)]
struct OpenCatalog {
    /// The open file, by device and inode number: a rebuilt catalogue is another file under the same path.
    file: Option<(u64, u64)>,
    database: Option<Arc<CatalogDatabase>>,
    transaction: Option<(Arc<DatabaseReader>, Instant)>,
    prefetch: Option<Prefetch>,
}

/// Asks the kernel to fetch the file when rows are wanted that are in no cache of ours. For pages that it has, that costs less than a
/// thousandth of the time that passes until the next request.
struct Prefetch {
    file: Arc<File>,
    requested: Option<Instant>,
}

impl Prefetch {
    /// Opens the file; `None` when it cannot be, which its reader will notice.
    fn of(path: &Path) -> Option<Prefetch> {
        Some(Prefetch { file: Arc::new(File::open(path).ok()?), requested: None })
    }

    /// Returns the file and its length if the next request is due.
    fn due(&mut self, now: Instant) -> Option<(Arc<File>, u64)> {
        if self.requested.is_some_and(|requested| now.duration_since(requested) < PREFETCH_PAUSE) {
            return None;
        }
        let bytes = self.file.metadata().ok()?.len();
        let pause = Duration::from_millis(bytes * 1000 / PREFETCH_BYTES_PER_SECOND);
        if bytes > PREFETCH_MAX_BYTES || self.requested.is_some_and(|requested| now.duration_since(requested) < pause) {
            return None;
        }
        self.requested = Some(now);
        Some((Arc::clone(&self.file), bytes))
    }
}

fn device_and_inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl LatestCommitReader {
    pub(super) fn new(path: PathBuf, open: OpenDatabase) -> LatestCommitReader {
        LatestCommitReader { path, open, state: Mutex::default() }
    }

    /// Returns a read transaction that is at most a second old, or the last one while none can be had.
    pub(super) fn get(&self) -> Result<Arc<DatabaseReader>, CatalogError> {
        let mut state = lock(&self.state);
        let reader = self.current(&mut state);
        let due = state.prefetch.as_mut().and_then(|prefetch| prefetch.due(Instant::now()));
        drop(state);
        if let Some((file, bytes)) = due {
            prefetch(&file, 0, bytes);
        }
        reader
    }

    fn current(&self, state: &mut OpenCatalog) -> Result<Arc<DatabaseReader>, CatalogError> {
        if let Some((reader, since)) = &state.transaction
            && since.elapsed() < TRANSACTION_AGE
        {
            return Ok(Arc::clone(reader));
        }
        match self.refresh(state) {
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

    fn refresh(&self, state: &mut OpenCatalog) -> Result<Arc<DatabaseReader>, CatalogError> {
        let file = device_and_inode(&self.path);
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
        if state.prefetch.is_none() || file != state.file {
            state.prefetch = Prefetch::of(&self.path);
        }
        state.file = file;
        state.database = Some(database);
        state.transaction = Some((Arc::clone(&reader), Instant::now()));
        Ok(reader)
    }

    /// Gives the read transaction back if its time is over, or at once. Where reads are under way, theirs ends with them.
    pub(super) fn release(&self, at_once: bool) {
        let mut state = lock(&self.state);
        if at_once || state.transaction.as_ref().is_some_and(|(_, since)| since.elapsed() >= TRANSACTION_AGE) {
            state.transaction = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_moderate_size_is_prefetched_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(Prefetch::of(&path).is_none());
        let file = File::create(&path).unwrap();
        let mut prefetch = Prefetch::of(&path).unwrap();
        let start = Instant::now();
        let at = |prefetch: &mut Prefetch, millis| prefetch.due(start + Duration::from_millis(millis)).is_some();
        assert!(at(&mut prefetch, 0));
        assert!(!at(&mut prefetch, 99));
        assert!(at(&mut prefetch, 100));
        // 16 MiB are fetched four times a second at most.
        file.set_len(16 << 20).unwrap();
        assert!(!at(&mut prefetch, 349));
        assert!(at(&mut prefetch, 350));
        file.set_len(PREFETCH_MAX_BYTES).unwrap();
        assert!(!at(&mut prefetch, 1349));
        assert!(at(&mut prefetch, 1350));
        file.set_len(PREFETCH_MAX_BYTES + 1).unwrap();
        assert!(!at(&mut prefetch, 100_000));
    }
}
