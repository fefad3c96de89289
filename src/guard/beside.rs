//! What stands beside `sessions/` in a Zimbra tree: `zextras/`, `ng/`, archives that other programs write.
//!
//! No label says what may go there, so the general rules hold, for each *part* and for all parts together: the size of the sessions must not hide that
//! another tool's backup is gone. A part is a directory of the root. Directories whose names differ only in their digits are one part (`full-20261101`,
//! `full-20261108`), because such sets are rotated: one goes when another comes. The other entries of the root are one part, too. Names that went and names
//! that came are set off against each other, and a directory that was renamed, or moved into a new one, is not gone.
//!
//! What a part has lost or changed is usual, and no alarm, if about as much was lost or changed there twice among the last good snapshots.
//!
//! Cost: the directories that differ, and all names below a directory that is gone. Only if that is a mass, as many names of what came, and of the part as a
//! whole, as decide whether the share is exceeded; and only if it is exceeded, the same for earlier snapshots. Memory: a listing for each level, and 16 bytes
//! for each file while the files of a part are counted.

use std::collections::{BTreeMap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

use super::changes::{changed_in, matching, part_of, percent};
use super::{GuardOptions, MASS, MarkedSnapshot, ZimbraSnapshot, shown};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::ids::GroupId;
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, Readers, ViewError};

/// So many of the last good snapshots are looked at for what is usual: more than two months of nights, so that what
/// happens once a month has happened twice.
const HISTORY: usize = 72;
/// So often an amount must have been seen to be usual: an accident that was accepted is seen once.
const OFTEN: usize = 2;
/// An amount up to this many times an earlier one is about as much: backups grow.
const ABOUT: f64 = 1.5;

/// Judges what was lost and what was changed beside the sessions; `changed` has the files that were changed in place, by part. Returns how many of those are
/// usual, or reported as a reason.
pub(super) fn judge(
    readers: &Readers,
    earlier: &[MarkedSnapshot],
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    changed: &BTreeMap<Vec<u8>, u64>,
    options: &GuardOptions,
    reasons: &mut Vec<SuspectReason>,
) -> Result<u64, ViewError> {
    let history = History { readers, earlier };
    let mut gone: BTreeMap<Option<Vec<u8>>, Gone> = BTreeMap::new();
    each_missing(old, Some(new), None, |found| {
        for part in [Some(found.part.to_vec()), None] {
            gone.entry(part).or_default().add(found);
        }
        Ok(true)
    })?;
    // All parts together come last, and matter only if no part by itself does.
    let all = gone.remove(&None);
    let before = reasons.len();
    for (part, gone) in gone.into_iter().chain(all.map(|all| (None, all))) {
        let part = part.as_deref();
        if part.is_none() && reasons.len() > before {
            continue;
        }
        let Some((lost, of)) = excessive_loss(old, new, part, gone.names, options.lost_share)? else { continue };
        if history.is_usual(lost, |older, newer| net_loss(older, newer, part, None))? {
            continue;
        }
        let unread = match gone.unread {
            0 => String::new(),
            unread => format!("; {unread} of them are in directories that could not be read at the source"),
        };
        let text = format!(
            "{lost} of {of} names are gone {} ({:.0}%; lost-share allows {:.0}%), such as {}{unread}",
            match part {
                None => "beside sessions/".to_owned(),
                Some(part) => format!("from {}", place(part)),
            },
            percent(lost, of),
            options.lost_share * 100.0,
            shown(&gone.example),
        );
        reasons.push(SuspectReason { kind: ReasonKind::NamesGone, text });
    }
    let mut judged = 0;
    for (part, changed) in changed {
        let Some(of) = excess(*changed, options.changed_share, |most| files(old, part, most))? else { continue };
        judged += changed;
        if history.is_usual(*changed, |older, newer| changed_in(older, newer, part))? {
            continue;
        }
        let text = format!(
            "{changed} of {of} files in {} were changed in place ({:.0}%; changed-share allows {:.0}%)",
            place(part),
            percent(*changed, of),
            options.changed_share * 100.0
        );
        reasons.push(SuspectReason { kind: ReasonKind::FilesChanged, text });
    }
    Ok(judged)
}

/// Names that are gone from a part.
#[derive(Default)]
struct Gone {
    names: u64,
    /// Those among them whose directory could not be read at the source.
    unread: u64,
    /// One of them.
    example: Vec<u8>,
}

impl Gone {
    fn add(&mut self, found: &Missing<'_>) {
        if self.names == 0 {
            self.example = found.path.to_vec();
        }
        self.names += 1;
        self.unread += u64::from(found.is_unread);
    }
}

/// Names a part.
fn place(part: &[u8]) -> String {
    match part {
        b"" => "the top directory itself".to_owned(),
        part if part.contains(&b'*') => format!("the directories {}/", shown(part)),
        part => format!("{}/", shown(part)),
    }
}

/// Returns the whole of which an amount is more than a share, and a mass; `count` counts it, up to a number from which on it is not.
fn excess(
    amount: u64,
    share: f64,
    count: impl FnOnce(u64) -> Result<u64, ViewError>,
) -> Result<Option<u64>, ViewError> {
    if amount < MASS {
        return Ok(None);
    }
    // A float as large as that becomes the largest number.
    let most = (amount as f64 / share).ceil() as u64;
    let whole = count(most)?;
    Ok((amount as f64 > share * whole as f64).then_some(whole))
}

/// Returns how many names were lost, and of how many, if that is too many.
fn excessive_loss(
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    part: Option<&[u8]>,
    gone: u64,
    share: f64,
) -> Result<Option<(u64, u64)>, ViewError> {
    if gone < MASS {
        return Ok(None);
    }
    let lost = net_loss(old, new, part, Some(gone))?;
    Ok(excess(lost, share, |most| names(old, None, part, most))?.map(|whole| (lost, whole)))
}

/// Returns how many names went beyond those that came; 0 if that is no mass.
fn net_loss(
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    part: Option<&[u8]>,
    gone: Option<u64>,
) -> Result<u64, ViewError> {
    let gone = match gone {
        Some(gone) => gone,
        None => names(old, Some(new), part, u64::MAX)?,
    };
    if gone < MASS {
        return Ok(0);
    }
    // With as many as this, what is left is no mass.
    let came = names(new, Some(old), part, gone - MASS + 1)?;
    Ok(if gone - came < MASS { 0 } else { gone - came })
}

/// Counts the names of a part, or of all, that are not in another snapshot; without one, all of them.
fn names(from: &ZimbraSnapshot, to: Option<&ZimbraSnapshot>, part: Option<&[u8]>, most: u64) -> Result<u64, ViewError> {
    let mut count = 0;
    each_missing(from, to, part, |_| {
        count += 1;
        Ok(count < most)
    })?;
    Ok(count)
}

/// Counts the files of a part, each once however many names it has.
fn files(side: &ZimbraSnapshot, part: &[u8], most: u64) -> Result<u64, ViewError> {
    let mut seen: HashSet<GroupId> = HashSet::new();
    let mut count = 0;
    each_missing(side, None, Some(part), |found| {
        if let Node::Group(group) = found.node
            && seen.insert(*group)
        {
            count += u64::from(side.view.group(*group)?.attributes.kind == Kind::File);
        }
        Ok(count < most)
    })?;
    Ok(count)
}

/// A name that one snapshot has and another has not.
struct Missing<'a> {
    part: &'a [u8],
    path: &'a [u8],
    node: &'a Node,
    /// Whether it may be there all the same, in a directory that could not be read at the source.
    is_unread: bool,
}

/// Two listings of one directory; without the other, nothing below it is there.
struct Level {
    from: Listing,
    to: Option<Peekable<Listing>>,
    /// Length of the directory's path.
    path_length: usize,
    /// Whether the other snapshot's directory, or one above it, could not be read at the source.
    is_unread: bool,
}

/// Visits each name of a part, or of all parts, that is in one snapshot and not in another; without another, each name. Ends when `visit` returns
/// false.
fn each_missing(
    from: &ZimbraSnapshot,
    to: Option<&ZimbraSnapshot>,
    wanted: Option<&[u8]>,
    mut visit: impl FnMut(&Missing<'_>) -> Result<bool, ViewError>,
) -> Result<(), ViewError> {
    let mut path: Vec<u8> = Vec::new();
    let mut part: Vec<u8> = Vec::new();
    let other = to.map(|to| to.view.list(&to.root)).transpose()?.map(Iterator::peekable);
    let mut levels = vec![Level { from: from.view.list(&from.root)?, to: other, path_length: 0, is_unread: false }];
    loop {
        let depth = levels.len();
        let Some(Level { from: left, to: right, path_length, is_unread }) = levels.last_mut() else { return Ok(()) };
        path.truncate(*path_length);
        let Some(entry) = left.next().transpose()? else {
            levels.pop();
            continue;
        };
        let is_directory = matches!(entry.node, Node::Directory(_));
        if depth == 1 {
            match part_of(&entry.name, is_directory) {
                Some(own) if wanted.is_none_or(|wanted| own == wanted) => part = own,
                _ => continue,
            }
        }
        let after = match right {
            Some(right) => matching(right, &entry.name)?.map(|entry| entry.node),
            None => None,
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let is_unread = *is_unread;
        if after.is_none() {
            if to.is_some_and(|to| to.leaves_out(&path, is_directory)) {
                continue;
            }
            if let (1, Node::Directory(directory), Some(to)) = (depth, &entry.node, to)
                && is_moved(from, to, directory)?
            {
                continue;
            }
            if !visit(&Missing { part: &part, path: &path, node: &entry.node, is_unread })? {
                return Ok(());
            }
        }
        let Node::Directory(directory) = entry.node else { continue };
        let (other, is_unread) = match (after, to) {
            (Some(Node::Directory(after)), Some(to)) => {
                if Arc::ptr_eq(&directory, &after) || directory.body == after.body {
                    continue;
                }
                let is_unread = is_unread || after.attributes.unreadable.is_some();
                (Some(to.view.list(&after)?.peekable()), is_unread)
            }
            _ => (None, is_unread),
        };
        levels.push(Level { from: from.view.list(&directory)?, to: other, path_length: path.len(), is_unread });
    }
}

/// Returns whether a directory of one snapshot's root, with all that is in it, is under another name in the root of the other, or in a directory that is
/// new there.
fn is_moved(from: &ZimbraSnapshot, to: &ZimbraSnapshot, directory: &DirectoryNode) -> Result<bool, ViewError> {
    for entry in to.view.list(&to.root)? {
        let entry = entry?;
        let Node::Directory(candidate) = &entry.node else { continue };
        if from.view.lookup(&from.root, &entry.name)?.is_some() {
            continue;
        }
        if candidate.body == directory.body {
            return Ok(true);
        }
        for below in to.view.list(candidate)? {
            if matches!(below?.node, Node::Directory(below) if below.body == directory.body) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The good snapshots before the one that is judged.
struct History<'a> {
    readers: &'a Readers,
    earlier: &'a [MarkedSnapshot],
}

impl History<'_> {
    /// Returns whether about as much was seen often enough from one good snapshot to the next.
    fn is_usual(
        &self,
        amount: u64,
        measure: impl Fn(&ZimbraSnapshot, &ZimbraSnapshot) -> Result<u64, ViewError>,
    ) -> Result<bool, ViewError> {
        let mut good = self.earlier.iter().rev().filter(|snapshot| !snapshot.is_suspect()).take(HISTORY);
        let Some(newest) = good.next() else { return Ok(false) };
        let mut newer = ZimbraSnapshot::open(self.readers, &newest.record)?;
        let mut seen = 0;
        for snapshot in good {
            let older = ZimbraSnapshot::open(self.readers, &snapshot.record)?;
            seen += usize::from(amount as f64 <= ABOUT * measure(&older, &newer)? as f64);
            if seen == OFTEN {
                return Ok(true);
            }
            newer = older;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_counted_only_as_far_as_it_matters() {
        let count = |whole: u64| move |most: u64| Ok(whole.min(most));
        assert!(matches!(excess(99, 0.5, count(100)), Ok(None)), "no mass");
        assert!(matches!(excess(100, 0.5, count(199)), Ok(Some(199))));
        assert!(matches!(excess(100, 0.5, count(200)), Ok(None)));
        assert!(matches!(excess(100, 0.5, count(u64::MAX)), Ok(None)));
        assert!(matches!(excess(100, 0.0, count(1 << 40)), Ok(Some(_))), "nothing may go");
        assert!(matches!(excess(100, 1.0, count(100)), Ok(None)), "all may go");
    }
}
