//! `zmreplica diff`: shows the differences between two snapshots.

use std::io::Write;
use std::sync::Arc;

use anstyle::Style;
use clap::Args;
use serde::Serialize;
use zmreplica::view::diff::{Change, Difference, diff};

use super::error::{CliError, Exit};
use super::output::{ERROR, GOOD, Output, WARNING};
use super::path::open_view;
use super::{Context, text};

/// Arguments of `diff`.
#[derive(Args)]
#[command(after_help = "\
+ only in the second snapshot, - only in the first, M content changed, U only attributes changed (mode, owner, time, extended attributes), \
L same content and attributes, but hard-linked to other names.")]
pub(crate) struct DiffArgs {
    /// The first snapshot, usually the older one
    #[arg(value_name = "SNAP")]
    old: String,
    /// The second snapshot
    #[arg(value_name = "SNAP")]
    new: String,
}

#[derive(Serialize)]
struct ChangeEvent {
    event: &'static str,
    change: &'static str,
    #[serde(flatten)]
    path: text::JsonPath,
}

#[derive(Default, Serialize)]
struct Counts {
    added: u64,
    removed: u64,
    content: u64,
    attributes: u64,
    links: u64,
}

#[derive(Serialize)]
struct SummaryEvent<'a> {
    event: &'static str,
    old: &'a str,
    new: &'a str,
    #[serde(flatten)]
    counts: &'a Counts,
}

pub(crate) fn run(context: &Context, args: &DiffArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let catalog = Arc::new(replica.catalog()?);
    let snapshots = context.snapshots(&catalog)?;
    let old = open_view(&replica, &catalog, snapshots.resolve(&args.old)?.record.clone())?;
    let new = open_view(&replica, &catalog, snapshots.resolve(&args.new)?.record.clone())?;
    let mut counts = Counts::default();
    diff(&old, &new, |difference| print_difference(output, &mut counts, &difference))?;
    if output.json() {
        let (old, new) = (&old.record().id, &new.record().id);
        output.event(&SummaryEvent { event: "summary", old, new, counts: &counts })?;
    }
    Ok(Exit::Done)
}

fn print_difference(output: &Output, counts: &mut Counts, difference: &Difference) -> Result<(), CliError> {
    let (letter, word, style, count) = match difference.change {
        Change::Added => ("+", "added", GOOD, &mut counts.added),
        Change::Removed => ("-", "removed", ERROR, &mut counts.removed),
        Change::Content => ("M", "content", WARNING, &mut counts.content),
        Change::Attributes => ("U", "attributes", Style::new(), &mut counts.attributes),
        Change::Links => ("L", "links", Style::new(), &mut counts.links),
    };
    *count += 1;
    if output.json() {
        let path = text::JsonPath::new(&difference.path);
        return Ok(output.event(&ChangeEvent { event: "change", change: word, path })?);
    }
    let path: &[u8] = if difference.path.is_empty() { b"/" } else { &difference.path };
    let mut stdout = output.stdout();
    write!(stdout, "{} ", output.painted(style, letter))?;
    if output.stdout_is_terminal() {
        stdout.write_all(text::escape(path).as_bytes())?;
    } else {
        stdout.write_all(path)?;
    }
    Ok(stdout.write_all(b"\n")?)
}
