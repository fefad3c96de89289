//! The tree of a host without an agent, as a run sees it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::AgentlessOptions;
use super::find::complaints;
use super::read::{BatchSink, Reader, stat_one};
use super::scan::Scan;
use super::shell::{Shell, shown};
use super::spool::Spool;
use crate::model::Stat;
use crate::remote::client::{ConnectError, WireCounters};
use crate::remote::transport::Transport;
use crate::source::chunk_intake::{AnswerSink, ApartSink, ChunkIntake, NumberedChunk};
use crate::source::chunker::SinkClosed;
use crate::source::read::{CutChunk, EventSink, ReadEvent, ReadOutcome, ReadRequest, Want};
use crate::source::scan::Listing;
use crate::source::tree::{OwnerNames, ScanEnd, SourceError, SourceTree};

/// A batch has this many requests ...
const BATCH_REQUESTS: usize = 512;
/// ... or files of this many bytes together ...
const BATCH_BYTES: u64 = 32 << 20;
/// ... or names of this many bytes.
const BATCH_NAME_BYTES: usize = 256 << 10;
/// Most owners whose names are looked up; the others keep their numbers.
const OWNERS_MAX: usize = 10_000;
/// The longest name of an owner.
const OWNER_NAME_MAX_BYTES: usize = 256;

/// A tree on a host where no agent runs.
pub struct AgentlessTree {
    shell: Shell,
    scan: Scan,
    reader: Reader,
    waiting: VecDeque<ReadRequest>,
    ready: VecDeque<ReadEvent<NumberedChunk>>,
}

impl AgentlessTree {
    /// Connects, and has a shell wait in the root.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn open(
        transport: &mut dyn Transport,
        options: &AgentlessOptions,
        counters: &Arc<WireCounters>,
    ) -> Result<AgentlessTree, ConnectError> {
        let spool = Spool::new(&options.spool)
            .map_err(|error| ConnectError::Refused { message: format!("No temporary file can be created: {error}") })?;
        let shell = Shell::start(transport, options, counters)?;
        Ok(AgentlessTree {
            shell,
            scan: Scan::new(options),
            reader: Reader::new(spool),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
        })
    }

    /// Takes the next batch off what waits.
    fn next_batch(&mut self) -> Vec<ReadRequest> {
        let (mut bytes, mut name_bytes, mut count) = (0, 0, 0);
        for request in self.waiting.iter().take(BATCH_REQUESTS) {
            count += 1;
            name_bytes += request.path.len() + 3;
            if request.want == Want::Content {
                // Of a sparse file only the data come.
                bytes += request.stat.size.min(request.stat.allocated_bytes);
            }
            if bytes >= BATCH_BYTES || name_bytes >= BATCH_NAME_BYTES {
                break;
            }
        }
        self.waiting.drain(..count).collect()
    }

    /// Asks for the names of some owners.
    fn names(&mut self, word: &str, numbers: &BTreeSet<u32>) -> Result<BTreeMap<u32, String>, SourceError> {
        let mut found = BTreeMap::new();
        let list: Vec<String> = numbers.iter().take(OWNERS_MAX).map(u32::to_string).collect();
        if list.is_empty() {
            return Ok(found);
        }
        self.shell.command_with(word, (list.join("\n") + "\n").into_bytes());
        let mut lines = 0;
        while let Some(line) = self.shell.line()? {
            if let Some((number, name)) = owner(&line).filter(|(number, _)| numbers.contains(number)) {
                found.entry(number).or_insert(name);
            }
            lines += 1;
            if lines > 2 * list.len() {
                return Err(self.shell.breach("more owners than were requested"));
            }
        }
        let said = self.shell.end(word)?;
        // xargs ends with 123 when getent does not know some of them, with 127 where there is no getent: these keep their numbers. Anything else is an answer
        // that was cut short.
        match complaints(&said).code {
            Some(0 | 123 | 127) => Ok(found),
            _ => Err(SourceError::Lost { reason: format!("getent ended early: {}", shown(&said)).into() }),
        }
    }
}

/// Reads a line of `getent`, as in `/etc/passwd` and `/etc/group`.
fn owner(line: &[u8]) -> Option<(u32, String)> {
    let mut fields = std::str::from_utf8(line).ok()?.split(':');
    let name = fields.next()?;
    let number = fields.nth(1)?.parse().ok()?;
    let good = !name.is_empty() && name.len() <= OWNER_NAME_MAX_BYTES && !name.contains(char::is_control);
    good.then(|| (number, name.to_owned()))
}

/// Keeps the events of a batch until it is known how each request ended; chunks are stored at once and leave their numbers.
struct Gathered<'a> {
    intake: &'a mut dyn ChunkIntake,
    events: Vec<Vec<ReadEvent<NumberedChunk>>>,
    place: usize,
}

impl BatchSink for Gathered<'_> {
    fn of(&mut self, place: usize) -> &mut dyn EventSink {
        self.events[place].clear();
        self.place = place;
        self
    }
}

impl EventSink for Gathered<'_> {
    fn event(&mut self, event: ReadEvent<CutChunk>, _bytes: usize) -> Result<(), SinkClosed> {
        self.events[self.place].push(event.numbered_by(self.intake)?);
        Ok(())
    }
}

/// Passes the events of a single request on.
impl BatchSink for ApartSink<'_> {
    fn of(&mut self, _place: usize) -> &mut dyn EventSink {
        self
    }
}

impl SourceTree for AgentlessTree {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        self.scan.next(&mut self.shell)
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        self.scan.file_systems()
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        self.scan.take_end()
    }

    fn stat_root_entry(&mut self, name: &[u8]) -> Result<Option<Stat>, SourceError> {
        stat_one(&mut self.shell, name)
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        self.waiting.push_back(request);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        if self.ready.is_empty() {
            self.shell.check_interrupt()?;
            let batch = self.next_batch();
            let mut sinks = Gathered { intake, events: batch.iter().map(|_| Vec::new()).collect(), place: 0 };
            let outcomes = self.reader.batch(&mut self.shell, &batch, &mut sinks)?;
            for (events, outcome) in sinks.events.into_iter().zip(outcomes) {
                self.ready.extend(events);
                self.ready.push_back(ReadEvent::Done(Box::new(outcome)));
            }
        }
        self.ready.pop_front().ok_or_else(|| SourceError::Lost { reason: "no answer is due".into() })
    }

    fn read_apart(&mut self, request: &ReadRequest, sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        let outcomes = self.reader.batch(&mut self.shell, std::slice::from_ref(request), &mut ApartSink(sink))?;
        outcomes.into_iter().next().ok_or_else(|| SourceError::Lost { reason: "no answer is due".into() })
    }

    fn abandon(&mut self, _intake: &mut dyn ChunkIntake) {
        self.waiting.clear();
        self.ready.clear();
    }

    fn wait_for_chunks(&mut self, _intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        Ok(())
    }

    fn owner_names(&mut self, users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        Ok(OwnerNames { users: self.names("user", users)?, groups: self.names("group", groups)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read() {
        assert_eq!(owner(b"zimbra:x:997:997::/opt/zimbra:/bin/bash"), Some((997, "zimbra".to_owned())));
        assert_eq!(owner(b"zimbra:x:998:"), Some((998, "zimbra".to_owned())));
        for bad in [&b"zimbra"[..], b"x:x:y:", b":x:5:", b"a\x1bb:x:5:", b"\xff:x:5:"] {
            assert_eq!(owner(bad), None);
        }
    }
}
