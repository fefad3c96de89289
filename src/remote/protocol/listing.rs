//! Listings as they are transferred: records in blocks, cut where names say so, so that most blocks are those of last night and need not be sent.
//!
//! A block is a run of records. What a record leaves out (the path of its directory, the directory of its names) follows from the records before it:
//! directories come depth first. What is coded as a difference starts anew in each block, so that a block depends on nothing but its own records, and is the
//! same tomorrow if these are.
//!
//! | tag | record |
//! | --- | --- |
//! | 0 | a file system begins: path (byte string); they are numbered from 0 as they come |
//! | 1, 2 | a directory begins, readable or not: stat; for 2 the problem |
//! | 3 | an extended attribute of this directory: name, value |
//! | 4 | a name: a directory, whose records follow in their turn |
//! | 5 | a name: a directory on another file system that is not entered: stat |
//! | 6 | a name of an inode whose stat came before, on the directory's file system: inode number (signed difference) |
//! | 7 | the same on another file system: number of the file system, inode number |
//! | 8 | a name of an inode: stat |
//! | 9 | the directory ends |
//! | 10 | a problem that belongs to no directory |
//!
//! A name is the length that it shares with the name before it in this block and directory, and the rest (byte string).
//!
//! A block ends behind a name whose mark (a hash of directory and name) is a multiple of 256, once it has [`BLOCK_MIN_BYTES`], and at [`BLOCK_MAX_BYTES`].

use std::collections::HashSet;

use crate::coding::{DecodeError, Decoder, put_bytes, put_signed, put_varint};
use crate::model::Stat;
use crate::source::scan::{Entry, Found, Listing, Problem};

use super::fields::{
    NO_FILE_SYSTEM, PATH_MAX_BYTES, StatCoder, checked_name, checked_path, problem, put_problem, put_xattr, xattr,
};

/// A block has at least so many bytes, but for the last one.
pub const BLOCK_MIN_BYTES: usize = 8 << 10;
/// A block is ended behind the record that reaches so many bytes.
pub const BLOCK_MAX_BYTES: usize = 64 << 10;
/// The longest block: one record more, which may be an extended attribute of 64 KiB or a problem with its path.
pub const BLOCK_LIMIT_BYTES: usize = 512 << 10;
/// One name in so many may end a block.
const MARK: u32 = 256;

/// Most file systems of one tree ...
const FILE_SYSTEMS_MAX: usize = 1 << 16;
/// ... and most bytes of the paths at which they begin.
const FILE_SYSTEMS_MAX_BYTES: usize = 4 << 20;
/// Most memory, roughly and in bytes, of the names of one directory and of those above it, which a run holds together; a name takes some 200.
const LISTING_MAX_BYTES: usize = 1 << 30;
/// Most memory, in bytes, of the paths of directories whose records are still to come.
const PENDING_MAX_BYTES: usize = 256 << 20;
/// Most memory, in bytes, of problems that belong to no directory; further ones are only counted.
const PROBLEMS_MAX_BYTES: usize = 32 << 20;
/// What a name, a path or a problem takes beside its bytes.
const ITEM_BYTES: usize = 64;

/// Encodes listings into blocks.
#[derive(Default)]
pub struct BlockWriter {
    block: Vec<u8>,
    coder: StatCoder,
    last_ino: u64,
    last_name: Vec<u8>,
    file_systems: usize,
    blocks: Vec<Vec<u8>>,
}

impl BlockWriter {
    /// Adds a listing; `file_systems` are all that the scan has met so far, and stats in it carry the device numbers of this host.
    pub fn listing(&mut self, listing: &Listing, file_systems: &[Vec<u8>]) {
        for path in file_systems.iter().skip(self.file_systems) {
            self.block.push(0);
            put_bytes(&mut self.block, path);
            self.file_systems += 1;
            self.end_if_long();
        }
        let own = listing.file_system;
        self.block.push(if listing.unreadable.is_some() { 2 } else { 1 });
        self.stat(&listing.stat, u64::from(own));
        if let Some(problem) = &listing.unreadable {
            put_problem(&mut self.block, problem);
        }
        for xattr in &listing.xattrs {
            self.block.push(3);
            put_xattr(&mut self.block, xattr);
            self.end_if_long();
        }
        let salt = blake3::hash(&listing.path);
        self.last_name.clear();
        for entry in &listing.entries {
            self.entry(entry, own);
            if self.block.len() >= BLOCK_MIN_BYTES && mark(&salt, &entry.name).is_multiple_of(MARK) {
                self.end_block();
            }
            self.end_if_long();
        }
        self.block.push(9);
    }

    /// Adds a problem that belongs to no listing.
    pub fn problem(&mut self, problem: &Problem) {
        self.block.push(10);
        put_problem(&mut self.block, problem);
        self.end_if_long();
    }

    /// Returns the blocks that are complete.
    pub fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.blocks)
    }

    /// Ends the last block. Without any record there is none.
    pub fn finish(&mut self) {
        if !self.block.is_empty() {
            self.end_block();
        }
    }

    fn stat(&mut self, stat: &Stat, file_system: u64) {
        self.coder.put(&mut self.block, &Stat { dev: file_system, ..*stat });
    }

    fn entry(&mut self, entry: &Entry, own: u32) {
        let (tag, shared) = match &entry.what {
            Found::Directory => (4, None),
            Found::Boundary(_) => (5, None),
            Found::Inode { file_system, stat: None, .. } if *file_system == own => (6, None),
            Found::Inode { file_system, stat: None, .. } => (7, Some(*file_system)),
            Found::Inode { stat: Some(_), .. } => (8, None),
        };
        self.block.push(tag);
        let common = entry.name.iter().zip(&self.last_name).take_while(|(a, b)| a == b).count();
        put_varint(&mut self.block, common as u64);
        put_bytes(&mut self.block, &entry.name[common..]);
        self.last_name.clear();
        self.last_name.extend_from_slice(&entry.name);
        match &entry.what {
            Found::Directory => {}
            Found::Boundary(stat) => self.stat(stat, NO_FILE_SYSTEM),
            Found::Inode { file_system, stat: Some(stat), .. } => self.stat(stat, u64::from(*file_system)),
            Found::Inode { ino, stat: None, .. } => {
                if let Some(file_system) = shared {
                    put_varint(&mut self.block, u64::from(file_system));
                }
                put_signed(&mut self.block, ino.wrapping_sub(self.last_ino) as i64);
                self.last_ino = *ino;
            }
        }
    }

    fn end_if_long(&mut self) {
        if self.block.len() >= BLOCK_MAX_BYTES {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(std::mem::take(&mut self.block));
        self.coder = StatCoder::default();
        self.last_ino = 0;
        self.last_name.clear();
    }
}

fn mark(salt: &blake3::Hash, name: &[u8]) -> u32 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.as_bytes()[..8]);
    hasher.update(name);
    let mut first = [0; 4];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    u32::from_le_bytes(first)
}

/// Decodes blocks into listings. Believes nothing: names, order and sizes are checked.
pub struct ListingReader {
    /// Paths of directories whose records are to come, the next one last.
    pending: Vec<Vec<u8>>,
    pending_bytes: usize,
    current: Option<Listing>,
    current_bytes: usize,
    xattr_bytes: usize,
    subdirectories: Vec<Vec<u8>>,
    file_systems: Vec<Vec<u8>>,
    file_systems_known: HashSet<Vec<u8>>,
    file_systems_bytes: usize,
    problems: Vec<Problem>,
    problems_bytes: usize,
    /// Depth of each directory above the current one, and what its names take.
    above: Vec<(usize, usize)>,
    above_bytes: usize,
}

impl Default for ListingReader {
    fn default() -> ListingReader {
        ListingReader {
            pending: vec![Vec::new()],
            pending_bytes: ITEM_BYTES,
            current: None,
            current_bytes: 0,
            xattr_bytes: 0,
            subdirectories: Vec::new(),
            file_systems: Vec::new(),
            file_systems_known: HashSet::new(),
            file_systems_bytes: 0,
            problems: Vec::new(),
            problems_bytes: 0,
            above: Vec::new(),
            above_bytes: 0,
        }
    }
}

impl ListingReader {
    /// Decodes the next block; complete listings are appended to `listings`.
    ///
    /// # Errors
    /// For bytes that no agent writes, and for a tree beyond the bounds above.
    pub fn block(
        &mut self,
        block: &[u8],
        listings: &mut std::collections::VecDeque<Listing>,
    ) -> Result<(), DecodeError> {
        let mut decoder = Decoder::new(block);
        let mut state = BlockState::default();
        while !decoder.is_empty() {
            match decoder.byte()? {
                0 => {
                    let path = checked_path(decoder.bytes()?.to_vec())?;
                    self.file_systems_bytes += path.len() + ITEM_BYTES;
                    if self.file_systems.len() >= FILE_SYSTEMS_MAX
                        || self.file_systems_bytes > FILE_SYSTEMS_MAX_BYTES
                        || !self.file_systems_known.insert(path.clone())
                    {
                        return Err(DecodeError("too many file systems, or one twice"));
                    }
                    self.file_systems.push(path);
                }
                tag @ (1 | 2) => self.directory(&mut decoder, &mut state, tag == 2)?,
                3 => {
                    let listing = self.current.as_mut().filter(|listing| listing.entries.is_empty());
                    let listing = listing.ok_or(DecodeError("an extended attribute without a directory"))?;
                    xattr(&mut decoder, &mut listing.xattrs, &mut self.xattr_bytes)?;
                }
                tag @ 4..=8 => self.entry(&mut decoder, &mut state, tag)?,
                9 => {
                    let listing = self.current.take().ok_or(DecodeError("the end of no directory"))?;
                    self.pending.extend(self.subdirectories.drain(..).rev());
                    self.above.push((depth(&listing.path), self.current_bytes));
                    self.above_bytes += self.current_bytes;
                    state.last_name.clear();
                    listings.push_back(listing);
                }
                10 => {
                    let problem = problem(&mut decoder)?;
                    self.problems_bytes += problem.path.len() + problem.message.len() + ITEM_BYTES;
                    if self.problems_bytes <= PROBLEMS_MAX_BYTES {
                        self.problems.push(problem);
                    }
                }
                _ => return Err(DecodeError("an unknown record")),
            }
        }
        Ok(())
    }

    /// Confirms that the tree is complete.
    ///
    /// # Errors
    /// If directories are missing.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.current.is_some() || !self.pending.is_empty() {
            return Err(DecodeError("the scan ends before its directories"));
        }
        Ok(())
    }

    /// Returns where each file system begins, by number.
    pub fn file_systems(&self) -> &[Vec<u8>] {
        &self.file_systems
    }

    /// Returns the problems that belong to no listing; each once.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }

    fn directory(
        &mut self,
        decoder: &mut Decoder<'_>,
        state: &mut BlockState,
        unreadable: bool,
    ) -> Result<(), DecodeError> {
        if self.current.is_some() {
            return Err(DecodeError("a directory before the end of another"));
        }
        let path = self.pending.pop().ok_or(DecodeError("a directory that no other holds"))?;
        self.pending_bytes -= path.len() + ITEM_BYTES;
        let own = depth(&path);
        while let Some((_, bytes)) = self.above.pop_if(|(depth, _)| *depth >= own) {
            self.above_bytes -= bytes;
        }
        let stat = state.coder.get(decoder)?;
        let file_system = self.known_file_system(stat.dev)?;
        let unreadable = if unreadable { Some(Problem { path: path.clone(), ..problem(decoder)? }) } else { None };
        self.current = Some(Listing { path, stat, xattrs: Vec::new(), file_system, entries: Vec::new(), unreadable });
        (self.current_bytes, self.xattr_bytes) = (0, 0);
        state.last_name.clear();
        Ok(())
    }

    fn entry(&mut self, decoder: &mut Decoder<'_>, state: &mut BlockState, tag: u8) -> Result<(), DecodeError> {
        let shared = usize::try_from(decoder.varint()?).unwrap_or(usize::MAX);
        let rest = decoder.bytes()?;
        if shared > state.last_name.len() {
            return Err(DecodeError("a name that goes on where none is"));
        }
        state.last_name.truncate(shared);
        state.last_name.extend_from_slice(rest);
        let name: Box<[u8]> = checked_name(&state.last_name)?.into();
        let what = match tag {
            4 => Found::Directory,
            5 => Found::Boundary(Box::new(state.coder.get(decoder)?)),
            8 => {
                let stat = state.coder.get(decoder)?;
                let file_system = self.known_file_system(stat.dev)?;
                if stat.kind == crate::model::Kind::Directory {
                    return Err(DecodeError("a directory that is said to be none"));
                }
                Found::Inode { file_system, ino: stat.ino, stat: Some(Box::new(stat)) }
            }
            _ => {
                let file_system = match tag {
                    7 => Some(self.known_file_system(decoder.varint()?)?),
                    _ => self.current.as_ref().map(|listing| listing.file_system),
                };
                let file_system = file_system.ok_or(DecodeError("a name without a directory"))?;
                state.last_ino = state.last_ino.wrapping_add(decoder.signed()? as u64);
                Found::Inode { file_system, ino: state.last_ino, stat: None }
            }
        };
        let listing = self.current.as_mut().ok_or(DecodeError("a name without a directory"))?;
        if listing.entries.last().is_some_and(|last| *last.name >= *name) {
            return Err(DecodeError("names that are not in order"));
        }
        if matches!(what, Found::Directory) {
            let mut path = listing.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.pending_bytes += path.len() + ITEM_BYTES;
            if path.len() > PATH_MAX_BYTES || self.pending_bytes > PENDING_MAX_BYTES {
                return Err(DecodeError("paths that are longer, or more directories than are taken"));
            }
            self.subdirectories.push(path);
        }
        self.current_bytes += name.len() + 200;
        if self.above_bytes + self.current_bytes > LISTING_MAX_BYTES {
            return Err(DecodeError("more names in one directory, or in those above it, than are taken"));
        }
        listing.entries.push(Entry { name, what });
        Ok(())
    }

    fn known_file_system(&self, number: u64) -> Result<u32, DecodeError> {
        if number < self.file_systems.len() as u64 {
            Ok(number as u32)
        } else {
            Err(DecodeError("a file system that was not named"))
        }
    }
}

/// What starts anew in each block.
#[derive(Default)]
struct BlockState {
    coder: StatCoder,
    last_ino: u64,
    last_name: Vec<u8>,
}

/// Returns how many directories a path leads through; 0 for the root.
fn depth(path: &[u8]) -> usize {
    if path.is_empty() { 0 } else { memchr::memchr_iter(b'/', path).count() + 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Xattr;
    use crate::model::{Kind, Timestamp, ZERO_STAT};

    fn stat(ino: u64) -> Stat {
        Stat { ino, nlink: 2, mode: 0o640, size: ino * 7, mtime: Timestamp { seconds: -5, nanos: 999 }, ..ZERO_STAT }
    }

    fn directory(path: &[u8], entries: Vec<Entry>) -> Listing {
        let own = Stat { kind: Kind::Directory, mode: 0o750, ..stat(1) };
        Listing { path: path.to_vec(), stat: own, xattrs: Vec::new(), file_system: 0, entries, unreadable: None }
    }

    fn entry(name: &str, what: Found) -> Entry {
        Entry { name: name.as_bytes().into(), what }
    }

    fn inode(ino: u64, with_stat: bool) -> Found {
        Found::Inode { file_system: 0, ino, stat: with_stat.then(|| Box::new(stat(ino))) }
    }

    /// A tree with a large directory, so that it takes several blocks.
    fn tree(names: u64) -> Vec<Listing> {
        let many = (0..names).map(|at| entry(&format!("{at:08}.msg"), inode(100 + at / 2, at % 2 == 0))).collect();
        let root = vec![
            entry("a", Found::Directory),
            entry("b", Found::Directory),
            entry("mount", Found::Boundary(Box::new(Stat { kind: Kind::Directory, dev: NO_FILE_SYSTEM, ..stat(9) }))),
        ];
        vec![
            directory(b"", root),
            directory(b"a", vec![entry("inner", Found::Directory)]),
            directory(b"a/inner", many),
            directory(b"b", Vec::new()),
        ]
    }

    fn blocks(listings: &[Listing]) -> Vec<Vec<u8>> {
        let mut writer = BlockWriter::default();
        for listing in listings {
            writer.listing(listing, &[Vec::new()]);
        }
        writer.finish();
        writer.take()
    }

    fn read(blocks: &[Vec<u8>]) -> Result<Vec<Listing>, DecodeError> {
        let (mut reader, mut listings) = (ListingReader::default(), VecDeque::new());
        for block in blocks {
            reader.block(block, &mut listings)?;
        }
        reader.finish()?;
        Ok(listings.into())
    }

    #[test]
    fn listings_come_back_as_they_went() {
        let mut listings = tree(5000);
        let problem = Problem {
            path: b"b".to_vec(),
            kind: crate::source::scan::ProblemKind::Unreadable,
            message: "no".to_owned(),
            errno: 13,
        };
        listings[3].unreadable = Some(problem);
        listings[1].xattrs = vec![Xattr { name: b"user.a".as_slice().into(), value: vec![1; 60_000].into() }];
        let blocks = blocks(&listings);
        assert!(blocks.len() > 4, "{}", blocks.len());
        assert!(blocks.iter().all(|block| block.len() <= BLOCK_LIMIT_BYTES));
        assert_eq!(read(&blocks), Ok(listings));
        assert!(read(&blocks[..blocks.len() - 1]).is_err());
    }

    #[test]
    fn a_change_alters_few_blocks() {
        let before = blocks(&tree(20_000));
        let mut listings = tree(20_000);
        listings[2].entries.remove(7777);
        let after = blocks(&listings);
        let new = after.iter().filter(|block| !before.contains(block)).count();
        assert!(before.len() > 20 && new <= 2, "{new} of {}", before.len());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "a\0"] {
            let bad = vec![directory(b"", vec![entry(name, inode(5, true))])];
            assert!(read(&blocks(&bad)).is_err(), "{name:?}");
        }
        let twice = vec![directory(b"", vec![entry("a", inode(5, true)), entry("a", inode(6, true))])];
        assert!(read(&blocks(&twice)).is_err());
        let lying =
            Found::Inode { file_system: 0, ino: 5, stat: Some(Box::new(Stat { kind: Kind::Directory, ..stat(5) })) };
        assert!(read(&blocks(&[directory(b"", vec![entry("d", lying)])])).is_err());
    }

    proptest! {
        #[test]
        fn damaged_blocks_are_listings_or_errors(at in 0usize..2000, value in any::<u8>(), cut in 0usize..2000) {
            let mut all = blocks(&tree(60));
            let first = &mut all[0];
            let at = at % first.len();
            first[at] ^= value;
            let cut = cut % first.len();
            first.truncate(first.len() - cut / 2);
            // Whatever it says, it ends, and names are sound.
            if let Ok(listings) = read(&all) {
                for entry in listings.iter().flat_map(|listing| &listing.entries) {
                    prop_assert!(checked_name(&entry.name).is_ok());
                }
            }
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&[bytes]);
        }
    }
}
