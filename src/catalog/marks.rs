//! Marks: what people say of snapshots after they were taken.
//!
//! Snapshot records never change. What changes later stands in a table of its own, `marks`: a JSON object for each snapshot that has any. Marks are rows
//! like any other, so they are in the commit files and survive a rebuilding.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CatalogError;
use super::reader::CatalogReader;
use super::row_id::RowKind;
use super::tables::Table;
use crate::ids::SnapshotNumber;

/// That somebody said something, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When, in UTC.
    pub at: jiff::Timestamp,
    /// The reason, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The marks of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMarks {
    /// The snapshot is as it should be, whatever the guard found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Mark>,
    /// The snapshot is never removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Mark>,
}

impl SnapshotMarks {
    /// Returns whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == SnapshotMarks::default()
    }
}

/// Decodes the marks of one snapshot.
///
/// # Errors
/// [`CatalogDamage::Row`](super::CatalogDamage::Row) when they make no sense.
pub fn decode(number: SnapshotNumber, payload: &[u8]) -> Result<SnapshotMarks, CatalogError> {
    serde_json::from_slice(payload).map_err(|error| CatalogError::of_row(RowKind::Marks.row(number), error))
}

/// Returns the marks of all snapshots that have any, by their numbers.
///
/// # Errors
/// Fails when the catalogue cannot be read.
pub fn read_all(catalog: &CatalogReader) -> Result<BTreeMap<SnapshotNumber, SnapshotMarks>, CatalogError> {
    let mut marks = BTreeMap::new();
    catalog.database()?.scan(Table::Marks, 0, |number, payload| {
        let number = SnapshotNumber(number);
        marks.insert(number, decode(number, payload?)?);
        Ok(())
    })?;
    Ok(marks)
}
