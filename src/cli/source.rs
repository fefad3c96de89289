//! `zmreplica source`: the sources of a store, their names, and where they are.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::catalog::sources::{Source, SourceName, Sources};
use zmreplica::ids::{SnapshotNumber, SourceId};
use zmreplica::replica::LockedReplica;
use zmreplica::snapshot::inode_cache;

use super::error::{CliError, Exit};
use super::table::Cell;
use super::{Context, path, prune, table, text};

/// Arguments of `source`.
#[derive(Args)]
pub(crate) struct SourceArgs {
    #[command(subcommand)]
    command: SourceCommand,
}

#[derive(Subcommand)]
enum SourceCommand {
    /// List the sources, with their names and where they are
    List,
    /// Show all that is known of a source
    Show {
        /// Name of the source, or a location that it has or had
        name: String,
    },
    /// Give a source another name
    Rename {
        /// Name of the source, or its location
        old: String,
        /// The new name: 1 to 63 of a-z 0-9 . _ -, beginning with a letter
        new: SourceName,
    },
    /// Note that a source is at another place: its history, its guard and what is known of its files go on
    Relocate {
        /// Name of the source
        name: String,
        /// The new place: a local path, [user@]host:path or ssh://[user@]host[:port]/path
        location: String,
    },
    /// Make one source of two: the snapshots of FROM become those of INTO
    Merge {
        /// Name of the source that goes
        from: String,
        /// Name of the source that stays
        into: String,
    },
    /// Keep a source's snapshots, and miss no new ones
    Retire {
        /// Name of the source
        name: String,
        /// Miss new snapshots again
        #[arg(long)]
        undo: bool,
    },
    /// Let the next prune remove all snapshots of a source, but for pinned ones
    Remove {
        /// Name of the source
        name: String,
        /// Show what would be removed, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Keep it after all, as far as no prune has run
        #[arg(long, conflicts_with = "dry_run")]
        undo: bool,
    },
}

/// A source, as JSON.
#[derive(Serialize)]
struct SourceEvent<'a> {
    event: &'static str,
    name: &'a str,
    number: SourceId,
    location: &'a str,
    former_locations: &'a [String],
    /// `active`, `retired` or `removed`.
    state: &'static str,
    since: Option<Timestamp>,
    snapshots: u64,
    oldest: Option<&'a str>,
    newest: Option<&'a str>,
    newest_time: Option<Timestamp>,
}

/// The snapshots of one source.
#[derive(Default)]
struct Own<'a> {
    all: Vec<&'a SnapshotRecord>,
}

pub(crate) fn run(context: &Context, args: &SourceArgs) -> Result<Exit, CliError> {
    match &args.command {
        SourceCommand::List => list(context),
        SourceCommand::Show { name } => show(context, name),
        SourceCommand::Rename { old, new } => rename(context, old, new),
        SourceCommand::Relocate { name, location } => relocate(context, name, location),
        SourceCommand::Merge { from, into } => merge(context, from, into),
        SourceCommand::Retire { name, undo } => retire(context, name, *undo),
        SourceCommand::Remove { name, dry_run: true, .. } => prune::of_removed(context, name),
        SourceCommand::Remove { name, undo, .. } => remove(context, name, *undo),
    }
}

fn by_source(records: &[(SnapshotNumber, SnapshotRecord)]) -> BTreeMap<SourceId, Own<'_>> {
    let mut all: BTreeMap<SourceId, Own<'_>> = BTreeMap::new();
    for (_, record) in records {
        if let Some(id) = record.source_id {
            all.entry(id).or_default().all.push(record);
        }
    }
    all
}

fn state(source: &Source) -> (&'static str, Option<Timestamp>) {
    match (source.removed, source.retired) {
        (Some(since), _) => ("removed", Some(since)),
        (None, Some(since)) => ("retired", Some(since)),
        (None, None) => ("active", None),
    }
}

fn event<'a>(id: SourceId, source: &'a Source, own: Option<&Own<'a>>) -> SourceEvent<'a> {
    let (state, since) = state(source);
    let all = own.map_or(&[][..], |own| &own.all);
    SourceEvent {
        event: "source",
        name: source.name.as_str(),
        number: id,
        location: &source.location,
        former_locations: &source.former_locations,
        state,
        since,
        snapshots: all.len() as u64,
        oldest: all.first().map(|record| record.id.as_str()),
        newest: all.last().map(|record| record.id.as_str()),
        newest_time: all.last().map(|record| record.time),
    }
}

fn list(context: &Context) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let catalog = replica.catalog()?;
    let (sources, records) = (catalog.sources()?, catalog.snapshots()?);
    let own = by_source(&records);
    if output.json() {
        for (id, source) in sources.iter() {
            output.event(&event(id, source, own.get(&id)))?;
        }
        return Ok(Exit::Done);
    }
    if sources.iter().next().is_none() {
        output.note("The store has no source yet; `zmreplica snapshot SOURCE` takes a first snapshot of one.");
        return Ok(Exit::Done);
    }
    let mut table = table::new(output, &["NAME", "SNAPSHOTS", "NEWEST", "STATE", "LOCATION"], &[1]);
    for (id, source) in sources.iter() {
        let event = event(id, source, own.get(&id));
        table.add_row(vec![
            Cell::new(event.name),
            table::right(text::count(event.snapshots)),
            Cell::new(event.newest_time.map_or("none".to_owned(), text::local_time)),
            Cell::new(event.state),
            Cell::new(text::escape(event.location.as_bytes())),
        ]);
    }
    table::write(output, &mut table)?;
    Ok(Exit::Done)
}

fn show(context: &Context, name: &str) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let catalog = replica.catalog()?;
    let (sources, records) = (catalog.sources()?, catalog.snapshots()?);
    let id = sources.find(name)?;
    let Some(source) = sources.get(id) else { return Ok(Exit::Done) };
    let own = by_source(&records);
    let own = own.get(&id);
    if output.json() {
        output.event(&event(id, source, own))?;
        return Ok(Exit::Done);
    }
    let (state, since) = state(source);
    let since = since.map_or(String::new(), |since| format!(" since {}", text::local_time(since)));
    let mut lines = vec![
        ("Name", source.name.to_string()),
        ("Location", text::escape(source.location.as_bytes())),
        ("State", format!("{state}{since}")),
    ];
    for former in source.former_locations.iter().rev() {
        lines.push(("Formerly", text::escape(former.as_bytes())));
    }
    let all = own.map_or(&[][..], |own| &own.all);
    lines.push(("Snapshots", text::count(all.len() as u64)));
    for (label, record) in [("Oldest", all.first()), ("Newest", all.last())] {
        if let Some(record) = record {
            lines.push((label, format!("{} of {}", record.short_id(), text::local_time(record.time))));
        }
    }
    for (label, line) in lines {
        output.line(&format!("{label:<10} {line}"))?;
    }
    Ok(Exit::Done)
}

/// Changes the sources of a store and commits that.
fn change<T>(
    context: &Context,
    change: impl FnOnce(&LockedReplica, &mut Sources) -> Result<T, CliError>,
) -> Result<(T, Sources), CliError> {
    let replica = context.open_locked()?;
    let mut writer = replica.writer()?;
    let before = writer.reader().sources()?;
    let mut sources = before.clone();
    let result = change(&replica, &mut sources)?;
    if sources != before {
        writer.set_sources(&sources)?;
        writer.commit()?;
    }
    Ok((result, sources))
}

/// Reports a source as it is now.
fn report(context: &Context, id: SourceId, sources: &Sources, note: &str) -> Result<Exit, CliError> {
    if context.output.json() {
        let replica = context.open()?;
        let records = replica.catalog()?.snapshots()?;
        if let Some(source) = sources.get(id) {
            context.output.event(&event(id, source, by_source(&records).get(&id)))?;
        }
    } else {
        context.output.note(note);
    }
    Ok(Exit::Done)
}

fn rename(context: &Context, old: &str, new: &SourceName) -> Result<Exit, CliError> {
    let ((id, before), sources) = change(context, |_, sources| {
        let id = sources.find(old)?;
        let before = sources.name(Some(id)).to_owned();
        sources.rename(id, new.clone())?;
        Ok((id, before))
    })?;
    report(context, id, &sources, &format!("The source {before} is named {new} now."))
}

fn relocate(context: &Context, name: &str, location: &str) -> Result<Exit, CliError> {
    let location = path::canonical_location(OsStr::new(location))?;
    let (id, sources) = change(context, |_, sources| {
        let id = sources.find(name)?;
        sources.relocate(id, &location)?;
        Ok(id)
    })?;
    let name = sources.name(Some(id));
    let note =
        format!("The source {name} is at {} now; its next snapshot is taken there.", text::escape(location.as_bytes()));
    report(context, id, &sources, &note)
}

fn merge(context: &Context, from: &str, into: &str) -> Result<Exit, CliError> {
    let replica = context.open_locked()?;
    let mut writer = replica.writer()?;
    let mut sources = writer.reader().sources()?;
    let (from, into) = (sources.find(from)?, sources.find(into)?);
    let gone = sources.name(Some(from)).to_owned();
    sources.merge(from, into)?;
    let records = replica.catalog()?.snapshots()?;
    writer.set_sources(&sources)?;
    writer.commit()?;
    // What is known of inodes belongs to the newest snapshot of both. Behind the commit: before it, it would be that of another source.
    let newest = |id: SourceId| records.iter().rev().find(|(_, one)| one.source_id == Some(id)).map(|(at, _)| *at);
    let moved = match newest(from) > newest(into) {
        true => inode_cache::move_to(replica.path(), from, into),
        false => inode_cache::forget(replica.path(), from),
    };
    if let Err(error) = moved {
        context.output.warn(&format!("The next snapshot reads everything: {error}"));
    }
    let note = format!("The snapshots of {gone} are those of {} now.", sources.name(Some(into)));
    report(context, into, &sources, &note)
}

fn retire(context: &Context, name: &str, undo: bool) -> Result<Exit, CliError> {
    let (id, sources) = change(context, |_, sources| {
        let id = sources.find(name)?;
        sources.set_retired(id, (!undo).then(Timestamp::now));
        Ok(id)
    })?;
    let name = sources.name(Some(id));
    let note = match undo {
        true => format!("New snapshots of {name} are missed again."),
        false => format!(
            "The source {name} is retired: its snapshots stay, and new ones are not missed. A new snapshot of it ends that."
        ),
    };
    report(context, id, &sources, &note)
}

fn remove(context: &Context, name: &str, undo: bool) -> Result<Exit, CliError> {
    let (id, sources) = change(context, |replica, sources| {
        let id = sources.find(name)?;
        sources.set_removed(id, (!undo).then(Timestamp::now));
        if !undo {
            // A prune keeps what these name.
            inode_cache::forget(replica.path(), id).map_err(|error| {
                CliError::Failed(format!(
                    "What is known of the inodes of {name} cannot be removed: {error}. Nothing was changed"
                ))
            })?;
            let records = replica.catalog()?.snapshots()?;
            sources.free_removed(records.iter().map(|(_, record)| record));
        }
        Ok(id)
    })?;
    let Some(source) = sources.get(id) else { return Ok(Exit::Done) };
    let name = &source.name;
    let note = match undo {
        true => format!("The source {name} stays."),
        false if source.is_gone => format!("The source {name} is removed; it had no snapshots."),
        false => format!(
            "The source {name} is removed: the next prune removes its snapshots, but for pinned ones. `zmreplica source remove --undo {name}` keeps it until then; `zmreplica prune --dry-run` shows the plan."
        ),
    };
    report(context, id, &sources, &note)
}
