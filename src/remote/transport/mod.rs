//! Connections to another host: one trait, two ways.
//!
//! [`ssh`] speaks SSH itself, with a window wide enough for distant hosts; [`command`] runs any program that carries stdin and stdout there, as rsync's
//! `-e` does. Neither has a call that can wait forever: each read ends after [`SILENCE`] without a byte, or after the span that was set instead, and each can
//! be broken off.

pub mod command;
pub(crate) mod deadline;
pub mod known_hosts;
pub(crate) mod least_rate;
pub mod spec;
pub mod ssh;
pub mod upload;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{Level, debug, enabled};

use super::protocol::{NOISE_BYTES, SILENCE_SECONDS};
use crate::areas;
use crate::cause::Cause;

/// A read that has waited so long for a byte fails. The remote host sends a sign of life more often.
pub const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);
/// How long connecting may take, and each step of a handshake.
pub const CONNECT_TIME: Duration = Duration::from_secs(30);
/// Bytes of the remote host's stderr that are kept for messages.
pub const STDERR_BYTES: usize = 16 << 10;

/// Why a host cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection, or it broke. Another attempt may do.
    #[error("Cannot connect to {host}: {reason}")]
    Connect {
        /// The host, as the user named it.
        host: String,
        /// What happened.
        #[source]
        reason: Cause,
    },
    /// Nobody listens there, or the name is not known. Worth another attempt only to one who was connected before.
    #[error("Cannot connect to {host}: {reason}")]
    Unreachable {
        /// The host, as the user named it.
        host: String,
        /// What happened.
        #[source]
        reason: Cause,
    },
    /// The host cannot be trusted, or does not trust this user: another attempt changes nothing.
    #[error("{message}")]
    Refused {
        /// What happened, and what to do.
        message: String,
    },
}

/// A command that runs on the remote host.
pub struct Connection {
    /// What it writes to stdout. Ends when the command does.
    pub input: Box<dyn Read + Send>,
    /// Its stdin; closed when dropped.
    pub output: Box<dyn Write + Send>,
    /// What can be done about it from any thread.
    pub control: Arc<dyn Control>,
}

/// What can be done about a running command from any thread.
pub trait Control: Send + Sync {
    /// Breaks the connection off: reads and writes under way end soon.
    fn abort(&self);

    /// Returns how the command ended and what it wrote to stderr, for messages. Waits a moment for the end.
    fn exit_info(&self) -> ExitInfo;

    /// Has reads fail with `TimedOut` after so long without a byte, instead of [`SILENCE`]; they may be tried again. Connections without such a limit have none
    /// to change.
    fn set_silence(&self, _span: Duration) {}
}

/// How long the reads of a connection wait for a byte. It may be changed while one waits; it applies from the next one on.
#[derive(Clone)]
pub(crate) struct Silence(Arc<AtomicU64>);

impl Silence {
    /// Starts with a span.
    pub(crate) fn of(span: Duration) -> Silence {
        let silence = Silence(Arc::default());
        silence.set(span);
        silence
    }

    /// Changes it.
    pub(crate) fn set(&self, span: Duration) {
        self.0.store(u64::try_from(span.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns it.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitInfo {
    /// Its exit code, if it is known.
    pub code: Option<i32>,
    /// The end of what it wrote to stderr.
    pub stderr: String,
    /// It was not this command that ended so, but the program on this host that should have carried it.
    pub carrier: bool,
}

/// What OpenSSH's client says when nobody listens, or the name is unknown.
const UNREACHABLE: [&str; 3] =
    ["Connection refused", "Name or service not known", "No address associated with hostname"];
/// What it says when the host is not trusted, does not let the user in, or cannot be talked to.
const REFUSED: [&str; 7] = [
    "Host key verification failed",
    "Permission denied (",
    "Too many authentication failures",
    "Unable to negotiate with",
    "Bad configuration option",
    "Bad owner or permissions",
    "unknown option --",
];

impl ExitInfo {
    /// Returns whether the shell there says that it has no such program.
    pub fn not_found(&self) -> bool {
        !self.carrier && matches!(self.code, Some(126 | 127))
    }

    /// Returns the error of an end that another attempt would not change.
    pub fn lasting(&self, host: &str) -> Option<TransportError> {
        let said =
            |phrases: &[&str]| self.code == Some(255) && phrases.iter().any(|phrase| self.stderr.contains(phrase));
        let host = host.to_owned();
        if self.carrier || said(&REFUSED) {
            let message = format!("Cannot connect to {host}: {self}");
            return Some(TransportError::Refused { message });
        }
        said(&UNREACHABLE).then(|| TransportError::Unreachable { host, reason: self.to_string().into() })
    }
}

impl std::fmt::Display for ExitInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Of several lines one: it becomes part of a message.
        let said = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        match (self.code, said.as_str()) {
            (Some(code), "") => write!(f, "it ended with code {code}"),
            (Some(code), text) => write!(f, "it ended with code {code} and said: {text}"),
            (None, "") => f.write_str("the connection ended"),
            (None, text) => write!(f, "the connection ended; it said: {text}"),
        }
    }
}

/// A way to run commands on one host.
pub trait Transport {
    /// Runs a command by the shell there.
    ///
    /// # Errors
    /// See [`TransportError`]. That the command is not there shows in its [`ExitInfo`].
    fn run(&mut self, command: &str) -> Result<Connection, TransportError>;

    /// Returns the host, as messages name it.
    fn host(&self) -> &str;
}

/// Quotes a word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Shows the end of what a host printed where something else was due: the reason often stands there, as `nologin` has it. Empty for nothing.
pub(crate) fn printed(seen: &[u8]) -> String {
    const SHOWN_BYTES: usize = 500;
    let text = seen.trim_ascii();
    if text.is_empty() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(SHOWN_BYTES)..]);
    let clean = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(|c: char| c.is_control(), "?");
    format!("; it printed: {clean}")
}

/// Reads to the end of one of some marks, over what a login shell may print before; returns which mark it was. What was read is in `seen`.
pub(crate) fn read_to_mark(input: &mut dyn Read, marks: &[&[u8]], seen: &mut Vec<u8>) -> io::Result<usize> {
    let mut byte = [0];
    loop {
        if let Some(mark) = marks.iter().position(|mark| seen.ends_with(mark)) {
            return Ok(mark);
        }
        if seen.len() >= NOISE_BYTES {
            let message = format!("the host printed {NOISE_BYTES} bytes and no greeting");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        input.read_exact(&mut byte)?;
        seen.push(byte[0]);
    }
}

/// Keeps the end of what a remote command writes to stderr, and shows all of it to who watches: an agent with events of its own writes them there.
pub(crate) fn keep_end(kept: &mut Vec<u8>, more: &[u8]) {
    if enabled!(target: areas::REMOTE, Level::DEBUG) {
        for line in String::from_utf8_lossy(more).lines() {
            debug!(target: areas::REMOTE, "stderr of the remote host: {line}");
        }
    }
    kept.extend_from_slice(more);
    if kept.len() > STDERR_BYTES {
        let surplus = kept.len() - STDERR_BYTES;
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_prints_is_passed_over() {
        let read = |input: &mut dyn Read| {
            let mut seen = Vec::new();
            read_to_mark(input, &[b"MARK1 ", b"MARK2 "], &mut seen).map(|mark| (mark, seen.len()))
        };
        let mut input = &b"Welcome!\nMARKMARK2 ok"[..];
        assert_eq!(read(&mut input).unwrap(), (1, 19));
        assert_eq!(input, b"ok");
        assert_eq!(read(&mut &b"MARK1 "[..]).unwrap(), (0, 6));
        assert_eq!(read(&mut &b"MARK1"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&mut io::repeat(b'x')).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        for word in ["plain", "with space", "it's", "$HOME `x` \"y\" \\", ""] {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
    }
}
