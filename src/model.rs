//! The vocabulary shared by every layer: kinds, times, attributes and chunk hashes.
//!
//! Nothing here does input or output, so the source side (which later runs on another host) and the store side can
//! both use it without knowing each other.

use std::fmt;

use rustix::fs::FileType;

use crate::ids::DictionaryId;

/// Names the kind of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, strum::FromRepr)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link; its content is the target.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A Unix socket.
    Socket = 4,
    /// A character device.
    CharDevice = 5,
    /// A block device.
    BlockDevice = 6,
}

impl Kind {
    /// Returns the kind for the mode that the system gives of an inode, or `None` for one that is not known.
    pub fn from_raw_mode(mode: u32) -> Option<Kind> {
        Some(match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Unknown => return None,
        })
    }

    /// Returns the letter that `ls -l` shows for this kind.
    pub fn letter(self) -> char {
        match self {
            Kind::File => '-',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
        }
    }
}

/// A time as the file system keeps it: seconds since 1970 (negative before) and nanoseconds within that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, rounded down.
    pub seconds: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nanos: u32,
}

/// One extended attribute: its full name (with the `user.` or `system.` prefix) and its value.
///
/// POSIX ACLs are the attributes `system.posix_acl_access` and `system.posix_acl_default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xattr {
    /// The full name, without a trailing NUL.
    pub name: Box<[u8]>,
    /// The value, any bytes.
    pub value: Box<[u8]>,
}

/// Most memory of all extended attributes of one inode that a snapshot keeps, in bytes; see [`held_bytes`]. Some file systems (tmpfs, XFS) let any user give
/// one file hundreds of megabytes of them.
pub const XATTRS_MAX_BYTES: usize = 1 << 20;

/// The same for the directory at the top of a source: its attributes stand in the snapshot's record, which is read often, and is transferred whole.
pub const ROOT_XATTRS_MAX_BYTES: usize = 128 << 10;

/// Returns what extended attributes take in memory, roughly and in bytes.
pub fn held_bytes(xattrs: &[Xattr]) -> usize {
    xattrs.iter().map(Xattr::held_bytes).sum()
}

/// Keeps extended attributes within `most` bytes of memory. Returns whether they were: if not, those of users (`user.`) go, so that lists of access rights
/// stay, and of what is still too much then the rest.
pub fn bound_xattrs(xattrs: &mut Vec<Xattr>, most: usize) -> bool {
    if held_bytes(xattrs) <= most {
        return true;
    }
    let mut held = 0;
    xattrs.retain(|xattr| {
        let fits = !xattr.is_of_user() && held + xattr.held_bytes() <= most;
        held += if fits { xattr.held_bytes() } else { 0 };
        fits
    });
    false
}

impl Xattr {
    /// Returns what it takes in memory, roughly and in bytes.
    pub fn held_bytes(&self) -> usize {
        self.name.len() + self.value.len() + 64
    }

    /// Returns whether any user who may write to a file may give it this attribute.
    pub fn is_of_user(&self) -> bool {
        self.name.starts_with(b"user.")
    }
}

/// The longest name in a directory, in bytes (`NAME_MAX`).
pub const NAME_MAX_BYTES: usize = 255;

/// The attributes of one inode that a snapshot keeps.
///
/// Not the change time and not the link count: every new hard link alters both and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// The kind of the inode.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777, without the bits of the kind.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Apparent size in bytes; 0 for a directory.
    pub size: u64,
    /// Device number of a device node (as `makedev` gives it), else 0.
    pub rdev: u64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// What one `statx` call reported for an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The kind of the inode.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Number of names, as the source counts them.
    pub nlink: u32,
    /// Apparent size in bytes.
    pub size: u64,
    /// Allocated bytes; less than `size` in a sparse file.
    pub allocated_bytes: u64,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Inode number.
    pub ino: u64,
    /// Device number of the file system. Changes at a reboot: never stored.
    pub dev: u64,
    /// Time of the last modification of the content.
    pub mtime: Timestamp,
    /// Time of the last change of the inode, new links included.
    pub ctime: Timestamp,
    /// Time of birth where the file system keeps one.
    pub btime: Option<Timestamp>,
}

/// A stat with nothing in it.
pub const ZERO_STAT: Stat = Stat {
    kind: Kind::File,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 0,
    size: 0,
    allocated_bytes: 0,
    rdev: 0,
    ino: 0,
    dev: 0,
    mtime: Timestamp { seconds: 0, nanos: 0 },
    ctime: Timestamp { seconds: 0, nanos: 0 },
    btime: None,
};

impl Stat {
    /// Returns the attributes that a snapshot keeps, with the given extended attributes.
    pub fn attributes(&self, xattrs: Vec<Xattr>) -> Attributes {
        Attributes {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            size: if self.kind == Kind::Directory { 0 } else { self.size },
            rdev: self.rdev,
            xattrs,
        }
    }
}

/// The BLAKE3 hash of a chunk's plain bytes: its identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// Computes the hash of a chunk's plain bytes.
    pub fn of(plain: &[u8]) -> ChunkHash {
        ChunkHash(*blake3::hash(plain).as_bytes())
    }

    /// Returns the first eight bytes, which the catalogue keeps to bind a chunk's number to its hash.
    pub fn prefix(&self) -> [u8; 8] {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0[..8]);
        prefix
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkHash({self})")
    }
}

/// How a chunk's stored bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codec {
    /// The stored bytes are the plain bytes.
    Plain,
    /// One zstd frame.
    Zstd,
    /// One zstd frame that needs this dictionary.
    ZstdDictionary(DictionaryId),
}

impl Codec {
    /// Returns whether this version knows the codec of that number on disk.
    pub fn is_known(number: u8) -> bool {
        number <= 2
    }

    /// Returns the codec for its number on disk and that of the dictionary beside it, which is 0 where none is needed; `None` where they
    /// do not go together.
    pub fn from_numbers(codec: u8, dictionary: u32) -> Option<Codec> {
        match (codec, dictionary) {
            (0, 0) => Some(Codec::Plain),
            (1, 0) => Some(Codec::Zstd),
            (2, id) => DictionaryId::decoded(id).ok().map(Codec::ZstdDictionary),
            _ => None,
        }
    }

    /// Returns what stands on disk: the codec's number, and that of the dictionary or 0.
    pub fn numbers(self) -> (u8, u32) {
        match self {
            Codec::Plain => (0, 0),
            Codec::Zstd => (1, 0),
            Codec::ZstdDictionary(id) => (2, id.get()),
        }
    }
}
