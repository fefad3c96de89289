//! Which commits there are: as rows of the database, and as files of the backend.

use std::collections::BTreeSet;

use super::CatalogError;
use super::commit::{self, CommitId};
use super::damage::FileFault;
use super::database_reader::DatabaseReader;
use super::row_id::RowKind;
use super::tables::Table;
use crate::coding::DecodeError;
use crate::ids::CommitNumber;
use crate::store::backend::Backend;

/// Returns the number and identifier of the last commit in the database; number 0 when there is none.
///
/// # Errors
/// Fails when a commit row is damaged.
pub fn last_commit(database: &DatabaseReader) -> Result<(CommitNumber, CommitId), CatalogError> {
    let mut last = <(CommitNumber, CommitId)>::default();
    database.scan(Table::Commits, 0, |number, payload| {
        let number = CommitNumber(number);
        last = (number, decode_commit_row(number, payload?)?);
        Ok(())
    })?;
    Ok(last)
}

/// Returns the identifier of a commit that the database holds.
///
/// # Errors
/// Fails when the row is damaged.
pub fn commit_id(database: &DatabaseReader, number: CommitNumber) -> Result<Option<CommitId>, CatalogError> {
    database.get(Table::Commits, number.0, |payload| decode_commit_row(number, payload))
}

fn decode_commit_row(number: CommitNumber, payload: &[u8]) -> Result<CommitId, CatalogError> {
    let id = payload.try_into().map_err(|_| DecodeError("it is no identifier"));
    id.map_err(|error| CatalogError::of_row(RowKind::Commit.row(number), error))
}

/// Returns the numbers of all commit files, ascending.
///
/// # Errors
/// Fails when they cannot be listed.
pub fn commit_files(backend: &dyn Backend) -> Result<BTreeSet<CommitNumber>, CatalogError> {
    let keys = backend.list("commits/")?.into_iter();
    let named = keys.filter_map(|(key, _)| commit::parse_key(&key).filter(|number| commit::key(*number) == key));
    Ok(named.collect())
}

/// Reads a whole object of the backend.
///
/// # Errors
/// Fails when it is not there or cannot be read.
pub fn read_whole(backend: &dyn Backend, key: &str) -> Result<Vec<u8>, CatalogError> {
    let bytes = backend.size(key)?.ok_or_else(|| CatalogError::of_file(key, FileFault::Missing))?;
    Ok(backend.read_at(key, 0, bytes as usize)?)
}
