//! What must be kept, for every short history there is, against a plain oracle.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::catalog::database::CatalogDatabase;
use crate::catalog::marks::Mark;
use crate::catalog::writer::CatalogWriter;
use crate::store::MemoryBackend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Suspect,
    Accepted,
    Pinned,
}

fn record(number: usize, source: &str, state: State) -> SnapshotRecord {
    let zero = serde_json::json!({
        "id": format!("{number:032x}"), "time": "2026-08-01T03:00:00Z", "finished": "2026-08-01T03:00:01Z", "source": source, "host": "h",
        "source_id": source.len(),
        "root": "00", "links": [], "digest": "d", "version": "0",
        "totals": {"names": 0, "directories": 0, "inodes": 0, "files": 0, "symlinks": 0, "specials": 0, "bytes": 0},
        "work": {"excluded_names": 0, "stats": 0, "unchanged_inodes": 0, "attribute_inodes": 0, "read_files": 0, "read_bytes": 0,
            "new_chunks": 0, "new_bytes": 0, "stored_bytes": 0, "elapsed_ms": 0},
    });
    let mut record: SnapshotRecord = serde_json::from_value(zero).unwrap();
    if matches!(state, State::Suspect | State::Accepted) {
        let reason = SuspectReason { kind: ReasonKind::NamesGone, text: "something".to_owned() };
        record.guard = Some(Verdict { compared_with: None, reasons: vec![reason] });
    }
    record
}

/// Keeps each suspect snapshot, all of its source after it, and the nearest before it that is none.
fn oracle(history: &[(&str, State)]) -> BTreeSet<usize> {
    let mut kept: BTreeSet<usize> = (0..history.len()).filter(|at| history[*at].1 == State::Pinned).collect();
    for (at, (source, state)) in history.iter().enumerate() {
        if *state == State::Suspect {
            kept.insert(at);
            let same = |other: &usize| history[*other].0 == *source;
            kept.extend((at + 1..history.len()).filter(same));
            kept.extend((0..at).rev().filter(same).find(|other| history[*other].1 != State::Suspect));
        }
    }
    kept
}

#[test]
fn protections_agree_with_the_oracle_on_all_short_histories() {
    let states = [State::Good, State::Suspect, State::Accepted, State::Pinned];
    // Every history of four snapshots of one source, beside one of another source that has every state in turn.
    for number in 0..states.len().pow(4) {
        let mut history: Vec<(&str, State)> = Vec::new();
        for at in 0..4u32 {
            history.push(("a", states[number / states.len().pow(at) % states.len()]));
            history.push(("bb", states[(number + at as usize) % states.len()]));
        }
        let place = tempfile::tempdir().unwrap();
        let database = Arc::new(CatalogDatabase::open_or_create(&place.path().join("catalog")).unwrap());
        let mut writer = CatalogWriter::new(Arc::clone(&database), Arc::new(MemoryBackend::default())).unwrap();
        for (at, (source, state)) in history.iter().enumerate() {
            let stored = writer.add_snapshot(&record(at, source, *state)).unwrap();
            let mark = || Some(Mark { at: jiff::Timestamp::UNIX_EPOCH, reason: None });
            let marks = match state {
                State::Accepted => SnapshotMarks { accepted: mark(), pinned: None },
                State::Pinned => SnapshotMarks { accepted: None, pinned: mark() },
                State::Good | State::Suspect => continue,
            };
            writer.set_marks(stored, &marks).unwrap();
        }
        writer.commit().unwrap();
        let kept = protections(&marked_snapshots(writer.reader()).unwrap(), &BTreeMap::new());
        let expected: Vec<String> = oracle(&history).iter().map(|at| format!("{at:032x}")).collect();
        assert_eq!(kept.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>(), "{history:?}");
        assert!(kept.values().all(|reasons| !reasons.is_empty()));
    }
}

#[test]
fn taking_all_marks_away_removes_their_row() {
    let place = tempfile::tempdir().unwrap();
    let database = Arc::new(CatalogDatabase::open_or_create(&place.path().join("catalog")).unwrap());
    let mut writer = CatalogWriter::new(database, Arc::new(MemoryBackend::default())).unwrap();
    let number = writer.add_snapshot(&record(0, "a", State::Suspect)).unwrap();
    let accepted = Some(Mark { at: jiff::Timestamp::UNIX_EPOCH, reason: None });
    writer.set_marks(number, &SnapshotMarks { accepted, pinned: None }).unwrap();
    writer.commit().unwrap();
    assert_eq!(protections(&marked_snapshots(writer.reader()).unwrap(), &BTreeMap::new()).len(), 0);
    writer.set_marks(number, &SnapshotMarks::default()).unwrap();
    writer.commit().unwrap();
    assert_eq!(marks::read_all(writer.reader()).unwrap().len(), 0);
    assert_eq!(protections(&marked_snapshots(writer.reader()).unwrap(), &BTreeMap::new()).len(), 1);
}
