//! Verifying a store: commit files, catalogue, packs, the content of every file and every tree, and on request every stored byte.
//!
//! ```text
//! commits    commit files: complete, intact, chained; what the catalogue must hold follows from them
//! rows       every row of the catalogue: as committed, decodes, agrees with its index
//! writing    the pages of the catalogue that only a writer reads: what a writer does is done over a copy in memory
//! packs      every pack: there, of the right length; on request, read and hashed
//! contents   every link group: its segments are there and make up its size
//! trees      every snapshot: pages, names, link counts, totals, digest
//! ```
//!
//! Each step notes in the `ledger` what is damaged and hands on which numbers are affected, so that the last one, which
//! walks every tree, can name the paths: chunk, link group, path. A damaged catalogue is met with care: none of what redb may do then ends the check. What
//! the system cannot do now (too many open files, no permission) does, and is no damage.
//!
//! A check holds nobody up. It reads one commit, and a prune beside it removes packs and commit files of that; so what is missing is looked for in the newest
//! commit first. A pack that it does not name any more is no damage, and where commit files are missing the check begins again from the newest commit.
//!
//! Memory: 40 bytes for each chunk, 8 for each object, 9 for each link group and another 4 for each thread, and the catalogue reader's caches.
//!
//! Architecture invariant: nothing here writes.

mod commits;
mod contents;
mod ledger;
mod packs;
mod rows;
mod trees;
mod writing;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::access::Depth;
use crate::catalog::CatalogError;
use crate::catalog::chunk::PackRow;
use crate::catalog::commit_log::last_commit;
use crate::catalog::reader::CatalogReader;
use crate::ids::PackNumber;
use crate::replica::{Replica, ReplicaError, refuse_denied};
use crate::store::backend::BackendError;

pub use ledger::{Damage, DamageKind, DamagedPath};
use ledger::{Key, Ledger};

/// How often a check begins, at most, because commit files were folded beside it. Then what it finds counts.
const ATTEMPTS: u32 = 5;

/// What to verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Per cent of the packs to read and hash, chosen anew each time; `None` reads no packs.
    pub read_data_percent: Option<u8>,
    /// Threads; 0 takes as many as there are cores.
    pub threads: usize,
}

/// A step of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
pub enum Phase {
    /// Commit files are read.
    #[default]
    Commits = 0,
    /// Rows of the catalogue are read.
    Catalog = 1,
    /// Packs are looked up and read.
    Data = 2,
    /// Link groups are verified.
    Groups = 3,
    /// Trees are walked.
    Snapshots = 4,
}

impl Phase {
    /// Returns the phase's name, for people.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Commits => "commit files",
            Phase::Catalog => "catalogue",
            Phase::Data => "packs",
            Phase::Groups => "link groups",
            Phase::Snapshots => "snapshots",
        }
    }
}

/// How far a check has come; any thread may read it.
#[derive(Debug, Default)]
pub struct CheckProgress {
    /// Number of the phase; see [`CheckProgress::phase`].
    pub phase: AtomicU8,
    /// Units done in this phase: commit files, catalogue rows, bytes of packs, link groups, names.
    pub done: AtomicU64,
    /// Units to do in this phase; 0 when that is not known.
    pub total: AtomicU64,
    /// Bytes of packs read.
    pub read_bytes: AtomicU64,
    /// Set from outside to end the check at the next chance.
    pub interrupt: AtomicBool,
}

impl CheckProgress {
    /// Returns the phase under way.
    pub fn phase(&self) -> Phase {
        Phase::from_repr(self.phase.load(Ordering::Relaxed)).unwrap_or_default()
    }

    fn enter(&self, phase: Phase, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Counts one unit and ends the check when it was interrupted.
    fn step(&self) -> Result<(), CheckError> {
        self.done.fetch_add(1, Ordering::Relaxed);
        if self.interrupt.load(Ordering::Relaxed) { Err(CheckError::Interrupted) } else { Ok(()) }
    }
}

/// What can end a check before it is complete. Damage does not: it is in the report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The user interrupted the check.
    #[error("Interrupted; the store was not verified to the end")]
    Interrupted,
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Some of the store may not be read, and that is no damage.
    #[error(transparent)]
    NotAllowed(Box<ReplicaError>),
    /// A thread could not be started.
    #[error("A thread cannot be started: {0}")]
    Thread(io::Error),
}

impl CheckError {
    /// Returns whether the error means that the store is damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, CheckError::Catalog(error) if is_damage(error))
    }
}

/// Returns whether an error belongs in the report: what a disk cannot read any more does, what the system cannot do now does not.
fn is_damage(error: &CatalogError) -> bool {
    error.is_damage() || error.is_bad_disk()
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Snapshots.
    pub snapshots: u64,
    /// Names in all snapshots together.
    pub names: u64,
    /// Link groups.
    pub groups: u64,
    /// Chunks.
    pub chunks: u64,
    /// How many of them have lost their bytes; a repair found that.
    pub lost_chunks: u64,
    /// Packs.
    pub packs: u64,
    /// What the packs take, as the catalogue says.
    pub pack_bytes: u64,
    /// Objects of the catalogue.
    pub objects: u64,
    /// Commits.
    pub commits: u64,
    /// Per cent of the packs that were to be read; `None` when none were.
    pub read_percent: Option<u8>,
    /// Packs that were read and hashed.
    pub read_packs: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// How many damages there are; more than `damages` holds when there are very many.
    pub damage_count: u64,
    /// Packs that a prune removed or repacked while the check ran.
    pub removed_packs: u64,
    /// Packs that nothing refers to, left by interrupted runs. They do no harm.
    pub orphan_packs: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Bytes of packs that a prune condemned and a later one deletes.
    pub condemned_bytes: u64,
    /// Commit files that the catalogue has not seen; the next writing command applies them. They do no harm.
    pub waiting_commits: u64,
    /// Whether the commit files are intact, so that the catalogue can be rebuilt from them.
    pub rebuildable: bool,
    /// Wall time, in milliseconds.
    pub elapsed_ms: u64,
}

impl CheckReport {
    /// Returns whether no damage was found.
    pub fn is_clean(&self) -> bool {
        self.damage_count == 0
    }
}

/// What every step works with.
struct Checker<'a> {
    replica: &'a Replica,
    catalog: &'a CatalogReader,
    options: CheckOptions,
    progress: &'a CheckProgress,
    ledger: &'a Ledger,
    /// The catalogue as of the newest commit, once it was needed.
    newest: OnceLock<CatalogReader>,
}

impl Checker<'_> {
    /// Calls `look` with the catalogue as of the newest commit, which may be later than the one that is verified.
    fn in_newest<T>(&self, look: impl FnOnce(&CatalogReader) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        let newest = match self.newest.get() {
            Some(newest) => newest,
            None => {
                let opened = self.replica.following_catalog()?;
                self.newest.get_or_init(|| opened)
            }
        };
        newest.refresh();
        let found = look(newest);
        // Lest it pins what the check does not read.
        newest.refresh();
        found
    }

    /// Returns whether a pack that is not there was removed by a prune since the check began: the newest commit does not name it any more then. A prune
    /// deletes a pack after that commit.
    fn is_removed(&self, number: PackNumber, row: &PackRow) -> bool {
        match self.in_newest(|newest| newest.pack(number)) {
            Ok(found) => found.id != row.id,
            Err(error) => error.is_missing_row(),
        }
    }

    /// Returns whether something was committed since the check began.
    fn has_moved(&self) -> bool {
        let own = self.catalog.database().and_then(|database| last_commit(&database));
        match (own, self.in_newest(|newest| last_commit(&*newest.database()?))) {
            (Ok(own), Ok(newest)) => own != newest,
            _ => false,
        }
    }

    fn threads(&self) -> usize {
        match self.options.threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        }
    }

    /// Does a step; damage that ends it, a panic of redb included, is noted, and the result is then the default.
    fn guarded<T: Default>(
        &self,
        step: &'static str,
        work: impl FnOnce() -> Result<T, CheckError>,
    ) -> Result<T, CheckError> {
        // What a panic may leave half done is the ledger, whose every update is complete in itself.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Err(error)) if error.is_damage() => {
                self.ledger.note(DamageKind::Catalog, Key::Step(step), step.to_owned(), error.to_string());
                Ok(T::default())
            }
            Ok(other) => other,
            Err(panic) => {
                let reason = format!("redb gave up on it: {}", panic_text(panic.as_ref()));
                self.ledger.note(DamageKind::Catalog, Key::Step(step), step.to_owned(), reason);
                Ok(T::default())
            }
        }
    }
}

/// Returns the first line of what a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no message")
}

/// Verifies a store as of its last commit. It may be written to meanwhile.
///
/// # Errors
/// [`CheckError::Interrupted`], or that something beside the stored data failed. Damage is in the report.
pub fn check(replica: &Replica, options: &CheckOptions, progress: &CheckProgress) -> Result<CheckReport, CheckError> {
    let clock = Instant::now();
    refuse_denied(replica.path(), Depth::AllObjects).map_err(|error| CheckError::NotAllowed(Box::new(error)))?;
    let mut attempt = 1;
    loop {
        if let Some(report) = verify(replica, options, progress, attempt == ATTEMPTS)? {
            return Ok(CheckReport { elapsed_ms: clock.elapsed().as_millis() as u64, ..report });
        }
        attempt += 1;
    }
}

/// Verifies a store as of its last commit, or returns `None` when commit files of that were removed meanwhile and it is not the `last` attempt.
fn verify(
    replica: &Replica,
    options: &CheckOptions,
    progress: &CheckProgress,
    last: bool,
) -> Result<Option<CheckReport>, CheckError> {
    let ledger = Ledger::default();
    let mut report =
        CheckReport { read_percent: options.read_data_percent.map(|it| it.min(100)), ..Default::default() };
    // The reader stays as it is whatever is committed meanwhile. Files are listed after it was opened, so all that it names are listed.
    match replica.catalog() {
        Ok(catalog) => {
            let newest = OnceLock::new();
            let checker = Checker { replica, catalog: &catalog, options: *options, progress, ledger: &ledger, newest };
            if !run_steps(&checker, &mut report, last)? {
                return Ok(None);
            }
        }
        Err(error) if is_damage(&error) => {
            let what = "The catalogue".to_owned();
            ledger.note(DamageKind::Catalog, Key::Step("catalogue"), what, error.to_string());
        }
        Err(error) => return Err(error.into()),
    }
    (report.damages, report.damage_count) = ledger.finish();
    Ok(Some(report))
}

/// Returns whether the check came to its end, and not upon commit files that are not those of its commit any more.
fn run_steps(checker: &Checker<'_>, report: &mut CheckReport, last: bool) -> Result<bool, CheckError> {
    let committed = commits::verify(checker, report)?;
    if !last && !checker.ledger.is_empty() && checker.has_moved() {
        return Ok(false);
    }
    let rows = rows::verify(checker, &committed, report)?;
    drop(committed);
    writing::verify(checker)?;
    let packs = packs::verify(checker, &rows, report)?;
    let groups = contents::verify(checker, &rows, &packs)?;
    report.groups = groups.count;
    trees::verify(checker, &rows, &groups, report)?;
    Ok(true)
}
