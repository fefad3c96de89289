//! Forwards bytes to what reads kept facts and names of a backup (see [`crate::fuzzing`]).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blob::{BlobName, shared_digest, shared_path};
use super::cache::{Kept, seal, unseal};
use super::ledger::Page;
use super::redo::RedoName;
use crate::layout::{Label, parse_stamp};

const MAGIC: &[u8; 8] = b"ZMRFUZZ1";
const SNAPSHOT: &str = "00112233445566778899aabbccddeeff";

/// A page of the ledger, and the facts about sessions: the text in them, or (where the first byte is odd) the compressed bytes.
pub(crate) fn sealed(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let packed = match first & 1 {
        0 => zstd::bulk::compress(rest, 1).unwrap_or_default(),
        _ => rest.to_vec(),
    };
    let mut file = [MAGIC.as_slice(), SNAPSHOT.as_bytes(), &packed].concat();
    file.extend_from_slice(blake3::hash(&file).as_bytes());
    if first & 2 == 0 { unsealed::<Page>(&file) } else { unsealed::<Kept>(&file) }
}

fn unsealed<T: DeserializeOwned + Serialize>(file: &[u8]) {
    let Some(value) = unseal::<T>(MAGIC, file, |id| id == SNAPSHOT) else { return };
    let text = serde_json::to_value(&value).expect("what was decoded is encoded");
    let Some(again) = seal(MAGIC, SNAPSHOT, &value) else { return };
    let again: T = unseal(MAGIC, &again, |id| id == SNAPSHOT).expect("what was sealed is unsealed");
    assert_eq!(serde_json::to_value(&again).ok(), Some(text));
}

/// Names of sessions, messages and redo logs.
pub(crate) fn names(bytes: &[u8]) {
    let _ = BlobName::parse(bytes).map(|name| name.is_shared());
    if let Some(digest) = shared_digest(bytes) {
        let _ = shared_path(digest);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (Label::parse(text), parse_stamp(text), RedoName::parse(text));
    }
}
