//! Reads one directory.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;

use super::context::{ScanContext, count};
use super::listing::{Entry, Found, Listing, Problem, ProblemKind, join};
use super::mounts::{FileSystem, NAMING_ONLY};
use super::node::{Node, Opened, Outcome, Task};
use crate::model::{Kind, Stat, ZERO_STAT};
use crate::source::stat::stat_of;
use crate::source::{beneath, xattrs};

/// Size of the buffer for directory entries, in bytes: some two thousand names per system call.
const ENTRIES_BYTES: usize = 128 << 10;

/// How often and how long to wait for other threads to close files when no descriptor is left.
const DESCRIPTOR_TRIES: u32 = 20;
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(10);

/// Buffers of one thread, used again for every directory.
pub(super) struct Reader {
    /// What the kernel hands out.
    buffer: Vec<u8>,
    /// The names of the directory, each with a NUL.
    names: Vec<u8>,
    raw: Vec<RawName>,
    /// A path in the making.
    path: Vec<u8>,
}

#[derive(Clone, Copy)]
struct RawName {
    /// Where the name stands in `names`.
    start: usize,
    ino: u64,
    kind: FileType,
}

impl Reader {
    pub(super) fn new() -> Reader {
        Reader { buffer: Vec::with_capacity(ENTRIES_BYTES), names: Vec::new(), raw: Vec::new(), path: Vec::new() }
    }

    fn read_names(&mut self, context: &ScanContext, directory: BorrowedFd<'_>) -> io::Result<()> {
        self.names.clear();
        self.raw.clear();
        let mut entries = RawDir::new(directory, self.buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.raw.push(RawName { start: self.names.len(), ino: entry.ino(), kind: entry.file_type() });
            self.names.extend_from_slice(name.to_bytes_with_nul());
            if context.is_stopped() {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the listing of a directory of which nothing is known but that it cannot be read.
pub(super) fn unreadable(path: Vec<u8>, file_system: u32, problem: Problem) -> Listing {
    let stat = Stat { kind: Kind::Directory, ..ZERO_STAT };
    Listing { path, stat, xattrs: Vec::new(), file_system, entries: Vec::new(), unreadable: Some(problem) }
}

/// Reads one directory and stats what is new in it.
pub(super) fn directory(context: &ScanContext, reader: &mut Reader, task: Task) -> Outcome {
    let path = task.path();
    count(&context.counters.directories, 1);
    let fd = match open(context, &task, &path) {
        Ok(fd) => fd,
        Err(error) => return Outcome::new(closed(context, &task, path, &error)),
    };
    drop(task.parent);
    let ended = reader.read_names(context, fd.as_fd());
    // After the names were read: a change time before the scan then proves that none of them is new.
    count(&context.counters.stats, 1);
    let stat = match stat_of(fd.as_fd(), c"") {
        Ok(stat) => stat,
        Err(error) => {
            let problem = Problem::new(path.clone(), &error);
            return Outcome::new(unreadable(path, task.file_system, problem));
        }
    };
    let mut on = task.file_system;
    let mut file_system = context.file_systems.get(on);
    if stat.dev != file_system.device {
        if !context.cross_file_systems {
            let message = "the mount hides what was there".to_owned();
            let problem = Problem {
                path: path.clone(),
                kind: ProblemKind::Mounted,
                message,
                errno: rustix::io::Errno::XDEV.raw_os_error(),
            };
            return Outcome::new(unreadable(path, on, problem));
        }
        on = context.file_systems.index_of(stat.dev, || fd.try_clone().ok());
        file_system = context.file_systems.get(on);
    }
    let mut problems = Vec::new();
    let own_xattrs = xattrs::of_fd(fd.as_fd()).unwrap_or_else(|error| {
        problems.push(Problem::new(path.clone(), &error));
        Vec::new()
    });
    let holds_mounts = context.parents_of_mounts.contains(&path);
    let changed = stat.ctime >= context.began;
    let mut visit = Visit {
        context,
        fd: fd.as_fd(),
        path: &path,
        on,
        file_system,
        trusted: file_system.trusted_numbers && !changed && !holds_mounts,
        every_stat: !file_system.trusted_numbers || changed,
        probe: file_system.nested_devices || holds_mounts,
        scratch: &mut reader.path,
        elsewhere: Vec::new(),
        problems,
        stats: 0,
        excluded: 0,
    };
    // In the order in which inodes lie on the disk: with cold caches on rotating disks it decides.
    reader.raw.sort_unstable_by_key(|raw| raw.ino);
    let mut entries = Vec::with_capacity(reader.raw.len());
    let mut directories = 0;
    for raw in &reader.raw {
        if context.is_stopped() {
            break;
        }
        let Ok(name) = CStr::from_bytes_until_nul(&reader.names[raw.start..]) else {
            continue;
        };
        if let Some(what) = visit.entry(name, raw) {
            directories += usize::from(what == Found::Directory);
            entries.push(Entry { name: name.to_bytes().into(), what });
        }
    }
    count(&context.counters.names, reader.raw.len() as u64);
    count(&context.counters.stats, visit.stats);
    count(&context.counters.excluded, visit.excluded);
    let Visit { mut problems, mut elsewhere, .. } = visit;
    elsewhere.sort_unstable();
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    problems.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    let mut subdirectories = Vec::with_capacity(directories);
    if directories > 0 {
        let parent = context.keep(path.clone(), fd);
        for entry in entries.iter().filter(|entry| entry.what == Found::Directory) {
            let place = elsewhere.binary_search_by(|(name, _)| name.cmp(&entry.name));
            subdirectories.push(Node::new(Task {
                parent: Some(std::sync::Arc::clone(&parent)),
                name: entry.name.clone(),
                file_system: place.map_or(on, |at| elsewhere[at].1),
            }));
        }
    }
    let unreadable = ended.err().map(|error| Problem::new(path.clone(), &error));
    let listing = Listing { path, stat, xattrs: own_xattrs, file_system: on, entries, unreadable };
    Outcome { subdirectories, problems, ..Outcome::new(listing) }
}

/// Opens the directory of a task.
fn open(context: &ScanContext, task: &Task, path: &[u8]) -> io::Result<OwnedFd> {
    let Some(parent) = &task.parent else {
        return context.root.try_clone();
    };
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        let answer = match &parent.fd {
            Some(fd) => openat(fd, &*task.name, flags, Mode::empty()).map_err(io::Error::from),
            None => beneath::open_beneath(context.root.as_fd(), path, flags),
        };
        let error = match answer {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            // Only the owner may leave the access time alone.
            Some(Errno::PERM) if flags.contains(OFlags::NOATIME) => flags.remove(OFlags::NOATIME),
            Some(Errno::MFILE | Errno::NFILE) if tries < DESCRIPTOR_TRIES && !context.is_stopped() => {
                tries += 1;
                std::thread::sleep(DESCRIPTOR_PAUSE);
            }
            Some(Errno::INTR) => {}
            _ => return Err(error),
        }
    }
}

/// Returns the listing of a directory that cannot be opened: its attributes can still be seen from its parent.
fn closed(context: &ScanContext, task: &Task, path: Vec<u8>, error: &io::Error) -> Listing {
    let problem = Problem::new(path.clone(), error);
    let mut listing = unreadable(path, task.file_system, problem);
    let opened;
    let parent = match task.parent.as_deref() {
        Some(Opened { fd: Some(fd), .. }) => fd.as_fd(),
        _ => match beneath::open_parent(context.root.as_fd(), &listing.path) {
            Ok((fd, _)) => {
                opened = fd;
                opened.as_fd()
            }
            Err(_) => return listing,
        },
    };
    let Ok(name) = std::ffi::CString::new(&*task.name) else {
        return listing;
    };
    count(&context.counters.stats, 1);
    if let Ok(stat) = stat_of(parent, &name)
        && stat.kind == Kind::Directory
    {
        listing.stat = stat;
        listing.xattrs = xattrs::at(parent, &task.name).unwrap_or_default();
    }
    listing
}

/// The reading of one directory.
struct Visit<'a> {
    context: &'a ScanContext,
    fd: BorrowedFd<'a>,
    path: &'a [u8],
    /// Index of the directory's file system.
    on: u32,
    file_system: FileSystem,
    /// The inode numbers of the entries show which inodes were stat'ed before.
    trusted: bool,
    /// Every name delivers a stat, for its number may have gone to a new inode.
    every_stat: bool,
    /// A subdirectory can be on another file system.
    probe: bool,
    scratch: &'a mut Vec<u8>,
    /// Subdirectories on another file system, and its index.
    elsewhere: Vec<(Box<[u8]>, u32)>,
    problems: Vec<Problem>,
    stats: u64,
    excluded: u64,
}

impl Visit<'_> {
    /// Returns what a name leads to, or `None` if it is left out or cannot be looked at.
    fn entry(&mut self, name: &CStr, raw: &RawName) -> Option<Found> {
        let mut stat = None;
        if raw.kind == FileType::Unknown {
            stat = Some(self.stat(name)?);
        }
        let is_directory = match &stat {
            Some(stat) => stat.kind == Kind::Directory,
            None => raw.kind == FileType::Directory,
        };
        if self.is_excluded(name.to_bytes(), is_directory) {
            self.excluded += 1;
            return None;
        }
        if stat.is_none() {
            if is_directory && !self.probe {
                return Some(Found::Directory);
            }
            if !is_directory && self.trusted && self.context.seen.contains(self.on, raw.ino) {
                return Some(Found::Inode { file_system: self.on, ino: raw.ino, stat: None });
            }
        }
        let stat = match stat {
            Some(stat) => stat,
            None => self.stat(name)?,
        };
        let here = stat.dev == self.file_system.device;
        if stat.kind == Kind::Directory {
            if here {
                return Some(Found::Directory);
            }
            if !self.context.cross_file_systems {
                return Some(Found::Boundary(stat));
            }
            let index = self.file_system_of(&stat, name);
            self.elsewhere.push((name.to_bytes().into(), index));
            return Some(Found::Directory);
        }
        // A single file can be a mount point too. It is kept apart by its number, whatever the options say.
        let file_system = if here { self.on } else { self.file_system_of(&stat, name) };
        let ino = stat.ino;
        let stat = if stat.nlink <= 1 {
            Some(stat)
        } else if self.every_stat {
            // If it was there before, it is reported once more all the same.
            let _ = self.context.seen.insert(file_system, stat.clone());
            Some(stat)
        } else {
            // If another thread was faster, its stat is as good.
            let _ = self.context.seen.insert(file_system, stat);
            None
        };
        Some(Found::Inode { file_system, ino, stat })
    }

    fn file_system_of(&self, stat: &Stat, name: &CStr) -> u32 {
        self.context.file_systems.index_of(stat.dev, || openat(self.fd, name, NAMING_ONLY, Mode::empty()).ok())
    }

    /// Calls `statx`, and notes the problem if that fails.
    fn stat(&mut self, name: &CStr) -> Option<Box<Stat>> {
        self.stats += 1;
        match stat_of(self.fd, name) {
            Ok(stat) => Some(Box::new(stat)),
            Err(error) => {
                self.problems.push(Problem::new(join(self.path, name.to_bytes()), &error));
                None
            }
        }
    }

    fn is_excluded(&mut self, name: &[u8], is_directory: bool) -> bool {
        if !self.context.excludes.possible(name, is_directory) {
            return false;
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(self.path);
        if !self.path.is_empty() {
            self.scratch.push(b'/');
        }
        self.scratch.extend_from_slice(name);
        self.context.excludes.excluded(self.scratch, is_directory)
    }
}
