//! Reads in flight and their answers: from events to what an inode holds.

use super::SnapshotError;
use super::content_builder::ContentBuilder;
use super::inode_cache::CachedInode;
use super::progress::Progress;
use super::storage::Storage;
use crate::catalog::group::Segment;
use crate::catalog::writer::CatalogWriter;
use crate::model::Stat;
use crate::source::chunk_intake::{AnswerSink, ChunkIntake, IntakeFailed, NumberedChunk};
use crate::source::read::{ReadEvent, ReadOutcome, ReadRequest, Want};
use crate::source::tree::SourceTree;

/// A request under way.
pub(super) struct InFlightRead {
    /// The inode's slot, if it has several names.
    pub(super) slot: Option<u32>,
    pub(super) file_system: u32,
    /// What the scan saw.
    pub(super) stat: Stat,
    pub(super) want: Want,
    /// What was known under the inode's number.
    pub(super) known: Option<CachedInode>,
    /// Whether the known content still holds unless the answer brings another.
    pub(super) same_content: bool,
}

/// A whole answer.
pub(super) struct Answer {
    pub(super) outcome: ReadOutcome,
    pub(super) content: ContentBuilder,
}

/// Takes one event of an answer. Returns how the answer ended, if that is its end.
pub(super) fn take_event(
    event: ReadEvent<NumberedChunk>,
    catalog: &mut CatalogWriter,
    content: &mut ContentBuilder,
    progress: &Progress,
) -> Result<Option<ReadOutcome>, SnapshotError> {
    match event {
        ReadEvent::Literal(bytes) => content.push(catalog, Segment::Literal(bytes.into()))?,
        ReadEvent::Zeros(length) => content.push(catalog, Segment::Zeros(length))?,
        ReadEvent::Chunk(NumberedChunk { number, length }) => {
            Progress::add(&progress.read_bytes, u64::from(length));
            content.push(catalog, Segment::Chunk { number, length })?;
        }
        ReadEvent::Restart => content.clear(),
        ReadEvent::Done(outcome) => return Ok(Some(*outcome)),
    }
    Ok(None)
}

/// Takes the events of an inode that is read out of turn.
struct ApartAnswer<'r> {
    storage: &'r mut Storage,
    content: &'r mut ContentBuilder,
    progress: &'r Progress,
}

impl AnswerSink for ApartAnswer<'_> {
    fn intake(&mut self) -> &mut dyn ChunkIntake {
        self.storage
    }

    fn event(&mut self, event: ReadEvent<NumberedChunk>) -> Result<(), IntakeFailed> {
        let taken = take_event(event, &mut self.storage.catalog, self.content, self.progress);
        self.storage.keep_failure(taken).map(|_| ())
    }
}

/// Reads an inode out of turn.
pub(super) fn read_apart(
    tree: &mut dyn SourceTree,
    request: &ReadRequest,
    storage: &mut Storage,
    progress: &Progress,
) -> Result<Answer, SnapshotError> {
    let mut content = ContentBuilder::default();
    let outcome = storage
        .receive(|storage| tree.read_apart(request, &mut ApartAnswer { storage, content: &mut content, progress }))?;
    Ok(Answer { outcome, content })
}
