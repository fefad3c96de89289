//! Taking a snapshot of a tree on this host, or of any other tree.

use std::path::Path;
use std::sync::Arc;

use super::SnapshotError;
use super::backup_run::take_snapshot;
use super::options::{RunRequest, RunStart, SnapshotOptions, SnapshotReport, cores};
use super::progress::Progress;
use super::source_location::source_location;
use crate::replica::LockedReplica;
use crate::source::tree::LocalTree;

/// Takes a snapshot of a local tree and commits it.
///
/// # Errors
/// See [`SnapshotError`]. The store then is as it was, but for progress that the next run makes use of.
pub fn run(
    replica: &LockedReplica,
    source: &Path,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<SnapshotReport, SnapshotError> {
    let start = RunStart::now();
    let excludes = options.compiled_excludes()?;
    let (real, location) = source_location(replica, source, &excludes)?;
    let threads = if options.threads == 0 { cores().min(4) } else { options.threads };
    let tree = LocalTree::start(&real, options.scan(&excludes), threads)?;
    let request = RunRequest { replica, location: &location, options, excludes: &excludes, progress, start };
    take_snapshot(request, Box::new(tree))
}

/// Takes a snapshot of any tree, as if it were at a location, and commits it.
///
/// # Errors
/// See [`SnapshotError`]. The store then is as it was, but for progress that the next run makes use of.
#[cfg(any(test, feature = "testing"))]
pub fn run_tree(
    replica: &LockedReplica,
    tree: Box<dyn crate::source::tree::SourceTree + '_>,
    location: &str,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<SnapshotReport, SnapshotError> {
    let start = RunStart::now();
    let excludes = options.compiled_excludes()?;
    let request = RunRequest { replica, location, options, excludes: &excludes, progress, start };
    take_snapshot(request, tree)
}
