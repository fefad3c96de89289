//! What a run stores with: the catalogue and the chunk writer, and the receiving end for the chunks of every source.

use std::time::{Duration, Instant};

use super::chunk_writer::ChunkWriter;
use super::{ChunkFault, SnapshotError};
use crate::catalog::writer::CatalogWriter;
use crate::catalog::{CatalogError, WriteError};
use crate::ids::{ChunkId, DictionaryId};
use crate::model::ChunkHash;
use crate::source::chunk_intake::{ArrivedChunk, ChunkIntake, IntakeFailed, NumberedChunk};
use crate::source::read::CutChunk;
use crate::source::tree::{SourceError, SourceTree};

/// Pending changes of the catalogue that make the run commit its progress, in bytes.
const PROGRESS_PENDING_BYTES: usize = 48 << 20;

/// Numbers and stores chunks, and commits.
pub(super) struct Storage {
    pub(super) catalog: CatalogWriter,
    chunks: ChunkWriter,
    /// Why a call of the source ended with [`IntakeFailed`].
    failure: Option<SnapshotError>,
    progress_interval: Duration,
    last_commit: Instant,
}

impl Storage {
    /// Progress is committed at least every `progress_interval`, if [`Storage::is_commit_due`] is called.
    pub(super) fn new(catalog: CatalogWriter, chunks: ChunkWriter, progress_interval: Duration) -> Storage {
        Storage { catalog, chunks, failure: None, progress_interval, last_commit: Instant::now() }
    }

    /// Makes a call of the source that may bring chunks.
    pub(super) fn receive<T>(
        &mut self,
        call: impl FnOnce(&mut Storage) -> Result<T, SourceError>,
    ) -> Result<T, SnapshotError> {
        let result = call(self);
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(result?),
        }
    }

    /// Returns whether it is time to commit progress.
    pub(super) fn is_commit_due(&self) -> bool {
        self.is_large() || self.last_commit.elapsed() >= self.progress_interval
    }

    /// Returns whether so many changes are pending that they are to be committed at once.
    pub(super) fn is_large(&self) -> bool {
        self.catalog.pending_bytes() >= PROGRESS_PENDING_BYTES
    }

    /// Waits until every chunk that has a number is in a pack.
    pub(super) fn store_all(&mut self, tree: &mut dyn SourceTree) -> Result<(), SnapshotError> {
        self.receive(|intake| tree.wait_for_chunks(intake))?;
        self.chunks.flush(&mut self.catalog)
    }

    /// Commits what there is, so that a later run need not read or store it again.
    pub(super) fn commit_progress(&mut self, tree: &mut dyn SourceTree) -> Result<(), SnapshotError> {
        self.store_all(tree)?;
        self.catalog.commit()?;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Keeps the reason of a failure until the call of the source ends.
    pub(super) fn keep_failure<T>(&mut self, result: Result<T, impl Into<SnapshotError>>) -> Result<T, IntakeFailed> {
        result.map_err(|error| {
            self.failure = Some(error.into());
            IntakeFailed
        })
    }
}

impl ChunkIntake for Storage {
    fn take(&mut self, CutChunk { hash, plain }: CutChunk) -> Result<NumberedChunk, IntakeFailed> {
        // Lossless: a chunk has a mebibyte at most.
        let length = plain.len() as u32;
        let numbered = self.catalog.intern_chunk(&hash, length);
        let (number, is_new) = self.keep_failure(numbered)?;
        if is_new {
            let stored = self.chunks.store(&mut self.catalog, number, hash, plain);
            self.keep_failure(stored)?;
        }
        Ok(NumberedChunk { number, length })
    }

    fn offer(&mut self, hash: &ChunkHash, plain_length: u32) -> Result<(ChunkId, bool), IntakeFailed> {
        let numbered = self.catalog.intern_chunk(hash, plain_length).map_err(|error| match error {
            // What no honest side says.
            CatalogError::Write(error @ WriteError::TwoLengths { .. }) => {
                SnapshotError::WrongChunk(ChunkFault::TwoLengths(error))
            }
            other => other.into(),
        });
        self.keep_failure(numbered)
    }

    fn arrive(&mut self, chunk: ArrivedChunk) -> Result<(), IntakeFailed> {
        let stored = self.chunks.arrive(&mut self.catalog, chunk);
        self.keep_failure(stored)
    }

    fn forget(&mut self, hash: &ChunkHash) {
        self.catalog.forget_chunk(hash);
    }

    fn dictionary(&self) -> Option<(DictionaryId, &[u8])> {
        self.chunks.dictionary().map(|dictionary| (dictionary.id(), dictionary.bytes()))
    }
}
