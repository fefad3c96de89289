//! What was found out about full sessions, kept between runs of the program.
//!
//! The file `cache/zimbra-facts` of a store:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `ZMRFACT2` |
//! | 8 | 32 | identifier of the newest snapshot of the store when it was written, in hexadecimal |
//! | 40 | - | a JSON object, compressed with zstd: `facts` and `shared`, lists of key (hexadecimal), age and value |
//! | - | 32 | BLAKE3 of everything before |
//!
//! Keys stand for numbers of catalogue objects, which are never given twice; should a catalogue be rebuilt without its last commits, the snapshot is gone
//! too, and the file is not used. It is a cache: without it the directories are looked at once more. An entry's age counts the writings since it was
//! of use; old ones are left out.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::facts::Facts;
use crate::access::write_durably;
use crate::cache_file;

const MAGIC: &[u8; 8] = b"ZMRFACT2";
/// Length of a snapshot's identifier.
const SNAPSHOT_BYTES: usize = 32;
/// Compression level: the texts are repetitive, and short of time.
const LEVEL: i32 = 3;
/// Entries that were of no use in so many writings are left out.
const AGE_MAX: u32 = 16;
/// Larger than this, plain, no file is written or read: some millions of entries.
const PLAIN_MAX_BYTES: u64 = 1 << 30;
/// What a file of any length may unfold to, in bytes ...
const EXPANSION_BASE_BYTES: u64 = 1 << 20;
/// ... and what each of its bytes adds to that. The texts compress to a tenth or twentieth. A few kilobytes that would unfold to a gigabyte are none of ours.
const EXPANSION_FACTOR: u64 = 100;

/// An entry: key, age, value.
pub(super) type Entry<T> = (String, u32, T);

/// What the file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) facts: Vec<Entry<Facts>>,
    pub(super) shared: Vec<Entry<Vec<String>>>,
}

/// Returns the place of the file in a store.
pub(super) fn path(store: &Path) -> PathBuf {
    cache_file::path(store, "zimbra-facts")
}

/// Removes the file.
pub(super) fn forget(store: &Path) {
    let _ = fs::remove_file(path(store));
}

/// Reads the file; nothing if there is none, or none that fits the snapshots.
pub(super) fn load(store: &Path, has_snapshot: impl Fn(&str) -> bool) -> Kept {
    fs::read(path(store)).ok().and_then(|bytes| decode(&bytes, has_snapshot)).unwrap_or_default()
}

fn decode(bytes: &[u8], has_snapshot: impl Fn(&str) -> bool) -> Option<Kept> {
    unseal(MAGIC, bytes, has_snapshot)
}

/// Returns what [`seal`] put into a file; `None` when the file is damaged, of another kind, or of a snapshot for which `has_snapshot` does not hold.
pub(super) fn unseal<T: DeserializeOwned>(
    magic: &[u8; 8],
    bytes: &[u8],
    has_snapshot: impl Fn(&str) -> bool,
) -> Option<T> {
    let (snapshot, packed) = cache_file::unseal(magic, bytes).ok()?.split_at_checked(SNAPSHOT_BYTES)?;
    if !has_snapshot(std::str::from_utf8(snapshot).ok()?) {
        return None;
    }
    let most = plain_limit(packed.len());
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::with_buffer(packed).ok()?.take(most + 1).read_to_end(&mut plain).ok()?;
    if plain.len() as u64 > most {
        return None;
    }
    serde_json::from_slice(&plain).ok()
}

/// Returns how many plain bytes a file may have, by its length.
fn plain_limit(packed_bytes: usize) -> u64 {
    (packed_bytes as u64).saturating_mul(EXPANSION_FACTOR).saturating_add(EXPANSION_BASE_BYTES).min(PLAIN_MAX_BYTES)
}

/// Returns a file of this layout; `None` when there is too much.
pub(super) fn seal<T: Serialize>(magic: &[u8; 8], snapshot: &str, value: &T) -> Option<Vec<u8>> {
    let plain = serde_json::to_vec(value).ok()?;
    if snapshot.len() != SNAPSHOT_BYTES {
        return None;
    }
    let packed = zstd::bulk::compress(&plain, LEVEL).ok()?;
    if plain.len() as u64 > plain_limit(packed.len()) {
        return None;
    }
    Some(cache_file::seal(magic, SNAPSHOT_BYTES + packed.len(), |body| {
        body.extend_from_slice(snapshot.as_bytes());
        body.extend_from_slice(&packed);
    }))
}

/// Writes the file. It is a cache: failing costs the next run time and nothing else, so a store that cannot be written to is no error.
pub(super) fn save(store: &Path, newest_snapshot: &str, mut kept: Kept) {
    kept.facts.retain(|(_, age, _)| *age <= AGE_MAX);
    kept.shared.retain(|(_, age, _)| *age <= AGE_MAX);
    if let Some(bytes) = seal(MAGIC, newest_snapshot, &kept) {
        let _ = write_durably(&path(store), &bytes);
    }
}

/// Reads a file of this layout in the store's `cache/`, whatever snapshot it is of; the default if there is none.
pub(super) fn read_note<T: DeserializeOwned + Default>(store: &Path, name: &str, magic: &[u8; 8]) -> T {
    let bytes = fs::read(cache_file::path(store, name)).ok();
    bytes.and_then(|bytes| unseal(magic, &bytes, |_| true)).unwrap_or_default()
}

/// Writes such a file. That it cannot be written is no error.
pub(super) fn write_note<T: Serialize>(store: &Path, name: &str, magic: &[u8; 8], snapshot: &str, value: &T) {
    if let Some(bytes) = seal(magic, snapshot, value) {
        let _ = write_durably(&cache_file::path(store, name), &bytes);
    }
}

/// Returns a key as text.
pub(super) fn key_text(key: &[u8; 16]) -> String {
    HEXLOWER.encode(key)
}

/// Returns the key that a text stands for.
pub(super) fn key_of(text: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_unfolds_only_so_far() {
        let snapshot = "0123456789abcdef0123456789abcdef";
        let sealed = |text: &str| {
            let packed = zstd::bulk::compress(text.as_bytes(), 19).unwrap();
            let mut bytes = [MAGIC.as_slice(), snapshot.as_bytes(), &packed].concat();
            let hash = blake3::hash(&bytes);
            bytes.extend_from_slice(hash.as_bytes());
            bytes
        };
        let entry = r#"["00000000000000000000000000000000",0,[]]"#;
        let text = |count: usize| format!(r#"{{"facts":[],"shared":[{}]}}"#, vec![entry; count].join(","));
        let read = |text: &str| decode(&sealed(text), |_| true).map(|kept| kept.shared.len());
        assert_eq!(read(&text(10_000)), Some(10_000));
        let bomb = text(400_000);
        assert!(sealed(&bomb).len() < 20_000, "{}", sealed(&bomb).len());
        assert_eq!(read(&bomb), None);
        assert!(seal(MAGIC, snapshot, &bomb).is_none(), "and is not written either");
    }

    #[test]
    fn the_file_is_used_only_where_it_fits() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join("cache")).unwrap();
        let snapshot = "0123456789abcdef0123456789abcdef";
        let shared = vec![("00".repeat(16), 3, vec!["a zip".to_owned()]), ("11".repeat(16), AGE_MAX + 1, Vec::new())];
        save(store.path(), snapshot, Kept { facts: Vec::new(), shared });
        let known = |id: &str| id == snapshot;
        let kept = load(store.path(), known);
        assert_eq!(kept.shared.len(), 1, "old entries are left out");
        assert_eq!(kept.shared[0].2, ["a zip"]);
        assert_eq!(load(store.path(), |_| false).shared.len(), 0);
        let bytes = fs::read(path(store.path())).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(decode(&bad, known).is_none(), "{at}");
            assert!(decode(&bytes[..at], known).is_none());
        }
        assert_eq!(key_of(&key_text(&[7; 16])), Some([7; 16]));
    }
}
