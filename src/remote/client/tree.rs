//! The tree of another host, as a run sees it: frames of an agent turned into listings and answers, everything checked on the way.
//!
//! Chunks: an offer is numbered as it comes and answered at the next chance; the event goes to the run only when the chunk has arrived, so what the run has
//! finished never waits for bytes, and a lost connection costs what was on its way and no more.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{AnswerCheck, Expected, breach};
use super::blocks::BlockCache;
use super::link::{Link, Queue, Stop, UNDER_WAY_MAX_BYTES, WireCounters, held_bytes};
use crate::cause::NoThread;
use crate::coding::{DecodeError, Decoder, put_varint};
use crate::ids::{ChunkId, DictionaryId};
use crate::model::{ChunkHash, Stat};
use crate::remote::protocol::fields::StatCoder;
use crate::remote::protocol::frame::{Frame, Kind as FrameKind, unpack};
use crate::remote::protocol::listing::{BLOCK_LIMIT_BYTES, ListingReader};
use crate::remote::protocol::messages::{
    ChunkFrame, Event, decode_owner_names, decode_root_stat, encode_bits, encode_owners, encode_requests, event,
    request_bytes,
};
use crate::remote::protocol::{BLOCKS_AHEAD, EVENTS_AHEAD_BYTES, OWNERS_ASKED, REQUESTS_AHEAD_BYTES};
use crate::remote::transport::Connection;
use crate::source::chunk_intake::{AnswerSink, ArrivedChunk, ChunkIntake, NumberedChunk};
use crate::source::read::{CutChunk, ReadEvent, ReadOutcome, ReadRequest};
use crate::source::scan::Listing;
use crate::source::tree::{OwnerNames, ScanEnd, SourceError, SourceTree};

/// Blocks that may wait to be decoded.
const BLOCKS_WAITING: usize = 2 * BLOCKS_AHEAD;
/// Bytes of those that were at hand; what a frame offers comes on top, 64 MiB at most.
const BLOCKS_WAITING_BYTES: usize = 32 << 20;
/// Most bytes of events that were decoded and wait for their turn, as they count in memory. An agent that keeps to its window sends offers of 34 bytes, and
/// holes between them, and extended attributes of one inode: less than half.
const EVENTS_HELD_MAX_BYTES: usize = 64 << 20;
/// Most owners of a tree whose names are requested, of users and of groups each; the others keep their numbers.
const OWNERS_MAX: usize = 100_000;
/// Requests gathered for one frame.
const REQUESTS_GATHERED: usize = 128;
/// Bytes of paths gathered for one frame.
const REQUEST_BYTES: usize = 256 << 10;
/// Tell the agent what was taken when it is so much.
const TAKEN_STEP_BYTES: u64 = EVENTS_AHEAD_BYTES as u64 / 8;
/// Most inodes of one tree. A run keeps 48 bytes for each, and a hostile agent could go on forever.
const INODES_MAX: u64 = 250_000_000;

fn broken(error: DecodeError) -> SourceError {
    SourceError::Protocol { reason: error.into() }
}

/// An offered block.
struct PendingBlock {
    hash: [u8; 32],
    /// Plain and kept bytes, if the last scan had it.
    known: Option<(Vec<u8>, Vec<u8>)>,
}

/// An event on its way to the run.
struct Slot {
    event: ReadEvent<NumberedChunk>,
    /// The chunk that it waits for.
    chunk: Option<ChunkId>,
    /// Bytes of its frame that are taken with it.
    frame_bytes: u64,
    /// Bytes that it takes in memory.
    held: usize,
}

/// Returns the bytes that an event takes in memory while it waits.
fn event_bytes(event: &ReadEvent<NumberedChunk>) -> usize {
    let beside = match event {
        ReadEvent::Literal(bytes) => bytes.capacity() + 16,
        ReadEvent::Done(outcome) => {
            let xattrs = outcome.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 96);
            size_of::<ReadOutcome>() + 16 + xattrs.sum::<usize>()
        }
        _ => 0,
    };
    size_of::<Slot>() + beside
}

/// A chunk that was wanted.
struct Wanted {
    number: ChunkId,
    hash: ChunkHash,
    length: u32,
}

/// A tree on another host.
pub struct RemoteTree {
    link: Link,
    cache: BlockCache,
    reader: ListingReader,
    pending: VecDeque<PendingBlock>,
    /// Bytes of the blocks at hand in `pending`.
    pending_bytes: usize,
    listings: VecDeque<Listing>,
    inodes: u64,
    end: Option<ScanEnd>,
    /// Requests that were not sent yet.
    gathered: VecDeque<ReadRequest>,
    /// Bytes that the requests sent take at the agent.
    requested_bytes: usize,
    expected: VecDeque<Expected>,
    check: AnswerCheck,
    slots: VecDeque<Slot>,
    /// Bytes of those in memory.
    slots_bytes: usize,
    /// Frames of events that came while only chunks were waited for.
    postponed: VecDeque<Frame>,
    /// Bytes of those in memory.
    postponed_bytes: usize,
    next_offer: u64,
    answers: Vec<bool>,
    wanted: HashMap<u64, Wanted>,
    /// Numbers of the chunks in `wanted`.
    missing: HashSet<ChunkId>,
    taken: u64,
    /// The dictionary that the agent has.
    dictionary: Option<DictionaryId>,
}

impl RemoteTree {
    /// Takes a connection on which the agent has started, the file that keeps listing blocks from night to night, and how long the agent may say nothing but
    /// that it is alive.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        connection: Connection,
        counters: Arc<WireCounters>,
        block_cache: &Path,
        idle_timeout: Duration,
    ) -> Result<RemoteTree, SourceError> {
        let link = Link::start(connection, counters, idle_timeout)
            .map_err(|error| SourceError::Lost { reason: NoThread(error).into() })?;
        Ok(RemoteTree {
            link,
            cache: BlockCache::open(block_cache),
            reader: ListingReader::default(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            listings: VecDeque::new(),
            inodes: 0,
            end: None,
            gathered: VecDeque::new(),
            requested_bytes: 0,
            expected: VecDeque::new(),
            check: AnswerCheck::default(),
            slots: VecDeque::new(),
            slots_bytes: 0,
            postponed: VecDeque::new(),
            postponed_bytes: 0,
            next_offer: 0,
            answers: Vec::new(),
            wanted: HashMap::new(),
            missing: HashSet::new(),
            taken: 0,
            dictionary: None,
        })
    }

    /// Makes calls that wait check `stop` now and then, whether the run is to end.
    pub fn stopped_by(mut self, stop: Stop) -> RemoteTree {
        self.link.stop_when(stop);
        self
    }

    // --- Listings

    /// Takes offers that are there, up to what may wait; waits for one frame if none is pending.
    fn take_offers(&mut self) -> Result<(), SourceError> {
        let mut answers = Vec::new();
        while self.pending.len() < BLOCKS_WAITING && self.pending_bytes < BLOCKS_WAITING_BYTES && self.end.is_none() {
            let frame = match self.link.ready(Queue::Offers) {
                Some(frame) => frame,
                None if self.pending.is_empty() => self.link.wait(Queue::Offers)?,
                None => break,
            };
            match frame.kind {
                FrameKind::BlocksOffered => {
                    let mut decoder = Decoder::new(&frame.payload);
                    let before = self.pending.len();
                    while !decoder.is_empty() {
                        if self.pending.len() - before >= BLOCKS_AHEAD {
                            return Err(breach("more listing blocks at once than may be offered"));
                        }
                        let hash: [u8; 32] = decoder.array().map_err(broken)?;
                        if decoder.varint().map_err(broken)? > BLOCK_LIMIT_BYTES as u64 {
                            return Err(breach("a listing block that is too long"));
                        }
                        let known = self.cache.get(&hash);
                        if let Some((plain, packed)) = &known {
                            self.pending_bytes += plain.len() + packed.len();
                            self.link.credit(plain.len());
                        }
                        answers.push(known.is_none());
                        self.pending.push_back(PendingBlock { hash, known });
                    }
                }
                FrameKind::ScanEnds => {
                    let mut decoder = Decoder::new(&frame.payload);
                    let (excluded, stats) = (decoder.varint().map_err(broken)?, decoder.varint().map_err(broken)?);
                    self.end = Some(ScanEnd { problems: Vec::new(), excluded, stats });
                }
                _ => return Err(breach("a listing block that was not requested")),
            }
        }
        if !answers.is_empty() {
            self.link.send(FrameKind::BlocksWanted, &encode_bits(&answers));
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<Option<Vec<u8>>, SourceError> {
        self.take_offers()?;
        let Some(block) = self.pending.pop_front() else { return Ok(None) };
        let (plain, packed) = match block.known {
            Some(known) => {
                self.pending_bytes -= known.0.len() + known.1.len();
                known
            }
            None => {
                let frame = self.link.wait(Queue::Blocks)?;
                let plain = unpack(&frame.payload, BLOCK_LIMIT_BYTES)
                    .map_err(|error| SourceError::Protocol { reason: error.into() })?;
                if *blake3::hash(&plain).as_bytes() != block.hash {
                    return Err(breach("a listing block that is not the one offered"));
                }
                (plain, frame.payload)
            }
        };
        self.cache.push(&block.hash, &packed);
        Ok(Some(plain))
    }

    // --- Answers

    /// Sends requests, as many as the agent may have waiting.
    fn send_gathered(&mut self) {
        while !self.gathered.is_empty() && self.requested_bytes < REQUESTS_AHEAD_BYTES {
            let (mut count, mut path_bytes) = (0, 0);
            for request in self.gathered.iter().take(REQUESTS_GATHERED) {
                count += 1;
                path_bytes += request.path.len();
                self.requested_bytes += request_bytes(request);
                if path_bytes >= REQUEST_BYTES {
                    break;
                }
            }
            let requests: Vec<ReadRequest> = self.gathered.drain(..count).collect();
            self.link.send(FrameKind::Reads, &encode_requests(&requests));
        }
    }

    fn send_answers(&mut self, intake: &dyn ChunkIntake) {
        // Before the answers, so that what they want is compressed with it; in a night without news not at all.
        let news = self.answers.contains(&true);
        if let Some((id, bytes)) = intake.dictionary().filter(|(id, _)| news && Some(*id) != self.dictionary) {
            let mut payload = Vec::with_capacity(bytes.len() + 4);
            put_varint(&mut payload, u64::from(id.get()));
            payload.extend_from_slice(bytes);
            self.link.send(FrameKind::Dictionary, &payload);
            self.dictionary = Some(id);
        }
        if !self.answers.is_empty() {
            self.link.send(FrameKind::ChunksWanted, &encode_bits(&self.answers));
            self.answers.clear();
        }
        if self.taken >= TAKEN_STEP_BYTES {
            let mut payload = Vec::new();
            put_varint(&mut payload, std::mem::take(&mut self.taken));
            self.link.send(FrameKind::Taken, &payload);
        }
    }

    fn take_frame(&mut self, frame: &Frame, intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        match frame.kind {
            FrameKind::Chunk => self.take_chunk(&frame.payload, intake),
            _ => self.take_events(&frame.payload, intake),
        }
    }

    fn take_chunk(&mut self, payload: &[u8], intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        let ChunkFrame { offer, codec, stored } = ChunkFrame::get(payload).map_err(broken)?;
        let wanted = self.wanted.remove(&offer).ok_or_else(|| breach("a chunk that was not requested"))?;
        let Wanted { number, hash, length } = wanted;
        let stored = stored.to_vec();
        intake.arrive(ArrivedChunk { number, hash, plain_length: length, codec, stored })?;
        self.missing.remove(&number);
        Ok(())
    }

    fn take_events(&mut self, payload: &[u8], intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        let (mut decoder, mut coder) = (Decoder::new(payload), StatCoder::default());
        while !decoder.is_empty() {
            if self.expected.is_empty() {
                return Err(breach("an answer that was not requested"));
            }
            if self.slots_bytes + self.check.held_bytes() > EVENTS_HELD_MAX_BYTES {
                return Err(breach("more parts of answers than may wait"));
            }
            let mut chunk = None;
            let event = match event(&mut decoder, &mut coder).map_err(broken)? {
                Event::Literal(bytes) => {
                    self.check.literal(&bytes)?;
                    ReadEvent::Literal(bytes)
                }
                Event::Zeros(length) => {
                    self.check.zeros(length)?;
                    ReadEvent::Zeros(length)
                }
                Event::Offer(hash, length) => {
                    self.check.chunk(length as usize)?;
                    let (number, wanted) = intake.offer(&hash, length)?;
                    if wanted {
                        self.wanted.insert(self.next_offer, Wanted { number, hash, length });
                        self.missing.insert(number);
                    }
                    self.next_offer += 1;
                    self.answers.push(wanted);
                    chunk = self.missing.contains(&number).then_some(number);
                    ReadEvent::Chunk(NumberedChunk { number, length })
                }
                Event::Chunk(_) => return Err(breach("a chunk that was not offered")),
                Event::Restart => {
                    self.check.restart()?;
                    ReadEvent::Restart
                }
                Event::Xattr(xattr) => {
                    self.check.xattr(xattr)?;
                    continue;
                }
                Event::Done { stat, result, read_bytes } => {
                    let expected = self.expected.pop_front().ok_or_else(|| breach("an answer too many"))?;
                    self.requested_bytes = self.requested_bytes.saturating_sub(expected.bytes);
                    ReadEvent::Done(Box::new(self.check.end(&expected, stat, result.into(), read_bytes)?))
                }
            };
            let held = event_bytes(&event);
            self.slots_bytes += held;
            self.slots.push_back(Slot { event, chunk, frame_bytes: 0, held });
        }
        match self.slots.back_mut() {
            Some(last) => last.frame_bytes += payload.len() as u64,
            // Nothing but extended attributes.
            None => self.taken += payload.len() as u64,
        }
        Ok(())
    }

    /// Returns a frame that is there already.
    fn next_frame(&mut self) -> Option<Frame> {
        let postponed = self.postponed.pop_front().inspect(|frame| self.postponed_bytes -= held_bytes(frame));
        postponed.or_else(|| self.link.ready(Queue::Reads))
    }

    /// Returns the next event if nothing is missing for it.
    fn ready(&mut self) -> Option<ReadEvent<NumberedChunk>> {
        let front = self.slots.front()?;
        if front.chunk.is_some_and(|number| self.missing.contains(&number)) {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.taken += slot.frame_bytes;
        self.slots_bytes -= slot.held;
        Some(slot.event)
    }
}

impl SourceTree for RemoteTree {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        loop {
            if let Some(listing) = self.listings.pop_front() {
                self.inodes += listing.entries.len() as u64;
                if self.inodes > INODES_MAX {
                    return Err(breach("a tree of more names than are taken"));
                }
                return Ok(Some(listing));
            }
            match self.next_block()? {
                Some(block) => self.reader.block(&block, &mut self.listings).map_err(broken)?,
                None => {
                    self.reader.finish().map_err(broken)?;
                    self.cache.keep(true);
                    return Ok(None);
                }
            }
        }
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        self.reader.file_systems().to_vec()
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        let end = self.end.clone().unwrap_or_default();
        ScanEnd { problems: self.reader.take_problems(), ..end }
    }

    fn stat_root_entry(&mut self, name: &[u8]) -> Result<Option<Stat>, SourceError> {
        self.link.send(FrameKind::StatRoot, name);
        let frame = self.link.wait(Queue::Answers)?;
        if frame.kind != FrameKind::RootStat {
            return Err(breach("an answer to something else"));
        }
        decode_root_stat(&frame.payload).map_err(broken)
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        self.expected.push_back(Expected::of(&request));
        self.gathered.push_back(request);
        if self.gathered.len() >= REQUESTS_GATHERED {
            self.send_gathered();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.send_gathered();
        Ok(())
    }

    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        self.send_gathered();
        loop {
            // Offers are answered as soon as they are here, not when their turn comes.
            while let Some(frame) = self.next_frame() {
                self.take_frame(&frame, intake)?;
            }
            let ready = self.ready();
            self.send_answers(intake);
            self.send_gathered();
            if let Some(event) = ready {
                return Ok(event);
            }
            let frame = self.link.wait(Queue::Reads)?;
            self.take_frame(&frame, intake)?;
        }
    }

    fn read_apart(&mut self, request: &ReadRequest, sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        self.link.send(FrameKind::ReadApart, &encode_requests(std::slice::from_ref(request)));
        let expected = Expected::of(request);
        let mut check = AnswerCheck::default();
        loop {
            let frame = self.link.wait(Queue::Apart)?;
            let (mut decoder, mut coder) = (Decoder::new(&frame.payload), StatCoder::default());
            while !decoder.is_empty() {
                let event = match event(&mut decoder, &mut coder).map_err(broken)? {
                    Event::Literal(bytes) => {
                        check.literal(&bytes)?;
                        ReadEvent::Literal(bytes)
                    }
                    Event::Zeros(length) => {
                        check.zeros(length)?;
                        ReadEvent::Zeros(length)
                    }
                    Event::Chunk(plain) => {
                        check.chunk(plain.len())?;
                        ReadEvent::Chunk(sink.intake().take(CutChunk::new(plain))?)
                    }
                    Event::Offer(..) => return Err(breach("an offer where none is made")),
                    Event::Restart => {
                        check.restart()?;
                        ReadEvent::Restart
                    }
                    Event::Xattr(xattr) => {
                        check.xattr(xattr)?;
                        continue;
                    }
                    Event::Done { stat, result, read_bytes } => {
                        return check.end(&expected, stat, result.into(), read_bytes);
                    }
                };
                sink.event(event)?;
            }
        }
    }

    fn abandon(&mut self, intake: &mut dyn ChunkIntake) {
        // What has arrived is not to be sent again, and its events are of no use any more.
        while let Some(frame) = self.link.ready(Queue::Reads) {
            if frame.kind == FrameKind::Chunk && self.take_chunk(&frame.payload, intake).is_err() {
                break;
            }
        }
        for wanted in self.wanted.drain().map(|(_, wanted)| wanted) {
            intake.forget(&wanted.hash);
        }
        self.missing.clear();
        self.postponed.clear();
        self.postponed_bytes = 0;
        self.cache.keep(false);
    }

    fn wait_for_chunks(&mut self, intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        self.send_answers(intake);
        while !self.wanted.is_empty() {
            let frame = self.link.wait(Queue::Reads)?;
            if frame.kind == FrameKind::Chunk {
                self.take_chunk(&frame.payload, intake)?;
            } else {
                // It would bring more offers, without end.
                self.postponed_bytes += held_bytes(&frame);
                if self.postponed_bytes > UNDER_WAY_MAX_BYTES {
                    return Err(breach("more than was requested, and not the chunks that were"));
                }
                self.postponed.push_back(frame);
            }
        }
        Ok(())
    }

    fn owner_names(&mut self, users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        let users: Vec<u32> = users.iter().copied().take(OWNERS_MAX).collect();
        let groups: Vec<u32> = groups.iter().copied().take(OWNERS_MAX).collect();
        let mut all = OwnerNames::default();
        let batches = users.len().max(groups.len()).div_ceil(OWNERS_ASKED).max(1);
        let batch = |numbers: &[u32], at: usize| -> Vec<u32> {
            numbers.iter().copied().skip(at * OWNERS_ASKED).take(OWNERS_ASKED).collect()
        };
        for at in 0..batches {
            let (users, groups) = (batch(&users, at), batch(&groups, at));
            self.link.send(FrameKind::Owners, &encode_owners(users.iter(), groups.iter()));
            let frame = self.link.wait(Queue::Answers)?;
            if frame.kind != FrameKind::OwnerNames {
                return Err(breach("an answer to something else"));
            }
            let names = decode_owner_names(&frame.payload).map_err(broken)?;
            // Only what was requested.
            all.users.extend(names.users.into_iter().filter(|(number, _)| users.binary_search(number).is_ok()));
            all.groups.extend(names.groups.into_iter().filter(|(number, _)| groups.binary_search(number).is_ok()));
        }
        Ok(all)
    }
}
