//! `zmreplica sessions`: the backup sessions of a snapshot, and those that vanished before it.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use comfy_table::Color;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::view::{Readers, SnapshotView, ViewOptions};
use zmreplica::zimbra::history::{SessionLife, session_lives, session_names};
use zmreplica::zimbra::redo::SequenceRange;
use zmreplica::zimbra::sizes::{SessionSize, session_sizes};
use zmreplica::zimbra::{Session, SessionState, read_sessions};

use super::accounts::{before_and_with, leased_before};
use super::error::{CliError, Exit};
use super::leased::Leased;
use super::table::Cell;
use super::{Context, table, text};

/// Arguments of `sessions`.
#[derive(Args)]
#[command(after_help = "\
States: complete; with errors (some accounts failed); aborted; invalid (no session.xml); running (in tmp/, started less than a day before the snapshot) or leftover \
(started earlier); being deleted (named TO_DELETE-).

NEW is the size of what no older session in the snapshot has. A session is expected to vanish when it is at least a week old and no older one is left.")]
pub(crate) struct SessionsArgs {
    /// The snapshot
    #[arg(value_name = "SNAP", default_value = "latest")]
    snapshot: String,
    /// Do not compute sizes, which visits every name in the sessions
    #[arg(long)]
    no_sizes: bool,
    /// Directory of the snapshot that holds the backup tree [default: the root]
    #[arg(long, value_name = "PATH")]
    tree: Option<String>,
}

/// A session, as JSON.
#[derive(Serialize)]
struct SessionEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    label: &'a str,
    path: &'a str,
    kind: &'static str,
    state: &'static str,
    start: Timestamp,
    end: Option<Timestamp>,
    release: Option<&'a str>,
    format_version: Option<&'a str>,
    accounts: u64,
    failed_accounts: u64,
    errors: Vec<ErrorOf<'a>>,
    redo: &'a [SequenceRange],
    redo_absent: &'a [SequenceRange],
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<SessionSize>,
    /// The first snapshot with it.
    appeared: Option<&'a str>,
    appeared_time: Option<Timestamp>,
    remarks: &'a [String],
}

#[derive(Serialize)]
struct ErrorOf<'a> {
    email: &'a str,
    message: &'a str,
}

/// A session that vanished, as JSON.
#[derive(Serialize)]
struct VanishedEvent<'a> {
    event: &'static str,
    label: &'a str,
    start: Timestamp,
    appeared: &'a str,
    last_seen: &'a str,
    last_seen_time: Timestamp,
    vanished: &'a str,
    vanished_time: Timestamp,
    expected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(crate) fn run(context: &Context, args: &SessionsArgs) -> Result<Exit, CliError> {
    let replica = context.open()?;
    // Following, since a prune beside this may move chunks.
    let catalog = Arc::new(replica.following_catalog()?);
    let readers = Readers::new(catalog, Arc::new(replica.chunks()), ViewOptions::default());
    let purpose = Path::new("zmreplica sessions");
    let Leased { snapshots: all, lease: _lease } =
        leased_before(context, &replica, readers.catalog(), purpose, &args.snapshot)?;
    let chosen = all.resolve(&args.snapshot)?;
    let snapshots = before_and_with(&all, chosen);
    let records: Vec<&SnapshotRecord> = snapshots.iter().map(|snapshot| &snapshot.record).collect();
    let tree = args.tree.as_deref().unwrap_or_default().as_bytes();
    let mut names = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        names.push(session_names(&SnapshotView::over(&readers, (*record).clone())?, tree, at)?);
    }
    let lives = session_lives(&names);
    let view = SnapshotView::over(&readers, chosen.record.clone())?;
    let (sessions, remarks) = read_sessions(&view, tree)?;
    let sizes = if args.no_sizes { None } else { Some(session_sizes(&view, &sessions)?) };
    let size = |at: usize| sizes.as_ref().and_then(|sizes| sizes.get(at)).copied();
    let life = |session: &Session| lives.iter().find(|life| life.label == session.label);
    let vanished: Vec<&SessionLife> = lives.iter().filter(|life| life.vanished.is_some()).collect();
    if context.output.json() {
        for (at, session) in sessions.iter().enumerate() {
            let appeared = life(session).map(|life| records[life.appeared]);
            context.output.event(&event(&chosen.record, session, size(at), appeared))?;
        }
        for life in vanished {
            if let Some(event) = vanished_event(&records, life) {
                context.output.event(&event)?;
            }
        }
        return Ok(Exit::Done);
    }
    for remark in &remarks {
        context.output.warn(&text::escape(remark.as_bytes()));
    }
    print_sessions(context, &sessions, size, |session| life(session).map(|life| records[life.appeared]))?;
    print_vanished(context, &records, &vanished)?;
    Ok(Exit::Done)
}

fn event<'a>(
    record: &'a SnapshotRecord,
    session: &'a Session,
    size: Option<SessionSize>,
    appeared: Option<&'a SnapshotRecord>,
) -> SessionEvent<'a> {
    SessionEvent {
        event: "session",
        snapshot: &record.id,
        label: &session.label,
        path: &session.path,
        kind: session.kind.word(),
        state: session.state.words(),
        start: session.start,
        end: session.end,
        release: session.release.as_deref(),
        format_version: session.format_version.as_deref(),
        accounts: session.accounts,
        failed_accounts: session.failed,
        errors: session.errors.iter().map(|(email, message)| ErrorOf { email, message }).collect(),
        redo: &session.redo,
        redo_absent: &session.redo_absent,
        size,
        appeared: appeared.map(|record| record.id.as_str()),
        appeared_time: appeared.map(|record| record.time),
        remarks: &session.remarks,
    }
}

fn vanished_event<'a>(records: &[&'a SnapshotRecord], life: &'a SessionLife) -> Option<VanishedEvent<'a>> {
    let vanished = life.vanished.as_ref()?;
    let (last_seen, gone) = (records[life.last_seen], records[vanished.snapshot]);
    Some(VanishedEvent {
        event: "vanished",
        label: &life.label,
        start: life.start,
        appeared: &records[life.appeared].id,
        last_seen: &last_seen.id,
        last_seen_time: last_seen.time,
        vanished: &gone.id,
        vanished_time: gone.time,
        expected: vanished.unexpected.is_none(),
        reason: vanished.unexpected.as_deref(),
    })
}

fn print_sessions<'a>(
    context: &Context,
    sessions: &[Session],
    size: impl Fn(usize) -> Option<SessionSize>,
    appeared: impl Fn(&Session) -> Option<&'a SnapshotRecord>,
) -> Result<(), CliError> {
    let output = &context.output;
    if sessions.is_empty() {
        output.note("The snapshot has no session.");
        return Ok(());
    }
    let names = ["SESSION", "STATE", "ACCOUNTS", "REDO LOGS", "ENDED", "SIZE", "NEW", "FIRST SEEN IN", "REMARK"];
    let mut table = table::new(output, &names, &[2, 5, 6]);
    for (at, session) in sessions.iter().enumerate() {
        let dash = || "-".to_owned();
        let failed =
            if session.failed > 0 { format!(" ({} failed)", text::count(session.failed)) } else { String::new() };
        let size = size(at);
        table.add_row(vec![
            Cell::new(text::escape(session.label.as_bytes())),
            Cell::new(session.state.words()).fg(colour(session.state)),
            table::right(format!("{}{failed}", text::count(session.accounts))),
            Cell::new(ranges(&session.redo)),
            Cell::new(session.end.map_or_else(dash, text::local_time)),
            table::right(size.map_or_else(dash, |size| text::bytes(size.bytes))),
            table::right(size.map_or_else(dash, |size| text::bytes(size.new_bytes))),
            Cell::new(
                appeared(session)
                    .map_or_else(dash, |record| format!("{} of {}", record.short_id(), text::local_time(record.time))),
            ),
            Cell::new(text::escape(remark(session).as_bytes())),
        ]);
    }
    table::write(output, &mut table)
}

fn colour(state: SessionState) -> Color {
    match state {
        SessionState::Complete => Color::Green,
        SessionState::Invalid | SessionState::Aborted => Color::Red,
        _ => Color::Yellow,
    }
}

fn ranges(ranges: &[SequenceRange]) -> String {
    if ranges.is_empty() {
        return "-".to_owned();
    }
    ranges.iter().map(SequenceRange::to_string).collect::<Vec<_>>().join(", ")
}

fn remark(session: &Session) -> String {
    let mut words = session.remarks.clone();
    if !session.redo_absent.is_empty() {
        words.push(format!("redo logs {} are missing", ranges(&session.redo_absent)));
    }
    if let Some((email, message)) = session.errors.first() {
        let more = session.errors.len() - 1;
        let rest = if more > 0 { format!(" (+{more})") } else { String::new() };
        words.push(format!("{email}: {message}{rest}"));
    }
    words.join("; ")
}

fn print_vanished(context: &Context, records: &[&SnapshotRecord], vanished: &[&SessionLife]) -> Result<(), CliError> {
    if vanished.is_empty() {
        return Ok(());
    }
    let output = &context.output;
    output.line("")?;
    let mut table = table::new(output, &["VANISHED", "LAST IN", "GONE IN", "EXPECTED"], &[]);
    for life in vanished {
        let Some(gone) = &life.vanished else { continue };
        let snapshot = |at: usize| format!("{} of {}", records[at].short_id(), text::local_time(records[at].time));
        let (word, colour) = match &gone.unexpected {
            None => ("yes".to_owned(), Color::Green),
            Some(reason) => (format!("no: {reason}"), Color::Red),
        };
        table.add_row(vec![
            Cell::new(text::escape(life.label.as_bytes())),
            Cell::new(snapshot(life.last_seen)),
            Cell::new(snapshot(gone.snapshot)),
            Cell::new(word).fg(colour),
        ]);
    }
    table::write(output, &mut table)
}
