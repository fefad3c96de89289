//! Reading the vendor's XML: streaming, with bounded memory, and as far as it can be read.
//!
//! Real files hold what XML 1.0 forbids (`&#7;` in a mail filter), are cut short by a full disk, or come from a release that nobody here has seen. So
//! nothing is demanded: what is wrong is noted and stepped over, up to the next tag, and every attribute is read for itself. Entities other than the
//! five of XML and numbers are left as they stand; a document type is skipped, so no entity can expand to anything.
//!
//! Memory: the event at hand, [`EVENT_MAX_BYTES`] at most (a longer one is skipped), whatever the length of the file. What a visitor is given is cut to
//! [`VALUE_MAX_BYTES`].

mod clean;
mod files;

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use clean::Clean;
pub use files::{
    AccountEntry, AccountStatus, MetaFile, ROOT, SessionAccount, SessionError, SessionFile, SessionItem, read_accounts,
    read_meta, read_session,
};

/// The longest tag or stretch of text that is looked at, in bytes; no tag of the vendor's comes near.
pub const EVENT_MAX_BYTES: usize = 1 << 20;
/// The longest attribute value or text that is handed out, in bytes.
pub const VALUE_MAX_BYTES: usize = 1024;

/// How far a file could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reading {
    /// Whether the root element was there, and was closed.
    pub complete: bool,
    /// Name of the root element.
    pub root: Option<String>,
    /// The format version that the root element states.
    pub version: Option<String>,
    /// How many places had to be stepped over.
    pub faults: u64,
    /// The first of them: where, and what was wrong.
    pub first_fault: Option<String>,
}

impl Reading {
    /// Returns what is wrong with the file, in words; `None` when nothing is.
    pub fn remark(&self, expected_root: &str) -> Option<String> {
        let mut words = Vec::new();
        match &self.root {
            None => words.push("it holds no XML element".to_owned()),
            Some(root) if root != expected_root => {
                words.push(format!("its root element is {root}, not {expected_root}"))
            }
            Some(_) if !self.complete => words.push("it ends before its root element does".to_owned()),
            Some(_) => {}
        }
        if let Some(first) = &self.first_fault {
            let more = if self.faults > 1 { format!(" (and {} more)", self.faults - 1) } else { String::new() };
            words.push(format!("{first}{more}"));
        }
        (!words.is_empty()).then(|| words.join("; "))
    }
}

/// What the reader meets.
pub(super) enum Piece<'a> {
    /// The beginning of an element.
    Start(Element<'a>),
    /// The end of an element, by its name without a prefix.
    End(&'a str),
    /// Text, as it stands between two tags or references.
    Text(Cow<'a, str>),
}

/// The beginning of an element.
pub(super) struct Element<'a> {
    start: &'a BytesStart<'a>,
}

impl Element<'_> {
    /// Returns the name without a prefix.
    pub(super) fn name(&self) -> &str {
        self.start.local_name().into_inner()
    }

    /// Calls `visit` for each attribute that can be read, with its name without a prefix and its value.
    pub(super) fn attributes(&self, mut visit: impl FnMut(&str, String)) {
        for attribute in self.start.attributes().with_checks(false).flatten() {
            visit(attribute.key.local_name().into_inner(), plain_text(&attribute.value));
        }
    }
}

/// Reads a file from start to end and calls `visit` for everything in it that is an element or text.
///
/// # Errors
/// Fails when the input does; whatever the bytes are is no error.
pub(super) fn read(input: impl Read, mut visit: impl FnMut(Piece<'_>)) -> io::Result<Reading> {
    let mut reading = Reading::default();
    let mut depth = 0u64;
    let mut buffer = Vec::new();
    let mut reader = reader_of(Limited::new(Clean::new(input)));
    loop {
        buffer.clear();
        let before = reader.get_ref().position;
        reader.get_mut().begin();
        let reason = match reader.read_event_into(&mut buffer) {
            Ok(Event::Start(start)) => {
                begin(&mut reading, &start);
                depth += 1;
                visit(Piece::Start(Element { start: &start }));
                continue;
            }
            Ok(Event::Empty(start)) => {
                begin(&mut reading, &start);
                visit(Piece::Start(Element { start: &start }));
                visit(Piece::End(start.local_name().into_inner()));
                reading.complete |= depth == 0;
                continue;
            }
            Ok(Event::End(end)) => {
                visit(Piece::End(end.local_name().into_inner()));
                // A stray end is stepped over without a word: nothing is lost by it.
                reading.complete |= depth == 1;
                depth = depth.saturating_sub(1);
                continue;
            }
            Ok(Event::Text(text)) => {
                visit(Piece::Text(Cow::Owned(plain_text(&text))));
                continue;
            }
            Ok(Event::CData(text)) => {
                visit(Piece::Text(Cow::Owned(cut(&text).to_owned())));
                continue;
            }
            Ok(Event::GeneralRef(reference)) => {
                let mut text = String::new();
                push_reference(&mut text, &reference);
                visit(Piece::Text(Cow::Owned(text)));
                continue;
            }
            Ok(Event::Eof) => break,
            Ok(_) => continue,
            Err(quick_xml::Error::Io(error)) if reader.get_ref().hit.is_none() => {
                return Err(io::Error::new(error.kind(), error));
            }
            Err(error) => reader.get_ref().hit.map_or_else(|| error.to_string(), str::to_owned),
        };
        reading.faults += 1;
        reading.first_fault.get_or_insert_with(|| format!("at byte {before}: {reason}"));
        let mut input = reader.into_inner();
        if !input.skip_to_tag(before)? {
            break;
        }
        reader = reader_of(input);
    }
    Ok(reading)
}

fn reader_of<R: BufRead>(input: R) -> Reader<R> {
    let mut reader = Reader::from_reader(input);
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;
    reader
}

/// Takes from the first element what it says of the file.
fn begin(reading: &mut Reading, start: &BytesStart<'_>) {
    if reading.root.is_none() {
        let element = Element { start };
        reading.root = Some(cut(element.name()).to_owned());
        element.attributes(|name, value| {
            if name == "version" {
                reading.version = Some(value);
            }
        });
    }
}

/// An input that ends an event which is too long, and a tag in which another begins: a quote that is missing would else swallow the rest of the file.
struct Limited<R> {
    inner: R,
    /// Bytes that the event may still take.
    left: usize,
    /// Bytes given out so far.
    position: u64,
    /// What the event is, as far as it is known.
    kind: Kind,
    /// Why the event was ended.
    hit: Option<&'static str>,
}

/// What an event is, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing of it was given out.
    Unknown,
    /// It begins with `<`.
    Markup,
    /// A tag, in which no `<` can stand.
    Tag,
    /// Text, a comment and the like, which end by themselves.
    Other,
}

impl<R: BufRead> Limited<R> {
    fn new(inner: R) -> Limited<R> {
        Limited { inner, left: 0, position: 0, kind: Kind::Unknown, hit: None }
    }

    /// Prepares for the next event.
    fn begin(&mut self) {
        (self.left, self.kind, self.hit) = (EVENT_MAX_BYTES, Kind::Unknown, None);
    }

    /// Goes on to the next `<`, and beyond the one at `before`, lest nothing moves. Returns whether there is one.
    fn skip_to_tag(&mut self, before: u64) -> io::Result<bool> {
        if self.position == before {
            let available = self.inner.fill_buf()?.len().min(1);
            self.inner.consume(available);
            self.position += available as u64;
        }
        loop {
            let bytes = match self.inner.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if bytes.is_empty() {
                return Ok(false);
            }
            let found = memchr::memchr(b'<', bytes);
            let skip = found.unwrap_or(bytes.len());
            self.inner.consume(skip);
            self.position += skip as u64;
            if found.is_some() {
                return Ok(true);
            }
        }
    }
}

impl<R: BufRead> io::Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Limited<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.inner.fill_buf()?;
        let Some(first) = bytes.first() else { return Ok(bytes) };
        let mut length = bytes.len().min(self.left);
        match (self.kind, first) {
            // What follows the bracket decides.
            (Kind::Unknown, b'<') => length = length.min(1),
            (Kind::Markup, b'!' | b'?') => self.kind = Kind::Other,
            (Kind::Markup, _) => self.kind = Kind::Tag,
            _ => {}
        }
        if self.kind == Kind::Tag {
            length = memchr::memchr(b'<', &bytes[..length]).unwrap_or(length);
        }
        if length == 0 {
            let hit = if self.left == 0 { "a tag or a text is too long" } else { "a tag begins within another" };
            self.hit = Some(hit);
            return Err(io::Error::other(hit));
        }
        Ok(&bytes[..length])
    }

    fn consume(&mut self, count: usize) {
        if self.kind == Kind::Unknown && count > 0 {
            // Of a bracket nothing but itself is given out.
            let is_bracket = count == 1 && matches!(self.inner.fill_buf(), Ok([b'<', ..]));
            self.kind = if is_bracket { Kind::Markup } else { Kind::Other };
        }
        self.left -= count;
        self.position += count as u64;
        self.inner.consume(count);
    }
}

/// Cuts a text to [`VALUE_MAX_BYTES`].
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE_MAX_BYTES)]
}

/// Returns text with its references resolved, as far as they can be, cut to [`VALUE_MAX_BYTES`].
fn plain_text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len().min(VALUE_MAX_BYTES));
    // A reference is longer than what it stands for, but not many times.
    let mut rest = &raw[..raw.floor_char_boundary(REFERENCE_MAX_BYTES * VALUE_MAX_BYTES)];
    while out.len() < VALUE_MAX_BYTES {
        let Some(at) = rest.find('&') else {
            out.push_str(rest);
            break;
        };
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        // References are short; a lone ampersand stays one.
        match rest.bytes().take(REFERENCE_MAX_BYTES).position(|byte| byte == b';') {
            Some(end) => {
                push_reference(&mut out, &rest[..end]);
                rest = &rest[end + 1..];
            }
            None => out.push('&'),
        }
    }
    out.truncate(out.floor_char_boundary(VALUE_MAX_BYTES));
    out
}

/// The longest reference that is looked for.
const REFERENCE_MAX_BYTES: usize = 16;

/// Resolves what stands between `&` and `;`. A number that is no character becomes U+FFFD; a name that is not known stays as it is.
fn push_reference(out: &mut String, reference: &str) {
    let known = match reference {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        other => other.strip_prefix('#').map(|number| {
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            code.ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER)
        }),
    };
    match known {
        Some(character) => out.push(character),
        None => {
            out.push('&');
            out.push_str(cut(reference));
            out.push(';');
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
