//! The agent's scan: listings into blocks, offered by their hashes, sent where they are wanted.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::devices::Devices;
use super::outbox::{Closed, Outbox};
use super::waiting::Waiting;
use crate::coding::put_varint;
use crate::remote::protocol::BLOCKS_AHEAD;
use crate::remote::protocol::frame::Kind;
use crate::remote::protocol::listing::BlockWriter;
use crate::source::scan::Scan;

/// zstd level of blocks: they are transferred once, and are kept as they came.
const LEVEL: i32 = 3;

/// Sends the whole scan: the life of a thread. `wanted` brings the answers to offers.
pub(super) fn send(
    mut scan: Scan,
    devices: &Devices,
    outbox: &Outbox,
    waiting: &Waiting,
    wanted: &Receiver<Vec<bool>>,
) -> Result<(), Closed> {
    let mut sender = BlockSender { outbox, waiting, wanted, offered: VecDeque::new() };
    let mut writer = BlockWriter::default();
    while let Some(listing) = scan.next() {
        devices.note(&listing);
        writer.listing(&listing, &scan.file_systems());
        for problem in scan.problems() {
            writer.problem(&problem);
        }
        for block in writer.take() {
            sender.offer(block)?;
        }
    }
    writer.finish();
    for block in writer.take() {
        sender.offer(block)?;
    }
    while !sender.offered.is_empty() {
        sender.answer()?;
    }
    let counters = scan.counters();
    let mut end = Vec::new();
    put_varint(&mut end, counters.excluded.load(Ordering::Relaxed));
    put_varint(&mut end, counters.stats.load(Ordering::Relaxed));
    outbox.send(Kind::ScanEnds, &end)
}

struct BlockSender<'a> {
    outbox: &'a Outbox,
    waiting: &'a Waiting,
    wanted: &'a Receiver<Vec<bool>>,
    offered: VecDeque<Vec<u8>>,
}

impl BlockSender<'_> {
    fn offer(&mut self, block: Vec<u8>) -> Result<(), Closed> {
        while self.offered.len() >= BLOCKS_AHEAD {
            self.answer()?;
        }
        let mut offer = blake3::hash(&block).as_bytes().to_vec();
        put_varint(&mut offer, block.len() as u64);
        self.offered.push_back(block);
        self.waiting.blocks.add();
        self.outbox.send(Kind::BlocksOffered, &offer)
    }

    /// Waits for an answer, and sends what it wants.
    fn answer(&mut self) -> Result<(), Closed> {
        for wanted in self.wanted.recv().map_err(|_| Closed)? {
            let block = self.offered.pop_front().ok_or(Closed)?;
            if wanted {
                let packed = zstd::bulk::compress(&block, LEVEL).map_err(|_| Closed)?;
                self.outbox.send(Kind::Block, &packed)?;
            }
        }
        Ok(())
    }
}
