//! Of which snapshot a nightly run told last, for each source: the next one compares with that, whatever was taken by hand in between.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::replica::write_durably;
use crate::zimbra::cache::{seal, unseal};

const MAGIC: &[u8; 8] = b"ZMRTOLD1";

fn path(store: &Path) -> PathBuf {
    store.join("cache").join("zimbra-told")
}

/// Returns the snapshots by source. Without the file a night compares with the snapshot before.
pub(super) fn all(store: &Path) -> BTreeMap<String, String> {
    fs::read(path(store)).ok().and_then(|bytes| unseal(MAGIC, &bytes, |_| true)).unwrap_or_default()
}

/// Notes that a snapshot was told of.
pub(super) fn note(store: &Path, source: &str, snapshot: &str) {
    let mut told = all(store);
    told.insert(source.to_owned(), snapshot.to_owned());
    if let Some(bytes) = seal(MAGIC, snapshot, &told) {
        let _ = write_durably(&path(store), &bytes);
    }
}
