//! What is said of a clock in doubt.

use jiff::Timestamp;
use zmreplica::catalog::dates::{ClockDoubt, Dates};
use zmreplica::ids::SourceId;
use zmreplica::replica::Replica;

use super::error::CliError;
use super::text;

/// Says why nothing of a source is removed for now, and what to do.
pub(crate) fn sentence(source: &str, doubt: &ClockDoubt) -> String {
    let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
    match doubt {
        ClockDoubt::Later { count, last, date } => format!(
            "{} of {source} ahead of the clock of this host, which shows {}; the latest is dated {}. Nothing of this source is removed. If the clock is wrong now, set it. If it is right, \
             and was wrong when they were taken, run `zmreplica accept {}`",
            text::plural(*count, "snapshot is", "snapshots are"),
            text::local_time(Timestamp::now()),
            text::local_time(*date),
            short(last),
        ),
        ClockDoubt::Jump { last, date } => format!(
            "Snapshot {0} of {source} is dated {1}, too long after the snapshot before it. Nothing of this source is removed until `zmreplica accept {0}` confirms that the clock was right",
            short(last),
            text::local_time(*date),
        ),
    }
}

/// Says of which sources nothing is removed for now, and why: a sentence each.
pub(crate) fn doubts(replica: &Replica) -> Result<Vec<String>, CliError> {
    let catalog = replica.catalog()?;
    let dates = Dates::read(&catalog, Timestamp::now())?;
    let sources = catalog.sources()?;
    let removed = sources.removed();
    // Of a removed source everything goes.
    let doubts = dates.doubts().into_iter().filter(|(source, _)| source.is_none_or(|id| !removed.contains_key(&id)));
    Ok(doubts.map(|(source, doubt)| sentence(sources.name(source), &doubt)).collect())
}

/// Says that snapshots of a source are later than the clock.
pub(crate) fn later(replica: &Replica, source: Option<SourceId>) -> Result<Option<String>, CliError> {
    let catalog = replica.catalog()?;
    let dates = Dates::read(&catalog, Timestamp::now())?;
    let sources = catalog.sources()?;
    let doubt = dates.doubt(source).filter(|doubt| matches!(doubt, ClockDoubt::Later { .. }));
    Ok(doubt.map(|doubt| sentence(sources.name(source), &doubt)))
}
