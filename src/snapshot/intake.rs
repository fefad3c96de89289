//! The receiving end for chunks of another host: numbers them in the catalogue and hands them to the chunk writer.

use super::chunk_writer::ChunkWriter;
use super::{ChunkFault, SnapshotError};
use crate::catalog::writer::CatalogWriter;
use crate::catalog::{CatalogError, WriteError};
use crate::ids::ChunkId;
use crate::model::ChunkHash;
use crate::source::tree::{ArrivedChunk, ChunkIntake, IntakeFailed};

/// Borrows what a run stores with, for one call of its source.
pub(super) struct Intake<'r> {
    writer: &'r mut CatalogWriter,
    chunks: &'r mut ChunkWriter,
    failure: Option<SnapshotError>,
}

impl<'r> Intake<'r> {
    pub(super) fn new(writer: &'r mut CatalogWriter, chunks: &'r mut ChunkWriter) -> Intake<'r> {
        Intake { writer, chunks, failure: None }
    }

    /// Returns why a call ended with [`IntakeFailed`].
    pub(super) fn into_failure(self) -> Option<SnapshotError> {
        self.failure
    }

    fn fail(&mut self, error: impl Into<SnapshotError>) -> IntakeFailed {
        self.failure = Some(error.into());
        IntakeFailed
    }
}

impl ChunkIntake for Intake<'_> {
    fn offer(&mut self, hash: &ChunkHash, plain_length: u32) -> Result<(ChunkId, bool), IntakeFailed> {
        self.writer.intern_chunk(hash, plain_length).map_err(|error| match error {
            // What no honest side says.
            CatalogError::Write(error @ WriteError::TwoLengths { .. }) => {
                self.fail(SnapshotError::WrongChunk(ChunkFault::TwoLengths(error)))
            }
            other => self.fail(other),
        })
    }

    fn arrive(&mut self, chunk: ArrivedChunk) -> Result<(), IntakeFailed> {
        self.chunks.arrive(self.writer, chunk).map_err(|error| self.fail(error))
    }

    fn forget(&mut self, hash: &ChunkHash) {
        self.writer.forget_chunk(hash);
    }

    fn dictionary(&self) -> Option<(u32, &[u8])> {
        self.chunks.dictionary().map(|dictionary| (dictionary.id().get(), dictionary.bytes()))
    }
}
