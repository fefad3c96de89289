//! Packs that a killed run left without a commit: what is in them is not stored again.
//!
//! A run commits its progress now and then; what it had stored since its last commit lies in packs that
//! nothing names. Packs describe themselves, so the next run gives their chunks numbers before it begins, and
//! requests none of them from the source. Each such pack is read whole and verified first.

use std::collections::HashSet;
use std::sync::Arc;

use super::SnapshotError;
use crate::catalog::chunk::{PackRow, PackedChunk};
use crate::catalog::condemned;
use crate::catalog::writer::CatalogWriter;
use crate::model::Codec;
use crate::replica::Replica;
use crate::store::codec::Dictionary;
use crate::store::pack::{PACK_PREFIX, PackId};
use crate::store::{PackEntry, PackListing, list_pack, verify_pack};

/// Gives numbers to the chunks of packs that the catalogue does not know, as far as they are new; returns how many it were.
pub(super) fn adopt(replica: &Replica, writer: &mut CatalogWriter) -> Result<u64, SnapshotError> {
    // A condemned pack is about to be deleted, also by whoever looked at the table before this run.
    let mut known: HashSet<PackId> = condemned::read_packs(writer.reader())?.into_iter().map(|(id, _)| id).collect();
    writer.reader().for_each_pack(|_, row| {
        known.insert(row.id);
        Ok(())
    })?;
    let unnamed = replica.backend().list(PACK_PREFIX)?;
    let unnamed = unnamed.into_iter().filter_map(|(key, bytes)| Some((PackId::from_key(&key)?, bytes)));
    let mut unnamed: Vec<(PackId, u64)> = unnamed.filter(|(id, _)| !known.contains(id)).collect();
    // All dictionaries first: packs come in no order.
    let mut fitting = Vec::new();
    for (id, bytes) in unnamed.drain(..) {
        // A damaged one is left to `check`, and to prune. So is one that cannot be read now: what it holds is requested and stored again, which costs
        // space until the next prune and nothing else.
        if let Ok(listing) = list_pack(replica.backend().as_ref(), id)
            && take_dictionaries(replica, writer, id, &listing.entries)?
        {
            fitting.push((id, bytes));
        }
    }
    let mut adopted = 0;
    for (id, bytes) in fitting {
        let Ok(PackListing { format, entries }) = list_pack(replica.backend().as_ref(), id) else { continue };
        if entries.iter().any(|entry| lacks_dictionary(replica, entry)) {
            continue;
        }
        match verify_pack(replica.backend().as_ref(), id, replica.dictionaries()) {
            Ok(findings) if findings.damage.is_empty() => {}
            _ => continue,
        }
        let mut new = Vec::new();
        for PackEntry { offset, header } in entries.iter().filter(|entry| entry.header.dictionary.is_none()) {
            let (number, is_new) = writer.intern_chunk(&header.hash, header.plain_length)?;
            if is_new {
                new.push(PackedChunk::new(number, *offset, header));
            }
        }
        if new.is_empty() {
            continue;
        }
        adopted += new.len() as u64;
        let chunks = entries.iter().filter(|entry| entry.header.dictionary.is_none()).count() as u64;
        writer.add_pack(PackRow { id, bytes, chunks, format }, &new)?;
    }
    Ok(adopted)
}

/// Takes the dictionaries of a pack that are new; returns whether they fit those that are known.
fn take_dictionaries(
    replica: &Replica,
    writer: &mut CatalogWriter,
    pack: PackId,
    entries: &[PackEntry],
) -> Result<bool, SnapshotError> {
    for entry in entries {
        let Some(id) = entry.header.dictionary else { continue };
        let plain = entry.header.codec == Codec::Plain;
        let at = u64::from(entry.offset) + crate::store::pack::ENTRY_HEADER_BYTES as u64;
        // One that cannot be read now is passed over, as a damaged one is.
        let Ok(bytes) = replica.backend().read_at(&pack.key(), at, entry.header.stored_length as usize) else {
            return Ok(false);
        };
        if !plain || crate::model::ChunkHash::of(&bytes) != entry.header.hash {
            return Ok(false);
        }
        match replica.dictionaries().get(id) {
            // Another run has trained another one under this number meanwhile.
            Some(known) if known.bytes() != bytes => return Ok(false),
            Some(_) => {}
            None => {
                let dictionary = Arc::new(Dictionary::new(id, bytes));
                writer.add_dictionary(id, dictionary.bytes());
                replica.dictionaries().insert(dictionary)?;
            }
        }
    }
    Ok(true)
}

fn lacks_dictionary(replica: &Replica, entry: &PackEntry) -> bool {
    matches!(entry.header.codec, Codec::ZstdDictionary(id) if replica.dictionaries().get(id).is_none())
}
