//! What targets have in common: the parts of an input, files in memory, and a run over a connection that is a string of bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Cursor};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::ids::{ChunkId, DictionaryId};
use crate::model::ChunkHash;
use crate::remote::transport::{Connection, Control, ExitInfo};
use crate::source::chunk_intake::{ArrivedChunk, ChunkIntake, IntakeFailed, NumberedChunk};
use crate::source::read::{CutChunk, ReadEvent, ReadRequest, Want};
use crate::source::scan::Found;
use crate::source::tree::SourceTree;

/// Splits an input into parts: a length (2 bytes, little endian) before each; the last one may be shorter than it says.
pub(super) fn parts(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (part, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        parts.push(part);
        bytes = rest;
    }
    parts
}

/// Makes a file without a name, in memory.
pub(crate) fn memory_file() -> File {
    File::from(memfd_create("zmreplica-fuzz", MemfdFlags::CLOEXEC).expect("there is memory for an empty file"))
}

/// Returns a path by which this process can open a file once more.
pub(crate) fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A connection on which the given bytes come, and what is sent goes nowhere.
pub(crate) struct Stream;

impl Stream {
    pub(crate) fn connection(bytes: &[u8]) -> Connection {
        Connection {
            input: Box::new(Cursor::new(bytes.to_vec())),
            output: Box::new(io::sink()),
            control: Arc::new(Stream),
        }
    }
}

impl Control for Stream {
    fn abort(&self) {}

    fn exit_info(&self) -> ExitInfo {
        ExitInfo::default()
    }
}

/// Wants every chunk that it is offered for the first time.
#[derive(Default)]
struct Intake(Vec<ChunkHash>);

impl ChunkIntake for Intake {
    fn take(&mut self, chunk: CutChunk) -> Result<NumberedChunk, IntakeFailed> {
        let length = chunk.plain.len() as u32;
        Ok(NumberedChunk { number: self.offer(&chunk.hash, length)?.0, length })
    }

    fn offer(&mut self, hash: &ChunkHash, _plain_length: u32) -> Result<(ChunkId, bool), IntakeFailed> {
        let known = self.0.iter().position(|known| known == hash);
        if known.is_none() {
            self.0.push(*hash);
        }
        Ok((ChunkId(known.unwrap_or(self.0.len() - 1) as u64), known.is_none()))
    }

    fn arrive(&mut self, chunk: ArrivedChunk) -> Result<(), IntakeFailed> {
        assert_eq!(self.0.get(chunk.number.0 as usize), Some(&chunk.hash), "a chunk that was not requested");
        Ok(())
    }

    fn forget(&mut self, _hash: &ChunkHash) {}

    fn dictionary(&self) -> Option<(DictionaryId, &[u8])> {
        None
    }
}

/// Does with a tree what a run does: takes all listings, and requests what they name and the names of owners.
pub(crate) fn drive(tree: &mut dyn SourceTree) {
    let (mut requests, mut owners) = (Vec::new(), BTreeSet::new());
    while let Ok(Some(listing)) = tree.next_listing() {
        for entry in listing.entries {
            let Found::Inode { stat: Some(stat), .. } = entry.what else { continue };
            owners.insert(stat.uid);
            let path = match listing.path.as_slice() {
                b"" => entry.name.into_vec(),
                directory => [directory, b"/", &entry.name].concat(),
            };
            requests.push(ReadRequest { path, stat: *stat, want: Want::Content });
        }
    }
    let _ = tree.end_of_scan();
    let mut intake = Intake::default();
    let mut due = requests.len();
    let sent = requests.into_iter().try_for_each(|request| tree.submit(request)).and_then(|()| tree.flush());
    while sent.is_ok() && due > 0 {
        match tree.receive(&mut intake) {
            Ok(ReadEvent::Done(_)) => due -= 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let _ = tree.wait_for_chunks(&mut intake);
    let _ = tree.owner_names(&owners, &owners);
    tree.abandon(&mut intake);
}
