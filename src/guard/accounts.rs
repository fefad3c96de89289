//! What `accounts.xml` says: the label of each account's newest full backup.
//!
//! The file is read in a stream, and only for one attribute. Whatever else is in it, well-formed or not, is passed over: the tree is replicated as faithfully,
//! and a question of form must not keep anybody awake.

use std::collections::BTreeSet;
use std::io;

use super::{Side, counted, listed};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::view::{CopyError, ViewError};

const FILE: &[u8] = b"accounts.xml";
const ATTRIBUTE: &[u8] = b"latestFullBackupLabel";
/// Longer values are no labels.
const MAX_VALUE_BYTES: usize = 256;
/// Further labels are not kept; a site has some hundreds of sessions.
const MAX_LABELS: usize = 100_000;

/// Judges accounts.xml. What the last good snapshot lacks as well is no news.
pub(super) fn judge(old: Option<&Side>, new: &Side, reasons: &mut Vec<SuspectReason>) -> Result<(), ViewError> {
    if new.leaves_out(FILE, false) {
        return Ok(());
    }
    let mut found = |kind, text: String| reasons.push(SuspectReason { kind, text });
    let named = labels(new)?;
    let before = match old {
        // Most nights it is the same file.
        Some(old) if old.root_file(FILE)? == new.root_file(FILE)? => named.clone(),
        Some(old) => labels(old)?,
        None => Named::Labels(BTreeSet::new()),
    };
    let named = match named {
        Named::Labels(named) => named,
        Named::Missing if before == Named::Missing => return Ok(()),
        Named::Missing => {
            let text = "accounts.xml is missing: no account can be restored by its name";
            found(ReasonKind::AccountsMissing, text.to_owned());
            return Ok(());
        }
        Named::Unreadable => {
            let text = "accounts.xml could not be read at the source: from this snapshot no account can be restored by its name";
            found(ReasonKind::AccountsMissing, text.to_owned());
            return Ok(());
        }
    };
    let before = match before {
        Named::Labels(before) => before,
        Named::Missing | Named::Unreadable => BTreeSet::new(),
    };
    if named.is_empty() && !before.is_empty() {
        let count = counted(before.len() as u64, "session", "sessions");
        found(ReasonKind::AccountsMissing, format!("accounts.xml names no session any more; it named {count}"));
    }
    let dangling = |side: &Side, named: BTreeSet<String>| -> Result<BTreeSet<String>, ViewError> {
        let mut missing = BTreeSet::new();
        for label in named {
            let path = [b"sessions/", label.as_bytes()].concat();
            let there = side.leaves_out(&path, true)
                || match &side.sessions {
                    Some(sessions) => side.view.lookup(sessions, label.as_bytes())?.is_some(),
                    None => false,
                };
            if !there {
                missing.insert(label);
            }
        }
        Ok(missing)
    };
    let known = match old {
        Some(old) => dangling(old, before)?,
        None => BTreeSet::new(),
    };
    let missing = dangling(new, named)?;
    let news: Vec<&String> = missing.difference(&known).collect();
    if !news.is_empty() {
        let count = counted(news.len() as u64, "session that is not there", "sessions that are not there");
        let text = format!("accounts.xml names {count}: {}", listed(news.iter()));
        found(ReasonKind::AccountsDangling, text);
    }
    Ok(())
}

/// What accounts.xml names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    /// There is no such file.
    Missing,
    /// The source could not read it.
    Unreadable,
    /// These labels.
    Labels(BTreeSet<String>),
}

fn labels(side: &Side) -> Result<Named, ViewError> {
    let Some(group) = side.root_file(FILE)? else { return Ok(Named::Missing) };
    let mut scanner = Scanner::default();
    match side.view.copy_to(group, &mut scanner) {
        Err(CopyError::View(ViewError::Unreadable { .. })) => Ok(Named::Unreadable),
        Err(CopyError::View(error)) => Err(error),
        // The scanner takes everything.
        Ok(_) | Err(CopyError::Write(_)) => Ok(Named::Labels(scanner.labels)),
    }
}

/// Where the scanner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Anywhere else.
    #[default]
    Text,
    /// So many bytes of the attribute's name were seen.
    Name(usize),
    /// The name is complete; an equals sign must come.
    Equals,
    /// A quotation mark must come.
    Quote,
    /// Within the value, which this mark ends.
    Value(u8),
}

/// Gathers the values of one attribute from a stream of bytes.
#[derive(Debug, Default)]
struct Scanner {
    state: State,
    last: u8,
    value: Vec<u8>,
    labels: BTreeSet<String>,
}

impl Scanner {
    fn byte(&mut self, byte: u8) {
        self.state = match self.state {
            State::Name(seen) if ATTRIBUTE.get(seen) == Some(&byte) => match seen + 1 {
                all if all == ATTRIBUTE.len() => State::Equals,
                seen => State::Name(seen),
            },
            State::Equals if byte == b'=' => State::Quote,
            State::Equals | State::Quote if byte.is_ascii_whitespace() => self.state,
            State::Quote if byte == b'"' || byte == b'\'' => {
                self.value.clear();
                State::Value(byte)
            }
            State::Value(mark) if byte == mark => {
                self.take();
                State::Text
            }
            // A value that does not end is none.
            State::Value(_) if self.value.len() >= MAX_VALUE_BYTES || byte == b'<' => State::Text,
            State::Value(mark) => {
                self.value.push(byte);
                State::Value(mark)
            }
            // An attribute's name begins behind white space.
            _ if byte == ATTRIBUTE[0] && self.last.is_ascii_whitespace() => State::Name(1),
            _ => State::Text,
        };
        self.last = byte;
    }

    fn take(&mut self) {
        if let Ok(label) = std::str::from_utf8(&self.value)
            && !label.is_empty()
            && self.labels.len() < MAX_LABELS
            && !self.labels.contains(label)
        {
            self.labels.insert(label.to_owned());
        }
    }
}

impl io::Write for Scanner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.byte(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8], piece: usize) -> Vec<String> {
        let mut scanner = Scanner::default();
        for piece in text.chunks(piece) {
            io::Write::write_all(&mut scanner, piece).unwrap();
        }
        scanner.labels.into_iter().collect()
    }

    #[test]
    fn labels_are_found_however_the_stream_is_cut_and_whatever_else_is_in_it() {
        let text = b"<a latestFullBackupLabel=\"full-1\" x='latestFullBackupLabels' latestFullBackupLabel = 'full-2'\n\
            notlatestFullBackupLabel=\"no\" latestFullBackupLabel=\"\" latestFullBackupLabel\n=\n\"full-3\"/>&#7; <b \
            llatestFullBackupLabel='no' latestFullBackupLabel=no latestFullBackupLabel=\"\xff\" latestFullBackupLabel='open<";
        for piece in [1, 2, 7, 1000] {
            assert_eq!(scan(text, piece), ["full-1", "full-2", "full-3"]);
        }
        let long = format!("<a latestFullBackupLabel='{}' latestFullBackupLabel='full-4'>", "x".repeat(10_000));
        assert_eq!(scan(long.as_bytes(), 100), ["full-4"]);
    }
}
