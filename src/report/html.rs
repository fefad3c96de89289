//! Texts and figures as a page shows them.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::plain::escape_text;

/// A text that shows as what it is: nothing in it is markup, and control characters, and marks that turn the direction of writing, are visible.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in escape_text(self.0).chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                letter => write!(f, "{letter}")?,
            }
        }
        Ok(())
    }
}

/// Returns a time to the minute.
pub(super) fn day_and_time(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        let shown = Escaped("<b a='1'>\"&\u{7}\u{202e}é").to_string();
        assert_eq!(shown, "&lt;b a=&#39;1&#39;&gt;&quot;&amp;\\x07\\xe2\\x80\\xaeé");
    }
}
