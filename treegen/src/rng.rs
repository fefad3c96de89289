//! Random numbers that never change between versions: everything in a tree follows from them.
//!
//! SplitMix64 (Steele, Lea, Flood 2014) is small enough to own, and a tree generated years ago can be generated again.

/// Step of the SplitMix64 sequence: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scrambles one number so that neighbouring inputs give unrelated outputs.
fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Condenses a path of numbers (seed, domain, account, ...) into one key.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(GOLDEN, |h, &p| scramble(h.rotate_left(23) ^ scramble(p.wrapping_add(GOLDEN))))
}

/// A sequence of random numbers that is a pure function of its key.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Starts the sequence that belongs to a path of numbers.
    pub fn new(parts: &[u64]) -> Self {
        Self(key(parts))
    }

    /// Draws the next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        scramble(self.0)
    }

    /// Draws a number below `n` (`n` may not be zero).
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Draws an index below `n`.
    #[inline]
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// Draws a number in `low..high`.
    #[inline]
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// Picks one element of a list that is not empty.
    #[inline]
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// Draws a number in [0, 1).
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns true in `percent` of all draws.
    pub fn chance(&mut self, percent: f64) -> bool {
        self.unit() * 100.0 < percent
    }

    /// Draws from the standard normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Draws a rank below `n` where rank r is about 1/(r+1) as likely as rank 0 (Zipf).
    pub fn zipf(&mut self, n: u64) -> u64 {
        let rank = ((n as f64 + 1.0).ln() * self.unit()).exp() as u64;
        rank.clamp(1, n) - 1
    }

    /// Appends `len` random bytes.
    pub fn noise(&mut self, out: &mut Vec<u8>, len: usize) {
        let end = out.len() + len;
        out.reserve(len + 64);
        while out.len() + 64 <= end {
            let mut block = [0u8; 64];
            for part in block.chunks_exact_mut(8) {
                part.copy_from_slice(&self.bits().to_le_bytes());
            }
            out.extend_from_slice(&block);
        }
        while out.len() < end {
            let bytes = self.bits().to_le_bytes();
            let take = (end - out.len()).min(8);
            out.extend_from_slice(&bytes[..take]);
        }
    }

    /// Puts a list into random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            let j = self.index(i + 1);
            list.swap(i, j);
        }
    }
}
