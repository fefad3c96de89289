//! A snapshot as the tree that a mount serves.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use zmreplica_fuse::{
    Errno, ExtendedAttribute, FileAttributes, FileKind, ImmutableTree, ListedEntry, ROOT, TreeError, TreeTotals,
};

use super::{DirectoryNode, Node, SnapshotView, ViewError};
use crate::model::{Attributes, Kind};

/// Serves a snapshot.
///
/// Inode numbers: a file's is twice the number of its link group and 2, so that all its names have it. Directories get odd numbers when they are first
/// seen, and keep them as long as the tree lives, some 150 bytes of memory each.
pub struct SnapshotTree {
    view: SnapshotView,
    directories: RwLock<Directories>,
}

/// Directories by number, and numbers by place: the directory above and the position in it, which never change.
#[derive(Default)]
struct Directories {
    nodes: Vec<DirectoryNode>,
    places: HashMap<(u64, Box<[u8]>), u64>,
}

impl SnapshotTree {
    /// Makes a tree of a view.
    pub fn new(view: SnapshotView) -> SnapshotTree {
        let Node::Directory(root) = view.root() else { unreachable!("the root of a view is a directory by its type") };
        let directories = Directories { nodes: vec![root], places: HashMap::new() };
        SnapshotTree { view, directories: RwLock::new(directories) }
    }

    /// Returns the view that is served.
    pub fn view(&self) -> &SnapshotView {
        &self.view
    }

    fn node(&self, inode: u64) -> Result<Node, TreeError> {
        if inode.is_multiple_of(2) {
            return match inode.checked_sub(2) {
                Some(twice) => Ok(Node::Group(twice / 2)),
                None => Err(no_inode(inode)),
            };
        }
        let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
        let node = usize::try_from(inode / 2).ok().and_then(|at| directories.nodes.get(at));
        node.cloned().map(Node::Directory).ok_or_else(|| no_inode(inode))
    }

    fn directory(&self, inode: u64) -> Result<DirectoryNode, TreeError> {
        match self.node(inode)? {
            Node::Directory(directory) => Ok(directory),
            Node::Group(group) => Err(TreeError::new(Errno::NOTDIR, format!("Link group {group} is not a directory"))),
        }
    }

    fn file(&self, inode: u64) -> Result<u64, TreeError> {
        match self.node(inode)? {
            Node::Group(group) => Ok(group),
            Node::Directory(_) => Err(TreeError::new(Errno::ISDIR, format!("Inode {inode} is a directory"))),
        }
    }

    /// Returns the number of what stands under a name of a directory, giving directories a number at first sight.
    fn inode(&self, parent: u64, name: &[u8], node: &Node) -> u64 {
        let directory = match node {
            Node::Group(group) => return group * 2 + 2,
            Node::Directory(directory) => directory,
        };
        let place = (parent, Box::from(name));
        if let Some(inode) = self.directories.read().unwrap_or_else(PoisonError::into_inner).places.get(&place) {
            return *inode;
        }
        let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
        let Directories { nodes, places } = &mut *directories;
        *places.entry(place).or_insert_with(|| {
            nodes.push(directory.clone());
            (nodes.len() as u64 - 1) * 2 + ROOT
        })
    }

    fn describe(&self, inode: u64, node: &Node) -> Result<FileAttributes, TreeError> {
        let Attributes { kind, mode, uid, gid, mtime, size, rdev, .. } = self.view.attributes(node)?;
        let link_count = if kind == Kind::Directory { 1 } else { self.view.link_count(node)? };
        Ok(FileAttributes {
            inode,
            kind: file_kind(kind),
            mode,
            uid,
            gid,
            link_count,
            size,
            rdev,
            mtime_seconds: mtime.seconds,
            mtime_nanos: mtime.nanos,
        })
    }
}

impl ImmutableTree for SnapshotTree {
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<FileAttributes, TreeError> {
        let node = self.view.lookup(&self.directory(directory)?, name)?;
        let node = node.ok_or_else(|| TreeError::new(Errno::NOENT, "No such name"))?;
        self.describe(self.inode(directory, name, &node), &node)
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
            let inode = self.inode(directory, &entry.name, &entry.node);
            let kind = match &entry.node {
                Node::Directory(_) => FileKind::Directory,
                Node::Group(group) => file_kind(self.view.group(*group)?.attributes.kind),
            };
            if !visit(ListedEntry { name: &entry.name, inode, kind, next_cookie: at + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, length: u32) -> Result<Vec<u8>, TreeError> {
        Ok(self.view.read(self.file(inode)?, offset, length as usize)?)
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, TreeError> {
        match self.node(inode)? {
            Node::Group(group) => Ok(self.view.readlink(group)?),
            Node::Directory(_) => Err(TreeError::new(Errno::INVAL, format!("Inode {inode} is a directory"))),
        }
    }

    fn extended_attributes(&self, inode: u64) -> Result<Vec<ExtendedAttribute>, TreeError> {
        let attributes = self.view.attributes(&self.node(inode)?)?;
        let convert = |xattr: crate::model::Xattr| ExtendedAttribute { name: xattr.name, value: xattr.value };
        Ok(attributes.xattrs.into_iter().map(convert).collect())
    }

    fn totals(&self) -> TreeTotals {
        let totals = &self.view.record().totals;
        TreeTotals { bytes: totals.bytes, inodes: totals.inodes + totals.directories + 1 }
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
