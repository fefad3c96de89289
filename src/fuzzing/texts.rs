//! Decoders of files of the tree and of the system, and of names.

use std::io::Write;

use super::driver::memory_file;
use crate::catalog::commit;
use crate::layout::xml::{read_accounts, read_meta, read_session};
use crate::model::{Kind, Stat, ZERO_STAT};
use crate::remote::transport::known_hosts;
use crate::remote::transport::spec::RemoteSpec;
use crate::source::chunker::{Chunker, JOINED_LITERAL_MAX, MAX_CHUNK_BYTES, SegmentSink, SinkClosed};
use crate::store::PackId;
use crate::view::{parse_time, split_spec};

/// Longer files show nothing that one of some chunks does not.
const CUT_MAX_BYTES: usize = 3 << 20;

/// Puts the segments of a file together again.
#[derive(Default)]
struct Joined(Vec<u8>);

impl SegmentSink for Joined {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        assert!((1..=JOINED_LITERAL_MAX).contains(&bytes.len()));
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn zeros(&mut self, length: u64) -> Result<(), SinkClosed> {
        assert!(length > 0);
        self.0.resize(self.0.len() + length as usize, 0);
        Ok(())
    }

    fn chunk(&mut self, plain: Vec<u8>) -> Result<(), SinkClosed> {
        assert!((1..=MAX_CHUNK_BYTES).contains(&plain.len()));
        self.0.extend_from_slice(&plain);
        Ok(())
    }
}

/// Cuts a file: the segments together are what it holds.
fn cut(content: &[u8]) {
    let mut file = memory_file();
    file.write_all(content).expect("memory takes it");
    let size = content.len() as u64;
    let stat = Stat { kind: Kind::File, size, allocated_bytes: size, ..ZERO_STAT };
    let mut joined = Joined::default();
    let delivered = Chunker::new().split(&file, &stat, &mut joined);
    assert_eq!(delivered.ok(), Some(size));
    assert!(joined.0 == content, "the segments are not the file");
}

/// A zip, or any file.
pub(super) fn cut_zip(bytes: &[u8]) {
    cut(bytes);
}

/// A message, or any file: pieces, before each how often it is repeated (1 byte, squared) and its length (1 byte), for a part is cut out only when it is long.
pub(super) fn cut_message(mut bytes: &[u8]) {
    let mut content = Vec::new();
    while let [times, length, rest @ ..] = bytes {
        let (piece, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let times = usize::from(*times).pow(2).min((CUT_MAX_BYTES - content.len()) / piece.len().max(1));
        content.extend_from_slice(&piece.repeat(times));
        bytes = rest;
    }
    cut(&content);
}

/// One of the three XML files of a backup.
pub(super) fn xml(bytes: &[u8]) {
    let accounts = read_accounts(bytes, |entry| assert!(!entry.id.is_empty()));
    let (session, meta) = (read_session(bytes, |_| {}), read_meta(bytes));
    // Memory does not fail, and what a file says is no error.
    assert!(accounts.is_ok() && session.is_ok() && meta.is_ok());
}

/// A file of known hosts.
pub(super) fn known_hosts(bytes: &[u8]) {
    let hosts = known_hosts::parse(bytes);
    for (host, port) in [("mail.example.com", 22), ("mail.example.com", 2222), ("[::1]", 22)] {
        let _ = hosts.verdict(host, port, b"\0\0\0\x0bssh-ed25519");
        let _ = hosts.types(host, port);
    }
}

/// Names, labels and other words.
pub(super) fn names(bytes: &[u8]) {
    crate::zimbra::fuzzing::names(bytes);
    let (snapshot, path) = split_spec(bytes);
    assert!(snapshot.len() + path.map_or(0, <[u8]>::len) <= bytes.len());
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = (parse_time(text), RemoteSpec::parse(text));
    if let Some(number) = commit::parse_key(text) {
        assert_eq!(commit::parse_key(&commit::key(number)), Some(number));
    }
    if let Some(id) = PackId::from_key(text) {
        assert_eq!(id.key(), text);
    }
}
