//! Rolling forward: commit files that the database has not seen are applied to it.

use super::CatalogError;
use super::checkpoint;
use super::commit::{self, CommitFile};
use super::commit_log::{commit_files, last_commit, read_whole};
use super::database::CatalogDatabase;
use super::tables::{Change, Table};
use crate::store::backend::Backend;

/// Applies commit files that the database has not seen; returns how many.
///
/// After a crash that is at most one; for an empty database it is the newest checkpoint, which does not count, and all files after it, which
/// rebuilds the catalogue.
///
/// # Errors
/// [`CatalogError::CommitFile`] when one is missing, damaged or does not follow the one before.
pub fn roll_forward(database: &CatalogDatabase, backend: &dyn Backend) -> Result<u64, CatalogError> {
    let (mut last, mut last_id) = last_commit(&database.read()?)?;
    let checkpoint = match last {
        0 => checkpoint::newest_whole(backend)?,
        _ => match checkpoint::newest(backend) {
            // Only an empty catalogue needs it.
            Err(CatalogError::CommitFile { .. }) => None,
            other => other?,
        },
    };
    if last == 0
        && let Some(checkpoint) = &checkpoint
    {
        // Its rows of commits come last, so a database that got only a part of it still holds no commit.
        checkpoint.for_each_part(backend, |changes| database.apply(&changes))?;
        (last, last_id) = (checkpoint.number, checkpoint.commit);
    }
    let mut applied = 0;
    for number in commit_files(backend)?.into_iter().filter(|number| *number > last).collect::<Vec<_>>() {
        let key = commit::key(number);
        let broken = |reason: String| CatalogError::CommitFile { key: key.clone(), reason };
        if number != last + 1 {
            return Err(broken(match &checkpoint {
                Some(folded) if folded.number > last => format!(
                    "commit file {} before it was folded into the checkpoint of commit {}, and the catalogue is older; \
                     `zmreplica repair` rebuilds it",
                    last + 1,
                    folded.number
                ),
                _ => format!("commit file {} before it is missing", last + 1),
            }));
        }
        let file = read_whole(backend, &key)?;
        let commit = CommitFile::open(&key, &file)?;
        if commit.previous != last_id {
            return Err(broken("it does not follow the commit before it".to_owned()));
        }
        database.apply_all(|apply| {
            commit.for_each_batch(&mut *apply)?;
            apply(vec![Change::Put(Table::Commits, number, commit.id.to_vec())])
        })?;
        (last, last_id) = (number, commit.id);
        applied += 1;
    }
    let newest = checkpoint::heads(backend)?.first().copied().filter(|_| last == 0 || checkpoint.is_some());
    if let Some(folded) = newest.filter(|folded| *folded > last) {
        let reason = format!(
            "it was folded into the checkpoint of commit {folded}, and the catalogue is older; `zmreplica repair` rebuilds it",
        );
        return Err(CatalogError::CommitFile { key: commit::key(last + 1), reason });
    }
    Ok(applied)
}
