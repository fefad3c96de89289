//! What Zimbra calls things in a backup tree, and how its labels and XML files are read. Known here and nowhere else.
//!
//! ```text
//! accounts.xml                       which accounts there are, and the newest full session of each
//! sessions/<label>/                  a finished session
//!     session.xml                    what it holds
//!     redologs/, shared_blobs/, accounts/
//! sessions/TO_DELETE-<label>/        one that `zmbackup -del` takes apart
//! tmp/<label>/, sessions_tmp/<label>/   one that is being written
//! tmp/restore/                       scratch of restores
//! ```
//!
//! Nothing here touches a disk or a store: names come as bytes, files as streams. So the scan's excludes, the wait for zmbackup, the guard and the analysis
//! all stand on it. What cannot be understood is replicated just as well.

mod label;
pub mod xml;

pub use label::{Label, SessionKind, parse_stamp, stamp_in};

/// The list of accounts, at the root.
pub const ACCOUNTS_FILE: &str = "accounts.xml";
/// The directory of finished sessions, at the root.
pub const SESSIONS: &str = "sessions";
/// Directories at the root in which sessions are written; the second in some releases.
pub const UNFINISHED: [&str; 2] = ["tmp", "sessions_tmp"];
/// Scratch of restores, within the first of [`UNFINISHED`]; no session.
pub const RESTORE_SCRATCH: &str = "restore";
/// What `zmbackup -del` puts before the label of a session that it removes in the background, possibly for hours.
pub const DELETING_PREFIX: &str = "TO_DELETE-";
/// What a session says of itself, in its directory.
pub const SESSION_FILE: &str = "session.xml";
/// The redo logs of a session, in its directory.
pub const REDO_LOGS: &str = "redologs";
/// Messages that accounts of a session share, in its directory.
pub const SHARED_BLOBS: &str = "shared_blobs";
/// The accounts of a session, in its directory.
pub const SESSION_ACCOUNTS: &str = "accounts";

/// Returns the path of a finished session within its tree.
pub fn session_path(label: &str) -> String {
    format!("{SESSIONS}/{label}")
}

/// Splits the name of a directory of [`SESSIONS`] into whether the session is being deleted, and its label.
pub fn split_deleting(name: &str) -> (bool, &str) {
    match name.strip_prefix(DELETING_PREFIX) {
        Some(label) => (true, label),
        None => (false, name),
    }
}

/// Returns whether a path within a tree lies inside a finished session.
pub fn is_inside_a_session(path: &[u8]) -> bool {
    let mut parts = path.splitn(3, |byte| *byte == b'/');
    parts.next() == Some(SESSIONS.as_bytes())
        && parts.next().and_then(|name| std::str::from_utf8(name).ok()).is_some_and(|name| Label::parse(name).is_some())
        && parts.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_sessions() {
        assert!(is_inside_a_session(b"sessions/full-20260730.010000.000/session.xml"));
        for other in [
            &b"sessions/full-20260730.010000.000"[..],
            b"sessions/other/x",
            b"sessions/full-2026073\xff.010000.000/x",
            b"tmp/full-20260730.010000.000/x",
        ] {
            assert!(!is_inside_a_session(other));
        }
    }

    #[test]
    fn a_session_under_deletion_keeps_its_label() {
        assert_eq!(split_deleting("TO_DELETE-full-20260730.010000.000"), (true, "full-20260730.010000.000"));
        assert_eq!(split_deleting("full-20260730.010000.000"), (false, "full-20260730.010000.000"));
        assert_eq!(session_path("full-20260730.010000.000"), "sessions/full-20260730.010000.000");
    }
}
