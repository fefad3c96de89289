//! A deadline for a step in which the other side has to answer: when it passes, the connection is broken off, and reads under way end.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::Control;

/// Breaks a connection off when its time is over. Dropped before, it does nothing.
pub(crate) struct Deadline {
    passed: Arc<AtomicBool>,
    span: Duration,
    cancel: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Deadline {
    /// Starts to count.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(control: Arc<dyn Control>, span: Duration) -> io::Result<Deadline> {
        let passed = Arc::new(AtomicBool::new(false));
        let (cancel, cancelled) = bounded::<()>(0);
        let has_passed = Arc::clone(&passed);
        let thread = std::thread::Builder::new().name("deadline".to_owned()).spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = cancelled.recv_timeout(span) {
                has_passed.store(true, Ordering::SeqCst);
                control.abort();
            }
        })?;
        Ok(Deadline { passed, span, cancel: Some(cancel), thread: Some(thread) })
    }

    /// Returns what happened, if the deadline has passed; `what` is not complete.
    pub(crate) fn passed(&self, what: &str) -> Option<String> {
        let passed = self.passed.load(Ordering::SeqCst);
        passed.then(|| format!("{what} was not complete after {} s", self.span.as_secs_f64().ceil()))
    }

    /// Returns a reader that ends at the deadline, also where programs behind the connection go on to write byte by byte.
    pub(crate) fn watch<'r>(&'r self, input: &'r mut dyn Read) -> impl Read + 'r {
        Watched { input, passed: &self.passed }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.cancel = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watched<'r> {
    input: &'r mut dyn Read,
    passed: &'r AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if self.passed.load(Ordering::SeqCst) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(count) }
    }
}
