//! The naive copy that snapshots are compared with: a tree read through `std::fs`, or through a view, in a form that can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use zmreplica::ids::GroupId;
use zmreplica::model::Kind;
use zmreplica::replica::Replica;
use zmreplica::view::{Node, SnapshotView, StoredSnapshot, ViewError, ViewOptions};

/// One name of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// Bytes of a file, target of a symbolic link, nothing for others.
    pub content: Arc<[u8]>,
    /// The first of all names of this inode, in order; of a directory its own.
    pub first_name: Vec<u8>,
    /// Names of the inode in this tree; 0 for a directory.
    pub links: u32,
}

/// A tree, by path relative to its root, which has the empty path.
pub type Tree = BTreeMap<Vec<u8>, Item>;

struct Raw {
    item: Item,
    inode: u64,
}

/// Turns inode numbers, which differ between a source and a replica, into the partition of names that they make.
fn partition(raw: BTreeMap<Vec<u8>, Raw>) -> Tree {
    let mut first: HashMap<u64, (Vec<u8>, u32)> = HashMap::new();
    for (path, Raw { item, inode }) in &raw {
        if item.kind != 'd' {
            first.entry(*inode).or_insert_with(|| (path.clone(), 0)).1 += 1;
        }
    }
    raw.into_iter()
        .map(|(path, Raw { mut item, inode })| {
            let (name, links) = if item.kind == 'd' { (path.clone(), 0) } else { first[&inode].clone() };
            (item.first_name, item.links) = (name, links);
            (path, item)
        })
        .collect()
}

/// Reads a tree of the file system.
pub fn of_directory(root: &Path) -> Tree {
    fn visit(root: &Path, path: Vec<u8>, out: &mut BTreeMap<Vec<u8>, Raw>) {
        let full = root.join(std::ffi::OsStr::from_bytes(&path));
        let metadata = fs::symlink_metadata(&full).unwrap();
        let file_type = metadata.file_type();
        let (kind, content) = if file_type.is_dir() {
            ('d', Vec::new())
        } else if file_type.is_symlink() {
            ('l', fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec())
        } else if file_type.is_fifo() {
            ('p', Vec::new())
        } else {
            ('-', fs::read(&full).unwrap())
        };
        let item = Item {
            kind,
            mode: metadata.permissions().mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            content: content.into(),
            first_name: Vec::new(),
            links: 0,
        };
        out.insert(path.clone(), Raw { item, inode: metadata.ino() });
        if kind == 'd' {
            for entry in fs::read_dir(&full).unwrap() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(entry.unwrap().file_name().as_bytes());
                visit(root, below, out);
            }
        }
    }
    let mut raw = BTreeMap::new();
    visit(root, Vec::new(), &mut raw);
    partition(raw)
}

/// Opens a view of a snapshot.
pub fn view(replica: &Replica, snapshot: &StoredSnapshot) -> Result<SnapshotView, ViewError> {
    let (catalog, chunks) = (Arc::new(replica.catalog()?), Arc::new(replica.chunks()));
    SnapshotView::open(catalog, chunks, snapshot.record.clone(), ViewOptions { cache_bytes: 8 << 20 })
}

/// Reads a snapshot. The view's own link counts are compared with the partition.
pub fn of_snapshot(replica: &Replica, snapshot: &StoredSnapshot) -> Result<Tree, ViewError> {
    let view = view(replica, snapshot)?;
    let mut raw = BTreeMap::new();
    let mut contents: HashMap<GroupId, Arc<[u8]>> = HashMap::new();
    let mut counts = Vec::new();
    for entry in view.walk(view.root(), Vec::new()) {
        let entry = entry?;
        let attributes = view.attributes(&entry.node)?;
        let (inode, content) = match &entry.node {
            Node::Directory(_) => (0, Arc::default()),
            Node::Group(group) => {
                counts.push((entry.path.clone(), view.link_count(&entry.node)?));
                let content = match contents.get(group) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let bytes = match attributes.kind {
                            Kind::File => view.read(*group, 0, attributes.size as usize)?,
                            Kind::Symlink => view.readlink(*group)?,
                            _ => Vec::new(),
                        };
                        let bytes: Arc<[u8]> = bytes.into();
                        contents.insert(*group, Arc::clone(&bytes));
                        bytes
                    }
                };
                (group.0, content)
            }
        };
        let item = Item {
            kind: attributes.kind.letter(),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: (attributes.mtime.seconds, attributes.mtime.nanos),
            content,
            first_name: Vec::new(),
            links: 0,
        };
        raw.insert(entry.path, Raw { item, inode });
    }
    let tree = partition(raw);
    for (path, count) in counts {
        assert_eq!(tree[&path].links, count, "link count of {}", path.escape_ascii());
    }
    Ok(tree)
}

/// Fails with the first few differences, contents left out of the message.
pub fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    if expected == found {
        return;
    }
    let mut text = String::new();
    let show = |item: Option<&Item>| {
        item.map_or("nothing".to_owned(), |item| {
            format!(
                "{} {:o} {}:{} {:?} {} bytes #{} first {} links {}",
                item.kind,
                item.mode,
                item.uid,
                item.gid,
                item.mtime,
                item.content.len(),
                &blake3::hash(&item.content).to_hex()[..8],
                item.first_name.escape_ascii(),
                item.links
            )
        })
    };
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        let (left, right) = (expected.get(path), found.get(path));
        if left != right && text.len() < 4000 {
            text += &format!("\n{}:\n  expected {}\n  found    {}", path.escape_ascii(), show(left), show(right));
        }
    }
    panic!("{what} differs:{text}");
}
