//! The lowest storey of the store: objects, packs and the chunks inside them.
//!
//! * [`backend`]: the small trait every kind of storage implements; [`local`] keeps objects as files, [`memory`] keeps
//!   them in memory and can lose what was not synced.
//! * [`codec`]: how the bytes of one chunk are compressed, and trained dictionaries.
//! * [`pack`]: the format of a pack, many chunks in one object, and the builder that makes one.
//! * [`reader`]: verified reading of chunks; [`entry`]: where a chunk lies and what can be wrong with it;
//!   [`pack_verify`]: reading a whole pack without any other knowledge.
//!
//! Architecture invariant: nothing here knows the catalogue, a path or a snapshot. A chunk is found by its [`Location`],
//! and every byte that leaves this module was compared with its BLAKE3 hash.

pub mod backend;
pub mod codec;
pub mod entry;
pub mod local;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod pack;
pub mod pack_verify;
pub mod reader;

#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError};
pub use codec::{CHUNK_MAX_BYTES, CodecError, Compressor, Decompressor, Dictionary, DictionarySet, Stored};
pub use entry::{ChunkAddress, ChunkError, Location};
pub use local::LocalBackend;
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryBackend;
pub use pack::{EntryHeader, FinishedPack, PackBuilder, PackError, PackFormat, PackId};
pub use pack_verify::{Damage, PackEntry, PackFindings, PackListing, is_as_written, list_pack, verify_pack};
pub use reader::ChunkReader;
