//! Variable-length integers and a bounds-checked reader: the base of every hand-made encoding on disk.
//!
//! Unsigned integers are little-endian groups of seven bits, the high bit set on all but the last byte. Signed ones are
//! zigzag-mapped first (0, -1, 1, -2 become 0, 1, 2, 3), so small differences of either sign take one byte.
//!
//! What is decoded may have been made up by anybody who can write to a store. So memory is never allocated for a length or count before its bytes are there
//! ([`Decoder::count`], [`StreamDecoder`]), no number is larger than any store can have ([`NUMBER_LIMIT`]), and what was compressed may unfold only so far
//! ([`expansion_limit`]).

use std::io::{BufRead, Read};

/// No row of a catalogue (chunk, object, link group, pack, snapshot, commit) has this number or a higher one. Whoever keeps something for each number can rely
/// on it.
pub const NUMBER_LIMIT: u64 = 1 << 36;

/// What a compressed file of any length may unfold to, in bytes.
const EXPANSION_BASE_BYTES: u64 = 64 << 20;
/// What each byte of a compressed file adds to that. Rows and JSON texts reach 20; rows that are compressed already, and alike, some hundred.
const EXPANSION_FACTOR: u64 = 256;

/// Returns how many bytes a compressed file of this length may unfold to. No writer makes one that unfolds to more; a few bytes that would fill the memory do.
pub fn expansion_limit(packed_bytes: usize) -> u64 {
    EXPANSION_BASE_BYTES.saturating_add((packed_bytes as u64).saturating_mul(EXPANSION_FACTOR))
}

/// Encoded bytes end too early or hold a value that no writer produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Encoded bytes are damaged: {0}")]
pub struct DecodeError(pub &'static str);

/// Appends an unsigned integer.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer in zigzag form.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

/// Appends a length and then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Maps a signed integer to an unsigned one so that small magnitudes stay small.
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Reverses [`zigzag`].
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Gives encoded values one after the other, whether they lie in memory or come out of a decompressor.
pub trait Source {
    /// Reads one byte.
    ///
    /// # Errors
    /// At the end.
    fn byte(&mut self) -> Result<u8, DecodeError>;

    /// Takes the next `length` bytes. Memory is allocated as they arrive.
    ///
    /// # Errors
    /// When there are not so many.
    fn boxed(&mut self, length: usize) -> Result<Box<[u8]>, DecodeError>;

    /// Returns how many bytes are left at most.
    fn left(&self) -> u64;

    /// Reads an unsigned integer.
    ///
    /// # Errors
    /// At the end, and beyond 64 bits.
    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(DecodeError("an integer exceeds 64 bits"));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError("an integer exceeds 64 bits"))
    }

    /// Reads an unsigned integer that must fit 32 bits.
    ///
    /// # Errors
    /// As [`varint`](Source::varint).
    fn varint32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError("an integer exceeds 32 bits"))
    }

    /// Reads a signed integer in zigzag form.
    ///
    /// # Errors
    /// As [`varint`](Source::varint).
    fn signed(&mut self) -> Result<i64, DecodeError> {
        Ok(unzigzag(self.varint()?))
    }

    /// Reads a count of items that each take at least one byte, so that a damaged count cannot take more memory
    /// than the input has bytes.
    ///
    /// # Errors
    /// When it exceeds what is left, or `most`.
    fn count_up_to(&mut self, most: usize) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        if count > self.left() {
            return Err(DecodeError("a count exceeds the bytes that are there"));
        }
        if count > most as u64 {
            return Err(DecodeError("a count exceeds what any writer makes"));
        }
        Ok(count as usize)
    }

    /// Reads a length and then the bytes.
    ///
    /// # Errors
    /// When there are not so many.
    fn boxed_bytes(&mut self) -> Result<Box<[u8]>, DecodeError> {
        let length = self.count_up_to(usize::MAX)?;
        self.boxed(length)
    }
}

/// Reads encoded values from a slice, never past its end.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Starts at the front of the slice.
    pub fn new(bytes: &'a [u8]) -> Self {
        Decoder { rest: bytes }
    }

    /// Returns whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Returns how many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads one byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError("ends early"))?;
        self.rest = rest;
        Ok(first)
    }

    /// Reads an unsigned integer.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        Source::varint(self)
    }

    /// Reads an unsigned integer that must fit 32 bits.
    pub fn varint32(&mut self) -> Result<u32, DecodeError> {
        Source::varint32(self)
    }

    /// Reads a count of items that each take at least one byte, so that a damaged count cannot take more memory
    /// than the input has bytes.
    pub fn count(&mut self) -> Result<usize, DecodeError> {
        self.count_up_to(usize::MAX)
    }

    /// Reads a signed integer in zigzag form.
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        Ok(unzigzag(self.varint()?))
    }

    /// Takes the next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        if length > self.rest.len() {
            return Err(DecodeError("ends early"));
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    /// Takes an array of known length.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Reads a length and then the bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.count()?;
        self.take(length)
    }

    /// Adds a signed difference to the number of a row, as delta codings do.
    pub fn add(base: u64, difference: i64) -> Result<u64, DecodeError> {
        let number = base.checked_add_signed(difference).filter(|number| *number < NUMBER_LIMIT);
        number.ok_or(DecodeError("a difference leaves the range"))
    }

    /// Returns the number of a row if a store can have it.
    pub fn number(number: u64) -> Result<u64, DecodeError> {
        if number < NUMBER_LIMIT { Ok(number) } else { Err(DecodeError("a number is out of range")) }
    }

    /// Confirms that all bytes were used.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError("bytes follow the end")) }
    }
}

impl Source for Decoder<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        Decoder::byte(self)
    }

    fn boxed(&mut self, length: usize) -> Result<Box<[u8]>, DecodeError> {
        Ok(self.take(length)?.into())
    }

    fn left(&self) -> u64 {
        self.rest.len() as u64
    }
}

/// Reads encoded values from what comes out of a decompressor, whose whole length is known.
pub struct StreamDecoder<R> {
    input: R,
    left: u64,
}

impl<R: BufRead> StreamDecoder<R> {
    /// Starts at the front of `length` bytes.
    pub fn new(input: R, length: u64) -> StreamDecoder<R> {
        StreamDecoder { input, left: length }
    }

    /// Returns whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Confirms that all bytes were used, and that no more would come.
    pub fn finish(mut self) -> Result<(), DecodeError> {
        let is_over = self.left == 0 && self.input.fill_buf().is_ok_and(<[u8]>::is_empty);
        if is_over { Ok(()) } else { Err(DecodeError("it has another length than stated")) }
    }
}

impl<R: BufRead> Source for StreamDecoder<R> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let first = match self.input.fill_buf() {
            Ok(buffer) if self.left > 0 => buffer.first().copied(),
            Ok(_) => None,
            Err(_) => return Err(DecodeError("it cannot be decompressed")),
        };
        let first = first.ok_or(DecodeError("ends early"))?;
        self.input.consume(1);
        self.left -= 1;
        Ok(first)
    }

    fn boxed(&mut self, length: usize) -> Result<Box<[u8]>, DecodeError> {
        if length as u64 > self.left {
            return Err(DecodeError("ends early"));
        }
        let mut bytes = Vec::new();
        let mut wanted = Read::by_ref(&mut self.input).take(length as u64);
        wanted.read_to_end(&mut bytes).map_err(|_| DecodeError("it cannot be decompressed"))?;
        if bytes.len() != length {
            return Err(DecodeError("ends early"));
        }
        self.left -= length as u64;
        Ok(bytes.into_boxed_slice())
    }

    fn left(&self) -> u64 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_gives_what_a_slice_gives() {
        let mut out = Vec::new();
        put_varint(&mut out, 300);
        put_bytes(&mut out, b"some bytes");
        put_signed(&mut out, -9);
        let mut stream = StreamDecoder::new(out.as_slice(), out.len() as u64);
        assert_eq!(stream.varint(), Ok(300));
        assert_eq!(stream.boxed_bytes().as_deref(), Ok(&b"some bytes"[..]));
        assert_eq!(stream.signed(), Ok(-9));
        assert!(stream.is_empty() && stream.byte().is_err());
        assert_eq!(stream.finish(), Ok(()));
        // A length whose bytes are missing takes no memory.
        let mut out = Vec::new();
        put_varint(&mut out, 1 << 50);
        let mut stream = StreamDecoder::new(out.as_slice(), u64::MAX);
        assert!(stream.boxed_bytes().is_err());
        assert!(StreamDecoder::new(&[1, 2][..], 1).finish().is_err());
    }

    #[test]
    fn integers_round_trip_at_the_edges() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, value as i64);
            let mut decoder = Decoder::new(&out);
            assert_eq!(decoder.varint(), Ok(value));
            assert_eq!(decoder.signed(), Ok(value as i64));
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(Decoder::new(&[0x80]).varint().is_err());
        assert!(Decoder::new(&[0xff; 11]).varint().is_err());
        let mut over = vec![0xff; 9];
        over.push(2);
        assert!(Decoder::new(&over).varint().is_err());
        assert!(Decoder::new(&[5, 1, 2]).bytes().is_err());
        assert!(Decoder::add(3, -4).is_err());
    }
}
