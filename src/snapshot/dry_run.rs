//! A scan that reports what a run would read, and changes nothing.

use std::path::Path;
use std::sync::Arc;

use super::SnapshotError;
use super::inode_cache;
use super::options::{DryRun, SnapshotOptions};
use super::problems::{Problems, RunProblem};
use super::progress::Progress;
use super::run_inodes::{RunInodes, Verdict};
use super::source_location::source_location;
use crate::model::Kind;
use crate::replica::Replica;
use crate::source::scan::Found;
use crate::source::tree::{LocalTree, SourceTree};

/// Scans a local tree and reports what [`run`](super::run::run) would read.
///
/// # Errors
/// See [`SnapshotError`].
pub fn dry_run(
    replica: &Replica,
    source: &Path,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<DryRun, SnapshotError> {
    let excludes = options.compiled_excludes()?;
    let (source, location) = source_location(replica, source, &excludes)?;
    let mut tree = LocalTree::start(&source, options.scan(&excludes), 0)?;
    dry_run_over(replica, &mut tree, &location, options, progress)
}

/// Reports what a run would read.
pub(super) fn dry_run_over(
    replica: &Replica,
    tree: &mut dyn SourceTree,
    location: &str,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<DryRun, SnapshotError> {
    let started = jiff::Timestamp::now();
    let reader = replica.catalog()?;
    let chosen = reader.sources()?.choose(location, options.source.as_ref())?;
    let last = reader.snapshots()?.into_iter().rev().find(|(_, record)| record.source_id == Some(chosen.id));
    let last = last.as_ref().map(|(_, record)| record);
    let known = if chosen.is_new { None } else { inode_cache::load(replica, chosen.id, last) };
    let known = known.unwrap_or_default();
    let mut inodes = RunInodes::new(known, options.rescan, started);
    let mut report = DryRun::default();
    let mut problems = Problems::default();
    while let Some(listing) = tree.next_listing()? {
        progress.check_interrupt()?;
        report.names += listing.entries.len() as u64;
        Progress::add(&progress.names, listing.entries.len() as u64);
        problems.extend(&listing.unreadable);
        for entry in &listing.entries {
            let Found::Inode { file_system, stat: Some(stat), .. } = &entry.what else { continue };
            let file_system = inodes.file_system(*file_system, || tree.file_systems());
            match inodes.judge(file_system, stat) {
                Verdict::Unchanged(_) => report.unchanged_inodes += 1,
                Verdict::Attributes(_) => report.attribute_inodes += 1,
                Verdict::Content(_) => {
                    report.read_files += 1;
                    report.read_bytes += if stat.kind == Kind::File { stat.size } else { 0 };
                }
            }
        }
    }
    let end = tree.end_of_scan();
    problems.extend(&end.problems);
    let count = problems.count();
    report.problems = problems.into_kept();
    let further = count - report.problems.len() as u64;
    if further > 0 {
        report.problems.push(RunProblem { path: Vec::new(), message: format!("{further} further problems") });
    }
    report.excluded_names = end.excluded;
    Ok(report)
}
