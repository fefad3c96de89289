//! A writable view of a read-only mount: the kernel's overlay, with all changes in a directory of the user's.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::MountFlags;

/// Mounts an overlay over `lower`, at the same place: reads come from `lower`, writes go to `upper`. `work` is the kernel's own, empty,
/// on the file system of `upper`.
///
/// The options keep hard links in step: `index=on` lets all names of an inode see a change made through one of them, `xino=on` and
/// `redirect_dir=on` keep inode numbers and renamed directories, `metacopy=on` saves copying a file whose attributes alone change. See the
/// kernel's documentation of overlayfs.
///
/// # Errors
/// Fails when the kernel refuses, as it does to all but root, or when a path holds a character that the options cannot carry.
pub fn mount_overlay(lower: &Path, upper: &Path, work: &Path, source: &str) -> io::Result<()> {
    let mut options = Vec::new();
    for (key, path) in [("lowerdir=", lower), (",upperdir=", upper), (",workdir=", work)] {
        options.extend_from_slice(key.as_bytes());
        options.extend_from_slice(&escape(path));
    }
    options.extend_from_slice(b",index=on,redirect_dir=on,metacopy=on,xino=on");
    let options = CString::new(options)?;
    let source = CString::new(source)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    Ok(rustix::mount::mount(&source, lower, c"overlay", flags, options.as_c_str())?)
}

/// Escapes what means something in the options of an overlay.
fn escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_is_escaped() {
        assert_eq!(escape(Path::new("/a:b,c\\d")), b"/a\\:b\\,c\\\\d");
    }
}
