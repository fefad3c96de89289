//! A window over a file that moves from its start to its end and reads each byte once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read ahead. The cut by content looks [`super::output::MAX_CHUNK_BYTES`] ahead; four times that keeps the share of bytes
/// that are moved to the front of the buffer small.
const READ_AHEAD: usize = 4 << 20;

/// The least size of the buffer in bytes, enough for most files.
const BUFFER_MIN: usize = 256 << 10;

/// The bytes of a file from the first undelivered one on, as far as they were read.
pub(super) struct Window<'a> {
    file: &'a File,
    /// Initialised memory; `head..tail` holds bytes of the file.
    buffer: &'a mut Vec<u8>,
    head: usize,
    tail: usize,
    /// Offset in the file of the byte at `head`.
    position: u64,
    /// Offset in the file where reading stops.
    end: u64,
}

impl<'a> Window<'a> {
    /// Creates a window over the bytes from 0 to `end`, on scratch memory whose content does not matter.
    pub(super) fn new(file: &'a File, end: u64, buffer: &'a mut Vec<u8>) -> Self {
        Window { file, buffer, head: 0, tail: 0, position: 0, end }
    }

    /// Returns the offset in the file of the first undelivered byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Moves the window to `position` and lets it read up to `end`.
    pub(super) fn restart(&mut self, position: u64, end: u64) {
        self.head = 0;
        self.tail = 0;
        self.position = position;
        self.end = end;
    }

    /// Returns exactly `want` bytes from the position on, or fewer where the file ends before.
    pub(super) fn fill(&mut self, want: usize) -> io::Result<&[u8]> {
        if self.tail - self.head < want {
            self.read(want)?;
        }
        let available = (self.tail - self.head).min(want);
        Ok(&self.buffer[self.head..self.head + available])
    }

    /// Returns all bytes in memory, at least `want` of them unless the file ends before.
    pub(super) fn fill_more(&mut self, want: usize) -> io::Result<&[u8]> {
        if self.tail - self.head < want {
            self.read(want)?;
        }
        Ok(&self.buffer[self.head..self.tail])
    }

    fn read(&mut self, want: usize) -> io::Result<()> {
        let goal = (self.end - self.position).min(want.max(READ_AHEAD) as u64) as usize;
        self.buffer.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
        if self.buffer.len() < goal {
            // Coarse steps, so that files of slowly growing size do not each move the buffer.
            self.buffer.resize(goal.next_power_of_two().max(BUFFER_MIN), 0);
        }
        while self.tail < goal {
            match self.file.read_at(&mut self.buffer[self.tail..goal], self.position + self.tail as u64) {
                Ok(0) => {
                    self.end = self.position + self.tail as u64;
                    break;
                }
                Ok(count) => self.tail += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Marks the first `count` bytes, which a fill has returned, as delivered.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.tail - self.head);
        self.head += count;
        self.position += count as u64;
    }
}

impl Drop for Window<'_> {
    /// Gives back what a large message took, so that a thread does not hold it for the rest of the night.
    fn drop(&mut self) {
        if self.buffer.len() > 2 * READ_AHEAD {
            self.buffer.truncate(READ_AHEAD);
            self.buffer.shrink_to_fit();
        }
    }
}
