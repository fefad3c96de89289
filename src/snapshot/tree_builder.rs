//! Building directory objects from resolved listings, depth first.
//!
//! A directory's own listing comes before those of its subdirectories, and its entries are fed to the digest in order of their names, each
//! subdirectory's with it. So each directory on the way down waits as a frame until the subdirectory that it stands at is complete. Memory: the entries of
//! the directories on the way from the root, and the inline ones among them.

use std::sync::Arc;

use crate::catalog::CatalogError;
use crate::catalog::directory::{self, Body, Directory, DirectoryAttributes, Entry, IndexPage, Node};
use crate::catalog::object::ObjectKind;
use crate::catalog::snapshot::TreeDigest;
use crate::catalog::writer::CatalogWriter;
use crate::ids::GroupId;
use crate::sparse_vec::SparseVec;

/// What a name was found to stand for.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// A link group and the digest of its row.
    Group(GroupId, u64),
    /// A directory whose listing follows.
    Directory,
    /// A directory that is not descended into.
    Leaf(Box<DirectoryAttributes>),
}

/// One directory, all its entries resolved.
#[derive(Debug)]
pub struct ResolvedListing {
    /// Its own name; empty for the root.
    pub name: Box<[u8]>,
    /// Its attributes, or `None` when it vanished: it is then left out of the tree.
    pub attributes: Option<DirectoryAttributes>,
    /// Its entries, sorted by name.
    pub entries: Vec<(Box<[u8]>, Resolved)>,
}

struct Frame {
    name: Box<[u8]>,
    attributes: DirectoryAttributes,
    waiting: std::vec::IntoIter<(Box<[u8]>, Resolved)>,
    done: Vec<Entry>,
}

/// Builds the tree of one snapshot.
#[derive(Default)]
pub struct TreeBuilder {
    frames: Vec<Frame>,
    digest: TreeDigest,
    root: Option<Directory>,
    link_counts: SparseVec<u32>,
    names: u64,
    directories: u64,
}

/// What a finished tree amounts to.
pub struct BuiltTree {
    /// The root, its entries in objects.
    pub root: Directory,
    /// The digest of the whole tree, in hexadecimal.
    pub digest: String,
    /// Link groups and their link counts, ascending.
    pub link_counts: Vec<(GroupId, u32)>,
    /// Names, directories included, the root not.
    pub names: u64,
    /// Directories, the root not included.
    pub directories: u64,
}

impl TreeBuilder {
    /// Starts a tree.
    pub fn new() -> TreeBuilder {
        TreeBuilder::default()
    }

    /// Takes the next listing in depth-first order.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn listing(&mut self, writer: &mut CatalogWriter, listing: ResolvedListing) -> Result<(), CatalogError> {
        if let Some(attributes) = listing.attributes {
            if !self.frames.is_empty() {
                self.names += 1;
                self.directories += 1;
            }
            self.digest.enter(&listing.name, &attributes);
            let done = Vec::with_capacity(listing.entries.len());
            self.frames.push(Frame { name: listing.name, attributes, waiting: listing.entries.into_iter(), done });
        }
        self.advance(writer)
    }

    /// Goes on until a subdirectory's listing is needed or the tree is complete.
    fn advance(&mut self, writer: &mut CatalogWriter) -> Result<(), CatalogError> {
        while let Some(frame) = self.frames.last_mut() {
            match frame.waiting.next() {
                Some((name, Resolved::Group(number, row_digest))) => {
                    self.digest.group(&name, number, row_digest);
                    self.names += 1;
                    let count = self.link_counts.entry(number.0);
                    *count = count.saturating_add(1);
                    frame.done.push(Entry { name, node: Node::Group(number) });
                }
                Some((name, Resolved::Leaf(attributes))) => {
                    self.digest.enter(&name, &attributes);
                    self.digest.leave();
                    self.names += 1;
                    self.directories += 1;
                    let leaf = Directory { attributes: *attributes, body: Body::default() };
                    frame.done.push(Entry { name, node: Node::Directory(Arc::new(leaf)) });
                }
                Some((_, Resolved::Directory)) => return Ok(()),
                None => self.close(writer)?,
            }
        }
        Ok(())
    }

    fn close(&mut self, writer: &mut CatalogWriter) -> Result<(), CatalogError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        self.digest.leave();
        let parent = self.frames.last_mut();
        let body = match &parent {
            Some(_) if directory::fits_inline(&frame.done) => Body::Inline(frame.done),
            _ => store_pages(writer, frame.done)?,
        };
        let closed = Directory { attributes: frame.attributes, body };
        match parent {
            Some(parent) => parent.done.push(Entry { name: frame.name, node: Node::Directory(Arc::new(closed)) }),
            None => self.root = Some(closed),
        }
        Ok(())
    }

    /// Ends the tree; `None` unless every announced listing came.
    pub fn finish(self) -> Option<BuiltTree> {
        if !self.frames.is_empty() {
            return None;
        }
        let link_counts = self
            .link_counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(group, count)| (GroupId(group), count))
            .collect();
        Some(BuiltTree {
            root: self.root?,
            digest: self.digest.finish(),
            link_counts,
            names: self.names,
            directories: self.directories,
        })
    }
}

/// Writes a directory's entries as pages.
fn store_pages(writer: &mut CatalogWriter, entries: Vec<Entry>) -> Result<Body, CatalogError> {
    let mut pages: Vec<IndexPage> = Vec::new();
    let mut before: Option<&Entry> = None;
    for page in directory::cut_pages(&entries) {
        let separator = match (before, page.first()) {
            (Some(before), Some(first)) => directory::separator(&before.name, &first.name),
            _ => Box::default(),
        };
        let names = writer.intern_object(ObjectKind::Names, &directory::encode_names(page))?;
        let number = writer.intern_object(ObjectKind::Page, &directory::encode_page(names, page))?;
        pages.push(IndexPage { separator, page: number, entries: page.len() as u64 });
        before = page.last();
    }
    Ok(match pages.as_slice() {
        [] => Body::default(),
        [only] => Body::Page(only.page),
        pages => Body::Index(writer.intern_object(ObjectKind::Index, &directory::encode_index(pages))?),
    })
}
