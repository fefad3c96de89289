//! Serves an immutable tree of files as a FUSE file system.
//!
//! A tree never changes while it is served, so the kernel may keep every answer for as long as it likes: it requests each thing once, and a
//! second look at a file or a directory does not reach the server at all. The crate knows nothing of stores, snapshots or chunks: whoever has a tree implements
//! [`ImmutableTree`] and checks the implementation in its tests with `check_contract` (feature `testing`); [`TreeServer`] answers the kernel from it, and
//! [`mount`] gives it a place. The server can be tried without a mount: what it answers is a function of the tree.
//!
//! Architecture invariant: errors become error numbers in one place, [`TreeError`], and the kernel's in [`server`](TreeServer).

#[cfg(any(test, feature = "testing"))]
mod contract;
#[cfg(test)]
mod memory_tree;
mod mount;
mod mount_table;
mod overflow;
mod overlay;
mod server;

#[cfg(any(test, feature = "testing"))]
pub use contract::{ContractViolation, check_contract};
pub use mount::{Mount, MountOptions, UnmountMode, mount, unmount};
pub use mount_table::{MountEntry, mount_table, mounts_at};
pub use overlay::mount_overlay;
pub use server::TreeServer;

/// Takes what a server has to say to the people who run it: one line a call.
pub type Log = std::sync::Arc<dyn Fn(&str) + Send + Sync>;

/// The target of this crate's events for `tracing`: requests that fail or are slow.
pub const TRACE_TARGET: &str = "mount";

/// Inode number of the root of every tree, as FUSE has it.
pub const ROOT: u64 = 1;

/// A system's error number, as `errno(3)` lists them for Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// No such name, or no such inode.
    pub const NOENT: Errno = Errno(2);
    /// The bytes cannot be had: damage, or a failing disk.
    pub const IO: Errno = Errno(5);
    /// Not a directory.
    pub const NOTDIR: Errno = Errno(20);
    /// Is a directory.
    pub const ISDIR: Errno = Errno(21);
    /// The operation is invalid for this kind of inode.
    pub const INVAL: Errno = Errno(22);
    /// No such extended attribute.
    pub const NODATA: Errno = Errno(61);
}

/// Why a tree could not answer: a number for the kernel and a cause for people.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct TreeError {
    /// What a system call on the tree fails with.
    pub errno: Errno,
    /// What happened, for a log.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl TreeError {
    /// Makes an error.
    pub fn new(errno: Errno, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TreeError {
        TreeError { errno, source: source.into() }
    }
}

/// Names the kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What `stat` reports for an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAttributes {
    /// Inode number: the same for all names of one inode, and for no other inode of the tree.
    pub inode: u64,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Number of names in the tree; 1 for a directory whose subdirectories were not counted.
    pub link_count: u32,
    /// Bytes of a file; length of a symlink's target.
    pub size: u64,
    /// Bytes that the contents take, as `du` counts them: less than `size` for a file with holes.
    pub allocated_bytes: u64,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Seconds of the last modification since 1970, rounded down.
    pub mtime_seconds: i64,
    /// Nanoseconds within that second.
    pub mtime_nanos: u32,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedEntry<'a> {
    /// The name, one component.
    pub name: &'a [u8],
    /// Its inode number.
    pub inode: u64,
    /// The kind of the inode, as far as it is known.
    pub kind: FileKind,
    /// Its attributes; `None` when they cannot be had, which a look-up or [`attributes`](ImmutableTree::attributes) then reports.
    pub attributes: Option<FileAttributes>,
    /// Where a listing that ends here goes on: the cookie to give to the next call.
    pub next_cookie: u64,
}

/// Figures of a whole tree, for `df`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeTotals {
    /// Sum of the sizes of all inodes, in bytes.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedAttribute {
    /// Its full name, without a trailing NUL.
    pub name: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}

/// A tree of files that never changes.
///
/// Inode numbers come from [`lookup`](ImmutableTree::lookup) and [`list`](ImmutableTree::list), and stay valid as long as the tree lives;
/// [`ROOT`] is valid from the start. All methods may be called from many threads at once.
pub trait ImmutableTree: Send + Sync {
    /// Finds a name in a directory. `.` and `..` are no names.
    ///
    /// # Errors
    /// [`Errno::NOENT`] without such a name, [`Errno::NOTDIR`] when the inode is no directory, [`Errno::IO`] when it cannot be read.
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<FileAttributes, TreeError>;

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// [`Errno::NOENT`] for an inode that was never handed out, [`Errno::IO`] when it cannot be read.
    fn attributes(&self, inode: u64) -> Result<FileAttributes, TreeError>;

    /// Calls `visit` for the entries of a directory, from the cookie on, until it returns false or none is left.
    ///
    /// Cookie 0 is the first entry; `.` and `..` are not listed. The order is the same at each call.
    ///
    /// # Errors
    /// [`Errno::NOTDIR`] when the inode is no directory, [`Errno::IO`] when it cannot be read.
    fn list(
        &self,
        directory: u64,
        cookie: u64,
        visit: &mut dyn FnMut(ListedEntry<'_>) -> bool,
    ) -> Result<(), TreeError>;

    /// Fills `buffer` with the bytes of a file from `offset` on and returns their number; fewer than there is room for only where the file ends.
    /// What the buffer holds behind them, or after an error, is anything.
    ///
    /// # Errors
    /// [`Errno::ISDIR`] for a directory, [`Errno::INVAL`] for another kind than a file, [`Errno::IO`] when the bytes cannot be had; wrong
    /// bytes are never returned.
    fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// [`Errno::INVAL`] for another kind of inode.
    fn readlink(&self, inode: u64) -> Result<Vec<u8>, TreeError>;

    /// Returns all extended attributes of an inode, sorted by name.
    ///
    /// # Errors
    /// As [`attributes`](ImmutableTree::attributes).
    fn extended_attributes(&self, inode: u64) -> Result<Vec<ExtendedAttribute>, TreeError>;

    /// Returns one extended attribute.
    ///
    /// # Errors
    /// [`Errno::NODATA`] when the inode has none of this name; else as [`attributes`](ImmutableTree::attributes).
    fn extended_attribute(&self, inode: u64, name: &[u8]) -> Result<Box<[u8]>, TreeError> {
        let all = self.extended_attributes(inode)?;
        match all.into_iter().find(|attribute| *attribute.name == *name) {
            Some(attribute) => Ok(attribute.value),
            None => Err(TreeError::new(
                Errno::NODATA,
                format!("Inode {inode} has no extended attribute {}", String::from_utf8_lossy(name)),
            )),
        }
    }

    /// Returns the directory that a directory stands in; the root stands in itself.
    ///
    /// # Errors
    /// [`Errno::NOTDIR`] when the inode is no directory, [`Errno::NOENT`] when it was never handed out.
    fn parent(&self, directory: u64) -> Result<u64, TreeError>;

    /// Returns a number that distinguishes the inode from whatever has the same inode number in another tree. The kernel hands out handles of both, as a server
    /// of NFS keeps them: where the generation differs, an old one is stale. The kernel itself sets that of the root, to 0, and this is not called for it.
    fn generation(&self, _inode: u64) -> u32 {
        0
    }

    /// Returns the figures of the whole tree.
    fn totals(&self) -> TreeTotals;

    /// Returns whether the entries of a directory can change all the same, as those of a directory of all trees there are. Its answers are
    /// kept for a second; names that vanish from it may leave inodes behind that answer [`Errno::NOENT`].
    fn is_volatile(&self, _directory: u64) -> bool {
        false
    }

    /// Returns whether any inode of the tree may have a POSIX access control list. The kernel requests one at every directory that it walks through
    /// then.
    fn may_have_acls(&self) -> bool {
        true
    }
}
