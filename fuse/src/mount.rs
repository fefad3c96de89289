//! Giving a server a place in the tree of files, and taking it away again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{ImmutableTree, Log, MountEntry, TreeServer, mount_table, mounts_at};

/// Choices for a mount.
#[derive(Clone)]
pub struct MountOptions {
    /// What the table of mounts names as the source.
    pub source: String,
    /// The kind that the table of mounts shows behind `fuse.`.
    pub kind: String,
    /// Whether users other than the one who mounts may look in. The kernel checks permissions either way.
    pub allow_other: bool,
    /// Threads that answer the kernel, at least 3.
    pub threads: usize,
    /// How far the kernel reads ahead in a file, in KiB. Only root can set it.
    pub read_ahead_kib: u32,
    /// Where failures are reported.
    pub log: Log,
}

/// How an unmount treats those who still use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountMode {
    /// Fails with `EBUSY`.
    Refuse,
    /// Takes the mount from its place at once; it ends when the last user lets go.
    Detach,
}

/// A mounted tree. Dropping it takes the mount from its place.
pub struct Mount {
    /// `None` once it was let go.
    session: Option<BackgroundSession>,
    mount_point: PathBuf,
    /// Its line in the table of mounts.
    entry: Option<MountEntry>,
    /// Closed when the server has ended.
    ended: Receiver<()>,
}

/// Mounts a tree at an existing directory. On return the mount can be used.
///
/// # Errors
/// Fails when the kernel, or `fusermount3` for a user other than root, refuses.
pub fn mount<T: ImmutableTree + 'static>(
    tree: Arc<T>,
    mount_point: &Path,
    options: &MountOptions,
) -> io::Result<Mount> {
    let (running, ended) = channel();
    let (place, log) = (mount_point.display().to_string(), Arc::clone(&options.log));
    let log: Log = Arc::new(move |line: &str| log(&format!("{place}: {line}")));
    let server = TreeServer::new(tree, options.threads, log)?.with_token(running);
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads);
    let session = match mount_as_root(mount_point, options)? {
        Some(device) => {
            let started = Session::from_fd(server, device, config.acl, config).and_then(Session::spawn);
            // Nobody would ever serve it.
            started.inspect_err(|_| drop(unmount(mount_point, UnmountMode::Detach)))?
        }
        None => {
            // The same as for root, in the words of the helper that mounts for users.
            config.mount_options = vec![
                MountOption::RO,
                MountOption::NoDev,
                MountOption::NoSuid,
                MountOption::NoAtime,
                MountOption::DefaultPermissions,
                MountOption::FSName(options.source.clone()),
                MountOption::Subtype(options.kind.clone()),
            ];
            Session::new(server, mount_point, &config)?.spawn()?
        }
    };
    let entry = mounts_at(mount_point)?.pop();
    let mount = Mount { session: Some(session), mount_point: mount_point.to_owned(), entry, ended };
    mount.raise_read_ahead(options.read_ahead_kib);
    Ok(mount)
}

/// Asks the kernel for the mount, which it grants to root, and returns the open device; `None` for other users.
///
/// Permissions are checked by the kernel; devices and set-user-id bits in a copy of somebody else's tree are nothing to act on. See
/// fuse(4) for the options, and mount(2) for a type with a subtype.
fn mount_as_root(mount_point: &Path, options: &MountOptions) -> io::Result<Option<OwnedFd>> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    // Other users need it as well: fuser opens it in their name.
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| io::Error::new(error.kind(), format!("/dev/fuse cannot be opened: {error}")))?;
    if !uid.is_root() {
        return Ok(None);
    }
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    let (source, data) = (CString::new(options.source.as_str())?, CString::new(data)?);
    match rustix::mount::mount(&source, mount_point, format!("fuse.{}", options.kind), flags, data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        // Root of a container that may not mount: the helper, perhaps, may.
        Err(rustix::io::Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some() && self.is_mounted() {
            let _ = unmount(&self.mount_point, UnmountMode::Detach);
        }
    }
}

impl Mount {
    /// Lets the kernel request large pieces. A mount that may not is slower and as right.
    fn raise_read_ahead(&self, kib: u32) {
        if let Ok(root) = fs::metadata(&self.mount_point) {
            let (major, minor) = (rustix::fs::major(root.dev()), rustix::fs::minor(root.dev()));
            let _ = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string());
        }
    }

    /// Waits until the server has ended, which follows an unmount, or the time is over. Returns whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        matches!(self.ended.recv_timeout(timeout), Err(RecvTimeoutError::Disconnected))
    }

    /// Returns whether the table of mounts still has it.
    pub fn is_mounted(&self) -> bool {
        // The kernel gives a number anew as soon as it is free, so the number alone may be another's by now. The place may have been moved.
        let is_it = |entry: &MountEntry, own: &MountEntry| {
            (entry.id, &entry.kind, &entry.source) == (own.id, &own.kind, &own.source)
        };
        self.entry
            .as_ref()
            .is_some_and(|own| mount_table().is_ok_and(|table| table.iter().any(|entry| is_it(entry, own))))
    }

    /// Ends the server's threads after [`wait`](Mount::wait) has reported that there is nothing left to serve.
    ///
    /// # Errors
    /// Fails when the server ended although it is still mounted. The mount is left as it is then, so that whoever uses it gets errors and never an
    /// empty directory.
    pub fn finish(mut self) -> io::Result<()> {
        let session = self.session.take();
        if self.is_mounted() {
            std::mem::forget(session);
            return Err(io::Error::other("the server failed, and the mount point gives errors until it is unmounted"));
        }
        session.map_or(Ok(()), BackgroundSession::join)
    }
}

/// Unmounts what is at a place.
///
/// # Errors
/// `EBUSY` when it is in use, `EINVAL` when nothing is mounted there, `EPERM` when the user may not.
pub fn unmount(mount_point: &Path, mode: UnmountMode) -> io::Result<()> {
    let flags = match mode {
        UnmountMode::Refuse => UnmountFlags::NOFOLLOW,
        UnmountMode::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(mount_point, flags) {
        Err(rustix::io::Errno::PERM) => unmount_as_user(mount_point, mode),
        other => Ok(other?),
    }
}

/// Unmounts through the helper that may do so for the user who mounted.
fn unmount_as_user(mount_point: &Path, mode: UnmountMode) -> io::Result<()> {
    let option = if mode == UnmountMode::Detach { "-uz" } else { "-u" };
    let ended = Command::new("fusermount3").arg(option).arg("--").arg(mount_point).stdin(Stdio::null()).output();
    match ended {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let busy = message.contains("busy");
            Err(io::Error::new(if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other }, message))
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("fusermount3 cannot be run: {error}"))),
    }
}
