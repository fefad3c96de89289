//! A vector of small values, indexed by row numbers, that takes no memory for large gaps.
//!
//! Numbers come from decoded rows and caches, which may be forged. A plain vector up to the highest of them could need more memory than there is. Here a number
//! takes one page of [`PAGE`] values, and 8 bytes for each page below it: 128 MiB up to [`NUMBER_LIMIT`](crate::coding::NUMBER_LIMIT), which every decoder
//! enforces.

/// Values in a page.
const PAGE: u64 = 4096;

/// Values by number. Each has the default until it is set.
#[derive(Clone, Debug)]
pub struct SparseVec<T> {
    pages: Vec<Option<Box<[T]>>>,
}

impl<T> Default for SparseVec<T> {
    fn default() -> SparseVec<T> {
        SparseVec { pages: Vec::new() }
    }
}

impl<T: Copy + Default> SparseVec<T> {
    /// Creates one in which every number has the default.
    pub fn new() -> SparseVec<T> {
        SparseVec::default()
    }

    /// Returns the value of a number.
    pub fn get(&self, number: u64) -> T {
        let page = usize::try_from(number / PAGE).ok().and_then(|page| self.pages.get(page)?.as_ref());
        page.map_or_else(T::default, |page| page[(number % PAGE) as usize])
    }

    /// Returns the value of a number for changing it.
    pub fn entry(&mut self, number: u64) -> &mut T {
        let page = (number / PAGE) as usize;
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| vec![T::default(); PAGE as usize].into_boxed_slice());
        &mut page[(number % PAGE) as usize]
    }

    /// Takes the value of a number and leaves the default.
    pub fn take(&mut self, number: u64) -> T {
        let page = usize::try_from(number / PAGE).ok().and_then(|page| self.pages.get_mut(page)?.as_mut());
        page.map_or_else(T::default, |page| std::mem::take(&mut page[(number % PAGE) as usize]))
    }

    /// Gives every number the default.
    pub fn clear(&mut self) {
        self.pages.iter_mut().flatten().for_each(|page| page.fill(T::default()));
    }

    /// Returns numbers with their values, ascending: all that have another value than the default, and some others.
    pub fn iter(&self) -> impl Iterator<Item = (u64, T)> + '_ {
        let pages = (0u64..).zip(&self.pages).filter_map(|(at, page)| Some((at, page.as_ref()?)));
        pages.flat_map(|(at, page)| (at * PAGE..).zip(page.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::NUMBER_LIMIT;

    #[test]
    fn wild_numbers_take_little_memory() {
        let mut values: SparseVec<u32> = SparseVec::new();
        for number in [0, 7, PAGE, NUMBER_LIMIT - 1] {
            *values.entry(number) += 3;
        }
        assert_eq!([values.get(7), values.get(8), values.get(u64::MAX), values.get(1 << 30)], [3, 0, 0, 0]);
        let there: Vec<u64> = values.iter().filter(|(_, value)| *value > 0).map(|(number, _)| number).collect();
        assert_eq!(there, [0, 7, PAGE, NUMBER_LIMIT - 1]);
        assert_eq!((values.take(7), values.take(7), values.take(u64::MAX)), (3, 0, 0));
        values.clear();
        assert!(values.iter().all(|(_, value)| value == 0));
    }
}
