//! The frame of the files in a store's `cache/`, and where they are.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic: what kind of file it is, and of which edition |
//! | 8 | - | body |
//! | - | 32 | BLAKE3 of everything before |
//!
//! They are caches: one that is torn, damaged or of another edition is as good as none, and costs time only.
//!
//! Memory: the body is built in its frame and read in place, so that it is held once.

use std::path::{Path, PathBuf};

use crate::coding::DecodeError;

const CHECK_BYTES: usize = 32;

/// Returns the directory of a store's cache files.
pub(crate) fn directory(store: &Path) -> PathBuf {
    store.join("cache")
}

/// Returns the place of a cache file in a store.
pub(crate) fn path(store: &Path, name: &str) -> PathBuf {
    directory(store).join(name)
}

/// Returns a file with the body that `write` appends, of some `body_bytes` bytes.
pub(crate) fn seal(magic: &[u8; 8], body_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = Vec::with_capacity(magic.len() + body_bytes + CHECK_BYTES);
    file.extend_from_slice(magic);
    write(&mut file);
    let check = blake3::hash(&file);
    file.extend_from_slice(check.as_bytes());
    file
}

/// Returns the body of a file that [`seal`] made with this magic.
///
/// # Errors
/// Fails for any byte that is not as written, and for another magic.
pub(crate) fn unseal<'a>(magic: &[u8; 8], file: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let body_end = file.len().checked_sub(CHECK_BYTES).ok_or(DecodeError("ends early"))?;
    let (covered, check) = file.split_at(body_end);
    if blake3::hash(covered).as_bytes() != check {
        return Err(DecodeError("its BLAKE3 does not fit its bytes"));
    }
    covered.strip_prefix(magic).ok_or(DecodeError("an unknown magic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"ZMRTEST1";

    #[test]
    fn the_bytes_are_as_documented() {
        let file = seal(MAGIC, 4, |body| body.extend_from_slice(b"body"));
        assert_eq!(file[..12], *b"ZMRTEST1body");
        assert_eq!(file[12..], *blake3::hash(b"ZMRTEST1body").as_bytes());
        assert_eq!(unseal(MAGIC, &file), Ok(&b"body"[..]));
    }

    #[test]
    fn every_flipped_bit_every_cut_and_another_magic_are_found() {
        let file = seal(MAGIC, 4, |body| body.extend_from_slice(b"body"));
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 4;
            assert!(unseal(MAGIC, &bad).is_err() && unseal(MAGIC, &file[..at]).is_err(), "{at}");
        }
        assert!(unseal(b"ZMRTEST2", &file).is_err());
        assert_eq!(unseal(MAGIC, &seal(MAGIC, 0, |_| ())), Ok(&[][..]), "an empty body is one");
    }
}
