//! Calls of the system that fail in the middle of a command. What the system says of a call is never damage and never exit code 7, whether the catalogue
//! was being read or written; the store is whole, and the same command goes on. And a writer whose commit failed writes nothing more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;
use zmreplica::catalog::marks::{Mark, SnapshotMarks};
use zmreplica::catalog::{CatalogError, WriteError, commit_log};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::store::backend::{Backend, BackendError};
use zmreplica::store::local::LocalBackend;

use crate::support::locks::{open, wait_until_free};
use crate::support::pruning::{assert_clean, make_source, take};

const EIO: i32 = 5;
const EACCES: i32 = 13;
const ENOSPC: i32 = 28;

/// Makes a store with a snapshot in a directory of its own; returns the directory, the store and the source.
fn store_with_a_snapshot() -> (TempDir, PathBuf, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    make_source(&source);
    take(&open(&store), &source);
    wait_until_free(&store);
    (place, store, source)
}

fn shell(store: &Path, line: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", line, "bash", env!("CARGO_BIN_EXE_zmreplica"), "--store"]).arg(store).args(arguments);
    command.env_remove("RUST_BACKTRACE").env("ZMREPLICA_CONFIG", "/dev/null").output().unwrap()
}

/// Asserts that a command ended well or failed, and spoke of no damage; returns whether it failed.
fn has_failed(what: &str, output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!said.to_lowercase().contains("damage"), "{what}: {said}");
    match output.status.code() {
        Some(0) => false,
        Some(1) => true,
        code => panic!("{what}: {code:?} {said}"),
    }
}

#[test]
fn a_call_that_fails_is_no_damage_of_the_catalogue() {
    let (_place, store, source) = store_with_a_snapshot();
    let catalog = store.join("catalog.redb");
    let commands: [&[&str]; 5] =
        [&["snapshots"], &["ls", "latest:"], &["stats"], &["pin", "latest"], &["snapshot", source.to_str().unwrap()]];
    let calls =
        [("pread64", "EIO"), ("pread64", "EACCES"), ("pwrite64", "EIO"), ("pwrite64", "ENOSPC"), ("fdatasync", "EIO")];
    let mut failed = 0;
    for (call, error) in calls {
        for arguments in commands {
            for when in [1, 2, 4, 8, 16] {
                let inject = format!(
                    "exec strace -f -qq -o /dev/null -P '{}' -e trace={call} -e inject={call}:error={error}:when={when}+ \"$@\"",
                    catalog.display()
                );
                let output = shell(&store, &inject, arguments);
                failed += u32::from(has_failed(&format!("{arguments:?}: {call} {when}: {error}"), &output));
                wait_until_free(&store);
            }
        }
    }
    assert!(failed > 20, "{failed} commands met the error");
    has_failed("unpin", &shell(&store, "exec \"$@\"", &["unpin", "latest"]));
    take(&open(&store), &source);
    assert_clean(&Replica::open(&store).unwrap(), "after all of them");
}

/// The limit of a file's length takes the place of a full disk, which only root can make.
#[test]
fn a_catalogue_that_cannot_grow_is_not_damaged() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    let tree = make_source(&source);
    take(&open(&store), &source);
    let mut failed = 0;
    for (round, more_kib) in [0, 8, 64, 256].into_iter().enumerate() {
        let kib = fs::metadata(store.join("catalog.redb")).unwrap().len() / 1024 + more_kib;
        for number in 0..200 {
            fs::write(tree.join(format!("{round}-{number}")), format!("{round} {number}")).unwrap();
        }
        wait_until_free(&store);
        let line = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
        let output = shell(&store, &line, &["snapshot", source.to_str().unwrap()]);
        failed += u32::from(has_failed(&format!("{kib} KiB"), &output));
        wait_until_free(&store);
    }
    assert!(failed > 0, "no limit was met");
    take(&open(&store), &source);
    assert_clean(&Replica::open(&store).unwrap(), "after all of them");
}

/// The store's own backend, of which one operation fails as soon as it is armed.
struct Armed {
    backend: LocalBackend,
    /// Operations until then; below zero when there is none to fail.
    left: AtomicI64,
    errno: i32,
}

impl Armed {
    fn step(&self, operation: &'static str, key: &str) -> Result<&LocalBackend, BackendError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            let source = std::io::Error::from_raw_os_error(self.errno);
            return Err(BackendError::Io { operation, key: key.to_owned(), source });
        }
        Ok(&self.backend)
    }
}

impl Backend for Armed {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        self.step("write", key)?.put(key, parts)
    }

    fn sync(&self) -> Result<(), BackendError> {
        self.step("sync", "")?.sync()
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        self.backend.read_into(key, offset, buffer)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        self.backend.size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        self.backend.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.backend.delete(key)
    }
}

/// "After a failed commit nothing more can be written": not even what was requested before, though the backend is well again.
#[test]
fn a_writer_whose_commit_failed_writes_nothing_more() {
    let pinned = |reason: &str| {
        let mark = Mark { at: "2026-11-27T03:00:00Z".parse().unwrap(), reason: Some(reason.to_owned()) };
        SnapshotMarks { pinned: Some(mark), ..SnapshotMarks::default() }
    };
    for errno in [EIO, EACCES, ENOSPC] {
        for at in 0..2 {
            let (_place, store, _) = store_with_a_snapshot();
            let backend =
                Arc::new(Armed { backend: LocalBackend::open(&store).unwrap(), left: AtomicI64::new(-1), errno });
            let replica = LockedReplica::open_over(&store, Arc::clone(&backend) as Arc<dyn Backend>).unwrap();
            let snapshot = replica.catalog().unwrap().snapshots().unwrap()[0].0;
            let mut writer = replica.writer().unwrap();
            let last = writer.last_commit();
            writer.set_marks(snapshot, &pinned("one")).unwrap();
            backend.left.store(at, Ordering::Relaxed);
            let failure = writer.commit().unwrap_err();
            assert!(matches!(failure, CatalogError::Backend(_)) && !failure.is_damage(), "{failure}");
            let files = commit_log::commit_files(backend.as_ref()).unwrap();
            writer.set_marks(snapshot, &pinned("two")).unwrap();
            for _ in 0..2 {
                let refused = writer.commit().unwrap_err();
                assert!(matches!(refused, CatalogError::Write(WriteError::Poisoned)), "{refused}");
            }
            assert_eq!(writer.last_commit(), last);
            assert_eq!(commit_log::commit_files(backend.as_ref()).unwrap(), files, "operation {at}: {errno}");
            drop((writer, replica));
            // The next writer finds the commit whole or not at all.
            let replica = open(&store);
            assert_eq!(
                replica.recovered_commits(),
                at as u64,
                "a commit file that was not made durable counts if it is there"
            );
            let mut writer = replica.writer().unwrap();
            writer.set_marks(snapshot, &pinned("three")).unwrap();
            writer.commit().unwrap();
            drop((writer, replica));
            assert_clean(&Replica::open(&store).unwrap(), "after a failed commit");
        }
    }
}
