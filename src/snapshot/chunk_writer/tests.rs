use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::catalog::database::CatalogDatabase;
use crate::store::MemoryBackend;
use crate::store::backend::BackendError;
use crate::store::reader::ChunkReader;

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn start(
    backend: Arc<dyn Backend>,
    dictionaries: &Arc<DictionarySet>,
) -> (tempfile::TempDir, CatalogWriter, ChunkWriter) {
    let place = tempfile::tempdir().unwrap();
    let database = Arc::new(CatalogDatabase::open_or_create(&place.path().join("catalog")).unwrap());
    let catalog = CatalogWriter::new(database, Arc::clone(&backend)).unwrap();
    let options = CompressionOptions { level: 1, dictionary: true, threads: 3 };
    let writer = ChunkWriter::start(backend, Arc::clone(dictionaries), 1, options, Arc::default()).unwrap();
    (place, catalog, writer)
}

fn store(catalog: &mut CatalogWriter, chunks: &mut ChunkWriter, plain: Vec<u8>) -> Result<ChunkId, SnapshotError> {
    let hash = ChunkHash::of(&plain);
    let (number, is_new) = catalog.intern_chunk(&hash, plain.len() as u32)?;
    assert!(is_new);
    chunks.store(catalog, number, hash, plain)?;
    Ok(number)
}

#[test]
fn after_a_flush_every_chunk_is_in_a_pack() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    let dictionaries = Arc::new(DictionarySet::new());
    let (_place, mut catalog, mut chunks) = start(Arc::clone(&backend), &dictionaries);
    let mut stored = Vec::new();
    for flush in 0..20u64 {
        // Small ones that a dictionary serves, and large ones, in batches that end at different times.
        for number in 0..flush * 30 {
            let seed = flush * 1000 + number;
            let plain = if number % 7 == 0 {
                noise(seed, 100_000)
            } else {
                format!("From: a\nSubject: {seed}\n").repeat(10 + number as usize).into_bytes()
            };
            stored.push((store(&mut catalog, &mut chunks, plain.clone()).unwrap(), plain));
        }
        chunks.flush(&mut catalog).unwrap();
        catalog.commit().unwrap();
        let reader = ChunkReader::new(Arc::clone(&backend), Arc::clone(&dictionaries));
        for (number, plain) in &stored {
            let address = catalog.reader().chunk_address(*number).unwrap();
            assert_eq!(reader.read_chunk(&address.location, address.hash_prefix).unwrap(), *plain);
        }
    }
    assert!(chunks.dictionary().is_some());
}

/// A backend whose puts wait for a gate.
struct Gated(MemoryBackend, Mutex<mpsc::Receiver<()>>);

impl Backend for Gated {
    fn put(&self, key: &str, parts: &[&[u8]]) -> Result<(), BackendError> {
        let _ = self.1.lock().unwrap().recv();
        self.0.put(key, parts)
    }

    fn sync(&self) -> Result<(), BackendError> {
        self.0.sync()
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        self.0.read_into(key, offset, buffer)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BackendError> {
        self.0.size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        self.0.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), BackendError> {
        self.0.delete(key)
    }
}

#[test]
fn why_storing_ended_is_said_though_a_pack_is_still_being_written() {
    let (gate, closed) = mpsc::channel();
    let backend = Arc::new(Gated(MemoryBackend::default(), Mutex::new(closed)));
    let (_place, mut catalog, mut chunks) = start(backend, &Arc::default());
    // More than a pack, so that one waits at the gate.
    for seed in 0..35 {
        store(&mut catalog, &mut chunks, noise(seed, 1 << 20)).unwrap();
    }
    let opened = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(gate);
    });
    let ended = (0..).find_map(|number| {
        let (hash, stored) = (ChunkHash::of(&[number as u8]), noise(number, 600 << 10));
        let number = ChunkId(1000 + number);
        let wrong = ArrivedChunk { number, hash, plain_length: 1 << 20, codec: Codec::Zstd, stored };
        chunks.arrive(&mut catalog, wrong).err()
    });
    assert!(matches!(ended, Some(SnapshotError::WrongChunk { .. })), "{ended:?}");
    opened.join().unwrap();
}
