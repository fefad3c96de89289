//! The configuration file: TOML, so that a nightly job needs no arguments.

mod check;
mod sources;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zmreplica::guard::GuardOptions;
use zmreplica::nightly::hooks::HookCommand;
use zmreplica::nightly::status::MAX_SESSION_AGE;
use zmreplica::plain::short;
use zmreplica::retention::{Policy, Within};

use self::sources::SourceSetting;
use super::error::CliError;
use super::remote::RemoteConfig;

pub(crate) use check::{ConfigArgs, run};
pub(crate) use sources::ConfiguredSource;
pub(crate) use values::{AgeLimit, FileMode, LogTarget, Share, Span, Text};

/// Read when no other file is named and this one is there.
const DEFAULT_PATH: &str = "/etc/zmreplica.toml";
/// A line of the file is shown up to this length, in bytes.
const LINE_BYTES: usize = 200;
/// Environment variable that names the configuration file.
const CONFIG_VARIABLE: &str = "ZMREPLICA_CONFIG";

/// What a configuration file may say. Options of the command line win over it; its excludes are added to theirs. `check.rs` explains each key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Directory of the store.
    pub(crate) store: Option<PathBuf>,
    /// What `snapshot` takes when it is given no source: one location, or the tables of several sources.
    source: Option<SourceSetting>,
    /// The sources that have tables of their own.
    #[serde(skip)]
    pub(crate) sources: Vec<ConfiguredSource>,
    /// Exclude patterns.
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
    /// zstd level, 1 to 19.
    pub(crate) compression_level: Option<i32>,
    /// Whether small chunks are compressed with a trained dictionary.
    pub(crate) dictionary: Option<bool>,
    /// How long `nightly` waits for zmbackup at most.
    pub(crate) settle: Option<Text<Span>>,
    /// How long nothing must have changed for zmbackup to count as finished.
    pub(crate) settle_quiet: Option<Text<Span>>,
    /// How long another run is waited for.
    pub(crate) wait_lock: Option<Text<Span>>,
    /// How long a run may take.
    pub(crate) max_duration: Option<Text<Span>>,
    /// File that `nightly` writes metrics to.
    pub(crate) metrics: Option<PathBuf>,
    /// Where `nightly` logs to.
    pub(crate) log: Option<Text<LogTarget>>,
    /// Mode of the file of metrics.
    metrics_mode: Option<Text<FileMode>>,
    /// Mode of a log file.
    log_mode: Option<Text<FileMode>>,
    /// Mode of the page that `report` writes.
    report_mode: Option<Text<FileMode>>,
    /// Age of the newest snapshot from which on `status` complains.
    pub(crate) max_age: Option<Text<Span>>,
    /// Age of the newest session that a restore can use, from which on zmbackup seems to have stopped.
    max_session_age: Option<Text<AgeLimit>>,
    /// How a source on another host is reached.
    #[serde(default)]
    pub(crate) remote: RemoteConfig,
    /// What `prune` keeps.
    #[serde(default)]
    pub(crate) retention: Retention,
    /// Settings of the guard.
    #[serde(default)]
    guard: Guard,
    /// What is run after a night.
    #[serde(default)]
    pub(crate) hooks: Hooks,
}

/// The table `[retention]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Retention {
    pub(crate) keep_last: u32,
    pub(crate) keep_hourly: u32,
    pub(crate) keep_daily: u32,
    pub(crate) keep_weekly: u32,
    pub(crate) keep_monthly: u32,
    pub(crate) keep_yearly: u32,
    pub(crate) keep_within: Option<Within>,
    pub(crate) keep_tags: Vec<String>,
    pub(crate) keep_accounts: Option<Within>,
    pub(crate) max_unused: Option<u8>,
    pub(crate) grace: Option<Text<Span>>,
}

impl Retention {
    /// Returns the rules.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within: self.keep_within,
            keep_tags: self.keep_tags.clone(),
            keep_accounts: self.keep_accounts,
        }
    }
}

/// The table `[guard]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Guard {
    expect_retention: Option<Within>,
    clock_jump: Option<Within>,
    changed_share: Option<Share>,
    lost_share: Option<Share>,
}

/// The table `[hooks]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Hooks {
    pub(crate) on_success: Option<HookCommand>,
    pub(crate) on_warning: Option<HookCommand>,
    pub(crate) on_failure: Option<HookCommand>,
}

impl Config {
    /// Returns where the one source is; nothing when there is none, or several have tables.
    pub(crate) fn location(&self) -> Option<&String> {
        match &self.source {
            Some(SourceSetting::One(location)) => Some(location),
            _ => None,
        }
    }

    /// Returns the settings of a source that has a table.
    pub(crate) fn of_source(&self, name: &str) -> Option<&Config> {
        self.sources.iter().find(|source| source.name.as_str() == name).map(|source| &source.config)
    }

    /// Returns how old the newest session may be, of which an option of the command line may say something else; `None` is no limit.
    pub(crate) fn max_session_age(&self, given: Option<AgeLimit>) -> Option<Duration> {
        let limit = given.or(self.max_session_age.map(|limit| limit.0));
        limit.map_or(Some(MAX_SESSION_AGE), |limit| limit.0)
    }

    /// Returns the mode of the file of metrics, if one is wanted.
    pub(crate) fn metrics_mode(&self) -> Option<u32> {
        self.metrics_mode.map(|mode| mode.0.0)
    }

    /// Returns the mode of a log file, if one is wanted.
    pub(crate) fn log_mode(&self) -> Option<u32> {
        self.log_mode.map(|mode| mode.0.0)
    }

    /// Returns the mode of the page that `report` writes, if one is wanted.
    pub(crate) fn report_mode(&self) -> Option<u32> {
        self.report_mode.map(|mode| mode.0.0)
    }

    /// Returns the settings of the guard.
    pub(crate) fn guard(&self) -> GuardOptions {
        let default = GuardOptions::default();
        let share = |share: Option<Share>, default: f64| share.map_or(default, |share| share.0);
        GuardOptions {
            expect_retention: self.guard.expect_retention,
            clock_jump: self.guard.clock_jump,
            changed_share: share(self.guard.changed_share, default.changed_share),
            lost_share: share(self.guard.lost_share, default.lost_share),
        }
    }
}

/// Returns the file that is meant, and whether somebody named it, so that it must be there.
fn file(given: Option<&Path>) -> (PathBuf, bool) {
    let named = given
        .map(Path::to_owned)
        .or_else(|| std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
    let must_exist = named.is_some();
    (named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)), must_exist)
}

fn read(path: &Path, must_exist: bool) -> Result<Option<String>, CliError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => Err(CliError::Usage(format!("Cannot read the configuration file {}: {error}", path.display()))),
    }
}

/// Loads the file given, else the one that the environment names, else the default one if it is there.
pub(crate) fn load(given: Option<&Path>) -> Result<Config, CliError> {
    let (path, must_exist) = file(given);
    let Some(text) = read(&path, must_exist)? else { return Ok(Config::default()) };
    parse(&text).map_err(|reason| {
        let path = path.display();
        CliError::Usage(format!("The configuration file {path} is not valid: {reason} (see `zmreplica config check`)"))
    })
}

/// Says in a line what a file's text does not say well.
fn mistake(text: &str, error: &toml::de::Error) -> String {
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => {
            let number = before.matches('\n').count() + 1;
            let line = text.lines().nth(number - 1).unwrap_or_default();
            format!("line {number}, `{}`: {}", short(line.trim(), LINE_BYTES), error.message())
        }
        None => error.message().to_owned(),
    }
}

fn parse(text: &str) -> Result<Config, String> {
    let mut config: Config = toml::from_str(text).map_err(|error| mistake(text, &error))?;
    let table: toml::Table = text.parse().map_err(|error| mistake(text, &error))?;
    config.sources = sources::of_file(&table, config.source.as_ref())?;
    let of_sources = config
        .sources
        .iter()
        .find_map(|source| range_mistake(&source.config).map(|mistake| format!("source {}: {mistake}", source.name)));
    match range_mistake(&config).or(of_sources) {
        Some(mistake) => Err(mistake),
        None => Ok(config),
    }
}

/// Says which figure lies outside of what is possible.
fn range_mistake(config: &Config) -> Option<String> {
    if let Some(level) = config.compression_level.filter(|level| !(1..=19).contains(level)) {
        return Some(format!("compression-level is {level} and must be 1 to 19"));
    }
    if let Some(percent) = config.retention.max_unused.filter(|percent| *percent > 100) {
        return Some(format!("max-unused is {percent} and must be 0 to 100 (per cent)"));
    }
    config.remote.fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_unknown_ones_named() {
        let config = parse("store = '/srv/store'\nexclude = ['*.tmp']\ncompression-level = 9\ndictionary = false\n");
        let expected = Config {
            store: Some("/srv/store".into()),
            exclude: vec!["*.tmp".to_owned()],
            compression_level: Some(9),
            dictionary: Some(false),
            ..Config::default()
        };
        assert_eq!(config, Ok(expected));
        assert!(parse("compresion-level = 9").is_err_and(|error| error.contains("compresion-level")));
        assert!(parse("[remote]\nssh-key = '/k'\nbwlimit = '10M'\nupload = false\ncompress-at = 'replica'\n").is_ok());
        assert!(parse("[remote]\nbwlimit = 'much'").is_err_and(|error| error.contains("bwlimit")));
        assert!(parse("compression-level = 99").is_err_and(|error| error.contains("1 to 19")));
    }

    #[test]
    fn a_table_of_a_source_counts_for_that_source() {
        let config = parse(
            "exclude = ['*.tmp']\nsettle = '2h'\n[remote]\nretries = 3\nssh-key = '/k'\n[retention]\nkeep-daily = 30\n\
             [[source]]\nname = 'mail1'\nlocation = 'mail1:/b'\n\
             [[source]]\nname = 'mail2'\nlocation = 'mail2:/b'\nexclude = ['*.old']\nsettle = '1h'\n\
             [source.remote]\nssh-key = '/other'\n[source.retention]\nkeep-daily = 7\nkeep-weekly = 4\n",
        )
        .unwrap();
        let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!((names, config.location()), (vec!["mail1", "mail2"], None));
        let (first, second) = (config.of_source("mail1").unwrap(), config.of_source("mail2").unwrap());
        assert_eq!((first.location().unwrap().as_str(), first.exclude.len()), ("mail1:/b", 1));
        assert_eq!(second.exclude, ["*.tmp", "*.old"]);
        assert_eq!(second.settle, Some(Text(Span(Duration::from_secs(3600)))));
        assert_eq!((first.retention.keep_daily, second.retention.keep_daily, second.retention.keep_weekly), (30, 7, 4));
        // What a table does not say is as in the rest of the file, key by key.
        assert_eq!(parse("[remote]\nretries = 3\nssh-key = '/other'\n").unwrap().remote, second.remote);
        let table = |name: &str, location: &str| format!("[[source]]\nname = '{name}'\nlocation = '{location}'\n");
        for (wrong, said) in [
            (table("a", "a:/b") + &table("a", "c:/d"), "two sources have the name a"),
            (table("a", "a:/b") + &table("c", "a:/b"), "the sources a and c have the same location"),
            (table("latest", "a:/b"), "is no name for a source"),
            (table("a", "a:/b") + "store = '/s'\n", "store"),
            (table("a", "a:/b") + "[source.remote]\nbwlimit = 'much'\n", "source a: remote.bwlimit"),
            ("[[source]]\nname = 'a'\n".to_owned(), "location"),
            ("source = 5".to_owned(), "a location, or tables"),
        ] {
            assert!(parse(&wrong).is_err_and(|error| error.contains(said)), "{wrong}: {:?}", parse(&wrong));
        }
    }

    #[test]
    fn the_example_is_valid_with_all_that_it_proposes() {
        let example = include_str!("../../../packaging/zmreplica.toml");
        assert!(
            parse(example)
                .is_ok_and(|config| !config.retention.policy().is_empty() && config.hooks.on_warning.is_none())
        );
        // What is commented out begins with its key; prose has a blank first.
        let all: String = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = parse(&all).unwrap();
        assert!(
            config.hooks.on_warning.is_some() && config.metrics.is_some() && config.guard().expect_retention.is_some()
        );
    }

    #[test]
    fn the_tables_of_the_night_are_read() {
        let config = parse(
            "settle = '2h'\nlog = 'journal'\nmetrics = '/m'\n[retention]\nkeep-daily = 30\nkeep-within = '3m'\nmax-unused = 5\n\
             [guard]\nexpect-retention = '1m'\nclock-jump = '2m'\nchanged-share = '10%'\nlost-share = 0.25\n[hooks]\non-failure = ['mail', 'root']\n",
        );
        let config = config.unwrap();
        assert_eq!(config.settle, Some(Text(Span(Duration::from_secs(7200)))));
        assert_eq!(config.log, Some(Text(LogTarget::System)));
        assert_eq!((config.retention.keep_daily, config.retention.policy().is_empty()), (30, false));
        let guard = config.guard();
        assert_eq!(guard.expect_retention.unwrap().to_string(), "1m");
        assert_eq!(guard.clock_jump.unwrap().to_string(), "2m");
        assert_eq!((guard.changed_share, guard.lost_share), (0.1, 0.25));
        assert_eq!(config.hooks.on_failure.unwrap().shown(), "mail root");
        let limit = |text: &str| parse(text).unwrap().max_session_age(None).map(|age| age.as_secs() / 86_400);
        assert_eq!(
            [
                limit(""),
                limit("max-session-age = '8d'"),
                limit("max-session-age = 'off'"),
                limit("max-session-age = '0'")
            ],
            [Some(3), Some(8), None, None]
        );
        assert!(parse("[retention]\nmax-unused = 5").unwrap().retention.policy().is_empty());
        for (wrong, reported) in [
            ("settle = '30y'", "is not a span of time"),
            ("[guard]\nchanged-share = 20", "0 to 1"),
            ("[guard]\nexpect-retention = '3 months'", "3 months"),
            ("[retention]\nkeep-dayly = 1", "keep-dayly"),
            ("[retention]\nmax-unused = 101", "0 to 100"),
            ("log = 'log.txt'", "absolute"),
        ] {
            assert!(parse(wrong).is_err_and(|error| error.contains(reported)), "{wrong}: {:?}", parse(wrong));
        }
    }
}
