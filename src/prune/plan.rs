//! The plan of a prune: what goes, what stays, and what that frees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::caches;
use super::mark::Marks;
use super::{Bitmap, Phase, PruneError, PruneOptions, PruneProgress};
use crate::catalog::chunk::{ChunkPlace, PackRow};
use crate::catalog::commit::CommitId;
use crate::catalog::commit_log::last_commit;
use crate::catalog::condemned::{self, Condemned, CondemnedRow, Verdict};
use crate::catalog::dates::{ClockDoubt, Dates};
use crate::catalog::meta::Counters;
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::tables::Table;
use crate::catalog::{CatalogError, RowKind};
use crate::guard;
use crate::ids::{CommitNumber, GroupId, ObjectId, PackNumber, SnapshotNumber, SourceId};
use crate::lease;
use crate::replica::Replica;
use crate::retention::{self, Protections, RetentionPlan, Rules, Selection};
use crate::snapshot::inode_cache;
use crate::store::pack::{PACK_PREFIX, PackFormat};

/// Bytes of a new pack that belong to no entry.
const PACK_OVERHEAD_BYTES: u64 = PackFormat::V2.overhead_bytes();

/// What a prune does, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneFigures {
    /// Snapshots that stay.
    pub kept_snapshots: u64,
    /// Snapshots that go.
    pub removed_snapshots: u64,
    /// Chunks that nothing needs any more.
    pub removed_chunks: u64,
    /// What they take in packs, in bytes.
    pub removed_chunk_bytes: u64,
    /// The part of it that no snapshot needed before either: left by interrupted runs or prunes.
    pub unreferenced_bytes: u64,
    /// Packs that have no chunk left: they are condemned, and deleted after the grace.
    pub deleted_packs: u64,
    /// Their bytes.
    pub deleted_pack_bytes: u64,
    /// Packs that are repacked, which leaves out what is unused.
    pub rewritten_packs: u64,
    /// Their bytes.
    pub rewritten_bytes: u64,
    /// The part of them that is copied.
    pub copied_bytes: u64,
    /// Packs that no row names, left by interrupted runs or prunes; they are condemned, too.
    pub orphan_packs: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Bytes of packs that the prune frees, all in all: once the grace is over.
    pub freed_bytes: u64,
    /// Bytes that earlier runs condemned and that are deleted now.
    pub due_bytes: u64,
    /// Bytes that earlier runs condemned and that still wait.
    pub waiting_bytes: u64,
    /// Bytes of packs that stay.
    pub kept_bytes: u64,
    /// The part of them that nothing needs.
    pub unused_bytes: u64,
    /// Chunks that snapshots that stay need and whose bytes are lost.
    pub lost_chunks: u64,
}

/// What becomes of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PackFate {
    Keep,
    Repack,
    Remove,
}

pub(super) struct PackPlan {
    pub(super) row: PackRow,
    pub(super) live_chunks: u64,
    pub(super) live_bytes: u64,
    pub(super) fate: PackFate,
}

impl PackPlan {
    fn unused_bytes(&self) -> u64 {
        self.row.bytes.saturating_sub(self.row.format.overhead_bytes() + self.live_bytes)
    }

    /// Returns whether the pack holds dictionaries and nothing else.
    pub(super) fn is_dictionary_pack(&self) -> bool {
        self.row.chunks == 0
    }
}

/// What a prune will do to one commit of a store.
pub struct PrunePlan {
    /// Which snapshots stay and go, and why.
    pub retention: RetentionPlan,
    /// For each snapshot that goes, by number, the bytes in packs that its going frees: when they go one after the other, oldest first.
    pub freed: BTreeMap<SnapshotNumber, u64>,
    /// The names of the sources of which nothing goes because a clock is in doubt, and why.
    pub doubts: Vec<(String, ClockDoubt)>,
    /// The sums.
    pub figures: PruneFigures,
    pub(super) commit: (CommitNumber, CommitId),
    pub(super) marks: Marks,
    pub(super) packs: BTreeMap<PackNumber, PackPlan>,
    /// What earlier runs condemned, by number, and what becomes of it.
    pub(super) condemned: Vec<(u64, CondemnedRow, Verdict)>,
    pub(super) grace: Duration,
    pub(super) now: jiff::Timestamp,
}

impl PrunePlan {
    /// Returns how long what is condemned stays at least.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let figures = &self.figures;
        figures.removed_snapshots == 0
            && figures.removed_chunks == 0
            && figures.deleted_packs == 0
            && figures.rewritten_packs == 0
            && figures.orphan_packs == 0
            && self.condemned.iter().all(|(_, row, verdict)| *verdict == Verdict::Waits(*row))
    }
}

/// Makes the plan of a prune: what is selected goes unless `protections` keep it, and whatever is not needed then. Leases, pins and the guard protect too.
///
/// # Errors
/// Fails when anything is damaged or missing that the snapshots that stay need.
pub fn plan(
    replica: &Replica,
    selection: Selection<'_>,
    mut protections: Protections,
    zone: &TimeZone,
    options: &PruneOptions,
    progress: &PruneProgress,
) -> Result<PrunePlan, PruneError> {
    progress.enter(Phase::Mark, 0);
    let catalog = replica.catalog()?;
    let database = catalog.database()?;
    let counters = Counters::read(&database)?;
    let commit = last_commit(&database)?;
    for lease in lease::list(replica.path()).map_err(|source| lease_error(replica, source))? {
        for id in &lease.snapshots {
            protections.add(id, format!("in use at {} (process {})", lease.mount_point, lease.pid));
        }
    }
    let sources = catalog.sources()?;
    // Of what somebody has named, the removed sources' snapshots are like all others.
    let mut rules = match selection {
        Selection::Rules(rules) => rules.clone(),
        Selection::Named(_) => Rules::default(),
    };
    if let Selection::Rules(_) = selection {
        rules.removed.extend(sources.removed());
    }
    guard_protections(&catalog, selection, &rules, &mut protections)?;
    let records = catalog.snapshots()?;
    let mut doubts = Vec::new();
    let retention = match selection {
        Selection::Named(named) => retention::plan_named(&records, &named.ids, &protections),
        Selection::Rules(_) => {
            let dates = Dates::read(&catalog, options.now)?;
            let of_sources = dates.doubts();
            let is_removed =
                |record: &SnapshotRecord| record.source_id.is_some_and(|id| rules.removed.contains_key(&id));
            for (_, record) in records.iter().filter(|(_, record)| !is_removed(record)) {
                if of_sources.iter().any(|(source, _)| *source == record.source_id) {
                    protections.add(&record.id, "a clock is in doubt");
                }
            }
            let of_sources =
                of_sources.into_iter().filter(|(source, _)| source.is_none_or(|id| !rules.removed.contains_key(&id)));
            let named = of_sources.map(|(source, doubt)| (sources.name(source).to_owned(), doubt));
            doubts.extend(named);
            retention::plan(&records, &dates, &rules, &protections, zone)
        }
    };
    let going: BTreeSet<SnapshotNumber> = retention.removed().map(|decision| decision.number).collect();

    let mut marks = Marks::new(&counters);
    for (_, record) in records.iter().filter(|(number, _)| !going.contains(number)) {
        marks.snapshot(&catalog, record, progress)?;
    }
    let newest: BTreeMap<Option<SourceId>, SnapshotNumber> =
        records.iter().map(|(number, record)| (record.source_id, *number)).collect();
    let newest_goes = newest.into_values().any(|number| going.contains(&number));
    let going: Vec<&(SnapshotNumber, SnapshotRecord)> =
        records.iter().filter(|(number, _)| going.contains(number)).collect();
    // What is known beside the newest snapshot of a source is what an interrupted run has committed, and stays.
    let lost = if newest_goes { freed_by_each(&catalog, &marks, &going, progress)?.groups } else { Bitmap::default() };
    mark_known(replica, &catalog, &rules, &mut marks, &lost, progress)?;
    drop(lost);
    all_objects_are_there(&catalog, &marks)?;

    let FreedByEach { freed, reached_bytes, .. } = freed_by_each(&catalog, &marks, &going, progress)?;
    let mut packs = packs(&catalog, &marks)?;
    let sizes: HashMap<String, u64> = replica.backend().list(PACK_PREFIX)?.into_iter().collect();
    all_packs_are_there(&packs, &sizes)?;
    let dictionary_bytes = match packs.values().any(PackPlan::is_dictionary_pack) {
        // Copies in packs of chunks are superfluous then.
        true => 0,
        false => replica.dictionaries().all().iter().map(|one| one.bytes().len() as u64).sum(),
    };
    choose(&mut packs, options.max_unused_percent, dictionary_bytes);

    let mut figures = PruneFigures {
        kept_snapshots: retention.kept().count() as u64,
        removed_snapshots: going.len() as u64,
        lost_chunks: marks.lost_chunks,
        ..PruneFigures::default()
    };
    removed_chunks(&catalog, &marks, &mut figures)?;
    figures.unreferenced_bytes = figures.removed_chunk_bytes.saturating_sub(reached_bytes);
    let condemned: Vec<(u64, CondemnedRow, Verdict)> = condemned::read_all(&catalog)?
        .into_iter()
        .map(|(number, row)| (number, row, row.judge(options.now, options.grace)))
        .collect();
    let mut named: BTreeSet<String> = packs.values().map(|pack| pack.row.id.key()).collect();
    for (_, row, verdict) in &condemned {
        match verdict {
            Verdict::Due => figures.due_bytes += row.bytes,
            Verdict::Waits(_) => figures.waiting_bytes += row.bytes,
        }
        if let Condemned::Pack(id) = row.what {
            named.insert(id.key());
        }
    }
    for (_, bytes) in sizes.iter().filter(|(key, _)| !named.contains(*key)) {
        figures.orphan_packs += 1;
        figures.orphan_bytes += bytes;
    }
    sum_up(&packs, &mut figures);
    let PruneOptions { grace, now, .. } = *options;
    Ok(PrunePlan { retention, freed, doubts, figures, commit, marks, packs, condemned, grace, now })
}

fn lease_error(replica: &Replica, source: std::io::Error) -> PruneError {
    PruneError::Io { action: "read the leases of", path: replica.path().display().to_string(), source }
}

/// Adds what the guard keeps. Of named snapshots that includes the last good ones, for the next are compared with these; if it is forced, nothing but pins.
fn guard_protections(
    catalog: &CatalogReader,
    selection: Selection<'_>,
    rules: &Rules,
    protections: &mut Protections,
) -> Result<(), CatalogError> {
    let all = guard::marked_snapshots(catalog)?;
    let kept = match selection {
        Selection::Named(named) if named.is_forced => guard::pins(&all),
        _ => guard::protections(&all, &rules.removed),
    };
    for (id, reasons) in kept {
        reasons.into_iter().for_each(|reason| protections.add(&id, reason));
    }
    if let Selection::Named(named) = selection
        && !named.is_forced
    {
        for good in guard::last_good(&all).into_values() {
            protections.add(&good.record.id, "the last good one of its source, with which the next is compared");
        }
    }
    Ok(())
}

/// Marks what the files of known inodes name, but for those of removed sources and the link groups in `lost`: the next run finds that these are gone, and
/// reads their inodes again.
fn mark_known(
    replica: &Replica,
    catalog: &CatalogReader,
    rules: &Rules,
    marks: &mut Marks,
    lost: &Bitmap<GroupId>,
    progress: &PruneProgress,
) -> Result<(), PruneError> {
    for path in caches::paths(replica.path())? {
        if inode_cache::source_of(&path).is_some_and(|source| rules.removed.contains_key(&source)) {
            continue;
        }
        let is_marked = |group| marks.groups.has(group);
        let Some(cache) = caches::load_present(replica, &path, is_marked)? else { continue };
        for inode in cache.known.inodes().iter().filter(|inode| !lost.has(inode.group)) {
            marks.group(inode.group)?;
        }
    }
    marks.mark_contents(catalog, progress)
}

/// Verifies that every object that is needed exists; those that were decoded do, names and link counts were not looked at.
fn all_objects_are_there(catalog: &CatalogReader, marks: &Marks) -> Result<(), CatalogError> {
    let mut there = 0;
    let mut last = None;
    catalog.database()?.scan_numbers(Table::Objects, |number| {
        last = Some(number);
        there += u64::from(marks.objects.has(ObjectId(number)));
        Ok(())
    })?;
    if there == marks.objects.count() {
        return Ok(());
    }
    let nothing = super::Bitmap::default();
    for number in marks.objects.without(&nothing) {
        if catalog.database()?.get(Table::Objects, number.0, |_| Ok(()))?.is_none() {
            return Err(CatalogError::missing(RowKind::Object.row(number)));
        }
    }
    Ok(())
}

/// What going snapshots need beside what stays.
struct FreedByEach {
    /// Bytes in packs, for each snapshot by number.
    freed: BTreeMap<SnapshotNumber, u64>,
    /// Their sum.
    reached_bytes: u64,
    /// Link groups, those of what stays included.
    groups: Bitmap<GroupId>,
}

/// Returns what each snapshot frees that goes. Damage of what goes is no reason to keep it.
fn freed_by_each(
    catalog: &CatalogReader,
    kept: &Marks,
    going: &[&(SnapshotNumber, SnapshotRecord)],
    progress: &PruneProgress,
) -> Result<FreedByEach, PruneError> {
    let mut all = kept.clone();
    let mut freed = BTreeMap::new();
    for (number, record) in going {
        let before = all.chunk_bytes;
        match all.snapshot(catalog, record, progress) {
            Err(PruneError::Interrupted) => return Err(PruneError::Interrupted),
            Err(error) if !error.is_damage() => return Err(error),
            _ => {}
        }
        freed.insert(*number, all.chunk_bytes - before);
    }
    Ok(FreedByEach { freed, reached_bytes: all.chunk_bytes - kept.chunk_bytes, groups: all.groups })
}

/// Counts what is needed of each pack.
fn packs(catalog: &CatalogReader, marks: &Marks) -> Result<BTreeMap<PackNumber, PackPlan>, CatalogError> {
    let mut packs = BTreeMap::new();
    catalog.for_each_pack(|number, row| {
        packs.insert(number, PackPlan { row, live_chunks: 0, live_bytes: 0, fate: PackFate::Keep });
        Ok(())
    })?;
    catalog.for_each_chunk(|number, row| {
        if marks.chunks.has(number)
            && let ChunkPlace::At { pack, .. } = row.place
        {
            let missing = || CatalogError::missing(RowKind::Pack.row(pack));
            let pack = packs.get_mut(&pack).ok_or_else(missing)?;
            pack.live_chunks += 1;
            pack.live_bytes += row.entry_bytes().unwrap_or_default();
        }
        Ok(())
    })?;
    Ok(packs)
}

fn all_packs_are_there(packs: &BTreeMap<PackNumber, PackPlan>, sizes: &HashMap<String, u64>) -> Result<(), PruneError> {
    for PackPlan { row, live_chunks, .. } in packs.values() {
        if *live_chunks == 0 {
            continue;
        }
        let reason = match sizes.get(&row.id.key()) {
            Some(bytes) if *bytes == row.bytes => continue,
            Some(bytes) => format!("has {bytes} bytes and should have {}", row.bytes),
            None => "is missing".to_owned(),
        };
        return Err(PruneError::Pack { pack: row.id.to_string(), reason });
    }
    Ok(())
}

/// Decides what becomes of each pack: those without a needed chunk go, and of the others those with the largest unused share are repacked until
/// what stays has no more unused than allowed. `slack_bytes` of unused bytes, those of dictionaries, are allowed on top.
fn choose(packs: &mut BTreeMap<PackNumber, PackPlan>, max_unused_percent: u8, slack_bytes: u64) {
    let (mut live, mut unused) = (0u64, 0u64);
    let mut candidates = Vec::new();
    for (number, pack) in packs.iter_mut() {
        if pack.is_dictionary_pack() {
            continue;
        }
        if pack.live_chunks == 0 {
            pack.fate = PackFate::Remove;
            continue;
        }
        live += pack.live_bytes + PACK_OVERHEAD_BYTES;
        unused += pack.unused_bytes();
        if pack.unused_bytes() > 0 {
            candidates.push((pack.unused_bytes() as f64 / pack.row.bytes as f64, *number));
        }
    }
    let percent = u64::from(max_unused_percent.min(100));
    let allowed = if percent == 100 { u64::MAX } else { live * percent / (100 - percent) + slack_bytes };
    candidates.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
    for (_, number) in candidates {
        if unused <= allowed {
            break;
        }
        if let Some(pack) = packs.get_mut(&number) {
            unused -= pack.unused_bytes();
            pack.fate = PackFate::Repack;
        }
    }
}

fn removed_chunks(catalog: &CatalogReader, marks: &Marks, figures: &mut PruneFigures) -> Result<(), CatalogError> {
    catalog.for_each_chunk(|number, row| {
        if !marks.chunks.has(number) {
            figures.removed_chunks += 1;
            figures.removed_chunk_bytes += row.entry_bytes().unwrap_or_default();
        }
        Ok(())
    })
}

fn sum_up(packs: &BTreeMap<PackNumber, PackPlan>, figures: &mut PruneFigures) {
    for pack in packs.values() {
        match pack.fate {
            PackFate::Remove => {
                figures.deleted_packs += 1;
                figures.deleted_pack_bytes += pack.row.bytes;
            }
            PackFate::Repack => {
                figures.rewritten_packs += 1;
                figures.rewritten_bytes += pack.row.bytes;
                figures.copied_bytes += pack.live_bytes;
                figures.kept_bytes += pack.live_bytes;
            }
            PackFate::Keep => {
                figures.kept_bytes += pack.row.bytes;
                if !pack.is_dictionary_pack() {
                    figures.unused_bytes += pack.unused_bytes();
                }
            }
        }
    }
    figures.freed_bytes =
        figures.deleted_pack_bytes + figures.orphan_bytes + figures.rewritten_bytes - figures.copied_bytes;
}
