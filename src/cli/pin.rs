//! `zmreplica pin` and `unpin`: protect a snapshot from being removed, and no longer.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::marks::{self, Mark};

use super::error::{CliError, Exit};
use super::{Context, text};

/// Arguments of `pin`.
#[derive(Args)]
pub(crate) struct PinArgs {
    /// The snapshots
    #[arg(value_name = "SNAP", required = true)]
    snapshots: Vec<String>,
    /// The reason, shown to others
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Arguments of `unpin`.
#[derive(Args)]
pub(crate) struct UnpinArgs {
    /// The snapshots
    #[arg(value_name = "SNAP", required = true)]
    snapshots: Vec<String>,
}

#[derive(Serialize)]
struct PinEvent<'a> {
    event: &'static str,
    id: &'a str,
    pinned: bool,
    /// Whether it was otherwise before.
    changed: bool,
}

pub(crate) fn pin(context: &Context, args: &PinArgs) -> Result<Exit, CliError> {
    let mark = Mark { at: Timestamp::now(), reason: args.reason.clone() };
    set(context, &args.snapshots, Some(&mark))
}

pub(crate) fn unpin(context: &Context, args: &UnpinArgs) -> Result<Exit, CliError> {
    set(context, &args.snapshots, None)
}

fn set(context: &Context, names: &[String], mark: Option<&Mark>) -> Result<Exit, CliError> {
    // All are found before any is marked.
    let named = context.ids(names)?;
    let replica = context.open_locked()?;
    let catalog = replica.catalog()?;
    let snapshots = context.snapshots(&catalog)?;
    let all = marks::read_all(&catalog)?;
    let meant = named.iter().map(|name| snapshots.resolve(name)).collect::<Result<Vec<_>, _>>()?;
    let mut writer = replica.writer()?;
    for snapshot in &meant {
        let mut marks = all.get(&snapshot.number).cloned().unwrap_or_default();
        marks.pinned = mark.cloned();
        writer.set_marks(snapshot.number, &marks)?;
    }
    writer.commit()?;
    for snapshot in meant {
        let was = all.get(&snapshot.number).is_some_and(|marks| marks.pinned.is_some());
        let changed = was != mark.is_some();
        if context.output.json() {
            let event = if mark.is_some() { "pin" } else { "unpin" };
            let id = &snapshot.record.id;
            context.output.event(&PinEvent { event, id, pinned: mark.is_some(), changed })?;
            continue;
        }
        let name = format!("Snapshot {} of {}", snapshot.record.short_id(), text::local_time(snapshot.record.time));
        context.output.note(&match (mark, changed) {
            (Some(_), true) => format!("{name} is pinned: nothing removes it until `zmreplica unpin`."),
            (Some(_), false) => format!("{name} was already pinned."),
            (None, true) => format!("{name} is no longer pinned: the retention policy applies."),
            (None, false) => format!("{name} was not pinned."),
        });
    }
    Ok(Exit::Done)
}
