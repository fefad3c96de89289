//! A run whose source is on another host: connect, take, and when the connection breaks connect again and go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, info_span, warn};

use super::SnapshotError;
use super::backup_run::take_snapshot;
use super::dry_run::dry_run_over;
use super::options::{DryRun, RunRequest, RunStart, SnapshotOptions, SnapshotReport};
use super::progress::Progress;
use crate::areas;
use crate::cache_file;
use crate::model::Stat;
use crate::remote::agentless::{AgentlessOptions, AgentlessTree};
use crate::remote::client::{AgentChoice, ConnectError, RemoteTree, connect};
use crate::remote::protocol::{Start, Task};
use crate::remote::transport::command::CommandTransport;
use crate::remote::transport::spec::RemoteSpec;
use crate::remote::transport::ssh::{SshOptions, SshTransport};
use crate::remote::transport::{Transport, TransportError};
use crate::replica::{LockedReplica, Replica};
use crate::sandbox::Confinement;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::source::scan::Found;
use crate::source::tree::{SourceError, SourceTree};

/// The first pause before another attempt; each further one is twice as long ...
const PAUSE: Duration = Duration::from_secs(1);
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An attempt that broke counts as a failed one unless it brought so many bytes that are new ...
const WORTH_BYTES: u64 = 4 << 10;
/// ... and so many for each second: a host could break off for ever, each time with a byte more.
const WORTH_BYTES_PER_SECOND: u64 = 16;
/// How often a pause looks whether the user wants to end.
const TICK: Duration = Duration::from_millis(100);

/// How the other host is reached.
#[derive(Clone)]
pub enum Way {
    /// By SSH, spoken by this program.
    Ssh(SshOptions),
    /// Through a program, as a line for the shell, such as `ssh -J gateway`.
    Command(String),
}

impl Way {
    /// Makes the transport to a host.
    pub fn transport(&self, spec: &RemoteSpec) -> Box<dyn Transport> {
        match self {
            Way::Ssh(options) => Box::new(SshTransport::new(spec, options.clone())),
            Way::Command(program) => Box::new(CommandTransport::new(program, spec)),
        }
    }
}

/// Where chunks are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressAt {
    /// On the source's host: less is transferred.
    #[default]
    Source,
    /// Here: less work for the mail server.
    Replica,
}

/// How to pull.
#[derive(Clone)]
pub struct PullOptions {
    /// How the host is reached.
    pub way: Way,
    /// Which agent is used there.
    pub agent: AgentChoice,
    /// Whether no agent is used, but the host's own `find` and `tar`.
    pub agentless: bool,
    /// Where chunks are compressed.
    pub compress_at: CompressAt,
    /// Most bytes a second that the agent sends; 0 for no limit.
    pub bytes_per_second: u64,
    /// How long the agent may say nothing but that it is alive before the connection counts as lost.
    pub idle_timeout: Duration,
    /// Attempts in a row that may fail without having brought anything worth it before the run gives up.
    pub retries: u32,
}

/// Takes a snapshot of a tree on another host and commits it.
///
/// # Errors
/// See [`SnapshotError`]. What was stored until then is kept, and the next run goes on from there.
pub fn pull(
    replica: &LockedReplica,
    spec: &RemoteSpec,
    pull: &PullOptions,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<SnapshotReport, SnapshotError> {
    let start = RunStart::now();
    let location = spec.to_string();
    let excludes = options.compiled_excludes()?;
    let request = RunRequest { replica, location: &location, options, excludes: &excludes, progress, start };
    with_attempts(pull.retries, progress, || {
        let tree = open(replica, spec, pull, (options, &excludes), progress, Task::Pull)?;
        take_snapshot(request, tree)
    })
}

/// Scans a tree on another host and reports what [`pull`](fn@pull) would read.
///
/// # Errors
/// See [`SnapshotError`].
pub fn dry_pull(
    replica: &Replica,
    spec: &RemoteSpec,
    pull: &PullOptions,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<DryRun, SnapshotError> {
    let location = spec.to_string();
    let excludes = options.compiled_excludes()?;
    with_attempts(pull.retries, progress, || {
        let mut tree = open(replica, spec, pull, (options, &excludes), progress, Task::Scan)?;
        dry_run_over(replica, &mut *tree, &location, options, progress)
    })
}

/// Returns the time of a change in `directory`, a name below the source on another host, or below that, which
/// is newer than `since` by that host's clock; `None` if there was none, or if there is no such directory.
///
/// # Errors
/// See [`SnapshotError`].
pub fn change_since(
    spec: &RemoteSpec,
    pull: &PullOptions,
    directory: &str,
    since: SystemTime,
) -> Result<Option<SystemTime>, SnapshotError> {
    let root = format!("{}/{directory}", spec.path.trim_end_matches('/'));
    let excluded = vec!["/restore".to_owned()];
    if pull.agentless {
        let wanted = AgentlessOptions {
            root,
            excludes: ExcludePatterns::new(&excluded, false)?,
            cross_file_systems: false,
            scan_only: true,
            bytes_per_second: 0,
            idle_timeout: pull.idle_timeout,
            spool: std::env::temp_dir(),
            interrupted: Arc::new(|| false),
        };
        return match AgentlessTree::open(&mut *pull.way.transport(spec), &wanted, &Arc::default()) {
            Err(ConnectError::Refused { .. }) => Ok(None),
            tree => change_in(&mut tree?, since),
        };
    }
    let start = Start {
        task: Task::Scan,
        root,
        excludes: excluded,
        cross_file_systems: false,
        level: 0,
        threads: 1,
        bytes_per_second: 0,
    };
    let opened = match connect(&mut *pull.way.transport(spec), &pull.agent, &start, false) {
        Err(ConnectError::Refused { .. }) => return Ok(None),
        opened => opened?,
    };
    // A look, of which nothing is kept.
    change_in(&mut RemoteTree::start(opened.connection, Arc::default(), Path::new(""), pull.idle_timeout)?, since)
}

/// Returns the time of a change in a tree that is newer than `since`.
fn change_in(tree: &mut dyn SourceTree, since: SystemTime) -> Result<Option<SystemTime>, SnapshotError> {
    let newer = |stat: &Stat| {
        let seconds = Duration::from_secs(u64::try_from(stat.ctime.seconds).unwrap_or(0));
        let changed = SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(stat.ctime.nanos.into());
        (changed > since).then_some(changed)
    };
    while let Some(listing) = tree.next_listing()? {
        let stats = listing.entries.iter().filter_map(|entry| match &entry.what {
            Found::Inode { stat: Some(stat), .. } | Found::Boundary(stat) => Some(&**stat),
            _ => None,
        });
        if let Some(changed) = std::iter::once(&listing.stat).chain(stats).find_map(newer) {
            return Ok(Some(changed));
        }
    }
    Ok(None)
}

/// Says what the kernel of the other host confines the agent with.
fn confined(host: &str, confinement: Confinement) -> String {
    match confinement {
        Confinement { landlock: true, seccomp: true } => {
            format!("The agent on {host} is confined to reading (Landlock, seccomp).")
        }
        Confinement { landlock: true, seccomp: false } => {
            format!("The agent on {host} is confined by Landlock only: the kernel has no seccomp filter for it.")
        }
        Confinement { landlock: false, seccomp: true } => {
            format!("The agent on {host} is confined by seccomp only: the kernel has no Landlock.")
        }
        Confinement { landlock: false, seccomp: false } => {
            format!("The kernel of {host} does not confine the agent: it has neither Landlock nor seccomp.")
        }
    }
}

/// Connects and has the other host begin.
fn open(
    replica: &Replica,
    spec: &RemoteSpec,
    pull: &PullOptions,
    (options, excludes): (&SnapshotOptions, &ExcludePatterns),
    progress: &Arc<Progress>,
    task: Task,
) -> Result<Box<dyn SourceTree>, SnapshotError> {
    if pull.agentless {
        return open_agentless(replica, spec, pull, (options, excludes), progress, task);
    }
    let start = Start {
        task,
        root: spec.path.clone(),
        excludes: excludes.patterns().map(str::to_owned).collect(),
        cross_file_systems: options.cross_file_systems,
        level: match pull.compress_at {
            CompressAt::Source => options.compression.level,
            CompressAt::Replica => 0,
        },
        threads: options.threads,
        bytes_per_second: pull.bytes_per_second,
    };
    // Neither the user, who may carry a password, nor the program of --rsh, whose options may.
    info!(target: areas::REMOTE, host = %spec.host, path = %spec.path, ?task, "connecting");
    let opened = connect(&mut *pull.way.transport(spec), &pull.agent, &start, false)?;
    info!(
        target: areas::REMOTE,
        host = %opened.hello.host,
        version = %opened.hello.program,
        is_uploaded = opened.uploaded,
        confinement = ?opened.confinement,
        "agent started"
    );
    progress.wire.connections.fetch_add(1, Ordering::Relaxed);
    if opened.uploaded {
        progress.report(format!("The agent was uploaded to {}; later runs will find it there.", opened.hello.host));
    }
    if let Some(confinement) = opened.confinement {
        progress.report_detail(confined(&opened.hello.host, confinement));
    }
    let (wire, blocks) = (Arc::clone(&progress.wire), block_cache(replica, spec));
    let stop = Arc::clone(progress);
    let tree = RemoteTree::start(opened.connection, wire, &blocks, pull.idle_timeout)?;
    Ok(Box::new(tree.stopped_by(Arc::new(move || stop.interrupted()))))
}

/// Connects to a host where no agent may run.
fn open_agentless(
    replica: &Replica,
    spec: &RemoteSpec,
    pull: &PullOptions,
    (options, excludes): (&SnapshotOptions, &ExcludePatterns),
    progress: &Arc<Progress>,
    task: Task,
) -> Result<Box<dyn SourceTree>, SnapshotError> {
    let interrupted = Arc::clone(progress);
    let wanted = AgentlessOptions {
        root: spec.path.clone(),
        excludes: excludes.clone(),
        cross_file_systems: options.cross_file_systems,
        scan_only: matches!(task, Task::Scan),
        bytes_per_second: pull.bytes_per_second,
        idle_timeout: pull.idle_timeout,
        spool: cache_file::directory(replica.path()),
        interrupted: Arc::new(move || interrupted.interrupted()),
    };
    info!(target: areas::REMOTE, host = %spec.host, path = %spec.path, ?task, "connecting without an agent");
    let tree = AgentlessTree::open(&mut *pull.way.transport(spec), &wanted, &progress.wire)?;
    let earlier = progress.wire.connections.fetch_add(1, Ordering::Relaxed);
    if earlier == 0 {
        progress.report(format!(
            "Without an agent on {}: find and tar read all data there that is new to this store, and it is transferred uncompressed. \
             The snapshot is the same; with an agent it is faster.",
            spec.host
        ));
    }
    Ok(Box::new(tree))
}

/// Returns the file that keeps the listing blocks of a source.
fn block_cache(replica: &Replica, spec: &RemoteSpec) -> PathBuf {
    let name = blake3::hash(spec.to_string().as_bytes()).to_hex();
    cache_file::path(replica.path(), &format!("listing-{}", &name[..16]))
}

/// Tries again when the connection breaks, with longer and longer pauses while nothing comes of it.
fn with_attempts<T>(
    retries: u32,
    progress: &Progress,
    mut attempt: impl FnMut() -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    let (mut number, mut failed, mut pause) = (0u32, 0, PAUSE);
    loop {
        number += 1;
        let _span = info_span!(target: areas::REMOTE, "attempt", number).entered();
        let (began, before) = (Instant::now(), progress.chunks.new_bytes.load(Ordering::Relaxed));
        let result = attempt();
        info!(
            target: areas::REMOTE,
            received_bytes = progress.wire.received_bytes.load(Ordering::Relaxed),
            sent_bytes = progress.wire.sent_bytes.load(Ordering::Relaxed),
            "connection closed"
        );
        let error = match result {
            Err(error) if may_pass(&error, progress) && progress.interrupted() => {
                return Err(progress.interruption());
            }
            Err(error) if may_pass(&error, progress) => error,
            other => return other,
        };
        let brought = progress.chunks.new_bytes.load(Ordering::Relaxed) - before;
        if brought >= WORTH_BYTES.max(began.elapsed().as_secs() * WORTH_BYTES_PER_SECOND) {
            (failed, pause) = (0, PAUSE);
        }
        failed += 1;
        if failed > retries {
            return Err(error);
        }
        // Why is reported below; it may have the line of `--rsh`, which is for no log.
        warn!(target: areas::REMOTE, failed, pause_s = pause.as_secs(), "attempt failed");
        progress.report(format!("{error}. Retrying in {} s; the run will resume.", pause.as_secs()));
        let until = Instant::now() + pause;
        while Instant::now() < until {
            progress.check_interrupt()?;
            std::thread::sleep(TICK);
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn may_pass(error: &SnapshotError, progress: &Progress) -> bool {
    match error {
        // A host that was there comes back; one that never was has another name or port.
        SnapshotError::Connect(ConnectError::Transport(TransportError::Unreachable { .. })) => {
            progress.wire.connections.load(Ordering::Relaxed) > 0
        }
        SnapshotError::Connect(error) => error.may_pass(),
        SnapshotError::Source(SourceError::Lost { .. }) => true,
        _ => false,
    }
}
