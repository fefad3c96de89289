//! Asking the kernel to fetch parts of a file.

use std::fs::File;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

/// Bytes requested at a time. Of a larger piece the kernel fetches only what its read-ahead allows, by default just this.
const STEP_BYTES: u64 = 128 << 10;

/// Asks the kernel to fetch a range of a file into its cache, and does not wait for it. Where that is not possible, a read is slower but just as correct.
pub(crate) fn prefetch(file: &File, offset: u64, bytes: u64) {
    for step in 0..bytes.div_ceil(STEP_BYTES) {
        let start = step * STEP_BYTES;
        let Some(length) = NonZeroU64::new((bytes - start).min(STEP_BYTES)) else { return };
        if fadvise(file, offset.saturating_add(start), Some(length), Advice::WillNeed).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_any_file_may_be_requested() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (offset, bytes) in [(0, 0), (0, 1 << 20), (5, STEP_BYTES + 1), (1 << 20, 7), (1 << 40, 1 << 20)] {
            prefetch(&file, offset, bytes);
        }
        // Refused, and nothing comes of it.
        prefetch(&file, u64::MAX, 10);
        let (pipe, _writer) = std::io::pipe().unwrap();
        prefetch(&File::from(std::os::fd::OwnedFd::from(pipe)), 0, 10);
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}
