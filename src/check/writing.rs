//! Writing: the pages of the catalogue's database that only a writer reads.
//!
//! What a writer does is done over a copy of the changed pages in memory, some megabytes at most. Nobody is kept from writing meanwhile: only what fails is
//! tried again with writers kept out, since a writer at work makes a copy that does not fit together.

use super::ledger::{DamageKind, Key};
use super::{CheckError, Checker, is_damage};
use crate::catalog::database::CatalogDatabase;
use crate::replica::{ReplicaError, share_lock};

/// Finds out whether a run can write to the catalogue.
pub(super) fn verify(checker: &Checker<'_>) -> Result<(), CheckError> {
    let database = checker.replica.database();
    // Repaired in memory: a writer has done its work on it.
    if database.is_repaired_in_memory() || CatalogDatabase::try_writing(database.path()).is_ok() {
        return Ok(());
    }
    let _lock = match share_lock(checker.replica.path()) {
        Ok(lock) => Some(lock),
        // Whoever writes has opened it.
        Err(ReplicaError::Locked { .. }) => return Ok(()),
        // Where the lock cannot be had, nobody else has it either.
        Err(_) => None,
    };
    match CatalogDatabase::try_writing(database.path()) {
        Ok(()) => Ok(()),
        Err(error) if is_damage(&error) => {
            let what = "The catalogue's own pages".to_owned();
            let reason = format!("a run cannot write to it: {error}");
            checker.ledger.note(DamageKind::Catalog, Key::Step("writing"), what, reason);
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
