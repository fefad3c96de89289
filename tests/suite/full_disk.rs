//! A store on a disk that runs full: clear errors, a sound store, and the same command goes on when there is space again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, run, unmount};

const KIB: u64 = 1024;
/// Enough for everything.
const PLENTY_KIB: u64 = 128 << 10;

/// A scene whose store is on a disk of its own.
struct Bench {
    scene: Scene,
}

impl Bench {
    fn new() -> Bench {
        let scene = Scene::new();
        fs::create_dir(scene.path("disk")).unwrap();
        Bench { scene }
    }

    fn disk(&self) -> PathBuf {
        self.scene.path("disk")
    }

    fn store(&self) -> PathBuf {
        self.disk().join("store")
    }

    fn mount(&self, kib: u64) {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(self.disk()));
    }

    fn resize(&self, kib: u64) {
        run(Command::new("mount").args(["-o", &format!("remount,size={kib}k")]).arg(self.disk()));
    }

    fn umount(&self) {
        unmount(&self.disk());
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.scene.command_on(&self.store()).args(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}{}", out(&output), err(&output));
    }

    /// Runs a command that has to end well or to say that the disk is full; returns whether it was.
    fn runs_full(&self, arguments: &[&str]) -> bool {
        let output = self.run(arguments);
        let said = err(&output);
        match output.status.code() {
            Some(0) => false,
            Some(1) if said.contains("No space left") && said.to_lowercase().contains("free some space") => true,
            code => panic!("{arguments:?}: {code:?} {}{said}", out(&output)),
        }
    }

    /// Takes the newest snapshot out again, and lets rsync compare it.
    fn assert_newest_is(&self, tree: &Path) {
        // In memory, because a restore waits for the disk with every file.
        let restored = self.scene.path("restored");
        fs::create_dir(&restored).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&restored));
        self.ok(&["restore", "latest", "restored"]);
        assert_rsync_finds_nothing(tree, &restored);
        unmount(&restored);
        fs::remove_dir(restored).unwrap();
    }
}

/// Bytes that do not compress.
fn noise(path: &Path, seed: u64, length: u64) {
    let mut bytes = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    std::io::copy(&mut std::io::Read::take(&mut bytes, length), &mut File::create(path).unwrap()).unwrap();
}

/// A night's files, in a directory of their own: few large ones and many small ones.
fn night(tree: &Path, number: u64) {
    let directory = tree.join(format!("night-{number}"));
    fs::create_dir(&directory).unwrap();
    for file in 0..12 {
        noise(&directory.join(format!("large-{file}")), 1000 * number + file, 200 * KIB);
    }
    for file in 0..600 {
        noise(&directory.join(format!("small-{file}")), 1_000_000 * (number + 1) + file, 700);
    }
}

#[test]
fn snapshots_go_on_when_there_is_space_again() {
    let bench = Bench::new();
    night(&bench.scene.source(), 0);
    let source = bench.scene.source();
    let mut full = 0;
    for kib in [1700, 2000, 2400, 2800, 3200, 3700, 4300, 5000, 8000] {
        bench.mount(kib);
        bench.ok(&["init"]);
        if bench.runs_full(&["snapshot", "source"]) {
            full += 1;
            bench.ok(&["check", "--read-data"]);
            // Once more on the full disk: no worse.
            bench.runs_full(&["snapshot", "source"]);
            bench.resize(PLENTY_KIB);
            bench.ok(&["snapshot", "source"]);
        }
        bench.ok(&["check", "--read-data"]);
        bench.assert_newest_is(&source);
        bench.umount();
    }
    assert!((3..9).contains(&full), "{full} sizes were too small");
}

#[test]
fn a_night_for_which_there_is_no_space_costs_no_other() {
    let bench = Bench::new();
    let source = bench.scene.source();
    night(&source, 0);
    bench.mount(PLENTY_KIB);
    bench.ok(&["init"]);
    bench.ok(&["snapshot", "source"]);
    let before = bench.scene.path("before");
    run(Command::new("cp").arg("-a").args([&source, &before]));
    night(&source, 1);
    let used: u64 =
        run(Command::new("du").arg("-sk").arg(bench.disk())).split_whitespace().next().unwrap().parse().unwrap();
    for more in [60, 300, 1000, 2000] {
        bench.resize(used + more);
        assert!(bench.runs_full(&["snapshot", "source"]), "{more}");
        bench.ok(&["check", "--read-data"]);
        bench.assert_newest_is(&before);
    }
    bench.resize(PLENTY_KIB);
    bench.ok(&["snapshot", "source"]);
    bench.ok(&["check", "--read-data"]);
    bench.assert_newest_is(&source);
    bench.umount();
}

#[test]
fn prunes_on_a_full_disk_keep_what_stays() {
    let bench = Bench::new();
    let source = bench.scene.source();
    bench.mount(PLENTY_KIB);
    bench.ok(&["init"]);
    for number in 0..4 {
        night(&source, number);
        if number > 0 {
            // Half of the night before goes, so that packs are repacked.
            for file in (0..12).step_by(2) {
                fs::remove_file(source.join(format!("night-{}/large-{file}", number - 1))).unwrap();
            }
        }
        bench.ok(&["snapshot", "source"]);
    }
    let stores = bench.scene.path("stores");
    run(Command::new("cp").arg("-a").args([&bench.store(), &stores]));
    let mut full = 0;
    for free in [0, 8, 40, 120, 400, 1000, 2500, 20_000] {
        bench.umount();
        bench.mount(PLENTY_KIB);
        run(Command::new("cp").arg("-a").args([&stores, &bench.store()]));
        let used: u64 =
            run(Command::new("du").arg("-sk").arg(bench.disk())).split_whitespace().next().unwrap().parse().unwrap();
        bench.resize(used + free);
        let prune = ["prune", "--keep-last", "1", "--max-unused", "0", "--grace", "0s"];
        if bench.runs_full(&prune) {
            full += 1;
            bench.ok(&["check", "--read-data"]);
            bench.assert_newest_is(&source);
            // A mount and readers beside it, none of which can repair the catalogue where it is.
            bench.ok(&["mount", "latest", "mnt"]);
            assert_rsync_finds_nothing(&source, &bench.scene.mnt());
            bench.ok(&["check"]);
            bench.ok(&["umount", "mnt"]);
            // Nothing is damaged, so a repair has nothing to say but that it has no space.
            bench.runs_full(&["repair"]);
            bench.assert_newest_is(&source);
            // Nor does it matter whether it can be written at all.
            run(Command::new("mount").args(["-o", "remount,ro"]).arg(bench.disk()));
            bench.ok(&["check", "--read-data"]);
            bench.assert_newest_is(&source);
            run(Command::new("mount").args(["-o", "remount,rw"]).arg(bench.disk()));
            bench.resize(PLENTY_KIB);
            bench.ok(&prune);
        }
        bench.ok(&["check", "--read-data"]);
        bench.assert_newest_is(&source);
    }
    assert!((1..8).contains(&full), "{full} were too full");
    bench.umount();
}
