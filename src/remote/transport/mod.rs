//! Connections to another host: one trait, two ways.
//!
//! [`ssh`] speaks SSH itself, with a window wide enough for distant hosts; [`command`] runs any program that carries stdin and stdout there, as rsync's
//! `-e` does. Neither has a call that can wait for ever: each read ends after [`SILENCE`] without a byte, and each can be broken off.

pub mod command;
pub(crate) mod deadline;
pub mod spec;
pub mod ssh;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::protocol::SILENCE_SECONDS;

/// A read that has waited so long for a byte fails. The far side sends a sign of life more often.
pub const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);
/// How long connecting may take, and each step of a handshake.
pub const CONNECT_TIME: Duration = Duration::from_secs(30);
/// Bytes of the far side's stderr that are kept for messages.
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
        reason: String,
    },
    /// The host cannot be trusted, or does not trust this user: another attempt changes nothing.
    #[error("{message}")]
    Refused {
        /// What happened, and what to do.
        message: String,
    },
}

/// A command that runs on the far side.
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

    /// Tells how the command ended and what it wrote to stderr, for messages. Waits a moment for the end.
    fn last_words(&self) -> LastWords;
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// Its exit code, if it is known.
    pub code: Option<i32>,
    /// The end of what it wrote to stderr.
    pub stderr: String,
}

impl LastWords {
    /// Returns whether the shell there says that it has no such program.
    pub fn not_found(&self) -> bool {
        matches!(self.code, Some(126 | 127))
    }
}

impl std::fmt::Display for LastWords {
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
    /// See [`TransportError`]. That the command is not there shows in its [`LastWords`].
    fn run(&mut self, command: &str) -> Result<Connection, TransportError>;

    /// Writes an executable file below the home directory there, its directories included, reads it back and compares; it gets its name only then.
    ///
    /// # Errors
    /// See [`TransportError`].
    fn upload(&mut self, directory: &str, name: &str, bytes: &[u8]) -> Result<(), TransportError>;

    /// Returns the host, as messages name it.
    fn host(&self) -> &str;
}

/// Quotes a word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Keeps the end of a stream of text.
pub(crate) fn keep_end(kept: &mut Vec<u8>, more: &[u8]) {
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
    fn words_are_quoted_for_the_shell() {
        for word in ["plain", "with space", "it's", "$HOME `x` \"y\" \\", ""] {
            let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
    }
}
