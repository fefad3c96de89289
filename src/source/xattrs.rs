//! Reads the extended attributes of one inode, POSIX ACLs included.
//!
//! A file system without them counts as one where no inode has any.
//!
//! Memory: some [`XATTRS_MAX_BYTES`] for an inode. What is beyond is not read: the list that is returned is
//! then longer than a snapshot takes, and whoever takes it cuts it
//! ([`bound_xattrs`](crate::model::bound_xattrs)). Those of the system come first, so that they are in it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, getxattr, lgetxattr, listxattr, llistxattr};
use rustix::io::Errno;

use crate::model::{XATTRS_MAX_BYTES, Xattr};

/// Bytes tried first, for the list of names and for each value; nearly every inode stays below.
const FIRST_BYTES: usize = 512;

/// Largest list or value that the kernel hands out, in bytes (`XATTR_SIZE_MAX`).
const MOST_BYTES: usize = 64 << 10;

/// Reads the extended attributes of an open file or directory, sorted by name.
///
/// The descriptor must not have been opened with `O_PATH`; see [`at`] for those.
///
/// # Errors
/// Whatever the kernel answers, but not `ENOTSUP`: then there are none.
pub fn of_fd(fd: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    collect(|list| flistxattr(fd, list), |name, value| fgetxattr(fd, name, value))
}

/// Reads the extended attributes of an inode that was opened with `O_PATH`, sorted by name. Needs `/proc`.
///
/// # Errors
/// Whatever the kernel answers, but not `ENOTSUP`: then there are none. `ENOENT` also when `/proc` is missing.
pub fn of_path_fd(fd: BorrowedFd<'_>) -> io::Result<Vec<Xattr>> {
    // Leads to a symbolic link itself, if that is what was opened.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    collect(|list| listxattr(&path, list), |name, value| getxattr(&path, name, value))
}

/// Reads the extended attributes of the entry `name` of a directory, sorted by name, without following a symbolic link.
///
/// Works for every kind of inode, and for directories opened with `O_PATH`. Needs `/proc`, since Linux has no
/// call for attributes relative to a directory (before 6.13).
///
/// # Errors
/// Whatever the kernel answers, but not `ENOTSUP`: then there are none. `ENOENT` also when `/proc` is missing.
pub fn at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<Xattr>> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let path = path.as_slice();
    collect(|list| llistxattr(path, list), |name, value| lgetxattr(path, name, value))
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Vec<Xattr>> {
    let mut first = [0; FIRST_BYTES];
    let larger;
    let names: &[u8] = match list(&mut first) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(length) => &first[..length],
        Err(Errno::RANGE) => {
            larger = fill(&list)?;
            &larger
        }
        Err(error) => return Err(error.into()),
    };
    let names = names.split_inclusive(|&byte| byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    let (of_users, others): (Vec<&CStr>, Vec<&CStr>) = names.partition(|name| name.to_bytes().starts_with(b"user."));
    let mut xattrs = Vec::new();
    let mut held = 0;
    for name in others.into_iter().chain(of_users) {
        if held > XATTRS_MAX_BYTES {
            break;
        }
        let mut first = [0; FIRST_BYTES];
        let value: Box<[u8]> = match get(name, &mut first) {
            Ok(length) => first[..length].into(),
            Err(Errno::RANGE) => fill(|buffer: &mut [u8]| get(name, buffer))?.into(),
            // Removed since the list was made.
            Err(Errno::NODATA) => continue,
            // A name in the list whose value its file system does not hand out (`system.` names of some).
            Err(Errno::NOTSUP) => continue,
            Err(error) => return Err(error.into()),
        };
        let xattr = Xattr { name: name.to_bytes().into(), value };
        held += xattr.held_bytes();
        xattrs.push(xattr);
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Calls `read` with the largest buffer there can be and keeps what it filled.
fn fill(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; MOST_BYTES];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that cannot run here says so")]
mod tests {
    use rustix::fs::{Mode, OFlags, XattrFlags, openat, setxattr};

    use super::*;

    #[test]
    fn reads_small_and_large_values_sorted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        let long = vec![7; 1_500];
        for (name, value) in [("user.z", &b"last"[..]), ("user.long", &long), ("user.empty", b"")] {
            match setxattr(&file, name, value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {
                    eprintln!("SKIPPED: the file system of the tests has no user attributes");
                    return;
                }
                answer => answer.unwrap(),
            }
        }
        for number in 0..35 {
            setxattr(&file, format!("user.many-{number:010}"), b"", XattrFlags::empty()).unwrap();
        }
        let open = std::fs::File::open(&file).unwrap();
        let parent = std::fs::File::open(directory.path()).unwrap();
        let found = of_fd(open.as_fd()).unwrap();
        assert_eq!(found, at(parent.as_fd(), b"file").unwrap());
        assert!(found.is_sorted());
        let names: Vec<_> = found.iter().filter(|xattr| xattr.name.starts_with(b"user.")).collect();
        assert_eq!(names.len(), 38);
        assert_eq!((&*names[1].name, &*names[1].value), (&b"user.long"[..], &long[..]));
        let path_only = |name: &str| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            of_path_fd(openat(&parent, name, flags, Mode::empty()).unwrap().as_fd()).unwrap()
        };
        assert_eq!(found, path_only("file"));
        let of_link = at(parent.as_fd(), b"link").unwrap();
        assert_eq!(of_link, path_only("link"));
        assert!(of_link.iter().all(|xattr| !xattr.name.starts_with(b"user.")), "the link was followed");
        assert!(of_fd(parent.as_fd()).unwrap().iter().all(|xattr| !xattr.name.starts_with(b"user.")));
    }
}
