//! `zmreplica check`: verifies the store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use zmreplica::check::{CheckOptions, CheckProgress, CheckReport, Damage, check};

use super::error::{CliError, Exit};
use super::output::{GOOD, Output, Verbosity};
use super::progress::{ONE_LINE, live_line, start_follower};
use super::{Context, signals, text};

/// Damages listed with all they affect unless everything is to be reported.
const DAMAGES_LISTED: usize = 20;
/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(120);

/// Arguments of `check`.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Also read packs and verify every byte: of all packs, or of a random sample of PERCENT
    #[arg(
        long,
        value_name = "PERCENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "100",
        value_parser = clap::value_parser!(u8).range(1..=100),
    )]
    read_data: Option<u8>,
}

#[derive(Serialize)]
struct DamageEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    damage: &'a Damage,
}

#[derive(Serialize)]
struct SummaryEvent<'a> {
    event: &'static str,
    clean: bool,
    #[serde(flatten)]
    report: Counts<'a>,
}

/// The report without its list of damages, each of which is an event of its own.
#[derive(Serialize)]
struct Counts<'a> {
    snapshots: u64,
    names: u64,
    groups: u64,
    chunks: u64,
    lost_chunks: u64,
    packs: u64,
    pack_bytes: u64,
    objects: u64,
    commits: u64,
    read_percent: &'a Option<u8>,
    read_packs: u64,
    read_bytes: u64,
    damage_count: u64,
    removed_packs: u64,
    orphan_packs: u64,
    orphan_bytes: u64,
    condemned_bytes: u64,
    waiting_commits: u64,
    rebuildable: bool,
    elapsed_ms: u64,
}

pub(crate) fn run(context: &Context, args: &CheckArgs) -> Result<Exit, CliError> {
    let replica = context.open()?;
    let options = CheckOptions { read_data_percent: args.read_data, ..CheckOptions::default() };
    let interrupt = signals::interrupt_flag()?;
    let progress = CheckProgress::default();
    let report = std::thread::scope(|scope| {
        // Closed when this closure ends, a panic of the check included.
        let (_running, stop) = mpsc::channel();
        let (progress, interrupt) = (&progress, &*interrupt);
        start_follower(scope, move || follow(&context.output, progress, interrupt, &stop))?;
        Ok::<_, CliError>(check(&replica, &options, progress)?)
    })?;
    print_report(&context.output, &report)?;
    Ok(if report.is_clean() { Exit::Done } else { Exit::Damage })
}

/// Shows how far the check is, on a terminal, until `stop` is closed.
fn follow(output: &Output, progress: &CheckProgress, interrupt: &AtomicBool, stop: &Receiver<()>) {
    let bar = live_line(output, ONE_LINE);
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(TICK) {
        if interrupt.load(Ordering::Relaxed) {
            progress.interrupt.store(true, Ordering::Relaxed);
        }
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        let share =
            done.saturating_mul(100).checked_div(total).map(|percent| format!(", {percent} %")).unwrap_or_default();
        let read = match progress.read_bytes.load(Ordering::Relaxed) {
            0 => String::new(),
            bytes => format!(", read {}", text::bytes(bytes)),
        };
        bar.set_message(format!("{}: {}{share}{read}", progress.phase().label(), text::count(done)));
        bar.tick();
    }
    bar.finish_and_clear();
}

fn print_report(output: &Output, report: &CheckReport) -> Result<(), CliError> {
    if output.json() {
        for damage in &report.damages {
            output.event(&DamageEvent { event: "damage", damage })?;
        }
        let event = SummaryEvent { event: "summary", clean: report.is_clean(), report: counts(report) };
        return Ok(output.event(&event)?);
    }
    let all = output.verbosity() == Verbosity::Verbose;
    let listed = if all { report.damages.len() } else { DAMAGES_LISTED };
    for damage in report.damages.iter().take(listed) {
        print_damage(output, damage)?;
    }
    let rest = report.damage_count.saturating_sub(report.damages.len().min(listed) as u64);
    if rest > 0 {
        let hint = if all { "" } else { "; -v or --json lists them" };
        output.line(&format!("{} more{hint}", text::plural(rest, "damage", "damages")))?;
    }
    if output.verbosity() == Verbosity::Quiet && report.is_clean() {
        return Ok(());
    }
    output.line(&format!(
        "Checked {}, {}, {}, {}, {} in {}.",
        text::plural(report.snapshots, "snapshot", "snapshots"),
        text::plural(report.names, "name", "names"),
        text::plural(report.groups, "link group", "link groups"),
        text::plural(report.chunks, "chunk", "chunks"),
        text::plural(report.packs, "pack", "packs"),
        text::duration(Duration::from_millis(report.elapsed_ms)),
    ))?;
    match report.read_percent {
        Some(percent) => output.line(&format!(
            "Read {} of {}, {} ({percent} %).",
            text::count(report.read_packs),
            text::plural(report.packs, "pack", "packs"),
            text::bytes(report.read_bytes),
        ))?,
        None => output.line("The contents of packs were not read; use --read-data to read them.")?,
    }
    if report.removed_packs > 0 {
        output.line(&format!(
            "A prune removed {} meanwhile; what it wrote in their place will be checked next time.",
            text::plural(report.removed_packs, "pack", "packs"),
        ))?;
    }
    if report.orphan_packs > 0 {
        output.line(&format!(
            "{} ({}) belong to no commit; an interrupted run left them, and that is not damage.",
            text::plural(report.orphan_packs, "pack", "packs"),
            text::bytes(report.orphan_bytes),
        ))?;
    }
    if report.condemned_bytes > 0 {
        let bytes = text::bytes(report.condemned_bytes);
        output.line(&format!("Packs of {bytes} are condemned: a prune after the grace deletes them."))?;
    }
    if report.waiting_commits > 0 {
        output.line(&format!(
            "{} not in the catalogue yet; the next run applies them.",
            text::plural(report.waiting_commits, "commit file is", "commit files are"),
        ))?;
    }
    if report.is_clean() {
        return Ok(output.line(&output.styled(GOOD, "No damage found."))?);
    }
    output.error(&text::plural(report.damage_count, "damage found", "damages found"), None);
    if report.rebuildable {
        output.note("The commit files are intact: `zmreplica repair` rebuilds the catalogue, which helps if the damage is there.");
    }
    output.note(
        "`zmreplica repair --read-data` salvages damaged packs and gives up the rest, which the next snapshot stores again \
         if its source still has it.",
    );
    Ok(())
}

fn print_damage(output: &Output, damage: &Damage) -> Result<(), CliError> {
    output.line(&format!("damage: {}: {}", damage.what, damage.reason))?;
    for path in &damage.paths {
        let ids: Vec<&str> = path.snapshots.iter().map(|id| id.get(..8).unwrap_or(id)).collect();
        output.line(&format!("  {} in {}", path.path, ids.join(",")))?;
    }
    if damage.unlisted > 0 {
        output.line(&format!("  and {} more", text::plural(damage.unlisted, "path", "paths")))?;
    }
    Ok(())
}

fn counts(report: &CheckReport) -> Counts<'_> {
    Counts {
        snapshots: report.snapshots,
        names: report.names,
        groups: report.groups,
        chunks: report.chunks,
        lost_chunks: report.lost_chunks,
        packs: report.packs,
        pack_bytes: report.pack_bytes,
        objects: report.objects,
        commits: report.commits,
        read_percent: &report.read_percent,
        read_packs: report.read_packs,
        read_bytes: report.read_bytes,
        damage_count: report.damage_count,
        removed_packs: report.removed_packs,
        orphan_packs: report.orphan_packs,
        orphan_bytes: report.orphan_bytes,
        condemned_bytes: report.condemned_bytes,
        waiting_commits: report.waiting_commits,
        rebuildable: report.rebuildable,
        elapsed_ms: report.elapsed_ms,
    }
}
