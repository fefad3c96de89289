//! The log of the nightly run: the system's log, or a file that never grows large.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;

use super::config::LogTarget;
use super::error::CliError;

/// A log file of this size is renamed to `FILE.1`, in place of the one before, when a run begins: no logrotate is needed.
const ROTATE_BYTES: u64 = 4 << 20;

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
    /// Opens a log; without a target nothing is kept.
    pub(crate) fn open(target: Option<&LogTarget>) -> Result<Log, CliError> {
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
                if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= ROTATE_BYTES) {
                    let mut old = path.clone().into_os_string();
                    old.push(".1");
                    // A log that cannot be renamed goes on growing, which is better than none.
                    let _ = fs::rename(path, old);
                }
                let opened = OpenOptions::new().create(true).append(true).open(path);
                let file = opened
                    .map_err(|error| CliError::Failed(format!("Cannot open the log {}: {error}", path.display())))?;
                Sink::File(file, path.clone())
            }
        };
        Ok(Log { sink })
    }

    /// Writes a line; its colours are left out. Returns what kept it from being written.
    pub(crate) fn line(&mut self, level: Level, text: &str) -> Option<String> {
        let text = anstream::adapter::strip_str(text).to_string();
        match &mut self.sink {
            Sink::Nowhere => None,
            Sink::System(logger) => {
                let written = match level {
                    Level::Info => logger.info(text),
                    Level::Warning => logger.warning(text),
                    Level::Error => logger.err(text),
                };
                written.err().map(|error| format!("The system's log takes nothing: {error}"))
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
