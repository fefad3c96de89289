//! Look-ups in directories, listings page by page, and walks over a tree.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::{DirectoryNode, Node, SnapshotView, ViewError};
use crate::catalog::directory::{Body, Entry, IndexPage};
use crate::catalog::reader::CatalogReader;
use crate::ids::ObjectId;

/// Indexes of large directories kept decoded. An index of a million entries has some 20,000 pages and takes about 1 MB.
const INDEXES: usize = 16;

pub(super) type IndexCache = Cache<ObjectId, Arc<DirectoryIndex>>;

/// The pages of a large directory, and the position of each one's first entry in the whole directory.
pub(super) struct DirectoryIndex {
    pages: Vec<IndexPage>,
    starts: Vec<u64>,
}

impl DirectoryIndex {
    fn new(pages: Vec<IndexPage>) -> DirectoryIndex {
        let mut next = 0u64;
        let starts = pages
            .iter()
            .map(|page| {
                let start = next;
                next = next.saturating_add(page.entries);
                start
            })
            .collect();
        DirectoryIndex { pages, starts }
    }
}

/// A name of a directory and what it stands for.
#[derive(Clone, Debug)]
pub struct ViewEntry {
    /// One component, any bytes but NUL and `/`.
    pub name: Box<[u8]>,
    /// What it stands for.
    pub node: Node,
}

impl SnapshotView {
    pub(super) fn new_index_cache() -> IndexCache {
        Cache::new(INDEXES)
    }

    /// Finds a name in a directory; `None` when it has no such name.
    ///
    /// # Errors
    /// Fails when the directory's objects are missing or damaged.
    pub fn lookup(&self, directory: &DirectoryNode, name: &[u8]) -> Result<Option<Node>, ViewError> {
        Ok(self.lookup_at(directory, name)?.map(|(_, node)| node))
    }

    /// Finds a name in a directory, and its position: so many entries are listed before it.
    ///
    /// # Errors
    /// As [`lookup`](SnapshotView::lookup).
    pub fn lookup_at(&self, directory: &DirectoryNode, name: &[u8]) -> Result<Option<(u64, Node)>, ViewError> {
        let page;
        let mut start = 0;
        let entries = match &directory.body {
            Body::Inline(entries) => entries,
            Body::Page(number) => {
                page = self.catalog.directory_page(*number)?;
                page.as_ref()
            }
            Body::Index(number) => {
                let index = index_of(&self.catalog, &self.indexes, *number)?;
                let Some(at) = index.pages.partition_point(|page| *page.separator <= *name).checked_sub(1) else {
                    return Ok(None);
                };
                start = index.starts[at];
                page = self.catalog.directory_page(index.pages[at].page)?;
                page.as_ref()
            }
        };
        let found = entries.binary_search_by(|entry| (*entry.name).cmp(name)).ok();
        Ok(found.map(|at| (start + at as u64, entries[at].node.clone())))
    }

    /// Lists a directory in order of names.
    ///
    /// # Errors
    /// Fails when the index of a large directory is missing or damaged; pages are read as the listing reaches them.
    pub fn list(&self, directory: &DirectoryNode) -> Result<Listing, ViewError> {
        self.list_from(directory, 0)
    }

    /// Lists a directory in order of names, without its first so many entries, whose pages are not read.
    ///
    /// # Errors
    /// As [`list`](SnapshotView::list).
    pub fn list_from(&self, directory: &DirectoryNode, first: u64) -> Result<Listing, ViewError> {
        let pages = match &directory.body {
            Body::Inline(_) => Pages::Inline(Arc::clone(directory)),
            Body::Page(number) => Pages::One(Some(*number)),
            Body::Index(number) => Pages::Index(index_of(&self.catalog, &self.indexes, *number)?, 0),
        };
        let mut listing = Listing { catalog: Arc::clone(&self.catalog), pages, current: None, at: 0 };
        let mut skip = first;
        if let Pages::Index(index, next) = &mut listing.pages {
            *next = index.starts.partition_point(|start| *start <= skip).saturating_sub(1);
            skip -= index.starts.get(*next).copied().unwrap_or_default();
        }
        listing.at = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(listing)
    }

    /// Returns how many entries a directory has. Reads no more of a large one than its index.
    ///
    /// # Errors
    /// Fails when the directory's index, or its only page, is missing or damaged.
    pub fn entry_count(&self, directory: &DirectoryNode) -> Result<u64, ViewError> {
        Ok(match &directory.body {
            Body::Inline(entries) => entries.len() as u64,
            Body::Page(number) => self.catalog.directory_page(*number)?.len() as u64,
            Body::Index(number) => {
                let index = index_of(&self.catalog, &self.indexes, *number)?;
                index.pages.iter().fold(0, |sum, page| page.entries.saturating_add(sum))
            }
        })
    }

    /// Walks a tree depth first, the start included, the entries of each directory in order of names. `path` is the path of the start; the paths
    /// of what is below begin with it.
    pub fn walk(&self, node: Node, path: Vec<u8>) -> Walk<'_> {
        Walk { view: self, start: Some(WalkEntry { path: path.clone(), node, depth: 0 }), path, levels: Vec::new() }
    }
}

fn index_of(catalog: &CatalogReader, cache: &IndexCache, number: ObjectId) -> Result<Arc<DirectoryIndex>, ViewError> {
    cache.get_or_insert_with(&number, || Ok(Arc::new(DirectoryIndex::new(catalog.directory_index(number)?))))
}

enum Pages {
    Inline(DirectoryNode),
    One(Option<ObjectId>),
    Index(Arc<DirectoryIndex>, usize),
}

/// The entries of one directory, in order of names. Holds one decoded page at a time.
pub struct Listing {
    catalog: Arc<CatalogReader>,
    pages: Pages,
    current: Option<Arc<Vec<Entry>>>,
    at: usize,
}

impl Listing {
    /// Returns the entry at `at` of the current page.
    fn entry(&self) -> Option<ViewEntry> {
        let entries: &[Entry] = match (&self.pages, &self.current) {
            (Pages::Inline(directory), _) => match &directory.body {
                Body::Inline(entries) => entries,
                _ => &[],
            },
            (_, Some(page)) => page,
            (_, None) => &[],
        };
        entries.get(self.at).map(|entry| ViewEntry { name: entry.name.clone(), node: entry.node.clone() })
    }

    fn next_page(&mut self) -> Result<bool, ViewError> {
        let number = match &mut self.pages {
            Pages::Inline(_) => None,
            Pages::One(number) => number.take(),
            Pages::Index(index, next) => {
                let page = index.pages.get(*next).map(|page| page.page);
                *next += 1;
                page
            }
        };
        let Some(number) = number else { return Ok(false) };
        if let Some(done) = self.current.take() {
            self.at = self.at.saturating_sub(done.len());
        }
        self.current = Some(self.catalog.directory_page(number)?);
        Ok(true)
    }
}

impl Iterator for Listing {
    type Item = Result<ViewEntry, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.entry() {
                self.at += 1;
                return Some(Ok(entry));
            }
            match self.next_page() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    // The entries of a page that cannot be read are left out; what follows is still listed.
                    self.at = 0;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// One step of a walk.
#[derive(Clone, Debug)]
pub struct WalkEntry {
    /// The path, from the start of the walk's own path on.
    pub path: Vec<u8>,
    /// What it stands for.
    pub node: Node,
    /// How far below the start; the start has 0.
    pub depth: usize,
}

/// A walk over a tree. Holds one listing for each level on the way down.
///
/// An error stands for a directory, or a page of it, that could not be read; the walk goes on behind it.
pub struct Walk<'a> {
    view: &'a SnapshotView,
    start: Option<WalkEntry>,
    path: Vec<u8>,
    /// The listings on the way down, and the length of the path of each one's directory.
    levels: Vec<(Listing, usize)>,
}

impl Walk<'_> {
    fn descend(&mut self, directory: &DirectoryNode, path_length: usize) -> Result<(), ViewError> {
        let listing = self.view.list(directory)?;
        self.levels.push((listing, path_length));
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkEntry, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(start) = self.start.take() {
            if let Node::Directory(directory) = &start.node
                && let Err(error) = self.descend(directory, self.path.len())
            {
                return Some(Err(error));
            }
            return Some(Ok(start));
        }
        loop {
            let depth = self.levels.len();
            let (listing, length) = self.levels.last_mut()?;
            let length = *length;
            match listing.next() {
                None => {
                    self.levels.pop();
                }
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(ViewEntry { name, node })) => {
                    self.path.truncate(length);
                    if length > 0 && self.path.last() != Some(&b'/') {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(&name);
                    let length = self.path.len();
                    if let Node::Directory(directory) = &node
                        && let Err(error) = self.descend(directory, length)
                    {
                        return Some(Err(error));
                    }
                    return Some(Ok(WalkEntry { path: self.path.clone(), node, depth }));
                }
            }
        }
    }
}
