//! Copying chunks into new packs.
//!
//! Each chunk is verified on its way, and copied as it is stored: nothing is compressed anew.

use std::sync::Arc;

use super::PruneError;
use crate::catalog::chunk::{ChunkRow, PackRow};
use crate::catalog::writer::CatalogWriter;
use crate::replica::Replica;
use crate::store::backend::Backend;
use crate::store::codec::DictionarySet;
use crate::store::pack::{PACK_TARGET_BYTES, PackBuilder, PackId};
use crate::store::reader::{ChunkAddress, ChunkError, ChunkReader};
use crate::store::{list_pack, put_pack};

/// Chunks of which this many are read together, so that an interrupt need not wait for a whole pack.
const RUN_CHUNKS: usize = 1024;

/// Fills new packs.
pub(crate) struct Repacker {
    backend: Arc<dyn Backend>,
    dictionaries: Arc<DictionarySet>,
    chunks: ChunkReader,
    builder: PackBuilder,
    rows: Vec<(u64, ChunkRow)>,
    sealed: Vec<(PackRow, Vec<(u64, ChunkRow)>)>,
}

impl Repacker {
    pub(crate) fn new(replica: &Replica) -> Repacker {
        Repacker {
            backend: Arc::clone(replica.backend()),
            dictionaries: Arc::clone(replica.dictionaries()),
            chunks: replica.chunks(),
            builder: PackBuilder::new(PACK_TARGET_BYTES),
            rows: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// Copies chunks, given by number and place, sorted by pack and offset. `failed` decides what a chunk that cannot be read means.
    pub(crate) fn copy(
        &mut self,
        chunks: &[(u64, ChunkAddress)],
        mut progress: impl FnMut(u64) -> Result<(), PruneError>,
        mut failed: impl FnMut(u64, ChunkError) -> Result<(), PruneError>,
    ) -> Result<(), PruneError> {
        for part in chunks.chunks(RUN_CHUNKS) {
            let run: Vec<ChunkAddress> = part.iter().map(|(_, address)| *address).collect();
            let mut result = Ok(());
            let mut bytes = 0;
            let (builder, rows, sealed) = (&mut self.builder, &mut self.rows, &mut self.sealed);
            let put = |builder: &mut PackBuilder, rows: &mut Vec<(u64, ChunkRow)>, sealed: &mut Vec<_>| {
                seal(self.backend.as_ref(), &self.dictionaries, builder, rows, sealed)
            };
            self.chunks.copy_run(&run, |index, entry| {
                if result.is_err() {
                    return;
                }
                let number = part[index].0;
                result = match entry {
                    Err(error) => failed(number, error),
                    Ok((header, stored)) => builder
                        .push(header.hash, header.plain_length, header.codec, header.dictionary_id, stored)
                        .map_err(PruneError::from)
                        .and_then(|offset| {
                            let (stored_length, plain_length) = (header.stored_length, header.plain_length);
                            let prefix = header.hash.prefix();
                            bytes += header.entry_bytes() as u64;
                            rows.push((number, ChunkRow { pack: 0, offset, stored_length, plain_length, prefix }));
                            if builder.is_full() { put(builder, rows, sealed) } else { Ok(()) }
                        }),
                };
            });
            result?;
            progress(bytes)?;
        }
        Ok(())
    }

    /// Makes all that was copied durable and lets the catalogue know where it is; returns packs and bytes. The caller commits.
    pub(crate) fn settle(&mut self, writer: &mut CatalogWriter) -> Result<(u64, u64), PruneError> {
        if !self.builder.is_empty() {
            seal(self.backend.as_ref(), &self.dictionaries, &mut self.builder, &mut self.rows, &mut self.sealed)?;
        }
        if self.sealed.is_empty() {
            return Ok((0, 0));
        }
        self.backend.sync()?;
        let (mut packs, mut bytes) = (0, 0);
        for (pack, rows) in self.sealed.drain(..) {
            packs += 1;
            bytes += pack.bytes;
            let pack = writer.add_pack(pack);
            for (number, row) in rows {
                writer.place_chunk(number, ChunkRow { pack, ..row })?;
            }
        }
        Ok((packs, bytes))
    }
}

fn seal(
    backend: &dyn Backend,
    dictionaries: &DictionarySet,
    builder: &mut PackBuilder,
    rows: &mut Vec<(u64, ChunkRow)>,
    sealed: &mut Vec<(PackRow, Vec<(u64, ChunkRow)>)>,
) -> Result<(), PruneError> {
    let pack = std::mem::replace(builder, PackBuilder::new(PACK_TARGET_BYTES)).finish();
    put_pack(backend, &pack, dictionaries)?;
    let rows = std::mem::take(rows);
    sealed.push((PackRow { id: pack.id, bytes: pack.bytes.len() as u64, chunks: rows.len() as u64 }, rows));
    Ok(())
}

/// Makes sure that every dictionary is in a pack that holds nothing else and so always stays: the packs alone must do to read every chunk. `existing` are
/// the packs without chunks. Returns the row of a new pack, if one was needed; it is durable after the next sync, and the caller adds it.
pub(crate) fn keep_dictionaries(replica: &Replica, existing: &[PackId]) -> Result<Option<PackRow>, PruneError> {
    let all = replica.dictionaries().all();
    if all.is_empty() {
        return Ok(None);
    }
    for id in existing {
        let entries = list_pack(replica.backend().as_ref(), *id).unwrap_or_default();
        let has = |wanted: u32| {
            entries.iter().any(|entry| entry.header.is_dictionary && entry.header.dictionary_id == wanted)
        };
        if all.iter().all(|dictionary| has(dictionary.id())) {
            return Ok(None);
        }
    }
    let mut builder = PackBuilder::new(PACK_TARGET_BYTES);
    for dictionary in &all {
        builder.push_dictionary(dictionary)?;
    }
    let pack = builder.finish();
    put_pack(replica.backend().as_ref(), &pack, replica.dictionaries())?;
    Ok(Some(PackRow { id: pack.id, bytes: pack.bytes.len() as u64, chunks: 0 }))
}
