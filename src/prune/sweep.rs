//! Deleting what earlier runs condemned.
//!
//! Order of writes: the object goes, then its row. A crash between them leaves a row whose object is gone, which the next sweep removes. The
//! other way round it would leave a pack that no row names, which a run may adopt while somebody else is about to delete it.
//!
//! Architecture invariant: no pack is deleted that a row of the table of packs names. Two rows may name one pack (ids of format 1 follow from the
//! content), and a repair may bring a row back whose pack was condemned; such a pack is condemned no longer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Phase, PruneError, PruneProgress};
use crate::catalog::CatalogError;
use crate::catalog::checkpoint_writer;
use crate::catalog::condemned::{self, Condemned, Verdict};
use crate::catalog::reader::CatalogReader;
use crate::catalog::tables::Table;
use crate::catalog::writer::CatalogWriter;
use crate::replica::Replica;
use crate::store::backend::BackendError;
use crate::store::pack::PackId;

/// What was deleted.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Packs.
    pub(super) packs: u64,
    /// Their bytes.
    pub(super) pack_bytes: u64,
    /// Bytes of commit files and checkpoints.
    pub(super) folded_bytes: u64,
    /// Why commit files and checkpoints stay that were due.
    pub(super) not_tidied: Option<String>,
}

/// Returns the packs that rows name.
pub(super) fn named_packs(catalog: &CatalogReader) -> Result<BTreeSet<PackId>, CatalogError> {
    let mut named = BTreeSet::new();
    catalog.for_each_pack(|_, row| {
        named.insert(row.id);
        Ok(())
    })?;
    Ok(named)
}

/// Deletes what is due by the clock `now`, and notes of the rest that it was seen. Commits.
pub(super) fn sweep(
    replica: &Replica,
    writer: &mut CatalogWriter,
    now: jiff::Timestamp,
    grace: Duration,
    progress: &PruneProgress,
) -> Result<Swept, PruneError> {
    let rows = condemned::read_all(writer.reader())?;
    progress.enter(Phase::Delete, rows.len() as u64);
    let mut swept = Swept::default();
    let mut gone = Vec::new();
    let backend = replica.backend();
    let named = named_packs(writer.reader())?;
    for (number, row) in rows {
        progress.step()?;
        if matches!(row.what, Condemned::Pack(id) if named.contains(&id)) {
            gone.push(number);
            continue;
        }
        match row.judge(now, grace) {
            Verdict::Waits(seen) => {
                if seen != row {
                    writer.set_condemned(number, &seen);
                }
                continue;
            }
            Verdict::Due => {}
        }
        match row.what {
            Condemned::OlderThan(checkpoint) => {
                match checkpoint_writer::delete_superseded(backend.as_ref(), checkpoint) {
                    Ok(bytes) => swept.folded_bytes += bytes,
                    // What it took the place of may be needed still: it waits for a repair, or for the next checkpoint.
                    Err(error) if error.is_damage() => {
                        swept.not_tidied = Some(error.to_string());
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
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
        gone.push(number);
    }
    if !gone.is_empty() {
        backend.sync()?;
        gone.into_iter().for_each(|number| writer.remove(Table::Condemned, number));
    }
    writer.commit()?;
    Ok(swept)
}
