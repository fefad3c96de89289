//! The nightly run: scan, read what changed, store it, commit a snapshot.
//!
//! ```text
//!  scan threads -> listings -+-> run (one thread) -> tree, link groups -> catalogue
//!  read threads -> segments -+        |
//!                                     +-> compressing threads -> pack thread -> upload thread -> backend
//! ```
//!
//! Listings are classified in depth-first order: an inode that is as it was last night costs a look-up, any other a read request.
//! Answers come in the order of the requests, so listings are completed in the same order, and link groups are numbered in it.

mod adopt;
mod backup_run;
pub mod chunk_writer;
mod classifier;
mod content_builder;
pub mod dry_run;
mod findings;
pub mod inode_cache;
mod listings_in_flight;
pub mod options;
mod owners;
pub mod problems;
pub mod progress;
pub mod pull;
mod read_results;
mod root_files;
pub mod run;
mod run_inodes;
mod snapshot_record;
mod source_location;
mod storage;
mod tree_builder;

use std::io;

use crate::catalog::sources::NamingError;
use crate::catalog::{CatalogError, WriteError};
use crate::remote::client::ConnectError;
use crate::source::exclude_patterns::PatternError;
use crate::source::tree::SourceError;
use crate::store::backend::BackendError;
use crate::store::codec::CodecError;
use crate::store::pack::PackError;

/// What can end a run without a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The source gives nothing, or nothing more.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source's host cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An exclude pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The source is empty: most likely its volume is not mounted.
    #[error(
        "The source {path} is empty. No snapshot is taken of an empty source; if its volume is not mounted, mount it"
    )]
    EmptySource {
        /// The source.
        path: String,
    },
    /// The source and the store overlap.
    #[error("The store {store} lies inside the source {path}; {remedy}")]
    StoreInSource {
        /// The source.
        path: String,
        /// The store.
        store: String,
        /// What to do.
        remedy: String,
    },
    /// The source's path is not UTF-8.
    #[error("The path of the source, {path}, is not valid UTF-8; bind-mount it at a path that is")]
    SourceName {
        /// The source, as well as it can be shown.
        path: String,
    },
    /// The source cannot have that name, or no snapshots.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Compression failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A pack could not be built.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A thread could not be started.
    #[error("A thread cannot be started: {0}")]
    Thread(io::Error),
    /// The storing threads ended early.
    #[error("The threads that store chunks ended early; this is a bug in zmreplica")]
    ChunkWriterGone,
    /// A chunk that came from the source's host is not what it was said to be.
    #[error(
        "The remote host sent a chunk that does not match its description ({0}). The chunk was not stored; check that host and its zmreplica"
    )]
    WrongChunk(#[source] ChunkFault),
    /// The scan ended early.
    #[error("The scan ended before the tree was complete; this is a bug in zmreplica")]
    ScanIncomplete,
    /// The user interrupted the run.
    #[error("Interrupted. What was stored so far is kept, and the next run resumes from there")]
    Interrupted,
    /// The run took as long as it may.
    #[error(
        "The run was stopped after {} s, the limit set by --max-duration or `max-duration`. \
         What was stored so far is kept, and the next run resumes from there",
        .span.as_secs()
    )]
    TooLong {
        /// How long it may take.
        span: std::time::Duration,
    },
}

/// What does not fit of a chunk that came from the source's host.
#[derive(Debug, thiserror::Error)]
pub enum ChunkFault {
    /// It was said to have two lengths.
    #[error(transparent)]
    TwoLengths(WriteError),
    /// It cannot be decompressed.
    #[error(transparent)]
    Decompress(CodecError),
    /// Its bytes have another hash.
    #[error("its BLAKE3 is another")]
    Hash,
}

impl SnapshotError {
    /// Returns whether the error means that the store is damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, SnapshotError::Catalog(error) if error.is_damage())
    }
}
