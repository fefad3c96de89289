//! Gathering the segments of one file into its content.

use crate::catalog::CatalogError;
use crate::catalog::group::{Content, ContentPage, HOLE_MAX_BYTES, Segment, encode_segments, total_length};
use crate::catalog::object::ObjectKind;
use crate::catalog::writer::CatalogWriter;

/// A content of more segments than this goes to objects of its own, so that pages of link groups stay small.
const INLINE_SEGMENTS: usize = 16;
/// So does one with more literal bytes than this.
const INLINE_LITERAL_BYTES: usize = 512;
/// A content object is complete at this many segments ...
const PAGE_SEGMENTS: usize = 1024;
/// ... or this many literal bytes.
const PAGE_LITERAL_BYTES: usize = 64 << 10;
/// Most content objects of one file: some 130 million segments. What is cut into more is not taken.
const PAGES_MAX: usize = 128 << 10;
/// Most bytes of one file: what Linux can address.
const FILE_MAX_BYTES: u64 = i64::MAX as u64;

/// Gathers segments; what exceeds one page goes to the catalogue at once, so memory is bounded whatever the file's size.
#[derive(Default)]
pub struct ContentBuilder {
    segments: Vec<Segment>,
    literal_bytes: usize,
    pages: Vec<ContentPage>,
    /// Bytes of the file so far.
    length: u64,
    too_large: bool,
}

impl ContentBuilder {
    /// Adds a segment.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn push(&mut self, writer: &mut CatalogWriter, segment: Segment) -> Result<(), CatalogError> {
        let length = self.length.checked_add(segment.length()).filter(|length| *length <= FILE_MAX_BYTES);
        let Some(length) = length.filter(|_| self.pages.len() < PAGES_MAX) else {
            // The rest of it is of no use either.
            self.clear();
            self.too_large = true;
            return Ok(());
        };
        if self.too_large {
            return Ok(());
        }
        self.length = length;
        if let Segment::Zeros(zeros @ HOLE_MAX_BYTES..) = segment {
            // Longer than one segment can say.
            let mut left = zeros;
            while left > 0 {
                let piece = left.min(HOLE_MAX_BYTES - 1);
                self.segment(writer, Segment::Zeros(piece))?;
                left -= piece;
            }
            return Ok(());
        }
        self.segment(writer, segment)
    }

    /// Returns whether the file is larger, or in more pieces, than can be kept; its content is then not kept at all.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    fn segment(&mut self, writer: &mut CatalogWriter, segment: Segment) -> Result<(), CatalogError> {
        if let Segment::Literal(bytes) = &segment {
            self.literal_bytes += bytes.len();
        }
        self.segments.push(segment);
        if self.segments.len() >= PAGE_SEGMENTS || self.literal_bytes >= PAGE_LITERAL_BYTES {
            self.spill(writer)?;
        }
        Ok(())
    }

    /// Forgets everything: the file is read again.
    pub fn clear(&mut self) {
        *self = ContentBuilder::default();
    }

    fn spill(&mut self, writer: &mut CatalogWriter) -> Result<(), CatalogError> {
        let object = writer.intern_object(ObjectKind::Content, &encode_segments(&self.segments))?;
        // Not more than the file's length, which was counted.
        let length = total_length(&self.segments).unwrap_or(self.length);
        self.pages.push(ContentPage { object, length });
        self.segments.clear();
        self.literal_bytes = 0;
        Ok(())
    }

    /// Ends the file and returns its content; the builder is empty afterwards.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn finish(&mut self, writer: &mut CatalogWriter) -> Result<Content, CatalogError> {
        let inline = self.segments.len() <= INLINE_SEGMENTS && self.literal_bytes <= INLINE_LITERAL_BYTES;
        if self.pages.is_empty() && inline {
            let segments = std::mem::take(&mut self.segments);
            (self.literal_bytes, self.length) = (0, 0);
            return Ok(if segments.is_empty() { Content::Empty } else { Content::Segments(segments) });
        }
        if !self.segments.is_empty() {
            self.spill(writer)?;
        }
        self.length = 0;
        Ok(Content::Pages(std::mem::take(&mut self.pages)))
    }
}
