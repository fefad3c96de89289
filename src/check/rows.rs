//! The rows of the catalogue: as they were committed, decodable, below the counters, and in agreement with the two indexes.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use super::commits::Committed;
use super::ledger::{DamageKind, DamageNumber, Key};
use super::{CheckError, CheckReport, Checker, Phase, is_damage};
use crate::catalog::chunk::{self, ChunkPlace, PAGE_ROWS, PackRow};
use crate::catalog::meta::{Counters, STORE};
use crate::catalog::object::{self, ObjectKind};
use crate::catalog::row_hashes::{TableHashes, payload_hash};
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::tables::{Index, Table};
use crate::catalog::{CatalogDamage, CatalogError, ReadError, RowFault, RowKind, Unsupported, directory, group};
use crate::ids::{ChunkId, PackNumber, SnapshotNumber};
use crate::replica::{CONFIG, StoreConfig, Unusable};
use crate::sparse_vec::SparseVec;
use strum::VariantArray;

/// Where a chunk lies: what the steps that follow need of its row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    pub(super) pack: PackNumber,
    pub(super) offset: u32,
    pub(super) stored_length: u32,
    pub(super) number: ChunkId,
}

/// What the catalogue holds.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) counters: Counters,
    pub(super) packs: BTreeMap<PackNumber, PackRow>,
    /// All chunks, by pack and offset.
    pub(super) placements: Vec<Placement>,
    /// Chunks whose bytes a repair gave up, ascending.
    pub(super) lost: Vec<ChunkId>,
    /// Snapshots whose record can be read.
    pub(super) snapshots: Vec<(SnapshotNumber, SnapshotRecord)>,
    /// Damaged rows, for those that need them.
    pub(super) damaged: HashMap<(Table, u64), DamageNumber>,
}

/// Reads all rows but the link groups' contents.
pub(super) fn verify(
    checker: &Checker<'_>,
    committed: &Committed,
    report: &mut CheckReport,
) -> Result<Rows, CheckError> {
    let database = &*checker.catalog.database()?;
    checker.progress.enter(Phase::Catalog, 0);
    let counters = checker.guarded("The counters", || Ok(Counters::read(database)?))?;
    checker.guarded("The list of sources", || Ok(checker.catalog.sources().map(drop)?))?;
    let mut rows = Rows { counters, ..Rows::default() };
    let (mut prefixes, mut objects) = (SparseVec::new(), 0);
    // The commit rows were compared with their files.
    for table in Table::VARIANTS.iter().copied().filter(|table| *table != Table::Commits) {
        let expected = committed.rows.as_ref().map(|rows| rows.of_table(table));
        let mut scan = TableScan { checker, table, expected, last: None, rows: &mut rows };
        scan.run(&mut prefixes, &mut objects)?;
        if table == Table::Objects {
            report.objects = objects;
            agree(checker, Index::Objects, objects..=objects, |_, _| true)?;
        }
    }
    report.lost_chunks = rows.lost.len() as u64;
    report.chunks = rows.placements.len() as u64 + report.lost_chunks;
    // A lost chunk may have lost its hash, too.
    agree(checker, Index::Chunks, report.chunks - report.lost_chunks..=report.chunks, |hash, number| {
        prefixes.get(number).is_some_and(|prefix| hash.starts_with(&prefix))
    })?;
    rows.placements.sort_unstable_by_key(|placement| (placement.pack, placement.offset));
    report.packs = rows.packs.len() as u64;
    report.pack_bytes = rows.packs.values().map(|pack| pack.bytes).sum();
    report.snapshots = rows.snapshots.len() as u64;
    checker.ledger.name_snapshots(rows.snapshots.iter().map(|(_, record)| record.id.clone()).collect());
    Ok(rows)
}

/// One pass over one table.
struct TableScan<'a, 'b> {
    checker: &'a Checker<'a>,
    table: Table,
    expected: Option<TableHashes<'a>>,
    last: Option<u64>,
    rows: &'b mut Rows,
}

impl TableScan<'_, '_> {
    fn run(&mut self, prefixes: &mut SparseVec<Option<[u8; 8]>>, objects: &mut u64) -> Result<(), CheckError> {
        let checker = self.checker;
        let table = self.table;
        let mut failure = None;
        let step = table_name(table);
        checker.guarded(step, || {
            let scanned = checker.catalog.database()?.scan(table, 0, |number, payload| {
                self.row(number, payload, prefixes, objects).map_err(|error| stop(&mut failure, error))
            });
            match failure.take() {
                Some(error) => Err(error),
                None => Ok(scanned?),
            }
        })?;
        // Rows behind the last one seen.
        self.missing(self.last.map_or(0, |last| last.saturating_add(1)), u64::MAX);
        Ok(())
    }

    /// Notes rows that were committed and were not met between two that were.
    fn missing(&mut self, from: u64, to: u64) {
        let Some(expected) = self.expected else { return };
        let Some(first) = expected.numbers(from, to).next() else { return };
        let count = expected.numbers(from, to).count();
        let name = capital(&self.table.row_kind().to_string());
        let what =
            if count == 1 { format!("{name} {first}") } else { format!("{name} {first} and {} more", count - 1) };
        let key = Key::Missing(self.table, first);
        let damage = self.checker.ledger.note(DamageKind::Catalog, key, what, "missing from the catalogue".to_owned());
        for number in expected.numbers(from, to) {
            self.rows.damaged.insert((self.table, number), damage);
        }
    }

    fn damage(&mut self, number: u64, reason: String) {
        let what = format!("{} {number}", capital(&self.table.row_kind().to_string()));
        let damage = self.checker.ledger.note(DamageKind::Catalog, Key::Row(self.table, number), what, reason);
        self.rows.damaged.insert((self.table, number), damage);
    }

    fn row(
        &mut self,
        number: u64,
        payload: Result<&[u8], CatalogError>,
        prefixes: &mut SparseVec<Option<[u8; 8]>>,
        objects: &mut u64,
    ) -> Result<(), CheckError> {
        self.checker.progress.step()?;
        if self.last.is_some_and(|last| number <= last) {
            // A damaged page can make redb go in circles.
            let (key, reason) = (Key::Table(self.table, "order"), RowFault::Order.to_string());
            self.checker.ledger.note(DamageKind::Catalog, key, table_name(self.table).to_owned(), reason);
            return Err(CatalogError::of_row(self.table.row_kind().row(number), RowFault::Order).into());
        }
        self.missing(self.last.map_or(0, |last| last.saturating_add(1)), number);
        self.last = Some(number);
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => {
                self.damage(number, reason_of(&error));
                return Ok(());
            }
        };
        if let Some(expected) = self.expected {
            match expected.get(number) {
                None => self.damage(number, "no commit file has it".to_owned()),
                Some(hash) if hash != payload_hash(payload) => {
                    self.damage(number, "it is not as the commit files have it".to_owned());
                }
                _ => {}
            }
        }
        let counters = self.rows.counters;
        let below = match self.table {
            Table::Packs => Some(counters.pack.0),
            Table::Objects => Some(counters.object.0),
            Table::Snapshots | Table::Marks => Some(counters.snapshot.0),
            Table::Chunks => Some(counters.chunk.0.div_ceil(PAGE_ROWS)),
            Table::Groups => Some(counters.group.0.div_ceil(PAGE_ROWS)),
            _ => None,
        };
        if below.is_some_and(|below| number >= below) {
            self.damage(number, "its number was never given out".to_owned());
            // Nor is anything kept for it: it may be any number.
            return Ok(());
        }
        match self.decode(number, payload, prefixes, objects) {
            Ok(()) => Ok(()),
            Err(CheckError::Catalog(error)) if is_damage(&error) => {
                self.damage(number, reason_of(&error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn decode(
        &mut self,
        number: u64,
        payload: &[u8],
        prefixes: &mut SparseVec<Option<[u8; 8]>>,
        objects: &mut u64,
    ) -> Result<(), CheckError> {
        let row = self.table.row_kind().row(number);
        match self.table {
            Table::Packs => {
                self.rows.packs.insert(PackNumber(number), CatalogError::decode_row(row, || PackRow::decode(payload))?);
            }
            Table::Chunks => {
                let page = CatalogError::decode_row(row, || chunk::decode_page(payload))?;
                for (number, row) in (number * PAGE_ROWS..).zip(page) {
                    let Some(row) = row else { continue };
                    *prefixes.entry(number) = Some(row.prefix);
                    match row.place {
                        ChunkPlace::Lost => self.rows.lost.push(ChunkId(number)),
                        ChunkPlace::At { pack, offset, stored_length } => {
                            self.rows.placements.push(Placement {
                                pack,
                                offset,
                                stored_length,
                                number: ChunkId(number),
                            });
                        }
                    }
                }
            }
            Table::Objects => {
                *objects += 1;
                let kind =
                    object::stored_kind(payload).ok_or_else(|| CatalogError::of_row(row, RowFault::UnknownKind))?;
                let plain = CatalogError::decode_row(row, || object::decode(kind, payload))?;
                let index = self.checker.catalog.database()?.find(Index::Objects, &object::hash(kind, &plain))?;
                if index != Some(number) {
                    let reason = format!("object {number} is not in it under its hash");
                    let what = index_name(Index::Objects).to_owned();
                    let key = Key::Index(Index::Objects, "entries");
                    self.checker.ledger.note(DamageKind::Catalog, key, what, reason);
                }
                CatalogError::decode_row(row, || match kind {
                    ObjectKind::Index => directory::decode_index(&plain).map(drop),
                    ObjectKind::Content => group::decode_segments(&plain).map(drop),
                    ObjectKind::Links => crate::catalog::link_counts::decode_page(&plain).map(drop),
                    // Pages are decoded with their names, when the trees are walked.
                    ObjectKind::Names | ObjectKind::Page | ObjectKind::Problems => Ok(()),
                })?;
            }
            Table::Snapshots => {
                let record = SnapshotRecord::decode(payload).map_err(|error| CatalogError::of_row(row, error))?;
                if !self.checker.replica.config().is_of(SnapshotNumber(number), &record) {
                    self.damage(number, "its identifier does not follow from its time, source and digest".to_owned());
                }
                self.rows.snapshots.push((SnapshotNumber(number), record));
            }
            Table::Meta if number == STORE => self.compare_config(payload)?,
            Table::Marks => {
                crate::catalog::marks::decode(SnapshotNumber(number), payload)?;
            }
            // Link groups have a step of their own; the others are read by whoever opens the store.
            _ => {}
        }
        Ok(())
    }
}

impl TableScan<'_, '_> {
    /// Compares config.json with what the catalogue says it holds.
    fn compare_config(&mut self, payload: &[u8]) -> Result<(), CheckError> {
        let row = match StoreConfig::from_row(payload) {
            Ok(row) => row,
            Err(Unusable::Format(format)) => {
                let row = RowKind::Meta.row(STORE);
                return Err(CatalogError::Unsupported(Unsupported::Format { row, format }).into());
            }
            Err(Unusable::Damaged(fault)) => {
                self.damage(STORE, fault.to_string());
                return Ok(());
            }
        };
        let replica = self.checker.replica;
        let fits = |config: &StoreConfig| config.merged(&row) == *config;
        // A run that began since the store was opened may have raised both.
        if fits(replica.config()) || StoreConfig::read(replica.path()).is_ok_and(|config| fits(&config)) {
            return Ok(());
        }
        let reason = "it does not match the catalogue; a repair restores it".to_owned();
        self.checker.ledger.note(DamageKind::Config, Key::Config, format!("The file {CONFIG}"), reason);
        Ok(())
    }
}

/// Verifies that an index has as many entries as there are rows, and that each fits.
fn agree(
    checker: &Checker<'_>,
    index: Index,
    count: RangeInclusive<u64>,
    fits: impl Fn(&[u8; 32], u64) -> bool,
) -> Result<(), CheckError> {
    checker.guarded(index_name(index), || {
        let (mut entries, mut failure, mut last) = (0, None, None);
        let note = |kind, reason| {
            let what = index_name(index).to_owned();
            checker.ledger.note(DamageKind::Catalog, Key::Index(index, kind), what, reason);
        };
        let scanned = checker.catalog.database()?.scan_index(index, |hash, number| {
            checker.progress.step().map_err(|error| stop(&mut failure, error))?;
            if last.is_some_and(|last: [u8; 32]| *hash <= last) {
                note("order", "its entries are not in order".to_owned());
                return Err(CatalogError::of_row(index.entry_kind().row(number), RowFault::Order));
            }
            last = Some(*hash);
            entries += 1;
            if !fits(hash, number) {
                note("entries", format!("its entry for number {number} does not fit the row of that number"));
            }
            Ok(())
        });
        if let Some(error) = failure {
            return Err(error);
        }
        scanned?;
        if !count.contains(&entries) {
            note("count", format!("it has {entries} entries, and there are {} rows", count.end()));
        }
        Ok(())
    })
}

/// Keeps an error that a scan cannot carry, and returns one that ends the scan.
fn stop(kept: &mut Option<CheckError>, error: CheckError) -> CatalogError {
    match error {
        CheckError::Catalog(error) => error,
        other => {
            *kept = Some(other);
            // Nobody sees it: the error that was kept is what counts.
            ReadError::Unwanted(0).into()
        }
    }
}

/// Returns what is wrong, or the error if it concerns the system and not what is stored.
pub(super) fn damage_of(error: CatalogError) -> Result<String, CheckError> {
    if is_damage(&error) { Ok(reason_of(&error)) } else { Err(error.into()) }
}

/// Returns what is wrong, without the sentence around it.
pub(super) fn reason_of(error: &CatalogError) -> String {
    match error {
        CatalogError::Damage(CatalogDamage::Row { fault, .. }) => fault.to_string(),
        CatalogError::Damage(CatalogDamage::File { fault, .. }) => fault.to_string(),
        CatalogError::Damage(CatalogDamage::Missing(_)) => "it is missing".to_owned(),
        other => other.to_string(),
    }
}

fn index_name(index: Index) -> &'static str {
    match index {
        Index::Chunks => "The chunk index",
        Index::Objects => "The object index",
    }
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Meta => "The counters and sources",
        Table::Chunks => "The table of chunks",
        Table::Packs => "The table of packs",
        Table::Groups => "The table of link groups",
        Table::Objects => "The table of objects",
        Table::Snapshots => "The table of snapshots",
        Table::Commits => "The table of commits",
        Table::Dictionaries => "The table of dictionaries",
        Table::Marks => "The table of marks",
        Table::Condemned => "The table of condemned objects",
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
