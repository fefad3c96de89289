//! Cuts one file into segments: literals, runs of zeros and chunks.
//!
//! Cut points decide how much two files share, never what they contain: the segments of a file, joined in order, are
//! bit for bit what was read. So every parser here may be lied to. It only proposes places to cut, and where a file
//! contradicts itself the rest of it is cut by content alone.
//!
//! | file | cut |
//! | --- | --- |
//! | up to [`LITERAL_MAX`] bytes | one literal |
//! | with holes | at the holes; the data between them by content |
//! | zip | at the payload of each entry (`zip`), which is then cut like a file of its own |
//! | message | at the bodies of its larger MIME parts (`mime`) |
//! | any other, up to [`WHOLE_FILE_MAX`] | one chunk |
//! | any other | by content, and at attachments embedded in it (`large`) |
//!
//! The constants and the algorithm are part of the store's behaviour over time: another version of them finds the same
//! bytes under other hashes and stores them once more. Golden tests pin them.

mod large;
mod mime;
mod sparse;
#[cfg(test)]
mod tests;
mod window;
mod zip;

use std::fs::File;
use std::io;

use crate::model::Stat;
use window::Window;

/// The largest chunk in bytes. Bounds the memory of whoever handles one.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// The largest file or zip payload, in bytes, that is kept as a literal: less than the row of a chunk would take.
pub const LITERAL_MAX: usize = 64;

/// The largest piece between the payloads of a zip, in bytes, that is kept as a literal: zip headers and data descriptors. Such a
/// piece differs from file to file, so a chunk would cost its row and save nothing.
pub const GAP_LITERAL_MAX: usize = 512;

/// The longest literal in bytes after neighbours were joined. Longer runs (a zip with thousands of empty entries) become
/// chunks, for the catalogue is not the place for bulk.
pub const JOINED_LITERAL_MAX: usize = 1024;

/// The largest file in bytes that stays one chunk when nothing in it asks to be cut.
pub const WHOLE_FILE_MAX: usize = 128 << 10;

/// The largest message in bytes that is parsed, and so held in memory whole. Longer ones are cut as a stream.
pub const MESSAGE_MAX: usize = 64 << 20;

/// Receives the segments of one file in file order, without gaps.
pub trait SegmentSink {
    /// Takes a few bytes that are kept in the catalogue itself: at least one, at most [`JOINED_LITERAL_MAX`].
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed>;
    /// Takes a hole of a sparse file, never empty.
    fn zeros(&mut self, length: u64) -> Result<(), SinkClosed>;
    /// Takes a chunk of at least one and at most [`MAX_CHUNK_BYTES`] bytes.
    fn chunk(&mut self, plain: Vec<u8>) -> Result<(), SinkClosed>;
}

/// Says that the receiver of the segments went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkClosed;

/// Tells why a file could not be cut to its end.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The file could not be read.
    #[error("Reading failed: {0}")]
    Read(#[from] io::Error),
    /// The receiver of the segments went away.
    #[error("The receiver of the segments went away")]
    SinkClosed,
}

impl From<SinkClosed> for CutError {
    fn from(_: SinkClosed) -> CutError {
        CutError::SinkClosed
    }
}

/// Cuts files one after another; holds the scratch memory that one thread reuses between them.
pub struct Cutter {
    buffer: Vec<u8>,
    pending: Vec<u8>,
}

impl Default for Cutter {
    fn default() -> Self {
        Cutter::new()
    }
}

impl Cutter {
    /// Creates a cutter with empty scratch memory.
    pub fn new() -> Self {
        Cutter { buffer: Vec::new(), pending: Vec::new() }
    }

    /// Delivers the file's bytes from 0 to `stat.size`, or to its end where that comes first, and returns how many.
    ///
    /// A result other than `stat.size` means that the file shrank since it was examined; a file that changes meanwhile
    /// is the caller's to notice, by examining it again. The file's own position is not used, but moves in a sparse file.
    pub fn cut(&mut self, file: &File, stat: &Stat, sink: &mut dyn SegmentSink) -> Result<u64, CutError> {
        let mut window = Window::new(file, stat.size, &mut self.buffer);
        self.pending.clear();
        let mut output = Output { sink, pending: &mut self.pending, delivered: 0 };
        if stat.size > LITERAL_MAX as u64
            && stat.allocated_bytes < stat.size
            && sparse::cut(file, stat.size, &mut window, &mut output)?
        {
            return output.finish();
        }
        if !zip::cut(file, stat.size, &mut window, &mut output)? {
            cut_content(&mut window, &mut output, stat.size)?;
        }
        output.finish()
    }
}

/// Cuts the next `length` bytes as a file of their own. Depends on these bytes alone, so a message in a zip gives the
/// chunks of the same message in a file.
fn cut_content(window: &mut Window<'_>, output: &mut Output<'_>, length: u64) -> Result<(), CutError> {
    if length <= LITERAL_MAX as u64 {
        let bytes = window.fill(length as usize)?;
        output.literal(bytes)?;
        let taken = bytes.len();
        window.consume(taken);
        return Ok(());
    }
    if (mime::MIN_PART as u64..=MESSAGE_MAX as u64).contains(&length) {
        // Lossless: at most MESSAGE_MAX.
        let length = length as usize;
        if mime::is_worth_parsing(window.fill(length.min(mime::HEADERS_MAX))?) {
            let message = window.fill(length)?;
            let bodies = mime::bodies(message);
            if !bodies.is_empty() {
                large::cut_message(message, &bodies, output)?;
                let taken = message.len();
                window.consume(taken);
                return Ok(());
            }
        }
    }
    large::cut_stream(window, output, length, WHOLE_FILE_MAX)
}

/// Joins neighbouring literals and counts what passes.
struct Output<'a> {
    sink: &'a mut dyn SegmentSink,
    /// Literal bytes not yet handed on; at most `WHOLE_FILE_MAX` of them.
    pending: &'a mut Vec<u8>,
    delivered: u64,
}

impl Output<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        if self.pending.len() + bytes.len() > WHOLE_FILE_MAX {
            self.flush()?;
        }
        self.pending.extend_from_slice(bytes);
        self.delivered += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, length: u64) -> Result<(), SinkClosed> {
        if length == 0 {
            return Ok(());
        }
        self.flush()?;
        self.delivered += length;
        self.sink.zeros(length)
    }

    fn chunk(&mut self, plain: &[u8]) -> Result<(), SinkClosed> {
        debug_assert!((1..=MAX_CHUNK_BYTES).contains(&plain.len()), "a chunk of {} bytes", plain.len());
        self.flush()?;
        self.delivered += plain.len() as u64;
        self.sink.chunk(plain.to_vec())
    }

    fn flush(&mut self) -> Result<(), SinkClosed> {
        if !self.pending.is_empty() {
            if self.pending.len() <= JOINED_LITERAL_MAX {
                self.sink.literal(self.pending)?;
            } else {
                self.sink.chunk(self.pending.to_vec())?;
            }
            self.pending.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64, CutError> {
        self.flush()?;
        Ok(self.delivered)
    }
}
