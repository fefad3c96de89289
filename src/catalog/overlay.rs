//! A file of which changes stay in memory: redb can repair the catalogue over it, and it can be read, where not a byte can be written.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use redb::StorageBackend;

/// Changes are kept in blocks of so many bytes.
const BLOCK_BYTES: u64 = 4096;

#[derive(Debug)]
struct Contents {
    length: u64,
    /// So much of the file shows through; less than its length once it was cut.
    visible: u64,
    /// Blocks that were changed, whole.
    changed: HashMap<u64, Box<[u8]>>,
}

/// The file. It must not change meanwhile: the caller holds the store's lock.
///
/// Memory: what is written, which in a repair is what the next commit would write, some pages and a byte or less for each page of the file.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    contents: RwLock<Contents>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Overlay> {
        let length = file.metadata()?.len();
        Ok(Overlay { file, contents: RwLock::new(Contents { length, visible: length, changed: HashMap::new() }) })
    }

    /// Reads a part of a block.
    fn read_block(&self, contents: &Contents, block: u64, within: usize, out: &mut [u8]) -> io::Result<()> {
        if let Some(bytes) = contents.changed.get(&block) {
            out.copy_from_slice(&bytes[within..within + out.len()]);
            return Ok(());
        }
        let from = block * BLOCK_BYTES + within as u64;
        let in_file = usize::try_from(contents.visible.saturating_sub(from)).unwrap_or(usize::MAX).min(out.len());
        let (here, beyond) = out.split_at_mut(in_file);
        beyond.fill(0);
        self.file.read_exact_at(here, from)
    }
}

/// Cuts a range into parts that lie in one block each: block, place within it, place within the range, length.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let (block, within) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
        let count = (BLOCK_BYTES as usize - within).min(length - done);
        done += count;
        Some((block, within, done - count, count))
    })
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end")
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.read().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > contents.length) {
            return Err(out_of_range());
        }
        for (block, within, at, count) in parts(offset, out.len()) {
            self.read_block(&contents, block, within, &mut out[at..at + count])?;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        if length < contents.length {
            contents.visible = contents.visible.min(length);
            contents.changed.retain(|block, _| block * BLOCK_BYTES < length);
            // What is cut off must not come back.
            let (last, within) = (length / BLOCK_BYTES, (length % BLOCK_BYTES) as usize);
            if let Some(bytes) = contents.changed.get_mut(&last) {
                bytes[within..].fill(0);
            }
        }
        contents.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > contents.length) {
            return Err(out_of_range());
        }
        for (block, within, at, count) in parts(offset, data.len()) {
            if !contents.changed.contains_key(&block) {
                let mut bytes = vec![0; BLOCK_BYTES as usize].into_boxed_slice();
                self.read_block(&contents, block, 0, &mut bytes)?;
                contents.changed.insert(block, bytes);
            }
            if let Some(bytes) = contents.changed.get_mut(&block) {
                bytes[within..within + count].copy_from_slice(&data[at..at + count]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Resize(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..20_000, prop::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, data)| Step::Write(at, data)),
            1 => (0u64..20_000).prop_map(Step::Resize),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_as_a_file_would_and_leaves_its_own_alone(
            original in prop::collection::vec(any::<u8>(), 0..15_000),
            steps in prop::collection::vec(step(), 0..12),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&original).unwrap();
            let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
            let mut model = original.clone();
            for step in steps {
                match step {
                    Step::Resize(length) => {
                        overlay.set_len(length).unwrap();
                        model.resize(length as usize, 0);
                    }
                    Step::Write(at, data) => match model.get_mut(at as usize..at as usize + data.len()) {
                        Some(place) => {
                            overlay.write(at, &data).unwrap();
                            place.copy_from_slice(&data);
                        }
                        None => prop_assert!(overlay.write(at, &data).is_err()),
                    },
                }
                prop_assert_eq!(overlay.len().unwrap(), model.len() as u64);
                let mut all = vec![7; model.len()];
                overlay.read(0, &mut all).unwrap();
                prop_assert!(all == model);
                prop_assert!(overlay.read(model.len() as u64, &mut [0]).is_err());
            }
            let mut kept = vec![0; original.len()];
            file.read_exact_at(&mut kept, 0).unwrap();
            prop_assert!(kept == original && file.metadata().unwrap().len() == original.len() as u64);
        }
    }
}
