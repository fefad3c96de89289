//! Opens paths beneath a directory without ever leaving it.
//!
//! The tree that is replicated belongs to somebody else and changes while it is read: a directory can become a
//! symbolic link between two system calls. Everything that opens by path below a root goes through here, so that no
//! component is ever followed out of the tree, and so that a path may be longer than the 4,096 bytes that the
//! kernel takes in one call.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Longest piece of a path handed to the kernel in one call, in bytes: its limit of 4,096 counts the final NUL.
const PIECE_BYTES: usize = 4_000;

/// Flags of the directories that are only passed through.
const PASSAGE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Set once the kernel has answered that it does not know `openat2` (before Linux 5.6).
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens `path` below `root`, following no symbolic link in any component.
///
/// `path` is relative, its components separated by single slashes; the empty path is `root` itself, opened anew.
/// `O_NOFOLLOW` and `O_CLOEXEC` are always added to `flags`. A path of any length works.
///
/// # Errors
/// `EINVAL` for a path that is absolute or has an empty component, `.` or `..`, and for flags that create a file;
/// `ELOOP` or `ENOTDIR` when a component is a symbolic link; and whatever the kernel answers.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    if flags.intersects(OFlags::CREATE | OFlags::TMPFILE.difference(OFlags::DIRECTORY)) {
        return Err(Errno::INVAL.into());
    }
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if path.is_empty() {
        return Ok(openat(root, c".", flags, Mode::empty())?);
    }
    if path.contains(&0) || path.split(|&byte| byte == b'/').any(|name| matches!(name, b"" | b"." | b"..")) {
        return Err(Errno::INVAL.into());
    }
    let mut rest = path;
    let mut reached: Option<OwnedFd> = None;
    loop {
        let (piece, further) = split_piece(rest);
        let from = reached.as_ref().map_or(root, std::os::fd::AsFd::as_fd);
        match further {
            None => return Ok(open_piece(from, piece, flags)?),
            Some(further) => {
                reached = Some(open_piece(from, piece, PASSAGE)?);
                rest = further;
            }
        }
    }
}

/// Opens the directory that holds the last component of `path`, and returns it with that component.
///
/// The directory is opened with `O_PATH`: good for `openat`, `statx`, `readlinkat` and the like relative to it.
///
/// # Errors
/// As [`open_beneath`]; `EINVAL` for the empty path, which has no parent.
pub fn open_parent(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
    let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    if matches!(name, b"" | b"." | b"..") || name.contains(&0) || path.starts_with(b"/") {
        return Err(Errno::INVAL.into());
    }
    let directory = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok((directory, name.to_vec()))
}

/// Splits off the longest run of whole components that fits into one call.
fn split_piece(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    if path.len() <= PIECE_BYTES {
        return (path, None);
    }
    let slash = path[..PIECE_BYTES]
        .iter()
        .rposition(|&byte| byte == b'/')
        .or_else(|| path.iter().position(|&byte| byte == b'/'));
    match slash {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

fn open_piece(from: BorrowedFd<'_>, piece: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    if !WITHOUT_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(from, piece, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => WITHOUT_OPENAT2.store(true, Ordering::Relaxed),
            // Some container filters answer EPERM for calls they do not know.
            Err(Errno::PERM) => {}
            answer => return answer,
        }
    }
    walk_piece(from, piece, flags)
}

/// Opens one component after the other, for kernels without `openat2`.
fn walk_piece(from: BorrowedFd<'_>, piece: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = piece.split(|&byte| byte == b'/').peekable();
    let mut reached: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let at = reached.as_ref().map_or(from, std::os::fd::AsFd::as_fd);
        if names.peek().is_none() {
            return openat(at, name, flags, Mode::empty());
        }
        reached = Some(openat(at, name, PASSAGE, Mode::empty())?);
    }
    Err(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    fn root_of(directory: &tempfile::TempDir) -> OwnedFd {
        std::fs::File::open(directory.path()).unwrap().into()
    }

    #[test]
    fn opens_files_and_refuses_symlinks() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::fs::write(directory.path().join("a/b/file"), b"text").unwrap();
        symlink("a", directory.path().join("link")).unwrap();
        symlink("file", directory.path().join("a/b/alias")).unwrap();
        let root = root_of(&directory);
        for open in [open_beneath, |root: BorrowedFd<'_>, path: &[u8], flags| Ok(walk_piece(root, path, flags)?)] {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
            let mut text = String::new();
            let file = open(root.as_fd(), b"a/b/file", flags).unwrap();
            std::fs::File::from(file).read_to_string(&mut text).unwrap();
            assert_eq!(text, "text");
            for path in [&b"link/b/file"[..], b"a/b/alias", b"link"] {
                let error = open(root.as_fd(), path, flags).unwrap_err();
                let code = error.raw_os_error().unwrap();
                assert!(code == Errno::LOOP.raw_os_error() || code == Errno::NOTDIR.raw_os_error(), "{error}");
            }
            assert_eq!(open(root.as_fd(), b"a/none", flags).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn refuses_paths_that_could_leave_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = root_of(&directory);
        for path in [&b"/etc"[..], b"..", b"a/../b", b"a//b", b"a/", b"./a", b"a\0b"] {
            let error = open_beneath(root.as_fd(), path, OFlags::RDONLY).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()), "{path:?}");
            assert!(open_parent(root.as_fd(), path).is_err(), "{path:?}");
        }
        assert!(open_parent(root.as_fd(), b"").is_err());
        assert!(open_beneath(root.as_fd(), b"new", OFlags::CREATE | OFlags::RDWR).is_err());
        open_beneath(root.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    }

    #[test]
    fn walks_paths_longer_than_the_kernel_takes() {
        let directory = tempfile::tempdir().unwrap();
        let root = root_of(&directory);
        let mut path = Vec::new();
        let mut at = root.try_clone().unwrap();
        for level in 0..90 {
            let name = format!("{level:0200}");
            mkdirat(&at, name.as_str(), Mode::from(0o755)).unwrap();
            at = openat(&at, name.as_str(), PASSAGE, Mode::empty()).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        assert!(path.len() > 4 * 4096);
        let found = open_beneath(root.as_fd(), &path, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&found), inode(&at));
        path.extend_from_slice(b"/file");
        let (parent, name) = open_parent(root.as_fd(), &path).unwrap();
        assert_eq!((inode(&parent), &name[..]), (inode(&at), &b"file"[..]));
        let (parent, name) = open_parent(root.as_fd(), b"top").unwrap();
        assert_eq!((inode(&parent), &name[..]), (inode(&root), &b"top"[..]));
    }
}
