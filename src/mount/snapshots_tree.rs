//! The tree of all snapshots: a directory for each, named by its time, and `latest`.
//!
//! Inode numbers: those of a snapshot's own tree in the low 40 bits, and above them 16 bits that number the snapshot, in order of first sight; 0 is
//! this level, with the root and one number for each target that `latest` ever had. The topmost 8 bits stay free, for an overlay to use. Generations are the
//! snapshots': another mount may number them otherwise, and handles of this one are stale there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zmreplica_fuse::{
    Errno, ExtendedAttribute, FileAttributes, FileKind, ImmutableTree, ListedEntry, Log, ROOT, TreeError, TreeTotals,
};

use crate::catalog::CatalogError;
use crate::catalog::commit_log::last_commit;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::{CommitNumber, SnapshotNumber, SourceId};
use crate::lease::{self, Lease, LeaseInfo};
use crate::replica::Replica;
use crate::view::{Readers, SnapshotView};

use super::{Owners, SnapshotTree};
use crate::mutex::lock;

/// Bits of an inode number that belong to the snapshot's own tree.
const TREE_BITS: u32 = 40;
/// Most snapshots that one mount can number.
const MAX_SLOTS: usize = (1 << 16) - 1;
/// How often the catalogue is checked for new snapshots.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A snapshot is leased from its first use until it was not used for so long.
const LEASE_IDLE: Duration = Duration::from_secs(3600);
/// Name of the link to the newest snapshot.
const LATEST: &[u8] = b"latest";

/// Serves all snapshots of a store, as the store has them from time to time.
pub struct SnapshotsTree {
    replica: Arc<Replica>,
    readers: Readers,
    /// The source whose snapshots are shown; all without it.
    source: Option<SourceId>,
    owners: Owners,
    mount_point: PathBuf,
    log: Log,
    state: Mutex<State>,
    started: Instant,
}

struct State {
    commit: Option<CommitNumber>,
    looked: Instant,
    changed: SystemTime,
    /// Names and slots, in order of the names.
    shown: Vec<(Vec<u8>, usize)>,
    latest: Option<usize>,
    numbers: HashMap<SnapshotNumber, usize>,
    slots: Vec<Arc<Slot>>,
}

/// One snapshot, as long as the mount lives.
struct Slot {
    record: SnapshotRecord,
    tree: SnapshotTree,
    name: Vec<u8>,
    /// Milliseconds after the start of the mount.
    used: AtomicU64,
    lease: Mutex<Option<Lease>>,
}

/// Returns the directory name of a snapshot: its time in UTC, without white space or colons.
pub fn directory_name(record: &SnapshotRecord) -> String {
    record.time.strftime("%Y-%m-%dT%H%M%SZ").to_string()
}

impl SnapshotsTree {
    /// Makes the tree of the snapshots of one source, or of all. They share the readers and their caches.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn new(
        replica: Arc<Replica>,
        readers: Readers,
        source: Option<SourceId>,
        owners: Owners,
        mount_point: PathBuf,
        log: Log,
    ) -> Result<SnapshotsTree, CatalogError> {
        let now = Instant::now();
        let state = State {
            commit: None,
            looked: now,
            changed: UNIX_EPOCH,
            shown: Vec::new(),
            latest: None,
            numbers: HashMap::new(),
            slots: Vec::new(),
        };
        let tree = SnapshotsTree {
            replica,
            readers,
            source,
            owners,
            mount_point,
            log,
            state: Mutex::new(state),
            started: now,
        };
        tree.look(&mut lock(&tree.state))?;
        Ok(tree)
    }

    /// Brings the list of snapshots up to date if it is old.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        if state.looked.elapsed() >= LOOK_AGAIN {
            // What was seen last is shown on; the next look may succeed.
            if let Err(error) = self.look(&mut state) {
                (self.log)(&format!("the list of snapshots could not be read: {error}"));
            }
        }
        state
    }

    fn look(&self, state: &mut State) -> Result<(), CatalogError> {
        state.looked = Instant::now();
        let catalog = self.readers.catalog();
        let (commit, _) = last_commit(&*catalog.database()?)?;
        if state.commit == Some(commit) {
            return Ok(());
        }
        if let Err(error) = catalog.load_dictionaries(self.replica.dictionaries()) {
            (self.log)(&format!("the dictionaries could not be read: {error}"));
        }
        let mut shown: Vec<(Vec<u8>, usize)> = Vec::new();
        let mut latest = None;
        let snapshots = catalog.snapshots()?.into_iter();
        let is_shown = |record: &SnapshotRecord| self.source.is_none() || record.source_id == self.source;
        for (number, record) in snapshots.filter(|(_, record)| is_shown(record)) {
            let slot = match state.numbers.get(&number) {
                Some(slot) => *slot,
                None if state.slots.len() >= MAX_SLOTS => continue,
                None => match self.slot(record, &shown) {
                    Ok(slot) => {
                        state.slots.push(Arc::new(slot));
                        state.numbers.insert(number, state.slots.len() - 1);
                        state.slots.len() - 1
                    }
                    Err(error) => {
                        (self.log)(&format!("snapshot {number} cannot be shown: {error}"));
                        continue;
                    }
                },
            };
            shown.push((state.slots[slot].name.clone(), slot));
            latest = Some(slot);
        }
        shown.sort();
        if shown != state.shown {
            state.shown = shown;
            state.changed = SystemTime::now();
        }
        state.latest = latest;
        state.commit = Some(commit);
        Ok(())
    }

    fn slot(&self, record: SnapshotRecord, shown: &[(Vec<u8>, usize)]) -> Result<Slot, crate::view::ViewError> {
        let mut name = directory_name(&record).into_bytes();
        // Two of one second: the later one says more.
        if shown.iter().any(|(other, _)| *other == name) {
            name.extend_from_slice(format!("-{}", record.short_id()).as_bytes());
        }
        let view = SnapshotView::over(&self.readers, record.clone())?;
        let tree = SnapshotTree::new(view, self.owners.map(&record));
        Ok(Slot { record, tree, name, used: AtomicU64::new(0), lease: Mutex::default() })
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Returns the snapshot of an inode number and the number within, leased.
    fn enter(&self, inode: u64) -> Result<(Arc<Slot>, u64), TreeError> {
        let (slot, inner) = self.slot_of(inode)?;
        slot.used.store(self.now(), Ordering::Relaxed);
        let mut lease = lock(&slot.lease);
        if lease.is_none() {
            let info = LeaseInfo::of_this_process(&self.mount_point, vec![slot.record.id.clone()]);
            match lease::take(self.replica.path(), &info) {
                Ok(taken) => *lease = Some(taken),
                Err(error) => (self.log)(&super::no_lease(&error)),
            }
            // It may have gone before the lease was there.
            self.readers.catalog().refresh();
            let id = &slot.record.id;
            if !self.readers.catalog().snapshots().is_ok_and(|all| all.iter().any(|(_, record)| record.id == *id)) {
                *lease = None;
                drop(lease);
                lock(&self.state).commit = None;
                return Err(gone());
            }
        }
        drop(lease);
        Ok((slot, inner))
    }

    fn slot_of(&self, inode: u64) -> Result<(Arc<Slot>, u64), TreeError> {
        let number = (inode >> TREE_BITS) as usize;
        let state = self.state();
        let at = number.checked_sub(1).ok_or_else(gone)?;
        let shown = state.shown.iter().any(|(_, slot)| *slot == at);
        let slot = state.slots.get(at).filter(|_| shown).ok_or_else(gone)?;
        Ok((Arc::clone(slot), inode & ((1 << TREE_BITS) - 1)))
    }

    /// Gives back leases that were not used for long, and the catalogue's transaction.
    pub fn maintain(&self) {
        let slots = lock(&self.state).slots.clone();
        for slot in slots {
            let idle = self.now().saturating_sub(slot.used.load(Ordering::Relaxed));
            if idle >= LEASE_IDLE.as_millis() as u64 {
                lock(&slot.lease).take();
            }
        }
        self.readers.catalog().release();
    }

    fn own(&self, inode: u64, kind: FileKind, size: u64, changed: SystemTime) -> FileAttributes {
        let since = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        FileAttributes {
            inode,
            kind,
            mode: if kind == FileKind::Directory { 0o755 } else { 0o777 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            link_count: 1,
            size,
            allocated_bytes: 0,
            rdev: 0,
            mtime_seconds: since.as_secs() as i64,
            mtime_nanos: since.subsec_nanos(),
        }
    }

    fn own_root(&self, state: &State) -> FileAttributes {
        self.own(ROOT, FileKind::Directory, 4096, state.changed)
    }

    fn link(&self, state: &State, slot: usize) -> FileAttributes {
        let changed = UNIX_EPOCH + Duration::from_secs(state.slots[slot].record.time.as_second().unsigned_abs());
        self.own(slot as u64 * 2 + 2, FileKind::Symlink, state.slots[slot].name.len() as u64, changed)
    }

    /// Returns the slot that a number of this level links to.
    fn link_target(state: &State, inode: u64) -> Result<usize, TreeError> {
        let slot = inode.checked_sub(2).filter(|_| inode.is_multiple_of(2)).map(|twice| (twice / 2) as usize);
        slot.filter(|slot| *slot < state.slots.len()).ok_or_else(gone)
    }

    fn root_of(slot: &Slot, number: usize) -> Result<FileAttributes, TreeError> {
        Ok(lift(number, slot.tree.attributes(ROOT)?))
    }
}

fn gone() -> TreeError {
    TreeError::new(Errno::NOENT, "No such snapshot")
}

fn is_own(inode: u64) -> bool {
    inode >> TREE_BITS == 0
}

/// Gives attributes of a snapshot's own tree the numbers that they have in the tree of all.
fn lift(slot: usize, attributes: FileAttributes) -> FileAttributes {
    FileAttributes { inode: outer(slot, attributes.inode), ..attributes }
}

fn outer(slot: usize, inode: u64) -> u64 {
    (slot as u64 + 1) << TREE_BITS | inode
}

fn slot_number(inode: u64) -> usize {
    (inode >> TREE_BITS) as usize - 1
}

impl ImmutableTree for SnapshotsTree {
    fn lookup(&self, directory: u64, name: &[u8]) -> Result<FileAttributes, TreeError> {
        if !is_own(directory) {
            let (slot, inner) = self.enter(directory)?;
            return Ok(lift(slot_number(directory), slot.tree.lookup(inner, name)?));
        }
        if directory != ROOT {
            return Err(TreeError::new(Errno::NOTDIR, "Not a directory"));
        }
        let state = self.state();
        if name == LATEST {
            let slot = state.latest.ok_or_else(gone)?;
            return Ok(self.link(&state, slot));
        }
        let at = state.shown.binary_search_by(|(shown, _)| shown.as_slice().cmp(name)).map_err(|_| gone())?;
        let slot = state.shown[at].1;
        SnapshotsTree::root_of(&state.slots[slot], slot)
    }

    fn attributes(&self, inode: u64) -> Result<FileAttributes, TreeError> {
        if is_own(inode) {
            let state = self.state();
            if inode == ROOT {
                return Ok(self.own_root(&state));
            }
            let slot = SnapshotsTree::link_target(&state, inode)?;
            return Ok(self.link(&state, slot));
        }
        // A look at the root of a snapshot does not mean going in.
        let (slot, inner) =
            if inode == outer(slot_number(inode), ROOT) { self.slot_of(inode)? } else { self.enter(inode)? };
        Ok(lift(slot_number(inode), slot.tree.attributes(inner)?))
    }

    fn list(
        &self,
        directory: u64,
        cookie: u64,
        visit: &mut dyn FnMut(ListedEntry<'_>) -> bool,
    ) -> Result<(), TreeError> {
        if !is_own(directory) {
            let (slot, inner) = self.enter(directory)?;
            let number = slot_number(directory);
            return slot.tree.list(inner, cookie, &mut |entry| {
                let attributes = entry.attributes.map(|attributes| lift(number, attributes));
                visit(ListedEntry { inode: outer(number, entry.inode), attributes, ..entry })
            });
        }
        if directory != ROOT {
            return Err(TreeError::new(Errno::NOTDIR, "Not a directory"));
        }
        // Cookies are slots, not positions, so that a listing goes on rightly when a snapshot comes or goes meanwhile.
        let (mut entries, latest) = {
            let state = self.state();
            let mut entries = Vec::with_capacity(state.shown.len());
            for (name, slot) in &state.shown {
                let attributes = SnapshotsTree::root_of(&state.slots[*slot], *slot).ok();
                entries.push((*slot as u64 + 2, name.clone(), outer(*slot, ROOT), attributes));
            }
            (entries, state.latest.map(|slot| self.link(&state, slot)))
        };
        entries.sort_unstable_by_key(|(at, ..)| *at);
        if let Some(link) = latest {
            entries.insert(0, (1, LATEST.to_vec(), link.inode, Some(link)));
        }
        for (at, name, inode, attributes) in entries.into_iter().filter(|(at, ..)| *at > cookie) {
            let kind = attributes.map_or(FileKind::Directory, |attributes| attributes.kind);
            if !visit(ListedEntry { name: &name, inode, kind, attributes, next_cookie: at }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, TreeError> {
        if is_own(inode) {
            let errno = if inode == ROOT { Errno::ISDIR } else { Errno::INVAL };
            return Err(TreeError::new(errno, "Not a file"));
        }
        let (slot, inner) = self.enter(inode)?;
        slot.tree.read(inner, offset, buffer)
    }

    fn readlink(&self, inode: u64) -> Result<Vec<u8>, TreeError> {
        if is_own(inode) {
            if inode == ROOT {
                return Err(TreeError::new(Errno::INVAL, "Not a symbolic link"));
            }
            let state = self.state();
            let slot = SnapshotsTree::link_target(&state, inode)?;
            return Ok(state.slots[slot].name.clone());
        }
        let (slot, inner) = self.enter(inode)?;
        slot.tree.readlink(inner)
    }

    fn extended_attributes(&self, inode: u64) -> Result<Vec<ExtendedAttribute>, TreeError> {
        if is_own(inode) {
            self.attributes(inode)?;
            return Ok(Vec::new());
        }
        let (slot, inner) = self.enter(inode)?;
        slot.tree.extended_attributes(inner)
    }

    fn parent(&self, directory: u64) -> Result<u64, TreeError> {
        if is_own(directory) {
            return if directory == ROOT { Ok(ROOT) } else { Err(TreeError::new(Errno::NOTDIR, "Not a directory")) };
        }
        let (slot, inner) = self.slot_of(directory)?;
        let parent = slot.tree.parent(inner)?;
        Ok(if inner == ROOT { ROOT } else { outer(slot_number(directory), parent) })
    }

    fn generation(&self, inode: u64) -> u32 {
        let state = lock(&self.state);
        let (slot, inner) = match (is_own(inode), SnapshotsTree::link_target(&state, inode)) {
            (true, Ok(slot)) => (slot, ROOT),
            (true, Err(_)) => return 0,
            (false, _) => (slot_number(inode), inode & ((1 << TREE_BITS) - 1)),
        };
        let slot = state.slots.get(slot).map(Arc::clone);
        drop(state);
        slot.map_or(0, |slot| slot.tree.generation(inner))
    }

    fn totals(&self) -> TreeTotals {
        let state = self.state();
        let mut sum = TreeTotals { bytes: 0, inodes: 1 };
        for (_, slot) in &state.shown {
            let totals = state.slots[*slot].tree.totals();
            sum.bytes += totals.bytes;
            sum.inodes += totals.inodes;
        }
        sum
    }

    fn is_volatile(&self, directory: u64) -> bool {
        directory == ROOT
    }
}
