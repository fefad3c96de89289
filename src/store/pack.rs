//! Packs: many chunks in one object, written once and readable without any other knowledge.
//!
//! The key of a pack is `packs/<first two digits of the id>/<id>`, the id as 32 hexadecimal digits. All numbers are
//! little endian. A pack is a header, entries one after the other, and a trailer.
//!
//! ```text
//! header of format 2, 80 bytes
//!   0   8  magic "ZMRPACK2"
//!   8   1  flags: bit 0 will mean "encrypted"; 0 for now
//!   9   7  zero
//!  16  16  id of the pack: the epoch (4 bytes, big endian), then 12 random bytes
//!  32   4  key generation, 0 as long as nothing is encrypted
//!  36   8  check value of the key, likewise
//!  44  32  salt of the pack's key, likewise
//!  76   4  zero
//!
//! header of format 1, 16 bytes; read, no longer written
//!   0   8  magic "ZMRPACK1"
//!   8   1  flags, 0
//!   9   7  zero
//!
//! entry: a header of 44 bytes, then the stored bytes
//!   0  32  BLAKE3 of the plain bytes
//!  32   4  plain length, at most 4 MiB
//!  36   4  stored length, at most the plain length
//!  40   1  bits 0 to 6 codec: 0 plain, 1 zstd, 2 zstd with a dictionary; bit 7 set: this is a dictionary, not a chunk
//!  41   3  parameter, whose meaning is the codec's: the id of the dictionary needed (codec 2); of the dictionary this is (bit 7); else 0.
//!          A codec that needs more keeps it in front of its stored bytes
//!
//! trailer, 72 bytes
//!   0   4  number of entries
//!   4   4  zero
//!   8   8  length of the whole pack
//!  16  32  BLAKE3 over the header and all entry headers, in order; in format 1 its first 16 bytes are the id of the pack
//!  48  16  the first 16 bytes of the BLAKE3 over everything before this field
//!  64   8  magic "ZMRPEND1"
//! ```
//!
//! Every length stands before the bytes it measures, so a pack can be walked from its front. A chunk is found by the
//! offset of its entry header alone. The last checksum makes any changed byte visible, even one that zstd ignores, and distinguishes
//! what a newer version wrote from damage: an unknown codec or header in a pack whose checksum fits is *unsupported*.
//!
//! An id of format 2 is never given twice, whatever is in the pack: a pack that was deleted never comes back under its name, so whoever deletes
//! it late, or copies it early, meets no other pack. The epoch grows with every run that writes, so the packs of one run are neighbours in a
//! sorted listing. Ids of format 1 followed from the content.

use std::fmt;
use std::str::FromStr;

use blake3::Hasher;
use data_encoding::HEXLOWER;
use thiserror::Error;

use super::backend::{Backend, BackendError};
use super::codec::{CHUNK_MAX_BYTES, Dictionary};
use crate::ids::DictionaryId;
use crate::model::{ChunkHash, Codec};

/// The first bytes of a pack of format 1.
pub const PACK_MAGIC_1: [u8; 8] = *b"ZMRPACK1";
/// The first bytes of a pack of format 2.
pub const PACK_MAGIC_2: [u8; 8] = *b"ZMRPACK2";
/// The last bytes of every pack.
pub const PACK_END_MAGIC: [u8; 8] = *b"ZMRPEND1";
/// Where in a header of format 2 the id stands.
pub(super) const HEADER_ID_AT: usize = 16;
/// Length of the header of an entry, in bytes.
pub const ENTRY_HEADER_BYTES: usize = 44;
/// Length of the trailer, in bytes.
pub const PACK_TRAILER_BYTES: usize = 72;
/// Where in the trailer the checksum over everything stands.
pub(super) const TRAILER_CHECKSUM_AT: usize = 48;
/// The length at which a pack is full, unless set otherwise: few objects, and little to write again when pruning.
pub const PACK_TARGET_BYTES: usize = 32 << 20;
/// Packs are never longer, in bytes: offsets have 32 bits.
pub const PACK_MAX_BYTES: usize = 1 << 30;
/// What the keys of all packs begin with.
pub const PACK_PREFIX: &str = "packs/";

/// Marks an entry that is a dictionary, in the byte of the codec.
const DICTIONARY_BIT: u8 = 0x80;

/// The format of a pack: how long its header is, and whether its id follows from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PackFormat {
    /// A header of 16 bytes; the id follows from the content. Read, no longer written.
    V1 = 1,
    /// A header of 80 bytes that holds the id.
    V2 = 2,
}

impl PackFormat {
    /// Returns the length of the header, in bytes: where the first entry begins.
    pub const fn header_bytes(self) -> usize {
        match self {
            PackFormat::V1 => 16,
            PackFormat::V2 => 80,
        }
    }

    /// Returns the bytes of a pack that belong to no entry: header and trailer.
    pub const fn overhead_bytes(self) -> u64 {
        (self.header_bytes() + PACK_TRAILER_BYTES) as u64
    }

    /// Returns the header of the pack of that id.
    pub(super) fn header(self, id: PackId) -> Vec<u8> {
        let mut header = vec![0; self.header_bytes()];
        match self {
            PackFormat::V1 => header[..8].copy_from_slice(&PACK_MAGIC_1),
            PackFormat::V2 => {
                header[..8].copy_from_slice(&PACK_MAGIC_2);
                header[HEADER_ID_AT..HEADER_ID_AT + 16].copy_from_slice(&id.0);
            }
        }
        header
    }
}

/// Names a pack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    /// Returns the key of the pack in the backend.
    pub fn key(&self) -> String {
        let digits = self.to_string();
        format!("{PACK_PREFIX}{}/{digits}", &digits[..2])
    }

    /// Returns the id of the pack that has this key, or `None` if it is not the key of a pack.
    pub fn from_key(key: &str) -> Option<PackId> {
        let (_, digits) = key.strip_prefix(PACK_PREFIX)?.split_once('/')?;
        let id: PackId = digits.parse().ok()?;
        (id.key() == key).then_some(id)
    }

    /// Makes the id of a new pack, which no pack ever had: the epoch of the run that writes, and 12 random bytes.
    ///
    /// # Errors
    /// [`PackError::Random`] when the system has no random bytes.
    pub fn unique(epoch: u32) -> Result<PackId, PackError> {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&epoch.to_be_bytes());
        getrandom::fill(&mut id[4..]).map_err(|error| PackError::Random(error.into()))?;
        Ok(PackId(id))
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

impl FromStr for PackId {
    type Err = PackError;

    fn from_str(text: &str) -> Result<PackId, PackError> {
        let bad = || PackError::BadId { text: text.to_owned() };
        let mut id = [0; 16];
        if text.len() != 2 * id.len() || HEXLOWER.decode_mut(text.as_bytes(), &mut id).is_err() {
            return Err(bad());
        }
        Ok(PackId(id))
    }
}

/// Tells why a pack could not be built or a pack id not be read.
#[derive(Debug, Error)]
pub enum PackError {
    /// The text is not a pack id.
    #[error("`{text}` is not a pack id, which has 32 hexadecimal digits in lower case")]
    BadId {
        /// The text.
        text: String,
    },
    /// The entry breaks a rule of the format.
    #[error(
        "Entry {hash} ({stored_length} bytes stored of {plain_length}, codec {}) does not fit the format of packs",
        codec.numbers().0
    )]
    BadEntry {
        /// The hash of the entry.
        hash: ChunkHash,
        /// Length of the plain bytes.
        plain_length: u32,
        /// Length of the stored bytes.
        stored_length: usize,
        /// The codec.
        codec: Codec,
    },
    /// The system has no random bytes for an id.
    #[error("Cannot get random bytes for the id of a pack: {0}")]
    Random(std::io::Error),
    /// The pack would get longer than any pack may be.
    #[error("A pack cannot be longer than {PACK_MAX_BYTES} bytes: finish it when it is full")]
    TooLong,
}

/// The header of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// BLAKE3 of the plain bytes.
    pub hash: ChunkHash,
    /// Length of the plain bytes.
    pub plain_length: u32,
    /// Length of the stored bytes.
    pub stored_length: u32,
    /// How the stored bytes are to be read.
    pub codec: Codec,
    /// Which dictionary this is, if it is one rather than a chunk.
    pub dictionary: Option<DictionaryId>,
}

impl EntryHeader {
    /// Returns the bytes of the header.
    pub fn encode(&self) -> [u8; ENTRY_HEADER_BYTES] {
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        bytes[..32].copy_from_slice(&self.hash.0);
        bytes[32..36].copy_from_slice(&self.plain_length.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.stored_length.to_le_bytes());
        let (codec, needed) = self.codec.numbers();
        let (bit, id) = self.dictionary.map_or((0, needed), |id| (DICTIONARY_BIT, id.get()));
        bytes[40] = codec | bit;
        bytes[41..44].copy_from_slice(&id.to_le_bytes()[..3]);
        bytes
    }

    /// Returns the codec and the length of the entry, in bytes, where a header is as one should be but for a codec that this version does not know.
    pub(super) fn of_unknown_codec(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Option<(u8, usize)> {
        let codec = bytes[40] & !DICTIONARY_BIT;
        let (plain, stored) = (u32::from_le_bytes(array(bytes, 32)), u32::from_le_bytes(array(bytes, 36)));
        let fits = !Codec::is_known(codec) && stored > 0 && stored.max(plain) <= CHUNK_MAX_BYTES;
        fits.then_some((codec, ENTRY_HEADER_BYTES + stored as usize))
    }

    /// Reads a header, or returns `None` if it breaks a rule of the format.
    pub fn decode(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Option<EntryHeader> {
        let (codec, id) = (bytes[40] & !DICTIONARY_BIT, u32::from_le_bytes([bytes[41], bytes[42], bytes[43], 0]));
        let (codec, dictionary) = match bytes[40] & DICTIONARY_BIT {
            0 => (Codec::from_numbers(codec, id)?, None),
            // A dictionary that needs another one could not be read first, so the id is its own.
            _ => (Codec::from_numbers(codec, 0)?, Some(DictionaryId::decoded(id).ok()?)),
        };
        let header = EntryHeader {
            hash: ChunkHash(array(bytes, 0)),
            plain_length: u32::from_le_bytes(array(bytes, 32)),
            stored_length: u32::from_le_bytes(array(bytes, 36)),
            codec,
            dictionary,
        };
        header.is_valid().then_some(header)
    }

    /// Returns the length of the whole entry in bytes.
    pub fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.stored_length as usize
    }

    fn is_valid(&self) -> bool {
        let lengths = match self.codec {
            Codec::Plain => self.stored_length == self.plain_length,
            Codec::Zstd | Codec::ZstdDictionary(_) => self.stored_length < self.plain_length,
        };
        lengths && self.plain_length <= CHUNK_MAX_BYTES && self.stored_length > 0
    }
}

/// The fixed fields of a trailer, apart from its checksum over everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub entries: u32,
    pub pack_bytes: u64,
    pub digest: [u8; 32],
}

impl Trailer {
    /// Returns the bytes up to the checksum.
    fn encode_front(&self) -> [u8; TRAILER_CHECKSUM_AT] {
        let mut bytes = [0; TRAILER_CHECKSUM_AT];
        bytes[..4].copy_from_slice(&self.entries.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.pack_bytes.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.digest);
        bytes
    }

    /// Reads a trailer; returns it with the checksum, or `None` if magic or zeros are not in place.
    pub(super) fn decode(bytes: &[u8; PACK_TRAILER_BYTES]) -> Option<(Trailer, [u8; 16])> {
        let trailer = Trailer {
            entries: u32::from_le_bytes(array(bytes, 0)),
            pack_bytes: u64::from_le_bytes(array(bytes, 8)),
            digest: array(bytes, 16),
        };
        let whole = bytes[64..] == PACK_END_MAGIC && trailer.encode_front() == bytes[..TRAILER_CHECKSUM_AT];
        whole.then(|| (trailer, array(bytes, TRAILER_CHECKSUM_AT)))
    }
}

/// Copies a field of fixed length; the caller names only fields that lie within the bytes.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A whole pack, ready to be put.
#[derive(Clone)]
pub struct FinishedPack {
    /// Its id.
    pub id: PackId,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl FinishedPack {
    /// Stores it.
    ///
    /// # Errors
    ///
    /// What the backend answers.
    pub fn put(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        backend.put(&self.id.key(), &[&self.bytes])
    }
}

/// Builds one pack in memory.
pub struct PackBuilder {
    id: PackId,
    bytes: Vec<u8>,
    headers: Hasher,
    entries: u32,
    target_bytes: usize,
}

impl PackBuilder {
    /// Begins the pack of that id, which is full at `target_bytes` (usually [`PACK_TARGET_BYTES`]; at most half [`PACK_MAX_BYTES`]).
    pub fn new(target_bytes: usize, id: PackId) -> PackBuilder {
        let header = PackFormat::V2.header(id);
        let mut headers = Hasher::new();
        headers.update(&header);
        let target_bytes = target_bytes.min(PACK_MAX_BYTES / 2);
        // Room for the entry that crosses the target, usually: growing copies everything.
        let mut bytes = Vec::with_capacity(target_bytes + (1 << 20));
        bytes.extend_from_slice(&header);
        PackBuilder { id, bytes, headers, entries: 0, target_bytes }
    }

    /// Adds a chunk and returns the offset of its entry header.
    ///
    /// # Errors
    ///
    /// [`PackError::BadEntry`] for an empty chunk, one longer than [`CHUNK_MAX_BYTES`], and stored bytes longer than plain. [`PackError::TooLong`] if the pack
    /// was not finished when full.
    pub fn push(&mut self, hash: ChunkHash, plain_length: u32, codec: Codec, stored: &[u8]) -> Result<u32, PackError> {
        self.push_entry(hash, plain_length, codec, None, stored)
    }

    /// Adds a copy of a dictionary, so that the packs alone suffice to read every chunk; returns its offset.
    ///
    /// # Errors
    ///
    /// As for [`PackBuilder::push`].
    pub fn push_dictionary(&mut self, dictionary: &Dictionary) -> Result<u32, PackError> {
        let bytes = dictionary.bytes();
        // A length that does not fit is longer than any entry may be, and refused as such.
        let plain_length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.push_entry(ChunkHash::of(bytes), plain_length, Codec::Plain, Some(dictionary.id()), bytes)
    }

    fn push_entry(
        &mut self,
        hash: ChunkHash,
        plain_length: u32,
        codec: Codec,
        dictionary: Option<DictionaryId>,
        stored: &[u8],
    ) -> Result<u32, PackError> {
        let stored_length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        let header = EntryHeader { hash, plain_length, stored_length, codec, dictionary };
        if !header.is_valid() {
            let stored_length = stored.len();
            return Err(PackError::BadEntry { hash, plain_length, stored_length, codec });
        }
        if self.bytes.len() + header.entry_bytes() + PACK_TRAILER_BYTES > PACK_MAX_BYTES {
            return Err(PackError::TooLong);
        }
        let offset = u32::try_from(self.bytes.len()).map_err(|_| PackError::TooLong)?;
        let encoded = header.encode();
        self.headers.update(&encoded);
        self.bytes.extend_from_slice(&encoded);
        self.bytes.extend_from_slice(stored);
        self.entries += 1;
        Ok(offset)
    }

    /// Returns the length the pack would have if it were finished now, in bytes.
    pub(super) fn finished_bytes(&self) -> usize {
        self.bytes.len() + PACK_TRAILER_BYTES
    }

    /// Tells whether the pack has reached its target.
    pub fn is_full(&self) -> bool {
        self.finished_bytes() >= self.target_bytes
    }

    /// Appends the trailer.
    pub fn finish(self) -> FinishedPack {
        let PackBuilder { id, mut bytes, headers, entries, .. } = self;
        let digest = headers.finalize();
        let pack_bytes = (bytes.len() + PACK_TRAILER_BYTES) as u64;
        let trailer = Trailer { entries, pack_bytes, digest: *digest.as_bytes() };
        bytes.extend_from_slice(&trailer.encode_front());
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..16]);
        bytes.extend_from_slice(&PACK_END_MAGIC);
        FinishedPack { id, bytes }
    }
}
