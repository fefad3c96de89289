//! The versions of one path: what it stood for in the snapshots of a source, each version once.
//!
//! A file is the same version as long as its link group is the same, and a directory as long as its attributes and its entries are, however deep below
//! something differs: equal directories of one store have equal objects.
//!
//! Cost, for each snapshot: one page for each component of the path, and an index where the directory is a large one; what a snapshot shares with others is
//! decoded once, as long as the caches of the catalogue hold it (1,024 pages). Nothing is walked. Memory: a directory for each version, of which there are no
//! more than snapshots.

use super::{Node, Readers, SnapshotView, StoredSnapshot, ViewError};

/// What a path stood for in some snapshots.
#[derive(Clone, Debug)]
pub struct PathVersion {
    /// What it stood for.
    pub node: Node,
    /// The place of the first snapshot with it.
    pub first: usize,
    /// The place of the last snapshot with it.
    pub last: usize,
    /// How many snapshots have it; fewer than lie between the first and the last if it was away for a while.
    pub count: usize,
    /// The place of the first snapshot after the last one that has nothing at the path; `None` if another version took its place, or it is still there.
    pub vanished: Option<usize>,
}

/// The versions of a path, in order of their first snapshots.
#[derive(Debug, Default)]
pub struct PathHistory {
    /// The versions.
    pub versions: Vec<PathVersion>,
    /// The places of the snapshots in which the path could not be looked up, and why. They count neither as having it nor as not having it.
    pub unread: Vec<(usize, ViewError)>,
}

/// Finds the versions of a path in the snapshots of one source, which are in order of commits.
///
/// # Errors
/// [`ViewError::BadPath`] for a path that no snapshot can have.
pub fn path_history(readers: &Readers, snapshots: &[&StoredSnapshot], path: &[u8]) -> Result<PathHistory, ViewError> {
    let mut history = PathHistory::default();
    // The version in the snapshot before.
    let mut current: Option<usize> = None;
    for (at, snapshot) in snapshots.iter().enumerate() {
        let found = SnapshotView::over(readers, snapshot.record.clone()).and_then(|view| view.resolve(path));
        let versions = &mut history.versions;
        match found {
            Ok(node) => {
                // Most often it is the one before, or one of those before that.
                let known = versions.iter().rposition(|version| version.node == node);
                let place = known.unwrap_or(versions.len());
                if known.is_none() {
                    versions.push(PathVersion { node, first: at, last: at, count: 0, vanished: None });
                }
                let version = &mut versions[place];
                version.last = at;
                version.count += 1;
                version.vanished = None;
                current = Some(place);
            }
            Err(ViewError::NotFound { .. } | ViewError::NotADirectory { .. }) => {
                if let Some(place) = current.take() {
                    versions[place].vanished = Some(at);
                }
            }
            Err(error @ ViewError::BadPath { .. }) => return Err(error),
            Err(error) => history.unread.push((at, error)),
        }
    }
    Ok(history)
}
