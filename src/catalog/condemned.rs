//! Condemned objects: what a commit made superfluous, and a later prune deletes.
//!
//! An object that nothing needs any more may still be wanted: by a reader that sees an older commit, by another host's mount, by a copy of the
//! store that is just being taken. So the commit that takes the last reference away puts the object into this table, and a later run deletes it.
//! What is condemned is never adopted, named again or counted as unnamed; the same bytes are stored again, under another id.
//!
//! A row, under a number that only orders them:
//!
//! ```text
//!  1        kind: 1 a pack; 2 what a checkpoint took the place of: older checkpoints, and commit files up to its commit
//!  16       of kind 1 the id of the pack
//!  varint   of kind 2 the number of the checkpoint
//!  varint   bytes that deleting it frees
//!  varint   since when, in seconds since 1970 (signed difference to 0)
//!  varint   the latest clock of any run that saw it since (likewise)
//!  varint   0, or one above the day, in days since 1970, on which a later run first saw it
//! ```
//!
//! It is deleted when the grace is over, and two runs on different days have seen it condemned, and the clock is not before that of
//! any run since. A clock that is wrong for one night therefore deletes nothing early: where the clock went back, the grace begins anew.

use std::time::Duration;

use super::CatalogError;
use super::reader::CatalogReader;
use super::row_id::RowKind;
use super::tables::Table;
use crate::coding::{DecodeError, Decoder, put_signed, put_varint};
use crate::ids::CommitNumber;
use crate::store::pack::PackId;

const SECONDS_OF_DAY: i64 = 86_400;

/// What is condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condemned {
    /// A pack.
    Pack(PackId),
    /// Checkpoints and commit files that the checkpoint of this number took the place of.
    OlderThan(CommitNumber),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CondemnedRow {
    /// What it is.
    pub what: Condemned,
    /// Bytes that deleting it frees.
    pub bytes: u64,
    /// Since when, in seconds since 1970.
    pub since: i64,
    /// The latest clock of any run that saw it, in seconds since 1970.
    pub latest: i64,
    /// The day, in days since 1970, on which a later run first saw it.
    pub seen_on: Option<u64>,
}

/// What a run does with a condemned object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is deleted.
    Due,
    /// It stays, and its row says that it was seen.
    Waits(CondemnedRow),
}

impl CondemnedRow {
    /// Condemns an object now.
    pub fn new(what: Condemned, bytes: u64, now: jiff::Timestamp) -> CondemnedRow {
        let now = now.as_second();
        CondemnedRow { what, bytes, since: now, latest: now, seen_on: None }
    }

    /// Says what a run does with it whose clock says `now`. Without any grace it is deleted whatever the clocks said.
    pub fn judge(&self, now: jiff::Timestamp, grace: Duration) -> Verdict {
        if grace.is_zero() {
            return Verdict::Due;
        }
        let now = now.as_second();
        if now < self.latest {
            return Verdict::Waits(CondemnedRow { since: now, latest: now, seen_on: None, ..*self });
        }
        let today = day(now);
        let waited = u64::try_from(now - self.since).unwrap_or(0) >= grace.as_secs();
        match self.seen_on {
            Some(seen) if seen != today && waited => Verdict::Due,
            // The day it was condemned on does not count: that run has not seen it condemned.
            None if day(self.since) != today => {
                Verdict::Waits(CondemnedRow { latest: now, seen_on: Some(today), ..*self })
            }
            _ => Verdict::Waits(CondemnedRow { latest: now, ..*self }),
        }
    }

    /// Encodes the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.what {
            Condemned::Pack(id) => {
                out.push(1);
                out.extend_from_slice(&id.0);
            }
            Condemned::OlderThan(number) => {
                out.push(2);
                put_varint(&mut out, number.0);
            }
        }
        put_varint(&mut out, self.bytes);
        put_signed(&mut out, self.since);
        put_signed(&mut out, self.latest);
        put_varint(&mut out, self.seen_on.map_or(0, |day| day.saturating_add(1)));
        out
    }

    /// Decodes the row.
    ///
    /// # Errors
    /// Fails when the bytes are not what [`CondemnedRow::encode`] produces.
    pub fn decode(bytes: &[u8]) -> Result<CondemnedRow, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let what = match decoder.byte()? {
            1 => Condemned::Pack(PackId(decoder.array()?)),
            2 => Condemned::OlderThan(CommitNumber(decoder.varint()?)),
            _ => return Err(DecodeError("an unknown kind of condemned object")),
        };
        let (bytes, since, latest) = (decoder.varint()?, decoder.signed()?, decoder.signed()?);
        let seen_on = decoder.varint()?.checked_sub(1);
        decoder.finish()?;
        Ok(CondemnedRow { what, bytes, since, latest, seen_on })
    }
}

fn day(seconds: i64) -> u64 {
    u64::try_from(seconds.div_euclid(SECONDS_OF_DAY)).unwrap_or(0)
}

/// Returns all rows with their numbers, in order.
///
/// # Errors
/// Fails when a row is damaged.
pub fn read_all(catalog: &CatalogReader) -> Result<Vec<(u64, CondemnedRow)>, CatalogError> {
    let mut rows = Vec::new();
    catalog.database()?.scan(Table::Condemned, 0, |number, payload| {
        let row = CondemnedRow::decode(payload?)
            .map_err(|error| CatalogError::of_row(RowKind::Condemned.row(number), error))?;
        rows.push((number, row));
        Ok(())
    })?;
    Ok(rows)
}

/// Returns the packs among the condemned objects, with their bytes.
///
/// # Errors
/// As [`read_all`].
pub fn read_packs(catalog: &CatalogReader) -> Result<Vec<(PackId, u64)>, CatalogError> {
    let packs = read_all(catalog)?.into_iter().filter_map(|(_, row)| match row.what {
        Condemned::Pack(id) => Some((id, row.bytes)),
        Condemned::OlderThan(_) => None,
    });
    Ok(packs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: i64, hours: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second((20_000 + days) * SECONDS_OF_DAY + hours * 3600).unwrap()
    }

    fn row(now: jiff::Timestamp) -> CondemnedRow {
        CondemnedRow::new(Condemned::Pack(PackId([7; 16])), 500, now)
    }

    fn waits(verdict: Verdict) -> CondemnedRow {
        match verdict {
            Verdict::Waits(row) => row,
            Verdict::Due => panic!("it is due"),
        }
    }

    #[test]
    fn rows_round_trip() {
        for what in [Condemned::Pack(PackId([9; 16])), Condemned::OlderThan(CommitNumber(1 << 40))] {
            for seen_on in [None, Some(0), Some(20_001)] {
                let row = CondemnedRow { what, bytes: 1 << 25, since: -5, latest: 1 << 33, seen_on };
                let bytes = row.encode();
                assert_eq!(CondemnedRow::decode(&bytes).unwrap(), row);
                (0..bytes.len()).for_each(|at| assert!(CondemnedRow::decode(&bytes[..at]).is_err()));
            }
        }
        assert!(CondemnedRow::decode(&[3, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn two_runs_on_different_days_and_the_grace() {
        let first = row(at(0, 3));
        let same_day = waits(first.judge(at(0, 20), DAY));
        assert_eq!(same_day.seen_on, None);
        let second = waits(same_day.judge(at(1, 3), DAY));
        assert_eq!(second.seen_on, Some(20_001));
        assert_eq!(waits(second.judge(at(1, 23), DAY)).seen_on, Some(20_001), "the same day");
        assert_eq!(second.judge(at(2, 3), DAY), Verdict::Due);
        assert_eq!(waits(second.judge(at(2, 3), 7 * DAY)).seen_on, Some(20_001), "a longer grace");
        assert_eq!(second.judge(at(8, 3), 7 * DAY), Verdict::Due);
        assert_eq!(first.judge(at(0, 3), Duration::ZERO), Verdict::Due);
    }

    #[test]
    fn a_clock_that_is_wrong_for_one_night_deletes_nothing_early() {
        // Ten years ahead for one night.
        let ahead = waits(row(at(0, 3)).judge(at(3650, 3), DAY));
        let back = waits(ahead.judge(at(1, 3), DAY));
        assert_eq!((back.since, back.seen_on), (at(1, 3).as_second(), None), "the grace begins anew");
        let seen = waits(back.judge(at(2, 3), DAY));
        assert_eq!(seen.judge(at(3, 3), DAY), Verdict::Due);
        // Condemned ten years ago, by a clock that was behind.
        let behind = waits(row(at(-3650, 3)).judge(at(0, 3), DAY));
        assert_eq!(behind.seen_on, Some(20_000), "seen, and not deleted by the first run with the right clock");
    }
}
