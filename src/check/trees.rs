//! Trees: every snapshot walked from its root, every page, name and index; names, link counts, totals and digest counted anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::contents::Groups;
use super::ledger::{DamageKind, DamageNumber, Key};
use super::rows::{Rows, damage_of, reason_of};
use super::{CheckError, CheckReport, Checker, Phase};
use crate::catalog::chunk::PAGE_ROWS;
use crate::catalog::directory::{Body, Directory, Entry, IndexPage, Node};
use crate::catalog::link_counts;
use crate::catalog::object::ObjectKind;
use crate::catalog::snapshot::{SnapshotRecord, TreeDigest};
use crate::catalog::tables::Table;
use crate::catalog::{CatalogDamage, CatalogError, RowKind};
use crate::ids::{GroupId, ObjectId, SnapshotNumber};
use crate::sparse_vec::SparseVec;

/// Walks all snapshots.
pub(super) fn verify(
    checker: &Checker<'_>,
    rows: &Rows,
    groups: &Groups,
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    let total = rows.snapshots.iter().map(|(_, record)| record.totals.names).fold(0, u64::saturating_add);
    checker.progress.enter(Phase::Snapshots, total);
    let (next, names) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<(), CheckError> {
        let work = || -> Result<(), CheckError> {
            let mut counts = SparseVec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some((number, record)) = rows.snapshots.get(place) else { return Ok(()) };
                let mut walk = TreeWalk::new(checker, rows, groups, place, &mut counts);
                let walked = catch_unwind(AssertUnwindSafe(|| walk.snapshot(*number, record)));
                names.fetch_add(walk.names, Ordering::Relaxed);
                match walked {
                    Ok(result) => result?,
                    Err(panic) => {
                        let reason = format!("redb gave up on it: {}", super::panic_text(panic.as_ref()));
                        let what = format!("Snapshot {}", record.id);
                        checker.ledger.note(DamageKind::Snapshot, Key::Snapshot(*number, "walk"), what, reason);
                        counts.clear();
                    }
                }
            }
        };
        let mut threads = Vec::new();
        for _ in 0..checker.threads().min(rows.snapshots.len()) {
            let builder = std::thread::Builder::new();
            match builder.spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(CheckError::Thread(error)),
                // Fewer do it, too.
                Err(_) => break,
            }
        }
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => {
                    let reason = format!("the walk ended early: {}", super::panic_text(panic.as_ref()));
                    let what = "Snapshots".to_owned();
                    checker.ledger.note(DamageKind::Snapshot, Key::Step("walking trees"), what, reason);
                }
            }
        }
        Ok(())
    })?;
    report.names = names.into_inner();
    Ok(())
}

struct TreeWalk<'a> {
    checker: &'a Checker<'a>,
    rows: &'a Rows,
    groups: &'a Groups,
    place: usize,
    /// Names of each link group in this snapshot; all zero before and after.
    counts: &'a mut SparseVec<u32>,
    digest: TreeDigest,
    path: Vec<u8>,
    names: u64,
    directories: u64,
    inodes: u64,
    /// Whether every entry was met, so that what was counted can be compared.
    is_complete: bool,
}

/// A directory on the way down. The walk keeps them in a list and not on the stack: trees may be of any depth.
struct Level {
    /// Length of its path.
    path_length: usize,
    pages: Pages,
    /// The page that is walked, and where in it.
    entries: Entries,
    at: usize,
}

/// Entries of a page, or of an inline directory.
enum Entries {
    Page(Arc<Vec<Entry>>),
    Inline(Arc<Directory>),
}

impl Entries {
    fn list(&self) -> &[Entry] {
        match self {
            Entries::Page(entries) => entries,
            Entries::Inline(directory) => match &directory.body {
                Body::Inline(entries) => entries,
                _ => &[],
            },
        }
    }
}

/// The pages of a large directory that are still to come.
#[derive(Default)]
struct Pages {
    /// Number of the index.
    index: ObjectId,
    pages: Vec<IndexPage>,
    next: usize,
    /// The last name of the page before.
    last: Option<Box<[u8]>>,
}

impl<'a> TreeWalk<'a> {
    fn new(
        checker: &'a Checker<'a>,
        rows: &'a Rows,
        groups: &'a Groups,
        place: usize,
        counts: &'a mut SparseVec<u32>,
    ) -> TreeWalk<'a> {
        TreeWalk {
            checker,
            rows,
            groups,
            place,
            counts,
            digest: TreeDigest::new(),
            path: Vec::new(),
            names: 0,
            directories: 0,
            inodes: 0,
            is_complete: true,
        }
    }

    fn snapshot(&mut self, number: SnapshotNumber, record: &SnapshotRecord) -> Result<(), CheckError> {
        let note = |kind: &'static str, reason: String| {
            let what = format!("Snapshot {}", record.id);
            self.checker.ledger.note(DamageKind::Snapshot, Key::Snapshot(number, kind), what, reason)
        };
        let root = match record.root_directory() {
            Ok(root) => root,
            Err(error) => {
                let damage = note("root", format!("its root cannot be decoded: {error}"));
                self.checker.ledger.affects(damage, self.place, b"/");
                return Ok(());
            }
        };
        if let Some(problems) = record.problems
            && let Err(error) = self.checker.catalog.object(ObjectKind::Problems, problems)
        {
            note("problems", format!("the list of its problems is lost: {}", reason_of(&error)));
        }
        self.digest.enter(b"", &root.attributes);
        self.tree(root)?;
        self.digest.leave();
        let digest = std::mem::take(&mut self.digest).finish();
        let links = self.link_counts(record);
        if !self.is_complete {
            // What is lost is noted; that the rest does not add up goes without saying.
            self.counts.clear();
            return Ok(());
        }
        let counted = [self.names, self.directories, self.inodes];
        let stated = [record.totals.names, record.totals.directories, record.totals.inodes];
        if counted != stated {
            let [names, directories, inodes] = counted;
            let reason = format!(
                "it has {names} names, {directories} directories and {inodes} link groups, and its record says {}, {} and {}",
                stated[0], stated[1], stated[2]
            );
            note("totals", reason);
        }
        if let Err(reason) = links {
            note("links", reason);
        }
        if digest != record.digest {
            note("digest", "its tree does not have the digest that its record states".to_owned());
        }
        Ok(())
    }

    /// Compares what was counted with the record's link counts, and clears it.
    fn link_counts(&mut self, record: &SnapshotRecord) -> Result<(), String> {
        let mut result = Ok(());
        for number in &record.links {
            let page = self
                .checker
                .catalog
                .object(ObjectKind::Links, *number)
                .and_then(|bytes| {
                    link_counts::decode_page(&bytes)
                        .map_err(|error| CatalogError::of_row(RowKind::LinkCountPage.row(*number), error))
                })
                .map_err(|error| format!("its link counts are lost: {error}"));
            let page = match page {
                Ok((_, page)) => page,
                Err(error) => {
                    result = Err(error);
                    continue;
                }
            };
            for (group, stated) in page {
                let counted = self.counts.take(group.0);
                if counted != stated && result.is_ok() {
                    result = Err(format!("link group {group} has {counted} names, and its link counts say {stated}"));
                }
            }
        }
        let left = self.counts.iter().find(|(_, count)| *count > 0);
        if let Some((group, _)) = left {
            if result.is_ok() {
                result = Err(format!("link group {group} is not in its link counts"));
            }
            self.counts.clear();
        }
        result
    }

    /// Walks everything below the root.
    fn tree(&mut self, root: Directory) -> Result<(), CheckError> {
        let mut levels = vec![self.level(Arc::new(root))?];
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path_length);
            let Some(entry) = level.entries.list().get(level.at) else {
                if !self.next_page(level) {
                    levels.pop();
                    if !levels.is_empty() {
                        self.digest.leave();
                    }
                }
                continue;
            };
            level.at += 1;
            self.checker.progress.step()?;
            self.names += 1;
            match &entry.node {
                Node::Group(number) => {
                    let (name, number) = (entry.name.clone(), *number);
                    self.group(&name, number);
                }
                Node::Directory(directory) => {
                    self.directories += 1;
                    self.digest.enter(&entry.name, &directory.attributes);
                    self.push(&entry.name);
                    let inner = self.level(Arc::clone(directory))?;
                    levels.push(inner);
                }
            }
        }
        Ok(())
    }

    /// Starts a directory, whose path is the present one.
    fn level(&mut self, directory: Arc<Directory>) -> Result<Level, CheckError> {
        let nothing = || Entries::Page(Arc::default());
        let (entries, pages) = match directory.body {
            Body::Inline(_) => (Entries::Inline(directory), Pages::default()),
            Body::Page(number) => match self.page(number) {
                Ok(entries) => (Entries::Page(entries), Pages::default()),
                Err(damage) => {
                    self.lost(damage);
                    (nothing(), Pages::default())
                }
            },
            Body::Index(index) => match self.checker.catalog.directory_index(index) {
                Ok(pages) => (nothing(), Pages { index, pages, ..Pages::default() }),
                Err(error) => {
                    let damage = self.object_damage(index, damage_of(error)?);
                    self.lost(damage);
                    (nothing(), Pages::default())
                }
            },
        };
        Ok(Level { path_length: self.path.len(), pages, entries, at: 0 })
    }

    /// Goes to the next page of a large directory that can be read; returns whether there is one.
    fn next_page(&mut self, level: &mut Level) -> bool {
        let of = &mut level.pages;
        while let Some(page) = of.pages.get(of.next) {
            let at = of.next;
            of.next += 1;
            let entries = match self.page(page.page) {
                Ok(entries) => entries,
                Err(damage) => {
                    self.lost(damage);
                    continue;
                }
            };
            let next = of.pages.get(at + 1).map(|next| &next.separator);
            let in_order = entries.first().is_some_and(|first| {
                first.name >= page.separator && of.last.as_ref().is_none_or(|last| *last < page.separator)
            }) && entries.last().is_some_and(|entry| next.is_none_or(|next| entry.name < *next))
                && (at > 0 || page.separator.is_empty());
            if !in_order || entries.len() as u64 != page.entries {
                let damage = self.object_damage(of.index, format!("its page {at} does not fit it"));
                self.lost(damage);
            }
            of.last = entries.last().map(|entry| entry.name.clone());
            (level.entries, level.at) = (Entries::Page(entries), 0);
            return true;
        }
        false
    }

    fn page(&self, number: ObjectId) -> Result<Arc<Vec<Entry>>, DamageNumber> {
        self.checker.catalog.directory_page(number).map_err(|error| {
            // The names of a page are an object of their own, and the one that is damaged may be either.
            let struck = match &error {
                CatalogError::Damage(CatalogDamage::Missing(row) | CatalogDamage::Row { row, .. }) => {
                    ObjectId(row.number)
                }
                _ => number,
            };
            self.object_damage(struck, reason_of(&error))
        })
    }

    fn object_damage(&self, number: ObjectId, reason: String) -> DamageNumber {
        if let Some(damage) = self.rows.damaged.get(&(Table::Objects, number.0)) {
            return *damage;
        }
        let (key, what) = (Key::Row(Table::Objects, number.0), format!("Object {number}"));
        self.checker.ledger.note(DamageKind::Catalog, key, what, reason)
    }

    /// Notes that entries of the directory being walked are lost.
    fn lost(&mut self, damage: DamageNumber) {
        self.is_complete = false;
        let mut path = self.path.clone();
        path.push(b'/');
        self.checker.ledger.affects(damage, self.place, &path);
    }

    fn push(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    fn group(&mut self, name: &[u8], number: GroupId) {
        let Some((digest, is_damaged)) = self.groups.get(number) else {
            self.is_complete = false;
            let damage = self.groups.page_damage(number).unwrap_or_else(|| {
                let page = number.0 / PAGE_ROWS;
                let what = format!("Link group {number} or a neighbour");
                let reason = "names refer to it, and it is missing".to_owned();
                self.checker.ledger.note(DamageKind::Catalog, Key::Missing(Table::Groups, page), what, reason)
            });
            self.affected(name, &[damage]);
            return;
        };
        if is_damaged {
            self.affected(name, self.groups.damages(number));
        }
        self.digest.group(name, number, digest);
        let count = self.counts.entry(number.0);
        self.inodes += u64::from(*count == 0);
        *count = count.saturating_add(1);
    }

    fn affected(&mut self, name: &[u8], damages: &[DamageNumber]) {
        let length = self.path.len();
        self.push(name);
        for damage in damages {
            self.checker.ledger.affects(*damage, self.place, &self.path);
        }
        self.path.truncate(length);
    }
}
