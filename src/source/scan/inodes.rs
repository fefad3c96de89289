//! Remembers which inodes with several names have been stat'ed.
//!
//! One bit per inode, in pages of 512 neighbouring inode numbers, so that millions of hard-linked
//! files cost little: at most 0.4 bytes per inode where numbers are dense, which they are on every
//! file system whose directory entries are trusted, and 190 where every number stands alone.
//! Inodes with one name, the common case elsewhere, never enter. The stat itself is kept only until
//! the first name of the inode is delivered, so there are never more of them than entries scanned ahead.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;

use crate::model::Stat;
use crate::mutex::lock;

/// Bits of an inode number that select the bit within its page.
const PAGE_BITS: u32 = 9;
/// Words of 64 bits in one page.
const PAGE_WORDS: usize = (1 << PAGE_BITS) / 64;
/// Number of independently locked parts; a power of two well above the number of threads.
const SHARDS: usize = 64;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// The inodes with several names that were stat'ed so far. Shared by all threads.
pub(super) struct SeenInodes {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Default)]
struct Shard {
    /// A set bit: this inode was stat'ed.
    pages: Map<(u32, u64), [u64; PAGE_WORDS]>,
    /// What was found, until it is delivered.
    undelivered: Map<(u32, u64), Box<Stat>>,
}

impl SeenInodes {
    pub(super) fn new() -> SeenInodes {
        SeenInodes { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Returns whether the inode was stat'ed before under another of its names.
    pub(super) fn contains(&self, file_system: u32, ino: u64) -> bool {
        let place = Place::of(file_system, ino);
        let shard = lock(&self.shards[place.shard]);
        shard.pages.get(&place.page).is_some_and(|page| page[place.word] & place.bit != 0)
    }

    /// Keeps the stat of an inode until it is delivered; gives it back if the inode was stat'ed before.
    pub(super) fn insert(&self, file_system: u32, stat: Box<Stat>) -> Result<(), Box<Stat>> {
        let place = Place::of(file_system, stat.ino);
        let mut shard = lock(&self.shards[place.shard]);
        let word = &mut shard.pages.entry(place.page).or_default()[place.word];
        if *word & place.bit != 0 {
            return Err(stat);
        }
        *word |= place.bit;
        shard.undelivered.insert((file_system, stat.ino), stat);
        Ok(())
    }

    /// Takes the stat of an inode if none of its names was delivered yet.
    pub(super) fn take_undelivered(&self, file_system: u32, ino: u64) -> Option<Box<Stat>> {
        let mut shard = lock(&self.shards[Place::of(file_system, ino).shard]);
        shard.undelivered.remove(&(file_system, ino))
    }

    /// Counts the stats that are kept.
    #[cfg(test)]
    pub(super) fn undelivered(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).undelivered.len()).sum()
    }
}

struct Place {
    shard: usize,
    page: (u32, u64),
    word: usize,
    bit: u64,
}

impl Place {
    fn of(file_system: u32, ino: u64) -> Place {
        let page = (file_system, ino >> PAGE_BITS);
        let within = ino & ((1 << PAGE_BITS) - 1);
        Place {
            shard: (mix(page.1 ^ u64::from(file_system)) >> 58) as usize % SHARDS,
            page,
            word: (within / 64) as usize,
            bit: 1 << (within % 64),
        }
    }
}

/// Spreads a number over all 64 bits (the golden ratio's multiplier, folded).
fn mix(number: u64) -> u64 {
    let product = u128::from(number ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
    (product >> 64) as u64 ^ product as u64
}

/// Hashes inode numbers: they come from a file system, not from an adversary, and the default hash costs more
/// than the lookup.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0.rotate_left(5) ^ number);
    }
}
