//! What a run keeps in memory does not grow with the tree: names wait for answers only so long.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use zmreplica::model::{Kind, Stat};
use zmreplica::replica::init;
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run_tree;
use zmreplica::source::chunk_intake::{AnswerSink, ChunkIntake, NumberedChunk};
use zmreplica::source::read::{ReadEvent, ReadOutcome, ReadRequest, ReadResult};
use zmreplica::source::scan::{Entry, Found, Listing};
use zmreplica::source::tree::{OwnerNames, ScanEnd, SourceError, SourceTree};

use crate::support::locks;
use crate::support::made_up::stat;

/// Directories below the root, and as many below each.
const DIRECTORIES: u64 = 600;
/// Most names that may be delivered behind a request before its answer is requested; the tree has many more.
const BEHIND_AT_MOST: u64 = 200_000;

/// What was seen of the run.
#[derive(Default)]
struct Seen {
    /// Names delivered since the oldest request that is not answered.
    behind: u64,
    most_behind: u64,
    requested: u64,
    answered: u64,
}

/// A tree whose first name is a new file, and no other is: 360,000 empty directories.
struct WideTree {
    next: u64,
    requests: Vec<ReadRequest>,
    seen: Rc<RefCell<Seen>>,
}

impl WideTree {
    fn directory(&self, path: String, below: u64) -> Listing {
        let mut entries: Vec<Entry> = (0..below)
            .map(|number| Entry { name: format!("d{number:03}").into_bytes().into(), what: Found::Directory })
            .collect();
        if path.is_empty() {
            let stat = stat(Kind::File, 7, 0);
            let what = Found::Inode { file_system: 0, ino: 7, stat: Some(Box::new(stat)) };
            entries.insert(0, Entry { name: b"a".as_slice().into(), what });
        }
        let stat = stat(Kind::Directory, 100 + self.next, 0);
        Listing { path: path.into_bytes(), stat, xattrs: Vec::new(), file_system: 0, entries, unreadable: None }
    }
}

impl SourceTree for WideTree {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        let at = self.next;
        if at > DIRECTORIES * (DIRECTORIES + 1) {
            return Ok(None);
        }
        let listing = match at.checked_sub(1) {
            None => self.directory(String::new(), DIRECTORIES),
            Some(at) => match (at / (DIRECTORIES + 1), at % (DIRECTORIES + 1)) {
                (outer, 0) => self.directory(format!("d{outer:03}"), DIRECTORIES),
                (outer, inner) => self.directory(format!("d{outer:03}/d{:03}", inner - 1), 0),
            },
        };
        self.next += 1;
        let mut seen = self.seen.borrow_mut();
        if seen.requested > seen.answered {
            seen.behind += listing.entries.len() as u64;
            seen.most_behind = seen.most_behind.max(seen.behind);
        }
        Ok(Some(listing))
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        vec![Vec::new()]
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        ScanEnd::default()
    }

    fn stat_root_entry(&mut self, _name: &[u8]) -> Result<Option<Stat>, SourceError> {
        Ok(None)
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        self.seen.borrow_mut().requested += 1;
        self.requests.push(request);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn receive(&mut self, _intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        let request = self.requests.remove(0);
        let mut seen = self.seen.borrow_mut();
        seen.answered += 1;
        seen.behind = 0;
        let outcome = ReadOutcome { stat: request.stat, xattrs: Vec::new(), result: ReadResult::Read, read_bytes: 0 };
        Ok(ReadEvent::Done(Box::new(outcome)))
    }

    fn read_apart(&mut self, request: &ReadRequest, _sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        Ok(ReadOutcome { stat: request.stat, xattrs: Vec::new(), result: ReadResult::Vanished, read_bytes: 0 })
    }

    fn abandon(&mut self, _intake: &mut dyn ChunkIntake) {}

    fn wait_for_chunks(&mut self, _intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        Ok(())
    }

    fn owner_names(&mut self, _users: &BTreeSet<u32>, _groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        Ok(OwnerNames::default())
    }
}

#[test]
fn one_new_file_does_not_hold_up_all_names_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    init(&store).unwrap();
    let replica = locks::open(&store);
    let seen = Rc::new(RefCell::new(Seen::default()));
    let tree = WideTree { next: 0, requests: Vec::new(), seen: Rc::clone(&seen) };
    let (options, progress) = (SnapshotOptions::default(), Arc::new(Progress::default()));
    let report = run_tree(&replica, Box::new(tree), "wide", &options, &progress).unwrap();
    assert_eq!(report.record.totals.names, DIRECTORIES * (DIRECTORIES + 1) + 1);
    let seen = seen.borrow();
    assert_eq!((seen.requested, seen.answered), (1, 1));
    assert!(seen.most_behind > 0 && seen.most_behind < BEHIND_AT_MOST, "{} names waited", seen.most_behind);
}
