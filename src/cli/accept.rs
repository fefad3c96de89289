//! `zmreplica accept`: says that suspect snapshots are as they should be.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::dates::Dates;
use zmreplica::catalog::marks::Mark;
use zmreplica::guard::{MarkedSnapshot, marked_snapshots};

use super::error::{CliError, Exit};
use super::{Context, text};

/// Arguments of `accept`.
#[derive(Args)]
#[command(after_help = "\
Accepts SNAP, every earlier suspect snapshot of its source, and those whose time is ahead of the clock. The next snapshot is compared with the newest accepted or good one, \
and the retention policy applies again.")]
pub(crate) struct AcceptArgs {
    /// The newest snapshot to accept; suspect ones before it are accepted, too
    #[arg(value_name = "SNAP")]
    snapshot: String,
    /// The reason, shown to others
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "accept")]
struct AcceptEvent<'a> {
    id: &'a str,
    reasons: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "summary")]
struct SummaryEvent {
    accepted: usize,
    /// Suspect snapshots of the same source that are newer and stay suspect.
    still_suspect: usize,
}

pub(crate) fn run(context: &Context, args: &AcceptArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let named = context.ids([&args.snapshot])?.concat();
    let replica = context.open_locked()?;
    let catalog = replica.catalog()?;
    let snapshots = context.snapshots(&catalog)?;
    let meant = snapshots.resolve(&named)?;
    let all = marked_snapshots(&catalog)?;
    let dates = Dates::read(&catalog, Timestamp::now())?;
    let of_source = |snapshot: &&MarkedSnapshot| {
        snapshot.record.source_id == meant.record.source_id
            && (snapshot.is_suspect() || dates.is_later_than_clock(snapshot.number))
    };
    let (accepted, newer): (Vec<&MarkedSnapshot>, Vec<&MarkedSnapshot>) =
        all.iter().filter(of_source).partition(|snapshot| snapshot.number <= meant.number);
    let mut writer = replica.writer()?;
    for snapshot in &accepted {
        let mut marks = snapshot.marks.clone();
        marks.accepted = Some(Mark { at: Timestamp::now(), reason: args.reason.clone() });
        writer.set_marks(snapshot.number, &marks)?;
    }
    writer.commit()?;
    for snapshot in &accepted {
        let later = dates.is_later_than_clock(snapshot.number).then_some("It is ahead of the clock");
        let reasons = snapshot.record.suspect_reasons().iter().map(|reason| reason.text.as_str()).chain(later);
        if output.json() {
            output.event(&AcceptEvent { id: &snapshot.record.id, reasons: reasons.collect() })?;
            continue;
        }
        output.note(&format!("Accepted {} of {}:", snapshot.record.short_id(), text::local_time(snapshot.record.time)));
        for reason in reasons {
            output.note(&format!("  {reason}"));
        }
    }
    if output.json() {
        output.event(&SummaryEvent { accepted: accepted.len(), still_suspect: newer.len() })?;
        return Ok(Exit::Done);
    }
    if accepted.is_empty() {
        output.note("There is nothing to accept: neither this snapshot nor an earlier one of its source is suspect.");
    }
    if !newer.is_empty() {
        let count = text::plural(newer.len() as u64, "newer snapshot is", "newer snapshots are");
        output.note(&format!("{count} still suspect; `zmreplica accept latest` accepts all."));
    }
    Ok(Exit::Done)
}
