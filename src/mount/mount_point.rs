//! Places that can be mounted on.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zmreplica_fuse::{UnmountMode, mounts_at, unmount};

use super::{MountError, PlaceFault, system};
use crate::lease;

/// What the table of mounts shows behind `fuse.` for a mount of ours.
pub const KIND: &str = "zmreplica";
/// Type of a mount of ours in the table of mounts.
pub const MOUNT_KIND: &str = "fuse.zmreplica";
/// Type of a writable layer in the table of mounts.
pub const OVERLAY_KIND: &str = "overlay";

/// Returns the absolute path of a mount point without touching it: what is mounted there may be dead and answer every question with an error.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let absolute: PathBuf = std::path::absolute(path)?.components().collect();
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if name != ".." => match fs::symlink_metadata(&absolute) {
            // A link to the mount point is as good as its name.
            Ok(found) if found.is_symlink() => fs::canonicalize(&absolute),
            _ => Ok(fs::canonicalize(parent)?.join(name)),
        },
        _ => fs::canonicalize(&absolute),
    }
}

/// Confirms that a directory can be mounted on and returns its absolute path. A mount of ours that lies there dead, because its server was
/// killed, is taken away first; `recovered` is called for it.
///
/// # Errors
/// [`MountError::Place`] with the reason.
pub fn check_place(store: &Path, mount_point: &Path, recovered: impl Fn(&str)) -> Result<PathBuf, MountError> {
    let refuse = |fault| MountError::Place { path: mount_point.display().to_string(), fault };
    let place = absolute(mount_point).map_err(|error| refuse(error.into()))?;
    if place.as_os_str().as_bytes().iter().any(u8::is_ascii_whitespace) {
        return Err(refuse(PlaceFault::WhiteSpace));
    }
    clear_stale(&place, &recovered)?;
    let found = fs::metadata(&place).map_err(|error| refuse(error.into()))?;
    if !found.is_dir() {
        return Err(refuse(PlaceFault::NotADirectory));
    }
    let store = fs::canonicalize(store).map_err(system("Cannot open", store))?;
    if place.starts_with(&store) {
        return Err(refuse(PlaceFault::InStore { store: store.display().to_string() }));
    }
    if store.starts_with(&place) {
        return Err(refuse(PlaceFault::HidesStore { store: store.display().to_string() }));
    }
    let mounts = mounts_at(&place).map_err(system("Cannot list mounts for", &place))?;
    if let Some(ours) = mounts.iter().find(|entry| entry.kind == MOUNT_KIND) {
        let source_name = ours.source.to_string_lossy().into_owned();
        return Err(refuse(PlaceFault::Mounted { source_name }));
    }
    Ok(place)
}

/// Takes away mounts of ours whose server is dead.
fn clear_stale(place: &Path, recovered: &impl Fn(&str)) -> Result<(), MountError> {
    loop {
        let mounts = mounts_at(place).map_err(system("Cannot list mounts for", place))?;
        let ours = match mounts.as_slice() {
            [.., last] if last.kind == MOUNT_KIND => true,
            [.., below, last] => last.kind == OVERLAY_KIND && below.kind == MOUNT_KIND,
            _ => false,
        };
        if !ours || !is_dead(place) {
            return Ok(());
        }
        unmount(place, UnmountMode::Detach).map_err(system("Cannot remove the dead mount at", place))?;
        recovered(&format!("A mount whose server had died was removed from {}.", place.display()));
    }
}

/// Returns whether the server of a mount is gone. A listing reaches it even through an overlay.
fn is_dead(place: &Path) -> bool {
    let dead =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted);
    match fs::read_dir(place) {
        Err(error) => dead(&error),
        Ok(listing) => listing.filter_map(Result::err).any(|error| dead(&error)),
    }
}

/// Waits until the server of a mount has given its lease back, which is the last thing that it does. Returns whether it has.
pub fn wait_for_server(store: &Path, mount_point: &Path, limit: Duration) -> bool {
    let started = Instant::now();
    let shown = mount_point.display().to_string();
    while started.elapsed() < limit {
        match lease::list(store) {
            Ok(leases) if leases.iter().any(|lease| lease.mount_point == shown) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return true,
        }
    }
    false
}
