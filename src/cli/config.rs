//! The configuration file: TOML with few keys, so that a nightly job needs no arguments.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use zmreplica::retention::Policy;

use super::error::CliError;

/// Read when no other file is named and this one is there.
const DEFAULT_PATH: &str = "/etc/zmreplica.toml";
/// Environment variable that names the configuration file.
const CONFIG_VARIABLE: &str = "ZMREPLICA_CONFIG";

/// What a configuration file may say. Options of the command line win over it; its excludes are added to theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Directory of the store.
    pub(crate) store: Option<PathBuf>,
    /// What `snapshot` takes when it is given no source.
    pub(crate) source: Option<String>,
    /// Exclude patterns.
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
    /// zstd level, 1 to 19.
    pub(crate) compression_level: Option<i32>,
    /// Whether small chunks are compressed with a trained dictionary.
    pub(crate) dictionary: Option<bool>,
    /// Which snapshots `prune` keeps.
    #[serde(default)]
    pub(crate) retention: Policy,
}

/// Loads the file given, else the one that the environment names, else the default one if it is there.
pub(crate) fn load(given: Option<&Path>) -> Result<Config, CliError> {
    let named = given
        .map(Path::to_owned)
        .or_else(|| std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from));
    let must_exist = named.is_some();
    let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return Ok(Config::default()),
        Err(error) => {
            return Err(CliError::Usage(format!("Cannot read the configuration file {}: {error}", path.display())));
        }
    };
    parse(&text)
        .map_err(|reason| CliError::Usage(format!("The configuration file {} is not valid: {reason}", path.display())))
}

fn parse(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    match config.compression_level {
        Some(level) if !(1..=19).contains(&level) => Err(format!("compression-level is {level} and must be 1 to 19")),
        _ => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_unknown_ones_named() {
        let config = parse("store = '/srv/store'\nexclude = ['*.tmp']\ncompression-level = 9\ndictionary = false\n");
        let expected = Config {
            store: Some("/srv/store".into()),
            source: None,
            exclude: vec!["*.tmp".to_owned()],
            compression_level: Some(9),
            dictionary: Some(false),
            retention: Policy::default(),
        };
        assert_eq!(config, Ok(expected));
        assert!(parse("compresion-level = 9").is_err_and(|error| error.contains("compresion-level")));
        let rules = "[retention]\nkeep-daily = 30\nkeep-within = '3m'\nkeep-tags = ['before-upgrade']\n";
        let retention = parse(rules).unwrap().retention;
        assert_eq!((retention.keep_daily, retention.keep_last, retention.keep_tags.len()), (30, 0, 1));
        assert_eq!(retention.keep_within.map(|within| within.to_string()).as_deref(), Some("3m"));
        assert!(parse("[retention]\nkeep-within = '3 months'").is_err_and(|error| error.contains("3 months")));
        assert!(parse("[retention]\nkeep-dayly = 1").is_err_and(|error| error.contains("keep-dayly")));
        assert!(parse("compression-level = 99").is_err_and(|error| error.contains("1 to 19")));
    }
}
