//! What cannot be read now: it is not absent, and not damaged. And the bounds of a process (open files, threads): an error, or less speed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zmreplica::catalog::chunk::PackRow;
use zmreplica::catalog::tables::Table;
use zmreplica::check::{CheckError, CheckOptions, CheckProgress, CheckReport, check};
use zmreplica::prune::{PruneError, PruneProgress, carry_out};
use zmreplica::repair::{RepairOptions, repair, repair_over};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::retention::Protections;
use zmreplica::store::LocalBackend;
use zmreplica::store::backend::{Backend, BackendError};

use crate::support::locks::{open, patiently, wait_until_free};
use crate::support::odd::files;
use crate::support::oracle::{self, Tree, of_directory};
use crate::support::pruning::{
    assert_clean, checked, compare, copy_directory, last, make_source, noise, planned, prune, take,
};

/// The store's own backend, of which one operation fails as on a disk, or a system, that does not answer once.
struct FailsOnce {
    backend: LocalBackend,
    at: u64,
    errno: i32,
    operations: AtomicU64,
}

impl FailsOnce {
    fn over(store: &Path, at: u64, errno: i32) -> Arc<FailsOnce> {
        let backend = LocalBackend::open(store).unwrap();
        Arc::new(FailsOnce { backend, at, errno, operations: AtomicU64::new(0) })
    }

    fn step(&self, operation: &'static str, key: &str) -> Result<&LocalBackend, BackendError> {
        if self.operations.fetch_add(1, Ordering::Relaxed) == self.at {
            let source = io::Error::from_raw_os_error(self.errno);
            return Err(BackendError::Io { operation, key: key.to_owned(), source });
        }
        Ok(&self.backend)
    }

    fn has_failed(&self) -> bool {
        self.operations.load(Ordering::Relaxed) > self.at
    }
}

impl Backend for FailsOnce {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        self.step("write", key)?.put(key, parts)
    }

    fn sync(&self) -> Result<(), BackendError> {
        self.step("sync", "")?.sync()
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        self.step("read", key)?.read_into(key, offset, buffer)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        self.step("look up", key)?.size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        self.step("list", prefix)?.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.step("delete", key)?.delete(key)
    }
}

const EIO: i32 = 5;
const EMFILE: i32 = 24;

/// A store of some nights with a dictionary in a pack of its own, and copies of what was taken.
fn make_store(place: &Path) -> (PathBuf, Vec<(String, Tree)>) {
    let (store, source) = (place.join("base"), place.join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    let mut copies = Vec::new();
    for night in 0..4u64 {
        for number in 0..40u64 {
            let text = format!("Received: from mail-{number}.example.com by store\r\nSubject: {night}\r\n").repeat(8);
            fs::write(tree.join(format!("{night}-{number}.msg")), text).unwrap();
        }
        for number in 0..30u64 {
            let bytes = noise(night * 100 + number, 2000 + 10 * number as usize);
            fs::write(tree.join(format!("{night}-{number}.bin")), bytes).unwrap();
        }
        if night > 0 {
            for number in 0..20 {
                fs::remove_file(tree.join(format!("{}-{number}.msg", night - 1))).unwrap();
                fs::remove_file(tree.join(format!("{}-{number}.bin", night - 1))).unwrap();
            }
        }
        copies.push((take(&open(&store), &source), of_directory(&source)));
        if night == 1 {
            // Writes the dictionary into a pack of its own.
            prune(&mut open(&store), &last(1), 0).unwrap();
        }
    }
    assert!(row_of_dictionaries(&open(&store)).is_some());
    (store, copies)
}

/// Returns the row of a pack that holds nothing but dictionaries.
fn row_of_dictionaries(replica: &Replica) -> Option<PackRow> {
    let mut found = None;
    let catalog = replica.catalog().unwrap();
    catalog
        .database()
        .unwrap()
        .scan(Table::Packs, 0, |_, payload| {
            let row = PackRow::decode(payload?).unwrap();
            found = found.or((row.chunks == 0).then_some(row));
            Ok(())
        })
        .unwrap();
    found
}

/// "A disk that does not answer once": a prune ends with an error or is done, the store is whole, and the next prune is done.
#[test]
fn one_failure_of_the_disk_in_a_prune_leaves_a_whole_store() {
    let place = tempfile::tempdir().unwrap();
    let (base, copies) = make_store(place.path());
    let store = place.path().join("store");
    for at in 0.. {
        copy_directory(&base, &store);
        let backend = FailsOnce::over(&store, at, EIO);
        let pruned = LockedReplica::open_over(&store, Arc::clone(&backend) as Arc<dyn Backend>);
        let pruned = pruned.map_err(|error| error.to_string()).and_then(|mut replica| {
            let plan = planned(&replica, &last(1), &Protections::default(), 0).map_err(|error| error.to_string())?;
            carry_out(&mut replica, &plan, &PruneProgress::default()).map_err(|error: PruneError| error.to_string())
        });
        let what = format!("failure at operation {at}: {pruned:?}");
        let replica = patiently(|| Replica::open(&store));
        assert_clean(&replica, &what);
        compare(&replica, &copies, &what);
        drop(replica);
        prune(&mut open(&store), &last(1), 0).unwrap();
        assert_clean(&Replica::open(&store).unwrap(), &what);
        fs::remove_dir_all(&store).unwrap();
        if !backend.has_failed() {
            assert!(at > 20, "{at}");
            break;
        }
    }
}

/// A repair that cannot read something for a moment gives nothing up: it ends, or says so, and the next one does it all.
#[test]
fn one_failure_of_the_disk_in_a_repair_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (base, copies) = make_store(place.path());
    // A damaged commit file, and a pack in another place: each has to be read.
    let backend = LocalBackend::open(&base).unwrap();
    let commit = backend.list("commits/").unwrap().pop().unwrap().0;
    fs::remove_file(base.join(commit)).unwrap();
    let store = place.path().join("store");
    for at in 0.. {
        copy_directory(&base, &store);
        let backend = FailsOnce::over(&store, at, EIO);
        let first = repair_over(
            &store,
            Arc::clone(&backend) as Arc<dyn Backend>,
            RepairOptions { read_data: true },
            &PruneProgress::default(),
        );
        if let Ok(report) = &first {
            assert!(report.lost_chunks == 0 && report.lost_snapshots.is_empty(), "failure at {at}: {report:?}");
        }
        let what = format!("failure at operation {at}: {first:?}");
        wait_until_free(&store);
        repair(&store, RepairOptions { read_data: true }, &PruneProgress::default()).unwrap();
        let replica = patiently(|| Replica::open(&store));
        assert_clean(&replica, &what);
        compare(&replica, &copies, &what);
        drop(replica);
        fs::remove_dir_all(&store).unwrap();
        if !backend.has_failed() {
            assert!(at > 20, "{at}");
            break;
        }
    }
}

/// "Too many open files is no damage": the check ends with that error, wherever it comes.
#[test]
fn a_check_that_runs_out_of_files_reports_no_damage() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = make_store(place.path());
    let options = CheckOptions { read_data_percent: Some(100), threads: 1 };
    for at in 0.. {
        let backend = FailsOnce::over(&base, at, EMFILE);
        let replica = Replica::open_over(&base, Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
        let result: Result<CheckReport, CheckError> = check(&replica, &options, &CheckProgress::default());
        match result {
            Err(error) => assert!(!error.is_damage() && error.to_string().contains("Too many open files"), "{error}"),
            Ok(report) => assert!(report.is_clean() && !backend.has_failed(), "{at}: {:#?}", report.damages),
        }
        if !backend.has_failed() {
            assert!(at > 10, "{at}");
            break;
        }
    }
}

/// A pack of dictionaries with two rows, as earlier versions left it after a read that failed once: `repair` removes one of them.
#[test]
fn a_second_row_of_a_pack_is_healed_by_repair() {
    let place = tempfile::tempdir().unwrap();
    let (store, copies) = make_store(place.path());
    let replica = open(&store);
    let mut writer = replica.writer().unwrap();
    writer.add_pack(row_of_dictionaries(&replica).unwrap(), &[]).unwrap();
    writer.commit().unwrap();
    drop((writer, replica));
    let report = checked(&Replica::open(&store).unwrap());
    assert_eq!(report.damage_count, 1, "{:#?}", report.damages);
    assert!(report.damages[0].reason.contains("two rows") && report.damages[0].reason.contains("a repair removes one"));
    wait_until_free(&store);
    let repaired = repair(&store, RepairOptions::default(), &PruneProgress::default()).unwrap();
    assert!(repaired.is_whole(), "{repaired:?}");
    let replica = open(&store);
    assert_clean(&replica, "repaired");
    compare(&replica, &copies, "repaired");
    drop(replica);
    prune(&mut open(&store), &last(1), 0).unwrap();
    assert_clean(&Replica::open(&store).unwrap(), "pruned");
}

fn command(store: &Path, shell: &str, arguments: &[&str]) -> Output {
    let line = format!("{shell}; exec \"$@\"");
    Command::new("bash")
        .args(["-c", &line, "bash", env!("CARGO_BIN_EXE_zmreplica"), "--store"])
        .arg(store)
        .args(arguments)
        .env_remove("RUST_BACKTRACE")
        .env("ZMREPLICA_CONFIG", "/dev/null")
        .output()
        .unwrap()
}

/// With sixteen open files a check of a store of more packs finds what it finds with many.
#[test]
fn a_check_with_few_open_files_finds_no_damage() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    for night in 0..30 {
        fs::write(tree.join(format!("{night}")), noise(night, 3000)).unwrap();
        take(&open(&store), &source);
    }
    for limit in [12, 16, 24] {
        let output = command(&store, &format!("ulimit -n {limit}"), &["check", "--read-data"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{limit}: {text}");
        assert!(text.contains("No damage found"), "{limit}: {text}");
    }
}

/// "Not enough memory for a thread is an error": no panic, no damage, in whatever command.
#[test]
fn a_thread_that_cannot_be_started_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let (store, _) = make_store(place.path());
    let (out, mount) = (place.path().join("out"), place.path().join("mnt"));
    fs::create_dir(&mount).unwrap();
    let source = place.path().join("source");
    let [out, mount, source] = [&out, &mount, &source].map(|path| path.to_str().unwrap());
    let commands: [&[&str]; 8] = [
        &["snapshot", source],
        &["check", "--read-data"],
        &["restore", "latest", out],
        &["prune", "--keep-last", "1"],
        &["repair"],
        &["mount", "latest", mount],
        &["nightly", source],
        &["drill", "latest"],
    ];
    for arguments in commands {
        // No address space has room for such a stack.
        let output = command(&store, "export RUST_MIN_STACK=140000000000000", arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(!text.contains("zmreplica: internal error") && !text.contains("panicked"), "{arguments:?}: {text}");
    }
    assert_clean(&Replica::open(&store).unwrap(), "after all of them");
}

/// A directory that lies where a pack was: `repair` goes on, and the pack can be written again. What the directory holds stays.
#[test]
fn a_directory_in_the_place_of_a_pack_is_moved_aside() {
    let place = tempfile::tempdir().unwrap();
    let (store, _) = make_store(place.path());
    let packs = LocalBackend::open(&store).unwrap().list("packs/").unwrap();
    for (key, _) in &packs {
        fs::set_permissions(store.join(key), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(store.join(key)).unwrap();
        fs::create_dir(store.join(key)).unwrap();
        fs::write(store.join(key).join("note"), "kept").unwrap();
    }
    wait_until_free(&store);
    let report = repair(&store, RepairOptions { read_data: true }, &PruneProgress::default()).unwrap();
    assert!(report.lost_chunks > 0 && report.unreadable_packs.is_empty(), "{report:?}");
    let source = place.path().join("source");
    let taken = take(&open(&store), &source);
    let replica = open(&store);
    compare_only(&replica, &taken, &source);
    let kept = files(&store.join("packs")).into_iter().filter(|path| path.ends_with("note")).count();
    assert_eq!(kept, packs.len());
}

fn compare_only(replica: &Replica, id: &str, source: &Path) {
    let snapshots = zmreplica::view::Snapshots::read(&replica.catalog().unwrap()).unwrap();
    let snapshot = snapshots.all().iter().find(|one| one.record.id == id).unwrap();
    oracle::assert_same(&of_directory(source), &oracle::of_snapshot(replica, snapshot).unwrap(), "taken again");
}

/// A dictionary of a pack that no run came to name is in the catalogue: the pack goes, the dictionary stays in another.
#[test]
fn a_dictionary_outlives_the_pack_that_brought_it() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = make_store(place.path());
    let key = row_of_dictionaries(&open(&base)).unwrap().id.key();
    let (store, source) = (place.path().join("other"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir_all(store.join(&key).parent().unwrap()).unwrap();
    fs::copy(base.join(&key), store.join(&key)).unwrap();
    take(&open(&store), &source);
    assert_eq!(open(&store).dictionaries().all().len(), 1);
    assert!(row_of_dictionaries(&open(&store)).is_none());
    prune(&mut open(&store), &last(1), 0).unwrap();
    let kept = row_of_dictionaries(&open(&store)).expect("a pack of the dictionary");
    assert_ne!(kept.id.key(), key);
    assert!(!store.join(&key).exists());
    assert_clean(&open(&store), "without the pack");
}
