//! stdout and stderr, and what may be written to them.
//!
//! This is the one place where text leaves for a terminal (a file of a log is the other, in [`log`](super::log)), and the one where it is made
//! harmless: whatever a name, an address or an error text of another host holds, it neither acts on the terminal nor begins a line. Callers hand on
//! texts as they are. Styles are therefore no escape sequences before they get here, but marks that nobody else can write.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use zmreplica::plain::{escape_text, is_plain};

/// How much is printed.
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

const STYLES: [Style; 5] = [GOOD, WARNING, ERROR, DIRECTORY, SYMLINK];

/// What begins the mark of a style: no character, and a number that is drawn anew each time the program runs. A digit follows, the place in [`STYLES`] or
/// that behind them for the end of a style.
static MARK: LazyLock<String> =
    LazyLock::new(|| format!("\u{fdd0}{:016x}", RandomState::new().build_hasher().finish()));

fn mark(place: usize) -> String {
    format!("{}{place}", *MARK)
}

/// Returns a text as it may be written into one line, with its styles as escape sequences if they are wanted.
fn rendered(text: &str, colour: bool) -> String {
    let mut pieces = text.split(MARK.as_str());
    let mut out = escape_text(pieces.next().unwrap_or_default()).into_owned();
    let mut last = Style::new();
    for piece in pieces {
        // Only `styled` writes marks, so there is a digit.
        let (digit, piece) = piece.split_at_checked(1).unwrap_or_default();
        let style = digit.parse::<usize>().ok().and_then(|place| STYLES.get(place)).copied();
        if colour {
            let _ = match style {
                Some(style) => write!(out, "{style}"),
                None => write!(out, "{last:#}"),
            };
        }
        last = style.unwrap_or_default();
        out.push_str(&escape_text(piece));
    }
    out
}

/// Returns a text as it may be written into one line, without its styles.
pub(crate) fn plain_line(text: &str) -> String {
    rendered(text, false)
}

/// Writes JSON in which nothing acts on a terminal either: what is not plain is written as `\uNNNN`, which every reader of JSON understands.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, letter)) = rest.char_indices().find(|(_, letter)| !is_plain(*letter)) {
            CompactFormatter.write_string_fragment(writer, &rest[..at])?;
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + letter.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

/// Writes a value as one line of JSON.
pub(crate) fn write_json(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut *writer, Harmless))?;
    writer.write_all(b"\n")
}

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

    /// Returns how much is printed.
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

    /// Wraps text in one of the styles, for a line.
    pub(crate) fn styled(&self, style: Style, text: &str) -> String {
        match STYLES.iter().position(|known| *known == style).filter(|_| self.colour) {
            Some(place) => format!("{}{text}{}", mark(place), mark(STYLES.len())),
            None => text.to_owned(),
        }
    }

    /// Returns text in one of the styles as it is written to stdout, for a line with raw bytes in it.
    pub(crate) fn painted(&self, style: Style, text: &str) -> String {
        rendered(&self.styled(style, text), self.colour)
    }

    /// Locks stdout for raw bytes.
    pub(crate) fn stdout(&self) -> MutexGuard<'_, BufWriter<Stdout>> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line of text to stdout.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        writeln!(self.stdout(), "{}", rendered(text, self.colour))
    }

    /// Writes a line of a table to stdout, whose cells are escaped and styled already.
    pub(super) fn table_line(&self, text: &str) -> io::Result<()> {
        writeln!(self.stdout(), "{text}")
    }

    /// Writes one JSON object as a line to stdout.
    pub(crate) fn event(&self, event: &impl Serialize) -> io::Result<()> {
        write_json(&mut *self.stdout(), event)
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
    // There is nowhere left to report that stderr fails.
    let _ = writeln!(anstream::stderr().lock(), "{style}{head}{style:#}{}", plain_line(text));
}

/// Writes a line to stderr.
pub(crate) fn stderr_line(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", plain_line(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_style_of_our_own_acts_on_a_terminal() {
        let hostile = "a\x1b[2J\u{9b}31m\r\nerror: forged \u{202e}txt\u{fdd0}00000000000000001";
        let line = format!("{hostile}{}{hostile}{}{hostile}", mark(1), mark(STYLES.len()));
        let escaped = escape_text(hostile);
        assert_eq!(rendered(&line, true), format!("{escaped}{WARNING}{escaped}{WARNING:#}{escaped}"));
        assert_eq!(plain_line(&line), format!("{escaped}{escaped}{escaped}"));
        assert!(plain_line(&line).chars().all(is_plain));
        assert_eq!(plain_line("plain \u{e9}"), "plain \u{e9}");
    }

    #[test]
    fn json_says_the_same_and_does_nothing() {
        let hostile = "a\"\\\x1b[2J\u{9b}31m\r\n\u{7f}\u{202e}\u{e0041}\u{e9}\0";
        let mut line = Vec::new();
        write_json(&mut line, &[hostile]).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert_eq!(line, "[\"a\\\"\\\\\\u001b[2J\\u009b31m\\r\\n\\u007f\\u202e\\udb40\\udc41\u{e9}\\u0000\"]\n");
        assert_eq!(serde_json::from_str::<Vec<String>>(&line).unwrap(), [hostile]);
    }
}
