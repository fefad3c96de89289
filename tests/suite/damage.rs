//! The damage matrix: every byte of every pack and commit file flipped, every file cut short and deleted, the catalogue flipped all over. Whatever is damaged,
//! a snapshot is read exactly as it was taken, or there is an error; and what the check calls clean is clean.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use zmreplica::check::{CheckOptions, CheckProgress, CheckReport, DamageKind, check};
use zmreplica::replica::{LockedReplica, Replica, ReplicaError, init};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::view::Snapshots;

use crate::support::effort::{is_every_bit, masks};
use crate::support::locks;
use crate::support::odd;
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot};

/// A small store and what its snapshots must hold.
struct Base {
    _place: tempfile::TempDir,
    store: PathBuf,
    trees: Vec<(String, Tree)>,
}

static BASE: LazyLock<Base> = LazyLock::new(make);

fn make() -> Base {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir_all(source.join("sessions/full-1/deep/er")).unwrap();
    fs::create_dir(source.join("empty")).unwrap();
    let file = |path: &str, bytes: &[u8]| fs::write(source.join(path), bytes).unwrap();
    let noise = |seed: u8, length: usize| {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    file("accounts.xml", b"<accounts><account name=\"one@example.com\"/></accounts>");
    file("sessions/full-1/1.msg", &noise(1, 150));
    file("sessions/full-1/2.msg", "A line that is easy to compress.\r\n".repeat(30).as_bytes());
    file("sessions/full-1/deep/er/nothing", b"");
    file("sessions/full-1/blobs.zip", &zip(&[("a/1-2.msg", &noise(2, 100)), ("a/2-3.msg", &noise(3, 80))]));
    file("sessions/full-1/3.msg", &mail(&noise(4, 150)));
    for number in 0..60 {
        fs::hard_link(source.join("sessions/full-1/1.msg"), source.join(format!("sessions/full-1/deep/{number}.msg")))
            .unwrap();
    }
    symlink("sessions/full-1", source.join("latest")).unwrap();
    let mut trees = Vec::new();
    let mut snapshot = || {
        let replica = locks::open(&store);
        let report = run(&replica, &source, &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
        trees.push((report.record.id, of_directory(&source)));
    };
    snapshot();
    file("sessions/full-1/4.msg", &noise(5, 90));
    fs::remove_file(source.join("latest")).unwrap();
    fs::hard_link(source.join("sessions/full-1/3.msg"), source.join("sessions/full-1/deep/three.msg")).unwrap();
    snapshot();
    Base { _place: place, store, trees }
}

/// Makes a zip with stored entries, as `zipStore` does.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = out.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x58];
        common.extend_from_slice(&[7; 4]);
        common.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        common.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        common.extend_from_slice(&(name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&common);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(bytes);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let at = out.len() as u32;
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    let count = (entries.len() as u16).to_le_bytes();
    out.extend_from_slice(&[count, count].concat());
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// Makes a message with an attachment.
fn mail(attachment: &[u8]) -> Vec<u8> {
    let mut text = "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b\"\r\n\r\n--b\r\n\r\nHello\r\n--b\r\n\
        Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        .to_owned();
    for line in attachment.chunks(38) {
        line.iter().for_each(|byte| text += &format!("{byte:02x}"));
        text += "\r\n";
    }
    (text + "--b--\r\n").into_bytes()
}

/// A copy of the store that may be damaged.
struct Copied {
    place: tempfile::TempDir,
}

impl Copied {
    fn new() -> Copied {
        let place = tempfile::tempdir().unwrap();
        for file in files(&BASE.store) {
            let to = place.path().join(&file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(BASE.store.join(&file), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Copied { place }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }
}

/// Returns the paths of all files of a store, relative to it.
fn files(store: &Path) -> Vec<PathBuf> {
    odd::files(store).into_iter().map(|file| file.strip_prefix(store).unwrap().to_owned()).collect()
}

fn files_below(store: &Path, prefix: &str) -> Vec<PathBuf> {
    files(store).into_iter().filter(|path| path.starts_with(prefix)).collect()
}

fn run_check(replica: &Replica) -> CheckReport {
    let options = CheckOptions { read_data_percent: Some(100), threads: 1 };
    check(replica, &options, &CheckProgress::default()).unwrap()
}

/// Reads all snapshots: each is exact, or there is an error. Returns how many could be read.
fn read_all(replica: &Replica, what: &str) -> Result<usize, String> {
    let catalog = replica.catalog().map_err(|error| error.to_string())?;
    let snapshots = Snapshots::read(&catalog).map_err(|error| error.to_string())?;
    let mut exact = 0;
    let mut failed = None;
    for snapshot in snapshots.all() {
        let Some((_, expected)) = BASE.trees.iter().find(|(id, _)| *id == snapshot.record.id) else {
            panic!("{what}: a snapshot {} that was never taken", snapshot.record.id);
        };
        match of_snapshot(replica, snapshot) {
            Ok(found) => {
                assert_same(expected, &found, what);
                exact += 1;
            }
            Err(error) => failed = Some(error.to_string()),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(exact),
    }
}

fn paths(report: &CheckReport) -> Vec<(&str, usize)> {
    report
        .damages
        .iter()
        .flat_map(|damage| &damage.paths)
        .map(|path| (path.path.as_str(), path.snapshots.len()))
        .collect()
}

#[test]
fn the_store_is_clean_before() {
    let replica = Replica::open(&BASE.store).unwrap();
    let report = run_check(&replica);
    assert!(report.is_clean() && report.rebuildable, "{report:#?}");
    assert_eq!((report.snapshots, report.orphan_packs, report.waiting_commits), (2, 0, 0));
    assert_eq!(read_all(&replica, "untouched"), Ok(2));
}

#[test]
fn every_flipped_byte_of_a_pack_is_found_and_never_read() {
    let store = Copied::new();
    let replica = Replica::open(store.path()).unwrap();
    let mut flips = 0;
    for pack in files_below(store.path(), "packs") {
        let file = OpenOptions::new().write(true).open(store.path().join(&pack)).unwrap();
        let bytes = fs::read(store.path().join(&pack)).unwrap();
        let flipped =
            bytes.iter().enumerate().flat_map(|(at, byte)| masks(at).into_iter().map(move |mask| (at, byte, mask)));
        for (at, byte, mask) in flipped {
            let what = format!("{} flipped at {at} by {mask}", pack.display());
            file.write_all_at(&[byte ^ mask], at as u64).unwrap();
            let report = run_check(&replica);
            assert!(!report.is_clean(), "{what}: the check finds nothing");
            assert!(report.damages.iter().any(|damage| damage.kind == DamageKind::Pack), "{what}: {report:#?}");
            let read = read_all(&replica, &what);
            // Headers of the pack, trailer and dictionaries are no part of any file.
            assert_eq!(read.is_err(), !paths(&report).is_empty(), "{what}: {read:?} {report:#?}");
            file.write_all_at(&[*byte], at as u64).unwrap();
            flips += 1;
        }
    }
    assert!(flips > 1000, "{flips}");
    assert!(run_check(&replica).is_clean());
}

#[test]
fn a_pack_cut_anywhere_is_found_and_never_read() {
    for pack in files_below(&BASE.store, "packs") {
        let store = Copied::new();
        let path = store.path().join(&pack);
        let bytes = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let replica = Replica::open(store.path()).unwrap();
        // From the end on, so that the file need not be rewritten.
        for length in (0..bytes.len() as u64).rev() {
            file.set_len(length).unwrap();
            let what = format!("{} cut to {length}", pack.display());
            let report = run_check(&replica);
            let is_found = report.damages.iter().any(|damage| damage.kind == DamageKind::Pack);
            assert!(is_found, "{what}: {report:#?}");
            // Every chunk ends before the trailer, so all can be read as long as only that is gone.
            assert_eq!(read_all(&replica, &what).is_err(), !paths(&report).is_empty(), "{what}: {report:#?}");
            // The length alone shows it, without reading.
            if length % 11 == 0 {
                let report = check(&replica, &CheckOptions::default(), &CheckProgress::default()).unwrap();
                assert!(!report.is_clean(), "{what}");
            }
        }
    }
}

#[test]
fn every_flipped_or_cut_byte_of_a_commit_file_is_found() {
    let store = Copied::new();
    let replica = Replica::open(store.path()).unwrap();
    for name in files_below(store.path(), "commits") {
        let path = store.path().join(&name);
        let bytes = fs::read(&path).unwrap();
        let expect = |what: &str| {
            let report = check(&replica, &CheckOptions::default(), &CheckProgress::default()).unwrap();
            let is_found = report.damages.iter().any(|damage| damage.kind == DamageKind::CommitFile);
            assert!(is_found && !report.rebuildable, "{}: {what}: {report:#?}", name.display());
            assert!(paths(&report).is_empty(), "nothing but the commit file is damaged: {report:#?}");
        };
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let flipped =
            bytes.iter().enumerate().flat_map(|(at, byte)| masks(at).into_iter().map(move |mask| (at, byte, mask)));
        for (at, byte, mask) in flipped {
            file.write_all_at(&[byte ^ mask], at as u64).unwrap();
            expect(&format!("flipped at {at} by {mask}"));
            if at % 97 == 0 {
                assert_eq!(read_all(&replica, "commit file flipped"), Ok(2));
                assert!(locks::rebuild(store.path()).is_err(), "flipped at {at}");
            }
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
        for length in (0..bytes.len() as u64).rev().step_by(7) {
            file.set_len(length).unwrap();
            expect(&format!("cut to {length}"));
        }
        file.write_all_at(&bytes, 0).unwrap();
    }
    assert!(run_check(&replica).is_clean());
}

/// What a command does with a damaged catalogue: `Err` when it says so.
fn use_store(store: &Path, what: &str) -> Result<(usize, bool), String> {
    // As the command line does it: a panic of redb is an error.
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let replica = Replica::open(store).map_err(|error| error.to_string())?;
        let is_clean = run_check(&replica).is_clean();
        match read_all(&replica, what) {
            Ok(read) => Ok((read, is_clean)),
            // Told by the read, and the check must know too.
            Err(error) if is_clean => panic!("{what}: the check is clean and reading says: {error}"),
            Err(error) => Err(error),
        }
    }));
    tried.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(!text.starts_with("catalogue") && !text.contains("differs"), "{text}");
        Err(text)
    })
}

#[test]
fn a_flipped_byte_of_the_catalogue_is_found_or_harmless() {
    let store = Copied::new();
    let path = store.path().join("catalog.redb");
    let bytes = fs::read(&path).unwrap();
    // What redb has not written is zero, or 0xff in a build for tests.
    let used: Vec<usize> = (0..bytes.len()).filter(|at| !matches!(bytes[*at], 0 | 0xff)).collect();
    let stride = if is_every_bit() { 1 } else { (used.len() / 2500).max(1) };
    let (mut found, mut harmless, mut silent, mut unlisted) = (0, 0, Vec::new(), Vec::new());
    let flipped =
        used.into_iter().step_by(stride).flat_map(|at| masks(at / stride).into_iter().map(move |mask| (at, mask)));
    for (at, mask) in flipped {
        let what = format!("catalogue flipped at {at} by {mask}");
        let mut bad = bytes.clone();
        bad[at] ^= mask;
        fs::write(&path, &bad).unwrap();
        match use_store(store.path(), &what) {
            Ok((2, true)) => harmless += 1,
            Ok((2, false)) | Err(_) => found += 1,
            Ok((read, true)) => silent.push((at, read)),
            Ok((read, false)) => unlisted.push((at, read)),
        }
    }
    assert!(silent.is_empty(), "snapshots are missing and nobody says so: {silent:?}");
    assert!(found >= 500 && found + harmless >= 2000, "{found} found, {harmless} harmless, {unlisted:?} unlisted");
}

#[test]
fn a_catalogue_cut_short_is_an_error() {
    let store = Copied::new();
    let path = store.path().join("catalog.redb");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 1, 100, 4096, bytes.len() / 3, bytes.len() / 2, bytes.len() - 4096, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let used = use_store(store.path(), &format!("catalogue cut to {length}"));
        assert!(!matches!(used, Ok((_, true)) if used != Ok((2, true))), "cut to {length}: {used:?}");
    }
}

#[test]
fn each_file_of_the_store_may_be_lost() {
    for name in files(&BASE.store) {
        let store = Copied::new();
        fs::remove_file(store.path().join(&name)).unwrap();
        let shown = name.display().to_string();
        if name.starts_with("cache") || shown == "lock" {
            let replica = Replica::open(store.path()).unwrap();
            assert!(run_check(&replica).is_clean(), "{shown}");
            assert_eq!(read_all(&replica, &shown), Ok(2));
        } else if shown == "config.json" {
            assert!(matches!(Replica::open(store.path()), Err(ReplicaError::Config { .. })));
        } else if shown == "catalog.redb" {
            assert!(Replica::open(store.path()).is_err());
            assert!(LockedReplica::open(store.path()).is_err(), "a lost catalogue must not come back empty");
            let applied = locks::patiently(|| locks::rebuild(store.path()));
            assert_eq!(applied as usize, files_below(store.path(), "commits").len());
            let replica = Replica::open(store.path()).unwrap();
            assert!(run_check(&replica).is_clean());
            assert_eq!(read_all(&replica, &shown), Ok(2));
        } else {
            let replica = Replica::open(store.path()).unwrap();
            let report = run_check(&replica);
            assert!(!report.is_clean(), "{shown}");
            if name.starts_with("commits") {
                assert!(!report.rebuildable && paths(&report).is_empty(), "{report:#?}");
                assert_eq!(read_all(&replica, &shown), Ok(2));
                assert!(locks::rebuild(store.path()).is_err());
            } else {
                assert!(report.rebuildable && !paths(&report).is_empty(), "{report:#?}");
                assert!(read_all(&replica, &shown).is_err());
            }
        }
    }
}

#[test]
fn every_name_of_a_damaged_link_group_is_reported_with_its_snapshots() {
    let store = Copied::new();
    // The first run's pack is the one that holds more.
    let pack = files_below(store.path(), "packs")
        .into_iter()
        .max_by_key(|pack| fs::metadata(store.path().join(pack)).unwrap().len());
    fs::remove_file(store.path().join(pack.unwrap())).unwrap();
    let report = run_check(&Replica::open(store.path()).unwrap());
    let paths = paths(&report);
    assert!(paths.contains(&("sessions/full-1/1.msg", 2)), "{paths:?}");
    for number in 0..60 {
        assert!(paths.contains(&(format!("sessions/full-1/deep/{number}.msg").as_str(), 2)), "{number}: {paths:?}");
    }
    assert!(!paths.iter().any(|(path, _)| *path == "sessions/full-1/4.msg"), "{paths:?}");
    let pack = &report.damages[0];
    assert_eq!(pack.affected as usize, pack.paths.iter().map(|path| path.snapshots.len()).sum::<usize>());
    assert_eq!(pack.unlisted, 0);
}

#[test]
fn a_store_without_any_commit_file_is_not_rebuilt_to_an_empty_one() {
    for catalogue_too in [false, true] {
        let store = Copied::new();
        fs::remove_dir_all(store.path().join("commits")).unwrap();
        if catalogue_too {
            fs::remove_file(store.path().join("catalog.redb")).unwrap();
        }
        let before = files(store.path());
        assert!(locks::rebuild(store.path()).is_err());
        let after = files(store.path());
        assert!(before.iter().all(|file| after.contains(file)), "{after:?}");
    }
}
