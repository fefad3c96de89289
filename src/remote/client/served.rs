//! What a host that is restored to may read of the store: the rows and bytes of what is restored, and nothing else.
//!
//! The subtree is walked before anything is served, by the code that the agent restores with, over rows that are noted as they are read. Then
//!
//! - a page of directories, names, large contents or link counts is served if the walk read it. On the way to the subtree these hold names beside it; nothing
//!   else of those is served;
//! - a page of link groups or of chunk rows holds up to 256 neighbours: those that the walk did not name are left out of it;
//! - bytes of a pack are served where chunks of the subtree lie. What lies between them, and is read along because that is cheaper than to skip it, is served
//!   as zeros.
//!
//! Memory: some 60 bytes for each page of 256 link groups or chunks that is touched, and some 60 for each run of chunks that lie behind each other in a pack.
//! Chunks of neighbours in the tree are neighbours in packs, so a million files take some megabytes; a subtree of a hundred million scattered chunks would take
//! some 6 GB.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalog::CatalogError;
use crate::catalog::chunk::{self, PAGE_ROWS};
use crate::catalog::database_reader::DatabaseReader;
use crate::catalog::group::{self, Segment};
use crate::catalog::reader::{CatalogReader, RemoteRows};
use crate::catalog::tables::Table;
use crate::ids::{ChunkId, GroupId};
use crate::store::entry::Location;
use crate::store::pack::{ENTRY_HEADER_BYTES, PackId};
use crate::view::{Node, SnapshotView, ViewOptions};

/// A set of numbers that come in neighbourhoods.
#[derive(Default)]
struct Numbers(HashMap<u64, [u64; 4]>);

impl Numbers {
    fn insert(&mut self, number: u64) {
        let at = (number % PAGE_ROWS) as usize;
        self.0.entry(number / PAGE_ROWS).or_default()[at / 64] |= 1 << (at % 64);
    }

    fn contains(&self, number: u64) -> bool {
        self.page(number / PAGE_ROWS).is_some_and(|page| has(page, (number % PAGE_ROWS) as usize))
    }

    fn page(&self, page: u64) -> Option<&[u64; 4]> {
        self.0.get(&page)
    }
}

fn has(page: &[u64; 4], at: usize) -> bool {
    page.get(at / 64).is_some_and(|bits| bits >> (at % 64) & 1 == 1)
}

/// Parts of a pack, by where they begin; none touches another.
#[derive(Default)]
struct Parts(BTreeMap<u64, u64>);

impl Parts {
    fn insert(&mut self, mut start: u64, mut end: u64) {
        if let Some((&before, &before_end)) = self.0.range(..=start).next_back()
            && before_end >= start
        {
            (start, end) = (before, end.max(before_end));
        }
        while let Some((&next, &next_end)) = self.0.range(start..).next()
            && next <= end
        {
            end = end.max(next_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// Makes zeros of all bytes, of which the first lies at `offset`, that are in no part; returns whether any is in one.
    fn blank(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let end = offset + bytes.len() as u64;
        let first = self.0.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        let mut at = offset;
        let mut any = false;
        for (&start, &part_end) in self.0.range(first..end) {
            let (start, part_end) = (start.clamp(at, end), part_end.clamp(at, end));
            bytes[(at - offset) as usize..(start - offset) as usize].fill(0);
            any |= part_end > start;
            at = part_end;
        }
        bytes[(at - offset) as usize..].fill(0);
        any
    }
}

/// What the walk has seen.
#[derive(Default)]
struct Seen {
    objects: Numbers,
    groups: Numbers,
    chunks: Numbers,
    pack_rows: Numbers,
    packs: HashMap<PackId, Parts>,
}

/// Notes rows as they are read.
struct Noting {
    rows: Arc<DatabaseReader>,
    seen: Arc<Mutex<Seen>>,
}

impl RemoteRows for Noting {
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match table {
            Table::Objects => seen.objects.insert(key),
            Table::Packs => seen.pack_rows.insert(key),
            // Of these not every neighbour is wanted.
            _ => {}
        }
        drop(seen);
        self.rows.get(table, key, |payload| Ok(payload.to_vec()))
    }
}

/// Why a row or bytes are not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// They are no part of what is restored.
    #[error("it is no part of what is restored")]
    Elsewhere,
    /// The catalogue cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The rows and bytes of one subtree.
pub(super) struct Served {
    rows: Arc<DatabaseReader>,
    seen: Seen,
}

impl Served {
    /// Walks the subtree at `path`; `None` if `interrupt` was set meanwhile.
    pub(super) fn of(
        rows: &Arc<DatabaseReader>,
        view: &SnapshotView,
        path: &[u8],
        interrupt: &AtomicBool,
    ) -> Option<Served> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noting = Noting { rows: Arc::clone(rows), seen: Arc::clone(&seen) };
        let note = |part: Part| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match part {
                // The row may be damaged, and its neighbours not.
                Part::Group(number) => seen.groups.insert(number.0),
                Part::Chunk(number, location) => {
                    seen.chunks.insert(number.0);
                    if let Some(Location { pack, offset, stored_length, .. }) = location {
                        let start = u64::from(offset);
                        let end = start + ENTRY_HEADER_BYTES as u64 + u64::from(stored_length);
                        seen.packs.entry(pack).or_default().insert(start, end);
                    }
                }
            }
        };
        if !read_subtree(Arc::new(noting), view, path, || interrupt.load(Ordering::Relaxed), note) {
            return None;
        }
        // Kept by nobody but this function: the view is gone.
        let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        Some(Served { rows: Arc::clone(rows), seen })
    }

    /// Returns a row as it is served: `None` if there is none.
    pub(super) fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, Refused> {
        let (part, seen) = match table {
            Table::Objects => (None, self.seen.objects.contains(key)),
            Table::Packs => (None, self.seen.pack_rows.contains(key)),
            Table::Groups => (self.seen.groups.page(key), false),
            Table::Chunks => (self.seen.chunks.page(key), false),
            _ => (None, false),
        };
        if part.is_none() && !seen {
            return Err(Refused::Elsewhere);
        }
        let Some(row) = self.rows.get(table, key, |payload| Ok(payload.to_vec()))? else { return Ok(None) };
        let Some(page) = part else { return Ok(Some(row)) };
        let damaged = |error| CatalogError::of_row(table.row_kind().row(key), error);
        Ok(Some(match table {
            Table::Groups => {
                let rows = group::decode_page(&row).map_err(damaged)?;
                if is_whole(&rows, page) { row } else { group::encode_page(&only(rows, page)) }
            }
            _ => {
                let rows = chunk::decode_page(&row).map_err(damaged)?;
                if is_whole(&rows, page) { row } else { chunk::encode_page(&only(rows, page)) }
            }
        }))
    }

    /// Makes zeros of the bytes of a pack that are no part of what is restored.
    pub(super) fn blank(&self, pack: &PackId, offset: u64, bytes: &mut [u8]) -> Result<(), Refused> {
        let any = self.seen.packs.get(pack).is_some_and(|parts| parts.blank(offset, bytes));
        if any { Ok(()) } else { Err(Refused::Elsewhere) }
    }
}

/// Returns whether all rows of a page are named.
fn is_whole<T>(rows: &[Option<T>], page: &[u64; 4]) -> bool {
    rows.iter().enumerate().all(|(at, row)| row.is_none() || has(page, at))
}

/// Leaves rows out of a page that are not named.
fn only<T>(rows: Vec<Option<T>>, page: &[u64; 4]) -> Vec<Option<T>> {
    rows.into_iter().enumerate().map(|(at, row)| row.filter(|_| has(page, at))).collect()
}

/// What a subtree is made of, beside its pages.
pub(super) enum Part {
    /// The number of a link group.
    Group(GroupId),
    /// The number of a chunk, and where it lies, if its row can be read.
    Chunk(ChunkId, Option<Location>),
}

/// Reads from `rows` what a restore of the subtree at `path` reads, in its order; returns `false` if `is_over` ended it. What cannot be read shows
/// when the restore requests it.
pub(super) fn read_subtree(
    rows: Arc<dyn RemoteRows>,
    view: &SnapshotView,
    path: &[u8],
    is_over: impl Fn() -> bool,
    mut note: impl FnMut(Part),
) -> bool {
    let catalog = Arc::new(CatalogReader::over_remote_rows(rows));
    let (record, chunks) = (view.record().clone(), Arc::clone(view.chunks()));
    let Ok(view) = SnapshotView::open(Arc::clone(&catalog), chunks, record, ViewOptions { cache_bytes: 1 << 20 })
    else {
        return true;
    };
    let Ok(start) = view.resolve(path) else { return true };
    for entry in view.walk(start, Vec::new()) {
        if is_over() {
            return false;
        }
        let Ok(Node::Group(number)) = entry.map(|entry| entry.node) else { continue };
        note(Part::Group(number));
        let group = view.group(number);
        // Reads the pages of link counts.
        let _ = view.link_count(&Node::Group(number));
        let Ok(group) = group else { continue };
        let _ = catalog.for_each_segment(&group.content, |segment| {
            if let Segment::Chunk { number, .. } = segment {
                let location = catalog.chunk_address(*number).ok().map(|address| address.location);
                note(Part::Chunk(*number, location));
            }
            Ok::<_, CatalogError>(())
        });
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_kept_by_page() {
        let mut numbers = Numbers::default();
        [0, 63, 64, 255, 256, 1 << 40].into_iter().for_each(|number| numbers.insert(number));
        assert!([0, 63, 64, 255, 256, 1 << 40].into_iter().all(|number| numbers.contains(number)));
        assert!([1, 65, 254, 257, (1 << 40) + 1].into_iter().all(|number| !numbers.contains(number)));
        assert_eq!(only((0..256).map(Some).collect(), numbers.page(0).unwrap()).into_iter().flatten().count(), 4);
    }

    proptest! {
        #[test]
        fn bytes_of_no_part_are_zeros(
            parts in proptest::collection::vec((0u64..200, 1u64..30), 0..20),
            offset in 0u64..220,
            length in 0usize..60,
        ) {
            let mut known = Parts::default();
            let mut expected = vec![0u8; 300];
            for (start, length) in parts {
                known.insert(start, start + length);
                expected[start as usize..(start + length) as usize].fill(7);
            }
            let mut bytes = vec![7; length];
            let any = known.blank(offset, &mut bytes);
            let expected = &expected[offset as usize..][..length];
            prop_assert_eq!(&bytes, expected);
            prop_assert_eq!(any, expected.contains(&7));
            let ends: Vec<_> = known.0.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "parts touch");
        }
    }
}
