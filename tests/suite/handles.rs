//! Handles of files in a mount, as a server of NFS keeps them while mounts come and go: each leads to what it was made for, or nowhere.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::mounted::{Scene, run, shell};

fn python(scene: &Scene, what: &str) -> Vec<u64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/support/handles.py");
    let said = run(Command::new("python3").arg(script).arg(what).arg(scene.mnt()).arg(scene.path("handles")));
    said.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn save(scene: &Scene) -> u64 {
    python(scene, "save")[0]
}

/// Returns how many handles lead to the same, to nothing, to something else.
fn test(scene: &Scene) -> [u64; 3] {
    python(scene, "test").try_into().unwrap()
}

/// Lets the kernel forget what it can.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn tree(scene: &Scene) {
    for number in 0..40 {
        let directory = scene.source().join(format!("{number}/inner/most"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), number.to_string()).unwrap();
        fs::hard_link(directory.join("file"), scene.source().join(format!("{number}/link"))).unwrap();
    }
}

#[test]
fn handles_last_as_long_as_the_snapshot_and_lead_to_nothing_of_another() {
    let scene = Scene::new();
    tree(&scene);
    let first = scene.snapshot();
    scene.mount_with(&[&first, "mnt"]);
    let all = save(&scene);
    assert_eq!(all, 40 * 5);
    forget();
    assert_eq!(test(&scene), [all, 0, 0], "forgotten by the kernel");
    scene.umount();
    // Nobody has looked into it when the handles come.
    scene.mount_with(&[&first, "mnt"]);
    assert_eq!(test(&scene), [all, 0, 0], "the same snapshot, mounted again");
    scene.umount();
    // Directories before and between the others, and fewer of them.
    shell(r#"cd "$1"; mkdir -p 0a/x/y 1a/b; echo n > 0a/n; rm -r 3 17"#, &[&scene.source()]);
    let second = scene.snapshot();
    scene.mount_with(&[&second, "mnt"]);
    assert_eq!(test(&scene), [0, all, 0], "another snapshot in its place");
    shell(r#"find "$1" > "$2""#, &[&scene.mnt(), &scene.path("listed")]);
    assert_eq!(test(&scene), [0, all, 0], "another snapshot in its place, all of it seen");
    scene.umount();
    scene.mount_with(&[&first, "mnt"]);
    shell(r#"find "$1" > "$2""#, &[&scene.mnt().join("7"), &scene.path("listed")]);
    assert_eq!(test(&scene), [all, 0, 0], "the first one again");
    scene.umount();
}

#[test]
fn handles_of_all_snapshots_lead_to_their_own() {
    let scene = Scene::new();
    tree(&scene);
    for number in 0..3 {
        shell(r#"cd "$1"; rm -rf "$2"; mkdir -p "0$2/x""#, &[&scene.source(), Path::new(&number.to_string())]);
        scene.snapshot();
    }
    scene.mount_with(&["mnt"]);
    let all = save(&scene);
    forget();
    assert_eq!(test(&scene), [all, 0, 0], "forgotten by the kernel");
    scene.umount();
    // The first one goes, and all others move up.
    scene.ok(&["prune", "--keep-last", "2"]);
    scene.mount_with(&["mnt"]);
    for seen in [false, true] {
        let [_, _, other] = test(&scene);
        assert_eq!(other, 0, "mounted again, seen: {seen}");
        shell(r#"find "$1" > "$2""#, &[&scene.mnt(), &scene.path("listed")]);
    }
    scene.umount();
}
