//! A restore on another host: the agent there runs the very restore that would run here, and requests the rows and bytes that it needs.
//!
//! | from | kind | payload |
//! | --- | --- | --- |
//! | run | Dictionary | number, bytes; each that the store has |
//! | run | RestoreRequest | JSON: [`RestoreRequest`] |
//! | agent | Query | its number (varint), then 0, table, key: a row; or 1, pack (16 bytes), offset, length: bytes of a pack |
//! | run | Answer | number of the query, then 0: there is none; 1 and the bytes; 2 and a text: it cannot be had |
//! | run | Prefetched | table, key, bytes: a row that will be requested next, as far as the run can tell |
//! | agent | Taken | so many bytes of those were used or thrown away: the run stops at [`ROWS_AHEAD_BYTES`] |
//! | agent | Figures | names done, files and bytes written; also when only what these do not show has moved, as the removal of names: a sign of progress |
//! | agent | Report | JSON: what was done; the last frame. Or Failed |
//!
//! What comes is verified there, by the same code: rows are decoded with their bounds, chunks compared with their hashes.

use serde::{Deserialize, Serialize};

use crate::catalog::snapshot::SnapshotRecord;
use crate::coding::{DecodeError, Decoder, put_varint};
use crate::restore::Overwrite;
use crate::store::pack::PackId;

/// Most bytes of rows that are sent before they are requested, and not taken yet.
pub const ROWS_AHEAD_BYTES: usize = 8 << 20;
/// Most bytes of a pack in one answer.
pub const ANSWER_MAX_BYTES: usize = 1 << 20;

/// What is to be restored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The snapshot's record.
    pub record: SnapshotRecord,
    /// The path in it, in hexadecimal: it may have any bytes.
    pub subtree: String,
    /// What to do with names that exist.
    pub overwrite: Overwrite,
    /// Whether to remove names that the snapshot does not have.
    pub delete: bool,
    /// Whether owners are set by number.
    pub numeric_ids: bool,
    /// Whether to only report what would be done.
    pub dry_run: bool,
    /// Whether files with a set-ID bit and device nodes are left out.
    #[serde(default)]
    pub no_specials: bool,
}

/// One query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// The row of a table, by the table's number.
    Row(u8, u64),
    /// Bytes of a pack: offset and length.
    Pack(PackId, u64, u64),
}

impl Query {
    /// Encodes it under its number.
    pub fn encode(&self, number: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, number);
        match self {
            Query::Row(table, key) => {
                out.extend_from_slice(&[0, *table]);
                put_varint(&mut out, *key);
            }
            Query::Pack(pack, offset, length) => {
                out.push(1);
                out.extend_from_slice(&pack.0);
                put_varint(&mut out, *offset);
                put_varint(&mut out, *length);
            }
        }
        out
    }

    /// Decodes a query and its number.
    ///
    /// # Errors
    /// For bytes that no agent writes.
    pub fn decode(payload: &[u8]) -> Result<(u64, Query), DecodeError> {
        let mut decoder = Decoder::new(payload);
        let number = decoder.varint()?;
        let query = match decoder.byte()? {
            0 => Query::Row(decoder.byte()?, decoder.varint()?),
            1 => Query::Pack(PackId(decoder.array()?), decoder.varint()?, decoder.varint()?),
            _ => return Err(DecodeError("an unknown query")),
        };
        decoder.finish()?;
        Ok((number, query))
    }
}

/// An answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// There is no such row.
    None,
    /// Its bytes.
    Bytes(Vec<u8>),
    /// It cannot be had.
    Failed(String),
}

impl Reply {
    /// Encodes it under the query's number.
    pub fn encode(&self, number: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, number);
        let (tag, bytes) = match self {
            Reply::None => (0, &[][..]),
            Reply::Bytes(bytes) => (1, bytes.as_slice()),
            Reply::Failed(reason) => (2, reason.as_bytes()),
        };
        out.push(tag);
        out.extend_from_slice(bytes);
        out
    }

    /// Decodes an answer and the query's number.
    ///
    /// # Errors
    /// For bytes that no run writes.
    pub fn decode(payload: &[u8]) -> Result<(u64, Reply), DecodeError> {
        let mut decoder = Decoder::new(payload);
        let (number, tag) = (decoder.varint()?, decoder.byte()?);
        let bytes = decoder.take(decoder.remaining())?;
        let reply = match tag {
            0 => Reply::None,
            1 => Reply::Bytes(bytes.to_vec()),
            2 => Reply::Failed(String::from_utf8_lossy(bytes).into_owned()),
            _ => return Err(DecodeError("an unknown answer")),
        };
        Ok((number, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::snapshot::{Totals, Work};
    use crate::ids::ObjectId;

    /// What earlier versions send is understood, and what is sent is what they understand.
    #[test]
    fn requests_are_those_of_earlier_versions() {
        let old = r#"{"record":{"id":"0","time":"2026-01-01T00:00:00Z","finished":"2026-01-01T00:00:01Z","source":"/x","host":"h","tags":[],"root":"00",
            "links":[7],"users":{"5":"u"},"groups":{},"totals":TOTALS,"work":WORK,"digest":"d","version":"0.1.0"},
            "subtree":"61ff","overwrite":"never","delete":true,"numeric_ids":false,"dry_run":false}"#;
        let (totals, work) = (Totals::default(), Work::default());
        let old = old.replace("TOTALS", &serde_json::to_string(&totals).unwrap());
        let old = old.replace("WORK", &serde_json::to_string(&work).unwrap());
        let request: RestoreRequest = serde_json::from_str(&old).unwrap();
        assert_eq!((request.overwrite, request.delete, request.no_specials), (Overwrite::Never, true, false));
        assert_eq!((request.record.links.as_slice(), &request.record.users[&5]), (&[ObjectId(7)][..], &"u".to_owned()));
        for (overwrite, word) in
            [(Overwrite::Never, "never"), (Overwrite::Changed, "changed"), (Overwrite::Always, "always")]
        {
            let sent = serde_json::to_value(RestoreRequest { overwrite, ..request.clone() }).unwrap();
            assert_eq!(sent["overwrite"], word);
            assert_eq!(sent["record"]["users"]["5"], "u");
            assert_eq!(sent["record"]["time"], "2026-01-01T00:00:00Z");
        }
        let later = old.replace("\"never\"", "\"perhaps\"");
        assert!(serde_json::from_str::<RestoreRequest>(&later).is_err());
    }
}
