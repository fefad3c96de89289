//! Cuts a file with holes: a hole is neither read nor stored, whatever its length.

use std::fs::File;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::large;
use super::output::{ChunkerError, LITERAL_MAX, Output, WHOLE_FILE_MAX};
use super::window::Window;

/// Cuts the file at its holes. Returns `false`, with nothing delivered, for one that has none: compressing file systems
/// allocate less than the size as well, and some do not report where holes are.
pub(super) fn cut(
    file: &File,
    size: u64,
    window: &mut Window<'_>,
    output: &mut Output<'_>,
) -> Result<bool, ChunkerError> {
    let first = match seek(file, SeekFrom::Data(0)) {
        Ok(0) => match seek(file, SeekFrom::Hole(0)) {
            Ok(hole) if hole < size => 0,
            _ => return Ok(false),
        },
        Ok(first) => first,
        Err(Errno::NXIO) => size,
        Err(_) => return Ok(false),
    };
    let mut position = 0;
    let mut data = first;
    loop {
        let data_start = data.min(size);
        if data_start == size {
            // Also when the file was cut short meanwhile: what is not there any more is not a hole.
            let end = size.min(file.metadata()?.len());
            output.zeros(end.saturating_sub(position))?;
            return Ok(true);
        }
        output.zeros(data_start.saturating_sub(position))?;
        let data_end = match seek(file, SeekFrom::Hole(data_start)) {
            Ok(hole) if hole > data_start => hole.min(size),
            _ => size,
        };
        window.restart(data_start, data_end);
        let length = data_end - data_start;
        if length <= LITERAL_MAX as u64 {
            let bytes = window.fill(length as usize)?;
            output.literal(bytes)?;
            let taken = bytes.len();
            window.consume(taken);
        } else {
            large::cut_stream(window, output, length, WHOLE_FILE_MAX)?;
        }
        if window.position() < data_end {
            return Ok(true);
        }
        position = data_end;
        data = match seek(file, SeekFrom::Data(position)) {
            Ok(next) => next.max(position),
            Err(Errno::NXIO) => size,
            // No longer answered: read the rest.
            Err(_) => position,
        };
    }
}
