//! Carrying out a plan. The module above describes the order of the steps; each ends in a commit, and a crash anywhere leaves a whole store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Serialize;
use tracing::{debug, info, info_span};

use super::caches;
use super::plan::{PackFate, PackPlan, PrunePlan};
use super::repack::{Repacker, keep_dictionaries};
use super::{Bitmap, Phase, PruneError, PruneProgress, sweep};
use crate::areas;
use crate::catalog::CatalogError;
use crate::catalog::checkpoint_writer;
use crate::catalog::chunk::{ChunkPlace, ChunkRow, PAGE_ROWS};
use crate::catalog::condemned::{self, Condemned};
use crate::catalog::marks::SnapshotMarks;
use crate::catalog::row_hashes::RowHashes;
use crate::catalog::tables::{Index, Table};
use crate::catalog::writer::CatalogWriter;
use crate::ids::{ChunkId, CommitNumber, GroupId, ObjectId, PackNumber, SnapshotNumber};
use crate::lease;
use crate::replica::{LockedReplica, Replica};
use crate::store::entry::{ChunkAddress, Location};
use crate::store::pack::{PACK_PREFIX, PackId};

/// Pending changes of the catalogue that are committed before more are gathered, in bytes.
const PENDING_BYTES: usize = 48 << 20;
/// Chunks whose places are held in memory while packs are repacked.
const MOVED_CHUNKS: u64 = 500_000;
/// Bytes that are copied before the new packs are committed and the old ones deleted: what a prune takes of a nearly full disk.
const MOVED_BYTES: u64 = 256 << 20;

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Snapshots that went.
    pub removed_snapshots: u64,
    /// Bytes of packs that nothing needs any more and that were condemned: a run after the grace deletes them.
    pub condemned_bytes: u64,
    /// Packs that were deleted.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Packs that were written in place of some of them.
    pub written_packs: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Whether commit files were folded into a checkpoint.
    pub folded: bool,
    /// Bytes of commit files and checkpoints that were deleted, since a checkpoint took their place.
    pub folded_bytes: u64,
    /// Why commit files were not folded although that was due. They stay, and nothing is lost.
    pub not_folded: Option<String>,
    /// Length of the catalogue before and after it was compacted, in bytes.
    pub compacted: Option<(u64, u64)>,
    /// Wall time, in milliseconds.
    pub elapsed_ms: u64,
}

/// Carries out a plan. When it fails or is interrupted the store is whole, and a new plan goes on from there.
///
/// # Errors
/// [`PruneError::Outdated`] when the store is not as it was when the plan was made, [`PruneError::Leased`] when a snapshot that was to go was mounted
/// since; nothing was removed then. See [`PruneError`] for the others.
pub fn carry_out(
    replica: &mut LockedReplica,
    plan: &PrunePlan,
    progress: &PruneProgress,
) -> Result<PruneReport, PruneError> {
    let clock = Instant::now();
    let _span = info_span!(target: areas::PRUNE, "carry_out").entered();
    let mut report = PruneReport::default();
    {
        let replica: &LockedReplica = replica;
        let mut writer = replica.writer()?;
        if writer.last_commit() != plan.commit {
            return Err(PruneError::Outdated);
        }
        caches::sync_or_remove(replica)?;
        let mut work = Work { replica, plan, progress, report: &mut report, removed_rows: BTreeSet::new() };
        work.snapshots(&mut writer)?;
        work.groups(&mut writer)?;
        work.objects(&mut writer)?;
        work.chunks(&mut writer)?;
        let unnamed = work.unnamed_packs(&writer)?;
        work.packs(&mut writer, &unnamed)?;
        work.sweep(&mut writer)?;
        work.repack(&mut writer)?;
        work.fold(&mut writer)?;
        work.sweep_at_once(&mut writer)?;
    }
    report.compacted = replica.compact_catalog_if_worth(u64::MAX);
    report.elapsed_ms = clock.elapsed().as_millis() as u64;
    info!(
        target: areas::PRUNE,
        removed_snapshots = report.removed_snapshots,
        condemned_bytes = report.condemned_bytes,
        deleted_packs = report.deleted_packs,
        written_packs = report.written_packs,
        elapsed_ms = report.elapsed_ms,
        "prune finished"
    );
    Ok(report)
}

struct Work<'a> {
    replica: &'a Replica,
    plan: &'a PrunePlan,
    progress: &'a PruneProgress,
    report: &'a mut PruneReport,
    /// Rows of packs that this run has removed.
    removed_rows: BTreeSet<PackNumber>,
}

impl Work<'_> {
    fn commit_if_large(&self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        if writer.pending_bytes() >= PENDING_BYTES {
            writer.commit()?;
        }
        Ok(())
    }

    /// Removes the records of snapshots, unless one is leased by now.
    fn snapshots(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let going: BTreeMap<&str, SnapshotNumber> =
            self.plan.retention.removed().map(|decision| (decision.id.as_str(), decision.number)).collect();
        self.progress.enter(Phase::Remove, 0);
        if going.is_empty() {
            return Ok(());
        }
        let store = self.replica.path();
        let failed =
            |source| PruneError::Io { action: "look at the leases of", path: store.display().to_string(), source };
        let _gate = lease::close_gate(store).map_err(failed)?;
        let leases = lease::list(store).map_err(failed)?;
        if let Some(id) = leases.iter().flat_map(|lease| &lease.snapshots).find(|id| going.contains_key(id.as_str())) {
            return Err(PruneError::Leased { id: id.clone() });
        }
        for number in going.values() {
            writer.remove(Table::Snapshots, number.0);
            writer.set_marks(*number, &SnapshotMarks::default())?;
        }
        let mut sources = writer.reader().sources()?;
        let all = writer.reader().snapshots()?;
        let left = all.iter().filter(|(_, record)| !going.contains_key(record.id.as_str()));
        if sources.free_removed(left.map(|(_, record)| record)) {
            writer.set_sources(&sources)?;
        }
        writer.commit()?;
        self.report.removed_snapshots = going.len() as u64;
        Ok(())
    }

    /// Returns the numbers of a table's pages whose rows are not all in use.
    fn pages<N: From<u64> + Into<u64>>(
        &self,
        writer: &CatalogWriter,
        table: Table,
        used: &Bitmap<N>,
    ) -> Result<Vec<u64>, CatalogError> {
        let mut pages = Vec::new();
        writer.reader().database()?.scan_numbers(table, |page| {
            // Of a page that no counter reached nothing is in use.
            let first = page.saturating_mul(PAGE_ROWS);
            if !(first..first.saturating_add(PAGE_ROWS)).all(|number| used.has(N::from(number))) {
                pages.push(page);
            }
            Ok(())
        })?;
        Ok(pages)
    }

    fn groups(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let used = &self.plan.marks.groups;
        for page in self.pages(writer, Table::Groups, used)? {
            self.progress.step()?;
            let is_used = |at: usize| used.has(GroupId(page.saturating_mul(PAGE_ROWS).saturating_add(at as u64)));
            let mut unused = false;
            writer.reader().for_each_group(page, |at, row| {
                unused |= row.is_some() && !is_used(at);
                Ok::<_, CatalogError>(!unused)
            })?;
            if unused {
                writer.retain_groups(page, is_used)?;
                self.commit_if_large(writer)?;
            }
        }
        Ok(writer.commit()?)
    }

    fn objects(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let mut there = Bitmap::new(writer.counters().object);
        writer.reader().database()?.scan_numbers(Table::Objects, |number| {
            there.add(ObjectId(number));
            Ok(())
        })?;
        for number in there.without(&self.plan.marks.objects) {
            self.progress.step()?;
            let database = writer.reader().database()?;
            let prefix =
                database.get(Table::Objects, number.0, |stored| Ok(crate::catalog::object::hash_prefix(stored)));
            let prefix = match prefix {
                // What is damaged goes without its entry in the index, which leads nowhere then.
                Err(error) if error.is_damage() => None,
                found => found?.flatten(),
            };
            if let Some(prefix) = prefix
                && let Some(hash) = database.hash_of(Index::Objects, prefix, number.0)?
            {
                writer.remove_from_index(Index::Objects, hash);
            }
            writer.remove(Table::Objects, number.0);
            self.commit_if_large(writer)?;
        }
        Ok(writer.commit()?)
    }

    fn chunks(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let used = &self.plan.marks.chunks;
        for page in self.pages(writer, Table::Chunks, used)? {
            self.progress.step()?;
            let database = writer.reader().database()?;
            let mut rows = writer.reader().chunk_rows(page)?;
            let mut gone = Vec::new();
            if clear(&mut rows, page, used, |number, row| gone.push((number, row.prefix))) {
                for (number, prefix) in gone {
                    if let Some(hash) = database.hash_of(Index::Chunks, prefix, number.0)? {
                        writer.remove_from_index(Index::Chunks, hash);
                    }
                }
                writer.replace_chunks(page, &rows);
                self.commit_if_large(writer)?;
            }
        }
        Ok(writer.commit()?)
    }

    /// Removes the rows of packs without chunks and condemns those packs and the ones that no row names, once the dictionaries are safe.
    fn packs(&mut self, writer: &mut CatalogWriter, unnamed: &[(PackId, u64)]) -> Result<(), PruneError> {
        let packs = &self.plan.packs;
        if unnamed.is_empty() && packs.values().all(|pack| pack.fate == PackFate::Keep) {
            return Ok(());
        }
        let of_dictionaries: Vec<PackId> =
            packs.values().filter(|pack| pack.is_dictionary_pack()).map(|pack| pack.row.id).collect();
        if let Some(row) = keep_dictionaries(self.replica, writer.epoch(), &of_dictionaries)? {
            self.replica.backend().sync()?;
            self.report.written_packs += 1;
            self.report.written_bytes += row.bytes;
            writer.add_pack(row, &[])?;
        }
        for (number, pack) in packs.iter().filter(|(_, pack)| pack.fate == PackFate::Remove) {
            self.remove_pack(writer, *number, pack)?;
        }
        for (id, bytes) in unnamed {
            self.condemn(writer, Condemned::Pack(*id), *bytes)?;
        }
        Ok(writer.commit()?)
    }

    /// Removes the row of a pack, and condemns the pack unless another row names it: stores of format 1 may have two rows of one pack.
    fn remove_pack(
        &mut self,
        writer: &mut CatalogWriter,
        number: PackNumber,
        pack: &PackPlan,
    ) -> Result<(), PruneError> {
        writer.remove(Table::Packs, number.0);
        self.removed_rows.insert(number);
        let others = self.plan.packs.iter().filter(|(_, other)| other.row.id == pack.row.id);
        if others.into_iter().all(|(other, _)| self.removed_rows.contains(other)) {
            self.condemn(writer, Condemned::Pack(pack.row.id), pack.row.bytes)?;
        }
        Ok(())
    }

    /// Returns the packs that no row names, with their bytes: what crashes left. Their dictionaries may be in the catalogue.
    fn unnamed_packs(&self, writer: &CatalogWriter) -> Result<Vec<(PackId, u64)>, PruneError> {
        let mut named: BTreeSet<PackId> =
            condemned::read_packs(writer.reader())?.into_iter().map(|(id, _)| id).collect();
        named.extend(sweep::named_packs(writer.reader())?);
        let packs = self.replica.backend().list(PACK_PREFIX)?.into_iter();
        let packs = packs.filter_map(|(key, bytes)| Some((PackId::from_key(&key)?, bytes)));
        Ok(packs.filter(|(id, _)| !named.contains(id)).collect())
    }

    fn condemn(&mut self, writer: &mut CatalogWriter, what: Condemned, bytes: u64) -> Result<(), PruneError> {
        debug!(target: areas::PRUNE, ?what, bytes, "condemned");
        writer.condemn(what, bytes, self.plan.now)?;
        self.report.condemned_bytes += bytes;
        Ok(())
    }

    /// Deletes what is condemned and due.
    fn sweep(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let swept = sweep::sweep(self.replica, writer, self.plan.now, self.plan.grace, self.progress)?;
        self.report.deleted_packs += swept.packs;
        self.report.deleted_bytes += swept.pack_bytes;
        self.report.folded_bytes += swept.folded_bytes;
        if swept.not_tidied.is_some() {
            self.report.not_folded = swept.not_tidied;
        }
        Ok(())
    }

    /// Deletes what this run has condemned, if there is no grace.
    fn sweep_at_once(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        if self.plan.grace.is_zero() { self.sweep(writer) } else { Ok(()) }
    }

    /// Repacks: copies what is used to new packs, and condemns the old ones.
    fn repack(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let repacked: Vec<(PackNumber, &PackPlan)> =
            self.plan.packs.iter().filter(|(_, pack)| pack.fate == PackFate::Repack).map(|(n, p)| (*n, p)).collect();
        self.progress.enter(Phase::Repack, repacked.iter().map(|(_, pack)| pack.live_bytes).sum());
        let mut repacker = Repacker::new(self.replica, writer.epoch());
        for batch in batches(&repacked, |pack| pack.live_chunks, MOVED_CHUNKS) {
            let mut places = self.places(writer, batch)?;
            for unit in batches(batch, |pack| pack.live_bytes, MOVED_BYTES) {
                for (number, _) in unit {
                    let chunks = places.remove(number).unwrap_or_default();
                    repacker.copy(
                        &chunks,
                        |bytes| self.progress.add(bytes),
                        |_, source| Err(PruneError::Chunk { source }),
                    )?;
                }
                let (packs, bytes) = repacker.finish_packs(writer)?;
                self.report.written_packs += packs;
                self.report.written_bytes += bytes;
                for (number, pack) in unit {
                    self.remove_pack(writer, *number, pack)?;
                }
                writer.commit()?;
                self.sweep_at_once(writer)?;
            }
        }
        Ok(())
    }

    /// Returns the chunks of some packs, by pack, sorted by offset.
    fn places(
        &self,
        writer: &CatalogWriter,
        packs: &[(PackNumber, &PackPlan)],
    ) -> Result<BTreeMap<PackNumber, Vec<(ChunkId, ChunkAddress)>>, PruneError> {
        let ids: BTreeMap<PackNumber, PackId> = packs.iter().map(|(number, pack)| (*number, pack.row.id)).collect();
        let mut places: BTreeMap<PackNumber, Vec<(ChunkId, ChunkAddress)>> = BTreeMap::new();
        writer.reader().for_each_chunk(|number, row| {
            if let ChunkPlace::At { pack, offset, stored_length } = row.place
                && let Some(id) = ids.get(&pack)
            {
                let location = Location { pack: *id, offset, stored_length, plain_length: row.plain_length };
                let address = ChunkAddress { location, hash_prefix: row.prefix };
                places.entry(pack).or_default().push((number, address));
            }
            Ok(())
        })?;
        for chunks in places.values_mut() {
            chunks.sort_unstable_by_key(|(_, address)| address.location.offset);
        }
        Ok(places)
    }

    /// Folds commit files into a checkpoint when that is due. The catalogue takes their place only where it is exactly what they say.
    fn fold(&mut self, writer: &mut CatalogWriter) -> Result<(), PruneError> {
        let backend = self.replica.backend().as_ref();
        self.progress.enter(Phase::Checkpoint, 0);
        let fold = || -> Result<Option<(CommitNumber, u64)>, CatalogError> {
            if !checkpoint_writer::is_due(backend)? {
                return Ok(None);
            }
            let expected = RowHashes::read(backend, writer.last_commit().0)?;
            let written = checkpoint_writer::write(&*writer.reader().database()?, backend, Some(&expected))?;
            let superseded = checkpoint_writer::list_superseded(backend, written.number)?;
            Ok(Some((written.number, superseded.iter().map(|(_, bytes)| bytes).sum())))
        };
        match fold() {
            Ok(None) => {}
            Ok(Some((number, bytes))) => {
                writer.condemn(Condemned::OlderThan(number), bytes, self.plan.now)?;
                writer.commit()?;
                self.report.folded = true;
            }
            Err(error) if error.is_damage() => self.report.not_folded = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Takes rows out of a page that are not in use; returns whether there were any.
fn clear(
    rows: &mut [Option<ChunkRow>],
    page: u64,
    used: &Bitmap<ChunkId>,
    mut gone: impl FnMut(ChunkId, &ChunkRow),
) -> bool {
    let mut any = false;
    for (number, slot) in (page.saturating_mul(PAGE_ROWS)..).map(ChunkId).zip(rows) {
        if let Some(row) = slot
            && !used.has(number)
        {
            gone(number, row);
            *slot = None;
            any = true;
        }
    }
    any
}

/// Splits packs into pieces whose weights sum up to at most `limit`, or which are one pack.
fn batches<'a, 'p>(
    packs: &'a [(PackNumber, &'p PackPlan)],
    weight: impl Fn(&PackPlan) -> u64,
    limit: u64,
) -> Vec<&'a [(PackNumber, &'p PackPlan)]> {
    let mut batches = Vec::new();
    let (mut first, mut sum) = (0, 0u64);
    for (at, (_, pack)) in packs.iter().enumerate() {
        let own = weight(pack);
        if at > first && sum + own > limit {
            batches.push(&packs[first..at]);
            (first, sum) = (at, 0);
        }
        sum += own;
    }
    if first < packs.len() {
        batches.push(&packs[first..]);
    }
    batches
}
