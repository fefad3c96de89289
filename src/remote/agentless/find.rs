//! What `find` prints: one record a name, fields separated by a space, the path last.
//!
//! `%y %m %U %G %n %s %T@ %C@ %i %D %b %p`: kind, permissions (octal), owner, group, links, size, mtime, ctime, inode, device, blocks of 512 bytes, path.
//! `find` knows no birth time (`%B@` prints -1 on Linux) and no device number of a device node; the latter comes from `tar`.
//! Times have their seconds rounded down, as the system has them, so that -1.0000000010 is one nanosecond after -1 s; the tenth digit is always 0.

use rustix::io::Errno;

use crate::model::{Kind, Stat, Timestamp};
use crate::remote::protocol::fields::PATH_MAX_BYTES;

/// The longest record: a path and numbers.
pub(super) const RECORD_MAX_BYTES: usize = PATH_MAX_BYTES + 512;

/// Splits off the path of a record; `None` for what is none. The path is relative to the root, which itself has an empty one.
pub(super) fn split(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr_iter(b' ', record).nth(10)?;
    Some((&record[..at], relative(&record[at + 1..])?))
}

/// Turns `./a/b` into `a/b`, if it is a path that can be.
pub(super) fn relative(path: &[u8]) -> Option<&[u8]> {
    if path == b"." {
        return Some(b"");
    }
    let path = path.strip_prefix(b"./")?;
    let name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= 4096 && !name.contains(&0);
    (path.len() <= PATH_MAX_BYTES && path.split(|byte| *byte == b'/').all(name)).then_some(path)
}

/// Reads the fields before the path.
pub(super) fn stat(fields: &[u8]) -> Option<Stat> {
    let text = std::str::from_utf8(fields).ok()?;
    let mut fields = text.split(' ');
    let kind = match fields.next()? {
        "f" => Kind::File,
        "d" => Kind::Directory,
        "l" => Kind::Symlink,
        "p" => Kind::Fifo,
        "s" => Kind::Socket,
        "c" => Kind::CharDevice,
        "b" => Kind::BlockDevice,
        _ => return None,
    };
    let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|mode| *mode <= 0o7777)?;
    let stat = Stat {
        kind,
        mode,
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
        nlink: fields.next()?.parse().ok()?,
        size: fields.next()?.parse().ok().filter(|size| *size <= i64::MAX as u64)?,
        mtime: time(fields.next()?)?,
        ctime: time(fields.next()?)?,
        ino: fields.next()?.parse().ok()?,
        dev: fields.next()?.parse().ok()?,
        allocated_bytes: fields.next()?.parse::<u64>().ok()?.checked_mul(512)?,
        rdev: 0,
        btime: None,
    };
    fields.next().is_none().then_some(stat)
}

fn time(text: &str) -> Option<Timestamp> {
    let (seconds, nanos) = seconds_and_nanos(text)?;
    Some(Timestamp { seconds: seconds.parse().ok()?, nanos })
}

/// Splits a decimal fraction of seconds; digits beyond the ninth are dropped.
pub(super) fn seconds_and_nanos(text: &str) -> Option<(&str, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || fraction.len() > 20 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    Some((seconds, digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'))))
}

/// What `find` could not do, as it says on stderr.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Complaints {
    /// Its exit code.
    pub(super) code: Option<i32>,
    /// Paths and error numbers.
    pub(super) of_paths: Vec<(Vec<u8>, i32)>,
    /// Lines that are something else.
    pub(super) others: Vec<String>,
}

/// Reads the messages: ``find: './a\nb': Permission denied``, in the C locale, and the exit code in the last line.
pub(super) fn complaints(text: &[u8]) -> Complaints {
    let (code, lines) = code_and_lines(text);
    let mut found = Complaints { code, ..Complaints::default() };
    for line in lines {
        match complaint(line) {
            Some(complaint) => found.of_paths.push(complaint),
            None => found.others.push(line.escape_ascii().to_string()),
        }
    }
    found
}

/// Splits what a command said into its exit code, if there is one, and the lines with something in them.
pub(super) fn code_and_lines(text: &[u8]) -> (Option<i32>, Vec<&[u8]>) {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (codes, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with(b"code "));
    let code = codes.last().and_then(|line| std::str::from_utf8(&line[5..]).ok());
    (code.and_then(|code| code.trim().parse().ok()), lines)
}

fn complaint(line: &[u8]) -> Option<(Vec<u8>, i32)> {
    // A wrapper may have started it by its path.
    let rest = &line[memchr::memmem::find(line, b"find: ")? + 6..];
    let at = memchr::memmem::rfind(rest, b": ")?;
    let (shown, message) = (&rest[..at], &rest[at + 2..]);
    // Older ones quote `thus'.
    let shown = shown.strip_prefix(b"'").or_else(|| shown.strip_prefix(b"`"))?.strip_suffix(b"'")?;
    Some((relative(&unescaped(shown)?)?.to_vec(), errno_of(message)))
}

/// Returns the error number behind the system's text for it in the C locale; that of an input/output error for any other text.
pub(super) fn errno_of(message: &[u8]) -> i32 {
    let errno = match message {
        b"Permission denied" => Errno::ACCESS,
        b"Operation not permitted" => Errno::PERM,
        b"No such file or directory" => Errno::NOENT,
        b"Not a directory" => Errno::NOTDIR,
        b"Stale file handle" | b"Stale NFS file handle" => Errno::STALE,
        b"Too many levels of symbolic links" => Errno::LOOP,
        b"File name too long" => Errno::NAMETOOLONG,
        b"Too many open files" => Errno::MFILE,
        b"Cannot allocate memory" => Errno::NOMEM,
        b"Structure needs cleaning" => Errno::UCLEAN,
        _ => Errno::IO,
    };
    errno.raw_os_error()
}

/// Undoes the escapes of C that GNU programs show names with.
pub(super) fn unescaped(shown: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(shown.len());
    let mut rest = shown;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            plain.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        plain.push(match escape {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'0'..=b'3' => {
                let (digits, after) = after.split_at_checked(2)?;
                rest = after;
                digits.iter().try_fold(escape - b'0', |value, digit| {
                    (b'0'..=b'7').contains(digit).then(|| value << 3 | (digit - b'0'))
                })?
            }
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let record = b"f 6755 4242 4343 2 9000000 1700000000.1234567890 -1.0000000010 12 65024 17584 ./a b/c \xff\n";
        let (fields, path) = split(record).unwrap();
        assert_eq!(path, b"a b/c \xff\n");
        let stat = stat(fields).unwrap();
        assert_eq!((stat.kind, stat.mode, stat.uid, stat.gid, stat.nlink), (Kind::File, 0o6755, 4242, 4343, 2));
        assert_eq!((stat.size, stat.ino, stat.dev, stat.allocated_bytes), (9_000_000, 12, 65024, 17584 * 512));
        assert_eq!(stat.mtime, Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 });
        assert_eq!(stat.ctime, Timestamp { seconds: -1, nanos: 1 });
        assert_eq!(time("5"), Some(Timestamp { seconds: 5, nanos: 0 }));
        assert_eq!(time("-7.5"), Some(Timestamp { seconds: -7, nanos: 500_000_000 }));
        for bad in ["", ".", "1.", "x.0", "1.x"] {
            assert_eq!(time(bad), None, "{bad}");
        }
        assert_eq!(split(b"f 644 0 0 1 1 1 1 1 1 1 .").unwrap().1, b"");
        for bad in ["./..", "./a/../b", "a", "/a", "./a//b", "./", ".//a", "./a/."] {
            assert_eq!(relative(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn complaints_are_read() {
        let text = b"find: './a\\nb \\377': Permission denied\nfind: `./it\\'s: x': No such file or directory\nfind: odd\ncode 1";
        let found = complaints(text);
        assert_eq!(found.code, Some(1));
        assert_eq!(found.of_paths, [(b"a\nb \xff".to_vec(), 13), (b"it's: x".to_vec(), 2)]);
        assert_eq!(found.others, ["find: odd"]);
        assert_eq!(unescaped(b"\\12"), None);
        assert_eq!(unescaped(b"a\\"), None);
    }
}
