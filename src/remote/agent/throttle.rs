//! `--bwlimit`: what the agent sends stays below a rate.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// At most so much of a second's bytes is written at a time.
const THROTTLE_STEPS: u64 = 20;

/// Keeps writing below a rate: a second's bytes may go at once, and no more.
pub(super) struct Throttle {
    bytes_per_second: u64,
    allowed: f64,
    since: Instant,
}

impl Throttle {
    pub(super) fn new(bytes_per_second: u64) -> Throttle {
        Throttle { bytes_per_second, allowed: 0.0, since: Instant::now() }
    }

    pub(super) fn write(&mut self, output: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        if self.bytes_per_second == 0 {
            output.write_all(bytes)?;
            return output.flush();
        }
        let step = (self.bytes_per_second / THROTTLE_STEPS).max(1);
        for piece in bytes.chunks(usize::try_from(step).unwrap_or(usize::MAX)) {
            let rate = self.bytes_per_second as f64;
            loop {
                let now = Instant::now();
                self.allowed = (self.allowed + rate * (now - self.since).as_secs_f64()).min(rate);
                self.since = now;
                if self.allowed >= piece.len() as f64 {
                    break;
                }
                std::thread::sleep(Duration::from_secs_f64((piece.len() as f64 - self.allowed) / rate));
            }
            self.allowed -= piece.len() as f64;
            output.write_all(piece)?;
            output.flush()?;
        }
        Ok(())
    }
}
