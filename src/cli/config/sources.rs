//! `source` in the configuration file: one location, or a table `[[source]]` for each of several sources.
//!
//! A table may hold most of what the file itself may hold. What it says counts for its source, and what it does not say is as in the rest of the file; its
//! excludes are added to those of the file.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use zmreplica::catalog::sources::SourceName;

use super::values::{AgeLimit, Span, Text};
use super::{Config, Guard, Hooks, Retention};
use crate::cli::remote::RemoteConfig;

/// What `source` says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SourceSetting {
    /// `source = "LOCATION"`.
    One(String),
    /// `[[source]]`.
    Several(Vec<SourceTable>),
}

/// One table `[[source]]`: it says which keys there may be. Their values are read with the rest of the file's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SourceTable {
    /// Name of the source.
    pub(super) name: SourceName,
    /// Where it is.
    pub(super) location: String,
    #[serde(default)]
    exclude: Vec<String>,
    settle: Option<Text<Span>>,
    settle_quiet: Option<Text<Span>>,
    max_duration: Option<Text<Span>>,
    max_age: Option<Text<Span>>,
    max_session_age: Option<Text<AgeLimit>>,
    #[serde(default)]
    remote: RemoteConfig,
    #[serde(default)]
    guard: Guard,
    #[serde(default)]
    retention: Retention,
    #[serde(default)]
    hooks: Hooks,
}

impl<'de> Deserialize<'de> for SourceSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SourceSetting, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = SourceSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a location, or tables [[source]]")
            }

            fn visit_str<E>(self, location: &str) -> Result<SourceSetting, E> {
                Ok(SourceSetting::One(location.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tables: A) -> Result<SourceSetting, A::Error> {
                let mut all = Vec::new();
                while let Some(table) = tables.next_element()? {
                    all.push(table);
                }
                Ok(SourceSetting::Several(all))
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

/// A source of the configuration file, and all settings that count for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConfiguredSource {
    /// Its name.
    pub(crate) name: SourceName,
    /// The settings. `source` is its location.
    pub(crate) config: Config,
}

/// Returns the sources that have tables, in the order of the file.
///
/// `file` is the whole file as a table, of which `setting` is one key. Fails, with a text, when two have the same name or location.
pub(super) fn of_file(file: &toml::Table, setting: Option<&SourceSetting>) -> Result<Vec<ConfiguredSource>, String> {
    let Some(SourceSetting::Several(tables)) = setting else { return Ok(Vec::new()) };
    let values = file.get("source").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut sources: Vec<ConfiguredSource> = Vec::new();
    for (SourceTable { name, location, .. }, value) in tables.iter().zip(values) {
        if let Some(other) = sources.iter().find(|other| other.name == *name) {
            return Err(format!("two sources have the name {}", other.name));
        }
        if let Some(other) = sources.iter().find(|other| other.config.location() == Some(location)) {
            return Err(format!("the sources {} and {name} have the same location", other.name));
        }
        let mut merged = file.clone();
        merged.insert("source".to_owned(), toml::Value::String(location.clone()));
        for (key, value) in value.as_table().into_iter().flatten().filter(|(key, _)| !is_own(key)) {
            merge(&mut merged, key, value);
        }
        let config: Config = toml::Value::Table(merged)
            .try_into()
            .map_err(|error: toml::de::Error| format!("source {name}: {error}"))?;
        sources.push(ConfiguredSource { name: name.clone(), config });
    }
    Ok(sources)
}

/// Returns whether a key is of the table alone.
pub(super) fn is_own(key: &str) -> bool {
    matches!(key, "name" | "location")
}

/// Puts a value of a source in the place of that of the file: key by key in tables, and behind it in lists of excludes.
fn merge(into: &mut toml::Table, key: &str, value: &toml::Value) {
    match (into.get_mut(key), value) {
        (Some(toml::Value::Table(there)), toml::Value::Table(own)) => {
            there.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        (Some(toml::Value::Array(there)), toml::Value::Array(own)) if key == "exclude" => {
            there.extend(own.iter().cloned())
        }
        _ => drop(into.insert(key.to_owned(), value.clone())),
    }
}
