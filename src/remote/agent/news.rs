//! When the agent of a restore reports its figures: whenever its work moved, for these are the signs by which the run knows it from one that is stuck.
//!
//! The removal of names needs no answer of the run and is not in the figures. While nothing is left but to wait for the disk, the work moves as long as what
//! the host has not written yet goes down to new depths. So a disk that takes nothing any more ends this, and other programs that write may hold it up, but not
//! forever.

use std::sync::atomic::Ordering;

use crate::remote::protocol::messages::Figures;
use crate::restore::RestoreProgress;

/// Less than this, in KiB, is no progress of a disk.
const DEPTH_KIB: u64 = 64;

/// What was reported last.
#[derive(Default)]
pub(super) struct News {
    figures: Figures,
    steps: u64,
    /// The least that was unwritten during the final wait; `None` before it.
    unwritten: Option<u64>,
}

impl News {
    /// Returns the figures if there is a reason to send them.
    pub(super) fn of(
        &mut self,
        progress: &RestoreProgress,
        unwritten_kib: impl FnOnce() -> Option<u64>,
    ) -> Option<Vec<u8>> {
        let figures = Figures {
            names: progress.entries.load(Ordering::Relaxed),
            files: progress.files.load(Ordering::Relaxed),
            bytes: progress.written_bytes.load(Ordering::Relaxed),
        };
        let steps = progress.steps.load(Ordering::Relaxed);
        let mut moved = figures != self.figures || steps != self.steps;
        (self.figures, self.steps) = (figures, steps);
        if progress.syncing.load(Ordering::Relaxed) {
            let now = unwritten_kib().unwrap_or(u64::MAX);
            // The beginning of the wait is a step, too.
            if self.unwritten.is_none_or(|least| now.saturating_add(DEPTH_KIB) <= least) {
                self.unwritten = Some(now);
                moved = true;
            }
        }
        moved.then(|| figures.encode())
    }
}

/// Returns how much this host has in memory that its disks and servers of files do not have yet.
pub(super) fn unwritten_kib() -> Option<u64> {
    sum_of_unwritten(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn sum_of_unwritten(meminfo: &str) -> Option<u64> {
    ["Dirty:", "Writeback:"].iter().try_fold(0u64, |sum, name| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        sum.checked_add(kib)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_needs_no_answer_is_reported_as_long_as_it_moves() {
        let (mut news, progress) = (News::default(), RestoreProgress::default());
        let unused = || unreachable!("nobody waits for the disk yet");
        assert_eq!(news.of(&progress, unused), None);
        progress.entries.fetch_add(1, Ordering::Relaxed);
        assert!(news.of(&progress, unused).is_some());
        assert_eq!(news.of(&progress, unused), None);
        // Names that are removed are in no figure.
        progress.steps.fetch_add(1, Ordering::Relaxed);
        assert!(news.of(&progress, unused).is_some());
        assert_eq!(news.of(&progress, unused), None);
        // A disk that takes something, and one that does not.
        progress.syncing.store(true, Ordering::Relaxed);
        let is_news = |news: &mut News, kib| news.of(&progress, || kib).is_some();
        assert!(is_news(&mut news, Some(10_000)));
        assert!(!is_news(&mut news, Some(10_000)));
        assert!(is_news(&mut news, Some(9_000)));
        for noise in [12_000, 9_500, 9_000, 8_999] {
            assert!(!is_news(&mut news, Some(noise)), "{noise}");
        }
        assert!(is_news(&mut news, Some(8_000)));
        assert!(!is_news(&mut news, None));
    }

    #[test]
    fn a_host_reports_what_is_unwritten() {
        assert!(unwritten_kib().is_some());
        let text = "Cached: 5 kB\nDirty:    12 kB\nWriteback:   30 kB\nWritebackTmp:  7 kB\n";
        assert_eq!(sum_of_unwritten(text), Some(42));
        assert_eq!(sum_of_unwritten("Dirty: 12 kB\n"), None);
    }
}
