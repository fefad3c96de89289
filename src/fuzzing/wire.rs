//! Decoders of what comes over a connection to an agent.

use std::collections::VecDeque;
use std::fmt::Debug;

use super::driver::parts;
use crate::coding::{DecodeError, Decoder};
use crate::remote::protocol::fields::{StatCoder, problem, put_problem};
use crate::remote::protocol::frame::{self, PAYLOAD_MAX};
use crate::remote::protocol::listing::{BLOCK_LIMIT_BYTES, BlockWriter, ListingReader};
use crate::remote::protocol::messages::{
    ChunkFrame, Figures, decode_bits, decode_owner_names, decode_owners, decode_requests, decode_root_stat,
    encode_bits, encode_owner_names, encode_owners, encode_requests, encode_root_stat, event, put_event,
};
use crate::remote::protocol::restore::{Query, Reply, RestoreRequest};
use crate::remote::protocol::{Hello, Start};
use crate::source::scan::Listing;

/// A stream of frames.
pub(super) fn frames(bytes: &[u8]) {
    let mut input = bytes;
    while let Ok(found) = frame::read(&mut input) {
        assert!(found.payload.len() <= PAYLOAD_MAX);
        let mut again = Vec::new();
        frame::put_compressed(&mut again, found.kind, &found.payload);
        assert_eq!(frame::read(&mut again.as_slice()).ok(), Some(found));
    }
}

/// Blocks of a listing, as parts.
pub(super) fn listing(bytes: &[u8]) {
    let Ok((listings, file_systems)) = read_blocks(&parts(bytes)) else { return };
    // What a file system's number, or a size, may be is wider on the wire than in memory: the first round makes it narrow.
    let once = read_blocks(&write_blocks(&listings, &file_systems)).expect("what was written is read");
    let twice = read_blocks(&write_blocks(&once.0, &once.1)).expect("what was written is read");
    assert_eq!(once, twice);
}

fn read_blocks(blocks: &[impl AsRef<[u8]>]) -> Result<(Vec<Listing>, Vec<Vec<u8>>), DecodeError> {
    let (mut reader, mut listings) = (ListingReader::default(), VecDeque::new());
    blocks.iter().try_for_each(|block| reader.block(block.as_ref(), &mut listings))?;
    reader.finish()?;
    Ok((listings.into(), reader.file_systems().to_vec()))
}

fn write_blocks(listings: &[Listing], file_systems: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut writer = BlockWriter::default();
    listings.iter().for_each(|listing| writer.listing(listing, file_systems));
    writer.finish();
    let blocks = writer.take();
    assert!(blocks.iter().all(|block| block.len() <= BLOCK_LIMIT_BYTES));
    blocks
}

/// The payload of a frame of read requests.
pub(super) fn requests(bytes: &[u8]) {
    let Ok(requests) = decode_requests(bytes) else { return };
    let once = encode_requests(&requests);
    let again = decode_requests(&once).expect("what was encoded is decoded");
    assert_eq!(requests.len(), again.len());
    assert_eq!(once, encode_requests(&again));
}

/// The payload of a frame of events.
pub(super) fn events(bytes: &[u8]) {
    let (mut decoder, mut coder) = (Decoder::new(bytes), StatCoder::default());
    let (mut found, mut again) = (Vec::new(), (Vec::new(), StatCoder::default()));
    while !decoder.is_empty() {
        let Ok(event) = event(&mut decoder, &mut coder) else { break };
        put_event(&mut again.0, &mut again.1, &event);
        found.push(event);
    }
    let (mut decoder, mut coder) = (Decoder::new(&again.0), StatCoder::default());
    for kept in found {
        let back = event(&mut decoder, &mut coder).expect("what was encoded is decoded");
        assert_eq!(std::mem::discriminant(&back), std::mem::discriminant(&kept));
    }
    assert!(decoder.is_empty());
}

/// Asserts that what was decoded, encoded and decoded once more is the same.
fn comes_back<T: PartialEq + Debug, E: Debug>(
    first: Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    if let Ok(first) = first {
        assert_eq!(decode(&encode(&first)).expect("what was encoded is decoded"), first);
    }
}

/// The payloads of smaller frames; the first byte says which.
pub(super) fn messages(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 9 {
        0 => comes_back(decode_bits(bytes, 1 << 16), |bits| encode_bits(bits), |bytes| decode_bits(bytes, 1 << 16)),
        1 => {
            if let Ok(Some(stat)) = decode_root_stat(bytes) {
                let once = encode_root_stat(Some(&stat));
                let again = decode_root_stat(&once).expect("what was encoded is decoded");
                assert_eq!(encode_root_stat(again.as_ref()), once);
            }
        }
        2 => comes_back(
            decode_owners(bytes),
            |(users, groups)| encode_owners(users.iter(), groups.iter()),
            decode_owners,
        ),
        3 => comes_back(decode_owner_names(bytes), encode_owner_names, decode_owner_names),
        4 => comes_back(Figures::decode(bytes), Figures::encode, Figures::decode),
        5 => comes_back(Query::decode(bytes), |(number, question)| question.encode(*number), Query::decode),
        6 => comes_back(Reply::decode(bytes), |(number, reply)| reply.encode(*number), Reply::decode),
        7 => {
            if let Ok(chunk) = ChunkFrame::get(bytes) {
                let mut out = Vec::new();
                chunk.put(&mut out);
                assert_eq!(ChunkFrame::get(&out), Ok(chunk));
            }
        }
        _ => {
            let encode = |problem: &_| {
                let mut out = Vec::new();
                put_problem(&mut out, problem);
                out
            };
            comes_back(problem(&mut Decoder::new(bytes)), encode, |bytes| problem(&mut Decoder::new(bytes)));
        }
    }
}

/// The JSON of a handshake, and of what a restore is to do.
pub(super) fn handshake(bytes: &[u8]) {
    let _ = serde_json::from_slice::<RestoreRequest>(bytes);
    let encode = |value: &Hello| serde_json::to_vec(value).unwrap_or_default();
    comes_back(serde_json::from_slice::<Hello>(bytes), encode, |bytes| serde_json::from_slice(bytes));
    let encode = |value: &Start| serde_json::to_vec(value).unwrap_or_default();
    comes_back(serde_json::from_slice::<Start>(bytes), encode, |bytes| serde_json::from_slice(bytes));
}
