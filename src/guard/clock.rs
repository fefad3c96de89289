//! A clock that has jumped.
//!
//! The rules of retention count back from the newest snapshot, so one that a wrong clock dated years ahead would let all others go. A snapshot that comes too
//! long after all others of the store is suspect, and nothing of its source is removed until somebody says that the clock is right. A clock that is behind
//! needs no mark: then the earlier snapshots are later than the clock, which [`Dates`] finds as long as it lasts.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{GuardOptions, MarkedSnapshot};
use crate::catalog::dates::Dates;
use crate::catalog::snapshot::{ReasonKind, SnapshotRecord, SuspectReason};
use crate::ids::SnapshotNumber;

/// Judges the date of a snapshot by those of all earlier ones of the store: they were dated by the same clock.
pub(super) fn judge(
    earlier: &[MarkedSnapshot],
    record: &SnapshotRecord,
    options: &GuardOptions,
) -> Option<SuspectReason> {
    let records: Vec<(SnapshotNumber, SnapshotRecord)> =
        earlier.iter().map(|one| (one.number, one.record.clone())).collect();
    let accepted: BTreeSet<SnapshotNumber> =
        earlier.iter().filter(|one| one.marks.accepted.is_some()).map(|one| one.number).collect();
    let dates = Dates::of(&records, &accepted, record.time);
    let (id, known) = dates.last_known()?;
    let limit = match options.clock_jump {
        Some(span) => span.after(&known.to_zoned(TimeZone::UTC)),
        None => known.saturating_add(dates.usual_jump(record.source_id)).unwrap_or(Timestamp::MAX),
    };
    if record.time <= limit {
        return None;
    }
    let days = days(record.time.duration_since(known));
    let text = format!(
        "The clock shows {}, which is {days} days after the last snapshot whose date is plausible ({}). If the clock is wrong, set it and take another snapshot. If it is right and there was \
         no snapshot for that long, accept this one",
        record.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        id.get(..8).unwrap_or(id),
    );
    Some(SuspectReason { kind: ReasonKind::Clock, text })
}

fn days(span: SignedDuration) -> i64 {
    span.as_hours() / 24
}
