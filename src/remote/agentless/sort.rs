//! Sorts more records than memory holds: sorted runs in a temporary file, merged at the end.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spool::temporary;

/// Records that are held in memory, in bytes, with 16 more for each.
pub(super) const MEMORY_BYTES: usize = 32 << 20;
/// Bytes read at a time from each run: 2,000 runs make 128 MiB.
const READ_BYTES: usize = 64 << 10;
/// Most bytes of all records. Ten times what the largest known tree has; a hostile host could go on until the disk is full.
const TOTAL_MAX_BYTES: u64 = 64 << 30;

/// A key and a value.
pub(super) type Record = (Vec<u8>, Vec<u8>);

#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    key_length: u32,
    value_length: u32,
}

impl Place {
    fn key(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start..][..self.key_length as usize]
    }

    fn value(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start + self.key_length as usize..][..self.value_length as usize]
    }
}

/// Takes records in any order.
pub(super) struct Sorter {
    directory: PathBuf,
    memory: usize,
    bytes: Vec<u8>,
    places: Vec<Place>,
    file: Option<File>,
    /// Where each run ends in the file.
    ends: Vec<u64>,
    total: u64,
}

impl Sorter {
    pub(super) fn new(directory: &Path, memory: usize) -> Sorter {
        let directory = directory.to_owned();
        Sorter { directory, memory, bytes: Vec::new(), places: Vec::new(), file: None, ends: Vec::new(), total: 0 }
    }

    /// Adds a record; `false` if there are more than are taken.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        let length = key.len() + value.len();
        self.total += length as u64 + 8;
        if self.total > TOTAL_MAX_BYTES {
            return Ok(false);
        }
        if self.bytes.len() + self.places.len() * size_of::<Place>() + length > self.memory {
            self.spill()?;
        }
        // Far below 4 GiB: the longest record is bounded by who reads it.
        let (key_length, value_length) = (key.len() as u32, value.len() as u32);
        self.places.push(Place { start: self.bytes.len(), key_length, value_length });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        Ok(true)
    }

    fn sort(&mut self) {
        let Sorter { places, bytes, .. } = self;
        places.sort_unstable_by(|one, other| one.key(bytes).cmp(other.key(bytes)));
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        self.sort();
        let file = match self.file.take() {
            Some(file) => file,
            None => temporary(&self.directory)?,
        };
        let mut end = self.ends.last().copied().unwrap_or(0);
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        for place in &self.places {
            out.write_all(&place.key_length.to_le_bytes())?;
            out.write_all(&place.value_length.to_le_bytes())?;
            out.write_all(place.key(&self.bytes))?;
            out.write_all(place.value(&self.bytes))?;
            end += 8 + u64::from(place.key_length) + u64::from(place.value_length);
        }
        out.flush()?;
        drop(out);
        self.file = Some(file);
        self.ends.push(end);
        self.places.clear();
        self.bytes.clear();
        Ok(())
    }

    /// Ends the input.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        if self.file.is_none() {
            self.sort();
            return Ok(Sorted::Memory { places: self.places.into_iter(), bytes: self.bytes });
        }
        self.spill()?;
        let mut heap = BinaryHeap::new();
        if let Some(file) = self.file.map(Arc::new) {
            let mut at = 0;
            for end in self.ends {
                let span = Span { file: Arc::clone(&file), at, end };
                let mut run = Run { input: BufReader::with_capacity(READ_BYTES, span), head: Record::default() };
                if run.advance()? {
                    heap.push(run);
                }
                at = end;
            }
        }
        Ok(Sorted::Merged(heap))
    }
}

/// A part of a file.
struct Span {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A sorted run, with its next record.
pub(super) struct Run {
    input: BufReader<Span>,
    head: Record,
}

impl Run {
    fn advance(&mut self) -> io::Result<bool> {
        let mut lengths = [0; 8];
        let first = self.input.read(&mut lengths)?;
        if first == 0 {
            return Ok(false);
        }
        self.input.read_exact(&mut lengths[first..])?;
        let length =
            |at: usize| lengths[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        self.head.0.resize(length(0), 0);
        self.head.1.resize(length(4), 0);
        self.input.read_exact(&mut self.head.0)?;
        self.input.read_exact(&mut self.head.1)?;
        Ok(true)
    }
}

impl PartialEq for Run {
    fn eq(&self, other: &Run) -> bool {
        self.head.0 == other.head.0
    }
}

impl Eq for Run {}

impl PartialOrd for Run {
    fn partial_cmp(&self, other: &Run) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Run {
    /// The heap gives the greatest first.
    fn cmp(&self, other: &Run) -> Ordering {
        other.head.0.cmp(&self.head.0)
    }
}

/// Gives the records in the order of their keys.
pub(super) enum Sorted {
    /// All of them were in memory.
    Memory { places: std::vec::IntoIter<Place>, bytes: Vec<u8> },
    /// From runs.
    Merged(BinaryHeap<Run>),
}

impl Sorted {
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        match self {
            Sorted::Memory { places, bytes } => {
                Ok(places.next().map(|place| (place.key(bytes).to_vec(), place.value(bytes).to_vec())))
            }
            Sorted::Merged(heap) => {
                let Some(mut run) = heap.pop() else { return Ok(None) };
                let record = std::mem::take(&mut run.head);
                if run.advance()? {
                    heap.push(run);
                }
                Ok(Some(record))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_memory_gives_the_same_order() {
        let directory = tempfile::tempdir().unwrap();
        let records: Vec<Record> = (0..2000u32)
            .map(|number| {
                (blake3::hash(&number.to_le_bytes()).as_bytes()[..8].to_vec(), number.to_string().into_bytes())
            })
            .collect();
        let mut expected = records.clone();
        expected.sort();
        for memory in [MEMORY_BYTES, 10_000, 100, 0] {
            let mut sorter = Sorter::new(directory.path(), memory);
            for (key, value) in &records {
                assert!(sorter.push(key, value).unwrap());
            }
            let mut sorted = sorter.finish().unwrap();
            let mut found = Vec::new();
            while let Some(record) = sorted.next().unwrap() {
                found.push(record);
            }
            assert_eq!(found, expected, "{memory}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(Sorter::new(directory.path(), 0).finish().unwrap().next().unwrap(), None);
    }
}
