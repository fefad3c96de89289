//! A source on a host where no agent may run: a shell there, with GNU `find` and `tar`, and everything else done here.
//!
//! ```text
//!  run -> AgentlessTree -> Shell ~~~ transport ~~~ sh, waiting for one command after the other
//!           |                                      scan    find . -printf          every name, in the order of the disk
//!           | sort (records on disk here)          stat    find NAMES -printf      what is at these names now
//!           | spool, cut, hash                     look    tar -cvvf /dev/null     which of these have extended attributes; reads no content
//!           |                                      tar     tar -cf -               attributes and content of these
//!           |                                      user    getent                  names of owners
//! ```
//!
//! One connection, one command at a time; its names follow on stdin, its answer has an end of its own. Nothing is written on the remote host.
//!
//! Architecture invariant: no answer counts before the exit code and the messages of its command are known (`tar_messages`, `find::complaints`): `tar` fills up
//! with zeros what it cannot read, `find` leaves out what it cannot look at, and both say so there alone. A name of which neither an answer nor a message came
//! counts as unreadable, never as gone.
//!
//! Content comes as a tar stream, each file into a temporary file here, so that the chunker of local files splits it, at the same places. `find` looks
//! at the names once more behind each batch: a file whose size or time is no longer what `tar` saw is read again.
//!
//! The tar stream is read by `archive`, not by a crate: of those at hand none reads sparse files in the POSIX form, one splits binary extended attributes at
//! line ends, and none bounds what a hostile header makes it allocate.
//!
//! Memory: `sort::MEMORY_BYTES` while the scan comes in; then one listing, the names of directories ahead, 50,000 entries of listings that wait for extended
//! attributes, and 16 bytes (32 with the table) for each inode with several names; 32 MB or one message while cutting, and 40 bytes for each chunk of a batch.

mod archive;
mod find;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod read;
mod scan;
mod shell;
mod sort;
mod spool;
mod tar_messages;
mod tree;
mod xattr_probe;

use std::path::PathBuf;
use std::time::Duration;

use crate::remote::client::Stop;
use crate::source::exclude_patterns::ExcludePatterns;

pub use tree::AgentlessTree;

/// What is wanted of the remote host.
#[derive(Clone)]
pub struct AgentlessOptions {
    /// The root there; relative to the user's home directory unless it begins with a slash.
    pub root: String,
    /// Names to leave out; applied here.
    pub excludes: ExcludePatterns,
    /// Whether to enter directories on other file systems.
    pub cross_file_systems: bool,
    /// Whether only the scan is wanted: no extended attributes then.
    pub scan_only: bool,
    /// Most bytes a second that are taken; 0 for no limit.
    pub bytes_per_second: u64,
    /// How long the remote host may be waited for while next to nothing comes.
    pub idle_timeout: Duration,
    /// An existing directory for temporary files; they have no names. It takes the names of the tree and the largest file.
    pub spool: PathBuf,
    /// Asked now and then while much comes in.
    pub interrupted: Stop,
}
