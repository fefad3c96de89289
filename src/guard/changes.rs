//! What changed in place, and what is gone, in directories that both snapshots have.
//!
//! Both trees are walked together. Directories with the same body are passed over, and what only one side has is not entered.

use std::collections::HashSet;
use std::iter::Peekable;
use std::sync::Arc;

use super::{GuardOptions, MASS, ZimbraSnapshot, sessions};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::ids::GroupId;
use crate::layout::{UNFINISHED, is_inside_a_session};
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, SnapshotView, ViewEntry, ViewError};

/// What the walk found.
#[derive(Default)]
struct Changes {
    /// Link groups of the new snapshot that are files, under a name whose file had another content.
    changed: HashSet<GroupId>,
    /// Names that are gone from inside sessions that are still there.
    gone: u64,
    /// One of them.
    example: Vec<u8>,
}

/// Judges what changed since the last good snapshot.
pub(super) fn judge(
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    zimbra: bool,
    options: &GuardOptions,
    reasons: &mut Vec<SuspectReason>,
) -> Result<(), ViewError> {
    let changes = compare(old, new, zimbra)?;
    if changes.gone > 0 {
        reasons.push(sessions::incomplete(changes.gone, &changes.example));
    }
    let (before, after) = (old.view.record().totals, new.view.record().totals);
    let changed = changes.changed.len() as u64;
    if changed >= MASS && changed as f64 > options.changed_share * before.files as f64 {
        let text = format!(
            "{changed} of {} files were changed in place ({:.0}%; changed-share allows {:.0}%)",
            before.files,
            percent(changed, before.files),
            options.changed_share * 100.0
        );
        reasons.push(SuspectReason { kind: ReasonKind::FilesChanged, text });
    }
    let lost = before.names.saturating_sub(after.names);
    if !zimbra && lost >= MASS && lost as f64 > options.lost_share * before.names as f64 {
        let text = format!(
            "There are {} names, and there were {}: {:.0}% are gone (lost-share allows {:.0}%)",
            after.names,
            before.names,
            percent(lost, before.names),
            options.lost_share * 100.0
        );
        reasons.push(SuspectReason { kind: ReasonKind::NamesGone, text });
    }
    Ok(())
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

/// Two listings of one directory.
struct Level {
    old: Peekable<Listing>,
    new: Peekable<Listing>,
    /// Length of the directory's path.
    path_length: usize,
}

fn level(
    old: &SnapshotView,
    new: &SnapshotView,
    left: &DirectoryNode,
    right: &DirectoryNode,
    path_length: usize,
) -> Result<Option<Level>, ViewError> {
    if Arc::ptr_eq(left, right) || left.body == right.body {
        return Ok(None);
    }
    Ok(Some(Level { old: old.list(left)?.peekable(), new: new.list(right)?.peekable(), path_length }))
}

fn compare(old: &ZimbraSnapshot, new: &ZimbraSnapshot, zimbra: bool) -> Result<Changes, ViewError> {
    let mut changes = Changes::default();
    let mut path: Vec<u8> = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    levels.extend(level(&old.view, &new.view, &old.root, &new.root, 0)?);
    while let Some(Level { old: left, new: right, path_length }) = levels.last_mut() {
        path.truncate(*path_length);
        let Some(before) = left.next().transpose()? else {
            levels.pop();
            continue;
        };
        let after = matching(right, &before.name)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&before.name);
        // Changes are the rule where Zimbra writes.
        if zimbra && UNFINISHED.iter().any(|name| name.as_bytes() == path) {
            continue;
        }
        match (before.node, after.map(|entry| entry.node)) {
            (node, None) if zimbra && is_inside_a_session(&path) => {
                if new.leaves_out(&path, matches!(node, Node::Directory(_))) {
                    continue;
                }
                changes.gone += 1;
                if changes.example.is_empty() {
                    changes.example.clone_from(&path);
                }
            }
            (Node::Group(before), Some(Node::Group(after)))
                if before != after && !changes.changed.contains(&after) && is_changed(old, new, before, after)? =>
            {
                changes.changed.insert(after);
            }
            (Node::Directory(left), Some(Node::Directory(right))) => {
                levels.extend(level(&old.view, &new.view, &left, &right, path.len())?);
            }
            _ => {}
        }
    }
    Ok(changes)
}

/// Returns the entry of that name, which both sides list in order.
pub(super) fn matching(listing: &mut Peekable<Listing>, name: &[u8]) -> Result<Option<ViewEntry>, ViewError> {
    while let Some(entry) = listing.next_if(|entry| entry.as_ref().map_or(true, |entry| *entry.name <= *name)) {
        let entry = entry?;
        if *entry.name == *name {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Returns whether two link groups of one name are files of different content. One that could not be read proves nothing.
fn is_changed(old: &ZimbraSnapshot, new: &ZimbraSnapshot, before: GroupId, after: GroupId) -> Result<bool, ViewError> {
    use crate::catalog::group::Content::Unreadable;
    let (left, right) = (old.view.group(before)?, new.view.group(after)?);
    let files = left.attributes.kind == Kind::File && right.attributes.kind == Kind::File;
    let read = !matches!(left.content, Unreadable(_)) && !matches!(right.content, Unreadable(_));
    Ok(files && read && (left.attributes.size != right.attributes.size || left.content != right.content))
}
