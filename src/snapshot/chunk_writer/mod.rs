//! From new chunks to packs.
//!
//! The run's own thread numbers chunks and hands those that the store lacks to a pool of compressing threads, in batches; one thread gathers
//! their output into packs, and one writes each pack whole to the backend and reports where every chunk lies. (Writing waits for the disk: done by
//! the gathering thread it held up compression for a third of the time.) Memory: the batches under way
//! (at most `BATCHES_AHEAD` waiting for each thread, some 1.5 MB each), one pack being filled, one waiting and one being written.
//!
//! Small chunks wait until there are enough of them to train a dictionary, if the store has none yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::catalog::chunk::{PackRow, PackedChunk};
use crate::catalog::writer::CatalogWriter;
use crate::ids::ChunkId;
use crate::model::ChunkHash;
use crate::snapshot::{ChunkFault, SnapshotError};
use crate::source::tree::ArrivedChunk;
use crate::store::backend::Backend;
use crate::store::codec::{
    Codec, Compressor, DICTIONARY_CHUNK_MAX_BYTES, Decompressor, Dictionary, DictionaryId, DictionarySet,
    TRAINING_BYTES, train,
};
use crate::store::pack::{FinishedPack, PACK_TARGET_BYTES, PackBuilder, PackFormat, PackId};

/// A batch is handed over when it holds this many plain bytes ...
const BATCH_BYTES: usize = 512 << 10;
/// ... or this many chunks.
const BATCH_CHUNKS: usize = 256;
/// Size of a trained dictionary. Measured on generated mail up to 32 KiB: 30.1% of the plain size with 32 KiB, 28.9% with 64, 28.0% with 112, and
/// 40.4% without any.
const DICTIONARY_MAX_BYTES: usize = 112 << 10;
/// Batches that may wait for the compressing threads, for each thread.
const BATCHES_AHEAD: usize = 4;

/// How chunks are compressed.
#[derive(Clone, Copy, Debug)]
pub struct CompressionOptions {
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Whether small chunks are compressed with a trained dictionary.
    pub dictionary: bool,
    /// Compressing threads.
    pub threads: usize,
}

struct NewChunk {
    number: ChunkId,
    hash: ChunkHash,
    plain: Vec<u8>,
}

/// What a compressing thread gets.
enum Work {
    /// Chunks of this host, to compress.
    Compress(Batch),
    /// Chunks that came compressed, to verify.
    Verify(Vec<ArrivedChunk>),
}

struct Batch {
    chunks: Vec<NewChunk>,
    dictionary: Option<Arc<Dictionary>>,
}

struct StoredChunk {
    number: ChunkId,
    hash: ChunkHash,
    plain_length: u32,
    codec: Codec,
    stored: Vec<u8>,
}

enum ToPacker {
    Stored(Vec<StoredChunk>),
    Dictionary(Arc<Dictionary>),
    Failed(SnapshotError),
    /// Finish the open pack and report once all of it is durable. Sent when no batch is under way.
    Flush,
}

enum FromUploader {
    Pack { id: PackId, bytes: u64, chunks: Vec<PackedChunk> },
    Flushed,
    Failed(SnapshotError),
}

/// Figures that grow while chunks are stored.
#[derive(Debug, Default)]
pub struct ChunkCounters {
    /// Chunks that were new.
    pub new_chunks: AtomicU64,
    /// Their plain bytes.
    pub new_bytes: AtomicU64,
    /// Bytes that they take in packs.
    pub stored_bytes: AtomicU64,
}

/// Stores new chunks.
pub struct ChunkWriter {
    options: CompressionOptions,
    dictionary: Option<Arc<Dictionary>>,
    dictionaries: Arc<DictionarySet>,
    large: Vec<NewChunk>,
    large_bytes: usize,
    small: Vec<NewChunk>,
    small_bytes: usize,
    under_way: u64,
    finished: Arc<AtomicU64>,
    arrived: Vec<ArrivedChunk>,
    arrived_bytes: usize,
    decompressor: Decompressor,
    batches: Option<Sender<Work>>,
    packer: Option<Sender<ToPacker>>,
    reports: Receiver<FromUploader>,
    threads: Vec<JoinHandle<()>>,
    counters: Arc<ChunkCounters>,
}

impl ChunkWriter {
    /// Starts the threads. The ids of packs begin with `epoch`.
    ///
    /// # Errors
    /// Fails when a thread cannot be started or zstd refuses the level.
    pub fn start(
        backend: Arc<dyn Backend>,
        dictionaries: Arc<DictionarySet>,
        epoch: u32,
        options: CompressionOptions,
        counters: Arc<ChunkCounters>,
    ) -> Result<ChunkWriter, SnapshotError> {
        let dictionary =
            if options.dictionary { dictionaries.all().into_iter().max_by_key(|known| known.id()) } else { None };
        let thread_count = options.threads.max(1);
        let (batches, queue) = bounded::<Work>(BATCHES_AHEAD * thread_count);
        let (packer, stored) = bounded::<ToPacker>(BATCHES_AHEAD * thread_count);
        // Unbounded: a report is small, and the run's thread must never be what storing waits for.
        let (reporter, reports) = unbounded();
        let finished = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        let spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name).spawn(work).map_err(SnapshotError::Thread)
        };
        for number in 0..thread_count {
            let (queue, packer, finished) = (queue.clone(), packer.clone(), Arc::clone(&finished));
            let worker = Worker { level: options.level, dictionaries: Arc::clone(&dictionaries), compressor: None };
            threads
                .push(spawn(format!("compress-{number}"), Box::new(move || worker.run(&queue, &packer, &finished)))?);
        }
        // One waits while one is written: more would only take memory.
        let (puts, packs) = bounded(1);
        let uploader = PackUploader { backend, reporter, counters: Arc::clone(&counters) };
        threads.push(spawn("upload".to_owned(), Box::new(move || uploader.run(&packs)))?);
        threads.push(spawn(
            "pack".to_owned(),
            Box::new(move || Packer { builder: None, epoch, chunks: Vec::new(), puts }.run(&stored)),
        )?);
        Ok(ChunkWriter {
            options,
            dictionary,
            dictionaries,
            large: Vec::new(),
            large_bytes: 0,
            small: Vec::new(),
            small_bytes: 0,
            under_way: 0,
            finished,
            arrived: Vec::new(),
            arrived_bytes: 0,
            decompressor: Decompressor::new()?,
            batches: Some(batches),
            packer: Some(packer),
            reports,
            threads,
            counters,
        })
    }

    /// Returns the number of a chunk; stores it if the store lacks it.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read or storing failed.
    pub fn chunk(
        &mut self,
        writer: &mut CatalogWriter,
        hash: ChunkHash,
        plain: Vec<u8>,
    ) -> Result<ChunkId, SnapshotError> {
        let (number, is_new) = writer.intern_chunk(&hash, plain.len() as u32)?;
        if !is_new {
            return Ok(number);
        }
        self.store(writer, NewChunk { number, hash, plain })?;
        Ok(number)
    }

    /// Stores a chunk of another host that has its number. Its bytes are verified here or, before they get into a pack, by a thread.
    ///
    /// # Errors
    /// [`SnapshotError::WrongChunk`], now or at a later call, if its bytes are not what their hash says.
    pub fn arrive(&mut self, writer: &mut CatalogWriter, chunk: ArrivedChunk) -> Result<(), SnapshotError> {
        let codec = codec_of(&chunk)?;
        let small = chunk.plain_length as usize <= DICTIONARY_CHUNK_MAX_BYTES && self.options.dictionary;
        // A small chunk may gain by a dictionary, or be a sample for one.
        let as_it_came = match codec {
            Codec::ZstdDictionary(_) => true,
            Codec::Zstd => !small,
            Codec::Plain => false,
        };
        if as_it_came {
            self.counters.new_chunks.fetch_add(1, Ordering::Relaxed);
            self.counters.new_bytes.fetch_add(u64::from(chunk.plain_length), Ordering::Relaxed);
            self.arrived_bytes += chunk.stored.len();
            self.arrived.push(chunk);
            if self.arrived_bytes >= BATCH_BYTES || self.arrived.len() >= BATCH_CHUNKS {
                self.send_arrived()?;
            }
            return self.take_reports(writer, false);
        }
        let plain = verified(&mut self.decompressor, &self.dictionaries, codec, &chunk)?;
        self.store(writer, NewChunk { number: chunk.number, hash: chunk.hash, plain })
    }

    /// Returns the dictionary that small chunks are compressed with, if there is one.
    pub fn dictionary(&self) -> Option<&Arc<Dictionary>> {
        self.dictionary.as_ref()
    }

    fn store(&mut self, writer: &mut CatalogWriter, chunk: NewChunk) -> Result<(), SnapshotError> {
        let bytes = chunk.plain.len();
        self.counters.new_chunks.fetch_add(1, Ordering::Relaxed);
        self.counters.new_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if bytes <= DICTIONARY_CHUNK_MAX_BYTES && self.options.dictionary {
            self.small.push(chunk);
            self.small_bytes += bytes;
            if self.dictionary.is_none() && self.small_bytes >= TRAINING_BYTES {
                self.train(writer)?;
            }
            if self.dictionary.is_some() && (self.small_bytes >= BATCH_BYTES || self.small.len() >= BATCH_CHUNKS) {
                self.send_small()?;
            }
        } else {
            self.large.push(chunk);
            self.large_bytes += bytes;
            if self.large_bytes >= BATCH_BYTES || self.large.len() >= BATCH_CHUNKS {
                self.send_large()?;
            }
        }
        self.take_reports(writer, false)
    }

    /// Trains a dictionary from the small chunks that wait; if there is nothing to gain, no further attempt is made in this run.
    fn train(&mut self, writer: &mut CatalogWriter) -> Result<(), SnapshotError> {
        let samples: Vec<Vec<u8>> = self.small.iter().map(|chunk| chunk.plain.clone()).collect();
        match train(&samples, DICTIONARY_MAX_BYTES, self.options.level) {
            Some(bytes) => {
                let id = match self.dictionaries.all().last() {
                    Some(last) => DictionaryId::new(last.id().get() + 1)?,
                    None => DictionaryId::FIRST,
                };
                let dictionary = Arc::new(Dictionary::new(id, bytes));
                self.dictionaries.insert(Arc::clone(&dictionary))?;
                writer.add_dictionary(id, dictionary.bytes());
                // The packs alone must do to read every chunk.
                self.to_packer(ToPacker::Dictionary(Arc::clone(&dictionary)))?;
                self.dictionary = Some(dictionary);
            }
            None => {
                self.options.dictionary = false;
                self.send_small()?;
            }
        }
        Ok(())
    }

    fn send_small(&mut self) -> Result<(), SnapshotError> {
        self.small_bytes = 0;
        let mut rest = std::mem::take(&mut self.small);
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(BATCH_CHUNKS));
            let chunks = std::mem::replace(&mut rest, tail);
            let dictionary = self.dictionary.clone();
            self.send(Work::Compress(Batch { chunks, dictionary }))?;
        }
        Ok(())
    }

    fn send_arrived(&mut self) -> Result<(), SnapshotError> {
        self.arrived_bytes = 0;
        let chunks = std::mem::take(&mut self.arrived);
        if chunks.is_empty() { Ok(()) } else { self.send(Work::Verify(chunks)) }
    }

    fn send_large(&mut self) -> Result<(), SnapshotError> {
        self.large_bytes = 0;
        let chunks = std::mem::take(&mut self.large);
        if chunks.is_empty() { Ok(()) } else { self.send(Work::Compress(Batch { chunks, dictionary: None })) }
    }

    fn send(&mut self, work: Work) -> Result<(), SnapshotError> {
        self.under_way += 1;
        let sent = self.batches.as_ref().is_some_and(|batches| batches.send(work).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    fn to_packer(&self, message: ToPacker) -> Result<(), SnapshotError> {
        let sent = self.packer.as_ref().is_some_and(|packer| packer.send(message).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    /// Returns why the threads ended.
    fn failure(&self) -> SnapshotError {
        while let Ok(report) = self.reports.try_recv() {
            if let FromUploader::Failed(error) = report {
                return error;
            }
        }
        SnapshotError::ChunkWriterGone
    }

    /// Notes where chunks lie; with `until_flushed` waits until everything is in packs.
    fn take_reports(&mut self, writer: &mut CatalogWriter, until_flushed: bool) -> Result<(), SnapshotError> {
        loop {
            let report = if until_flushed {
                self.reports.recv().map_err(|_| SnapshotError::ChunkWriterGone)?
            } else {
                match self.reports.try_recv() {
                    Ok(report) => report,
                    Err(_) => return Ok(()),
                }
            };
            match report {
                FromUploader::Pack { id, bytes, chunks } => {
                    let count = chunks.len() as u64;
                    writer.add_pack(PackRow { id, bytes, chunks: count, format: PackFormat::V2 }, &chunks)?;
                }
                FromUploader::Flushed => return Ok(()),
                FromUploader::Failed(error) => return Err(error),
            }
        }
    }

    /// Stores everything that was handed in; it is durable when this returns, and the writer knows where it lies.
    ///
    /// # Errors
    /// Fails when storing failed; nothing may be committed then.
    pub fn flush(&mut self, writer: &mut CatalogWriter) -> Result<(), SnapshotError> {
        if self.dictionary.is_none() && self.options.dictionary && !self.small.is_empty() {
            self.train_at_end(writer)?;
        }
        self.send_small()?;
        self.send_large()?;
        self.send_arrived()?;
        while self.finished.load(Ordering::Acquire) < self.under_way {
            self.take_reports(writer, false)?;
            if self.threads.iter().any(JoinHandle::is_finished) {
                return Err(self.failure());
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        self.to_packer(ToPacker::Flush)?;
        self.take_reports(writer, true)
    }

    /// A small store gets a dictionary too if its few samples gain by it; a later run may still train one otherwise.
    fn train_at_end(&mut self, writer: &mut CatalogWriter) -> Result<(), SnapshotError> {
        let wanted = self.options.dictionary;
        self.train(writer)?;
        self.options.dictionary = wanted;
        Ok(())
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        self.batches = None;
        self.packer = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A thread that compresses chunks, or verifies those that came compressed.
struct Worker {
    level: i32,
    dictionaries: Arc<DictionarySet>,
    /// Kept with the number of its dictionary, for setting it up costs more than a chunk.
    compressor: Option<(Option<DictionaryId>, Compressor)>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Work>, packer: &Sender<ToPacker>, finished: &AtomicU64) {
        let mut decompressor = None;
        while let Ok(work) = queue.recv() {
            let done = match work {
                Work::Compress(batch) => self.compress(batch),
                Work::Verify(chunks) => verify(&mut decompressor, &self.dictionaries, chunks),
            };
            let message = done.map_or_else(ToPacker::Failed, ToPacker::Stored);
            if packer.send(message).is_err() {
                return;
            }
            finished.fetch_add(1, Ordering::Release);
        }
    }

    fn compress(&mut self, batch: Batch) -> Result<Vec<StoredChunk>, SnapshotError> {
        let wanted = batch.dictionary.as_ref().map(|dictionary| dictionary.id());
        // A compressor with a dictionary serves large chunks as well.
        let fits = self.compressor.as_ref().is_some_and(|(id, _)| wanted.is_none() || *id == wanted);
        if !fits {
            self.compressor = Some((wanted, Compressor::new(self.level, batch.dictionary.clone())?));
        }
        let Some((_, compressor)) = &mut self.compressor else { return Ok(Vec::new()) };
        let stored = batch.chunks.into_iter().map(|chunk| {
            let stored = compressor.compress(&chunk.plain)?;
            let codec = stored.codec;
            let stored = stored.bytes.to_vec();
            let plain_length = chunk.plain.len() as u32;
            Ok(StoredChunk { number: chunk.number, hash: chunk.hash, plain_length, codec, stored })
        });
        stored.collect()
    }
}

fn codec_of(chunk: &ArrivedChunk) -> Result<Codec, SnapshotError> {
    let ArrivedChunk { codec, dictionary_id: dictionary, .. } = *chunk;
    Codec::from_numbers(codec, dictionary)
        .ok_or(SnapshotError::WrongChunk(ChunkFault::UnknownCodec { codec, dictionary }))
}

/// Returns the plain bytes of a chunk that came from another host, if they are what its hash says.
fn verified(
    decompressor: &mut Decompressor,
    dictionaries: &DictionarySet,
    codec: Codec,
    chunk: &ArrivedChunk,
) -> Result<Vec<u8>, SnapshotError> {
    let plain = decompressor
        .decompress(codec, dictionaries, &chunk.stored, chunk.plain_length)
        .map_err(|error| SnapshotError::WrongChunk(ChunkFault::Decompress(error)))?;
    if ChunkHash::of(&plain) == chunk.hash { Ok(plain) } else { Err(SnapshotError::WrongChunk(ChunkFault::Hash)) }
}

fn verify(
    decompressor: &mut Option<Decompressor>,
    dictionaries: &DictionarySet,
    chunks: Vec<ArrivedChunk>,
) -> Result<Vec<StoredChunk>, SnapshotError> {
    if decompressor.is_none() {
        *decompressor = Some(Decompressor::new()?);
    }
    let Some(decompressor) = decompressor else { return Ok(Vec::new()) };
    let verified = chunks.into_iter().map(|chunk| {
        let codec = codec_of(&chunk)?;
        verified(decompressor, dictionaries, codec, &chunk)?;
        let ArrivedChunk { number, hash, plain_length, stored, .. } = chunk;
        Ok(StoredChunk { number, hash, plain_length, codec, stored })
    });
    verified.collect()
}

/// Gathers stored chunks into packs.
struct Packer {
    /// The pack being filled; none before its first entry, since its id is taken then.
    builder: Option<PackBuilder>,
    epoch: u32,
    chunks: Vec<PackedChunk>,
    puts: Sender<ToUploader>,
}

enum ToUploader {
    Pack(FinishedPack, Vec<PackedChunk>),
    Flush,
    Failed(SnapshotError),
}

/// The thread that takes packs ended; it has told why.
struct UploaderGone;

impl Packer {
    fn run(&mut self, queue: &Receiver<ToPacker>) {
        while let Ok(message) = queue.recv() {
            let taken = match self.take(message) {
                Ok(taken) => taken,
                Err(error) => {
                    self.puts.send(ToUploader::Failed(error)).map_err(|_| UploaderGone).and(Err(UploaderGone))
                }
            };
            if taken.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, message: ToPacker) -> Result<Result<(), UploaderGone>, SnapshotError> {
        match message {
            ToPacker::Failed(error) => return Err(error),
            ToPacker::Dictionary(dictionary) => {
                self.builder()?.push_dictionary(&dictionary)?;
            }
            ToPacker::Stored(chunks) => {
                for chunk in chunks {
                    if let Err(gone) = self.push(&chunk)? {
                        return Ok(Err(gone));
                    }
                }
            }
            ToPacker::Flush => {
                let sent = self.finish_pack();
                return Ok(sent.and_then(|()| self.puts.send(ToUploader::Flush).map_err(|_| UploaderGone)));
            }
        }
        Ok(Ok(()))
    }

    fn push(&mut self, chunk: &StoredChunk) -> Result<Result<(), UploaderGone>, SnapshotError> {
        let StoredChunk { number, hash, plain_length, codec, stored } = chunk;
        let offset = self.builder()?.push(*hash, *plain_length, *codec, stored)?;
        self.chunks.push(PackedChunk {
            number: *number,
            offset,
            stored_length: stored.len() as u32,
            plain_length: *plain_length,
            prefix: hash.prefix(),
        });
        let is_full = self.builder.as_ref().is_some_and(PackBuilder::is_full);
        Ok(if is_full { self.finish_pack() } else { Ok(()) })
    }

    fn builder(&mut self) -> Result<&mut PackBuilder, SnapshotError> {
        Ok(match &mut self.builder {
            Some(builder) => builder,
            none => none.insert(PackBuilder::new(PACK_TARGET_BYTES, PackId::unique(self.epoch)?)),
        })
    }

    fn finish_pack(&mut self) -> Result<(), UploaderGone> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let pack = builder.finish();
        self.puts.send(ToUploader::Pack(pack, std::mem::take(&mut self.chunks))).map_err(|_| UploaderGone)
    }
}

/// Writes packs to the backend.
struct PackUploader {
    backend: Arc<dyn Backend>,
    reporter: Sender<FromUploader>,
    counters: Arc<ChunkCounters>,
}

impl PackUploader {
    fn run(&self, queue: &Receiver<ToUploader>) {
        while let Ok(message) = queue.recv() {
            match self.take(message) {
                // Without a receiver nobody is left to tell.
                Ok(report) => drop(self.reporter.send(report)),
                Err(error) => {
                    let _ = self.reporter.send(FromUploader::Failed(error));
                    return;
                }
            }
        }
    }

    fn take(&self, message: ToUploader) -> Result<FromUploader, SnapshotError> {
        match message {
            ToUploader::Failed(error) => Err(error),
            ToUploader::Pack(pack, chunks) => {
                pack.put(self.backend.as_ref())?;
                let bytes = pack.bytes.len() as u64;
                self.counters.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(FromUploader::Pack { id: pack.id, bytes, chunks })
            }
            ToUploader::Flush => {
                self.backend.sync()?;
                Ok(FromUploader::Flushed)
            }
        }
    }
}
