//! `zmreplica stats`: what the store holds and what it saves.

use clap::Args;
use serde::Serialize;
use zmreplica::catalog::CatalogError;

use super::error::{CliError, Exit};
use super::{Context, text};

/// Arguments of `stats`.
#[derive(Args)]
pub(crate) struct StatsArgs {}

#[derive(Default, Serialize)]
#[serde(tag = "event", rename = "stats")]
struct Stats {
    snapshots: u64,
    /// Sizes of all link groups of all snapshots, each counted once a snapshot.
    snapshot_bytes: u64,
    chunks: u64,
    /// Plain bytes of all chunks.
    chunk_bytes: u64,
    packs: u64,
    pack_bytes: u64,
    commit_files: u64,
    commit_file_bytes: u64,
    catalog_bytes: u64,
    /// Bytes of snapshots for each plain byte that is kept once.
    dedupe_ratio: Option<f64>,
    /// Plain bytes of chunks for each byte in packs.
    compression_ratio: Option<f64>,
}

pub(crate) fn run(context: &Context, _args: &StatsArgs) -> Result<Exit, CliError> {
    let replica = context.open()?;
    let catalog = replica.catalog()?;
    let mut stats = Stats::default();
    for (_, record) in catalog.snapshots()? {
        stats.snapshots += 1;
        stats.snapshot_bytes += record.totals.bytes;
    }
    catalog.for_each_chunk(|_, row| {
        stats.chunks += 1;
        stats.chunk_bytes += u64::from(row.plain_length);
        Ok(())
    })?;
    catalog.for_each_pack(|_, row| {
        stats.packs += 1;
        stats.pack_bytes += row.bytes;
        Ok(())
    })?;
    for prefix in ["commits/", "checkpoints/"] {
        for (_, bytes) in replica.backend().list(prefix).map_err(CatalogError::from)? {
            stats.commit_files += 1;
            stats.commit_file_bytes += bytes;
        }
    }
    stats.catalog_bytes = std::fs::metadata(replica.database().path()).map_or(0, |metadata| metadata.len());
    let ratio = |whole: u64, part: u64| (part > 0).then(|| (whole as f64 / part as f64 * 1000.0).round() / 1000.0);
    stats.dedupe_ratio = ratio(stats.snapshot_bytes, stats.chunk_bytes);
    stats.compression_ratio = ratio(stats.chunk_bytes, stats.pack_bytes);
    if context.output.json() {
        context.output.event(&stats)?;
        return Ok(Exit::Done);
    }
    for (name, value) in [
        ("Snapshots", format!("{}, {} in all", text::count(stats.snapshots), text::bytes(stats.snapshot_bytes))),
        ("Chunks", format!("{}, {} plain", text::count(stats.chunks), text::bytes(stats.chunk_bytes))),
        ("Packs", format!("{}, {}", text::count(stats.packs), text::bytes(stats.pack_bytes))),
        ("Commit files", format!("{}, {}", text::count(stats.commit_files), text::bytes(stats.commit_file_bytes))),
        ("Catalogue", text::bytes(stats.catalog_bytes)),
        (
            "Ratio",
            format!(
                "deduplication {}, compression {}, together {}",
                text::ratio(stats.snapshot_bytes, stats.chunk_bytes),
                text::ratio(stats.chunk_bytes, stats.pack_bytes),
                text::ratio(stats.snapshot_bytes, stats.pack_bytes),
            ),
        ),
    ] {
        context.output.line(&format!("{name:<13} {value}"))?;
    }
    Ok(Exit::Done)
}
