//! Copying chunks into new packs.
//!
//! Each chunk is verified on its way, and copied as it is stored: nothing is compressed anew.

use std::sync::Arc;

use super::PruneError;
use crate::catalog::chunk::{PackRow, PackedChunk};
use crate::catalog::writer::CatalogWriter;
use crate::ids::{ChunkId, DictionaryId};
use crate::replica::Replica;
use crate::store::backend::Backend;
use crate::store::entry::{ChunkAddress, ChunkError};
use crate::store::pack::{PACK_TARGET_BYTES, PackBuilder, PackFormat, PackId};
use crate::store::reader::ChunkReader;
use crate::store::{EntryHeader, FinishedPack, list_pack};

/// Chunks of which this many are read together, so that an interrupt need not wait for a whole pack.
const RUN_CHUNKS: usize = 1024;

/// Fills new packs.
pub(crate) struct Repacker {
    backend: Arc<dyn Backend>,
    chunks: ChunkReader,
    filling: Filling,
}

/// New packs: the one being filled and those that were put since the last commit.
struct Filling {
    epoch: u32,
    /// None before its first entry, since its id is taken then.
    builder: Option<PackBuilder>,
    chunks: Vec<PackedChunk>,
    sealed: Vec<(PackRow, Vec<PackedChunk>)>,
}

impl Repacker {
    /// Begins to fill packs whose ids begin with `epoch`.
    pub(crate) fn new(replica: &Replica, epoch: u32) -> Repacker {
        Repacker {
            backend: Arc::clone(replica.backend()),
            chunks: replica.chunks(),
            filling: Filling { epoch, builder: None, chunks: Vec::new(), sealed: Vec::new() },
        }
    }

    /// Copies chunks, given by number and place, sorted by pack and offset. `failed` decides what a chunk that cannot be read means.
    pub(crate) fn copy(
        &mut self,
        chunks: &[(ChunkId, ChunkAddress)],
        mut progress: impl FnMut(u64) -> Result<(), PruneError>,
        mut failed: impl FnMut(ChunkId, ChunkError) -> Result<(), PruneError>,
    ) -> Result<(), PruneError> {
        for part in chunks.chunks(RUN_CHUNKS) {
            let run: Vec<ChunkAddress> = part.iter().map(|(_, address)| *address).collect();
            let mut result = Ok(());
            let mut bytes = 0;
            let (filling, backend) = (&mut self.filling, self.backend.as_ref());
            self.chunks.copy_run(&run, |index, entry| {
                if result.is_err() {
                    return;
                }
                let number = part[index].0;
                result = match entry {
                    Err(error) => failed(number, error),
                    Ok((header, stored)) => {
                        bytes += header.entry_bytes() as u64;
                        filling.push(backend, number, &header, stored)
                    }
                };
            });
            result?;
            progress(bytes)?;
        }
        Ok(())
    }

    /// Makes all that was copied durable and lets the catalogue know where it is; returns packs and bytes. The caller commits.
    pub(crate) fn finish_packs(&mut self, writer: &mut CatalogWriter) -> Result<(u64, u64), PruneError> {
        self.filling.seal(self.backend.as_ref())?;
        if self.filling.sealed.is_empty() {
            return Ok((0, 0));
        }
        self.backend.sync()?;
        let (mut packs, mut bytes) = (0, 0);
        for (pack, chunks) in self.filling.sealed.drain(..) {
            packs += 1;
            bytes += pack.bytes;
            writer.add_pack(pack, &chunks)?;
        }
        Ok((packs, bytes))
    }
}

impl Filling {
    fn push(
        &mut self,
        backend: &dyn Backend,
        number: ChunkId,
        header: &EntryHeader,
        stored: &[u8],
    ) -> Result<(), PruneError> {
        let builder = match &mut self.builder {
            Some(builder) => builder,
            none => none.insert(PackBuilder::new(PACK_TARGET_BYTES, PackId::unique(self.epoch)?)),
        };
        let offset = builder.push(header.hash, header.plain_length, header.codec, stored)?;
        let is_full = builder.is_full();
        self.chunks.push(PackedChunk::new(number, offset, header));
        if is_full { self.seal(backend) } else { Ok(()) }
    }

    /// Puts the pack being filled, if there is one.
    fn seal(&mut self, backend: &dyn Backend) -> Result<(), PruneError> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let pack = builder.finish();
        pack.put(backend)?;
        let chunks = std::mem::take(&mut self.chunks);
        self.sealed.push((row_of(&pack, chunks.len() as u64), chunks));
        Ok(())
    }
}

fn row_of(pack: &FinishedPack, chunks: u64) -> PackRow {
    PackRow { id: pack.id, bytes: pack.bytes.len() as u64, chunks, format: PackFormat::V2 }
}

/// Makes sure that every dictionary is in a pack that holds nothing else and so always stays: the packs alone must do to read every chunk. `existing` are
/// the packs without chunks. Returns the row of a new pack, if one was needed; it is durable after the next sync, and the caller adds it.
///
/// # Errors
/// Also when one of the existing packs cannot be read just now: that does not mean that it is not there.
pub(crate) fn keep_dictionaries(
    replica: &Replica,
    epoch: u32,
    existing: &[PackId],
) -> Result<Option<PackRow>, PruneError> {
    let all = replica.dictionaries().all();
    if all.is_empty() {
        return Ok(None);
    }
    for id in existing {
        let entries = match list_pack(replica.backend().as_ref(), *id) {
            Ok(listing) => listing.entries,
            Err(source @ ChunkError::Io { .. }) => return Err(PruneError::Chunk { source }),
            // Damaged or gone: they are written again.
            Err(_) => continue,
        };
        let has = |wanted: DictionaryId| entries.iter().any(|entry| entry.header.dictionary == Some(wanted));
        if all.iter().all(|dictionary| has(dictionary.id())) {
            return Ok(None);
        }
    }
    let mut builder = PackBuilder::new(PACK_TARGET_BYTES, PackId::unique(epoch)?);
    for dictionary in &all {
        builder.push_dictionary(dictionary)?;
    }
    let pack = builder.finish();
    pack.put(replica.backend().as_ref())?;
    Ok(Some(row_of(&pack, 0)))
}
