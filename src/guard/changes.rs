//! What changed in place, and what is gone, in directories that both snapshots have.
//!
//! Both trees are walked together. Directories with the same body are passed over, and what only one side has is not entered.

use std::collections::{BTreeMap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

use super::{GuardOptions, MASS, ZimbraSnapshot, sessions};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::ids::GroupId;
use crate::layout::{SESSIONS, UNFINISHED, is_inside_a_session};
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, SnapshotView, ViewEntry, ViewError};

/// What the walk found.
#[derive(Default)]
pub(super) struct Changes {
    /// Link groups of the new snapshot that are files, under a name whose file had another content.
    changed: HashSet<GroupId>,
    /// How many of them stand beside the sessions of a Zimbra tree, by part.
    pub(super) changed_beside: BTreeMap<Vec<u8>, u64>,
    /// Names that are gone from inside sessions that are still there.
    gone: u64,
    /// One of them.
    example: Vec<u8>,
}

/// Returns the part that an entry of the root belongs to: its name with `*` for digits, or nothing if it is no directory; `None` for where Zimbra keeps its
/// sessions.
pub(super) fn part_of(name: &[u8], is_directory: bool) -> Option<Vec<u8>> {
    if name == SESSIONS.as_bytes() || UNFINISHED.iter().any(|unfinished| unfinished.as_bytes() == name) {
        return None;
    }
    let mut part = Vec::new();
    for byte in name.iter().filter(|_| is_directory) {
        let byte = if byte.is_ascii_digit() { b'*' } else { *byte };
        if byte != b'*' || part.last() != Some(&b'*') {
            part.push(byte);
        }
    }
    Some(part)
}

/// Judges what changed since the last good snapshot; so many of the files that changed are judged already.
pub(super) fn judge(
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    zimbra: bool,
    changes: &Changes,
    judged: u64,
    options: &GuardOptions,
    reasons: &mut Vec<SuspectReason>,
) {
    if changes.gone > 0 {
        reasons.push(sessions::incomplete(changes.gone, &changes.example));
    }
    let (before, after) = (old.view.record().totals, new.view.record().totals);
    let changed = changes.changed.len() as u64 - judged;
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
}

/// Counts the files of a part beside the sessions that were changed in place.
pub(super) fn changed_in(old: &ZimbraSnapshot, new: &ZimbraSnapshot, part: &[u8]) -> Result<u64, ViewError> {
    let changes = compare(old, new, true, Some(part))?;
    Ok(changes.changed_beside.get(part).copied().unwrap_or_default())
}

pub(super) fn percent(part: u64, whole: u64) -> f64 {
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

/// Walks both trees; of a Zimbra tree only a part beside the sessions, if one is named.
pub(super) fn compare(
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    zimbra: bool,
    wanted: Option<&[u8]>,
) -> Result<Changes, ViewError> {
    let mut changes = Changes::default();
    // That of the entry of the root at which the walk is.
    let mut part: Option<Vec<u8>> = None;
    let mut path: Vec<u8> = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    levels.extend(level(&old.view, &new.view, &old.root, &new.root, 0)?);
    loop {
        let depth = levels.len();
        let Some(Level { old: left, new: right, path_length }) = levels.last_mut() else { return Ok(changes) };
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
        if zimbra && depth == 1 {
            part = part_of(&before.name, matches!(before.node, Node::Directory(_)));
            if wanted.is_some() && part.as_deref() != wanted {
                continue;
            }
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
                if let Some(part) = &part {
                    *changes.changed_beside.entry(part.clone()).or_default() += 1;
                }
            }
            (Node::Directory(left), Some(Node::Directory(right))) => {
                levels.extend(level(&old.view, &new.view, &left, &right, path.len())?);
            }
            _ => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_are_rotated_are_one_part() {
        let part = |name: &str| part_of(name.as_bytes(), true).map(|part| String::from_utf8(part).unwrap());
        assert_eq!(part("full-20261101.010000"), part("full-20261108.010001"));
        assert_eq!(part("full-20261101").as_deref(), Some("full-*"));
        assert_eq!(part("zextras").as_deref(), Some("zextras"));
        assert_eq!([part("sessions"), part("tmp"), part("sessions_tmp")], [None, None, None]);
        assert_eq!(part_of(b"user1.tgz", false), Some(Vec::new()));
        assert_eq!(part_of(b"sessions", false), None, "also where a file or a link has taken the place");
    }
}
