//! The reference model: random trees with hard links, random edits, a snapshot after each batch. A naive copy taken with `std::fs` is the oracle, and
//! what is compared is the *partition* of names into inodes, beside names, kinds, contents and attributes.

#[path = "support/oracle.rs"]
#[allow(dead_code)]
mod oracle;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use zmreplica::check::{CheckOptions, CheckProgress, check};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::restore::{Overwrite, RestoreOptions, RestoreProgress, restore};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::view::Snapshots;

use oracle::{Tree, assert_same, of_directory, of_snapshot, view};

/// What a file is filled with. Few seeds, so that equal contents are frequent.
#[derive(Clone, Debug)]
enum Fill {
    Empty,
    Random { seed: u8, length: usize },
    Text { seed: u8, lines: usize },
    Sparse { seed: u8, hole: u64 },
}

/// One edit. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Edit {
    Create { directory: usize, name: usize, fill: Fill },
    Append { file: usize, fill: Fill },
    Overwrite { file: usize, offset: u32, fill: Fill },
    Truncate { file: usize, length: u32 },
    ReplaceByRename { file: usize, fill: Fill },
    Link { file: usize, directory: usize, name: usize },
    Rename { any: usize, directory: usize, name: usize },
    Unlink { file: usize },
    RemoveTree { directory: usize },
    Mkdir { directory: usize, name: usize },
    Symlink { directory: usize, name: usize, target: usize },
    Fifo { directory: usize, name: usize },
    Chmod { any: usize, mode: u16 },
    SetMtime { any: usize, back: u32 },
    ManyNames { directory: usize, count: usize },
}

const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c d",
    "\u{fc}ml\u{e4}ut".as_bytes(),
    b"\xff\xfe",
    b"new\nline",
    b"-dash",
    b"x.zip",
    b"m-1.msg",
    b"m-2.msg",
    b"accounts.xml",
    b"lost+found",
    b"...",
    b"\x01",
    b"*?[",
    b"sessions",
];

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        1 => Just(Fill::Empty),
        4 => (0..4u8, 1..300usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        2 => (0..4u8, 1..200_000usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        1 => (0..4u8, 1_000_000..2_500_000usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        2 => (0..4u8, 1..2000usize).prop_map(|(seed, lines)| Fill::Text { seed, lines }),
        1 => (0..4u8, 1..3_000_000u64).prop_map(|(seed, hole)| Fill::Sparse { seed, hole }),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let n = || 0..1000usize;
    prop_oneof![
        6 => (n(), n(), fill()).prop_map(|(directory, name, fill)| Edit::Create { directory, name, fill }),
        2 => (n(), fill()).prop_map(|(file, fill)| Edit::Append { file, fill }),
        2 => (n(), 0..300_000u32, fill()).prop_map(|(file, offset, fill)| Edit::Overwrite { file, offset, fill }),
        1 => (n(), 0..300_000u32).prop_map(|(file, length)| Edit::Truncate { file, length }),
        2 => (n(), fill()).prop_map(|(file, fill)| Edit::ReplaceByRename { file, fill }),
        5 => (n(), n(), n()).prop_map(|(file, directory, name)| Edit::Link { file, directory, name }),
        3 => (n(), n(), n()).prop_map(|(any, directory, name)| Edit::Rename { any, directory, name }),
        2 => n().prop_map(|file| Edit::Unlink { file }),
        1 => n().prop_map(|directory| Edit::RemoveTree { directory }),
        3 => (n(), n()).prop_map(|(directory, name)| Edit::Mkdir { directory, name }),
        1 => (n(), n(), n()).prop_map(|(directory, name, target)| Edit::Symlink { directory, name, target }),
        1 => (n(), n()).prop_map(|(directory, name)| Edit::Fifo { directory, name }),
        2 => (n(), 0..0o10000u16).prop_map(|(any, mode)| Edit::Chmod { any, mode }),
        2 => (n(), 1..2_000_000_000u32).prop_map(|(any, back)| Edit::SetMtime { any, back }),
        1 => (n(), 30..400usize).prop_map(|(directory, count)| Edit::ManyNames { directory, count }),
    ]
}

/// The source and what lives in it.
struct Source {
    root: PathBuf,
    clock: u32,
}

impl Source {
    fn paths(&self, wanted: impl Fn(&fs::Metadata) -> bool) -> Vec<PathBuf> {
        fn visit(at: &Path, wanted: &dyn Fn(&fs::Metadata) -> bool, out: &mut Vec<PathBuf>) {
            let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for path in entries {
                let metadata = fs::symlink_metadata(&path).unwrap();
                if wanted(&metadata) {
                    out.push(path.clone());
                }
                if metadata.is_dir() {
                    visit(&path, wanted, out);
                }
            }
        }
        let mut out = Vec::new();
        visit(&self.root, &wanted, &mut out);
        out
    }

    fn directory(&self, choice: usize) -> PathBuf {
        let mut all = self.paths(fs::Metadata::is_dir);
        all.push(self.root.clone());
        all.swap_remove(choice % all.len())
    }

    fn pick(&self, choice: usize, wanted: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let mut all = self.paths(wanted);
        if all.is_empty() { None } else { Some(all.swap_remove(choice % all.len())) }
    }

    fn place(&self, directory: usize, name: usize) -> Option<PathBuf> {
        let path = self.directory(directory).join(OsStr::from_bytes(NAMES[name % NAMES.len()]));
        fs::symlink_metadata(&path).is_err().then_some(path)
    }

    fn write(&self, path: &Path, at: SeekFrom, fill: &Fill) {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        file.seek(at).unwrap();
        match fill {
            Fill::Empty => {}
            Fill::Random { seed, length } => {
                let mut bytes = vec![0; *length];
                blake3::Hasher::new().update(&[*seed]).finalize_xof().fill(&mut bytes);
                file.write_all(&bytes).unwrap();
            }
            Fill::Text { seed, lines } => {
                for line in 0..*lines {
                    writeln!(file, "{seed}: line {line} of a message that repeats itself").unwrap();
                }
            }
            Fill::Sparse { seed, hole } => {
                file.write_all(&[*seed; 100]).unwrap();
                file.seek(SeekFrom::Current(*hole as i64)).unwrap();
                file.write_all(&[*seed; 50]).unwrap();
            }
        }
    }

    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Create { directory, name, fill } => {
                if let Some(path) = self.place(*directory, *name) {
                    self.write(&path, SeekFrom::Start(0), fill);
                }
            }
            Edit::Append { file, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    self.write(&path, SeekFrom::End(0), fill);
                }
            }
            Edit::Overwrite { file, offset, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    self.write(&path, SeekFrom::Start(u64::from(*offset)), fill);
                }
            }
            Edit::Truncate { file, length } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    OpenOptions::new().write(true).open(path).unwrap().set_len(u64::from(*length)).unwrap();
                }
            }
            Edit::ReplaceByRename { file, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    let fresh = self.root.join("fresh.tmp");
                    self.write(&fresh, SeekFrom::Start(0), fill);
                    fs::rename(fresh, path).unwrap();
                }
            }
            Edit::Link { file, directory, name } => {
                let what = self.pick(*file, |metadata| !metadata.is_dir());
                if let (Some(what), Some(path)) = (what, self.place(*directory, *name)) {
                    fs::hard_link(what, path).unwrap();
                }
            }
            Edit::Rename { any, directory, name } => {
                let what = self.pick(*any, |_| true);
                if let (Some(what), Some(path)) = (what, self.place(*directory, *name))
                    && !path.starts_with(&what)
                {
                    fs::rename(what, path).unwrap();
                }
            }
            Edit::Unlink { file } => {
                if let Some(path) = self.pick(*file, |metadata| !metadata.is_dir()) {
                    fs::remove_file(path).unwrap();
                }
            }
            Edit::RemoveTree { directory } => {
                if let Some(path) = self.pick(*directory, fs::Metadata::is_dir) {
                    fs::remove_dir_all(path).unwrap();
                }
            }
            Edit::Mkdir { directory, name } => {
                if let Some(path) = self.place(*directory, *name) {
                    fs::create_dir(path).unwrap();
                }
            }
            Edit::Symlink { directory, name, target } => {
                if let Some(path) = self.place(*directory, *name) {
                    symlink(OsStr::from_bytes(NAMES[target % NAMES.len()]), path).unwrap();
                }
            }
            Edit::Fifo { directory, name } => {
                if let Some(path) = self.place(*directory, *name) {
                    let mode = rustix::fs::Mode::from(0o640);
                    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
                }
            }
            Edit::Chmod { any, mode } => {
                if let Some(path) = self.pick(*any, |metadata| !metadata.is_symlink()) {
                    // The owner's bits stay: whoever runs this test may not be root.
                    fs::set_permissions(path, fs::Permissions::from_mode(u32::from(*mode) | 0o700)).unwrap();
                }
            }
            Edit::SetMtime { any, back } => {
                if let Some(path) = self.pick(*any, |metadata| metadata.is_file() || metadata.is_dir()) {
                    // No time is set twice: a rewritten file of the same size with its old time cannot be told from one that did not change.
                    self.clock += 1;
                    let time = SystemTime::UNIX_EPOCH + Duration::new(u64::from(*back), self.clock);
                    fs::File::open(path).unwrap().set_modified(time).unwrap();
                }
            }
            Edit::ManyNames { directory, count } => {
                let directory = self.directory(*directory);
                let first = directory.join("many-0000");
                self.write(&first, SeekFrom::Start(0), &Fill::Random { seed: 9, length: 40 });
                for number in 1..*count {
                    let path = directory.join(format!("many-{number:04}"));
                    let _ = match number % 3 {
                        0 => fs::write(path, number.to_string()),
                        _ => fs::hard_link(&first, path),
                    };
                }
            }
        }
    }
}

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
        let replica = LockedReplica::open(&store).unwrap();
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
    LockedReplica::rebuild_catalog(&store).unwrap();
    let replica = Replica::open(&store).unwrap();
    compare(&replica, &copies);
    assert_clean(&replica, copies.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_is_the_tree_of_its_time(
        batches in vec(vec(edit(), 1..40), 1..6),
        rescans in vec(proptest::bool::weighted(0.15), 6),
    ) {
        run_case(&batches, &rescans);
    }
}
