//! Contents: the segments of every link group are there and make up its size.

use std::collections::HashMap;

use super::ledger::{DamageKind, DamageNumber, Key};
use super::packs::BadChunks;
use super::rows::{Rows, damage_of, reason_of};
use super::{CheckError, Checker, Phase};
use crate::catalog::chunk::PAGE_ROWS;
use crate::catalog::group::{self, Content, LinkGroup, Segment};
use crate::catalog::tables::Table;
use crate::catalog::{CatalogDamage, CatalogError};
use crate::ids::GroupId;
use crate::model::Kind;
use crate::sparse_vec::SparseVec;

/// Bit of [`Groups::state`]: there is such a link group.
const EXISTS: u8 = 1;
/// Bit of [`Groups::state`]: its content cannot be had as a whole.
const DAMAGED: u8 = 2;

/// All link groups, by number.
///
/// Nine bytes for each number, by the page, so that made-up numbers cost little.
#[derive(Default)]
pub(super) struct Groups {
    pub(super) count: u64,
    digests: SparseVec<u64>,
    state: SparseVec<u8>,
    damages: HashMap<GroupId, Vec<DamageNumber>>,
    /// Pages of link groups that cannot be read.
    pages: HashMap<u64, DamageNumber>,
}

impl Groups {
    /// Returns the digest of a link group's row and whether its content is damaged, or `None` when there is no such group.
    pub(super) fn get(&self, number: GroupId) -> Option<(u64, bool)> {
        let state = self.state.get(number.0);
        (state & EXISTS != 0).then(|| (self.digests.get(number.0), state & DAMAGED != 0))
    }

    /// Returns what a link group's content suffers from.
    pub(super) fn damages(&self, number: GroupId) -> &[DamageNumber] {
        self.damages.get(&number).map_or(&[], Vec::as_slice)
    }

    /// Returns the damage of the page that holds a link group's row.
    pub(super) fn page_damage(&self, number: GroupId) -> Option<DamageNumber> {
        self.pages.get(&(number.0 / PAGE_ROWS)).copied()
    }
}

/// Verifies all link groups.
pub(super) fn verify(checker: &Checker<'_>, rows: &Rows, bad: &BadChunks) -> Result<Groups, CheckError> {
    checker.progress.enter(Phase::Groups, rows.counters.group.0);
    let mut groups = Groups::default();
    for (&(table, number), &damage) in &rows.damaged {
        if table == Table::Groups {
            groups.pages.insert(number, damage);
        }
    }
    let mut work = Contents { checker, rows, bad, groups };
    // Pages behind the counter are damage that is noted already.
    let mut pages = Vec::new();
    checker.guarded("The table of link groups", || {
        Ok(checker.catalog.database()?.scan_numbers(Table::Groups, |page| {
            if page < rows.counters.group.0.div_ceil(PAGE_ROWS) {
                pages.push(page);
            }
            Ok(())
        })?)
    })?;
    for page in pages {
        checker.guarded("The table of link groups", || work.page(page))?;
    }
    Ok(work.groups)
}

struct Contents<'a> {
    checker: &'a Checker<'a>,
    rows: &'a Rows,
    bad: &'a BadChunks,
    groups: Groups,
}

impl Contents<'_> {
    fn page(&mut self, page: u64) -> Result<(), CheckError> {
        let read = self.checker.catalog.for_each_group(page, |at, row| {
            let number = GroupId(page * PAGE_ROWS + at as u64);
            self.checker.progress.step()?;
            let Some(row) = row else { return Ok(true) };
            self.groups.count += 1;
            *self.groups.digests.entry(number.0) = row.digest();
            *self.groups.state.entry(number.0) = EXISTS;
            let damages = self.content(number, &row)?;
            if !damages.is_empty() {
                *self.groups.state.entry(number.0) |= DAMAGED;
                self.groups.damages.insert(number, damages);
            }
            Ok(true)
        });
        match read {
            Err(CheckError::Catalog(error)) if error.is_damage() => {
                // What the page gave before that is not to be relied on.
                for number in page * PAGE_ROWS..(page + 1) * PAGE_ROWS {
                    self.groups.count -= u64::from(self.groups.state.take(number) & EXISTS);
                    self.groups.damages.remove(&GroupId(number));
                }
                let what = format!("Page of link groups {page}");
                let key = Key::Row(Table::Groups, page);
                let damage = self.checker.ledger.note(DamageKind::Catalog, key, what, damage_of(error)?);
                self.groups.pages.insert(page, damage);
                Ok(())
            }
            other => other,
        }
    }

    fn group_damage(&self, number: GroupId, reason: String) -> DamageNumber {
        let what = format!("Link group {number}");
        self.checker.ledger.note(DamageKind::Catalog, Key::Group(number), what, reason)
    }

    /// Returns what the content of a link group suffers from.
    fn content(&self, number: GroupId, row: &LinkGroup) -> Result<Vec<DamageNumber>, CheckError> {
        let mut damages = Vec::new();
        let length = match &row.content {
            Content::Unreadable(_) => return Ok(damages),
            Content::Empty => 0,
            Content::Segments(segments) => {
                for segment in segments {
                    self.segment(segment, &mut damages);
                }
                segments.iter().map(Segment::length).fold(0, u64::saturating_add)
            }
            Content::Pages(pages) => {
                for page in pages {
                    self.content_page(page, &mut damages)?;
                }
                pages.iter().map(|page| page.length).fold(0, u64::saturating_add)
            }
        };
        if row.attributes.kind == Kind::Directory {
            damages.push(self.group_damage(number, "it is said to be a directory".to_owned()));
        } else if matches!(row.attributes.kind, Kind::File | Kind::Symlink) && length != row.attributes.size {
            let reason = format!("its content has {length} bytes, and its size is {}", row.attributes.size);
            damages.push(self.group_damage(number, reason));
        }
        damages.sort_unstable();
        damages.dedup();
        Ok(damages)
    }

    fn content_page(&self, page: &group::ContentPage, damages: &mut Vec<DamageNumber>) -> Result<(), CheckError> {
        if let Some(damage) = self.rows.damaged.get(&(Table::Objects, page.object.0)) {
            damages.push(*damage);
            return Ok(());
        }
        let object = |reason: String| {
            let (key, what) = (Key::Row(Table::Objects, page.object.0), format!("Object {}", page.object));
            self.checker.ledger.note(DamageKind::Catalog, key, what, reason)
        };
        match self.checker.catalog.content_page(page.object) {
            Ok(segments) => {
                if group::total_length(&segments) != Some(page.length) {
                    damages.push(object("it has another length than its link groups say".to_owned()));
                }
                for segment in &segments {
                    self.segment(segment, damages);
                }
                Ok(())
            }
            Err(error) => {
                damages.push(object(damage_of(error)?));
                Ok(())
            }
        }
    }

    fn segment(&self, segment: &Segment, damages: &mut Vec<DamageNumber>) {
        let Segment::Chunk { number, length } = segment else { return };
        if let Some(damage) = self.bad.damage(*number) {
            damages.push(damage);
        }
        let reason = match self.checker.catalog.chunk(*number) {
            Ok(row) if row.plain_length == *length => return,
            Ok(row) => format!("it has {} bytes, and a file counts on {length}", row.plain_length),
            // The damage of its page is noted already.
            Err(CatalogError::Damage(CatalogDamage::Row { .. })) => return,
            Err(error) => reason_of(&error),
        };
        if self.bad.damage(*number).is_some() {
            return;
        }
        let (key, what) = (Key::Missing(Table::Chunks, number.0), format!("Chunk {number}"));
        damages.push(self.checker.ledger.note(DamageKind::Catalog, key, what, reason));
    }
}
