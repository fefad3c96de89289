//! The least rate at which a remote host has to bring what is waited for.
//!
//! A host that sends a byte now and then is never silent, and would hold a run, and with it the lock of the store, forever. So the bytes of what is in flight
//! are counted against the time for which a run has waited for them, one answer after the other. How long a run takes altogether has no limit here: a first
//! pull of a terabyte takes days.

use std::time::Duration;

/// Less than this, in bytes a second while it is waited for, is not slow but stuck: no line is so slow, and no disk.
pub(crate) const SLOWEST_BYTES_PER_SECOND: u64 = 16;

/// Counts waits and what they brought.
pub(crate) struct LeastRate {
    window: Duration,
    waited: Duration,
    /// Bytes that had come when the window began.
    from: u64,
}

impl LeastRate {
    /// Judges each `window` of waiting.
    pub(crate) fn new(window: Duration) -> LeastRate {
        LeastRate { window, waited: Duration::ZERO, from: 0 }
    }

    /// Counts a wait, after which `bytes` had come altogether; returns what is wrong if that is too little.
    pub(crate) fn add(&mut self, waited: Duration, bytes: u64) -> Option<String> {
        self.waited += waited;
        if self.waited < self.window {
            return None;
        }
        let (seconds, came) = (self.waited.as_secs_f64(), bytes.saturating_sub(self.from));
        (self.waited, self.from) = (Duration::ZERO, bytes);
        (came as f64 / seconds < SLOWEST_BYTES_PER_SECOND as f64).then(|| {
            format!(
                "only {came} bytes arrived in {seconds:.0} s; less than {SLOWEST_BYTES_PER_SECOND} per second is no progress"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_trickles_is_stuck_and_what_is_slow_is_not() {
        let second = Duration::from_secs(1);
        let mut least_rate = LeastRate::new(10 * second);
        let mut bytes = 0;
        for _ in 0..100 {
            bytes += 16;
            assert_eq!(least_rate.add(second, bytes), None);
        }
        // Much at once does not pay for what follows.
        bytes += 100_000;
        for _ in 0..10 {
            assert_eq!(least_rate.add(second, bytes), None);
        }
        let stuck = (0..10).find_map(|_| {
            bytes += 15;
            least_rate.add(second, bytes)
        });
        assert!(stuck.unwrap().starts_with("only 150 bytes"));
    }
}
