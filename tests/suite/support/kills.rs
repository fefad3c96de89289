//! Kills of processes, at moments that follow from what they have written: a machine that is slow or busy kills them at the same places of their work.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime};

/// How often the files of a store are looked at.
const PAUSE: Duration = Duration::from_millis(1);

/// What a writing process changes: names, lengths and times. Files may vanish while they are looked at.
fn written(store: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![store.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if let Ok(time) = metadata.modified() {
                files.insert(entry.path(), (metadata.len(), time));
            }
        }
    }
    files
}

/// Watches a process that writes to a store, until it ends or has been seen to change the files there so many times. Returns the changes that were seen.
pub fn watch(child: &mut Child, store: &Path, most: u32) -> u32 {
    let (mut changes, mut last) = (0, written(store));
    while changes < most && child.try_wait().unwrap().is_none() {
        let now = written(store);
        if now != last {
            changes += 1;
            last = now;
        }
        std::thread::sleep(PAUSE);
    }
    changes
}

/// Kills a process after so many changes; returns whether it had not ended before.
pub fn kill_after(mut child: Child, store: &Path, changes: u32) -> bool {
    watch(&mut child, store, changes);
    child.kill().unwrap();
    !child.wait().unwrap().success()
}
