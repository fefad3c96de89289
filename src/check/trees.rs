//! Trees: every snapshot walked from its root, every page, name and index; names, link counts, totals and digest counted anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::contents::Groups;
use super::ledger::{DamageKind, DamageNumber, Key};
use super::rows::{Rows, damage_of, reason_of};
use super::{CheckError, CheckReport, Checker, Phase};
use crate::catalog::CatalogError;
use crate::catalog::chunk::PAGE_ROWS;
use crate::catalog::database::Table;
use crate::catalog::directory::{Body, Directory, Entry, Node};
use crate::catalog::links;
use crate::catalog::object::ObjectKind;
use crate::catalog::snapshot::{SnapshotRecord, TreeDigest};

/// Deeper trees than this are refused; paths of the sources are at most 4,096 bytes long.
const DEPTH_MAX: usize = 8192;
/// Stack of a walking thread, in bytes: a level of the tree takes some hundred. Only what is used costs memory.
const STACK_BYTES: usize = 64 << 20;

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
            let mut counts = vec![0u32; groups.len()];
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
                        counts.fill(0);
                    }
                }
            }
        };
        let mut threads = Vec::new();
        for _ in 0..checker.threads().min(rows.snapshots.len()) {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
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
    counts: &'a mut [u32],
    digest: TreeDigest,
    path: Vec<u8>,
    names: u64,
    directories: u64,
    inodes: u64,
    /// Whether every entry was met, so that what was counted can be compared.
    is_complete: bool,
    depth: usize,
}

impl<'a> TreeWalk<'a> {
    fn new(
        checker: &'a Checker<'a>,
        rows: &'a Rows,
        groups: &'a Groups,
        place: usize,
        counts: &'a mut [u32],
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
            depth: 0,
        }
    }

    fn snapshot(&mut self, number: u64, record: &SnapshotRecord) -> Result<(), CheckError> {
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
        self.directory(&root)?;
        self.digest.leave();
        let digest = std::mem::take(&mut self.digest).finish();
        let links = self.link_counts(record);
        if !self.is_complete {
            // What is lost is noted; that the rest does not add up goes without saying.
            self.counts.fill(0);
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
                    links::decode_page(&bytes).map_err(|error| CatalogError::damaged("object", *number, error))
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
                let counted = usize::try_from(group).ok().and_then(|at| self.counts.get_mut(at));
                let counted = counted.map_or(0, std::mem::take);
                if counted != stated && result.is_ok() {
                    result = Err(format!("link group {group} has {counted} names, and its link counts say {stated}"));
                }
            }
        }
        if let Some(group) = self.counts.iter().position(|count| *count > 0) {
            if result.is_ok() {
                result = Err(format!("link group {group} is not in its link counts"));
            }
            self.counts.fill(0);
        }
        result
    }

    fn directory(&mut self, directory: &Directory) -> Result<(), CheckError> {
        if self.depth > DEPTH_MAX {
            let damage = self.object_damage(u64::MAX, "the tree is deeper than any source".to_owned());
            self.lost(damage);
            return Ok(());
        }
        self.depth += 1;
        match &directory.body {
            Body::Folded(entries) => self.entries(entries)?,
            Body::Page(number) => match self.page(*number) {
                Ok(entries) => self.entries(&entries)?,
                Err(damage) => self.lost(damage),
            },
            Body::Index(number) => self.index(*number)?,
        }
        self.depth -= 1;
        Ok(())
    }

    /// Walks the pages of a large directory.
    fn index(&mut self, number: u64) -> Result<(), CheckError> {
        let pages = match self.checker.catalog.directory_index(number) {
            Ok(pages) => pages,
            Err(error) => {
                let damage = self.object_damage(number, damage_of(error)?);
                self.lost(damage);
                return Ok(());
            }
        };
        let mut last: Option<Box<[u8]>> = None;
        for (at, page) in pages.iter().enumerate() {
            let entries = match self.page(page.page) {
                Ok(entries) => entries,
                Err(damage) => {
                    self.lost(damage);
                    continue;
                }
            };
            let next = pages.get(at + 1).map(|next| &next.separator);
            let in_order = entries.first().is_some_and(|first| {
                first.name >= page.separator && last.as_ref().is_none_or(|last| *last < page.separator)
            }) && entries.last().is_some_and(|entry| next.is_none_or(|next| entry.name < *next))
                && (at > 0 || page.separator.is_empty());
            if !in_order || entries.len() as u64 != page.entries {
                let damage = self.object_damage(number, format!("its page {at} does not fit it"));
                self.lost(damage);
            }
            last = entries.last().map(|entry| entry.name.clone());
            self.entries(&entries)?;
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<std::sync::Arc<Vec<Entry>>, DamageNumber> {
        self.checker.catalog.directory_page(number).map_err(|error| {
            // The names of a page are an object of their own, and the one that is damaged may be either.
            let struck = match &error {
                CatalogError::Missing { what: "object", number }
                | CatalogError::Damaged { what: "object", number, .. } => *number,
                _ => number,
            };
            self.object_damage(struck, reason_of(&error))
        })
    }

    fn object_damage(&self, number: u64, reason: String) -> DamageNumber {
        if let Some(damage) = self.rows.damaged.get(&(Table::Objects, number)) {
            return *damage;
        }
        let (key, what) = (Key::Row(Table::Objects, number), format!("Object {number}"));
        self.checker.ledger.note(DamageKind::Catalog, key, what, reason)
    }

    /// Notes that entries of the directory being walked are lost.
    fn lost(&mut self, damage: DamageNumber) {
        self.is_complete = false;
        let mut path = self.path.clone();
        path.push(b'/');
        self.checker.ledger.affects(damage, self.place, &path);
    }

    fn entries(&mut self, entries: &[Entry]) -> Result<(), CheckError> {
        for entry in entries {
            self.checker.progress.step()?;
            self.names += 1;
            match &entry.node {
                Node::Group(number) => self.group(&entry.name, *number),
                Node::Directory(directory) => {
                    self.directories += 1;
                    self.digest.enter(&entry.name, &directory.attributes);
                    let length = self.path.len();
                    self.push(&entry.name);
                    self.directory(directory)?;
                    self.path.truncate(length);
                    self.digest.leave();
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    fn group(&mut self, name: &[u8], number: u64) {
        let Some((digest, is_damaged)) = self.groups.get(number) else {
            self.is_complete = false;
            let damage = self.groups.page_damage(number).unwrap_or_else(|| {
                let page = number / PAGE_ROWS;
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
        let count = &mut self.counts[number as usize];
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
