//! The format of a store that this version writes, and the names of its files.

/// Name of the file with what a store says of itself.
pub(crate) const CONFIG: &str = "config.json";

/// Name of the file that a run locks.
pub(crate) const LOCK: &str = "lock";

/// Name of the catalogue's database.
pub(crate) const CATALOG: &str = "catalog.redb";

/// Newest version of the store's format that this program reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 2;

/// What a store may hold since this version writes to it, sorted: `condemned`, rows in the table of condemned packs; `packs-2`, packs whose header is of format
/// 2; `sources`, sources with names, and snapshots that name their source by its number.
pub const FEATURES: [&str; 3] = ["condemned", "packs-2", "sources"];
