//! One entry of a pack: where it lies, what can be wrong with it, and how it is verified.

use thiserror::Error;

use super::backend::BackendError;
use super::codec::{CodecError, Decompressor, DictionarySet};
use super::pack::{ENTRY_HEADER_BYTES, EntryHeader, PackId};
use crate::model::ChunkHash;

/// Says where a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where in the pack its entry header begins.
    pub offset: u32,
    /// Length of the stored bytes, without the entry header.
    pub stored_length: u32,
    /// Length of the plain bytes.
    pub plain_length: u32,
}

/// Tells why a chunk could not be read.
#[derive(Debug, Error)]
pub enum ChunkError {
    /// The pack is gone.
    #[error("Pack {pack} is missing (chunk at {offset})")]
    MissingPack {
        /// The pack.
        pack: PackId,
        /// Offset of the entry header.
        offset: u64,
    },
    /// The pack ends before the chunk does.
    #[error("Pack {pack} was cut short: it ends within the chunk at {offset}")]
    CutShort {
        /// The pack.
        pack: PackId,
        /// Offset of the entry header.
        offset: u64,
    },
    /// The storage failed; the chunk may well be intact.
    #[error("Cannot read the chunk at {offset} of pack {pack}: {source}")]
    Io {
        /// The pack.
        pack: PackId,
        /// Offset of the entry header.
        offset: u64,
        /// What failed.
        source: BackendError,
    },
    /// A header does not say what it should.
    #[error("Pack {pack} at {offset}: {field} is {found} and should be {expected}")]
    HeaderMismatch {
        /// The pack.
        pack: PackId,
        /// Offset of the header.
        offset: u64,
        /// What differs.
        field: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The pack is as it was written, by a version that knows more than this one.
    #[error("Pack {pack} at {offset} has {what}, which this version does not know; use a newer zmreplica")]
    Unsupported {
        /// The pack.
        pack: PackId,
        /// Where.
        offset: u64,
        /// What is not known.
        what: String,
    },
    /// The stored bytes are not what the codec makes.
    #[error("Chunk at {offset} of pack {pack} cannot be decompressed: {source}")]
    Decompress {
        /// The pack.
        pack: PackId,
        /// Offset of the entry header.
        offset: u64,
        /// What the codec found.
        source: CodecError,
    },
    /// The plain bytes are not those that were stored.
    #[error("Chunk at {offset} of pack {pack} has the hash {found} and should have {expected}")]
    HashMismatch {
        /// The pack.
        pack: PackId,
        /// Offset of the entry header.
        offset: u64,
        /// The hash that the header states.
        expected: ChunkHash,
        /// The hash of the bytes.
        found: ChunkHash,
    },
}

impl ChunkError {
    /// Tells whether the stored data is damaged or lost, as opposed to storage that cannot be reached just now, and to what only a newer version reads.
    pub fn is_damage(&self) -> bool {
        !matches!(self, ChunkError::Io { .. } | ChunkError::Unsupported { .. })
    }

    /// Wraps what the backend said about a pack.
    pub(super) fn backend(pack: PackId, offset: u64, source: BackendError) -> ChunkError {
        match source {
            BackendError::NotFound { .. } => ChunkError::MissingPack { pack, offset },
            BackendError::OutOfRange { .. } => ChunkError::CutShort { pack, offset },
            source => ChunkError::Io { pack, offset, source },
        }
    }

    pub(super) fn mismatch(
        pack: PackId,
        offset: u64,
        field: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> ChunkError {
        let (expected, found) = (expected.to_string(), found.to_string());
        ChunkError::HeaderMismatch { pack, offset, field, expected, found }
    }
}

/// Says where a chunk is and the first bytes of its hash: what the catalogue knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAddress {
    /// Where it is stored.
    pub location: Location,
    /// The first eight bytes of its hash.
    pub hash_prefix: [u8; 8],
}

/// Returns the error for an entry header that breaks a rule of the format.
pub(super) fn invalid_entry(pack: PackId, offset: u64) -> ChunkError {
    ChunkError::mismatch(pack, offset, "the entry header", "a valid one", "bytes that break the format")
}

/// Returns the error for an entry whose codec only a newer version knows, unless the pack is damaged.
pub(super) fn unknown_codec(pack: PackId, offset: u64, codec: u8) -> ChunkError {
    ChunkError::Unsupported { pack, offset, what: format!("codec {codec}") }
}

/// Splits the bytes of an entry into its header and what is stored, or returns `None` if the header is not valid.
pub(super) fn split_entry(entry: &[u8]) -> Option<(EntryHeader, &[u8])> {
    let (header, stored) = entry.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
    Some((EntryHeader::decode(header)?, stored))
}

/// Decompresses the stored bytes of an entry and compares their hash with the header's.
pub(super) fn verified(
    decompressor: &mut Decompressor,
    dictionaries: &DictionarySet,
    pack: PackId,
    offset: u64,
    header: &EntryHeader,
    stored: &[u8],
) -> Result<Vec<u8>, ChunkError> {
    let plain = decompressor
        .decompress(header.codec, dictionaries, stored, header.plain_length)
        .map_err(|source| ChunkError::Decompress { pack, offset, source })?;
    check_hash(pack, offset, header, &plain)?;
    Ok(plain)
}

/// Compares the hash of an entry's plain bytes with the header's.
pub(super) fn check_hash(pack: PackId, offset: u64, header: &EntryHeader, plain: &[u8]) -> Result<(), ChunkError> {
    let found = ChunkHash::of(plain);
    if found == header.hash {
        Ok(())
    } else {
        Err(ChunkError::HashMismatch { pack, offset, expected: header.hash, found })
    }
}
