//! How much the tests try: the usual amount, or what `scripts/test-long` sets in the environment.

use std::env::var;

fn amount(name: &str, usual: u32) -> u32 {
    var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Returns how many cases of a property are tried: `PROPTEST_CASES`, or the usual number.
pub fn cases(usual: u32) -> u32 {
    amount("PROPTEST_CASES", usual)
}

/// Returns how many processes are killed: `ZMREPLICA_TEST_KILLS`, or the usual number.
pub fn kills(usual: u32) -> u32 {
    amount("ZMREPLICA_TEST_KILLS", usual)
}

/// Returns whether each bit of a file is to be flipped, and not only one of a byte.
pub fn is_every_bit() -> bool {
    var("ZMREPLICA_TEST_EVERY_BIT").is_ok_and(|text| text == "1")
}

/// Returns the masks that a byte at a place is flipped with, one after the other.
pub fn masks(at: usize) -> Vec<u8> {
    if is_every_bit() { (0..8).map(|bit| 1 << bit).collect() } else { vec![1 << (at % 8)] }
}
