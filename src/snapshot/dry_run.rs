//! A scan that tells what a run would read, and changes nothing.

use std::path::Path;
use std::sync::Arc;

use super::SnapshotError;
use super::inodes::{RunInodes, Verdict};
use super::options::{DryRun, RunProblem, SnapshotOptions};
use super::progress::Progress;
use super::run::{load_inode_cache, scan_options};
use super::source_name::source_name;
use crate::catalog::meta::source_id;
use crate::model::Kind;
use crate::replica::Replica;
use crate::source::exclude::Excludes;
use crate::source::scan::Found;
use crate::source::tree::{LocalTree, SourceTree};

/// Most bytes of problems of directories, texts included; more of them than this no source has that means well.
const PROBLEMS_MAX_BYTES: usize = 64 << 20;
/// What a problem takes beside its path.
const PROBLEM_BYTES: usize = 160;

/// Scans a local tree and tells what [`run`](super::run::run) would read.
///
/// # Errors
/// See [`SnapshotError`].
pub fn dry_run(
    replica: &Replica,
    source: &Path,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<DryRun, SnapshotError> {
    let excludes = Excludes::new(&options.excludes, options.default_excludes)?;
    let (source, name) = source_name(replica, source, &excludes)?;
    let mut tree = LocalTree::start(&source, scan_options(options, excludes), 0)?;
    dry_run_over(replica, &mut tree, &name, options, progress)
}

/// Tells what [`run_over`](super::run::run_over) would read.
pub(super) fn dry_run_over(
    replica: &Replica,
    tree: &mut dyn SourceTree,
    name: &str,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<DryRun, SnapshotError> {
    let started = jiff::Timestamp::now();
    let reader = replica.catalog()?;
    let last = reader.snapshots()?.into_iter().rev().find(|(_, record)| record.source == name);
    let last = last.as_ref().map(|(_, record)| record);
    let known =
        source_id(&reader, name)?.and_then(|source| load_inode_cache(replica, source, last)).unwrap_or_default();
    let mut inodes = RunInodes::new(known, options.rescan, started);
    let mut report = DryRun::default();
    let (mut room, mut untold) = (PROBLEMS_MAX_BYTES, 0u64);
    while let Some(listing) = tree.next_listing()? {
        if progress.interrupted() {
            return Err(progress.interruption());
        }
        report.names += listing.entries.len() as u64;
        Progress::add(&progress.names, listing.entries.len() as u64);
        room = room.saturating_sub(listing.unreadable.as_ref().map_or(0, |problem| problem.path.len() + PROBLEM_BYTES));
        if room > 0 {
            report.problems.extend(listing.unreadable.iter().map(RunProblem::from));
        } else {
            untold += u64::from(listing.unreadable.is_some());
        }
        let mounts = tree.file_systems();
        for entry in &listing.entries {
            let Found::Inode { file_system, stat: Some(stat), .. } = &entry.what else { continue };
            let file_system = inodes.file_system(&mounts[*file_system as usize]);
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
    report.problems.extend(end.problems.iter().map(RunProblem::from));
    if untold > 0 {
        let message = format!("{untold} further directories cannot be read");
        report.problems.push(RunProblem { path: Vec::new(), message });
    }
    report.excluded_names = end.excluded;
    Ok(report)
}
