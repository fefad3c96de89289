//! From new chunks to packs.
//!
//! The run's own thread numbers chunks and hands those that the store lacks to a pool of compressing threads (`compress`), in batches; what they make
//! goes into packs and to the backend (`pack_uploader`). Memory: the batches under way (at most `BATCHES_AHEAD` waiting for each thread, some 1.5 MB each)
//! and three packs.
//!
//! If the store has no dictionary yet, small chunks wait until there are enough of them to train one (`dictionary_training`).

mod compress;
mod dictionary_training;
mod pack_uploader;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::SnapshotError;
use crate::catalog::chunk::PackRow;
use crate::catalog::writer::CatalogWriter;
use crate::ids::ChunkId;
use crate::model::{ChunkHash, Codec};
use crate::source::chunk_intake::ArrivedChunk;
use crate::store::backend::Backend;
use crate::store::codec::{DICTIONARY_CHUNK_MAX_BYTES, Decompressor, Dictionary, DictionarySet};
use crate::store::pack::PackFormat;
use compress::{NewChunk, Work, Worker, verified};
use dictionary_training::TRAINING_BYTES;
use pack_uploader::{PackUploader, Packer, Report, ToPacker};

/// A batch is handed over when it holds this many plain bytes ...
const BATCH_BYTES: usize = 512 << 10;
/// ... or this many chunks.
const BATCH_CHUNKS: usize = 256;
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

/// Chunks that wait until they are a batch.
struct Waiting<C> {
    chunks: Vec<C>,
    bytes: usize,
}

impl<C> Waiting<C> {
    const NONE: Waiting<C> = Waiting { chunks: Vec::new(), bytes: 0 };

    fn push(&mut self, chunk: C, bytes: usize) {
        self.chunks.push(chunk);
        self.bytes += bytes;
    }

    fn is_batch(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.chunks.len() >= BATCH_CHUNKS
    }

    fn take(&mut self) -> Vec<C> {
        std::mem::replace(self, Waiting::NONE).chunks
    }
}

/// Stores new chunks.
pub struct ChunkWriter {
    options: CompressionOptions,
    dictionary: Option<Arc<Dictionary>>,
    dictionaries: Arc<DictionarySet>,
    large: Waiting<NewChunk>,
    small: Waiting<NewChunk>,
    arrived: Waiting<ArrivedChunk>,
    decompressor: Decompressor,
    /// Batches handed to the compressing threads.
    sent: u64,
    batches: Option<Sender<Work>>,
    packer: Option<Sender<ToPacker>>,
    reports: Receiver<Report>,
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
        let mut threads = Vec::new();
        let spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name).spawn(work).map_err(SnapshotError::Thread)
        };
        for number in 0..thread_count {
            let (queue, packer) = (queue.clone(), packer.clone());
            let worker = Worker::new(options.level, Arc::clone(&dictionaries))?;
            threads.push(spawn(format!("compress-{number}"), Box::new(move || worker.run(&queue, &packer)))?);
        }
        // One waits while one is written: more would only take memory.
        let (uploads, packs) = bounded(1);
        let uploader = PackUploader { backend, reports: reporter };
        threads.push(spawn("upload".to_owned(), Box::new(move || uploader.run(&packs)))?);
        let filling = Packer::new(epoch, uploads);
        threads.push(spawn("pack".to_owned(), Box::new(move || filling.run(&stored)))?);
        Ok(ChunkWriter {
            options,
            dictionary,
            dictionaries,
            large: Waiting::NONE,
            small: Waiting::NONE,
            arrived: Waiting::NONE,
            decompressor: Decompressor::new()?,
            sent: 0,
            batches: Some(batches),
            packer: Some(packer),
            reports,
            threads,
            counters,
        })
    }

    /// Stores a chunk that has its number and whose bytes are what its hash says.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read or storing failed.
    pub fn store(
        &mut self,
        catalog: &mut CatalogWriter,
        number: ChunkId,
        hash: ChunkHash,
        plain: Vec<u8>,
    ) -> Result<(), SnapshotError> {
        let bytes = plain.len();
        self.count_new(bytes as u64);
        let chunk = NewChunk { number, hash, plain };
        if self.is_small(bytes) {
            self.small.push(chunk, bytes);
            if self.dictionary.is_none() && self.small.bytes >= TRAINING_BYTES && !self.train(catalog)? {
                // Nothing to gain: no further attempt is made in this run.
                self.options.dictionary = false;
                self.send_small()?;
            }
            if self.dictionary.is_some() && self.small.is_batch() {
                self.send_small()?;
            }
        } else {
            self.large.push(chunk, bytes);
            if self.large.is_batch() {
                self.send_large()?;
            }
        }
        self.take_reports(catalog)
    }

    /// Stores a chunk of another host that has its number. Its bytes are verified here or, before they get into a pack, by a thread.
    ///
    /// # Errors
    /// [`SnapshotError::WrongChunk`], now or at a later call, if its bytes are not what their hash says.
    pub fn arrive(&mut self, catalog: &mut CatalogWriter, chunk: ArrivedChunk) -> Result<(), SnapshotError> {
        // A small chunk may gain by a dictionary, or be a sample for one.
        let as_it_came = match chunk.codec {
            Codec::ZstdDictionary(_) => true,
            Codec::Zstd => !self.is_small(chunk.plain_length as usize),
            Codec::Plain => false,
        };
        if !as_it_came {
            let plain = verified(&mut self.decompressor, &self.dictionaries, &chunk)?;
            return self.store(catalog, chunk.number, chunk.hash, plain);
        }
        self.count_new(u64::from(chunk.plain_length));
        let bytes = chunk.stored.len();
        self.arrived.push(chunk, bytes);
        if self.arrived.is_batch() {
            self.send_arrived()?;
        }
        self.take_reports(catalog)
    }

    /// Returns the dictionary that small chunks are compressed with, if there is one.
    pub fn dictionary(&self) -> Option<&Arc<Dictionary>> {
        self.dictionary.as_ref()
    }

    /// Stores everything that was handed in; it is durable when this returns, and the writer knows where it lies.
    ///
    /// # Errors
    /// Fails when storing failed; nothing may be committed then.
    pub fn flush(&mut self, catalog: &mut CatalogWriter) -> Result<(), SnapshotError> {
        if self.dictionary.is_none() && self.options.dictionary && !self.small.chunks.is_empty() {
            // A small store gets a dictionary too if its few samples gain by it. If not, later chunks of this run may still train one.
            self.train(catalog)?;
        }
        self.send_small()?;
        self.send_large()?;
        self.send_arrived()?;
        self.to_packer(ToPacker::Flush { batches: self.sent })?;
        loop {
            let report = self.reports.recv().map_err(|_| SnapshotError::ChunkWriterGone)?;
            if self.take_report(catalog, report)? {
                return Ok(());
            }
        }
    }

    fn is_small(&self, bytes: usize) -> bool {
        bytes <= DICTIONARY_CHUNK_MAX_BYTES && self.options.dictionary
    }

    fn count_new(&self, bytes: u64) {
        self.counters.new_chunks.fetch_add(1, Ordering::Relaxed);
        self.counters.new_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Trains a dictionary from the small chunks that wait. Returns whether there is one now.
    fn train(&mut self, catalog: &mut CatalogWriter) -> Result<bool, SnapshotError> {
        let samples: Vec<&[u8]> = self.small.chunks.iter().map(|chunk| chunk.plain.as_slice()).collect();
        let Some(dictionary) = dictionary_training::train(&samples, &self.dictionaries, self.options.level) else {
            return Ok(false);
        };
        self.dictionaries.insert(Arc::clone(&dictionary))?;
        catalog.add_dictionary(dictionary.id(), dictionary.bytes());
        self.to_packer(ToPacker::Dictionary(Arc::clone(&dictionary)))?;
        self.dictionary = Some(dictionary);
        Ok(true)
    }

    fn send_small(&mut self) -> Result<(), SnapshotError> {
        let mut rest = self.small.take();
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(BATCH_CHUNKS));
            let chunks = std::mem::replace(&mut rest, tail);
            self.send(Work::Compress { chunks, dictionary: self.dictionary.clone() })?;
        }
        Ok(())
    }

    fn send_large(&mut self) -> Result<(), SnapshotError> {
        let chunks = self.large.take();
        if chunks.is_empty() { Ok(()) } else { self.send(Work::Compress { chunks, dictionary: None }) }
    }

    fn send_arrived(&mut self) -> Result<(), SnapshotError> {
        let chunks = self.arrived.take();
        if chunks.is_empty() { Ok(()) } else { self.send(Work::Verify(chunks)) }
    }

    fn send(&mut self, work: Work) -> Result<(), SnapshotError> {
        self.sent += 1;
        let sent = self.batches.as_ref().is_some_and(|batches| batches.send(work).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    fn to_packer(&self, message: ToPacker) -> Result<(), SnapshotError> {
        let sent = self.packer.as_ref().is_some_and(|packer| packer.send(message).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }

    /// Returns why the threads ended. The last of them reports it, so that it may still be on its way.
    fn failure(&self) -> SnapshotError {
        let failed = self.reports.iter().find_map(|report| match report {
            Report::Failed(error) => Some(error),
            _ => None,
        });
        failed.unwrap_or(SnapshotError::ChunkWriterGone)
    }

    /// Notes where chunks lie, as far as it is known.
    fn take_reports(&mut self, catalog: &mut CatalogWriter) -> Result<(), SnapshotError> {
        while let Ok(report) = self.reports.try_recv() {
            self.take_report(catalog, report)?;
        }
        Ok(())
    }

    /// Returns whether it is the end of a flush.
    fn take_report(&mut self, catalog: &mut CatalogWriter, report: Report) -> Result<bool, SnapshotError> {
        match report {
            Report::Pack { id, bytes, chunks } => {
                self.counters.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
                let count = chunks.len() as u64;
                catalog.add_pack(PackRow { id, bytes, chunks: count, format: PackFormat::V2 }, &chunks)?;
                Ok(false)
            }
            Report::Flushed => Ok(true),
            Report::Failed(error) => Err(error),
        }
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
