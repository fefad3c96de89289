//! Commit files: every change of the catalogue, written before the database is touched.
//!
//! A commit file is one object `commits/<16 hex digits of its number>`, written once and whole:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `ZMRCMMT1` |
//! | 8 | 1 | flags; bit 0 is kept for encryption; unknown bits are refused, as written by a later version |
//! | 9 | 7 | zero |
//! | 16 | 8 | number, little endian |
//! | 24 | 16 | identifier of the commit before, zero for the first |
//! | 40 | 8 | plain length of the body, little endian |
//! | 48 | n | body: a zstd stream of changes |
//! | 48+n | 32 | BLAKE3 of everything before; its first 16 bytes are the commit's identifier |
//!
//! A change is a table number and an operation in one byte (`table << 1 | delete`), then the key (varint, or 32 bytes
//! for an index), then for a put the payload (length, bytes) or the number (varint).
//!
//! The body is decompressed and decoded a batch at a time, and may unfold only so far ([`expansion_limit`]): memory is 16 MiB of batch and the largest row. A
//! commit that would be beyond that is refused before it is written.
//!
//! Packs are durable before the commit file, the commit file before the database's transaction. A crash between the
//! last two leaves a commit file that the database has not seen: it is applied at the next open for writing.

use std::io::BufReader;

use super::damage::FileFault;
use super::error::{CatalogError, Unsupported, WriteError, Written};
use super::tables::{Change, Index, Table};
use crate::coding::{DecodeError, Decoder, Source, StreamDecoder, expansion_limit, put_bytes, put_varint};
use crate::ids::CommitNumber;

/// The first bytes of every commit file.
pub const MAGIC: &[u8; 8] = b"ZMRCMMT1";
const HEADER_BYTES: usize = 48;
const HASH_BYTES: usize = 32;
const LEVEL: i32 = 3;
/// A larger body is refused.
const MAX_BODY_BYTES: u64 = 8 << 30;
/// Changes that are handed on together take some so many bytes.
const BATCH_BYTES: usize = 16 << 20;
/// What a change takes beside its payload.
const CHANGE_BYTES: usize = size_of::<Change>();

/// The identifier of a commit: the first 16 bytes of its file's BLAKE3. Each file names its predecessor's.
pub type CommitId = [u8; 16];

/// Returns the key of a commit file in the backend.
pub fn key(number: CommitNumber) -> String {
    format!("commits/{:016x}", number.0)
}

/// Returns the number that a key names.
pub fn parse_key(key: &str) -> Option<CommitNumber> {
    let digits = key.strip_prefix("commits/")?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(CommitNumber)
}

/// A commit file that was verified; its changes are still to be decoded.
pub struct CommitFile<'a> {
    key: &'a str,
    /// The identifier of the commit before.
    pub previous: CommitId,
    /// Its own identifier.
    pub id: CommitId,
    frame: Frame<'a>,
}

impl<'a> CommitFile<'a> {
    /// Verifies a commit file that was read from `key`.
    ///
    /// # Errors
    /// [`CatalogDamage::File`](super::CatalogDamage::File) for any byte that is not as written.
    pub fn open(key: &'a str, file: &'a [u8]) -> Result<CommitFile<'a>, CatalogError> {
        let frame = unframe(MAGIC, key, file)?;
        let Frame { number, named, id, .. } = frame;
        if parse_key(key) != Some(number) {
            return Err(CatalogError::of_file(key, FileFault::Name));
        }
        Ok(CommitFile { key, previous: named, id, frame })
    }

    /// Calls `visit` for the changes, in order, a batch at a time.
    ///
    /// # Errors
    /// [`CatalogDamage::File`](super::CatalogDamage::File) when they make no sense, or what `visit` returns; it may have got some of them then.
    pub fn for_each_batch(
        &self,
        visit: impl FnMut(Vec<Change>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.frame.for_each_batch(self.key, visit)
    }
}

/// Encodes a commit file; returns its bytes and its identifier.
///
/// # Errors
/// [`WriteError::TooLarge`] when it could not be read back.
pub fn encode(
    number: CommitNumber,
    previous: &CommitId,
    changes: &[Change],
) -> Result<(Vec<u8>, CommitId), CatalogError> {
    let mut body = Vec::new();
    for change in changes {
        match change {
            Change::Put(table, key, payload) => put_row(&mut body, *table, *key, payload),
            Change::Delete(table, key) => {
                body.push((*table as u8) << 1 | 1);
                put_varint(&mut body, *key);
            }
            Change::PutIndex(index, hash, number) => put_index(&mut body, *index, hash, *number),
            Change::DeleteIndex(index, hash) => {
                body.push((*index as u8) << 1 | 1);
                body.extend_from_slice(hash);
            }
        }
    }
    frame(MAGIC, number, previous, &body)
}

/// Appends a change that writes a row.
pub(super) fn put_row(body: &mut Vec<u8>, table: Table, key: u64, payload: &[u8]) {
    body.push((table as u8) << 1);
    put_varint(body, key);
    put_bytes(body, payload);
}

/// Appends a change that writes an entry of an index.
pub(super) fn put_index(body: &mut Vec<u8>, index: Index, hash: &[u8; 32], number: u64) {
    body.push((index as u8) << 1);
    body.extend_from_slice(hash);
    put_varint(body, number);
}

/// Puts header and checksum around a body: the form of commit files, and of the files of a checkpoint.
pub(super) fn frame(
    magic: &[u8; 8],
    number: CommitNumber,
    id: &CommitId,
    body: &[u8],
) -> Result<(Vec<u8>, CommitId), CatalogError> {
    let mut file = Vec::with_capacity(HEADER_BYTES + body.len() / 2 + HASH_BYTES);
    file.extend_from_slice(magic);
    file.extend_from_slice(&[0; 8]);
    file.extend_from_slice(&number.0.to_le_bytes());
    file.extend_from_slice(id);
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let packed = zstd::bulk::compress(body, LEVEL).map_err(WriteError::Compress)?;
    let most = body_limit(packed.len());
    if body.len() as u64 > most {
        return Err(WriteError::TooLarge { what: Written::Commit, bytes: body.len() as u64, most }.into());
    }
    file.extend_from_slice(&packed);
    let hash = blake3::hash(&file);
    file.extend_from_slice(hash.as_bytes());
    Ok((file, id_of(hash.as_bytes())))
}

fn id_of(hash: &[u8; 32]) -> CommitId {
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

/// Returns how long a body may be, by the length of its compressed form.
fn body_limit(packed_bytes: usize) -> u64 {
    expansion_limit(packed_bytes).min(MAX_BODY_BYTES)
}

/// What [`frame`] put together; the body is still compressed.
pub(super) struct Frame<'a> {
    pub(super) number: CommitNumber,
    /// The identifier in the header.
    pub(super) named: CommitId,
    /// The file's own identifier.
    pub(super) id: CommitId,
    packed: &'a [u8],
    body_bytes: u64,
}

/// Verifies a file that [`frame`] made and takes it apart.
pub(super) fn unframe<'a>(magic: &[u8; 8], key: &str, file: &'a [u8]) -> Result<Frame<'a>, CatalogError> {
    let damaged = |fault| CatalogError::of_file(key, fault);
    if file.len() < HEADER_BYTES + HASH_BYTES {
        return Err(damaged(FileFault::Short));
    }
    let (covered, stated) = file.split_at(file.len() - HASH_BYTES);
    let hash = blake3::hash(covered);
    if hash.as_bytes() != stated {
        return Err(damaged(FileFault::Checksum));
    }
    let inner = |error: DecodeError| CatalogError::of_file(key, error);
    let (header, packed) = covered.split_at(HEADER_BYTES);
    let mut header = Decoder::new(header);
    let found = header.array::<8>().map_err(inner)?;
    if found[..7] != magic[..7] {
        return Err(damaged(FileFault::Magic));
    }
    // The checksum fits: what is unknown here is no damage.
    if found != *magic {
        return Err(CatalogError::Unsupported(Unsupported::FileVersion { key: key.to_owned() }));
    }
    if header.array::<8>().map_err(inner)? != [0; 8] {
        return Err(CatalogError::Unsupported(Unsupported::FileFlags { key: key.to_owned() }));
    }
    let number = CommitNumber(u64::from_le_bytes(header.array().map_err(inner)?));
    let named = header.array().map_err(inner)?;
    let body_bytes = u64::from_le_bytes(header.array().map_err(inner)?);
    if body_bytes > body_limit(packed.len()) {
        return Err(damaged(FileFault::Range));
    }
    Ok(Frame { number, named, id: id_of(hash.as_bytes()), packed, body_bytes })
}

impl Frame<'_> {
    /// Returns the whole body: only of what is known to be short.
    pub(super) fn body(&self, key: &str, most: u64) -> Result<Vec<u8>, CatalogError> {
        let damaged = |fault| CatalogError::of_file(key, fault);
        if self.body_bytes > most {
            return Err(damaged(FileFault::Range));
        }
        let body = zstd::bulk::decompress(self.packed, self.body_bytes as usize)
            .map_err(|error| damaged(FileFault::Decompress(error)))?;
        if body.len() as u64 != self.body_bytes {
            return Err(damaged(FileFault::Length));
        }
        Ok(body)
    }

    /// Calls `visit` for the changes in the body, in order, a batch at a time.
    pub(super) fn for_each_batch(
        &self,
        key: &str,
        mut visit: impl FnMut(Vec<Change>) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        let damaged = |error: DecodeError| CatalogError::of_file(key, error);
        let stream = zstd::stream::read::Decoder::with_buffer(self.packed)
            .map_err(|error| CatalogError::of_file(key, FileFault::Decompress(error)))?;
        let mut decoder = StreamDecoder::new(BufReader::with_capacity(128 << 10, stream), self.body_bytes);
        // The checksum fits: a table that is unknown is one of a later version.
        let mut unknown = None;
        while !decoder.is_empty() {
            let batch = decode_batch(&mut decoder, &mut unknown);
            visit(batch.map_err(|error| match unknown {
                Some(table) => CatalogError::Unsupported(Unsupported::Table { key: key.to_owned(), table }),
                None => damaged(error),
            })?)?;
        }
        decoder.finish().map_err(damaged)
    }
}

/// Decodes changes up to a batch's bytes.
fn decode_batch(decoder: &mut impl Source, unknown: &mut Option<u8>) -> Result<Vec<Change>, DecodeError> {
    let (mut changes, mut bytes) = (Vec::new(), 0);
    while decoder.left() > 0 && bytes < BATCH_BYTES {
        let tag = decoder.byte()?;
        let (number, is_deletion) = (tag >> 1, tag & 1 == 1);
        bytes += CHANGE_BYTES;
        changes.push(if let Some(table) = Table::from_repr(number) {
            let key = Decoder::number(decoder.varint()?)?;
            if is_deletion {
                Change::Delete(table, key)
            } else {
                let payload = decoder.boxed_bytes()?.into_vec();
                bytes += payload.len();
                Change::Put(table, key, payload)
            }
        } else if let Some(index) = Index::from_repr(number) {
            let hash = decode_hash(decoder)?;
            if is_deletion {
                Change::DeleteIndex(index, hash)
            } else {
                Change::PutIndex(index, hash, Decoder::number(decoder.varint()?)?)
            }
        } else {
            *unknown = Some(number);
            return Err(DecodeError("an unknown table"));
        });
    }
    Ok(changes)
}

fn decode_hash(decoder: &mut impl Source) -> Result<[u8; 32], DecodeError> {
    let mut hash = [0; 32];
    for byte in &mut hash {
        *byte = decoder.byte()?;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Change> {
        vec![
            Change::Put(Table::Objects, 300, vec![1, 2, 3]),
            Change::PutIndex(Index::Chunks, [7; 32], 9),
            Change::Delete(Table::Snapshots, 1),
            Change::DeleteIndex(Index::Objects, [8; 32]),
        ]
    }

    #[test]
    fn round_trip() {
        let (file, id) = encode(CommitNumber(5), &[3; 16], &sample()).unwrap();
        let key = key(CommitNumber(5));
        let commit = CommitFile::open(&key, &file).unwrap();
        assert_eq!((commit.frame.number, commit.previous, commit.id), (CommitNumber(5), [3; 16], id));
        assert_eq!(decode(&key, &file).unwrap(), sample());
    }

    fn decode(key: &str, file: &[u8]) -> Result<Vec<Change>, CatalogError> {
        let mut changes = Vec::new();
        CommitFile::open(key, file)?.for_each_batch(|batch| {
            changes.extend(batch);
            Ok(())
        })?;
        Ok(changes)
    }

    /// A commit file as nobody writes it, with a body that compresses to nearly nothing.
    fn bomb(body: &[u8]) -> Vec<u8> {
        let mut file = [MAGIC.as_slice(), &[0; 8], &5u64.to_le_bytes(), &[3; 16]].concat();
        file.extend_from_slice(&(body.len() as u64).to_le_bytes());
        file.extend_from_slice(&zstd::bulk::compress(body, 19).unwrap());
        let hash = blake3::hash(&file);
        file.extend_from_slice(hash.as_bytes());
        file
    }

    #[test]
    fn a_small_file_unfolds_to_bounded_batches_or_not_at_all() {
        let deletes = |count: usize| [(Table::Objects as u8) << 1 | 1, 7].repeat(count);
        let file = bomb(&deletes(64 << 20));
        assert!(file.len() < 64 << 10, "{}", file.len());
        let key = key(CommitNumber(5));
        assert!(CommitFile::open(&key, &file).is_err(), "128 MiB out of some kilobytes");
        let file = bomb(&deletes(8 << 20));
        let (mut largest, mut all) = (0, 0);
        CommitFile::open(&key, &file)
            .unwrap()
            .for_each_batch(|batch| {
                largest = largest.max(batch.capacity() * CHANGE_BYTES);
                all += batch.len();
                Ok(())
            })
            .unwrap();
        assert_eq!(all, 8 << 20);
        assert!(largest <= 2 * BATCH_BYTES, "{largest}");
        // What could not be read back is not written.
        let refused = encode(CommitNumber(5), &[3; 16], &[Change::Put(Table::Objects, 1, vec![0; 70 << 20])]);
        assert!(matches!(refused, Err(CatalogError::Write(WriteError::TooLarge { .. }))));
    }

    #[test]
    fn wild_numbers_are_damage() {
        for number in [crate::coding::NUMBER_LIMIT, u64::MAX] {
            let mut body = Vec::new();
            put_row(&mut body, Table::Objects, number, b"row");
            assert!(decode(&key(CommitNumber(5)), &bomb(&body)).is_err());
            let mut body = Vec::new();
            put_index(&mut body, Index::Chunks, &[7; 32], number);
            assert!(decode(&key(CommitNumber(5)), &bomb(&body)).is_err());
        }
    }

    #[test]
    fn every_flipped_or_cut_byte_is_reported() {
        let (file, _) = encode(CommitNumber(5), &[3; 16], &sample()).unwrap();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            assert!(decode(&key(CommitNumber(5)), &bad).is_err(), "flip at {at}");
            assert!(decode(&key(CommitNumber(5)), &file[..at]).is_err(), "cut at {at}");
        }
        assert!(decode(&key(CommitNumber(6)), &file).is_err());
    }
}
