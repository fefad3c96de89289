//! The catalogue: from commit files, or else from whatever is left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{CatalogOutcome, LostSnapshot, RepairError, RepairReport};
use strum::VariantArray;

use crate::catalog::chunk::{ChunkPlace, ChunkRow};
use crate::catalog::commit::{self, CommitFile};
use crate::catalog::commit_log::{self, last_commit, read_whole};
use crate::catalog::condemned::Condemned;
use crate::catalog::database::CatalogDatabase;
use crate::catalog::marks::SnapshotMarks;
use crate::catalog::meta::{COUNTERS, Counters};
use crate::catalog::tables::{Change, Index, Table};
use crate::catalog::writer::CatalogWriter;
use crate::catalog::{CatalogError, FileFault, checkpoint, checkpoint_writer, object};
use crate::check::{CheckOptions, CheckProgress, DamageKind, check};
use crate::coding::NUMBER_LIMIT;
use crate::ids::{ChunkId, CommitNumber, PackNumber};
use crate::prune::mark::Marks;
use crate::prune::{PruneError, PruneProgress, caches};
use crate::replica::{LockedReplica, Replica, ReplicaError, has_catalog};
use crate::store::backend::Backend;
use crate::store::entry::ChunkError;
use crate::store::list_pack;

/// Changes that are applied in one transaction, at most.
const CHANGES: usize = 20_000;

/// Brings the catalogue back.
pub(super) fn catalog(path: &Path, backend: &Arc<dyn Backend>) -> Result<CatalogOutcome, RepairError> {
    let had_old = has_catalog(path)?;
    let reason = match LockedReplica::rebuild_over(path, backend.as_ref()) {
        Ok(commit_files) => return Ok(CatalogOutcome::Rebuilt { commit_files, had_old }),
        Err(ReplicaError::Catalog(error)) if error.is_damaged_file() => error,
        Err(error) => return Err(error.into()),
    };
    if is_intact(path, backend)? {
        return Ok(CatalogOutcome::Kept { reason: reason.to_string() });
    }
    let (mut lost_files, mut rows) = (Vec::new(), 0);
    let put_together = LockedReplica::replace_catalog_with(path, |fresh, old| {
        put_together(fresh, old, backend.as_ref(), &mut lost_files, &mut rows)
    });
    match put_together {
        Err(ReplicaError::Catalog(error)) if error.is_damage() && rows == 0 => {
            return Err(RepairError::NothingLeft(reason));
        }
        other => other?,
    }
    Ok(CatalogOutcome::PutTogether { reason: reason.to_string(), lost_files, had_old })
}

/// Returns what was found, or `None` for damage. That something cannot be read now is an error: it does not mean that it is damaged, or not there.
fn unless_damaged<T>(found: Result<T, CatalogError>) -> Result<Option<T>, CatalogError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether the catalogue opens, for writing too, and nothing but commit files, and packs, is damaged.
fn is_intact(path: &Path, backend: &Arc<dyn Backend>) -> Result<bool, RepairError> {
    let opened = |error: ReplicaError| match error {
        ReplicaError::Catalog(error) if error.is_damage() => Ok(false),
        ReplicaError::Dictionary(_) => Ok(false),
        other => Err(RepairError::from(other)),
    };
    let replica = match Replica::open_over(path, Arc::clone(backend)) {
        Ok(replica) => replica,
        Err(error) => return opened(error),
    };
    let report = match check(&replica, &CheckOptions::default(), &CheckProgress::default()) {
        Ok(report) => report,
        Err(error) if error.is_damage() => return Ok(false),
        Err(error) => return Err(RepairError::Check(error)),
    };
    drop(replica);
    let is_whole = report.damages.iter().all(|damage| matches!(damage.kind, DamageKind::CommitFile | DamageKind::Pack));
    if !is_whole || report.waiting_commits > 0 {
        return Ok(false);
    }
    // redb has pages that only a writer reads. A damaged one stops it before it writes anything.
    LockedReplica::open_over(path, Arc::clone(backend)).map(|_| true).or_else(opened)
}

/// Fills a fresh catalogue with all rows that commit files and the old catalogue still have. Rows of the old catalogue count more than those of commit files
/// that it has seen, and less than those of the ones after.
fn put_together(
    fresh: &CatalogDatabase,
    old: &Path,
    backend: &dyn Backend,
    lost_files: &mut Vec<String>,
    rows: &mut u64,
) -> Result<(), CatalogError> {
    let mut counters = Counters::default();
    let mut last = CommitNumber(0);
    let known = CatalogDatabase::open_read_only(old).and_then(|database| Ok(last_commit(&database.read()?)?.0));
    // One that needs a repair is left by a writer that died; its rows are read below as far as that goes without one.
    let known = match known {
        Err(error) if error.needs_repair() => CommitNumber(0),
        known => unless_damaged(known)?.unwrap_or_default(),
    };
    let mut take = |mut changes: Vec<Change>| -> Result<(), CatalogError> {
        // A damaged catalogue may have rows of any number.
        changes.retain(|change| match change {
            Change::Put(_, number, _) | Change::Delete(_, number) | Change::PutIndex(_, _, number) => {
                *number < NUMBER_LIMIT
            }
            Change::DeleteIndex(..) => true,
        });
        for change in &changes {
            raise(&mut counters, change);
            *rows += 1;
        }
        fresh.apply(&changes)
    };
    for number in checkpoint::heads(backend)?.into_iter().rev() {
        match unless_damaged(checkpoint::read_head(backend, number))? {
            None => lost_files.push(checkpoint::key(number)),
            Some(head) => {
                last = last.max(number);
                let mut result = Ok(());
                head.for_each_readable_part(backend, |part| match part {
                    Ok(changes) if result.is_ok() => {
                        // The rows of commits would say that all is there.
                        let changes =
                            changes.into_iter().filter(|one| !matches!(one, Change::Put(Table::Commits, ..))).collect();
                        result = take(changes);
                    }
                    Ok(_) => {}
                    Err(error) if error.is_damage() => lost_files.push(error.to_string()),
                    Err(error) if result.is_ok() => result = Err(error),
                    Err(_) => {}
                });
                result?;
            }
        }
    }
    let files = commit_log::commit_files(backend)?;
    let newest = files.last().copied().unwrap_or_default().max(known).max(last);
    let first = last.next();
    // A file that cannot be decoded to its end gives what comes before.
    let mut read = |number: CommitNumber, take: &mut dyn FnMut(Vec<Change>) -> Result<(), CatalogError>| {
        let key = commit::key(number);
        let file = read_whole(backend, &key);
        let read = file.and_then(|file| CommitFile::open(&key, &file)?.for_each_batch(take));
        match read {
            Err(error) if error.is_damage() => {
                lost_files.push(key);
                Ok(())
            }
            other => other,
        }
    };
    for number in (first.0..=known.min(newest).0).map(CommitNumber) {
        read(number, &mut take)?;
    }
    overlay(old, &mut take)?;
    for number in (first.max(known.next()).0..=newest.0).map(CommitNumber) {
        read(number, &mut take)?;
    }
    if *rows == 0 {
        return Err(CatalogError::of_file(&commit::key(CommitNumber(1)), FileFault::NothingReadable));
    }
    // A commit of its own, on which a checkpoint is made before anything else is.
    let mut seed = blake3::Hasher::new();
    seed.update(&newest.0.to_le_bytes()).update(jiff::Timestamp::now().to_string().as_bytes());
    let id = seed.finalize().as_bytes()[..16].to_vec();
    fresh.apply(&[
        Change::Put(Table::Meta, COUNTERS, counters.encode()),
        Change::Put(Table::Commits, newest.next().0, id),
    ])
}

/// Lets the counters be above every number that is in use.
fn raise(counters: &mut Counters, change: &Change) {
    // Numbers beyond the limit are in no commit; a damaged catalogue may have any.
    let above = |counter: &mut u64, number: u64| {
        if number < NUMBER_LIMIT - 1 {
            *counter = (*counter).max(number + 1);
        }
    };
    match change {
        Change::Put(Table::Meta, COUNTERS, payload) => {
            if let Ok(found) = Counters::decode(payload) {
                counters.chunk = counters.chunk.max(found.chunk);
                counters.object = counters.object.max(found.object);
                counters.group = counters.group.max(found.group);
                counters.pack = counters.pack.max(found.pack);
                counters.snapshot = counters.snapshot.max(found.snapshot);
            }
        }
        Change::Put(Table::Packs, number, _) => above(&mut counters.pack.0, *number),
        Change::Put(Table::Objects, number, _) => above(&mut counters.object.0, *number),
        Change::Put(Table::Snapshots, number, _) => above(&mut counters.snapshot.0, *number),
        Change::Put(Table::Chunks, page, _) => {
            above(&mut counters.chunk.0, page.saturating_mul(256).saturating_add(255))
        }
        Change::Put(Table::Groups, page, _) => {
            above(&mut counters.group.0, page.saturating_mul(256).saturating_add(255))
        }
        _ => {}
    }
}

/// Takes all rows of a damaged catalogue that can be read.
fn overlay(old: &Path, take: &mut impl FnMut(Vec<Change>) -> Result<(), CatalogError>) -> Result<(), CatalogError> {
    let reader = match CatalogDatabase::open_read_only(old).and_then(|database| database.read()) {
        Err(error) if error.needs_repair() => return Ok(()),
        opened => unless_damaged(opened)?,
    };
    let Some(reader) = reader else { return Ok(()) };
    for table in Table::VARIANTS.iter().copied().filter(|table| *table != Table::Commits) {
        let mut changes = Vec::new();
        // Damage ends the table; what was read before counts.
        let scanned = reader.scan(table, 0, |number, payload| {
            if let Ok(payload) = payload {
                changes.push(Change::Put(table, number, payload.to_vec()));
            }
            if changes.len() >= CHANGES { take(std::mem::take(&mut changes)) } else { Ok(()) }
        });
        unless_damaged(scanned)?;
        take(changes)?;
    }
    for &index in Index::VARIANTS {
        let mut changes = Vec::new();
        let scanned = reader.scan_index(index, |hash, number| {
            changes.push(Change::PutIndex(index, *hash, number));
            if changes.len() >= CHANGES { take(std::mem::take(&mut changes)) } else { Ok(()) }
        });
        unless_damaged(scanned)?;
        take(changes)?;
    }
    Ok(())
}

/// Makes a catalogue that was not rebuilt from commit files sound: snapshots whose trees are gone are removed, chunks without a row are marked lost, and a
/// checkpoint takes the place of the damaged commit files.
pub(super) fn complete(
    replica: &LockedReplica,
    report: &mut RepairReport,
    progress: &PruneProgress,
) -> Result<(), RepairError> {
    let mut writer = replica.writer()?;
    if matches!(report.catalog, CatalogOutcome::PutTogether { .. }) {
        for path in caches::paths(replica.path())? {
            std::fs::remove_file(&path).map_err(|source| PruneError::Io {
                action: "remove",
                path: path.display().to_string(),
                source,
            })?;
        }
        sound_snapshots(&mut writer, report, progress)?;
        sound_indexes(replica, &mut writer)?;
    }
    writer.touch();
    writer.commit()?;
    let backend = replica.backend().as_ref();
    let written = checkpoint_writer::write(&*writer.reader().database()?, backend, None)?;
    if matches!(&report.catalog, CatalogOutcome::PutTogether { lost_files, .. } if !lost_files.is_empty()) {
        // Somebody may still get more out of them than this repair did.
        let bytes = checkpoint_writer::list_superseded(backend, written.number)?.iter().map(|(_, bytes)| bytes).sum();
        writer.condemn(Condemned::OlderThan(written.number), bytes, jiff::Timestamp::now())?;
        writer.commit()?;
    } else {
        checkpoint_writer::delete_superseded(backend, written.number)?;
    }
    Ok(())
}

/// Removes snapshots whose trees are not whole, and gives chunks without a row the row of lost ones.
fn sound_snapshots(
    writer: &mut CatalogWriter,
    report: &mut RepairReport,
    progress: &PruneProgress,
) -> Result<(), RepairError> {
    let catalog = Arc::clone(writer.reader());
    let mut missing = BTreeMap::new();
    for (number, record) in catalog.snapshots()? {
        let mut marks = Marks::lenient(&writer.counters());
        match marks.snapshot(&catalog, &record, progress) {
            Ok(()) => missing.extend(marks.missing_chunks()),
            Err(error) if error.is_damage() => {
                let lost = LostSnapshot { id: record.id.clone(), time: record.time, reason: error.to_string() };
                report.lost_snapshots.push(lost);
                writer.remove(Table::Snapshots, number.0);
                writer.set_marks(number, &SnapshotMarks::default())?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    report.lost_chunks += missing.len() as u64;
    // Where the index still has a hash, the bytes can be found again in packs, or be stored again.
    let mut prefixes: BTreeMap<ChunkId, [u8; 8]> = BTreeMap::new();
    catalog.database()?.scan_index(Index::Chunks, |hash, number| {
        let number = ChunkId(number);
        if missing.contains_key(&number) {
            let mut prefix = [0; 8];
            prefix.copy_from_slice(&hash[..8]);
            prefixes.insert(number, prefix);
        }
        Ok(())
    })?;
    for (number, plain_length) in missing {
        let prefix = prefixes.get(&number).copied().unwrap_or_default();
        writer.place_chunk(number, ChunkRow::lost(plain_length, prefix))?;
    }
    Ok(writer.commit()?)
}

/// Lets the indexes name what is there and nothing else. Hashes of chunks that the index has lost are read from the packs.
fn sound_indexes(replica: &LockedReplica, writer: &mut CatalogWriter) -> Result<(), RepairError> {
    let catalog = Arc::clone(writer.reader());
    let database = catalog.database()?;
    let mut objects = BTreeMap::new();
    database.scan(Table::Objects, 0, |number, stored| {
        if let Some(kind) = stored.as_ref().ok().and_then(|stored| object::stored_kind(stored))
            && let Ok(plain) = object::decode(kind, stored?)
        {
            objects.insert(object::hash(kind, &plain), number);
        }
        Ok(())
    })?;
    database.scan_index(Index::Objects, |hash, number| {
        if objects.get(hash) == Some(&number) {
            objects.remove(hash);
        } else if !objects.contains_key(hash) {
            writer.remove_from_index(Index::Objects, *hash);
        }
        Ok(())
    })?;
    objects.into_iter().for_each(|(hash, number)| writer.put_into_index(Index::Objects, hash, number));
    database.scan_index(Index::Chunks, |hash, number| {
        if !unless_damaged(catalog.chunk(ChunkId(number)))?.is_some_and(|row| hash.starts_with(&row.prefix)) {
            writer.remove_from_index(Index::Chunks, *hash);
        }
        Ok(())
    })?;
    let mut unnamed: BTreeMap<PackNumber, Vec<(u32, ChunkId)>> = BTreeMap::new();
    catalog.for_each_chunk(|number, row| {
        if let ChunkPlace::At { pack, offset, .. } = row.place
            && database.hash_of(Index::Chunks, row.prefix, number.0)?.is_none()
        {
            unnamed.entry(pack).or_default().push((offset, number));
        }
        Ok(())
    })?;
    for (pack, chunks) in unnamed {
        let Some(row) = unless_damaged(catalog.pack(pack))? else { continue };
        let entries = match list_pack(replica.backend().as_ref(), row.id) {
            Ok(listing) => listing.entries,
            Err(source @ ChunkError::Io { .. }) => return Err(PruneError::Chunk { source }.into()),
            // These hashes are recorded nowhere else.
            Err(_) => continue,
        };
        for (offset, number) in chunks {
            if let Ok(at) = entries.binary_search_by_key(&offset, |entry| entry.offset) {
                writer.put_into_index(Index::Chunks, entries[at].header.hash.0, number.0);
            }
        }
    }
    Ok(writer.commit()?)
}
