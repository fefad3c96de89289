//! How the chunks of every source reach a run: by their hashes first, then, if they are new, by their bytes.
//!
//! A source that cuts in this process has the bytes at hand and gives them with the hash ([`ChunkIntake::take`]). One on another host offers hashes
//! ([`ChunkIntake::offer`]) and sends what is wanted ([`ChunkIntake::arrive`]). Either way the run gets events that name chunks by their numbers.

use super::chunker::SinkClosed;
use super::read::{CutChunk, EventSink, ReadEvent};
use crate::ids::{ChunkId, DictionaryId};
use crate::model::{ChunkHash, Codec};

/// A chunk that the run has, or is going to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberedChunk {
    /// The number that the run gave it.
    pub number: ChunkId,
    /// Plain length in bytes.
    pub length: u32,
}

/// A chunk that arrives from another host, compressed or not.
pub struct ArrivedChunk {
    /// Its number, as the receiver gave it.
    pub number: ChunkId,
    /// What its plain bytes must hash to.
    pub hash: ChunkHash,
    /// Length of the plain bytes.
    pub plain_length: u32,
    /// How `stored` is to be read.
    pub codec: Codec,
    /// The bytes as they were transferred. Nothing of them is verified yet.
    pub stored: Vec<u8>,
}

/// The receiver of chunks gave up; it keeps the reason.
#[derive(Debug)]
pub struct IntakeFailed;

impl From<IntakeFailed> for SinkClosed {
    fn from(_: IntakeFailed) -> SinkClosed {
        SinkClosed
    }
}

/// Numbers the chunks of a source and takes the bytes of new ones.
pub trait ChunkIntake {
    /// Takes a chunk that was cut in this process.
    ///
    /// # Errors
    /// [`IntakeFailed`] when the receiver cannot go on.
    fn take(&mut self, chunk: CutChunk) -> Result<NumberedChunk, IntakeFailed>;

    /// Returns the number of a chunk of another host, and whether its bytes are wanted.
    ///
    /// # Errors
    /// [`IntakeFailed`] when the receiver cannot go on.
    fn offer(&mut self, hash: &ChunkHash, plain_length: u32) -> Result<(ChunkId, bool), IntakeFailed>;

    /// Takes a chunk that was wanted.
    ///
    /// # Errors
    /// [`IntakeFailed`] when the receiver cannot go on.
    fn arrive(&mut self, chunk: ArrivedChunk) -> Result<(), IntakeFailed>;

    /// Takes back the number of a chunk that was wanted and will not arrive.
    fn forget(&mut self, hash: &ChunkHash);

    /// Returns the dictionary that small chunks are to be compressed with: its number and bytes.
    fn dictionary(&self) -> Option<(DictionaryId, &[u8])>;
}

/// Takes an answer out of turn: its chunks and its events.
pub trait AnswerSink {
    /// Returns who takes the chunks.
    fn intake(&mut self) -> &mut dyn ChunkIntake;

    /// Takes one event.
    ///
    /// # Errors
    /// [`IntakeFailed`] when the receiver cannot go on.
    fn event(&mut self, event: ReadEvent<NumberedChunk>) -> Result<(), IntakeFailed>;
}

impl ReadEvent<CutChunk> {
    /// Hands the chunk over, if the event is one.
    ///
    /// # Errors
    /// [`IntakeFailed`] when the receiver cannot go on.
    pub fn numbered_by(self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, IntakeFailed> {
        Ok(match self {
            ReadEvent::Chunk(chunk) => ReadEvent::Chunk(intake.take(chunk)?),
            ReadEvent::Literal(bytes) => ReadEvent::Literal(bytes),
            ReadEvent::Zeros(length) => ReadEvent::Zeros(length),
            ReadEvent::Restart => ReadEvent::Restart,
            ReadEvent::Done(outcome) => ReadEvent::Done(outcome),
        })
    }
}

/// Passes on what is cut in this process for an answer out of turn.
pub(crate) struct ApartSink<'a>(pub(crate) &'a mut dyn AnswerSink);

impl EventSink for ApartSink<'_> {
    fn event(&mut self, event: ReadEvent<CutChunk>, _bytes: usize) -> Result<(), SinkClosed> {
        let event = event.numbered_by(self.0.intake())?;
        Ok(self.0.event(event)?)
    }
}
