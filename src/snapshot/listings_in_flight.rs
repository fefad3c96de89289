//! Listings whose answers are not all there, in the order of the tree.
//!
//! Memory: [`NAMES_MAX`] names of some `NAME_BYTES` (35 MB), and as many requests as [`REQUESTS_MAX`].

use std::collections::VecDeque;

use super::owners::Owners;
use super::read_results::InFlightRead;
use super::tree_builder::Resolved;
use crate::catalog::directory::DirectoryAttributes;
use crate::model::{Stat, Xattr};
use crate::source::scan::{Listing, ProblemKind};

/// Read requests that may be unanswered before the run stops classifying and completes listings.
const REQUESTS_MAX: usize = 8192;
/// Names that may wait behind unanswered requests: a night with few changes has few requests, however many names there are.
const NAMES_MAX: usize = 1 << 17;
/// Bytes of a name that waits where directories are small, roughly: longer paths and extended attributes count as further names.
const NAME_BYTES: usize = 270;

/// What is still to be done for one name.
pub(super) enum Pending {
    /// Nothing.
    Ready(Resolved),
    /// It is left out.
    LeftOut,
    /// Its inode was requested.
    Read(Box<InFlightRead>),
    /// It is a further name of the inode of this slot.
    Same(u32),
}

/// A listing that waits for answers.
pub(super) struct PendingListing {
    pub(super) name: Box<[u8]>,
    /// Path of the directory, with a slash behind it unless it is the root.
    pub(super) prefix: Vec<u8>,
    /// `None` if the directory vanished.
    pub(super) attributes: Option<DirectoryAttributes>,
    pub(super) entries: Vec<(Box<[u8]>, Pending)>,
}

impl PendingListing {
    /// Begins with the directory itself; its entries are still to come.
    pub(super) fn new(listing: &Listing, owners: &mut Owners) -> PendingListing {
        let name = listing.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let vanished = listing.unreadable.as_ref().is_some_and(|problem| problem.kind == ProblemKind::Vanished);
        let unreadable = listing.unreadable.as_ref().map(|problem| problem.errno.unsigned_abs());
        let attributes = (!vanished).then(|| {
            owners.note(listing.stat.uid, listing.stat.gid);
            directory_attributes(&listing.stat, listing.xattrs.clone(), unreadable)
        });
        let mut prefix = listing.path.clone();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        PendingListing { name: name.into(), prefix, attributes, entries: Vec::with_capacity(listing.entries.len()) }
    }

    /// Returns how many names it is, its own included, or how many small ones take as much memory.
    fn names(&self) -> usize {
        let xattrs = self.attributes.iter().flat_map(|attributes| &attributes.xattrs);
        let xattr_bytes: usize = xattrs.map(|xattr| xattr.name.len() + xattr.value.len() + 64).sum();
        self.entries.len() + 1 + (self.prefix.len() + xattr_bytes) / NAME_BYTES
    }

    /// Returns how many requests it waits for.
    fn requests(&self) -> usize {
        self.entries.iter().filter(|(_, pending)| matches!(pending, Pending::Read(_))).count()
    }
}

/// Returns the attributes of a directory that was looked at.
pub(super) fn directory_attributes(stat: &Stat, xattrs: Vec<Xattr>, unreadable: Option<u32>) -> DirectoryAttributes {
    DirectoryAttributes {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        xattrs,
        unreadable,
        is_mount_point: false,
    }
}

/// A listing, and what it counts for.
struct Counted {
    listing: PendingListing,
    names: usize,
    requests: usize,
}

/// All of them, the oldest first.
#[derive(Default)]
pub(super) struct ListingsInFlight {
    listings: VecDeque<Counted>,
    names: usize,
    requests: usize,
    /// Names that waited when requests were last sent off.
    flushed_names: usize,
}

impl ListingsInFlight {
    /// Adds the next listing.
    pub(super) fn push(&mut self, listing: PendingListing) {
        let counted = Counted { names: listing.names(), requests: listing.requests(), listing };
        self.names += counted.names;
        self.requests += counted.requests;
        self.listings.push_back(counted);
    }

    /// Takes the oldest listing.
    pub(super) fn pop(&mut self) -> Option<PendingListing> {
        let Counted { listing, names, requests } = self.listings.pop_front()?;
        self.names -= names;
        self.requests -= requests;
        self.flushed_names = self.flushed_names.min(self.names);
        Some(listing)
    }

    /// Takes the oldest listing if it waits for nothing.
    pub(super) fn pop_ready(&mut self) -> Option<PendingListing> {
        if self.listings.front()?.requests == 0 { self.pop() } else { None }
    }

    /// Returns whether to send requests off: they are few, with many names behind them, and their answers are to be there when they are waited for.
    pub(super) fn is_flush_due(&self) -> bool {
        self.names >= self.flushed_names + NAMES_MAX / 2
    }

    /// Notes that all requests were sent off.
    pub(super) fn flushed(&mut self) {
        self.flushed_names = self.names;
    }

    /// Returns whether no more may wait.
    pub(super) fn is_full(&self) -> bool {
        self.requests >= REQUESTS_MAX || self.names >= NAMES_MAX
    }

    /// Returns whether more wait than half of what may.
    pub(super) fn is_half_full(&self) -> bool {
        self.requests > REQUESTS_MAX / 2 || self.names > NAMES_MAX / 2
    }
}
