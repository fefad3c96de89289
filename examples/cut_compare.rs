//! Compares ways to cut messages: what would a store keep of a directory of mail?
//!
//! `cargo run --release --example cut_compare DIR` reads each message below DIR once (files named `.msg`, `.dat`
//! or `.eml`; hard links count once), cuts it in several ways, and prints for each the distinct chunks, their size
//! after zstd level 3, and the speed of the cut alone.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastcdc::v2020::FastCDC;
use zmreplica::model::{ChunkHash, Kind, Stat, Timestamp};
use zmreplica::source::chunker::{Chunker, ChunkerError, SegmentSink, SinkClosed};

/// Bytes that a chunk costs beside its content: its rows in the catalogue, its place in a pack.
const CHUNK_OVERHEAD_BYTES: u64 = 100;

/// Messages up to this size stay whole where only larger ones are cut by content.
const SMALL_MESSAGE_MAX: usize = 16 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(directory) = std::env::args_os().nth(1) else { return Err("Usage: cut_compare DIR".into()) };
    let mut messages = Vec::new();
    find_messages(Path::new(&directory), &mut HashSet::new(), &mut messages)?;
    let mut out = io::stdout().lock();
    let size: u64 = messages.iter().map(|message| message.stat.size).sum();
    writeln!(out, "{} messages, {:.1} MB", messages.len(), mega(size))?;
    writeln!(
        out,
        "{:<26}{:>10}{:>12}{:>12}{:>14}{:>10}",
        "", "chunks", "plain MB", "zstd 3 MB", "with rows MB", "GB/s"
    )?;

    let mut tally = Tally::default();
    for message in &messages {
        tally.add(&fs::read(&message.path)?)?;
    }
    tally.print(&mut out, "whole messages", size)?;

    let mut tally = Tally::default();
    let mut chunker = Chunker::new();
    for message in &messages {
        let mut sink = Collector::default();
        let file = File::open(&message.path)?;
        let start = Instant::now();
        chunker.split(&file, &message.stat, &mut sink).map_err(describe)?;
        tally.elapsed += start.elapsed();
        tally.literal_bytes += sink.literal_bytes;
        for chunk in sink.chunks {
            tally.add(&chunk)?;
        }
    }
    tally.print(&mut out, "at MIME parts", size)?;

    for average in [8 << 10, 16 << 10, 32 << 10] {
        let mut tally = Tally::default();
        for message in &messages {
            let bytes = fs::read(&message.path)?;
            if bytes.len() <= SMALL_MESSAGE_MAX {
                tally.add(&bytes)?;
                continue;
            }
            let start = Instant::now();
            let cuts: Vec<_> = FastCDC::new(&bytes, average / 4, average, average * 4).collect();
            tally.elapsed += start.elapsed();
            for cut in cuts {
                tally.add(&bytes[cut.offset..cut.offset + cut.length])?;
            }
        }
        tally.print(&mut out, &format!("by content, average {} KiB", average >> 10), size)?;
    }
    Ok(())
}

fn describe(error: ChunkerError) -> io::Error {
    io::Error::other(error.to_string())
}

struct Message {
    path: PathBuf,
    stat: Stat,
}

fn find_messages(directory: &Path, seen: &mut HashSet<u64>, found: &mut Vec<Message>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            find_messages(&entry.path(), seen, found)?;
        } else if meta.is_file() && meta.size() > 0 && is_message(&entry.path()) && seen.insert(meta.ino()) {
            found.push(Message { path: entry.path(), stat: stat_of(&meta) });
        }
    }
    Ok(())
}

fn is_message(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.contains(".msg") || name.ends_with(".dat") || name.ends_with(".eml")
}

fn stat_of(meta: &fs::Metadata) -> Stat {
    Stat {
        kind: Kind::File,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        nlink: 1,
        size: meta.size(),
        allocated_bytes: meta.blocks() * 512,
        rdev: 0,
        ino: meta.ino(),
        dev: meta.dev(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

#[derive(Default)]
struct Collector {
    chunks: Vec<Vec<u8>>,
    literal_bytes: u64,
}

impl SegmentSink for Collector {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        self.literal_bytes += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, _length: u64) -> Result<(), SinkClosed> {
        Ok(())
    }

    fn chunk(&mut self, plain: Vec<u8>) -> Result<(), SinkClosed> {
        self.chunks.push(plain);
        Ok(())
    }
}

#[derive(Default)]
struct Tally {
    seen: HashSet<ChunkHash>,
    plain_bytes: u64,
    stored_bytes: u64,
    literal_bytes: u64,
    elapsed: Duration,
}

impl Tally {
    fn add(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self.seen.insert(ChunkHash::of(chunk)) {
            self.plain_bytes += chunk.len() as u64;
            self.stored_bytes += zstd::bulk::compress(chunk, 3)?.len() as u64;
        }
        Ok(())
    }

    fn print(&self, out: &mut impl Write, name: &str, size: u64) -> io::Result<()> {
        let count = self.seen.len() as u64;
        let speed = match self.elapsed.as_secs_f64() {
            0.0 => "-".to_owned(),
            seconds => format!("{:.2}", size as f64 / seconds / 1e9),
        };
        let stored = self.stored_bytes + self.literal_bytes;
        writeln!(
            out,
            "{name:<26}{count:>10}{:>12.1}{:>12.1}{:>14.1}{speed:>10}",
            mega(self.plain_bytes + self.literal_bytes),
            mega(stored),
            mega(stored + count * CHUNK_OVERHEAD_BYTES),
        )
    }
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
