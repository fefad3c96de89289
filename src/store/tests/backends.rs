//! What every backend must do, and what each does beyond that.

use super::*;
use crate::store::backend::check_key;
use crate::store::memory::Operation;

#[test]
fn keys_are_safe_or_refused() {
    for key in ["a", "packs/ab/0123", "commits/2026-11-22T030000Z.zst", "A_b-c.d"] {
        check_key(key).unwrap();
    }
    let long = "a".repeat(201);
    for key in ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".hidden", "a b", "ä", "a\0", "x.tmp-1-2", long.as_str()]
    {
        assert!(check_key(key).is_err(), "{key:?}");
    }
}

/// What every backend must do.
fn backend_contract(backend: &dyn Backend) {
    backend.put("packs/ab/one", &[b"he", b"", b"llo"]).unwrap();
    backend.put("packs/ac/two", &[]).unwrap();
    backend.put("packs.old", &[b"x"]).unwrap();
    assert!(matches!(backend.put("packs/ab/one", &[b"other"]), Err(BackendError::Exists { .. })));
    assert!(matches!(backend.put("../x", &[b"other"]), Err(BackendError::BadKey { .. })));
    backend.sync().unwrap();
    assert_eq!(backend.read_at("packs/ab/one", 1, 4).unwrap(), b"ello");
    assert_eq!(backend.read_at("packs/ab/one", 5, 0).unwrap(), b"");
    assert!(matches!(backend.read_at("packs/ab/one", 3, 3), Err(BackendError::OutOfRange { end: 6, .. })));
    assert!(matches!(backend.read_at("packs/ab/none", 0, 1), Err(BackendError::NotFound { .. })));
    assert_eq!(backend.size("packs/ab/one").unwrap(), Some(5));
    assert_eq!(backend.size("packs/ab/none").unwrap(), None);
    assert_eq!(backend.size("none/ab").unwrap(), None);
    let list = |prefix| backend.list(prefix).unwrap();
    let (one, two) = (("packs/ab/one".to_owned(), 5), ("packs/ac/two".to_owned(), 0));
    assert_eq!(list(""), [("packs.old".to_owned(), 1), one.clone(), two.clone()]);
    assert_eq!(list("packs/"), [one.clone(), two.clone()]);
    assert_eq!(list("packs/ac"), std::slice::from_ref(&two));
    assert_eq!(list("packs/ab/o"), std::slice::from_ref(&one));
    assert_eq!(list("none/"), []);
    backend.delete("packs/ab/one").unwrap();
    assert!(matches!(backend.delete("packs/ab/one"), Err(BackendError::NotFound { .. })));
    assert!(matches!(backend.read_at("packs/ab/one", 0, 1), Err(BackendError::NotFound { .. })));
    backend.put("packs/ab/one", &[b"again"]).unwrap();
    assert_eq!(backend.read_at("packs/ab/one", 0, 5).unwrap(), b"again");
    backend.sync().unwrap();
}

#[test]
fn both_backends_keep_the_contract() {
    backend_contract(&MemoryBackend::new());
    let directory = tempfile::tempdir().unwrap();
    backend_contract(&LocalBackend::open(directory.path()).unwrap());
}

#[test]
fn leftovers_are_not_objects_and_can_be_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(directory.path()).unwrap();
    backend.put("packs/ab/one", &[b"hello"]).unwrap();
    std::fs::write(directory.path().join("packs/ab/two.tmp-12-0"), b"half").unwrap();
    assert_eq!(backend.list("").unwrap().len(), 1);
    assert_eq!(backend.clean_leftovers().unwrap(), (1, 4));
    assert_eq!(backend.clean_leftovers().unwrap(), (0, 0));
    assert_eq!(backend.read_at("packs/ab/one", 0, 5).unwrap(), b"hello");
    assert!(LocalBackend::open(directory.path().join("none")).is_err());
    // A store that vanishes is an error, and does not come back empty.
    std::fs::remove_dir_all(directory.path()).unwrap();
    assert!(matches!(backend.put("packs/ab/two", &[b"x"]), Err(BackendError::Io { .. })));
    assert!(matches!(backend.put("two", &[b"x"]), Err(BackendError::Io { .. })));
    assert!(!directory.path().exists());
}

#[test]
fn a_replaced_file_is_noticed_and_handles_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(directory.path()).unwrap();
    for number in 0..200 {
        backend.put(&format!("p/{number}"), &[&[number as u8]]).unwrap();
    }
    for number in (0..200).chain(0..200) {
        assert_eq!(backend.read_at(&format!("p/{number}"), 0, 1).unwrap(), [number as u8]);
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(directory.path())));
    assert!(open.count() <= 64);
    // Another process deletes the object: who has it open reads on; and writes it anew: the new one is read.
    let other = LocalBackend::open(directory.path()).unwrap();
    other.delete("p/199").unwrap();
    assert_eq!(backend.read_at("p/199", 0, 1).unwrap(), [199]);
    other.put("p/199", &[b"n"]).unwrap();
    assert_eq!(backend.read_at("p/199", 0, 1).unwrap(), b"n");
}

#[test]
fn threads_that_put_the_same_key_agree_on_one_winner() {
    let directory = tempfile::tempdir().unwrap();
    let backend = LocalBackend::open(directory.path()).unwrap();
    let winners = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                if backend.put("deep/down/here", &[&[1; 10_000]]).is_ok() {
                    winners.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(winners.into_inner(), 1);
    assert_eq!(backend.clean_leftovers().unwrap(), (0, 0));
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn a_full_disk_leaves_no_half_object() {
    use std::process::Command;
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(directory.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_leaves_no_half_object: no tmpfs can be mounted here (needs root)");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let backend = LocalBackend::open(directory.path()).unwrap();
        backend.put("packs/ab/one", &[&noise(1, 500_000)]).unwrap();
        let error = backend.put("packs/ab/two", &[&noise(2, 900_000)]).unwrap_err();
        assert!(matches!(error, BackendError::NoSpace { length: 900_000, .. }), "{error}");
        assert_eq!(backend.list("").unwrap(), [("packs/ab/one".to_owned(), 500_000)]);
        assert_eq!(backend.clean_leftovers().unwrap(), (0, 0));
        backend.put("packs/ab/two", &[&noise(2, 300_000)]).unwrap();
        backend.sync().unwrap();
    });
    let unmounted = Command::new("umount").arg("-l").arg(directory.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    outcome.unwrap();
}

#[test]
fn a_crash_loses_what_was_not_synced() {
    let backend = MemoryBackend::new();
    backend.put("a", &[b"1"]).unwrap();
    backend.sync().unwrap();
    backend.put("b", &[b"2"]).unwrap();
    backend.delete("a").unwrap();
    backend.crash();
    assert_eq!(backend.list("").unwrap(), [("a".to_owned(), 1)]);

    // Every combination of lost and kept occurs, and what was kept stays.
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let backend = MemoryBackend::new();
        backend.put("a", &[b"1"]).unwrap();
        backend.sync().unwrap();
        backend.put("b", &[b"2"]).unwrap();
        backend.delete("a").unwrap();
        backend.crash_keeping_some(seed);
        let kept = backend.list("").unwrap();
        backend.crash();
        assert_eq!(backend.list("").unwrap(), kept);
        outcomes.insert(kept);
    }
    assert_eq!(outcomes.len(), 4);
}

#[test]
fn the_chosen_operation_fails() {
    let backend = MemoryBackend::new();
    backend.fail_after(2);
    backend.put("a", &[b"1"]).unwrap();
    assert!(backend.put("b", &[b"2"]).is_err());
    backend.put("c", &[b"3"]).unwrap();
    assert_eq!(backend.size("b").unwrap(), None);
    backend.die_after(1);
    assert!(backend.sync().is_err() && backend.size("a").is_err());
    backend.crash();
    assert_eq!(backend.list("").unwrap(), []);
    assert_eq!(backend.operations().iter().filter(|operation| **operation == Operation::Sync).count(), 1);
}
