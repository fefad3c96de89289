//! Frames: the kind (1 byte), the length of the payload (4 bytes, little endian), the payload.
//!
//! Bit 7 of the kind says that the payload is one zstd frame with its content size. A payload is at most [`PAYLOAD_MAX`] bytes, as it is transferred and
//! decompressed: a larger length is refused before any memory is taken.

use std::io::{self, Read, Write};

/// The longest payload, in bytes: a chunk of 1 MiB with its header, and some room.
pub const PAYLOAD_MAX: usize = (1 << 20) + (64 << 10);
/// Length of what stands before a payload, in bytes.
pub const HEADER_BYTES: usize = 5;
/// Payloads shorter than this, in bytes, are not worth compressing.
const COMPRESS_MIN: usize = 256;
/// zstd level of frames: listings and requests, whose redundancy any level finds.
const LEVEL: i32 = 3;
const COMPRESSED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::FromRepr)]
#[repr(u8)]
#[allow(missing_docs, reason = "the tables of the parent module and of `restore` say what each is")]
pub enum Kind {
    Hello = 1,
    Start = 2,
    Started = 3,
    Failed = 4,
    Dictionary = 5,
    BlocksOffered = 6,
    BlocksWanted = 7,
    Block = 8,
    ScanEnds = 9,
    Reads = 10,
    Events = 11,
    ChunksWanted = 12,
    Chunk = 13,
    Taken = 14,
    ReadApart = 15,
    ApartEvents = 16,
    StatRoot = 17,
    RootStat = 18,
    Owners = 19,
    OwnerNames = 20,
    Figures = 21,
    Alive = 22,
    RestoreRequest = 23,
    Query = 24,
    Answer = 25,
    Prefetched = 26,
    Report = 27,
}

/// One frame, its payload as it was before compression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Appends a frame as it is transferred.
pub fn put(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_MAX, "a payload of {} bytes", payload.len());
    out.push(kind as u8);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends a frame, compressed if that makes it smaller.
pub fn put_compressed(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    if payload.len() >= COMPRESS_MIN
        && let Ok(packed) = zstd::bulk::compress(payload, LEVEL)
        && packed.len() < payload.len()
    {
        out.push(kind as u8 | COMPRESSED);
        out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&packed);
    } else {
        put(out, kind, payload);
    }
}

/// Writes one frame.
///
/// # Errors
/// When the stream fails.
pub fn write(out: &mut dyn Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    put(&mut bytes, kind, payload);
    out.write_all(&bytes)?;
    out.flush()
}

/// Reads one frame.
///
/// # Errors
/// When the stream fails or ends; `InvalidData` for an unknown kind, a payload that is too long or does not decompress.
pub fn read(input: &mut dyn Read) -> io::Result<Frame> {
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header)?;
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let number = header[0] & !COMPRESSED;
    let kind = Kind::from_repr(number).ok_or_else(|| invalid(format!("a frame of the unknown kind {number}")))?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > PAYLOAD_MAX {
        return Err(invalid(format!("a frame of {length} bytes; {PAYLOAD_MAX} are allowed")));
    }
    let mut payload = vec![0; length];
    input.read_exact(&mut payload)?;
    if header[0] & COMPRESSED != 0 {
        payload = unpack(&payload, PAYLOAD_MAX)?;
    }
    Ok(Frame { kind, payload })
}

/// Decompresses one zstd frame that states its size.
///
/// # Errors
/// `InvalidData` if it states none, more than `most` bytes, or another than it has.
pub fn unpack(packed: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let stated = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
    match stated {
        Some(size) if size <= most as u64 => {
            let plain = zstd::bulk::decompress(packed, size as usize)
                .map_err(|error| invalid(&format!("a frame that does not decompress: {error}")))?;
            if plain.len() as u64 == size {
                Ok(plain)
            } else {
                Err(invalid("a frame of another length than it states"))
            }
        }
        Some(_) => Err(invalid("a compressed frame that states too large a length")),
        None => Err(invalid("a compressed frame that states no length")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = Vec::new();
        put(&mut bytes, Kind::Alive, b"");
        put_compressed(&mut bytes, Kind::Events, &[7; 5000]);
        put_compressed(&mut bytes, Kind::Chunk, b"short");
        assert!(bytes.len() < 100);
        let mut input = bytes.as_slice();
        assert_eq!(read(&mut input).unwrap(), Frame { kind: Kind::Alive, payload: Vec::new() });
        assert_eq!(read(&mut input).unwrap(), Frame { kind: Kind::Events, payload: vec![7; 5000] });
        assert_eq!(read(&mut input).unwrap(), Frame { kind: Kind::Chunk, payload: b"short".to_vec() });
        assert_eq!(read(&mut input).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn giants_are_refused_before_they_take_memory() {
        let mut bytes = vec![Kind::Chunk as u8];
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // A small frame that unpacks to much.
        let bomb = zstd::bulk::compress(&vec![0; PAYLOAD_MAX + 1], 3).unwrap();
        let mut bytes = vec![Kind::Events as u8 | COMPRESSED];
        bytes.extend_from_slice(&(bomb.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&bomb);
        assert_eq!(read(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut input = bytes.as_slice();
            while let Ok(frame) = read(&mut input) {
                prop_assert!(frame.payload.len() <= PAYLOAD_MAX);
            }
        }
    }
}
