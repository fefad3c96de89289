//! stdout and stderr, and what may be written to them.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Problems and errors only.
    Quiet,
    /// Summaries too.
    Normal,
    /// Everything.
    Verbose,
}

/// Style of good news.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Style of what wants attention.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// Style of errors.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Style of directories.
pub(crate) const DIRECTORY: Style = AnsiColor::Blue.on_default().bold();
/// Style of symbolic links.
pub(crate) const SYMLINK: Style = AnsiColor::Cyan.on_default();

/// An error, as JSON.
#[derive(Serialize)]
#[serde(tag = "event", rename = "error")]
pub(crate) struct ErrorEvent<'a> {
    pub(crate) message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<&'a str>,
    pub(crate) exit_code: u8,
}

/// Where a command writes. stdout is buffered and flushed once at the end.
pub(crate) struct Output {
    json: bool,
    verbosity: Verbosity,
    stdout: Mutex<BufWriter<Stdout>>,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    colour: bool,
}

const STDOUT_BUFFER_BYTES: usize = 64 << 10;

impl Output {
    /// Prepares both streams. Colours are for terminals and obey NO_COLOR.
    pub(crate) fn new(json: bool, verbosity: Verbosity) -> Output {
        let stdout = io::stdout();
        let colour = !json && !matches!(AutoStream::choice(&stdout), ColorChoice::Never);
        Output {
            json,
            verbosity,
            stdout_is_terminal: stdout.is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            colour,
            stdout: Mutex::new(BufWriter::with_capacity(STDOUT_BUFFER_BYTES, stdout)),
        }
    }

    /// Returns whether stdout carries JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Returns how much is told.
    pub(crate) fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Returns whether people read stdout.
    pub(crate) fn stdout_is_terminal(&self) -> bool {
        self.stdout_is_terminal
    }

    /// Returns whether stderr shows a live line: for people only, and when they want it.
    pub(crate) fn live(&self) -> bool {
        self.stderr_is_terminal && !self.json && self.verbosity > Verbosity::Quiet
    }

    /// Returns whether stdout takes colours.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// Wraps text in a style, if stdout takes colours.
    pub(crate) fn styled(&self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Locks stdout for raw bytes.
    pub(crate) fn stdout(&self) -> MutexGuard<'_, BufWriter<Stdout>> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line of text to stdout.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        writeln!(self.stdout(), "{text}")
    }

    /// Writes one JSON object as a line to stdout.
    pub(crate) fn event(&self, event: &impl Serialize) -> io::Result<()> {
        let mut stdout = self.stdout();
        serde_json::to_writer(&mut *stdout, event)?;
        stdout.write_all(b"\n")
    }

    /// Lets everything written so far reach the reader.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.stdout().flush()
    }

    /// Writes a line to stderr, unless only problems are wanted.
    pub(crate) fn note(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            stderr_line(text);
        }
    }

    /// Writes a problem to stderr.
    pub(crate) fn warn(&self, text: &str) {
        anstream_line(WARNING, "warning: ", text);
    }

    /// Writes an error and what to do about it to stderr.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        anstream_line(ERROR, "error: ", message);
        if let Some(hint) = hint {
            stderr_line(hint);
        }
    }
}

fn anstream_line(style: Style, head: &str, text: &str) {
    // Nobody is left to be told when stderr fails.
    let _ = writeln!(anstream::stderr().lock(), "{style}{head}{style:#}{text}");
}

/// Writes a line to stderr.
pub(crate) fn stderr_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
