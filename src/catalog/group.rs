//! Link groups: one immutable row for each inode that a snapshot has ever seen.
//!
//! Rows are numbered in order of first sight and kept 256 to a page, compressed together. A page is a coding byte (0 plain, 1 zstd with
//! the plain length as a varint before it) and then the rows. A row is:
//!
//! - tag byte: bit 0 set (0 alone is "no such group"), bits 1 to 3 the kind, bit 4 owner and mode as in the row before, bit 5 extended
//!   attributes follow, bit 6 the content changed while it was read;
//! - unless bit 4: mode, uid, gid (varints);
//! - mtime: seconds as a signed difference to the row before, nanoseconds; size; for devices the device number (varints);
//! - with bit 5: 0 for "as at the last row that had some", else their count and for each name and value (length, bytes);
//! - content: 0 empty; 1 could not be read, then the error number; 2 pages: count, then for each the object number as a signed
//!   difference and its plain length; 3 one chunk of the whole size, numbered one above the last chunk named in this page; 4 the same
//!   with the signed difference to that number; 5 segments: count, then the segments as in a content object.
//!
//! A segment is a varint: low two bits 0 a chunk (the rest the zigzag difference to one above the last chunk; its plain length follows),
//! 1 literal bytes (the rest their number; the bytes follow), 2 zeros (the rest their number, which is below 2^62).
//!
//! A page ends with its 256th row, or before the row with which all would take more than [`PAGE_HELD_BYTES`] in memory: the numbers up to the next page are
//! then left out. Earlier versions knew no such end, and let an inode have any extended attributes, so that a page could take gigabytes. Such a page is read
//! row by row ([`for_each_row`]), straight from the decompressor, and written anew in the same way ([`retain_rows`]); memory: its largest row, which is at most
//! what Linux lets an inode have (some 600 MB), and what is packed.

use std::io::{BufReader, Write};
use std::sync::Arc;

use super::decompress::decompress;
use crate::coding::{DecodeError, Decoder, Source, StreamDecoder, put_bytes, put_signed, put_varint, unzigzag, zigzag};
use crate::ids::{ChunkId, ObjectId};
use crate::model::{Attributes, Kind, Timestamp, Xattr};

/// zstd level of pages.
const LEVEL: i32 = 3;
/// What the rows of a page may take in memory, in bytes, unless the page has one row only.
pub const PAGE_HELD_BYTES: usize = 512 << 10;
/// A page of at most so many plain bytes is decompressed as a whole.
const WHOLE_PAGE_BYTES: u64 = 8 << 20;
/// A page has at most so many plain bytes: 256 inodes with all that Linux lets them have.
const PAGE_PLAIN_MAX_BYTES: u64 = 160 << 30;
/// Memory that the extended attributes of one row may take. Linux: 64 KiB of names, and 64 KiB for each value.
const ROW_XATTRS_MAX_BYTES: usize = 640 << 20;
/// Most extended attributes of an inode: earlier versions took 16 MiB from another host, counting 64 and more for each.
pub(super) const ROW_XATTRS_MAX: usize = 1 << 18;
/// Most segments in a row. Writers put no more than 16 there.
const ROW_SEGMENTS_MAX: usize = 4096;
/// Most content objects of a row; a thousand segments each.
const ROW_PAGES_MAX: usize = 1 << 20;
/// Most segments of a content object. Writers put no more than 1,024 there.
const OBJECT_SEGMENTS_MAX: usize = 16_384;
/// The longest hole that one segment stands for, in bytes. The format has room for almost twice as many; larger holes are several segments.
pub const HOLE_MAX_BYTES: u64 = 1 << 61;

/// A piece of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes kept in the catalogue itself.
    Literal(Box<[u8]>),
    /// So many zero bytes: a hole of a sparse file.
    Zeros(u64),
    /// A chunk, by number, and its plain length.
    Chunk {
        /// Number of the chunk.
        number: ChunkId,
        /// Plain length in bytes.
        length: u32,
    },
}

impl Segment {
    /// Returns how many bytes of the file the segment stands for.
    pub fn length(&self) -> u64 {
        match self {
            Segment::Literal(bytes) => bytes.len() as u64,
            Segment::Zeros(length) => *length,
            Segment::Chunk { length, .. } => u64::from(*length),
        }
    }

    fn held_bytes(&self) -> usize {
        let literal = if let Segment::Literal(bytes) = self { bytes.len() } else { 0 };
        size_of::<Segment>() + literal
    }
}

/// Returns how many bytes of a file some segments stand for; `None` when they are more than can be counted.
pub fn total_length(segments: &[Segment]) -> Option<u64> {
    segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.length()))
}

/// A part of a large content: an object that holds segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentPage {
    /// Number of the object.
    pub object: ObjectId,
    /// Bytes of the file that its segments stand for.
    pub length: u64,
}

/// What an inode holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// No bytes.
    Empty,
    /// Segments in file order. A symlink's target is one literal.
    Segments(Vec<Segment>),
    /// Objects of segments, in file order.
    Pages(Vec<ContentPage>),
    /// The source could not read it; the system's error number.
    Unreadable(u32),
}

/// One inode of the source, as a snapshot keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkGroup {
    /// Kind, mode, owner, time, size, extended attributes.
    pub attributes: Attributes,
    /// Its content.
    pub content: Content,
    /// Whether the content kept changing while it was read, so that it may be of no single moment.
    pub has_changed_while_read: bool,
}

impl LinkGroup {
    /// Returns what the row takes in memory, roughly and in bytes. Its encoding is shorter.
    pub fn held_bytes(&self) -> usize {
        let content = match &self.content {
            Content::Empty | Content::Unreadable(_) => 0,
            Content::Pages(pages) => pages.len() * size_of::<ContentPage>(),
            Content::Segments(segments) => segments.iter().map(Segment::held_bytes).sum(),
        };
        size_of::<LinkGroup>() + content + crate::model::held_bytes(&self.attributes.xattrs)
    }

    /// Computes the row's digest: the first eight bytes of a BLAKE3 over its encoding as the only row of a page.
    ///
    /// A snapshot's digest covers it, and so binds names to attributes and content.
    pub fn digest(&self) -> u64 {
        let mut out = Vec::with_capacity(64);
        GroupEncoder::default().put_row(&mut out, self);
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(&out).as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Appends a segment; `last_chunk` carries the last chunk's number from one to the next.
fn put_segment(out: &mut Vec<u8>, segment: &Segment, last_chunk: &mut u64) {
    match segment {
        Segment::Chunk { number, length } => {
            put_varint(out, zigzag(number.0.wrapping_sub(last_chunk.wrapping_add(1)) as i64) << 2);
            put_varint(out, u64::from(*length));
            *last_chunk = number.0;
        }
        Segment::Literal(bytes) => {
            put_varint(out, (bytes.len() as u64) << 2 | 1);
            out.extend_from_slice(bytes);
        }
        Segment::Zeros(length) => put_varint(out, length << 2 | 2),
    }
}

fn decode_segment(decoder: &mut impl Source, last_chunk: &mut u64) -> Result<Segment, DecodeError> {
    let head = decoder.varint()?;
    Ok(match head & 3 {
        0 => {
            let number = Decoder::add(last_chunk.wrapping_add(1), unzigzag(head >> 2))?;
            *last_chunk = number;
            Segment::Chunk { number: ChunkId(number), length: decoder.varint32()? }
        }
        1 => Segment::Literal(decoder.boxed(usize::try_from(head >> 2).map_err(|_| DecodeError("ends early"))?)?),
        2 => Segment::Zeros(head >> 2),
        _ => return Err(DecodeError("an unknown kind of segment")),
    })
}

/// Encodes the segments of one content object: their count, then each.
pub fn encode_segments(segments: &[Segment]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, segments.len() as u64);
    let mut last_chunk = u64::MAX;
    for segment in segments {
        put_segment(&mut out, segment, &mut last_chunk);
    }
    out
}

/// Decodes the segments of one content object.
///
/// # Errors
/// Fails when the bytes are not what [`encode_segments`] produces.
pub fn decode_segments(bytes: &[u8]) -> Result<Vec<Segment>, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let count = decoder.count_up_to(OBJECT_SEGMENTS_MAX)?;
    let mut last_chunk = u64::MAX;
    let mut segments = Vec::with_capacity(count);
    for _ in 0..count {
        segments.push(decode_segment(&mut decoder, &mut last_chunk)?);
    }
    decoder.finish()?;
    Ok(segments)
}

/// What a row takes from those before it in its page.
struct Context {
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    last_chunk: u64,
    last_object: u64,
    xattrs: Arc<Vec<Xattr>>,
}

impl Default for Context {
    fn default() -> Self {
        // One above the highest number is 0, the first chunk's.
        Context { mode: 0, uid: 0, gid: 0, seconds: 0, last_chunk: u64::MAX, last_object: 0, xattrs: Arc::default() }
    }
}

#[derive(Default)]
struct GroupEncoder {
    context: Context,
}

impl GroupEncoder {
    fn put_row(&mut self, out: &mut Vec<u8>, group: &LinkGroup) {
        let context = &mut self.context;
        let attributes = &group.attributes;
        let same = (context.mode, context.uid, context.gid) == (attributes.mode, attributes.uid, attributes.gid);
        let mut tag = 1 | (attributes.kind as u8) << 1;
        tag |= u8::from(same) << 4;
        tag |= u8::from(!attributes.xattrs.is_empty()) << 5;
        tag |= u8::from(group.has_changed_while_read) << 6;
        out.push(tag);
        if !same {
            put_varint(out, u64::from(attributes.mode));
            put_varint(out, u64::from(attributes.uid));
            put_varint(out, u64::from(attributes.gid));
            (context.mode, context.uid, context.gid) = (attributes.mode, attributes.uid, attributes.gid);
        }
        put_signed(out, attributes.mtime.seconds.wrapping_sub(context.seconds));
        context.seconds = attributes.mtime.seconds;
        put_varint(out, u64::from(attributes.mtime.nanos));
        put_varint(out, attributes.size);
        if matches!(attributes.kind, Kind::CharDevice | Kind::BlockDevice) {
            put_varint(out, attributes.rdev);
        }
        if !attributes.xattrs.is_empty() {
            if attributes.xattrs == *context.xattrs {
                put_varint(out, 0);
            } else {
                put_varint(out, attributes.xattrs.len() as u64);
                for xattr in &attributes.xattrs {
                    put_bytes(out, &xattr.name);
                    put_bytes(out, &xattr.value);
                }
                context.xattrs = Arc::new(attributes.xattrs.clone());
            }
        }
        self.put_content(out, &group.content, group.attributes.size);
    }

    fn put_content(&mut self, out: &mut Vec<u8>, content: &Content, size: u64) {
        let context = &mut self.context;
        match content {
            Content::Empty => out.push(0),
            Content::Unreadable(errno) => {
                out.push(1);
                put_varint(out, u64::from(*errno));
            }
            Content::Pages(pages) => {
                out.push(2);
                put_varint(out, pages.len() as u64);
                for page in pages {
                    put_signed(out, page.object.0.wrapping_sub(context.last_object) as i64);
                    put_varint(out, page.length);
                    context.last_object = page.object.0;
                }
            }
            Content::Segments(segments) => match segments.as_slice() {
                [Segment::Chunk { number, length }] if u64::from(*length) == size => {
                    let difference = number.0.wrapping_sub(context.last_chunk.wrapping_add(1)) as i64;
                    if difference == 0 {
                        out.push(3);
                    } else {
                        out.push(4);
                        put_signed(out, difference);
                    }
                    context.last_chunk = number.0;
                }
                segments => {
                    out.push(5);
                    put_varint(out, segments.len() as u64);
                    for segment in segments {
                        put_segment(out, segment, &mut context.last_chunk);
                    }
                }
            },
        }
    }
}

/// Encodes a page of rows; `None` stands for a number that has no group any more.
pub fn encode_page(rows: &[Option<LinkGroup>]) -> Vec<u8> {
    let mut plain = Vec::new();
    put_varint(&mut plain, rows.len() as u64);
    let mut encoder = GroupEncoder::default();
    for row in rows {
        match row {
            Some(group) => encoder.put_row(&mut plain, group),
            None => plain.push(0),
        }
    }
    if let Ok(packed) = zstd::bulk::compress(&plain, LEVEL)
        && packed.len() + 4 < plain.len()
    {
        let mut out = vec![1];
        put_varint(&mut out, plain.len() as u64);
        out.extend_from_slice(&packed);
        return out;
    }
    plain.insert(0, 0);
    plain
}

/// Decodes a page of rows, all of them. Only for pages that are known to take little memory; see [`for_each_row`] for the others.
///
/// # Errors
/// Fails when the bytes are not what [`encode_page`] produces.
pub fn decode_page(bytes: &[u8]) -> Result<Vec<Option<LinkGroup>>, DecodeError> {
    let mut rows = Vec::new();
    for_each_row(bytes, |_, row| {
        rows.push(row);
        Ok::<_, DecodeError>(true)
    })?;
    Ok(rows)
}

/// Calls `visit` for each row of a page with its place, one after the other, until it returns `false`.
///
/// # Errors
/// Fails when the bytes are not what [`encode_page`] produces, or `visit` fails.
pub fn for_each_row<E: From<DecodeError>>(
    bytes: &[u8],
    mut visit: impl FnMut(usize, Option<LinkGroup>) -> Result<bool, E>,
) -> Result<(), E> {
    let mut outer = Decoder::new(bytes);
    let unpacked;
    let plain = match outer.byte()? {
        0 => outer.take(outer.remaining())?,
        1 => {
            let length = outer.varint()?;
            let packed = outer.take(outer.remaining())?;
            if length > PAGE_PLAIN_MAX_BYTES {
                return Err(DecodeError("a page's length is out of range").into());
            }
            if length > WHOLE_PAGE_BYTES {
                let stream = zstd::stream::read::Decoder::with_buffer(packed);
                let stream = stream.map_err(|_| DecodeError("a page cannot be decompressed"))?;
                let mut decoder = StreamDecoder::new(BufReader::with_capacity(1 << 17, stream), length);
                if visit_rows(&mut decoder, &mut visit)? {
                    decoder.finish()?;
                }
                return Ok(());
            }
            unpacked = decompress(packed, length as usize).map_err(|_| DecodeError("a page cannot be decompressed"))?;
            unpacked.as_slice()
        }
        _ => return Err(super::error::UNKNOWN_CODING.into()),
    };
    let mut decoder = Decoder::new(plain);
    if visit_rows(&mut decoder, &mut visit)? {
        decoder.finish()?;
    }
    Ok(())
}

/// Visits the rows of a plain page; returns whether all were wanted.
fn visit_rows<E: From<DecodeError>>(
    decoder: &mut impl Source,
    visit: &mut impl FnMut(usize, Option<LinkGroup>) -> Result<bool, E>,
) -> Result<bool, E> {
    let count = decoder.count_up_to(super::chunk::PAGE_ROWS as usize)?;
    let mut context = Context::default();
    for at in 0..count {
        if !visit(at, decode_row(decoder, &mut context)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Encodes a page anew with the rows for whose places `keep` holds; `None` when no row is left. One row at a time is in memory, and what is packed.
///
/// # Errors
/// Fails when the bytes are not what [`encode_page`] produces.
pub fn retain_rows(bytes: &[u8], keep: impl Fn(usize) -> bool) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut end = 0;
    let mut held = 0;
    for_each_row(bytes, |at, row| {
        if let Some(row) = row.filter(|_| keep(at)) {
            end = at + 1;
            held += row.held_bytes();
        }
        Ok::<_, DecodeError>(true)
    })?;
    if end == 0 {
        return Ok(None);
    }
    if held as u64 <= WHOLE_PAGE_BYTES {
        let mut left = Vec::with_capacity(end);
        for_each_row(bytes, |at, row| {
            left.push(row.filter(|_| keep(at)));
            Ok::<_, DecodeError>(left.len() < end)
        })?;
        return Ok(Some(encode_page(&left)));
    }
    let failed = |_| DecodeError("a page cannot be compressed");
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(failed)?;
    let mut encoder = GroupEncoder::default();
    let mut plain = Vec::new();
    put_varint(&mut plain, end as u64);
    let mut length = 0;
    for_each_row(bytes, |at, row| {
        match row.filter(|_| keep(at)) {
            Some(row) => encoder.put_row(&mut plain, &row),
            None => plain.push(0),
        }
        packer.write_all(&plain).map_err(failed)?;
        length += plain.len() as u64;
        plain.clear();
        Ok::<_, DecodeError>(at + 1 < end)
    })?;
    let mut out = vec![1];
    put_varint(&mut out, length);
    out.extend_from_slice(&packer.finish().map_err(failed)?);
    Ok(Some(out))
}

fn decode_row(decoder: &mut impl Source, context: &mut Context) -> Result<Option<LinkGroup>, DecodeError> {
    let tag = decoder.byte()?;
    if tag == 0 {
        return Ok(None);
    }
    if tag & 0x81 != 1 {
        return Err(DecodeError("an unknown row tag"));
    }
    let kind = Kind::from_repr(tag >> 1 & 7).ok_or(DecodeError("an unknown kind"))?;
    if tag & 0x10 == 0 {
        context.mode = decoder.varint32()?;
        context.uid = decoder.varint32()?;
        context.gid = decoder.varint32()?;
    }
    context.seconds = context.seconds.wrapping_add(decoder.signed()?);
    let nanos = decoder.varint32()?;
    if nanos >= 1_000_000_000 {
        return Err(DecodeError("nanoseconds exceed a second"));
    }
    let size = decoder.varint()?;
    let rdev = if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { decoder.varint()? } else { 0 };
    let mut xattrs = Vec::new();
    if tag & 0x20 != 0 {
        let count = decoder.count_up_to(ROW_XATTRS_MAX)?;
        if count > 0 {
            // The ones before are let go of first.
            context.xattrs = Arc::default();
            context.xattrs = Arc::new(decode_xattrs(decoder, count)?);
        }
        xattrs.extend_from_slice(&context.xattrs);
    }
    let content = decode_content(decoder, context, size)?;
    Ok(Some(LinkGroup {
        attributes: Attributes {
            kind,
            mode: context.mode,
            uid: context.uid,
            gid: context.gid,
            mtime: Timestamp { seconds: context.seconds, nanos },
            size,
            rdev,
            xattrs,
        },
        content,
        has_changed_while_read: tag & 0x40 != 0,
    }))
}

fn decode_xattrs(decoder: &mut impl Source, count: usize) -> Result<Vec<Xattr>, DecodeError> {
    let mut xattrs = Vec::new();
    let mut held = 0;
    for _ in 0..count {
        let xattr = Xattr { name: decoder.boxed_bytes()?, value: decoder.boxed_bytes()? };
        held += xattr.held_bytes();
        if held > ROW_XATTRS_MAX_BYTES {
            return Err(DecodeError("more extended attributes than an inode can have"));
        }
        xattrs.push(xattr);
    }
    Ok(xattrs)
}

fn decode_content(decoder: &mut impl Source, context: &mut Context, size: u64) -> Result<Content, DecodeError> {
    Ok(match decoder.byte()? {
        0 => Content::Empty,
        1 => Content::Unreadable(decoder.varint32()?),
        2 => {
            let count = decoder.count_up_to(ROW_PAGES_MAX)?;
            let mut pages = Vec::with_capacity(count);
            for _ in 0..count {
                context.last_object = Decoder::add(context.last_object, decoder.signed()?)?;
                pages.push(ContentPage { object: ObjectId(context.last_object), length: decoder.varint()? });
            }
            Content::Pages(pages)
        }
        tag @ (3 | 4) => {
            let difference = if tag == 4 { decoder.signed()? } else { 0 };
            context.last_chunk = Decoder::add(context.last_chunk.wrapping_add(1), difference)?;
            let length = u32::try_from(size).map_err(|_| DecodeError("a chunk's length is out of range"))?;
            Content::Segments(vec![Segment::Chunk { number: ChunkId(context.last_chunk), length }])
        }
        5 => {
            let count = decoder.count_up_to(ROW_SEGMENTS_MAX)?;
            let mut segments = Vec::with_capacity(count);
            for _ in 0..count {
                segments.push(decode_segment(decoder, &mut context.last_chunk)?);
            }
            Content::Segments(segments)
        }
        _ => return Err(DecodeError("an unknown kind of content")),
    })
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
