//! Any bytes as UTF-8: what is not becomes question marks.

use std::io::{self, BufRead, Read};

/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;
/// What stands for a byte that is no part of a character.
const REPLACEMENT: u8 = b'?';

/// An input whose bytes are UTF-8, each byte that was not replaced by a question mark.
pub(super) struct Clean<R> {
    inner: R,
    buffer: Vec<u8>,
    /// Bytes given out.
    head: usize,
    /// Bytes that are whole characters.
    tail: usize,
    /// Bytes read: behind `tail` a character that is not complete.
    filled: usize,
}

impl<R: Read> Clean<R> {
    /// Makes a buffer over an input.
    pub(super) fn new(inner: R) -> Clean<R> {
        Clean { inner, buffer: vec![0; READ_BYTES], head: 0, tail: 0, filled: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.tail..self.filled, 0);
        self.filled -= self.tail;
        (self.head, self.tail) = (0, 0);
        while self.tail == 0 {
            let count = match self.inner.read(&mut self.buffer[self.filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            self.filled += count;
            self.clean(count == 0);
            if count == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Replaces what is no UTF-8 among the bytes that were read; at the end of the input a character cannot become complete.
    fn clean(&mut self, at_end: bool) {
        while let Err(error) = std::str::from_utf8(&self.buffer[self.tail..self.filled]) {
            self.tail += error.valid_up_to();
            let wrong = match error.error_len() {
                Some(length) => length,
                None if at_end => self.filled - self.tail,
                None => return,
            };
            self.buffer[self.tail..self.tail + wrong].fill(REPLACEMENT);
        }
        self.tail = self.filled;
    }
}

impl<R: Read> Read for Clean<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Clean<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.head == self.tail {
            self.refill()?;
        }
        Ok(&self.buffer[self.head..self.tail])
    }

    fn consume(&mut self, count: usize) {
        self.head += count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An input that gives a few bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cleaned(bytes: &[u8], step: usize) -> String {
        let mut out = Vec::new();
        Clean::new(Trickle(bytes, step)).read_to_end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn characters_cut_by_a_read_stay_whole() {
        for step in 1..6 {
            assert_eq!(cleaned("aé€😀z".as_bytes(), step), "aé€😀z");
            assert_eq!(cleaned(b"a\xe9b\xffc\xe2\x82", step), "a?b?c??");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_what_is_no_utf8_changes(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1usize..20) {
            let text = cleaned(&bytes, step);
            prop_assert_eq!(text.len(), bytes.len());
            if let Ok(whole) = std::str::from_utf8(&bytes) {
                prop_assert_eq!(text, whole);
            }
        }
    }
}
