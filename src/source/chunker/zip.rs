//! Cuts a zip at the payloads of its entries.
//!
//! Zimbra writes the same messages into each full session's zips, in another order and with other headers around them.
//! The payload is what recurs; a header is a literal. The central directory says where payloads are, since a deflated
//! entry's own header does not know its size. The directory is read first and on its own; then the file is read once,
//! from its start to its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rawzip::{CompressionMethod, ReaderAt, ZipLocator};

use super::output::{ChunkerError, GAP_LITERAL_MAX, LITERAL_MAX, MAX_CHUNK_BYTES, Output, WHOLE_FILE_MAX};
use super::window::Window;
use super::{content, large, mime};

const LOCAL_SIGNATURE: &[u8; 4] = b"PK\x03\x04";

/// Bytes of a local header in front of its name.
const LOCAL_HEADER_LEN: usize = 30;

/// How far from the end of a file the end record can stand: its own 22 bytes and a comment.
const END_RECORD_REACH: u64 = (64 << 10) + 22;

/// The largest central directory in bytes that is read. Some two million entries of Zimbra's kind, for each of which
/// 24 bytes are held.
const DIRECTORY_MAX: u64 = 256 << 20;

/// Bytes of the directory read at a time; no record is longer than 46 + 3 * 65,535.
const DIRECTORY_BUFFER: usize = 256 << 10;

struct Entry {
    header_offset: u64,
    payload_length: u64,
    is_stored: bool,
}

struct Directory {
    /// Sorted by offset.
    entries: Vec<Entry>,
    offset: u64,
}

/// Cuts the file if it is a zip. Returns `false`, with nothing delivered, if it is not.
pub(super) fn cut(
    file: &File,
    size: u64,
    window: &mut Window<'_>,
    output: &mut Output<'_>,
) -> Result<bool, ChunkerError> {
    // A zip behind other data is rare: only a larger file that is no message is worth the extra read at its end.
    let begins_as_zip = size > LITERAL_MAX as u64 && window.fill(4)? == LOCAL_SIGNATURE;
    if !begins_as_zip && (size <= WHOLE_FILE_MAX as u64 || mime::is_worth_parsing(window.fill(mime::HEADERS_MAX)?)) {
        return Ok(false);
    }
    let Some(directory) = read_directory(file, size) else { return Ok(false) };
    let agrees = cut_entries(&directory, window, output)?;
    if agrees {
        cut_gap(window, output, directory.offset - window.position())?;
    }
    let rest = size - window.position();
    if agrees {
        cut_gap(window, output, rest)?;
    } else {
        large::cut_stream(window, output, rest, WHOLE_FILE_MAX)?;
    }
    Ok(true)
}

/// Cuts the entries in file order. Returns `false` at the first one that contradicts the file or its neighbours, with the
/// window where the trouble begins.
fn cut_entries(directory: &Directory, window: &mut Window<'_>, output: &mut Output<'_>) -> Result<bool, ChunkerError> {
    for entry in &directory.entries {
        let Some(gap) = entry.header_offset.checked_sub(window.position()) else { return Ok(false) };
        if entry.header_offset > directory.offset {
            return Ok(false);
        }
        cut_gap(window, output, gap)?;
        let header = window.fill(LOCAL_HEADER_LEN)?;
        if header.len() < LOCAL_HEADER_LEN || !header.starts_with(LOCAL_SIGNATURE) {
            return Ok(false);
        }
        // The name and the extra fields of the local header, which differ from those in the directory.
        let name_length = u16::from_le_bytes([header[26], header[27]]);
        let extra_length = u16::from_le_bytes([header[28], header[29]]);
        let header_length = LOCAL_HEADER_LEN as u64 + u64::from(name_length) + u64::from(extra_length);
        let payload_end = (entry.header_offset + header_length).checked_add(entry.payload_length);
        if payload_end.is_none_or(|end| end > directory.offset) {
            return Ok(false);
        }
        cut_gap(window, output, header_length)?;
        if entry.is_stored || entry.payload_length <= LITERAL_MAX as u64 {
            content::cut(window, output, entry.payload_length)?;
        } else {
            large::cut_stream(window, output, entry.payload_length, MAX_CHUNK_BYTES)?;
        }
    }
    Ok(true)
}

/// Cuts what is not payload: headers, data descriptors, the central directory.
fn cut_gap(window: &mut Window<'_>, output: &mut Output<'_>, length: u64) -> Result<(), ChunkerError> {
    if length > GAP_LITERAL_MAX as u64 {
        return large::cut_stream(window, output, length, WHOLE_FILE_MAX);
    }
    let bytes = window.fill(length as usize)?;
    output.literal(bytes)?;
    let taken = bytes.len();
    window.consume(taken);
    Ok(())
}

/// Reads the central directory; `None` if there is none, or none that can be used. A failed read counts as none: it will
/// fail again where it matters.
fn read_directory(file: &File, size: u64) -> Option<Directory> {
    let mut buffer = vec![0; DIRECTORY_BUFFER];
    let archive = ZipLocator::new()
        .max_search_space(END_RECORD_REACH)
        .locate_in_reader(Bounded { file, size }, &mut buffer, size)
        .ok()?;
    let offset = archive.directory_offset();
    if archive.eocd_offset().checked_sub(offset)? > DIRECTORY_MAX {
        return None;
    }
    let mut directory = Directory { entries: Vec::new(), offset };
    let mut records = archive.entries(&mut buffer);
    while let Some(record) = records.next_entry().ok()? {
        directory.entries.push(Entry {
            header_offset: record.local_header_offset(),
            payload_length: record.compressed_size_hint(),
            is_stored: record.compression_method() == CompressionMethod::STORE,
        });
    }
    directory.entries.sort_unstable_by_key(|entry| entry.header_offset);
    (!directory.entries.is_empty()).then_some(directory)
}

/// A file that ends where it ended when it was examined, even if it grows.
struct Bounded<'a> {
    file: &'a File,
    size: u64,
}

impl ReaderAt for Bounded<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        loop {
            match self.file.read_at(&mut buffer[..length], offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}
