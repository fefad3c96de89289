//! Files of a snapshot as inputs of parsers.

use std::io::{self, Read};

use rawzip::{ReaderAt, ZipLocator};

use crate::view::SnapshotView;

/// How far from the end of a zip its end record can stand: its own 22 bytes and a comment.
const END_RECORD_REACH: u64 = (64 << 10) + 22;
/// Bytes read at a time in search of the end record. Few, because what stands before it may be a message, to be decompressed in vain.
const LOCATE_BYTES: usize = 512;
/// Bytes of a central directory read at a time; no record is longer than 46 + 3 * 65,535.
const DIRECTORY_BYTES: usize = 256 << 10;

/// A file of a snapshot.
pub(super) struct ViewFile<'a> {
    view: &'a SnapshotView,
    group: u64,
    position: u64,
}

impl<'a> ViewFile<'a> {
    /// Starts to read the file of a link group.
    pub(super) fn new(view: &'a SnapshotView, group: u64) -> ViewFile<'a> {
        ViewFile { view, group, position: 0 }
    }
}

fn read_part(view: &SnapshotView, group: u64, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let bytes = view.read(group, offset, buffer.len()).map_err(io::Error::other)?;
    buffer[..bytes.len()].copy_from_slice(&bytes);
    Ok(bytes.len())
}

impl Read for ViewFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = read_part(self.view, self.group, self.position, buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl ReaderAt for ViewFile<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_part(self.view, self.group, offset, buffer)
    }
}

/// Reads the central directories of zips; its buffer is used again for the next.
#[derive(Default)]
pub(super) struct ZipReader {
    buffer: Vec<u8>,
}

impl ZipReader {
    /// Calls `visit` with the path and the size of every entry of a zip.
    ///
    /// # Errors
    /// Fails, with the reason in words, when the file is no zip, or its central directory cannot be read to the end.
    pub(super) fn entries(
        &mut self,
        view: &SnapshotView,
        group: u64,
        mut visit: impl FnMut(&[u8], u64),
    ) -> Result<(), String> {
        let size = view.group(group).map_err(|error| error.to_string())?.attributes.size;
        self.buffer.resize(DIRECTORY_BYTES, 0);
        let archive = ZipLocator::new()
            .max_search_space(END_RECORD_REACH)
            .locate_in_reader(ViewFile::new(view, group), &mut self.buffer[..LOCATE_BYTES], size)
            .map_err(|(_, error)| format!("it is no whole zip ({error})"))?;
        let expected = archive.entries_hint();
        let mut found = 0;
        let mut records = archive.entries(&mut self.buffer);
        while let Some(record) = records.next_entry().map_err(|error| format!("its directory is damaged ({error})"))? {
            found += 1;
            visit(record.file_path().as_bytes(), record.uncompressed_size_hint());
        }
        if found == expected { Ok(()) } else { Err(format!("its directory has {found} entries of {expected}")) }
    }
}
