//! Answers the kernel's questions from a tree.
//!
//! What is answered is decided in functions that need no mount ([`TreeServer::find`], [`TreeServer::page`], ...); the implementation of
//! [`Filesystem`] only carries the answers over.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use crate::overflow::Overflow;
use tracing::{Level, enabled, warn};

use crate::{Errno, FileAttributes, FileKind, ImmutableTree, Log, ROOT, TRACE_TARGET, TreeError};

/// How long the kernel may keep what never changes: a year.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long it may keep what can.
const A_MOMENT: Duration = Duration::from_secs(1);
/// Most bytes of one read, as far as the kernel supports it.
const READ_BYTES: u32 = 1 << 20;
/// Read-ahead requests that the kernel may have under way.
const BACKGROUND_REQUESTS: u16 = 32;
/// Inodes whose failures are logged; all others fail in silence.
const MOST_FAILURES: usize = 10_000;
/// A request that takes so long is an event: most take less than a millisecond, and one that waits for a sleeping disk takes seconds.
const SLOW: Duration = Duration::from_secs(1);
/// Unit of the figures that `df` shows, in bytes.
const BLOCK_BYTES: u32 = 4096;
/// Unit of an inode's count of blocks, in bytes; see stat(2).
const STAT_BLOCK_BYTES: u64 = 512;

thread_local! {
    /// What a thread reads into: of the size of the largest read it has answered, up to [`READ_BYTES`].
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends a buffer of the thread's, with anything in it.
fn with_buffer<R>(length: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut buffer = BUFFER.take();
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let result = work(&mut buffer[..length]);
    if buffer.len() <= READ_BYTES as usize {
        BUFFER.set(buffer);
    }
    result
}

/// One answer to a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the name stands for; `None` when there is no such name and the kernel may remember that.
    pub attributes: Option<FileAttributes>,
    /// How long the name may be kept.
    pub name_ttl: Duration,
    /// How long the attributes may be kept.
    pub attributes_ttl: Duration,
}

/// One entry of a page of a listing.
#[derive(Clone, Copy, Debug)]
pub struct PageEntry<'a> {
    /// The name, `.` and `..` included.
    pub name: &'a [u8],
    /// What it stands for.
    pub attributes: FileAttributes,
    /// How long both may be kept.
    pub ttl: Duration,
    /// Where the next page begins if this entry is the last of its page.
    pub next_offset: u64,
}

/// Serves a tree to the kernel.
pub struct TreeServer<T> {
    inner: Arc<Inner<T>>,
    overflow: Overflow,
    /// Dropped when the kernel has no more questions.
    token: Option<Sender<()>>,
}

struct Inner<T> {
    tree: Arc<T>,
    log: Log,
    /// Inodes whose failure was reported.
    failures: Mutex<HashSet<u64>>,
}

impl<T: ImmutableTree + 'static> TreeServer<T> {
    /// Makes a server. Of its threads all but two may read at a time.
    ///
    /// # Errors
    /// Fails when threads cannot be started.
    pub fn new(tree: Arc<T>, threads: usize, log: Log) -> io::Result<TreeServer<T>> {
        let overflow = Overflow::start(threads.saturating_sub(2).max(1), threads)?;
        let inner = Inner { tree, log, failures: Mutex::default() };
        Ok(TreeServer { inner: Arc::new(inner), overflow, token: None })
    }

    /// Makes the server drop `token` when it has ended.
    pub(crate) fn with_token(self, token: Sender<()>) -> TreeServer<T> {
        TreeServer { token: Some(token), ..self }
    }

    /// Looks a name up. `.` and `..` are answered too: the kernel looks them up when it finds an inode by its number.
    ///
    /// # Errors
    /// As [`ImmutableTree::lookup`], but for names that are not there and never will be.
    pub fn find(&self, parent: u64, name: &[u8]) -> Result<Found, Errno> {
        self.inner.find(parent, name)
    }

    /// Lists a directory from an offset on, `.` and `..` first, until `add` returns false.
    ///
    /// # Errors
    /// As [`ImmutableTree::list`].
    pub fn page(&self, directory: u64, offset: u64, add: &mut dyn FnMut(PageEntry<'_>) -> bool) -> Result<(), Errno> {
        self.inner.page(directory, offset, add)
    }

    /// Returns the value of an extended attribute, or all names each with a NUL behind it.
    ///
    /// # Errors
    /// As [`ImmutableTree::extended_attribute`].
    pub fn extended(&self, inode: u64, name: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        self.inner.query("xattr", inode, |tree| match name {
            Some(name) => Ok(tree.extended_attribute(inode, name)?.into_vec()),
            None => {
                let mut names = Vec::new();
                for attribute in tree.extended_attributes(inode)? {
                    names.extend_from_slice(&attribute.name);
                    names.push(0);
                }
                Ok(names)
            }
        })
    }
}

impl<T: ImmutableTree> Inner<T> {
    /// Asks the tree. The one place where errors become error numbers; those that mean damage are logged, each once for an inode. A panic is
    /// an error of this one question.
    fn query<R>(
        &self,
        request: &'static str,
        inode: u64,
        question: impl FnOnce(&T) -> Result<R, TreeError>,
    ) -> Result<R, Errno> {
        let started = enabled!(target: TRACE_TARGET, Level::WARN).then(Instant::now);
        let answer = catch_unwind(AssertUnwindSafe(|| question(&self.tree)));
        if let Some(elapsed) = started.map(|started| started.elapsed()).filter(|elapsed| *elapsed >= SLOW) {
            warn!(target: TRACE_TARGET, inode, elapsed_ms = elapsed.as_millis() as u64, "slow {request}");
        }
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => TreeError::new(Errno::IO, "internal error"),
        };
        // That a name or an attribute is not there is an answer.
        if !matches!(error.errno, Errno::NOENT | Errno::NODATA) {
            warn!(target: TRACE_TARGET, inode, errno = error.errno.0, %error, "{request} failed");
        }
        if error.errno == Errno::IO {
            self.log_failure(inode, &error.to_string());
        }
        Err(error.errno)
    }

    fn log_failure(&self, inode: u64, message: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MOST_FAILURES || !failures.insert(inode) {
            return;
        }
        let is_last = failures.len() == MOST_FAILURES;
        drop(failures);
        (self.log)(&format!("inode {inode} cannot be read (`find -inum {inode}` there names it): {message}"));
        if is_last {
            (self.log)("so many inodes cannot be read that no more of them are reported");
        }
    }

    fn read<'a>(&self, inode: u64, offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let count = self.query("read", inode, |tree| tree.read(inode, offset, buffer))?;
        buffer.get(..count).ok_or(Errno::IO)
    }

    /// Returns what distinguishes the handles of an inode from those of the same number in another tree. The kernel made the root, and knows it by 0.
    fn generation(&self, inode: u64) -> Generation {
        Generation(if matches!(inode, 0 | ROOT) { 0 } else { self.tree.generation(inode).into() })
    }

    fn ttl(&self, directory: u64) -> Duration {
        if self.tree.is_volatile(directory) { A_MOMENT } else { FOR_EVER }
    }

    fn find(&self, parent: u64, name: &[u8]) -> Result<Found, Errno> {
        let name_ttl = self.ttl(parent);
        let found = self.query("lookup", parent, |tree| match name {
            b"." => tree.attributes(parent),
            b".." => tree.attributes(tree.parent(parent)?),
            name => tree.lookup(parent, name),
        });
        match found {
            Ok(attributes) => {
                Ok(Found { attributes: Some(attributes), name_ttl, attributes_ttl: self.ttl(attributes.inode) })
            }
            // Known not to be there: as good as an answer.
            Err(Errno::NOENT) if name_ttl == FOR_EVER => {
                Ok(Found { attributes: None, name_ttl, attributes_ttl: FOR_EVER })
            }
            Err(errno) => Err(errno),
        }
    }

    fn page(&self, directory: u64, offset: u64, add: &mut dyn FnMut(PageEntry<'_>) -> bool) -> Result<(), Errno> {
        for (at, name) in [(0, b".".as_slice()), (1, b"..")] {
            if offset > at {
                continue;
            }
            let attributes = self.query("list", directory, |tree| {
                tree.attributes(if at == 0 { directory } else { tree.parent(directory)? })
            })?;
            if !add(PageEntry { name, attributes, ttl: self.ttl(directory), next_offset: at + 1 }) {
                return Ok(());
            }
        }
        let names_ttl = self.ttl(directory);
        self.query("list", directory, |tree| {
            tree.list(directory, offset.saturating_sub(2), &mut |entry| {
                let next_offset = entry.next_cookie + 2;
                let ttl = names_ttl.min(self.ttl(entry.inode));
                match entry.attributes {
                    Some(attributes) => add(PageEntry { name: entry.name, attributes, ttl, next_offset }),
                    // Listed, for it is there; a look-up of the name gets the error.
                    None => {
                        let attributes = FileAttributes::unknown(entry.inode, entry.kind);
                        add(PageEntry { name: entry.name, attributes, ttl: Duration::ZERO, next_offset })
                    }
                }
            })
        })
    }
}

impl FileAttributes {
    /// Returns attributes that say nothing but number and kind.
    fn unknown(inode: u64, kind: FileKind) -> FileAttributes {
        FileAttributes {
            inode,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            link_count: 1,
            size: 0,
            allocated_bytes: 0,
            rdev: 0,
            mtime_seconds: 0,
            mtime_nanos: 0,
        }
    }
}

fn time(seconds: i64, nanos: u32) -> SystemTime {
    // fuser turns the sign around.
    let seconds = seconds.max(-i64::MAX);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    whole.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// Turns a device number as `makedev(3)` makes it into the kernel's 32 bits, which FUSE carries.
fn kernel_device(rdev: u64) -> u32 {
    let major = (rdev >> 32 & 0xffff_f000) | (rdev >> 8 & 0xfff);
    let minor = (rdev >> 12 & 0xffff_ff00) | (rdev & 0xff);
    ((minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12) as u32
}

fn attr(attributes: &FileAttributes) -> FileAttr {
    let mtime = time(attributes.mtime_seconds, attributes.mtime_nanos);
    FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size,
        blocks: attributes.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
        // A snapshot keeps one time only.
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: match attributes.kind {
            FileKind::File => FileType::RegularFile,
            FileKind::Directory => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::Fifo => FileType::NamedPipe,
            FileKind::Socket => FileType::Socket,
            FileKind::CharDevice => FileType::CharDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
        },
        perm: attributes.mode as u16 & 0o7777,
        nlink: attributes.link_count,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: kernel_device(attributes.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// What the kernel is sent for a name that is not there, so that it remembers: inode number 0.
fn nothing() -> FileAttr {
    attr(&FileAttributes::unknown(0, FileKind::File))
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> fuser::Errno {
        fuser::Errno::from_i32(errno.0)
    }
}

impl<T: ImmutableTree + 'static> Filesystem for TreeServer<T> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without FUSE_READDIRPLUS_AUTO: a listing always brings the attributes along, so that looking at each entry costs no more questions.
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            // Lets a volatile directory's cached listing be dropped when its time of change moves.
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ASYNC_READ;
        if self.inner.tree.may_have_acls() {
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        for flag in wanted.iter() {
            // What an old kernel does not know costs speed only.
            let _ = config.add_capabilities(flag);
        }
        // Each sets what it can; the smaller value that is offered on refusal is what the kernel has anyway.
        if let Err(most) = config.set_max_readahead(READ_BYTES * 4) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_write(READ_BYTES);
        let _ = config.set_max_background(BACKGROUND_REQUESTS);
        // At least 1 lets an overlay be stacked on the mount, which `--writable` does.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn destroy(&mut self) {
        self.token = None;
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent.0, name.as_bytes()) {
            Ok(Found { attributes, name_ttl, attributes_ttl }) => {
                let attr = attributes.as_ref().map_or_else(nothing, attr);
                reply.entry_with_ttls(&attributes_ttl, &name_ttl, &attr, self.inner.generation(attr.ino.0));
            }
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inner.query("getattr", inode.0, |tree| tree.attributes(inode.0)) {
            Ok(attributes) => reply.attr(&self.inner.ttl(inode.0), &attr(&attributes)),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.inner.query("readlink", inode.0, |tree| tree.readlink(inode.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno.into()),
        }
    }

    // After one ENOSYS the kernel never requests this again before it reads.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inner = Arc::clone(&self.inner);
        self.overflow.run(move || {
            with_buffer(size as usize, |buffer| match inner.read(inode.0, offset, buffer) {
                Ok(bytes) => reply.data(bytes),
                Err(errno) => reply.error(errno.into()),
            });
        });
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.page(inode.0, offset, &mut |entry| {
            let attr = attr(&entry.attributes);
            !reply.add(attr.ino, entry.next_offset, attr.kind, OsStr::from_bytes(entry.name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.page(inode.0, offset, &mut |entry| {
            let attr = attr(&entry.attributes);
            let name = OsStr::from_bytes(entry.name);
            !reply.add(attr.ino, entry.next_offset, name, &entry.ttl, &attr, self.inner.generation(attr.ino.0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        match self.inner.query("statfs", inode.0, |tree| Ok(tree.totals())) {
            // Full to the last block, as a medium that cannot be written to is.
            Ok(totals) => {
                let blocks = totals.bytes.div_ceil(BLOCK_BYTES.into());
                reply.statfs(blocks, 0, 0, totals.inodes, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
            }
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        give_extended(reply, self.extended(inode.0, Some(name.as_bytes())), size);
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        give_extended(reply, self.extended(inode.0, None), size);
    }
}

/// Answers with the bytes, or with their count if that is requested (a size of 0).
fn give_extended(reply: ReplyXattr, answer: Result<Vec<u8>, Errno>, size: u32) {
    match answer {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(errno.into()),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
