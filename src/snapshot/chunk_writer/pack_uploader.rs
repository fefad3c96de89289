//! From stored chunks to packs: one thread gathers chunks into packs, and one writes each pack whole to the backend and reports where every chunk lies.
//!
//! Writing waits for the disk: done by the gathering thread it held up compression for a third of the time. Memory: one pack being filled, one waiting and
//! one being written.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use crate::catalog::chunk::PackedChunk;
use crate::ids::ChunkId;
use crate::model::{ChunkHash, Codec};
use crate::snapshot::SnapshotError;
use crate::store::backend::Backend;
use crate::store::codec::Dictionary;
use crate::store::pack::{FinishedPack, PACK_TARGET_BYTES, PackBuilder, PackId};

/// A chunk as it is stored.
pub(super) struct StoredChunk {
    pub(super) number: ChunkId,
    pub(super) hash: ChunkHash,
    pub(super) plain_length: u32,
    pub(super) codec: Codec,
    pub(super) stored: Vec<u8>,
}

/// What the gathering thread gets.
pub(super) enum ToPacker {
    /// The chunks of one batch.
    Stored(Vec<StoredChunk>),
    /// A dictionary that chunks are going to need: the packs alone must do to read every chunk.
    Dictionary(Arc<Dictionary>),
    Failed(SnapshotError),
    /// Finish the open pack and report once all of it is durable: as soon as so many batches have come since the start.
    Flush {
        batches: u64,
    },
}

/// What the writing thread gets.
pub(super) enum ToUploader {
    Pack(FinishedPack, Vec<PackedChunk>),
    Flush,
    Failed(SnapshotError),
}

/// What the writing thread reports.
pub(super) enum Report {
    /// A pack was written.
    Pack { id: PackId, bytes: u64, chunks: Vec<PackedChunk> },
    /// Everything before the flush is durable.
    Flushed,
    /// Nothing more is stored.
    Failed(SnapshotError),
}

/// Gathers stored chunks into packs.
pub(super) struct Packer {
    /// The pack being filled; none before its first entry, since its id is taken then.
    builder: Option<PackBuilder>,
    epoch: u32,
    chunks: Vec<PackedChunk>,
    uploads: Sender<ToUploader>,
    /// Batches that have come.
    batches: u64,
    /// At how many of them a flush is due.
    flush_at: Option<u64>,
}

/// The thread that takes packs ended; it has reported why.
struct UploaderGone;

impl Packer {
    /// The ids of packs begin with `epoch`.
    pub(super) fn new(epoch: u32, uploads: Sender<ToUploader>) -> Packer {
        Packer { builder: None, epoch, chunks: Vec::new(), uploads, batches: 0, flush_at: None }
    }

    /// Gathers until nothing more can come: the life of a thread.
    pub(super) fn run(mut self, queue: &Receiver<ToPacker>) {
        while let Ok(message) = queue.recv() {
            let taken = self.take(message).unwrap_or_else(|error| {
                // Its end is reported; whatever comes behind is not stored.
                let _ = self.uploads.send(ToUploader::Failed(error));
                Err(UploaderGone)
            });
            if taken.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, message: ToPacker) -> Result<Result<(), UploaderGone>, SnapshotError> {
        match message {
            ToPacker::Failed(error) => return Err(error),
            ToPacker::Dictionary(dictionary) => {
                self.builder()?.push_dictionary(&dictionary)?;
            }
            ToPacker::Stored(chunks) => {
                for chunk in chunks {
                    if let Err(gone) = self.push(&chunk)? {
                        return Ok(Err(gone));
                    }
                }
                self.batches += 1;
            }
            ToPacker::Flush { batches } => self.flush_at = Some(batches),
        }
        Ok(if self.flush_at == Some(self.batches) { self.flush() } else { Ok(()) })
    }

    fn push(&mut self, chunk: &StoredChunk) -> Result<Result<(), UploaderGone>, SnapshotError> {
        let StoredChunk { number, hash, plain_length, codec, stored } = chunk;
        let builder = self.builder()?;
        let offset = builder.push(*hash, *plain_length, *codec, stored)?;
        let is_full = builder.is_full();
        self.chunks.push(PackedChunk {
            number: *number,
            offset,
            stored_length: stored.len() as u32,
            plain_length: *plain_length,
            prefix: hash.prefix(),
        });
        Ok(if is_full { self.finish_pack() } else { Ok(()) })
    }

    fn builder(&mut self) -> Result<&mut PackBuilder, SnapshotError> {
        Ok(match &mut self.builder {
            Some(builder) => builder,
            none => none.insert(PackBuilder::new(PACK_TARGET_BYTES, PackId::unique(self.epoch)?)),
        })
    }

    fn finish_pack(&mut self) -> Result<(), UploaderGone> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let chunks = std::mem::take(&mut self.chunks);
        self.send(ToUploader::Pack(builder.finish(), chunks))
    }

    fn flush(&mut self) -> Result<(), UploaderGone> {
        self.flush_at = None;
        self.finish_pack()?;
        self.send(ToUploader::Flush)
    }

    fn send(&self, message: ToUploader) -> Result<(), UploaderGone> {
        self.uploads.send(message).map_err(|_| UploaderGone)
    }
}

/// Writes packs to the backend.
pub(super) struct PackUploader {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) reports: Sender<Report>,
}

impl PackUploader {
    /// Writes until nothing more can come: the life of a thread.
    pub(super) fn run(self, queue: &Receiver<ToUploader>) {
        while let Ok(message) = queue.recv() {
            let report = self.take(message).unwrap_or_else(Report::Failed);
            let is_end = matches!(report, Report::Failed(_));
            // Without a receiver nobody is left to hear it.
            if self.reports.send(report).is_err() || is_end {
                return;
            }
        }
    }

    fn take(&self, message: ToUploader) -> Result<Report, SnapshotError> {
        match message {
            ToUploader::Failed(error) => Err(error),
            ToUploader::Pack(pack, chunks) => {
                pack.put(self.backend.as_ref())?;
                Ok(Report::Pack { id: pack.id, bytes: pack.bytes.len() as u64, chunks })
            }
            ToUploader::Flush => {
                self.backend.sync()?;
                Ok(Report::Flushed)
            }
        }
    }
}
