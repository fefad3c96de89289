//! Commit files: each there, intact, and the successor of the one before.
//!
//! What they say is gathered on the way: for every row of the catalogue the hash that its payload must have. The rows are compared with it later, which
//! finds any that is missing, outdated or was never committed, and proves that a rebuilt catalogue would be the same.

use std::collections::HashMap;

use super::ledger::{DamageKind, Key};
use super::{CheckError, CheckReport, Checker, Phase};
use crate::catalog::CatalogError;
use crate::catalog::commit::{self, Commit, CommitId};
use crate::catalog::database::{Change, DatabaseReader, Table};
use crate::catalog::writer::{commit_id, last_commit, read_whole};

/// No catalogue has a row of so high a number; a commit file that says so makes no sense.
const MAX_KEY: u64 = 1 << 36;

/// The rows that the catalogue must hold.
#[derive(Default)]
pub(super) struct Committed {
    /// For each table and number the hash of the payload, 0 where there is no row; `None` when commit files are damaged.
    pub(super) rows: Option<HashMap<Table, Vec<u64>>>,
}

/// Returns the hash of a payload as [`Committed::rows`] holds it, which is never 0.
pub(super) fn payload_hash(payload: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(payload).as_bytes()[..8]);
    u64::from_le_bytes(first) | 1
}

/// Verifies all commit files up to the catalogue's last commit, and counts those beyond it.
pub(super) fn verify(checker: &Checker<'_>, report: &mut CheckReport) -> Result<Committed, CheckError> {
    let database = &*checker.catalog.database()?;
    let (last, _) = checker.guarded("The rows of commits", || Ok(last_commit(database)?))?;
    let mut files: Vec<u64> = Vec::new();
    for (key, _) in checker.replica.backend().list("commits/")? {
        match commit::number_of_key(&key) {
            Some(number) if commit::key(number) == key => files.push(number),
            _ => {}
        }
    }
    files.sort_unstable();
    let end = last.max(files.last().copied().unwrap_or(0));
    report.commits = last;
    checker.progress.enter(Phase::Commits, end);
    let mut chain = Chain { checker, last, rows: Some(HashMap::new()), previous: CommitId::default(), intact: true };
    for number in 1..=end {
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
    if last == 0 && end > 0 {
        let reason = format!("it holds no commit, and there are {} commit files", files.len());
        checker.ledger.note(DamageKind::Catalog, Key::Step("commits"), "The catalogue".to_owned(), reason);
    }
    Ok(Committed { rows: chain.rows })
}

struct Chain<'a> {
    checker: &'a Checker<'a>,
    last: u64,
    rows: Option<HashMap<Table, Vec<u64>>>,
    previous: CommitId,
    intact: bool,
}

impl Chain<'_> {
    fn damage(&mut self, number: u64, reason: String) {
        self.intact = false;
        let what = format!("Commit file {}", commit::key(number));
        self.checker.ledger.note(DamageKind::CommitFile, Key::Commit(number), what, reason);
    }

    fn forget_unless_intact(&mut self) {
        if !self.intact {
            self.rows = None;
        }
    }

    /// Verifies one commit file; returns whether it is there.
    fn file(&mut self, number: u64) -> Result<bool, CheckError> {
        let key = commit::key(number);
        let backend = self.checker.replica.backend();
        let decoded = read_whole(backend.as_ref(), &key).and_then(|file| commit::decode(&key, &file));
        let commit = match decoded {
            Ok(commit) => commit,
            Err(CatalogError::CommitFile { reason, .. }) => {
                self.damage(number, reason);
                self.compare_row(number, None)?;
                return Ok(backend.size(&key)?.is_some());
            }
            Err(error) => {
                self.damage(number, format!("it cannot be read: {error}"));
                self.compare_row(number, None)?;
                return Ok(true);
            }
        };
        if commit.previous != self.previous {
            self.damage(number, "it does not follow the commit before it".to_owned());
        }
        self.compare_row(number, Some(&commit.id))?;
        self.previous = commit.id;
        if number <= self.last && self.intact {
            self.apply(number, commit);
        }
        Ok(true)
    }

    /// Compares a commit's identifier with the catalogue's row of it. Without the file the row's serves to go on.
    fn compare_row(&mut self, number: u64, id: Option<&CommitId>) -> Result<(), CheckError> {
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
                self.checker.ledger.note(DamageKind::Catalog, Key::Row(Table::Commits, number), what, reason);
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, number: u64, commit: Commit) {
        let Some(rows) = &mut self.rows else { return };
        for change in commit.changes {
            let (table, key, hash) = match change {
                Change::Put(table, key, payload) => (table, key, payload_hash(&payload)),
                Change::Delete(table, key) => (table, key, 0),
                Change::PutIndex(..) | Change::DeleteIndex(..) => continue,
            };
            if key >= MAX_KEY {
                self.damage(number, format!("it has a {} of number {key}", table.row_name()));
                return;
            }
            let hashes = rows.entry(table).or_default();
            let at = key as usize;
            if hashes.len() <= at {
                hashes.resize(at + 1, 0);
            }
            hashes[at] = hash;
        }
    }
}
