//! Reading a whole pack without any other knowledge: to verify it, and to rebuild what was known about it.
//!
//! [`verify_pack`] verifies every byte in bounded memory. Where an entry header is damaged the chain of lengths breaks;
//! the search then goes on to the next place that decodes as an entry and has the hash it states, so one bad header costs
//! one chunk. [`list_pack`] reads the headers alone. What a newer version wrote is distinguished from damage by [`is_as_written`].

use blake3::Hasher;

use super::backend::Backend;
use super::codec::{Decompressor, Dictionary, DictionarySet};
use super::entry::{ChunkError, Location, invalid_entry, split_entry, unknown_codec, verified};
use super::pack::{
    ENTRY_HEADER_BYTES, EntryHeader, HEADER_ID_AT, PACK_MAX_BYTES, PACK_TRAILER_BYTES, PackFormat, PackId,
    TRAILER_CHECKSUM_AT, Trailer, array,
};
use crate::model::ChunkHash;

/// Bytes read at a time when everything is read.
const VERIFY_WINDOW_BYTES: usize = 4 << 20;
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

/// What was found in a pack by reading all of it.
#[derive(Clone, Debug)]
pub struct PackFindings {
    /// The pack.
    pub id: PackId,
    /// Its format; a guess where the header is damaged.
    pub format: PackFormat,
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
/// dictionaries (found with [`list_pack`], read by verifying the packs that hold them), then verify all packs.
///
/// # Errors
///
/// [`ChunkError::MissingPack`], [`ChunkError::Unsupported`] and [`ChunkError::Io`]; damage is in the result. After an I/O error single chunks may
/// still be readable by their location.
pub fn verify_pack(
    backend: &dyn Backend,
    id: PackId,
    dictionaries: &DictionarySet,
) -> Result<PackFindings, ChunkError> {
    let mut verifier = Verifier::new(backend, id, dictionaries)?;
    verifier.entries()?;
    verifier.trailer()?;
    Ok(verifier.found)
}

/// What a pack is, as its headers say.
#[derive(Clone, Debug)]
pub struct PackListing {
    /// Its format.
    pub format: PackFormat,
    /// Its entries, dictionaries included, in order.
    pub entries: Vec<PackEntry>,
}

/// Lists the entries of a pack, reading headers only, and checks them against the id and the trailer.
///
/// # Errors
///
/// [`ChunkError::MissingPack`], [`ChunkError::Unsupported`], [`ChunkError::Io`], and for any damage to a header [`ChunkError::HeaderMismatch`] or
/// [`ChunkError::CutShort`]: then [`verify_pack`] finds what is left.
pub fn list_pack(backend: &dyn Backend, id: PackId) -> Result<PackListing, ChunkError> {
    let mut window = Window::open(backend, id, LIST_WINDOW_BYTES)?;
    let end = window.entries_end().ok_or(ChunkError::CutShort { pack: id, offset: 0 })?;
    let trailer = read_trailer(backend, id, end)?
        .ok_or_else(|| ChunkError::mismatch(id, end, "the trailer", "a valid one", "bytes that break the format"))?;
    let mut headers = Hasher::new();
    let format = window.format(id)?.ok_or_else(|| damaged_header(id))?;
    headers.update(&format.header(id));
    let mut entries = Vec::new();
    let mut offset = format.header_bytes() as u64;
    while offset < end {
        if end - offset < ENTRY_HEADER_BYTES as u64 {
            return Err(invalid_entry(id, offset));
        }
        let bytes = window.get(offset, ENTRY_HEADER_BYTES)?;
        let Some((header, _)) = split_entry(bytes) else {
            let unknown = bytes.first_chunk().and_then(EntryHeader::of_unknown_codec);
            return Err(match unknown {
                Some((codec, _)) if is_as_written(backend, id)? => unknown_codec(id, offset, codec),
                _ => invalid_entry(id, offset),
            });
        };
        headers.update(bytes);
        entries.push(PackEntry { offset: narrow(offset), header });
        offset += header.entry_bytes() as u64;
    }
    match check_trailer(id, format, end, window.pack_bytes, &trailer.0, entries.len(), &headers) {
        _ if offset != end => Err(ChunkError::CutShort { pack: id, offset }),
        Some(error) => Err(error),
        None => Ok(PackListing { format, entries }),
    }
}

fn damaged_header(id: PackId) -> ChunkError {
    ChunkError::mismatch(id, 0, "the pack header", "a known one", "another")
}

/// Tells whether a pack is as it was written, by the checksum at its end: what is not understood then was written by a newer version. Reads all of it.
///
/// # Errors
///
/// [`ChunkError::MissingPack`] and [`ChunkError::Io`].
pub fn is_as_written(backend: &dyn Backend, id: PackId) -> Result<bool, ChunkError> {
    let mut window = Window::open(backend, id, VERIFY_WINDOW_BYTES)?;
    let Some(end) = window.entries_end() else { return Ok(false) };
    let trailer = read_trailer(backend, id, end)?;
    let content = window.content_checksum()?;
    Ok(trailer.is_some_and(|(_, checksum)| checksum == content))
}

/// A verification under way.
struct Verifier<'a> {
    dictionaries: &'a DictionarySet,
    decompressor: Decompressor,
    window: Window<'a>,
    headers: Hasher,
    /// Entry headers met in the chain, intact or not.
    met: usize,
    trailer: Option<(Trailer, [u8; 16])>,
    /// Where the entries end: before the trailer, or at the end of the pack if there is no valid trailer.
    end: u64,
    found: PackFindings,
}

impl<'a> Verifier<'a> {
    fn new(backend: &'a dyn Backend, id: PackId, dictionaries: &'a DictionarySet) -> Result<Verifier<'a>, ChunkError> {
        let window = Window::open(backend, id, VERIFY_WINDOW_BYTES)?;
        let pack_bytes = window.pack_bytes;
        let trailer = match window.entries_end() {
            Some(end) => read_trailer(backend, id, end)?,
            None => None,
        };
        let end = if trailer.is_some() { pack_bytes - PACK_TRAILER_BYTES as u64 } else { pack_bytes };
        let decompressor =
            Decompressor::new().map_err(|source| ChunkError::Decompress { pack: id, offset: 0, source })?;
        let found = PackFindings { id, format: PackFormat::V2, pack_bytes, entries: Vec::new(), damage: Vec::new() };
        let headers = Hasher::new();
        Ok(Verifier { dictionaries, decompressor, window, headers, met: 0, trailer, end, found })
    }

    fn damage(&mut self, offset: u64, hash: Option<ChunkHash>, reason: impl ToString) {
        self.found.damage.push(Damage { offset, hash, reason: reason.to_string() });
    }

    fn entries(&mut self) -> Result<(), ChunkError> {
        if self.found.pack_bytes < PackFormat::V1.header_bytes() as u64 {
            self.damage(0, None, ChunkError::CutShort { pack: self.found.id, offset: 0 });
            return Ok(());
        }
        match self.window.format(self.found.id)? {
            Some(format) => self.found.format = format,
            None => {
                self.damage(0, None, damaged_header(self.found.id));
                self.found.format = self.window.likely_format(self.found.id)?;
            }
        }
        self.headers.update(&self.found.format.header(self.found.id));
        let mut offset = self.found.format.header_bytes() as u64;
        while offset < self.end {
            offset = self.entry(offset)?;
        }
        Ok(())
    }

    /// Verifies the entry at `offset`, notes it or its damage, and returns where to go on.
    fn entry(&mut self, offset: u64) -> Result<u64, ChunkError> {
        let id = self.found.id;
        let Some(header) = self.header_at(offset, offset)? else {
            self.refuse_unknown_codec(offset)?;
            self.damage(offset, None, invalid_entry(id, offset));
            return self.resume(offset + 1);
        };
        self.headers.update(&header.encode());
        self.met += 1;
        let next = offset + header.entry_bytes() as u64;
        match self.verify(offset, &header)? {
            Ok(()) => {
                self.found.entries.push(PackEntry { offset: narrow(offset), header });
                return Ok(next);
            }
            Err(error) => self.damage(offset, Some(header.hash), error),
        }
        // If the length is what is damaged, the next header is somewhere else.
        if next == self.end || self.header_at(offset, next)?.is_some() { Ok(next) } else { self.resume(offset + 1) }
    }

    /// Fails if the entry at `offset` has a codec that only a newer version knows, and the pack is as it was written.
    fn refuse_unknown_codec(&mut self, offset: u64) -> Result<(), ChunkError> {
        if self.end.saturating_sub(offset) < ENTRY_HEADER_BYTES as u64 {
            return Ok(());
        }
        let bytes = self.window.get(offset, ENTRY_HEADER_BYTES)?;
        match bytes.first_chunk().and_then(EntryHeader::of_unknown_codec) {
            Some((codec, _)) if is_as_written(self.window.backend, self.found.id)? => {
                Err(unknown_codec(self.found.id, offset, codec))
            }
            _ => Ok(()),
        }
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
        let id = self.found.id;
        let entry = self.window.get(offset, header.entry_bytes())?;
        let stored = &entry[ENTRY_HEADER_BYTES..];
        let plain = match verified(&mut self.decompressor, self.dictionaries, id, offset, header, stored) {
            Ok(plain) => plain,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(dictionary) = header.dictionary {
            let added = self.dictionaries.insert(Dictionary::new(dictionary, plain).into());
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
        let PackFindings { id, format, pack_bytes, .. } = self.found;
        let content = self.window.content_checksum()?;
        let Some((trailer, checksum)) = self.trailer else {
            let at = self.window.entries_end().unwrap_or(0);
            self.damage(at, None, ChunkError::mismatch(id, at, "the trailer", "a valid one", "missing or damaged"));
            return Ok(());
        };
        if let Some(error) = check_trailer(id, format, self.end, pack_bytes, &trailer, self.met, &self.headers) {
            self.damage(self.end, None, error);
        } else if content != checksum && self.found.damage.is_empty() {
            let reason = "a byte changed that no chunk depends on, or the checksum itself";
            self.damage(self.end, None, ChunkError::mismatch(id, self.end, "the checksum", "that of the pack", reason));
        }
        Ok(())
    }
}

/// Returns what a trailer contradicts, if anything.
fn check_trailer(
    id: PackId,
    format: PackFormat,
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
    } else if format == PackFormat::V1 && trailer.digest[..16] != id.0 {
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
        (end >= PackFormat::V1.header_bytes() as u64).then_some(end)
    }

    /// Returns the format of the pack, or `None` where its header is damaged.
    ///
    /// [`ChunkError::Unsupported`] where it is another and the pack is as it was written.
    fn format(&mut self, id: PackId) -> Result<Option<PackFormat>, ChunkError> {
        for format in [PackFormat::V1, PackFormat::V2] {
            let length = format.header_bytes();
            if self.pack_bytes >= length as u64 && self.get(0, length)? == format.header(id) {
                return Ok(Some(format));
            }
        }
        // The header of another pack is known well, and stands under a wrong name.
        let length = PackFormat::V2.header_bytes();
        let is_another = self.pack_bytes >= length as u64 && {
            let header = self.get(0, length)?;
            header == PackFormat::V2.header(PackId(array(header, HEADER_ID_AT)))
        };
        if !is_another && is_as_written(self.backend, id)? {
            let what = "a header of a kind".to_owned();
            return Err(ChunkError::Unsupported { pack: id, offset: 0, what });
        }
        Ok(None)
    }

    /// Returns the format that a damaged header most likely had: that which shares more bytes with it.
    fn likely_format(&mut self, id: PackId) -> Result<PackFormat, ChunkError> {
        let v2 = PackFormat::V2.header(id);
        if self.pack_bytes < v2.len() as u64 {
            return Ok(PackFormat::V1);
        }
        let same = self.get(0, v2.len())?.iter().zip(&v2).filter(|(found, expected)| found == expected).count();
        // Behind a header of format 1 stand a hash and what was stored: next to nothing of an id and many zeros.
        Ok(if same * 2 > v2.len() { PackFormat::V2 } else { PackFormat::V1 })
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
