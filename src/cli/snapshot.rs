//! `zmreplica snapshot`: takes one snapshot of a source and commits it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::guard::MarkedSnapshot;
use zmreplica::replica::{LockedReplica, Replica, SMALL_CATALOG_BYTES};
use zmreplica::snapshot::SnapshotError;
use zmreplica::snapshot::dry_run::dry_run;
use zmreplica::snapshot::options::{DryRun, SnapshotOptions, SnapshotReport};
use zmreplica::snapshot::problems::RunProblem;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::pull::{dry_pull, pull};
use zmreplica::snapshot::run::run as take_snapshot;

use super::config::{ConfiguredSource, Span};
use super::error::{CliError, Exit};
use super::output::{GOOD, Output, Verbosity, WARNING};
use super::remote::{CompressAtArg, RemoteArgs};
use super::snapshots::SnapshotEvent;
use super::{Context, clock, hold, path, progress, remote, signals, text};

/// Problems listed by name unless everything is to be reported.
const PROBLEMS_LISTED: usize = 20;

/// Arguments of `snapshot`.
#[derive(Args, Default)]
pub(crate) struct SnapshotArgs {
    /// The directory to replicate: a local path, [user@]host:path or ssh://[user@]host[:port]/path [default: `source` in the configuration file]
    source: Option<OsString>,
    /// Exclude what matches GLOB. A leading / anchors the pattern at the source; a trailing / matches directories only. May be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Include lost+found and sessions that are being deleted
    #[arg(long)]
    no_default_excludes: bool,
    /// Descend into other file systems mounted below the source
    #[arg(long)]
    all_file_systems: bool,
    /// Read every file again, even if it has not changed since the last snapshot
    #[arg(long)]
    rescan: bool,
    /// Stop the run after this time (20h, 90min). What it has stored is kept, and the next run resumes from there [default: `max-duration` in the configuration
    /// file, else no limit]
    #[arg(long, value_name = "DURATION")]
    max_duration: Option<Span>,
    /// Only scan, and report what would be read
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Run even if the store is on hold
    #[arg(long)]
    pub(crate) ignore_hold: bool,
    /// Add a tag to the snapshot; may be repeated
    #[arg(long, value_name = "T")]
    tag: Vec<String>,
    /// Compression level of zstd, 1 to 19 [default: `compression-level` in the configuration file, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    compression_level: Option<i32>,
    /// Compress small messages without a trained dictionary
    #[arg(long)]
    no_dictionary: bool,
    /// Where to compress chunks that come from another host [default: source]
    #[arg(long, value_enum, value_name = "WHERE", help_heading = "Remote host")]
    compress_at: Option<CompressAtArg>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Serialize)]
struct ProblemEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    path: text::JsonPath,
    message: &'a str,
}

#[derive(Serialize)]
struct DryRunEvent {
    event: &'static str,
    dry_run: bool,
    names: u64,
    excluded_names: u64,
    unchanged_inodes: u64,
    attribute_inodes: u64,
    read_files: u64,
    read_bytes: u64,
    problem_count: u64,
    elapsed_ms: u64,
}

pub(crate) fn run(context: &Context, args: &SnapshotArgs) -> Result<Exit, CliError> {
    match configured_sources(context, args).as_slice() {
        [] => of_source(context, args),
        [one] => of_source(one, args),
        several => {
            let names: Vec<&str> = several.iter().filter_map(|one| one.source.as_deref()).collect();
            Err(CliError::Usage(format!(
                "Several sources are configured: choose one with --source ({}); `zmreplica nightly` takes a snapshot of each",
                names.join(", ")
            )))
        }
    }
}

fn of_source(context: &Context, args: &SnapshotArgs) -> Result<Exit, CliError> {
    if args.dry_run {
        let source = source(context, args)?;
        let options = options(context, args)?;
        let started = Instant::now();
        let replica = context.open()?;
        let remote = path::remote(source.as_os_str())?;
        let pulling = remote::options(&args.remote, &context.config.remote, args.compress_at)?;
        if remote.is_some() {
            remote::limit();
        }
        let limit = limit(context, args);
        let report = followed(context, limit, |progress| match &remote {
            Some(spec) => dry_pull(&replica, spec, &pulling, &options, progress),
            None => dry_run(&replica, &source, &options, progress),
        })?;
        return print_dry_run(&context.output, &report, started.elapsed());
    }
    let (replica, report) = take(context, args, || context.open_locked())?;
    let later = clock::later(&replica, report.record.source_id)?;
    drop(replica);
    let exit = print_report(&context.output, &report)?;
    Ok(later.map_or(exit, |later| {
        context.output.warn(&later);
        Exit::Attention
    }))
}

/// Returns the context of each source that is meant: of the one that is given, else of those that have tables in the configuration file; nothing when it
/// has none.
pub(crate) fn configured_sources(context: &Context, args: &SnapshotArgs) -> Vec<Context> {
    let is_meant = |source: &&ConfiguredSource| match (&args.source, &context.source) {
        // The table of a source counts for it also where the source is given by hand.
        (Some(location), None) => source.config.location().is_some_and(|own| location == own.as_str()),
        (_, Some(name)) => source.name.as_str() == name,
        (None, None) => true,
    };
    context.file.sources.iter().filter(is_meant).map(|source| context.for_source(source)).collect()
}

/// Returns where the source is that is meant, and refuses arguments that are invalid.
pub(crate) fn source(context: &Context, args: &SnapshotArgs) -> Result<PathBuf, CliError> {
    let configured = || context.config.location().map(OsString::from);
    let location = match (&args.source, &context.source) {
        (Some(location), _) => Some(location.clone()),
        (None, Some(name)) if context.file.of_source(name).is_some() => configured(),
        (None, Some(name)) => known_location(context, name)?.map(OsString::from).or_else(configured),
        (None, None) => configured(),
    };
    let source = location.filter(|source| !source.is_empty()).ok_or_else(|| {
        CliError::Usage(
            "No source is named: give one, or write `source = \"DIR\"` in the configuration file".to_owned(),
        )
    })?;
    if let Some(tag) = args.tag.iter().find(|tag| tag.is_empty() || tag.contains(|c: char| c.is_control() || c == ','))
    {
        return Err(CliError::Usage(format!(
            "The tag `{tag}` is not valid: it must not be empty, or contain commas or control characters"
        )));
    }
    Ok(source.into())
}

/// Returns where a source of the store is.
fn known_location(context: &Context, name: &str) -> Result<Option<String>, CliError> {
    let sources = context.open()?.catalog()?.sources()?;
    Ok(sources.find(name).ok().and_then(|id| sources.get(id)).map(|source| source.location.clone()))
}

/// Takes a snapshot and commits it. The store, which `open` opens when the arguments are valid, stays locked as long as what is returned lives.
pub(crate) fn take(
    context: &Context,
    args: &SnapshotArgs,
    open: impl FnOnce() -> Result<LockedReplica, CliError>,
) -> Result<(LockedReplica, SnapshotReport), CliError> {
    let source = source(context, args)?;
    let options = options(context, args)?;
    let remote = path::remote(source.as_os_str())?;
    let pulling = remote::options(&args.remote, &context.config.remote, args.compress_at)?;
    let mut replica = open()?;
    refuse_if_held(context, args, &replica)?;
    if remote.is_some() {
        remote::limit();
    }
    let report = followed(context, limit(context, args), |progress| match &remote {
        Some(spec) => pull(&replica, spec, &pulling, &options, progress),
        None => take_snapshot(&replica, &source, &options, progress),
    })?;
    if report.record.work.new_chunks > 0 {
        replica.compact_catalog_if_worth(SMALL_CATALOG_BYTES);
    }
    Ok((replica, report))
}

/// Refuses to go on while the store is held, unless that is to be ignored.
fn refuse_if_held(context: &Context, args: &SnapshotArgs, replica: &Replica) -> Result<(), CliError> {
    let result = hold::refuse(replica);
    match result {
        Err(CliError::Held(reason)) if args.ignore_hold => {
            context.output.warn(&format!("{reason}; continuing anyway"));
            Ok(())
        }
        other => other,
    }
}

fn options(context: &Context, args: &SnapshotArgs) -> Result<SnapshotOptions, CliError> {
    let mut options = SnapshotOptions::default();
    options.excludes.extend_from_slice(&context.config.exclude);
    options.excludes.extend_from_slice(&args.exclude);
    options.default_excludes = !args.no_default_excludes;
    options.cross_file_systems = args.all_file_systems;
    options.rescan = args.rescan;
    options.source = context.source.as_deref().map(str::parse).transpose()?;
    options.tags.clone_from(&args.tag);
    if let Some(level) = args.compression_level.or(context.config.compression_level) {
        options.compression.level = level;
    }
    options.compression.dictionary = !args.no_dictionary && context.config.dictionary.unwrap_or(true);
    options.guard = context.config.guard();
    Ok(options)
}

/// Returns how long the run may take.
fn limit(context: &Context, args: &SnapshotArgs) -> Option<Duration> {
    args.max_duration.or(context.config.max_duration.map(|span| span.0)).map(|span| span.0)
}

/// Does `work` while another thread reports progress and waits for signals.
fn followed<T>(
    context: &Context,
    limit: Option<Duration>,
    work: impl FnOnce(&Arc<Progress>) -> Result<T, SnapshotError>,
) -> Result<T, CliError> {
    let interrupt = signals::interrupt_flag()?;
    let progress = Arc::new(Progress::default());
    limit.into_iter().for_each(|span| progress.end_after(span));
    std::thread::scope(|scope| {
        // Closed when this closure ends, a panic of `work` included.
        let (_running, stop) = mpsc::channel();
        let (follower_progress, interrupt) = (Arc::clone(&progress), &*interrupt);
        let follow = move || progress::follow(&context.output, &follower_progress, interrupt, &stop);
        progress::start_follower(scope, follow)?;
        Ok(work(&progress)?)
    })
}

fn exit(problem_count: u64) -> Exit {
    if problem_count == 0 { Exit::Done } else { Exit::Incomplete }
}

/// Reports what the guard found, and what to do about it.
fn print_suspect(output: &Output, record: &SnapshotRecord) {
    for reason in record.suspect_reasons() {
        output.warn(&format!("suspect: {}", reason.text));
    }
    if !record.suspect_reasons().is_empty() {
        let id = record.short_id();
        let before = record.guard.as_ref().and_then(|verdict| verdict.compared_with.as_deref());
        let compare = before.and_then(|id| id.get(..8)).map_or(String::new(), |before| {
            format!("`zmreplica diff {before} {id}` shows what changed; `zmreplica mount {before} DIR` shows it as it was, and `zmreplica restore {before}:PATH DEST` brings it back. ")
        });
        output.note(&format!(
            "The snapshot is kept, and nothing since the last good one is removed. {compare}If the change was intended: `zmreplica accept {id}`."
        ));
    }
}

/// Lists problems: as events on stdout, or on stderr, the first of them unless all are wanted.
fn print_problems(output: &Output, problems: &[RunProblem], problem_count: u64) -> Result<(), CliError> {
    if output.json() {
        for problem in problems {
            let path = text::JsonPath::new(&problem.path);
            output.event(&ProblemEvent { event: "problem", path, message: &problem.message })?;
        }
        return Ok(());
    }
    let listed = if output.verbosity() == Verbosity::Verbose { problems.len() } else { PROBLEMS_LISTED };
    for problem in problems.iter().take(listed) {
        let path = if problem.path.is_empty() { "the source".to_owned() } else { text::escape(&problem.path) };
        output.warn(&format!("{path}: {}", problem.message));
    }
    let rest = problem_count.saturating_sub(problems.len().min(listed) as u64);
    if rest > 0 {
        let hint = if listed == PROBLEMS_LISTED { "; -v or --json lists them" } else { "" };
        output.warn(&format!("{} more{hint}", text::plural(rest, "problem", "problems")));
    }
    Ok(())
}

/// Reports a snapshot and returns how the command ends.
pub(crate) fn print_report(output: &Output, report: &SnapshotReport) -> Result<Exit, CliError> {
    let record = &report.record;
    let exit = if record.suspect_reasons().is_empty() { exit(record.problem_count) } else { Exit::Attention };
    let printed = print_problems(output, &report.problems, record.problem_count).and_then(|()| {
        print_suspect(output, record);
        if output.json() {
            output.event(&SnapshotEvent::new(
                "summary",
                &MarkedSnapshot::fresh(report.number, record),
                report.source.as_str(),
            ))?;
        } else if output.verbosity() > Verbosity::Quiet {
            for line in summary(output, report) {
                output.line(&line)?;
            }
        }
        Ok(output.flush()?)
    });
    match printed {
        // The snapshot is there, whether somebody reads about it or not.
        Err(error) if error.is_broken_pipe() => Ok(exit),
        Err(error) => Err(error),
        Ok(()) => Ok(exit),
    }
}

/// Says in a few lines what a run did.
pub(crate) fn summary(output: &Output, report: &SnapshotReport) -> Vec<String> {
    let (record, totals, work) = (&report.record, &report.record.totals, &report.record.work);
    let excluded = match work.excluded_names {
        0 => String::new(),
        excluded => format!("; {} left out", text::plural(excluded, "name", "names")),
    };
    let (style, problems) = match record.problem_count {
        _ if !record.suspect_reasons().is_empty() => (WARNING, "suspect".to_owned()),
        0 => (GOOD, "complete".to_owned()),
        problems => (WARNING, format!("complete but for {}", text::plural(problems, "problem", "problems"))),
    };
    let mut lines = vec![
        format!(
            "Snapshot {} of {} in {}: {}",
            record.short_id(),
            text::escape(record.source.as_bytes()),
            text::duration(Duration::from_millis(work.elapsed_ms)),
            output.styled(style, &problems),
        ),
        format!(
            "  scanned    {}: {}, {}, {}{excluded}",
            text::plural(totals.names, "name", "names"),
            text::plural(totals.inodes, "inode", "inodes"),
            text::plural(totals.directories, "directory", "directories"),
            text::bytes(totals.bytes),
        ),
        format!(
            "  unchanged  {}; attributes changed of {}",
            text::plural(work.unchanged_inodes, "inode", "inodes"),
            text::count(work.attribute_inodes),
        ),
        format!("  read       {}, {}", text::plural(work.read_files, "file", "files"), text::bytes(work.read_bytes)),
        format!(
            "  new        {}, {}; stored in {} (ratio {})",
            text::plural(work.new_chunks, "chunk", "chunks"),
            text::bytes(work.new_bytes),
            text::bytes(work.stored_bytes),
            text::ratio(work.new_bytes, work.stored_bytes),
        ),
    ];
    if work.connections > 0 && output.verbosity() == Verbosity::Verbose {
        lines.push(format!(
            "  network    {} received, {} sent; {} waited for; {}",
            text::bytes(work.received_bytes),
            text::bytes(work.sent_bytes),
            text::plural(work.round_trips, "round trip", "round trips"),
            text::plural(work.connections, "connection", "connections"),
        ));
    }
    lines
}

fn print_dry_run(output: &Output, report: &DryRun, elapsed: Duration) -> Result<Exit, CliError> {
    let problem_count = report.problems.len() as u64;
    print_problems(output, &report.problems, problem_count)?;
    if output.json() {
        output.event(&DryRunEvent {
            event: "summary",
            dry_run: true,
            names: report.names,
            excluded_names: report.excluded_names,
            unchanged_inodes: report.unchanged_inodes,
            attribute_inodes: report.attribute_inodes,
            read_files: report.read_files,
            read_bytes: report.read_bytes,
            problem_count,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        })?;
    } else if output.verbosity() > Verbosity::Quiet {
        output.line(&format!(
            "Nothing was stored. Of {} ({} left out), {} would be read, {}; attributes changed of {}; {} unchanged.",
            text::plural(report.names, "name", "names"),
            text::count(report.excluded_names),
            text::plural(report.read_files, "file", "files"),
            text::bytes(report.read_bytes),
            text::count(report.attribute_inodes),
            text::plural(report.unchanged_inodes, "inode", "inodes"),
        ))?;
    }
    Ok(exit(problem_count))
}
