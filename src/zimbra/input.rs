//! Errors of the store that an analysis meets, and zips of a snapshot.

use rawzip::ZipLocator;
use serde::Serialize;

use crate::ids::GroupId;
use crate::view::{FileInput, InputFailure, SnapshotView, ViewError};

/// How far from the end of a zip its end record can stand: its own 22 bytes and a comment.
const END_RECORD_REACH: u64 = (64 << 10) + 22;
/// Bytes read at a time in search of the end record. Few, because what stands before it may be a message, to be decompressed in vain.
const LOCATE_BYTES: usize = 512;
/// Bytes of a central directory read at a time; no record is longer than 46 + 3 * 65,535.
const DIRECTORY_BYTES: usize = 256 << 10;

/// What kept something from being read that the store should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreError {
    /// What it was, in words.
    pub text: String,
    /// Whether the store is damaged, as against a passing fault.
    pub is_damage: bool,
}

/// The first error of the store that an analysis met; damage counts before passing faults.
#[derive(Debug, Default)]
pub(super) struct StoreErrors(Option<StoreError>);

impl StoreErrors {
    pub(super) fn add(&mut self, error: &ViewError) {
        let is_damage = error.is_damage();
        if self.0.as_ref().is_none_or(|known| is_damage && !known.is_damage) {
            self.0 = Some(StoreError { text: error.to_string(), is_damage });
        }
    }

    pub(super) fn take(&mut self) -> Option<StoreError> {
        self.0.take()
    }
}

/// Returns an error of the store that a file met. That the source could not read the file is none.
pub(super) fn store_error(failure: &InputFailure) -> Result<(), ViewError> {
    match failure.take() {
        None | Some(ViewError::Unreadable { .. }) => Ok(()),
        Some(error) => Err(error),
    }
}

/// Reads the central directories of zips; its buffer is used again for the next.
#[derive(Default)]
pub(super) struct ZipReader {
    buffer: Vec<u8>,
}

impl ZipReader {
    /// Calls `visit` with the path and the size of every entry of a zip. Returns why it is no zip, or why its central directory cannot be read to the
    /// end, in words.
    ///
    /// # Errors
    /// Fails when the store cannot be read.
    pub(super) fn entries(
        &mut self,
        view: &SnapshotView,
        group: GroupId,
        visit: impl FnMut(&[u8], u64),
    ) -> Result<Option<String>, ViewError> {
        let failure = InputFailure::default();
        let fault = self.read_entries(view, group, &failure, visit)?.err();
        store_error(&failure)?;
        Ok(fault)
    }

    fn read_entries(
        &mut self,
        view: &SnapshotView,
        group: GroupId,
        failure: &InputFailure,
        mut visit: impl FnMut(&[u8], u64),
    ) -> Result<Result<(), String>, ViewError> {
        let size = view.group(group)?.attributes.size;
        self.buffer.resize(DIRECTORY_BYTES, 0);
        let located = ZipLocator::new().max_search_space(END_RECORD_REACH).locate_in_reader(
            FileInput::new(view, group, failure),
            &mut self.buffer[..LOCATE_BYTES],
            size,
        );
        let archive = match located {
            Ok(archive) => archive,
            Err((_, error)) => return Ok(Err(format!("it is no whole zip ({error})"))),
        };
        let expected = archive.entries_hint();
        let mut found = 0;
        let mut records = archive.entries(&mut self.buffer);
        loop {
            match records.next_entry() {
                Err(error) => return Ok(Err(format!("its directory is damaged ({error})"))),
                Ok(None) => break,
                Ok(Some(record)) => {
                    found += 1;
                    visit(record.file_path().as_bytes(), record.uncompressed_size_hint());
                }
            }
        }
        Ok(if found == expected { Ok(()) } else { Err(format!("its directory has {found} entries of {expected}")) })
    }
}
