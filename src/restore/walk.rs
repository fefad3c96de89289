//! The walk: one thread that takes the snapshot in order of names, compares it with the target, and decides.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use rustix::fs::{
    AtFlags, FileType, Mode, Stat, fstat, mknodat, readlinkat, renameat, statat, symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::attributes::{Present, apply_named, mtime_of};
use super::contents::{self, FileJob, other_name_failed};
use super::destination::{open_destination, place_of_file};
use super::directory::{self, Place};
use super::environment::Environment;
use super::links::{GroupState, Identity, Linker, Links, Placed, Waiting, copy_message, needs_copy};
use super::{Overwrite, RestoreError, RestoreOptions, RestoreProgress, RestoreReport};
use crate::catalog::group::{Content, LinkGroup};
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, SnapshotView, ViewError};

/// Most small files in a batch ...
const BATCH_FILES: usize = 32;
/// ... and most of their bytes. A file larger than this goes alone.
const BATCH_BYTES: u64 = 1 << 20;
/// The walk waits for the threads when so many directories are open. A process may open 1,024 files, as a rule.
const OPEN_DIRECTORIES: usize = 400;
/// It also waits when so many names wait for the first name of their link group.
const WAITING_LINKS: usize = 4096;

/// Restores a node into the destination; see [`super::restore`].
pub(super) fn run(
    view: &SnapshotView,
    subtree: &[u8],
    node: Node,
    destination: &Path,
    options: &RestoreOptions,
    progress: &RestoreProgress,
    protected: Vec<Identity>,
) -> Result<RestoreReport, RestoreError> {
    let begun = Instant::now();
    let unusable = |source: io::Error| RestoreError::Destination { path: destination.display().to_string(), source };
    if subtree.iter().all(|byte| matches!(byte, b'/' | b'.')) {
        progress.expected_entries.store(view.record().totals.names, Ordering::Relaxed);
        progress.expected_bytes.store(view.record().totals.bytes, Ordering::Relaxed);
    }
    let environment = Environment::new(view, options, progress, protected).map_err(unusable)?;
    let links = Links::default();
    let (root, start) = match node {
        Node::Directory(directory) => {
            let (fd, found) = open_destination(destination, options.dry_run, options.overwrite != Overwrite::Never)
                .map_err(unusable)?;
            let finish = match (options.overwrite, &found) {
                (Overwrite::Never, Some(_)) => None,
                _ => Some((directory.attributes.clone(), found)),
            };
            let place = Arc::new(Place::new(&environment, None, fd, Box::default(), finish));
            (Arc::clone(&place), Start::Directory(place, directory, found.is_some()))
        }
        Node::Group(group) => {
            let (parent, name) = place_of_file(subtree, destination).map_err(unusable)?;
            let fd = match std::fs::File::open(&parent) {
                Ok(file) => Some(OwnedFd::from(file)),
                Err(error) if options.dry_run && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(unusable(error)),
            };
            let place = Arc::new(Place::new(&environment, None, fd, Box::default(), None));
            (Arc::clone(&place), Start::File(place, group, name))
        }
    };
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        threads => threads,
    };
    // Small, because every batch holds the directories of its files open.
    let (sender, receiver) = bounded(threads);
    std::thread::scope(|scope| {
        for _ in 0..if options.dry_run { 0 } else { threads } {
            let (receiver, environment, links, root) = (receiver.clone(), &environment, &links, &*root);
            std::thread::Builder::new()
                .name("restore".to_owned())
                .spawn_scoped(scope, move || contents::work(environment, links, root, &receiver))
                .map_err(RestoreError::Thread)?;
        }
        drop(receiver);
        let mut walker = Walker {
            environment: &environment,
            links: &links,
            linker: Linker::default(),
            root: Arc::clone(&root),
            sender,
            batch: Vec::new(),
            batch_bytes: 0,
            claimed: HashMap::new(),
        };
        match start {
            Start::Directory(place, directory, existed) => walker.tree(place, &directory, existed),
            Start::File(place, group, name) => walker.single(&place, group, &name),
        }
        walker.flush();
        Ok::<_, RestoreError>(())
    })?;
    drop(links);
    let sync = root.fd().map(|fd| fd.try_clone_to_owned()).transpose().map_err(unusable)?;
    // The last holder: the destination itself gets its attributes.
    drop(root);
    let mut report = environment.finish()?;
    if let Some(fd) = sync
        && !options.dry_run
    {
        syncfs(&fd)
            .map_err(|errno| RestoreError::Sync { path: destination.display().to_string(), source: errno.into() })?;
    }
    report.written_bytes = progress.written_bytes.load(Ordering::Relaxed);
    report.elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(report)
}

enum Start<'e> {
    Directory(Arc<Place<'e>>, DirectoryNode, bool),
    File(Arc<Place<'e>>, u64, Box<[u8]>),
}

/// The names of an existing directory, passed in order beside those of the snapshot.
struct Existing {
    names: Vec<Box<[u8]>>,
    at: usize,
}

/// A directory on the way down.
struct Frame<'e> {
    place: Arc<Place<'e>>,
    listing: Listing,
    existing: Existing,
    /// Whether the snapshot may lack names that the source had: nothing is then removed.
    incomplete: bool,
}

struct Walker<'w, 'e> {
    environment: &'e Environment<'e>,
    links: &'w Links<'e>,
    linker: Linker,
    root: Arc<Place<'e>>,
    sender: Sender<Vec<FileJob<'e>>>,
    batch: Vec<FileJob<'e>>,
    batch_bytes: u64,
    /// Inodes of several names that were in the target and stand for a link group now.
    claimed: HashMap<Identity, u64>,
}

impl<'e> Walker<'_, 'e> {
    fn tree(&mut self, place: Arc<Place<'e>>, directory: &DirectoryNode, existed: bool) {
        let environment = self.environment;
        let mut frames: Vec<Frame<'e>> = self.frame(place, directory, existed).into_iter().collect();
        while let Some(frame) = frames.last_mut() {
            if environment.stopped() {
                return;
            }
            match frame.listing.next() {
                None => {
                    self.remove_strays(frame, None);
                    frames.pop();
                }
                Some(Err(error)) => {
                    frame.incomplete = true;
                    environment.view_problem(frame.place.path(), &error);
                }
                Some(Ok(entry)) => {
                    environment.progress.entries.fetch_add(1, Ordering::Relaxed);
                    environment.count(|report| report.entries += 1);
                    let exists = self.remove_strays(frame, Some(&entry.name));
                    let found = if exists { frame.place.stat(&entry.name) } else { Ok(None) };
                    let place = Arc::clone(&frame.place);
                    match (found, &entry.node) {
                        (Err(errno), _) => environment.refused(&place.path_of(&entry.name), "Cannot look at it", errno),
                        (Ok(found), Node::Group(group)) => self.group(&place, &entry.name, *group, found),
                        (Ok(found), Node::Directory(inner)) => {
                            let next = self.enter(&place, &entry.name, inner, found);
                            frames.extend(next);
                            self.throttle(frames.len());
                        }
                    }
                }
            }
        }
    }

    fn single(&mut self, place: &Arc<Place<'e>>, group: u64, name: &[u8]) {
        self.environment.progress.entries.fetch_add(1, Ordering::Relaxed);
        self.environment.count(|report| report.entries += 1);
        match place.stat(name) {
            Ok(found) => self.group(place, name, group, found),
            Err(errno) => self.environment.refused(name, "Cannot look at it", errno),
        }
    }

    /// Starts a directory that is open.
    fn frame(&self, place: Arc<Place<'e>>, directory: &DirectoryNode, existed: bool) -> Option<Frame<'e>> {
        let environment = self.environment;
        let attributes = &directory.attributes;
        if let Some(errno) = attributes.unreadable {
            let reason = io::Error::from_raw_os_error(errno as i32);
            let message = format!("Incomplete: the source could not list this directory ({reason})");
            environment.problem(place.path(), message, false);
        }
        let names = match if existed { place.names() } else { Ok(Vec::new()) } {
            Ok(names) => names,
            Err(errno) => {
                environment.refused(place.path(), "Cannot list it", errno);
                return None;
            }
        };
        match environment.view.list(directory) {
            Ok(listing) => Some(Frame {
                place,
                listing,
                existing: Existing { names, at: 0 },
                incomplete: attributes.unreadable.is_some() || attributes.mount_point,
            }),
            Err(error) => {
                environment.view_problem(place.path(), &error);
                None
            }
        }
    }

    /// Removes the names of the target before `name`, if that is wanted, and returns whether the target has `name`.
    fn remove_strays(&self, frame: &mut Frame<'e>, name: Option<&[u8]>) -> bool {
        let existing = &mut frame.existing;
        while let Some(stray) = existing.names.get(existing.at) {
            match name.map(|name| (**stray).cmp(name)) {
                Some(std::cmp::Ordering::Equal) => {
                    existing.at += 1;
                    return true;
                }
                Some(std::cmp::Ordering::Greater) => return false,
                Some(std::cmp::Ordering::Less) | None => {}
            }
            if self.environment.options.delete
                && !frame.incomplete
                && let Some(fd) = frame.place.fd()
            {
                directory::remove(self.environment, fd, stray, &frame.place.path_of(stray));
            }
            existing.at += 1;
        }
        false
    }

    /// Opens or makes a directory.
    fn enter(
        &self,
        place: &Arc<Place<'e>>,
        name: &[u8],
        directory: &DirectoryNode,
        found: Option<Stat>,
    ) -> Option<Frame<'e>> {
        let environment = self.environment;
        let options = environment.options;
        let path = place.path_of(name);
        let place_with =
            |fd, finish| Arc::new(Place::new(environment, Some(Arc::clone(place)), fd, path.as_slice().into(), finish));
        let Some(parent) = place.fd() else {
            environment.count(|report| report.directories += 1);
            return self.frame(place_with(None, None), directory, false);
        };
        if let Some(stat) = found {
            if kind_of(&stat) == Some(Kind::Directory) {
                if environment.protected.contains(&(stat.st_dev, stat.st_ino)) {
                    environment.problem(&path, "Left alone: it is the store", false);
                    return None;
                }
                let keep = options.overwrite == Overwrite::Never;
                let opened =
                    directory::open(parent, name, !keep && !options.dry_run).and_then(|fd| Ok((fstat(&fd)?, fd)));
                return match opened {
                    Ok((stat, fd)) => {
                        let finish = (!keep).then(|| (directory.attributes.clone(), Some(stat)));
                        environment.count(|report| report.unchanged += 1);
                        self.frame(place_with(Some(fd), finish), directory, true)
                    }
                    Err(errno) => {
                        environment.refused(&path, "Cannot open the directory", errno);
                        None
                    }
                };
            }
            if options.overwrite == Overwrite::Never {
                environment.problem(&path, "Not restored: the target has something else than a directory there", false);
                return None;
            }
            if !options.dry_run
                && let Err(errno) = unlinkat(parent, name, AtFlags::empty())
            {
                environment.refused(&path, "Cannot replace it by a directory", errno);
                return None;
            }
        }
        environment.count(|report| report.directories += 1);
        if options.dry_run {
            return self.frame(place_with(None, None), directory, false);
        }
        match directory::make(parent, name) {
            Ok(fd) => self.frame(place_with(Some(fd), Some((directory.attributes.clone(), None))), directory, false),
            Err(errno) => {
                environment.refused(&path, "Cannot make the directory", errno);
                None
            }
        }
    }

    /// Restores one name of a link group.
    fn group(&mut self, place: &Arc<Place<'e>>, name: &[u8], group: u64, found: Option<Stat>) {
        let environment = self.environment;
        let options = environment.options;
        let path = place.path_of(name);
        let row = match environment.view.group(group) {
            Ok(row) => row,
            Err(error) => return environment.view_problem(&path, &error),
        };
        let mut found = found;
        if let Some(stat) = &found {
            if options.overwrite == Overwrite::Never {
                return environment.count(|report| report.unchanged += 1);
            }
            if kind_of(stat) == Some(Kind::Directory) {
                if !options.delete {
                    let message =
                        "Not restored: the target has a directory there, which is removed only on request (delete)";
                    return environment.problem(&path, message, false);
                }
                let Some(parent) = place.fd() else { return };
                if !directory::remove(environment, parent, name, &path) {
                    return environment.problem(
                        &path,
                        "Not restored: a directory stands there and could not be removed",
                        false,
                    );
                }
                found = None;
            }
        }
        // When the count cannot be had, the group is treated as one of several names, which is always right.
        let several = environment.view.link_count(&Node::Group(group)).map_or(true, |count| count > 1);
        if several && self.further_name(place, name, group, &row, &found) {
            return;
        }
        if let Some(stat) = &found
            && options.overwrite == Overwrite::Changed
            && self.matches(place, name, group, &row, stat)
            && self.claim(stat, group)
        {
            if let Some(fd) = place.fd()
                && !options.dry_run
            {
                apply_named(environment, fd, name, &path, (&row.attributes).into(), Present::Found(stat));
            }
            if several {
                self.place(group, place, name, (stat.st_dev, stat.st_ino));
            }
            return environment.count(|report| report.unchanged += 1);
        }
        self.create(place, name, group, &row, several, found.is_some());
    }

    /// Deals with a name whose link group was seen before. Returns whether it was.
    fn further_name(
        &mut self,
        place: &Arc<Place<'e>>,
        name: &[u8],
        group: u64,
        row: &Arc<LinkGroup>,
        found: &Option<Stat>,
    ) -> bool {
        let environment = self.environment;
        let mut groups = self.links.lock();
        let placed = match groups.get_mut(&group) {
            None => return false,
            Some(GroupState::Failed) => {
                drop(groups);
                other_name_failed(environment, place, name);
                return true;
            }
            Some(GroupState::Writing(waiting)) => {
                environment.link_waits();
                waiting.push(Waiting { place: Arc::clone(place), name: name.into(), replace: found.is_some() });
                drop(groups);
                self.throttle(0);
                return true;
            }
            Some(GroupState::Placed(placed)) => placed.clone(),
        };
        drop(groups);
        let same = |stat: &Stat| (stat.st_dev, stat.st_ino) == placed.identity && !environment.options.dry_run;
        if found.as_ref().is_some_and(same) {
            environment.count(|report| report.unchanged += 1);
            return true;
        }
        let linked = match (self.root.fd(), place.fd()) {
            (Some(root), Some(directory)) if !environment.options.dry_run => {
                self.linker.link(environment, root, &placed, directory, name, found.is_some())
            }
            _ => Ok(()),
        };
        match linked {
            Ok(()) => environment.count(|report| report.links += 1),
            Err(errno) if needs_copy(errno) => {
                environment.problem(&place.path_of(name), copy_message(errno), false);
                self.create(place, name, group, row, true, found.is_some());
            }
            Err(errno) => environment.refused(&place.path_of(name), "Cannot link it", errno),
        }
        true
    }

    /// Takes an inode of the target for a link group, unless it stands for another one already.
    fn claim(&mut self, stat: &Stat, group: u64) -> bool {
        // An inode of one name cannot be met again.
        stat.st_nlink <= 1 || *self.claimed.entry((stat.st_dev, stat.st_ino)).or_insert(group) == group
    }

    fn place(&self, group: u64, place: &Place<'e>, name: &[u8], identity: Identity) {
        let placed = Placed { directory: place.path().into(), name: name.into(), identity };
        self.links.lock().insert(group, GroupState::Placed(placed));
    }

    /// Returns whether what the target has is, by all that can be seen without reading it, what the snapshot has.
    fn matches(&self, place: &Place<'e>, name: &[u8], group: u64, row: &LinkGroup, stat: &Stat) -> bool {
        let wanted = &row.attributes;
        if kind_of(stat) != Some(wanted.kind) {
            return false;
        }
        match wanted.kind {
            Kind::File => stat.st_size as u64 == wanted.size && mtime_of(stat) == wanted.mtime,
            Kind::Symlink => {
                let Some(fd) = place.fd() else { return false };
                let target = readlinkat(fd, name, Vec::new());
                match (target, self.environment.view.readlink(group)) {
                    (Ok(target), Ok(wanted)) => target.as_bytes() == wanted,
                    _ => false,
                }
            }
            Kind::CharDevice | Kind::BlockDevice => stat.st_rdev == wanted.rdev,
            Kind::Fifo | Kind::Socket => true,
            Kind::Directory => false,
        }
    }

    /// Makes the inode of a link group under its first name.
    fn create(
        &mut self,
        place: &Arc<Place<'e>>,
        name: &[u8],
        group: u64,
        row: &Arc<LinkGroup>,
        several: bool,
        replace: bool,
    ) {
        let environment = self.environment;
        if let Content::Unreadable(errno) = row.content {
            let error = ViewError::Unreadable { group, errno };
            return environment.view_problem(&place.path_of(name), &error);
        }
        if environment.options.dry_run {
            if several {
                self.place(group, place, name, (0, 0));
            }
            return environment.count(|report| match row.attributes.kind {
                Kind::File => report.files += 1,
                _ => report.others += 1,
            });
        }
        if row.attributes.kind == Kind::File {
            if several {
                self.links.lock().insert(group, GroupState::Writing(Vec::new()));
            }
            let size = row.attributes.size;
            let (place, row) = (Arc::clone(place), Arc::clone(row));
            let job = FileJob { place, name: name.into(), group, row, several };
            if size > BATCH_BYTES {
                return self.send(vec![job]);
            }
            self.batch.push(job);
            self.batch_bytes += size;
            if self.batch.len() >= BATCH_FILES || self.batch_bytes >= BATCH_BYTES {
                self.flush();
            }
            return;
        }
        match self.special(place, name, group, row, replace) {
            Ok(identity) => {
                environment.count(|report| report.others += 1);
                if several {
                    self.place(group, place, name, identity);
                }
            }
            Err(SpecialError::View(error)) => environment.view_problem(&place.path_of(name), &error),
            Err(SpecialError::System(errno)) => environment.refused(&place.path_of(name), "Cannot make it", errno),
        }
    }

    /// Makes a symbolic link, a fifo, a socket or a device.
    fn special(
        &self,
        place: &Place<'e>,
        name: &[u8],
        group: u64,
        row: &LinkGroup,
        replace: bool,
    ) -> Result<Identity, SpecialError> {
        let environment = self.environment;
        let Some(directory) = place.fd() else { return Ok((0, 0)) };
        let temporary = if replace { environment.temporary_name() } else { name.to_vec() };
        let attributes = &row.attributes;
        let node = |kind, device| mknodat(directory, temporary.as_slice(), kind, Mode::RUSR | Mode::WUSR, device);
        match attributes.kind {
            Kind::Symlink => {
                let target = environment.view.readlink(group).map_err(SpecialError::View)?;
                symlinkat(target.as_slice(), directory, temporary.as_slice())?;
            }
            Kind::Fifo => node(FileType::Fifo, 0)?,
            Kind::Socket => node(FileType::Socket, 0)?,
            Kind::CharDevice => node(FileType::CharacterDevice, attributes.rdev)?,
            Kind::BlockDevice => node(FileType::BlockDevice, attributes.rdev)?,
            Kind::File | Kind::Directory => return Err(Errno::INVAL.into()),
        }
        let present = Present::New { inherits: place.inherits() };
        apply_named(environment, directory, &temporary, &place.path_of(name), attributes.into(), present);
        if replace && let Err(errno) = renameat(directory, temporary.as_slice(), directory, name) {
            let _ = unlinkat(directory, temporary.as_slice(), AtFlags::empty());
            return Err(errno.into());
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Hands the batch to the threads.
    fn flush(&mut self) {
        self.batch_bytes = 0;
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.send(batch);
        }
    }

    fn send(&mut self, batch: Vec<FileJob<'e>>) {
        self.environment.batch_begins();
        // The threads outlive the sender; should all have died, the scope passes their panic on.
        if self.sender.send(batch).is_err() {
            self.environment.batch_ends();
        }
    }

    /// Waits while too much is under way; `depth` directories are open for the walk itself.
    fn throttle(&mut self, depth: usize) {
        let directories = OPEN_DIRECTORIES + depth;
        if self.environment.overloaded(directories, WAITING_LINKS) {
            self.flush();
            self.environment.wait(directories, WAITING_LINKS);
        }
    }
}

enum SpecialError {
    View(ViewError),
    System(Errno),
}

impl From<Errno> for SpecialError {
    fn from(errno: Errno) -> SpecialError {
        SpecialError::System(errno)
    }
}

fn kind_of(stat: &Stat) -> Option<Kind> {
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return None,
    })
}
