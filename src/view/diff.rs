//! What differs between two snapshots of one store.
//!
//! Directory objects are shared, so directories with the same body are passed over without being read: the cost follows
//! what differs, not what is there. Link groups are shared too: a name with the same group number on both sides is the
//! same inode with the same content and attributes.
//!
//! Where the number differs, the rows show whether content or attributes differ. When both are equal the inode was replaced by
//! an equal one, and what may differ is which names are linked with each other. Names are counted for each pair of old
//! and new group in a first pass: a pair that has all names of both sides is the old link group under a new number and
//! no difference at all.
//!
//! A name is *not* reported when its inode merely gained or lost other names: those names are.

use std::collections::HashMap;
use std::sync::Arc;

use super::{DirectoryNode, Listing, Node, SnapshotView, ViewEntry, ViewError};
use crate::catalog::group::LinkGroup;
use crate::ids::GroupId;
use crate::model::Kind;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Only the new snapshot has it.
    Added,
    /// Only the old snapshot has it.
    Removed,
    /// The content differs; attributes may too.
    Content,
    /// Only the attributes differ: mode, owner, time, extended attributes, device number.
    Attributes,
    /// Content and attributes are the same; it is linked with other names than before.
    Links,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path, relative to the root; empty for the root itself.
    pub path: Vec<u8>,
    /// How it differs.
    pub change: Change,
}

/// Calls `visit` for every path that differs, depth first, the names of each directory in order. A path whose kind differs is removed and added.
///
/// Both snapshots must be of one store. Memory follows the number of link groups that were replaced, not the number of names.
///
/// # Errors
/// Fails when either snapshot cannot be read, or `visit` fails.
pub fn diff<E: From<ViewError>>(
    old: &SnapshotView,
    new: &SnapshotView,
    mut visit: impl FnMut(Difference) -> Result<(), E>,
) -> Result<(), E> {
    let mut pairs: HashMap<(GroupId, GroupId), u32> = HashMap::new();
    compare::<E>(old, new, &mut |event| {
        if let Event::Regrouped { old: before, new: after, .. } = event {
            *pairs.entry((before, after)).or_default() += 1;
        }
        Ok(())
    })?;
    compare(old, new, &mut |event| match event {
        Event::Differs(difference) => visit(difference),
        Event::Regrouped { path, old: before, new: after } => {
            match regrouped(old, new, before, after, pairs.get(&(before, after)).copied().unwrap_or(0))? {
                Some(change) => visit(Difference { path: path.to_vec(), change }),
                None => Ok(()),
            }
        }
    })
}

/// What the walk over both trees meets.
enum Event<'a> {
    /// A difference that needs no further thought.
    Differs(Difference),
    /// A name of the same kind whose link group has another number.
    Regrouped { path: &'a [u8], old: GroupId, new: GroupId },
}

/// Returns how a name differs whose link group was `before` and is `after`, as `names` names do.
fn regrouped(
    old: &SnapshotView,
    new: &SnapshotView,
    before: GroupId,
    after: GroupId,
    names: u32,
) -> Result<Option<Change>, ViewError> {
    let (left, right) = (old.group(before)?, new.group(after)?);
    if left.attributes.size != right.attributes.size || left.content != right.content {
        return Ok(Some(Change::Content));
    }
    if !same_attributes(&left, &right) {
        return Ok(Some(Change::Attributes));
    }
    let same_names = old.link_count(&Node::Group(before))? == names && new.link_count(&Node::Group(after))? == names;
    Ok((!same_names).then_some(Change::Links))
}

fn same_attributes(left: &LinkGroup, right: &LinkGroup) -> bool {
    let (left, right) = (&left.attributes, &right.attributes);
    (left.mode, left.uid, left.gid, left.mtime, left.rdev, &left.xattrs)
        == (right.mode, right.uid, right.gid, right.mtime, right.rdev, &right.xattrs)
}

type Visit<'v, E> = &'v mut dyn FnMut(Event<'_>) -> Result<(), E>;

/// Two listings of one directory, merged.
struct Level {
    old: std::iter::Peekable<Listing>,
    new: std::iter::Peekable<Listing>,
    /// Length of the directory's path.
    path_length: usize,
}

impl Level {
    /// Returns the next name with what each side has under it.
    fn next(&mut self) -> Result<Option<Merged>, ViewError> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let order = match (self.old.peek(), self.new.peek()) {
            (Some(Ok(left)), Some(Ok(right))) => left.name.cmp(&right.name),
            (None, None) => return Ok(None),
            // An error is taken from the side that has it.
            (Some(Err(_)), _) | (Some(_), None) => Less,
            (_, Some(Err(_))) | (None, Some(_)) => Greater,
        };
        let mut left = if order == Greater { None } else { self.old.next().transpose()? };
        let mut right = if order == Less { None } else { self.new.next().transpose()? };
        debug_assert!(order != Equal || (left.is_some() && right.is_some()));
        let name = left.as_mut().or(right.as_mut()).map(|entry| std::mem::take(&mut entry.name));
        Ok(name.map(|name| Merged { name, old: left.map(node_of), new: right.map(node_of) }))
    }
}

fn node_of(entry: ViewEntry) -> Node {
    entry.node
}

struct Merged {
    name: Box<[u8]>,
    old: Option<Node>,
    new: Option<Node>,
}

fn compare<E: From<ViewError>>(old: &SnapshotView, new: &SnapshotView, visit: Visit<'_, E>) -> Result<(), E> {
    let mut path: Vec<u8> = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    if let (Node::Directory(left), Node::Directory(right)) = (old.root(), new.root()) {
        levels.extend(directories(old, new, &path, &left, &right, visit)?);
    }
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_length);
        let Some(merged) = level.next()? else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&merged.name);
        let deeper = match (merged.old, merged.new) {
            (Some(Node::Group(before)), Some(Node::Group(after))) => {
                if before != after {
                    groups(old, new, &path, before, after, visit)?;
                }
                None
            }
            (Some(Node::Directory(left)), Some(Node::Directory(right))) => {
                directories(old, new, &path, &left, &right, visit)?
            }
            (before, after) => {
                if let Some(node) = before {
                    all_below(old, node, &path, Change::Removed, visit)?;
                }
                if let Some(node) = after {
                    all_below(new, node, &path, Change::Added, visit)?;
                }
                None
            }
        };
        levels.extend(deeper);
    }
    Ok(())
}

/// Compares two link groups of one name.
fn groups<E: From<ViewError>>(
    old: &SnapshotView,
    new: &SnapshotView,
    path: &[u8],
    before: GroupId,
    after: GroupId,
    visit: Visit<'_, E>,
) -> Result<(), E> {
    let kind = |view: &SnapshotView, number| -> Result<Kind, ViewError> { Ok(view.group(number)?.attributes.kind) };
    if kind(old, before)? == kind(new, after)? {
        return visit(Event::Regrouped { path, old: before, new: after });
    }
    visit(Event::Differs(Difference { path: path.to_vec(), change: Change::Removed }))?;
    visit(Event::Differs(Difference { path: path.to_vec(), change: Change::Added }))
}

/// Compares two directories of one path; returns their listings if something in them may differ.
fn directories<E: From<ViewError>>(
    old: &SnapshotView,
    new: &SnapshotView,
    path: &[u8],
    left: &DirectoryNode,
    right: &DirectoryNode,
    visit: Visit<'_, E>,
) -> Result<Option<Level>, E> {
    if Arc::ptr_eq(left, right) {
        return Ok(None);
    }
    if left.attributes != right.attributes {
        visit(Event::Differs(Difference { path: path.to_vec(), change: Change::Attributes }))?;
    }
    if left.body == right.body {
        return Ok(None);
    }
    Ok(Some(Level { old: old.list(left)?.peekable(), new: new.list(right)?.peekable(), path_length: path.len() }))
}

/// Reports a node and everything below it.
fn all_below<E: From<ViewError>>(
    view: &SnapshotView,
    node: Node,
    path: &[u8],
    change: Change,
    visit: Visit<'_, E>,
) -> Result<(), E> {
    for entry in view.walk(node, path.to_vec()) {
        visit(Event::Differs(Difference { path: entry?.path, change }))?;
    }
    Ok(())
}
