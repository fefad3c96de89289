//! What a scan delivers: directories and their names, and what could not be read.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::model::{Stat, Xattr};

/// One directory of the tree.
///
/// Listings come in depth-first order: a directory, then its subdirectories in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Path relative to the root, components separated by `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// The directory's own attributes. All zero but the kind if not even they could be read.
    pub stat: Stat,
    /// The directory's own extended attributes.
    pub xattrs: Vec<Xattr>,
    /// Number of the file system it is on: an index into [`Scan::file_systems`](super::Scan::file_systems).
    pub file_system: u32,
    /// What it holds, sorted by the bytes of the names.
    pub entries: Vec<Entry>,
    /// Set if it could not be read, or not to its end; `entries` is then incomplete.
    pub unreadable: Option<Problem>,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: any bytes but `/` and NUL.
    pub name: Box<[u8]>,
    /// What it leads to.
    pub what: Found,
}

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A directory. Its listing follows in depth-first order, even if it cannot be read or vanishes meanwhile.
    Directory,
    /// A directory that is not entered, because it is on another file system. No listing follows.
    Boundary(Box<Stat>),
    /// Anything else.
    ///
    /// The first delivered name of an inode always carries its stat. A later name without one belongs to the inode
    /// whose stat was delivered last under that number. A later name may carry a stat all the same: the same birth
    /// time shows that it is the same inode, another one that the number went to a new file during the scan.
    Inode {
        /// Number of the file system: an index into [`Scan::file_systems`](super::Scan::file_systems).
        file_system: u32,
        /// Inode number.
        ino: u64,
        /// What `statx` returned.
        stat: Option<Box<Stat>>,
    },
}

/// Something of the tree that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {}: {message}", crate::plain::escape(path))]
pub struct Problem {
    /// Path relative to the root.
    pub path: Vec<u8>,
    /// What sort of problem it is.
    pub kind: ProblemKind,
    /// What the system answered.
    pub message: String,
    /// The system's error number.
    pub errno: i32,
}

/// Sorts problems by what to make of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// It is there, but could not be read: permissions, or an error of the file system.
    Unreadable,
    /// It was gone, or no longer a directory, when its turn came. Normal in a tree that is in use.
    Vanished,
    /// Its name or path is too long for the system.
    TooLong,
    /// Another file system was mounted there during the scan.
    Mounted,
    /// All file descriptors of the process or the system are in use.
    TooManyOpenFiles,
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProblemKind::Unreadable => "Cannot read",
            ProblemKind::Vanished => "Vanished during the scan:",
            ProblemKind::TooLong => "Name too long:",
            ProblemKind::Mounted => "Mounted during the scan:",
            ProblemKind::TooManyOpenFiles => "Too many open files (raise `ulimit -n`) to read",
        })
    }
}

impl Problem {
    pub(crate) fn new(path: Vec<u8>, error: &io::Error) -> Problem {
        let kind = match Errno::from_io_error(error) {
            // A directory that has become a symbolic link answers LOOP, one that has become a file NOTDIR.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => ProblemKind::Vanished,
            Some(Errno::NAMETOOLONG) => ProblemKind::TooLong,
            Some(Errno::MFILE | Errno::NFILE) => ProblemKind::TooManyOpenFiles,
            _ => ProblemKind::Unreadable,
        };
        Problem {
            path,
            kind,
            message: error.to_string(),
            errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        }
    }
}

/// Joins a directory's relative path and a name.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
