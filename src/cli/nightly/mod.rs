//! `zmreplica nightly`: all of a night in one command, for cron or a systemd timer; of each configured source, one after the other.
//!
//! It waits for zmbackup, takes a snapshot, finds out what can be restored, prunes by the configured policy, and then reports the outcome, whatever happened:
//! the log, the metrics, and the hook for the way it ended.

mod event;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::guard::MarkedSnapshot;
use zmreplica::layout::UNFINISHED;
use zmreplica::nightly::last::{LastNight, RunFigures};
use zmreplica::nightly::metrics;
use zmreplica::nightly::quiesce::{Quiesced, change_since, wait};
use zmreplica::nightly::status::Status;
use zmreplica::plain;
use zmreplica::replica::{LockedReplica, Replica, StoreConfig};
use zmreplica::snapshot::options::SnapshotReport;
use zmreplica::snapshot::problems::RunProblem;
use zmreplica::snapshot::pull;
use zmreplica::zimbra::ledger::Summary;

use self::event::{NightEvent, Outcome, SettleEvent, TEXT_BYTES, cut, run_hook};
use super::accounts::night as restorable;
use super::config::{AgeLimit, LogTarget, Span};
use super::error::{CliError, Exit};
use super::log::{Level, Log};
use super::output::Verbosity;
use super::snapshot::SnapshotArgs;
use super::snapshots::SnapshotEvent;
use super::{Context, clock, hold, path, prune, remote, report, signals, snapshot, text};

/// Nothing in `tmp/` must have changed for this long, by default: the longest that zmbackup was seen to write nothing is a minute or so.
const QUIET: Duration = Duration::from_secs(300);
/// Problems that a hook and the log receive by name.
const PROBLEMS_TOLD: usize = 20;

/// Arguments of `nightly`.
#[derive(Args)]
#[command(after_help = "\
Follows the configuration file. Run it from cron or a systemd timer. Without a retention policy nothing is removed. \
While another run holds the store, it waits (`--wait-lock`, one hour by default). \
The exit code is the worst of its parts, in the order 7, 1, 5, 4, 3, 6, 0: 6 while the store is on hold, 5 if the other run did not end. \
Where the configuration file has several tables [[source]], each source has its night, one after the other; --source chooses one.")]
pub(crate) struct NightlyArgs {
    #[command(flatten)]
    snapshot: SnapshotArgs,
    /// Wait for a running zmbackup to finish, at most this long (2h, 90min) [default: `settle` in the configuration file, else do not wait]
    #[arg(long, value_name = "DURATION")]
    settle: Option<Span>,
    /// Consider zmbackup finished when nothing in tmp/ has changed for this long [default: `settle-quiet` in the configuration file, else 5min]
    #[arg(long, value_name = "DURATION")]
    settle_quiet: Option<Span>,
    /// Report that zmbackup seems to have stopped if the newest session that a restore can use is older than this; `off` for no limit [default:
    /// `max-session-age` in the configuration file, else 3d]
    #[arg(long, value_name = "SPAN")]
    max_session_age: Option<AgeLimit>,
    /// Write metrics for Prometheus to this file [default: `metrics` in the configuration file]
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Also log to `journal`, `syslog` or a file [default: `log` in the configuration file]
    #[arg(long, value_name = "WHERE")]
    log: Option<LogTarget>,
}

/// A night under way.
struct Night<'a> {
    context: &'a Context,
    args: &'a NightlyArgs,
    log: Log,
    quiesced: Option<Quiesced>,
    /// How long another run was waited for.
    lock_time: Duration,
    report: Option<SnapshotReport>,
    /// What can be restored from the snapshot.
    restorable: Option<Summary>,
    /// What is wrong with that by itself.
    concerns: Vec<String>,
    snapshot_time: Duration,
    accounts_time: Duration,
    prune_time: Duration,
    /// Whether the prune is part of this night: it is of the last one, for all sources.
    prunes: bool,
    /// Whether the store has a new snapshot of another source.
    follows_another: bool,
    /// Snapshots that the prune removed.
    removed: u64,
    /// How a prune ended that was done although the night failed.
    pruned: Exit,
    /// Why the prune failed, and what to do.
    prune_failure: Option<(String, Option<String>)>,
}

/// How one source's night ended, as JSON.
#[derive(Serialize)]
struct SourceOutcome {
    source_name: Option<String>,
    exit_code: u8,
}

/// How the nights of several sources ended, as JSON.
#[derive(Serialize)]
struct SummaryEvent {
    event: &'static str,
    exit_code: u8,
    sources: Vec<SourceOutcome>,
}

pub(crate) fn run(context: &Context, args: &NightlyArgs) -> Result<Exit, CliError> {
    let several = snapshot::configured_sources(context, &args.snapshot);
    match several.as_slice() {
        [] => one(context, args, true, false),
        [only] => one(only, args, true, false),
        several => all(context, several, args),
    }
}

/// Does the nights of several sources, one after the other, whatever becomes of each.
fn all(context: &Context, sources: &[Context], args: &NightlyArgs) -> Result<Exit, CliError> {
    let mut outcomes = Vec::new();
    let (mut exit, mut follows_another) = (Exit::Done, false);
    for (at, source) in sources.iter().enumerate() {
        let name = source.source.clone();
        context.output.note(&format!("Source {}:", name.as_deref().unwrap_or_default()));
        let result = one(source, args, at + 1 == sources.len(), follows_another);
        let own = result.unwrap_or_else(|error| report(&context.output, &error));
        follows_another |= !matches!(own, Exit::Failed | Exit::Usage | Exit::Locked | Exit::Held);
        exit = worse(exit, own);
        outcomes.push(SourceOutcome { source_name: name, exit_code: own as u8 });
        if signals::interrupt_flag()?.load(Ordering::Relaxed) {
            break;
        }
    }
    if context.output.json() {
        context.output.event(&SummaryEvent { event: "summary", exit_code: exit as u8, sources: outcomes })?;
    }
    Ok(exit)
}

/// Does the night of one source.
fn one(context: &Context, args: &NightlyArgs, prunes: bool, follows_another: bool) -> Result<Exit, CliError> {
    if args.snapshot.dry_run {
        return snapshot::run(context, &args.snapshot);
    }
    let started = Timestamp::now();
    let target = args.log.as_ref().or(context.config.log.as_ref().map(|log| &log.0));
    let log = Log::open(target, context.config.log_mode()).or_else(|error| {
        // A night without a log is better than none.
        context.output.warn(&error.to_string());
        Log::open(None, None)
    })?;
    let nothing = Duration::ZERO;
    let mut night = Night {
        context,
        args,
        log,
        quiesced: None,
        lock_time: nothing,
        report: None,
        restorable: None,
        concerns: Vec::new(),
        snapshot_time: nothing,
        accounts_time: nothing,
        prune_time: nothing,
        prunes,
        follows_another,
        removed: 0,
        pruned: Exit::Done,
        prune_failure: None,
    };
    // Nothing of the night is used after a panic but what it has gathered.
    let result = catch_unwind(AssertUnwindSafe(|| night.work()));
    let result = result.unwrap_or(Err(CliError::Panic { during_check: false }));
    night.report_end(started, &result);
    match result {
        Err(error) if worse(error.exit(), night.pruned) != error.exit() => {
            report(&context.output, &error);
            Ok(night.pruned)
        }
        result => result,
    }
}

impl Night<'_> {
    fn work(&mut self) -> Result<Exit, CliError> {
        match self.take() {
            Ok((mut replica, exit)) if self.prunes => {
                let pruned = self.prune(&mut replica);
                Ok(worse(exit, pruned))
            }
            Ok((_, exit)) => Ok(exit),
            Err(error) => {
                // The other sources' snapshots are there, and what they let go must not wait for this one.
                if self.prunes && self.follows_another {
                    match self.context.open_locked() {
                        Ok(mut replica) => self.pruned = self.prune(&mut replica),
                        Err(other) => self.warn(&format!("Nothing was pruned: {}", other.in_one_line())),
                    }
                }
                Err(error)
            }
        }
    }

    /// Takes the snapshot and finds out what can be restored from it. The store stays locked as long as what is returned lives.
    fn take(&mut self) -> Result<(LockedReplica, Exit), CliError> {
        let (context, args) = (self.context, self.args);
        let source = snapshot::source(context, &args.snapshot)?;
        // Before the waiting, which may take hours; and once more when the store is locked.
        if !args.snapshot.ignore_hold {
            hold::refuse(&context.open()?)?;
        }
        self.log(Level::Info, &format!("Nightly run of {} into {}", source.display(), context.store()?.display()));
        self.wait_for_zmbackup(&source)?;
        let clock = Instant::now();
        let mut opening_time = Duration::ZERO;
        let taken = snapshot::take(context, &args.snapshot, || {
            let clock = Instant::now();
            let opened = self.open_locked(&source);
            opening_time = clock.elapsed();
            opened
        });
        self.snapshot_time = clock.elapsed().saturating_sub(opening_time);
        // Locked to the end, so that no prune removes what is looked at here.
        let (replica, report) = taken?;
        let exit = snapshot::print_report(&context.output, &report);
        self.log_report(&report);
        let clock = Instant::now();
        let found = self.find_out(&replica, &report);
        self.accounts_time = clock.elapsed();
        self.report = Some(report);
        let found = worse(found, self.doubt_clock(&replica));
        Ok((replica, worse(exit?, found)))
    }

    /// Prunes by the configured rules, and returns how that ended.
    fn prune(&mut self, replica: &mut LockedReplica) -> Exit {
        let clock = Instant::now();
        let pruned = prune::by_configuration(self.context, replica, self.args.snapshot.ignore_hold);
        self.prune_time = clock.elapsed();
        pruned.map(|pruned| self.log_pruned(pruned)).unwrap_or_else(|error| {
            // The snapshot is there, and what was found in it counts too.
            let text = format!("Nothing more was pruned: {error}");
            self.warn(&format!("Nothing more was pruned: {}", error.in_one_line()));
            let exit = if error.exit() == Exit::Held { Exit::Attention } else { error.exit() };
            self.prune_failure = Some((text, error.hint()));
            exit
        })
    }

    /// Finds out what can be restored from the snapshot and reports it. A failure to do so is reported too, but does not end the night: the snapshot is there.
    fn find_out(&mut self, replica: &Replica, report: &SnapshotReport) -> Exit {
        match restorable::find_out(replica, &report.record) {
            Ok(None) => Exit::Done,
            Ok(Some(found)) => {
                for (name, line) in
                    [("accounts", restorable::accounts_line(&found)), ("sessions", restorable::sessions_line(&found))]
                {
                    let line = format!("  {name:<10} {line}");
                    let output = &self.context.output;
                    if !output.json() && output.verbosity() > Verbosity::Quiet {
                        // Whoever reads it may have gone away; the night goes on.
                        let _ = output.line(&line);
                    }
                    self.log(Level::Info, &line);
                }
                let mut exit = Exit::Done;
                if let Some(text) = restorable::lost_something(&found) {
                    self.warn(&text);
                    exit = Exit::Attention;
                }
                let limit = self.max_session_age();
                for concern in found.concerns(limit) {
                    let sentence = restorable::concern_sentence(&concern, limit);
                    self.warn(&sentence);
                    self.concerns.push(sentence);
                    exit = Exit::Attention;
                }
                if let Some(error) = &found.store_error {
                    self.warn(&format!(
                        "a part of the store could not be read: {}; run `zmreplica check` for details",
                        error.text
                    ));
                    exit = if error.is_damage { Exit::Damage } else { Exit::Attention };
                }
                self.restorable = Some(found);
                exit
            }
            Err(error) => {
                self.warn(&format!("What can be restored could not be determined: {}", error.in_one_line()));
                if error.exit() == Exit::Damage { Exit::Damage } else { Exit::Attention }
            }
        }
    }

    fn max_session_age(&self) -> Option<Duration> {
        self.context.config.max_session_age(self.args.max_session_age)
    }

    /// Warns of a clock in doubt: then the prune removes nothing.
    fn doubt_clock(&mut self, replica: &Replica) -> Exit {
        let doubts = clock::doubts(replica).unwrap_or_else(|error| {
            vec![format!("Whether the clock is plausible could not be determined: {}", error.in_one_line())]
        });
        for doubt in &doubts {
            self.warn(doubt);
        }
        if doubts.is_empty() { Exit::Done } else { Exit::Attention }
    }

    /// Adds to "all went well" what does not look so, though it is no news.
    fn not_up_to_date(&self) -> String {
        let Some(counts) = self.restorable.as_ref().map(|found| found.counts) else { return String::new() };
        match counts.accounts - counts.up_to_date {
            0 => String::new(),
            count => format!("; {} up to date", text::plural(count, "account is not", "accounts are not")),
        }
    }

    /// Logs what was removed; stdout has it already.
    fn log_pruned(&mut self, pruned: Option<prune::Pruned>) -> Exit {
        if let Some(prune::Pruned { removed, deleted_bytes, .. }) = pruned {
            for line in &removed {
                self.log(Level::Info, &format!("Removed the snapshot {line}"));
            }
            let snapshots = text::plural(removed.len() as u64, "snapshot", "snapshots");
            self.log(Level::Info, &format!("Pruned {snapshots}, deleted packs of {}", text::bytes(deleted_bytes)));
            self.removed = removed.len() as u64;
        }
        Exit::Done
    }

    fn warn(&mut self, text: &str) {
        self.context.output.warn(text);
        self.log(Level::Warning, text);
    }

    /// Opens the store when no other run holds it. zmbackup may have started while another run was waited for: then it is waited for too, without the lock.
    fn open_locked(&mut self, source: &Path) -> Result<LockedReplica, CliError> {
        let context = self.context;
        loop {
            let clock = Instant::now();
            let opened = context.open_locked_saying(&mut |text| self.say(text));
            let waited = opened.as_ref().map_or_else(|_| clock.elapsed(), LockedReplica::waited);
            self.lock_time += waited;
            let replica = opened?;
            if waited.is_zero() {
                return Ok(replica);
            }
            self.say(&format!("Waited {} for the other run", text::duration(waited)));
            if self.settle_left().is_zero() || self.quiesce(source, Duration::ZERO)?.quiet {
                return Ok(replica);
            }
            drop(replica);
            self.wait_for_zmbackup(source)?;
        }
    }

    /// How long zmbackup may still be waited for.
    fn settle_left(&self) -> Duration {
        let limit = self.args.settle.or(self.context.config.settle.map(|span| span.0));
        let waited = self.quiesced.map_or(Duration::ZERO, |quiesced| quiesced.waited);
        limit.map_or(Duration::ZERO, |span| span.0.saturating_sub(waited))
    }

    /// How long nothing must have changed in tmp/.
    fn settle_quiet(&self) -> Duration {
        self.args.settle_quiet.or(self.context.config.settle_quiet.map(|span| span.0)).map_or(QUIET, |span| span.0)
    }

    /// Waits for a running zmbackup, if that is wanted.
    fn wait_for_zmbackup(&mut self, source: &Path) -> Result<(), CliError> {
        let limit = self.settle_left();
        if limit.is_zero() {
            return Ok(());
        }
        let mut quiesced = self.quiesce(source, limit)?;
        let waited = text::duration(quiesced.waited);
        quiesced.waited += self.quiesced.map_or(Duration::ZERO, |before| before.waited);
        self.quiesced = Some(quiesced);
        if quiesced.quiet {
            let quiet = text::duration(self.settle_quiet());
            self.say(&format!("Waited {waited} until nothing in tmp/ had changed for {quiet}"));
        } else {
            let text = format!("zmbackup was still writing to tmp/ after {waited}; the snapshot is taken anyway");
            self.warn(&text);
        }
        Ok(())
    }

    /// Waits until nothing in tmp/ has changed for long enough, at most `limit`.
    fn quiesce(&self, source: &Path, limit: Duration) -> Result<Quiesced, CliError> {
        let config = &self.context.config;
        let interrupt = signals::interrupt_flag()?;
        let interrupted = || interrupt.load(Ordering::Relaxed);
        let remote = path::remote(source.as_os_str())?;
        let options = remote::options(&self.args.snapshot.remote, &config.remote, None)?;
        let change = |since| match &remote {
            None => change_since(source, since),
            Some(spec) => {
                for directory in UNFINISHED {
                    let changed =
                        pull::change_since(spec, &options, directory, since).map_err(std::io::Error::other)?;
                    if changed.is_some() {
                        return Ok(changed);
                    }
                }
                Ok(None)
            }
        };
        let quiesced = wait(change, self.settle_quiet(), limit, interrupted)
            .map_err(|error| CliError::Failed(format!("The source {} cannot be read: {error}", source.display())))?;
        if interrupted() {
            return Err(CliError::Failed("Interrupted while waiting for zmbackup. Nothing was done".to_owned()));
        }
        Ok(quiesced)
    }

    fn say(&mut self, text: &str) {
        self.context.output.note(text);
        self.log(Level::Info, text);
    }

    fn log(&mut self, level: Level, text: &str) {
        if let Some(problem) = self.log.line(level, text) {
            self.context.output.warn(&problem);
        }
    }

    fn log_report(&mut self, report: &SnapshotReport) {
        for problem in report.problems.iter().take(PROBLEMS_TOLD) {
            self.log(Level::Warning, &format!("{}: {}", text::escape(&problem.path), problem.message));
        }
        for reason in report.record.suspect_reasons() {
            self.log(Level::Warning, &format!("suspect: {}", reason.text));
        }
        for line in snapshot::summary(&self.context.output, report) {
            self.log(Level::Info, &line);
        }
    }

    /// Reports how the night ended: to the log, the metrics, the hook, stdout.
    fn report_end(&mut self, started: Timestamp, result: &Result<Exit, CliError>) {
        let context = self.context;
        let (exit, message, hint) = match result {
            Ok(exit) => match &self.prune_failure {
                Some((text, hint)) => (*exit, format!("{}. {text}", ended(*exit)), hint.clone()),
                // An alarm that goes on is reported where it is read first.
                None => match self.concerns.first() {
                    Some(concern) => (*exit, format!("{}. {concern}", ended(*exit)), None),
                    None => (*exit, format!("{}{}", ended(*exit), self.not_up_to_date()), None),
                },
            },
            Err(error) => {
                let pruned = self.prune_failure.as_ref().map_or(String::new(), |(text, _)| format!(". {text}"));
                (worse(error.exit(), self.pruned), format!("{error}{pruned}"), error.hint())
            }
        };
        let (message, hint) = (plain::short(&message, TEXT_BYTES), hint.map(|hint| plain::short(&hint, TEXT_BYTES)));
        let outcome = Outcome::of(exit);
        let level = match outcome {
            Outcome::Success => Level::Info,
            Outcome::Warning => Level::Warning,
            Outcome::Failure => Level::Error,
        };
        self.log(level, &message);
        let finished = Timestamp::now();
        let location = match &self.report {
            Some(report) => Some(report.record.source.clone()),
            None => snapshot::source(context, &self.args.snapshot).ok().map(|source| {
                let given = source.display().to_string();
                path::canonical_location(source.as_os_str()).unwrap_or(given)
            }),
        };
        let known = || {
            let sources = context.open().ok()?.catalog().ok()?.sources().ok()?;
            let by_name = context.source.as_deref().and_then(|name| sources.by_name(name));
            by_name.or_else(|| sources.by_location(location.as_deref()?))
        };
        let mut last = LastNight {
            source_id: self.report.as_ref().map_or_else(known, |report| report.record.source_id),
            location: location.as_deref().map(|location| plain::short(location, TEXT_BYTES)),
            finished,
            exit_code: exit as u8,
            message: message.clone(),
            figures: None,
        };
        let is_newer = |store: &Path| StoreConfig::read(store).is_err_and(|error| error.is_newer());
        // Where a store is that this version knows, and only there; that it cannot be noted is no news on a full disk.
        let store = context.store().ok().filter(|store| !is_newer(store));
        if let Some(store) = store {
            last.clone().save(store);
        }
        // A store that cannot be opened is part of what is reported, by what is missing.
        let gather = || Status::gather(&context.open().ok()?, finished).ok();
        let status = gather();
        let judged = self.report.as_ref().map(|report| MarkedSnapshot::fresh(report.number, &report.record));
        let problems = self.report.iter().flat_map(|report| &report.problems).take(PROBLEMS_TOLD);
        let problems: Vec<RunProblem> = problems.map(cut).collect();
        let taken_name = self.report.as_ref().map(|report| report.source.as_str());
        let known = status.iter().flat_map(|status| &status.sources);
        let known = || known.clone().find(|one| Some(&one.source) == location.as_ref()).map(|one| one.name.as_str());
        let source_name = taken_name.or(context.source.as_deref()).or_else(known);
        let event = NightEvent {
            event: "nightly",
            outcome,
            exit_code: exit as u8,
            message: &message,
            hint: hint.as_deref(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            store: context.store().ok().map(|store| store.display().to_string()),
            source: location,
            source_name,
            started,
            finished,
            settle: self.quiesced.map(|quiesced| SettleEvent {
                waited_ms: u64::try_from(quiesced.waited.as_millis()).unwrap_or(u64::MAX),
                quiet: quiesced.quiet,
            }),
            lock_wait_ms: u64::try_from(self.lock_time.as_millis()).unwrap_or(u64::MAX),
            snapshot: judged
                .as_ref()
                .zip(taken_name)
                .map(|(judged, name)| SnapshotEvent::new("snapshot", judged, name)),
            problems: &problems,
            restorable: self.restorable.as_ref(),
            concerns: &self.concerns,
            removed_snapshots: self.removed,
            suspects: status.as_ref().map(|status| status.suspects.len()),
            version: env!("CARGO_PKG_VERSION"),
        };
        let hooks = &context.config.hooks;
        let hook = match outcome {
            Outcome::Success => &hooks.on_success,
            Outcome::Warning => &hooks.on_warning,
            Outcome::Failure => &hooks.on_failure,
        };
        // Commands of the hook are then about this source, if the store knows it.
        let is_known = |name: &&str| status.iter().flat_map(|status| &status.sources).any(|one| one.name == *name);
        let hook_source = source_name.filter(is_known);
        let hook_problem = hook.as_ref().and_then(|hook| run_hook(hook, &event, hook_source));
        if context.output.json() {
            // Whoever reads it may have gone away; the night is over all the same.
            let _ = context.output.event(&event);
        }
        last.figures = Some(RunFigures {
            started,
            settle_seconds: self.quiesced.map_or(0.0, |quiesced| quiesced.waited.as_secs_f64()),
            lock_seconds: self.lock_time.as_secs_f64(),
            snapshot_seconds: self.snapshot_time.as_secs_f64(),
            accounts_seconds: self.accounts_time.as_secs_f64(),
            prune_seconds: self.prune_time.as_secs_f64(),
            hook_failed: hook_problem.is_some(),
        });
        if let Some(store) = store {
            last.clone().save(store);
        }
        let mut problems: Vec<String> = hook_problem.into_iter().collect();
        if let Some(file) = self.args.metrics.as_ref().or(context.config.metrics.as_ref()) {
            let status = gather();
            let name = source_name.map(str::to_owned).or_else(|| last.location.clone()).unwrap_or_default();
            let own = (name, last);
            let mut nights: Vec<&(String, LastNight)> = status.iter().flat_map(|status| &status.nights).collect();
            // Of a store that cannot be opened this night is all that is known.
            nights.retain(|night| night.0 != own.0);
            nights.push(&own);
            let page = metrics::render(&nights, status.as_ref(), |source| context.age_limits(source).session);
            if let Err(error) = metrics::write(file, &page, context.config.metrics_mode()) {
                problems.push(format!("The metrics cannot be written to {}: {error}", file.display()));
            }
        }
        for problem in problems {
            context.output.warn(&problem);
            self.log(Level::Error, &problem);
        }
    }
}

/// Returns the code that matters more.
fn worse(left: Exit, right: Exit) -> Exit {
    use Exit::{Attention, Damage, Failed, Held, Incomplete, Locked, Usage};
    let order = [Damage, Failed, Usage, Locked, Attention, Incomplete, Held];
    order.into_iter().find(|exit| [left, right].contains(exit)).unwrap_or(Exit::Done)
}

fn ended(exit: Exit) -> &'static str {
    match exit {
        Exit::Done => "All went well",
        Exit::Incomplete => "The snapshot was taken, but some files could not be read",
        Exit::Attention => "The snapshot was taken, and something needs attention",
        Exit::Damage => "Damage was found",
        Exit::Failed | Exit::Usage | Exit::Locked | Exit::Held => "The night failed",
    }
}
