//! What a scan delivers of a tree that holds still.

#![allow(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod disturbed;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, mkdirat, mknodat};
use tempfile::TempDir;

use super::*;
use crate::model::{Kind, Stat, Xattr};
use crate::source::exclude_patterns::ExcludePatterns;

/// Lets the clock step away from the tree just made, so that it counts as unchanged during the scan.
fn let_clock_step() {
    std::thread::sleep(Duration::from_millis(130));
}

fn tree() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn with_threads(threads: usize) -> ScanOptions {
    ScanOptions { threads, ..ScanOptions::default() }
}

#[derive(Debug, PartialEq)]
struct Result {
    listings: Vec<Listing>,
    problems: Vec<Problem>,
    file_systems: Vec<Vec<u8>>,
}

fn drain(mut scan: Scan) -> Result {
    let mut listings = Vec::new();
    while let Some(listing) = scan.next() {
        assert!(listing.entries.is_sorted_by(|one, other| one.name < other.name));
        listings.push(listing);
    }
    assert_eq!(scan.engine.context.seen.undelivered(), 0, "a stat was kept for a name that never came");
    Result { problems: scan.problems(), file_systems: scan.file_systems(), listings }
}

fn scan(root: &Path, options: ScanOptions) -> Result {
    drain(Scan::start(root, options).unwrap())
}

/// All names by path, with the inode and the kind they lead to.
fn names(result: &Result) -> BTreeMap<Vec<u8>, (u64, Option<Kind>)> {
    let mut kinds = BTreeMap::new();
    let mut names = BTreeMap::new();
    for listing in &result.listings {
        names.insert(listing.path.clone(), (listing.stat.ino, Some(Kind::Directory)));
        for entry in &listing.entries {
            if let Found::Inode { file_system, ino, stat } = &entry.what {
                if let Some(stat) = stat {
                    assert_eq!(stat.ino, *ino);
                    kinds.insert((*file_system, *ino), stat.kind);
                }
                // A name without a stat must follow one with it.
                let kind = kinds.get(&(*file_system, *ino)).copied();
                assert!(kind.is_some(), "no stat at the first name of inode {ino}");
                names.insert(join(&listing.path, &entry.name), (*ino, kind));
            }
        }
    }
    names
}

/// Asserts that each listing follows its parent in depth-first order.
fn assert_depth_first(result: &Result) {
    let mut expected = vec![Vec::new()];
    for listing in &result.listings {
        assert_eq!(Some(&listing.path), expected.pop().as_ref());
        let below = listing.entries.iter().rev().filter(|entry| entry.what == Found::Directory);
        expected.extend(below.map(|entry| join(&listing.path, &entry.name)));
    }
    assert!(expected.is_empty());
}

fn figure(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Makes a tree with links within and across directories, and many directories of different sizes.
fn build_mixed(root: &Path) {
    for number in 0..40_u32 {
        let directory = root.join(format!("d{}/e{}/f{number}", number % 3, number % 7));
        std::fs::create_dir_all(&directory).unwrap();
        for file in 0..number % 11 {
            let path = directory.join(format!("file{file}"));
            std::fs::write(&path, vec![b'x'; number as usize]).unwrap();
            if file % 2 == 0 {
                std::fs::hard_link(&path, directory.join(format!("again{file}"))).unwrap();
                std::fs::hard_link(&path, root.join(format!("top-{number}-{file}"))).unwrap();
            }
        }
        symlink("nowhere", directory.join("link")).unwrap();
    }
    let_clock_step();
}

#[test]
fn agrees_with_find() {
    let root = tree();
    build_mixed(root.path());
    let format = "%i %n %s %m %U %G %y %P\\0";
    let found = Command::new("find").arg(root.path()).args(["-printf", format]).output().unwrap();
    assert!(found.status.success());
    let expected: BTreeSet<Vec<u8>> =
        found.stdout.split(|&byte| byte == 0).filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    let result = scan(root.path(), with_threads(2));
    assert_depth_first(&result);
    let mut stats = BTreeMap::new();
    let mut lines = BTreeSet::new();
    let mut line = |stat: &Stat, path: &[u8]| {
        let letter = if stat.kind == Kind::File { 'f' } else { stat.kind.letter() };
        let (ino, nlink, size, mode) = (stat.ino, stat.nlink, stat.size, stat.mode);
        let mut line = format!("{ino} {nlink} {size} {mode:o} {} {} {letter} ", stat.uid, stat.gid).into_bytes();
        line.extend_from_slice(path);
        lines.insert(line);
    };
    for listing in &result.listings {
        line(&listing.stat, &listing.path);
        for entry in &listing.entries {
            if let Found::Inode { ino, stat, .. } = &entry.what {
                if let Some(stat) = stat {
                    assert!(stats.insert(*ino, stat.clone()).is_none(), "delivered twice");
                }
                line(&stats[ino], &join(&listing.path, &entry.name));
            }
        }
    }
    assert_eq!(lines, expected);
    assert!(result.problems.is_empty());
    assert_eq!(result.file_systems, [b""]);
}

#[test]
fn says_the_same_whatever_the_threads_and_the_look_ahead() {
    let root = tree();
    build_mixed(root.path());
    let expected = scan(root.path(), with_threads(1));
    assert!(expected.listings.len() > 50);
    for round in 0..30 {
        for (threads, ahead_entries) in [(1, 1), (2, 1), (2, 200_000), (3, 10), (4, 60), (8, 200_000)] {
            let options = ScanOptions { ahead_entries, ..with_threads(threads) };
            let mut running = Scan::start_with(root.path(), options, round % 4).unwrap();
            if round % 5 == 0 {
                // A slow reader: the threads fill the look-ahead.
                std::thread::sleep(Duration::from_millis(3));
            }
            let first = running.next().unwrap();
            assert_eq!(first, expected.listings[0]);
            let rest = drain(running);
            assert_eq!(rest.listings, expected.listings[1..], "{threads} threads, {ahead_entries} ahead");
            assert_eq!(rest.file_systems, expected.file_systems);
        }
    }
}

#[test]
fn stats_each_inode_once() {
    let root = tree();
    for directory in ["a", "b", "c"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    for file in 0..50 {
        let first = root.path().join(format!("b/{file}"));
        std::fs::write(&first, b"text").unwrap();
        std::fs::hard_link(&first, root.path().join(format!("a/{}", 50 - file))).unwrap();
        std::fs::hard_link(&first, root.path().join(format!("c/{file}"))).unwrap();
    }
    symlink("target", root.path().join("a/link")).unwrap();
    rustix::fs::link(root.path().join("a/link"), root.path().join("c/link")).unwrap();
    let_clock_step();
    let running = Scan::start(root.path(), with_threads(1)).unwrap();
    let trusted = running.engine.context.file_systems.get(0).trusted_numbers;
    let counters = running.counters();
    let result = drain(running);
    let delivered = |at: usize| {
        let has = |entry: &&Entry| matches!(entry.what, Found::Inode { stat: Some(_), .. });
        result.listings[at].entries.iter().filter(has).count()
    };
    assert_eq!((delivered(1), delivered(2), delivered(3)), (51, 0, 0));
    let names = names(&result);
    assert_eq!(names[&b"a/link"[..]], names[&b"c/link"[..]]);
    assert_eq!(names[&b"a/link"[..]].1, Some(Kind::Symlink));
    assert_eq!(names[&b"a/1"[..]].0, names[&b"b/49"[..]].0);
    assert_eq!(figure(&counters.names), 3 * 51 - 1 + 3);
    assert_eq!(figure(&counters.directories), 4);
    if trusted {
        // 51 inodes and 4 directories.
        assert_eq!(figure(&counters.stats), 55);
    } else {
        eprintln!("SKIPPED counting stats: entry numbers are not trusted on the file system of the tests");
    }
}

#[test]
fn takes_any_name() {
    let root = tree();
    let mut expected = BTreeSet::new();
    for byte in (1..=255_u8).filter(|&byte| byte != b'/') {
        for name in [vec![b'n', byte], vec![byte, byte, byte]] {
            let path = root.path().join(OsStr::from_bytes(&name));
            if byte % 5 == 0 {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join(OsStr::from_bytes(&name)), b"").unwrap();
                expected.insert(join(&name, &name));
            } else {
                std::fs::write(&path, b"").unwrap();
            }
            expected.insert(name);
        }
    }
    let longest = vec![0xff; 255];
    std::fs::write(root.path().join(OsStr::from_bytes(&longest)), b"").unwrap();
    expected.insert(longest);
    expected.insert(Vec::new());
    for settled in [false, true] {
        let result = scan(root.path(), with_threads(2));
        assert_depth_first(&result);
        assert_eq!(names(&result).into_keys().collect::<BTreeSet<_>>(), expected, "{settled}");
        let_clock_step();
    }
}

#[test]
fn goes_deeper_than_the_longest_path() {
    let root = tree();
    let mut at: std::os::fd::OwnedFd = std::fs::File::open(root.path()).unwrap().into();
    const LEVELS: usize = 120;
    for level in 0..LEVELS {
        let name = format!("{level:0100}");
        mkdirat(&at, name.as_str(), Mode::from(0o755)).unwrap();
        mkdirat(&at, "aside", Mode::from(0o755)).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
    mknodat(&at, "bottom", FileType::RegularFile, Mode::from(0o644), 0).unwrap();
    for (threads, kept_open) in [(1, 1_000), (1, 0), (3, 2), (3, 0)] {
        let result = drain(Scan::start_with(root.path(), with_threads(threads), kept_open).unwrap());
        assert_depth_first(&result);
        assert_eq!(result.listings.len(), 2 * LEVELS + 1);
        let deepest = result.listings.iter().max_by_key(|listing| listing.path.len()).unwrap();
        assert!(deepest.path.len() > 2 * 4096);
        assert_eq!(&*deepest.entries[0].name, b"bottom");
        assert!(result.problems.is_empty() && result.listings.iter().all(|listing| listing.unreadable.is_none()));
    }
}

#[test]
fn distinguishes_all_kinds() {
    let root = tree();
    let directory = std::fs::File::open(root.path()).unwrap();
    mknodat(&directory, "fifo", FileType::Fifo, Mode::from(0o640), 0).unwrap();
    std::fs::write(root.path().join("file"), b"").unwrap();
    symlink("file", root.path().join("symlink")).unwrap();
    let _listener = UnixListener::bind(root.path().join("socket")).unwrap();
    let device = rustix::fs::makedev(250, 70_000);
    let devices = mknodat(&directory, "char", FileType::CharacterDevice, Mode::from(0o600), device)
        .and_then(|()| mknodat(&directory, "block", FileType::BlockDevice, Mode::from(0o600), device));
    let result = scan(root.path(), with_threads(1));
    let kinds = names(&result);
    let kind = |name: &str| kinds[name.as_bytes()].1;
    assert_eq!(kind("fifo"), Some(Kind::Fifo));
    assert_eq!(kind("file"), Some(Kind::File));
    assert_eq!(kind("symlink"), Some(Kind::Symlink));
    assert_eq!(kind("socket"), Some(Kind::Socket));
    if devices.is_err() {
        eprintln!("SKIPPED device nodes: only root can make them");
        return;
    }
    assert_eq!((kind("char"), kind("block")), (Some(Kind::CharDevice), Some(Kind::BlockDevice)));
    let Found::Inode { stat: Some(stat), .. } = &result.listings[0].entries[0].what else { panic!("no stat") };
    assert_eq!((stat.kind, stat.rdev, stat.mode), (Kind::BlockDevice, device, 0o600));
}

#[test]
fn leaves_out_what_is_excluded() {
    let root = tree();
    for directory in ["lost+found", "sessions/TO_DELETE-full-1/deep", "sessions/full-2/lost+found", "tmp/restore"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
        std::fs::write(root.path().join(directory).join("core"), b"").unwrap();
    }
    let excludes = ExcludePatterns::new(&["core".to_owned(), "/tmp/*/".to_owned()], true).unwrap();
    let running = Scan::start(root.path(), ScanOptions { excludes, ..with_threads(2) }).unwrap();
    let counters = running.counters();
    let paths: Vec<_> = names(&drain(running)).into_keys().collect();
    let expected: [&[u8]; 5] = [b"", b"sessions", b"sessions/full-2", b"sessions/full-2/lost+found", b"tmp"];
    assert_eq!(paths, expected);
    assert_eq!(figure(&counters.excluded), 4);
}

#[test]
fn reads_attributes_of_directories() {
    let root = tree();
    let inner = root.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    match rustix::fs::setxattr(&inner, "user.note", b"text", rustix::fs::XattrFlags::empty()) {
        Err(rustix::io::Errno::NOTSUP) => {
            eprintln!("SKIPPED: the file system of the tests has no user attributes");
            return;
        }
        answer => answer.unwrap(),
    }
    let result = scan(root.path(), with_threads(1));
    let own = |xattr: &&Xattr| xattr.name.starts_with(b"user.");
    let found: Vec<_> = result.listings[1].xattrs.iter().filter(own).collect();
    assert_eq!((found.len(), &*found[0].value), (1, &b"text"[..]));
    assert_eq!(result.listings[0].xattrs.iter().filter(own).count(), 0);
}
