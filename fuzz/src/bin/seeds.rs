//! Makes inputs for the targets from real bytes: a store, what an agent and a shell sent, files of a tree. `fuzz/make-seeds` calls it with the directory in
//! which it gathered them and the one that gets a directory of inputs for each target.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use zmreplica::catalog::CatalogError;
use zmreplica::catalog::database_reader::DatabaseReader;
use zmreplica::catalog::directory::names_of_page;
use zmreplica::catalog::object::{self, ObjectKind};
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::catalog::tables::Table;
use zmreplica::remote::protocol::frame::{self, Kind};
use zmreplica::remote::protocol::restore::{Query, Reply};
use zmreplica::replica::Replica;
use zmreplica::store::PackId;

/// A longer input costs more than it shows.
const INPUT_MAX_BYTES: usize = 24 << 10;
/// That of a whole connection.
const STREAM_MAX_BYTES: usize = 96 << 10;
/// Files of one sort say the same again after so many.
const OF_A_SORT: usize = 12;

struct Seeds {
    directory: PathBuf,
    counts: BTreeMap<&'static str, usize>,
}

impl Seeds {
    fn add(&mut self, target: &'static str, input: &[&[u8]]) {
        let bytes = input.concat();
        let count = self.counts.entry(target).or_default();
        if bytes.len() > if target.ends_with("_stream") { STREAM_MAX_BYTES } else { INPUT_MAX_BYTES }
            || *count >= 4 * OF_A_SORT
        {
            return;
        }
        *count += 1;
        let directory = self.directory.join(target);
        fs::create_dir_all(&directory).expect("the directory is made");
        let name = &blake3::hash(&bytes).to_hex()[..16];
        fs::write(directory.join(name), bytes).expect("the input is written");
    }

    fn part(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        [&length.to_le_bytes(), &bytes[..usize::from(length)]].concat()
    }

    fn rows(&mut self, reader: &DatabaseReader) -> Result<(), CatalogError> {
        let mut objects = BTreeMap::new();
        reader.scan(Table::Objects, 0, |number, stored| {
            let stored = stored?;
            self.add("object", &[stored]);
            if let Some(kind) = object::stored_kind(stored)
                && let Ok(plain) = object::decode(kind, stored)
            {
                objects.insert(number, (kind, plain));
            }
            Ok(())
        })?;
        for (kind, plain) in objects.values() {
            match kind {
                ObjectKind::Index => self.add("directory_index", &[plain]),
                ObjectKind::Content => self.add("content", &[plain]),
                ObjectKind::Links => self.add("link_counts", &[plain]),
                ObjectKind::Page => {
                    let names = names_of_page(plain).ok().and_then(|number| objects.get(&number.0));
                    if let Some((_, names)) = names {
                        self.add("directory_page", &[&Self::part(names), &Self::part(plain)]);
                    }
                }
                ObjectKind::Names | ObjectKind::Problems => {}
            }
        }
        let mut each = |table, visit: &mut dyn FnMut(&mut Seeds, &[u8])| {
            reader.scan(table, 0, |_, row| {
                visit(self, row?);
                Ok(())
            })
        };
        each(Table::Groups, &mut |seeds, row| seeds.add("group_page", &[row]))?;
        each(Table::Chunks, &mut |seeds, row| seeds.add("chunk_page", &[row]))?;
        each(Table::Packs, &mut |seeds, row| seeds.add("rows", &[&[0], row]))?;
        each(Table::Condemned, &mut |seeds, row| seeds.add("rows", &[&[1], row]))?;
        each(Table::Meta, &mut |seeds, row| seeds.add("rows", &[&[2], row]))?;
        each(Table::Marks, &mut |seeds, row| seeds.add("rows", &[&[3], row]))?;
        each(Table::Meta, &mut |seeds, row| seeds.add("config", &[row]))?;
        each(Table::Snapshots, &mut |seeds, row| {
            seeds.add("snapshot_record", &[row]);
            let rest = br#","subtree":"61","overwrite":"never","delete":false,"numeric_ids":true,"dry_run":false}"#;
            seeds.add("handshake", &[br#"{"record":"#, row, rest]);
            if let Ok(record) = SnapshotRecord::decode(row)
                && let Ok(root) = HEXLOWER.decode(record.root.as_bytes())
            {
                seeds.add("directory_root", &[&root]);
            }
        })
    }

    fn store(&mut self, store: &Path) {
        let replica = Replica::open(store).expect("the store opens");
        self.rows(&replica.database().read().expect("the catalogue is read")).expect("its rows are read");
        for (path, bytes) in files(store) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let within = |folder: &str| path.strip_prefix(store).is_ok_and(|rest| rest.starts_with(folder));
            let inner = |from: usize, to: usize| bytes.get(from..bytes.len().saturating_sub(to)).unwrap_or_default();
            if within("commits") {
                let body = unpacked(inner(48, 32));
                self.add("commit", &[&[0], &body]);
                self.add("commit", &[&[1], &(body.len() as u64).to_le_bytes(), inner(48, 32)]);
                let head = [&[1, 100], bytes.get(24..40).unwrap_or_default()].concat();
                self.add(
                    "checkpoint",
                    &[&Self::part(&[&[0], head.as_slice()].concat()), &Self::part(&[&[0], body.as_slice()].concat())],
                );
            } else if within("packs") {
                self.add("pack", &[&[1], &bytes]);
                self.add("pack", &[&[0], inner(80, 72)]);
            } else if within("config.json") {
                self.add("config", &[&bytes]);
            } else if name.starts_with("inodes-") {
                self.add("inode_cache", &[inner(8, 32)]);
            } else if within("cache/ledger") {
                self.add("ledger", &[&[0], &unpacked(inner(40, 32))]);
            } else if name == "zimbra-facts" {
                self.add("ledger", &[&[2], &unpacked(inner(40, 32))]);
                self.add("ledger", &[&[3], inner(40, 32)]);
            } else if bytes.starts_with(b"ZMRLIST1") {
                self.add("block_cache", &[&bytes[8..]]);
            }
        }
    }

    /// What one side of a pull sent: noise, the preamble, frames.
    fn stream(&mut self, sent: &[u8]) {
        let at = sent.windows(8).position(|window| window == b"ZMRAGENT").expect("a preamble");
        let mut rest = &sent[at + 12..];
        self.add("frames", &[&rest[..rest.len().min(4096)]]);
        let mut blocks = Vec::new();
        while let Ok(found) = frame::read(&mut rest) {
            let payload = found.payload.as_slice();
            match found.kind {
                Kind::Hello | Kind::Start => self.add("handshake", &[payload]),
                Kind::Started => self.add("agent_stream", &[rest]),
                Kind::Events | Kind::ApartEvents => self.add("events", &[payload]),
                Kind::Reads => self.add("requests", &[payload]),
                Kind::BlocksWanted | Kind::ChunksWanted => self.add("messages", &[&[0], payload]),
                Kind::RootStat => self.add("messages", &[&[1], payload]),
                Kind::Owners => self.add("messages", &[&[2], payload]),
                Kind::OwnerNames => self.add("messages", &[&[3], payload]),
                Kind::Figures => self.add("messages", &[&[4], payload]),
                Kind::Chunk => self.add("messages", &[&[7], payload]),
                Kind::Block => blocks.push(frame::unpack(payload, 1 << 20).expect("a block")),
                _ => {}
            }
        }
        if !blocks.is_empty() {
            self.add("listing", &[&blocks.iter().flat_map(|block| Self::part(block)).collect::<Vec<_>>()]);
        }
    }

    /// What has no bytes of its own in a store or a stream.
    fn words(&mut self) {
        self.add("messages", &[&[5], &Query::Row(4, 300).encode(7)]);
        self.add("messages", &[&[5], &Query::Pack(PackId([9; 16]), 80, 1 << 20).encode(8)]);
        self.add("messages", &[&[6], &Reply::Bytes(b"row".to_vec()).encode(7)]);
        self.add("messages", &[&[6], &Reply::Failed("It cannot be had".to_owned()).encode(8)]);
        self.add("messages", &[&[8], b"\x03a/b\x00\x11Permission denied\x1a"]);
        let packed = zstd::bulk::compress(&[b'a'; 300], 3).expect("it compresses");
        self.add("codec", &[&[1, 44, 1, 0], &packed]);
        self.add("codec", &[&[0, 5, 0, 0], b"plain"]);
        let index = b"\x02\x01a\x14\x18\x02bc\x02\x10";
        self.add("directory_index", &[index]);
        for name in [
            "full-20261101.010000.123",
            "incr-20261102.010000.123",
            "redo-20261102.010000.123-seq42.log",
            "257-3.msg",
            "shared_blobs/ab/cd/abcdef+0123=.msg",
            "latest:sessions/full",
            "2026-11-21T10:00:00+01:00:a/b",
            "user@mail.example.com:2222:/opt/zimbra/backup",
            "ssh://user@[::1]:2222/opt/zimbra/backup",
            "commits/000000000000002a",
            "packs/05/05050505050505050505050505050505",
        ] {
            self.add("names", &[name.as_bytes()]);
        }
        let message = b"From: a@example.com\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b1\"\n\n--b1\nContent-Type: text/plain\n\nText\n--b1\nContent-Transfer-Encoding: base64\n\n";
        let line = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAx\n";
        let (one, end) = (message.len() as u8, b"\x01\x07--b1--\n".as_slice());
        for times in [3, 10, 40, 100] {
            self.add("cut_message", &[&[1, one], message, &[times, line.len() as u8], line, end]);
        }
        self.add("cut_message", &[&[250, 8], b"abcdefgh", &[1, one], message, &[90, 73], line, end]);
    }
}

fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let _ = zstd::stream::read::Decoder::new(packed).and_then(|mut stream| stream.read_to_end(&mut plain));
    plain
}

/// Returns all files below a directory, with their bytes.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut entries: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            found.push((path, bytes));
        }
    }
    found
}

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [from, to] = arguments.as_slice() else { panic!("Usage: seeds GATHERED CORPUS") };
    let mut seeds = Seeds { directory: to.clone(), counts: BTreeMap::new() };
    seeds.store(&from.join("store"));
    for side in ["agent", "run"] {
        seeds.stream(&fs::read(from.join(side)).expect("what was sent"));
    }
    let shell = fs::read(from.join("shell")).expect("what a shell sent");
    seeds.add("shell_stream", &[&shell]);
    for record in
        shell.split(|byte| *byte == 0).filter(|record| record.iter().filter(|byte| **byte == b' ').count() > 9)
    {
        seeds.add("shell_find", &[record]);
    }
    for target in ["shell_tar", "shell_words", "shell_find", "known_hosts"] {
        for (_, bytes) in files(&from.join(target)) {
            seeds.add(target, &[&bytes]);
        }
    }
    for (path, bytes) in files(&from.join("tree")) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xml") => seeds.add("xml", &[&bytes]),
            Some("zip") => seeds.add("cut_zip", &[&bytes]),
            _ => {}
        }
    }
    seeds.words();
}
