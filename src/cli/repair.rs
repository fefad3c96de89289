//! `zmreplica repair`: rebuilds the catalogue from the commit files.

use clap::Args;
use serde::Serialize;
use zmreplica::replica::{LockedReplica, Replica};

use super::error::{CliError, Exit};
use super::{Context, text};

/// Arguments of `repair`.
#[derive(Args)]
pub(crate) struct RepairArgs {}

#[derive(Serialize)]
#[serde(tag = "event", rename = "summary")]
struct Summary {
    applied_commits: u64,
    snapshots: u64,
}

pub(crate) fn run(context: &Context, _args: &RepairArgs) -> Result<Exit, CliError> {
    let path = context.store()?;
    let applied_commits = LockedReplica::rebuild_catalog(path)?;
    // What was rebuilt must open and be read, dictionaries included, before it is called repaired.
    let snapshots = Replica::open(path)?.catalog()?.snapshots()?.len() as u64;
    if context.output.json() {
        context.output.event(&Summary { applied_commits, snapshots })?;
    } else {
        context.output.note(&format!(
            "The catalogue was rebuilt from {} and holds {}. The old one is kept beside it as catalog.redb.damaged-*; \
             delete it once `zmreplica check` is content.",
            text::plural(applied_commits, "commit file", "commit files"),
            text::plural(snapshots, "snapshot", "snapshots"),
        ));
    }
    Ok(Exit::Done)
}
