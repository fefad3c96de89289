//! A directory of the target that is being filled.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, Stat, fgetxattr, fstat, openat, statat};
use rustix::io::Errno;

use super::attributes::{DEFAULT_ACL, Present, apply_open};
use super::dir_handles::DirHandle;
use super::directory;
use super::environment::Environment;
use super::exposure::is_exposed;
use super::inode::{OPEN, identity_of};
use crate::catalog::directory::DirectoryAttributes;

/// A directory of the target that is being filled. Everything under way in or below it holds it; when the last lets go, the directory gets its
/// attributes.
pub(super) struct TargetDir<'e> {
    environment: &'e Environment<'e>,
    /// `None` in a dry run, where the directory is not there.
    handle: Option<Arc<DirHandle>>,
    /// Its name in the directory above; empty for the destination.
    name: Box<[u8]>,
    /// Attributes to give at the end, and what it had before, `None` for one that was just made.
    finish: Option<(DirectoryAttributes, Option<Stat>)>,
    /// Whether what is made here gets a default ACL.
    inherits: bool,
    /// Whether others may exchange its names meanwhile.
    exposed: bool,
    /// Whether they may exchange its names or those that led to it.
    reached_by_exposed: bool,
    /// The destination stays open: from it all others are found again.
    _destination: Option<Arc<OwnedFd>>,
    is_done: bool,
    /// Held so that a directory is done after all that are in it.
    parent: Option<Arc<TargetDir<'e>>>,
}

impl<'e> TargetDir<'e> {
    /// Takes an open directory. `found` in `finish` is what it had before, `None` for one that was just made.
    pub(super) fn new(
        environment: &'e Environment<'e>,
        parent: Option<Arc<TargetDir<'e>>>,
        fd: Option<OwnedFd>,
        name: &[u8],
        finish: Option<(DirectoryAttributes, Option<Stat>)>,
    ) -> Result<TargetDir<'e>, Errno> {
        let mut inherits = false;
        let mut exposed = false;
        let mut handle = None;
        let mut destination = None;
        if let Some(fd) = fd {
            let stat = fstat(&fd)?;
            inherits = match (&finish, &parent) {
                (Some((_, None)), Some(parent)) => parent.inherits,
                _ => fgetxattr(&fd, DEFAULT_ACL, &mut [0; 0][..]).is_ok(),
            };
            exposed = is_exposed(environment, fd.as_fd(), &stat);
            let (admitted, held) = environment.handles.admit(fd, identity_of(&stat));
            destination = Some(held).filter(|_| parent.is_none());
            handle = Some(admitted);
        }
        environment.directory_opened();
        let reached_by_exposed = exposed || parent.as_ref().is_some_and(|parent| parent.reached_by_exposed);
        Ok(TargetDir {
            environment,
            handle,
            name: name.into(),
            finish,
            inherits,
            exposed,
            reached_by_exposed,
            _destination: destination,
            is_done: false,
            parent,
        })
    }

    /// Returns the directory, which every caller but a dry run knows to be there: it is opened again if it had to be closed.
    ///
    /// # Errors
    /// `STALE` when another directory has its place now.
    pub(super) fn fd(&self) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let Some(handle) = &self.handle else { return Ok(None) };
        if let Some(fd) = handle.get() {
            return Ok(Some(fd));
        }
        let mut way = vec![(handle, &self.name)];
        let mut above = self.parent.as_deref();
        let mut fd = loop {
            let dir = above.ok_or(Errno::STALE)?;
            let handle = dir.handle.as_ref().ok_or(Errno::STALE)?;
            if let Some(fd) = handle.get() {
                break fd;
            }
            way.push((handle, &dir.name));
            above = dir.parent.as_deref();
        };
        for (handle, name) in way.into_iter().rev() {
            fd = self.reopen(handle, &fd, name)?;
        }
        Ok(Some(fd))
    }

    fn reopen(&self, handle: &Arc<DirHandle>, from: &OwnedFd, name: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        let handles = &self.environment.handles;
        let fd = handles.with_room(|| openat(from, name, OPEN, Mode::empty()))?;
        if identity_of(&fstat(&fd)?) != handle.identity {
            return Err(Errno::STALE);
        }
        Ok(handles.reopened(handle, fd))
    }

    /// Returns its path below the destination.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = Some(self);
        while let Some(dir) = at {
            if !dir.name.is_empty() {
                names.push(&*dir.name);
            }
            at = dir.parent.as_deref();
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Returns the path of a name in it.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Returns whether what is made in it gets a default ACL.
    pub(super) fn inherits_acl(&self) -> bool {
        self.inherits
    }

    /// Returns whether others than root may exchange its names while root works in it.
    pub(super) fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// Returns whether others than root may have put there what is in it: inodes of anybody, under names of their choice.
    pub(super) fn is_reached_by_exposed(&self) -> bool {
        self.reached_by_exposed
    }

    /// Returns what a name stands for, without following it; `None` when it is not there.
    pub(super) fn stat(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        let Some(fd) = self.fd()? else { return Ok(None) };
        match statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Returns all names, sorted.
    pub(super) fn names(&self) -> Result<Vec<Box<[u8]>>, Errno> {
        let Some(fd) = self.fd()? else { return Ok(Vec::new()) };
        self.environment.handles.with_room(|| directory::names_of((*fd).as_fd()))
    }

    /// Gives the directory its attributes.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.is_done, true) {
            return;
        }
        if let Some((attributes, found)) = &self.finish
            && self.handle.is_some()
            && !self.environment.options.dry_run
        {
            match self.fd() {
                Ok(Some(fd)) => {
                    self.find_above(&fd);
                    // What happened inside has changed the time of modification, so the one that was found says nothing.
                    let touched = found.map(|mut stat| {
                        stat.st_mtime = i64::MIN;
                        stat
                    });
                    let present = match &touched {
                        Some(stat) => Present::Found(stat),
                        None => Present::New { inherits: self.inherits },
                    };
                    apply_open(self.environment, fd.as_fd(), &self.path(), attributes.into(), present);
                }
                Ok(None) => {}
                Err(errno) => self.environment.refused(&self.path(), "Cannot set its attributes", errno),
            }
        }
        self.handle = None;
        self.environment.directory_closed();
    }

    /// Opens the directory above again, if it had to be closed, while it is one step away: the attributes of this one may forbid the step.
    fn find_above(&self, fd: &OwnedFd) {
        let above = self.parent.as_ref().and_then(|parent| parent.handle.as_ref());
        if let Some(above) = above.filter(|above| above.get().is_none()) {
            // If this fails, it is looked for from the destination on.
            let _ = self.reopen(above, fd, b"..");
        }
    }
}

impl Drop for TargetDir<'_> {
    fn drop(&mut self) {
        self.finish();
        // One after the other, and not each within the one below it: a tree may be deeper than the stack.
        let mut next = self.parent.take();
        while let Some(mut dir) = next.and_then(Arc::into_inner) {
            dir.finish();
            next = dir.parent.take();
        }
    }
}
