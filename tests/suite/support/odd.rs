//! A tree of everything that a tree can hold, and ways to compare trees.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};
use walkdir::WalkDir;

pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// All paths below a directory, itself not included; each directory before what is in it, and names in order.
pub fn paths(directory: &Path) -> Vec<PathBuf> {
    let walk = WalkDir::new(directory).min_depth(1).sort_by_file_name().into_iter();
    walk.map(|entry| entry.unwrap().into_path()).collect()
}

/// The paths of all that is no directory below a directory, in order.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    paths(directory).into_iter().filter(|path| path.is_symlink() || !path.is_dir()).collect()
}

/// The sets of names that are one inode.
pub fn partition(directory: &Path) -> BTreeSet<BTreeSet<PathBuf>> {
    let mut inodes: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
    for path in paths(directory) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        inodes
            .entry((metadata.dev(), metadata.ino()))
            .or_default()
            .insert(path.strip_prefix(directory).unwrap().to_owned());
    }
    inodes.into_values().collect()
}

/// Times to the nanosecond, which rsync compares only as far as it likes.
pub fn times(directory: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let time = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    let mut all: BTreeMap<PathBuf, (i64, i64)> =
        paths(directory).iter().map(|path| (path.strip_prefix(directory).unwrap().to_owned(), time(path))).collect();
    all.insert(PathBuf::new(), time(directory));
    all
}

pub fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Long enough for what was written before to count as settled: ticks of the file system's clock, and the scan's margin.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(250));
}

/// An ACL: owner rwx, user 12345 r--, group r-x, mask r-x, others none.
pub fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, u32::MAX), (2, 4, 12345), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

/// Pseudo-random bytes that no compressor shortens.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Every kind of thing that a tree can hold.
pub fn odd_tree(tree: &Path) {
    let at = |path: &str| tree.join(path);
    let write = |path: &str, text: &str| {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), text).unwrap();
    };
    for number in 0..300 {
        write(&format!("many/{}/{number}", number % 7), &format!("text of {number}"));
    }
    write("a", "linked");
    write("empty", "");
    fs::create_dir_all(at("deep/er")).unwrap();
    for other in ["deep/a2", "deep/er/a3", "many/3/zz"] {
        fs::hard_link(at("a"), at(other)).unwrap();
    }
    // Equal content, another inode.
    write("deep/same", "linked");
    fs::hard_link(at("empty"), at("deep/empty2")).unwrap();
    fs::write(at("large"), noise(9_000_000, 7)).unwrap();
    fs::hard_link(at("large"), at("deep/large2")).unwrap();
    symlink("../nowhere\n", at("deep/link")).unwrap();
    fs::hard_link(at("deep/link"), at("link2")).unwrap();
    set_time(&at("link2"), -77, 5);
    let make = |path: &str, kind, device| {
        mknodat(CWD, at(path), kind, Mode::from_bits_retain(0o640), device).unwrap();
    };
    make("fifo", FileType::Fifo, 0);
    fs::hard_link(at("fifo"), at("deep/fifo2")).unwrap();
    make("socket", FileType::Socket, 0);
    let odd = tree.join(OsStr::from_bytes(b"odd \xff\n'\"\\ name"));
    fs::write(&odd, "odd").unwrap();
    fs::create_dir(tree.join(OsStr::from_bytes("-ü".as_bytes()))).unwrap();
    fs::write(at(&"n".repeat(255)), "long name").unwrap();
    if root() {
        make("device", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        make("disk", FileType::BlockDevice, rustix::fs::makedev(70_000 >> 8, 300));
        std::os::unix::fs::lchown(at("large"), Some(4242), Some(4343)).unwrap();
        std::os::unix::fs::lchown(at("deep/link"), Some(17), Some(18)).unwrap();
        std::os::unix::fs::lchown(at("deep/er"), Some(4242), Some(4343)).unwrap();
        set_mode(&at("large"), 0o6755);
    }
    for (path, name, value) in [
        ("a", "user.note", &b"value\0with nul"[..]),
        ("a", "system.posix_acl_access", &acl()),
        ("deep", "system.posix_acl_access", &acl()),
        ("deep", "system.posix_acl_default", &acl()),
        ("deep/er", "user.large", &noise(2_000, 3)),
    ] {
        setxattr(at(path), name, value, XattrFlags::empty()).unwrap();
    }
    // Sparse: a hole in front, in the middle and at the end.
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.write_all_at(&noise(100_000, 9), 20 << 20).unwrap();
    drop(sparse);
    set_time(&at("a"), -1_234_567_890, 999_999_999);
    set_time(&at("empty"), -1, 1);
    set_time(&at("large"), 1_700_000_000, 123_456_789);
    // The top is one that no default hits by chance.
    if root() {
        std::os::unix::fs::lchown(tree, Some(4242), Some(4343)).unwrap();
    }
    set_mode(tree, 0o2751);
    setxattr(tree, "user.top", b"of the top", XattrFlags::empty()).unwrap();
    set_mode(&at("many/5"), 0o500);
    set_mode(&at("many"), 0o1555);
    for (number, path) in ["deep/er", "deep", "many/5", "many", ""].into_iter().enumerate() {
        set_time(&at(path), 1_000_000_000 + number as i64, 7);
    }
}
