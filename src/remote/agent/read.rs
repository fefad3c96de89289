//! The agent's reading: answers in the order of the requests, chunks held until the other side has said whether it wants them.
//!
//! Memory: [`OFFERED_AHEAD_BYTES`] of chunks offered, [`COMPRESS_AHEAD`] chunks of at most 1 MiB for each compressing thread, and what the pool of reading
//! threads holds.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::devices::Devices;
use super::outbox::{Closed, Outbox};
use super::waiting::Waiting;
use crate::ids::DictionaryId;
use crate::model::Codec;
use crate::mutex::lock;
use crate::remote::protocol::fields::StatCoder;
use crate::remote::protocol::frame::Kind;
use crate::remote::protocol::messages::{ChunkFrame, Event, put_event, request_bytes};
use crate::remote::protocol::{EVENTS_AHEAD_BYTES, OFFERED_AHEAD_BYTES};
use crate::source::chunker::SinkClosed;
use crate::source::read::{CutChunk, EventSink, InodeReader, ReadEvent, ReadOutcome, ReadRequest};
use crate::source::read_pool::ReadPool;
use crate::store::codec::{Compressor, Dictionary};

/// Chunks that may wait for each compressing thread.
pub(super) const COMPRESS_AHEAD: usize = 4;
/// An Events frame is sent when it has so many bytes.
const FRAME_BYTES: usize = 64 << 10;

/// What the other side says to the reading side.
pub(super) enum Control {
    /// Requests.
    Reads(Vec<ReadRequest>),
    /// Answers to offers, in order.
    Wanted(Vec<bool>),
    /// Bytes of events were taken: [`Waiting`] knows how many.
    Taken,
}

/// A chunk on its way to a compressing thread, and its place among the offers.
pub(super) struct WantedChunk {
    offer: u64,
    plain: Vec<u8>,
}

/// What was read, for the other side's progress.
#[derive(Default)]
pub(super) struct ReadCounters {
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// Answers read requests.
pub(super) struct Answers<'a> {
    pub(super) pool: ReadPool,
    pub(super) devices: &'a Devices,
    pub(super) outbox: &'a Outbox,
    pub(super) waiting: &'a Waiting,
    pub(super) control: Receiver<Control>,
    pub(super) compress: Sender<WantedChunk>,
    pub(super) counters: &'a ReadCounters,
}

/// Events gathered for a frame.
#[derive(Default)]
struct EventFrame {
    payload: Vec<u8>,
    coder: StatCoder,
}

impl EventFrame {
    fn put(&mut self, event: &Event) {
        put_event(&mut self.payload, &mut self.coder, event);
    }

    /// Puts the end of an answer; `full` sends what is there, for extended attributes may be many.
    fn end(
        &mut self,
        devices: &Devices,
        outcome: ReadOutcome,
        mut full: impl FnMut(&mut EventFrame) -> Result<(), Closed>,
    ) -> Result<(), Closed> {
        for xattr in outcome.xattrs {
            self.put(&Event::Xattr(xattr));
            if self.payload.len() >= FRAME_BYTES {
                full(self)?;
            }
        }
        let stat = devices.to_scan(&outcome.stat);
        let result = (&outcome.result).into();
        self.put(&Event::Done { stat, result, read_bytes: outcome.read_bytes });
        Ok(())
    }

    fn take(&mut self) -> Vec<u8> {
        self.coder = StatCoder::default();
        std::mem::take(&mut self.payload)
    }
}

impl Answers<'_> {
    /// Answers until the other side ends: the life of a thread.
    pub(super) fn run(mut self) -> Result<(), Closed> {
        let mut frame = EventFrame::default();
        let mut offered: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut offered_bytes, mut next_offer, mut untaken) = (0, 0u64, 0usize);
        // Of each request that is not answered, the bytes that it takes.
        let mut due: VecDeque<usize> = VecDeque::new();
        loop {
            let may_read = !due.is_empty() && offered_bytes < OFFERED_AHEAD_BYTES && untaken < EVENTS_AHEAD_BYTES;
            let message = if may_read {
                match self.control.try_recv() {
                    Ok(message) => Some(message),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return Err(Closed),
                }
            } else {
                untaken += self.flush(&mut frame)?;
                Some(self.control.recv().map_err(|_| Closed)?)
            };
            match message {
                Some(Control::Reads(requests)) => {
                    due.extend(requests.iter().map(request_bytes));
                    for request in requests {
                        let stat = self.devices.to_host(&request.stat);
                        self.pool.submit(ReadRequest { stat, ..request });
                    }
                    self.pool.flush();
                }
                Some(Control::Wanted(bits)) => {
                    for wanted in bits {
                        let plain = offered.pop_front().ok_or(Closed)?;
                        offered_bytes -= plain.len();
                        if wanted {
                            self.compress.send(WantedChunk { offer: next_offer, plain }).map_err(|_| Closed)?;
                        }
                        next_offer += 1;
                    }
                }
                Some(Control::Taken) => untaken = untaken.saturating_sub(self.waiting.take_taken()),
                None => {
                    match self.pool.receive().map_err(|_| Closed)? {
                        ReadEvent::Literal(bytes) => frame.put(&Event::Literal(bytes)),
                        ReadEvent::Zeros(length) => frame.put(&Event::Zeros(length)),
                        ReadEvent::Chunk(CutChunk { hash, plain }) => {
                            self.counters.bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
                            self.waiting.chunks.add();
                            frame.put(&Event::Offer(hash, plain.len() as u32));
                            offered_bytes += plain.len();
                            offered.push_back(plain);
                        }
                        ReadEvent::Restart => frame.put(&Event::Restart),
                        ReadEvent::Done(outcome) => {
                            self.counters.files.fetch_add(1, Ordering::Relaxed);
                            self.waiting.answered(due.pop_front().unwrap_or(0));
                            frame.end(self.devices, *outcome, |frame| {
                                untaken += self.flush(frame)?;
                                Ok(())
                            })?;
                        }
                    }
                    if frame.payload.len() >= FRAME_BYTES {
                        untaken += self.flush(&mut frame)?;
                    }
                }
            }
        }
    }

    /// Sends the events gathered, and returns their bytes.
    fn flush(&self, frame: &mut EventFrame) -> Result<usize, Closed> {
        let payload = frame.take();
        if !payload.is_empty() {
            self.outbox.send_compressed(Kind::Events, &payload)?;
        }
        Ok(payload.len())
    }
}

/// The dictionary in force, for all compressing threads.
pub(super) type CurrentDictionary = Mutex<Option<Arc<Dictionary>>>;

/// Compresses wanted chunks and sends them: the life of a thread. Level 0 sends them as they are.
pub(super) fn compress(
    level: i32,
    dictionary: &CurrentDictionary,
    outbox: &Outbox,
    queue: &Receiver<WantedChunk>,
) -> Result<(), Closed> {
    let mut ready: Option<(Option<DictionaryId>, Compressor)> = None;
    let mut payload = Vec::new();
    for WantedChunk { offer, plain } in queue {
        let as_is = ChunkFrame { offer, codec: Codec::Plain, stored: &plain };
        payload.clear();
        if level == 0 {
            as_is.put(&mut payload);
        } else {
            let current = lock(dictionary).clone();
            let wanted = current.as_ref().map(|dictionary| dictionary.id());
            if ready.as_ref().is_none_or(|(id, _)| *id != wanted) {
                ready = Some((wanted, Compressor::new(level, current).map_err(|_| Closed)?));
            }
            match &mut ready {
                Some((_, compressor)) => {
                    let stored = compressor.compress(&plain).map_err(|_| Closed)?;
                    ChunkFrame { offer, codec: stored.codec, stored: stored.bytes }.put(&mut payload);
                }
                None => as_is.put(&mut payload),
            }
        }
        outbox.send(Kind::Chunk, &payload)?;
    }
    Ok(())
}

/// Answers requests out of turn, chunks within: the life of a thread.
pub(super) fn answer_apart(
    root: Arc<OwnedFd>,
    devices: &Devices,
    outbox: &Outbox,
    waiting: &Waiting,
    requests: &Receiver<ReadRequest>,
) -> Result<(), Closed> {
    let mut reader = InodeReader::new(root);
    for request in requests {
        let bytes = request_bytes(&request);
        let request = ReadRequest { stat: devices.to_host(&request.stat), ..request };
        let mut sink = ApartSink { frame: EventFrame::default(), outbox };
        let outcome = reader.read(&request, &mut sink).map_err(|_| Closed)?;
        let mut frame = std::mem::take(&mut sink.frame);
        let send = |frame: &mut EventFrame| outbox.send_compressed(Kind::ApartEvents, &frame.take());
        frame.end(devices, outcome, send)?;
        waiting.answered(bytes);
        send(&mut frame)?;
    }
    Ok(())
}

struct ApartSink<'a> {
    frame: EventFrame,
    outbox: &'a Outbox,
}

impl ApartSink<'_> {
    fn flush(&mut self) -> Result<(), Closed> {
        self.outbox.send_compressed(Kind::ApartEvents, &self.frame.take())
    }
}

impl EventSink for ApartSink<'_> {
    fn event(&mut self, event: ReadEvent<CutChunk>, bytes: usize) -> Result<(), SinkClosed> {
        // A chunk of 1 MiB fits a frame, but not behind much else.
        if self.frame.payload.len() + bytes >= FRAME_BYTES && !self.frame.payload.is_empty() {
            self.flush().map_err(|Closed| SinkClosed)?;
        }
        self.frame.put(&match event {
            ReadEvent::Literal(bytes) => Event::Literal(bytes),
            ReadEvent::Zeros(length) => Event::Zeros(length),
            ReadEvent::Chunk(chunk) => Event::Chunk(chunk.plain),
            ReadEvent::Restart => Event::Restart,
            ReadEvent::Done(_) => return Ok(()),
        });
        Ok(())
    }
}
