//! An agent that means harm.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use zmreplica::coding::{put_bytes, put_varint};
use zmreplica::model::{ChunkHash, Kind as InodeKind, Stat, Xattr, ZERO_STAT};
use zmreplica::remote::protocol::fields::StatCoder;
use zmreplica::remote::protocol::frame::{self, Kind};
use zmreplica::remote::protocol::listing::BlockWriter;
use zmreplica::remote::protocol::messages::{EndResult, Event, Figures, decode_requests, put_event};
use zmreplica::remote::protocol::restore::{Query, Reply};
use zmreplica::remote::protocol::{MAGIC, VERSION};
use zmreplica::source::scan::{Entry, Found, Listing, Problem, ProblemKind};
use zmreplica::store::pack::PackId;

/// Waits between drips: shorter than the timeout that the tests set.
const DRIP: Duration = Duration::from_millis(250);

struct Peer {
    input: Box<dyn Read + Send>,
    output: File,
    blocks: BTreeSet<[u8; 32]>,
    /// Where the file systems begin that were not named yet.
    file_systems: Vec<Vec<u8>>,
}

fn file(ino: u64, size: u64) -> Stat {
    Stat { ino, nlink: 1, mode: 0o644, size, ..ZERO_STAT }
}

fn listing(path: &str, xattrs: Vec<Xattr>, entries: Vec<Entry>) -> Listing {
    let stat = Stat { kind: InodeKind::Directory, mode: 0o755, ..file(1, 0) };
    Listing { path: path.into(), stat, xattrs, file_system: 0, entries, unreadable: None }
}

fn new_file(name: &str, ino: u64, size: u64) -> Entry {
    let stat = Some(Box::new(file(ino, size)));
    Entry { name: name.as_bytes().into(), what: Found::Inode { file_system: 0, ino, stat } }
}

fn directory(name: String) -> Entry {
    Entry { name: name.into_bytes().into(), what: Found::Directory }
}

fn problem(path: Vec<u8>) -> Problem {
    Problem { path, kind: ProblemKind::Unreadable, message: "no".to_owned(), errno: 13 }
}

impl Peer {
    /// Sends; a run that has had enough closes its end, and this program ends with it.
    fn raw(&mut self, bytes: &[u8]) {
        if self.output.write_all(bytes).is_err() {
            std::process::exit(0);
        }
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put_compressed(&mut bytes, kind, payload);
        self.raw(&bytes);
    }

    fn read(&mut self) -> frame::Frame {
        frame::read(&mut self.input).unwrap_or_else(|_| std::process::exit(0))
    }

    fn wait_for(&mut self, kind: Kind) -> Vec<u8> {
        loop {
            let frame = self.read();
            if frame.kind == kind {
                return frame.payload;
            }
        }
    }

    fn drip(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.raw(&[*byte]);
            std::thread::sleep(DRIP);
        }
    }

    fn greet(&mut self) {
        let mut greeting = MAGIC.to_vec();
        greeting.extend_from_slice(&VERSION.to_le_bytes());
        self.raw(&greeting);
        self.send(Kind::Hello, br#"{"program":"0","host":"far"}"#);
        let mut preamble = [0; 12];
        if self.input.read_exact(&mut preamble).is_err() {
            std::process::exit(0);
        }
        self.wait_for(Kind::Start);
        self.send(Kind::Started, b"");
    }

    fn block(&mut self, block: &[u8]) {
        let mut offer = blake3::hash(block).as_bytes().to_vec();
        put_varint(&mut offer, block.len() as u64);
        self.send(Kind::BlocksOffered, &offer);
        if self.wait_for(Kind::BlocksWanted)[1] & 1 == 1 {
            let packed = zstd::bulk::compress(block, 3).unwrap();
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Block, &packed);
            self.raw(&bytes);
        }
    }

    fn listings(&mut self, listings: &[Listing]) {
        let mut writer = BlockWriter::default();
        for listing in listings {
            writer.listing(listing, &self.file_systems);
        }
        self.file_systems.clear();
        writer.finish();
        for block in writer.take() {
            self.block(&block);
        }
    }

    fn end_scan(&mut self) {
        self.send(Kind::ScanEnds, &[0, 0]);
    }

    /// A tree of one file, which the run requests.
    fn one_file(&mut self, size: u64) -> Stat {
        self.listings(&[listing("", Vec::new(), vec![new_file("file", 5, size)])]);
        self.end_scan();
        let requests = decode_requests(&self.wait_for(Kind::Reads)).unwrap();
        requests[0].stat
    }

    /// Reads nothing and does nothing until the other side has had enough.
    fn idle(&mut self) {
        let mut rest = Vec::new();
        let _ = self.input.read_to_end(&mut rest);
    }
}

fn events(events: &[Event]) -> Vec<u8> {
    let (mut out, mut coder) = (Vec::new(), StatCoder::default());
    for event in events {
        put_event(&mut out, &mut coder, event);
    }
    out
}

/// Plays an attack to its end.
pub fn play(attack: &str) {
    let stdout = rustix::io::dup(rustix::stdio::stdout()).unwrap();
    // What the test harness prints, such as that a test takes long, must not come between the frames.
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null").unwrap()).unwrap();
    let mut peer = Peer {
        input: Box::new(std::io::stdin()),
        output: stdout.into(),
        blocks: BTreeSet::new(),
        file_systems: vec![Vec::new()],
    };
    match attack {
        "silence" => return peer.idle(),
        "drip-noise" => return peer.drip(&[b'x'; 4000]),
        "drip-hello" => {
            let mut greeting = MAGIC.to_vec();
            greeting.extend_from_slice(&VERSION.to_le_bytes());
            greeting.push(Kind::Hello as u8);
            greeting.extend_from_slice(&1_000_000u32.to_le_bytes());
            peer.raw(&greeting);
            return peer.drip(&[b' '; 4000]);
        }
        _ => {}
    }
    peer.greet();
    match attack {
        "unread-answers" | "mute" | "steal" => at_restore(&mut peer, attack),
        _ if attack.starts_with("drip") => drips(&mut peer, attack),
        _ => memory(&mut peer, attack),
    }
}

fn memory(peer: &mut Peer, attack: &str) {
    match attack {
        "restarts" => {
            peer.one_file(10);
            let payload = vec![4; 1 << 20];
            (0..30).for_each(|_| peer.send(Kind::Events, &payload));
        }
        "events" => {
            peer.one_file(1 << 40);
            let hash = ChunkHash::of(b"chunk");
            let payload = events(&[Event::Zeros(1), Event::Offer(hash, 1)]).repeat(28_000);
            (0..2000).for_each(|_| peer.send(Kind::Events, &payload));
        }
        "problems" => {
            for number in 0..5000u32 {
                let mut writer = BlockWriter::default();
                writer.problem(&problem([&number.to_le_bytes()[..], &[b'p'; 400_000]].concat()));
                writer.finish();
                writer.take().iter().for_each(|block| peer.block(block));
            }
            // The run goes on; in the end it is reported that this tree has no root.
            peer.end_scan();
        }
        "file-systems" => {
            for number in 0..12_000 {
                let mut block = vec![0];
                put_bytes(&mut block, format!("{number}/{}x", "d/".repeat(60_000)).as_bytes());
                peer.block(&block);
            }
        }
        "xattrs-of-directories" => {
            let mut root = vec![new_file("a", 5, 10)];
            root.extend((0..2500).map(|number| directory(format!("d{number:05}"))));
            peer.listings(&[listing("", Vec::new(), root)]);
            let value = vec![7; 60_000];
            let xattrs: Vec<Xattr> =
                (b'a'..=b'o').map(|name| Xattr { name: vec![name].into(), value: value.as_slice().into() }).collect();
            for number in 0..2500 {
                peer.listings(&[listing(&format!("d{number:05}"), xattrs.clone(), Vec::new())]);
            }
        }
        "deep-names" => {
            let mut path = String::new();
            for _ in 0..40 {
                let mut entries = vec![directory("0".to_owned())];
                entries.extend((0..150_000).map(|number| {
                    let what = Found::Inode { file_system: 0, ino: number, stat: None };
                    Entry { name: format!("f{number:06}").into_bytes().into(), what }
                }));
                peer.listings(&[listing(&path, Vec::new(), entries)]);
                path += if path.is_empty() { "0" } else { "/0" };
            }
        }
        "empty-frames" => {
            let mut many = Vec::new();
            (0..10_000).for_each(|_| frame::put(&mut many, Kind::Events, b""));
            (0..3000).for_each(|_| peer.raw(&many));
        }
        _ => known_block(peer, attack),
    }
    peer.idle();
}

fn known_block(peer: &mut Peer, attack: &str) {
    let mut writer = BlockWriter::default();
    let entries = (0..2000).map(|number| new_file(&format!("f{number:05}"), 100 + number, 0)).collect();
    writer.listing(&listing("", Vec::new(), entries), &[Vec::new()]);
    writer.problem(&problem(vec![b'p'; 400_000]));
    writer.finish();
    let blocks = writer.take();
    if attack == "known-block-again" {
        let block = blocks.iter().max_by_key(|block| block.len()).unwrap();
        let mut offer = blake3::hash(block).as_bytes().to_vec();
        put_varint(&mut offer, block.len() as u64);
        peer.send(Kind::BlocksOffered, &offer.repeat(5000));
        return;
    }
    for block in &blocks {
        if peer.blocks.insert(*blake3::hash(block).as_bytes()) {
            peer.block(block);
        }
    }
    peer.end_scan();
    loop {
        let frame = peer.read();
        match frame.kind {
            Kind::Reads => {
                let ends = decode_requests(&frame.payload).unwrap().into_iter().map(|request| Event::Done {
                    stat: request.stat,
                    result: EndResult::Read,
                    read_bytes: 0,
                });
                let payload = events(&ends.collect::<Vec<_>>());
                peer.send(Kind::Events, &payload);
            }
            Kind::Owners => peer.send(Kind::OwnerNames, &[0]),
            Kind::StatRoot => peer.send(Kind::RootStat, b""),
            _ => {}
        }
    }
}

fn drips(peer: &mut Peer, attack: &str) {
    match attack {
        "drip-frame" => {
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::BlocksOffered, &[0; 4000]);
            peer.drip(&bytes);
        }
        "drip-restarts" => {
            peer.one_file(10);
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Events, &events(&[Event::Restart]));
            loop {
                peer.raw(&bytes);
                std::thread::sleep(DRIP);
            }
        }
        "drip-zeros" => {
            peer.one_file(1 << 40);
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Events, &events(&[Event::Zeros(1)]));
            loop {
                peer.raw(&bytes);
                std::thread::sleep(4 * DRIP);
            }
        }
        _ => {
            for names in 0.. {
                peer.send(Kind::Figures, &Figures { names, files: 0, bytes: 0 }.encode());
                std::thread::sleep(DRIP);
            }
        }
    }
}

fn at_restore(peer: &mut Peer, attack: &str) {
    peer.wait_for(Kind::RestoreRequest);
    let name = std::env::var("HOSTILE_PACK").unwrap();
    let mut pack = PackId([0; 16]);
    for (at, byte) in pack.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&name[2 * at..2 * at + 2], 16).unwrap();
    }
    match attack {
        "unread-answers" => {
            let mut many = Vec::new();
            (0..100)
                .for_each(|number| frame::put(&mut many, Kind::Query, &Query::Pack(pack, 0, 250_000).encode(number)));
            (0..100).for_each(|_| peer.raw(&many));
            // The end of stdin would be read.
            std::thread::sleep(Duration::from_secs(120));
        }
        "steal" => {
            let mut stolen = Vec::new();
            let mut questions = Vec::new();
            for table in 0..16 {
                questions.extend((0..40).map(|key| Query::Row(table, key)));
            }
            let length = std::fs::metadata(pack_path(&name)).unwrap().len();
            questions.extend([Query::Pack(pack, 0, length), Query::Pack(pack, length / 2, length - length / 2)]);
            for (number, question) in (0..).zip(questions) {
                peer.send(Kind::Query, &question.encode(number));
                let (_, reply) = Reply::decode(&peer.wait_for(Kind::Answer)).unwrap();
                if let Reply::Bytes(bytes) = reply {
                    // What is compressed is looked through as it was.
                    stolen.extend(plain(&bytes));
                    stolen.extend(bytes);
                }
            }
            std::fs::write(std::path::Path::new(&std::env::var("HOSTILE_SCENE").unwrap()).join("stolen"), stolen)
                .unwrap();
            peer.send(Kind::Failed, b"has all that it wants");
        }
        _ => loop {
            peer.send(Kind::Alive, b"");
            std::thread::sleep(DRIP);
        },
    }
}

fn pack_path(name: &str) -> std::path::PathBuf {
    let packs = std::path::Path::new(&std::env::var("HOSTILE_SCENE").unwrap()).join("store/packs");
    let found = super::odd::paths(&packs).into_iter().find(|path| path.file_name().unwrap().to_str() == Some(name));
    found.unwrap()
}

/// Decompresses every zstd frame that begins anywhere in some bytes.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for at in 0..bytes.len().saturating_sub(4) {
        if bytes[at..at + 4] == [0x28, 0xb5, 0x2f, 0xfd] {
            let mut piece = Vec::new();
            let mut decoder = zstd::stream::read::Decoder::new(&bytes[at..]).unwrap().single_frame();
            let _ = decoder.read_to_end(&mut piece);
            out.extend(piece);
        }
    }
    out
}
