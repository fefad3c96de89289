//! The one place where redb is called: an error of it, or a panic, becomes a [`CatalogError`] of the kind that it is.
//!
//! redb trusts its pages and panics on some that are damaged. A panic leaves its locks poisoned and whatever it was doing undone, so that further calls
//! panic as well, and dropping what is open may; nothing of it outlives the process, and the file is as it was.
//!
//! What the system says of a call (`EIO`, `EACCES`, a full disk) is never damage, whether redb was reading or writing.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::damage::CatalogDamage;
use super::error::{CatalogError, OpenError, ReadError, WriteError};

thread_local! {
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether a panic of this thread would become a [`CatalogError`] now, so that it need not be reported.
pub fn is_catching() -> bool {
    IS_CATCHING.get()
}

/// Opens the database at `path`.
pub(super) fn opening<T>(path: &Path, call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, CatalogError> {
    catching(call)?.map_err(|error| open_error(path, error))
}

/// Reads.
pub(super) fn reading<T>(call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, CatalogError> {
    catching(call)?.map_err(read_error)
}

/// Writes.
pub(super) fn writing<T>(call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, CatalogError> {
    catching(call)?.map_err(write_error)
}

/// Drops what redb gave. It may write, or meet a damaged page; whoever opens the database next gets the error.
pub(super) fn dropping<T>(what: T) {
    let _ = catching(|| drop(what));
}

/// Calls something that may panic on damaged bytes.
pub(super) fn catching<T>(call: impl FnOnce() -> T) -> Result<T, CatalogDamage> {
    let outer = IS_CATCHING.replace(true);
    // What a panic leaves half done belongs to redb, which checks its own locks.
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_CATCHING.set(outer);
    result.map_err(|panic| CatalogDamage::Panic { message: first_line(panic.as_ref()).to_owned() })
}

/// Returns the first line of what a panic said.
fn first_line(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no message")
}

/// Returns the error of an open. What is at the path, and is no database, is damage; what the system says of it is not.
pub(super) fn open_error(path: &Path, error: redb::Error) -> CatalogError {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    const OF_FILE: [io::ErrorKind; 6] =
        [InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof];
    let path = path.display().to_string();
    let error = match error {
        redb::Error::RepairAborted => OpenError::NeedsRepair { path },
        redb::Error::Io(source) if !OF_FILE.contains(&source.kind()) => OpenError::Unavailable { path, source },
        other => OpenError::NotADatabase { path, source: Box::new(other) },
    };
    error.into()
}

fn read_error(error: redb::Error) -> CatalogError {
    match error {
        error if is_of_pages(&error) => CatalogDamage::Database(Box::new(error)).into(),
        redb::Error::Io(error) => ReadError::Io(error).into(),
        error => ReadError::Database(Box::new(error)).into(),
    }
}

fn write_error(error: redb::Error) -> CatalogError {
    match error {
        error if is_of_pages(&error) => CatalogDamage::Database(Box::new(error)).into(),
        redb::Error::Io(error) => WriteError::Io(error).into(),
        error => WriteError::Database(Box::new(error)).into(),
    }
}

/// Returns whether an error comes from what the pages are, and not from what the system can do now. A writer meets such pages, too.
fn is_of_pages(error: &redb::Error) -> bool {
    match error {
        // A file that ends before a page of it, or a page that is not one.
        redb::Error::Io(error) => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData),
        // Pages that are not as they were written, and what is left of a panic.
        redb::Error::Corrupted(_) | redb::Error::LockPoisoned(_) => true,
        // Tables that are not there, or of another kind.
        redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_damage_and_reported_by_its_first_line() {
        let failed: Result<(), CatalogError> = reading(|| {
            assert!(is_catching());
            panic!("a page of kind {}\nand more", 7)
        });
        let error = failed.unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("a page of kind 7)"), "{error}");
        assert!(!is_catching());
        assert_eq!(catching(|| catching(|| 1).unwrap() + 1).unwrap(), 2);
    }

    /// "A failure while writing, or what the system says of a call, is never damage."
    #[test]
    fn what_the_system_says_is_never_damage() {
        const EIO: i32 = 5;
        const ALL: [i32; 10] = [1, 4, EIO, 12, 13, 16, 22, 24, 28, 122];
        let path = Path::new("/srv/replica/catalog.redb");
        let io = |errno| redb::Error::Io(io::Error::from_raw_os_error(errno));
        for errno in ALL {
            let of_reading = read_error(io(errno));
            assert!(matches!(of_reading, CatalogError::Read(_)) && !of_reading.is_damage(), "{errno}: {of_reading}");
            let of_writing = write_error(io(errno));
            assert!(matches!(of_writing, CatalogError::Write(_)) && !of_writing.is_damage(), "{errno}: {of_writing}");
            // EINVAL is what opening something else than a file gives.
            let of_opening = open_error(path, io(errno));
            assert_eq!(of_opening.is_damage(), errno == 22, "{errno}: {of_opening}");
            assert_eq!(of_reading.is_bad_disk(), errno == EIO);
            assert!(!of_writing.is_bad_disk());
            for error in [&of_reading, &of_writing, &of_opening] {
                assert_eq!(error.is_full_disk(), [28, 122].contains(&errno), "{errno}: {error}");
                let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
                assert!(errno == 22 || source.is_some_and(|source| source.raw_os_error() == Some(errno)), "{errno}");
            }
        }
        for later in [redb::Error::PreviousIo, redb::Error::TransactionPoisoned, redb::Error::DatabaseClosed] {
            let error = write_error(later);
            assert!(!error.is_damage(), "{error}");
        }
    }

    #[test]
    fn what_the_pages_are_is_damage_whoever_meets_it() {
        let corrupted = || redb::Error::Corrupted("page 7".to_owned());
        let cut = || redb::Error::Io(io::ErrorKind::UnexpectedEof.into());
        for error in [read_error(corrupted()), write_error(corrupted()), read_error(cut()), write_error(cut())] {
            assert!(matches!(error, CatalogError::Damage(_)), "{error}");
        }
        let missing = open_error(Path::new("/none"), redb::Error::Io(io::ErrorKind::NotFound.into()));
        assert!(missing.is_damage(), "{missing}");
    }
}
