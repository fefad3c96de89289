//! Restoring, judged by real `rsync` and by the partition of names into link groups.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::support::locks;
use crate::support::odd::{acl, noise, odd_tree, partition, paths, root, set_mode, set_time, times};
use rustix::fs::{XattrFlags, setxattr};
use zmreplica::ids::GroupId;
use zmreplica::mount::SnapshotTree;
use zmreplica::replica::{Replica, init};
use zmreplica::restore::{Overwrite, RestoreError, RestoreOptions, RestoreProgress, RestoreReport, restore};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::view::{OwnerMap, SnapshotView, Snapshots, ViewOptions};

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("source")).unwrap();
        init(&directory.path().join("store")).unwrap();
        Scene { directory }
    }

    fn source(&self, path: &str) -> PathBuf {
        self.directory.path().join("source").join(path)
    }

    fn target(&self, path: &str) -> PathBuf {
        self.directory.path().join("target").join(path)
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.source(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn snapshot(&self) {
        let replica = locks::open(&self.store());
        run(&replica, &self.source(""), &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
    }

    fn view(&self) -> SnapshotView {
        let replica = Replica::open(&self.store()).unwrap();
        let catalog = Arc::new(replica.catalog().unwrap());
        let snapshots = Snapshots::read(&catalog).unwrap();
        let record = snapshots.newest().unwrap().record.clone();
        SnapshotView::open(catalog, Arc::new(replica.chunks()), record, ViewOptions::default()).unwrap()
    }

    fn restore(&self, options: &RestoreOptions) -> RestoreReport {
        self.restore_part("", "", options).unwrap()
    }

    fn restore_part(&self, part: &str, to: &str, options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
        let options = RestoreOptions { protect: vec![self.store()], threads: 3, ..options.clone() };
        let target = if to.is_empty() { self.directory.path().join("target") } else { self.target(to) };
        restore(&self.view(), part.as_bytes(), &target, &options, &RestoreProgress::default())
    }

    /// Asserts that rsync finds nothing to do, and that names are linked as at the source.
    fn assert_equal(&self) {
        let (source, target) = (self.source(""), self.target(""));
        let options = if root() { "-aHAXnic" } else { "-rlptHAXnic" };
        let output = Command::new("rsync")
            .args([options, "--numeric-ids", "--delete"])
            .args([&source, &target])
            .output()
            .expect("rsync is needed as the judge");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "rsync finds differences");
        assert_eq!(partition(&source), partition(&target));
        assert_eq!(times(&source), times(&target));
    }
}

#[test]
fn an_odd_tree_comes_back_whole() {
    let scene = Scene::new();
    odd_tree(&scene.source(""));
    scene.snapshot();
    let dry = scene.restore(&RestoreOptions { dry_run: true, ..Default::default() });
    assert!(!scene.target("").exists(), "a dry run wrote something");
    let report = scene.restore(&RestoreOptions { numeric_ids: true, ..Default::default() });
    assert_eq!(report.problems, []);
    assert!(report.owners_kept);
    scene.assert_equal();
    assert_eq!(
        (dry.files, dry.directories, dry.links, dry.others, dry.entries),
        (report.files, report.directories, report.links, report.others, report.entries)
    );
    assert!(fs::metadata(scene.target("sparse")).unwrap().blocks() * 512 < 1 << 20, "the hole was filled");
    // Once more finds nothing to do.
    let again = scene.restore(&RestoreOptions { numeric_ids: true, delete: true, ..Default::default() });
    assert_eq!(
        (again.files, again.directories, again.links, again.others, again.deleted, again.problem_count),
        (0, 0, 0, 0, 0, 0)
    );
    scene.assert_equal();
    // And so it does when everything is rewritten over what is there.
    let report =
        scene.restore(&RestoreOptions { numeric_ids: true, overwrite: Overwrite::Always, ..Default::default() });
    assert_eq!((report.problems, report.files > 300), (Vec::new(), true));
    scene.assert_equal();
}

#[test]
fn the_view_keeps_the_contract_of_a_mount() {
    let scene = Scene::new();
    odd_tree(&scene.source(""));
    scene.snapshot();
    let view = scene.view();
    let names = view.record().totals.names;
    assert_eq!(view.read(group_of(&view, b"large"), 0, usize::MAX).unwrap(), fs::read(scene.source("large")).unwrap());
    assert_eq!(view.walk(view.root(), Vec::new()).map(Result::unwrap).count() as u64, names + 1);
    for path in paths(&scene.source("")) {
        let inside = path.strip_prefix(scene.source("")).unwrap().as_os_str().as_bytes();
        let node = view.resolve(inside).unwrap();
        assert_eq!(
            u64::from(view.link_count(&node).unwrap()),
            fs::symlink_metadata(&path).unwrap().nlink(),
            "{path:?}"
        );
    }
    assert_eq!(zmreplica_fuse::check_contract(&SnapshotTree::new(view, OwnerMap::by_number())).unwrap(), names);
}

fn group_of(view: &SnapshotView, path: &[u8]) -> GroupId {
    match view.resolve(path).unwrap() {
        zmreplica::view::Node::Group(group) => group,
        zmreplica::view::Node::Directory(_) => panic!("a directory"),
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that cannot run here says so")]
fn holes_of_a_terabyte_cost_nothing() {
    let scene = Scene::new();
    let file = fs::File::create(scene.source("huge")).unwrap();
    file.write_all_at(b"front", 0).unwrap();
    if file.set_len(1 << 40).is_err() || file.write_all_at(b"back", (1 << 40) - 4).is_err() {
        eprintln!("SKIPPED: the file system of the tests takes no file of a terabyte");
        return;
    }
    scene.snapshot();
    assert_eq!(scene.restore(&RestoreOptions::default()).problems, []);
    let restored = fs::File::open(scene.target("huge")).unwrap();
    let metadata = restored.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 < 1 << 20);
    let mut back = [0; 8];
    restored.read_exact_at(&mut back, (1 << 40) - 8).unwrap();
    assert_eq!(&back, b"\0\0\0\0back");
    let view = scene.view();
    assert_eq!(view.read(group_of(&view, b"huge"), (1 << 40) - 8, 100).unwrap(), back);
}

/// A target where some names are as in the snapshot, some differ, and the links are wrong.
fn wrong_target(scene: &Scene) {
    for (path, text) in [("a", "one"), ("b", "two"), ("c", "three"), ("d/e", "four"), ("d/f", "five"), ("g", "one")] {
        scene.write(path, text);
        set_time(&scene.source(path), 1_000_000, 5);
    }
    fs::hard_link(scene.source("a"), scene.source("a2")).unwrap();
    fs::hard_link(scene.source("a"), scene.source("d/a3")).unwrap();
    scene.snapshot();
    scene.restore(&RestoreOptions::default());
    // `a` and `g` are equal in kind, size and time, and become one inode; `a2` becomes its own.
    fs::remove_file(scene.target("g")).unwrap();
    fs::hard_link(scene.target("a"), scene.target("g")).unwrap();
    fs::remove_file(scene.target("a2")).unwrap();
    fs::write(scene.target("a2"), "one").unwrap();
    set_time(&scene.target("a2"), 1_000_000, 5);
    // Another content with another time; another mode only; a stray; a name of a snapshot file that links to the stray.
    fs::write(scene.target("b"), "TWO").unwrap();
    set_mode(&scene.target("c"), 0o777);
    fs::create_dir_all(scene.target("stray/inner")).unwrap();
    fs::write(scene.target("stray/inner/file"), "stray").unwrap();
    fs::remove_file(scene.target("d/e")).unwrap();
    fs::hard_link(scene.target("stray/inner/file"), scene.target("d/e")).unwrap();
}

#[test]
fn changed_replaces_what_differs_and_mends_links() {
    let scene = Scene::new();
    wrong_target(&scene);
    let kept = fs::metadata(scene.target("d/f")).unwrap().ino();
    let report = scene.restore(&RestoreOptions::default());
    assert_eq!(report.problems, []);
    assert_eq!(fs::metadata(scene.target("d/f")).unwrap().ino(), kept);
    assert_eq!(fs::read(scene.target("stray/inner/file")).unwrap(), b"stray");
    assert_eq!(report.deleted, 0);
    let dry = scene.restore(&RestoreOptions { delete: true, dry_run: true, ..Default::default() });
    assert_eq!(dry.deletions, ["stray/inner/file", "stray/inner", "stray"]);
    assert!(scene.target("stray").exists());
    let report = scene.restore(&RestoreOptions { delete: true, ..Default::default() });
    assert_eq!((report.deletions, report.problems), (dry.deletions, Vec::new()));
    scene.assert_equal();
}

#[test]
fn always_replaces_everything() {
    let scene = Scene::new();
    wrong_target(&scene);
    let before = fs::metadata(scene.target("d/f")).unwrap().ino();
    let options = RestoreOptions { overwrite: Overwrite::Always, delete: true, ..Default::default() };
    let report = scene.restore(&options);
    assert_eq!((report.problems, report.unchanged), (Vec::new(), 1), "only the directory `d` stays");
    assert_ne!(fs::metadata(scene.target("d/f")).unwrap().ino(), before);
    scene.assert_equal();
}

#[test]
fn never_leaves_what_is_there() {
    let scene = Scene::new();
    wrong_target(&scene);
    fs::remove_file(scene.target("d/f")).unwrap();
    let (before, kept) = (fs::metadata(scene.target("b")).unwrap(), fs::metadata(scene.target("d")).unwrap());
    set_mode(&scene.target("d"), 0o711);
    let report = scene.restore(&RestoreOptions { overwrite: Overwrite::Never, ..Default::default() });
    assert_eq!((report.problems, report.files), (Vec::new(), 1));
    let after = fs::metadata(scene.target("b")).unwrap();
    assert_eq!((after.ino(), after.ctime_nsec()), (before.ino(), before.ctime_nsec()));
    assert_eq!(fs::read(scene.target("b")).unwrap(), b"TWO");
    assert_eq!(fs::read(scene.target("d/f")).unwrap(), b"five");
    assert_eq!(fs::metadata(scene.target("d")).unwrap().mode() & 0o7777, 0o711, "{kept:?}");
    assert_eq!(fs::metadata(scene.target("c")).unwrap().mode() & 0o777, 0o777);
}

#[test]
fn links_of_the_target_lead_nowhere_outside() {
    let scene = Scene::new();
    for path in ["d/file", "e/f/file", "plain"] {
        scene.write(path, "from the snapshot");
    }
    scene.snapshot();
    let outside = scene.directory.path().join("outside");
    fs::create_dir_all(outside.join("f")).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    set_time(&outside, 5, 5);
    for overwrite in [Overwrite::Never, Overwrite::Changed, Overwrite::Always] {
        let _ = fs::remove_dir_all(scene.target(""));
        fs::create_dir_all(scene.target("stray")).unwrap();
        symlink(&outside, scene.target("d")).unwrap();
        symlink(&outside, scene.target("e")).unwrap();
        symlink(outside.join("victim"), scene.target("plain")).unwrap();
        symlink(&outside, scene.target("stray/link")).unwrap();
        let report = scene.restore(&RestoreOptions { overwrite, delete: true, ..Default::default() });
        if overwrite == Overwrite::Never {
            let paths: Vec<&str> = report.problems.iter().map(|problem| problem.path.as_str()).collect();
            assert_eq!(paths, ["d", "e"]);
        } else {
            assert_eq!(report.problems, []);
            scene.assert_equal();
        }
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
        assert_eq!(paths(&outside).len(), 2, "{overwrite:?}");
        let metadata = fs::metadata(&outside).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (5, 5));
    }
}

#[test]
fn a_directory_gives_way_to_a_file_only_on_request() {
    let scene = Scene::new();
    scene.write("name", "file");
    scene.write("other/inner", "file");
    scene.snapshot();
    fs::create_dir_all(scene.target("name/full")).unwrap();
    fs::write(scene.target("other"), "a file where a directory belongs").unwrap();
    let report = scene.restore(&RestoreOptions::default());
    assert_eq!(report.problems.len(), 1);
    assert!(scene.target("name/full").exists() && scene.target("other/inner").exists());
    let report = scene.restore(&RestoreOptions { delete: true, ..Default::default() });
    assert_eq!((report.problems, report.deleted), (Vec::new(), 2));
    scene.assert_equal();
}

#[test]
fn parts_and_single_files() {
    let scene = Scene::new();
    scene.write("d/e/file", "text");
    fs::hard_link(scene.source("d/e/file"), scene.source("outside")).unwrap();
    scene.snapshot();
    fs::create_dir(scene.target("")).unwrap();
    let options = RestoreOptions::default();
    assert_eq!(scene.restore_part("/d/", "new/path", &options).unwrap().files, 1);
    assert_eq!(fs::read(scene.target("new/path/e/file")).unwrap(), b"text");
    assert_eq!(fs::metadata(scene.target("new/path/e/file")).unwrap().nlink(), 1);
    scene.restore_part("d/e/file", "named", &options).unwrap();
    assert_eq!(fs::read(scene.target("named")).unwrap(), b"text");
    fs::create_dir(scene.target("into")).unwrap();
    scene.restore_part("d/e/file", "into", &options).unwrap();
    assert_eq!(fs::read(scene.target("into/file")).unwrap(), b"text");
    assert!(scene.restore_part("d/none", "x", &options).unwrap_err().to_string().contains("d/none is not in"));
    assert!(scene.restore_part("outside/x", "x", &options).unwrap_err().to_string().contains("not a directory"));
    assert!(scene.restore_part("d/../d", "x", &options).is_err());
}

#[test]
fn the_store_is_never_touched() {
    let scene = Scene::new();
    scene.write("store/config.json", "hostile");
    scene.write("file", "text");
    scene.snapshot();
    let options = RestoreOptions { protect: vec![scene.store()], delete: true, ..Default::default() };
    let into = |path: &Path| restore(&scene.view(), b"", path, &options, &RestoreProgress::default());
    for path in [scene.store(), scene.store().join("packs"), scene.store().join("new/er")] {
        assert!(matches!(into(&path), Err(RestoreError::InStore { .. })), "{path:?}");
    }
    let alias = scene.directory.path().join("alias");
    symlink(scene.store(), &alias).unwrap();
    assert!(matches!(into(&alias.join("x")), Err(RestoreError::InStore { .. })));
    assert!(!scene.store().join("new").exists());
    // A store that a name of the snapshot meets, and one that is a stray.
    let before = fs::read(scene.store().join("config.json")).unwrap();
    let report = into(scene.directory.path()).unwrap();
    assert_eq!(report.problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), ["store"]);
    assert_eq!(fs::read(scene.store().join("config.json")).unwrap(), before);
}

#[test]
fn damage_creates_nothing_and_is_named() {
    let scene = Scene::new();
    fs::write(scene.source("large"), noise(3_000_000, 5)).unwrap();
    fs::hard_link(scene.source("large"), scene.source("large2")).unwrap();
    scene.snapshot();
    let good = paths(&scene.store().join("packs"));
    scene.write("small", "still readable");
    scene.snapshot();
    for pack in good.iter().filter(|path| path.is_file()) {
        let file = fs::OpenOptions::new().read(true).write(true).open(pack).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    }
    let report = scene.restore(&RestoreOptions::default());
    let names: Vec<(&str, bool)> =
        report.problems.iter().map(|problem| (problem.path.as_str(), problem.damage)).collect();
    assert_eq!(names, [("large", true), ("large2", false)]);
    assert_eq!((report.damaged, report.files), (1, 1));
    assert_eq!(paths(&scene.target("")), [scene.target("small")]);
    let view = scene.view();
    let error = view.read(group_of(&view, b"large"), 0, 4_000_000).unwrap_err();
    assert!(error.is_damage(), "{error}");
}

#[test]
fn an_interrupt_leaves_only_whole_files() {
    let scene = Scene::new();
    for number in 0..50 {
        scene.write(&format!("{number}"), "text");
    }
    scene.snapshot();
    let progress = RestoreProgress::default();
    progress.interrupt.store(true, Ordering::Relaxed);
    let target = scene.target("");
    let error = restore(&scene.view(), b"", &target, &RestoreOptions::default(), &progress).unwrap_err();
    assert!(matches!(error, RestoreError::Interrupted));
    for path in paths(&target) {
        assert_eq!(fs::read(path).unwrap(), b"text");
    }
}

#[test]
fn every_name_that_is_removed_is_a_step_of_the_work() {
    let scene = Scene::new();
    scene.write("file", "text");
    scene.snapshot();
    fs::create_dir_all(scene.target("strays/deep")).unwrap();
    (0..50).for_each(|number| fs::write(scene.target(&format!("strays/deep/{number}")), "stray").unwrap());
    let (progress, options) = (RestoreProgress::default(), RestoreOptions { delete: true, ..Default::default() });
    let report = restore(&scene.view(), b"", &scene.target(""), &options, &progress).unwrap();
    assert_eq!(report.deleted, 52);
    assert!(progress.steps.load(Ordering::Relaxed) >= 52, "{progress:?}");
    assert!(progress.syncing.load(Ordering::Relaxed));
}

#[test]
fn an_inherited_acl_does_not_stay() {
    let scene = Scene::new();
    scene.write("file", "text");
    scene.write("d/file", "text");
    symlink("file", scene.source("link")).unwrap();
    scene.snapshot();
    fs::create_dir(scene.target("")).unwrap();
    setxattr(scene.target(""), "system.posix_acl_default", &acl(), XattrFlags::empty()).unwrap();
    let report = scene.restore(&RestoreOptions::default());
    assert_eq!(report.problems, []);
    scene.assert_equal();
}
