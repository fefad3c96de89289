//! The rules of [`ImmutableTree`] as a check that walks a whole tree.

use std::collections::HashMap;

use crate::{Errno, FileAttributes, FileKind, ImmutableTree, ListedEntry, ROOT, TreeError};

/// A rule that a tree breaks, or the error that kept the check from going on.
#[derive(Debug, thiserror::Error)]
#[error("Inode {inode}: {rule}")]
pub struct ContractViolation {
    /// The inode it was seen at.
    pub inode: u64,
    /// The rule.
    pub rule: String,
}

/// Bytes of one read of the check: odd, so that reads end within pieces.
const READ_BYTES: u32 = 65_521;

/// Walks the whole tree and confirms that its answers agree with each other. Returns the number of names.
///
/// Checked are: one inode number and one set of attributes for all names of an inode, link counts as counted, listings that can be resumed at any cookie,
/// look-ups that agree with listings, reads that add up to the size whatever their lengths, errors where the rules require them.
///
/// # Errors
/// The first rule that is broken.
pub fn check_contract(tree: &impl ImmutableTree) -> Result<u64, ContractViolation> {
    let root = tree.attributes(ROOT).map_err(failed(ROOT, "attributes"))?;
    ensure(
        root.kind == FileKind::Directory && root.inode == ROOT,
        ROOT,
        "the root is a directory with the inode number 1",
    )?;
    let above = tree.parent(ROOT).map_err(failed(ROOT, "parent"))?;
    ensure(above == ROOT, ROOT, "the root stands in itself")?;
    let mut seen: HashMap<u64, (FileAttributes, u32)> = HashMap::new();
    let mut waiting = vec![ROOT];
    let mut names = 0;
    while let Some(directory) = waiting.pop() {
        for (name, inode, kind) in listing(tree, directory)? {
            names += 1;
            let found = tree.lookup(directory, &name).map_err(failed(directory, "lookup of a listed name"))?;
            ensure(found.inode == inode && found.kind == kind, inode, "lookup and list agree")?;
            let attributes = tree.attributes(inode).map_err(failed(inode, "attributes"))?;
            ensure(attributes == found, inode, "lookup and attributes agree")?;
            ensure(
                attributes.mode <= 0o7777 && attributes.mtime_nanos < 1_000_000_000,
                inode,
                "attributes are in range",
            )?;
            let first = !seen.contains_key(&inode);
            let (before, count) = seen.entry(inode).or_insert((attributes, 0));
            ensure(*before == attributes, inode, "all names of an inode have the same attributes")?;
            *count += 1;
            if kind == FileKind::Directory {
                ensure(first && inode != ROOT, inode, "a directory has one name")?;
                let parent = tree.parent(inode).map_err(failed(inode, "parent"))?;
                ensure(parent == directory, inode, "the parent of a directory is where it is listed")?;
                waiting.push(inode);
            }
            if first {
                check_inode(tree, &attributes)?;
            }
        }
    }
    for (inode, (attributes, count)) in seen {
        if attributes.kind != FileKind::Directory {
            ensure(attributes.link_count == count, inode, "the link count is the number of names in the tree")?;
        }
    }
    Ok(names)
}

/// Lists a directory whole, and again resumed at every entry.
fn listing(tree: &impl ImmutableTree, directory: u64) -> Result<Vec<(Vec<u8>, u64, FileKind)>, ContractViolation> {
    let mut whole = Vec::new();
    let mut cookies = vec![0];
    let mut disagreeing = None;
    tree.list(directory, 0, &mut |entry| {
        whole.push((entry.name.to_vec(), entry.inode, entry.kind));
        if entry.attributes.is_none_or(|listed| tree.attributes(entry.inode).is_ok_and(|found| found != listed)) {
            disagreeing = Some(entry.inode);
        }
        cookies.push(entry.next_cookie);
        true
    })
    .map_err(failed(directory, "list"))?;
    ensure(disagreeing.is_none(), disagreeing.unwrap_or_default(), "listed attributes are those of the inode")?;
    for (name, ..) in &whole {
        let single = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0);
        ensure(single, directory, "a listed name is one component")?;
    }
    let mut names: Vec<&Vec<u8>> = whole.iter().map(|(name, ..)| name).collect();
    names.sort_unstable();
    names.dedup();
    ensure(names.len() == whole.len(), directory, "a name is listed once")?;
    for (at, cookie) in cookies.iter().enumerate() {
        let mut resumed = None;
        let mut calls = 0;
        tree.list(directory, *cookie, &mut |entry: ListedEntry<'_>| {
            calls += 1;
            resumed = Some((entry.name.to_vec(), entry.inode, entry.kind));
            false
        })
        .map_err(failed(directory, "list from a cookie"))?;
        ensure(calls <= 1, directory, "a listing ends when its visitor says so")?;
        ensure(resumed.as_ref() == whole.get(at), directory, "a listing goes on at its cookie")?;
    }
    let missing = b"there is no such name\xff";
    expect(tree.lookup(directory, missing), Errno::NOENT, directory, "a name that is not there gives ENOENT")?;
    expect(tree.read(directory, 0, &mut [0]), Errno::ISDIR, directory, "reading a directory gives EISDIR")?;
    Ok(whole)
}

fn check_inode(tree: &impl ImmutableTree, attributes: &FileAttributes) -> Result<(), ContractViolation> {
    let inode = attributes.inode;
    let extended = tree.extended_attributes(inode).map_err(failed(inode, "extended attributes"))?;
    ensure(
        extended.is_sorted_by(|left, right| left.name < right.name),
        inode,
        "extended attributes are sorted by name",
    )?;
    for attribute in &extended {
        let value = tree.extended_attribute(inode, &attribute.name).map_err(failed(inode, "an extended attribute"))?;
        ensure(value == attribute.value, inode, "one extended attribute is as in the list of all")?;
    }
    expect(
        tree.extended_attribute(inode, b"user.\xff none"),
        Errno::NODATA,
        inode,
        "a missing attribute gives ENODATA",
    )?;
    if attributes.kind == FileKind::Symlink {
        let target = tree.readlink(inode).map_err(failed(inode, "readlink"))?;
        ensure(target.len() as u64 == attributes.size, inode, "the size of a symlink is its target's length")?;
    } else {
        expect(tree.readlink(inode), Errno::INVAL, inode, "readlink of another kind gives EINVAL")?;
    }
    if attributes.kind != FileKind::Directory {
        expect(tree.parent(inode), Errno::NOTDIR, inode, "the parent of a file gives ENOTDIR")?;
        expect(tree.lookup(inode, b"name"), Errno::NOTDIR, inode, "lookup in a file gives ENOTDIR")?;
        expect(tree.list(inode, 0, &mut |_| true), Errno::NOTDIR, inode, "listing a file gives ENOTDIR")?;
    }
    if attributes.kind == FileKind::File {
        check_reads(tree, attributes)?;
    }
    Ok(())
}

/// Reads a file in pieces that begin and end anywhere.
fn check_reads(tree: &impl ImmutableTree, attributes: &FileAttributes) -> Result<(), ContractViolation> {
    let (inode, size) = (attributes.inode, attributes.size);
    let read = |offset: u64, length: u32| {
        // What was in the buffer must not show through, holes included.
        let mut bytes = vec![0xa5; length as usize];
        let count = tree.read(inode, offset, &mut bytes).map_err(failed(inode, "read"))?;
        ensure(count <= bytes.len(), inode, "a read gives no more than there is room for")?;
        bytes.truncate(count);
        Ok::<_, ContractViolation>(bytes)
    };
    ensure(read(size, 1)?.is_empty(), inode, "a read at the end is empty")?;
    ensure(read(size.saturating_add(1 << 40), 1)?.is_empty(), inode, "a read beyond the end is empty")?;
    // A sparse file can be longer than anyone can read: its front and its back stand for it.
    let end = size.min(64 << 20);
    for (from, to) in [(0, end), (size.saturating_sub(u64::from(READ_BYTES) * 3), size)] {
        let mut at = from;
        while at < to {
            let bytes = read(at, READ_BYTES)?;
            let expected = (size - at).min(u64::from(READ_BYTES));
            ensure(bytes.len() as u64 == expected, inode, "a read is short at the end of the file only")?;
            let middle = bytes.len() / 2;
            let again = read(at + middle as u64, (bytes.len() - middle) as u32)?;
            ensure(again == bytes[middle..], inode, "overlapping reads agree")?;
            at += bytes.len() as u64;
        }
    }
    Ok(())
}

fn ensure(holds: bool, inode: u64, rule: &str) -> Result<(), ContractViolation> {
    if holds { Ok(()) } else { Err(ContractViolation { inode, rule: format!("broken rule: {rule}") }) }
}

fn expect<T>(answer: Result<T, TreeError>, errno: Errno, inode: u64, rule: &str) -> Result<(), ContractViolation> {
    ensure(answer.is_err_and(|error| error.errno == errno), inode, rule)
}

fn failed(inode: u64, what: &'static str) -> impl Fn(TreeError) -> ContractViolation {
    move |error| ContractViolation { inode, rule: format!("{what} failed: {error}") }
}

#[cfg(test)]
#[path = "contract_tests.rs"]
mod tests;
