//! The hold: as long as it is in force, no run takes or removes anything.
//!
//! It is of the whole store: row 2 of `meta`, a JSON object, and so in the commit files. It survives a rebuilding.

use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::dates::Dates;
use super::meta::HOLD;
use super::reader::CatalogReader;
use super::row_id::RowKind;
use super::tables::Table;

/// A hold: until it ends, no run takes or removes anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when, in UTC.
    pub since: jiff::Timestamp,
    /// When it ends by itself, if it does, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<jiff::Timestamp>,
    /// The reason, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Returns the hold that is in force at a time. One that would be over stays in force while the clock is in doubt: a clock that is ahead for a night must
/// not end it.
///
/// # Errors
/// Fails when the catalogue cannot be read.
pub fn hold_in_force(catalog: &CatalogReader, now: jiff::Timestamp) -> Result<Option<Hold>, CatalogError> {
    let hold = catalog.database()?.get(Table::Meta, HOLD, |payload| {
        serde_json::from_slice::<Hold>(payload).map_err(|error| CatalogError::of_row(RowKind::Meta.row(HOLD), error))
    })?;
    let Some(hold) = hold else { return Ok(None) };
    let in_force = match hold.until {
        None => true,
        Some(until) => now < until || Dates::read(catalog, now)?.is_clock_in_doubt(until),
    };
    Ok(in_force.then_some(hold))
}
