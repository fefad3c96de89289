//! What cutting a file gives: segments, and the sizes that bound them.

use std::io;

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

/// The largest file in bytes that stays one chunk when there is no reason to cut it.
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

/// Says why a file could not be cut to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChunkerError {
    /// The file could not be read.
    #[error("Reading failed: {0}")]
    Read(#[from] io::Error),
    /// The receiver of the segments has ended.
    #[error("The receiver of the segments has ended")]
    SinkClosed,
}

impl From<SinkClosed> for ChunkerError {
    fn from(_: SinkClosed) -> ChunkerError {
        ChunkerError::SinkClosed
    }
}

/// Joins neighbouring literals and counts what passes.
pub(super) struct Output<'a> {
    sink: &'a mut dyn SegmentSink,
    /// Literal bytes not yet handed on; at most `WHOLE_FILE_MAX` of them.
    pending: &'a mut Vec<u8>,
    delivered: u64,
}

impl<'a> Output<'a> {
    /// Begins a file. `pending` is scratch memory.
    pub(super) fn new(sink: &'a mut dyn SegmentSink, pending: &'a mut Vec<u8>) -> Output<'a> {
        pending.clear();
        Output { sink, pending, delivered: 0 }
    }

    pub(super) fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        if self.pending.len() + bytes.len() > WHOLE_FILE_MAX {
            self.flush()?;
        }
        self.pending.extend_from_slice(bytes);
        self.delivered += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn zeros(&mut self, length: u64) -> Result<(), SinkClosed> {
        if length == 0 {
            return Ok(());
        }
        self.flush()?;
        self.delivered += length;
        self.sink.zeros(length)
    }

    pub(super) fn chunk(&mut self, plain: &[u8]) -> Result<(), SinkClosed> {
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

    pub(super) fn finish(mut self) -> Result<u64, ChunkerError> {
        self.flush()?;
        Ok(self.delivered)
    }
}
