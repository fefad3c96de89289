//! The bytes of files: any range of a content, verified, with chunks kept for the reads that follow.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{SnapshotView, ViewError};
use crate::catalog::group::{Content, ContentPage, LinkGroup, Segment};
use crate::ids::{ChunkId, GroupId, ObjectId};
use crate::model::Kind;
use crate::store::entry::ChunkAddress;

/// Decoded pages of large contents kept; one has 1,024 segments and takes up to 100 KB.
const SEGMENT_PAGES: usize = 64;
/// Large contents whose page offsets are kept.
const OFFSET_TABLES: usize = 32;
/// Files are copied in pieces of so many bytes.
const COPY_BYTES: usize = 1 << 20;
/// A typical chunk, from which the cache estimates how many it will hold.
const TYPICAL_CHUNK_BYTES: u64 = 64 << 10;
/// How often and how long a chunk that is not in its place is looked for elsewhere.
const MOVED_PAUSE: Duration = Duration::from_millis(5);
const MOVED_TIME: Duration = Duration::from_millis(15);
/// What an entry of the chunk cache takes beside its bytes.
const ENTRY_BYTES: u64 = 64;

/// Why a file could not be copied.
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

impl Weighter<ChunkId, Arc<Vec<u8>>> for ByLength {
    fn weight(&self, _: &ChunkId, bytes: &Arc<Vec<u8>>) -> u64 {
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
    chunks: Cache<ChunkId, Arc<Vec<u8>>, ByLength>,
    pages: Cache<ObjectId, Arc<SegmentPage>>,
    /// Offsets of the pages of large contents, by link group, with the length of the whole at the end.
    offsets: Cache<GroupId, Arc<Vec<u64>>>,
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
    pub fn read(&self, group: GroupId, offset: u64, length: usize) -> Result<Vec<u8>, ViewError> {
        let row = self.file_row(group)?;
        self.content_bytes(group, &row, offset, length)
    }

    /// Fills `buffer` with the bytes of a file from `offset` on and returns their number; fewer than there is room for only where the file ends.
    ///
    /// # Errors
    /// As [`read`](SnapshotView::read); the buffer holds anything then, and nothing of it may be used.
    pub fn read_into(&self, group: GroupId, offset: u64, buffer: &mut [u8]) -> Result<usize, ViewError> {
        self.read_content(group, self.file_row(group)?.as_ref(), offset, buffer)
    }

    fn file_row(&self, group: GroupId) -> Result<Arc<LinkGroup>, ViewError> {
        let row = self.group(group)?;
        if row.attributes.kind == Kind::File { Ok(row) } else { Err(ViewError::NotAFile { group }) }
    }

    /// Writes a whole file to `out` and returns its size. Holes are written as zeros.
    ///
    /// # Errors
    /// As [`read`](SnapshotView::read), and when `out` fails. What was written before a failure is right, and incomplete.
    pub fn copy_to(&self, group: GroupId, out: &mut dyn io::Write) -> Result<u64, CopyError> {
        let row = self.file_row(group)?;
        let mut buffer = vec![0; row.attributes.size.min(COPY_BYTES as u64) as usize];
        let mut offset = 0;
        loop {
            let count = self.read_content(group, &row, offset, &mut buffer)?;
            if count == 0 {
                return Ok(offset);
            }
            out.write_all(&buffer[..count])?;
            offset += count as u64;
        }
    }

    /// Returns up to `length` bytes of the content of any link group.
    pub(super) fn content_bytes(
        &self,
        group: GroupId,
        row: &LinkGroup,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, ViewError> {
        let mut bytes = vec![0; row.attributes.size.saturating_sub(offset).min(length as u64) as usize];
        let count = self.read_content(group, row, offset, &mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Reads from the content of any link group, and returns how many bytes of the buffer were filled.
    fn read_content(
        &self,
        group: GroupId,
        row: &LinkGroup,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ViewError> {
        let size = row.attributes.size;
        let wanted = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut plan = Plan { skip: 0, room: wanted, pieces: Vec::new() };
        match &row.content {
            Content::Unreadable(errno) => return Err(ViewError::Unreadable { group, errno: *errno }),
            _ if wanted == 0 => return Ok(0),
            Content::Empty => {}
            Content::Segments(segments) => {
                plan.skip = offset;
                segments.iter().for_each(|segment| plan.add(segment));
            }
            Content::Pages(pages) => self.plan_pages(group, pages, offset, &mut plan)?,
        }
        if plan.room > 0 {
            let reason = format!("its segments end before its size of {size} bytes");
            return Err(ViewError::Content { group, reason });
        }
        let out = &mut buffer[..wanted];
        let mut waited = Duration::ZERO;
        loop {
            match self.gather(group, &plan.pieces, out) {
                // Packs may have been rewritten since their place was looked up; where that cannot be, the error stands. More than once,
                // because another thread may just have kept the old place again.
                Err(error) if error.is_damage() && waited < MOVED_TIME && self.look_again() => {
                    std::thread::sleep(MOVED_PAUSE);
                    waited += MOVED_PAUSE;
                }
                other => return other.map(|()| wanted),
            }
        }
    }

    /// Forgets where chunks are, for packs may have been rewritten. Returns whether that can change an answer.
    fn look_again(&self) -> bool {
        // A dictionary that cannot be had is an error of the chunks that need it.
        self.catalog.refresh() && {
            let _ = self.catalog.load_dictionaries(self.chunks.dictionaries());
            true
        }
    }

    fn plan_pages(&self, group: GroupId, pages: &[ContentPage], offset: u64, plan: &mut Plan) -> Result<(), ViewError> {
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
        plan.skip = offset - starts.get(first).copied().unwrap_or_default();
        for page in pages.iter().skip(first) {
            if plan.room == 0 {
                break;
            }
            let decoded = self.segment_page(group, page)?;
            let first = decoded.starts.partition_point(|start| *start <= plan.skip).saturating_sub(1);
            plan.skip -= decoded.starts.get(first).copied().unwrap_or_default();
            for segment in &decoded.segments[first.min(decoded.segments.len())..] {
                plan.add(segment);
                if plan.room == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn segment_page(&self, group: GroupId, page: &ContentPage) -> Result<Arc<SegmentPage>, ViewError> {
        let decoded = self.contents.pages.get_or_insert_with(&page.object, || {
            Ok::<_, ViewError>(Arc::new(SegmentPage::new(self.catalog.content_page(page.object)?)))
        })?;
        if decoded.length != page.length {
            let reason = format!("content object {} has another length than its link group says", page.object);
            return Err(ViewError::Content { group, reason });
        }
        Ok(decoded)
    }

    /// Puts the pieces together. They are as long as `out`, every byte of which is written, or none may be used.
    ///
    /// Chunks of which all bytes are wanted are read in runs, neighbours with one read, and not kept: whoever reads so much has a cache of
    /// its own. Chunks of which a part is wanted are kept, because the rest is usually requested next.
    fn gather(&self, group: GroupId, pieces: &[Piece], out: &mut [u8]) -> Result<(), ViewError> {
        let mut whole: Vec<(ChunkAddress, &mut [u8])> = Vec::new();
        let mut rest = out;
        for piece in pieces {
            let (target, behind) = rest.split_at_mut(piece.count);
            rest = behind;
            match &piece.source {
                Source::Zeros => target.fill(0),
                Source::Literal(bytes) => target.copy_from_slice(bytes),
                Source::Chunk { number, length, from } if piece.count == *length as usize => {
                    debug_assert_eq!(*from, 0);
                    match self.contents.chunks.get(number) {
                        Some(plain) => target.copy_from_slice(part(group, *number, &plain, *length, 0, piece.count)?),
                        None => {
                            let address = self.catalog.chunk_address(*number)?;
                            let found = address.location.plain_length;
                            if found != *length {
                                return Err(wrong_length(group, *number, found as usize, *length));
                            }
                            whole.push((address, target));
                        }
                    }
                }
                Source::Chunk { number, length, from } => {
                    let plain = self.chunk(group, *number)?;
                    target.copy_from_slice(part(group, *number, &plain, *length, *from, piece.count)?);
                }
            }
        }
        debug_assert!(rest.is_empty());
        whole.sort_unstable_by_key(|(address, _)| (address.location.pack, address.location.offset));
        let (run, mut targets): (Vec<ChunkAddress>, Vec<&mut [u8]>) = whole.into_iter().unzip();
        self.chunks.read_run_into(&run, &mut targets).map_err(|source| ViewError::Chunk { group, source })
    }

    /// Returns a chunk's plain bytes and keeps them. Of several who want one that is not there, one reads it.
    fn chunk(&self, group: GroupId, number: ChunkId) -> Result<Arc<Vec<u8>>, ViewError> {
        self.contents.chunks.get_or_insert_with(&number, || {
            let address = self.catalog.chunk_address(number)?;
            let plain = self
                .chunks
                .read_chunk(&address.location, address.hash_prefix)
                .map_err(|source| ViewError::Chunk { group, source })?;
            Ok::<_, ViewError>(Arc::new(plain))
        })
    }
}

fn wrong_length(group: GroupId, number: ChunkId, found: usize, length: u32) -> ViewError {
    ViewError::Content { group, reason: format!("chunk {number} has {found} bytes and should have {length}") }
}

/// Returns a part of a chunk that should have the given length.
fn part(
    group: GroupId,
    number: ChunkId,
    plain: &[u8],
    length: u32,
    from: usize,
    count: usize,
) -> Result<&[u8], ViewError> {
    if plain.len() != length as usize {
        return Err(wrong_length(group, number, plain.len(), length));
    }
    // `from` and `count` were cut to the length.
    Ok(&plain[from..from + count])
}

/// What a read is put together from.
struct Plan {
    /// Bytes to leave out before the next segment counts.
    skip: u64,
    /// Bytes still wanted.
    room: usize,
    pieces: Vec<Piece>,
}

struct Piece {
    source: Source,
    /// Bytes taken from it.
    count: usize,
}

enum Source {
    Zeros,
    Literal(Vec<u8>),
    Chunk { number: ChunkId, length: u32, from: usize },
}

impl Plan {
    /// Takes of a segment what is wanted.
    fn add(&mut self, segment: &Segment) {
        let length = segment.length();
        if self.skip >= length {
            self.skip -= length;
            return;
        }
        let count = (length - self.skip).min(self.room as u64) as usize;
        if count == 0 {
            return;
        }
        let from = self.skip as usize;
        let source = match segment {
            Segment::Zeros(_) => Source::Zeros,
            Segment::Literal(bytes) => Source::Literal(bytes[from..from + count].to_vec()),
            Segment::Chunk { number, length } => Source::Chunk { number: *number, length: *length, from },
        };
        self.pieces.push(Piece { source, count });
        self.room -= count;
        self.skip = 0;
    }
}
