//! What GNU tar says on stderr, and its exit code: the only signs that the bytes it wrote are not those of the file.
//!
//! tar announces a size in a member's header before it reads. When a read fails in the middle, or the file becomes shorter, it fills the member up with zeros,
//! goes on, and says so here alone. So no member counts as read before these words are known.
//!
//! TarMessages are `tar: NAME: MESSAGE` with the escapes of C and `\:` for a colon in the name (in the C locale), and the exit code in the last line: 0 done; 1
//! some files changed; 2 something failed. Lines that are not tar's (of the loader, say) are passed over while the code is 0. Where it is not, each line must
//! be understood, or nothing of the answer is believed.

use std::collections::HashMap;

use rustix::io::Errno;

use super::find::{code_and_lines, errno_of, relative, unescaped};

/// What tar says of one name.
/// What comes later outweighs what comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// It became shorter, or went away, while it was read.
    Changed,
    /// Its content could not be read; the system's error number.
    Unread(i32),
    /// It, or its extended attributes, could not be read; the system's error number.
    Failed(i32),
}

/// The words of one command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TarMessages {
    of_paths: HashMap<Vec<u8>, Trouble>,
    /// Whether what is said nothing of is as tar wrote it.
    understood: bool,
}

impl TarMessages {
    /// Reads the words.
    pub(super) fn parse(text: &[u8]) -> TarMessages {
        let mut words = TarMessages::default();
        let (code, lines) = code_and_lines(text);
        let (mut named, mut strange, mut unnamed) = (false, false, false);
        for line in lines {
            let Some(rest) = of_tar(line) else {
                strange = true;
                continue;
            };
            if rest.starts_with(b"Exiting with failure status") {
                continue;
            }
            let Some((path, message)) = named_path(rest) else {
                (strange, unnamed) = (true, true);
                continue;
            };
            named = true;
            if let Some(trouble) = trouble(message) {
                let said = words.of_paths.entry(path).or_insert(trouble);
                *said = trouble.max(*said);
            }
        }
        words.understood = match code {
            // tar's own words of no name concern every name.
            Some(0) => !unnamed,
            Some(1 | 2) => named && !strange,
            _ => false,
        };
        words
    }

    /// Returns whether a name of which nothing is said was read as it is.
    pub(super) fn understood(&self) -> bool {
        self.understood
    }

    /// Returns what is said of a name.
    pub(super) fn of(&self, path: &[u8]) -> Option<Trouble> {
        self.of_paths.get(path).copied()
    }
}

/// Returns what stands behind `tar: `; a wrapper may have started it by its path, or as `gtar`.
fn of_tar(line: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::find(line, b": ")?;
    line[..at].ends_with(b"tar").then(|| &line[at + 2..])
}

/// Splits off the name, in which colons are escaped.
fn named_path(rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b':' => break,
            _ => at += 1,
        }
    }
    let message = rest.get(at..)?.strip_prefix(b": ")?;
    let name = unescaped(&rest[..at])?;
    let name = name.strip_suffix(b"/").unwrap_or(&name);
    Some((relative(name)?.to_vec(), message))
}

fn trouble(message: &[u8]) -> Option<Trouble> {
    // A new hard link is enough for the first one. What is at the name behind it is compared by who reads this, which also knows a socket.
    if matches!(message, b"file changed as we read it" | b"socket ignored") {
        return None;
    }
    if message.starts_with(b"File shrank by ") || message == b"File removed before we read it" {
        return Some(Trouble::Changed);
    }
    let reason = memchr::memmem::rfind(message, b": ").map_or(message, |at| &message[at + 2..]);
    match reason {
        // A file system without extended attributes is one where no inode has any.
        b"Operation not supported" if message.starts_with(b"Warning: Cannot ") => None,
        _ => match errno_of(reason) {
            errno if errno == Errno::NOENT.raw_os_error() => Some(Trouble::Changed),
            errno if message.starts_with(b"Read error at byte ") => Some(Trouble::Unread(errno)),
            errno => Some(Trouble::Failed(errno)),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::agentless::find::complaints;

    proptest! {
        /// Whatever a host says, it is read, and only a code makes an answer count.
        #[test]
        fn any_words_are_read(
            lines in proptest::collection::vec(prop_oneof![
                "[ -~]{0,30}", "tar: [.]/[a-c\\\\:/ ]{0,9}: [A-Za-z: ]{0,20}", "find: '[ -~]{0,12}': [ -~]{0,12}",
            ], 0..8),
            code in prop_oneof![Just(String::new()), "code -?[0-9]{1,3}"]
        ) {
            let text = lines.join("\n") + "\n" + &code;
            let words = TarMessages::parse(text.as_bytes());
            prop_assert!(!words.understood() || code.starts_with("code ") || text.contains("code "));
            complaints(text.as_bytes());
        }
    }

    #[test]
    fn words_are_heard() {
        let text = b"tar: ./a b: Read error at byte 2097152, while reading 10240 bytes: Input/output error\n\
            tar: ./c\\:\\nd: File shrank by 5 bytes; padding with zeros\n\
            tar: ./e: file changed as we read it\n\
            tar: ./f/: Warning: Cannot flistxattr: Operation not supported\n\
            /usr/bin/tar: ./g: Warning: Cannot fgetxattr: Input/output error\n\
            tar: ./h: Cannot open: Permission denied\n\
            tar: ./h: file changed as we read it\n\
            tar: ./i: Cannot stat: No such file or directory\n\
            tar: .: Warning: Cannot flistxattr: Cannot allocate memory\n\
            tar: ./j: a word of later times\n\
            tar: Exiting with failure status due to previous errors\ncode 2";
        let words = TarMessages::parse(text);
        assert!(words.understood());
        let (io, denied) = (Some(Trouble::Failed(5)), Some(Trouble::Failed(13)));
        let expected: [(&[u8], Option<Trouble>); 10] = [
            (b"a b", Some(Trouble::Unread(5))),
            (b"c:\nd", Some(Trouble::Changed)),
            (b"e", None),
            (b"f", None),
            (b"g", io),
            (b"h", denied),
            (b"i", Some(Trouble::Changed)),
            (b"", Some(Trouble::Failed(12))),
            (b"j", io),
            (b"k", None),
        ];
        for (path, trouble) in expected {
            assert_eq!(words.of(path), trouble, "{}", path.escape_ascii());
        }
    }

    /// What is not understood is not believed.
    #[test]
    fn a_code_without_a_reason_spoils_the_answer() {
        for good in [&b"code 0"[..], b"ERROR: ld.so: object 'x' cannot be preloaded: ignored.\ncode 0"] {
            assert!(TarMessages::parse(good).understood(), "{}", good.escape_ascii());
        }
        for bad in [
            &b""[..],
            b"code 1",
            b"code 2",
            b"code 137",
            b"code x",
            b"tar: Exiting with failure status due to previous errors\ncode 2",
            b"tar: ./a: Cannot open: Permission denied\nsomething else: odd\ncode 2",
            b"tar: ./a: Cannot open: Permission denied",
            b"tar: ./a: Cannot open: Permission denied\ntar: memory exhausted\ncode 2",
        ] {
            assert!(!TarMessages::parse(bad).understood(), "{}", bad.escape_ascii());
        }
    }
}
