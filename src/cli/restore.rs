//! `zmreplica restore`: restores a directory or a file of a snapshot.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use zmreplica::remote::client::restore::{RemoteRestore, restore_to};
use zmreplica::restore::{Overwrite, RestoreOptions, RestoreProgress, RestoreReport, restore};

use super::destination::refuse_other_source;
use super::error::{CliError, DAMAGED_CONTENT, Exit};
use super::output::{GOOD, Output, Verbosity, WARNING};
use super::path::Opened;
use super::progress::{ONE_LINE, live_line, start_follower};
use super::remote::RemoteArgs;
use super::{Context, path, remote, signals, text};

/// Problems listed by name unless everything is to be reported.
const PROBLEMS_LISTED: usize = 20;
/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(120);

/// Arguments of `restore`.
#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// What to do with files that already exist
    #[arg(long, value_enum, value_name = "WHICH", default_value = "changed")]
    overwrite: OverwriteArg,
    /// Delete files and directories that are not in the snapshot
    #[arg(long)]
    delete: bool,
    /// Restore owners by number, even if this host has users of the same names
    #[arg(long)]
    numeric_ids: bool,
    /// Skip device nodes and files with a set-user-ID or set-group-ID bit
    #[arg(long)]
    no_specials: bool,
    /// Restore even onto the location of another source than the snapshot's
    #[arg(long)]
    other_source: bool,
    /// Only report what would be done
    #[arg(long)]
    dry_run: bool,
    /// What to restore
    #[arg(value_name = "SNAP[:PATH]")]
    place: OsString,
    /// The directory that receives the contents of the restored directory: a local path, [user@]host:path or ssh://[user@]host[:port]/path
    #[arg(value_name = "DEST")]
    destination: OsString,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum OverwriteArg {
    /// Leave them as they are
    Never,
    /// Overwrite those whose size or time differs
    Changed,
    /// Overwrite all of them
    Always,
}

#[derive(Serialize)]
struct ProblemEvent<'a> {
    event: &'static str,
    path: &'a str,
    message: &'a str,
    damage: bool,
}

#[derive(Serialize)]
struct SummaryEvent<'a> {
    event: &'static str,
    dry_run: bool,
    entries: u64,
    directories: u64,
    files: u64,
    links: u64,
    others: u64,
    set_id_files: u64,
    device_nodes: u64,
    left_out: u64,
    unguarded: bool,
    unchanged: u64,
    deleted: u64,
    /// The first of them.
    deletions: &'a [String],
    written_bytes: u64,
    damaged: u64,
    owners_kept: bool,
    problem_count: u64,
    elapsed_ms: u64,
}

pub(crate) fn run(context: &Context, args: &RestoreArgs) -> Result<Exit, CliError> {
    let remote = path::remote(&args.destination)?;
    if args.remote.is_agentless() {
        let message =
            "A restore needs the agent on the remote host: leave out --agentless, or restore to a local directory";
        return Err(CliError::Usage(message.to_owned()));
    }
    let reaching = remote::options(&args.remote, &context.config.remote, None)?;
    let replica = context.open()?;
    let Opened { view, path: subtree, lease } =
        path::open_path(context, &replica, &args.place, Path::new(&args.destination))?;
    if !args.other_source {
        let record = view.record();
        refuse_other_source(&replica.catalog()?.sources()?, record.source_id, &args.destination)?;
    }
    // Held to the end.
    let _lease =
        lease.inspect_err(|error| context.output.note(&format!("A prune may remove the snapshot meanwhile: {error}")));
    let options = RestoreOptions {
        overwrite: match args.overwrite {
            OverwriteArg::Never => Overwrite::Never,
            OverwriteArg::Changed => Overwrite::Changed,
            OverwriteArg::Always => Overwrite::Always,
        },
        delete: args.delete,
        numeric_ids: args.numeric_ids,
        dry_run: args.dry_run,
        no_specials: args.no_specials,
        protect: vec![replica.path().to_owned()],
        ..RestoreOptions::default()
    };
    let interrupt = signals::interrupt_flag()?;
    let progress = RestoreProgress::default();
    let report = std::thread::scope(|scope| {
        // Closed when this closure ends, a panic of the restore included.
        let (_running, stop) = mpsc::channel();
        let (progress, interrupt) = (&progress, &*interrupt);
        start_follower(scope, move || follow(&context.output, progress, interrupt, &stop))?;
        let Some(spec) = &remote else {
            return Ok::<_, CliError>(restore(&view, &subtree, Path::new(&args.destination), &options, progress)?);
        };
        let what = RemoteRestore {
            replica: &replica,
            view: &view,
            subtree: &subtree,
            agent: &reaching.agent,
            options: &options,
            idle_timeout: reaching.idle_timeout,
        };
        Ok(restore_to(&mut *reaching.way.transport(spec), &spec.path, &what, progress)?)
    })?;
    print_report(&context.output, &report, args)?;
    Ok(match (report.damaged, report.problem_count) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::Incomplete,
        _ => Exit::Damage,
    })
}

/// Shows the progress of the restore, on a terminal, until `stop` is closed.
fn follow(output: &Output, progress: &RestoreProgress, interrupt: &AtomicBool, stop: &Receiver<()>) {
    let bar = live_line(output, ONE_LINE);
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(TICK) {
        if interrupt.load(Ordering::Relaxed) {
            progress.interrupt.store(true, Ordering::Relaxed);
        }
        bar.set_message(format!(
            "{} names, {} files, {} written",
            text::count(progress.entries.load(Ordering::Relaxed)),
            text::count(progress.files.load(Ordering::Relaxed)),
            text::bytes(progress.written_bytes.load(Ordering::Relaxed)),
        ));
        bar.tick();
    }
    bar.finish_and_clear();
}

fn print_report(output: &Output, report: &RestoreReport, args: &RestoreArgs) -> Result<(), CliError> {
    if output.json() {
        for problem in &report.problems {
            let (path, message) = (&problem.path, &problem.message);
            output.event(&ProblemEvent { event: "problem", path, message, damage: problem.damage })?;
        }
        return Ok(output.event(&SummaryEvent {
            event: "summary",
            dry_run: args.dry_run,
            entries: report.entries,
            directories: report.directories,
            files: report.files,
            links: report.links,
            others: report.others,
            set_id_files: report.set_id_files,
            device_nodes: report.device_nodes,
            left_out: report.left_out,
            unguarded: report.unguarded,
            unchanged: report.unchanged,
            deleted: report.deleted,
            deletions: &report.deletions,
            written_bytes: report.written_bytes,
            damaged: report.damaged,
            owners_kept: report.owners_kept,
            problem_count: report.problem_count,
            elapsed_ms: report.elapsed_ms,
        })?);
    }
    let listed = if output.verbosity() == Verbosity::Verbose { report.problems.len() } else { PROBLEMS_LISTED };
    for problem in report.problems.iter().take(listed) {
        output.warn(&format!("{}: {}", problem.path, problem.message));
    }
    let rest = report.problem_count.saturating_sub(report.problems.len().min(listed) as u64);
    if rest > 0 {
        let hint = if listed == PROBLEMS_LISTED { "; -v or --json lists them" } else { "" };
        output.warn(&format!("{} more{hint}", text::plural(rest, "problem", "problems")));
    }
    if output.verbosity() == Verbosity::Quiet {
        return Ok(());
    }
    if args.dry_run || output.verbosity() == Verbosity::Verbose {
        for path in &report.deletions {
            output.line(&format!("{} {path}", if args.dry_run { "would delete" } else { "deleted" }))?;
        }
    }
    if report.set_id_files + report.device_nodes > 0 {
        output.note(&format!(
            "{} with a set-user-ID or set-group-ID bit or capabilities and {}, which do not belong in a Zimbra backup{}",
            text::plural(report.set_id_files, "file", "files"),
            text::plural(report.device_nodes, "device node", "device nodes"),
            if args.no_specials { ", left out." } else { "; --no-specials leaves them out." },
        ));
    }
    if report.unguarded {
        output.note(
            "A file system of the destination chooses owners or modes itself, so root cannot guard against others who exchange names during the restore.",
        );
    }
    if report.damaged > 0 {
        output.note(DAMAGED_CONTENT);
    }
    if !report.owners_kept && !args.dry_run {
        output.note("Owners were not set: only root may give files away.");
    }
    let (style, problems) = match report.problem_count {
        0 => (GOOD, "no problem".to_owned()),
        count => (WARNING, text::plural(count, "problem", "problems")),
    };
    let deleted = if args.delete { format!(", {} deleted", text::count(report.deleted)) } else { String::new() };
    output.line(&format!(
        "{} {} in {}: {}, {}, {} more linked, {} other, {}; {} unchanged{deleted}; {}",
        if args.dry_run { "Would restore" } else { "Restored" },
        text::plural(report.entries, "name", "names"),
        text::duration(Duration::from_millis(report.elapsed_ms)),
        text::plural(report.directories, "directory", "directories"),
        text::plural(report.files, "file", "files"),
        text::plural(report.links, "name", "names"),
        text::count(report.others),
        text::bytes(report.written_bytes),
        text::count(report.unchanged),
        output.styled(style, &problems),
    ))?;
    Ok(())
}
