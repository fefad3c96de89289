//! Variable-length integers and a bounds-checked reader: the base of every hand-made encoding on disk.
//!
//! Unsigned integers are little-endian groups of seven bits, the high bit set on all but the last byte. Signed ones are
//! zigzag-mapped first (0, -1, 1, -2 become 0, 1, 2, 3), so small differences of either sign take one byte.

/// Tells that encoded bytes end too early or hold a value that no writer produces.
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
    pub fn varint32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError("an integer exceeds 32 bits"))
    }

    /// Reads a count of items that each take at least one byte, so that a damaged count can't ask for more memory
    /// than the input has bytes.
    pub fn count(&mut self) -> Result<usize, DecodeError> {
        let count = self.varint()?;
        if count > self.rest.len() as u64 {
            return Err(DecodeError("a count exceeds the bytes that are there"));
        }
        Ok(count as usize)
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

    /// Adds a signed difference to an unsigned base, as delta codings do.
    pub fn add(base: u64, difference: i64) -> Result<u64, DecodeError> {
        base.checked_add_signed(difference).ok_or(DecodeError("a difference leaves the range"))
    }

    /// Confirms that all bytes were used.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError("bytes follow the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
