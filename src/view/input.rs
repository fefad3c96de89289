//! Files of a snapshot as inputs of parsers.

use std::cell::RefCell;
use std::io::{self, Read};

use rawzip::ReaderAt;

use super::{SnapshotView, ViewError};
use crate::ids::GroupId;

/// Where a file leaves what went wrong with the store: parsers pass errors on as text at best, and damage of the store is none of the file.
pub type InputFailure = RefCell<Option<ViewError>>;

/// A file of a snapshot.
pub struct FileInput<'a> {
    view: &'a SnapshotView,
    group: GroupId,
    position: u64,
    failure: &'a InputFailure,
}

impl<'a> FileInput<'a> {
    /// Starts to read the file of a link group.
    pub fn new(view: &'a SnapshotView, group: GroupId, failure: &'a InputFailure) -> FileInput<'a> {
        FileInput { view, group, position: 0, failure }
    }

    fn read_part(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.view.read(self.group, offset, buffer.len()).map_err(|error| {
            let text = error.to_string();
            self.failure.replace(Some(error));
            io::Error::other(text)
        })?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Read for FileInput<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read_part(self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl ReaderAt for FileInput<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_part(offset, buffer)
    }
}
