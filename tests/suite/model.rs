//! The reference model: random trees with hard links, random edits, a snapshot after each batch. A naive copy taken with `std::fs` is the oracle, and
//! what is compared is the *partition* of names into inodes, beside names, kinds, contents and attributes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use zmreplica::check::{CheckOptions, CheckProgress, check};
use zmreplica::replica::{Replica, init};
use zmreplica::restore::{Overwrite, RestoreOptions, RestoreProgress, restore};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::view::Snapshots;

use crate::support::edits::{Edit, Source, edit};
use crate::support::effort::cases;
use crate::support::locks;
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot, view};

fn options(rescan: bool) -> SnapshotOptions {
    SnapshotOptions { default_excludes: false, rescan, ..SnapshotOptions::default() }
}

fn assert_clean(replica: &Replica, snapshots: usize) {
    let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
    let report = check(replica, &options, &CheckProgress::default()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.damages);
    assert_eq!(report.snapshots, snapshots as u64);
    assert_eq!(report.read_packs, report.packs);
}

/// Compares every snapshot with the copy that was taken of the source.
fn compare(replica: &Replica, copies: &[Tree]) {
    let snapshots = Snapshots::read(&replica.catalog().unwrap()).unwrap();
    assert_eq!(snapshots.all().len(), copies.len());
    for (number, (snapshot, copy)) in snapshots.all().iter().zip(copies).enumerate() {
        assert_same(copy, &of_snapshot(replica, snapshot).unwrap(), &format!("snapshot {number}"));
        let kinds = |kind| copy.values().filter(|item| item.kind == kind).count() as u64;
        let totals = snapshot.record.totals;
        assert_eq!(totals.names, copy.len() as u64 - 1, "names of snapshot {number}");
        assert_eq!(totals.directories, kinds('d') - 1, "directories of snapshot {number}");
        let inodes = copy.iter().filter(|(path, item)| item.kind != 'd' && **path == item.first_name);
        let inodes: Vec<_> = inodes.map(|(_, item)| item).collect();
        assert_eq!(totals.inodes, inodes.len() as u64, "link groups of snapshot {number}");
        assert_eq!(totals.files + totals.symlinks + totals.specials, totals.inodes, "kinds of snapshot {number}");
    }
}

/// Restores every snapshot over the one before it, with what is too much deleted, and into a place of its own.
fn restore_all(replica: &Replica, copies: &[Tree], place: &Path) {
    fs::create_dir(place).unwrap();
    let over = place.join("over");
    let snapshots = Snapshots::read(&replica.catalog().unwrap()).unwrap();
    for (number, (snapshot, copy)) in snapshots.all().iter().zip(copies).enumerate() {
        let own = place.join(number.to_string());
        for (destination, delete) in [(&own, false), (&over, true)] {
            let options = RestoreOptions { delete, overwrite: Overwrite::Always, ..RestoreOptions::default() };
            let view = view(replica, snapshot).unwrap();
            let report = restore(&view, b"", destination, &options, &RestoreProgress::default()).unwrap();
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            assert_same(copy, &of_directory(destination), &format!("restored snapshot {number}, delete {delete}"));
        }
    }
}

fn run_case(batches: &[Vec<Edit>], rescans: &[bool]) {
    let place = tempfile::tempdir().unwrap();
    let (store, root) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir(&root).unwrap();
    let mut source = Source { root: root.clone(), clock: 0 };
    let mut copies = Vec::new();
    for (batch, rescan) in batches.iter().zip(rescans) {
        for edit in batch {
            source.apply(edit);
        }
        if fs::read_dir(&root).unwrap().next().is_none() {
            fs::write(root.join("only"), "a source must not be empty").unwrap();
        }
        let replica = locks::open(&store);
        let report = run(&replica, &root, &options(*rescan), &Arc::new(Progress::default())).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        copies.push(of_directory(&root));
    }
    let replica = Replica::open(&store).unwrap();
    compare(&replica, &copies);
    restore_all(&replica, &copies, &place.path().join("restored"));
    assert_clean(&replica, copies.len());
    drop(replica);
    // The catalogue is worth nothing that the commit files don't hold too.
    fs::remove_file(store.join("catalog.redb")).unwrap();
    locks::patiently(|| locks::rebuild(&store));
    let replica = Replica::open(&store).unwrap();
    compare(&replica, &copies);
    assert_clean(&replica, copies.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(16), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_is_the_tree_of_its_time(
        batches in vec(vec(edit(), 1..40), 1..6),
        rescans in vec(proptest::bool::weighted(0.15), 6),
    ) {
        run_case(&batches, &rescans);
    }
}
