//! Deleting what earlier runs condemned.
//!
//! Order of writes: the object goes, then its row. A crash between them leaves a row whose object is gone, which the next sweep removes. The
//! other way round it would leave a pack that no row names, which a run may adopt while somebody else is about to delete it.

use std::time::Duration;

use super::{Phase, PruneError, PruneProgress};
use crate::catalog::checkpoint;
use crate::catalog::condemned::{self, Condemned, Verdict};
use crate::catalog::database::Table;
use crate::catalog::writer::CatalogWriter;
use crate::replica::Replica;
use crate::store::backend::BackendError;

/// What was deleted.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Packs.
    pub(super) packs: u64,
    /// Their bytes.
    pub(super) pack_bytes: u64,
    /// Bytes of commit files and checkpoints.
    pub(super) folded_bytes: u64,
}

/// Deletes what is due by the clock `now`, and notes of the rest that it was seen. Commits.
pub(super) fn sweep(
    replica: &Replica,
    writer: &mut CatalogWriter,
    now: jiff::Timestamp,
    grace: Duration,
    progress: &PruneProgress,
) -> Result<Swept, PruneError> {
    let rows = condemned::read(writer.reader())?;
    progress.enter(Phase::Delete, rows.len() as u64);
    let mut swept = Swept::default();
    let mut gone = Vec::new();
    let backend = replica.backend();
    for (number, row) in rows {
        progress.step()?;
        match row.judge(now, grace) {
            Verdict::Waits(seen) => {
                if seen != row {
                    writer.set_condemned(number, &seen);
                }
                continue;
            }
            Verdict::Due => gone.push(number),
        }
        match row.what {
            Condemned::OlderThan(checkpoint) => {
                swept.folded_bytes += checkpoint::tidy(backend.as_ref(), checkpoint)?;
            }
            Condemned::Pack(id) => match backend.delete(&id.key()) {
                Ok(()) => {
                    swept.packs += 1;
                    swept.pack_bytes += row.bytes;
                }
                // By a sweep that died before it removed the row.
                Err(BackendError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    if !gone.is_empty() {
        backend.sync()?;
        gone.into_iter().for_each(|number| writer.remove(Table::Condemned, number));
    }
    writer.commit()?;
    Ok(swept)
}
