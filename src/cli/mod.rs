//! The command line: it owns the terminal, the hints and the exit codes. One file per command.
//!
//! stdout is data, stderr is talk. Errors of the library become exit codes and hints in one place, [`error`].

mod accept;
mod accounts;
mod agent;
mod cat;
mod check;
mod clock;
mod completions;
mod config;
mod destination;
mod diff;
mod drill;
mod error;
mod find;
mod forget;
mod history;
mod hold;
mod init;
mod leased;
mod log;
mod ls;
mod mount;
mod nightly;
mod output;
mod path;
mod pin;
mod policies;
mod progress;
mod prune;
mod remote;
mod repair;
mod report;
mod restore;
mod sessions;
mod signals;
mod snapshot;
mod snapshots;
mod source;
mod stats;
mod status;
mod table;
mod text;
mod trace;
mod umount;

use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use zmreplica::access::{self, Width};
use zmreplica::catalog::reader::CatalogReader;
use zmreplica::nightly::status::{AgeLimits, MAX_AGE};
use zmreplica::plain;
use zmreplica::replica::{LockWait, LockedReplica, Replica, ReplicaError};
use zmreplica::view::Snapshots;

use config::{Config, ConfiguredSource, Span};
use error::{CliError, Exit};
use output::{ErrorEvent, Output, Verbosity};

/// How long `nightly` waits for another run by default: two that a timer starts at the same time do their work one after the other.
const NIGHTLY_WAIT: Duration = Duration::from_secs(3600);

/// Environment variable that names the store.
const STORE_VARIABLE: &str = "ZMREPLICA_STORE";
/// Environment variable that names the source.
const SOURCE_VARIABLE: &str = "ZMREPLICA_SOURCE";

const AFTER_HELP: &str = "\
SNAP is `latest`, the id of a snapshot or an unambiguous prefix of it, or a time (2026-11-22, 2026-11-22T03:00), which selects the newest snapshot taken at or before it. \
In a store with several sources, write SOURCE/latest and SOURCE/2026-11-22, or choose one with --source.

Exit codes: 0 success; 1 failure; 2 invalid usage; 3 finished, but some files could not be read or written; \
4 finished, but something needs attention; 5 another run has locked the store; 6 the store is on hold; 7 damage found. \
Treat any other code as a failure.";

/// Keeps a replica of a Zimbra backup tree as immutable, deduplicated snapshots.
#[derive(Parser)]
#[command(name = "zmreplica", version, about, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Args)]
struct GlobalArgs {
    /// Directory of the store [env: ZMREPLICA_STORE; else `store` in the configuration file]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Configuration file [env: ZMREPLICA_CONFIG; default: /etc/zmreplica.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The source that is meant, in a store with several [env: ZMREPLICA_SOURCE]
    #[arg(id = "source-name", long = "source", global = true, value_name = "NAME")]
    source: Option<String>,
    /// Write JSON to stdout, one object per line
    #[arg(long, global = true)]
    json: bool,
    /// Wait at most this long for another run to release the store (90s, 1h) [default: `wait-lock` in the configuration file, else 1h for `nightly`, 0 for
    /// others]
    #[arg(long, global = true, value_name = "DURATION")]
    wait_lock: Option<Span>,
    /// Print problems and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more: every problem, progress even without a terminal, and each step. Repeat it to include storage and remote calls
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Create a store
    Init(init::InitArgs),
    /// Take one snapshot of the source and commit it
    Snapshot(snapshot::SnapshotArgs),
    /// List the snapshots
    Snapshots(snapshots::SnapshotsArgs),
    /// Name sources, and change where they are
    Source(source::SourceArgs),
    /// List a directory in a snapshot
    Ls(ls::LsArgs),
    /// Write a file from a snapshot to stdout
    Cat(cat::CatArgs),
    /// Find paths that match a pattern, in one snapshot or in all
    Find(find::FindArgs),
    /// Show every version of a path over all snapshots
    History(history::HistoryArgs),
    /// Show the differences between two snapshots
    Diff(diff::DiffArgs),
    /// Restore a directory or a file from a snapshot
    Restore(restore::RestoreArgs),
    /// Mount one snapshot, or all of them, as an ordinary directory tree
    Mount(mount::MountArgs),
    /// Unmount a snapshot
    Umount(umount::UmountArgs),
    /// Accept suspect snapshots as good
    Accept(accept::AcceptArgs),
    /// Protect a snapshot from ever being removed
    Pin(pin::PinArgs),
    /// Stop protecting a snapshot
    Unpin(pin::UnpinArgs),
    /// Pause all runs: nothing is stored or removed until the hold is released
    Hold(hold::HoldArgs),
    /// Release a hold
    Release(hold::ReleaseArgs),
    /// Run the whole nightly job: wait for zmbackup, take a snapshot, prune, report
    Nightly(nightly::NightlyArgs),
    /// Report in ten lines whether the replica is healthy
    Status(status::StatusArgs),
    /// Remove snapshots that no rule keeps, and the data that only they need
    Prune(prune::PruneArgs),
    /// Remove certain snapshots, and the data that only they need
    Forget(forget::ForgetArgs),
    /// Report what can be restored for each account
    Accounts(accounts::AccountsArgs),
    /// List the backup sessions in a snapshot, and those that have vanished
    Sessions(sessions::SessionsArgs),
    /// Rehearse restores: mount a snapshot and read everything that restoring some accounts would read
    Drill(drill::DrillArgs),
    /// Write an HTML report about the store: nights, growth, sessions, accounts
    Report(report::ReportArgs),
    /// Verify the store
    Check(check::CheckArgs),
    /// Rebuild the catalogue, salvage damaged packs, and report what is lost
    Repair(repair::RepairArgs),
    /// Show what the store holds and how much space it saves
    Stats(stats::StatsArgs),
    /// Serve a run on another host (started over SSH, not by hand)
    Agent(agent::AgentArgs),
    /// Inspect the configuration file
    Config(config::ConfigArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// What a command works with.
struct Context {
    output: Arc<Output>,
    /// The settings that count: those of the source, if it has a table of its own.
    config: Config,
    /// The whole configuration file.
    file: Arc<Config>,
    store: Option<PathBuf>,
    /// How long to wait for another run to release the store.
    wait_lock: Duration,
    /// The source that is meant, by its name or its location.
    source: Option<String>,
    /// What the program was called with, without its own name.
    arguments: Vec<OsString>,
}

impl Context {
    /// Returns the store's directory, or says how to name one.
    fn store(&self) -> Result<&Path, CliError> {
        self.store.as_deref().ok_or(CliError::NoStore)
    }

    /// Reads the snapshots of a store, and chooses the source that is meant.
    fn snapshots(&self, catalog: &CatalogReader) -> Result<Snapshots, CliError> {
        let snapshots = Snapshots::read(catalog)?;
        if let Err(error) = catalog.sources() {
            // What there is can be read all the same.
            self.output.warn(&format!("The names of sources are not known: {error}. `zmreplica repair` restores them"));
        }
        Ok(match &self.source {
            Some(source) => snapshots.choose(source)?,
            None => snapshots,
        })
    }

    /// Returns how old snapshots and sessions of a source may be, as far as the configuration says.
    fn age_limits(&self, source: &str) -> AgeLimits {
        let config = self.file.of_source(source).unwrap_or(&self.file);
        AgeLimits { snapshot: config.max_age.map_or(MAX_AGE, |age| age.0.0), session: config.max_session_age(None) }
    }

    /// Returns the context for a source that has a table in the configuration file.
    fn for_source(&self, source: &ConfiguredSource) -> Context {
        Context {
            output: Arc::clone(&self.output),
            config: source.config.clone(),
            file: Arc::clone(&self.file),
            store: self.store.clone(),
            wait_lock: self.wait_lock,
            source: Some(source.name.to_string()),
            arguments: self.arguments.clone(),
        }
    }

    /// Opens the store for reading.
    fn open(&self) -> Result<Replica, CliError> {
        let replica = Replica::open(self.store()?)?;
        self.narrow(replica.path());
        Ok(replica)
    }

    /// Closes the store to others than its owner, and says so if it was open to them.
    fn narrow(&self, store: &Path) {
        let shown = store.display();
        match access::narrow(store) {
            Width::Private => {}
            Width::Narrowed(mode) => self.output.warn(&format!(
                "Other users had access to the store {shown} (mode {mode:04o}); now only its owner has"
            )),
            Width::Wide(mode) => self.output.warn(&format!(
                "Other users have access to the store {shown} (mode {mode:04o}), which holds mail, and this command cannot change that. On a file system without modes, mount it with umask=077; otherwise run `chmod -R go-rwx {}` as its owner",
                plain::quoted(&shown.to_string())
            )),
        }
    }

    /// Opens the store for writing, and reports if an earlier run left something to finish.
    fn open_locked(&self) -> Result<LockedReplica, CliError> {
        self.open_locked_saying(&mut |text| self.output.note(text))
    }

    /// Returns the identifiers of the snapshots that names stand for now. To be called before the lock is taken: `latest` is what was there when the command
    /// was given, and not what the run took that was waited for.
    fn ids<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, CliError> {
        let snapshots = self.snapshots(&self.open()?.catalog()?)?;
        names.into_iter().map(|name| Ok(snapshots.resolve(name)?.record.id.clone())).collect()
    }

    /// Lets `work` wait for another run to end, as long as that is wanted; `say` reports it.
    fn waiting<T>(
        &self,
        say: &mut dyn FnMut(&str),
        work: impl FnOnce(LockWait<'_>) -> Result<T, ReplicaError>,
    ) -> Result<T, CliError> {
        let limit = self.wait_lock;
        // Where nothing is waited for, signals keep their usual effect.
        let interrupt = if limit.is_zero() { Arc::default() } else { signals::interrupt_flag()? };
        let mut begins = |locked: &ReplicaError| {
            if let ReplicaError::Locked { path, holder } = locked {
                let limit = text::duration(limit);
                say(&format!("Another run holds the store {path}{holder}. Waiting for it to end, at most {limit}."));
            }
        };
        Ok(work(LockWait { limit, interrupt: &interrupt, begins: &mut begins })?)
    }

    /// Opens the store for writing, as [`open_locked`](Context::open_locked) does; `say` reports that another run is waited for.
    fn open_locked_saying(&self, say: &mut dyn FnMut(&str)) -> Result<LockedReplica, CliError> {
        let store = self.store()?;
        let replica = self.waiting(say, |wait| LockedReplica::open_after(store, wait))?;
        self.narrow(replica.path());
        if let Some(from) = replica.raised_from() {
            self.output.warn(&text::raised(from, replica.config().format, &replica.added_features()));
        }
        match replica.recovered_commits() {
            0 => {}
            1 => self.output.note("The last run ended after it wrote its commit file; its commit has been completed."),
            many => {
                self.output.note(&format!("{many} commits were only in commit files; they are now in the catalogue."))
            }
        }
        Ok(replica)
    }
}

/// Runs the program and returns its exit code.
pub(crate) fn main() -> ExitCode {
    zmreplica::limits::raise_open_files();
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(reason) => {
            let output = Output::new(false, Verbosity::Normal);
            return report(&output, &CliError::Usage(reason)).into();
        }
    };
    let wants_json = arguments.iter().any(|argument| argument == OsStr::new("--json"));
    let whole = std::iter::once(OsString::from("zmreplica")).chain(arguments.iter().cloned());
    let cli = match Cli::try_parse_from(whole) {
        Ok(cli) => cli,
        Err(error) => return usage_answer(&error, wants_json).into(),
    };
    let verbosity = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, 0) => Verbosity::Normal,
        _ => Verbosity::Verbose,
    };
    let output = Output::new(cli.global.json, verbosity);
    if let Err(error) = trace::start(cli.global.verbose) {
        return report(&output, &error).into();
    }
    let is_check = matches!(cli.command, Command::Check(_));
    hold_back_panics(is_check);
    if let Command::Config(args) = &cli.command {
        // A configuration that is not valid must not keep it from being checked.
        let result = config::run(&output, &cli.global, args);
        let flushed = |exit| output.flush().map(|()| exit).map_err(CliError::Output);
        return result.and_then(flushed).unwrap_or_else(|error| report(&output, &error)).into();
    }
    let usual_wait = if matches!(cli.command, Command::Nightly(_)) { NIGHTLY_WAIT } else { Duration::ZERO };
    let given_wait = cli.global.wait_lock;
    let context = match configure(cli.global) {
        Ok((config, store, source)) => {
            let wait = given_wait.or(config.wait_lock.map(|span| span.0));
            let wait_lock = wait.map_or(usual_wait, |span| span.0);
            let file = Arc::new(config);
            let config = source.as_deref().and_then(|name| file.of_source(name)).unwrap_or(&file).clone();
            Context { output: Arc::new(output), config, file, store, wait_lock, source, arguments }
        }
        Err(error) => return report(&output, &error).into(),
    };
    // Nothing of the context is used after a panic but its output, whose lock survives one.
    let result = catch_unwind(AssertUnwindSafe(|| run(cli.command, &context)));
    let exit = match result {
        Ok(Ok(exit)) => match context.output.flush() {
            Ok(()) => exit,
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit,
            Err(error) => report(&context.output, &CliError::Output(error)),
        },
        Ok(Err(error)) => report(&context.output, &error),
        Err(_) => report(&context.output, &CliError::Panic { during_check: is_check }),
    };
    exit.into()
}

/// Returns the arguments of the program. Under a name such as `mount.fuse.zmreplica` it is mount(8) that calls, in its own words.
fn arguments() -> Result<Vec<OsString>, String> {
    let mut all = std::env::args_os();
    let name = all.next().unwrap_or_default();
    let arguments: Vec<OsString> = all.collect();
    let is_helper = Path::new(&name).file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mount."));
    if is_helper { mount::from_mount_helper(&arguments) } else { Ok(arguments) }
}

/// Loads the configuration and finds out which store and which source are meant.
fn configure(global: GlobalArgs) -> Result<(Config, Option<PathBuf>, Option<String>), CliError> {
    let config = config::load(global.config.as_deref())?;
    let from_environment = || std::env::var_os(STORE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let store = global.store.or_else(from_environment).or_else(|| config.store.clone());
    let source = global.source.or_else(|| std::env::var(SOURCE_VARIABLE).ok()).filter(|source| !source.is_empty());
    Ok((config, store, source))
}

fn run(command: Command, context: &Context) -> Result<Exit, CliError> {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Snapshot(args) => snapshot::run(context, &args),
        Command::Snapshots(args) => snapshots::run(context, &args),
        Command::Source(args) => source::run(context, &args),
        Command::Ls(args) => ls::run(context, &args),
        Command::Cat(args) => cat::run(context, &args),
        Command::Find(args) => find::run(context, &args),
        Command::History(args) => history::run(context, &args),
        Command::Diff(args) => diff::run(context, &args),
        Command::Restore(args) => restore::run(context, &args),
        Command::Mount(args) => mount::run(context, &args),
        Command::Umount(args) => umount::run(context, &args),
        Command::Accept(args) => accept::run(context, &args),
        Command::Pin(args) => pin::pin(context, &args),
        Command::Unpin(args) => pin::unpin(context, &args),
        Command::Hold(args) => hold::hold(context, &args),
        Command::Release(args) => hold::release(context, &args),
        Command::Nightly(args) => nightly::run(context, &args),
        Command::Status(args) => status::run(context, &args),
        // Done before the configuration is loaded.
        Command::Config(_) => Ok(Exit::Done),
        Command::Prune(args) => prune::run(context, &args),
        Command::Forget(args) => forget::run(context, &args),
        Command::Accounts(args) => accounts::run(context, &args),
        Command::Sessions(args) => sessions::run(context, &args),
        Command::Drill(args) => drill::run(context, &args),
        Command::Report(args) => report::run(context, &args),
        Command::Check(args) => check::run(context, &args),
        Command::Repair(args) => repair::run(context, &args),
        Command::Stats(args) => stats::run(context, &args),
        Command::Agent(args) => agent::run(&args),
        Command::Completions(args) => completions::run(context, &args),
    }
}

/// Answers a command line that was not understood, or that requested help.
fn usage_answer(error: &clap::Error, json: bool) -> Exit {
    let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
    // A closed stdout or stderr is no reason to fail differently.
    let _ = error.print();
    if json && exit != Exit::Done {
        let message = error.render().to_string();
        let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let output = Output::new(true, Verbosity::Normal);
        let _ = output.event(&ErrorEvent { message, hint: None, exit_code: exit as u8 });
        let _ = output.flush();
    }
    exit
}

/// Reports an error and returns its exit code.
fn report(output: &Output, error: &CliError) -> Exit {
    if error.is_broken_pipe() {
        return Exit::Done;
    }
    let (exit, message, hint) = (error.exit(), error.to_string(), error.hint());
    if output.json() {
        let _ = output.event(&ErrorEvent { message: &message, hint: hint.as_deref(), exit_code: exit as u8 });
    }
    let _ = output.flush();
    output.error(&message, hint.as_deref());
    exit
}

/// Lets a panic of any thread be one line on stderr, or none where it becomes part of a report; RUST_BACKTRACE shows all
/// of it.
fn hold_back_panics(silent: bool) {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            standard(info);
            return;
        }
        // What redb says of a damaged page becomes an error.
        if silent || zmreplica::catalog::redb_call::is_catching() {
            return;
        }
        let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message").lines().next().unwrap_or_default().to_owned();
        output::stderr_line(&format!("zmreplica: internal error{place}: {text}"));
    }));
}
