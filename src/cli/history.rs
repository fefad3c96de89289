//! `zmreplica history`: shows every version of a path over all snapshots.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::group::Content;
use zmreplica::ids::GroupId;
use zmreplica::view::history::{PathVersion, path_history};
use zmreplica::view::{Node, Readers, SnapshotView, Snapshots, StoredSnapshot, ViewError, ViewOptions, display_path};

use super::error::{CliError, Exit};
use super::ls::kind_word;
use super::path::trim_slashes;
use super::{Context, text};

/// Arguments of `history`.
#[derive(Args)]
#[command(after_help = "\
A version of a file ends when its content, its attributes or its inode change; names that come and go do not count. A version of a directory ends when anything below it changes.")]
pub(crate) struct HistoryArgs {
    /// The file or directory, as a path below the source; a slash at either end is ignored
    #[arg(value_name = "PATH")]
    path: OsString,
}

/// One version, as JSON.
#[derive(Serialize)]
struct VersionEvent<'a> {
    event: &'static str,
    source: &'a str,
    #[serde(flatten)]
    path: text::JsonPath,
    first_snapshot: &'a str,
    first_time: Timestamp,
    last_snapshot: &'a str,
    last_time: Timestamp,
    /// Snapshots that have it, and all from the first to the last.
    snapshots: usize,
    snapshots_between: usize,
    /// The first one after the last that has nothing at the path.
    vanished_snapshot: Option<&'a str>,
    vanished_time: Option<Timestamp>,
    #[serde(flatten)]
    facts: Facts,
}

/// What is shown of a version itself.
#[derive(Serialize)]
struct Facts {
    kind: &'static str,
    size: u64,
    /// UTC, to the nanosecond.
    mtime: String,
    /// Equal for all names of one inode; none for a directory.
    link_group: Option<GroupId>,
    /// How many names stand for it in the last snapshot that has it.
    names: u32,
    /// Entries of a directory.
    entries: Option<u64>,
    /// Whether the source could not read it.
    unreadable: bool,
    #[serde(skip)]
    modified: String,
}

pub(crate) fn run(context: &Context, args: &HistoryArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let path = trim_slashes(args.path.as_bytes());
    let replica = context.open()?;
    let catalog = Arc::new(replica.catalog()?);
    let snapshots = context.snapshots(&catalog)?;
    snapshots.newest()?;
    let readers = Readers::new(catalog, Arc::new(replica.chunks()), ViewOptions::default());
    let mut failure: Option<ViewError> = None;
    let mut is_found = false;
    for (source, own) in by_source(&snapshots) {
        let history = path_history(&readers, &own, path)?;
        is_found |= !history.versions.is_empty();
        if !history.versions.is_empty() && !output.json() {
            let versions = text::plural(history.versions.len() as u64, "version", "versions");
            output.line(&format!("{} in {}: {versions}", display_path(path), text::escape(source.as_bytes())))?;
        }
        for version in &history.versions {
            let record = &own[version.last].record;
            let facts = SnapshotView::over(&readers, record.clone()).and_then(|view| facts(&view, &version.node));
            let facts = match facts {
                Ok(facts) => facts,
                Err(error) => {
                    output.warn(&format!("The version in the snapshot {} is left out: {error}", record.short_id()));
                    failure.get_or_insert(error);
                    continue;
                }
            };
            if output.json() {
                output.event(&event(source, path, &own, version, facts))?;
                continue;
            }
            for line in lines(&own, version, &facts) {
                output.line(&line)?;
            }
        }
        for (at, error) in history.unread {
            output.warn(&format!("Snapshot {} is left out: {error}", own[at].record.short_id()));
            failure.get_or_insert(error);
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None if !is_found => Err(CliError::Failed(format!(
            "{} is in no snapshot; `zmreplica find PATTERN` searches all of them",
            display_path(path)
        ))),
        None => Ok(Exit::Done),
    }
}

/// Returns the snapshots of each source by its name, in order of commits; of the one that was chosen, if one was.
fn by_source(snapshots: &Snapshots) -> BTreeMap<&str, Vec<&StoredSnapshot>> {
    let mut sources: BTreeMap<&str, Vec<&StoredSnapshot>> = BTreeMap::new();
    for snapshot in snapshots.listed() {
        sources.entry(snapshots.source_name(snapshot)).or_default().push(snapshot);
    }
    sources
}

fn facts(view: &SnapshotView, node: &Node) -> Result<Facts, ViewError> {
    let attributes = view.attributes(node)?;
    let (link_group, names, entries, unreadable) = match node {
        Node::Group(group) => {
            let is_unreadable = matches!(view.group(*group)?.content, Content::Unreadable(_));
            (Some(*group), view.link_count(node)?, None, is_unreadable)
        }
        // Nothing links to a directory.
        Node::Directory(directory) => {
            (None, 1, Some(view.entry_count(directory)?), directory.attributes.unreadable.is_some())
        }
    };
    Ok(Facts {
        kind: kind_word(attributes.kind),
        size: attributes.size,
        mtime: text::exact_time(attributes.mtime),
        link_group,
        names,
        entries,
        unreadable,
        modified: text::local_file_time(attributes.mtime),
    })
}

fn event<'a>(
    source: &'a str,
    path: &[u8],
    own: &[&'a StoredSnapshot],
    version: &PathVersion,
    facts: Facts,
) -> VersionEvent<'a> {
    let (first, last) = (&own[version.first].record, &own[version.last].record);
    let vanished = version.vanished.map(|at| &own[at].record);
    VersionEvent {
        event: "version",
        source,
        path: text::JsonPath::new(path),
        first_snapshot: &first.id,
        first_time: first.time,
        last_snapshot: &last.id,
        last_time: last.time,
        snapshots: version.count,
        snapshots_between: version.last - version.first + 1,
        vanished_snapshot: vanished.map(|record| record.id.as_str()),
        vanished_time: vanished.map(|record| record.time),
        facts,
    }
}

/// Shows a version within 80 columns.
fn lines(own: &[&StoredSnapshot], version: &PathVersion, facts: &Facts) -> Vec<String> {
    let of = |at: usize| format!("{} of {}", own[at].record.short_id(), text::local_time(own[at].record.time));
    let all = version.last - version.first + 1;
    let count = match all - version.count {
        0 => text::plural(version.count as u64, "snapshot", "snapshots"),
        _ => format!("{} of {}", text::count(version.count as u64), text::plural(all as u64, "snapshot", "snapshots")),
    };
    let what = match (facts.entries, facts.link_group) {
        (Some(entries), _) => text::plural(entries, "entry", "entries"),
        (None, Some(group)) => {
            let names = text::plural(u64::from(facts.names), "name", "names");
            format!("{}, link group {group}, {names}", text::bytes(facts.size))
        }
        (None, None) => text::bytes(facts.size),
    };
    let mut lines = vec![
        format!("  first {}, last {}", of(version.first), of(version.last)),
        format!("    {} of {}: {what}; {count}", facts.kind, facts.modified),
    ];
    if facts.unreadable {
        lines.push("    the source could not read it".to_owned());
    }
    if let Some(at) = version.vanished {
        lines.push(format!("    gone since {}", of(at)));
    }
    lines
}
