//! Pruning beside live mounts: what is mounted stays and is read as before, wherever its chunks go.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, eventually, run};
use crate::support::odd::files;
use crate::support::pruning::noise;
use serde_json::Value;

/// Writes a night's files and removes most of the night's before the last one.
fn night(source: &Path, night: u64) {
    let directory = source.join(format!("night-{night}"));
    fs::create_dir_all(&directory).unwrap();
    for number in 0..40 {
        fs::write(directory.join(number.to_string()), noise(night * 100 + number, 20_000)).unwrap();
        fs::hard_link(directory.join(number.to_string()), directory.join(format!("{number}-again"))).unwrap();
        if night > 1 && number % 5 > 0 {
            let old = source.join(format!("night-{}", night - 2));
            fs::remove_file(old.join(number.to_string())).unwrap();
            fs::remove_file(old.join(format!("{number}-again"))).unwrap();
        }
    }
}

fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let below = |path: PathBuf| (path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
    files(root).into_iter().map(below).collect()
}

fn prune(scene: &Scene, keep: &str) -> Vec<Value> {
    let said = scene.ok(&["--json", "prune", "--keep-last", keep, "--max-unused", "0", "--grace", "0s"]);
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// docs/semantics.md: "Nothing that a mount shows is removed while it is mounted."
#[test]
fn readers_of_a_mount_see_no_prune() {
    let scene = Scene::new();
    night(&scene.source(), 0);
    night(&scene.source(), 1);
    let first = scene.snapshot();
    let copy = scene.path("copy");
    run(std::process::Command::new("cp").arg("-a").arg(scene.source()).arg(&copy));
    let expected = contents(&copy);
    // A small cache, so that reads reach the packs.
    scene.mount_with(&["--cache", "1M", "latest", "mnt"]);
    fs::create_dir(scene.path("all")).unwrap();
    scene.mount_with(&["--cache", "1M", "all"]);
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let (mut rewritten, mut removed) = (0, 0);
    std::thread::scope(|scope| {
        for reader in 0..6usize {
            let (scene, expected, stop, reads) = (&scene, &expected, &stop, &reads);
            scope.spawn(move || {
                let files: Vec<_> = expected.iter().collect();
                let mut state = reader * 7919;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (path, bytes) = files[(state >> 33) % files.len()];
                    let found = fs::read(scene.mnt().join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                    assert!(found == **bytes, "wrong bytes in {path:?}");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 2..6 {
            night(&scene.source(), number);
            scene.snapshot();
            // What the kernel keeps must not hide the store.
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let said = prune(&scene, "1");
            let mounted = said.iter().find(|event| event["id"] == first.as_str()).unwrap();
            assert_eq!(mounted["keep"], true);
            assert!(mounted["reasons"].to_string().contains("in use at"), "{mounted}");
            let summary = said.last().unwrap();
            rewritten += summary["written_packs"].as_u64().unwrap();
            removed += summary["removed_snapshots"].as_u64().unwrap();
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let before = reads.load(Ordering::Relaxed);
            eventually("readers go on", || reads.load(Ordering::Relaxed) > before + 50);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(rewritten > 0 && removed >= 3, "{rewritten} packs written anew, {removed} snapshots removed");
    assert_eq!(scene.log(), "", "a server complained");
    assert_rsync_finds_nothing(&copy, &scene.mnt());
    // In the directory of all snapshots those that went are gone, and the others are whole.
    eventually("what went is not shown", || fs::read_dir(scene.path("all")).unwrap().count() == 3);
    assert_rsync_finds_nothing(&scene.source(), &scene.path("all/latest"));
    scene.ok(&["umount", "all"]);
    scene.umount();
    prune(&scene, "1");
    assert_eq!(scene.ok(&["--json", "snapshots"]).lines().count(), 1, "nothing holds it any more");
    scene.ok(&["check", "--read-data"]);
}

/// docs/semantics.md: "A restore that runs beside a prune restores the same."
#[test]
fn restores_beside_prunes_are_exact() {
    let scene = Scene::new();
    for number in 0..4 {
        night(&scene.source(), number);
        scene.snapshot();
    }
    let mut rewritten = 0;
    for number in 4..9 {
        night(&scene.source(), number);
        let newest = scene.snapshot();
        let destination = scene.path(&format!("restored-{number}"));
        let mut restoring = scene.command();
        restoring.args(["restore", &newest]).arg(&destination).stdout(std::process::Stdio::null());
        let mut restoring = restoring.spawn().unwrap();
        let summary = prune(&scene, "2").pop().unwrap();
        rewritten += summary["written_packs"].as_u64().unwrap();
        assert!(restoring.wait().unwrap().success());
        assert_rsync_finds_nothing(&scene.source(), &destination);
        fs::remove_dir_all(&destination).unwrap();
    }
    assert!(rewritten > 0, "no pack was written anew");
}
