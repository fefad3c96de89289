//! One session that is written: where its files go, when they were made, and the threads that make them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::{Kind, Step};
use crate::digest::Known;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::mailbox::{Site, domain};
use crate::message::Composer;
use crate::rng::Rng;
use crate::words::Tables;

/// How much of a session is written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    Whole,
    /// What a session that is still running has written: half of the accounts, the next one without its end.
    Begin,
    /// The rest, without touching what is there.
    Rest,
}

/// A session being written.
#[derive(Debug)]
pub struct Session<'a> {
    /// The site.
    pub site: &'a Site,
    /// Tables of the seed.
    pub tables: &'a Tables,
    /// Digests found so far.
    pub known: &'a Known,
    /// File creation.
    pub disk: Disk,
    /// The tree.
    pub root: &'a Path,
    /// Where the session is written.
    pub dir: PathBuf,
    /// Number of the step.
    pub number: u32,
    /// How much is written.
    pub part: Part,
    /// Writing threads.
    pub threads: usize,
}

/// Buffers of one writing thread.
#[derive(Debug)]
pub struct Scratch<'a> {
    /// Composes messages.
    pub composer: Composer<'a>,
    /// The message at hand.
    pub message: Vec<u8>,
    /// Its deflated form.
    pub packed: Vec<u8>,
}

impl<'a> Session<'a> {
    /// Runs a job for every number below `count` on all threads; the first failure ends it.
    pub(crate) fn parallel(
        &self,
        count: usize,
        job: impl Fn(&mut Scratch<'a>, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, count.max(1)) {
                scope.spawn(|| {
                    let mut scratch = Scratch {
                        composer: Composer::new(self.site, self.tables),
                        message: Vec::new(),
                        packed: Vec::new(),
                    };
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count || stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Err(e) = job(&mut scratch, at) {
                            stop.store(true, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Returns when the session ends.
    pub fn end_ms(&self) -> i64 {
        let step = &self.site.steps[self.number as usize];
        let mut rng = Rng::new(&[self.site.config.seed, domain::SESSION, self.number.into()]);
        let minutes = if step.kind == Kind::Full { (20, 90) } else { (2, 9) };
        step.start_ms + rng.range(minutes.0 * 60_000, minutes.1 * 60_000) as i64
    }

    /// Returns the moment, in nanoseconds, when a fraction of the session is done; `salt` gives each file its own nanoseconds.
    pub fn moment_ns(&self, fraction: f64, salt: u64) -> i64 {
        let start_ms = self.site.steps[self.number as usize].start_ms;
        let at_ms = start_ms + ((self.end_ms() - start_ms) as f64 * fraction) as i64;
        at_ms * 1_000_000 + (crate::rng::key(&[self.number.into(), salt]) % 1_000_000) as i64
    }

    /// Returns which part of the session's time an account takes.
    pub(crate) fn window(&self, account: u32) -> (f64, f64) {
        let share = 0.9 / self.site.accounts.len() as f64;
        (0.02 + share * f64::from(account), 0.02 + share * f64::from(account + 1))
    }

    /// Returns the directory of an account below a session directory.
    pub fn account_dir(&self, session: &Path, account: u32) -> PathBuf {
        let uuid = &self.site.accounts[account as usize].uuid;
        session.join("accounts").join(&uuid[..3]).join(&uuid[3..6]).join(uuid)
    }

    /// Returns the directory of the newest finished full of the same accounts before this session, and its step.
    pub fn previous_full(&self) -> Option<(u32, PathBuf)> {
        let group = self.site.steps[self.number as usize].group;
        let before = |(number, step): &(usize, &Step)| *number < self.number as usize && step.group == group;
        let (number, step) = self.site.fulls().rfind(before)?;
        Some((number as u32, self.root.join("sessions").join(step.label())))
    }
}
