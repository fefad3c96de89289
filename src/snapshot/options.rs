//! The options of a run, and what it reports.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::chunk_writer::CompressionOptions;
use super::problems::RunProblem;
use super::progress::Progress;
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::sources::SourceName;
use crate::guard::GuardOptions;
use crate::ids::SnapshotNumber;
use crate::replica::LockedReplica;
use crate::source::exclude_patterns::{ExcludePatterns, PatternError};
use crate::source::scan::ScanOptions;

/// How to take a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Exclude patterns, besides the default ones.
    pub excludes: Vec<String>,
    /// Whether `lost+found` at the root and `sessions/TO_DELETE-*` are left out.
    pub default_excludes: bool,
    /// Whether directories on other file systems are entered.
    pub cross_file_systems: bool,
    /// Whether everything is read, whatever is known of it.
    pub rescan: bool,
    /// The name of the source; without it the source that is at the location, or a new one with a name that follows from it.
    pub source: Option<SourceName>,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// How chunks are compressed.
    pub compression: CompressionOptions,
    /// How often progress is committed, so that a killed run goes on where it was.
    pub progress_interval: Duration,
    /// Threads that scan, and as many that read; 0 chooses.
    pub threads: usize,
    /// Settings of the guard.
    pub guard: GuardOptions,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        SnapshotOptions {
            excludes: Vec::new(),
            default_excludes: true,
            cross_file_systems: false,
            rescan: false,
            source: None,
            tags: Vec::new(),
            compression: CompressionOptions { level: 3, dictionary: true, threads: cores() },
            progress_interval: Duration::from_secs(60),
            threads: 0,
            guard: GuardOptions::default(),
        }
    }
}

impl SnapshotOptions {
    /// Returns the names to leave out.
    pub(super) fn compiled_excludes(&self) -> Result<ExcludePatterns, PatternError> {
        ExcludePatterns::new(&self.excludes, self.default_excludes)
    }

    /// Returns how a tree on this host is scanned.
    pub(super) fn scan(&self, excludes: &ExcludePatterns) -> ScanOptions {
        ScanOptions {
            excludes: excludes.clone(),
            cross_file_systems: self.cross_file_systems,
            threads: self.threads,
            ..ScanOptions::default()
        }
    }
}

/// Returns the number of processors that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// When a run began: its snapshot's time, however often it had to connect anew.
#[derive(Clone, Copy)]
pub(super) struct RunStart {
    pub(super) time: jiff::Timestamp,
    pub(super) clock: Instant,
}

impl RunStart {
    pub(super) fn now() -> RunStart {
        RunStart { time: jiff::Timestamp::now(), clock: Instant::now() }
    }
}

/// A snapshot that is to be taken of a tree.
#[derive(Clone, Copy)]
pub(super) struct RunRequest<'a> {
    pub(super) replica: &'a LockedReplica,
    /// Where the source is.
    pub(super) location: &'a str,
    pub(super) options: &'a SnapshotOptions,
    /// The patterns of the options, compiled.
    pub(super) excludes: &'a ExcludePatterns,
    pub(super) progress: &'a Progress,
    pub(super) start: RunStart,
}

/// What a run did.
#[derive(Debug)]
pub struct SnapshotReport {
    /// The snapshot's number in the catalogue.
    pub number: SnapshotNumber,
    /// The snapshot.
    pub record: SnapshotRecord,
    /// The name of its source.
    pub source: SourceName,
    /// What could not be taken as it was; at most 100,000, the rest is counted in the record.
    pub problems: Vec<RunProblem>,
}

/// What a run would do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DryRun {
    /// Names seen, directories included.
    pub names: u64,
    /// Inodes that are as they were.
    pub unchanged_inodes: u64,
    /// Inodes whose extended attributes would be read and whose content would not.
    pub attribute_inodes: u64,
    /// Inodes whose content would be read.
    pub read_files: u64,
    /// Bytes that would be read.
    pub read_bytes: u64,
    /// Names left out by exclude patterns.
    pub excluded_names: u64,
    /// What could not be scanned.
    pub problems: Vec<RunProblem>,
}
