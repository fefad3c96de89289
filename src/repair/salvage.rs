//! What damaged packs still have, and what becomes of the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{DamagedPack, RepairError, RepairOptions, RepairReport};
use crate::catalog::CatalogError;
use crate::catalog::chunk::{ChunkPlace, ChunkRow, PackRow, PackedChunk};
use crate::catalog::condemned::{self, Condemned};
use crate::catalog::group::{LinkGroup, Segment};
use crate::catalog::reader::CatalogReader;
use crate::catalog::tables::{Index, Table};
use crate::catalog::writer::CatalogWriter;
use crate::ids::{ChunkId, PackNumber};
use crate::prune::repack::{Repacker, keep_dictionaries};
use crate::prune::{Bitmap, Phase, PruneError, PruneProgress, caches};
use crate::replica::LockedReplica;
use crate::store::entry::{ChunkAddress, ChunkError};
use crate::store::pack::{PACK_PREFIX, PackId};
use crate::store::{PackEntry, PackFindings, PackListing, list_pack, verify_pack};

/// What a damaged pack was found to be.
struct Found {
    id: PackId,
    reason: String,
    /// Its intact entries, if it is there at all.
    findings: Option<PackFindings>,
    /// Whether its file is there.
    is_there: bool,
}

/// Sees to all packs: copies what damaged ones still have, finds what others have, and gives up the rest.
pub(super) fn packs(
    replica: &LockedReplica,
    options: RepairOptions,
    report: &mut RepairReport,
    progress: &PruneProgress,
) -> Result<(), RepairError> {
    let mut writer = replica.writer()?;
    let rows = pack_rows(writer.reader())?;
    let rows = single_rows(&mut writer, rows)?;
    named_is_not_condemned(&mut writer, &rows)?;
    let damaged = damaged_packs(replica, &rows, options, report, progress)?;
    let mut work = Salvage {
        replica,
        wanted: HashMap::new(),
        nameless: Vec::new(),
        owner: HashMap::new(),
        saved: BTreeMap::new(),
        lost: BTreeMap::new(),
        repacker: Repacker::new(replica, writer.epoch()),
    };
    work.chunks(writer.reader(), &rows, &damaged, progress)?;
    report.lost_chunks = work.nameless.len() as u64;
    if damaged.is_empty() && work.wanted.is_empty() {
        report.unnamed_packs = unnamed_packs(replica, &rows)?;
        return Ok(());
    }
    report.found_chunks = work.adopt(&mut writer, &rows, report)?;
    let given_up = work.give_up(&mut writer)?;
    report.lost_chunks = given_up.count();
    report.forgotten_inodes = forget(replica, writer.reader(), &given_up)?;
    work.repacker.finish_packs(&mut writer)?;
    let of_dictionaries: Vec<PackId> = rows
        .iter()
        .filter(|(number, row)| row.chunks == 0 && !damaged.contains_key(number))
        .map(|(_, row)| row.id)
        .collect();
    if let Some(row) = keep_dictionaries(replica, writer.epoch(), &of_dictionaries)? {
        replica.backend().sync().map_err(CatalogError::from)?;
        writer.add_pack(row, &[])?;
    }
    damaged.keys().for_each(|number| writer.remove(Table::Packs, number.0));
    writer.commit()?;
    for (number, found) in damaged {
        // The same bytes may have been written again under the same name, if nothing was lost.
        let is_named = pack_rows(writer.reader())?.values().any(|row| row.id == found.id);
        if found.is_there && !is_named {
            replica.backend().delete(&found.id.key()).map_err(CatalogError::from)?;
        }
        report.damaged_packs.push(DamagedPack {
            pack: found.id.to_string(),
            reason: found.reason,
            saved_chunks: work.saved.get(&number).copied().unwrap_or_default(),
            lost_chunks: work.lost.get(&number).copied().unwrap_or_default(),
        });
    }
    replica.backend().sync().map_err(CatalogError::from)?;
    report.unnamed_packs = unnamed_packs(replica, &pack_rows(writer.reader())?)?;
    Ok(())
}

/// Lets each pack have one row. A prune of an earlier version gave a second one to a pack of dictionaries that it could not read for a moment.
fn single_rows(
    writer: &mut CatalogWriter,
    mut rows: BTreeMap<PackNumber, PackRow>,
) -> Result<BTreeMap<PackNumber, PackRow>, RepairError> {
    let mut first: BTreeMap<PackId, PackNumber> = BTreeMap::new();
    let mut instead: BTreeMap<PackNumber, PackNumber> = BTreeMap::new();
    for (number, row) in &rows {
        match first.get(&row.id) {
            Some(first) => drop(instead.insert(*number, *first)),
            None => drop(first.insert(row.id, *number)),
        }
    }
    if instead.is_empty() {
        return Ok(rows);
    }
    // Equal identifiers mean equal chunks at equal offsets.
    let mut moved = Vec::new();
    writer.reader().for_each_chunk(|number, row| {
        if let ChunkPlace::At { pack, offset, stored_length } = row.place
            && let Some(pack) = instead.get(&pack)
        {
            let place = ChunkPlace::At { pack: *pack, offset, stored_length };
            moved.push((number, ChunkRow { place, ..*row }));
        }
        Ok(())
    })?;
    for (number, row) in moved {
        writer.place_chunk(number, row)?;
    }
    for number in instead.keys() {
        writer.remove(Table::Packs, number.0);
        rows.remove(number);
    }
    writer.commit()?;
    Ok(rows)
}

/// Takes packs out of the table of condemned objects that have a row: they are needed, and a prune would delete them.
fn named_is_not_condemned(writer: &mut CatalogWriter, rows: &BTreeMap<PackNumber, PackRow>) -> Result<(), RepairError> {
    let named: BTreeSet<PackId> = rows.values().map(|row| row.id).collect();
    for (number, row) in condemned::read_all(writer.reader())? {
        if matches!(row.what, Condemned::Pack(id) if named.contains(&id)) {
            writer.remove(Table::Condemned, number);
        }
    }
    Ok(writer.commit()?)
}

fn unnamed_packs(replica: &LockedReplica, rows: &BTreeMap<PackNumber, PackRow>) -> Result<u64, CatalogError> {
    let condemned = condemned::read_packs(&replica.catalog()?)?.into_iter().map(|(id, _)| id);
    let named: BTreeSet<String> = rows.values().map(|row| row.id).chain(condemned).map(|id| id.key()).collect();
    let all = replica.backend().list(PACK_PREFIX)?;
    Ok(all.iter().filter(|(key, _)| !named.contains(key)).count() as u64)
}

fn pack_rows(catalog: &CatalogReader) -> Result<BTreeMap<PackNumber, PackRow>, CatalogError> {
    let mut rows = BTreeMap::new();
    catalog.for_each_pack(|number, row| {
        rows.insert(number, row);
        Ok(())
    })?;
    Ok(rows)
}

/// Finds the packs that are missing, of the wrong length, or, when they are read, damaged inside.
fn damaged_packs(
    replica: &LockedReplica,
    rows: &BTreeMap<PackNumber, PackRow>,
    options: RepairOptions,
    report: &mut RepairReport,
    progress: &PruneProgress,
) -> Result<BTreeMap<PackNumber, Found>, RepairError> {
    let backend = replica.backend().as_ref();
    let sizes: HashMap<String, u64> = backend.list(PACK_PREFIX).map_err(CatalogError::from)?.into_iter().collect();
    let mut damaged = BTreeMap::new();
    progress.enter(Phase::Inspect, rows.values().map(|row| row.bytes).sum());
    for (number, row) in rows {
        progress.add(row.bytes)?;
        let id = row.id;
        let bytes = sizes.get(&id.key()).copied();
        let Some(bytes) = bytes else {
            let reason = "it is missing".to_owned();
            damaged.insert(*number, Found { id, reason, findings: None, is_there: false });
            continue;
        };
        if bytes == row.bytes && !options.read_data {
            continue;
        }
        match verify_pack(backend, id, replica.dictionaries()) {
            Ok(findings) if findings.damage.is_empty() && bytes == row.bytes => {}
            Ok(findings) => {
                let first = findings.damage.first().map(|damage| damage.reason.clone());
                let reason = first.unwrap_or_else(|| format!("it has {bytes} bytes and should have {}", row.bytes));
                damaged.insert(*number, Found { id, reason, findings: Some(findings), is_there: true });
            }
            Err(ChunkError::Io { source, .. }) => report.unreadable_packs.push((id.to_string(), source.to_string())),
            Err(error) if !error.is_damage() => report.unreadable_packs.push((id.to_string(), error.to_string())),
            Err(error) => {
                damaged.insert(*number, Found { id, reason: error.to_string(), findings: None, is_there: true });
            }
        }
    }
    Ok(damaged)
}

struct Salvage<'a> {
    replica: &'a LockedReplica,
    /// Chunks that are not where they should be, by first bytes of the hash and plain length.
    wanted: HashMap<([u8; 8], u32), ChunkId>,
    /// Lost chunks whose hash is lost, too: nothing can be looked for.
    nameless: Vec<ChunkId>,
    /// The pack that each of them was in.
    owner: HashMap<ChunkId, PackNumber>,
    /// Chunks saved and lost, by pack.
    saved: BTreeMap<PackNumber, u64>,
    lost: BTreeMap<PackNumber, u64>,
    repacker: Repacker,
}

impl Salvage<'_> {
    fn want(&mut self, number: ChunkId, row: &ChunkRow) {
        if row.prefix == [0; 8] {
            self.nameless.push(number);
            return;
        }
        self.wanted.insert((row.prefix, row.plain_length), number);
        if let ChunkPlace::At { pack, .. } = row.place {
            self.owner.insert(number, pack);
        }
    }

    /// Copies the chunks that damaged packs still have and notes the others, and those that were lost before.
    fn chunks(
        &mut self,
        catalog: &CatalogReader,
        rows: &BTreeMap<PackNumber, PackRow>,
        damaged: &BTreeMap<PackNumber, Found>,
        progress: &PruneProgress,
    ) -> Result<(), RepairError> {
        let mut by_pack: BTreeMap<PackNumber, Vec<(u32, ChunkId, ChunkRow)>> = BTreeMap::new();
        let mut without_pack = Vec::new();
        catalog.for_each_chunk(|number, row| {
            match row.place {
                ChunkPlace::At { pack, offset, .. } if damaged.contains_key(&pack) => {
                    by_pack.entry(pack).or_default().push((offset, number, *row));
                }
                ChunkPlace::At { pack, .. } if rows.contains_key(&pack) => {}
                // Another pack may have it: one that was put back by hand, for example.
                _ => without_pack.push((number, *row)),
            }
            Ok(())
        })?;
        without_pack.iter().for_each(|(number, row)| self.want(*number, row));
        for (pack, mut chunks) in by_pack {
            chunks.sort_unstable_by_key(|(offset, number, _)| (*offset, *number));
            let Some(found) = damaged.get(&pack) else { continue };
            let intact = |offset: u32, number: &ChunkId, row: &ChunkRow| {
                let findings = found.findings.as_ref()?;
                let at = findings.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()?;
                let header = &findings.entries[at].header;
                (header.dictionary.is_none() && PackedChunk::new(*number, offset, header).row(pack) == *row).then(
                    || ChunkAddress { location: findings.entries[at].location(found.id), hash_prefix: row.prefix },
                )
            };
            let mut good = Vec::new();
            for (offset, number, row) in &chunks {
                match intact(*offset, number, row) {
                    Some(address) => good.push((*number, address)),
                    None => self.want(*number, row),
                }
            }
            let mut failed = BTreeSet::new();
            self.repacker.copy(
                &good,
                |bytes| progress.add(bytes),
                |number, error| match error {
                    // The disk may answer later: nothing is given up for that.
                    ChunkError::Io { .. } => Err(PruneError::Chunk { source: error }),
                    _ => {
                        failed.insert(number);
                        Ok(())
                    }
                },
            )?;
            *self.saved.entry(pack).or_default() += (good.len() - failed.len()) as u64;
            for (_, number, row) in chunks.iter().filter(|(_, number, _)| failed.contains(number)) {
                self.want(*number, row);
            }
        }
        Ok(())
    }

    /// Looks for wanted chunks in packs that no row names, and gives those that have some a row. Returns how many were found.
    ///
    /// One that cannot be read now is in the report. What it may hold is lost until a repair that can read it: a lost chunk is looked for each time.
    fn adopt(
        &mut self,
        writer: &mut CatalogWriter,
        rows: &BTreeMap<PackNumber, PackRow>,
        report: &mut RepairReport,
    ) -> Result<u64, RepairError> {
        let backend = self.replica.backend().as_ref();
        let named: BTreeSet<PackId> = rows.values().map(|row| row.id).collect();
        let condemned: BTreeSet<PackId> =
            condemned::read_packs(writer.reader())?.into_iter().map(|(id, _)| id).collect();
        let mut found = 0;
        for (key, bytes) in backend.list(PACK_PREFIX).map_err(CatalogError::from)? {
            let Some(id) = PackId::from_key(&key).filter(|id| !named.contains(id)) else { continue };
            if self.wanted.is_empty() {
                break;
            }
            // A pack that is not as it was written is no place to find anything in.
            let walked = list_pack(backend, id)
                .and_then(|listing| Ok((listing, verify_pack(backend, id, self.replica.dictionaries())?)));
            let PackListing { format, entries } = match walked {
                Ok((listing, findings)) if findings.damage.is_empty() => listing,
                Err(ChunkError::Io { source, .. }) => {
                    report.unreadable_packs.push((id.to_string(), source.to_string()));
                    continue;
                }
                _ => continue,
            };
            let mut placed = Vec::new();
            for entry in entries.iter().filter(|entry| entry.header.dictionary.is_none()) {
                let header = &entry.header;
                if let Some(number) = self.wanted.remove(&(header.hash.prefix(), header.plain_length)) {
                    placed.push((number, entry));
                }
            }
            if placed.is_empty() {
                continue;
            }
            if condemned.contains(&id) {
                // It will be deleted: what is wanted of it is copied, and it gets no row again.
                found += placed.len() as u64;
                self.copy_condemned(writer, id, &placed)?;
                continue;
            }
            let chunks = entries.iter().filter(|entry| entry.header.dictionary.is_none()).count() as u64;
            let packed =
                |(number, entry): &(ChunkId, &PackEntry)| PackedChunk::new(*number, entry.offset, &entry.header);
            let packed: Vec<PackedChunk> = placed.iter().map(packed).collect();
            writer.add_pack(PackRow { id, bytes, chunks, format }, &packed)?;
            for (number, entry) in placed {
                name(writer, number, entry)?;
                found += 1;
                if let Some(owner) = self.owner.get(&number) {
                    *self.saved.entry(*owner).or_default() += 1;
                }
            }
        }
        Ok(found)
    }

    /// Copies chunks of an intact pack that is condemned into a new one.
    fn copy_condemned(
        &mut self,
        writer: &mut CatalogWriter,
        id: PackId,
        placed: &[(ChunkId, &PackEntry)],
    ) -> Result<(), RepairError> {
        let chunks: Vec<(ChunkId, ChunkAddress)> = placed
            .iter()
            .map(|(number, entry)| {
                let address = ChunkAddress { location: entry.location(id), hash_prefix: entry.header.hash.prefix() };
                (*number, address)
            })
            .collect();
        self.repacker.copy(&chunks, |_| Ok(()), |_, source| Err(PruneError::Chunk { source }))?;
        for (number, entry) in placed {
            name(writer, *number, entry)?;
            if let Some(owner) = self.owner.get(number) {
                *self.saved.entry(*owner).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Marks the chunks that were found nowhere as lost, and returns all that are.
    fn give_up(&mut self, writer: &mut CatalogWriter) -> Result<Bitmap<ChunkId>, RepairError> {
        let mut all = Bitmap::new(writer.counters().chunk);
        for number in &self.nameless {
            all.add(*number);
        }
        for ((prefix, plain_length), number) in self.wanted.drain() {
            all.add(number);
            if writer.reader().chunk(number)?.is_lost() {
                continue;
            }
            writer.place_chunk(number, ChunkRow::lost(plain_length, prefix))?;
            if let Some(owner) = self.owner.get(&number) {
                *self.lost.entry(*owner).or_default() += 1;
            }
        }
        Ok(all)
    }
}

/// Lets the index name a chunk by its hash, if it does not yet.
fn name(writer: &mut CatalogWriter, number: ChunkId, entry: &PackEntry) -> Result<(), CatalogError> {
    let hash = entry.header.hash;
    if writer.reader().database()?.hash_of(Index::Chunks, hash.prefix(), number.0)?.is_none() {
        writer.put_into_index(Index::Chunks, hash.0, number.0);
    }
    Ok(())
}

/// Lets the next snapshots read again what needs a lost chunk; returns how many inodes.
fn forget(replica: &LockedReplica, catalog: &CatalogReader, lost: &Bitmap<ChunkId>) -> Result<u64, RepairError> {
    if lost.count() == 0 {
        return Ok(0);
    }
    let needs_lost = |group: &LinkGroup| {
        let mut needs = false;
        let walked = catalog.for_each_segment(&group.content, |segment| {
            if let Segment::Chunk { number, .. } = segment {
                needs |= lost.has(*number);
            }
            Ok::<(), CatalogError>(())
        });
        // What cannot be determined is read again.
        needs || walked.is_err()
    };
    let mut count = 0;
    for path in caches::paths(replica.path())? {
        if let Some(mut cache) = caches::load(replica, &path)? {
            count += cache.forget(|inode| catalog.group(inode.group).map_or(true, |group| needs_lost(&group)))?;
        }
    }
    Ok(count)
}
