//! The payloads of frames that carry requests and answers.

use crate::coding::{DecodeError, Decoder, put_bytes, put_signed, put_varint};
use crate::model::{ChunkHash, Codec, Stat, Xattr};
use crate::remote::protocol::fields::{StatCoder, checked_path, put_xattr, xattr};
use crate::remote::protocol::frame::PAYLOAD_MAX;
use crate::source::read::{ReadRequest, ReadResult, Want};
use crate::source::tree::OwnerNames;

/// Most bytes of the requests of one frame, as they count in memory: 128 of them with paths of 256 KiB together, and one path of any length, are far less.
pub const REQUESTS_FRAME_MAX_BYTES: usize = 2 << 20;
/// Most numbers of owners in one frame.
const OWNERS_MAX: usize = 1 << 16;
/// Returns the bytes that a request takes in memory while it waits, roughly.
pub fn request_bytes(request: &ReadRequest) -> usize {
    request.path.len() + size_of::<ReadRequest>() + 64
}

/// Encodes read requests.
pub fn encode_requests(requests: &[ReadRequest]) -> Vec<u8> {
    let (mut out, mut coder, mut last) = (Vec::new(), StatCoder::default(), &[][..]);
    for request in requests {
        let shared = request.path.iter().zip(last).take_while(|(a, b)| a == b).count();
        out.push(u8::from(request.want == Want::Content));
        put_varint(&mut out, shared as u64);
        put_bytes(&mut out, &request.path[shared..]);
        coder.put(&mut out, &request.stat);
        last = &request.path;
    }
    out
}

/// Decodes read requests. Paths share beginnings, so what they take is bounded, not what they came in.
///
/// # Errors
/// For bytes that no side writes: paths of no file, and more than [`REQUESTS_FRAME_MAX_BYTES`].
pub fn decode_requests(payload: &[u8]) -> Result<Vec<ReadRequest>, DecodeError> {
    let (mut decoder, mut coder) = (Decoder::new(payload), StatCoder::default());
    let mut requests: Vec<ReadRequest> = Vec::new();
    let mut held = 0;
    while !decoder.is_empty() {
        let want = match decoder.byte()? {
            0 => Want::Attributes,
            1 => Want::Content,
            _ => return Err(DecodeError("an unknown kind of request")),
        };
        let shared = usize::try_from(decoder.varint()?).unwrap_or(usize::MAX);
        let last = requests.last().map_or(&[][..], |request| &request.path);
        let (begin, end) =
            (last.get(..shared).ok_or(DecodeError("a path that goes on where none is"))?, decoder.bytes()?);
        let path = checked_path([begin, end].concat())?;
        if path.is_empty() {
            return Err(DecodeError("a request for no name"));
        }
        let request = ReadRequest { path, stat: coder.get(&mut decoder)?, want };
        held += request_bytes(&request);
        if held > REQUESTS_FRAME_MAX_BYTES {
            return Err(DecodeError("more requests than one frame may hold"));
        }
        requests.push(request);
    }
    Ok(requests)
}

/// One event of an answer, as it is transferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A segment that is kept as it is.
    Literal(Vec<u8>),
    /// A hole.
    Zeros(u64),
    /// A chunk that the agent holds, by hash and plain length.
    Offer(ChunkHash, u32),
    /// A chunk with its bytes: only where no offers are made.
    Chunk(Vec<u8>),
    /// The segments so far are void.
    Restart,
    /// An extended attribute of the inode whose end follows.
    Xattr(Xattr),
    /// The end of an answer.
    Done {
        /// What is at the name now.
        stat: Stat,
        /// How it ended.
        result: EndResult,
        /// Bytes read, all attempts together.
        read_bytes: u64,
    },
}

/// How reading an inode ended, as it is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndResult {
    /// See [`ReadResult::Read`].
    Read,
    /// See [`ReadResult::Changed`].
    Changed,
    /// See [`ReadResult::Vanished`].
    Vanished,
    /// See [`ReadResult::Failed`].
    Failed(i32),
}

impl From<&ReadResult> for EndResult {
    fn from(result: &ReadResult) -> EndResult {
        match result {
            ReadResult::Read => EndResult::Read,
            ReadResult::Changed => EndResult::Changed,
            ReadResult::Vanished => EndResult::Vanished,
            ReadResult::Failed(errno) => EndResult::Failed(*errno),
        }
    }
}

impl From<EndResult> for ReadResult {
    fn from(result: EndResult) -> ReadResult {
        match result {
            EndResult::Read => ReadResult::Read,
            EndResult::Changed => ReadResult::Changed,
            EndResult::Vanished => ReadResult::Vanished,
            EndResult::Failed(errno) => ReadResult::Failed(errno),
        }
    }
}

/// Appends an event; stats share the coder of their payload.
pub fn put_event(out: &mut Vec<u8>, coder: &mut StatCoder, event: &Event) {
    match event {
        Event::Literal(bytes) => {
            out.push(0);
            put_bytes(out, bytes);
        }
        Event::Zeros(length) => {
            out.push(1);
            put_varint(out, *length);
        }
        Event::Offer(hash, length) => {
            out.push(2);
            out.extend_from_slice(&hash.0);
            put_varint(out, u64::from(*length));
        }
        Event::Chunk(plain) => {
            out.push(3);
            put_bytes(out, plain);
        }
        Event::Restart => out.push(4),
        Event::Xattr(xattr) => {
            out.push(5);
            put_xattr(out, xattr);
        }
        Event::Done { stat, result, read_bytes } => {
            let (code, errno) = match result {
                EndResult::Read => (6, None),
                EndResult::Changed => (7, None),
                EndResult::Vanished => (8, None),
                EndResult::Failed(errno) => (9, Some(*errno)),
            };
            out.push(code);
            if let Some(errno) = errno {
                put_signed(out, i64::from(errno));
            }
            coder.put(out, stat);
            put_varint(out, *read_bytes);
        }
    }
}

/// Reads an event.
///
/// # Errors
/// For bytes that no side writes.
pub fn event(decoder: &mut Decoder<'_>, coder: &mut StatCoder) -> Result<Event, DecodeError> {
    let code = decoder.byte()?;
    Ok(match code {
        0 => Event::Literal(decoder.bytes()?.to_vec()),
        1 => Event::Zeros(decoder.varint()?),
        2 => Event::Offer(ChunkHash(decoder.array()?), decoder.varint32()?),
        3 => Event::Chunk(decoder.bytes()?.to_vec()),
        4 => Event::Restart,
        5 => {
            let mut one = Vec::new();
            xattr(decoder, &mut one, &mut 0)?;
            match one.pop() {
                Some(xattr) => Event::Xattr(xattr),
                None => return Err(DecodeError("an extended attribute that is none")),
            }
        }
        6..=9 => {
            let result = match code {
                6 => EndResult::Read,
                7 => EndResult::Changed,
                8 => EndResult::Vanished,
                _ => EndResult::Failed(
                    i32::try_from(decoder.signed()?)
                        .ok()
                        .filter(|errno| (1..4096).contains(errno))
                        .ok_or(DecodeError("an error number that none is"))?,
                ),
            };
            Event::Done { stat: coder.get(decoder)?, result, read_bytes: decoder.varint()? }
        }
        _ => return Err(DecodeError("an unknown event")),
    })
}

/// A chunk that was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFrame<'a> {
    /// Its place among all offers of the connection.
    pub offer: u64,
    /// How the bytes are to be read. It is transferred as in packs: its number, and that of the dictionary or 0.
    pub codec: Codec,
    /// The bytes.
    pub stored: &'a [u8],
}

impl ChunkFrame<'_> {
    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let (codec, dictionary) = self.codec.numbers();
        put_varint(out, self.offer);
        out.push(codec);
        put_varint(out, u64::from(dictionary));
        out.extend_from_slice(self.stored);
    }

    /// Reads one from a whole payload.
    ///
    /// # Errors
    /// For bytes that no side writes.
    pub fn get(payload: &[u8]) -> Result<ChunkFrame<'_>, DecodeError> {
        let mut decoder = Decoder::new(payload);
        let offer = decoder.varint()?;
        let codec = Codec::from_numbers(decoder.byte()?, decoder.varint32()?)
            .ok_or(DecodeError("a codec that is unknown, or that does not go with its dictionary"))?;
        Ok(ChunkFrame { offer, codec, stored: decoder.take(decoder.remaining())? })
    }
}

/// Encodes a bit for each of a run of offers.
pub fn encode_bits(bits: &[bool]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bits.len() / 8 + 4);
    put_varint(&mut out, bits.len() as u64);
    for eight in bits.chunks(8) {
        out.push(eight.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at));
    }
    out
}

/// Decodes the bits of a run of offers, of which `most` are due.
///
/// # Errors
/// For bytes that no side writes, and for more bits than are due.
pub fn decode_bits(payload: &[u8], most: usize) -> Result<Vec<bool>, DecodeError> {
    let mut decoder = Decoder::new(payload);
    let count = decoder.varint()?;
    if count > most as u64 {
        return Err(DecodeError("an answer to what was not offered"));
    }
    if count.div_ceil(8) != decoder.remaining() as u64 {
        return Err(DecodeError("a count that does not fit its bits"));
    }
    let bytes = decoder.take(decoder.remaining())?;
    Ok((0..count as usize).map(|at| bytes[at / 8] >> (at % 8) & 1 == 1).collect())
}

/// Encodes the answer about a name below the root.
pub fn encode_root_stat(stat: Option<&Stat>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(stat) = stat {
        StatCoder::default().put(&mut out, stat);
    }
    out
}

/// Decodes the answer about a name below the root.
///
/// # Errors
/// For bytes that no side writes.
pub fn decode_root_stat(payload: &[u8]) -> Result<Option<Stat>, DecodeError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let mut decoder = Decoder::new(payload);
    let stat = StatCoder::default().get(&mut decoder)?;
    decoder.finish()?;
    Ok(Some(stat))
}

/// Encodes numbers of users and of groups, in order.
pub fn encode_owners<'a>(
    users: impl ExactSizeIterator<Item = &'a u32>,
    groups: impl ExactSizeIterator<Item = &'a u32>,
) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, users.len() as u64);
    users.chain(groups).for_each(|number| put_varint(&mut out, u64::from(*number)));
    out
}

/// Decodes numbers of users and of groups.
///
/// # Errors
/// For bytes that no side writes.
pub fn decode_owners(payload: &[u8]) -> Result<(Vec<u32>, Vec<u32>), DecodeError> {
    if payload.len() > 5 * OWNERS_MAX {
        return Err(DecodeError("more owners than are requested at once"));
    }
    let mut decoder = Decoder::new(payload);
    let users = (0..decoder.count()?).map(|_| decoder.varint32()).collect::<Result<_, _>>()?;
    let mut groups = Vec::new();
    while !decoder.is_empty() {
        groups.push(decoder.varint32()?);
    }
    Ok((users, groups))
}

/// Encodes names of owners; those for which a frame has no room are left out, and their numbers stay without names.
pub fn encode_owner_names(names: &OwnerNames) -> Vec<u8> {
    let mut room = PAYLOAD_MAX - 64;
    let mut fits = |name: &str| {
        room = room.saturating_sub(name.len() + 15);
        room > 0
    };
    let users: Vec<_> = names.users.iter().take_while(|(_, name)| fits(name)).collect();
    let groups: Vec<_> = names.groups.iter().take_while(|(_, name)| fits(name)).collect();
    let mut out = Vec::new();
    put_varint(&mut out, users.len() as u64);
    for (number, name) in users.into_iter().chain(groups) {
        put_varint(&mut out, u64::from(*number));
        put_bytes(&mut out, name.as_bytes());
    }
    out
}

/// Decodes names of owners.
///
/// # Errors
/// For bytes that no side writes.
pub fn decode_owner_names(payload: &[u8]) -> Result<OwnerNames, DecodeError> {
    fn one(decoder: &mut Decoder<'_>) -> Result<(u32, String), DecodeError> {
        let number = decoder.varint32()?;
        let name = std::str::from_utf8(decoder.bytes()?).map_err(|_| DecodeError("a name that is not UTF-8"))?;
        Ok((number, name.to_owned()))
    }
    let mut decoder = Decoder::new(payload);
    let users = (0..decoder.count()?).map(|_| one(&mut decoder)).collect::<Result<_, _>>()?;
    let mut names = OwnerNames { users, ..OwnerNames::default() };
    while !decoder.is_empty() {
        let (number, name) = one(&mut decoder)?;
        names.groups.insert(number, name);
    }
    Ok(names)
}

/// How far the agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Names that the scan has read.
    pub names: u64,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
}

impl Figures {
    /// Encodes them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        [self.names, self.files, self.bytes].into_iter().for_each(|value| put_varint(&mut out, value));
        out
    }

    /// Decodes them.
    ///
    /// # Errors
    /// For bytes that no side writes.
    pub fn decode(payload: &[u8]) -> Result<Figures, DecodeError> {
        let mut decoder = Decoder::new(payload);
        let figures = Figures { names: decoder.varint()?, files: decoder.varint()?, bytes: decoder.varint()? };
        decoder.finish()?;
        Ok(figures)
    }
}
