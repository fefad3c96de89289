//! Cuts by content: FastCDC for what has no structure that we know, and forced cut points where we know some.
//!
//! The algorithm is FastCDC as the paper of 2020 has it ("v2020" of the crate, level 1, no seed). A cut depends on the
//! bytes from the last cut on and on nothing else. So where a region begins at a forced cut, its chunks are the same in
//! every file that holds it, however the bytes reach us.

use std::collections::VecDeque;
use std::ops::Range;

use fastcdc::v2020::FastCDC;
use memchr::memmem;

use super::mime::{MIN_PART, trim_line_ends};
use super::output::{ChunkerError, MAX_CHUNK_BYTES, Output, SinkClosed, WHOLE_FILE_MAX};
use super::window::Window;

/// The least and the average size in bytes of a chunk cut by content.
const MIN_CHUNK_BYTES: usize = 64 << 10;
const AVERAGE_CHUNK_BYTES: usize = 256 << 10;

/// The largest body of a MIME part in bytes that stays one chunk.
const WHOLE_BODY_MAX: usize = 256 << 10;

/// The largest piece between bodies in bytes that is kept as a literal: mostly a closing boundary. Unlike the headers of a
/// zip such a piece recurs with its message in every full session, so a longer one is better a chunk.
const BETWEEN_LITERAL_MAX: usize = 128;

/// Bytes looked at beyond the largest chunk, so that the header block of an embedded attachment and the first
/// [`MIN_PART`] bytes of its body are in sight before anything is cut there.
const LOOK_AHEAD: usize = 16 << 10;

/// The most bytes between the encoding field of an embedded part and the empty line behind its headers.
const EMBEDDED_HEADERS_MAX: usize = 4 << 10;

/// Returns the length of the first chunk of `bytes`, which must hold [`MAX_CHUNK_BYTES`] or reach to the region's end.
fn chunk_length(bytes: &[u8]) -> usize {
    let bytes = &bytes[..bytes.len().min(MAX_CHUNK_BYTES)];
    FastCDC::new(bytes, MIN_CHUNK_BYTES, AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES).cut(0, bytes.len()).1
}

/// Cuts a region that is wholly in memory.
fn cut_region(mut bytes: &[u8], whole_max: usize, output: &mut Output<'_>) -> Result<(), SinkClosed> {
    if (1..=whole_max).contains(&bytes.len()) {
        return output.chunk(bytes);
    }
    while !bytes.is_empty() {
        let (chunk, rest) = bytes.split_at(chunk_length(bytes));
        output.chunk(chunk)?;
        bytes = rest;
    }
    Ok(())
}

/// Cuts a message at the given bodies, which are in order.
pub(super) fn cut_message(message: &[u8], bodies: &[Range<usize>], output: &mut Output<'_>) -> Result<(), SinkClosed> {
    let mut position = 0;
    for body in bodies {
        cut_between(&message[position..body.start], output)?;
        cut_region(&message[body.clone()], WHOLE_BODY_MAX, output)?;
        position = body.end;
    }
    cut_between(&message[position..], output)
}

/// Cuts what stands before, between and behind bodies.
fn cut_between(bytes: &[u8], output: &mut Output<'_>) -> Result<(), SinkClosed> {
    if bytes.len() <= BETWEEN_LITERAL_MAX { output.literal(bytes) } else { cut_region(bytes, WHOLE_FILE_MAX, output) }
}

/// Cuts the next `length` bytes, or as many as there are. Up to `whole_max` bytes stay one chunk.
///
/// Bodies of attachments embedded in them (a redo log holds whole messages) are cut out as `cut_message` does, so they
/// are found again under the same hashes.
pub(super) fn cut_stream(
    window: &mut Window<'_>,
    output: &mut Output<'_>,
    length: u64,
    whole_max: usize,
) -> Result<(), ChunkerError> {
    debug_assert!(whole_max <= MAX_CHUNK_BYTES);
    let end = window.position().saturating_add(length);
    let mut embedded = Embedded::new(window.position());
    let mut region = Region { start: window.position(), whole_max, literal_max: 0 };
    loop {
        let position = window.position();
        let remaining = end - position;
        let want = remaining.min((MAX_CHUNK_BYTES + LOOK_AHEAD) as u64) as usize;
        let data = window.fill_more(want)?;
        if data.is_empty() || remaining == 0 {
            return Ok(());
        }
        let is_last = data.len() < want || data.len() as u64 >= remaining;
        let data = &data[..remaining.min(data.len() as u64) as usize];
        if length > whole_max as u64 {
            embedded.scan(position, data, is_last);
        } else {
            embedded.scanned = position + data.len() as u64;
        }
        let next = embedded.next_point(position);
        if let Some((point, kind)) = next
            && point == position
        {
            region = kind.region(point);
            embedded.points.pop_front();
            continue;
        }
        let region_end = next.map(|(point, _)| point).or(is_last.then_some(position + data.len() as u64));
        let sight = &data[..(region_end.unwrap_or(embedded.scanned) - position) as usize];
        let taken = if region_end.is_some() && region.start == position && sight.len() <= region.whole_max {
            sight.len()
        } else {
            chunk_length(sight)
        };
        if region_end.is_some() && region.start == position && taken <= region.literal_max {
            output.literal(&sight[..taken])?;
        } else {
            output.chunk(&sight[..taken])?;
        }
        window.consume(taken);
    }
}

/// A run of bytes between two forced cut points.
struct Region {
    start: u64,
    whole_max: usize,
    literal_max: usize,
}

/// What begins at a forced cut point.
#[derive(Clone, Copy)]
enum Point {
    Body,
    Between,
}

impl Point {
    fn region(self, start: u64) -> Region {
        match self {
            Point::Body => Region { start, whole_max: WHOLE_BODY_MAX, literal_max: 0 },
            Point::Between => Region { start, whole_max: WHOLE_FILE_MAX, literal_max: BETWEEN_LITERAL_MAX },
        }
    }
}

/// Looks for base64 bodies in a stream. Offsets are those of the file.
struct Embedded {
    /// Everything before was searched.
    scanned: u64,
    in_body: bool,
    points: VecDeque<(u64, Point)>,
    encoding: memmem::Finder<'static>,
    delimiter: memmem::Finder<'static>,
}

impl Embedded {
    fn new(position: u64) -> Self {
        Embedded {
            scanned: position,
            in_body: false,
            points: VecDeque::new(),
            // As mailers and libraries write it. Other spellings exist; what they carry is cut by content.
            encoding: memmem::Finder::new(b"\nContent-Transfer-Encoding: base64"),
            delimiter: memmem::Finder::new(b"\n--"),
        }
    }

    /// Returns the next forced cut point that is not before `position`.
    fn next_point(&mut self, position: u64) -> Option<(u64, Point)> {
        while self.points.front().is_some_and(|&(point, _)| point < position) {
            self.points.pop_front();
        }
        self.points.front().copied()
    }

    /// Searches `data`, which begins at `position`, as far as all of an attachment's beginning is in sight.
    fn scan(&mut self, position: u64, data: &[u8], is_last: bool) {
        let limit = if is_last { data.len() } else { data.len().saturating_sub(LOOK_AHEAD) };
        let mut from = (self.scanned - position) as usize;
        while from < limit {
            let finder = if self.in_body { &self.delimiter } else { &self.encoding };
            let sight = data.len().min(limit + finder.needle().len() - 1);
            let Some(at) = finder.find(&data[from..sight]).map(|found| from + found) else {
                from = limit;
                break;
            };
            if self.in_body {
                self.in_body = false;
                let end = trim_line_ends(data, 0..at).end;
                self.points.push_back((position + end as u64, Point::Between));
                from = at + 1;
                continue;
            }
            from = at + finder.needle().len();
            if let Some(start) = embedded_body(data, from) {
                from = start;
                let delimiter = self.delimiter.find(&data[start..start + MIN_PART]);
                match delimiter {
                    Some(found) => from += found,
                    None => {
                        self.in_body = true;
                        self.points.push_back((position + start as u64, Point::Body));
                    }
                }
            }
        }
        // A header block in sight may end beyond the limit.
        self.scanned = self.scanned.max(position + from.min(data.len()) as u64);
    }
}

/// Returns where the body behind the rest of a header block begins, if at least [`MIN_PART`] bytes of it are in sight.
fn embedded_body(data: &[u8], rest_of_headers: usize) -> Option<usize> {
    let sight = data.len().min(rest_of_headers + EMBEDDED_HEADERS_MAX);
    let headers = &data[rest_of_headers..sight];
    let mut line_ends = memchr::memchr_iter(b'\n', headers);
    let empty_line =
        line_ends.find(|&at| headers[at + 1..].starts_with(b"\n") || headers[at + 1..].starts_with(b"\r\n"))?;
    let start = trim_line_ends(data, rest_of_headers + empty_line..data.len()).start;
    (data.len() - start >= MIN_PART).then_some(start)
}
