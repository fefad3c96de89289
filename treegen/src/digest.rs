//! Digests of messages, which stand in the names of their blobs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use sha1::Digest as _;

use crate::mailbox::{Mail, Site};
use crate::words::Tables;

/// Length of a SHA-256 digest in base64, the longer of the two kinds.
const DIGEST_MAX: usize = 44;
/// The vendor's digest of a message: base64 with `,` for `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    text: [u8; DIGEST_MAX],
    len: u8,
}

impl Digest {
    /// Digests a message as the release does.
    pub fn of(site: &Site, tables: &Tables, message: &[u8]) -> Self {
        let mut text = Vec::with_capacity(DIGEST_MAX);
        if site.config.zcs < 8 {
            tables.base64(&sha1::Sha1::digest(message), &mut text);
        } else {
            tables.base64(&sha2::Sha256::digest(message), &mut text);
        }
        let mut digest = Self { text: [0; DIGEST_MAX], len: text.len() as u8 };
        for (to, from) in digest.text.iter_mut().zip(text) {
            *to = if from == b'/' { b',' } else { from };
        }
        digest
    }

    /// Takes over a digest from a file name.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = Self { text: [0; DIGEST_MAX], len: text.len() as u8 };
        digest.text.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(digest)
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or_default()
    }

    /// Returns the directory of a shared message below `shared_blobs`.
    pub fn shared_dir(&self) -> String {
        let lower = self.as_str().to_lowercase();
        let levels: Vec<&str> = (0..5).map(|n| &lower[2 * n..2 * n + 2]).collect();
        format!("{}/{}", levels.join("/"), self.as_str())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Digests found so far: a message that stays is not composed again for its name.
#[derive(Debug)]
pub struct Known {
    private: Vec<Mutex<Vec<Option<Digest>>>>,
    shared: RwLock<HashMap<Mail, Digest>>,
}

impl Known {
    /// Starts without knowledge of any of the accounts' messages.
    pub fn new(accounts: usize) -> Self {
        Self { private: (0..accounts).map(|_| Mutex::default()).collect(), shared: RwLock::default() }
    }

    fn account(&self, account: u32) -> MutexGuard<'_, Vec<Option<Digest>>> {
        self.private[account as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the digest of a message, if known.
    pub fn get(&self, mail: Mail) -> Option<Digest> {
        match mail {
            Mail::Private(account, ordinal) => self.account(account).get(ordinal as usize).copied().flatten(),
            Mail::Shared(..) => self.shared.read().unwrap_or_else(PoisonError::into_inner).get(&mail).copied(),
        }
    }

    /// Remembers the digest of a message.
    pub fn set(&self, mail: Mail, digest: Digest) {
        match mail {
            Mail::Private(account, ordinal) => {
                let mut list = self.account(account);
                let at = ordinal as usize;
                if list.len() <= at {
                    list.resize(at + 1, None);
                }
                list[at] = Some(digest);
            }
            Mail::Shared(..) => {
                self.shared.write().unwrap_or_else(PoisonError::into_inner).insert(mail, digest);
            }
        }
    }
}
