//! The protocol between a run and the agent at its source: frames over one stream of bytes each way.
//!
//! Both sides begin with a preamble of 12 bytes: the magic `ZMRAGENT` and the protocol's version (4 bytes). What a shell at the remote host prints before it is
//! passed over. Then come frames (see [`frame`]): a byte for the kind, the length, the payload. All integers of the handshake are JSON, all others varints (see
//! [`crate::coding`]).
//!
//! | from | kind | payload |
//! | --- | --- | --- |
//! | agent | Hello | JSON: [`Hello`] |
//! | run | Start | JSON: [`Start`] |
//! | agent | Started | of an agent that only reads a byte: what the kernel confines it with (1 Landlock, 2 seccomp); of others empty; or Failed |
//! | agent | Failed | text: why it ends |
//! | run | Dictionary | number, bytes: compress small chunks with it from now on |
//! | agent | BlocksOffered | for each listing block its BLAKE3 (32 bytes) and length |
//! | run | BlocksWanted | count, then a bit for each offered block, in order: 1 if it has to be sent |
//! | agent | Block | one zstd frame, in order of the wanted ones |
//! | agent | ScanEnds | see [`messages`] |
//! | run | Reads | read requests |
//! | agent | Events | parts of answers, in order of the requests; chunks by hash only |
//! | run | ChunksWanted | count, then a bit for each offered chunk, in order |
//! | agent | Chunk | its place among all offers, codec, dictionary, plain length, bytes |
//! | run | Taken | bytes of Events payloads that were taken since the last: the agent stops at [`EVENTS_AHEAD_BYTES`] untaken |
//! | run | ReadApart | one read request, answered at once by ApartEvents, chunks within |
//! | run | StatRoot | a name; answered by RootStat |
//! | run | Owners | numbers of users and of groups; answered by OwnerNames |
//! | agent | Figures | how far the scan and the reads are |
//! | both | Alive | empty, at least every [`ALIVE_SECONDS`] |
//!
//! A restore on the remote host has frames of its own: see [`restore`].
//!
//! Blocks and chunks are never sent before the other side has requested them, and only so many are offered and not answered ([`BLOCKS_AHEAD`],
//! [`OFFERED_AHEAD_BYTES`]): this bounds the memory of both sides, and neither ever stops reading its stream, so they cannot wait for each other.
//!
//! Neither side believes that the other one keeps to this. Whatever is decoded and kept is counted by the bytes that it takes in memory, not by the bytes in
//! which it came (a frame of some bytes may unpack to a million events), and a side that sends more than the windows allow is cut off.

pub mod fields;
pub mod frame;
pub mod listing;
pub mod messages;
pub mod restore;

use serde::{Deserialize, Serialize};

/// Version of the protocol. Sides of different versions do not talk.
pub const VERSION: u32 = 1;
/// What the preamble begins with.
pub const MAGIC: [u8; 8] = *b"ZMRAGENT";
/// Length of the preamble, in bytes.
pub const PREAMBLE_BYTES: usize = 12;
/// So many bytes may come before the preamble: what a login shell prints.
pub const NOISE_BYTES: usize = 64 << 10;

/// Listing blocks that may be offered and not answered.
pub const BLOCKS_AHEAD: usize = 64;
/// Plain bytes of chunks that may be offered and not answered; the agent holds them.
pub const OFFERED_AHEAD_BYTES: usize = 24 << 20;
/// Bytes of Events payloads that may be sent and not taken.
pub const EVENTS_AHEAD_BYTES: usize = 4 << 20;
/// Bytes of read requests, as they count in memory ([`messages::request_bytes`]), that a run has with the agent and not answered.
pub const REQUESTS_AHEAD_BYTES: usize = 8 << 20;
/// So many of them an agent takes before it cuts the run off. Runs of earlier versions request all new files of one directory at once.
pub const REQUESTS_WAITING_MAX_BYTES: usize = 64 << 20;
/// Owners that are requested in one frame.
pub const OWNERS_ASKED: usize = 10_000;
/// Both sides send something at least so often.
pub const ALIVE_SECONDS: u64 = 10;
/// A side that heard nothing for so long takes the connection for lost.
pub const SILENCE_SECONDS: u64 = 60;

/// Returns the preamble that each side begins with.
pub(super) fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// What the agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the program.
    pub program: String,
    /// Name of the host.
    pub host: String,
    /// BLAKE3 of the running program, in hexadecimal; empty if it could not be read.
    #[serde(default)]
    pub binary: String,
}

/// What the run wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What to do.
    pub task: Task,
    /// The directory to take, as the user named it.
    pub root: String,
    /// Exclude patterns, the default ones included.
    #[serde(default)]
    pub excludes: Vec<String>,
    /// Whether directories on other file systems are entered.
    #[serde(default)]
    pub cross_file_systems: bool,
    /// zstd level of chunks; 0 sends them as they are.
    #[serde(default)]
    pub level: i32,
    /// Threads that scan, read and compress, each; 0 chooses.
    #[serde(default)]
    pub threads: usize,
    /// Most bytes a second that are sent; 0 for no limit.
    #[serde(default)]
    pub bytes_per_second: u64,
}

/// The tasks of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Scan and read.
    Pull,
    /// Scan only.
    Scan,
    /// Write a part of a snapshot below the root.
    Restore,
}
