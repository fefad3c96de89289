//! A tree in memory, for tests.

use std::collections::BTreeMap;

use crate::{
    Errno, ExtendedAttribute, FileAttributes, FileKind, ImmutableTree, ListedEntry, ROOT, TreeError, TreeTotals,
};

enum What {
    Directory(BTreeMap<Vec<u8>, u64>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
}

/// One deliberate fault.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    LinkCount,
    Cookie,
    ShortRead,
    MissingName,
    /// Bytes that cannot be had, of file 2 alone.
    Damage,
    /// A panic when file 2 is read.
    Panic,
    /// A directory 3 whose names change.
    Volatile,
}

/// A tree of a few files.
pub(crate) struct MemoryTree {
    nodes: BTreeMap<u64, What>,
    fault: Fault,
}

impl MemoryTree {
    /// A root with a directory, a file under two names, a symlink, a fifo and an empty file.
    pub(crate) fn new(fault: Fault) -> MemoryTree {
        let names = |list: &[(&[u8], u64)]| list.iter().map(|(name, inode)| (name.to_vec(), *inode)).collect();
        let data = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let nodes = BTreeMap::from([
            (ROOT, What::Directory(names(&[(b"a", 2), (b"directory", 3), (b"empty", 6), (b"odd\xff\n", 4)]))),
            (2, What::File(data)),
            (3, What::Directory(names(&[(b"b", 2), (b"fifo", 5)]))),
            (4, What::Symlink(b"../nowhere".to_vec())),
            (5, What::Fifo),
            (6, What::File(Vec::new())),
        ]);
        MemoryTree { nodes, fault }
    }

    fn node(&self, inode: u64) -> Result<&What, TreeError> {
        self.nodes.get(&inode).ok_or_else(|| TreeError::new(Errno::NOENT, "No such inode"))
    }

    fn directory(&self, inode: u64) -> Result<&BTreeMap<Vec<u8>, u64>, TreeError> {
        match self.node(inode)? {
            What::Directory(names) => Ok(names),
            _ => Err(TreeError::new(Errno::NOTDIR, "Not a directory")),
        }
    }
}

impl ImmutableTree for MemoryTree {
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<FileAttributes, TreeError> {
        let inode = self.directory(directory)?.get(name).copied();
        match inode {
            Some(inode) if self.fault != Fault::MissingName || name != b"fifo" => self.attributes(inode),
            _ => Err(TreeError::new(Errno::NOENT, "No such name")),
        }
    }

    fn attributes(&self, inode: u64) -> Result<FileAttributes, TreeError> {
        let (kind, size) = match self.node(inode)? {
            What::Directory(_) => (FileKind::Directory, 0),
            What::File(data) => (FileKind::File, data.len() as u64),
            What::Symlink(target) => (FileKind::Symlink, target.len() as u64),
            What::Fifo => (FileKind::Fifo, 0),
        };
        let link_count = if inode == 2 && self.fault != Fault::LinkCount { 2 } else { 1 };
        Ok(FileAttributes {
            inode,
            kind,
            mode: 0o644,
            uid: 1,
            gid: 2,
            link_count,
            size,
            allocated_bytes: size,
            rdev: 0,
            mtime_seconds: -5,
            mtime_nanos: 999_999_999,
        })
    }

    fn list(
        &self,
        directory: u64,
        cookie: u64,
        visit: &mut dyn FnMut(ListedEntry<'_>) -> bool,
    ) -> Result<(), TreeError> {
        for ((name, inode), at) in self.directory(directory)?.iter().zip(1u64..) {
            let skipped = if self.fault == Fault::Cookie { at < cookie } else { at <= cookie };
            let attributes = self.attributes(*inode)?;
            let kind = attributes.kind;
            let attributes = Some(attributes);
            if !skipped && !visit(ListedEntry { name, inode: *inode, kind, attributes, next_cookie: at }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        match self.node(inode)? {
            What::File(_) if inode == 2 && self.fault == Fault::Damage => {
                Err(TreeError::new(Errno::IO, "chunk 7 is damaged"))
            }
            What::File(_) if inode == 2 && self.fault == Fault::Panic => panic!("a fault in the tree"),
            What::File(data) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
                let to = from.saturating_add(buffer.len()).min(data.len());
                let to = if self.fault == Fault::ShortRead && to > from + 9 { to - 1 } else { to };
                buffer[..to - from].copy_from_slice(&data[from..to]);
                Ok(to - from)
            }
            What::Directory(_) => Err(TreeError::new(Errno::ISDIR, "Is a directory")),
            _ => Err(TreeError::new(Errno::INVAL, "Not a file")),
        }
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, TreeError> {
        match self.node(inode)? {
            What::Symlink(target) => Ok(target.clone()),
            _ => Err(TreeError::new(Errno::INVAL, "Not a symbolic link")),
        }
    }

    fn extended_attributes(&self, inode: u64) -> Result<Vec<ExtendedAttribute>, TreeError> {
        self.node(inode)?;
        let attribute = |name: &[u8]| ExtendedAttribute { name: name.into(), value: (*b"v").into() };
        Ok(if inode == 2 { vec![attribute(b"user.a"), attribute(b"user.b")] } else { Vec::new() })
    }

    fn parent(&self, directory: u64) -> Result<u64, TreeError> {
        self.directory(directory)?;
        Ok(ROOT)
    }

    fn is_volatile(&self, directory: u64) -> bool {
        self.fault == Fault::Volatile && directory == 3
    }

    fn totals(&self) -> TreeTotals {
        TreeTotals { bytes: 800_010, inodes: self.nodes.len() as u64 }
    }
}
