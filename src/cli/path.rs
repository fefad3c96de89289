//! Arguments that name a place: a path of a snapshot, or a local path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use zmreplica::catalog::reader::CatalogReader;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::replica::Replica;
use zmreplica::view::{SnapshotView, Snapshots, ViewOptions};

use super::error::CliError;

/// Opens the snapshot of a `SNAP[:PATH]` argument; returns it with the path, without slashes at its ends.
pub(crate) fn open_path(replica: &Replica, argument: &OsStr) -> Result<(SnapshotView, Vec<u8>), CliError> {
    // Following, since a prune beside this may move chunks.
    let catalog = Arc::new(replica.following_catalog()?);
    let snapshots = Snapshots::read(&catalog)?;
    let (snapshot, path) = snapshots.resolve_path(argument)?;
    let view = open_view(replica, &catalog, snapshot.record.clone())?;
    Ok((view, trim_slashes(&path).to_vec()))
}

/// Opens a snapshot for reading.
pub(crate) fn open_view(
    replica: &Replica,
    catalog: &Arc<CatalogReader>,
    record: SnapshotRecord,
) -> Result<SnapshotView, CliError> {
    Ok(SnapshotView::open(Arc::clone(catalog), Arc::new(replica.chunks()), record, ViewOptions::default())?)
}

fn trim_slashes(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(start, |last| last + 1);
    &path[start..end]
}

/// Joins a directory's path and a name.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + name.len() + 1);
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Refuses a place on another host (`host:path`, `ssh://`), as rsync would read it.
pub(crate) fn refuse_remote(place: &OsStr, what: &str) -> Result<(), CliError> {
    let bytes = place.as_bytes();
    let first_part = bytes.split(|&byte| byte == b'/').next().unwrap_or_default();
    if first_part.contains(&b':') {
        return Err(CliError::Usage(format!(
            "The {what} {:?} is on another host, and SSH is not in this release. Name a local directory; write ./ before one \
             whose name has a colon",
            place.to_string_lossy()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_ends_say_nothing() {
        for (given, expected) in [("/a/b/", "a/b"), ("a", "a"), ("/", ""), ("", "")] {
            assert_eq!(trim_slashes(given.as_bytes()), expected.as_bytes());
        }
        assert_eq!([join(b"", b"a"), join(b"a", b"b")], [b"a".to_vec(), b"a/b".to_vec()]);
    }

    #[test]
    fn other_hosts_are_refused() {
        for remote in ["host:/a", "root@host:a", "ssh://host/a"] {
            assert!(refuse_remote(OsStr::new(remote), "source").is_err(), "{remote}");
        }
        for local in ["/a:b", "./a:b", "a", "a/b:c"] {
            assert!(refuse_remote(OsStr::new(local), "source").is_ok(), "{local}");
        }
    }
}
