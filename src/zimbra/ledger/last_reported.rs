//! Which snapshot a nightly run reported last, for each source: the next one compares with that, whatever was taken by hand in between.

use std::collections::BTreeMap;
use std::path::Path;

use crate::catalog::snapshot::SnapshotRecord;
use crate::zimbra::cache::{read_note, write_note};

const MAGIC: &[u8; 8] = b"ZMRTOLD1";
const NAME: &str = "zimbra-told";

/// Returns the snapshots by the keys of their sources.
pub(super) fn all(store: &Path) -> BTreeMap<String, String> {
    read_note(store, NAME, MAGIC)
}

/// Returns the identifier of the snapshot that was reported last of the source of `record`. Without the file a night compares with the snapshot before.
pub(super) fn of_source(store: &Path, record: &SnapshotRecord) -> Option<String> {
    let mut reported = all(store);
    reported.remove(&record.source_key()).or_else(|| reported.remove(&record.source))
}

/// Notes that a snapshot was reported.
pub(super) fn note(store: &Path, record: &SnapshotRecord) {
    let mut reported = all(store);
    // Under this key earlier versions noted it.
    reported.remove(&record.source);
    reported.insert(record.source_key(), record.id.clone());
    write_note(store, NAME, MAGIC, &record.id, &reported);
}
