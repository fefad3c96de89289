//! A source that says whatever a test makes up, without any files.

use std::collections::{BTreeSet, HashMap, VecDeque};

use zmreplica::model::{ChunkHash, Kind, Stat, Timestamp, Xattr};
use zmreplica::source::chunk_intake::{AnswerSink, ChunkIntake, NumberedChunk};
use zmreplica::source::read::{CutChunk, ReadEvent, ReadOutcome, ReadRequest, ReadResult};
use zmreplica::source::scan::{Entry, Found, Listing, Problem};
use zmreplica::source::tree::{OwnerNames, ScanEnd, SourceError, SourceTree};

/// A piece of a made-up file.
#[derive(Clone, Debug)]
pub enum Piece {
    Literal(Vec<u8>),
    Zeros(u64),
    Chunk(Vec<u8>),
    /// A chunk that is offered with two lengths, as from another host.
    TwoLengths,
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Literal(bytes) | Piece::Chunk(bytes) => bytes.len() as u64,
            Piece::Zeros(length) => *length,
            Piece::TwoLengths => 12,
        }
    }
}

/// A made-up file.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub pieces: Vec<Piece>,
    pub xattrs: Vec<Xattr>,
}

impl File {
    pub fn size(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.length()))
    }
}

/// A made-up directory: what the tests need of one.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    pub xattrs: Vec<Xattr>,
    pub files: Vec<(Vec<u8>, File)>,
    pub directories: Vec<(Vec<u8>, Directory)>,
}

pub fn stat(kind: Kind, ino: u64, size: u64) -> Stat {
    let time = Timestamp { seconds: 1_785_546_000, nanos: 7 };
    Stat {
        kind,
        mode: 0o640,
        uid: 4242,
        gid: 4343,
        nlink: 1,
        size,
        allocated_bytes: size,
        rdev: 0,
        ino,
        dev: 1,
        mtime: time,
        ctime: time,
        btime: Some(time),
    }
}

/// A source that says what a test makes up.
pub struct MadeUp {
    listings: Box<dyn Iterator<Item = Listing>>,
    pub files: HashMap<Vec<u8>, File>,
    requests: VecDeque<ReadRequest>,
    events: VecDeque<Piece>,
    end: Option<ReadOutcome>,
    pub problems: Vec<Problem>,
}

impl MadeUp {
    pub fn of(root: &Directory) -> MadeUp {
        let (mut listings, mut files) = (Vec::new(), HashMap::new());
        add(root, Vec::new(), &mut listings, &mut files);
        MadeUp::listing(Box::new(listings.into_iter()), files)
    }

    pub fn listing(listings: Box<dyn Iterator<Item = Listing>>, files: HashMap<Vec<u8>, File>) -> MadeUp {
        let (requests, events) = (VecDeque::new(), VecDeque::new());
        MadeUp { listings, files, requests, events, end: None, problems: Vec::new() }
    }
}

/// Lists a directory and what is below it, depth first.
fn add(directory: &Directory, path: Vec<u8>, listings: &mut Vec<Listing>, files: &mut HashMap<Vec<u8>, File>) {
    let join = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [&path, b"/".as_slice(), name].concat() };
    let mut entries = Vec::new();
    for (name, file) in &directory.files {
        let ino = 1000 + files.len() as u64;
        files.insert(join(name), file.clone());
        let stat = Some(Box::new(stat(Kind::File, ino, file.size())));
        entries.push(Entry { name: name.as_slice().into(), what: Found::Inode { file_system: 0, ino, stat } });
    }
    let mut below: Vec<&(Vec<u8>, Directory)> = directory.directories.iter().collect();
    below.sort_by_key(|(name, _)| name);
    entries.extend(below.iter().map(|(name, _)| Entry { name: name.as_slice().into(), what: Found::Directory }));
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let xattrs = directory.xattrs.clone();
    listings.push(Listing {
        path: path.clone(),
        stat: stat(Kind::Directory, 2, 0),
        xattrs,
        file_system: 0,
        entries,
        unreadable: None,
    });
    for (name, inner) in below {
        add(inner, join(name), listings, files);
    }
}

impl SourceTree for MadeUp {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        Ok(self.listings.next())
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        vec![Vec::new()]
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        ScanEnd { problems: std::mem::take(&mut self.problems), ..ScanEnd::default() }
    }

    fn stat_root_entry(&mut self, _name: &[u8]) -> Result<Option<Stat>, SourceError> {
        Ok(None)
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        self.requests.push_back(request);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        if self.end.is_none() {
            let request = self.requests.pop_front().unwrap();
            let file = self.files.remove(&request.path).unwrap();
            self.events = file.pieces.into();
            let (xattrs, result) = (file.xattrs, ReadResult::Read);
            self.end = Some(ReadOutcome { stat: request.stat, xattrs, result, read_bytes: 0 });
        }
        Ok(match self.events.pop_front() {
            Some(Piece::Literal(bytes)) => ReadEvent::Literal(bytes),
            Some(Piece::Zeros(length)) => ReadEvent::Zeros(length),
            Some(Piece::Chunk(bytes)) => ReadEvent::Chunk(intake.take(CutChunk::new(bytes))?),
            Some(Piece::TwoLengths) => {
                let hash = ChunkHash::of(b"five!");
                intake.offer(&hash, 5)?;
                let (number, _) = intake.offer(&hash, 7)?;
                ReadEvent::Chunk(NumberedChunk { number, length: 7 })
            }
            None => ReadEvent::Done(Box::new(self.end.take().unwrap())),
        })
    }

    fn read_apart(&mut self, _request: &ReadRequest, _sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        unreachable!("no inode here has two names")
    }

    fn abandon(&mut self, _intake: &mut dyn ChunkIntake) {}

    fn wait_for_chunks(&mut self, _intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        Ok(())
    }

    fn owner_names(&mut self, _users: &BTreeSet<u32>, _groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        Ok(OwnerNames::default())
    }
}
