//! Sets of numbers, one bit each.

use std::marker::PhantomData;

use crate::sparse_vec::SparseVec;

/// A set of the numbers of one kind below a limit.
#[derive(Clone, Debug, Default)]
pub struct Bitmap<N> {
    words: SparseVec<u64>,
    limit: u64,
    of: PhantomData<N>,
}

impl<N: From<u64> + Into<u64>> Bitmap<N> {
    /// Makes an empty set of numbers below `limit`; it takes an eighth of a byte for each that is added or near one that is.
    pub fn new(limit: N) -> Bitmap<N> {
        Bitmap { words: SparseVec::new(), limit: limit.into(), of: PhantomData }
    }

    /// Adds a number; returns whether it is new, or `None` when it is not below the limit.
    pub fn add(&mut self, number: N) -> Option<bool> {
        let number = number.into();
        if number >= self.limit {
            return None;
        }
        let (word, bit) = (self.words.entry(number / 64), 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        Some(is_new)
    }

    /// Returns whether a number is in the set.
    pub fn has(&self, number: N) -> bool {
        let number = number.into();
        self.words.get(number / 64) & 1 << (number % 64) != 0
    }

    /// Returns how many numbers are in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|(_, word)| u64::from(word.count_ones())).sum()
    }

    /// Returns the numbers of this set that are not in `other`, ascending.
    pub fn without<'a>(&'a self, other: &'a Bitmap<N>) -> impl Iterator<Item = N> + 'a {
        self.words.iter().flat_map(|(at, word)| {
            let mut left = word & !other.words.get(at);
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(N::from(at * 64 + u64::from(bit)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stored_and_distinguished() {
        let mut set = Bitmap::new(130u64);
        assert_eq!([set.add(0), set.add(63), set.add(64), set.add(129)], [Some(true); 4]);
        assert_eq!((set.add(64), set.add(130), set.add(u64::MAX)), (Some(false), None, None));
        assert!(set.has(129) && !set.has(128) && !set.has(1 << 40));
        assert_eq!(set.count(), 4);
        let mut other = Bitmap::new(65);
        other.add(64);
        assert_eq!(set.without(&other).collect::<Vec<_>>(), [0, 63, 129]);
        assert_eq!(other.without(&set).count(), 0);
    }
}
