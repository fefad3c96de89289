//! Gathering the segments of one file into its content.

use crate::catalog::CatalogError;
use crate::catalog::group::{Content, ContentPage, Segment, encode_segments};
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

/// Gathers segments; what exceeds one page goes to the catalogue at once, so memory is bounded whatever the file's size.
#[derive(Default)]
pub struct ContentBuilder {
    segments: Vec<Segment>,
    literal_bytes: usize,
    pages: Vec<ContentPage>,
}

impl ContentBuilder {
    /// Adds a segment.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn push(&mut self, writer: &mut CatalogWriter, segment: Segment) -> Result<(), CatalogError> {
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
        let length = self.segments.iter().map(Segment::length).sum();
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
            self.literal_bytes = 0;
            return Ok(if segments.is_empty() { Content::Empty } else { Content::Segments(segments) });
        }
        if !self.segments.is_empty() {
            self.spill(writer)?;
        }
        Ok(Content::Pages(std::mem::take(&mut self.pages)))
    }
}
