//! A snapshot as the tree that a mount serves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use quick_cache::sync::Cache;
use zmreplica_fuse::{
    Errno, ExtendedAttribute, FileAttributes, FileKind, ImmutableTree, ListedEntry, ROOT, TreeError, TreeTotals,
};

use crate::catalog::group::{Content, Segment};
use crate::ids::GroupId;
use crate::model::{Attributes, Kind};
use crate::view::{DirectoryNode, Node, OwnerMap, SnapshotView, ViewError};

/// Directories kept at hand; one takes some hundreds of bytes beside the page that it is on.
const DIRECTORIES: usize = 16_384;
/// What `stat` shows as the size of a directory: a block, as on most file systems.
const DIRECTORY_BYTES: u64 = 4096;
/// Files are allotted whole blocks, as on most file systems.
const BLOCK_BYTES: u64 = 4096;
/// A symlink up to this length takes no block on most file systems.
const INLINE_SYMLINK_BYTES: u64 = 60;

/// Serves a snapshot.
///
/// Inode numbers: a file's is twice the number of its link group and 2, so that all its names have it. A directory's is odd, and follows from that of the
/// directory above and its position there, neither of which ever changes. So it is the same in each mount of the snapshot, but where two directories come
/// to the same number; the second one seen gets the next. Some 50 bytes of memory for each one seen. Its node is found again from the root when it is not
/// at hand.
///
/// Generations: of a file the snapshot's, of a directory one that follows from the snapshot and the positions on the way to it. So a handle of another
/// snapshot, or of a directory whose number went to another one, is stale and never leads to something else.
pub struct SnapshotTree {
    view: SnapshotView,
    owners: OwnerMap,
    directories: RwLock<Directories>,
    nodes: Cache<u64, DirectoryNode>,
    generation: u32,
    /// Whether numbers that nobody has seen yet may be requested: then all directories are numbered, once.
    unseen: AtomicBool,
}

/// Where a directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DirPosition {
    /// Number of the directory above.
    parent: u64,
    /// Its position among that one's entries.
    position: u32,
    /// Its generation.
    generation: u32,
}

/// Directories by number. The root is 0.
type Directories = HashMap<u64, DirPosition>;

/// Bits of a directory's number, so that inode numbers leave room above them.
const NUMBER_BITS: u32 = 39;

/// Mixes two numbers into one whose bits all depend on all of theirs (the finish of SplitMix64, twice).
fn mixed(left: u64, right: u64) -> u64 {
    let finish = |value: u64| {
        let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    };
    finish(finish(left.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ right)
}

/// Makes a directory's number of some bits; never the root's.
fn number_of(bits: u64) -> u64 {
    (bits & ((1 << NUMBER_BITS) - 1)).max(1)
}

impl SnapshotTree {
    /// Makes a tree of a view, with owners as they are to be shown.
    pub fn new(view: SnapshotView, owners: OwnerMap) -> SnapshotTree {
        let hash = blake3::hash(view.record().id.as_bytes());
        let generation = hash.as_bytes().iter().take(4).fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        SnapshotTree {
            view,
            owners,
            directories: RwLock::default(),
            nodes: Cache::new(DIRECTORIES),
            generation,
            unseen: AtomicBool::new(false),
        }
    }

    /// Lets handles of an earlier mount of the snapshot lead to directories that nobody has seen yet in this one. The first such handle costs a walk through
    /// all directories.
    #[must_use]
    pub fn keeping_handles(mut self) -> SnapshotTree {
        *self.unseen.get_mut() = true;
        self
    }

    /// Gives files the generation 0 that all had in earlier versions. A directory of changes, which belongs to one snapshot forever, has handles of them.
    #[must_use]
    pub fn below_changes(self) -> SnapshotTree {
        SnapshotTree { generation: 0, ..self }
    }

    fn position(&self, inode: u64) -> Result<DirPosition, TreeError> {
        if inode == ROOT {
            return Ok(DirPosition { parent: 0, position: 0, generation: self.generation });
        }
        let known = || self.directories.read().unwrap_or_else(PoisonError::into_inner).get(&(inode / 2)).copied();
        let mut found = known();
        if found.is_none() && self.unseen.swap(false, Ordering::Relaxed) {
            self.see_all();
            found = known();
        }
        found.ok_or_else(|| no_inode(inode))
    }

    /// Numbers all directories. What cannot be read has none below it that could be shown.
    fn see_all(&self) {
        let mut waiting = vec![(ROOT, Arc::clone(self.view.root_directory()))];
        while let Some((inode, node)) = waiting.pop() {
            let Ok(listing) = self.view.list(&node) else { continue };
            for (position, entry) in (0..).zip(listing) {
                let Ok(entry) = entry else { break };
                if let Node::Directory(inner) = &entry.node
                    && let Ok(inner_inode) = self.inode(inode, position, &entry.node)
                {
                    waiting.push((inner_inode, Arc::clone(inner)));
                }
            }
        }
    }

    /// Returns a directory by its inode number, from the nearest one above that is at hand.
    fn directory(&self, inode: u64) -> Result<DirectoryNode, TreeError> {
        if let Some(group) = group_of(inode)? {
            return Err(TreeError::new(Errno::NOTDIR, format!("Link group {group} is not a directory")));
        }
        let mut way = Vec::new();
        let mut at = inode;
        let mut node = loop {
            if at == ROOT {
                break Arc::clone(self.view.root_directory());
            }
            if let Some(node) = self.nodes.get(&at) {
                break node;
            }
            let stands = self.position(at)?;
            way.push((at, stands.position));
            at = stands.parent * 2 + ROOT;
        };
        for (number, position) in way.into_iter().rev() {
            let entry = self.view.list_from(&node, position.into())?.next().transpose()?;
            let Some(Node::Directory(inner)) = entry.map(|entry| entry.node) else { return Err(no_inode(number)) };
            self.nodes.insert(number, Arc::clone(&inner));
            node = inner;
        }
        Ok(node)
    }

    fn node(&self, inode: u64) -> Result<Node, TreeError> {
        match group_of(inode)? {
            Some(group) => Ok(Node::Group(group)),
            None => self.directory(inode).map(Node::Directory),
        }
    }

    fn file(&self, inode: u64) -> Result<GroupId, TreeError> {
        group_of(inode)?.ok_or_else(|| TreeError::new(Errno::ISDIR, format!("Inode {inode} is a directory")))
    }

    /// Returns the inode number of what stands at a position of a directory.
    fn inode(&self, parent: u64, position: u64, node: &Node) -> Result<u64, TreeError> {
        let directory = match node {
            Node::Group(group) => return Ok(group.0 * 2 + 2),
            Node::Directory(directory) => directory,
        };
        let full = || TreeError::new(Errno::IO, "there are more directories than can be numbered");
        let above = self.position(parent)?;
        let parent = parent / 2;
        let generation = mixed(above.generation.into(), position) as u32;
        let own = DirPosition { parent, position: u32::try_from(position).map_err(|_| full())?, generation };
        let first = number_of(mixed(parent, position));
        {
            let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
            if directories.get(&first) == Some(&own) {
                return Ok(first * 2 + ROOT);
            }
        }
        let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
        let mut number = first;
        loop {
            match directories.entry(number) {
                Entry::Vacant(vacant) => {
                    vacant.insert(own);
                    break;
                }
                Entry::Occupied(other) if *other.get() == own => break,
                Entry::Occupied(_) => number = number_of(number + 1),
            }
            if number == first {
                return Err(full());
            }
        }
        drop(directories);
        let inode = number * 2 + ROOT;
        self.nodes.insert(inode, Arc::clone(directory));
        Ok(inode)
    }

    fn describe(&self, inode: u64, node: &Node) -> Result<FileAttributes, TreeError> {
        match node {
            Node::Group(number) => {
                let row = self.view.group(*number)?;
                let Attributes { kind, mode, uid, gid, mtime, size, rdev, .. } = row.attributes;
                let (uid, gid) = self.owners.owner(uid, gid);
                Ok(FileAttributes {
                    inode,
                    kind: file_kind(kind),
                    mode,
                    uid,
                    gid,
                    link_count: self.view.link_count(node)?,
                    size,
                    allocated_bytes: allocated_bytes(kind, size, &row.content),
                    rdev,
                    mtime_seconds: mtime.seconds,
                    mtime_nanos: mtime.nanos,
                })
            }
            Node::Directory(directory) => {
                let own = &directory.attributes;
                let (uid, gid) = self.owners.owner(own.uid, own.gid);
                Ok(FileAttributes {
                    inode,
                    kind: FileKind::Directory,
                    mode: own.mode,
                    uid,
                    gid,
                    // Subdirectories are not counted; 1 says so to programs, as on btrfs.
                    link_count: 1,
                    size: DIRECTORY_BYTES,
                    allocated_bytes: DIRECTORY_BYTES,
                    rdev: 0,
                    mtime_seconds: own.mtime.seconds,
                    mtime_nanos: own.mtime.nanos,
                })
            }
        }
    }
}

impl ImmutableTree for SnapshotTree {
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<FileAttributes, TreeError> {
        let found = self.view.lookup_at(&self.directory(directory)?, name)?;
        let (position, node) = found.ok_or_else(|| TreeError::new(Errno::NOENT, "No such name"))?;
        self.describe(self.inode(directory, position, &node)?, &node)
    }

    fn attributes(&self, inode: u64) -> Result<FileAttributes, TreeError> {
        self.describe(inode, &self.node(inode)?)
    }

    fn list(
        &self,
        directory: u64,
        cookie: u64,
        visit: &mut dyn FnMut(ListedEntry<'_>) -> bool,
    ) -> Result<(), TreeError> {
        let node = self.directory(directory)?;
        for (entry, at) in self.view.list_from(&node, cookie)?.zip(cookie..) {
            let entry = entry?;
            let inode = self.inode(directory, at, &entry.node)?;
            let attributes = self.describe(inode, &entry.node).ok();
            let kind = match (&attributes, &entry.node) {
                (Some(attributes), _) => attributes.kind,
                (None, Node::Directory(_)) => FileKind::Directory,
                (None, Node::Group(_)) => FileKind::File,
            };
            if !visit(ListedEntry { name: &entry.name, inode, kind, attributes, next_cookie: at + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        Ok(self.view.read_into(self.file(inode)?, offset, buffer)?)
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, TreeError> {
        match group_of(inode)? {
            Some(group) => Ok(self.view.readlink(group)?),
            None => Err(TreeError::new(Errno::INVAL, format!("Inode {inode} is a directory"))),
        }
    }

    fn extended_attributes(&self, inode: u64) -> Result<Vec<ExtendedAttribute>, TreeError> {
        let attributes = self.view.attributes(&self.node(inode)?)?;
        let convert = |xattr: crate::model::Xattr| ExtendedAttribute { name: xattr.name, value: xattr.value };
        Ok(attributes.xattrs.into_iter().map(convert).collect())
    }

    fn parent(&self, directory: u64) -> Result<u64, TreeError> {
        match group_of(directory)? {
            Some(group) => Err(TreeError::new(Errno::NOTDIR, format!("Link group {group} is not a directory"))),
            None => Ok(self.position(directory)?.parent * 2 + ROOT),
        }
    }

    fn generation(&self, inode: u64) -> u32 {
        match group_of(inode) {
            Ok(None) => self.position(inode).map_or(0, |stands| stands.generation),
            _ => self.generation,
        }
    }

    fn totals(&self) -> TreeTotals {
        let totals = &self.view.record().totals;
        TreeTotals { bytes: totals.bytes, inodes: totals.inodes + totals.directories + 1 }
    }

    fn may_have_acls(&self) -> bool {
        self.view.record().has_acls.unwrap_or(true)
    }
}

/// Returns the link group that an inode number stands for, or `None` for a directory's number.
fn group_of(inode: u64) -> Result<Option<GroupId>, TreeError> {
    match (inode.is_multiple_of(2), inode.checked_sub(2)) {
        (false, _) => Ok(None),
        (true, Some(twice)) => Ok(Some(GroupId(twice / 2))),
        (true, None) => Err(no_inode(inode)),
    }
}

/// Estimates what a file takes on a usual file system: whole blocks, none for holes. Zeros count as holes in files of few segments, which sparse
/// files are; a file of many pages of segments counts in full, for its pages would have to be read.
fn allocated_bytes(kind: Kind, size: u64, content: &Content) -> u64 {
    match (kind, content) {
        (Kind::Symlink, _) if size < INLINE_SYMLINK_BYTES => 0,
        (Kind::File | Kind::Symlink, Content::Segments(segments)) => {
            let data = segments.iter().filter(|segment| !matches!(segment, Segment::Zeros(_))).map(Segment::length);
            data.sum::<u64>().next_multiple_of(BLOCK_BYTES)
        }
        (Kind::File | Kind::Symlink, Content::Pages(_)) => {
            size.saturating_add(BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES
        }
        _ => 0,
    }
}

fn no_inode(inode: u64) -> TreeError {
    TreeError::new(Errno::NOENT, format!("There is no inode {inode}"))
}

fn file_kind(kind: Kind) -> FileKind {
    match kind {
        Kind::File => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink => FileKind::Symlink,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
        Kind::CharDevice => FileKind::CharDevice,
        Kind::BlockDevice => FileKind::BlockDevice,
    }
}

impl From<ViewError> for TreeError {
    fn from(error: ViewError) -> TreeError {
        let errno = match &error {
            ViewError::NotFound { .. } => Errno::NOENT,
            ViewError::NotADirectory { .. } => Errno::NOTDIR,
            ViewError::IsADirectory { .. } => Errno::ISDIR,
            ViewError::NotAFile { .. } | ViewError::NotASymlink { .. } | ViewError::BadPath { .. } => Errno::INVAL,
            ViewError::Unreadable { .. }
            | ViewError::Chunk { .. }
            | ViewError::Content { .. }
            | ViewError::Catalog(_) => Errno::IO,
        };
        TreeError::new(errno, error)
    }
}
