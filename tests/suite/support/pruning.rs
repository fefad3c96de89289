//! Snapshots, prunes and checks of a store, for the tests of pruning.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use zmreplica::check::{CheckOptions, CheckProgress, CheckReport, check};
use zmreplica::prune::{PruneError, PruneOptions, PrunePlan, PruneProgress, PruneReport, carry_out, plan};
use zmreplica::replica::{LockedReplica, Replica};
use zmreplica::retention::{Policy, Protections, Rules, Selection};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::store::MemoryBackend;
use zmreplica::store::backend::Backend;
use zmreplica::view::Snapshots;

use super::locks::patiently;
use super::oracle::{Tree, assert_same, of_snapshot};

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Copies a directory. Not by another program: see [`super::locks`].
pub fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn open_over(store: &Path, backend: &Arc<MemoryBackend>) -> LockedReplica {
    patiently(|| LockedReplica::open_over(store, Arc::clone(backend) as Arc<dyn Backend>))
}

pub fn take(replica: &LockedReplica, source: &Path) -> String {
    let options = SnapshotOptions { default_excludes: false, ..SnapshotOptions::default() };
    let report = run(replica, source, &options, &Arc::new(Progress::default())).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    report.record.id
}

/// Makes a source; its names are in a directory, since a run waits for files that vanish from the root itself.
pub fn make_source(source: &Path) -> PathBuf {
    let tree = source.join("tree");
    fs::create_dir_all(&tree).unwrap();
    tree
}

pub fn last(count: u32) -> Policy {
    Policy { keep_last: count, ..Policy::default() }
}

pub fn planned(
    replica: &Replica,
    policy: &Policy,
    protections: &Protections,
    max_unused: u8,
) -> Result<PrunePlan, PruneError> {
    // What is condemned goes at once: what is left can be counted.
    let options = PruneOptions { max_unused_percent: max_unused, grace: Duration::ZERO, ..PruneOptions::default() };
    let rules = Rules::from(policy);
    plan(replica, Selection::Rules(&rules), protections.clone(), &TimeZone::UTC, &options, &PruneProgress::default())
}

pub fn prune(replica: &mut LockedReplica, policy: &Policy, max_unused: u8) -> Result<PruneReport, PruneError> {
    let plan = planned(replica, policy, &Protections::default(), max_unused)?;
    carry_out(replica, &plan, &PruneProgress::default())
}

pub fn checked(replica: &Replica) -> CheckReport {
    let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
    check(replica, &options, &CheckProgress::default()).unwrap()
}

pub fn assert_clean(replica: &Replica, what: &str) -> CheckReport {
    let report = checked(replica);
    assert!(report.is_clean() && report.rebuildable, "{what}: {:#?}", report.damages);
    report
}

pub fn ids(replica: &Replica) -> BTreeSet<String> {
    Snapshots::read(&replica.catalog().unwrap()).unwrap().all().iter().map(|one| one.record.id.clone()).collect()
}

/// Compares every snapshot that is there with the copy that was taken of the source.
pub fn compare(replica: &Replica, copies: &[(String, Tree)], what: &str) {
    for snapshot in Snapshots::read(&replica.catalog().unwrap()).unwrap().all() {
        let (_, copy) = copies.iter().find(|(id, _)| *id == snapshot.record.id).expect("a snapshot that was taken");
        assert_same(copy, &of_snapshot(replica, snapshot).unwrap(), what);
    }
}

pub fn pack_bytes(backend: &dyn Backend) -> u64 {
    backend.list("packs/").unwrap().iter().map(|(_, bytes)| bytes).sum()
}
