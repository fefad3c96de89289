//! Packs: there, of the right length, with every chunk inside; and on request read as a whole, each chunk hashed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::ledger::{DamageKind, DamageNumber, Key};
use super::rows::{Placement, Rows};
use super::{CheckError, CheckReport, Checker, Phase};
use crate::catalog::chunk::{PAGE_ROWS, PackRow, PackedChunk};
use crate::catalog::condemned;
use crate::catalog::tables::{Index, Table};
use crate::ids::{ChunkId, PackNumber};
use crate::store::codec::DictionarySet;
use crate::store::entry::ChunkError;
use crate::store::pack::{ENTRY_HEADER_BYTES, PACK_PREFIX, PACK_TRAILER_BYTES, PackId};
use crate::store::pack_verify::{PackFindings, verify_pack};
use crate::store::reader::ChunkReader;

/// Chunks that cannot be had.
#[derive(Default)]
pub(super) struct BadChunks {
    pages: HashMap<u64, DamageNumber>,
    single: HashMap<ChunkId, DamageNumber>,
}

impl BadChunks {
    /// Returns the damage that a chunk suffers from, if any.
    pub(super) fn damage(&self, number: ChunkId) -> Option<DamageNumber> {
        if self.single.is_empty() && self.pages.is_empty() {
            return None;
        }
        self.single.get(&number).or_else(|| self.pages.get(&(number.0 / PAGE_ROWS))).copied()
    }
}

/// Verifies the packs.
pub(super) fn verify(checker: &Checker<'_>, rows: &Rows, report: &mut CheckReport) -> Result<BadChunks, CheckError> {
    let mut bad = BadChunks::default();
    for (&(table, number), &damage) in &rows.damaged {
        if table == Table::Chunks {
            bad.pages.insert(number, damage);
        }
    }
    if !rows.lost.is_empty() {
        let count = rows.lost.len();
        let what = format!("The bytes of {count} {}", if count == 1 { "chunk" } else { "chunks" });
        let reason = "a repair found no pack that has them; a snapshot stores them again if its source still has them";
        let damage = checker.ledger.note(DamageKind::Pack, Key::Step("lost chunks"), what, reason.to_owned());
        bad.single.extend(rows.lost.iter().map(|number| (*number, damage)));
    }
    let sizes: HashMap<String, u64> = checker.replica.backend().list(PACK_PREFIX)?.into_iter().collect();
    let mut named = HashSet::new();
    let mut readable = Vec::new();
    for (number, row) in &rows.packs {
        let key = row.id.key();
        let found = sizes.get(&key).copied();
        if found.is_none() && checker.is_removed(*number, row) {
            report.removed_packs += 1;
            named.insert(key);
            continue;
        }
        let mut pack = PackCheck { checker, number: *number, row, chunks: chunks_of(rows, *number), bad: &mut bad };
        if pack.verify(found) {
            readable.push(*number);
        }
        if !named.insert(key) {
            pack.damage("two rows of the catalogue name it; nothing is lost, and a repair removes one".to_owned());
        }
    }
    for (id, bytes) in
        checker.guarded("The table of condemned objects", || Ok(condemned::read_packs(checker.catalog)?))?
    {
        let key = id.key();
        if !named.insert(key.clone()) {
            // It would be deleted one day.
            let what = format!("Pack {id}");
            let reason = "a row of the catalogue names it, and it is condemned".to_owned();
            checker.ledger.note(DamageKind::Catalog, Key::Step("condemned packs"), what, reason);
        } else if sizes.contains_key(&key) {
            report.condemned_bytes += bytes;
        }
    }
    for (key, bytes) in &sizes {
        if !named.contains(key) {
            report.orphan_packs += 1;
            report.orphan_bytes += bytes;
        }
    }
    strays(checker, rows, &mut bad);
    if let Some(percent) = report.read_percent {
        read_packs(checker, rows, choose(readable, percent), &mut bad, report)?;
    }
    Ok(bad)
}

/// Returns the chunks of a pack, by offset.
fn chunks_of(rows: &Rows, pack: PackNumber) -> &[Placement] {
    let from = rows.placements.partition_point(|placement| placement.pack < pack);
    let length = rows.placements[from..].partition_point(|placement| placement.pack == pack);
    &rows.placements[from..from + length]
}

/// Notes chunks whose pack has no row.
fn strays(checker: &Checker<'_>, rows: &Rows, bad: &mut BadChunks) {
    for chunks in rows.placements.chunk_by(|left, right| left.pack == right.pack) {
        let number = chunks[0].pack;
        if rows.packs.contains_key(&number) {
            continue;
        }
        let damage = rows.damaged.get(&(Table::Packs, number.0)).copied().unwrap_or_else(|| {
            let reason = format!("it is missing, and {} chunks lie in it", chunks.len());
            checker.ledger.note(
                DamageKind::Catalog,
                Key::Row(Table::Packs, number.0),
                format!("Pack row {number}"),
                reason,
            )
        });
        bad.single.extend(chunks.iter().map(|chunk| (chunk.number, damage)));
    }
}

/// The look at one pack that needs no reading.
struct PackCheck<'a> {
    checker: &'a Checker<'a>,
    number: PackNumber,
    row: &'a PackRow,
    chunks: &'a [Placement],
    bad: &'a mut BadChunks,
}

impl PackCheck<'_> {
    fn damage(&self, reason: String) -> DamageNumber {
        let what = format!("Pack {}", self.row.id);
        self.checker.ledger.note(DamageKind::Pack, Key::Pack(self.number), what, reason)
    }

    /// Returns whether the pack is there to be read.
    fn verify(&mut self, found: Option<u64>) -> bool {
        let Some(bytes) = found else {
            let damage = self.damage(format!("it is missing, and with it {} chunks", self.chunks.len()));
            self.bad.single.extend(self.chunks.iter().map(|chunk| (chunk.number, damage)));
            return false;
        };
        if bytes != self.row.bytes {
            self.damage(format!("it has {bytes} bytes and should have {}", self.row.bytes));
        }
        if self.chunks.len() as u64 > self.row.chunks {
            self.damage(format!(
                "the catalogue says that it has {} chunks; it has {}",
                self.chunks.len(),
                self.row.chunks
            ));
        }
        let end = self.row.bytes.saturating_sub(PACK_TRAILER_BYTES as u64);
        let mut free = self.row.format.header_bytes() as u64;
        for chunk in self.chunks {
            let from = u64::from(chunk.offset);
            let to = from + ENTRY_HEADER_BYTES as u64 + u64::from(chunk.stored_length);
            let reason = if from < free {
                format!("chunk {} overlaps what lies before it", chunk.number)
            } else if to > end {
                format!("chunk {} ends behind its end", chunk.number)
            } else if to > bytes {
                format!("it was cut short, before the end of chunk {}", chunk.number)
            } else {
                free = to;
                continue;
            };
            let damage = self.damage(reason);
            self.bad.single.insert(chunk.number, damage);
        }
        true
    }
}

/// Chooses so many per cent of the packs, other ones each time.
fn choose(mut packs: Vec<PackNumber>, percent: u8) -> Vec<PackNumber> {
    let wanted = (packs.len() * usize::from(percent)).div_ceil(100);
    if wanted < packs.len() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64;
        // Keys of their own for this once; each pack's chance is the same every time, so that repeated runs come to all.
        packs.sort_by_cached_key(|number| {
            let mut bytes = seed.to_le_bytes().to_vec();
            bytes.extend_from_slice(&number.0.to_le_bytes());
            *blake3::hash(&bytes).as_bytes()
        });
        packs.truncate(wanted);
        packs.sort_unstable();
    }
    packs
}

/// Reads packs on several threads and compares every chunk.
fn read_packs(
    checker: &Checker<'_>,
    rows: &Rows,
    packs: Vec<PackNumber>,
    bad: &mut BadChunks,
    report: &mut CheckReport,
) -> Result<(), CheckError> {
    let total = packs.iter().filter_map(|number| rows.packs.get(number)).map(|row| row.bytes).sum();
    checker.progress.enter(Phase::Data, total);
    let dictionaries = DictionarySet::default();
    for dictionary in checker.replica.dictionaries().all() {
        // Nothing is in the set that could contradict.
        let _ = dictionaries.insert(dictionary);
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let (read_packs, read_bytes, removed_packs) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<(), CheckError> {
        let work = || -> Result<(), CheckError> {
            while let Some(number) = packs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if checker.progress.interrupt.load(Ordering::Relaxed) {
                    return Err(CheckError::Interrupted);
                }
                let Some(row) = rows.packs.get(number) else { continue };
                let reader = PackReader { checker, dictionaries: &dictionaries, number: *number, row };
                let Some(damaged) = reader.read(chunks_of(rows, *number))? else {
                    removed_packs.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                found.lock().unwrap_or_else(PoisonError::into_inner).extend(damaged);
                read_packs.fetch_add(1, Ordering::Relaxed);
                read_bytes.fetch_add(row.bytes, Ordering::Relaxed);
                checker.progress.done.fetch_add(row.bytes, Ordering::Relaxed);
                checker.progress.read_bytes.fetch_add(row.bytes, Ordering::Relaxed);
            }
            Ok(())
        };
        let mut threads = Vec::new();
        for _ in 0..checker.threads().min(packs.len()) {
            match std::thread::Builder::new().spawn_scoped(scope, work) {
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
                    let reason = format!("redb gave up on them: {}", super::panic_text(panic.as_ref()));
                    let what = "Rows of chunks".to_owned();
                    checker.ledger.note(DamageKind::Catalog, Key::Step("reading packs"), what, reason);
                }
            }
        }
        Ok(())
    })?;
    bad.single.extend(found.into_inner().unwrap_or_else(PoisonError::into_inner));
    report.removed_packs += removed_packs.into_inner();
    report.read_packs = read_packs.into_inner();
    report.read_bytes = read_bytes.into_inner();
    Ok(())
}

struct PackReader<'a> {
    checker: &'a Checker<'a>,
    dictionaries: &'a DictionarySet,
    number: PackNumber,
    row: &'a PackRow,
}

impl PackReader<'_> {
    fn damage(&self, reason: String) -> DamageNumber {
        let what = format!("Pack {}", self.row.id);
        self.checker.ledger.note(DamageKind::Pack, Key::Pack(self.number), what, reason)
    }

    /// Reads the pack and returns its damaged chunks, or `None` when a prune has removed it meanwhile.
    fn read(&self, chunks: &[Placement]) -> Result<Option<Vec<(ChunkId, DamageNumber)>>, CheckError> {
        let id: PackId = self.row.id;
        let backend = self.checker.replica.backend();
        let findings = match verify_pack(backend.as_ref(), id, self.dictionaries) {
            Ok(findings) => findings,
            Err(ChunkError::MissingPack { .. }) if self.checker.is_removed(self.number, self.row) => return Ok(None),
            Err(ChunkError::Io { source, .. }) if !source.is_bad_disk() => return Err(source.into()),
            Err(error @ ChunkError::Io { .. }) => return self.one_by_one(chunks, &error.to_string()).map(Some),
            Err(error) => {
                let damage = self.damage(error.to_string());
                return Ok(Some(chunks.iter().map(|chunk| (chunk.number, damage)).collect()));
            }
        };
        let mut bad = Vec::new();
        if !findings.damage.is_empty() {
            let damage = self.damage(reason_of(&findings));
            bad.extend(
                chunks.iter().filter(|chunk| !self.is_intact(&findings, chunk)).map(|chunk| (chunk.number, damage)),
            );
            return Ok(Some(bad));
        }
        for chunk in chunks {
            if !self.is_intact(&findings, chunk) {
                let reason = format!("it has another chunk at {} than the catalogue says", chunk.offset);
                bad.push((chunk.number, self.damage(reason)));
            }
        }
        Ok(Some(bad))
    }

    /// Returns whether the pack has, intact, the chunk that the catalogue says lies there.
    fn is_intact(&self, findings: &PackFindings, chunk: &Placement) -> bool {
        let Ok(at) = findings.entries.binary_search_by_key(&chunk.offset, |entry| entry.offset) else { return false };
        let header = &findings.entries[at].header;
        let Ok(row) = self.checker.catalog.chunk(chunk.number) else { return false };
        let fits =
            header.dictionary.is_none() && PackedChunk::new(chunk.number, chunk.offset, header).row(chunk.pack) == row;
        if fits
            && !matches!(self.checker.catalog.find_chunk(&header.hash, row.plain_length), Ok(Some(number)) if number == chunk.number)
        {
            // The chunk can be read all the same; the next run would store it once more.
            let reason = format!("chunk {} is not in it under its hash", chunk.number);
            let what = "The chunk index".to_owned();
            self.checker.ledger.note(DamageKind::Catalog, Key::Index(Index::Chunks, "entries"), what, reason);
        }
        fits
    }

    /// Reads the chunks of a pack that cannot be read as a whole, to find out which of them are intact.
    fn one_by_one(&self, chunks: &[Placement], reason: &str) -> Result<Vec<(ChunkId, DamageNumber)>, CheckError> {
        let replica = self.checker.replica;
        let damage = self.damage(reason.to_owned());
        let reader: ChunkReader = replica.chunks();
        let mut bad = Vec::new();
        for chunk in chunks {
            let address = self.checker.catalog.chunk_address(chunk.number);
            match address.map(|address| reader.read_chunk(&address.location, address.hash_prefix)) {
                Ok(Ok(_)) => {}
                Ok(Err(ChunkError::Io { source, .. })) if !source.is_bad_disk() => return Err(source.into()),
                _ => bad.push((chunk.number, damage)),
            }
        }
        Ok(bad)
    }
}

fn reason_of(findings: &PackFindings) -> String {
    let first = findings.damage.first().map(|damage| damage.reason.as_str()).unwrap_or_default();
    match findings.damage.len() {
        0 | 1 => first.to_owned(),
        count => format!("{first}; and {} more places", count - 1),
    }
}
