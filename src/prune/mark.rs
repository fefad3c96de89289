//! What is in use: from snapshots to objects, link groups, chunks.
//!
//! Every object, link group and chunk is looked at once, however many snapshots share it. Memory: half a byte for each number of a link
//! group, and a quarter to an eighth for each of an object or a chunk, whether it still exists or not.

use std::collections::BTreeMap;

use super::bitmap::Bitmap;
use super::{PruneError, PruneProgress};
use crate::catalog::chunk::PAGE_ROWS;
use crate::catalog::directory::Body;
use crate::catalog::group::{Content, Segment};
use crate::catalog::meta::Counters;
use crate::catalog::object::ObjectKind;
use crate::catalog::reader::CatalogReader;
use crate::catalog::references::{self, Reference};
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::{CatalogDamage, CatalogError, RowKind};
use crate::ids::{ChunkId, GroupId, ObjectId};

/// What some snapshots need.
#[derive(Clone)]
pub struct Marks {
    /// Link groups.
    pub groups: Bitmap<GroupId>,
    /// Link groups whose content was looked at.
    examined: Bitmap<GroupId>,
    /// Objects.
    pub objects: Bitmap<ObjectId>,
    /// Chunks.
    pub chunks: Bitmap<ChunkId>,
    /// Bytes that the chunks take in packs.
    pub chunk_bytes: u64,
    /// Chunks whose bytes are lost.
    pub lost_chunks: u64,
    /// Chunks without a row, with their lengths, where those are no reason to end; names and link counts are then looked at, too.
    missing: Option<BTreeMap<ChunkId, u32>>,
}

impl Marks {
    /// Marks nothing.
    pub fn new(counters: &Counters) -> Marks {
        Marks {
            groups: Bitmap::new(counters.group),
            examined: Bitmap::new(counters.group),
            objects: Bitmap::new(counters.object),
            chunks: Bitmap::new(counters.chunk),
            chunk_bytes: 0,
            lost_chunks: 0,
            missing: None,
        }
    }

    /// Marks nothing, and goes on where chunks have no row.
    pub fn lenient(counters: &Counters) -> Marks {
        Marks { missing: Some(BTreeMap::new()), ..Marks::new(counters) }
    }

    /// Returns the chunks that had no row, with their plain lengths.
    pub fn missing_chunks(self) -> BTreeMap<ChunkId, u32> {
        self.missing.unwrap_or_default()
    }

    /// Marks a link group; [`mark_contents`](Marks::mark_contents) is to follow.
    ///
    /// # Errors
    /// Fails when there never was one of this number.
    pub fn group(&mut self, number: GroupId) -> Result<(), CatalogError> {
        self.groups.add(number).map(drop).ok_or_else(|| CatalogError::missing(RowKind::Group.row(number)))
    }

    fn object(&mut self, number: ObjectId) -> Result<bool, CatalogError> {
        self.objects.add(number).ok_or_else(|| CatalogError::missing(RowKind::Object.row(number)))
    }

    /// Marks all that a snapshot needs.
    ///
    /// # Errors
    /// Fails when anything of it is missing or damaged.
    pub fn snapshot(
        &mut self,
        catalog: &CatalogReader,
        record: &SnapshotRecord,
        progress: &PruneProgress,
    ) -> Result<(), PruneError> {
        for object in record.links.iter().chain(&record.problems) {
            self.object(*object)?;
        }
        if self.missing.is_some() {
            for links in &record.links {
                catalog.object(ObjectKind::Links, *links)?;
            }
        }
        let root = record.root_directory()?;
        let mut waiting = Vec::new();
        match root.body {
            // A root is inline only when it is empty.
            Body::Inline(_) => {}
            Body::Page(page) => waiting.push(Reference::Page(page)),
            Body::Index(index) => waiting.push(Reference::Index(index)),
        }
        while let Some(reference) = waiting.pop() {
            match reference {
                Reference::Group(group) => self.group(group)?,
                Reference::Names(names) => {
                    if self.object(names)? && self.missing.is_some() {
                        catalog.object(ObjectKind::Names, names)?;
                    }
                }
                Reference::Page(page) => {
                    if self.object(page)? {
                        progress.step()?;
                        let bytes = catalog.object(ObjectKind::Page, page)?;
                        let mut failure = Ok(());
                        references::visit_page(&bytes, |found| match found {
                            // Most of a page; they need no waiting.
                            Reference::Group(group) if failure.is_ok() => failure = self.group(group),
                            other => waiting.push(other),
                        })
                        .map_err(|error| CatalogError::of_row(RowKind::DirectoryPage.row(page), error))?;
                        failure?;
                    }
                }
                Reference::Index(index) => {
                    if self.object(index)? {
                        progress.step()?;
                        waiting.extend(catalog.directory_index(index)?.iter().map(Reference::from));
                    }
                }
            }
        }
        self.mark_contents(catalog, progress)
    }

    /// Marks what the content of all marked link groups needs.
    ///
    /// # Errors
    /// Fails when anything of it is missing or damaged.
    pub fn mark_contents(&mut self, catalog: &CatalogReader, progress: &PruneProgress) -> Result<(), PruneError> {
        // A page at a time, since rows are decoded by the page.
        let fresh: Bitmap<GroupId> = self.groups.clone();
        let examined = std::mem::take(&mut self.examined);
        let mut numbers = fresh.without(&examined).peekable();
        while let Some(first) = numbers.next() {
            progress.step()?;
            let page = first.0 / PAGE_ROWS;
            let mut wanted = vec![first];
            while let Some(number) = numbers.next_if(|number| number.0 / PAGE_ROWS == page) {
                wanted.push(number);
            }
            let mut wanted = wanted.into_iter().peekable();
            catalog.for_each_group(page, |at, row| {
                if let Some(number) = wanted.next_if(|number| (number.0 % PAGE_ROWS) as usize == at) {
                    let row = row.ok_or_else(|| CatalogError::missing(RowKind::Group.row(number)))?;
                    self.content(catalog, &row.content)?;
                }
                Ok::<_, CatalogError>(wanted.peek().is_some())
            })?;
            if let Some(number) = wanted.next() {
                return Err(CatalogError::missing(RowKind::Group.row(number)).into());
            }
        }
        drop(numbers);
        self.examined = fresh;
        Ok(())
    }

    fn content(&mut self, catalog: &CatalogReader, content: &Content) -> Result<(), CatalogError> {
        match content {
            Content::Empty | Content::Unreadable(_) => {}
            Content::Segments(segments) => self.segments(catalog, segments)?,
            Content::Pages(pages) => {
                for page in pages {
                    if self.object(page.object)? {
                        self.segments(catalog, &catalog.content_page(page.object)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn segments(&mut self, catalog: &CatalogReader, segments: &[Segment]) -> Result<(), CatalogError> {
        for segment in segments {
            let Segment::Chunk { number, length } = segment else { continue };
            let row = RowKind::Chunk.row(*number);
            if self.chunks.add(*number).ok_or_else(|| CatalogError::missing(row))? {
                let row = match (catalog.chunk(*number), &mut self.missing) {
                    (Err(CatalogError::Damage(CatalogDamage::Missing(found))), Some(missing)) if found == row => {
                        missing.insert(*number, *length);
                        continue;
                    }
                    (row, _) => row?,
                };
                match row.entry_bytes() {
                    None => self.lost_chunks += 1,
                    Some(bytes) => self.chunk_bytes += bytes,
                }
            }
        }
        Ok(())
    }
}
