//! Chunk rows and pack rows: where each chunk lies.
//!
//! Chunks are numbered in order of first sight. Rows are kept 256 to a page; neighbours usually lie behind each other in one pack, so a
//! row takes 11 to 14 bytes, 8 of them the first bytes of the chunk's hash, which bind the number to what is read.
//!
//! A page is a count of slots and then one row a slot. A row begins with a tag byte: 0 no chunk of this number; 1 directly behind the
//! chunk before, in the same pack; 2 pack number (varint) and offset (varint) follow. Then stored length, plain length (varints) and the 8 bytes.
//! Tag 3 is a chunk whose bytes are lost: plain length and the 8 bytes follow. It keeps its number, so that whatever needs it is whole again
//! once the same bytes are stored.

use crate::coding::{DecodeError, Decoder, put_varint};
use crate::ids::{ChunkId, PackNumber};
use crate::store::pack::{ENTRY_HEADER_BYTES, EntryHeader, PackFormat, PackId};

/// Rows in one page of chunks or of link groups.
pub const PAGE_ROWS: u64 = 256;

/// What the catalogue knows of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRow {
    /// Where it lies.
    pub place: ChunkPlace,
    /// Length of the plain bytes.
    pub plain_length: u32,
    /// First bytes of the chunk's hash.
    pub prefix: [u8; 8],
}

/// Where one chunk lies, by pack number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkPlace {
    /// Nowhere: a repair found no pack that has its bytes.
    Lost,
    /// In a pack.
    At {
        /// Number of the pack.
        pack: PackNumber,
        /// Offset of the chunk's entry header in the pack, in bytes.
        offset: u32,
        /// Length of the stored form, in bytes, without the entry header.
        stored_length: u32,
    },
}

impl ChunkRow {
    /// Makes the row of a chunk whose bytes are lost.
    pub fn lost(plain_length: u32, prefix: [u8; 8]) -> ChunkRow {
        ChunkRow { place: ChunkPlace::Lost, plain_length, prefix }
    }

    /// Returns whether the chunk's bytes are lost: a repair found no pack that has them.
    pub fn is_lost(&self) -> bool {
        self.place == ChunkPlace::Lost
    }

    /// Returns what the chunk takes in its pack, in bytes; `None` when it is lost.
    pub fn entry_bytes(&self) -> Option<u64> {
        match self.place {
            ChunkPlace::Lost => None,
            ChunkPlace::At { stored_length, .. } => Some(ENTRY_HEADER_BYTES as u64 + u64::from(stored_length)),
        }
    }
}

/// A chunk in a pack that has no number yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedChunk {
    /// Number of the chunk.
    pub number: ChunkId,
    /// Offset of its entry header in the pack, in bytes.
    pub offset: u32,
    /// Length of the stored form, in bytes, without the entry header.
    pub stored_length: u32,
    /// Length of the plain bytes.
    pub plain_length: u32,
    /// First bytes of its hash.
    pub prefix: [u8; 8],
}

impl PackedChunk {
    /// Says of an entry of a pack which chunk it is.
    pub fn new(number: ChunkId, offset: u32, header: &EntryHeader) -> PackedChunk {
        let EntryHeader { hash, plain_length, stored_length, .. } = header;
        let (plain_length, stored_length, prefix) = (*plain_length, *stored_length, hash.prefix());
        PackedChunk { number, offset, stored_length, plain_length, prefix }
    }

    /// Makes the chunk's row, now that the pack has a number.
    pub fn row(&self, pack: PackNumber) -> ChunkRow {
        let PackedChunk { offset, stored_length, plain_length, prefix, .. } = *self;
        ChunkRow { place: ChunkPlace::At { pack, offset, stored_length }, plain_length, prefix }
    }
}

/// Rows of up to 256 neighbouring chunk numbers; `None` where there is no such chunk.
pub type ChunkPage = Vec<Option<ChunkRow>>;

/// Encodes a page of chunk rows.
pub fn encode_page(page: &[Option<ChunkRow>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() * 14 + 2);
    put_varint(&mut out, page.len() as u64);
    let mut next = None;
    for row in page {
        let Some(row) = row else {
            out.push(0);
            continue;
        };
        let ChunkPlace::At { pack, offset, stored_length } = row.place else {
            out.push(3);
            put_varint(&mut out, u64::from(row.plain_length));
            out.extend_from_slice(&row.prefix);
            next = None;
            continue;
        };
        if next == Some((pack, offset)) {
            out.push(1);
        } else {
            out.push(2);
            put_varint(&mut out, pack.0);
            put_varint(&mut out, u64::from(offset));
        }
        put_varint(&mut out, u64::from(stored_length));
        put_varint(&mut out, u64::from(row.plain_length));
        out.extend_from_slice(&row.prefix);
        next = next_entry(pack, offset, stored_length);
    }
    out
}

fn next_entry(pack: PackNumber, offset: u32, stored_length: u32) -> Option<(PackNumber, u32)> {
    let end = offset.checked_add(ENTRY_HEADER_BYTES as u32)?.checked_add(stored_length)?;
    Some((pack, end))
}

/// Decodes a page of chunk rows.
///
/// # Errors
/// Fails when the bytes are not what [`encode_page`] produces.
pub fn decode_page(bytes: &[u8]) -> Result<ChunkPage, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let count = decoder.count()?;
    if count as u64 > PAGE_ROWS {
        return Err(DecodeError("a page has too many rows"));
    }
    let mut page = Vec::with_capacity(count);
    let mut next = None;
    for _ in 0..count {
        let (pack, offset) = match decoder.byte()? {
            0 => {
                page.push(None);
                continue;
            }
            3 => {
                page.push(Some(ChunkRow::lost(decoder.varint32()?, decoder.array()?)));
                next = None;
                continue;
            }
            1 => next.ok_or(DecodeError("the first row refers to one before it"))?,
            2 => (PackNumber::decoded(decoder.varint()?)?, decoder.varint32()?),
            _ => return Err(DecodeError("an unknown row tag")),
        };
        let stored_length = decoder.varint32()?;
        let place = ChunkPlace::At { pack, offset, stored_length };
        page.push(Some(ChunkRow { place, plain_length: decoder.varint32()?, prefix: decoder.array()? }));
        next = next_entry(pack, offset, stored_length);
    }
    decoder.finish()?;
    Ok(page)
}

/// One pack, as the catalogue knows it. Its encoding: identifier (16 bytes), length in bytes, number of chunks (varints); then its format (varint),
/// which is left out for format 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRow {
    /// Identifier, from which its key in the backend follows.
    pub id: PackId,
    /// Length of the whole pack file, in bytes.
    pub bytes: u64,
    /// Number of chunks in it.
    pub chunks: u64,
    /// Its format.
    pub format: PackFormat,
}

impl PackRow {
    /// Encodes the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.id.0.to_vec();
        put_varint(&mut out, self.bytes);
        put_varint(&mut out, self.chunks);
        if self.format != PackFormat::V1 {
            put_varint(&mut out, self.format as u64);
        }
        out
    }

    /// Decodes the row.
    ///
    /// # Errors
    /// Fails when the bytes are not what [`PackRow::encode`] produces.
    pub fn decode(bytes: &[u8]) -> Result<PackRow, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let (id, bytes, chunks) = (PackId(decoder.array()?), decoder.varint()?, decoder.varint()?);
        let format = match decoder.is_empty() {
            true => PackFormat::V1,
            false if decoder.varint()? == PackFormat::V2 as u64 => PackFormat::V2,
            false => return Err(DecodeError("an unknown format of packs")),
        };
        decoder.finish()?;
        Ok(PackRow { id, bytes, chunks, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_trip() {
        let row = |pack, offset| {
            let place = ChunkPlace::At { pack: PackNumber(pack), offset, stored_length: 100 };
            ChunkRow { place, plain_length: 250, prefix: [pack as u8; 8] }
        };
        let page = vec![
            Some(row(1, 16)),
            Some(row(1, 16 + ENTRY_HEADER_BYTES as u32 + 100)),
            None,
            Some(row(2, 16)),
            Some(ChunkRow::lost(70, [3; 8])),
            Some(row(2, 160)),
        ];
        let bytes = encode_page(&page);
        assert_eq!(decode_page(&bytes).unwrap(), page);
        for at in 0..bytes.len() {
            assert!(decode_page(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn pack_rows_round_trip() {
        for format in [PackFormat::V1, PackFormat::V2] {
            pack_row_round_trips(PackRow { id: PackId([9; 16]), bytes: 1 << 25, chunks: 700, format });
        }
    }

    fn pack_row_round_trips(row: PackRow) {
        assert_eq!(PackRow::decode(&row.encode()).unwrap(), row);
    }
}
