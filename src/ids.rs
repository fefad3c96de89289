//! The numbers of rows, each kind a type of its own, so that one cannot be taken for another.
//!
//! On disk and in messages they are varints, in JSON plain numbers. [`NUMBER_LIMIT`](crate::coding::NUMBER_LIMIT) bounds every number that is decoded; the key
//! of a row is taken as it is, for the row's check value covers it.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::coding::{DecodeError, Decoder};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns what a decoded number names.
            ///
            /// # Errors
            /// When no store can have it: it is [`NUMBER_LIMIT`](crate::coding::NUMBER_LIMIT) or above.
            pub fn decoded(number: u64) -> Result<$name, DecodeError> {
                Decoder::number(number).map($name)
            }

            /// Returns the number after this one.
            pub fn next(self) -> $name {
                $name(self.0.saturating_add(1))
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> $name {
                $name(number)
            }
        }

        impl From<$name> for u64 {
            fn from(number: $name) -> u64 {
                number.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

numbers! {
    /// The number of a chunk, in order of first sight.
    ChunkId;
    /// The number of a link group, in order of first sight. It identifies a file within its store forever.
    GroupId;
    /// The number of an object: a page of a directory, its names, an index, segments of a content, link counts, a list of problems.
    ObjectId;
    /// The number of a pack's row.
    PackNumber;
    /// The place of a source in the catalogue's list of sources. The file of its known inodes bears it in its name.
    SourceId;
    /// The number of a snapshot, in order of commits.
    SnapshotNumber;
    /// The number of a commit. The first is 1; 0 stands for none.
    CommitNumber;
}

/// The largest number of a dictionary: entry headers in packs have 24 bits for it.
pub const DICTIONARY_ID_MAX: u32 = (1 << 24) - 1;

/// The number of a dictionary: 1 to [`DICTIONARY_ID_MAX`], for 0 means "none" on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DictionaryId(NonZeroU32);

impl DictionaryId {
    /// The number of the first dictionary of a store.
    pub const FIRST: DictionaryId = DictionaryId(NonZeroU32::MIN);

    /// Returns what a decoded number names.
    ///
    /// # Errors
    /// For 0 and above [`DICTIONARY_ID_MAX`].
    pub fn decoded(number: u32) -> Result<DictionaryId, DecodeError> {
        let id = NonZeroU32::new(number).filter(|id| id.get() <= DICTIONARY_ID_MAX);
        id.map(DictionaryId).ok_or(DecodeError("the number of a dictionary is out of range"))
    }

    /// Returns the next number, unless this is the last.
    pub fn next(self) -> Option<DictionaryId> {
        DictionaryId::decoded(self.get() + 1).ok()
    }

    /// Returns the number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for DictionaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
