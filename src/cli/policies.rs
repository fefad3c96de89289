//! The rules of retention of the configuration file and the command line, for each source.

use std::collections::BTreeMap;

use zmreplica::catalog::sources::{SourceName, Sources};
use zmreplica::retention::{Policy, Rules};

use super::config::{Config, ConfiguredSource};
use super::error::CliError;
use super::path;

/// The rules of retention as they are configured: of all sources, and of those that have a table of their own.
pub(crate) struct Policies {
    pub(crate) policy: Policy,
    of_tables: Vec<TablePolicy>,
    /// The source that the rules are for, by its name or its location; those of all others keep everything.
    pub(crate) only: Option<String>,
}

/// The rules of a source with a table of its own.
struct TablePolicy {
    name: SourceName,
    /// Where the source is, as a snapshot names it.
    location: Option<String>,
    policy: Policy,
}

impl Policies {
    pub(crate) fn configured(config: &Config) -> Policies {
        Policies::of(config, Policy::clone)
    }

    /// Puts together what is configured and what is given.
    pub(crate) fn of(config: &Config, with_given: impl Fn(&Policy) -> Policy) -> Policies {
        let of_table = |source: &ConfiguredSource| TablePolicy {
            name: source.name.clone(),
            location: source.config.location().and_then(|location| path::canonical_location(location.as_ref()).ok()),
            policy: with_given(&source.config.retention.policy()),
        };
        Policies {
            policy: with_given(&config.retention.policy()),
            of_tables: config.sources.iter().map(of_table).collect(),
            only: None,
        }
    }

    pub(crate) fn are_empty(&self) -> bool {
        self.all().all(Policy::is_empty)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Policy> {
        std::iter::once(&self.policy).chain(self.of_tables.iter().map(|table| &table.policy))
    }

    /// Returns the rules of each source. A table whose name the store does not know, because the source was renamed, is found by its location: the general
    /// rules might let go what the table keeps.
    pub(crate) fn rules(&self, sources: &Sources) -> Result<Rules, CliError> {
        let by_source = self.of_tables.iter().filter_map(|TablePolicy { name, location, policy }| {
            let by_location = || location.as_deref().and_then(|location| sources.by_location(location));
            Some((sources.by_name(name.as_str()).or_else(by_location)?, policy.clone()))
        });
        let rules = Rules { by_source: by_source.collect(), ..Rules::from(&self.policy) };
        let Some(only) = &self.only else { return Ok(rules) };
        let id = sources.find(only)?;
        let by_source = BTreeMap::from([(id, rules.policy(Some(id)).clone())]);
        Ok(Rules { policy: Policy::default(), by_source, ..rules })
    }
}
