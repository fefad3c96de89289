//! How another host is reached: arguments shared by the commands that do, and the configuration behind them.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Deserialize;
use zmreplica::memory_limit::{Share, limit_memory};
use zmreplica::remote::client::{AgentChoice, HANDSHAKE, IDLE_TIMEOUT};
use zmreplica::remote::transport::ssh::{PASSPHRASE_VARIABLE, Passphrase, SshOptions};
use zmreplica::snapshot::pull::{CompressAt, PullOptions, Way};

use super::error::CliError;
use super::text;

/// Attempts in a row that may bring nothing, by default.
const RETRIES: u32 = 5;

/// Arguments of a connection.
#[derive(Args, Default)]
pub(crate) struct RemoteArgs {
    /// Private key for the source's host [default: ssh-agent, then the usual files in ~/.ssh]
    #[arg(long, value_name = "FILE", help_heading = "Remote host")]
    ssh_key: Option<PathBuf>,
    /// File of known hosts [default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts]
    #[arg(long, value_name = "FILE", help_heading = "Remote host")]
    known_hosts: Option<PathBuf>,
    /// Connect with this program, for example 'ssh -J gateway', like rsync's -e
    #[arg(long, value_name = "CMD", help_heading = "Remote host", conflicts_with_all = ["ssh_key", "known_hosts"])]
    rsh: Option<String>,
    /// Limit what the remote host sends, in bytes per second, for example 10M; a number without a unit is in KiB, as with rsync
    #[arg(long, value_name = "RATE", help_heading = "Remote host", value_parser = parse_rate)]
    bwlimit: Option<u64>,
    /// The agent's path on the remote host [default: zmreplica in the PATH there, else one that is uploaded]
    #[arg(long, value_name = "PATH", help_heading = "Remote host")]
    agent_path: Option<String>,
    /// Never upload the agent
    #[arg(long, help_heading = "Remote host")]
    no_upload: bool,
    /// The static program to upload [default: zmreplica-agent next to this program or in /usr/local/lib/zmreplica, else this program]
    #[arg(long, value_name = "FILE", help_heading = "Remote host")]
    agent_binary: Option<PathBuf>,
    /// Run no agent on the remote host, only its find and tar. Slower: all new data is transferred uncompressed
    #[arg(long, help_heading = "Remote host", conflicts_with_all = ["agent_path", "no_upload", "agent_binary"])]
    agentless: bool,
    /// Give up the connection if the remote host does not answer for this long, or sends next to nothing for six times as long [default: 600]
    #[arg(long, value_name = "SECONDS", help_heading = "Remote host", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Give up after this many attempts in a row that bring nothing new [default: 5]
    #[arg(long, value_name = "N", help_heading = "Remote host")]
    retries: Option<u32>,
}

impl RemoteArgs {
    /// Returns whether the command line forbids an agent on the remote host.
    pub(crate) fn is_agentless(&self) -> bool {
        self.agentless
    }
}

/// Where chunks are compressed, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CompressAtArg {
    /// On the source's host: less data to transfer
    Source,
    /// On this host: less work for the mail server
    Replica,
}

/// The table `remote` of the configuration file. Arguments win over it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RemoteConfig {
    ssh_key: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    rsh: Option<String>,
    bwlimit: Option<String>,
    agent_path: Option<String>,
    agent_binary: Option<PathBuf>,
    upload: Option<bool>,
    agentless: Option<bool>,
    compress_at: Option<CompressAtArg>,
    timeout: Option<u64>,
    retries: Option<u32>,
}

impl RemoteConfig {
    /// Returns the files that it names, with their keys.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("remote.ssh-key", &self.ssh_key),
            ("remote.known-hosts", &self.known_hosts),
            ("remote.agent-binary", &self.agent_binary),
        ];
        files.into_iter().filter_map(|(key, file)| Some((key, file.as_deref()?)))
    }

    /// Returns what is wrong with it.
    pub(crate) fn fault(&self) -> Option<String> {
        let rate = self.bwlimit.as_deref().map(parse_rate)?;
        rate.err().map(|error| format!("remote.bwlimit: {error}"))
    }
}

/// Reads a rate in bytes a second.
fn parse_rate(given: &str) -> Result<u64, String> {
    let rate = match given.parse::<u64>() {
        Ok(kib) => kib.saturating_mul(1024),
        Err(_) => text::parse_bytes(given)?,
    };
    // Below that not even the signs of life would come in time.
    if rate != 0 && rate < 1024 { Err("the rate must be at least 1 KiB per second".to_owned()) } else { Ok(rate) }
}

/// Puts arguments and configuration together.
pub(crate) fn options(
    args: &RemoteArgs,
    config: &RemoteConfig,
    compress_at: Option<CompressAtArg>,
) -> Result<PullOptions, CliError> {
    let own = args.ssh_key.is_some() || args.known_hosts.is_some();
    let way = match args.rsh.clone().or_else(|| config.rsh.clone().filter(|_| !own)) {
        Some(program) => Way::Command(program),
        None => Way::Ssh(SshOptions {
            key_file: args.ssh_key.clone().or_else(|| config.ssh_key.clone()),
            known_hosts: args.known_hosts.clone().or_else(|| config.known_hosts.clone()),
            passphrase: Passphrase(Some(passphrase())),
        }),
    };
    if args.agentless && compress_at == Some(CompressAtArg::Source) {
        let message =
            "Nothing can be compressed at the source without an agent: leave out --agentless or --compress-at";
        return Err(CliError::Usage(message.to_owned()));
    }
    let idle_timeout =
        args.timeout.or(config.timeout).map_or(IDLE_TIMEOUT, |seconds| Duration::from_secs(seconds.max(1)));
    let agent_named = args.agent_path.is_some() || args.agent_binary.is_some();
    let configured = config.bwlimit.as_deref().map(parse_rate).transpose().map_err(CliError::Usage)?;
    Ok(PullOptions {
        way,
        agent: AgentChoice {
            path: args.agent_path.clone().or_else(|| config.agent_path.clone()),
            upload: !args.no_upload && config.upload.unwrap_or(true),
            binary: args.agent_binary.clone().or_else(|| config.agent_binary.clone()),
            handshake: idle_timeout.min(HANDSHAKE),
        },
        // An agent that is named on the command line is meant.
        agentless: args.agentless || (config.agentless.unwrap_or(false) && !agent_named),
        compress_at: match compress_at.or(config.compress_at) {
            Some(CompressAtArg::Replica) => CompressAt::Replica,
            Some(CompressAtArg::Source) | None => CompressAt::Source,
        },
        bytes_per_second: args.bwlimit.or(configured).unwrap_or(0),
        idle_timeout,
        retries: args.retries.or(config.retries).unwrap_or(RETRIES),
    })
}

/// Bounds the memory that another host can make this process take, whatever else fails.
pub(crate) fn limit() {
    limit_memory(Share::Run);
}

/// Returns where a passphrase comes from: the environment, else the terminal, once for each key.
fn passphrase() -> Arc<zmreplica::remote::transport::ssh::AskPassphrase> {
    let answered: Mutex<Vec<(PathBuf, Option<String>)>> = Mutex::default();
    Arc::new(move |key: &Path| {
        let mut answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = answered.iter().find(|(known, _)| known == key) {
            return answer.clone();
        }
        let answer = std::env::var(PASSPHRASE_VARIABLE).ok().or_else(|| prompt(key).ok().flatten());
        answered.push((key.to_owned(), answer.clone()));
        answer
    })
}

/// Asks on the terminal, without showing what is typed; `None` where there is none.
fn prompt(key: &Path) -> std::io::Result<Option<String>> {
    let Ok(mut terminal) = OpenOptions::new().read(true).write(true).open("/dev/tty") else { return Ok(None) };
    let before = tcgetattr(&terminal)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    write!(terminal, "Passphrase of {}: ", key.display())?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
    let mut line = String::new();
    let read = BufReader::new(File::try_clone(&terminal)?).read_line(&mut line);
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    read?;
    let word = line.trim_end_matches(['\n', '\r']);
    Ok((!word.is_empty()).then(|| word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_rsync_does() {
        assert_eq!(parse_rate("100"), Ok(102_400));
        assert_eq!(parse_rate("0"), Ok(0));
        assert_eq!(parse_rate("10M"), text::parse_bytes("10M"));
        assert!(parse_rate("fast").is_err());
        assert!(parse_rate("10B").is_err());
    }
}
