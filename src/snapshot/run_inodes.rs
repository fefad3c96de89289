//! The inodes of one run: what is known from last time, and which inode already has a link group.

use std::collections::HashMap;

use super::inode_cache::{CachedInode, InodeCache, content_fingerprint, metadata_fingerprint};
use crate::ids::GroupId;
use crate::model::{Stat, Timestamp};

/// Inodes whose mtime is at most this much older than the run are read again next time: a write within the same tick of the file
/// system's clock would not show in their mtime. Kernel ticks last up to 10 ms.
const CLOCK_TICK_NANOS: i128 = 20_000_000;

/// Where an inode with several names stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Its first name was requested and not answered yet.
    Requested,
    /// It has a link group: number and row digest.
    Group(GroupId, u64),
    /// Reading it by its first name failed; this is what the scan saw, and its file system.
    Lost(Stat, u32),
}

/// What last night's knowledge says of an inode.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// Nothing changed.
    Unchanged(CachedInode),
    /// The content did not change; attributes may have.
    Attributes(CachedInode),
    /// It is new or changed. Holds what was known under its number, if anything.
    Content(Option<CachedInode>),
}

/// The inodes of one run. Some 48 bytes for each known inode, 48 for each seen one, 40 to 180 for each with several names.
pub struct RunInodes {
    known: InodeCache,
    rescan: bool,
    started_nanos: i128,
    seen: Vec<CachedInode>,
    numbers: HashMap<(u32, u64), u32>,
    slots: Vec<(Slot, Option<Timestamp>)>,
    /// Lasting numbers of file systems, by those of the scan.
    file_systems: Vec<u32>,
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

impl RunInodes {
    /// Starts a run. With `rescan` every content counts as changed.
    pub fn new(known: InodeCache, rescan: bool, started: jiff::Timestamp) -> RunInodes {
        RunInodes {
            known,
            rescan,
            started_nanos: started.as_nanosecond(),
            seen: Vec::new(),
            numbers: HashMap::new(),
            slots: Vec::new(),
            file_systems: Vec::new(),
        }
    }

    /// Returns the lasting number of a file system of the scan. `mount_points` are those met so far, by the scan's numbers.
    pub fn file_system(&mut self, scanned: u32, mount_points: impl FnOnce() -> Vec<Vec<u8>>) -> u32 {
        let at = scanned as usize;
        if at >= self.file_systems.len() {
            for mount_point in mount_points().iter().skip(self.file_systems.len()) {
                self.file_systems.push(self.known.file_system(mount_point));
            }
        }
        self.file_systems.get(at).copied().unwrap_or(u32::MAX)
    }

    /// Returns what is known of an inode.
    pub fn judge(&self, file_system: u32, stat: &Stat) -> Verdict {
        match self.known.find(file_system, stat.ino) {
            Some(known) if !self.rescan && known.content_fingerprint == content_fingerprint(stat) => {
                if known.metadata_fingerprint == metadata_fingerprint(stat) {
                    Verdict::Unchanged(*known)
                } else {
                    Verdict::Attributes(*known)
                }
            }
            known => Verdict::Content(known.copied()),
        }
    }

    /// Returns the slot of an inode with several names, if one of them was seen.
    pub fn slot(&self, file_system: u32, ino: u64) -> Option<u32> {
        self.numbers.get(&(file_system, ino)).copied()
    }

    /// Makes a slot for an inode with several names, in place of one under the same number.
    pub fn add_slot(&mut self, file_system: u32, stat: &Stat, slot: Slot) -> u32 {
        let number = self.slots.len() as u32;
        self.slots.push((slot, stat.btime));
        self.numbers.insert((file_system, stat.ino), number);
        number
    }

    /// Returns whether a slot is for the inode that was born then, not for one whose number was given away meanwhile.
    pub fn is_same(&self, slot: u32, stat: &Stat) -> bool {
        self.slots[slot as usize].1 == stat.btime
    }

    /// Returns where the inode of a slot stands.
    pub fn get(&self, slot: u32) -> Slot {
        self.slots[slot as usize].0
    }

    /// Sets where the inode of a slot stands.
    pub fn set(&mut self, slot: u32, to: Slot) {
        self.slots[slot as usize].0 = to;
    }

    /// Notes an unchanged inode for the next run.
    pub fn keep(&mut self, known: CachedInode) {
        self.seen.push(known);
    }

    /// Notes an inode that was read for the next run. `unchanged` is false if it changed while it was read: it will be read again.
    pub fn note(&mut self, file_system: u32, stat: &Stat, group: GroupId, row_digest: u64, unchanged: bool) {
        let unchanged = unchanged && nanos(stat.mtime) < self.started_nanos - CLOCK_TICK_NANOS;
        self.seen.push(CachedInode {
            file_system,
            ino: stat.ino,
            content_fingerprint: if unchanged { content_fingerprint(stat) } else { 0 },
            metadata_fingerprint: metadata_fingerprint(stat),
            group,
            row_digest,
        });
    }

    /// Returns what the next run may know if this one ends here: what was seen, and of the rest what was known before.
    pub fn so_far(&self, acls: Option<bool>) -> InodeCache {
        let all = self.known.inodes().iter().chain(&self.seen).copied().collect();
        InodeCache::new(acls, self.known.file_systems.clone(), all)
    }

    /// Ends the run and returns what the next one may know, and whether that differs from before.
    pub fn finish(self, acls: Option<bool>) -> (InodeCache, bool) {
        let next = InodeCache::new(acls, self.known.file_systems.clone(), self.seen);
        let changed = next.inodes() != self.known.inodes() || next.acls != self.known.acls;
        (next, changed)
    }
}
