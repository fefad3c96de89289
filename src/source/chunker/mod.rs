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

mod content;
mod large;
mod mime;
mod output;
mod sparse;
#[cfg(test)]
mod tests;
mod window;
mod zip;

use std::fs::File;

use crate::model::Stat;
use output::Output;
pub use output::{
    ChunkerError, GAP_LITERAL_MAX, JOINED_LITERAL_MAX, LITERAL_MAX, MAX_CHUNK_BYTES, MESSAGE_MAX, SegmentSink,
    SinkClosed, WHOLE_FILE_MAX,
};
use window::Window;

/// Cuts files one after another; holds the scratch memory that one thread reuses between them.
pub struct Chunker {
    buffer: Vec<u8>,
    pending: Vec<u8>,
}

impl Default for Chunker {
    fn default() -> Self {
        Chunker::new()
    }
}

impl Chunker {
    /// Creates a chunker with empty scratch memory.
    pub fn new() -> Self {
        Chunker { buffer: Vec::new(), pending: Vec::new() }
    }

    /// Delivers the file's bytes from 0 to `stat.size`, or to its end where that comes first, and returns how many.
    ///
    /// A result other than `stat.size` means that the file shrank since it was examined; a file that changes meanwhile
    /// is the caller's to notice, by examining it again. The file's own position is not used, but moves in a sparse file.
    pub fn split(&mut self, file: &File, stat: &Stat, sink: &mut dyn SegmentSink) -> Result<u64, ChunkerError> {
        let mut window = Window::new(file, stat.size, &mut self.buffer);
        let mut output = Output::new(sink, &mut self.pending);
        if stat.size > LITERAL_MAX as u64
            && stat.allocated_bytes < stat.size
            && sparse::cut(file, stat.size, &mut window, &mut output)?
        {
            return output.finish();
        }
        if !zip::cut(file, stat.size, &mut window, &mut output)? {
            content::cut(&mut window, &mut output, stat.size)?;
        }
        output.finish()
    }
}
