//! Reports the progress of a run: a live line on a terminal; elsewhere events or plain lines, if requested.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use serde::Serialize;
use zmreplica::snapshot::progress::Progress;

use super::error::CliError;
use super::output::{Output, Verbosity, stderr_line};
use super::text;

/// Starts the thread that shows the progress of a command and listens for signals.
pub(crate) fn start_follower<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    follow: impl FnOnce() + Send + 'scope,
) -> Result<(), CliError> {
    std::thread::Builder::new().spawn_scoped(scope, follow).map(drop).map_err(CliError::Thread)
}

/// How often counters are looked at.
const TICK: Duration = Duration::from_millis(120);
/// How often an event or a plain line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(3);
/// A forecast before this much time has passed would be a guess.
const FORECAST_AFTER: Duration = Duration::from_secs(3);
/// Characters of the current path that are shown.
const PATH_CHARACTERS: usize = 70;
/// A live line with nothing below it.
pub(crate) const ONE_LINE: &str = "{spinner} {elapsed_precise}  {wide_msg}";

/// The counters of a run at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(tag = "event", rename = "progress")]
struct Figures {
    names: u64,
    /// Names in the last snapshot of this source, 0 when there is none.
    expected_names: u64,
    #[serde(rename = "asked_files")]
    requested_files: u64,
    #[serde(rename = "asked_bytes")]
    requested_bytes: u64,
    read_files: u64,
    read_bytes: u64,
    new_chunks: u64,
    new_bytes: u64,
    stored_bytes: u64,
    scanned: bool,
    committing: bool,
    /// What was transferred from the source's host, and what was done there; 0 for a source on this one.
    received_bytes: u64,
    sent_bytes: u64,
    #[serde(rename = "far_names")]
    remote_names: u64,
    #[serde(rename = "far_files")]
    remote_files: u64,
    #[serde(rename = "far_bytes")]
    remote_bytes: u64,
    elapsed_ms: u64,
}

impl Figures {
    fn take(progress: &Progress, elapsed: Duration) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            names: read(&progress.names),
            expected_names: read(&progress.expected_names),
            requested_files: read(&progress.requested_files),
            requested_bytes: read(&progress.requested_bytes),
            read_files: read(&progress.read_files),
            read_bytes: read(&progress.read_bytes),
            new_chunks: read(&progress.chunks.new_chunks),
            new_bytes: read(&progress.chunks.new_bytes),
            stored_bytes: read(&progress.chunks.stored_bytes),
            scanned: progress.scanned.load(Ordering::Relaxed),
            committing: progress.committing.load(Ordering::Relaxed),
            received_bytes: read(&progress.wire.received_bytes),
            sent_bytes: read(&progress.wire.sent_bytes),
            remote_names: read(&progress.wire.remote_names),
            remote_files: read(&progress.wire.remote_files),
            remote_bytes: read(&progress.wire.remote_bytes),
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Says how long it may still take.
    fn forecast(&self) -> Forecast {
        let elapsed = Duration::from_millis(self.elapsed_ms);
        if elapsed < FORECAST_AFTER || self.committing {
            return Forecast::None;
        }
        let scale = |done: u64, all: u64| match done {
            0 => None,
            _ => Some(elapsed.mul_f64(all.saturating_sub(done) as f64 / done as f64)),
        };
        // What is known to be left to read; the slower of bytes and files decides.
        let reading = scale(self.read_bytes, self.requested_bytes).max(scale(self.read_files, self.requested_files));
        let scanning = (self.names < self.expected_names).then(|| scale(self.names, self.expected_names)).flatten();
        match (self.scanned, scanning, reading) {
            (true, _, Some(left)) => Forecast::About(left),
            (true, _, None) => Forecast::None,
            (false, Some(scan), reading) => Forecast::About(scan.max(reading.unwrap_or_default())),
            (false, None, Some(left)) if left >= Duration::from_secs(1) => Forecast::AtLeast(left),
            (false, None, _) => Forecast::None,
        }
    }

    /// Says all of it in a line, what matters most first: a narrow terminal cuts the end.
    fn sentence(&self, rate: f64) -> String {
        let mut out = match self.forecast() {
            _ if self.committing => "committing; ".to_owned(),
            Forecast::None => String::new(),
            Forecast::About(left) => format!("about {} left; ", text::duration(left)),
            Forecast::AtLeast(left) => format!("at least {} left; ", text::duration(left)),
        };
        out.push_str(&format!("{} names", text::count(self.names)));
        if !self.scanned && self.expected_names > self.names {
            out.push_str(&format!(" of some {}", text::count(self.expected_names)));
        }
        out.push_str(&format!(", read {} files, {}", text::count(self.read_files), text::bytes(self.read_bytes)));
        if rate >= 1.0 {
            out.push_str(&format!(" ({}/s)", text::bytes(rate as u64)));
        }
        out.push_str(&format!(", new {}, stored {}", text::bytes(self.new_bytes), text::bytes(self.stored_bytes)));
        if self.received_bytes > 0 {
            out.push_str(&format!(
                "; received {}; remote host: {} names, {} files, {}",
                text::bytes(self.received_bytes),
                text::count(self.remote_names),
                text::count(self.remote_files),
                text::bytes(self.remote_bytes)
            ));
        }
        out
    }
}

/// How long a run may still take.
#[derive(Debug, PartialEq, Eq)]
enum Forecast {
    /// It cannot be determined.
    None,
    /// What is known to be left takes so long, and more may turn up.
    AtLeast(Duration),
    /// All that is left takes some such time.
    About(Duration),
}

/// Bytes a second, over the last few seconds.
struct Rate {
    last: Instant,
    last_bytes: u64,
    value: f64,
}

impl Rate {
    fn update(&mut self, bytes: u64) -> f64 {
        let seconds = self.last.elapsed().as_secs_f64();
        if seconds > 0.0 {
            let current = bytes.saturating_sub(self.last_bytes) as f64 / seconds;
            // Forgets half of what was in some two seconds.
            let keep = 0.5f64.powf(seconds / 2.0);
            self.value = self.value * keep + current * (1.0 - keep);
            (self.last, self.last_bytes) = (Instant::now(), bytes);
        }
        self.value
    }
}

/// The live line that is shown, if there is one.
static LIVE_LINE: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Writes a line to stderr, above the live line if one is shown.
pub(crate) fn above_live_line(text: &str) {
    let bar = LIVE_LINE.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(WeakProgressBar::upgrade);
    match bar {
        Some(bar) => bar.suspend(|| stderr_line(text)),
        None => stderr_line(text),
    }
}

/// Returns a live line on stderr, or one that shows nothing where nobody would see it.
pub(crate) fn live_line(output: &Output, template: &str) -> ProgressBar {
    if !output.live() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    // The templates are constants and valid; were one not, the standard one would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    *LIVE_LINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
    bar
}

/// Follows a run until `stop` is closed: reports progress and passes on requests to stop.
pub(crate) fn follow(output: &Output, progress: &Progress, interrupt: &AtomicBool, stop: &Receiver<()>) {
    let started = Instant::now();
    let bar = live_line(output, "{spinner} {elapsed_precise}  {wide_msg}\n  {prefix}");
    let lines = !output.live() && output.verbosity() == Verbosity::Verbose;
    let mut rate = Rate { last: started, last_bytes: 0, value: 0.0 };
    let mut next_line = started + LINE_INTERVAL;
    let mut is_reported = false;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(TICK) {
        if interrupt.load(Ordering::Relaxed) && !is_reported {
            is_reported = true;
            progress.interrupt.store(true, Ordering::Relaxed);
            let text =
                "Interrupted: the run will stop shortly and keep what it has stored. A second signal stops it at once.";
            bar.suspend(|| stderr_line(text));
        }
        print_messages(output, progress, &bar);
        let figures = Figures::take(progress, started.elapsed());
        let rate = rate.update(figures.read_bytes);
        if output.live() {
            bar.set_message(figures.sentence(rate));
            if let Ok(current) = progress.current.try_lock() {
                bar.set_prefix(shortened(&current));
            }
            bar.tick();
        } else if lines && Instant::now() >= next_line {
            next_line = Instant::now() + LINE_INTERVAL;
            if output.json() {
                // A reader that went away does not end the run.
                let _ = output.event(&figures).and_then(|()| output.flush());
            } else {
                stderr_line(&figures.sentence(rate));
            }
        }
    }
    print_messages(output, progress, &bar);
    bar.finish_and_clear();
}

/// Passes on what the run reports while it is going on.
fn print_messages(output: &Output, progress: &Progress, bar: &ProgressBar) {
    let details = progress.take_details();
    if output.verbosity() == Verbosity::Verbose {
        for detail in details {
            bar.suspend(|| output.note(&detail));
        }
    }
    for message in progress.take_messages() {
        bar.suspend(|| output.note(&message));
    }
}

/// Returns the end of a path, fit for one line of a terminal.
fn shortened(path: &[u8]) -> String {
    let shown = text::escape(path);
    match shown.char_indices().rev().nth(PATH_CHARACTERS) {
        Some((at, _)) => format!("...{}", &shown[at..]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts_say_no_more_than_is_known() {
        let figures = Figures {
            names: 100,
            requested_files: 10,
            requested_bytes: 4000,
            read_files: 5,
            read_bytes: 1000,
            elapsed_ms: 10_000,
            ..Figures::default()
        };
        assert_eq!(figures.forecast(), Forecast::AtLeast(Duration::from_secs(30)));
        assert_eq!(Figures { scanned: true, ..figures }.forecast(), Forecast::About(Duration::from_secs(30)));
        assert_eq!(Figures { expected_names: 1000, ..figures }.forecast(), Forecast::About(Duration::from_secs(90)));
        assert_eq!(Figures { elapsed_ms: 1000, ..figures }.forecast(), Forecast::None);
        assert_eq!(Figures { committing: true, ..figures }.forecast(), Forecast::None);
    }

    #[test]
    fn progress_events_keep_their_keys() {
        let event = serde_json::to_value(Figures::default()).unwrap();
        let mut keys: Vec<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let frozen = "asked_bytes asked_files committing elapsed_ms event expected_names far_bytes far_files far_names names new_bytes \
                      new_chunks read_bytes read_files received_bytes scanned sent_bytes stored_bytes";
        assert_eq!(keys.join(" "), frozen);
    }
}
