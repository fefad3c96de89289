//! `zmreplica drill`: mounts a snapshot, and reads all that restores of some accounts would read.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::lease::Lease;
use zmreplica::mount::{MountRequest, Owners, check_place, start};
use zmreplica::replica::Replica;
use zmreplica::view::{Readers, SnapshotView, Snapshots, StoredSnapshot, ViewOptions};
use zmreplica::zimbra::Analysis;
use zmreplica::zimbra::account::{Account, AccountState, Fault, RestoreState};
use zmreplica::zimbra::drill::{DrillFaultKind, Drilled, Driller};
use zmreplica::zimbra::ledger::Ledger;
use zmreplica::zimbra::plan::plan;

use super::error::{CliError, Exit};
use super::leased::{Leased, leased};
use super::{Context, text};

/// Accounts that are drilled when nothing else is said.
const USUAL_SAMPLE: usize = 10;
/// Bytes of decompressed chunks that the mount keeps.
const CACHE_BYTES: u64 = 32 << 20;
/// Faults of one account that are listed without -v.
const FAULTS_LISTED: usize = 5;

/// Arguments of `drill`.
#[derive(Args)]
#[command(after_help = "\
Mounts the snapshot at a directory of its own, and reads every byte of every file that restoring the account to its newest time would read. Messages are checked \
against the digests in their names. Each snapshot gets a new random sample.

Exit codes: 4 an account cannot be restored whole, or a message does not match its digest; 7 something could not be read.")]
pub(crate) struct DrillArgs {
    /// The snapshot
    #[arg(value_name = "SNAP", default_value = "latest")]
    snapshot: String,
    /// Drill this account, by address or id; may be repeated
    #[arg(long, value_name = "ADDRESS|ID", conflicts_with_all = ["sample", "all"])]
    account: Vec<String>,
    /// Drill a random sample of N accounts [default: 10]
    #[arg(long, value_name = "N", conflicts_with = "all")]
    sample: Option<usize>,
    /// Drill all accounts
    #[arg(long)]
    all: bool,
    /// Directory of the snapshot that holds the backup tree [default: the root]
    #[arg(long, value_name = "PATH")]
    tree: Option<String>,
    /// Mount at this existing directory [default: a new temporary directory]
    #[arg(long, value_name = "DIR")]
    mountpoint: Option<PathBuf>,
}

#[derive(Serialize)]
struct DrilledEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    id: &'a str,
    email: &'a str,
    state: AccountState,
    restore_state: RestoreState,
    /// What is missing is known from names alone.
    missing: &'a [Fault],
    full: Option<&'a str>,
    time: Option<Timestamp>,
    #[serde(flatten)]
    drilled: &'a Drilled,
}

#[derive(Default, Serialize)]
#[serde(tag = "event", rename = "summary")]
struct Summary {
    snapshot: String,
    accounts: u64,
    sound: u64,
    files: u64,
    bytes: u64,
    messages: u64,
    faults: u64,
    elapsed_ms: u64,
    #[serde(skip)]
    is_damaged: bool,
}

pub(crate) fn run(context: &Context, args: &DrillArgs) -> Result<Exit, CliError> {
    let started = std::time::Instant::now();
    let replica = context.open()?;
    // The lease is held to the end.
    let (snapshot, analysis, _lease) = analyse(context, &replica, args)?;
    let chosen = choose(&snapshot, &analysis, args)?;
    let place = match &args.mountpoint {
        Some(place) => Place::given(place),
        None => Place::make()?,
    };
    let mount_point = check_place(replica.path(), &place.path, |text| context.output.note(text))?;
    let request = MountRequest {
        source: None,
        snapshot: Some(snapshot.clone()),
        mount_point: mount_point.clone(),
        owners: Owners::ByNumber,
        allow_other: false,
        cache_bytes: CACHE_BYTES,
        threads: 0,
        writable: None,
        // What goes wrong comes back as an error of the read.
        log: Arc::new(|_: &str| {}),
    };
    let interrupt = super::signals::interrupt_flag()?;
    let serving = start(replica, request)?;
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let stop = Arc::clone(&stop);
        // If the thread cannot be started, the server is dropped, and that unmounts.
        std::thread::Builder::new().spawn(move || serving.run(&stop)).map_err(CliError::Thread)?
    };
    let root = mount_point.join(analysis.tree.trim_matches('/'));
    let result = drill(context, &snapshot, &analysis, &chosen, &root, &interrupt);
    stop.store(true, Ordering::Relaxed);
    match server.join() {
        Ok(ended) => ended?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    drop(place);
    let mut summary = result?;
    summary.elapsed_ms = started.elapsed().as_millis() as u64;
    print_summary(context, &summary)?;
    if interrupt.load(Ordering::Relaxed) {
        return Err(CliError::Failed("Interrupted; only the accounts above were drilled".to_owned()));
    }
    Ok(match (summary.is_damaged, summary.sound == summary.accounts) {
        (true, _) => Exit::Damage,
        (false, false) => Exit::Attention,
        (false, true) => Exit::Done,
    })
}

/// A directory to mount on; one of our own goes at the end.
struct Place {
    path: PathBuf,
    is_own: bool,
}

impl Place {
    fn given(path: &Path) -> Place {
        Place { path: path.to_owned(), is_own: false }
    }

    fn make() -> Result<Place, CliError> {
        let path = std::env::temp_dir().join(format!("zmreplica-drill-{}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Place { path, is_own: true }),
            Err(error) => {
                let path = text::escape(path.as_os_str().as_encoded_bytes());
                Err(CliError::Failed(format!(
                    "Cannot create the directory {path} to mount on: {error}; name one with --mountpoint"
                )))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_own {
            // Only if it is empty: while something is mounted on it, it stays.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn analyse(
    context: &Context,
    replica: &Replica,
    args: &DrillArgs,
) -> Result<(StoredSnapshot, Analysis, io::Result<Lease>), CliError> {
    let readers =
        Readers::new(Arc::new(replica.following_catalog()?), Arc::new(replica.chunks()), ViewOptions::default());
    let choose = |all: &Snapshots| Ok(vec![all.resolve(&args.snapshot)?.record.id.clone()]);
    let Leased { snapshots: all, lease } =
        leased(context, replica, readers.catalog(), Path::new("zmreplica drill"), choose)?;
    let snapshot = all.resolve(&args.snapshot)?.clone();
    let view = SnapshotView::over(&readers, snapshot.record.clone())?;
    let mut ledger = Ledger::open(replica, readers, &all);
    let analysis = ledger.analyser().analyse(&view, args.tree.as_deref().unwrap_or_default().as_bytes())?;
    ledger.close();
    Ok((snapshot, analysis, lease))
}

/// Chooses the accounts.
fn choose<'a>(
    snapshot: &StoredSnapshot,
    analysis: &'a Analysis,
    args: &DrillArgs,
) -> Result<Vec<&'a Account>, CliError> {
    if !args.account.is_empty() {
        let mut chosen = Vec::new();
        for name in &args.account {
            let before = chosen.len();
            chosen.extend(analysis.accounts.iter().filter(|account| account.is_named(name)));
            if chosen.len() == before {
                let (name, id) = (text::escape(name.as_bytes()), snapshot.record.short_id());
                return Err(CliError::Failed(format!(
                    "No account {name} in the snapshot {id}; `zmreplica accounts {id}` lists its accounts"
                )));
            }
        }
        return Ok(chosen);
    }
    let mut chosen: Vec<&Account> = analysis.accounts.iter().collect();
    if !args.all {
        // By lot, and the same lot for the same snapshot.
        chosen.sort_by_cached_key(|account| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(snapshot.record.id.as_bytes());
            hasher.update(account.id.as_bytes());
            *hasher.finalize().as_bytes()
        });
        chosen.truncate(args.sample.unwrap_or(USUAL_SAMPLE));
    }
    if chosen.is_empty() {
        return Err(CliError::Failed(format!("The snapshot {} has no accounts to drill", snapshot.record.short_id())));
    }
    Ok(chosen)
}

fn drill(
    context: &Context,
    snapshot: &StoredSnapshot,
    analysis: &Analysis,
    chosen: &[&Account],
    root: &Path,
    interrupt: &AtomicBool,
) -> Result<Summary, CliError> {
    let mut driller = Driller::new(root, analysis, interrupt);
    let mut summary = Summary { snapshot: snapshot.record.id.clone(), ..Summary::default() };
    for account in chosen {
        let planned = plan(analysis, account, None).ok();
        let drilled = planned.as_ref().map(|plan| driller.account(account, plan)).unwrap_or_default();
        if interrupt.load(Ordering::Relaxed) {
            // Half an account says nothing.
            break;
        }
        let is_sound = planned.is_some() && drilled.fault_count == 0 && account.state == AccountState::Whole;
        summary.accounts += 1;
        summary.sound += u64::from(is_sound);
        summary.files += drilled.files;
        summary.bytes += drilled.bytes;
        summary.messages += drilled.messages;
        summary.faults += drilled.fault_count;
        summary.is_damaged |= drilled.faults.iter().any(|fault| fault.kind == DrillFaultKind::Unreadable);
        if context.output.json() {
            context.output.event(&DrilledEvent {
                event: "drilled",
                snapshot: &snapshot.record.id,
                id: &account.id,
                email: &account.email,
                state: account.state,
                restore_state: account.restore_state(),
                missing: &account.faults,
                full: planned.as_ref().map(|plan| plan.label.as_str()),
                time: planned.as_ref().map(|plan| plan.time),
                drilled: &drilled,
            })?;
        } else {
            print_account(context, account, planned.is_some(), is_sound, &drilled)?;
        }
        // A drill takes long; whoever watches wants to see each account when it is done.
        context.output.flush()?;
    }
    Ok(summary)
}

fn print_account(
    context: &Context,
    account: &Account,
    is_planned: bool,
    is_sound: bool,
    drilled: &Drilled,
) -> Result<(), CliError> {
    let output = &context.output;
    let style = if is_sound { super::output::GOOD } else { super::output::WARNING };
    let word = match (is_planned, is_sound) {
        (false, _) => "cannot be restored",
        (true, true) => "sound",
        (true, false) if drilled.fault_count > 0 => "FAULTY",
        (true, false) => account.restore_state().words(),
    };
    output.line(&format!(
        "{}: {}, {}, {}, {} with the right digest",
        text::escape(account.email.as_bytes()),
        output.styled(style, word),
        text::plural(drilled.files, "file", "files"),
        text::bytes(drilled.bytes),
        text::plural(drilled.messages, "message", "messages"),
    ))?;
    let limit = if output.verbosity() == super::output::Verbosity::Verbose { usize::MAX } else { FAULTS_LISTED };
    let known = account.faults.iter().map(|fault| fault.text.clone());
    let found = drilled.faults.iter().map(|fault| format!("{}: {}", fault.path, fault.reason));
    for line in known.chain(found).take(limit) {
        output.line(&format!("  {}", text::escape(line.as_bytes())))?;
    }
    let more = (account.faults.len() as u64 + drilled.fault_count).saturating_sub(limit as u64);
    if more > 0 {
        output.line(&format!("  and {} more; -v or --json lists them", text::count(more)))?;
    }
    Ok(())
}

fn print_summary(context: &Context, summary: &Summary) -> Result<(), CliError> {
    if context.output.json() {
        return Ok(context.output.event(summary)?);
    }
    context.output.note(&format!(
        "{} of {} sound: {}, {}, {}, in {}",
        text::count(summary.sound),
        text::plural(summary.accounts, "account is", "accounts are"),
        text::plural(summary.files, "file", "files"),
        text::bytes(summary.bytes),
        text::plural(summary.messages, "message", "messages"),
        text::duration(std::time::Duration::from_millis(summary.elapsed_ms)),
    ));
    Ok(())
}
