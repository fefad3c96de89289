//! `zmreplica config check`: explains each setting, and reports everything that is wrong at once.

use std::path::Path;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde::Serialize;
use zmreplica::nightly::hooks::HookCommand;
use zmreplica::replica::Replica;
use zmreplica::snapshot::pull;
use zmreplica::source::exclude_patterns::ExcludePatterns;

use super::values::LogTarget;
use super::{Config, range_mistake};
use crate::cli::error::{CliError, Exit};
use crate::cli::output::{ERROR, GOOD, Output};
use crate::cli::remote::{self, RemoteArgs};
use crate::cli::{GlobalArgs, path};

/// Arguments of `config`.
#[derive(Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Explain each setting, and report what is wrong
    Check {
        /// Also connect to each source on another host, and look whether the agent runs there and the directory can be read
        #[arg(long)]
        connect: bool,
    },
}

/// A key, what it means, and what holds without it.
struct Setting {
    key: &'static str,
    meaning: &'static str,
    default: &'static str,
}

const fn setting(key: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting { key, meaning, default }
}

const SETTINGS: [Setting; 44] = [
    setting("store", "none", "directory of the store"),
    setting("source", "none", "the tree that `snapshot` and `nightly` replicate"),
    setting("exclude", "[]", "patterns to exclude, besides lost+found and sessions that are being deleted"),
    setting("compression-level", "3", "compression level of zstd, 1 to 19"),
    setting("dictionary", "true", "whether small messages are compressed with a trained dictionary"),
    setting(
        "remote.ssh-key",
        "none",
        "private key for the source's host; else ssh-agent and the usual files are tried",
    ),
    setting("remote.known-hosts", "none", "file of known hosts; else ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts"),
    setting("remote.rsh", "none", "program to connect through, such as \"ssh -J gateway\""),
    setting("remote.bwlimit", "none", "limit in bytes per second for what the remote host sends, such as \"10M\""),
    setting(
        "remote.agent-path",
        "none",
        "path of zmreplica on the remote host; else it is found in the PATH or uploaded",
    ),
    setting(
        "remote.agent-binary",
        "none",
        "static program to upload; else zmreplica-agent if it is there, or this one",
    ),
    setting("remote.upload", "true", "whether the agent may be uploaded"),
    setting("remote.agentless", "false", "whether only find and tar run on the remote host, and no agent"),
    setting("remote.compress-at", "\"source\"", "where chunks are compressed: \"source\" or \"replica\""),
    setting("remote.timeout", "600", "seconds without an answer after which the connection is given up"),
    setting("remote.retries", "5", "attempts in a row without progress before a run gives up"),
    setting(
        "max-duration",
        "none",
        "time after which `snapshot` and `nightly` stop a snapshot and leave the rest to the next run",
    ),
    setting(
        "wait-lock",
        "\"1h\" for nightly, else \"0s\"",
        "longest time that a command waits for another run to release the store",
    ),
    setting("settle", "\"0s\"", "longest time that `nightly` waits for a running zmbackup"),
    setting("settle-quiet", "\"5min\"", "time without a change in tmp/ after which zmbackup counts as finished"),
    setting("metrics", "none", "file that `nightly` writes metrics to, for Prometheus"),
    setting("log", "none", "where `nightly` logs to, besides stdout and stderr: \"journal\", \"syslog\" or a file"),
    setting("metrics-mode", "\"0644\", or as it is", "mode of the metrics file, in octal; it contains no addresses"),
    setting("log-mode", "\"0640\", or as it is", "mode of a log file, in octal"),
    setting("report-mode", "\"0640\", or as it is", "mode of the page that `report` writes, in octal"),
    setting("max-age", "\"36h\"", "age of the newest snapshot beyond which `status` reports it"),
    setting(
        "max-session-age",
        "\"3d\"",
        "age of the newest usable session beyond which zmbackup seems to have stopped; \"off\" for none",
    ),
    setting("retention.keep-last", "0", "number of newest snapshots to keep"),
    setting("retention.keep-hourly", "0", "keep the newest of each of the last N hours that have one"),
    setting("retention.keep-daily", "0", "keep the newest of each of the last N days that have one"),
    setting("retention.keep-weekly", "0", "keep the newest of each of the last N weeks that have one"),
    setting("retention.keep-monthly", "0", "keep the newest of each of the last N months that have one"),
    setting("retention.keep-yearly", "0", "keep the newest of each of the last N years that have one"),
    setting("retention.keep-within", "none", "keep every snapshot up to this age: 8d, 2w, 3m (months), 1y"),
    setting(
        "retention.keep-accounts",
        "none",
        "keep the last with an account whole, for this time after it vanished: 1y",
    ),
    setting("retention.keep-tags", "[]", "keep every snapshot with one of these tags"),
    setting("retention.max-unused", "10", "how much of the packs may be unused after a prune, in per cent"),
    setting(
        "guard.expect-retention",
        "learned",
        "age at which zmbackup -del removes sessions; earlier removal is suspect",
    ),
    setting(
        "guard.clock-jump",
        "learned",
        "time after the last snapshot beyond which the clock counts as wrong: 8d, 2w, 3m",
    ),
    setting("guard.changed-share", "0.2", "share of files that may change in place from one snapshot to the next"),
    setting(
        "guard.lost-share",
        "0.5",
        "share of names that may disappear, beside the sessions or in a tree that is not Zimbra's",
    ),
    setting("hooks.on-success", "none", "command to run after a successful night"),
    setting("hooks.on-warning", "none", "command to run when something needs attention"),
    setting("hooks.on-failure", "none", "command to run after a failed night"),
];

#[derive(Serialize)]
#[serde(tag = "event", rename = "setting")]
struct SettingEvent<'a> {
    key: &'a str,
    value: Option<String>,
    default: &'a str,
    meaning: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "mistake")]
struct MistakeEvent<'a> {
    message: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "summary")]
struct SummaryEvent<'a> {
    file: &'a str,
    mistakes: usize,
}

/// Checks the configuration. It reads the file itself: one that is not valid must still be reported.
pub(crate) fn run(output: &Output, global: &GlobalArgs, args: &ConfigArgs) -> Result<Exit, CliError> {
    let ConfigCommand::Check { connect } = args.command;
    let (file, must_exist) = super::file(global.config.as_deref());
    let shown = file.display().to_string();
    let Some(text) = super::read(&file, must_exist)? else {
        return Err(CliError::Usage(format!(
            "There is no configuration file {shown}; name another one with `--config`"
        )));
    };
    let mut mistakes = Vec::new();
    let given: toml::Table = text.parse().unwrap_or_else(|error: toml::de::Error| {
        mistakes.push(super::mistake(&text, &error));
        toml::Table::new()
    });
    let values = flatten(&given);
    for (key, value) in &values {
        mistakes.extend(mistake_of(key, value));
    }
    match super::parse(&text) {
        Ok(config) => {
            // What the whole file says counts for each source, and is reported once.
            let of_file = of_source(&config);
            mistakes.extend(of_this_host(&config));
            for source in &config.sources {
                let of_source = of_source(&source.config).into_iter().filter(|one| !of_file.contains(one));
                mistakes.extend(of_source.map(|mistake| format!("source {}: {mistake}", source.name)));
            }
            if connect {
                mistakes.extend(connections(output, &config));
            }
        }
        // What no key by itself shows: two sources with one name.
        Err(mistake) if mistakes.is_empty() => mistakes.push(mistake),
        Err(_) => {}
    }
    for setting in &SETTINGS {
        let value = values.iter().find(|(key, _)| key == setting.key).map(|(_, value)| value.to_string());
        if output.json() {
            let Setting { key, meaning, default } = setting;
            output.event(&SettingEvent { key, value, default, meaning })?;
        } else {
            let value = value.unwrap_or_else(|| format!("({})", setting.default));
            output.line(&format!("{:<24} {value:<24}  {}", setting.key, setting.meaning))?;
        }
    }
    for message in &mistakes {
        if output.json() {
            output.event(&MistakeEvent { message })?;
        } else {
            output.line(&format!("{} {message}", output.styled(ERROR, "wrong:")))?;
        }
    }
    if output.json() {
        output.event(&SummaryEvent { file: &shown, mistakes: mistakes.len() })?;
    } else if mistakes.is_empty() {
        output.line(&output.styled(GOOD, &format!("{shown} is in order.")))?;
    }
    Ok(if mistakes.is_empty() { Exit::Done } else { Exit::Usage })
}

/// Returns all keys with the names of their tables before them.
fn flatten(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut values = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                values.extend(inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone())));
            }
            value => values.push((key.clone(), value.clone())),
        }
    }
    values
}

/// Says what is wrong with one key by itself.
fn mistake_of(key: &str, value: &toml::Value) -> Option<String> {
    if !SETTINGS.iter().any(|setting| setting.key == key) {
        let near = SETTINGS.iter().map(|setting| (distance(setting.key, key), setting.key)).min();
        let hint =
            near.filter(|(distance, _)| *distance <= 3).map(|(_, near)| format!("; {near} is one")).unwrap_or_default();
        return Some(format!("{key} is not a setting{hint}"));
    }
    let mut alone = toml::Table::new();
    match key.split_once('.') {
        None => alone.insert(key.to_owned(), value.clone()),
        Some((table, name)) => {
            let inner = toml::Table::from_iter([(name.to_owned(), value.clone())]);
            alone.insert(table.to_owned(), toml::Value::Table(inner))
        }
    };
    match toml::Value::Table(alone).try_into::<Config>() {
        Err(error) => Some(format!("{key}: {}", error.message())),
        Ok(config) => range_mistake(&config),
    }
}

/// Counts the letters to change, add or leave out to get from one word to another.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, letter) in from.chars().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (place, other) in to.iter().enumerate() {
            let changed = before + usize::from(letter != *other);
            before = row[place + 1];
            row[place + 1] = changed.min(row[place] + 1).min(before + 1);
        }
    }
    row[to.len()]
}

/// Says what does not fit this host.
fn of_this_host(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    match &config.store {
        None => {}
        Some(store) => wrong
            .extend(Replica::open(store).err().map(|error| format!("store: {}", CliError::from(error).in_one_line()))),
    }
    wrong.extend(of_source(config));
    if let Some(metrics) = &config.metrics {
        wrong.extend(no_directory("metrics", metrics));
    }
    if let Some(LogTarget::File(log)) = config.log.as_ref().map(|log| &log.0) {
        wrong.extend(no_directory("log", log));
    }
    wrong
}

/// Says what of a source's settings does not fit this host.
fn of_source(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(source) = config.location()
        && path::remote(source.as_ref()).is_ok_and(|other_host| other_host.is_none())
    {
        match std::fs::read_dir(source).map(|mut listing| listing.next().is_none()) {
            Err(error) => wrong.push(format!("source: {source} cannot be read: {error}")),
            Ok(true) => wrong.push(format!("source: {source} is empty; is its volume mounted?")),
            Ok(false) => {}
        }
    }
    if let Err(error) = ExcludePatterns::new(&config.exclude, true) {
        wrong.push(format!("exclude: {error}"));
    }
    for (key, file) in config.remote.files() {
        if let Err(error) = std::fs::File::open(file) {
            wrong.push(format!("{key}: {} cannot be read: {error}", file.display()));
        }
    }
    let hooks = &config.hooks;
    for (key, hook) in [
        ("hooks.on-success", &hooks.on_success),
        ("hooks.on-warning", &hooks.on_warning),
        ("hooks.on-failure", &hooks.on_failure),
    ] {
        let words: Vec<&str> = match hook {
            None => continue,
            Some(HookCommand::Shell(line)) => line.split_whitespace().collect(),
            Some(HookCommand::Program(words)) => words.iter().map(String::as_str).collect(),
        };
        match words.first() {
            None => wrong.push(format!("{key}: it is not a command")),
            // Other words of a line for the shell may be anything.
            Some(program) if program.starts_with('/') && !is_executable(Path::new(program)) => {
                wrong.push(format!("{key}: {program} is not a program that can be run"));
            }
            Some(_) => {}
        }
    }
    wrong
}

/// Connects to each source on another host, and says what keeps a run from reading it.
fn connections(output: &Output, config: &Config) -> Vec<String> {
    let of_sources = config.sources.iter().map(|source| (Some(&source.name), &source.config));
    let mut wrong = Vec::new();
    for (name, config) in std::iter::once((None, config)).chain(of_sources) {
        let Some(location) = config.location() else { continue };
        let key = name.map_or_else(|| "source".to_owned(), |name| format!("source {name}"));
        let tried = path::remote(location.as_ref()).and_then(|spec| {
            let Some(spec) = spec else { return Ok(None) };
            let options = remote::options(&RemoteArgs::default(), &config.remote, None)?;
            // The first name that is listed is newer than that.
            let found = pull::change_since(&spec, &options, "", SystemTime::UNIX_EPOCH)?;
            Ok(Some(found.is_some()))
        });
        match tried {
            Err(error) => wrong.push(format!("{key}: {location}: {}", error.in_one_line())),
            Ok(Some(false)) => {
                wrong.push(format!("{key}: {location} is not there or is empty; is its volume mounted?"))
            }
            Ok(Some(true)) => output.note(&format!("{key}: connected to {location}, and read the directory.")),
            Ok(None) => {}
        }
    }
    wrong
}

fn no_directory(key: &str, file: &Path) -> Option<String> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (!directory.is_dir()).then(|| format!("{key}: the directory {} is not there", directory.display()))
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(program).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_and_near_misses_are_named() {
        let table: toml::Table =
            "stroe = 1\nsettle = 5\n[guard]\nchanged-share = 7\n[retention]\nkeep-dayly = 1\n[other]\nx = 1\n"
                .parse()
                .unwrap();
        let mistakes: Vec<String> = flatten(&table).iter().filter_map(|(key, value)| mistake_of(key, value)).collect();
        let has = |part: &str| assert!(mistakes.iter().any(|mistake| mistake.contains(part)), "{part}: {mistakes:#?}");
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        has("stroe is not a setting; store is one");
        has("settle: invalid type");
        has("guard.changed-share: give a number from 0 to 1");
        has("retention.keep-dayly is not a setting; retention.keep-daily is one");
        has("other.x is not a setting");
    }

    #[test]
    fn every_setting_is_known_to_the_file_and_has_its_place() {
        for setting in &SETTINGS {
            // A value of no sensible type: known keys complain about the type, unknown ones would about the name.
            let mistake = mistake_of(setting.key, &toml::Value::Array(vec![toml::Value::Float(1.5)])).unwrap();
            assert!(!mistake.contains("unknown field"), "{mistake}");
        }
    }
}
