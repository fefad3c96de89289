//! The read side: snapshots by name, their trees, and the bytes of their files.
//!
//! Everything that shows or copies a snapshot goes through [`SnapshotView`]: listing, reading, restoring and mounting see the same tree, and every byte
//! they get was verified. [`Snapshots`] finds the snapshot that a person means.
//!
//! Architecture invariant: nothing here writes, neither to the store nor elsewhere.

mod content;
pub mod diff;
pub mod history;
mod input;
mod links;
mod listing;
mod owners;
mod snapshots;

use std::sync::Arc;

use crate::catalog::CatalogError;
use crate::catalog::directory::Directory;
use crate::catalog::group::{Content, LinkGroup};
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::GroupId;
use crate::model::{Attributes, Kind};
use crate::store::entry::ChunkError;
use crate::store::reader::ChunkReader;

pub use crate::catalog::directory::Node;
pub use content::CopyError;
pub use input::{FileInput, InputFailure};
pub use listing::{Listing, ViewEntry, Walk, WalkEntry};
pub use owners::OwnerMap;
pub use snapshots::{ResolveError, Snapshots, StoredSnapshot, parse_time, split_spec};

/// What can go wrong while a snapshot is read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The snapshot has no such path.
    #[error("{path} is not in the snapshot")]
    NotFound {
        /// The path, fit for people.
        path: String,
    },
    /// A component of the path is no directory.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path up to that component.
        path: String,
    },
    /// Bytes of a directory were requested.
    #[error("{path} is a directory")]
    IsADirectory {
        /// The path.
        path: String,
    },
    /// Bytes of something that is no regular file were requested.
    #[error("Link group {group} is not a regular file")]
    NotAFile {
        /// The link group.
        group: GroupId,
    },
    /// The target of something that is no symbolic link was requested.
    #[error("Link group {group} is not a symbolic link")]
    NotASymlink {
        /// The link group.
        group: GroupId,
    },
    /// The path cannot be meant.
    #[error("{path}: a path within a snapshot has no `..` and no NUL")]
    BadPath {
        /// The path.
        path: String,
    },
    /// The source could not read the file when the snapshot was made, so the snapshot has no bytes of it.
    #[error(
        "Link group {group} has no content: the source could not read it ({})",
        std::io::Error::from_raw_os_error(*errno as i32)
    )]
    Unreadable {
        /// The link group.
        group: GroupId,
        /// What the source's system answered.
        errno: u32,
    },
    /// A chunk could not be read or is damaged.
    #[error("Link group {group}: {source}")]
    Chunk {
        /// The link group that needs the chunk.
        group: GroupId,
        /// What the chunk reader found.
        source: ChunkError,
    },
    /// The segments of a file do not fit its size or their chunks.
    #[error("The content of link group {group} is damaged: {reason}")]
    Content {
        /// The link group.
        group: GroupId,
        /// What does not fit.
        reason: String,
    },
    /// The catalogue failed or is damaged.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl ViewError {
    /// Returns whether the error means damage of the store, as against a wrong path or a passing fault.
    pub fn is_damage(&self) -> bool {
        match self {
            ViewError::Catalog(error) => error.is_damage(),
            ViewError::Chunk { source, .. } => source.is_damage(),
            ViewError::Content { .. } => true,
            _ => false,
        }
    }
}

/// A directory of a snapshot: its attributes, and where its entries are.
pub type DirectoryNode = Arc<Directory>;

/// Choices for reading a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct ViewOptions {
    /// Most bytes of decompressed chunks kept for reads that follow.
    pub cache_bytes: u64,
}

impl Default for ViewOptions {
    fn default() -> ViewOptions {
        ViewOptions { cache_bytes: 64 << 20 }
    }
}

/// What reads a store, and keeps what was read, for any number of snapshots.
#[derive(Clone)]
pub struct Readers {
    catalog: Arc<CatalogReader>,
    chunks: Arc<ChunkReader>,
    contents: Arc<content::ContentCache>,
    indexes: Arc<listing::IndexCache>,
}

impl Readers {
    /// Makes empty caches over a catalogue and a reader of chunks.
    pub fn new(catalog: Arc<CatalogReader>, chunks: Arc<ChunkReader>, options: ViewOptions) -> Readers {
        Readers {
            catalog,
            chunks,
            contents: Arc::new(content::ContentCache::new(options.cache_bytes)),
            indexes: Arc::new(SnapshotView::new_index_cache()),
        }
    }

    /// Returns the catalogue.
    pub fn catalog(&self) -> &CatalogReader {
        &self.catalog
    }
}

/// One snapshot, readable. It may be shared between threads.
///
/// Memory: the chunk cache of [`ViewOptions::cache_bytes`], the caches of the catalogue reader, and some 20 MB of decoded content pages, link
/// counts and indexes of large directories at most.
pub struct SnapshotView {
    catalog: Arc<CatalogReader>,
    chunks: Arc<ChunkReader>,
    record: SnapshotRecord,
    root: DirectoryNode,
    contents: Arc<content::ContentCache>,
    links: links::LinkCounts,
    indexes: Arc<listing::IndexCache>,
}

impl SnapshotView {
    /// Starts to read a snapshot.
    ///
    /// # Errors
    /// Fails when the record's root is damaged.
    pub fn open(
        catalog: Arc<CatalogReader>,
        chunks: Arc<ChunkReader>,
        record: SnapshotRecord,
        options: ViewOptions,
    ) -> Result<SnapshotView, ViewError> {
        SnapshotView::over(&Readers::new(catalog, chunks, options), record)
    }

    /// Starts to read a snapshot through readers that it shares with others.
    ///
    /// # Errors
    /// Fails when the record's root is damaged.
    pub fn over(readers: &Readers, record: SnapshotRecord) -> Result<SnapshotView, ViewError> {
        let root = record.root_directory()?;
        let Readers { catalog, chunks, contents, indexes } = readers.clone();
        let links = links::LinkCounts::new(&record.links);
        Ok(SnapshotView { catalog, chunks, record, root: Arc::new(root), contents, links, indexes })
    }

    /// Returns the snapshot's record.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// Returns the catalogue that the snapshot is read from.
    pub fn catalog(&self) -> &Arc<CatalogReader> {
        &self.catalog
    }

    /// Returns the reader of chunks.
    pub fn chunks(&self) -> &Arc<ChunkReader> {
        &self.chunks
    }

    /// Returns the root.
    pub fn root(&self) -> Node {
        Node::Directory(Arc::clone(&self.root))
    }

    /// Returns the root as a directory.
    pub fn root_directory(&self) -> &DirectoryNode {
        &self.root
    }

    /// Finds what a path stands for. Empty components and `.` are skipped, so `/a/b`, `./a//b/` and `a/b` are the same; symbolic links are
    /// not followed.
    ///
    /// # Errors
    /// [`ViewError::NotFound`], [`ViewError::NotADirectory`], [`ViewError::BadPath`], or damage.
    pub fn resolve(&self, path: &[u8]) -> Result<Node, ViewError> {
        if path.contains(&0) {
            return Err(ViewError::BadPath { path: display_path(path) });
        }
        let mut node = self.root();
        let mut reached = 0;
        for name in path.split(|byte| *byte == b'/') {
            let end = reached + name.len();
            if name == b".." {
                return Err(ViewError::BadPath { path: display_path(path) });
            }
            if !name.is_empty() && name != b"." {
                let Node::Directory(directory) = &node else {
                    return Err(ViewError::NotADirectory { path: display_path(&path[..reached.saturating_sub(1)]) });
                };
                node = self
                    .lookup(directory, name)?
                    .ok_or_else(|| ViewError::NotFound { path: display_path(&path[..end]) })?;
            }
            reached = end + 1;
        }
        Ok(node)
    }

    /// Returns a link group's row.
    ///
    /// # Errors
    /// Fails when it is missing or damaged.
    pub fn group(&self, number: GroupId) -> Result<Arc<LinkGroup>, ViewError> {
        Ok(self.catalog.group(number)?)
    }

    /// Returns the attributes of a node.
    ///
    /// # Errors
    /// Fails when a link group's row is missing or damaged.
    pub fn attributes(&self, node: &Node) -> Result<Attributes, ViewError> {
        match node {
            Node::Group(number) => Ok(self.group(*number)?.attributes.clone()),
            Node::Directory(directory) => {
                let own = &directory.attributes;
                Ok(Attributes {
                    kind: Kind::Directory,
                    mode: own.mode,
                    uid: own.uid,
                    gid: own.gid,
                    mtime: own.mtime,
                    size: 0,
                    rdev: 0,
                    xattrs: own.xattrs.clone(),
                })
            }
        }
    }

    /// Returns how many names of the snapshot stand for a node. A directory is listed for it: 2 and one for each of its subdirectories.
    ///
    /// # Errors
    /// Fails when the link counts or the directory are damaged, or the link group is not in this snapshot.
    pub fn link_count(&self, node: &Node) -> Result<u32, ViewError> {
        match node {
            Node::Group(number) => self.links.of(&self.catalog, *number),
            Node::Directory(directory) => {
                let mut count = 2;
                for entry in self.list(directory)? {
                    count += u32::from(matches!(entry?.node, Node::Directory(_)));
                }
                Ok(count)
            }
        }
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// [`ViewError::NotASymlink`], [`ViewError::Unreadable`], or damage.
    pub fn readlink(&self, group: GroupId) -> Result<Vec<u8>, ViewError> {
        let row = self.group(group)?;
        if row.attributes.kind != Kind::Symlink {
            return Err(ViewError::NotASymlink { group });
        }
        if let Content::Unreadable(errno) = row.content {
            return Err(ViewError::Unreadable { group, errno });
        }
        self.content_bytes(group, &row, 0, usize::MAX)
    }
}

/// Returns a path fit for people: bytes that are not UTF-8 and control characters are escaped, so that a terminal takes no harm.
pub fn display_path(path: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(path.len());
    for piece in path.utf8_chunks() {
        for character in piece.valid().chars() {
            if character.is_control() {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in piece.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_without_harm() {
        assert_eq!(display_path("a/é".as_bytes()), "a/é");
        assert_eq!(display_path(b"a\n\x1b[2J\xff"), "a\\n\\u{1b}[2J\\xff");
        assert_eq!(display_path(b""), "/");
    }
}
