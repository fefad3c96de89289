//! What a scan makes of trees that it may not read, that change, or that hold other file systems.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;

#[test]
fn goes_on_after_a_directory_that_may_not_be_read() {
    let root = tree();
    for (directory, mode) in [("a-open", 0o755), ("b-closed", 0o000), ("c-listable", 0o444), ("d-open", 0o755)] {
        let path = root.path().join(directory);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), b"").unwrap();
        std::fs::create_dir(path.join("inner")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let_clock_step();
    // Root passes all permission checks by these two capabilities; they are given up for this thread only.
    let root_path = root.path().to_owned();
    let reader = std::thread::spawn(move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
        assert!(std::fs::read_dir(root_path.join("b-closed")).is_err());
        [1, 3].map(|threads| scan(&root_path, with_threads(threads)))
    });
    let [result, parallel] = reader.join().unwrap();
    assert_eq!(result, parallel);
    assert_depth_first(&result);
    let closed = &result.listings[3];
    let problem = closed.unreadable.as_ref().unwrap();
    assert_eq!((problem.kind, &problem.path[..]), (ProblemKind::Unreadable, &b"b-closed"[..]));
    assert_eq!(problem.to_string(), "Cannot read b-closed: Permission denied (os error 13)");
    assert_eq!(closed.stat.ino, std::fs::metadata(root.path().join("b-closed")).unwrap().ino());
    let listable = &result.listings[4];
    assert_eq!(listable.path, b"c-listable");
    assert_eq!(listable.entries.len(), 1, "only the directory, the file could not be stat'ed");
    assert_eq!(result.problems.len(), 1);
    assert_eq!(result.problems[0].path, b"c-listable/file");
    assert_eq!(result.listings[5].unreadable.as_ref().unwrap().kind, ProblemKind::Unreadable);
    assert_eq!(result.listings[6].path, b"d-open");
    assert_eq!(result.listings.len(), 8);
}

/// Unmounts at the end of a test, failed or not.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn stops_at_mount_points_unless_set_to_cross() {
    let root = tree();
    let inside = root.path().join("b/mounted here");
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::create_dir_all(root.path().join("c/inner")).unwrap();
    std::fs::write(root.path().join("c/file"), b"underneath").unwrap();
    std::fs::hard_link(root.path().join("c/file"), root.path().join("a-name-of-it")).unwrap();
    if let Err(error) = mount("none", &inside, "tmpfs", MountFlags::empty(), None) {
        eprintln!("SKIPPED mount points: cannot mount ({error})");
        return;
    }
    let _mounted = Mounted(inside.clone());
    std::fs::write(inside.join("file"), b"over").unwrap();
    std::fs::create_dir(inside.join("deep")).unwrap();
    mount_bind(inside.join("file"), root.path().join("c/file")).unwrap();
    let _bound = Mounted(root.path().join("c/file"));
    let_clock_step();

    let result = scan(root.path(), with_threads(2));
    assert_depth_first(&result);
    assert_eq!(result.listings.len(), 4);
    let Found::Boundary(stat) = &result.listings[1].entries[0].what else { panic!("entered") };
    assert_eq!((stat.kind, stat.ino), (Kind::Directory, std::fs::metadata(&inside).unwrap().ino()));
    // The entry shows the inode that is covered, which has another name elsewhere: it must not be taken for that.
    assert_eq!(result.file_systems, [b"".to_vec(), b"c/file".to_vec()]);
    let Found::Inode { file_system: 1, stat: Some(stat), .. } = &result.listings[2].entries[0].what else {
        panic!("{:?}", result.listings[2])
    };
    assert_eq!(stat.size, 4);

    for threads in [1, 2, 4] {
        let result = scan(root.path(), ScanOptions { cross_file_systems: true, ..with_threads(threads) });
        assert_depth_first(&result);
        assert_eq!(result.file_systems, [b"".to_vec(), b"b/mounted here".to_vec()]);
        let on: Vec<_> = result.listings.iter().map(|listing| listing.file_system).collect();
        assert_eq!(on, [0, 0, 1, 1, 0, 0]);
        let Found::Inode { file_system: 1, stat: Some(_), .. } = result.listings[4].entries[0].what else {
            panic!("{:?}", result.listings[4])
        };
    }
}

#[test]
fn recognizes_a_new_inode_under_a_used_number() {
    let root = tree();
    for directory in ["a", "z"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    std::fs::write(root.path().join("a/one"), b"old").unwrap();
    std::fs::hard_link(root.path().join("a/one"), root.path().join("a/two")).unwrap();
    let_clock_step();
    let mut running = Scan::start(root.path(), with_threads(1)).unwrap();
    running.next();
    let listing = running.next().unwrap();
    let Found::Inode { ino, .. } = listing.entries[0].what else { panic!("no inode") };
    std::fs::remove_dir_all(root.path().join("a")).unwrap();
    for number in 0..100 {
        std::fs::write(root.path().join(format!("z/{number}")), b"newer").unwrap();
        let path = root.path().join(format!("z/{number}"));
        std::fs::hard_link(&path, root.path().join(format!("z/{number}-again"))).unwrap();
    }
    let listing = running.next().unwrap();
    let again = listing.entries.iter().filter_map(|entry| match &entry.what {
        Found::Inode { ino: number, stat, .. } if *number == ino => Some(stat),
        _ => None,
    });
    let again: Vec<_> = again.collect();
    if again.is_empty() {
        eprintln!("SKIPPED: the file system of the tests did not use an inode number again");
    }
    assert!(again.iter().all(|stat| stat.as_ref().is_some_and(|stat| stat.size == 5)));
}

#[test]
fn reports_a_directory_that_vanishes() {
    let root = tree();
    for directory in ["a", "b", "c"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    let mut running = Scan::start(root.path(), with_threads(1)).unwrap();
    running.next();
    std::fs::remove_dir(root.path().join("b")).unwrap();
    std::fs::remove_dir(root.path().join("c")).unwrap();
    symlink("a", root.path().join("c")).unwrap();
    let result = drain(running);
    let kinds: Vec<_> = result.listings.iter().map(|listing| listing.unreadable.as_ref().map(|it| it.kind)).collect();
    assert_eq!(kinds, [None, Some(ProblemKind::Vanished), Some(ProblemKind::Vanished)]);
}

#[test]
fn survives_a_tree_that_changes_all_the_time() {
    let root = tree();
    build_mixed(root.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for churner in 0..2 {
            let (root, stop) = (root.path(), &stop);
            scope.spawn(move || {
                let mut round = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let directory = root.join(format!("d{}/e{}/churn{churner}", round % 3, round % 7));
                    let _ = std::fs::create_dir(&directory);
                    for file in 0..20 {
                        let path = directory.join(format!("{file}"));
                        let _ = std::fs::write(&path, b"x");
                        let _ = std::fs::hard_link(&path, root.join(format!("d{}/churn-{churner}-{file}", file % 3)));
                    }
                    let _ = std::fs::remove_dir_all(&directory);
                    for file in 0..20 {
                        let _ = std::fs::remove_file(root.join(format!("d{}/churn-{churner}-{file}", file % 3)));
                    }
                }
            });
        }
        for round in 0..60 {
            let result = scan(root.path(), with_threads(1 + round % 4));
            assert_depth_first(&result);
            let found = names(&result);
            assert!(found.keys().filter(|path| path.ends_with(b"/link")).count() == 40, "an untouched name is missing");
            for problem in result.problems.iter().chain(result.listings.iter().filter_map(|it| it.unreadable.as_ref()))
            {
                assert_eq!(problem.kind, ProblemKind::Vanished, "{problem}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn ends_its_threads_when_dropped() {
    let root = tree();
    build_mixed(root.path());
    for ahead_entries in [1, 20, 200_000] {
        for taken in 0..20 {
            let options = ScanOptions { ahead_entries, ..with_threads(4) };
            let mut running = Scan::start(root.path(), options).unwrap();
            for _ in 0..taken {
                running.next();
            }
            let engine = Arc::downgrade(&running.engine);
            drop(running);
            assert!(engine.upgrade().is_none());
        }
    }
}

#[test]
fn refuses_a_root_that_is_no_directory() {
    let root = tree();
    std::fs::write(root.path().join("file"), b"").unwrap();
    for name in ["file", "missing"] {
        let error = Scan::start(&root.path().join(name), ScanOptions::default()).err().unwrap();
        assert!(error.to_string().starts_with("Cannot scan"), "{error}");
    }
    std::fs::create_dir(root.path().join("empty")).unwrap();
    symlink("empty", root.path().join("link")).unwrap();
    for name in ["empty", "link"] {
        let result = scan(&root.path().join(name), ScanOptions::default());
        assert_eq!(result.listings.len(), 1);
        assert!(result.listings[0].entries.is_empty() && result.listings[0].unreadable.is_none());
    }
}
