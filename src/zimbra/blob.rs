//! Names of message blobs.
//!
//! A private blob is `<digest><item>-<mod>.msg<links>`; the digest is base64 with `,` for `/`, of SHA-1 (28 characters) or SHA-256 (44), so
//! it ends with `=`. With two links or more and no bytes the blob is a placeholder: the mail store itself shares the message, and its bytes
//! stand once per session in `shared_blobs`, as `.../<digest>/blob.dat`. In zips the entries' names end in the same way.

/// Name of the file, or end of the entry, that holds a shared message.
pub const SHARED_FILE: &[u8] = b"blob.dat";
/// The length of a base64 SHA-1.
pub const SHA1_DIGEST_LEN: usize = 28;
/// The length of a base64 SHA-256.
pub const SHA256_DIGEST_LEN: usize = 44;
/// Directory levels between `shared_blobs` and the directory of a digest, each two lower-cased characters of it.
pub const SHARED_LEVELS: usize = 5;

/// The parts of a private blob's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobName<'a> {
    /// The digest of the message.
    pub digest: &'a [u8],
    /// Number of the mailbox item.
    pub item: u64,
    /// Number of its modification.
    pub modified: u64,
    /// Links that the message has in the mail store: two or more if it is shared.
    pub links: u64,
}

impl<'a> BlobName<'a> {
    /// Reads the last component of a path; `None` when it is no blob's name.
    pub fn parse(name: &'a [u8]) -> Option<BlobName<'a>> {
        let end = name.iter().position(|byte| *byte == b'=')? + 1;
        let (digest, rest) = name.split_at(end);
        if digest.len() != SHA1_DIGEST_LEN && digest.len() != SHA256_DIGEST_LEN {
            return None;
        }
        let rest = std::str::from_utf8(rest).ok()?;
        let (numbers, links) = rest.split_once(".msg")?;
        let (item, modified) = numbers.split_once('-')?;
        Some(BlobName { digest, item: digits(item)?, modified: digits(modified)?, links: digits(links)? })
    }

    /// Returns whether the mail store shares the message, so that an empty blob is a placeholder.
    pub fn is_shared(&self) -> bool {
        self.links >= 2
    }
}

fn digits(text: &str) -> Option<u64> {
    // `parse` takes a sign, which no name has.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Returns the last component of a path within a zip.
pub fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// Returns the digest that the path of a shared message names: the component before `blob.dat`.
pub fn shared_digest(path: &[u8]) -> Option<&[u8]> {
    let mut components = path.rsplit(|byte| *byte == b'/');
    if components.next()? != SHARED_FILE {
        return None;
    }
    components.next().filter(|digest| !digest.is_empty())
}

/// A digest, shortened for sets: its first 16 characters, 96 bits of the message's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DigestKey(u128);

impl DigestKey {
    /// Shortens a digest.
    pub fn of(digest: &[u8]) -> DigestKey {
        let mut bytes = [0; 16];
        let length = digest.len().min(16);
        bytes[..length].copy_from_slice(&digest[..length]);
        DigestKey(u128::from_be_bytes(bytes))
    }
}

/// Returns the path of a shared message below `shared_blobs`, as text for people.
pub fn shared_path(digest: &[u8]) -> String {
    let text = String::from_utf8_lossy(digest);
    let lower = text.to_lowercase();
    let mut path = String::new();
    for level in 0..SHARED_LEVELS {
        path.push_str(lower.get(2 * level..2 * level + 2).unwrap_or_default());
        path.push('/');
    }
    path + &text + "/blob.dat"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_lengths_are_read() {
        let sha1 = b"r6OPbB8F6X9v7JBaKfFHjreMKe4=257-3.msg1";
        let name = BlobName::parse(sha1).unwrap();
        assert_eq!((name.digest.len(), name.item, name.modified, name.links), (28, 257, 3, 1));
        assert!(!name.is_shared());
        let sha256 = b"47DEQpj8HBSa+,TImW+5JCeuQeRkm5NMpJWZG3hSuFU=70001-12.msg2";
        let name = BlobName::parse(sha256).unwrap();
        assert_eq!((name.digest.len(), name.item, name.links), (44, 70001, 2));
        assert!(name.is_shared());
        for odd in [
            &b"meta.xml"[..],
            b"=1-1.msg1",
            b"r6OPbB8F6X9v7JBaKfFHjreMKe4=257.msg1",
            b"r6OPbB8F6X9v7JBaKfFHjreMKe4=+7-3.msg1",
        ] {
            assert_eq!(BlobName::parse(odd), None);
        }
    }

    #[test]
    fn shared_messages_are_found_by_their_digest() {
        let digest = b"r6OPbB8F6X9v7JBaKfFHjreMKe4=";
        let path = shared_path(digest);
        assert_eq!(path, "r6/op/bb/8f/6x/r6OPbB8F6X9v7JBaKfFHjreMKe4=/blob.dat");
        assert_eq!(shared_digest(path.as_bytes()), Some(&digest[..]));
        assert_eq!(shared_digest(b"blob.dat"), None);
        assert_eq!(last_component(b"1/0/name"), b"name");
        assert_ne!(DigestKey::of(digest), DigestKey::of(b"r6OPbB8F6X9v7JBbKfFHjreMKe4="));
        assert_eq!(DigestKey::of(b"short"), DigestKey::of(b"short"));
    }
}
