//! Reading chunks from packs, each verified before it is handed out.
//!
//! A chunk is one read: its entry header and its stored bytes lie together. The header must say what the caller's
//! [`Location`] says, so a catalogue and packs that don't belong together are noticed, and the plain bytes must have the
//! hash that the header states.

use std::sync::{Arc, Mutex, PoisonError};

use super::backend::Backend;
use super::codec::{CHUNK_MAX_BYTES, CodecError, Decompressor, DictionarySet};
use super::entry::{
    ChunkAddress, ChunkError, Location, check_hash, invalid_entry, split_entry, unknown_codec, verified,
};
use super::pack::{ENTRY_HEADER_BYTES, EntryHeader, PackId};
use super::pack_verify::is_as_written;

/// Most bytes taken by one read of neighbouring chunks.
const RUN_MAX_BYTES: usize = 8 << 20;
/// Most bytes of a buffer for stored chunks that is kept for the next read: a read of 1 MiB, the kernel's largest, fits.
const KEPT_BUFFER_BYTES: usize = 2 << 20;
/// Gap between two chunks, in bytes, that is cheaper to read than to skip.
const RUN_GAP_BYTES: u64 = 64 << 10;

/// Reads chunks, from many threads at once.
pub struct ChunkReader {
    backend: Arc<dyn Backend>,
    dictionaries: Arc<DictionarySet>,
    /// Idle workspaces, no more than there ever were threads reading at once.
    idle: Mutex<Vec<Workspace>>,
}

/// What a thread needs to read chunks.
struct Workspace {
    decompressor: Decompressor,
    /// Takes stored bytes; longer than what is in use, and what is beyond that is anything.
    stored: Vec<u8>,
}

impl ChunkReader {
    /// Creates a reader; dictionaries added to the set later are seen.
    pub fn new(backend: Arc<dyn Backend>, dictionaries: Arc<DictionarySet>) -> ChunkReader {
        ChunkReader { backend, dictionaries, idle: Mutex::default() }
    }

    /// Returns the dictionaries that are read with.
    pub fn dictionaries(&self) -> &Arc<DictionarySet> {
        &self.dictionaries
    }

    /// Returns the plain bytes of one chunk, with one read and verified.
    ///
    /// # Errors
    ///
    /// See [`ChunkError`]; bytes that were not verified are never returned.
    pub fn read_chunk(&self, location: &Location, expect_prefix: [u8; 8]) -> Result<Vec<u8>, ChunkError> {
        let Location { pack, offset, .. } = *location;
        self.with_workspace(pack, offset, |Workspace { decompressor, stored }| {
            let entry = self.read_entry(location, stored)?;
            open_entry(decompressor, &self.dictionaries, location, expect_prefix, entry)
        })
        .map_err(|error| self.judged(error))
    }

    /// Distinguishes an entry of a newer version from a damaged one: the checksum of its pack decides. Only called where a codec is unknown.
    fn judged(&self, error: ChunkError) -> ChunkError {
        let ChunkError::Unsupported { pack, offset, .. } = error else { return error };
        match is_as_written(self.backend.as_ref(), pack) {
            Ok(true) => error,
            Ok(false) => invalid_entry(pack, offset),
            Err(failure) => failure,
        }
    }

    /// Reads chunks of one pack in the given order, neighbouring ones with one read of up to 8 MiB.
    ///
    /// `sink` is called once for each, with its index in `run`, in order. One damaged chunk does not spoil the others.
    /// Chunks lie next to each other when the run is sorted by offset; any order, and several packs, are correct.
    pub fn read_run(&self, run: &[ChunkAddress], mut sink: impl FnMut(usize, Result<Vec<u8>, ChunkError>)) {
        self.each_entry(run, |index, entry| {
            let ChunkAddress { location, hash_prefix } = &run[index];
            sink(
                index,
                entry
                    .and_then(|(decompressor, entry)| {
                        open_entry(decompressor, &self.dictionaries, location, *hash_prefix, entry)
                    })
                    .map_err(|error| self.judged(error)),
            );
        });
    }

    /// Reads chunks as [`read_run`](ChunkReader::read_run) does, each into its target, which must have its plain length.
    ///
    /// # Errors
    ///
    /// The first that is met; the targets hold anything then.
    pub fn read_run_into(&self, run: &[ChunkAddress], targets: &mut [&mut [u8]]) -> Result<(), ChunkError> {
        debug_assert_eq!(run.len(), targets.len());
        let mut failure = None;
        self.each_entry(run, |index, entry| {
            if failure.is_some() {
                return;
            }
            let ChunkAddress { location, hash_prefix } = &run[index];
            let opened = entry.and_then(|(decompressor, entry)| {
                open_entry_into(decompressor, &self.dictionaries, location, *hash_prefix, entry, targets[index])
            });
            failure = opened.err().map(|error| self.judged(error));
        });
        failure.map_or(Ok(()), Err)
    }

    /// Reads chunks as [`read_run`](ChunkReader::read_run) does and hands them on as they are stored: header and stored bytes, for a copy in
    /// another pack. Each was decompressed and its hash compared, so what is damaged is not copied.
    pub fn copy_run(
        &self,
        run: &[ChunkAddress],
        mut sink: impl FnMut(usize, Result<(EntryHeader, &[u8]), ChunkError>),
    ) {
        self.each_entry(run, |index, entry| {
            let ChunkAddress { location, hash_prefix } = &run[index];
            let verified = entry.and_then(|(decompressor, entry)| {
                open_entry(decompressor, &self.dictionaries, location, *hash_prefix, entry)?;
                let Location { pack, offset, .. } = *location;
                split_entry(entry).ok_or(ChunkError::CutShort { pack, offset: offset.into() })
            });
            sink(index, verified.map_err(|error| self.judged(error)));
        });
    }

    /// Calls `sink` with the stored entry of each chunk, in order, and with what opens it.
    fn each_entry(
        &self,
        run: &[ChunkAddress],
        mut sink: impl FnMut(usize, Result<(&mut Decompressor, &[u8]), ChunkError>),
    ) {
        let mut first = 0;
        while first < run.len() {
            let (count, bytes) = neighbours(&run[first..]);
            let Location { pack, offset, .. } = run[first].location;
            let batch = &run[first..first + count];
            let mut workspace = match self.take_workspace(pack, offset) {
                Ok(workspace) => workspace,
                Err(error) => {
                    sink(first, Err(error));
                    first += 1;
                    continue;
                }
            };
            let Workspace { decompressor, stored } = &mut workspace;
            let together = count > 1 && {
                let buffer = room(stored, bytes);
                self.backend.read_into(&pack.key(), offset.into(), buffer).is_ok()
            };
            for (index, address) in (first..).zip(batch) {
                let entry = if together {
                    let start = (address.location.offset - offset) as usize;
                    // `neighbours` counted only valid lengths, and the buffer spans them all.
                    Ok(&stored[start..start + ENTRY_HEADER_BYTES + address.location.stored_length as usize])
                } else {
                    // Also when the large read failed: one by one, each has its own error, and most may be readable.
                    self.read_entry(&address.location, stored)
                };
                sink(index, entry.map(|entry| (&mut *decompressor, entry)));
            }
            self.give_back(workspace);
            first += count;
        }
    }

    /// Reads a whole entry into a workspace's buffer.
    fn read_entry<'a>(&self, location: &Location, stored: &'a mut Vec<u8>) -> Result<&'a [u8], ChunkError> {
        let Location { pack, offset, .. } = *location;
        let buffer = room(stored, entry_bytes(location)?);
        self.backend
            .read_into(&pack.key(), offset.into(), buffer)
            .map_err(|source| ChunkError::backend(pack, offset.into(), source))?;
        Ok(buffer)
    }

    fn with_workspace<T>(
        &self,
        pack: PackId,
        offset: u32,
        work: impl FnOnce(&mut Workspace) -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        let mut workspace = self.take_workspace(pack, offset)?;
        let result = work(&mut workspace);
        self.give_back(workspace);
        result
    }

    fn take_workspace(&self, pack: PackId, offset: u32) -> Result<Workspace, ChunkError> {
        let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match taken {
            Some(workspace) => Ok(workspace),
            None => match Decompressor::new() {
                Ok(decompressor) => Ok(Workspace { decompressor, stored: Vec::new() }),
                Err(source) => Err(ChunkError::Decompress { pack, offset: offset.into(), source }),
            },
        }
    }

    fn give_back(&self, mut workspace: Workspace) {
        if workspace.stored.len() > KEPT_BUFFER_BYTES {
            workspace.stored = Vec::new();
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    }
}

/// Returns so many bytes of a buffer, with anything in them.
fn room(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        // Not resized: what is in it need not move along. Rounded up, lest each somewhat longer read takes another.
        *buffer = vec![0; bytes.next_power_of_two()];
    }
    &mut buffer[..bytes]
}

/// Returns the length of a whole entry, refusing lengths that no chunk has before memory is taken for them.
fn entry_bytes(location: &Location) -> Result<usize, ChunkError> {
    let Location { pack, offset, stored_length, plain_length } = *location;
    let longest = stored_length.max(plain_length);
    if longest > CHUNK_MAX_BYTES {
        let source = CodecError::TooLong { plain_bytes: longest.into() };
        return Err(ChunkError::Decompress { pack, offset: offset.into(), source });
    }
    Ok(ENTRY_HEADER_BYTES + stored_length as usize)
}

/// Returns how many chunks from the front can be read at once, at least one, and the bytes from the first to the last.
fn neighbours(run: &[ChunkAddress]) -> (usize, usize) {
    let start = u64::from(run[0].location.offset);
    let mut end = start;
    let mut count = 0;
    for ChunkAddress { location, .. } in run {
        let offset = u64::from(location.offset);
        let Ok(bytes) = entry_bytes(location) else { break };
        let next_end = offset + bytes as u64;
        let near = offset >= end && offset - end <= RUN_GAP_BYTES && next_end - start <= RUN_MAX_BYTES as u64;
        if location.pack != run[0].location.pack || (count > 0 && !near) {
            break;
        }
        end = next_end;
        count += 1;
    }
    // A single chunk is read by itself, into its own buffer.
    if count > 1 { (count, (end - start) as usize) } else { (1, 0) }
}

/// Checks an entry against its location and returns its plain bytes.
fn open_entry(
    decompressor: &mut Decompressor,
    dictionaries: &DictionarySet,
    location: &Location,
    expect_prefix: [u8; 8],
    entry: &[u8],
) -> Result<Vec<u8>, ChunkError> {
    let (header, stored) = checked_entry(location, expect_prefix, entry)?;
    verified(decompressor, dictionaries, location.pack, location.offset.into(), &header, stored)
}

/// Checks an entry against its location and its target's length, and puts its plain bytes into the target.
fn open_entry_into(
    decompressor: &mut Decompressor,
    dictionaries: &DictionarySet,
    location: &Location,
    expect_prefix: [u8; 8],
    entry: &[u8],
    target: &mut [u8],
) -> Result<(), ChunkError> {
    let (pack, offset) = (location.pack, location.offset.into());
    let (header, stored) = checked_entry(location, expect_prefix, entry)?;
    if target.len() != header.plain_length as usize {
        return Err(ChunkError::mismatch(pack, offset, "the plain length", target.len(), header.plain_length));
    }
    decompressor
        .decompress_into(header.codec, dictionaries, stored, target)
        .map_err(|source| ChunkError::Decompress { pack, offset, source })?;
    check_hash(pack, offset, &header, target)
}

/// Checks an entry against what its location says, and splits it.
fn checked_entry<'a>(
    location: &Location,
    expect_prefix: [u8; 8],
    entry: &'a [u8],
) -> Result<(EntryHeader, &'a [u8]), ChunkError> {
    let Location { pack, offset, stored_length, plain_length } = *location;
    let at = u64::from(offset);
    let (header, stored) = split_entry(entry).ok_or_else(|| {
        let unknown = entry.first_chunk().and_then(EntryHeader::of_unknown_codec);
        unknown.map_or_else(|| invalid_entry(pack, at), |(codec, _)| unknown_codec(pack, at, codec))
    })?;
    if header.dictionary.is_some() {
        return Err(ChunkError::mismatch(pack, at, "the kind of the entry", "a chunk", "a dictionary"));
    }
    if header.hash.prefix() != expect_prefix {
        let digits = |prefix: [u8; 8]| format!("{:016x}", u64::from_be_bytes(prefix));
        let (expected, found) = (digits(expect_prefix), digits(header.hash.prefix()));
        return Err(ChunkError::mismatch(pack, at, "the hash prefix", expected, found));
    }
    if header.plain_length != plain_length {
        return Err(ChunkError::mismatch(pack, at, "the plain length", plain_length, header.plain_length));
    }
    if header.stored_length != stored_length {
        return Err(ChunkError::mismatch(pack, at, "the stored length", stored_length, header.stored_length));
    }
    Ok((header, stored))
}
