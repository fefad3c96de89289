//! Knows the file systems of the tree and what their directory entries can be trusted with.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::RwLock;

use rustix::fs::{OFlags, fstatfs};

/// One file system, found while scanning.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    /// Its device number as this boot has it.
    pub(super) device: u64,
    /// The inode number in a directory entry is that of the inode the name leads to.
    pub(super) trusted_numbers: bool,
    /// A subdirectory can have another device number without being a mount point (btrfs subvolumes, automounts).
    pub(super) nested_devices: bool,
}

/// The file systems found so far, in the order in which the threads found them.
#[derive(Default)]
pub(super) struct FileSystems {
    list: RwLock<Vec<FileSystem>>,
}

impl FileSystems {
    pub(super) fn get(&self, index: u32) -> FileSystem {
        let list = self.list.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Indexes are made by `index_of` only, and the list never shrinks.
        list[index as usize]
    }

    /// Returns the index of the file system with the given device number; `open` opens an inode on it if it is new.
    pub(super) fn index_of(&self, device: u64, open: impl FnOnce() -> Option<OwnedFd>) -> u32 {
        let find = |list: &[FileSystem]| list.iter().position(|known| known.device == device);
        if let Some(index) = find(&self.list.read().unwrap_or_else(std::sync::PoisonError::into_inner)) {
            return index as u32;
        }
        let (trusted_numbers, nested_devices) = open().map_or((false, true), |inode| qualities(inode.as_fd()));
        let mut list = self.list.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(index) = find(&list) {
            return index as u32;
        }
        list.push(FileSystem { device, trusted_numbers, nested_devices });
        (list.len() - 1) as u32
    }
}

/// Returns, by the type of a file system, whether entry numbers can be trusted, and whether device numbers nest.
///
/// Network and stacked file systems make numbers up, so every name is stat'ed there.
fn qualities(inode: BorrowedFd<'_>) -> (bool, bool) {
    const EXT: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const TMPFS: u32 = 0x0102_1994;
    const F2FS: u32 = 0xf2f5_2010;
    const ZFS: u32 = 0x2fc1_2fc1;
    match fstatfs(inode) {
        Ok(found) => match found.f_type as u32 {
            EXT | XFS | TMPFS | F2FS => (true, false),
            // The `.zfs` directory mounts snapshots when it is entered.
            BTRFS | ZFS => (true, true),
            _ => (false, true),
        },
        Err(_) => (false, true),
    }
}

/// Returns the directories of the tree that hold a mount point, by their paths relative to the root.
///
/// At a mount point the entry shows the inode that is covered, so in these directories nothing is taken from the
/// entries. Empty if `/proc` is not there.
pub(super) fn parents_of_mounts(root: BorrowedFd<'_>) -> HashSet<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", root.as_raw_fd());
    let Ok(root) = rustix::fs::readlink(link.as_str(), Vec::new()) else {
        return HashSet::new();
    };
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else {
        return HashSet::new();
    };
    mounts_below(root.to_bytes(), &table)
}

fn mounts_below(root: &[u8], table: &[u8]) -> HashSet<Vec<u8>> {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let mut parents = HashSet::new();
    for line in table.split(|&byte| byte == b'\n') {
        // id, parent, device, root within the file system, mount point
        let Some(point) = line.split(|&byte| byte == b' ').nth(4).map(unescape) else {
            continue;
        };
        let Some(relative) = point.strip_prefix(root).and_then(|rest| rest.strip_prefix(b"/")) else {
            continue;
        };
        if relative.is_empty() {
            continue;
        }
        let end = relative.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        parents.insert(relative[..end].to_vec());
    }
    parents
}

/// Undoes the octal escapes (`\040` for a space) of `/proc/self/mountinfo`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\'
            && let Some(digits) = after.get(..3)
            && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        {
            let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            plain.push(value as u8);
            rest = &after[3..];
        } else {
            plain.push(byte);
        }
    }
    plain
}

/// Opens an entry only to name its file system, whatever its kind.
pub(super) const NAMING_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directories_that_hold_mount_points() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 0:5 / /tree rw - tmpfs none rw\n\
            31 30 0:6 / /tree/a/b\\040c/d rw - tmpfs none rw\n\
            32 30 0:7 / /tree/top rw - tmpfs none rw\n\
            33 22 0:8 / /treetop/x rw - tmpfs none rw\n";
        let found = mounts_below(b"/tree", table);
        assert_eq!(found, HashSet::from([b"a/b c".to_vec(), b"".to_vec()]));
        let all = mounts_below(b"/", table);
        assert_eq!(all.len(), 4);
        assert!(all.contains(&b"treetop"[..]) && all.contains(&b""[..]));
    }
}
