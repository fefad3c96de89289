//! Rolling forward: commit files that the database has not seen are applied to it.

use super::CatalogError;
use super::checkpoint;
use super::commit::{self, CommitFile};
use super::commit_log::{commit_files, last_commit, read_whole};
use super::damage::FileFault;
use super::database::CatalogDatabase;
use super::tables::{Change, Table};
use crate::store::backend::Backend;

/// Applies commit files that the database has not seen; returns how many.
///
/// After a crash that is at most one; for an empty database it is the newest checkpoint, which does not count, and all files after it, which
/// rebuilds the catalogue.
///
/// # Errors
/// [`CatalogDamage::File`](super::CatalogDamage::File) when one is missing, damaged or does not follow the one before.
pub fn roll_forward(database: &CatalogDatabase, backend: &dyn Backend) -> Result<u64, CatalogError> {
    let (mut last, mut last_id) = last_commit(&database.read()?)?;
    let checkpoint = match last.0 {
        0 => checkpoint::newest_whole(backend)?,
        _ => match checkpoint::newest(backend) {
            // Only an empty catalogue needs it.
            Err(error) if error.is_damaged_file() => None,
            other => other?,
        },
    };
    if last.0 == 0
        && let Some(checkpoint) = &checkpoint
    {
        // Its rows of commits come last, so a database that got only a part of it still holds no commit.
        checkpoint.for_each_part(backend, |changes| database.apply(&changes))?;
        (last, last_id) = (checkpoint.number, checkpoint.commit);
    }
    let mut applied = 0;
    for number in commit_files(backend)?.into_iter().filter(|number| *number > last).collect::<Vec<_>>() {
        let key = commit::key(number);
        if number != last.next() {
            let fault = match &checkpoint {
                Some(folded) if folded.number > last => {
                    FileFault::PreviousFolded { number: last.next(), checkpoint: folded.number }
                }
                _ => FileFault::PreviousMissing { number: last.next() },
            };
            return Err(CatalogError::of_file(&key, fault));
        }
        let file = read_whole(backend, &key)?;
        let commit = CommitFile::open(&key, &file)?;
        if commit.previous != last_id {
            return Err(CatalogError::of_file(&key, FileFault::Sequence));
        }
        database.apply_all(|apply| {
            commit.for_each_batch(&mut *apply)?;
            apply(vec![Change::Put(Table::Commits, number.0, commit.id.to_vec())])
        })?;
        (last, last_id) = (number, commit.id);
        applied += 1;
    }
    let newest = checkpoint::heads(backend)?.first().copied().filter(|_| last.0 == 0 || checkpoint.is_some());
    if let Some(folded) = newest.filter(|folded| *folded > last) {
        return Err(CatalogError::of_file(&commit::key(last.next()), FileFault::Folded { checkpoint: folded }));
    }
    Ok(applied)
}
