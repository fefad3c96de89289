//! The source of a run, wherever it is: one trait for a tree on this host and for one behind a byte stream.
//!
//! [`LocalTree`] scans and reads in this process. A tree on another host answers the same calls over a connection, in the same order and with the
//! same data, so a run cannot tell them apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk_intake::{AnswerSink, ApartSink, ChunkIntake, IntakeFailed, NumberedChunk};
use super::read::{InodeReader, ReadEvent, ReadOutcome, ReadRequest, stat_at};
use super::read_pool::{ReadPool, ReadersGone};
use super::scan::{Listing, Problem, Scan, ScanError, ScanOptions};
use crate::cause::Cause;
use crate::model::Stat;
use crate::passwd;

/// Why a source gives nothing more.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The tree cannot be scanned at all.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The reading threads ended early.
    #[error(transparent)]
    Readers(#[from] ReadersGone),
    /// The connection to the source broke. Another attempt goes on where this one was.
    #[error("The connection to the source was lost: {reason}")]
    Lost {
        /// What happened.
        #[source]
        reason: Cause,
    },
    /// The remote host does not keep to the protocol, or what it sent is not what it said.
    #[error(
        "The remote host broke the protocol: {reason}. Nothing of this was stored; check that host and its zmreplica"
    )]
    Protocol {
        /// What does not fit.
        #[source]
        reason: Cause,
    },
    /// The remote host refused.
    #[error("{message}")]
    Refused {
        /// What it said, and what to do.
        message: String,
    },
    /// What came could not be kept on this host for as long as it is needed.
    #[error(
        "No temporary file can be written in {}: {source}. Pulling without an agent needs space there for the names of the tree and for the largest file",
        .directory.display()
    )]
    Spool {
        /// Where it should have been.
        directory: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The receiver of chunks failed; it knows why.
    #[error("The chunks of the source could not be stored")]
    Intake,
}

/// What a scan reports at its end.
#[derive(Clone, Debug, Default)]
pub struct ScanEnd {
    /// Problems that belong to no listing.
    pub problems: Vec<Problem>,
    /// Names left out by a pattern.
    pub excluded: u64,
    /// `statx` calls made.
    pub stats: u64,
}

/// Names of owners, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerNames {
    /// Names of users.
    pub users: BTreeMap<u32, String>,
    /// Names of groups.
    pub groups: BTreeMap<u32, String>,
}

impl From<IntakeFailed> for SourceError {
    fn from(_: IntakeFailed) -> SourceError {
        SourceError::Intake
    }
}

/// A tree that a run takes: listings in depth-first order, and answers to read requests in the order of the requests.
pub trait SourceTree {
    /// Returns the next directory, or `None` when all were delivered.
    ///
    /// # Errors
    /// See [`SourceError`]; a tree on this host has none here.
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError>;

    /// Returns where each file system met so far begins in the tree, by the number in listings.
    fn file_systems(&self) -> Vec<Vec<u8>>;

    /// Returns what the scan reports beside listings, once all were delivered.
    fn end_of_scan(&mut self) -> ScanEnd;

    /// Looks at a name directly below the root; `None` if it is not there. Device numbers are those of listings.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn stat_root_entry(&mut self, name: &[u8]) -> Result<Option<Stat>, SourceError>;

    /// Asks for an inode. The request may wait until [`SourceTree::flush`].
    ///
    /// # Errors
    /// See [`SourceError`].
    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError>;

    /// Lets all requests so far get on their way.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn flush(&mut self) -> Result<(), SourceError>;

    /// Returns the next part of the answers, in the order of the requests. Call it only while answers are due.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError>;

    /// Reads one inode out of turn.
    ///
    /// # Errors
    /// See [`SourceError`]; [`SourceError::Intake`] when the sink failed.
    fn read_apart(&mut self, request: &ReadRequest, sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError>;

    /// Takes in what has arrived and is not taken yet, and gives up what is still on its way: the source is lost or the run ends.
    fn abandon(&mut self, intake: &mut dyn ChunkIntake);

    /// Waits until every chunk that was wanted so far has arrived, so that a commit may name them.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn wait_for_chunks(&mut self, intake: &mut dyn ChunkIntake) -> Result<(), SourceError>;

    /// Returns the names that the source's host has for owners.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn owner_names(&mut self, users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError>;
}

/// Looks up the names of owners on this host.
pub fn owner_names(users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> OwnerNames {
    let users = users.iter().filter_map(|uid| Some((*uid, passwd::user_name(*uid)?)));
    let groups = groups.iter().filter_map(|gid| Some((*gid, passwd::group_name(*gid)?)));
    OwnerNames { users: users.collect(), groups: groups.collect() }
}

/// A tree on this host.
pub struct LocalTree {
    scan: Scan,
    pool: Option<ReadPool>,
    root: Arc<OwnedFd>,
}

impl LocalTree {
    /// Starts to scan a directory, and the threads that read below it: as many as `readers`, none for a scan only.
    ///
    /// # Errors
    /// [`SourceError::Scan`] if it is no readable directory.
    pub fn start(root: &Path, options: ScanOptions, readers: usize) -> Result<LocalTree, SourceError> {
        let scan = Scan::start(root, options)?;
        let unusable = |source: io::Error| ScanError::Root { path: root.to_owned(), source };
        let fd = Arc::new(OwnedFd::from(File::open(root).map_err(unusable)?));
        let pool = if readers == 0 { None } else { Some(ReadPool::start(root, readers).map_err(unusable)?) };
        Ok(LocalTree { scan, pool, root: fd })
    }
}

impl SourceTree for LocalTree {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        Ok(self.scan.next())
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        self.scan.file_systems()
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        let counters = self.scan.counters();
        ScanEnd {
            problems: self.scan.problems(),
            excluded: counters.excluded.load(Ordering::Relaxed),
            stats: counters.stats.load(Ordering::Relaxed),
        }
    }

    fn stat_root_entry(&mut self, name: &[u8]) -> Result<Option<Stat>, SourceError> {
        Ok(stat_at(self.root.as_fd(), name).ok())
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        self.pool.as_mut().ok_or(ReadersGone)?.submit(request);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.pool.iter_mut().for_each(ReadPool::flush);
        Ok(())
    }

    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        Ok(self.pool.as_mut().ok_or(ReadersGone)?.receive()?.numbered_by(intake)?)
    }

    fn read_apart(&mut self, request: &ReadRequest, sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        InodeReader::new(Arc::clone(&self.root)).read(request, &mut ApartSink(sink)).map_err(|_| SourceError::Intake)
    }

    fn abandon(&mut self, _intake: &mut dyn ChunkIntake) {}

    fn wait_for_chunks(&mut self, _intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        Ok(())
    }

    fn owner_names(&mut self, users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        Ok(owner_names(users, groups))
    }
}
