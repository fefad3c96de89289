//! The trait between the store and what holds its objects.
//!
//! It is small on purpose: objects are written once and whole, never appended to, renamed or overwritten, and are
//! listed by prefix. Local files fit it, and so does S3-compatible object storage.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

/// The longest key, in bytes.
pub const KEY_MAX_BYTES: usize = 200;

// No key contains it.
pub(crate) use crate::access::TEMPORARY_MARK;

/// Why a backend failed.
#[derive(Debug, Error)]
pub enum BackendError {
    /// No object has this key.
    #[error("Object {key} is not in the store")]
    NotFound {
        /// The key.
        key: String,
    },
    /// An object has this key already; objects are written once.
    #[error("Object {key} exists already; objects are written once and never replaced")]
    Exists {
        /// The key of the object.
        key: String,
    },
    /// The key is not made of safe characters.
    #[error("`{key}` is not an object key: use 1 to 200 of A-Z a-z 0-9 . _ - between single slashes")]
    BadKey {
        /// The offending key.
        key: String,
    },
    /// The object ends before the range that was requested.
    #[error("Object {key} ends before byte {end} (read of {length} bytes at {offset}): it was cut short")]
    OutOfRange {
        /// The key of the object.
        key: String,
        /// First byte requested.
        offset: u64,
        /// Number of bytes requested.
        length: u64,
        /// The byte after the last one requested.
        end: u64,
    },
    /// The file system is full or the quota is used up.
    #[error(
        "No space left to write object {key} ({length} bytes): free some space on the store's disk, then run the same again"
    )]
    NoSpace {
        /// The key of the object.
        key: String,
        /// Length of the object in bytes.
        length: u64,
        /// What the system answered.
        source: io::Error,
    },
    /// Any other failure of the storage.
    #[error("Cannot {operation} {key}: {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The key or the path it was tried on.
        key: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl BackendError {
    pub(crate) fn io(operation: &'static str, key: impl Into<String>, source: io::Error) -> BackendError {
        BackendError::Io { operation, key: key.into(), source }
    }

    /// Returns whether a disk says that it cannot read what is on it.
    pub fn is_bad_disk(&self) -> bool {
        matches!(self, BackendError::Io { source, .. } if is_bad_disk(source))
    }

    /// Returns whether the system does not let the caller read or write what is there.
    pub fn is_denial(&self) -> bool {
        matches!(self, BackendError::Io { source, .. } if crate::access::is_denial(source))
    }

    pub(crate) fn out_of_range(key: &str, offset: u64, length: usize) -> BackendError {
        let length = length as u64;
        BackendError::OutOfRange { key: key.to_owned(), offset, length, end: offset.saturating_add(length) }
    }
}

/// Returns whether a disk, or the file system on it, says that it cannot read what is there. Any other error is of the system or of this process
/// (permissions, open files, memory, a network) and nothing of what is stored.
pub(crate) fn is_bad_disk(error: &io::Error) -> bool {
    // EUCLEAN and EBADMSG are what file systems say of their own damage and of checksums that do not fit.
    const OF_DISKS: [Errno; 6] =
        [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::REMOTEIO, Errno::ILSEQ];
    Errno::from_io_error(error).is_some_and(|errno| OF_DISKS.contains(&errno))
}

/// Holds named, immutable objects.
///
/// Keys are ASCII, with parts separated by single slashes (see [`check_key`]). All methods may be called from many
/// threads at once.
pub trait Backend: Send + Sync {
    /// Stores a whole object, made of `parts` one after the other.
    ///
    /// The object appears under its key complete or not at all, whatever happens meanwhile, loss of power included.
    /// That it *stays* there is certain only after [`Backend::sync`].
    ///
    /// # Errors
    ///
    /// [`BackendError::Exists`] if the key is taken, [`BackendError::NoSpace`] if there is no room.
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError>;

    /// Makes everything put and deleted so far durable; returns when it is.
    fn sync(&self) -> Result<(), BackendError>;

    /// Fills `buffer` with the object's bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`BackendError::OutOfRange`] if the object ends before the buffer is full.
    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError>;

    /// Reads exactly `length` bytes from `offset` on.
    ///
    /// The caller bounds `length`: that much memory is taken before the object is looked at.
    fn read_at(&self, key: &str, offset: u64, length: usize) -> Result<Vec<u8>, BackendError> {
        let mut buffer = vec![0; length];
        self.read_into(key, offset, &mut buffer)?;
        Ok(buffer)
    }

    /// Returns the length of an object in bytes, or `None` if there is no such object.
    fn size(&self, key: &str) -> Result<Option<u64>, BackendError>;

    /// Lists the objects whose key begins with `prefix` (any prefix, not only whole parts), sorted by key, with
    /// their lengths in bytes.
    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError>;

    /// Removes an object. After a crash before the next [`Backend::sync`] it may be there again.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is no such object.
    fn delete(&self, key: &str) -> Result<(), BackendError>;
}

/// Checks that a key is safe everywhere: as a path below a directory and as a name in object storage.
///
/// # Errors
///
/// [`BackendError::BadKey`] for an empty part, a part that begins with a dot, any character but ASCII letters, digits,
/// `.`, `_` and `-`, a key longer than [`KEY_MAX_BYTES`], or one that looks like a file being written.
pub fn check_key(key: &str) -> Result<(), BackendError> {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(safe);
    if key.len() <= KEY_MAX_BYTES && !key.contains(TEMPORARY_MARK) && key.split('/').all(good_part) {
        Ok(())
    } else {
        Err(BackendError::BadKey { key: key.to_owned() })
    }
}
