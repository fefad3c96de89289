//! What can go wrong in the catalogue.

use std::io;

use crate::coding::DecodeError;
use crate::store::backend::{self, BackendError};

/// A row or an object is coded in a way that a later version may know. The check value around it fits, so it is no damage.
pub(super) const UNKNOWN_CODING: DecodeError = DecodeError("an unknown coding");

/// What can go wrong in the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The database could not be opened or created.
    #[error("The catalogue {path} cannot be opened: {message}")]
    Open {
        /// Path of the database file.
        path: String,
        /// What redb or the system said.
        message: String,
    },
    /// The system does not let the database be read or written now: too many open files, no permission, a disk that does not answer.
    #[error("The catalogue {path} cannot be read or written now: {source}")]
    Unreadable {
        /// Path of the database file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The database is damaged in a way that redb has no word for.
    #[error(
        "The catalogue is damaged: its database cannot be read or written ({reason}). `zmreplica repair` makes it anew from the commit files"
    )]
    Broken {
        /// What redb said when it gave up.
        reason: String,
    },
    /// The last writer died and a read-only open cannot repair.
    #[error(
        "The catalogue {path} needs a repair after an unclean end: run any writing command, such as `zmreplica snapshot`, once"
    )]
    NeedsRepair {
        /// Path of the database file.
        path: String,
    },
    /// redb reported an error while reading or writing.
    #[error("The catalogue failed: {0}")]
    Database(Box<redb::Error>),
    /// A row that something refers to is not there.
    #[error("The catalogue is damaged: {what} {number} is missing; `zmreplica check` tells what it affects")]
    Missing {
        /// Kind of row.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// A row's check value does not fit, or its bytes make no sense.
    #[error("The catalogue is damaged: {what} {number}: {reason}; `zmreplica check` tells what it affects")]
    Damaged {
        /// Kind of row.
        what: &'static str,
        /// Its number.
        number: u64,
        /// What does not fit.
        reason: String,
    },
    /// Something would be written that could not be read back.
    #[error(
        "{what} of {bytes} bytes cannot be kept: the most that can be read back is {most}. Nothing of it was committed"
    )]
    TooLarge {
        /// Kind of row.
        what: &'static str,
        /// Its length, in bytes.
        bytes: u64,
        /// The most that is taken.
        most: u64,
    },
    /// One chunk was said to have two lengths.
    #[error("Chunk {hash} was said to have {} bytes, and then {}", .lengths.0, .lengths.1)]
    TwoLengths {
        /// The hash.
        hash: String,
        /// The lengths.
        lengths: (u32, u32),
    },
    /// A commit file is damaged or out of sequence.
    #[error("Commit file {key} is damaged: {reason}")]
    CommitFile {
        /// Key of the commit file.
        key: String,
        /// What does not fit.
        reason: String,
    },
    /// A later version wrote it; it is not damaged. Nothing is deleted, rebuilt or replaced because of it.
    #[error("{what}, which this version does not know: it was written by a newer zmreplica. Use that one")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The backend below failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl CatalogError {
    /// Returns whether the error means damage, as against a passing fault or a full disk.
    pub fn is_damage(&self) -> bool {
        match self {
            CatalogError::Missing { .. }
            | CatalogError::Damaged { .. }
            | CatalogError::CommitFile { .. }
            | CatalogError::Broken { .. }
            | CatalogError::Open { .. } => true,
            CatalogError::Database(error) => match &**error {
                redb::Error::Io(error) => CatalogError::is_of_file(error),
                // Pages that are not as they were written, and what is left of a panic.
                redb::Error::Corrupted(_) | redb::Error::TransactionPoisoned | redb::Error::LockPoisoned(_) => true,
                // Tables that are not there, or of another kind.
                redb::Error::TableDoesNotExist(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TableIsNotMultimap(_) => true,
                _ => false,
            },
            CatalogError::Unreadable { .. }
            | CatalogError::NeedsRepair { .. }
            | CatalogError::Unsupported { .. }
            | CatalogError::TooLarge { .. }
            | CatalogError::TwoLengths { .. }
            | CatalogError::Backend(_) => false,
        }
    }

    /// Returns whether a disk says that it cannot read what is on it, as against a system that cannot do so now.
    pub fn is_bad_disk(&self) -> bool {
        match self {
            CatalogError::Unreadable { source, .. } => backend::is_bad_disk(source),
            CatalogError::Database(error) => {
                matches!(&**error, redb::Error::Io(error) if backend::is_bad_disk(error))
            }
            CatalogError::Backend(error) => error.is_bad_disk(),
            _ => false,
        }
    }

    /// Returns whether an error of input or output comes from what the file is, and not from what the system can do now.
    pub(super) fn is_of_file(error: &io::Error) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
        [InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof].contains(&error.kind())
    }

    /// Returns whether the catalogue could not grow because the disk is full.
    pub fn is_full_disk(&self) -> bool {
        let CatalogError::Database(error) = self else { return false };
        matches!(&**error, redb::Error::Io(error) if CatalogError::is_full(error))
    }

    pub(super) fn is_full(error: &io::Error) -> bool {
        [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
    }

    /// Decodes a row. A decoder that gives up in a panic is a defect, and the row is damaged as well: no writer has made it so.
    pub(crate) fn guarded<T>(
        what: &'static str,
        number: u64,
        decode: impl FnOnce() -> Result<T, DecodeError>,
    ) -> Result<T, CatalogError> {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
            Ok(decoded) => decoded.map_err(|error| CatalogError::damaged(what, number, error)),
            Err(_) => Err(CatalogError::damaged(what, number, DecodeError("its decoder gave up on it"))),
        }
    }

    /// Wraps a decoding error with the row it struck.
    pub(crate) fn damaged(what: &'static str, number: u64, error: DecodeError) -> CatalogError {
        if error == UNKNOWN_CODING {
            return CatalogError::Unsupported { what: format!("The catalogue's {what} {number} has a coding") };
        }
        CatalogError::Damaged { what, number, reason: error.to_string() }
    }
}

/// Lets `?` turn each of redb's error types into a [`CatalogError`].
macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for CatalogError {
            fn from(error: $error) -> Self {
                CatalogError::Database(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::CompactionError,
    redb::DatabaseError
);
