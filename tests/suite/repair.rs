//! Repair: what is damaged is said, what can be had is saved, what is lost comes back with the next snapshot if the source still has it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use zmreplica::catalog::marks::{Mark, SnapshotMarks};
use zmreplica::check::{CheckOptions, CheckProgress, CheckReport, check};
use zmreplica::prune::{PruneOptions, PruneProgress, carry_out, plan};
use zmreplica::repair::{CatalogOutcome, RepairError, RepairOptions, RepairReport, repair, repair_over};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::retention::{Policy, Protections, Rules, Selection};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::store::MemoryBackend;
use zmreplica::store::backend::Backend;
use zmreplica::view::Snapshots;

use crate::support::locks;
use crate::support::odd::files;
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot};
use crate::support::pruning::{copy_directory, noise};

struct Scene {
    place: tempfile::TempDir,
    copies: Vec<(String, Tree)>,
}

impl Scene {
    /// Three nights, each with files of its own; mail-like ones among them, so that there is a dictionary.
    fn new() -> Scene {
        let place = tempfile::tempdir().unwrap();
        init(&place.path().join("store")).unwrap();
        let mut scene = Scene { place, copies: Vec::new() };
        for night in 0..3u64 {
            let directory = scene.source().join(format!("night-{night}"));
            fs::create_dir_all(&directory).unwrap();
            for number in 0..30 {
                let bytes = noise(night * 100 + number, 2000 + 10 * number as usize);
                fs::write(directory.join(format!("{number:02}.bin")), bytes).unwrap();
                let text =
                    format!("Received: from mail-{number}.example.com by store\r\nSubject: {night}\r\n").repeat(8);
                fs::write(directory.join(format!("{number:02}.msg")), text).unwrap();
            }
            fs::hard_link(directory.join("00.bin"), directory.join("again.bin")).unwrap();
            std::thread::sleep(Duration::from_millis(60));
            scene.snapshot();
        }
        scene
    }

    fn store(&self) -> PathBuf {
        self.place.path().join("store")
    }

    fn source(&self) -> PathBuf {
        self.place.path().join("source")
    }

    fn snapshot(&mut self) -> u64 {
        let replica = locks::open(&self.store());
        let report =
            run(&replica, &self.source(), &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
        self.copies.push((report.record.id, of_directory(&self.source())));
        report.record.work.read_files
    }

    fn check(&self) -> CheckReport {
        let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
        check(&Replica::open(&self.store()).unwrap(), &options, &CheckProgress::default()).unwrap()
    }

    fn repair(&self, read_data: bool) -> Result<RepairReport, RepairError> {
        locks::wait_until_free(&self.store());
        repair(&self.store(), RepairOptions { read_data }, &PruneProgress::default())
    }

    /// Reads all snapshots; returns how many are exact. The others give an error, and never other bytes.
    fn exact(&self) -> usize {
        let replica = Replica::open(&self.store()).unwrap();
        let mut exact = 0;
        for snapshot in Snapshots::read(&replica.catalog().unwrap()).unwrap().all() {
            let (_, copy) = self.copies.iter().find(|(id, _)| *id == snapshot.record.id).unwrap();
            if let Ok(found) = of_snapshot(&replica, snapshot) {
                assert_same(copy, &found, &snapshot.record.id);
                exact += 1;
            }
        }
        exact
    }

    fn files(&self, below: &str) -> Vec<PathBuf> {
        files(&self.store().join(below))
    }

    fn copy(&self) -> Scene {
        let place = tempfile::tempdir().unwrap();
        copy_directory(&self.store(), &place.path().join("store"));
        Scene { place, copies: self.copies.clone() }
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn paths(report: &CheckReport) -> Vec<(String, usize)> {
    let all = report.damages.iter().flat_map(|damage| &damage.paths);
    all.map(|path| (path.path.clone(), path.snapshots.len())).collect()
}

/// docs/operations.md: "older snapshots are whole again, too"
#[test]
fn a_damaged_pack_gives_what_it_has_and_the_next_snapshot_brings_back_the_rest() {
    let mut scene = Scene::new();
    let packs = scene.files("packs");
    // The first night's pack is the one with the dictionary.
    let pack = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    rewrite(pack, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 40].iter_mut().for_each(|byte| *byte ^= 0x55);
    });
    let before = scene.check();
    let affected = paths(&before);
    assert!(!before.is_clean() && !affected.is_empty() && affected.len() < 10, "{affected:?}");

    let report = scene.repair(true).unwrap();
    assert!(matches!(report.catalog, CatalogOutcome::Rebuilt { .. }), "{report:?}");
    let [damaged] = report.damaged_packs.as_slice() else { panic!("{report:?}") };
    assert!(damaged.saved_chunks > 20 && (1..=3).contains(&damaged.lost_chunks), "{report:?}");
    assert_eq!(report.lost_chunks, damaged.lost_chunks);
    assert!(report.forgotten_inodes > 0 && !report.is_whole());
    // The check reports the same files, and nothing else is wrong.
    let after = scene.check();
    assert_eq!(paths(&after), affected);
    assert_eq!((after.damage_count, after.lost_chunks, after.orphan_packs), (1, report.lost_chunks, 0));
    let most = affected.iter().map(|(_, snapshots)| *snapshots).max().unwrap();
    assert!(most >= 1 && scene.exact() <= 3 - most, "{affected:?}");
    // Another repair has nothing to do, and says what is lost all the same.
    let again = scene.repair(true).unwrap();
    assert_eq!((again.damaged_packs.len(), again.lost_chunks, again.is_whole()), (0, report.lost_chunks, false));

    let read = scene.snapshot();
    assert_eq!(read, report.forgotten_inodes, "only what was lost is read again");
    let healed = scene.check();
    assert!(healed.is_clean(), "{:#?}", healed.damages);
    assert_eq!(scene.exact(), 4, "the old snapshots are whole again");
    // And the commit files know all of it.
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    assert!(scene.repair(false).unwrap().is_whole());
    assert!(scene.check().is_clean());
    assert_eq!(scene.exact(), 4);
}

#[test]
fn a_lost_pack_is_given_up_and_found_again() {
    let mut scene = Scene::new();
    for pack in scene.files("packs") {
        let bytes = fs::read(&pack).unwrap();
        fs::remove_file(&pack).unwrap();
        let report = scene.repair(false).unwrap();
        assert!(report.lost_chunks > 0 && report.damaged_packs[0].saved_chunks == 0, "{report:?}");
        let lost = scene.check();
        assert_eq!(lost.lost_chunks, report.lost_chunks);
        // Somebody finds the file on another disk and puts it back.
        fs::write(&pack, bytes).unwrap();
        let found = scene.repair(false).unwrap();
        assert_eq!((found.found_chunks, found.lost_chunks), (report.lost_chunks, 0), "{found:?}");
        assert!(found.is_whole() && scene.check().is_clean());
        assert_eq!(scene.exact(), 3);
    }
    // Without the bytes at the source, they stay lost and are reported until no snapshot needs them.
    let pack = scene.files("packs").pop().unwrap();
    fs::remove_file(pack).unwrap();
    let lost = scene.repair(false).unwrap().lost_chunks;
    fs::remove_dir_all(scene.source()).unwrap();
    fs::create_dir(scene.source()).unwrap();
    fs::write(scene.source().join("new"), "new").unwrap();
    scene.snapshot();
    assert_eq!(scene.check().lost_chunks, lost);
    let mut replica = locks::open(&scene.store());
    // Nearly all names are gone, which the guard takes for an accident.
    let newest = replica.catalog().unwrap().snapshots().unwrap().pop().unwrap().0;
    let mut writer = replica.writer().unwrap();
    let accepted = Some(Mark { at: jiff::Timestamp::now(), reason: None });
    writer.set_marks(newest, &SnapshotMarks { accepted, pinned: None }).unwrap();
    writer.commit().unwrap();
    let policy = Policy { keep_last: 1, ..Policy::default() };
    let (options, progress) =
        (PruneOptions { grace: Duration::ZERO, ..PruneOptions::default() }, PruneProgress::default());
    let plan = plan(
        &replica,
        Selection::Rules(&Rules::from(&policy)),
        Protections::default(),
        &TimeZone::UTC,
        &options,
        &progress,
    )
    .unwrap();
    carry_out(&mut replica, &plan, &progress).unwrap();
    drop(replica);
    assert!(scene.check().is_clean());
    assert_eq!(scene.exact(), 1);
}

#[test]
fn damaged_commit_files_beside_an_intact_catalogue_cost_nothing() {
    let scene = Scene::new();
    for (at, file) in scene.files("commits").iter().enumerate() {
        for remove in [true, false] {
            let scene = scene.copy();
            let file = scene.store().join("commits").join(file.file_name().unwrap());
            match remove {
                true => fs::remove_file(file).unwrap(),
                false => rewrite(&file, |bytes| bytes[70] ^= 4),
            }
            assert!(!scene.check().rebuildable);
            let report = scene.repair(false).unwrap();
            assert!(matches!(report.catalog, CatalogOutcome::Kept { .. }), "{report:?}");
            assert!(report.is_whole());
            let checked = scene.check();
            assert!(checked.is_clean() && checked.rebuildable, "{at}: {:#?}", checked.damages);
            // From the checkpoint alone.
            fs::remove_file(scene.store().join("catalog.redb")).unwrap();
            assert!(matches!(scene.repair(false).unwrap().catalog, CatalogOutcome::Rebuilt { .. }));
            assert!(scene.check().is_clean());
            assert_eq!(scene.exact(), 3);
        }
    }
}

#[test]
fn a_catalogue_is_put_together_from_what_is_left() {
    let scene = Scene::new();
    let commits = scene.files("commits");
    for file in &commits {
        let mut scene = scene.copy();
        fs::remove_file(scene.store().join("commits").join(file.file_name().unwrap())).unwrap();
        fs::remove_file(scene.store().join("catalog.redb")).unwrap();
        let what = file.file_name().unwrap().display().to_string();
        let report = scene.repair(true).unwrap();
        if file == commits.last().unwrap() {
            // Nothing records the snapshot any more; its tree, and with that its pack, is in the commit before.
            assert!(matches!(report.catalog, CatalogOutcome::Rebuilt { .. }), "{report:?}");
            assert_eq!((report.snapshots, report.unnamed_packs, scene.exact()), (2, 0, 2));
            continue;
        }
        let CatalogOutcome::PutTogether { lost_files, .. } = &report.catalog else { panic!("{what}: {report:?}") };
        assert!(lost_files.iter().any(|lost| lost.contains(&what)), "{report:?}");
        // What is left is exact or an error; nothing else is damaged than what was said.
        let checked = scene.check();
        assert!(
            checked.damages.iter().all(|damage| damage.reason.contains("a repair found no pack")),
            "{what}: {:#?}",
            checked.damages
        );
        assert_eq!(checked.lost_chunks, report.lost_chunks);
        assert_eq!(checked.snapshots, report.snapshots);
        let exact = scene.exact();
        if report.lost_chunks == 0 {
            assert_eq!(exact as u64, report.snapshots);
        }
        // Life goes on: the next snapshot is whole.
        fs::create_dir_all(scene.source()).unwrap();
        fs::write(scene.source().join("new"), what.as_bytes()).unwrap();
        scene.snapshot();
        assert!(scene.exact() > exact);
    }
    // With the old catalogue at hand, damaged as it is, more is left.
    let scene = scene.copy();
    fs::remove_file(scene.store().join("commits").join(commits[0].file_name().unwrap())).unwrap();
    let catalog = scene.store().join("catalog.redb");
    rewrite(&catalog, |bytes| {
        let end = bytes.len();
        bytes[end / 3..end / 3 + 2000].fill(0xa5);
    });
    let report = scene.repair(true).unwrap();
    let checked = scene.check();
    assert_eq!(checked.snapshots, report.snapshots);
    assert!(
        checked.damages.iter().all(|damage| damage.reason.contains("a repair found no pack")),
        "{:#?}",
        checked.damages
    );
    scene.exact();
}

#[test]
fn nothing_left_is_an_error_and_changes_nothing() {
    let scene = Scene::new();
    for file in scene.files("commits") {
        fs::remove_file(file).unwrap();
    }
    let kept = scene.copy();
    assert!(matches!(kept.repair(false).unwrap().catalog, CatalogOutcome::Kept { .. }), "the catalogue was intact");
    assert!(kept.check().is_clean());
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    let packs = scene.files("packs");
    assert!(matches!(scene.repair(true), Err(RepairError::NothingLeft { .. })));
    assert_eq!(scene.files("packs"), packs);
    assert!(!scene.store().join("catalog.redb").exists());
}

/// A repair that dies anywhere leaves the same work for the next one.
#[test]
fn a_repair_may_die_at_every_operation_of_the_backend() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir(&source).unwrap();
    let base = Arc::new(MemoryBackend::new());
    let open = |path: &Path, backend: &Arc<MemoryBackend>| {
        locks::patiently(|| LockedReplica::open_over(path, Arc::clone(backend) as Arc<dyn Backend>))
    };
    let mut copies = Vec::new();
    for night in 0..2u64 {
        for number in 0..20 {
            fs::write(source.join(format!("{night}-{number}")), noise(night * 50 + number, 1500)).unwrap();
        }
        let (replica, progress) = (open(&store, &base), Arc::new(Progress::default()));
        let report = run(&replica, &source, &SnapshotOptions::default(), &progress).unwrap();
        copies.push((report.record.id, of_directory(&source)));
    }
    let (key, bytes) = base.list("packs/").unwrap().remove(0);
    let mut bad = base.read_at(&key, 0, bytes as usize).unwrap();
    bad[700] ^= 1;
    base.damage(&key, Some(bad));
    let mut crashes = 0;
    for die_after in 1.. {
        let (copy, backend) = (tempfile::tempdir().unwrap(), Arc::new(base.fork()));
        copy_directory(&store, copy.path());
        let repair = || {
            let backend = Arc::clone(&backend) as Arc<dyn Backend>;
            locks::wait_until_free(copy.path());
            repair_over(copy.path(), backend, RepairOptions { read_data: true }, &PruneProgress::default())
        };
        backend.die_after(die_after);
        let result = repair();
        if die_after % 2 == 0 {
            backend.crash();
        } else {
            backend.crash_keeping_some(die_after);
        }
        let report = repair().unwrap();
        assert_eq!(report.lost_chunks, 1, "died at {die_after}: {report:?}");
        let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
        let replica = open(copy.path(), &backend);
        let checked = check(&replica, &options, &CheckProgress::default()).unwrap();
        assert_eq!((checked.damage_count, checked.lost_chunks), (1, 1), "died at {die_after}: {:#?}", checked.damages);
        // And what was lost comes back.
        run(&replica, &source, &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
        let checked = check(&replica, &options, &CheckProgress::default()).unwrap();
        assert!(checked.is_clean(), "died at {die_after}: {:#?}", checked.damages);
        for (snapshot, (_, copy)) in Snapshots::read(&replica.catalog().unwrap()).unwrap().all().iter().zip(&copies) {
            assert_same(copy, &of_snapshot(&replica, snapshot).unwrap(), "after the repair");
        }
        if result.is_ok() {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 10, "only {crashes} operations");
}
