//! The threads that compress chunks, and verify those that came compressed from another host.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::pack_uploader::{StoredChunk, ToPacker};
use crate::ids::{ChunkId, DictionaryId};
use crate::model::ChunkHash;
use crate::snapshot::{ChunkFault, SnapshotError};
use crate::source::chunk_intake::ArrivedChunk;
use crate::store::codec::{Compressor, Decompressor, Dictionary, DictionarySet};

/// A chunk whose plain bytes are what its hash says.
pub(super) struct NewChunk {
    pub(super) number: ChunkId,
    pub(super) hash: ChunkHash,
    pub(super) plain: Vec<u8>,
}

/// What a compressing thread gets: a batch.
pub(super) enum Work {
    /// Chunks to compress.
    Compress { chunks: Vec<NewChunk>, dictionary: Option<Arc<Dictionary>> },
    /// Chunks that came compressed, to verify.
    Verify(Vec<ArrivedChunk>),
}

/// A thread that compresses chunks, or verifies those that came compressed.
pub(super) struct Worker {
    level: i32,
    dictionaries: Arc<DictionarySet>,
    /// Kept with the number of its dictionary, for setting it up costs more than a chunk.
    compressor: Option<(Option<DictionaryId>, Compressor)>,
    decompressor: Decompressor,
}

impl Worker {
    pub(super) fn new(level: i32, dictionaries: Arc<DictionarySet>) -> Result<Worker, SnapshotError> {
        Ok(Worker { level, dictionaries, compressor: None, decompressor: Decompressor::new()? })
    }

    /// Takes batches until nothing more can come: the life of a thread.
    pub(super) fn run(mut self, queue: &Receiver<Work>, packer: &Sender<ToPacker>) {
        while let Ok(work) = queue.recv() {
            let due = DueBatch { packer, is_sent: false };
            let done = match work {
                Work::Compress { chunks, dictionary } => self.compress(chunks, dictionary),
                Work::Verify(chunks) => self.verify(chunks),
            };
            if !due.send(done.map_or_else(ToPacker::Failed, ToPacker::Stored)) {
                return;
            }
        }
    }

    fn compress(
        &mut self,
        chunks: Vec<NewChunk>,
        dictionary: Option<Arc<Dictionary>>,
    ) -> Result<Vec<StoredChunk>, SnapshotError> {
        let wanted = dictionary.as_ref().map(|dictionary| dictionary.id());
        // A compressor with a dictionary serves large chunks as well.
        let compressor = match self.compressor.take() {
            Some((id, compressor)) if wanted.is_none() || id == wanted => (id, compressor),
            _ => (wanted, Compressor::new(self.level, dictionary)?),
        };
        let (_, compressor) = self.compressor.insert(compressor);
        let stored = chunks.into_iter().map(|NewChunk { number, hash, plain }| {
            let stored = compressor.compress(&plain)?;
            let (codec, stored) = (stored.codec, stored.bytes.to_vec());
            Ok(StoredChunk { number, hash, plain_length: plain.len() as u32, codec, stored })
        });
        stored.collect()
    }

    fn verify(&mut self, chunks: Vec<ArrivedChunk>) -> Result<Vec<StoredChunk>, SnapshotError> {
        let verified = chunks.into_iter().map(|chunk| {
            verified(&mut self.decompressor, &self.dictionaries, &chunk)?;
            let ArrivedChunk { number, hash, plain_length, codec, stored } = chunk;
            Ok(StoredChunk { number, hash, plain_length, codec, stored })
        });
        verified.collect()
    }
}

/// A batch that was taken and is not passed on. A flush waits for it, so that it is answered even if the thread panics.
struct DueBatch<'a> {
    packer: &'a Sender<ToPacker>,
    is_sent: bool,
}

impl DueBatch<'_> {
    /// Passes it on; returns whether there was anybody to take it.
    fn send(mut self, message: ToPacker) -> bool {
        self.is_sent = true;
        self.packer.send(message).is_ok()
    }
}

impl Drop for DueBatch<'_> {
    fn drop(&mut self) {
        if !self.is_sent {
            let _ = self.packer.send(ToPacker::Failed(SnapshotError::ChunkWriterGone));
        }
    }
}

/// Returns the plain bytes of a chunk that came from another host, if they are what its hash says.
pub(super) fn verified(
    decompressor: &mut Decompressor,
    dictionaries: &DictionarySet,
    chunk: &ArrivedChunk,
) -> Result<Vec<u8>, SnapshotError> {
    let plain = decompressor
        .decompress(chunk.codec, dictionaries, &chunk.stored, chunk.plain_length)
        .map_err(|error| SnapshotError::WrongChunk(ChunkFault::Decompress(error)))?;
    if ChunkHash::of(&plain) == chunk.hash { Ok(plain) } else { Err(SnapshotError::WrongChunk(ChunkFault::Hash)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_whose_thread_panics_ends_the_run_rather_than_be_waited_for() {
        let (packer, stored) = crossbeam_channel::unbounded();
        let ended = std::thread::spawn(move || {
            let _due = DueBatch { packer: &packer, is_sent: false };
            std::panic::resume_unwind(Box::new("made up"));
        });
        assert!(ended.join().is_err());
        assert!(matches!(stored.recv(), Ok(ToPacker::Failed(SnapshotError::ChunkWriterGone))));
    }
}
