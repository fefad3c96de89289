//! Text that is safe to show, to paste and to hand on.
//!
//! Names, addresses and messages come from the source, from a host or from files of mail; whoever wrote them may mean the reader's terminal, log or
//! shell. They are kept as they came, and made harmless in the place where they leave the program.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What stands at the end of a text that was cut.
const CUT: &str = "...";

/// Returns whether a character only shows itself: it moves no cursor, ends no line, turns no direction and hides nothing.
pub fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fdd0}'..='\u{fdef}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns a name with what is not plain, and bytes that are not UTF-8, written as `\xNN`.
pub fn escape(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for piece in name.utf8_chunks() {
        escape_into(&mut out, piece.valid());
        escape_bytes(&mut out, piece.invalid());
    }
    out
}

/// Returns a text with what is not plain written as `\xNN`. A text that was escaped stays as it is.
pub fn escape_text(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    escape_into(&mut out, text);
    Cow::Owned(out)
}

fn escape_into(out: &mut String, text: &str) {
    for character in text.chars() {
        if is_plain(character) {
            out.push(character);
        } else {
            escape_bytes(out, character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

fn escape_bytes(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "\\x{byte:02x}");
    }
}

/// Returns a text of at most `limit` bytes, escaped and, if it was longer, cut.
pub fn short(text: &str, limit: usize) -> String {
    // Escaping makes nothing shorter.
    let mut out = escape_text(text.get(..text.floor_char_boundary(limit + 1)).unwrap_or(text)).into_owned();
    if out.len() > limit {
        out.truncate(out.floor_char_boundary(limit.saturating_sub(CUT.len())));
        out.push_str(CUT);
    }
    out
}

/// Quotes a word for a shell where it needs it, so that what is pasted is what is seen: what is not plain is written as bash's `$'\xNN'`.
pub fn quoted(word: &str) -> String {
    let needs_none = |letter: char| letter.is_alphanumeric() || "@._+-/:=,".contains(letter);
    if !word.is_empty() && word.chars().all(needs_none) {
        return word.to_owned();
    }
    if word.chars().all(is_plain) {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let mut out = "$'".to_owned();
    escape_into(&mut out, &word.replace('\\', "\\\\").replace('\'', "\\'"));
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal_or_a_line() {
        assert_eq!(escape(b"plain \xc3\xa9"), "plain \u{e9}");
        assert_eq!(escape(b"a\x1b[31m\xff\n"), "a\\x1b[31m\\xff\\x0a");
        assert_eq!(
            escape_text("\u{9b}2J\u{202e}gpj.exe\u{2066}\u{200f}"),
            "\\xc2\\x9b2J\\xe2\\x80\\xaegpj.exe\\xe2\\x81\\xa6\\xe2\\x80\\x8f"
        );
        assert_eq!(escape_text("one\rtwo\x7f\u{2028}"), "one\\x0dtwo\\x7f\\xe2\\x80\\xa8");
        assert_eq!(escape_text(&escape_text("a\x07b")), "a\\x07b");
        // Letters of any script are shown, and what joins them.
        assert_eq!(
            escape_text("\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}"),
            "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}"
        );
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(short("abc", 3), "abc");
        assert_eq!(short("abcd", 3), "...");
        assert_eq!(short("\u{e9}\u{e9}\u{e9}\u{e9}", 7), "\u{e9}\u{e9}...");
        assert_eq!(short("a\0b", 16), "a\\x00b");
        assert_eq!(short(&"x".repeat(300_000), 100).len(), 100);
        assert!(short(&"\n".repeat(300_000), 100).len() <= 100);
    }

    #[test]
    fn what_is_pasted_is_what_is_seen() {
        let words = [
            "plain",
            "",
            "o'hara; reboot",
            "$HOME `x` \\ \"y\"",
            "a\nb\u{202e}c'\\d\x1b[0m",
            "\u{9b}2J",
            "~root",
            "!!",
        ];
        for word in words {
            let line = quoted(word);
            assert!(line.chars().all(is_plain), "{line:?}");
            let output =
                std::process::Command::new("bash").arg("-c").arg(format!("printf %s {line}")).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word, "{line}");
        }
        assert_eq!(quoted("a.b+c@example.com"), "a.b+c@example.com");
        assert_eq!(quoted("o'hara@example.com; reboot"), "'o'\\''hara@example.com; reboot'");
    }
}
