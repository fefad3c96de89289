//! What can go wrong in the catalogue: opening, reading, writing it; damage; what a later version wrote.
//!
//! The kinds lead to different ends. Damage is for a repair. What cannot be opened, read or written now says nothing of what is stored, and nothing is
//! removed, replaced or given up for it. What a later version wrote is left alone.

use std::io;

use super::damage::{CatalogDamage, FileFault, RowFault};
use super::row_id::RowId;
use crate::coding::DecodeError;
use crate::store::backend::{self, BackendError};

/// A row or an object is coded in a way that a later version may know. The check value around it fits, so it is no damage.
pub(super) const UNKNOWN_CODING: DecodeError = DecodeError("an unknown coding");

/// An error of whatever is above the catalogue, or beside it.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read now, which says nothing of what is stored.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written, or what is to be written is refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It is damaged.
    #[error(transparent)]
    Damage(#[from] CatalogDamage),
    /// A later version wrote it; it is not damaged. Nothing is deleted, rebuilt or replaced because of it.
    #[error("{0}, which this version does not know: it was written by a newer zmreplica. Use that one")]
    Unsupported(Unsupported),
    /// The backend below failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no database, or something else is there: damage.
    #[error("The catalogue {path} cannot be opened: {source}")]
    NotADatabase {
        /// Path of the file.
        path: String,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// The system does not let it be opened now: too many open files, no permission, a full disk, a disk that does not answer.
    #[error("The catalogue {path} cannot be opened now: {source}")]
    Unavailable {
        /// Path of the file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The last writer died and a read-only open cannot repair.
    #[error("The catalogue {path} needs a repair after an unclean end")]
    NeedsRepair {
        /// Path of the file.
        path: String,
    },
    /// It would have to be written to.
    #[error("The catalogue {path} was opened for reading only")]
    ReadOnly {
        /// Path of the file.
        path: String,
    },
    /// It lies on another host, which gives single rows only.
    #[error("The catalogue is on another host, and only single rows can be had from there")]
    Remote,
    /// The store around it cannot be opened now.
    #[error(transparent)]
    Store(Source),
}

/// Why the catalogue cannot be read now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system does not let it be read now.
    #[error("The catalogue cannot be read now: {0}")]
    Io(#[source] io::Error),
    /// redb does not let it be read now.
    #[error("The catalogue cannot be read now: {0}")]
    Database(#[source] Box<redb::Error>),
    /// The host that it lies on did not give a row.
    #[error("The catalogue of the replica's host cannot be read: {message}")]
    Remote {
        /// What that host said.
        message: String,
    },
    /// A row was not meant to be read.
    #[error("Row {0} is not needed for what is restored")]
    Unwanted(u64),
}

/// Why something cannot be written to the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system does not let it be written.
    #[error("The catalogue cannot be written: {0}")]
    Io(#[source] io::Error),
    /// redb does not let it be written.
    #[error("The catalogue cannot be written: {0}")]
    Database(#[source] Box<redb::Error>),
    /// Something would be written that could not be read back.
    #[error(
        "{what} of {bytes} bytes cannot be stored: the most that can be read back is {most}. Nothing of it was committed"
    )]
    TooLarge {
        /// What it is.
        what: Written,
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
    /// A row cannot be encoded.
    #[error("{row} cannot be written: {source}")]
    Encode {
        /// The row.
        row: RowId,
        /// Why.
        source: serde_json::Error,
    },
    /// Nothing can be compressed.
    #[error("The catalogue cannot be written: nothing can be compressed: {0}")]
    Compress(#[source] io::Error),
    /// A commit failed before. What it left half done is undone, or finished, by whoever opens the store next.
    #[error(
        "Nothing more is written to the catalogue, because a commit failed before. The store is intact; run the same command again"
    )]
    Poisoned,
}

/// What is written as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A commit file, or a file of a checkpoint.
    Commit,
    /// An object of the catalogue.
    Object,
    /// A snapshot's record.
    Snapshot,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Written::Commit => "A commit",
            Written::Object => "An object of the catalogue",
            Written::Snapshot => "A snapshot record",
        })
    }
}

/// What a later version wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A row in another coding.
    #[error("The catalogue's {0} has a coding")]
    Coding(RowId),
    /// A row in another format.
    #[error("The catalogue's {row} has format {format}")]
    Format {
        /// The row.
        row: RowId,
        /// The format.
        format: u32,
    },
    /// A file of another version.
    #[error("The file {key} has another version")]
    FileVersion {
        /// Its key.
        key: String,
    },
    /// A file with flags.
    #[error("The file {key} has flags")]
    FileFlags {
        /// Its key.
        key: String,
    },
    /// A file with rows of a table that there is not.
    #[error("The file {key} has rows of table {table}")]
    Table {
        /// Its key.
        key: String,
        /// Number of the table.
        table: u8,
    },
}

impl CatalogError {
    /// Returns whether the error means damage, as against a passing fault, a full disk or a later version.
    pub fn is_damage(&self) -> bool {
        matches!(self, CatalogError::Damage(_) | CatalogError::Open(OpenError::NotADatabase { .. }))
    }

    /// Returns whether a row that something refers to is not there.
    pub fn is_missing_row(&self) -> bool {
        matches!(self, CatalogError::Damage(CatalogDamage::Missing(_)))
    }

    /// Returns whether a commit file, or a file of a checkpoint, is missing, damaged or out of sequence.
    pub fn is_damaged_file(&self) -> bool {
        matches!(self, CatalogError::Damage(CatalogDamage::File { .. }))
    }

    /// Returns whether the last writer died, and the catalogue has to be repaired before it can be read.
    pub fn needs_repair(&self) -> bool {
        matches!(self, CatalogError::Open(OpenError::NeedsRepair { .. }))
    }

    /// Returns what the system said, if it was the system.
    fn io_error(&self) -> Option<&io::Error> {
        match self {
            CatalogError::Open(OpenError::Unavailable { source, .. })
            | CatalogError::Read(ReadError::Io(source))
            | CatalogError::Write(WriteError::Io(source)) => Some(source),
            _ => None,
        }
    }

    /// Returns whether a disk says that it cannot read what is on it, as against a system that cannot do so now.
    pub fn is_bad_disk(&self) -> bool {
        match self {
            CatalogError::Backend(error) => error.is_bad_disk(),
            // What cannot be written may be read all the same.
            CatalogError::Write(_) => false,
            error => error.io_error().is_some_and(backend::is_bad_disk),
        }
    }

    /// Returns whether the catalogue could not grow because the disk is full.
    pub fn is_full_disk(&self) -> bool {
        self.io_error()
            .is_some_and(|error| [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind()))
    }

    /// Says that a row is missing.
    pub(crate) fn missing(row: RowId) -> CatalogError {
        CatalogDamage::Missing(row).into()
    }

    /// Says what does not fit of a row. A coding that a later version may know is no damage.
    pub(crate) fn of_row(row: RowId, fault: impl Into<RowFault>) -> CatalogError {
        match fault.into() {
            RowFault::Decode(error) if error == UNKNOWN_CODING => CatalogError::Unsupported(Unsupported::Coding(row)),
            fault => CatalogDamage::Row { row, fault }.into(),
        }
    }

    /// Says what does not fit of a commit file, or of a file of a checkpoint.
    pub(crate) fn of_file(key: &str, fault: impl Into<FileFault>) -> CatalogError {
        CatalogDamage::File { key: key.to_owned(), fault: fault.into() }.into()
    }

    /// Decodes a row. A decoder that gives up in a panic is a defect, and the row is damaged as well: no writer has made it so.
    pub(crate) fn decode_row<T>(
        row: RowId,
        decode: impl FnOnce() -> Result<T, DecodeError>,
    ) -> Result<T, CatalogError> {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
            Ok(decoded) => decoded.map_err(|error| CatalogError::of_row(row, error)),
            Err(_) => Err(CatalogError::of_row(row, RowFault::Panic)),
        }
    }
}
