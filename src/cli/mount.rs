//! `zmreplica mount`: shows a snapshot, or all of them, as a normal tree.
//!
//! In the background a second process of the same program does the work: this one starts it, waits until the mount can be used or has failed,
//! and ends as it does. The other one reports errors itself, for it still has the same stderr then.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zmreplica::mount::{MountRequest, Owners, check_place, start};
use zmreplica::view::StoredSnapshot;
use zmreplica_fuse::Log;

use super::error::{CliError, Exit};
use super::log::{fit, open_file};
use super::output::stderr_line;
use super::{Context, text, trace};

/// Tells the second process that it is the one.
const SERVER_VARIABLE: &str = "ZMREPLICA_MOUNT_SERVER";
/// What the second process says when the mount can be used.
const READY: &[u8] = b"ready\n";
/// Descriptors from this one on are no business of the server; those before are stdin, stdout and stderr.
const FIRST_INHERITED: i32 = 3;
/// Decompressed chunks kept, unless an option says otherwise.
const CACHE_BYTES: u64 = 32 << 20;

/// Arguments of `mount`.
#[derive(Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct MountArgs {
    /// Allow other users access; the kernel checks permissions [default for root]
    #[arg(long, conflicts_with = "no_allow_other")]
    allow_other: bool,
    /// Allow nobody else access, not even root [default for other users]
    #[arg(long)]
    no_allow_other: bool,
    /// Show all files as owned by this user [default: the owner's name, if this host has it]
    #[arg(long, value_name = "USER[:GROUP]")]
    owner: Option<String>,
    /// Show owners by number, even if this host has users of the same names
    #[arg(long, conflicts_with = "owner")]
    numeric_ids: bool,
    /// Make the mount writable; changes go to DIR, and the store does not change
    #[arg(long, value_name = "DIR")]
    writable: Option<PathBuf>,
    /// Stay in the foreground until the mount ends
    #[arg(long)]
    foreground: bool,
    /// Memory for decompressed data, for example 256M [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = text::parse_bytes, default_value_t = CACHE_BYTES, hide_default_value = true)]
    cache: u64,
    /// Number of threads that serve requests [default: cores + 2, at least 4]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Log to FILE [default: stderr in the foreground, else the system's log]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The snapshot to mount [default: all of them, or with --source all of that source, one directory each, and `latest`]
    #[arg(value_name = "SNAP")]
    snapshot: Option<String>,
    /// An existing directory
    #[arg(value_name = "MOUNTPOINT")]
    mount_point: PathBuf,
}

#[derive(Serialize)]
struct MountedEvent<'a> {
    event: &'static str,
    mount_point: &'a str,
    /// Identifier of the snapshot; none for all of them.
    snapshot: Option<&'a str>,
    writable: bool,
    pid: u32,
}

pub(crate) fn run(context: &Context, args: &MountArgs) -> Result<Exit, CliError> {
    if args.foreground || std::env::var_os(SERVER_VARIABLE).is_some() {
        serve(context, args)
    } else {
        start_server(context, args)
    }
}

/// Starts the second process and waits until it is ready or has failed.
fn start_server(context: &Context, args: &MountArgs) -> Result<Exit, CliError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| CliError::Failed(format!("{what}: {error}"));
    // What the caller has open, such as a lock file or the other end of a pipe, must not stay open as long as the mount.
    close_fds::set_fds_cloexec_threadsafe(FIRST_INHERITED, &[]);
    let program = std::env::current_exe().map_err(|error| failed("The path of this program is unknown", &error))?;
    let mut server = Command::new(program)
        .args(&context.arguments)
        .env(SERVER_VARIABLE, "1")
        .env_remove(zmreplica::remote::transport::ssh::PASSPHRASE_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("The server cannot be started", &error))?;
    let mut said = Vec::new();
    if let Some(mut stdout) = server.stdout.take() {
        stdout.read_to_end(&mut said).map_err(|error| failed("The output of the server cannot be read", &error))?;
    }
    // Nothing but READY comes from a server that goes on, and its end of the pipe is closed then.
    if let Some(rest) = said.strip_suffix(READY) {
        context.output.stdout().write_all(rest)?;
        let snapshot = resolve(context, args)?;
        print_mounted(context, args, snapshot.as_ref(), server.id())?;
        return Ok(Exit::Done);
    }
    context.output.stdout().write_all(&said)?;
    let status = server.wait().map_err(|error| failed("The server cannot be waited for", &error))?;
    match status.code().and_then(|code| Exit::from_repr(u8::try_from(code).ok()?)) {
        Some(exit) if exit != Exit::Done => Ok(exit),
        _ => Err(CliError::Failed(format!("The server ended before the mount was ready ({status})"))),
    }
}

fn resolve(context: &Context, args: &MountArgs) -> Result<Option<StoredSnapshot>, CliError> {
    let Some(spec) = &args.snapshot else { return Ok(None) };
    let snapshots = context.snapshots(&context.open()?.catalog()?)?;
    Ok(Some(snapshots.resolve(spec)?.clone()))
}

/// Reports that the mount is ready.
fn print_mounted(
    context: &Context,
    args: &MountArgs,
    snapshot: Option<&StoredSnapshot>,
    pid: u32,
) -> Result<(), CliError> {
    let mount_point = args.mount_point.display().to_string();
    if context.output.json() {
        let snapshot = snapshot.map(|snapshot| snapshot.record.id.as_str());
        let writable = args.writable.is_some();
        let event = MountedEvent { event: "mounted", mount_point: &mount_point, snapshot, writable, pid };
        return Ok(context.output.event(&event)?);
    }
    let what = snapshot.map_or_else(
        || "All snapshots are".to_owned(),
        |snapshot| format!("Snapshot {} of {} is", snapshot.record.short_id(), text::local_time(snapshot.record.time)),
    );
    let writable =
        args.writable.as_deref().map(|directory| format!(", writable; changes go to {}", directory.display()));
    context.output.note(&format!("{what} at {mount_point}{} (process {pid}).", writable.unwrap_or_default()));
    Ok(())
}

/// Mounts and serves until the end.
fn serve(context: &Context, args: &MountArgs) -> Result<Exit, CliError> {
    if !args.foreground {
        // Away from the terminal, whose signals mean others.
        rustix::process::setsid()
            .map_err(|error| CliError::Failed(format!("The server cannot leave the terminal: {error}")))?;
    }
    let log = make_log(context, args)?;
    if args.log.is_some() || !args.foreground {
        trace::to_log(&log);
    }
    let replica = context.open()?;
    let snapshot = match &args.snapshot {
        Some(spec) => Some(context.snapshots(&replica.catalog()?)?.resolve(spec)?.clone()),
        None => None,
    };
    let source = context.snapshots(&replica.catalog()?)?.chosen();
    let owners = owners(args)?;
    let writable = args.writable.as_deref().map(std::path::absolute).transpose();
    let writable = writable.map_err(|error| CliError::Failed(format!("The directory for changes: {error}")))?;
    let mount_point = check_place(replica.path(), &args.mount_point, |text| context.output.note(text))?;
    if std::fs::read_dir(&mount_point).is_ok_and(|mut listing| listing.next().is_some()) {
        context.output.note(&format!(
            "{} is not empty; its contents are hidden while the snapshot is mounted.",
            mount_point.display()
        ));
    }
    let stop = stop_on_signals(&log)?;
    let request = MountRequest {
        snapshot: snapshot.clone(),
        source,
        mount_point,
        owners,
        allow_other: args.allow_other || (!args.no_allow_other && rustix::process::geteuid().is_root()),
        cache_bytes: args.cache,
        threads: args.threads,
        writable,
        log: Arc::clone(&log),
    };
    let serving = start(replica, request)?;
    if args.foreground {
        print_mounted(context, args, snapshot.as_ref(), std::process::id())?;
        context.output.flush()?;
    } else if let Err(error) = report_ready() {
        // Whoever wanted the mount has gone away.
        log(&format!("unmounting: {error}"));
        stop.store(true, Ordering::Relaxed);
    }
    serving.run(&stop).inspect_err(|error| log(&error.to_string()))?;
    Ok(Exit::Done)
}

/// Tells the first process that the mount can be used, and lets go of everything that was its.
fn report_ready() -> std::io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    std::io::stdout().write_all(READY)?;
    std::io::stdout().flush()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Returns the flag that the first signal sets. A second one ends the program at once, and leaves a mount point that gives errors.
fn stop_on_signals(log: &Log) -> Result<Arc<AtomicBool>, CliError> {
    let failed = |error| CliError::Failed(format!("Signal handlers cannot be installed: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, log) = (Arc::clone(&stop), Arc::clone(log));
    let wait = move || {
        for signal in signals.forever() {
            if flag.swap(true, Ordering::Relaxed) {
                log("ended by a second signal; the mount point gives errors until it is unmounted");
                std::process::exit(128 + signal);
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(stop)
}

/// Finds the numbers of `USER[:GROUP]`, names or numbers. A user's own group goes with the user.
fn owners(args: &MountArgs) -> Result<Owners, CliError> {
    let Some(owner) = &args.owner else {
        return Ok(if args.numeric_ids { Owners::ByNumber } else { Owners::ByName });
    };
    let unknown = |what: &str, name: &str| CliError::Usage(format!("--owner: this host has no {what} {name}"));
    let (user_name, group_name) =
        owner.split_once(':').map_or((owner.as_str(), None), |(user, group)| (user, Some(group)));
    let user = uzers::get_user_by_name(user_name);
    let uid = match (&user, user_name.parse()) {
        (Some(user), _) => user.uid(),
        (None, Ok(number)) => number,
        (None, Err(_)) => return Err(unknown("user", user_name)),
    };
    let gid = match group_name.filter(|name| !name.is_empty()) {
        None => user.map(|user| user.primary_group_id()),
        Some(name) => match (uzers::get_group_by_name(name), name.parse()) {
            (Some(group), _) => Some(group.gid()),
            (None, Ok(number)) => Some(number),
            (None, Err(_)) => return Err(unknown("group", name)),
        },
    };
    Ok(Owners::AllTo(uid, gid))
}

/// Prepares the place for what happens while the mount is served.
fn make_log(context: &Context, args: &MountArgs) -> Result<Log, CliError> {
    if let Some(path) = &args.log {
        let file = open_file(path, context.config.log_mode())?;
        return Ok(Arc::new(move |message: &str| {
            let line = format!("{} zmreplica[{}]: {}\n", jiff::Timestamp::now(), std::process::id(), fit(message));
            // There is nowhere left to complain.
            let _ = (&file).write_all(line.as_bytes());
        }));
    }
    if args.foreground {
        return Ok(Arc::new(|message: &str| stderr_line(&format!("zmreplica: {message}"))));
    }
    let formatter = syslog::Formatter3164 {
        facility: syslog::Facility::LOG_DAEMON,
        hostname: None,
        process: "zmreplica".to_owned(),
        pid: std::process::id(),
    };
    // Without a system's log the messages are lost; errors reach the users of the mount all the same.
    let logger = Mutex::new(syslog::unix(formatter).ok());
    Ok(Arc::new(move |message: &str| {
        if let Ok(mut logger) = logger.lock()
            && let Some(logger) = logger.as_mut()
        {
            let _ = logger.warning(fit(message));
        }
    }))
}

/// Returns the command line that the arguments of mount(8)'s helper stand for, `SOURCE DIR [-sfnvN] [-o OPTIONS] [-t TYPE]`, where SOURCE is
/// `STORE` or `STORE#SNAP`.
///
/// # Errors
/// Says what cannot be understood.
pub(crate) fn from_mount_helper(arguments: &[OsString]) -> Result<Vec<OsString>, String> {
    let mut places: Vec<&OsStr> = Vec::new();
    let mut given: Vec<OsString> = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => helper_options(arguments.next(), &mut given)?,
            Some("-t" | "-N") => drop(arguments.next()),
            Some(flags) if flags.starts_with('-') && flags.len() > 1 => {}
            _ => places.push(argument),
        }
    }
    let [source, mount_point] = places[..] else {
        return Err("usage: mount -t fuse.zmreplica STORE[#SNAP] DIR [-o OPTIONS]".to_owned());
    };
    let source = source.to_str().ok_or("the source is not UTF-8")?;
    let (store, snapshot) = source.rsplit_once('#').unwrap_or((source, ""));
    if snapshot.starts_with('-') || mount_point.as_encoded_bytes().starts_with(b"-") {
        return Err("neither the snapshot nor the directory may begin with -".to_owned());
    }
    let mut command: Vec<OsString> = vec!["--store".into(), store.into(), "mount".into()];
    command.append(&mut given);
    if !snapshot.is_empty() && snapshot != "all" {
        command.push(snapshot.into());
    }
    command.push(mount_point.into());
    Ok(command)
}

/// Options of mount(8) that mean nothing for a mount like this, or what it does anyway.
const IDLE_OPTIONS: [&str; 41] = [
    "defaults",
    "ro",
    "rw",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "async",
    "sync",
    "dirsync",
    "mand",
    "nomand",
    "silent",
    "loud",
    "nosymfollow",
    "symfollow",
    "_rnetdev",
    "default_permissions",
];

/// Options that label a mount for SELinux. Where that is off they mean nothing, and mount(8) drops them itself.
const CONTEXT_OPTIONS: [&str; 5] = ["context", "fscontext", "defcontext", "rootcontext", "seclabel"];
/// Is there where SELinux is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Splits options at commas outside of quotation marks: a context has commas of its own.
fn split_options(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let options = list.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    });
    options.filter(|option| !option.is_empty())
}

fn helper_options(list: Option<&OsString>, given: &mut Vec<OsString>) -> Result<(), String> {
    let list = list.and_then(|list| list.to_str()).ok_or("-o wants options")?;
    for option in split_options(list) {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("allow_other", None) => given.push("--allow-other".into()),
            ("no_allow_other", None) => given.push("--no-allow-other".into()),
            ("numeric_ids", None) => given.push("--numeric-ids".into()),
            ("owner" | "writable" | "cache" | "threads" | "log", Some(value)) => {
                given.push(format!("--{name}={value}").into());
            }
            (name, None) if IDLE_OPTIONS.contains(&name) => {}
            // mount(8) adds who mounts, where any user may.
            ("comment" | "user", _) => {}
            (name, _) if CONTEXT_OPTIONS.contains(&name) => {
                if std::path::Path::new(SELINUX).exists() {
                    return Err(format!(
                        "the option {option} cannot be given while SELinux is on: the mount has the label that the policy gives to FUSE"
                    ));
                }
            }
            (name, _) if name.starts_with("x-") => {}
            _ => return Err(format!("the option {option} is not known")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let command = from_mount_helper(&arguments)?;
        Ok(command.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn lines_of_fstab_are_understood() {
        assert_eq!(
            helper(&[
                "/srv/store#latest",
                "/mnt/z",
                "-o",
                "rw,nofail,owner=zimbra:zimbra,x-systemd.requires=a,cache=64M"
            ]),
            Ok("--store /srv/store mount --owner=zimbra:zimbra --cache=64M latest /mnt/z".to_owned())
        );
        assert_eq!(
            helper(&["-sn", "/srv/a#b#2026-11-22", "/mnt", "-t", "fuse.zmreplica"]),
            Ok("--store /srv/a#b mount 2026-11-22 /mnt".to_owned())
        );
        assert_eq!(helper(&["/srv/store", "/mnt"]), Ok("--store /srv/store mount /mnt".to_owned()));
        assert_eq!(helper(&["/srv/store#all", "/mnt"]), Ok("--store /srv/store mount /mnt".to_owned()));
        for usual in [
            "nodiratime,lazytime,user=zimbra,default_permissions",
            "rw,nosuid,nodev,noexec,relatime,user,sync,strictatime,silent",
            "context=\"system_u:object_r:tmp_t:s0:c127,c456\",numeric_ids",
        ] {
            let numeric = if usual.contains("numeric_ids") { " --numeric-ids" } else { "" };
            let expected = format!("--store /srv/store mount{numeric} /mnt");
            assert_eq!(helper(&["/srv/store", "/mnt", "-o", usual]), Ok(expected), "{usual}");
        }
        assert!(helper(&["/srv/store", "/mnt", "-o", "colour=red"]).unwrap_err().contains("colour=red"));
        assert!(helper(&["/srv/store"]).is_err());
    }
}
