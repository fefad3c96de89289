//! Commands beside a prune: a check finds no loss that is none, and what reads a snapshot that is just going says so.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use zmreplica::check::{CheckOptions, CheckProgress, CheckReport, check};
use zmreplica::ids::PackNumber;
use zmreplica::replica::{Replica, init};
use zmreplica::store::LocalBackend;
use zmreplica::store::backend::{Backend, BackendError};

use crate::support::locks::open;
use crate::support::pruning::{copy_directory, last, make_source, noise, prune, take};

/// The store's own backend, before whose operation of a number something else is done, as by another process at that moment.
struct Meanwhile<F> {
    backend: LocalBackend,
    before: u64,
    operations: AtomicU64,
    act: F,
}

impl<F: Fn() + Send + Sync> Meanwhile<F> {
    fn step(&self) -> &LocalBackend {
        if self.operations.fetch_add(1, Ordering::Relaxed) == self.before {
            (self.act)();
        }
        &self.backend
    }
}

impl<F: Fn() + Send + Sync> Backend for Meanwhile<F> {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        self.step().put(key, parts)
    }

    fn sync(&self) -> Result<(), BackendError> {
        self.step().sync()
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        self.step().read_into(key, offset, buffer)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        self.step().size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        self.step().list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.step().delete(key)
    }
}

/// A store of so many nights, of which a prune to the last one removes packs and writes others anew; so many commits that it folds them as well.
fn make_store(place: &Path, nights: u64) -> PathBuf {
    let (store, source) = (place.join("base"), place.join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    for night in 0..nights {
        for number in 0..4 {
            fs::write(tree.join(format!("{night}-{number}")), noise(night * 10 + number, 30_000)).unwrap();
        }
        if night > 0 {
            fs::remove_file(tree.join(format!("{}-1", night - 1))).unwrap();
            fs::remove_file(tree.join(format!("{}-2", night - 1))).unwrap();
        }
        take(&open(&store), &source);
    }
    store
}

/// Checks a copy of a store, with a prune before the check's operation of that number; returns what it found and whether it came so far.
fn check_with_a_prune(base: &Path, store: &Path, before: u64) -> (CheckReport, bool) {
    copy_directory(base, store);
    let pruned = store.to_owned();
    let act = move || drop(prune(&mut open(&pruned), &last(1), 0).unwrap());
    let backend = LocalBackend::open(store).unwrap();
    let meanwhile = Arc::new(Meanwhile { backend, before, operations: AtomicU64::new(0), act });
    let replica = Replica::open_over(store, Arc::clone(&meanwhile) as Arc<dyn Backend>).unwrap();
    let options = CheckOptions { read_data_percent: Some(100), threads: 1 };
    let report = check(&replica, &options, &CheckProgress::default()).unwrap();
    let reached = meanwhile.operations.load(Ordering::Relaxed) > before;
    fs::remove_dir_all(store).unwrap();
    (report, reached)
}

/// "A check may run beside a prune": at whatever moment that removes packs and folds commit files, nothing counts as damaged.
#[test]
fn a_prune_at_any_moment_of_a_check_is_no_damage() {
    let place = tempfile::tempdir().unwrap();
    let base = make_store(place.path(), 6);
    let mut removed = 0;
    for before in 0.. {
        let (report, reached) = check_with_a_prune(&base, &place.path().join("store"), before);
        assert!(report.is_clean() && report.rebuildable, "before operation {before}: {:#?}", report.damages);
        assert!(report.snapshots == 6 || report.snapshots == 1, "{report:?}");
        removed += report.removed_packs;
        if !reached {
            assert!(before > 20, "{before}");
            break;
        }
    }
    assert!(removed > 0, "no pack was missed by any check");
}

/// What is really lost is found beside a prune, too.
#[test]
fn a_loss_beside_a_prune_is_damage() {
    let place = tempfile::tempdir().unwrap();
    let base = make_store(place.path(), 3);
    let newest = LocalBackend::open(&base).unwrap().list("packs/").unwrap();
    let rows = open(&base).catalog().unwrap();
    // The newest night's pack: the prune keeps it, or moves its chunks.
    let needed = rows.pack(PackNumber(newest.len() as u64 - 1)).unwrap().id.key();
    drop(rows);
    fs::remove_file(base.join(&needed)).unwrap();
    let replica = Replica::open(&base).unwrap();
    let report = check(&replica, &CheckOptions::default(), &CheckProgress::default()).unwrap();
    assert!(!report.is_clean() && report.removed_packs == 0, "{report:?}");
}

fn zmreplica(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmreplica"));
    command.env_remove("RUST_BACKTRACE").env("ZMREPLICA_STORE", store).env("ZMREPLICA_CONFIG", "/dev/null");
    command
}

/// Whether a process has a file open whose path ends so.
fn has_open(pid: u32, end: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|path| path.to_string_lossy().ends_with(end))
}

/// Runs a command that comes to the gate of the leases while a prune holds it, which removes the first snapshot and then opens the gate.
fn run_beside_a_removal(base: &Path, store: &Path, arguments: &[&str]) -> (i32, String) {
    copy_directory(base, store);
    // The prune, done on a copy that takes the store's place at its moment: the gate is the test's.
    let pruned = store.with_extension("pruned");
    copy_directory(base, &pruned);
    prune(&mut open(&pruned), &last(1), 0).unwrap();
    fs::create_dir_all(store.join("leases")).unwrap();
    fs::create_dir_all(pruned.join("leases")).unwrap();
    let gate = File::create(store.join("leases/gate")).unwrap();
    flock(&gate, FlockOperation::LockExclusive).unwrap();
    let child = zmreplica(store).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now();
    while !has_open(child.id(), "leases/gate") {
        assert!(patience.elapsed() < Duration::from_secs(60), "{arguments:?} takes no lease");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::rename(store, store.with_extension("before")).unwrap();
    fs::rename(&pruned, store).unwrap();
    drop(gate);
    let output = child.wait_with_output().unwrap();
    fs::remove_dir_all(store).unwrap();
    fs::remove_dir_all(store.with_extension("before")).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Whoever reads a snapshot while a prune removes it gets an error that says so, never that the store is damaged.
#[test]
fn a_snapshot_that_is_just_going_is_not_damaged() {
    let place = tempfile::tempdir().unwrap();
    let base = make_store(place.path(), 3);
    let snapshots = zmreplica::view::Snapshots::read(&open(&base).catalog().unwrap()).unwrap();
    let id = snapshots.all()[0].record.id.clone();
    let out = place.path().join("out");
    let out = out.to_str().unwrap();
    let file = format!("{id}:tree/0-0");
    let commands: [&[&str]; 6] = [
        &["restore", &id, out],
        &["ls", "-R", &id],
        &["cat", &file],
        &["accounts", &id],
        &["sessions", &id],
        &["drill", &id],
    ];
    for arguments in commands {
        let (code, stderr) = run_beside_a_removal(&base, &place.path().join("store"), arguments);
        assert_eq!(code, 1, "{arguments:?}: {stderr}");
        assert!(stderr.contains(&format!("No snapshot is named {id}")), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("damage"), "{arguments:?}: {stderr}");
    }
    assert!(!Path::new(out).exists(), "whole or nothing");
    // The newest one is still the newest.
    let (code, stderr) = run_beside_a_removal(&base, &place.path().join("store"), &["restore", "latest", out]);
    assert_eq!(code, 0, "{stderr}");
}
