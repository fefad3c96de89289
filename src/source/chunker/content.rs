//! Cuts what is no zip and has no holes: as a literal, as a message, or by content.

use super::output::{ChunkerError, LITERAL_MAX, MESSAGE_MAX, Output, WHOLE_FILE_MAX};
use super::window::Window;
use super::{large, mime};

/// Cuts the next `length` bytes as a file of their own. Depends on these bytes alone, so a message in a zip gives the
/// chunks of the same message in a file.
pub(super) fn cut(window: &mut Window<'_>, output: &mut Output<'_>, length: u64) -> Result<(), ChunkerError> {
    if length <= LITERAL_MAX as u64 {
        let bytes = window.fill(length as usize)?;
        output.literal(bytes)?;
        let taken = bytes.len();
        window.consume(taken);
        return Ok(());
    }
    if (mime::MIN_PART as u64..=MESSAGE_MAX as u64).contains(&length) {
        // Lossless: at most MESSAGE_MAX.
        let length = length as usize;
        if mime::is_worth_parsing(window.fill(length.min(mime::HEADERS_MAX))?) {
            let message = window.fill(length)?;
            let bodies = mime::bodies(message);
            if !bodies.is_empty() {
                large::cut_message(message, &bodies, output)?;
                let taken = message.len();
                window.consume(taken);
                return Ok(());
            }
        }
    }
    large::cut_stream(window, output, length, WHOLE_FILE_MAX)
}
