//! The kernel's table of mounts, `/proc/self/mountinfo`; see proc(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Identifies the mount as long as it lasts.
    pub id: u64,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Type of the file system, such as `fuse.zmreplica` or `overlay`.
    pub kind: String,
    /// What is mounted, in the words of whoever did.
    pub source: OsString,
}

/// Reads the table, in the order of mounting: of several entries at one place the last is seen.
///
/// # Errors
/// Fails when `/proc` is not there.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Returns the mounts at exactly this path, lowest first.
///
/// # Errors
/// As [`mount_table`].
pub fn mounts_at(path: &Path) -> io::Result<Vec<MountEntry>> {
    Ok(mount_table()?.into_iter().filter(|entry| entry.mount_point == path).collect())
}

/// Parses a line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let mount_point = PathBuf::from(unescape(fields.nth(3)?));
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(MountEntry { id, mount_point, kind, source: unescape(fields.next()?) })
}

/// Undoes the octal escapes of white space and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(value as u8);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = b"36 35 98:0 / /mnt/a\\040b\\134c rw,noatime shared:1 master:2 - fuse.zmreplica /srv/store#0a1b rw,user_id=0";
        assert_eq!(
            parse(line),
            Some(MountEntry {
                id: 36,
                mount_point: PathBuf::from("/mnt/a b\\c"),
                kind: "fuse.zmreplica".to_owned(),
                source: OsString::from("/srv/store#0a1b"),
            })
        );
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / /mnt rw"), None);
    }

    #[test]
    fn the_table_of_this_system_can_be_read() {
        assert!(mount_table().unwrap().iter().any(|entry| entry.mount_point == Path::new("/proc")));
    }
}
