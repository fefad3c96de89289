//! Where the rows come from that a [`CatalogReader`](super::reader::CatalogReader) decodes.

use std::sync::Arc;

use super::database_reader::DatabaseReader;
use super::error::{CatalogError, OpenError};
use super::latest_commit::LatestCommitReader;
use super::tables::Table;

/// Where a reader's rows come from.
pub(super) enum RowSource {
    /// One commit.
    Fixed(Arc<DatabaseReader>),
    /// The last commit, whichever that is.
    Latest(LatestCommitReader),
    /// Another host, row by row.
    Remote(Arc<dyn RemoteRows>),
}

/// Gives single rows of a catalogue that lies on another host.
pub trait RemoteRows: Send + Sync {
    /// Returns the payload of a row, `None` when there is no such row.
    ///
    /// # Errors
    /// When it cannot be had.
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError>;
}

impl RowSource {
    pub(super) fn get(&self) -> Result<Arc<DatabaseReader>, CatalogError> {
        match self {
            RowSource::Fixed(reader) => Ok(Arc::clone(reader)),
            RowSource::Latest(latest) => latest.get(),
            RowSource::Remote(_) => Err(OpenError::Remote.into()),
        }
    }

    /// Reads the payload of a row and hands it to `use_payload`, or returns `None` when there is no such row.
    pub(super) fn payload<T>(
        &self,
        table: Table,
        key: u64,
        use_payload: impl FnOnce(&[u8]) -> Result<T, CatalogError>,
    ) -> Result<Option<T>, CatalogError> {
        match self {
            RowSource::Remote(source) => source.row(table, key)?.map(|payload| use_payload(&payload)).transpose(),
            _ => self.get()?.get(table, key, use_payload),
        }
    }
}
