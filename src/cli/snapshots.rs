//! `zmreplica snapshots`: lists the snapshots, oldest first.

use std::collections::HashMap;

use clap::Args;
use comfy_table::Color;
use serde::Serialize;
use zmreplica::catalog::dates::Dates;
use zmreplica::catalog::marks::Mark;
use zmreplica::catalog::snapshot::{SuspectReason, Totals, Work};
use zmreplica::catalog::sources::Sources;
use zmreplica::guard::{MarkedSnapshot, marked_snapshots};
use zmreplica::ids::{SnapshotNumber, SourceId};
use zmreplica::lease::{self, LeaseInfo};

use super::error::{CliError, Exit};
use super::table::Cell;
use super::{Context, table, text};

/// Arguments of `snapshots`.
#[derive(Args)]
pub(crate) struct SnapshotsArgs {
    /// Only the N newest of each source
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// A snapshot, as JSON.
#[derive(Serialize)]
pub(crate) struct SnapshotEvent<'a> {
    event: &'static str,
    number: SnapshotNumber,
    id: &'a str,
    time: jiff::Timestamp,
    finished: jiff::Timestamp,
    source: &'a str,
    /// The name of its source.
    source_name: &'a str,
    host: &'a str,
    tags: &'a [String],
    /// `suspect` until it is accepted; else `problems` or `complete`.
    state: &'static str,
    /// Why the state is not `complete`.
    reasons: Vec<String>,
    /// What the guard found when it was taken, accepted or not.
    suspect: &'a [SuspectReason],
    /// The snapshot that it was compared with.
    compared_with: Option<&'a str>,
    accepted: Option<&'a Mark>,
    pinned: Option<&'a Mark>,
    problem_count: u64,
    excludes: &'a [String],
    totals: &'a Totals,
    work: &'a Work,
    digest: &'a str,
    version: &'a str,
    /// What protects it from removal; shown where snapshots are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<Vec<Holder<'a>>>,
}

/// The holder of a lease, as JSON.
#[derive(Serialize)]
struct Holder<'a> {
    pid: u32,
    host: &'a str,
    since: jiff::Timestamp,
    mount_point: &'a str,
}

impl<'a> SnapshotEvent<'a> {
    /// Prepares the event of the given name.
    pub(crate) fn new(event: &'static str, snapshot: &'a MarkedSnapshot, source_name: &'a str) -> SnapshotEvent<'a> {
        let MarkedSnapshot { number, record, marks } = snapshot;
        let mut reasons = Vec::new();
        if snapshot.is_suspect() {
            reasons.extend(record.suspect_reasons().iter().map(|reason| reason.text.clone()));
        }
        if record.problem_count > 0 {
            reasons.push(text::plural(record.problem_count, "problem", "problems"));
        }
        SnapshotEvent {
            event,
            number: *number,
            id: &record.id,
            time: record.time,
            finished: record.finished,
            source: &record.source,
            source_name,
            host: &record.host,
            tags: &record.tags,
            state: snapshot.state(),
            reasons,
            suspect: record.suspect_reasons(),
            compared_with: record.guard.as_ref().and_then(|verdict| verdict.compared_with.as_deref()),
            accepted: marks.accepted.as_ref(),
            pinned: marks.pinned.as_ref(),
            problem_count: record.problem_count,
            excludes: &record.excludes,
            totals: &record.totals,
            work: &record.work,
            digest: &record.digest,
            version: &record.version,
            leases: None,
        }
    }

    /// Adds who holds a lease on it.
    fn with_leases(self, leases: &'a [LeaseInfo]) -> SnapshotEvent<'a> {
        let holder = |lease: &'a LeaseInfo| Holder {
            pid: lease.pid,
            host: &lease.host,
            since: lease.since,
            mount_point: &lease.mount_point,
        };
        let leases = Some(held(leases, self.id).map(holder).collect());
        SnapshotEvent { leases, ..self }
    }
}

/// Returns the state of a snapshot in words.
fn state(snapshot: &MarkedSnapshot) -> String {
    let problems = snapshot.record.problem_count;
    let mut words = Vec::new();
    if snapshot.is_suspect() {
        words.push("suspect".to_owned());
    } else if snapshot.marks.accepted.is_some() {
        words.push("accepted".to_owned());
    }
    if problems > 0 {
        words.push(text::plural(problems, "problem", "problems"));
    } else if words.is_empty() {
        words.push("complete".to_owned());
    }
    if snapshot.marks.pinned.is_some() {
        words.push("pinned".to_owned());
    }
    words.join(", ")
}

/// Returns the leases on a snapshot.
fn held<'a>(leases: &'a [LeaseInfo], id: &str) -> impl Iterator<Item = &'a LeaseInfo> {
    leases.iter().filter(move |lease| lease.snapshots.iter().any(|held| held == id))
}

/// Returns where a snapshot is mounted and by which process, in words.
fn holders(leases: &[LeaseInfo], id: &str) -> String {
    let words = held(leases, id).map(|lease| {
        let place = text::escape(lease.mount_point.as_bytes());
        format!("{place} ({})", lease.pid)
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Leaves the snapshots that are to be listed.
fn chosen(
    context: &Context,
    args: &SnapshotsArgs,
    sources: &Sources,
    mut all: Vec<MarkedSnapshot>,
) -> Result<Vec<MarkedSnapshot>, CliError> {
    if let Some(source) = &context.source {
        let id = sources.find(source)?;
        all.retain(|snapshot| snapshot.record.source_id == Some(id));
    }
    if let Some(last) = args.last {
        let mut seen: HashMap<Option<SourceId>, usize> = HashMap::new();
        // From the newest on.
        all.reverse();
        all.retain(|snapshot| {
            let count = seen.entry(snapshot.record.source_id).or_default();
            *count += 1;
            *count <= last
        });
        all.reverse();
    }
    Ok(all)
}

pub(crate) fn run(context: &Context, args: &SnapshotsArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let catalog = replica.catalog()?;
    let sources = catalog.sources()?;
    let all = chosen(context, args, &sources, marked_snapshots(&catalog)?)?;
    let dates = Dates::read(&catalog, jiff::Timestamp::now())?;
    let leases = lease::list(replica.path()).unwrap_or_else(|error| {
        output.warn(&format!("Which snapshots are mounted cannot be determined: {error}"));
        Vec::new()
    });
    if output.json() {
        for snapshot in &all {
            output.event(
                &SnapshotEvent::new("snapshot", snapshot, sources.name(snapshot.record.source_id)).with_leases(&leases),
            )?;
        }
        return Ok(Exit::Done);
    }
    if all.is_empty() {
        output.note("The store has no snapshot yet; `zmreplica snapshot SOURCE` takes one.");
        return Ok(Exit::Done);
    }
    let mut names = vec!["ID", "TIME", "SOURCE", "NAMES", "SIZE", "NEW", "STORED", "TAGS", "STATE"];
    if !leases.is_empty() {
        names.push("MOUNTED AT");
    }
    let mut table = table::new(output, &names, &[3, 4, 5, 6]);
    for snapshot in &all {
        let record = &snapshot.record;
        let state_colour = match snapshot.state() {
            "complete" => Color::Green,
            "suspect" => Color::Red,
            _ => Color::Yellow,
        };
        let mut row = vec![
            Cell::new(record.short_id()),
            Cell::new(text::local_time(record.time)),
            Cell::new(sources.name(record.source_id)),
            table::right(text::count(record.totals.names)),
            table::right(text::bytes(record.totals.bytes)),
            table::right(text::bytes(record.work.new_bytes)),
            table::right(text::bytes(record.work.stored_bytes)),
            Cell::new(text::escape(record.tags.join(",").as_bytes())),
            Cell::new(state(snapshot)).fg(state_colour),
        ];
        if !leases.is_empty() {
            row.push(Cell::new(holders(&leases, &record.id)));
        }
        table.add_row(row);
    }
    table::write(output, &mut table)?;
    for snapshot in all.iter().filter(|snapshot| snapshot.is_suspect()) {
        for reason in snapshot.record.suspect_reasons() {
            output.note(&format!("{} is suspect: {}", snapshot.record.short_id(), reason.text));
        }
    }
    for snapshot in all.iter().filter(|snapshot| !dates.is_plausible(snapshot.number)) {
        let moment = dates.moment(snapshot.number).unwrap_or(snapshot.record.time);
        output.note(&format!(
            "{}: its date is not plausible; it counts as taken at {}",
            snapshot.record.short_id(),
            text::local_time(moment)
        ));
    }
    Ok(Exit::Done)
}
