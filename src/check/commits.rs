//! Commit files: the newest checkpoint intact, each file after it there, intact, and the successor of the one before.
//!
//! What they say is gathered on the way: for every row of the catalogue the hash that its payload must have. The rows are compared with it later, which
//! finds any that is missing, outdated or was never committed, and proves that a rebuilt catalogue would be the same.

use std::sync::atomic::Ordering;

use super::ledger::{DamageKind, Key};
use super::{CheckError, CheckReport, Checker, Phase, is_damage};
use crate::catalog::checkpoint::{self, Checkpoint};
use crate::catalog::commit::{self, CommitFile, CommitId};
use crate::catalog::commit_log::{self, commit_id, last_commit, read_whole};
use crate::catalog::database_reader::DatabaseReader;
use crate::catalog::row_hashes::{RowHashes, RowHashesBuilder};
use crate::catalog::tables::Table;
use crate::catalog::{CatalogDamage, CatalogError};
use crate::ids::CommitNumber;

/// The rows that the catalogue must hold.
#[derive(Default)]
pub(super) struct Committed {
    /// The hash of each row's payload; `None` when commit files are damaged.
    pub(super) rows: Option<RowHashes>,
}

/// Verifies all commit files up to the catalogue's last commit, and counts those beyond it.
pub(super) fn verify(checker: &Checker<'_>, report: &mut CheckReport) -> Result<Committed, CheckError> {
    let database = &*checker.catalog.database()?;
    let (last, _) = checker.guarded("The rows of commits", || Ok(last_commit(database)?))?;
    let files = commit_log::commit_files(checker.replica.backend().as_ref())?;
    let end = last.max(files.last().copied().unwrap_or_default());
    report.commits = last.0;
    checker.progress.enter(Phase::Commits, end.0);
    let rows = Some(RowHashesBuilder::default());
    let mut chain = Chain { checker, last, rows, previous: CommitId::default(), intact: true };
    let first = chain.checkpoint()?;
    checker.progress.done.store(first.0, Ordering::Relaxed);
    for number in (first.next().0..=end.0).map(CommitNumber) {
        checker.progress.step()?;
        let is_there = chain.file(number)?;
        if number > last {
            // A run that commits right now, or one that died doing so, has left one here; nothing lies behind a gap.
            if !is_there {
                break;
            }
            report.waiting_commits += 1;
        }
    }
    report.rebuildable = chain.intact;
    chain.forget_unless_intact();
    // The very first run may have died between its commit file and the catalogue, as any other may.
    if last.0 == 0 && end.0 > 1 {
        let reason = format!("it has no commit, but there are {} commit files", files.len());
        checker.ledger.note(DamageKind::Catalog, Key::Step("commits"), "The catalogue".to_owned(), reason);
    }
    Ok(Committed { rows: chain.rows.map(RowHashesBuilder::finish) })
}

struct Chain<'a> {
    checker: &'a Checker<'a>,
    last: CommitNumber,
    rows: Option<RowHashesBuilder>,
    previous: CommitId,
    intact: bool,
}

impl Chain<'_> {
    fn damage(&mut self, number: CommitNumber, reason: String) {
        self.intact = false;
        let what = format!("Commit file {}", commit::key(number));
        self.checker.ledger.note(DamageKind::CommitFile, Key::Commit(number), what, reason);
    }

    /// Takes the newest checkpoint that is intact, and returns the number of its commit; 0 when there is none. Files that were folded into it are
    /// of no use any more.
    fn checkpoint(&mut self) -> Result<CommitNumber, CheckError> {
        let backend = self.checker.replica.backend().as_ref();
        for number in checkpoint::heads(backend)? {
            let mut rows = RowHashesBuilder::default();
            let key = checkpoint::key(number);
            let read = checkpoint::read_head(backend, number).and_then(|head: Checkpoint| {
                head.for_each_part(backend, |changes| {
                    rows.apply(&changes);
                    Ok(())
                })?;
                Ok(head)
            });
            let (file, reason) = match read {
                Ok(head) => {
                    self.rows = Some(rows);
                    self.previous = head.commit;
                    if number > self.last {
                        let reason = format!("it is older than the checkpoint of commit {number}");
                        let what = "The catalogue".to_owned();
                        self.checker.ledger.note(DamageKind::Catalog, Key::Step("checkpoint"), what, reason);
                        self.rows = None;
                    }
                    self.compare_row(number, Some(&head.commit))?;
                    return Ok(number);
                }
                Err(CatalogError::Damage(CatalogDamage::File { key, fault })) => (key, fault.to_string()),
                Err(error) if is_damage(&error) => (key, format!("it cannot be read: {error}")),
                Err(error) => return Err(error.into()),
            };
            self.intact = false;
            let what = format!("Checkpoint file {file}");
            self.checker.ledger.note(DamageKind::CommitFile, Key::Checkpoint(number), what, reason);
            // The commits after it can be verified all the same.
            if let Ok(Some(id)) = commit_id(&*self.checker.catalog.database()?, number) {
                self.previous = id;
                return Ok(number);
            }
        }
        Ok(CommitNumber(0))
    }

    fn forget_unless_intact(&mut self) {
        if !self.intact {
            self.rows = None;
        }
    }

    /// Verifies one commit file; returns whether it is there.
    fn file(&mut self, number: CommitNumber) -> Result<bool, CheckError> {
        let key = commit::key(number);
        let backend = self.checker.replica.backend();
        let is_wanted = number <= self.last && self.intact;
        let mut rows = self.rows.take();
        let decoded = read_whole(backend.as_ref(), &key).and_then(|file| {
            let commit = CommitFile::open(&key, &file)?;
            commit.for_each_batch(|changes| {
                if let Some(rows) = rows.as_mut().filter(|_| is_wanted) {
                    rows.apply(&changes);
                }
                Ok(())
            })?;
            Ok((commit.previous, commit.id))
        });
        let (previous, id) = match decoded {
            Ok(commit) => commit,
            Err(CatalogError::Damage(CatalogDamage::File { fault, .. })) => {
                self.damage(number, fault.to_string());
                self.compare_row(number, None)?;
                return Ok(backend.size(&key)?.is_some());
            }
            Err(error) if is_damage(&error) => {
                self.damage(number, format!("it cannot be read: {error}"));
                self.compare_row(number, None)?;
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        if previous != self.previous {
            self.damage(number, "it does not follow the commit before it".to_owned());
        }
        self.compare_row(number, Some(&id))?;
        self.previous = id;
        self.rows = rows;
        Ok(true)
    }

    /// Compares a commit's identifier with the catalogue's row of it. Without the file the row's serves to go on.
    fn compare_row(&mut self, number: CommitNumber, id: Option<&CommitId>) -> Result<(), CheckError> {
        if number > self.last {
            return Ok(());
        }
        let database: &DatabaseReader = &*self.checker.catalog.database()?;
        let row = self.checker.guarded("The rows of commits", || Ok(commit_id(database, number)?))?;
        match (row, id) {
            (Some(row), Some(id)) if row != *id => {
                let reason = "it is not the commit file that the catalogue was made from".to_owned();
                self.damage(number, reason);
            }
            (Some(row), None) => self.previous = row,
            (None, _) => {
                let what = format!("Commit row {number}");
                let reason = "it is missing or damaged".to_owned();
                self.checker.ledger.note(DamageKind::Catalog, Key::Row(Table::Commits, number.0), what, reason);
            }
            _ => {}
        }
        Ok(())
    }
}
