//! Reading a whole pack without any other knowledge: to verify it, and to rebuild what was known about it.
//!
//! [`walk_pack`] verifies every byte in bounded memory. Where an entry header is damaged the chain of lengths breaks;
//! the walk then looks for the next place that decodes as an entry and has the hash it states, so one bad header costs
//! one chunk. [`list_pack`] reads the headers alone. [`put_pack`] stores a pack that may be there already.

use blake3::Hasher;

use super::backend::{Backend, BackendError};
use super::codec::{Decompressor, Dictionary, DictionarySet};
use super::pack::{
    ENTRY_HEADER_BYTES, EntryHeader, FinishedPack, PACK_HEADER_BYTES, PACK_MAX_BYTES, PACK_TRAILER_BYTES, PackId,
    TRAILER_CHECKSUM_AT, Trailer, array, pack_header,
};
use super::reader::{ChunkError, Location, split_entry, verified};
use crate::model::ChunkHash;

/// Bytes read at a time when everything is read.
const WALK_WINDOW_BYTES: usize = 4 << 20;
/// Bytes read at a time when only headers are wanted.
const LIST_WINDOW_BYTES: usize = 64 << 10;

/// One entry found in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Where its header begins.
    pub offset: u32,
    /// What the header says.
    pub header: EntryHeader,
}

impl PackEntry {
    /// Returns the location of the entry in its pack.
    pub fn location(&self, pack: PackId) -> Location {
        let EntryHeader { stored_length, plain_length, .. } = self.header;
        Location { pack, offset: self.offset, stored_length, plain_length }
    }
}

/// One place in a pack that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where: of an entry, the offset of its header.
    pub offset: u64,
    /// The hash that the header states, where a header could be read; it may itself be what is damaged.
    pub hash: Option<ChunkHash>,
    /// What is wrong, as a sentence.
    pub reason: String,
}

/// What a walk through a pack found.
#[derive(Clone, Debug)]
pub struct PackWalk {
    /// The pack.
    pub id: PackId,
    /// Its length in bytes.
    pub pack_bytes: u64,
    /// The entries that are intact, dictionaries included, in order.
    pub entries: Vec<PackEntry>,
    /// Everything that is not; empty if and only if the pack is as it was written.
    pub damage: Vec<Damage>,
}

/// Reads and verifies a whole pack, in windows of some megabytes.
///
/// Dictionaries met on the way are added to `dictionaries`. To read packs without a catalogue, first add all
/// dictionaries (found with [`list_pack`], read by a walk through the packs that hold them), then walk all packs.
///
/// # Errors
///
/// [`ChunkError::MissingPack`] and [`ChunkError::Io`]; damage is in the result. After an I/O error single chunks may
/// still be readable by their location.
pub fn walk_pack(backend: &dyn Backend, id: PackId, dictionaries: &DictionarySet) -> Result<PackWalk, ChunkError> {
    let mut walker = Walker::new(backend, id, dictionaries)?;
    walker.entries()?;
    walker.trailer()?;
    Ok(walker.walk)
}

/// Lists the entries of a pack, reading headers only, and checks them against the id and the trailer.
///
/// # Errors
///
/// [`ChunkError::MissingPack`], [`ChunkError::Io`], and for any damage to a header [`ChunkError::HeaderMismatch`] or
/// [`ChunkError::CutShort`]: then [`walk_pack`] finds what is left.
pub fn list_pack(backend: &dyn Backend, id: PackId) -> Result<Vec<PackEntry>, ChunkError> {
    let mut window = Window::open(backend, id, LIST_WINDOW_BYTES)?;
    let end = window.entries_end().ok_or(ChunkError::CutShort { pack: id, offset: 0 })?;
    let trailer = read_trailer(backend, id, end)?
        .ok_or_else(|| ChunkError::mismatch(id, end, "the trailer", "a valid one", "bytes that break the format"))?;
    let mut headers = Hasher::new();
    let header = window.get(0, PACK_HEADER_BYTES)?;
    if header != pack_header() {
        return Err(ChunkError::mismatch(id, 0, "the pack header", "a known one", "another"));
    }
    headers.update(header);
    let mut entries = Vec::new();
    let mut offset = PACK_HEADER_BYTES as u64;
    while offset < end {
        let invalid =
            || ChunkError::mismatch(id, offset, "the entry header", "a valid one", "bytes that break the format");
        if end - offset < ENTRY_HEADER_BYTES as u64 {
            return Err(invalid());
        }
        let bytes = window.get(offset, ENTRY_HEADER_BYTES)?;
        let (header, _) = split_entry(bytes).ok_or_else(invalid)?;
        headers.update(bytes);
        entries.push(PackEntry { offset: narrow(offset), header });
        offset += header.entry_bytes() as u64;
    }
    match check_trailer(id, end, window.pack_bytes, &trailer.0, entries.len(), &headers) {
        _ if offset != end => Err(ChunkError::CutShort { pack: id, offset }),
        Some(error) => Err(error),
        None => Ok(entries),
    }
}

/// Stores a finished pack unless it is there already; returns whether it was stored.
///
/// A run that was interrupted before its commit makes the same packs again. One that is there and intact is kept; one
/// that is damaged is replaced, which heals all of it, since equal ids mean equal chunks at equal offsets.
///
/// # Errors
///
/// What the backend answers. A crash while a damaged pack is replaced can leave none.
pub fn put_pack(
    backend: &dyn Backend,
    pack: &FinishedPack,
    dictionaries: &DictionarySet,
) -> Result<bool, BackendError> {
    let key = pack.id.key();
    match backend.put(&key, &[&pack.bytes]) {
        Err(BackendError::Exists { .. }) => {}
        other => return other.map(|()| true),
    }
    match walk_pack(backend, pack.id, dictionaries) {
        Ok(walk) if walk.damage.is_empty() => return Ok(false),
        Ok(_) => backend.delete(&key)?,
        Err(ChunkError::Io { source, .. }) => return Err(source),
        // Deleted meanwhile.
        Err(_) => {}
    }
    backend.put(&key, &[&pack.bytes]).map(|()| true)
}

/// A walk under way.
struct Walker<'a> {
    dictionaries: &'a DictionarySet,
    decompressor: Decompressor,
    window: Window<'a>,
    headers: Hasher,
    /// Entry headers met in the chain, intact or not.
    met: usize,
    trailer: Option<(Trailer, [u8; 16])>,
    /// Where the entries end: before the trailer, or at the end of the pack if there is no valid trailer.
    end: u64,
    walk: PackWalk,
}

impl<'a> Walker<'a> {
    fn new(backend: &'a dyn Backend, id: PackId, dictionaries: &'a DictionarySet) -> Result<Walker<'a>, ChunkError> {
        let window = Window::open(backend, id, WALK_WINDOW_BYTES)?;
        let pack_bytes = window.pack_bytes;
        let trailer = match window.entries_end() {
            Some(end) => read_trailer(backend, id, end)?,
            None => None,
        };
        let end = if trailer.is_some() { pack_bytes - PACK_TRAILER_BYTES as u64 } else { pack_bytes };
        let decompressor =
            Decompressor::new().map_err(|source| ChunkError::Decompress { pack: id, offset: 0, source })?;
        let walk = PackWalk { id, pack_bytes, entries: Vec::new(), damage: Vec::new() };
        let headers = Hasher::new();
        Ok(Walker { dictionaries, decompressor, window, headers, met: 0, trailer, end, walk })
    }

    fn damage(&mut self, offset: u64, hash: Option<ChunkHash>, reason: impl ToString) {
        self.walk.damage.push(Damage { offset, hash, reason: reason.to_string() });
    }

    fn entries(&mut self) -> Result<(), ChunkError> {
        if self.walk.pack_bytes < PACK_HEADER_BYTES as u64 {
            self.damage(0, None, ChunkError::CutShort { pack: self.walk.id, offset: 0 });
            return Ok(());
        }
        let header = self.window.get(0, PACK_HEADER_BYTES)?;
        self.headers.update(header);
        if header != pack_header() {
            self.damage(0, None, ChunkError::mismatch(self.walk.id, 0, "the pack header", "a known one", "another"));
        }
        let mut offset = PACK_HEADER_BYTES as u64;
        while offset < self.end {
            offset = self.entry(offset)?;
        }
        Ok(())
    }

    /// Verifies the entry at `offset`, notes it or its damage, and returns where to go on.
    fn entry(&mut self, offset: u64) -> Result<u64, ChunkError> {
        let id = self.walk.id;
        let Some(header) = self.header_at(offset, offset)? else {
            let reason =
                ChunkError::mismatch(id, offset, "the entry header", "a valid one", "bytes that break the format");
            self.damage(offset, None, reason);
            return self.resume(offset + 1);
        };
        self.headers.update(&header.encode());
        self.met += 1;
        let next = offset + header.entry_bytes() as u64;
        match self.verify(offset, &header)? {
            Ok(()) => {
                self.walk.entries.push(PackEntry { offset: narrow(offset), header });
                return Ok(next);
            }
            Err(error) => self.damage(offset, Some(header.hash), error),
        }
        // If the length is what is damaged, the next header is somewhere else.
        if next == self.end || self.header_at(offset, next)?.is_some() { Ok(next) } else { self.resume(offset + 1) }
    }

    /// Returns the header at `offset` if there is a valid one whose entry ends in time, keeping the bytes from `keep` on.
    fn header_at(&mut self, keep: u64, offset: u64) -> Result<Option<EntryHeader>, ChunkError> {
        if self.end.saturating_sub(offset) < ENTRY_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let bytes = self.window.get_keeping(keep, offset, ENTRY_HEADER_BYTES)?;
        let header = split_entry(bytes).map(|(header, _)| header);
        Ok(header.filter(|header| header.entry_bytes() as u64 <= self.end - offset))
    }

    /// Checks an entry; the outer error is one of reading. Dictionaries are kept for those that need them.
    fn verify(&mut self, offset: u64, header: &EntryHeader) -> Result<Result<(), ChunkError>, ChunkError> {
        let id = self.walk.id;
        let entry = self.window.get(offset, header.entry_bytes())?;
        let stored = &entry[ENTRY_HEADER_BYTES..];
        let plain = match verified(&mut self.decompressor, self.dictionaries, id, offset, header, stored) {
            Ok(plain) => plain,
            Err(error) => return Ok(Err(error)),
        };
        if header.is_dictionary {
            let added = Dictionary::new(header.dictionary_id, plain)
                .and_then(|dictionary| self.dictionaries.insert(dictionary.into()));
            return Ok(added.map_err(|source| ChunkError::Decompress { pack: id, offset, source }));
        }
        Ok(Ok(()))
    }

    /// Finds the next intact entry from `offset` on, or the end.
    fn resume(&mut self, mut offset: u64) -> Result<u64, ChunkError> {
        while offset < self.end {
            if let Some(header) = self.header_at(offset, offset)?
                && self.verify(offset, &header)?.is_ok()
            {
                return Ok(offset);
            }
            offset += 1;
        }
        Ok(self.end)
    }

    /// Checks what the trailer says about all that was met.
    fn trailer(&mut self) -> Result<(), ChunkError> {
        let PackWalk { id, pack_bytes, .. } = self.walk;
        let content = self.window.content_checksum()?;
        let Some((trailer, checksum)) = self.trailer else {
            let at = self.window.entries_end().unwrap_or(0);
            self.damage(at, None, ChunkError::mismatch(id, at, "the trailer", "a valid one", "missing or damaged"));
            return Ok(());
        };
        if let Some(error) = check_trailer(id, self.end, pack_bytes, &trailer, self.met, &self.headers) {
            self.damage(self.end, None, error);
        } else if content != checksum && self.walk.damage.is_empty() {
            let reason = "a byte changed that no chunk depends on, or the checksum itself";
            self.damage(self.end, None, ChunkError::mismatch(id, self.end, "the checksum", "that of the pack", reason));
        }
        Ok(())
    }
}

/// Returns what a trailer contradicts, if anything.
fn check_trailer(
    id: PackId,
    at: u64,
    pack_bytes: u64,
    trailer: &Trailer,
    entries: usize,
    headers: &Hasher,
) -> Option<ChunkError> {
    let digest = headers.finalize();
    if trailer.pack_bytes != pack_bytes {
        Some(ChunkError::mismatch(id, at, "the length of the pack", trailer.pack_bytes, pack_bytes))
    } else if trailer.entries as usize != entries {
        Some(ChunkError::mismatch(id, at, "the number of entries", trailer.entries, entries))
    } else if trailer.digest != *digest.as_bytes() {
        let expected = blake3::Hash::from_bytes(trailer.digest);
        Some(ChunkError::mismatch(id, at, "the digest of all headers", expected, digest))
    } else if trailer.digest[..16] != id.0 {
        Some(ChunkError::mismatch(id, at, "the id of the pack", id, PackId(array(&trailer.digest, 0))))
    } else {
        None
    }
}

fn read_trailer(backend: &dyn Backend, id: PackId, at: u64) -> Result<Option<(Trailer, [u8; 16])>, ChunkError> {
    let mut bytes = [0; PACK_TRAILER_BYTES];
    backend.read_into(&id.key(), at, &mut bytes).map_err(|source| ChunkError::backend(id, at, source))?;
    Ok(Trailer::decode(&bytes))
}

/// Narrows an offset within a pack, whose length [`Window::open`] has checked against [`PACK_MAX_BYTES`].
fn narrow(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// A part of a pack in memory, moving forward only.
struct Window<'a> {
    backend: &'a dyn Backend,
    id: PackId,
    key: String,
    pack_bytes: u64,
    step: usize,
    start: u64,
    bytes: Vec<u8>,
    /// Over everything loaded so far that the checksum in the trailer covers, as long as nothing was skipped.
    content: Hasher,
}

impl<'a> Window<'a> {
    fn open(backend: &'a dyn Backend, id: PackId, step: usize) -> Result<Window<'a>, ChunkError> {
        let key = id.key();
        let fail = |source| ChunkError::backend(id, 0, source);
        let pack_bytes = backend.size(&key).map_err(fail)?.ok_or(ChunkError::MissingPack { pack: id, offset: 0 })?;
        if pack_bytes > PACK_MAX_BYTES as u64 {
            let limit = format!("at most {PACK_MAX_BYTES}");
            return Err(ChunkError::mismatch(id, 0, "the length of the pack", limit, pack_bytes));
        }
        Ok(Window { backend, id, key, pack_bytes, step, start: 0, bytes: Vec::new(), content: Hasher::new() })
    }

    /// Returns where a trailer begins, if the pack is long enough for one.
    fn entries_end(&self) -> Option<u64> {
        let end = self.pack_bytes.checked_sub(PACK_TRAILER_BYTES as u64)?;
        (end >= PACK_HEADER_BYTES as u64).then_some(end)
    }

    /// Returns bytes that lie within the pack, forgetting those before.
    fn get(&mut self, offset: u64, length: usize) -> Result<&[u8], ChunkError> {
        self.get_keeping(offset, offset, length)
    }

    /// Returns bytes that lie within the pack, forgetting those before `keep`.
    fn get_keeping(&mut self, keep: u64, offset: u64, length: usize) -> Result<&[u8], ChunkError> {
        let wanted_end = offset + length as u64;
        if wanted_end > self.start + self.bytes.len() as u64 {
            self.load(keep, wanted_end)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + length])
    }

    /// Loads more, at least up to `wanted_end`, and drops what lies before `keep`.
    fn load(&mut self, keep: u64, wanted_end: u64) -> Result<(), ChunkError> {
        let loaded_end = self.start + self.bytes.len() as u64;
        if keep >= loaded_end {
            self.bytes.clear();
        } else {
            self.bytes.drain(..(keep - self.start) as usize);
        }
        self.start = keep;
        let from = keep.max(loaded_end);
        let to = wanted_end.max(from + self.step as u64).min(self.pack_bytes);
        let old = self.bytes.len();
        self.bytes.resize(old + (to - from) as usize, 0);
        let read = self.backend.read_into(&self.key, from, &mut self.bytes[old..]);
        read.map_err(|source| ChunkError::backend(self.id, from, source))?;
        let covered = self.pack_bytes.saturating_sub((PACK_TRAILER_BYTES - TRAILER_CHECKSUM_AT) as u64);
        let fresh = covered.saturating_sub(from).min(to - from) as usize;
        self.content.update(&self.bytes[old..][..fresh]);
        Ok(())
    }

    /// Loads the rest and returns the checksum of everything; meaningful only if nothing was skipped.
    fn content_checksum(&mut self) -> Result<[u8; 16], ChunkError> {
        loop {
            let loaded_end = self.start + self.bytes.len() as u64;
            if loaded_end >= self.pack_bytes {
                return Ok(array(self.content.finalize().as_bytes(), 0));
            }
            self.load(loaded_end, loaded_end)?;
        }
    }
}
