//! Listing blocks of the last scan, kept so that those which are the same tonight need not be sent.
//!
//! A cache, one file a source: the magic `ZMRLIST1`, then for each block in order its BLAKE3 (32 bytes), the length (4 bytes, little endian) and bytes of one
//! zstd frame. Each block is compared with its hash before it is used, so a damaged file costs bytes on the wire and nothing else; it may be deleted at any
//! time.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::access::Replacement;
use crate::remote::protocol::frame::unpack;
use crate::remote::protocol::listing::BLOCK_LIMIT_BYTES;

const MAGIC: &[u8; 8] = b"ZMRLIST1";
const HEAD_BYTES: u64 = 36;
/// Blocks that are known again: some hundred bytes of memory each. A million are a scan of a billion names.
const BLOCKS_MAX: usize = 1 << 20;

type Hash = [u8; 32];

/// The blocks of the last scan, and those of this one as they come.
pub(super) struct BlockCache {
    path: PathBuf,
    old: Option<File>,
    /// Offset and length of the frame of each old block.
    index: HashMap<Hash, (u64, u32)>,
    /// Old blocks in order, with the offset behind each.
    order: Vec<(Hash, u64)>,
    /// So many blocks of this scan are those of the last one, in order from its first.
    same: usize,
    /// Written from the first difference on.
    new: Option<BufWriter<Replacement>>,
    used: HashSet<Hash>,
    /// A cache that cannot be written is no reason to fail; it is given up.
    broken: bool,
}

impl BlockCache {
    /// Opens the cache at `path`, as far as it is whole. Without a path nothing is kept.
    pub(super) fn open(path: &Path) -> BlockCache {
        let mut cache = BlockCache {
            path: path.to_owned(),
            old: None,
            index: HashMap::new(),
            order: Vec::new(),
            same: 0,
            new: None,
            used: HashSet::new(),
            broken: false,
        };
        if let Ok(file) = File::open(path) {
            // What can be read of a torn file is good.
            let _ = cache.load(&file);
            cache.old = Some(file);
        }
        cache
    }

    fn load(&mut self, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0)?;
        if &magic != MAGIC {
            return Ok(());
        }
        let mut at = MAGIC.len() as u64;
        while at + HEAD_BYTES <= length && self.order.len() < BLOCKS_MAX {
            let mut head = [0; HEAD_BYTES as usize];
            file.read_exact_at(&mut head, at)?;
            let (mut hash, mut size) = ([0; 32], [0; 4]);
            hash.copy_from_slice(&head[..32]);
            size.copy_from_slice(&head[32..]);
            let size = u32::from_le_bytes(size);
            let end = at + HEAD_BYTES + u64::from(size);
            if end > length || size as usize > BLOCK_LIMIT_BYTES * 2 {
                return Ok(());
            }
            self.index.insert(hash, (at + HEAD_BYTES, size));
            self.order.push((hash, end));
            at = end;
        }
        Ok(())
    }

    /// Returns a block of the last scan: its plain bytes, and as it is kept.
    pub(super) fn get(&self, hash: &Hash) -> Option<(Vec<u8>, Vec<u8>)> {
        let (offset, length) = *self.index.get(hash)?;
        let mut packed = vec![0; length as usize];
        self.old.as_ref()?.read_exact_at(&mut packed, offset).ok()?;
        let plain = unpack(&packed, BLOCK_LIMIT_BYTES).ok()?;
        (blake3::hash(&plain).as_bytes() == hash).then_some((plain, packed))
    }

    /// Adds the next block of this scan.
    pub(super) fn push(&mut self, hash: &Hash, packed: &[u8]) {
        if self.new.is_none() && self.order.get(self.same).is_some_and(|(old, _)| old == hash) {
            self.same += 1;
            return;
        }
        let written = self.begin().and_then(|()| self.write(hash, packed));
        self.broken |= written.is_err();
    }

    /// Starts a new file with the blocks that are the same.
    fn begin(&mut self) -> io::Result<()> {
        if self.new.is_some() || self.broken {
            return Ok(());
        }
        let mut new = BufWriter::new(Replacement::in_store(&self.path)?);
        new.write_all(MAGIC)?;
        if let (Some(old), Some(last)) = (&mut self.old, self.same.checked_sub(1)) {
            let start = MAGIC.len() as u64;
            old.seek(SeekFrom::Start(start))?;
            io::copy(&mut Read::by_ref(old).take(self.order[last].1 - start), &mut new)?;
        }
        self.used.extend(self.order[..self.same].iter().map(|(hash, _)| *hash));
        self.new = Some(new);
        Ok(())
    }

    fn write(&mut self, hash: &Hash, packed: &[u8]) -> io::Result<()> {
        let Some(new) = self.new.as_mut().filter(|_| !self.broken) else { return Ok(()) };
        new.write_all(hash)?;
        new.write_all(&(packed.len() as u32).to_le_bytes())?;
        new.write_all(packed)?;
        self.used.insert(*hash);
        Ok(())
    }

    /// Puts the blocks of this scan in place of the last one's. With `complete` unset, what is left of the last one stays behind them.
    pub(super) fn keep(&mut self, complete: bool) {
        let changed = self.new.is_some() || (complete && self.same < self.order.len());
        if changed {
            // A cache that cannot be written costs the next night bytes on the wire, and nothing else.
            let _ = self.keep_changed(complete);
        }
        self.new = None;
        self.broken = true;
    }

    fn keep_changed(&mut self, complete: bool) -> io::Result<()> {
        self.begin()?;
        if !complete {
            for (hash, _) in std::mem::take(&mut self.order) {
                if !self.used.contains(&hash)
                    && let Some((_, packed)) = self.get(&hash)
                {
                    self.write(&hash, &packed)?;
                }
            }
        }
        if self.broken {
            return Err(io::Error::other("a block could not be written"));
        }
        if let Some(new) = self.new.take() {
            new.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn packed(text: &str) -> (Hash, Vec<u8>) {
        (*blake3::hash(text.as_bytes()).as_bytes(), zstd::bulk::compress(text.as_bytes(), 3).unwrap())
    }

    fn night(path: &Path, texts: &[&str], complete: bool) -> usize {
        let mut cache = BlockCache::open(path);
        let mut fetched = 0;
        for text in texts {
            let (hash, sent) = packed(text);
            let kept = match cache.get(&hash) {
                Some((plain, kept)) => {
                    assert_eq!(plain, text.as_bytes());
                    kept
                }
                None => {
                    fetched += 1;
                    sent
                }
            };
            cache.push(&hash, &kept);
        }
        cache.keep(complete);
        fetched
    }

    #[test]
    fn blocks_are_kept_from_night_to_night() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listing-0");
        assert_eq!(night(&path, &["one", "two", "three"], true), 3);
        assert_eq!(night(&path, &["one", "two", "three"], true), 0);
        let size = fs::metadata(&path).unwrap().len();
        // A killed run keeps what it had, and what the last one had.
        assert_eq!(night(&path, &["one", "new"], false), 1);
        assert_eq!(night(&path, &["one", "new", "two", "three"], true), 0);
        assert_eq!(night(&path, &["one"], true), 0);
        assert!(fs::metadata(&path).unwrap().len() < size);
        assert_eq!(night(&path, &["one", "two"], true), 1);
        // Damage is not believed.
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(night(&path, &["one", "two"], true), 1);
        fs::write(&path, b"ZMRLIST1 and nothing that makes sense, for long enough to look like a block").unwrap();
        assert_eq!(night(&path, &["one", "two"], true), 2);
        assert_eq!(night(&path, &["one", "two"], true), 0);
    }
}
