//! What one full session holds of one account.
//!
//! Facts follow from the account's directory and the session's shared messages alone, so they are known again by the numbers of their catalogue
//! objects: what did not change from one snapshot to the next is not looked at again. `ldap_latest.xml`, which every incremental links anew, is left out of
//! that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blob::{BlobName, DigestKey, last_component, shared_digest, shared_path};
use super::input::{ZipReader, store_error};
use crate::catalog::directory::{Body, Directory};
use crate::catalog::group::Content;
use crate::ids::GroupId;
use crate::layout::xml::{ROOT, read_meta};
use crate::view::{DirectoryNode, FileInput, InputFailure, Node, SnapshotView, ViewError, display_path};

/// Most examples that are kept of one kind of fault in one directory.
const EXAMPLES: usize = 3;
/// Renewed every night by a hard link. It matters only where [`LDAP`], which stands before it in a listing, is missing: a restore takes either.
const LATEST_LDAP: &[u8] = b"ldap_latest.xml";
const LDAP: &[u8] = b"ldap.xml";

/// Identifies facts: a hash over the numbers of the objects that they follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FactsKey(pub(super) [u8; 16]);

/// Identifies the shared messages of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct SharedKey(pub(super) [u8; 16]);

/// What meta.xml says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Meta {
    /// There is none: the account's backup was not finished.
    Absent,
    /// It cannot be read, or does not say what it should.
    Damaged(String),
    /// The redo log from which on changes must be replayed, and when the account's backup ended.
    Read {
        redo_sequence: u64,
        end: Option<jiff::Timestamp>,
        /// What is wrong with the file all the same: Zimbra may be less lenient.
        remark: Option<String>,
    },
}

/// A number of things, and some of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) count: u64,
    pub(super) examples: Vec<String>,
}

impl Counted {
    /// Returns the examples, and how many more there are.
    pub(super) fn described(&self) -> String {
        let more = self.count - self.examples.len() as u64;
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{rest}", self.examples.join(", "))
    }

    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// What one full session holds of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) meta: Meta,
    /// Whether the dump of the account's tables is there.
    pub(super) has_database: bool,
    /// Whether the account's LDAP data is there.
    pub(super) has_ldap: bool,
    /// Blobs in the account's own directory or zips, placeholders included.
    pub(super) messages: u64,
    /// Placeholders among them whose message the session does not hold.
    pub(super) missing: Counted,
    /// Files that the source could not read, so that the snapshot has no bytes of them.
    pub(super) unreadable: Counted,
    /// Zips whose directory cannot be read.
    pub(super) bad_zips: Counted,
}

/// Returns what identifies the facts of an account's directory.
pub(super) fn facts_key(
    view: &SnapshotView,
    directory: &DirectoryNode,
    shared: SharedKey,
) -> Result<FactsKey, ViewError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&shared.0);
    hash_attributes(&mut hasher, directory);
    let mut has_ldap = false;
    for entry in view.list(directory)? {
        let entry = entry?;
        has_ldap |= *entry.name == *LDAP;
        if has_ldap && *entry.name == *LATEST_LDAP {
            continue;
        }
        hash_name(&mut hasher, &entry.name);
        match &entry.node {
            Node::Group(number) => hash_number(&mut hasher, b'g', number.0),
            Node::Directory(below) => hash_directory(&mut hasher, below),
        }
    }
    Ok(FactsKey(short(&hasher)))
}

/// Returns what identifies the shared messages of a session.
pub(super) fn shared_key(shared: Option<&DirectoryNode>) -> SharedKey {
    let Some(directory) = shared else { return SharedKey::default() };
    let mut hasher = blake3::Hasher::new();
    hash_directory(&mut hasher, directory);
    SharedKey(short(&hasher))
}

fn short(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

fn hash_number(hasher: &mut blake3::Hasher, mark: u8, number: u64) {
    hasher.update(&[mark]);
    hasher.update(&number.to_le_bytes());
}

fn hash_name(hasher: &mut blake3::Hasher, name: &[u8]) {
    hash_number(hasher, b'n', name.len() as u64);
    hasher.update(name);
}

fn hash_attributes(hasher: &mut blake3::Hasher, directory: &Directory) {
    hash_number(hasher, b'u', directory.attributes.unreadable.map_or(0, u64::from));
}

fn hash_directory(hasher: &mut blake3::Hasher, directory: &Directory) {
    hash_attributes(hasher, directory);
    match &directory.body {
        Body::Page(number) => hash_number(hasher, b'p', number.0),
        Body::Index(number) => hash_number(hasher, b'i', number.0),
        // The nesting of inline directories is bounded, and so is this recursion.
        Body::Inline(entries) => {
            hash_number(hasher, b'f', entries.len() as u64);
            for entry in entries {
                hash_name(hasher, &entry.name);
                match &entry.node {
                    Node::Group(number) => hash_number(hasher, b'g', number.0),
                    Node::Directory(below) => hash_directory(hasher, below),
                }
            }
        }
    }
}

/// The shared messages that a session holds: 16 bytes each.
#[derive(Debug, Default)]
pub(super) struct SharedMessages {
    keys: Vec<DigestKey>,
    /// Zips whose directory cannot be read.
    bad_zips: Counted,
    /// Files that the source could not read.
    unreadable: Counted,
}

impl SharedMessages {
    /// Returns what is wrong with them as a whole, in words.
    pub(super) fn remarks(&self) -> Vec<String> {
        let remark = |what: &str, counted: &Counted| {
            (counted.count > 0).then(|| format!("{} {what} in shared_blobs: {}", counted.count, counted.described()))
        };
        let lines =
            [remark("damaged zips", &self.bad_zips), remark("files that the source could not read", &self.unreadable)];
        lines.into_iter().flatten().collect()
    }

    /// Lists the shared messages: individual files, and entries of zips.
    ///
    /// # Errors
    /// Fails when a directory cannot be read.
    pub(super) fn read(view: &SnapshotView, directory: Option<&DirectoryNode>) -> Result<SharedMessages, ViewError> {
        let mut found = SharedMessages::default();
        let Some(directory) = directory else { return Ok(found) };
        let mut zips = ZipReader::default();
        for entry in view.walk(Node::Directory(Arc::clone(directory)), Vec::new()) {
            let entry = entry?;
            let Node::Group(group) = entry.node else { continue };
            let row = view.group(group)?;
            if matches!(row.content, Content::Unreadable(_)) {
                found.unreadable.add(|| display_path(&entry.path));
            } else if let Some(digest) = shared_digest(&entry.path) {
                // A message is never empty.
                if row.attributes.size > 0 {
                    found.keys.push(DigestKey::of(digest));
                }
            } else if is_zip(&entry.path) {
                let keys = &mut found.keys;
                let read = zips.entries(view, group, |path, size| {
                    if let Some(digest) = shared_digest(path).filter(|_| size > 0) {
                        keys.push(DigestKey::of(digest));
                    }
                })?;
                if let Some(reason) = read {
                    found.bad_zips.add(|| format!("{}: {reason}", display_path(&entry.path)));
                }
            }
        }
        found.keys.sort_unstable();
        found.keys.dedup();
        Ok(found)
    }

    fn holds(&self, digest: &[u8]) -> bool {
        self.keys.binary_search(&DigestKey::of(digest)).is_ok()
    }
}

fn is_zip(path: &[u8]) -> bool {
    path.ends_with(b".zip")
}

/// Looks at all that a session holds of an account.
///
/// # Errors
/// Fails when the store cannot be read.
pub(super) fn gather(
    view: &SnapshotView,
    directory: &DirectoryNode,
    shared: &SharedMessages,
    zips: &mut ZipReader,
) -> Result<Facts, ViewError> {
    let mut facts = Facts {
        meta: Meta::Absent,
        has_database: false,
        has_ldap: false,
        messages: 0,
        missing: Counted::default(),
        unreadable: Counted::default(),
        bad_zips: Counted::default(),
    };
    if directory.attributes.unreadable.is_some() {
        facts.unreadable.add(|| "the directory itself".to_owned());
    }
    for entry in view.list(directory)? {
        let entry = entry?;
        if facts.has_ldap && *entry.name == *LATEST_LDAP {
            continue;
        }
        match (&*entry.name, &entry.node) {
            (b"meta.xml", Node::Group(group)) => facts.meta = read_meta_of(view, *group)?,
            (LDAP | LATEST_LDAP, Node::Group(_)) => facts.has_ldap = true,
            (b"db", Node::Directory(tables)) => facts.has_database = view.list(tables)?.next().is_some(),
            _ => {}
        }
        let is_blobs = *entry.name == *b"blobs";
        for below in view.walk(entry.node, entry.name.to_vec()) {
            let below = below?;
            match &below.node {
                Node::Directory(directory) => {
                    if directory.attributes.unreadable.is_some() {
                        facts.unreadable.add(|| display_path(&below.path));
                    }
                }
                Node::Group(group) => file(view, &mut facts, &below.path, *group, is_blobs, shared, zips)?,
            }
        }
    }
    Ok(facts)
}

fn file(
    view: &SnapshotView,
    facts: &mut Facts,
    path: &[u8],
    group: GroupId,
    is_blobs: bool,
    shared: &SharedMessages,
    zips: &mut ZipReader,
) -> Result<(), ViewError> {
    let row = view.group(group)?;
    if matches!(row.content, Content::Unreadable(_)) {
        facts.unreadable.add(|| display_path(path));
        return Ok(());
    }
    if !is_blobs {
        return Ok(());
    }
    if is_zip(path) {
        let Facts { messages, missing, .. } = facts;
        let read = zips.entries(view, group, |entry, size| {
            blob(last_component(entry), size, messages, missing, shared);
        })?;
        if let Some(reason) = read {
            facts.bad_zips.add(|| format!("{}: {reason}", display_path(path)));
        }
    } else {
        let Facts { messages, missing, .. } = facts;
        blob(last_component(path), row.attributes.size, messages, missing, shared);
    }
    Ok(())
}

/// Counts a blob, and looks up the message of a placeholder.
fn blob(name: &[u8], size: u64, messages: &mut u64, missing: &mut Counted, shared: &SharedMessages) {
    let Some(name) = BlobName::parse(name) else { return };
    *messages += 1;
    if size == 0 && name.is_shared() && !shared.holds(name.digest) {
        missing.add(|| shared_path(name.digest));
    }
}

fn read_meta_of(view: &SnapshotView, group: GroupId) -> Result<Meta, ViewError> {
    let failure = InputFailure::default();
    let read = read_meta(FileInput::new(view, group, &failure));
    store_error(&failure)?;
    Ok(match read {
        Err(error) => Meta::Damaged(error.to_string()),
        Ok(file) => match file.redo_sequence {
            Some(redo_sequence) => Meta::Read { redo_sequence, end: file.end, remark: file.reading.remark(ROOT) },
            None => {
                let why = file.reading.remark(ROOT);
                Meta::Damaged(why.unwrap_or_else(|| "it names no redo sequence number".to_owned()))
            }
        },
    })
}
