//! From what `find` prints to listings: depth-first, sorted by the bytes of the names, as the scan of a local tree gives them.
//!
//! `find` goes through a directory in the order of the disk. So its records are sorted first, by the directory and then the name: the key is the directory's
//! path with NUL for each slash, two NULs, and the name. No name holds a NUL, so a directory's names come together, before those of its subdirectories, and
//! directories come depth-first. Sorting on the remote host would need space on its disk, and be silent for as long as it takes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use super::AgentlessOptions;
use super::find::{self, RECORD_MAX_BYTES};
use super::read::headers;
use super::shell::{Shell, WORDS_MAX_BYTES, shown};
use super::sort::{MEMORY_BYTES, Record, Sorted, Sorter};
use super::xattr_probe::probe_xattrs;
use crate::model::{Kind, Stat, Xattr};
use crate::source::scan::{Entry, Found, Listing, Problem};
use crate::source::tree::{ScanEnd, SourceError};

/// Listings whose extended attributes are requested together ...
const LISTINGS_AHEAD: usize = 4096;
/// ... unless they hold so many names.
const ENTRIES_AHEAD: usize = 50_000;
/// Most bytes of one listing, as they count in memory.
const LISTING_MAX_BYTES: usize = 1 << 30;
/// Most bytes of paths of directories that wait for their turn.
const WAITING_MAX_BYTES: usize = 256 << 20;
/// Most device nodes whose numbers are requested; a tree with more is no backup.
const DEVICES_MAX: usize = 10_000;
/// Most names of one tree, those left out included.
const NAMES_MAX: u64 = 250_000_000;
/// Records between two looks whether to end.
const INTERRUPT_STEP: u64 = 1024;

/// A directory whose listing is due.
struct Waiting {
    path: Vec<u8>,
    stat: Stat,
}

/// The names of a tree.
pub(super) struct Scan {
    options: AgentlessOptions,
    /// `None` until `find` was run.
    sorted: Option<Sorted>,
    next: Option<Record>,
    /// The next one last.
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    ready: VecDeque<Listing>,
    /// Inodes with several names that were delivered, by device and number.
    seen: HashSet<(u64, u64)>,
    devices: Vec<u64>,
    mounted_at: Vec<Vec<u8>>,
    /// What `find` could not read, by path.
    complaints: HashMap<Vec<u8>, i32>,
    /// Device numbers of device nodes.
    nodes: HashMap<Vec<u8>, u64>,
    end: ScanEnd,
}

fn spool_failed(options: &AgentlessOptions, source: io::Error) -> SourceError {
    SourceError::Spool { directory: options.spool.clone(), source }
}

fn key(path: &[u8]) -> Vec<u8> {
    let (parent, name) = match memchr::memrchr(b'/', path) {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    let mut key = directory_key(parent);
    key.extend_from_slice(name);
    key
}

/// Returns what the keys of a directory's names begin with, and no other's.
fn directory_key(path: &[u8]) -> Vec<u8> {
    let mut key: Vec<u8> = path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect();
    key.extend_from_slice(&[0, 0]);
    key
}

/// Returns a path below a directory.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

impl Scan {
    pub(super) fn new(options: &AgentlessOptions) -> Scan {
        Scan {
            options: options.clone(),
            sorted: None,
            next: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            ready: VecDeque::new(),
            seen: HashSet::new(),
            devices: Vec::new(),
            mounted_at: Vec::new(),
            complaints: HashMap::new(),
            nodes: HashMap::new(),
            end: ScanEnd::default(),
        }
    }

    pub(super) fn file_systems(&self) -> Vec<Vec<u8>> {
        self.mounted_at.clone()
    }

    /// Returns what is left to report: names that could not be looked at.
    pub(super) fn take_end(&mut self) -> ScanEnd {
        let mut left: Vec<_> = self.complaints.drain().collect();
        left.sort_unstable();
        for (path, errno) in left {
            if !self.is_left_out(&path) {
                self.end.problems.push(problem(path, errno));
            }
        }
        std::mem::take(&mut self.end)
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        let excluded = |path: &[u8], directory| self.options.excludes.excluded(path, directory);
        let above = memchr::memchr_iter(b'/', path).any(|slash| excluded(&path[..slash], true));
        above || excluded(path, true) || excluded(path, false)
    }

    /// Returns the next directory.
    pub(super) fn next(&mut self, shell: &mut Shell) -> Result<Option<Listing>, SourceError> {
        if self.sorted.is_none() {
            self.take_in(shell)?;
        }
        if self.ready.is_empty() {
            self.fill(shell)?;
        }
        Ok(self.ready.pop_front())
    }

    /// Has `find` run, and sorts its records.
    fn take_in(&mut self, shell: &mut Shell) -> Result<(), SourceError> {
        shell.command("scan", if self.options.cross_file_systems { "" } else { "-xdev" });
        let mut sorter = Sorter::new(&self.options.spool, MEMORY_BYTES);
        let mut root = None;
        let mut excluded: Option<Vec<u8>> = None;
        let mut nodes = Vec::new();
        let mut count = 0u64;
        loop {
            let record = shell.record(RECORD_MAX_BYTES)?;
            if record == b"E" {
                break;
            }
            count += 1;
            if count > NAMES_MAX {
                return Err(shell.breach("more names than are taken"));
            }
            if count.is_multiple_of(INTERRUPT_STEP) {
                shell.check_interrupt()?;
                shell.counters().remote_names.store(count, std::sync::atomic::Ordering::Relaxed);
            }
            let parsed = find::split(&record).and_then(|(fields, path)| Some((fields, path, find::stat(fields)?)));
            let (fields, path, stat) = parsed.ok_or_else(|| shell.breach("a record of a name that none can have"))?;
            self.end.stats += 1;
            if path.is_empty() {
                if root.replace(stat).is_some() || stat.kind != Kind::Directory {
                    return Err(shell.breach("two roots, or one that is no directory"));
                }
                continue;
            }
            // `find` prints a directory before what is in it.
            if excluded.as_ref().is_some_and(|above| path.strip_prefix(&above[..]).is_some_and(|rest| rest[0] == b'/'))
            {
                continue;
            }
            let directory = stat.kind == Kind::Directory;
            if self.options.excludes.excluded(path, directory) {
                self.end.excluded += 1;
                if directory {
                    excluded = Some(path.to_vec());
                }
                continue;
            }
            if matches!(stat.kind, Kind::CharDevice | Kind::BlockDevice) && nodes.len() < DEVICES_MAX {
                nodes.push(path.to_vec());
            }
            if !sorter.push(&key(path), fields).map_err(|error| spool_failed(&self.options, error))? {
                return Err(shell.breach("more names than are taken"));
            }
        }
        let said = shell.end("scan")?;
        self.take_complaints(&said)?;
        let root = root.ok_or_else(|| SourceError::Lost { reason: "find printed nothing about the root".into() })?;
        self.waiting.push(Waiting { path: Vec::new(), stat: root });
        let mut sorted = sorter.finish().map_err(|error| spool_failed(&self.options, error))?;
        self.next = sorted.next().map_err(|error| spool_failed(&self.options, error))?;
        self.sorted = Some(sorted);
        for member in headers(shell, nodes.iter().map(Vec::as_slice))? {
            self.nodes.insert(member.0, member.1.rdev);
        }
        Ok(())
    }

    fn take_complaints(&mut self, said: &[u8]) -> Result<(), SourceError> {
        let complaints = find::complaints(said);
        // find ends with 1 when it could not read something; anything else means that it did not come to its end.
        if !matches!(complaints.code, Some(0 | 1)) {
            return Err(SourceError::Lost { reason: format!("find ended early: {}", shown(said)).into() });
        }
        // Without its beginning nobody knows which directories only look empty.
        if said.len() >= WORDS_MAX_BYTES {
            let message = format!(
                "Too much of the source cannot be read to report it all; the last was: {}. Pull as a user who may read the source",
                shown(said)
            );
            return Err(SourceError::Refused { message });
        }
        let silent = complaints.of_paths.is_empty() && complaints.others.is_empty();
        let others = complaints.others.into_iter().chain(
            (complaints.code == Some(1) && silent)
                .then(|| "find could not read everything, and did not say what".to_owned()),
        );
        for message in others.take(100) {
            self.end.problems.push(Problem { message, ..problem(Vec::new(), rustix::io::Errno::IO.raw_os_error()) });
        }
        self.complaints = complaints.of_paths.into_iter().collect();
        Ok(())
    }

    /// Makes listings, some thousand at once where they are small.
    fn fill(&mut self, shell: &mut Shell) -> Result<(), SourceError> {
        let mut entries = 0;
        while entries < ENTRIES_AHEAD && self.ready.len() < LISTINGS_AHEAD {
            let Some(listing) = self.listing(shell)? else { break };
            entries += listing.entries.len();
            self.ready.push_back(listing);
        }
        if self.waiting.is_empty() && self.next.is_some() {
            return Err(shell.breach("names in a directory that is not there"));
        }
        if !self.options.scan_only && !self.ready.is_empty() {
            self.attributes(shell)?;
        }
        Ok(())
    }

    fn listing(&mut self, shell: &Shell) -> Result<Option<Listing>, SourceError> {
        let Some(Waiting { path, stat }) = self.waiting.pop() else { return Ok(None) };
        self.waiting_bytes -= path.len();
        let prefix = directory_key(&path);
        let file_system = self.number_of(stat.dev, || path.clone());
        let mut listing =
            Listing { path, stat, xattrs: Vec::new(), file_system, entries: Vec::new(), unreadable: None };
        let (mut subdirectories, mut held) = (Vec::new(), 0);
        while let Some((key, fields)) = self.next.take_if(|(key, _)| key.starts_with(&prefix)) {
            let sorted = self.sorted.as_mut().map_or(Ok(None), Sorted::next);
            self.next = sorted.map_err(|error| spool_failed(&self.options, error))?;
            let name: Box<[u8]> = key[prefix.len()..].into();
            // Parsed before it was sorted.
            let stat = find::stat(&fields).ok_or_else(|| shell.breach("a record that makes no sense"))?;
            if listing.entries.last().is_some_and(|last: &Entry| *last.name >= *name) {
                return Err(shell.breach("a name that is there twice"));
            }
            held += name.len() + 200;
            if held > LISTING_MAX_BYTES {
                return Err(shell.breach("more names in one directory than are taken"));
            }
            let what = self.found(&listing, &name, stat);
            if what == Found::Directory {
                let path = join(&listing.path, &name);
                self.waiting_bytes += path.len();
                subdirectories.push(Waiting { path, stat });
            }
            listing.entries.push(Entry { name, what });
        }
        if self.waiting_bytes > WAITING_MAX_BYTES {
            return Err(shell.breach("more directories than are taken"));
        }
        self.waiting.extend(subdirectories.into_iter().rev());
        if let Some(errno) = self.complaints.remove(&listing.path) {
            listing.unreadable = Some(problem(listing.path.clone(), errno));
        }
        Ok(Some(listing))
    }

    fn found(&mut self, listing: &Listing, name: &[u8], mut stat: Stat) -> Found {
        if stat.kind == Kind::Directory {
            let here = stat.dev == listing.stat.dev || self.options.cross_file_systems;
            return if here { Found::Directory } else { Found::Boundary(Box::new(stat)) };
        }
        if matches!(stat.kind, Kind::CharDevice | Kind::BlockDevice) {
            stat.rdev = self.nodes.get(&join(&listing.path, name)).copied().unwrap_or(0);
        }
        let file_system = self.number_of(stat.dev, || join(&listing.path, name));
        let first = stat.nlink <= 1 || self.seen.insert((stat.dev, stat.ino));
        Found::Inode { file_system, ino: stat.ino, stat: first.then(|| Box::new(stat)) }
    }

    /// Returns the number of a file system, and gives it one where it appears first.
    fn number_of(&mut self, device: u64, place: impl FnOnce() -> Vec<u8>) -> u32 {
        let at = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.mounted_at.push(place());
            self.devices.len() - 1
        });
        at as u32
    }

    /// Brings the extended attributes of the directories that are ready.
    fn attributes(&mut self, shell: &mut Shell) -> Result<(), SourceError> {
        shell.check_interrupt()?;
        let looked = probe_xattrs(shell, self.ready.iter().map(|listing| listing.path.as_slice()))?;
        let with = looked.iter().filter(|(_, any)| **any).map(|(path, _)| path.as_slice());
        let mut found: HashMap<Vec<u8>, Vec<Xattr>> =
            headers(shell, with)?.into_iter().map(|(path, member)| (path, member.xattrs)).collect();
        for listing in &mut self.ready {
            let known = looked.get(&listing.path).copied();
            match (known, found.remove(&listing.path)) {
                (_, Some(xattrs)) => listing.xattrs = xattrs,
                (Some(false), None) => {}
                (None | Some(true), None) if listing.unreadable.is_some() => {}
                (None | Some(true), None) => {
                    let message = "its extended attributes could not be read".to_owned();
                    let errno = rustix::io::Errno::ACCESS.raw_os_error();
                    self.end.problems.push(Problem { message, ..problem(listing.path.clone(), errno) });
                }
            }
        }
        Ok(())
    }
}

fn problem(path: Vec<u8>, errno: i32) -> Problem {
    Problem::new(path, &io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_depth_first() {
        let names: [&[u8]; 11] =
            [b"a", b"a!", b"b", b"\x01", b"a/b", b"a/c", b"a/b/c", b"a!/x", b"a!/\xff", b"\x01/z", b"a/\x01"];
        let mut sorted = names.to_vec();
        sorted.sort_by_key(|path| key(path));
        let expected: [&[u8]; 11] =
            [b"\x01", b"a", b"a!", b"b", b"\x01/z", b"a/\x01", b"a/b", b"a/c", b"a/b/c", b"a!/x", b"a!/\xff"];
        assert_eq!(sorted, expected);
        assert!(key(b"a/b/c").starts_with(&directory_key(b"a/b")));
        assert!(!key(b"a/b/c").starts_with(&directory_key(b"a")));
        assert!(!key(b"a").starts_with(&directory_key(b"a")));
    }
}
