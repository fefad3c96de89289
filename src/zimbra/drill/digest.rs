//! The vendor's digest of a message: base64 of SHA-1 or SHA-256, with `,` for `/`.

use std::io::{self, Read};

use data_encoding::BASE64;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::super::blob::SHA1_DIGEST_LEN;

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// Computes digests of one length.
pub(super) enum Hasher {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    /// Makes a hasher of the kind that a digest in a name is of.
    pub(super) fn for_digest(digest: &[u8]) -> Hasher {
        if digest.len() == SHA1_DIGEST_LEN { Hasher::Sha1(Sha1::new()) } else { Hasher::Sha256(Sha256::new()) }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        let digest = match self {
            Hasher::Sha1(hasher) => BASE64.encode(&hasher.finalize()),
            Hasher::Sha256(hasher) => BASE64.encode(&hasher.finalize()),
        };
        digest.replace('/', ",")
    }
}

/// Reads to the end, and returns the number of bytes and, with a hasher, their digest.
///
/// # Errors
/// Fails when the input does.
pub(super) fn read_through(
    mut input: impl Read,
    mut hasher: Option<Hasher>,
    buffer: &mut Vec<u8>,
) -> io::Result<(u64, Option<String>)> {
    buffer.resize(READ_BYTES, 0);
    let mut total = 0;
    loop {
        match input.read(buffer) {
            Ok(0) => return Ok((total, hasher.map(Hasher::finish))),
            Ok(count) => {
                total += count as u64;
                if let Some(hasher) = &mut hasher {
                    hasher.update(&buffer[..count]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_known_messages() {
        let of = |bytes: &[u8], digest: &str| {
            read_through(bytes, Some(Hasher::for_digest(digest.as_bytes())), &mut Vec::new()).unwrap()
        };
        // Of the empty message, and of "abc" (FIPS 180).
        let empty = "47DEQpj8HBSa+,TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(of(b"", empty), (0, Some(empty.to_owned())));
        let abc = "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=";
        assert_eq!(of(b"abc", abc), (3, Some(abc.to_owned())));
    }
}
