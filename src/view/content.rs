//! The bytes of files: any range of a content, verified, with chunks kept for the reads that follow.

use std::io;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{SnapshotView, ViewError};
use crate::catalog::group::{Content, ContentPage, LinkGroup, Segment};
use crate::model::Kind;

/// Decoded pages of large contents kept; one has 1,024 segments and takes up to 100 KB.
const SEGMENT_PAGES: usize = 64;
/// Large contents whose page offsets are kept.
const OFFSET_TABLES: usize = 32;
/// Files are copied in pieces of so many bytes.
const COPY_BYTES: usize = 1 << 20;
/// A typical chunk, from which the cache estimates how many it will hold.
const TYPICAL_CHUNK_BYTES: u64 = 64 << 10;
/// What an entry of the chunk cache takes beside its bytes.
const ENTRY_BYTES: u64 = 64;

/// Tells why a file could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The snapshot could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The receiver failed.
    #[error("Cannot write: {0}")]
    Write(#[from] io::Error),
}

#[derive(Clone)]
struct ByLength;

impl Weighter<u64, Arc<Vec<u8>>> for ByLength {
    fn weight(&self, _: &u64, bytes: &Arc<Vec<u8>>) -> u64 {
        bytes.len() as u64 + ENTRY_BYTES
    }
}

/// Segments and the offset at which each begins.
struct SegmentPage {
    segments: Vec<Segment>,
    starts: Vec<u64>,
    length: u64,
}

impl SegmentPage {
    fn new(segments: Vec<Segment>) -> SegmentPage {
        let mut length = 0u64;
        let starts = segments
            .iter()
            .map(|segment| {
                let start = length;
                length = length.saturating_add(segment.length());
                start
            })
            .collect();
        SegmentPage { segments, starts, length }
    }
}

pub(super) struct ContentCache {
    chunks: Cache<u64, Arc<Vec<u8>>, ByLength>,
    pages: Cache<u64, Arc<SegmentPage>>,
    /// Offsets of the pages of large contents, by link group, with the length of the whole at the end.
    offsets: Cache<u64, Arc<Vec<u64>>>,
}

impl ContentCache {
    pub(super) fn new(cache_bytes: u64) -> ContentCache {
        let chunks = (cache_bytes / TYPICAL_CHUNK_BYTES).max(1) as usize;
        ContentCache {
            chunks: Cache::with_weighter(chunks, cache_bytes, ByLength),
            pages: Cache::new(SEGMENT_PAGES),
            offsets: Cache::new(OFFSET_TABLES),
        }
    }
}

impl SnapshotView {
    /// Returns up to `length` bytes of a file from `offset` on; fewer only where the file ends.
    ///
    /// # Errors
    /// [`ViewError::NotAFile`], [`ViewError::Unreadable`], or damage; bytes that were not verified are never returned.
    pub fn read(&self, group: u64, offset: u64, length: usize) -> Result<Vec<u8>, ViewError> {
        let row = self.group(group)?;
        if row.attributes.kind != Kind::File {
            return Err(ViewError::NotAFile { group });
        }
        self.read_content(group, &row, offset, length)
    }

    /// Writes a whole file to `out` and returns its size. Holes are written as zeros.
    ///
    /// # Errors
    /// As [`read`](SnapshotView::read), and when `out` fails. What was written before a failure is right, and incomplete.
    pub fn copy_to(&self, group: u64, out: &mut dyn io::Write) -> Result<u64, CopyError> {
        let mut offset = 0;
        loop {
            let bytes = self.read(group, offset, COPY_BYTES)?;
            if bytes.is_empty() {
                return Ok(offset);
            }
            out.write_all(&bytes)?;
            offset += bytes.len() as u64;
        }
    }

    /// Reads from the content of any link group.
    pub(super) fn read_content(
        &self,
        group: u64,
        row: &LinkGroup,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, ViewError> {
        let size = row.attributes.size;
        let wanted = size.saturating_sub(offset).min(length as u64) as usize;
        let mut out = Vec::new();
        match &row.content {
            Content::Unreadable(errno) => return Err(ViewError::Unreadable { group, errno: *errno }),
            _ if wanted == 0 => return Ok(out),
            Content::Empty => {}
            Content::Segments(segments) => {
                out.reserve_exact(wanted);
                let mut start = 0u64;
                for segment in segments {
                    let end = start.saturating_add(segment.length());
                    if end > offset && out.len() < wanted {
                        self.take(group, segment, offset.saturating_sub(start), wanted, &mut out)?;
                    }
                    start = end;
                }
            }
            Content::Pages(pages) => {
                out.reserve_exact(wanted);
                self.read_pages(group, pages, offset, wanted, &mut out)?;
            }
        }
        if out.len() != wanted {
            let reason = format!("its segments end before its size of {size} bytes");
            return Err(ViewError::Content { group, reason });
        }
        Ok(out)
    }

    fn read_pages(
        &self,
        group: u64,
        pages: &[ContentPage],
        offset: u64,
        wanted: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ViewError> {
        let starts = self.contents.offsets.get_or_insert_with(&group, || {
            let mut length = 0u64;
            let mut starts = Vec::with_capacity(pages.len());
            for page in pages {
                starts.push(length);
                length = length.saturating_add(page.length);
            }
            Ok::<_, ViewError>(Arc::new(starts))
        })?;
        let first = starts.partition_point(|start| *start <= offset).saturating_sub(1);
        for (page, start) in pages.iter().zip(starts.iter()).skip(first) {
            if out.len() >= wanted {
                break;
            }
            let decoded = self.segment_page(group, page)?;
            let mut within = (offset + out.len() as u64) - start;
            let first = decoded.starts.partition_point(|start| *start <= within).saturating_sub(1);
            for (segment, start) in decoded.segments.iter().zip(&decoded.starts).skip(first) {
                if out.len() >= wanted {
                    break;
                }
                let before = out.len();
                self.take(group, segment, within - start, wanted, out)?;
                within += (out.len() - before) as u64;
            }
        }
        Ok(())
    }

    fn segment_page(&self, group: u64, page: &ContentPage) -> Result<Arc<SegmentPage>, ViewError> {
        let decoded = self.contents.pages.get_or_insert_with(&page.object, || {
            Ok::<_, ViewError>(Arc::new(SegmentPage::new(self.catalog.content_page(page.object)?)))
        })?;
        if decoded.length != page.length {
            let reason = format!("content object {} has another length than its link group says", page.object);
            return Err(ViewError::Content { group, reason });
        }
        Ok(decoded)
    }

    /// Appends the bytes of a segment from `skip` on, until `out` has `wanted` bytes.
    fn take(
        &self,
        group: u64,
        segment: &Segment,
        skip: u64,
        wanted: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ViewError> {
        let room = wanted - out.len();
        let count = segment.length().saturating_sub(skip).min(room as u64) as usize;
        if count == 0 {
            return Ok(());
        }
        // At most `length` of a segment, which for bytes in memory fits.
        let from = skip as usize;
        match segment {
            Segment::Zeros(_) => out.resize(out.len() + count, 0),
            Segment::Literal(bytes) => out.extend_from_slice(&bytes[from..from + count]),
            Segment::Chunk { number, length } => {
                let plain = self.chunk(group, *number, *length)?;
                out.extend_from_slice(&plain[from..from + count]);
            }
        }
        Ok(())
    }

    /// Returns a chunk's plain bytes, which have the given length.
    fn chunk(&self, group: u64, number: u64, length: u32) -> Result<Arc<Vec<u8>>, ViewError> {
        let plain = self.contents.chunks.get_or_insert_with(&number, || {
            let address = self.catalog.address(number)?;
            let plain = self
                .chunks
                .read_chunk(&address.location, address.hash_prefix)
                .map_err(|source| ViewError::Chunk { group, source })?;
            Ok::<_, ViewError>(Arc::new(plain))
        })?;
        if plain.len() as u64 != u64::from(length) {
            let reason = format!("chunk {number} has {} bytes and should have {length}", plain.len());
            return Err(ViewError::Content { group, reason });
        }
        Ok(plain)
    }
}
