//! Files directly below the root that the last snapshot had: `accounts.xml` is replaced by two renames, between which there is none.

use std::time::Duration;

use crate::catalog::CatalogError;
use crate::catalog::directory::{Body, Directory, Node};
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::ObjectId;
use crate::model::Kind;
use crate::source::exclude_patterns::ExcludePatterns;
use crate::source::scan::{Entry, Found, Listing};
use crate::source::tree::{SourceError, SourceTree};

/// How often such files are looked for, all of them each time, and how long between, before they count as gone.
const ROOT_WAITS: u32 = 5;
const ROOT_WAIT: Duration = Duration::from_millis(100);

/// Returns the names of the files directly below the root of a snapshot, sorted.
pub(super) fn root_files(reader: &CatalogReader, record: &SnapshotRecord) -> Result<Vec<Box<[u8]>>, CatalogError> {
    let root: Directory = record.root_directory()?;
    let pages: Vec<ObjectId> = match root.body {
        Body::Inline(_) => Vec::new(),
        Body::Page(page) => vec![page],
        Body::Index(index) => reader.directory_index(index)?.into_iter().map(|page| page.page).collect(),
    };
    let mut names = Vec::new();
    for page in pages {
        let entries = reader.directory_page(page)?;
        let files = entries.iter().filter(|entry| matches!(entry.node, Node::Group(_)));
        names.extend(files.map(|entry| entry.name.clone()));
    }
    Ok(names)
}

/// Looks again for files that stood at the root in the last snapshot and are not in the listing of the root; adds those that come back.
pub(super) fn wait_for_root_files(
    last: Vec<Box<[u8]>>,
    excludes: &ExcludePatterns,
    tree: &mut dyn SourceTree,
    listing: &mut Listing,
) -> Result<(), SourceError> {
    if listing.unreadable.is_some() {
        return Ok(());
    }
    let is_missing = |name: &[u8]| listing.entries.binary_search_by(|entry| (*entry.name).cmp(name)).is_err();
    let mut missing = last;
    missing.retain(|name| is_missing(name) && !excludes.excluded(name, false));
    for wait in 0..ROOT_WAITS {
        if missing.is_empty() {
            break;
        }
        if wait > 0 {
            std::thread::sleep(ROOT_WAIT);
        }
        for name in std::mem::take(&mut missing) {
            match tree.stat_root_entry(&name)? {
                Some(stat) if stat.kind != Kind::Directory && stat.dev == listing.stat.dev => {
                    let (file_system, ino) = (listing.file_system, stat.ino);
                    let what = Found::Inode { file_system, ino, stat: Some(Box::new(stat)) };
                    let at = listing.entries.partition_point(|entry| entry.name < name);
                    listing.entries.insert(at, Entry { name, what });
                }
                _ => missing.push(name),
            }
        }
    }
    Ok(())
}
