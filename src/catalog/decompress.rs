//! Decompression of rows and objects with a context that each thread keeps: to set one up costs more than to decompress a small object.

use std::cell::RefCell;
use std::io;

use zstd::bulk::Decompressor;

thread_local! {
    /// Some 160 KB once a thread has decompressed something.
    static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decompresses one zstd frame. The caller bounds `capacity`, which is the most that may come out and is allocated.
///
/// # Errors
/// Fails when the bytes are no zstd frame or more comes out.
pub(super) fn decompress(packed: &[u8], capacity: usize) -> io::Result<Vec<u8>> {
    CONTEXT.with_borrow_mut(|context| {
        let mut kept = match context.take() {
            Some(kept) => kept,
            None => Decompressor::new()?,
        };
        let plain = kept.decompress(packed, capacity);
        *context = Some(kept);
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_serves_again_after_a_failure() {
        let plain = b"many equal bytes ".repeat(100);
        let packed = zstd::bulk::compress(&plain, 3).unwrap();
        assert_eq!(decompress(&packed, plain.len()).unwrap(), plain);
        assert!(decompress(&packed[..packed.len() - 3], plain.len()).is_err());
        assert!(decompress(b"no frame at all", 100).is_err());
        assert!(decompress(&packed, plain.len() - 1).is_err());
        assert_eq!(decompress(&packed, plain.len()).unwrap(), plain);
    }
}
