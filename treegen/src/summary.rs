//! Counting what a tree holds.

use std::collections::HashMap;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::Path;

use serde::Serialize;

use crate::error::{Context, Result};

/// What a tree holds; the root itself is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Directory entries: files and directories.
    pub names: u64,
    /// Directories among them.
    pub directories: u64,
    /// Different inodes, directories included.
    pub inodes: u64,
    /// Bytes of all files, each inode once.
    pub unique_bytes: u64,
    /// Bytes of all files, each name once.
    pub apparent_bytes: u64,
    /// Time of the command.
    pub elapsed_ms: u64,
}

impl Summary {
    /// Walks a tree and counts; an inode's size is looked up only once.
    pub fn of(root: &Path) -> Result<Self> {
        let mut summary = Self::default();
        let mut sizes: HashMap<u64, u64> = HashMap::new();
        let mut pending = vec![root.to_path_buf()];
        while let Some(dir) = pending.pop() {
            let entries = match std::fs::read_dir(&dir) {
                // lost+found belongs to root.
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => continue,
                other => other.context("list", &dir)?,
            };
            for entry in entries {
                let entry = entry.context("list", &dir)?;
                summary.names += 1;
                if entry.file_type().context("look at", &dir)?.is_dir() {
                    summary.directories += 1;
                    pending.push(entry.path());
                    continue;
                }
                let size = match sizes.get(&entry.ino()) {
                    Some(&size) => size,
                    None => {
                        let size = entry.metadata().context("look at", &entry.path())?.size();
                        sizes.insert(entry.ino(), size);
                        summary.unique_bytes += size;
                        size
                    }
                };
                summary.apparent_bytes += size;
            }
        }
        summary.inodes = summary.directories + sizes.len() as u64;
        Ok(summary)
    }
}
