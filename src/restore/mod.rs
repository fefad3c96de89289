//! Restoring a snapshot, or a part of it, into a directory.
//!
//! ```text
//!  walk (this thread): directories, links, special files ---> batches of files ---> threads: read, verify, write
//! ```
//!
//! The walk takes the tree in order of names and decides; threads write the contents of regular files. Semantics:
//!
//! - **Links.** All names of a link group become one inode, and names of different groups never do, also in a target that has other links.
//! - **Nothing half.** A file is written under a temporary name (`.zmreplica-...`) beside its own, gets its attributes, and is renamed. What a kill
//!   leaves under a final name is complete, and what is damaged or was unreadable at the source is not created: it is reported, and the
//!   rest goes on.
//! - **Never outside.** Every step is relative to an open directory, and no symbolic link of the target is followed; only the destination itself may
//!   be one.
//! - **The inode, not the name.** Owners, modes and other attributes are set through a descriptor whose device and inode are those that were looked at, for the
//!   target may be somebody else's, who exchanges names while root restores. Where others may do that, what is made by name is made in a directory
//!   that nobody else may enter, and a file that would be handed over, because it has another owner than the snapshot's, is replaced.
//! - **Directories last.** A directory gets its attributes when the last thing in it and below it is done, so modes without write permission and times
//!   come out right.
//!
//! Memory: for each thread up to 20 MB of chunks and read buffers; some 150 bytes and the path for each link group of several names; the names of
//! the existing directories on the way down. Open files: at most some 600, and as few as 40 if the system allows no more.

mod attributes;
mod destination;
mod dir_handles;
mod directory;
mod environment;
mod exposure;
mod file_writer;
mod group;
mod hard_links;
mod inode;
mod remove_tree;
mod target_dir;
mod walk;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};

use serde::{Deserialize, Serialize};

pub use self::destination::refuse_foreign_link;
use crate::view::{SnapshotView, ViewError};

/// What to do where the target has a name of the snapshot already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overwrite {
    /// Leave it as it is. Existing directories are filled and keep their attributes.
    Never,
    /// Leave the content where kind, size and time of modification are those of the snapshot, else replace it; attributes are brought in line.
    #[default]
    Changed,
    /// Replace it.
    Always,
}

/// Choices for a restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// What to do with names that exist.
    pub overwrite: Overwrite,
    /// Whether to remove names that the snapshot does not have. Never reaches into other file systems that are mounted in the target, nor
    /// into directories whose listing the snapshot does not have whole.
    pub delete: bool,
    /// Whether to give files to the owners of the snapshot's numbers. Otherwise owners are found by name, and by number where this host
    /// does not have the name. Numbers in ACLs are never changed.
    pub numeric_ids: bool,
    /// Whether to only report what would be done.
    pub dry_run: bool,
    /// Threads that write files; 0 for one per processor.
    pub threads: usize,
    /// Whether to leave out what belongs in no tree of mail: files with a set-user-ID or set-group-ID bit or with capabilities, and device nodes.
    pub no_specials: bool,
    /// Directories that must not be touched: the store.
    pub protect: Vec<PathBuf>,
}

/// How far a restore is: counters that any thread may read.
#[derive(Debug, Default)]
pub struct RestoreProgress {
    /// Names done or handed to a thread.
    pub entries: AtomicU64,
    /// Regular files written.
    pub files: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Changes of the report: also what the counters above do not show, as the removal of names, moves it.
    pub steps: AtomicU64,
    /// Whether nothing is left but to wait until everything is on disk.
    pub syncing: AtomicBool,
    /// Names to expect, where a whole snapshot is restored, else 0.
    pub expected_entries: AtomicU64,
    /// Bytes to expect, where a whole snapshot is restored, else 0.
    pub expected_bytes: AtomicU64,
    /// Set from outside to end the restore at the next chance.
    pub interrupt: AtomicBool,
}

/// Something that could not be restored as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreProblem {
    /// The path, below the destination, fit for people.
    pub path: String,
    /// What happened.
    pub message: String,
    /// Whether the store is damaged, as against a refusal of the target or a file that the source could not read.
    pub damage: bool,
}

/// What a restore did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Names of the snapshot that were looked at.
    pub entries: u64,
    /// Directories made.
    pub directories: u64,
    /// Regular files written.
    pub files: u64,
    /// Further names linked to an inode.
    pub links: u64,
    /// Symbolic links and special files made.
    pub others: u64,
    /// Names of files with a set-user-ID or set-group-ID bit, or with capabilities, restored or not.
    #[serde(default)]
    pub set_id_files: u64,
    /// Names of device nodes, restored or not.
    #[serde(default)]
    pub device_nodes: u64,
    /// Those of both that were left out on request.
    #[serde(default)]
    pub left_out: u64,
    /// Whether a file system of the target, or its server, gives owners or modes of its own choice, so that root could not guard against names that
    /// others exchange meanwhile.
    #[serde(default)]
    pub unguarded: bool,
    /// Names whose content was right already, or that were left alone on request. Their attributes may have been brought in line.
    pub unchanged: u64,
    /// Names removed because the snapshot does not have them; a directory counts with all that was in it.
    pub deleted: u64,
    /// The first of them.
    pub deletions: Vec<String>,
    /// Bytes written, holes not counted.
    pub written_bytes: u64,
    /// Problems that are damage of the store.
    pub damaged: u64,
    /// Whether all owners were restored. Without privileges they are not, and set-user-ID bits are then left out.
    pub owners_kept: bool,
    /// The first 10,000 problems.
    pub problems: Vec<RestoreProblem>,
    /// How many problems there were.
    pub problem_count: u64,
    /// Wall time, in milliseconds.
    pub elapsed_ms: u64,
}

/// What can end a restore early. What was restored until then is complete, file by file.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The selected part of the snapshot cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The destination cannot be used.
    #[error("Cannot restore into {path}: {source}")]
    Destination {
        /// The destination.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The destination lies in a directory that must not be touched.
    #[error("{path} is inside the store {store}; restore to another place")]
    InStore {
        /// The destination.
        path: String,
        /// The store.
        store: String,
    },
    /// The target takes nothing more.
    #[error(
        "The restore ended at {path}: {source}. Free some space or restore elsewhere, then run it again: what has been restored is kept"
    )]
    Full {
        /// The path that could not be written.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The target could not be made durable.
    #[error("The files in {path} may not be on disk yet: {source}")]
    Sync {
        /// The destination.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("A thread cannot be started: {0}")]
    Thread(io::Error),
    /// The user interrupted the restore.
    #[error("Interrupted. Files that were restored so far are complete; run the same command again to continue")]
    Interrupted,
}

/// Restores a path of a snapshot.
///
/// Of a directory, the contents go into `destination`, which is made if it is missing, and its attributes onto it. A single file goes to
/// `destination`, or into it when that is a directory.
///
/// # Errors
/// See [`RestoreError`]. Single files that could not be restored are no error but problems in the report.
pub fn restore(
    view: &SnapshotView,
    subtree: &[u8],
    destination: &Path,
    options: &RestoreOptions,
    progress: &RestoreProgress,
) -> Result<RestoreReport, RestoreError> {
    let node = view.resolve(subtree)?;
    let protected = protected(destination, &options.protect)?;
    walk::run(view, subtree, node, destination, options, progress, protected)
}

/// Refuses a destination inside a protected directory; returns the device and inode numbers of the protected ones.
fn protected(destination: &Path, protect: &[PathBuf]) -> Result<Vec<(u64, u64)>, RestoreError> {
    let mut inodes = Vec::new();
    for path in protect {
        if let Ok(metadata) = std::fs::metadata(path) {
            inodes.push((metadata.dev(), metadata.ino()));
        }
    }
    // The destination may not exist yet: the nearest directory above it that does decides.
    let absolute = std::path::absolute(destination).unwrap_or_else(|_| destination.to_owned());
    for above in absolute.ancestors() {
        let Ok(mut real) = above.canonicalize() else { continue };
        loop {
            if let Ok(metadata) = std::fs::metadata(&real)
                && inodes.contains(&(metadata.dev(), metadata.ino()))
            {
                let path = destination.display().to_string();
                return Err(RestoreError::InStore { path, store: real.display().to_string() });
            }
            if !real.pop() {
                return Ok(inodes);
            }
        }
    }
    Ok(inodes)
}
