//! Finds the bodies of MIME parts in a message.
//!
//! The base64 text of an attachment is the same wherever it is sent, while the headers and boundaries around it never
//! are. Cut out, it is stored once for all messages that carry it.
//!
//! A boundary counts from where a Content-Type names it to the end of the message, whatever the nesting: a message that
//! breaks the rules is only cut elsewhere. Each byte is looked at a fixed number of times, so no message is slow.

use std::collections::HashSet;
use std::ops::Range;

use memchr::{memchr, memmem};

/// The smallest base64 body in bytes that is cut out: logos in signatures are of this size and recur often.
pub(super) const MIN_PART: usize = 4 << 10;

/// The smallest other body in bytes that is cut out. A text and its HTML form say the same and compress far better
/// together than apart, so they stay together unless the message would be cut by content anyway.
const MIN_TEXT_PART: usize = super::output::WHOLE_FILE_MAX;

/// The longest header block in bytes that is understood.
pub(super) const HEADERS_MAX: usize = 64 << 10;

/// The most boundaries remembered in one message; further ones are ignored. Bounds the memory of a hostile one.
const BOUNDARIES_MAX: usize = 4096;

/// The longest boundary in bytes that is known. RFC 2046 allows 70.
const BOUNDARY_MAX: usize = 256;

/// What a header block says, as far as it matters here.
#[derive(Default)]
struct Headers<'a> {
    /// Where the block ended: behind its empty line, else where the search was given up.
    end: usize,
    /// The empty line was found.
    complete: bool,
    boundary: Option<&'a [u8]>,
    base64: bool,
    /// The body is a message with headers of its own.
    message: bool,
}

/// Returns, by the first bytes of a file, whether it is a message that may have bodies to cut out.
pub(super) fn is_worth_parsing(start: &[u8]) -> bool {
    if !begins_with_field(start) {
        return false;
    }
    let headers = parse_headers(start, 0);
    headers.complete && (headers.boundary.is_some() || headers.base64 || headers.message)
}

/// Checks for a field name and a colon, as RFC 5322 has it, at the start.
fn begins_with_field(start: &[u8]) -> bool {
    let name = start.iter().take(77).take_while(|&&b| b.is_ascii_graphic() && b != b':').count();
    (1..=76).contains(&name) && start.get(name) == Some(&b':')
}

/// Returns the bodies large enough to be cut out, in order; they do not overlap. Line ends around a body do not
/// belong to it, for their number differs between mailers.
pub(super) fn bodies(message: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut boundaries: HashSet<&[u8]> = HashSet::new();
    let mut headers = parse_headers(message, 0);
    let mut body = begin_body(message, &mut headers, &mut boundaries);
    if boundaries.is_empty() && !headers.base64 {
        body = None;
    }
    let delimiter_start = memmem::Finder::new(b"\n--");
    // From the line feed before the body on: a delimiter may be its first line.
    let mut cursor = headers.end.saturating_sub(1);
    while let Some(at) = delimiter_start.find(&message[cursor..]).map(|found| cursor + found) {
        let line = at + 3;
        let line_end = memchr(b'\n', &message[line..]).map_or(message.len(), |length| line + length);
        let Some(closes) = match_delimiter(message[line..line_end].trim_ascii_end(), &boundaries) else {
            // The line feed may begin the next delimiter.
            cursor = line_end;
            continue;
        };
        if let Some(start) = body.take() {
            push_body(message, start..at, headers.base64, &mut found);
        }
        if closes || line_end == message.len() {
            cursor = line_end;
            continue;
        }
        headers = parse_headers(message, line_end + 1);
        body = begin_body(message, &mut headers, &mut boundaries);
        cursor = headers.end - 1;
    }
    if let Some(start) = body {
        push_body(message, start..message.len(), headers.base64, &mut found);
    }
    found
}

/// Returns where the body behind a header block begins, or `None` for an incomplete block and in front of a first
/// delimiter. Walks into messages that are parts themselves: `headers` is the innermost block then.
fn begin_body<'a>(message: &'a [u8], headers: &mut Headers<'a>, boundaries: &mut HashSet<&'a [u8]>) -> Option<usize> {
    loop {
        if let Some(boundary) = headers.boundary
            && boundaries.len() < BOUNDARIES_MAX
        {
            boundaries.insert(boundary);
        }
        if !headers.complete {
            return None;
        }
        if !headers.message || headers.base64 {
            return headers.boundary.is_none().then_some(headers.end);
        }
        *headers = parse_headers(message, headers.end);
    }
}

/// Returns whether a line (without its two leading hyphens) is a delimiter, and then whether it closes its multipart.
fn match_delimiter(line: &[u8], boundaries: &HashSet<&[u8]>) -> Option<bool> {
    if line.len() > BOUNDARY_MAX + 2 || boundaries.is_empty() {
        return None;
    }
    if boundaries.contains(line) {
        return Some(false);
    }
    let shorter = line.strip_suffix(b"--")?;
    boundaries.contains(shorter).then_some(true)
}

fn push_body(message: &[u8], range: Range<usize>, is_base64: bool, found: &mut Vec<Range<usize>>) {
    let range = trim_line_ends(message, range);
    if range.len() >= if is_base64 { MIN_PART } else { MIN_TEXT_PART } {
        found.push(range);
    }
}

/// Shortens a range by the carriage returns and line feeds at both its ends.
pub(super) fn trim_line_ends(bytes: &[u8], range: Range<usize>) -> Range<usize> {
    let is_line_end = |at: usize| matches!(bytes[at], b'\r' | b'\n');
    let (mut start, mut end) = (range.start, range.end.max(range.start));
    while start < end && is_line_end(start) {
        start += 1;
    }
    while start < end && is_line_end(end - 1) {
        end -= 1;
    }
    start..end
}

/// Reads the header block that begins at `start`. Stops at an empty line, and gives up at a line that looks like a
/// delimiter, at the end of the message and after [`HEADERS_MAX`] bytes.
fn parse_headers(message: &[u8], start: usize) -> Headers<'_> {
    let mut headers = Headers { end: start, ..Headers::default() };
    let limit = message.len().min(start.saturating_add(HEADERS_MAX));
    let mut in_content_type = false;
    while headers.end < limit {
        let Some(length) = memchr(b'\n', &message[headers.end..limit]) else {
            headers.end = limit;
            break;
        };
        let line = &message[headers.end..headers.end + length];
        if line.starts_with(b"--") {
            break;
        }
        headers.end += length + 1;
        match line.first() {
            None => headers.complete = true,
            Some(b'\r') if line.len() == 1 => headers.complete = true,
            Some(b' ' | b'\t') => {}
            Some(b'c' | b'C') => {
                let content_type = field_value(line, b"content-type:");
                in_content_type = content_type.is_some();
                if let Some(value) = content_type {
                    headers.message = starts_with_word(value, b"message/rfc822");
                } else if let Some(value) = field_value(line, b"content-transfer-encoding:") {
                    headers.base64 = starts_with_word(value, b"base64");
                }
            }
            Some(_) => in_content_type = false,
        }
        if headers.complete {
            break;
        }
        if in_content_type && headers.boundary.is_none() {
            headers.boundary = find_boundary(line);
        }
    }
    headers
}

/// Returns the value of a field without the blanks around it, if the line has the given lower-case name and colon.
fn field_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn starts_with_word(value: &[u8], word: &[u8]) -> bool {
    value.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// Finds the `boundary` parameter in one line of a Content-Type.
fn find_boundary(line: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"boundary";
    for equals in memchr::memchr_iter(b'=', line) {
        let name = line[..equals].trim_ascii_end();
        let Some(start) = name.len().checked_sub(NAME.len()) else { continue };
        if !name[start..].eq_ignore_ascii_case(NAME) {
            continue;
        }
        let value = line[equals + 1..].trim_ascii_start();
        let boundary = match value.strip_prefix(b"\"") {
            Some(quoted) => &quoted[..memchr(b'"', quoted).unwrap_or(quoted.len())],
            None => {
                let end = value.iter().position(|&b| b == b';' || b.is_ascii_whitespace());
                &value[..end.unwrap_or(value.len())]
            }
        };
        let boundary = boundary.trim_ascii_end();
        if (1..=BOUNDARY_MAX).contains(&boundary.len()) {
            return Some(boundary);
        }
    }
    None
}
