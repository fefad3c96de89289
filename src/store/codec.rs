//! How the bytes of one chunk are stored: plain, zstd, or zstd with a trained dictionary.
//!
//! The streams are ordinary zstd frames (RFC 8878) with the content size, without checksum and without dictionary id:
//! the entry header in the pack names the dictionary, and BLAKE3 checks the plain bytes. That spares 8 bytes a chunk.
//! The magic number stays. It costs 4 bytes, and `zstd -d` can then read what is cut out of a pack by hand.
//!
//! A compressor or decompressor belongs to one thread at a time and is kept for many chunks; setting one up, digesting
//! the dictionary above all, costs more than a small chunk does.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use zstd::bulk;
use zstd::zstd_safe::WriteBuf;

use crate::ids::DictionaryId;
use crate::model::Codec;

/// The longest chunk, in plain bytes, that is ever stored or read. The chunker cuts well below; the bound keeps a
/// damaged length from taking memory.
pub const CHUNK_MAX_BYTES: u32 = 4 << 20;

/// Chunks up to this length, in bytes, use the dictionary. Longer ones hold their own context, and gain nothing.
pub const DICTIONARY_CHUNK_MAX_BYTES: usize = 32 << 10;

/// Chunks longer than this, in bytes, are probed before they are compressed.
const PROBE_MIN_BYTES: usize = 64 << 10;
/// Length in bytes of each piece taken for the probe.
const PROBE_PIECE_BYTES: usize = 4 << 10;
/// Number of pieces, taken evenly from the whole chunk.
const PROBE_PIECES: usize = 3;
/// The level of the probe: the quickest that still has entropy coding, which is all base64 text gains from.
const PROBE_LEVEL: i32 = 1;

/// Compression has to save at least one byte in so many, or the chunk is stored plain and read without work.
const GAIN_DIVISOR: usize = 50;

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, Error)]
pub enum CodecError {
    /// The chunk is longer than any chunk may be.
    #[error("A chunk of {plain_bytes} bytes is longer than the limit of {CHUNK_MAX_BYTES}")]
    TooLong {
        /// The length stated, in bytes.
        plain_bytes: u64,
    },
    /// The dictionary a chunk needs is not known.
    #[error("Dictionary {id} is not known; packs hold a copy of it, so rebuild the catalogue from them")]
    UnknownDictionary {
        /// The id of the dictionary.
        id: DictionaryId,
    },
    /// Two dictionaries with different bytes have the same id.
    #[error("Two different dictionaries have the id {id}")]
    DictionaryConflict {
        /// The id of both.
        id: DictionaryId,
    },
    /// The stream decompressed to another length than the one stated.
    #[error("The chunk has {found} bytes instead of {expected}")]
    WrongLength {
        /// The length stated, in bytes.
        expected: u64,
        /// The length found, in bytes.
        found: u64,
    },
    /// The zstd library refused: the stream is damaged, or there is no memory.
    #[error("zstd refused: {0}")]
    Zstd(#[from] io::Error),
}

/// A trained dictionary. It is kept for ever: chunks compressed with it cannot be read without.
#[derive(Debug, PartialEq, Eq)]
pub struct Dictionary {
    id: DictionaryId,
    bytes: Vec<u8>,
}

impl Dictionary {
    /// Makes a dictionary of its id and bytes.
    pub fn new(id: DictionaryId, bytes: Vec<u8>) -> Dictionary {
        Dictionary { id, bytes }
    }

    /// Returns the id.
    pub fn id(&self) -> DictionaryId {
        self.id
    }

    /// Returns the bytes as zstd wants them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The dictionaries known, by id. It can grow while others read.
#[derive(Debug, Default)]
pub struct DictionarySet {
    by_id: RwLock<BTreeMap<DictionaryId, Arc<Dictionary>>>,
}

impl DictionarySet {
    /// Creates an empty set.
    pub fn new() -> DictionarySet {
        DictionarySet::default()
    }

    /// Adds a dictionary; adding an equal one again changes nothing.
    ///
    /// # Errors
    ///
    /// [`CodecError::DictionaryConflict`] if another one has its id; the set is unchanged then.
    pub fn insert(&self, dictionary: Arc<Dictionary>) -> Result<(), CodecError> {
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        let id = dictionary.id();
        if by_id.entry(id).or_insert_with(|| Arc::clone(&dictionary)).bytes() != dictionary.bytes() {
            return Err(CodecError::DictionaryConflict { id });
        }
        Ok(())
    }

    /// Returns a dictionary by its id.
    pub fn get(&self, id: DictionaryId) -> Option<Arc<Dictionary>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Returns all dictionaries, sorted by id.
    pub fn all(&self) -> Vec<Arc<Dictionary>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// A chunk as it is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// How `bytes` are to be read.
    pub codec: Codec,
    /// The stored bytes, never more than the plain ones.
    pub bytes: &'a [u8],
}

/// Compresses chunks, one at a time, reusing its memory.
pub struct Compressor {
    long: bulk::Compressor<'static>,
    short: Option<(DictionaryId, bulk::Compressor<'static>)>,
    probe: bulk::Compressor<'static>,
    output: Vec<u8>,
    pieces: Vec<u8>,
}

impl Compressor {
    /// Creates a compressor for a zstd level; `dictionary`, if given, is used for small chunks.
    ///
    /// # Errors
    ///
    /// [`CodecError::Zstd`] if the level or the dictionary is refused.
    pub fn new(level: i32, dictionary: Option<Arc<Dictionary>>) -> Result<Compressor, CodecError> {
        // A dictionary loaded into a context is digested once, at first use, and kept with it.
        let short = match dictionary {
            Some(dictionary) => Some((dictionary.id(), frame_compressor(level, dictionary.bytes())?)),
            None => None,
        };
        Ok(Compressor {
            long: frame_compressor(level, &[])?,
            short,
            probe: frame_compressor(PROBE_LEVEL, &[])?,
            output: Vec::new(),
            pieces: Vec::new(),
        })
    }

    /// Compresses a chunk if that makes it at least two per cent smaller.
    ///
    /// Of a chunk above 64 KiB three short pieces are tried first: if these don't shrink, none of it is compressed.
    ///
    /// # Errors
    ///
    /// [`CodecError::TooLong`] above [`CHUNK_MAX_BYTES`].
    pub fn compress<'a>(&'a mut self, plain: &'a [u8]) -> Result<Stored<'a>, CodecError> {
        if plain.len() > CHUNK_MAX_BYTES as usize {
            return Err(CodecError::TooLong { plain_bytes: plain.len() as u64 });
        }
        let as_is = Stored { codec: Codec::Plain, bytes: plain };
        if plain.len() > PROBE_MIN_BYTES && !self.probe(plain)? {
            return Ok(as_is);
        }
        let (codec, compressor) = match &mut self.short {
            Some((id, short)) if plain.len() <= DICTIONARY_CHUNK_MAX_BYTES => (Codec::ZstdDictionary(*id), short),
            _ => (Codec::Zstd, &mut self.long),
        };
        compress_into(compressor, plain, &mut self.output)?;
        if is_gain(plain.len(), self.output.len()) { Ok(Stored { codec, bytes: &self.output }) } else { Ok(as_is) }
    }

    /// Returns whether pieces of a long chunk can be compressed.
    fn probe(&mut self, plain: &[u8]) -> Result<bool, CodecError> {
        self.pieces.clear();
        // The middles of equal parts: the beginning of a file says least about the rest.
        for part in plain.chunks(plain.len().div_ceil(PROBE_PIECES)) {
            let start = part.len().saturating_sub(PROBE_PIECE_BYTES) / 2;
            self.pieces.extend_from_slice(&part[start..][..PROBE_PIECE_BYTES.min(part.len())]);
        }
        compress_into(&mut self.probe, &self.pieces, &mut self.output)?;
        Ok(is_gain(self.pieces.len(), self.output.len()))
    }
}

fn is_gain(plain_bytes: usize, stored_bytes: usize) -> bool {
    stored_bytes + plain_bytes / GAIN_DIVISOR < plain_bytes
}

fn frame_compressor(level: i32, dictionary: &[u8]) -> io::Result<bulk::Compressor<'static>> {
    let mut compressor = bulk::Compressor::with_dictionary(level, dictionary)?;
    compressor.include_checksum(false)?;
    compressor.include_dictid(false)?;
    compressor.include_contentsize(true)?;
    Ok(compressor)
}

fn compress_into(compressor: &mut bulk::Compressor<'_>, plain: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
    output.clear();
    output.reserve(zstd::zstd_safe::compress_bound(plain.len()));
    compressor.compress_to_buffer(plain, output)?;
    Ok(())
}

/// Decompresses chunks, one at a time, reusing its memory.
pub struct Decompressor {
    long: bulk::Decompressor<'static>,
    /// One for each dictionary met, digested when it was set up.
    short: HashMap<DictionaryId, (Arc<Dictionary>, bulk::Decompressor<'static>)>,
}

impl Decompressor {
    /// Creates a decompressor; dictionaries are prepared as they are met.
    ///
    /// # Errors
    ///
    /// [`CodecError::Zstd`] if there is no memory.
    pub fn new() -> Result<Decompressor, CodecError> {
        Ok(Decompressor { long: bulk::Decompressor::new()?, short: HashMap::new() })
    }

    /// Returns the plain bytes of a stored chunk, exactly `plain_length` of them, or an error.
    ///
    /// Whether they are the right bytes is for the caller to check by their hash. However damaged the input is, no more
    /// memory than `plain_length` is taken, and that is at most [`CHUNK_MAX_BYTES`].
    ///
    /// # Errors
    ///
    /// See [`CodecError`].
    pub fn decompress(
        &mut self,
        codec: Codec,
        dictionaries: &DictionarySet,
        stored: &[u8],
        plain_length: u32,
    ) -> Result<Vec<u8>, CodecError> {
        if plain_length > CHUNK_MAX_BYTES {
            return Err(CodecError::TooLong { plain_bytes: plain_length.into() });
        }
        let mut plain = Vec::with_capacity(plain_length as usize);
        match codec {
            // Checked before it is copied: the stored bytes may be longer than stated.
            Codec::Plain if stored.len() == plain_length as usize => plain.extend_from_slice(stored),
            Codec::Plain => {
                return Err(CodecError::WrongLength { expected: plain_length.into(), found: stored.len() as u64 });
            }
            Codec::Zstd | Codec::ZstdDictionary(_) => {
                self.unpack(codec, dictionaries, stored, &mut plain)?;
            }
        }
        if plain.len() != plain_length as usize {
            return Err(CodecError::WrongLength { expected: plain_length.into(), found: plain.len() as u64 });
        }
        Ok(plain)
    }

    /// Fills `plain` with the plain bytes of a stored chunk, which must be exactly as many. After an error the buffer holds anything.
    ///
    /// # Errors
    ///
    /// As [`decompress`](Decompressor::decompress).
    pub fn decompress_into(
        &mut self,
        codec: Codec,
        dictionaries: &DictionarySet,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(), CodecError> {
        let found = match codec {
            Codec::Plain => {
                if stored.len() == plain.len() {
                    plain.copy_from_slice(stored);
                }
                stored.len()
            }
            Codec::Zstd | Codec::ZstdDictionary(_) => self.unpack(codec, dictionaries, stored, plain)?,
        };
        if found == plain.len() {
            Ok(())
        } else {
            Err(CodecError::WrongLength { expected: plain.len() as u64, found: found as u64 })
        }
    }

    /// Unpacks a zstd frame into whatever there is room for, and returns how many bytes came out.
    fn unpack(
        &mut self,
        codec: Codec,
        dictionaries: &DictionarySet,
        stored: &[u8],
        plain: &mut (impl WriteBuf + ?Sized),
    ) -> Result<usize, CodecError> {
        let Codec::ZstdDictionary(id) = codec else {
            return Ok(self.long.decompress_to_buffer(stored, plain)?);
        };
        let dictionary = dictionaries.get(id).ok_or(CodecError::UnknownDictionary { id })?;
        Ok(self.with_dictionary(&dictionary)?.decompress_to_buffer(stored, plain)?)
    }

    fn with_dictionary(&mut self, dictionary: &Arc<Dictionary>) -> io::Result<&mut bulk::Decompressor<'static>> {
        let id = dictionary.id();
        // Sets may differ between calls; the bytes decide, and are the same allocation all but always.
        let ready = self.short.get(&id).is_some_and(|(known, _)| Arc::ptr_eq(known, dictionary) || known == dictionary);
        if !ready {
            let prepared = bulk::Decompressor::with_dictionary(dictionary.bytes())?;
            self.short.insert(id, (Arc::clone(dictionary), prepared));
        }
        match self.short.get_mut(&id) {
            Some((_, prepared)) => Ok(prepared),
            None => Err(io::Error::other("a prepared dictionary is gone")),
        }
    }
}
