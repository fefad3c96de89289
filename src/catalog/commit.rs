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
//! Packs are durable before the commit file, the commit file before the database's transaction. A crash between the
//! last two leaves a commit file that the database has not seen: it is applied at the next open for writing.

use super::CatalogError;
use super::database::{Change, Table};
use crate::coding::{DecodeError, Decoder, put_bytes, put_varint};

/// The first bytes of every commit file.
pub const MAGIC: &[u8; 8] = b"ZMRCMMT1";
const HEADER_BYTES: usize = 48;
const HASH_BYTES: usize = 32;
const LEVEL: i32 = 3;
/// A body larger than this is refused before memory is asked for it.
const MAX_BODY_BYTES: u64 = 8 << 30;

/// The identifier of a commit: the first 16 bytes of its file's BLAKE3. Each file names its predecessor's.
pub type CommitId = [u8; 16];

/// Returns the key of a commit file in the backend.
pub fn key(number: u64) -> String {
    format!("commits/{number:016x}")
}

/// Returns the number that a key names.
pub fn number_of_key(key: &str) -> Option<u64> {
    let digits = key.strip_prefix("commits/")?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// A decoded commit file.
#[derive(Debug)]
pub struct Commit {
    /// Its number; the first is 1.
    pub number: u64,
    /// The identifier of the commit before.
    pub previous: CommitId,
    /// Its own identifier.
    pub id: CommitId,
    /// The changes, in order.
    pub changes: Vec<Change>,
}

/// Encodes a commit file; returns its bytes and its identifier.
///
/// # Errors
/// Fails only when zstd fails, which means that memory ran out.
pub fn encode(number: u64, previous: &CommitId, changes: &[Change]) -> std::io::Result<(Vec<u8>, CommitId)> {
    let mut body = Vec::new();
    for change in changes {
        match change {
            Change::Put(table, key, payload) => put_row(&mut body, *table, *key, payload),
            Change::Delete(table, key) => {
                body.push((*table as u8) << 1 | 1);
                put_varint(&mut body, *key);
            }
            Change::PutIndex(table, hash, number) => put_index(&mut body, *table, hash, *number),
            Change::DeleteIndex(table, hash) => {
                body.push((*table as u8) << 1 | 1);
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
pub(super) fn put_index(body: &mut Vec<u8>, table: Table, hash: &[u8; 32], number: u64) {
    body.push((table as u8) << 1);
    body.extend_from_slice(hash);
    put_varint(body, number);
}

/// Puts header and checksum around a body: the form of commit files, and of the files of a checkpoint.
pub(super) fn frame(magic: &[u8; 8], number: u64, id: &CommitId, body: &[u8]) -> std::io::Result<(Vec<u8>, CommitId)> {
    let mut file = Vec::with_capacity(HEADER_BYTES + body.len() / 2 + HASH_BYTES);
    file.extend_from_slice(magic);
    file.extend_from_slice(&[0; 8]);
    file.extend_from_slice(&number.to_le_bytes());
    file.extend_from_slice(id);
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(&zstd::bulk::compress(body, LEVEL)?);
    let hash = blake3::hash(&file);
    file.extend_from_slice(hash.as_bytes());
    Ok((file, id_of(hash.as_bytes())))
}

fn id_of(hash: &[u8; 32]) -> CommitId {
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

/// Decodes and verifies a commit file that was read from `key`.
///
/// # Errors
/// [`CatalogError::CommitFile`] for any byte that is not as written.
pub fn decode(key: &str, file: &[u8]) -> Result<Commit, CatalogError> {
    let Frame { number, named, id, body } = unframe(MAGIC, key, file)?;
    let damaged = |reason: String| CatalogError::CommitFile { key: key.to_owned(), reason };
    if number_of_key(key) != Some(number) {
        return Err(damaged("its number is not that of its name".to_owned()));
    }
    let changes = decode_changes(key, &body)?;
    Ok(Commit { number, previous: named, id, changes })
}

/// What [`frame`] put together.
pub(super) struct Frame {
    pub(super) number: u64,
    /// The identifier in the header.
    pub(super) named: CommitId,
    /// The file's own identifier.
    pub(super) id: CommitId,
    pub(super) body: Vec<u8>,
}

/// Verifies a file that [`frame`] made and takes it apart.
pub(super) fn unframe(magic: &[u8; 8], key: &str, file: &[u8]) -> Result<Frame, CatalogError> {
    let damaged = |reason: &str| CatalogError::CommitFile { key: key.to_owned(), reason: reason.to_owned() };
    if file.len() < HEADER_BYTES + HASH_BYTES {
        return Err(damaged("it is too short"));
    }
    let (covered, stated) = file.split_at(file.len() - HASH_BYTES);
    let hash = blake3::hash(covered);
    if hash.as_bytes() != stated {
        return Err(damaged("its BLAKE3 does not fit its bytes"));
    }
    let inner = |error: DecodeError| damaged(&error.to_string());
    let mut header = Decoder::new(&covered[..HEADER_BYTES]);
    let found = header.array::<8>().map_err(inner)?;
    if found[..7] != magic[..7] {
        return Err(damaged("it is no such file"));
    }
    // The checksum fits: what is unknown here is no damage.
    if found != *magic {
        return Err(unsupported(key, "another version"));
    }
    if header.array::<8>().map_err(inner)? != [0; 8] {
        return Err(unsupported(key, "flags"));
    }
    let number = u64::from_le_bytes(header.array().map_err(inner)?);
    let named = header.array().map_err(inner)?;
    let body_bytes = u64::from_le_bytes(header.array().map_err(inner)?);
    if body_bytes > MAX_BODY_BYTES {
        return Err(damaged("its stated length is out of range"));
    }
    let body = zstd::bulk::decompress(&covered[HEADER_BYTES..], body_bytes as usize)
        .map_err(|error| damaged(&format!("it cannot be decompressed: {error}")))?;
    if body.len() as u64 != body_bytes {
        return Err(damaged("its body has another length than stated"));
    }
    Ok(Frame { number, named, id: id_of(hash.as_bytes()), body })
}

fn unsupported(key: &str, what: &str) -> CatalogError {
    CatalogError::Unsupported { what: format!("The file {key} has {what}") }
}

/// Decodes the changes in the body of a file whose checksum fits. A table that is unknown then is one of a later version.
pub(super) fn decode_changes(key: &str, body: &[u8]) -> Result<Vec<Change>, CatalogError> {
    let mut unknown = None;
    changes_of(body, &mut unknown).map_err(|error| match unknown {
        Some(table) => unsupported(key, &format!("rows of table {table}")),
        None => CatalogError::CommitFile { key: key.to_owned(), reason: error.to_string() },
    })
}

fn changes_of(body: &[u8], unknown: &mut Option<u8>) -> Result<Vec<Change>, DecodeError> {
    let mut decoder = Decoder::new(body);
    let mut changes = Vec::new();
    while !decoder.is_empty() {
        let tag = decoder.byte()?;
        let Some(table) = Table::from_number(tag >> 1) else {
            *unknown = Some(tag >> 1);
            return Err(DecodeError("an unknown table"));
        };
        changes.push(match (table.is_index(), tag & 1 == 1) {
            (false, false) => Change::Put(table, decoder.varint()?, decoder.bytes()?.to_vec()),
            (false, true) => Change::Delete(table, decoder.varint()?),
            (true, false) => Change::PutIndex(table, decoder.array()?, decoder.varint()?),
            (true, true) => Change::DeleteIndex(table, decoder.array()?),
        });
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Change> {
        vec![
            Change::Put(Table::Objects, 300, vec![1, 2, 3]),
            Change::PutIndex(Table::ChunkIndex, [7; 32], 9),
            Change::Delete(Table::Snapshots, 1),
            Change::DeleteIndex(Table::ObjectIndex, [8; 32]),
        ]
    }

    #[test]
    fn round_trip() {
        let (file, id) = encode(5, &[3; 16], &sample()).unwrap();
        let commit = decode(&key(5), &file).unwrap();
        assert_eq!((commit.number, commit.previous, commit.id), (5, [3; 16], id));
        assert_eq!(commit.changes, sample());
    }

    #[test]
    fn every_flipped_or_cut_byte_is_reported() {
        let (file, _) = encode(5, &[3; 16], &sample()).unwrap();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            assert!(decode(&key(5), &bad).is_err(), "flip at {at}");
            assert!(decode(&key(5), &file[..at]).is_err(), "cut at {at}");
        }
        assert!(decode(&key(6), &file).is_err());
    }
}
