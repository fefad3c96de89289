//! Mounts: one snapshot, or the tree of all of them, as a read-only file system, and on request a writable overlay on top.
//!
//! The package `zmreplica-fuse` talks to the kernel; here is what a store's mount needs beside it: which places are refused, leases, stale
//! mounts, the order in which things are stacked and taken down.

mod mount_point;
mod snapshot_tree;
mod snapshots_tree;
mod top;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use zmreplica_fuse::{Log, Mount, MountOptions, UnmountMode, mount_overlay, mounts_at, unmount};

pub use mount_point::{KIND, MOUNT_KIND, OVERLAY_KIND, absolute, check_place, wait_for_server};
pub use snapshot_tree::SnapshotTree;
pub use snapshots_tree::{SnapshotsTree, directory_name};

use crate::access;
use crate::catalog::CatalogError;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::SourceId;
use crate::lease::{self, Lease, LeaseInfo};
use crate::replica::Replica;
use crate::view::{OwnerMap, Readers, SnapshotView, StoredSnapshot, ViewError, ViewOptions};

/// How often a mount looks after itself.
const TICK: Duration = Duration::from_millis(250);
/// How far the kernel reads ahead: several of its largest requests, so that one is read while another is sent.
const READ_AHEAD_KIB: u32 = 4096;
/// Names the snapshot that an upper directory belongs to.
const UPPER_RECORD: &str = "zmreplica.json";

/// What can go wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place cannot be mounted on.
    #[error("Cannot mount on {path}: {fault}")]
    Place {
        /// The mount point, as it was given.
        path: String,
        /// Why not.
        #[source]
        fault: PlaceFault,
    },
    /// Nothing of this program is mounted there.
    #[error("{path} is not a mount of zmreplica")]
    NotMounted {
        /// The mount point.
        path: String,
    },
    /// Somebody uses the mount.
    #[error("{path} is in use: a process has a file open or its working directory there")]
    Busy {
        /// The mount point.
        path: String,
    },
    /// The system refused.
    #[error("{action} {path}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The snapshot was removed while it was being mounted.
    #[error("Snapshot {id} was removed meanwhile")]
    Gone {
        /// Its identifier.
        id: String,
    },
    /// The writable directory cannot be used.
    #[error("{path} cannot hold the changes: {reason}")]
    Upper {
        /// The directory.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The catalogue cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Why a place cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum PlaceFault {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its path has white space in it.
    #[error("its path has white space in it, which Zimbra's tools refuse")]
    WhiteSpace,
    /// It is something else than a directory.
    #[error("it is not a directory")]
    NotADirectory,
    /// It lies in the store.
    #[error("it is inside the store {store}")]
    InStore {
        /// The store.
        store: String,
    },
    /// The store lies in it.
    #[error("the store {store} is inside it and would be hidden")]
    HidesStore {
        /// The store.
        store: String,
    },
    /// Something of this program is mounted there.
    #[error("{source_name} is mounted there already")]
    Mounted {
        /// What is mounted.
        source_name: String,
    },
}

pub(crate) fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.display().to_string();
    move |source| MountError::System { action, path, source }
}

/// Whom the files of a mount belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Their owners by number.
    ByNumber,
    /// Those who have the names of their owners on this host.
    ByName,
    /// All one user's, and one group's if there is one given.
    AllTo(u32, Option<u32>),
}

impl Owners {
    fn map(self, record: &SnapshotRecord) -> OwnerMap {
        match self {
            Owners::ByNumber => OwnerMap::by_number(),
            Owners::ByName => OwnerMap::by_name(record),
            Owners::AllTo(uid, gid) => OwnerMap::all_to(uid, gid),
        }
    }
}

/// What to mount, and how.
#[derive(Clone)]
pub struct MountRequest {
    /// The snapshot; `None` for all of them.
    pub snapshot: Option<StoredSnapshot>,
    /// Without a snapshot: the source whose snapshots are shown; `None` for those of all sources.
    pub source: Option<SourceId>,
    /// Where, as [`check_place`] returned it.
    pub mount_point: PathBuf,
    /// Whom the files belong to.
    pub owners: Owners,
    /// Whether other users may look in.
    pub allow_other: bool,
    /// Most bytes of decompressed chunks kept.
    pub cache_bytes: u64,
    /// Threads that answer the kernel; 0 lets the number of cores decide.
    pub threads: usize,
    /// Directory that takes the changes, for a writable mount.
    pub writable: Option<PathBuf>,
    /// Where failures are reported.
    pub log: Log,
}

/// A mount that is being served.
pub struct Serving {
    mount: Mount,
    mount_point: PathBuf,
    overlay: bool,
    log: Log,
    /// Lets go of what nobody uses.
    maintain: Box<dyn Fn() + Send>,
    _lease: Option<Lease>,
}

/// Says that a mount goes without a lease.
fn no_lease(error: &io::Error) -> String {
    format!("no lease can be taken in the store ({error}): a prune on another host may remove what is mounted")
}

fn threads(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    if wanted == 0 { (cores + 2).max(4) } else { wanted.max(3) }
}

/// Mounts. On return the mount can be used, and is served until [`Serving::run`] ends.
///
/// # Errors
/// See [`MountError`]; nothing is left mounted.
pub fn start(replica: Replica, request: MountRequest) -> Result<Serving, MountError> {
    let MountRequest { snapshot, source, mount_point, owners, allow_other, cache_bytes, log, .. } = &request;
    let replica = Arc::new(replica);
    let upper = request.writable.as_deref().map(|directory| Upper::prepare(directory, &replica, snapshot.as_ref()));
    let upper = upper.transpose()?;
    let store = fs::canonicalize(replica.path()).map_err(system("Cannot open", replica.path()))?;
    let what = snapshot.as_ref().map_or("all", |snapshot| snapshot.record.short_id());
    let options = MountOptions {
        source: format!("{}#{what}", store.display()),
        kind: KIND.to_owned(),
        allow_other: *allow_other,
        threads: threads(request.threads),
        read_ahead_kib: READ_AHEAD_KIB,
        log: Arc::clone(log),
    };
    let catalog = Arc::new(replica.following_catalog()?);
    let chunks = Arc::new(replica.chunks());
    let readers = Readers::new(Arc::clone(&catalog), chunks, ViewOptions { cache_bytes: *cache_bytes });
    let refused = system("Cannot mount on", mount_point);
    let (mount, lease, maintain): (Mount, Option<Lease>, Box<dyn Fn() + Send>) = match snapshot {
        Some(snapshot) => {
            let lease = take_lease(&replica, mount_point, &snapshot.record, log);
            catalog.refresh();
            if !catalog.snapshots()?.iter().any(|(_, record)| record.id == snapshot.record.id) {
                return Err(MountError::Gone { id: snapshot.record.id.clone() });
            }
            let view = SnapshotView::over(&readers, snapshot.record.clone())?;
            let tree = SnapshotTree::new(view, owners.map(&snapshot.record));
            let tree = Arc::new(if upper.is_some() { tree.below_changes() } else { tree.keeping_handles() });
            let mount = zmreplica_fuse::mount(tree, mount_point, &options).map_err(refused)?;
            (mount, lease, Box::new(move || catalog.release()))
        }
        None => {
            let tree = SnapshotsTree::new(replica, readers, *source, *owners, mount_point.clone(), Arc::clone(log))?;
            let tree = Arc::new(tree);
            let mount = zmreplica_fuse::mount(Arc::clone(&tree), mount_point, &options).map_err(refused)?;
            (mount, None, Box::new(move || tree.maintain()))
        }
    };
    let mut serving = Serving {
        mount,
        mount_point: mount_point.clone(),
        overlay: false,
        log: Arc::clone(log),
        maintain,
        _lease: lease,
    };
    if let Some(upper) = upper {
        let stacked =
            top::make(&upper.changes, mount_point, log).map_err(system("Cannot make", &upper.changes)).and_then(|()| {
                mount_overlay(mount_point, &upper.changes, &upper.work, &options.source)
                    .map_err(system("Cannot make a writable overlay on", mount_point))
            });
        if let Err(error) = stacked {
            let _ = serving.unmount(UnmountMode::Detach);
            let _ = serving.run(&AtomicBool::new(true));
            return Err(error);
        }
        serving.overlay = true;
    }
    Ok(serving)
}

fn take_lease(replica: &Replica, mount_point: &Path, record: &SnapshotRecord, log: &Log) -> Option<Lease> {
    let info = LeaseInfo::of_this_process(mount_point, vec![record.id.clone()]);
    match lease::take(replica.path(), &info) {
        Ok(lease) => Some(lease),
        Err(error) => {
            log(&no_lease(&error));
            None
        }
    }
}

impl Serving {
    /// Serves until the mount is taken from its place, by whomever; or until `stop` is set, which takes it from its place.
    ///
    /// # Errors
    /// Fails when the server does. The mount point gives errors then until it is unmounted.
    pub fn run(mut self, stop: &AtomicBool) -> Result<(), MountError> {
        let mut stopping = false;
        while !self.mount.wait(TICK) {
            (self.maintain)();
            // Whoever unmounts the overlay means both.
            let overlay_gone = self.overlay && !has_overlay(&self.mount_point);
            if overlay_gone {
                self.overlay = false;
            }
            if (overlay_gone || stop.load(Ordering::Relaxed)) && !stopping {
                stopping = true;
                self.take_down();
            }
        }
        let mount_point = self.mount_point;
        self.mount.finish().map_err(system("Cannot go on serving", &mount_point))
    }

    /// Takes the mount from its place; from those who still use it when they let go.
    fn take_down(&mut self) {
        match self.unmount(UnmountMode::Refuse) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                (self.log)("still in use: detached, and served until the last user is done");
                if let Err(error) = self.unmount(UnmountMode::Detach) {
                    (self.log)(&format!("cannot be unmounted: {error}"));
                }
            }
            Err(error) if self.mount.is_mounted() => (self.log)(&format!("cannot be unmounted: {error}")),
            _ => {}
        }
    }

    fn unmount(&mut self, mode: UnmountMode) -> io::Result<()> {
        if self.overlay && has_overlay(&self.mount_point) {
            unmount(&self.mount_point, mode)?;
            self.overlay = false;
        }
        if self.mount.is_mounted() { unmount(&self.mount_point, mode) } else { Ok(()) }
    }
}

fn has_overlay(mount_point: &Path) -> bool {
    mounts_at(mount_point).is_ok_and(|mounts| mounts.last().is_some_and(|entry| entry.kind == OVERLAY_KIND))
}

/// How often and how long something that is in use is waited for: much of what looks into mounts, and every process that is just being started, lets go
/// at once.
const BUSY_RETRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Unmounts what this program mounted at a place, overlay and snapshot. Returns the store that was mounted, as far as the table of mounts shows.
///
/// # Errors
/// [`MountError::Busy`] when it is in use, [`MountError::NotMounted`] when it is nothing of ours.
pub fn unmount_all(mount_point: &Path, lazily: bool) -> Result<Option<PathBuf>, MountError> {
    let mode = if lazily { UnmountMode::Detach } else { UnmountMode::Refuse };
    let shown = || mount_point.display().to_string();
    let mut taken_down = false;
    let mut store = None;
    loop {
        let mounts = mounts_at(mount_point).map_err(system("Cannot list mounts for", mount_point))?;
        let ours = match mounts.as_slice() {
            [.., last] if last.kind == MOUNT_KIND => true,
            [.., below, last] => last.kind == OVERLAY_KIND && below.kind == MOUNT_KIND,
            _ => false,
        };
        if !ours {
            break;
        }
        let source = mounts.iter().rev().find(|entry| entry.kind == MOUNT_KIND).map(|entry| entry.source.as_bytes());
        let end = source.and_then(|source| source.iter().rposition(|byte| *byte == b'#'));
        store = source.zip(end).map(|(source, end)| PathBuf::from(OsStr::from_bytes(&source[..end])));
        let mut outcome = unmount(mount_point, mode);
        for _ in 0..BUSY_RETRIES {
            if !outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            outcome = unmount(mount_point, mode);
        }
        match outcome {
            Ok(()) => taken_down = true,
            // The server, which notices that the overlay is gone, was quicker.
            Err(error) if taken_down && error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(MountError::Busy { path: shown() });
            }
            Err(source) => return Err(MountError::System { action: "Cannot unmount", path: shown(), source }),
        }
    }
    if !taken_down {
        return Err(MountError::NotMounted { path: shown() });
    }
    Ok(store)
}

/// Returns whether a record of what an upper directory belongs to names a snapshot.
fn is_of(record: &[u8], snapshot: &str) -> bool {
    serde_json::from_slice::<serde_json::Value>(record).is_ok_and(|found| found["snapshot"] == snapshot)
}

/// The two directories that an overlay wants.
struct Upper {
    changes: PathBuf,
    work: PathBuf,
}

impl Upper {
    /// Makes the directories, or finds those of an earlier mount of the same snapshot: over another one the changes would be meaningless.
    fn prepare(directory: &Path, replica: &Replica, snapshot: Option<&StoredSnapshot>) -> Result<Upper, MountError> {
        let refuse =
            |reason: &str| MountError::Upper { path: directory.display().to_string(), reason: reason.to_owned() };
        let Some(snapshot) = snapshot else {
            return Err(refuse("name a snapshot: a mount of all snapshots changes by itself"));
        };
        // What is changed in the mount is as private as the mail in the store.
        access::create_own_directory(directory).map_err(system("Cannot create", directory))?;
        let directory = fs::canonicalize(directory).map_err(system("Cannot open", directory))?;
        let store = fs::canonicalize(replica.path()).map_err(system("Cannot open", replica.path()))?;
        if directory.starts_with(&store) {
            return Err(refuse("it is inside the store"));
        }
        let wanted = serde_json::json!({ "store": replica.config().id, "snapshot": snapshot.record.id });
        let record = directory.join(UPPER_RECORD);
        match fs::read(&record) {
            // The snapshot's identifier alone decides, because the store's is part of it; and a repair may have given the store a new one.
            Ok(bytes) if is_of(&bytes, &snapshot.record.id) => {}
            Ok(_) => return Err(refuse("it holds the changes to another snapshot; name an empty directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut listing = fs::read_dir(&directory).map_err(system("Cannot list", &directory))?;
                if listing.next().is_some() {
                    return Err(refuse("it is not empty"));
                }
                let text = wanted.to_string();
                access::write_durably(&record, text.as_bytes()).map_err(system("Cannot write", &record))?;
            }
            Err(error) => return Err(system("Cannot read", &record)(error)),
        }
        let upper = Upper { changes: directory.join("changes"), work: directory.join("work") };
        // The other one is made when the snapshot can be seen: the overlay shows its attributes as those of the top.
        match fs::create_dir(&upper.work) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(system("Cannot create", &upper.work)(error))
            }
            _ => Ok(upper),
        }
    }
}
