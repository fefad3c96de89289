//! Temporary files without a name: they go with the process, however that ends.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};

/// Files up to this many bytes stay in memory.
const SMALL_MAX_BYTES: u64 = 4 << 20;

/// Opens a temporary file in a directory.
pub(super) fn temporary(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = openat(CWD, directory, flags, Mode::from_raw_mode(0o600)) {
        return Ok(File::from(file));
    }
    // Not all file systems have files without a name.
    for number in 0..100 {
        let path = directory.join(format!("spool-{}-{number}.tmp", std::process::id()));
        match File::options().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Takes the content of one file after the other.
pub(super) struct Spool {
    directory: PathBuf,
    small: File,
    large: Option<File>,
    in_small: bool,
}

impl Spool {
    pub(super) fn new(directory: &Path) -> io::Result<Spool> {
        let small = File::from(memfd_create("zmreplica-spool", MemfdFlags::CLOEXEC)?);
        Ok(Spool { directory: directory.to_owned(), small, large: None, in_small: true })
    }

    /// Begins a file. What an earlier one left lies behind its end, and is for nobody to read.
    pub(super) fn begin(&mut self, size: u64, sparse: bool) -> io::Result<()> {
        self.in_small = !sparse && size <= SMALL_MAX_BYTES;
        if self.in_small {
            return Ok(());
        }
        let large = match self.large.take() {
            Some(large) => large,
            None => temporary(&self.directory)?,
        };
        let large = self.large.insert(large);
        // Where nothing is written there will be a hole.
        large.set_len(0)?;
        if sparse { large.set_len(size) } else { Ok(()) }
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file().write_all_at(bytes, at)
    }

    pub(super) fn file(&self) -> &File {
        match &self.large {
            Some(large) if !self.in_small => large,
            _ => &self.small,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}
