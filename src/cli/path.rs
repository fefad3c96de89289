//! Arguments that name a place: a path of a snapshot, or a local path.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zmreplica::catalog::reader::CatalogReader;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::lease::Lease;
use zmreplica::remote::transport::spec::RemoteSpec;
use zmreplica::replica::Replica;
use zmreplica::view::{SnapshotView, Snapshots, ViewOptions, display_path};

use super::Context;
use super::error::CliError;
use super::leased::{Leased, leased};

/// What a `SNAP[:PATH]` argument names.
pub(crate) struct Opened {
    /// The snapshot.
    pub(crate) view: SnapshotView,
    /// The path, without slashes at its ends.
    pub(crate) path: Vec<u8>,
    /// Keeps a prune from removing the snapshot, or says why nothing does.
    pub(crate) lease: io::Result<Lease>,
}

/// Opens the snapshot of a `SNAP[:PATH]` argument. `purpose` is what a list of leases shows.
pub(crate) fn open_path(
    context: &Context,
    replica: &Replica,
    argument: &OsStr,
    purpose: &Path,
) -> Result<Opened, CliError> {
    // Following, since a prune beside this may move chunks.
    let catalog = Arc::new(replica.following_catalog()?);
    let choose = |all: &Snapshots| Ok(vec![all.resolve_path(argument)?.0.record.id.clone()]);
    let Leased { snapshots, lease } = leased(context, replica, &catalog, purpose, choose)?;
    let (snapshot, path) = snapshots.resolve_path(argument)?;
    let view = open_view(replica, &catalog, snapshot.record.clone())?;
    Ok(Opened { view, path: trim_slashes(&path).to_vec(), lease })
}

/// Opens a snapshot for reading.
pub(crate) fn open_view(
    replica: &Replica,
    catalog: &Arc<CatalogReader>,
    record: SnapshotRecord,
) -> Result<SnapshotView, CliError> {
    Ok(SnapshotView::open(Arc::clone(catalog), Arc::new(replica.chunks()), record, ViewOptions::default())?)
}

/// Returns a path without the slashes at its ends, which mean nothing.
pub(crate) fn trim_slashes(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(start, |last| last + 1);
    &path[start..end]
}

/// Reads a place that may be on another host; `None` if it is on this one.
pub(crate) fn remote(place: &OsStr) -> Result<Option<RemoteSpec>, CliError> {
    // What is not UTF-8 is a local path.
    let Some(text) = place.to_str() else { return Ok(None) };
    RemoteSpec::parse(text)
        .map_err(|error| CliError::Usage(format!("{error}; for a local name with a colon, put ./ in front")))
}

/// Returns the location of a source in the form that snapshots are taken with.
pub(crate) fn canonical_location(location: &OsStr) -> Result<String, CliError> {
    if let Some(spec) = remote(location)? {
        return Ok(spec.to_string());
    }
    let shown = || display_path(location.as_bytes());
    let absolute = std::path::absolute(location)
        .map_err(|error| CliError::Usage(format!("`{}` is not a path: {error}", shown())))?;
    let absolute: PathBuf = absolute.components().collect();
    absolute.into_os_string().into_string().map_err(|_| CliError::Usage(format!("The path {} is not UTF-8", shown())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_ends_say_nothing() {
        for (given, expected) in [("/a/b/", "a/b"), ("a", "a"), ("/", ""), ("", "")] {
            assert_eq!(trim_slashes(given.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn other_hosts_are_distinguished_from_paths() {
        for other in ["host:/a", "root@host:a", "ssh://host/a"] {
            assert!(remote(OsStr::new(other)).is_ok_and(|spec| spec.is_some()), "{other}");
        }
        for local in ["/a:b", "./a:b", "a", "a/b:c"] {
            assert!(remote(OsStr::new(local)).is_ok_and(|spec| spec.is_none()), "{local}");
        }
        assert!(remote(OsStr::new(":a")).is_err());
    }
}
