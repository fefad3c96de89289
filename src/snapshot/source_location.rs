//! Where a local source is, what its location is called, and whether the store lies in it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::SnapshotError;
use crate::replica::Replica;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::source::scan::ScanError;
use crate::source::tree::SourceError;

/// Returns the path to open and the location that the source is known by. A store inside the source must be left out.
pub(super) fn source_location(
    replica: &Replica,
    source: &Path,
    excludes: &ExcludePatterns,
) -> Result<(PathBuf, String), SnapshotError> {
    let shown = || source.display().to_string();
    let not_there = |error| SourceError::Scan(ScanError::Root { path: source.to_owned(), source: error });
    let real = source.canonicalize().map_err(not_there)?;
    let absolute: PathBuf = std::path::absolute(source).map_err(not_there)?.components().collect();
    let location = absolute.to_str().ok_or_else(|| SnapshotError::SourceName { path: shown() })?.to_owned();
    if let Ok(store) = replica.path().canonicalize()
        && let Ok(inside) = store.strip_prefix(&real)
    {
        let inside = inside.as_os_str().as_bytes();
        if inside.is_empty() || !excludes.leaves_out(inside, true) {
            let remedy = match std::str::from_utf8(inside) {
                Ok(inside) if !inside.is_empty() => {
                    format!(
                        "leave it out with --exclude '/{}' (or `exclude` in the configuration file), or move it",
                        globset::escape(inside)
                    )
                }
                _ => "move it".to_owned(),
            };
            let store = replica.path().display().to_string();
            return Err(SnapshotError::StoreInSource { path: shown(), store, remedy });
        }
    }
    Ok((real, location))
}
