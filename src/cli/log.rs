//! The log of the nightly run: the system's log, or a file that never grows large.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use zmreplica::{access, plain};

use super::config::LogTarget;
use super::error::CliError;
use super::output::plain_line;

/// A log file of this size is renamed to `FILE.1`, in place of the one before, when a run begins: no logrotate is needed.
const ROTATE_BYTES: u64 = 4 << 20;

/// Mode of a new log: a group of administrators may read it.
const MODE: u32 = 0o640;
/// Longer lines are cut: datagrams to the system's log are limited, and a line is for people.
const LINE_BYTES: usize = 8 << 10;

/// Opens a log file to append to, with the mode that is wanted or, if it is new, the usual one.
pub(crate) fn open_file(path: &Path, wanted: Option<u32>) -> Result<fs::File, CliError> {
    access::open_log(path, wanted, MODE)
        .map_err(|error| CliError::Failed(format!("Cannot open the log {}: {error}", path.display())))
}

/// Returns a message as a log takes it: one line, which nothing in it can end, of bounded length.
pub(crate) fn fit(message: &str) -> String {
    plain::short(&plain_line(message), LINE_BYTES)
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// All is well.
    Info,
    /// Somebody should look.
    Warning,
    /// Something failed.
    Error,
}

type SystemLogger = syslog::Logger<syslog::LoggerBackend, syslog::Formatter3164>;

enum Sink {
    Nowhere,
    System(Box<SystemLogger>),
    File(fs::File, PathBuf),
}

/// An open log.
pub(crate) struct Log {
    sink: Sink,
}

impl Log {
    /// Opens a log; without a target nothing is kept. `mode` is that of a file, if one is wanted.
    pub(crate) fn open(target: Option<&LogTarget>, mode: Option<u32>) -> Result<Log, CliError> {
        let sink = match target {
            None => Sink::Nowhere,
            Some(LogTarget::System) => {
                let formatter = syslog::Formatter3164 {
                    facility: syslog::Facility::LOG_DAEMON,
                    hostname: None,
                    process: "zmreplica".to_owned(),
                    pid: std::process::id(),
                };
                let logger = syslog::unix(formatter)
                    .map_err(|error| CliError::Failed(format!("The system's log cannot be opened: {error}")))?;
                Sink::System(Box::new(logger))
            }
            Some(LogTarget::File(path)) => {
                let mut wanted = mode;
                if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= ROTATE_BYTES) {
                    let mut old = path.clone().into_os_string();
                    old.push(".1");
                    // The new one is to be read by whoever read the old one.
                    wanted = wanted.or(access::mode_of(path));
                    // A log that cannot be renamed goes on growing, which is better than none.
                    let _ = fs::rename(path, old);
                }
                Sink::File(open_file(path, wanted)?, path.clone())
            }
        };
        Ok(Log { sink })
    }

    /// Writes a line; its colours are left out. Returns what kept it from being written.
    pub(crate) fn line(&mut self, level: Level, text: &str) -> Option<String> {
        let text = fit(text);
        match &mut self.sink {
            Sink::Nowhere => None,
            Sink::System(logger) => {
                let written = match level {
                    Level::Info => logger.info(text),
                    Level::Warning => logger.warning(text),
                    Level::Error => logger.err(text),
                };
                written.err().map(|error| format!("The system's log cannot be written: {error}"))
            }
            Sink::File(file, path) => {
                let word = match level {
                    Level::Info => "",
                    Level::Warning => "warning: ",
                    Level::Error => "error: ",
                };
                let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
                // One write a line: runs that are refused because another goes on write to the same file.
                let line = format!("{time} [{}] {word}{text}\n", std::process::id());
                file.write_all(line.as_bytes())
                    .err()
                    .map(|error| format!("Cannot write to the log {}: {error}", path.display()))
            }
        }
    }
}
