//! Which snapshot a nightly run reported last, for each source: the next one compares with that, whatever was taken by hand in between.

use std::collections::BTreeMap;
use std::path::Path;

use crate::zimbra::cache::{read_note, write_note};

const MAGIC: &[u8; 8] = b"ZMRTOLD1";
const NAME: &str = "zimbra-told";

/// Returns the snapshots by source. Without the file a night compares with the snapshot before.
pub(super) fn all(store: &Path) -> BTreeMap<String, String> {
    read_note(store, NAME, MAGIC)
}

/// Notes that a snapshot was reported.
pub(super) fn note(store: &Path, source: &str, snapshot: &str) {
    let mut reported = all(store);
    reported.insert(source.to_owned(), snapshot.to_owned());
    write_note(store, NAME, MAGIC, snapshot, &reported);
}
