//! `zmreplica repair`: rebuilds the catalogue, salvages damaged packs, and reports what is lost.

use clap::Args;
use serde::Serialize;
use zmreplica::prune::PruneProgress;
use zmreplica::repair::{CatalogOutcome, ConfigRepair, ConfigSource, RepairOptions, RepairReport, repair};
use zmreplica::replica::{FORMAT_VERSION, ReplicaError, StoreConfig, wait_until_unlocked};
use zmreplica::zimbra::ledger;

use super::error::{CliError, Exit};
use super::output::Output;
use super::prune::followed;
use super::{Context, signals, text};

/// Said where there was a catalogue before.
const OLD_IS_KEPT: &str =
    " The old one is kept next to it as catalog.redb.damaged-*; delete it once `zmreplica check` finds no damage.";

/// Arguments of `repair`.
#[derive(Args)]
pub(crate) struct RepairArgs {
    /// Also read all packs, and salvage those that are damaged inside
    #[arg(long)]
    read_data: bool,
}

#[derive(Serialize)]
struct Summary<'a> {
    event: &'static str,
    /// Commit files that the catalogue was rebuilt from.
    applied_commits: u64,
    /// Whether nothing is lost.
    whole: bool,
    #[serde(flatten)]
    report: &'a RepairReport,
}

pub(crate) fn run(context: &Context, args: &RepairArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let options = RepairOptions { read_data: args.read_data };
    let store = context.store()?;
    context.narrow(store);
    let interrupt = signals::interrupt_flag()?;
    let progress = PruneProgress::default();
    context.waiting(&mut |text| output.note(text), |wait| wait_until_unlocked(store, wait))?;
    // Nothing of a store of a later version is touched.
    if let Some(error) = StoreConfig::read(store).err().filter(ReplicaError::is_newer) {
        return Err(error.into());
    }
    // What was found out before may not hold any more, also if the repair is interrupted; and a reader beside it may find out something else halfway.
    ledger::forget(store);
    let report = followed(output, &progress, &interrupt, || repair(store, options, &progress));
    ledger::forget(store);
    let report = report??;
    if output.json() {
        let applied_commits = match report.catalog {
            CatalogOutcome::Rebuilt { commit_files, .. } => commit_files,
            _ => 0,
        };
        output.event(&Summary { event: "summary", applied_commits, whole: report.is_whole(), report: &report })?;
    } else {
        print_report(output, &report)?;
    }
    Ok(if report.is_whole() { Exit::Done } else { Exit::Damage })
}

fn print_config_repair(output: &Output, config: &ConfigRepair) {
    let from = match config.from {
        ConfigSource::Catalog => "the catalogue",
        ConfigSource::CommitFiles => "the commit files",
        ConfigSource::Objects => "what the store holds",
    };
    let kept =
        config.kept_as.as_ref().map(|name| format!(" The old one is kept next to it as {name}.")).unwrap_or_default();
    let reason = &config.reason;
    output.note(&format!("config.json could not be used: {reason}. It was restored from {from}.{kept}"));
    if config.new_id {
        output.note("The store's identifier is lost, so it has a new one. The snapshots keep theirs.");
    }
}

fn print_report(output: &Output, report: &RepairReport) -> Result<(), CliError> {
    if let Some(config) = &report.config {
        print_config_repair(output, config);
    }
    if let Some(from) = report.raised_from {
        output.warn(&text::raised(from, FORMAT_VERSION, &[]));
    }
    let snapshots = text::plural(report.snapshots, "snapshot", "snapshots");
    match &report.catalog {
        CatalogOutcome::Rebuilt { commit_files, had_old } => {
            let files = text::plural(*commit_files, "commit file", "commit files");
            let old = if *had_old { OLD_IS_KEPT } else { "" };
            output.note(&format!("The catalogue was rebuilt from {files} and holds {snapshots}.{old}"));
        }
        CatalogOutcome::Kept { reason } => output.note(&format!(
            "{reason}. The catalogue is intact and stays, with {snapshots}; a checkpoint of it replaces the commit files.",
        )),
        CatalogOutcome::PutTogether { reason, lost_files, had_old } => {
            let (state, old) = if *had_old { ("damaged", OLD_IS_KEPT) } else { ("missing", "") };
            output.warn(&format!(
                "{reason}, and the catalogue is {state}. A new one was built from what can be read and holds {snapshots}.{old}",
            ));
            for file in lost_files {
                output.warn(&format!("Cannot be read: {file}"));
            }
        }
    }
    for lost in &report.lost_snapshots {
        let id = lost.id.get(..8).unwrap_or(&lost.id);
        output.line(&format!("lost snapshot {id} of {}: {}", text::local_time(lost.time), lost.reason))?;
    }
    for pack in &report.damaged_packs {
        output.line(&format!(
            "damaged pack {}: {}; {} saved, {} lost",
            pack.pack,
            pack.reason,
            text::plural(pack.saved_chunks, "chunk", "chunks"),
            text::count(pack.lost_chunks),
        ))?;
    }
    for (pack, reason) in &report.unreadable_packs {
        output.warn(&format!("Pack {pack} cannot be read now and was left as it is: {reason}"));
    }
    if report.found_chunks > 0 {
        output.line(&format!(
            "Found {} in packs that nothing refers to.",
            text::plural(report.found_chunks, "chunk", "chunks")
        ))?;
    }
    if report.unnamed_packs > 0 {
        output.note(&format!(
            "No commit refers to {}. An interrupted run leaves such packs; but if the catalogue and the newest commit files were both lost, they belong to \
             snapshots of which no record is left. Check `zmreplica snapshots` before the next prune, which deletes them.",
            text::plural(report.unnamed_packs, "pack", "packs"),
        ));
    }
    if report.lost_chunks > 0 {
        output.line(&format!(
            "The data of {} is lost. `zmreplica check` lists the files that need it; the next snapshot stores it again if its source still has \
             it, and then older snapshots are whole again.",
            text::plural(report.lost_chunks, "chunk", "chunks"),
        ))?;
    }
    if !report.read_data {
        output.note("The contents of packs were not read; use --read-data to read them.");
    }
    Ok(())
}
