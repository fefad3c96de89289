//! Checks of what an agent answers to one read request: lengths, extended attributes, and that it comes to an end.

use crate::model::{Kind, Stat, Xattr};
use crate::remote::protocol::fields::XATTRS_MAX_BYTES;
use crate::remote::protocol::messages::request_bytes;
use crate::source::chunker::MAX_CHUNK_BYTES;
use crate::source::read::{ReadOutcome, ReadRequest, ReadResult, Want};
use crate::source::tree::SourceError;

/// The longest literal that an agent may send: the target of a symbolic link.
const LITERAL_MAX_BYTES: usize = 4096;
/// How often an answer may begin anew. An agent reads a file three times, and looks five times for one that vanished.
pub(super) const RESTARTS_MAX: u32 = 32;

/// Makes the error for what no agent that keeps to the protocol sends.
pub(super) fn breach(reason: &str) -> SourceError {
    SourceError::Protocol { reason: reason.into() }
}

/// A request that is under way.
pub(super) struct Expected {
    pub(super) stat: Stat,
    pub(super) want: Want,
    /// Bytes that the request takes at the agent while it waits.
    pub(super) bytes: usize,
}

impl Expected {
    /// Notes what is requested.
    pub(super) fn of(request: &ReadRequest) -> Expected {
        Expected { stat: request.stat, want: request.want, bytes: request_bytes(request) }
    }
}

/// Checks the events of one answer as they come.
#[derive(Default)]
pub(super) struct AnswerCheck {
    delivered: u64,
    xattrs: Vec<Xattr>,
    xattr_bytes: usize,
    restarts: u32,
}

impl AnswerCheck {
    fn add(&mut self, length: usize) -> Result<(), SourceError> {
        self.delivered = self
            .delivered
            .checked_add(length as u64)
            .filter(|total| *total <= i64::MAX as u64)
            .ok_or_else(|| breach("a file that is longer than any can be"))?;
        Ok(())
    }

    pub(super) fn literal(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        if bytes.is_empty() || bytes.len() > LITERAL_MAX_BYTES {
            return Err(breach("a literal that is empty or long"));
        }
        self.add(bytes.len())
    }

    pub(super) fn zeros(&mut self, length: u64) -> Result<(), SourceError> {
        match usize::try_from(length) {
            Ok(length @ 1..) => self.add(length),
            _ => Err(breach("a hole of no or endless length")),
        }
    }

    pub(super) fn chunk(&mut self, length: usize) -> Result<(), SourceError> {
        if length == 0 || length > MAX_CHUNK_BYTES {
            return Err(breach("a chunk that is empty or too long"));
        }
        self.add(length)
    }

    /// Begins the content anew.
    pub(super) fn restart(&mut self) -> Result<(), SourceError> {
        self.delivered = 0;
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            return Err(breach("a file that is begun anew without an end"));
        }
        Ok(())
    }

    /// Returns the bytes that wait here for the end of the answer.
    pub(super) fn held_bytes(&self) -> usize {
        self.xattr_bytes
    }

    pub(super) fn xattr(&mut self, xattr: Xattr) -> Result<(), SourceError> {
        self.xattr_bytes += xattr.name.len() + xattr.value.len() + 64;
        if self.xattr_bytes > XATTRS_MAX_BYTES || self.xattrs.last().is_some_and(|last| last.name >= xattr.name) {
            return Err(breach("extended attributes out of order, or more than an inode can have"));
        }
        self.xattrs.push(xattr);
        Ok(())
    }

    /// Ends the answer to a request, if its content is as long as it says.
    pub(super) fn end(
        &mut self,
        expected: &Expected,
        stat: Stat,
        result: ReadResult,
        read_bytes: u64,
    ) -> Result<ReadOutcome, SourceError> {
        let AnswerCheck { delivered, xattrs, .. } = std::mem::take(self);
        if matches!(result, ReadResult::Read | ReadResult::Changed) {
            if stat.kind == Kind::Directory {
                return Err(breach("an answer that is a directory"));
            }
            let requested = &expected.stat;
            let as_scanned = (stat.kind, stat.ino, stat.btime, stat.size, stat.mtime)
                == (requested.kind, requested.ino, requested.btime, requested.size, requested.mtime);
            let nothing_due = expected.want == Want::Attributes && as_scanned && delivered == 0;
            let length = if matches!(stat.kind, Kind::File | Kind::Symlink) { stat.size } else { 0 };
            if !nothing_due && delivered != length {
                return Err(breach("a content of another length than its file"));
            }
        }
        Ok(ReadOutcome { stat, xattrs, result, read_bytes })
    }
}
