//! A snapshot as the tree that a mount serves.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use quick_cache::sync::Cache;
use zmreplica_fuse::{
    Errno, ExtendedAttribute, FileAttributes, FileKind, ImmutableTree, ListedEntry, ROOT, TreeError, TreeTotals,
};

use super::owners::OwnerMap;
use super::{DirectoryNode, Node, SnapshotView, ViewError};
use crate::catalog::group::{Content, Segment};
use crate::model::{Attributes, Kind};

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
/// Inode numbers: a file's is twice the number of its link group and 2, so that all its names have it. Directories get odd numbers when they are first
/// seen, and keep them as long as the tree lives. A directory is known by the directory above and its position there, neither of which ever changes: some
/// 40 bytes of memory for each one seen. Its node is found again from the root when it is not at hand.
pub struct SnapshotTree {
    view: SnapshotView,
    owners: OwnerMap,
    directories: RwLock<Directories>,
    nodes: Cache<u64, DirectoryNode>,
}

/// Where a directory stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// Number of the directory above, counted in order of first sight.
    parent: u32,
    /// Its position among that one's entries.
    position: u32,
}

/// Directories by number, and numbers by place.
#[derive(Default)]
struct Directories {
    places: Vec<Place>,
    numbers: HashMap<Place, u32>,
}

impl SnapshotTree {
    /// Makes a tree of a view, with owners as they are to be shown.
    pub fn new(view: SnapshotView, owners: OwnerMap) -> SnapshotTree {
        let root = Place { parent: 0, position: 0 };
        // The root's place is that of nothing else: number 0 is never looked up by it.
        let directories = Directories { places: vec![root], numbers: HashMap::new() };
        SnapshotTree { view, owners, directories: RwLock::new(directories), nodes: Cache::new(DIRECTORIES) }
    }

    /// Returns the view that is served.
    pub fn view(&self) -> &SnapshotView {
        &self.view
    }

    fn place(&self, inode: u64) -> Result<Place, TreeError> {
        let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(inode / 2).ok().and_then(|at| directories.places.get(at));
        place.copied().ok_or_else(|| no_inode(inode))
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
                break Arc::clone(&self.view.root);
            }
            if let Some(node) = self.nodes.get(&at) {
                break node;
            }
            let place = self.place(at)?;
            way.push((at, place.position));
            at = u64::from(place.parent) * 2 + ROOT;
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

    fn file(&self, inode: u64) -> Result<u64, TreeError> {
        group_of(inode)?.ok_or_else(|| TreeError::new(Errno::ISDIR, format!("Inode {inode} is a directory")))
    }

    /// Returns the inode number of what stands at a position of a directory, giving directories one at first sight.
    fn inode(&self, parent: u64, position: u64, node: &Node) -> Result<u64, TreeError> {
        let directory = match node {
            Node::Group(group) => return Ok(group * 2 + 2),
            Node::Directory(directory) => directory,
        };
        let full = || TreeError::new(Errno::IO, "there are more directories than can be numbered");
        let place = Place {
            parent: u32::try_from(parent / 2).map_err(|_| full())?,
            position: u32::try_from(position).map_err(|_| full())?,
        };
        let known = self.directories.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&place).copied();
        let number = match known {
            Some(number) => number,
            None => {
                let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
                let Directories { places, numbers } = &mut *directories;
                let next = u32::try_from(places.len()).map_err(|_| full())?;
                *numbers.entry(place).or_insert_with(|| {
                    places.push(place);
                    next
                })
            }
        };
        let inode = u64::from(number) * 2 + ROOT;
        if known.is_none() {
            self.nodes.insert(inode, Arc::clone(directory));
        }
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
                    // Subdirectories are not counted; 1 tells programs so, as on btrfs.
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
            None => Ok(u64::from(self.place(directory)?.parent) * 2 + ROOT),
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
fn group_of(inode: u64) -> Result<Option<u64>, TreeError> {
    match (inode.is_multiple_of(2), inode.checked_sub(2)) {
        (false, _) => Ok(None),
        (true, Some(twice)) => Ok(Some(twice / 2)),
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
        TreeError::new(errno, error.to_string())
    }
}
