//! Stores are forever: what every format ever landed wrote is opened, checked, restored, mounted, carried on with, pruned and repaired by this
//! version, and compared with manifests that were made from the sources of that time.
//!
//! `tests/old_stores/make` made the archives, each with the program of its time. They are never made anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use zmreplica::snapshot::inode_cache::InodeCache;

use crate::support::locks;
use crate::support::mounted::{Scene, err, out, unmount};
use crate::support::odd::files;

/// Everything under `tests/old_stores`.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old_stores")
}

/// One store of an archive, unpacked into a scene of its own.
struct Old {
    scene: Scene,
    /// What each snapshot must hold, by its identifier.
    manifests: BTreeMap<String, String>,
}

impl Old {
    fn unpack(archive: &str, store: &str) -> Old {
        let scene = Scene::new();
        fs::remove_dir_all(scene.store()).unwrap();
        let unpacked = scene.path("unpacked");
        fs::create_dir(&unpacked).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&unpacked).arg("-xJf").arg(folder().join(format!("{archive}.tar.xz")));
        assert!(tar.status().unwrap().success());
        fs::rename(unpacked.join("stores").join(store), scene.store()).unwrap();
        let listing = fs::read_dir(unpacked.join("manifests").join(store)).unwrap();
        let manifests = listing.map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        });
        let manifests: BTreeMap<String, String> = manifests.collect();
        assert!(manifests.len() >= 3, "{manifests:?}");
        Old { scene, manifests }
    }

    fn listed(&self) -> Vec<Value> {
        let listed = self.scene.ok(&["--json", "snapshots"]);
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ids(&self) -> Vec<String> {
        ids(&self.listed())
    }

    /// Restores these snapshots, and checks that each holds what its source held.
    fn assert_restores(&self, ids: &[String]) {
        for id in ids {
            let restored = self.scene.path("restored");
            self.scene.ok(&["restore", "--numeric-ids", id, "restored"]);
            assert_same(&restored, &self.manifests[id], id);
            fs::remove_dir_all(&restored).unwrap();
        }
    }

    /// Checks that the store is whole, and that a restore of each of these snapshots, and mounts of two, hold what their sources held.
    fn assert_holds(&self, ids: &[String]) {
        self.scene.ok(&["check", "--read-data"]);
        self.assert_restores(ids);
        for id in ids.first().into_iter().chain(ids.last()) {
            let manifest = &self.manifests[id];
            self.scene.mount_with(&[id, "mnt"]);
            assert_same(&self.scene.mnt(), manifest, id);
            self.scene.umount();
        }
    }

    fn prune(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json", "prune"];
        all.extend(arguments);
        serde_json::from_str(self.scene.ok(&all).lines().last().unwrap()).unwrap()
    }
}

fn ids(listed: &[Value]) -> Vec<String> {
    listed.iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
}

fn assert_same(tree: &Path, manifest: &str, id: &str) {
    let output = Command::new(folder().join("manifest")).arg(tree).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let found = out(&output);
    for (found, expected) in found.lines().zip(manifest.lines()) {
        assert_eq!(found, expected, "snapshot {id}");
    }
    assert_eq!(found.lines().count(), manifest.lines().count(), "snapshot {id}");
}

/// Takes the first snapshot that this version takes. Programs that do not know what it writes refuse the store from then on, and that is said once.
fn first_night(old: &Old, settings: &[u8]) -> String {
    let before: Value = serde_json::from_slice(settings).unwrap();
    let first = old.scene.code(0, &["snapshot", "source"]);
    let said =
        "The store was of format 1 and is of format 2 now; versions of zmreplica that know only format 1 refuse it.";
    assert_eq!(err(&first).contains(said), before["format"] == 1, "{}", err(&first));
    let after: Value = serde_json::from_slice(&fs::read(old.scene.store().join("config.json")).unwrap()).unwrap();
    assert_eq!((&after["id"], &after["created"]), (&before["id"], &before["created"]));
    // What a program that knows format 1 only looks at; it refuses every other number.
    assert_eq!((&after["format"], after["features"].is_array()), (&Value::from(2), true), "{after}");
    let second = old.scene.code(0, &["accept", "source/latest"]);
    assert!(!err(&second).contains("format"), "{}", err(&second));
    old.ids().pop().unwrap()
}

/// Deletes the catalogue of a copy of the store, and checks that it follows from the commit files and checkpoints.
fn is_rebuilt(old: &Old) {
    let copy = old.scene.path("copy");
    assert!(Command::new("cp").arg("-a").args([&old.scene.store(), &copy]).status().unwrap().success());
    fs::remove_file(copy.join("catalog.redb")).unwrap();
    let ok = |arguments: &[&str]| {
        let output = old.scene.command_on(&copy).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", out(&output), err(&output));
        out(&output)
    };
    ok(&["repair"]);
    assert_eq!(ok(&["--json", "snapshots"]), old.scene.ok(&["--json", "snapshots"]));
    ok(&["check", "--read-data"]);
    fs::remove_dir_all(&copy).unwrap();
}

/// Takes another snapshot of each source that can be had again: it is what the last one was.
fn same_sources_again(old: &mut Old) {
    for name in ["odd", "backup"] {
        let source = format!("/proc/self/cwd/{name}");
        let listed = old.listed();
        let Some(last) = listed.iter().rfind(|snapshot| snapshot["source"] == source) else { continue };
        let (last, state) = (last["id"].as_str().unwrap().to_owned(), &last["state"]);
        old.scene.ok(&["restore", "--numeric-ids", &last, name]);
        // It is suspect if the last one was.
        old.scene.code(if state == "suspect" { 4 } else { 0 }, &["snapshot", &source]);
        let again = old.ids().pop().unwrap();
        assert_eq!(old.scene.ok(&["diff", &last, &again]), "");
        old.manifests.insert(again, old.manifests[&last].clone());
    }
}

/// What every store must stand: reading, a new night, a prune, a repair.
fn goes_on(old: &mut Old) {
    let before: Vec<String> = old.manifests.keys().cloned().collect();
    let settings = fs::read(old.scene.store().join("config.json")).unwrap();
    let listed = old.listed();
    let mut ids = ids(&listed);
    let odd = |snapshot: &&Value| snapshot["source"].as_str().unwrap().ends_with("/odd");
    let newest = listed.iter().rfind(odd).unwrap()["id"].as_str().unwrap().to_owned();
    ids.sort();
    assert_eq!(ids, before, "what is listed is what was taken");
    old.assert_holds(&before);
    is_rebuilt(old);

    // Another night, with files that the store has and some that it has not.
    old.scene.ok(&["restore", "--numeric-ids", &newest, "source"]);
    fs::write(old.scene.source().join("news"), "of this version").unwrap();
    old.scene.ok(&["snapshot", "--dry-run", "source"]);
    old.scene.ok(&["prune", "--dry-run", "--keep-last", "1"]);
    assert_eq!(
        fs::read(old.scene.store().join("config.json")).unwrap(),
        settings,
        "who reads leaves the store as it is"
    );
    let new = first_night(old, &settings);
    old.scene.ok(&["check", "--read-data"]);
    assert_eq!(old.scene.ok(&["cat", &format!("{new}:news")]), "of this version");
    same_sources_again(old);

    let all = old.ids().len();
    old.prune(&["--keep-last", "1", "--max-unused", "0"]);
    let left: Vec<String> = old.ids().into_iter().filter(|id| *id != new).collect();
    assert!(!left.is_empty() && left.len() + 1 < all, "{left:?}");
    old.assert_holds(&left);
    assert_eq!(old.scene.ok(&["cat", &format!("{new}:news")]), "of this version");

    old.scene.ok(&["repair", "--read-data"]);
    fs::remove_file(old.scene.store().join("catalog.redb")).unwrap();
    old.scene.ok(&["repair"]);
    assert_eq!(old.ids().into_iter().filter(|id| *id != new).collect::<Vec<_>>(), left);
    old.assert_holds(&left);
}

#[test]
fn nights_of_format_1() {
    let mut old = Old::unpack("format-1", "nights");
    let states: Vec<String> = old.listed().iter().map(|snapshot| snapshot.to_string()).collect();
    assert_eq!(states.iter().filter(|text| text.contains("\"the first of its kind\"")).count(), 1, "{states:?}");
    assert_eq!(states.iter().filter(|text| text.contains("\"known\"")).count(), 1, "{states:?}");
    goes_on(&mut old);
}

#[test]
fn a_hold_of_format_1() {
    held("format-1", "held");
}

fn held(archive: &str, store: &str) {
    let mut old = Old::unpack(archive, store);
    fs::write(old.scene.source().join("news"), "later").unwrap();
    old.scene.code(6, &["snapshot", "source"]);
    old.scene.code(6, &["prune", "--keep-last", "1"]);
    old.scene.ok(&["release"]);
    goes_on(&mut old);
}

#[test]
fn a_killed_run_of_format_1() {
    let mut old = Old::unpack("format-1", "killed");
    goes_on(&mut old);
}

#[test]
fn a_killed_prune_of_format_1() {
    let mut old = Old::unpack("format-1", "pruning");
    goes_on(&mut old);
}

/// Before there were mounts, marks, checkpoints or a guard.
#[test]
fn nights_of_the_first_version() {
    let mut old = Old::unpack("format-1-first", "nights");
    goes_on(&mut old);
}

#[test]
fn a_killed_run_of_the_first_version() {
    let mut old = Old::unpack("format-1-first", "killed");
    goes_on(&mut old);
}

#[test]
fn nights_of_format_2() {
    let mut old = Old::unpack("format-2", "nights");
    let listed = old.listed();
    let states: Vec<String> = listed.iter().map(|snapshot| snapshot.to_string()).collect();
    for once in ["\"the first of its kind\"", "\"known\"", "\"state\":\"suspect\""] {
        assert_eq!(states.iter().filter(|text| text.contains(once)).count(), 1, "{once}: {states:?}");
    }
    let found = old.scene.ok(&["find", "third name"]);
    let odd = listed.iter().filter(|snapshot| snapshot["source"] == "/proc/self/cwd/odd");
    assert_eq!(found.split('\t').next().unwrap().split(',').count(), odd.count(), "{found}");
    for number in 0..2 {
        let cache = fs::read(old.scene.store().join(format!("cache/inodes-{number}"))).unwrap();
        assert!(!InodeCache::decode(&cache).unwrap().0.is_empty());
    }
    goes_on(&mut old);
}

#[test]
fn killed_runs_and_a_hold_of_format_2() {
    held("format-2", "killed");
}

#[test]
fn a_killed_prune_of_format_2() {
    let mut old = Old::unpack("format-2", "pruning");
    goes_on(&mut old);
}

/// What an earlier version condemned is still read from, and goes when the grace is over.
#[test]
fn condemned_objects_of_format_2() {
    let mut old = Old::unpack("format-2", "condemned");
    let objects = |old: &Old, kind: &str| files(&old.scene.store().join(kind)).len();
    let before = ["packs", "commits", "checkpoints"].map(|kind| objects(&old, kind));
    old.prune(&["--keep-last", "100"]);
    // What the prune found out about them takes a commit file.
    assert_eq!(
        ["packs", "commits", "checkpoints"].map(|kind| objects(&old, kind)),
        [before[0], before[1] + 1, before[2]]
    );
    goes_on(&mut old);
    old.prune(&["--keep-last", "100", "--grace", "0s"]);
    for (kind, before) in ["packs", "commits", "checkpoints"].iter().zip(before) {
        assert!(objects(&old, kind) < before, "{kind}");
    }
    let left: Vec<String> = old.ids().into_iter().filter(|id| old.manifests.contains_key(id)).collect();
    old.assert_holds(&left);
}

/// A repair of an earlier version gave bytes up. Which ones is still known, and they come back.
#[test]
fn lost_bytes_of_format_2() {
    let old = Old::unpack("format-2", "lost");
    let all = old.ids();
    let checked = old.scene.code(7, &["check", "--read-data"]);
    assert!(out(&checked).contains("lost"), "{}", out(&checked));
    old.assert_restores(&all[..all.len() - 1]);
    let text: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    fs::write(old.scene.source().join("found again"), text).unwrap();
    old.scene.ok(&["snapshot", "source"]);
    old.assert_holds(&all);
}

/// A store of the first version, which one of format 2 carried on with and pruned: packs of both formats, some of them condemned.
#[test]
fn a_raised_store_of_format_2() {
    let mut old = Old::unpack("format-2", "raised");
    goes_on(&mut old);
}

/// Programs of format 1 must refuse the store before anything is in it that they do not know; so where that cannot be said, nothing is written.
#[test]
fn a_store_that_cannot_be_raised_is_not_written_to() {
    let old = Old::unpack("format-1", "nights");
    let store = old.scene.store();
    let file = store.join("config.json");
    let settings = fs::read(&file).unwrap();
    let objects = || {
        let all = files(&store).into_iter();
        let objects = ["packs", "commits", "checkpoints"].map(|name| store.join(name));
        all.filter(|file| objects.iter().any(|directory| file.starts_with(directory))).collect::<Vec<_>>()
    };
    let before = objects();
    fs::write(old.scene.source().join("news"), "of this version").unwrap();
    // What something is mounted on cannot be replaced.
    assert!(Command::new("mount").arg("--bind").args([&file, &file]).status().unwrap().success());
    let refused = old.scene.command().args(["snapshot", "source"]).output().unwrap();
    let read = old.scene.command().arg("snapshots").output().unwrap();
    unmount(&file);
    assert_eq!(refused.status.code(), Some(1), "{}", err(&refused));
    assert!(err(&refused).contains("Cannot write") && err(&refused).contains("config.json"), "{}", err(&refused));
    assert!(read.status.success(), "{}", err(&read));
    assert_eq!((fs::read(&file).unwrap(), objects()), (settings.clone(), before.clone()));

    // It is raised by opening it alone, before there is anything new.
    locks::locked(&store, |_| ());
    assert_ne!(fs::read(&file).unwrap(), settings);
    assert_eq!(objects(), before);
    old.scene.ok(&["check"]);
}

/// No commit of format 1 holds what config.json says. The identifier is found in what is left of the file, and the snapshots show the true one.
#[test]
fn damaged_settings_of_format_1() {
    let old = Old::unpack("format-1", "nights");
    let file = old.scene.store().join("config.json");
    let good = fs::read(&file).unwrap();
    let id = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["id"].as_str().unwrap().to_owned();
    let first = good.windows(32).position(|window| window == id(&good).as_bytes()).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![good[first..].to_vec(), good[..first + 32].to_vec()];
    // A flip in the identifier that leaves a digit, and one that does not, and one in front of it.
    for (at, bit) in [(first + 3, 0), (first + 31, 6), (first - 1, 2), (0, 1)] {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << bit;
        damaged.push(flipped);
    }
    for bytes in damaged {
        fs::write(&file, &bytes).unwrap();
        let report: Value = serde_json::from_str(&old.scene.ok(&["--json", "repair"])).unwrap();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(
            (&report["config"]["from"], &report["config"]["new_id"]),
            (&"objects".into(), &false.into()),
            "{shown}"
        );
        assert_eq!(report["raised_from"], 1);
        assert_eq!(id(&fs::read(&file).unwrap()), id(&good), "{shown}");
        old.scene.ok(&["check"]);
    }
}

/// Without the file the identifier is recorded nowhere: the store gets a new one, and its snapshots keep theirs.
#[test]
fn lost_settings_of_format_1() {
    let old = Old::unpack("format-1", "nights");
    let file = old.scene.store().join("config.json");
    let before: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    // Changes to a snapshot still belong to it afterwards.
    let newest = old.ids().pop().unwrap();
    let changed = old.scene.mnt().join("changed");
    old.scene.mount_with(&["--writable", "upper", &newest, "mnt"]);
    fs::write(&changed, "kept").unwrap();
    old.scene.umount();

    fs::remove_file(&file).unwrap();
    old.scene.code(7, &["snapshots"]);
    let report: Value = serde_json::from_str(&old.scene.ok(&["--json", "repair"])).unwrap();
    assert_eq!((&report["config"]["from"], &report["config"]["new_id"]), (&"objects".into(), &true.into()), "{report}");
    let after: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_ne!(after["id"], before["id"]);
    old.scene.mount_with(&["--writable", "upper", &newest, "mnt"]);
    assert_eq!(fs::read_to_string(&changed).unwrap(), "kept");
    old.scene.umount();
    let numbers = old.listed().len() as u64;
    assert!(after["id_since_snapshot"].as_u64().unwrap() >= numbers, "{after}");
    let ids: Vec<String> = old.manifests.keys().cloned().collect();
    old.assert_holds(&ids);
    let new = {
        fs::write(old.scene.source().join("news"), "of this version").unwrap();
        old.scene.snapshot()
    };
    old.assert_holds(&ids);
    // And it is in the catalogue now: lost once more, it comes back as it was.
    let settings = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    old.scene.ok(&["repair"]);
    assert_eq!(fs::read(&file).unwrap(), settings);
    old.scene.ok(&["check"]);
    assert!(old.ids().contains(&new));
}

#[test]
fn a_damaged_catalogue_and_a_damaged_pack_of_format_1() {
    let old = Old::unpack("format-1", "nights");
    let files = files(&old.scene.store().join("packs"));
    let largest = files.iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::remove_file(largest).unwrap();
    fs::write(largest, bytes).unwrap();
    fs::write(old.scene.store().join("catalog.redb"), "no catalogue").unwrap();
    // Bytes are lost, so repair says so and check finds what it affects; every other snapshot is whole.
    old.scene.code(7, &["repair", "--read-data"]);
    old.scene.code(7, &["check", "--read-data"]);
    let whole = old.ids().into_iter().filter(|id| {
        let restored = old.scene.path("restored");
        let ended = old.scene.command().args(["restore", "--numeric-ids", id, "restored"]).output().unwrap();
        let whole = ended.status.success();
        if whole {
            assert_same(&restored, &old.manifests[id], id);
        }
        fs::remove_dir_all(&restored).unwrap();
        whole
    });
    assert!(whole.count() >= 5, "the five snapshots of the other source");
}
