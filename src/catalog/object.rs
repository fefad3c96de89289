//! Objects: immutable, content-addressed byte strings of the catalogue.
//!
//! An object is found by its number; equal bytes of one kind get one number. Stored as: kind (1 byte), coding (1 byte: 0 plain, 1 zstd),
//! the first 8 bytes of its hash, and the bytes (for zstd after the plain length as a varint). The hash is the BLAKE3 of the kind
//! byte and the plain bytes.

use super::decompress::decompress;
use crate::coding::{DecodeError, Decoder, put_varint};

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::FromRepr)]
#[repr(u8)]
pub enum ObjectKind {
    /// The names of one directory page.
    Names = 1,
    /// The nodes of one directory page.
    Page = 2,
    /// The pages of one large directory.
    Index = 3,
    /// Segments of one large content.
    Content = 4,
    /// Link counts of a range of link groups.
    Links = 5,
    /// What a snapshot could not take as it was, one JSON object a line.
    Problems = 6,
}

impl ObjectKind {
    /// Returns how many plain bytes an object of this kind may have to be written.
    ///
    /// Pages and lists of problems end long before; the names of a directory are cut so that its index does, up to some hundred million of them.
    pub fn written_max_bytes(self) -> usize {
        match self {
            ObjectKind::Names | ObjectKind::Page => 8 << 20,
            ObjectKind::Index => 256 << 20,
            ObjectKind::Content => 4 << 20,
            ObjectKind::Links => 1 << 20,
            ObjectKind::Problems => 64 << 20,
        }
    }

    /// Returns how many plain bytes an object of this kind may have to be read. Earlier versions knew no bound for directories with large extended attributes,
    /// nor for indexes and problems.
    fn read_max_bytes(self) -> usize {
        match self {
            ObjectKind::Page | ObjectKind::Index | ObjectKind::Problems => 1 << 30,
            other => other.written_max_bytes(),
        }
    }
}

/// Bytes in front of an object's data: kind, coding, hash prefix.
const HEAD_BYTES: usize = 10;
/// Shorter objects are not worth a compressor's frame.
const COMPRESS_FROM_BYTES: usize = 96;
const LEVEL: i32 = 3;

/// Computes an object's hash.
pub fn hash(kind: ObjectKind, plain: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind as u8]);
    hasher.update(plain);
    *hasher.finalize().as_bytes()
}

/// Encodes objects, reusing one compressor.
pub struct ObjectEncoder {
    compressor: zstd::bulk::Compressor<'static>,
}

impl ObjectEncoder {
    /// Prepares an encoder.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn new() -> std::io::Result<ObjectEncoder> {
        Ok(ObjectEncoder { compressor: zstd::bulk::Compressor::new(LEVEL)? })
    }

    /// Encodes one object whose hash is known.
    pub fn encode(&mut self, kind: ObjectKind, hash: &[u8; 32], plain: &[u8]) -> Vec<u8> {
        let mut out = vec![kind as u8, 0];
        out.extend_from_slice(&hash[..8]);
        if plain.len() >= COMPRESS_FROM_BYTES
            && let Ok(packed) = self.compressor.compress(plain)
            && packed.len() + 4 < plain.len()
        {
            out[1] = 1;
            put_varint(&mut out, plain.len() as u64);
            out.extend_from_slice(&packed);
        } else {
            out.extend_from_slice(plain);
        }
        out
    }
}

/// Returns the kind that a stored object states, or `None` for an unknown one.
pub fn stored_kind(stored: &[u8]) -> Option<ObjectKind> {
    stored.first().copied().and_then(ObjectKind::from_repr)
}

/// Returns whether the stored object carries the prefix of this hash.
pub fn has_hash(stored: &[u8], hash: &[u8; 32]) -> bool {
    stored.get(2..HEAD_BYTES) == Some(&hash[..8])
}

/// Returns the first bytes of a stored object's hash, or `None` when it is too short to be one.
pub fn hash_prefix(stored: &[u8]) -> Option<[u8; 8]> {
    stored.get(2..HEAD_BYTES)?.try_into().ok()
}

/// Decodes an object of the expected kind and verifies its hash.
///
/// # Errors
/// Fails when the kind differs, the data cannot be decompressed or the hash does not fit.
pub fn decode(kind: ObjectKind, stored: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(stored);
    if ObjectKind::from_repr(decoder.byte()?) != Some(kind) {
        return Err(DecodeError("an object of another kind"));
    }
    let coding = decoder.byte()?;
    let prefix: [u8; 8] = decoder.array()?;
    let plain = match coding {
        0 => decoder.take(decoder.remaining())?.to_vec(),
        1 => {
            let length = decoder.varint()? as usize;
            if length > kind.read_max_bytes() {
                return Err(DecodeError("an object's length is out of range"));
            }
            let packed = decoder.take(decoder.remaining())?;
            let plain = decompress(packed, length).map_err(|_| DecodeError("an object cannot be decompressed"))?;
            if plain.len() != length {
                return Err(DecodeError("an object has another length than stated"));
            }
            plain
        }
        _ => return Err(super::error::UNKNOWN_CODING),
    };
    if hash(kind, &plain)[..8] != prefix {
        return Err(DecodeError("an object's hash does not fit its bytes"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let mut encoder = ObjectEncoder::new().unwrap();
        for plain in [b"few".to_vec(), b"many equal bytes ".repeat(40)] {
            let hash = hash(ObjectKind::Page, &plain);
            let stored = encoder.encode(ObjectKind::Page, &hash, &plain);
            assert!(has_hash(&stored, &hash));
            assert_eq!(decode(ObjectKind::Page, &stored).unwrap(), plain);
            assert!(decode(ObjectKind::Names, &stored).is_err());
            for at in 0..stored.len() {
                let mut bad = stored.clone();
                bad[at] ^= 1;
                if let Ok(read) = decode(ObjectKind::Page, &bad) {
                    assert_eq!(read, plain, "flip at {at}");
                }
            }
        }
    }
}
