//! The guard: looks at each new snapshot beside the last good one of its source, and says what a person must look at.
//!
//! A replica is there for the day on which something went wrong at the source, and that day is often noticed weeks later. So what looks like an
//! accident makes the snapshot *suspect*: it is kept like any other, and nothing since the last good one is removed until somebody has accepted it.
//! The rules are in `sessions.rs`, `accounts.rs`, `changes.rs`, `beside.rs` and `clock.rs`; `docs/semantics.md` describes them.
//!
//! The guard never fails a run: what keeps it from its work is a reason to look, too.
//!
//! Cost: the listings of the root and of `sessions/`, one pass over `accounts.xml`, and the directories that differ between both snapshots; sessions
//! that went are not entered, and of those that came one row is read for each name; what is looked at beside the sessions is in `beside.rs`. Memory: 16
//! bytes for each file that changed in place, and the labels.

mod accounts;
mod beside;
mod changes;
mod clock;
mod sessions;
mod specials;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::CatalogError;
use crate::catalog::marks::{self, SnapshotMarks};
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::{ReasonKind, SnapshotRecord, SuspectReason, Verdict};
use crate::catalog::sources::SourceName;
use crate::ids::{GroupId, SnapshotNumber, SourceId};
use crate::layout::{Label, SESSIONS, split_deleting};
use crate::model::Kind;
use crate::replica::Replica;
use crate::retention::Within;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::view::{DirectoryNode, Node, Readers, SnapshotView, ViewError, ViewOptions, display_path};

pub use crate::catalog::hold::{Hold, hold_in_force};

/// Chunks kept while `accounts.xml` is read, in bytes: it is read once, in order.
const CACHE_BYTES: u64 = 4 << 20;
/// Fewer files than this are no mass change, whatever share they are.
const MASS: u64 = 100;
/// Names that a reason lists; the rest is counted.
const LISTED: usize = 4;

/// Settings of the guard.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardOptions {
    /// How old sessions usually get before `zmbackup -del` removes them; `None` learns it from the snapshots.
    pub expect_retention: Option<Within>,
    /// How long after the snapshot before one may be taken before the clock counts as wrong; `None` learns it from the snapshots.
    pub clock_jump: Option<Within>,
    /// Share of files that may change in place between two snapshots, 0 to 1.
    pub changed_share: f64,
    /// Share of names that may go between two snapshots of a tree that is not Zimbra's, or beside the sessions of one that is, 0 to 1.
    pub lost_share: f64,
}

impl Default for GuardOptions {
    fn default() -> GuardOptions {
        GuardOptions { expect_retention: None, clock_jump: None, changed_share: 0.2, lost_share: 0.5 }
    }
}

/// A snapshot's record, and what was said of it since.
#[derive(Clone, Debug)]
pub struct MarkedSnapshot {
    /// Its number.
    pub number: SnapshotNumber,
    /// Its record.
    pub record: SnapshotRecord,
    /// Its marks.
    pub marks: SnapshotMarks,
}

impl MarkedSnapshot {
    /// Describes a snapshot of which nothing was said yet.
    pub fn fresh(number: SnapshotNumber, record: &SnapshotRecord) -> MarkedSnapshot {
        MarkedSnapshot { number, record: record.clone(), marks: SnapshotMarks::default() }
    }

    /// Returns whether the guard has found something and nobody has accepted it.
    pub fn is_suspect(&self) -> bool {
        !self.record.suspect_reasons().is_empty() && self.marks.accepted.is_none()
    }

    /// Returns the state in a word: `suspect`, `problems` or `complete`.
    pub fn state(&self) -> &'static str {
        match self.record.problem_count {
            _ if self.is_suspect() => "suspect",
            0 => "complete",
            _ => "problems",
        }
    }
}

/// Returns all snapshots with their marks, in order of commits.
///
/// # Errors
/// Fails when the catalogue cannot be read.
pub fn marked_snapshots(catalog: &CatalogReader) -> Result<Vec<MarkedSnapshot>, CatalogError> {
    let mut marks = marks::read_all(catalog)?;
    let marked = |(number, record)| MarkedSnapshot { number, record, marks: marks.remove(&number).unwrap_or_default() };
    Ok(catalog.snapshots()?.into_iter().map(marked).collect())
}

/// Returns the last good snapshot of each source, by source: the one that the next of the source is compared with. The snapshots come in order of commits.
pub fn last_good<'a>(
    snapshots: impl IntoIterator<Item = &'a MarkedSnapshot>,
) -> BTreeMap<Option<SourceId>, &'a MarkedSnapshot> {
    let good = snapshots.into_iter().filter(|snapshot| !snapshot.is_suspect());
    good.map(|snapshot| (snapshot.record.source_id, snapshot)).collect()
}

/// Returns which snapshots are pinned, and why, by their identifiers.
pub fn pins(all: &[MarkedSnapshot]) -> BTreeMap<String, Vec<String>> {
    let pin = |snapshot: &MarkedSnapshot| {
        let pin = snapshot.marks.pinned.as_ref()?;
        let reason = pin.reason.as_ref().map_or("pinned".to_owned(), |reason| format!("pinned: {reason}"));
        Some((snapshot.record.id.clone(), vec![reason]))
    };
    all.iter().filter_map(pin).collect()
}

/// Returns which snapshots must be kept, whatever the policy says, and why, by their identifiers: pinned ones, and for each source, as long as a suspect
/// snapshot was not accepted, the last good one before it and everything since. Of the sources in `removed` only pinned ones.
pub fn protections(all: &[MarkedSnapshot], removed: &BTreeMap<SourceId, SourceName>) -> BTreeMap<String, Vec<String>> {
    let mut kept = pins(all);
    let mut keep = |snapshot: &MarkedSnapshot, reason: String| {
        kept.entry(snapshot.record.id.clone()).or_default().push(reason);
    };
    let sources: BTreeSet<Option<SourceId>> = all.iter().map(|snapshot| snapshot.record.source_id).collect();
    // What a removed source's snapshots are suspected of keeps them no longer.
    for source in sources.into_iter().filter(|source| source.is_none_or(|id| !removed.contains_key(&id))) {
        let own: Vec<&MarkedSnapshot> = all.iter().filter(|snapshot| snapshot.record.source_id == source).collect();
        let Some(first) = own.iter().position(|snapshot| snapshot.is_suspect()) else { continue };
        let name = own[first].record.short_id();
        for (at, snapshot) in own.iter().enumerate().skip(first.saturating_sub(1)) {
            let reason = if snapshot.is_suspect() {
                let why = snapshot.record.suspect_reasons().first().map_or("", |reason| &reason.text);
                format!("suspect and not accepted: {why}")
            } else if at < first {
                format!("the last good one before the suspect snapshot {name}")
            } else {
                format!("taken since the suspect snapshot {name}, which is not accepted")
            };
            keep(snapshot, reason);
        }
    }
    kept
}

/// Examines a snapshot that is about to be committed. Its tree is in the catalogue, its record need not be.
pub fn examine(
    replica: &Replica,
    catalog: &Arc<CatalogReader>,
    record: &SnapshotRecord,
    options: &GuardOptions,
) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(error) = try_examine(replica, catalog, record, options, &mut verdict) {
        let other = verdict.compared_with.as_ref().and_then(|id| id.get(..8)).unwrap_or("none");
        verdict.reasons.push(SuspectReason {
            kind: ReasonKind::NotExamined,
            text: format!("The guard could not compare it (with {other}): {error}"),
        });
    }
    verdict
}

fn try_examine(
    replica: &Replica,
    catalog: &Arc<CatalogReader>,
    record: &SnapshotRecord,
    options: &GuardOptions,
    verdict: &mut Verdict,
) -> Result<(), ViewError> {
    let mut earlier = marked_snapshots(catalog)?;
    // First, and without the trees: it must be found whatever else fails.
    verdict.reasons.extend(clock::judge(&earlier, record, options));
    earlier.retain(|snapshot| snapshot.record.source_id == record.source_id);
    let baseline = last_good(&earlier).remove(&record.source_id);
    verdict.compared_with = baseline.map(|snapshot| snapshot.record.id.clone());
    let readers =
        Readers::new(Arc::clone(catalog), Arc::new(replica.chunks()), ViewOptions { cache_bytes: CACHE_BYTES });
    let new = ZimbraSnapshot::open(&readers, record)?;
    let old = baseline.map(|snapshot| ZimbraSnapshot::open(&readers, &snapshot.record)).transpose()?;
    let zimbra = new.is_zimbra() || old.as_ref().is_some_and(ZimbraSnapshot::is_zimbra);
    let reasons = &mut verdict.reasons;
    if zimbra {
        sessions::judge_link(old.as_ref(), &new, reasons)?;
        if let Some(old) = &old {
            sessions::judge(&readers, &earlier, old, &new, options, reasons)?;
        }
        accounts::judge(old.as_ref(), &new, reasons)?;
        specials::judge(old.as_ref(), &new, reasons)?;
    }
    if let Some(old) = &old {
        let changes = changes::compare(old, &new, zimbra, None)?;
        let judged = if zimbra {
            beside::judge(&readers, &earlier, old, &new, &changes.changed_beside, options, reasons)?
        } else {
            0
        };
        changes::judge(old, &new, zimbra, &changes, judged, options, reasons);
    }
    Ok(())
}

/// A snapshot as the guard sees it: its sessions by their labels, if it is of a Zimbra backup tree.
struct ZimbraSnapshot {
    view: SnapshotView,
    root: DirectoryNode,
    sessions: Option<DirectoryNode>,
    /// Where `sessions` leads, if it is a symbolic link.
    link: Option<GroupId>,
    /// The sessions by their labels, which sort by kind and time.
    labels: BTreeSet<Label>,
    /// Labels of sessions under deletion, where the snapshot has them.
    deleting: BTreeSet<Label>,
    /// What was left out by the user's wish.
    excludes: ExcludePatterns,
}

impl ZimbraSnapshot {
    fn open(readers: &Readers, record: &SnapshotRecord) -> Result<ZimbraSnapshot, ViewError> {
        let view = SnapshotView::over(readers, record.clone())?;
        let root = Arc::clone(view.root_directory());
        let (sessions, link) = match view.lookup(&root, SESSIONS.as_bytes())? {
            Some(Node::Directory(directory)) => (Some(directory), None),
            Some(Node::Group(group)) if view.group(group)?.attributes.kind == Kind::Symlink => (None, Some(group)),
            _ => (None, None),
        };
        // Patterns that a record has were valid once; if they are not, nothing counts as left out.
        let excludes = ExcludePatterns::new(&record.excludes, false).unwrap_or_default();
        let (labels, deleting) = (BTreeSet::new(), BTreeSet::new());
        let mut side = ZimbraSnapshot { view, root, sessions, link, labels, deleting, excludes };
        if let Some(directory) = &side.sessions {
            for entry in side.view.list(directory)? {
                let entry = entry?;
                if !matches!(entry.node, Node::Directory(_)) {
                    continue;
                }
                let Ok(name) = std::str::from_utf8(&entry.name) else { continue };
                match split_deleting(name) {
                    (true, name) => side.deleting.extend(Label::parse(name)),
                    (false, name) => side.labels.extend(Label::parse(name)),
                }
            }
        }
        Ok(side)
    }

    /// Returns whether a path, or a directory above it, was left out by the user's wish.
    fn leaves_out(&self, path: &[u8], is_directory: bool) -> bool {
        self.excludes.leaves_out(path, is_directory)
    }

    /// Returns whether the tree has sessions as Zimbra names them, or leads to where they are.
    fn is_zimbra(&self) -> bool {
        !self.labels.is_empty() || !self.deleting.is_empty() || self.link.is_some()
    }

    /// Returns the link group of a regular file at the root.
    fn root_file(&self, name: &[u8]) -> Result<Option<GroupId>, ViewError> {
        match self.view.lookup(&self.root, name)? {
            Some(Node::Group(group)) if self.view.group(group)?.attributes.kind == Kind::File => Ok(Some(group)),
            _ => Ok(None),
        }
    }
}

/// Lists the first few of some names.
fn listed<T: std::fmt::Display>(names: impl ExactSizeIterator<Item = T>) -> String {
    let rest = names.len().saturating_sub(LISTED);
    let mut text = names.take(LISTED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

/// Says how many there are of something.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn shown(path: &[u8]) -> String {
    display_path(path)
}

#[cfg(test)]
mod tests;
