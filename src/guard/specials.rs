//! Device nodes and files with a set-user-ID or set-group-ID bit: no backup of Zimbra has them, and a restore by root would bring them to life.
//!
//! Both trees are walked together, and what is new is entered: a row is read for each name that the last good snapshot does not have, or has of another inode.

use std::iter::Peekable;
use std::sync::Arc;

use super::changes::matching;
use super::{LISTED, ZimbraSnapshot, counted, shown};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::ids::GroupId;
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, SnapshotView, ViewError};

/// Set-user-ID and set-group-ID.
const SET_ID_BITS: u32 = 0o6000;

struct Level {
    old: Option<Peekable<Listing>>,
    new: Listing,
    /// Length of the directory's path.
    path_length: usize,
}

/// Reports what the last good snapshot did not have.
pub(super) fn judge(
    old: Option<&ZimbraSnapshot>,
    new: &ZimbraSnapshot,
    reasons: &mut Vec<SuspectReason>,
) -> Result<(), ViewError> {
    let (count, first) = found(old, new)?;
    if count > 0 {
        let names = counted(count, "name", "names");
        let rest = if count > first.len() as u64 { ", ..." } else { "" };
        let text = format!(
            "{names} of device nodes, or of files with a set-user-ID or set-group-ID bit, which do not belong in a Zimbra backup: {}{rest} \
             (restore --no-specials leaves them out)",
            first.join(", ")
        );
        reasons.push(SuspectReason { kind: ReasonKind::Specials, text });
    }
    Ok(())
}

/// Counts the names, and returns the first of them.
fn found(old: Option<&ZimbraSnapshot>, new: &ZimbraSnapshot) -> Result<(u64, Vec<String>), ViewError> {
    let (mut count, mut first) = (0, Vec::new());
    let mut path: Vec<u8> = Vec::new();
    let root = old.map(|side| &side.root);
    let mut levels: Vec<Level> = level(old, new, root, &new.root, 0)?.into_iter().collect();
    while let Some(Level { old: left, new: right, path_length }) = levels.last_mut() {
        path.truncate(*path_length);
        let Some(entry) = right.next().transpose()? else {
            levels.pop();
            continue;
        };
        let before = match left {
            Some(left) => matching(left, &entry.name)?.map(|entry| entry.node),
            None => None,
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        match (before, entry.node) {
            (Some(Node::Group(before)), Node::Group(after)) if before == after => {}
            (before, Node::Group(after)) => {
                let had = match (before, old) {
                    (Some(Node::Group(before)), Some(old)) => is_special(&old.view, before)?,
                    _ => false,
                };
                if !had && is_special(&new.view, after)? {
                    count += 1;
                    if first.len() < LISTED {
                        first.push(shown(&path));
                    }
                }
            }
            (Some(Node::Directory(left)), Node::Directory(right)) => {
                levels.extend(level(old, new, Some(&left), &right, path.len())?);
            }
            (_, Node::Directory(right)) => levels.extend(level(old, new, None, &right, path.len())?),
        }
    }
    Ok((count, first))
}

fn level(
    old: Option<&ZimbraSnapshot>,
    new: &ZimbraSnapshot,
    left: Option<&DirectoryNode>,
    right: &DirectoryNode,
    path_length: usize,
) -> Result<Option<Level>, ViewError> {
    if left.is_some_and(|left| Arc::ptr_eq(left, right) || left.body == right.body) {
        return Ok(None);
    }
    let old = match (old, left) {
        (Some(old), Some(left)) => Some(old.view.list(left)?.peekable()),
        _ => None,
    };
    Ok(Some(Level { old, new: new.view.list(right)?, path_length }))
}

fn is_special(view: &SnapshotView, group: GroupId) -> Result<bool, ViewError> {
    let row = view.group(group)?;
    Ok(match row.attributes.kind {
        Kind::CharDevice | Kind::BlockDevice => true,
        Kind::File => row.attributes.mode & SET_ID_BITS != 0,
        _ => false,
    })
}
