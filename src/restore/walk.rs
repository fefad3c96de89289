//! The walk: one thread that takes the snapshot in order of names, compares it with the target, and decides.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::bounded;
use rustix::fs::{AtFlags, Stat, fstat, syncfs, unlinkat};
use rustix::io::Errno;

use super::destination::{dir_of_file, open_destination};
use super::dir_handles;
use super::directory;
use super::environment::Environment;
use super::file_writer;
use super::group::GroupRestorer;
use super::hard_links::LinkGroups;
use super::inode::{Identity, identity_of};
use super::remove_tree::remove_tree;
use super::target_dir::TargetDir;
use super::{Overwrite, RestoreError, RestoreOptions, RestoreProgress, RestoreReport};
use crate::ids::GroupId;
use crate::limits;
use crate::model::Kind;
use crate::view::{DirectoryNode, Listing, Node, SnapshotView};

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
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        threads => threads,
    };
    let files_left = limits::open_files_left();
    let threads = dir_handles::threads(threads, files_left);
    let environment = Environment::new(view, options, progress, protected, threads, files_left).map_err(unusable)?;
    let failed = |errno: Errno| unusable(errno.into());
    let links = LinkGroups::default();
    let (root, start) = match node {
        Node::Directory(directory) => {
            let (fd, found) = open_destination(&environment, destination).map_err(unusable)?;
            // What is made here is closed to others until the end; what was there is not.
            environment.watches_links.store(environment.is_privileged && found.is_some(), Ordering::Relaxed);
            let finish = match (options.overwrite, &found) {
                (Overwrite::Never, Some(_)) => None,
                _ => Some((directory.attributes.clone(), found)),
            };
            let dir = Arc::new(TargetDir::new(&environment, None, fd, b"", finish).map_err(failed)?);
            (Arc::clone(&dir), Start::Directory(dir, directory, found.is_some()))
        }
        Node::Group(group) => {
            let (fd, name) = dir_of_file(&environment, subtree, destination).map_err(unusable)?;
            let dir = Arc::new(TargetDir::new(&environment, None, fd, b"", None).map_err(failed)?);
            (Arc::clone(&dir), Start::File(dir, group, name))
        }
    };
    // Small, because every batch holds the directories of its files open.
    let (sender, receiver) = bounded(threads);
    std::thread::scope(|scope| {
        for _ in 0..if options.dry_run { 0 } else { threads } {
            let (receiver, environment, links, root) = (receiver.clone(), &environment, &links, &*root);
            std::thread::Builder::new()
                .name("restore".to_owned())
                .spawn_scoped(scope, move || file_writer::work(environment, links, root, &receiver))
                .map_err(RestoreError::Thread)?;
        }
        drop(receiver);
        let groups = GroupRestorer::new(&environment, &links, &root, sender);
        let mut walker = Walker { environment: &environment, groups };
        match start {
            Start::Directory(dir, directory, existed) => walker.tree(dir, &directory, existed),
            Start::File(dir, group, name) => walker.single(&dir, group, &name),
        }
        walker.groups.flush();
        Ok::<_, RestoreError>(())
    })?;
    drop(links);
    let sync = root.fd().map_err(failed)?;
    // The last holder: the destination itself gets its attributes.
    drop(root);
    let mut report = environment.finish()?;
    if let Some(fd) = sync
        && !options.dry_run
    {
        progress.syncing.store(true, Ordering::Relaxed);
        syncfs(&*fd)
            .map_err(|errno| RestoreError::Sync { path: destination.display().to_string(), source: errno.into() })?;
    }
    report.written_bytes = progress.written_bytes.load(Ordering::Relaxed);
    report.elapsed_ms = begun.elapsed().as_millis() as u64;
    Ok(report)
}

enum Start<'e> {
    Directory(Arc<TargetDir<'e>>, DirectoryNode, bool),
    File(Arc<TargetDir<'e>>, GroupId, Box<[u8]>),
}

/// The names of an existing directory, passed in order beside those of the snapshot.
struct Existing {
    names: Vec<Box<[u8]>>,
    at: usize,
}

/// A directory on the way down.
struct Frame<'e> {
    dir: Arc<TargetDir<'e>>,
    listing: Listing,
    existing: Existing,
    /// Whether the snapshot may lack names that the source had: nothing is then removed.
    is_incomplete: bool,
}

/// Takes the directories of the snapshot, and hands the names of link groups on.
struct Walker<'w, 'e> {
    environment: &'e Environment<'e>,
    groups: GroupRestorer<'w, 'e>,
}

impl<'e> Walker<'_, 'e> {
    fn tree(&mut self, dir: Arc<TargetDir<'e>>, directory: &DirectoryNode, existed: bool) {
        let environment = self.environment;
        let mut frames: Vec<Frame<'e>> = self.frame(dir, directory, existed).into_iter().collect();
        while let Some(frame) = frames.last_mut() {
            if environment.is_stopped() {
                return;
            }
            match frame.listing.next() {
                None => {
                    self.remove_strays(frame, None);
                    frames.pop();
                }
                Some(Err(error)) => {
                    frame.is_incomplete = true;
                    environment.view_problem(&frame.dir.path(), &error);
                }
                Some(Ok(entry)) => {
                    environment.progress.entries.fetch_add(1, Ordering::Relaxed);
                    environment.count(|report| report.entries += 1);
                    let exists = self.remove_strays(frame, Some(&entry.name));
                    let found = if exists { frame.dir.stat(&entry.name) } else { Ok(None) };
                    let dir = Arc::clone(&frame.dir);
                    match (found, &entry.node) {
                        (Err(errno), _) => environment.refused(&dir.path_of(&entry.name), "Cannot look at it", errno),
                        (Ok(found), Node::Group(group)) => self.groups.restore(&dir, &entry.name, *group, found),
                        (Ok(found), Node::Directory(inner)) => {
                            let next = self.enter(&dir, &entry.name, inner, found);
                            frames.extend(next);
                            self.groups.throttle(frames.len());
                        }
                    }
                }
            }
        }
    }

    fn single(&mut self, dir: &Arc<TargetDir<'e>>, group: GroupId, name: &[u8]) {
        self.environment.progress.entries.fetch_add(1, Ordering::Relaxed);
        self.environment.count(|report| report.entries += 1);
        match dir.stat(name) {
            Ok(found) => self.groups.restore(dir, name, group, found),
            Err(errno) => self.environment.refused(name, "Cannot look at it", errno),
        }
    }

    /// Starts a directory that is open.
    fn frame(&self, dir: Arc<TargetDir<'e>>, directory: &DirectoryNode, existed: bool) -> Option<Frame<'e>> {
        let environment = self.environment;
        let attributes = &directory.attributes;
        if let Some(errno) = attributes.unreadable {
            let reason = io::Error::from_raw_os_error(errno as i32);
            let message = format!("Incomplete: the source could not list this directory ({reason})");
            environment.problem(&dir.path(), message, false);
        }
        let names = match if existed { dir.names() } else { Ok(Vec::new()) } {
            Ok(names) => names,
            Err(errno) => {
                environment.refused(&dir.path(), "Cannot list it", errno);
                return None;
            }
        };
        match environment.view.list(directory) {
            Ok(listing) => Some(Frame {
                dir,
                listing,
                existing: Existing { names, at: 0 },
                is_incomplete: attributes.unreadable.is_some() || attributes.is_mount_point,
            }),
            Err(error) => {
                environment.view_problem(&dir.path(), &error);
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
            if self.environment.options.delete && !frame.is_incomplete {
                let path = frame.dir.path_of(stray);
                match frame.dir.fd() {
                    Ok(Some(fd)) => drop(remove_tree(self.environment, fd.as_fd(), stray, &path)),
                    Ok(None) => {}
                    Err(errno) => self.environment.refused(&path, "Cannot remove it", errno),
                }
            }
            existing.at += 1;
        }
        false
    }

    /// Opens or makes a directory.
    fn enter(
        &self,
        dir: &Arc<TargetDir<'e>>,
        name: &[u8],
        directory: &DirectoryNode,
        found: Option<Stat>,
    ) -> Option<Frame<'e>> {
        let environment = self.environment;
        let options = environment.options;
        let path = dir.path_of(name);
        let refused = |action, errno| {
            environment.refused(&path, action, errno);
            None
        };
        let begin = |fd, finish, existed| match TargetDir::new(environment, Some(Arc::clone(dir)), fd, name, finish) {
            Ok(dir) => self.frame(Arc::new(dir), directory, existed),
            Err(errno) => refused("Cannot look at the directory", errno),
        };
        let parent = match dir.fd() {
            Ok(Some(parent)) => parent,
            Ok(None) => {
                environment.count(|report| report.directories += 1);
                return begin(None, None, false);
            }
            Err(errno) => return refused("Cannot open the directory above", errno),
        };
        let parent = parent.as_fd();
        if let Some(stat) = found {
            if Kind::from_raw_mode(stat.st_mode) == Some(Kind::Directory) {
                if environment.protected.contains(&identity_of(&stat)) {
                    environment.problem(&path, "Left alone: it is the store", false);
                    return None;
                }
                let keep = options.overwrite == Overwrite::Never;
                let opened = directory::open(environment, parent, name, &stat, !keep && !options.dry_run)
                    .and_then(|fd| Ok((fstat(&fd)?, fd)));
                return match opened {
                    Ok((stat, fd)) => {
                        let finish = (!keep).then(|| (directory.attributes.clone(), Some(stat)));
                        environment.count(|report| report.unchanged += 1);
                        begin(Some(fd), finish, true)
                    }
                    Err(errno) => refused("Cannot open the directory", errno),
                };
            }
            if options.overwrite == Overwrite::Never {
                environment.problem(&path, "Not restored: something in its place is not a directory", false);
                return None;
            }
            if !options.dry_run
                && let Err(errno) = unlinkat(parent, name, AtFlags::empty())
            {
                return refused("Cannot replace it by a directory", errno);
            }
        }
        environment.count(|report| report.directories += 1);
        if options.dry_run {
            return begin(None, None, false);
        }
        match directory::make(environment, parent, name, dir.is_exposed()) {
            Ok(fd) => begin(Some(fd), Some((directory.attributes.clone(), None)), false),
            Err(errno) => refused("Cannot make the directory", errno),
        }
    }
}
