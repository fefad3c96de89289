//! The rows of the table `meta`, each under a number of its own.
//!
//! | row | what |
//! | --- | --- |
//! | 0 | the counters: next chunk, object, group, pack, snapshot number, as varints |
//! | 1 | where each source was at first: a JSON list of locations; a source's number is its place |
//! | 2 | the hold, if there is one (JSON; see [`hold`](super::hold)) |
//! | 3 | what `config.json` says, without its checksum (JSON) |
//! | 4 | the sources: a JSON list; see [`sources`](super::sources) |

use super::CatalogError;
use super::database_reader::DatabaseReader;
use super::row_id::RowKind;
use super::tables::Table;
use crate::coding::{DecodeError, Decoder, put_varint};
use crate::ids::{ChunkId, GroupId, ObjectId, PackNumber, SnapshotNumber};

/// Number of the row of `meta` that holds the counters.
pub(crate) const COUNTERS: u64 = 0;
/// Number of the row of `meta` that holds where each source was at first.
pub(super) const LOCATIONS: u64 = 1;
/// Number of the row of `meta` that holds the hold.
pub(super) const HOLD: u64 = 2;
/// Number of the row of `meta` that holds what `config.json` says.
pub(crate) const STORE: u64 = 3;
/// Number of the row of `meta` that holds the sources.
pub(super) const SOURCES: u64 = 4;

/// The numbers that the next rows get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Number of the next chunk.
    pub chunk: ChunkId,
    /// Number of the next object.
    pub object: ObjectId,
    /// Number of the next link group.
    pub group: GroupId,
    /// Number of the next pack.
    pub pack: PackNumber,
    /// Number of the next snapshot.
    pub snapshot: SnapshotNumber,
}

impl Counters {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for value in [self.chunk.0, self.object.0, self.group.0, self.pack.0, self.snapshot.0] {
            put_varint(&mut out, value);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Counters, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let counters = Counters {
            chunk: ChunkId::decoded(decoder.varint()?)?,
            object: ObjectId::decoded(decoder.varint()?)?,
            group: GroupId::decoded(decoder.varint()?)?,
            pack: PackNumber::decoded(decoder.varint()?)?,
            snapshot: SnapshotNumber::decoded(decoder.varint()?)?,
        };
        decoder.finish()?;
        Ok(counters)
    }

    /// Reads the counters of the last commit.
    ///
    /// # Errors
    /// Fails when the row is damaged.
    pub fn read(database: &DatabaseReader) -> Result<Counters, CatalogError> {
        let counters = database.get(Table::Meta, COUNTERS, |payload| {
            Counters::decode(payload).map_err(|error| CatalogError::of_row(RowKind::Meta.row(COUNTERS), error))
        })?;
        Ok(counters.unwrap_or_default())
    }
}
