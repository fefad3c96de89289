//! Pruning: what stays is read exactly as it was taken, what nothing needs is gone, and a crash anywhere costs nothing but another prune.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use zmreplica::catalog::{checkpoint, checkpoint_writer, commit_log};
use zmreplica::check::CheckReport;
use zmreplica::lease::{self, LeaseInfo};
use zmreplica::prune::{PruneError, PruneProgress, carry_out};
use zmreplica::repair::{CatalogOutcome, RepairOptions, repair};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::restore::{RestoreOptions, RestoreProgress, restore};
use zmreplica::retention::{Policy, Protections};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::store::backend::Backend;
use zmreplica::store::{LocalBackend, MemoryBackend};
use zmreplica::view::Snapshots;

use crate::support::edits::{Edit, Source, edit};
use crate::support::effort::cases;
use crate::support::locks::{self, patiently};
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot, view};
use crate::support::pruning::{
    assert_clean, checked, compare, copy_directory, ids, last, make_source, noise, open_over, pack_bytes, planned,
    prune, take,
};

// ---- The property: random snapshots, rules, prunes, and crashes between all steps. ----

#[derive(Clone, Debug)]
enum Step {
    Snapshot(Vec<Edit>),
    Prune {
        rules: Policy,
        protect: usize,
        max_unused: u8,
    },
    /// A prune that dies at some operation of the backend; what was not synced is lost, in part if `keep_some` says so.
    Crash {
        rules: Policy,
        die_after: u64,
        keep_some: Option<u64>,
    },
}

fn rules() -> impl Strategy<Value = Policy> {
    prop_oneof![
        3 => (1..4u32).prop_map(last),
        1 => Just(Policy { keep_tags: vec!["none".to_owned()], ..Policy::default() }),
        1 => Just(Policy::default()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => vec(edit(), 1..25).prop_map(Step::Snapshot),
        2 => (rules(), 0..8usize, prop_oneof![Just(0u8), Just(10), Just(100)])
            .prop_map(|(rules, protect, max_unused)| Step::Prune { rules, protect, max_unused }),
        2 => (rules(), 1..400u64, proptest::option::of(any::<u64>()))
            .prop_map(|(rules, die_after, keep_some)| Step::Crash { rules, die_after, keep_some }),
    ]
}

struct World {
    store: PathBuf,
    backend: Arc<MemoryBackend>,
    root: PathBuf,
    source: Source,
    copies: Vec<(String, Tree)>,
    place: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let place = tempfile::tempdir().unwrap();
        let (store, root) = (place.path().join("store"), place.path().join("source"));
        init(&store).unwrap();
        let source = Source { root: make_source(&root), clock: 0 };
        World { store, backend: Arc::new(MemoryBackend::new()), root, source, copies: Vec::new(), place }
    }

    fn open(&self) -> LockedReplica {
        open_over(&self.store, &self.backend)
    }

    /// Keeps the tree of a snapshot so that another store can be filled with it. Not by cp, which makes holes where there were zeros.
    fn keep_tree(&self, replica: &Replica, id: &str) {
        let snapshot = Snapshots::read(&replica.catalog().unwrap()).unwrap().newest().unwrap().clone();
        assert_eq!(snapshot.record.id, id);
        let view = view(replica, &snapshot).unwrap();
        let copy = self.place.path().join(id);
        let report = restore(&view, b"", &copy, &RestoreOptions::default(), &RestoreProgress::default()).unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Snapshot(edits) => {
                edits.iter().for_each(|edit| self.source.apply(edit));
                let replica = self.open();
                let id = take(&replica, &self.root);
                self.keep_tree(&replica, &id);
                self.copies.push((id, of_directory(&self.root)));
            }
            Step::Prune { rules, protect, max_unused } => {
                let mut replica = self.open();
                let mut protections = Protections::default();
                if let Some((id, _)) = self.copies.get(*protect) {
                    protections.add(id, "pinned");
                }
                let before = ids(&replica);
                let plan = planned(&replica, rules, &protections, *max_unused).unwrap();
                let kept: BTreeSet<String> = plan.retention.kept().map(|decision| decision.id.clone()).collect();
                assert_eq!(
                    plan.freed.values().sum::<u64>() + plan.figures.unreferenced_bytes,
                    plan.figures.removed_chunk_bytes
                );
                let packs_before = pack_bytes(self.backend.as_ref());
                let report = carry_out(&mut replica, &plan, &PruneProgress::default()).unwrap();
                assert_eq!(report.not_folded, None);
                assert_eq!(ids(&replica), kept);
                assert_eq!(kept.len() as u64 + report.removed_snapshots, before.len() as u64);
                assert_eq!(
                    pack_bytes(self.backend.as_ref()) + report.deleted_bytes,
                    packs_before + report.written_bytes
                );
                // What was done is done: another prune of the same rules finds nothing.
                let again = planned(&replica, rules, &protections, *max_unused).unwrap();
                assert!(again.is_empty(), "{:?}", again.figures);
            }
            Step::Crash { rules, die_after, keep_some } => {
                let kept = {
                    let mut replica = self.open();
                    let plan = planned(&replica, rules, &Protections::default(), 10).unwrap();
                    self.backend.die_after(*die_after);
                    let _ = carry_out(&mut replica, &plan, &PruneProgress::default());
                    plan.retention.kept().map(|decision| decision.id.clone()).collect::<BTreeSet<_>>()
                };
                crash(&self.backend, *keep_some);
                assert!(ids(&self.open()).is_superset(&kept), "what was to stay is there");
            }
        }
        let replica = self.open();
        assert_clean(&replica, &format!("after {step:?}"));
        compare(&replica, &self.copies, &format!("after {step:?}"));
    }

    /// Prunes once more and compares with a store that never had anything but what is kept.
    fn finish(&mut self) {
        let mut replica = self.open();
        if ids(&replica).is_empty() {
            return;
        }
        prune(&mut replica, &last(2), 10).unwrap();
        let report = assert_clean(&replica, "at the end");
        assert_eq!(report.orphan_packs, 0);
        compare(&replica, &self.copies, "at the end");

        let (fresh_path, fresh_backend) = (self.place.path().join("fresh"), Arc::new(MemoryBackend::new()));
        init(&fresh_path).unwrap();
        let fresh = open_over(&fresh_path, &fresh_backend);
        let kept = ids(&replica);
        for (id, _) in self.copies.iter().filter(|(id, _)| kept.contains(id)) {
            take(&fresh, &self.place.path().join(id));
        }
        let fresh_report = assert_clean(&fresh, "the fresh store");
        assert_eq!(report.chunks, fresh_report.chunks, "exactly the chunks that are needed");
        assert!(report.groups <= fresh_report.groups, "{} link groups, {}", report.groups, fresh_report.groups);
        let dictionaries = |replica: &Replica| -> u64 {
            replica.dictionaries().all().iter().map(|one| one.bytes().len() as u64 + 200).sum()
        };
        let bytes = pack_bytes(self.backend.as_ref()) - dictionaries(&replica);
        let fresh_bytes =
            pack_bytes(fresh_backend.as_ref()) - dictionaries(&fresh).min(pack_bytes(fresh_backend.as_ref()));
        // A tenth may be unused; a dictionary trained on other messages compresses otherwise, and packs have ends.
        let allowed = fresh_bytes * 110 / 100 * 100 / 90 + dictionaries(&replica) + 4096;
        assert!(bytes <= allowed, "{bytes} bytes in packs, and a fresh store has {fresh_bytes}");

        // And once more from the commit files alone, folded or not.
        drop(replica);
        fs::remove_file(self.store.join("catalog.redb")).unwrap();
        patiently(|| LockedReplica::rebuild_over(&self.store, self.backend.as_ref()));
        let replica = self.open();
        assert_clean(&replica, "rebuilt");
        assert_eq!(ids(&replica), kept);
        compare(&replica, &self.copies, "rebuilt");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_is_exact_and_the_rest_is_gone(first in vec(edit(), 5..40), steps in vec(step(), 2..9)) {
        let mut world = World::new();
        world.apply(&Step::Snapshot(first));
        steps.iter().for_each(|step| world.apply(step));
        world.finish();
    }
}

// ---- Crashes, one by one. ----

/// A store with some history, of which a prune removes half: dead packs, packs half dead, packs that stay.
struct Base {
    place: tempfile::TempDir,
    backend: MemoryBackend,
    copies: Vec<(String, Tree)>,
}

fn base() -> Base {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    let backend = Arc::new(MemoryBackend::new());
    let mut copies = Vec::new();
    for night in 0..5u64 {
        let replica = open_over(&store, &backend);
        for number in 0..12 {
            let name = tree.join(format!("{night}-{number}"));
            fs::write(&name, noise(night * 100 + number, 900 + 40 * number as usize)).unwrap();
            fs::hard_link(&name, tree.join(format!("{night}-{number}-again"))).unwrap();
            if night > 1 && (number % 3 == 0 || night == 2) {
                for suffix in ["", "-again"] {
                    fs::remove_file(tree.join(format!("{}-{number}{suffix}", night - 2))).unwrap();
                }
            }
        }
        copies.push((take(&replica, &source), of_directory(&source)));
    }
    Base { place, backend: backend.fork(), copies }
}

impl Base {
    /// Copies all of the store that is no object.
    fn copy(&self) -> (tempfile::TempDir, Arc<MemoryBackend>) {
        let copy = tempfile::tempdir().unwrap();
        copy_directory(&self.place.path().join("store"), copy.path());
        (copy, Arc::new(self.backend.fork()))
    }
}

#[test]
fn a_prune_may_die_at_every_operation_of_the_backend() {
    let base = base();
    // How it ends when nothing happens.
    let (whole, whole_backend) = base.copy();
    let mut replica = open_over(whole.path(), &whole_backend);
    let report = prune(&mut replica, &last(2), 0).unwrap();
    assert!(report.deleted_packs > report.written_packs && report.written_packs > 0, "{report:?}");
    let expected = assert_clean(&replica, "a prune without a crash");
    let kept = ids(&replica);
    assert_eq!(kept.len(), 2);
    drop(replica);

    let mut crashes = 0;
    // What was not synced is lost, or some of it by chance.
    for seed in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
        for die_after in 1.. {
            let what = format!("died at {die_after}, keeping some by {seed:?}");
            let (store, backend) = base.copy();
            let open = || open_over(store.path(), &backend);
            let mut replica = open();
            let plan = planned(&replica, &last(2), &Protections::default(), 0).unwrap();
            backend.die_after(die_after);
            let result = carry_out(&mut replica, &plan, &PruneProgress::default());
            drop(replica);
            crash(&backend, seed.map(|seed| seed * 1000 + die_after));
            let mut replica = open();
            let report = assert_clean(&replica, &what);
            assert!([2, 5].contains(&report.snapshots), "{what}: all or none of the snapshots go");
            compare(&replica, &base.copies, &what);
            prune(&mut replica, &last(2), 0).unwrap();
            let report = assert_clean(&replica, &what);
            assert_eq!(ids(&replica), kept, "{what}");
            compare(&replica, &base.copies, &what);
            let figures = |report: &CheckReport| (report.chunks, report.groups, report.objects, report.orphan_packs);
            assert_eq!(figures(&report), figures(&expected), "{what}: nothing is left that nobody needs");
            if result.is_ok() {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes > 100, "only {crashes} operations");
}

fn crash(backend: &MemoryBackend, keep_some: Option<u64>) {
    match keep_some {
        Some(seed) => backend.crash_keeping_some(seed),
        None => backend.crash(),
    }
}

#[test]
fn a_fold_may_die_at_every_operation_of_the_backend() {
    let base = base();
    let mut crashes = 0;
    for seed in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
        for die_after in 1.. {
            let what = format!("died at {die_after}, keeping some by {seed:?}");
            let (store, backend) = base.copy();
            let open = || open_over(store.path(), &backend);
            let fold = |replica: &LockedReplica| {
                let written = checkpoint_writer::write(&replica.database().read().unwrap(), backend.as_ref(), None)?;
                checkpoint_writer::delete_superseded(backend.as_ref(), written.number)
            };
            let replica = open();
            backend.die_after(die_after);
            let result = fold(&replica);
            drop(replica);
            crash(&backend, seed.map(|seed| seed * 1000 + die_after));
            // With the catalogue and without it.
            assert_clean(&open(), &what);
            fs::remove_file(store.path().join("catalog.redb")).unwrap();
            patiently(|| LockedReplica::rebuild_over(store.path(), backend.as_ref()));
            let replica = open();
            assert_clean(&replica, &what);
            compare(&replica, &base.copies, &what);
            assert_eq!(ids(&replica).len(), 5, "{what}");
            // The next fold leaves nothing over.
            fold(&replica).unwrap();
            assert!(commit_log::commit_files(backend.as_ref()).unwrap().is_empty(), "{what}");
            assert_eq!(backend.list("checkpoints/").unwrap().len(), 3, "{what}: a head and two parts");
            if result.is_ok() {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes > 60, "only {crashes} operations");
}

#[test]
fn what_is_missing_stops_it_before_anything_is_removed() {
    let base = base();
    let packs: Vec<String> = base.backend.list("packs/").unwrap().into_iter().map(|(key, _)| key).collect();
    let mut refused = 0;
    for pack in &packs {
        for cut in [false, true] {
            let (store, backend) = base.copy();
            let bytes = backend.read_at(pack, 0, backend.size(pack).unwrap().unwrap() as usize).unwrap();
            backend.damage(pack, cut.then(|| bytes[..bytes.len() - 1].to_vec()));
            let mut replica = open_over(store.path(), &backend);
            let before = (ids(&replica), backend.list("").unwrap());
            match prune(&mut replica, &last(2), 10) {
                Err(error @ PruneError::Pack { .. }) => {
                    assert!(error.is_damage() && error.to_string().contains("Nothing was removed"));
                    assert_eq!((ids(&replica), backend.list("").unwrap()), before);
                    refused += 1;
                }
                // A pack that only went snapshots needed.
                Ok(_) => assert!(assert_clean(&replica, pack).snapshots == 2),
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(refused >= 2 && refused < 2 * packs.len(), "{refused} of {}", packs.len());

    // A flipped byte shows when its pack is repacked: what is needed stays where it is.
    let (store, backend) = base.copy();
    let mut replica = open_over(store.path(), &backend);
    for pack in &packs {
        let mut bytes = backend.read_at(pack, 0, backend.size(pack).unwrap().unwrap() as usize).unwrap();
        for at in (16..bytes.len() - 72).step_by(97) {
            bytes[at] ^= 1;
        }
        backend.damage(pack, Some(bytes));
    }
    let failed = prune(&mut replica, &last(2), 0).unwrap_err();
    assert!(matches!(&failed, PruneError::Chunk { .. }) && failed.is_damage(), "{failed}");
    assert!(checked(&replica).damages.iter().all(|damage| damage.reason.contains("has") || damage.affected > 0));
}

#[test]
fn leases_and_newer_commits_outdate_a_plan() {
    let base = base();
    let (store, backend) = base.copy();
    let mut replica = open_over(store.path(), &backend);
    let first = &base.copies[0].0;
    let plan = planned(&replica, &last(1), &Protections::default(), 10).unwrap();
    let lease = lease::take(store.path(), &LeaseInfo::of_this_process(Path::new("/mnt"), vec![first.clone()])).unwrap();
    let leased = carry_out(&mut replica, &plan, &PruneProgress::default()).unwrap_err();
    assert!(matches!(&leased, PruneError::Leased { id } if id == first), "{leased}");
    assert_eq!(ids(&replica).len(), 5);
    // A new plan knows of it.
    prune(&mut replica, &last(1), 10).unwrap();
    assert_eq!(ids(&replica), BTreeSet::from([first.clone(), base.copies[4].0.clone()]));
    assert_clean(&replica, "with a lease");
    let outdated = carry_out(&mut replica, &plan, &PruneProgress::default()).unwrap_err();
    assert!(matches!(outdated, PruneError::Outdated), "{outdated}");
    drop(lease);
    prune(&mut replica, &last(1), 10).unwrap();
    assert_eq!(ids(&replica).len(), 1);
}

#[test]
fn what_an_interrupted_run_stored_is_not_lost() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    for number in 0..300 {
        fs::write(tree.join(format!("{number:04}")), noise(number, 20_000)).unwrap();
    }
    // Long enough for the files to count as settled.
    std::thread::sleep(Duration::from_millis(100));
    let progress = Arc::new(Progress::default());
    let options = SnapshotOptions { progress_interval: Duration::ZERO, ..SnapshotOptions::default() };
    let interrupted = std::thread::scope(|scope| {
        let (other, store, source) = (Arc::clone(&progress), &store, &source);
        let running = scope.spawn(move || run(&locks::open(store), source, &options, &progress).is_err());
        while other.chunks.new_chunks.load(std::sync::atomic::Ordering::Relaxed) < 100 && !running.is_finished() {
            std::thread::yield_now();
        }
        other.interrupt.store(true, std::sync::atomic::Ordering::Relaxed);
        running.join().unwrap()
    });
    assert!(interrupted, "the run was to be interrupted");
    let mut replica = locks::open(&store);
    prune(&mut replica, &last(1), 0).unwrap();
    assert_clean(&replica, "after the prune");
    let stored = pack_bytes(replica.backend().as_ref());
    assert!(stored > 0, "the progress stays");
    let report = run(&replica, &source, &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
    assert!(report.record.work.unchanged_inodes > 0, "{:?}", report.record.work);
    assert_clean(&replica, "after the next run");
    let snapshot = Snapshots::read(&replica.catalog().unwrap()).unwrap().newest().unwrap().clone();
    assert_same(&of_directory(&source), &of_snapshot(&replica, &snapshot).unwrap(), "the next run");
}

/// docs/format.md: "So a rebuild reads one checkpoint and the few commit files after it."
#[test]
fn commit_files_are_folded_and_a_rebuild_stays_short() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    let mut copies = Vec::new();
    let (mut folds, mut most) = (0, 0);
    for night in 0..30u64 {
        for number in 0..150 {
            let name =
                tree.join(format!("{night}-{number}-{}", noise(number, 16).escape_ascii()).replace(['/', '\\'], "_"));
            fs::write(name, noise(night * 1000 + number, 700)).unwrap();
        }
        if let Some(old) = night.checked_sub(4) {
            for entry in fs::read_dir(&tree).unwrap() {
                let path = entry.unwrap().path();
                if path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{old}-")) {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        let mut replica = locks::open(&store);
        copies.push((take(&replica, &source), of_directory(&source)));
        let report = prune(&mut replica, &last(3), 10).unwrap();
        assert_eq!(report.not_folded, None);
        folds += u32::from(report.folded_bytes > 0);
        most = most.max(replica.backend().list("commits/").unwrap().len());
    }
    assert!(folds >= 3, "folded {folds} times");
    assert!(most < 60, "{most} commit files at once");
    let backend = LocalBackend::open(&store).unwrap();
    assert_eq!(checkpoint::heads(&backend).unwrap().len(), 1);
    let folded = checkpoint::newest(&backend).unwrap().unwrap();
    assert!(commit_log::commit_files(&backend).unwrap().iter().all(|number| *number > folded.number));

    let before = assert_clean(&Replica::open(&store).unwrap(), "folded");
    let old = fs::read(store.join("catalog.redb")).unwrap();
    fs::remove_file(store.join("catalog.redb")).unwrap();
    locks::patiently(|| locks::rebuild(&store));
    let replica = Replica::open(&store).unwrap();
    let after = assert_clean(&replica, "rebuilt");
    assert_eq!((before.chunks, before.groups, before.objects), (after.chunks, after.groups, after.objects));
    assert_eq!(ids(&replica).len(), 3);
    compare(&replica, &copies, "rebuilt");
    drop(replica);

    // A damaged row of the catalogue never gets into a checkpoint: the commit files stay.
    fs::write(store.join("catalog.redb"), old).unwrap();
    for file in backend.list("checkpoints/").unwrap() {
        let path = store.join(&file.0);
        let bytes = fs::read(&path).unwrap();
        let mut bad = bytes.clone();
        bad[60] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bad).unwrap();
        let report = checked(&Replica::open(&store).unwrap());
        assert!(!report.is_clean() && !report.rebuildable, "{}", file.0);
        assert!(locks::rebuild(&store).is_err(), "{}", file.0);
        fs::write(&path, bytes).unwrap();
    }
    assert_clean(&Replica::open(&store).unwrap(), "healed");
    // With the catalogue at hand a new checkpoint takes the place of the damaged one.
    for at in 0..2 {
        let (key, _) = backend.list("checkpoints/").unwrap().swap_remove(at);
        fs::remove_file(store.join(key)).unwrap();
        locks::wait_until_free(&store);
        let repaired = repair(&store, RepairOptions::default(), &PruneProgress::default()).unwrap();
        assert!(matches!(repaired.catalog, CatalogOutcome::Kept { .. }) && repaired.is_whole(), "{repaired:?}");
        assert_clean(&Replica::open(&store).unwrap(), "a new checkpoint");
        fs::remove_file(store.join("catalog.redb")).unwrap();
        locks::patiently(|| locks::rebuild(&store));
        let replica = Replica::open(&store).unwrap();
        assert_clean(&replica, "rebuilt from the new checkpoint");
        compare(&replica, &copies, "rebuilt from the new checkpoint");
    }
}

/// docs/semantics.md, of what is unchanged: a prune between two nights makes no difference.
#[test]
fn a_night_after_a_prune_reads_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    for number in 0..50 {
        fs::write(tree.join(number.to_string()), noise(number, 3000)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let mut replica = locks::open(&store);
    take(&replica, &source);
    fs::rename(tree.join("0"), tree.join("other")).unwrap();
    fs::remove_file(tree.join("1")).unwrap();
    take(&replica, &source);
    let report = prune(&mut replica, &last(1), 0).unwrap();
    assert_eq!(
        (report.removed_snapshots, report.written_packs),
        (1, 1 + u64::from(!replica.dictionaries().all().is_empty()))
    );
    let night = run(&replica, &source, &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
    let work = night.record.work;
    assert_eq!((work.read_files, work.read_bytes, work.new_chunks, work.unchanged_inodes), (0, 0, 0, 49));
    assert_clean(&replica, "the night after");
}
