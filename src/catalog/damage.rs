//! Damage: what was written to the catalogue, or to its commit files, and cannot be read as it was written.
//!
//! Nothing here is an error of the system: what cannot be read now is a [`ReadError`](super::ReadError).

use std::io;

use super::row_id::RowId;
use crate::coding::DecodeError;
use crate::ids::CommitNumber;
use crate::store::codec::CodecError;

/// What of the catalogue is damaged, and how.
#[derive(Debug, thiserror::Error)]
pub enum CatalogDamage {
    /// A row that something refers to is not there.
    #[error("The catalogue is damaged: {0} is missing")]
    Missing(RowId),
    /// A row is not as it was written, or its bytes make no sense.
    #[error("The catalogue is damaged: {row}: {fault}")]
    Row {
        /// The row.
        row: RowId,
        /// What does not fit.
        #[source]
        fault: RowFault,
    },
    /// A snapshot's record names no root directory that can be decoded.
    #[error("The catalogue is damaged: the root of snapshot {id}: {source}")]
    Root {
        /// Identifier of the snapshot.
        id: String,
        /// What does not fit.
        source: DecodeError,
    },
    /// A commit file, or a file of a checkpoint, is missing, damaged or out of sequence.
    #[error("Commit file {key} is damaged: {fault}")]
    File {
        /// Its key.
        key: String,
        /// What does not fit.
        #[source]
        fault: FileFault,
    },
    /// redb found pages, or tables, that are not as it wrote them.
    #[error("The catalogue is damaged: {0}")]
    Database(#[source] Box<redb::Error>),
    /// redb gave up on pages in a way that it has no word for: it panicked.
    #[error("The catalogue is damaged: its database cannot be read or written ({message})")]
    Panic {
        /// What it said.
        message: String,
    },
}

/// What does not fit of a row.
#[derive(Debug, thiserror::Error)]
pub enum RowFault {
    /// The value does not end with the check value of what is before.
    #[error("its check value does not fit its bytes")]
    CheckValue,
    /// It cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is no JSON, or not that of such a row.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Its decoder panicked.
    #[error("its decoder gave up on it")]
    Panic,
    /// It comes behind one with a higher key, or twice.
    #[error("its rows are not in order")]
    Order,
    /// Its table has rows that cannot be reached.
    #[error("its table has {stated} rows, and {readable} can be read")]
    Unreachable {
        /// Rows that the table is said to have.
        stated: u64,
        /// Rows that were met.
        readable: u64,
    },
    /// It is not what the commit files say.
    #[error("it is not as the commit files have it")]
    NotAsCommitted,
    /// Rows that the commit files say are not there.
    #[error("rows that the commit files have are missing")]
    RowsMissing,
    /// No pack has the bytes of the chunk any more.
    #[error("its bytes are lost; a snapshot stores them again if its source still has them")]
    Lost,
    /// No such row can have this number.
    #[error("its number is out of range")]
    Number,
    /// A content object has another length than whatever names it says.
    #[error("it has another length than its link group says")]
    Length,
    /// The object is of no kind that there is.
    #[error("it is of an unknown kind")]
    UnknownKind,
    /// A dictionary cannot be used.
    #[error(transparent)]
    Dictionary(#[from] CodecError),
}

/// What does not fit of a commit file, or of a file of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It is shorter than any such file.
    #[error("it is too short")]
    Short,
    /// Its checksum does not fit.
    #[error("its BLAKE3 does not fit its bytes")]
    Checksum,
    /// It does not begin like such a file.
    #[error("it is no such file")]
    Magic,
    /// Its name is that of another number.
    #[error("its number is not that of its name")]
    Name,
    /// Its body would be longer than any.
    #[error("its stated length is out of range")]
    Range,
    /// Its body is not zstd.
    #[error("it cannot be decompressed: {0}")]
    Decompress(#[source] io::Error),
    /// Its body has another length than the header says.
    #[error("its body has another length than stated")]
    Length,
    /// Its body cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It names another commit than the one before it.
    #[error("it does not follow the commit before it")]
    Sequence,
    /// The one before it is not there.
    #[error("commit file {number} before it is missing")]
    PreviousMissing {
        /// Number of the one before.
        number: CommitNumber,
    },
    /// The one before it was replaced by a checkpoint, and the catalogue is older than that.
    #[error(
        "commit file {number} before it was folded into the checkpoint of commit {checkpoint}, and the catalogue is older"
    )]
    PreviousFolded {
        /// Number of the one before.
        number: CommitNumber,
        /// Number of the checkpoint's commit.
        checkpoint: CommitNumber,
    },
    /// It was replaced by a checkpoint, and the catalogue is older than that.
    #[error("it was folded into the checkpoint of commit {checkpoint}, and the catalogue is older")]
    Folded {
        /// Number of the checkpoint's commit.
        checkpoint: CommitNumber,
    },
    /// It is a part of another checkpoint.
    #[error("it is a part of another checkpoint")]
    OtherCheckpoint,
    /// Nothing can be read of it or of any other.
    #[error("nothing can be read of it or of the others")]
    NothingReadable,
}
