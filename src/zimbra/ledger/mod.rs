//! The ledger: for each snapshot which sessions and accounts it holds, and what can be restored of them.
//!
//! A snapshot never changes, so what is in it is found out once, as a rule by the nightly run that made it, and kept with the store: a page for each
//! snapshot in `cache/ledger/<identifier>`. Comparing nights and following accounts through years reads pages, and no tree.
//! A page that is missing, damaged or of another edition is made again from the snapshot.
//!
//! The file of a page has the layout of the facts' (see the module `cache`), with the magic `ZMRLEDG1` and the snapshot's identifier. Its JSON is a [`Page`]:
//! some 30 bytes for each account once compressed.

mod account_protection;
mod changes;
mod last_reported;
mod nightly_diff;
mod page;
mod summary;
#[cfg(test)]
mod tests;

use std::path::Path;

use jiff::Timestamp;

use super::analysis::{Analyser, Analysis};
use super::site::moved_trees;
use crate::catalog::snapshot::SnapshotRecord;
use crate::replica::Replica;
use crate::view::{Readers, SnapshotView, Snapshots, ViewError};

pub use account_protection::protections;
pub use nightly_diff::{ChangedAccount, Changes, NightlyDiff};
pub use page::{AccountEntry, Gaps, Page, SessionEntry};
pub use summary::{Concern, Summary};

/// Returns the page of a snapshot if the store keeps it; nothing is looked at otherwise.
pub fn kept(store: &Path, snapshot: &str) -> Option<Page> {
    page::load(store, snapshot)
}

/// Returns whether there is a page of a snapshot, whatever it is worth.
pub fn is_kept(store: &Path, snapshot: &str) -> bool {
    page::path(store, snapshot).exists()
}

/// Removes the pages of snapshots that are gone, but for those that the next nightly run compares with. What cannot be removed stays, and does no harm.
pub fn tidy(store: &Path, snapshots: &Snapshots) {
    let reported = last_reported::all(store);
    page::tidy(store, |name| has(snapshots, name) || reported.values().any(|id| id == name));
}

/// Forgets all that was found out about a store's snapshots: a repair changes what can be read of them.
pub fn forget(store: &Path) {
    page::tidy(store, |_| false);
    super::cache::forget(store);
}

/// The pages of a store's snapshots.
///
/// Memory: that of an [`Analyser`], and the analysis of one tree at a time, while pages are made.
pub struct Ledger<'a> {
    store: &'a Path,
    readers: Readers,
    snapshots: &'a Snapshots,
    /// Made when it is first needed: reading what it knows takes time.
    analyser: Option<Analyser>,
}

impl<'a> Ledger<'a> {
    /// Opens the ledger of a store.
    pub fn open(replica: &'a Replica, readers: Readers, snapshots: &'a Snapshots) -> Ledger<'a> {
        Ledger { store: replica.path(), readers, snapshots, analyser: None }
    }

    fn store(&self) -> &'a Path {
        self.store
    }

    /// Returns the page of a snapshot; makes it if it is not kept.
    ///
    /// # Errors
    /// Fails when the store cannot be read.
    pub fn page(&mut self, record: &SnapshotRecord) -> Result<Page, ViewError> {
        match page::load(self.store, &record.id) {
            Some(page) => Ok(page),
            None => {
                let view = SnapshotView::over(&self.readers, record.clone())?;
                let analysis = self.analyser().analyse(&view, b"")?;
                self.make(&view, &analysis)
            }
        }
    }

    /// Finds out what can be restored from a snapshot and what became of it since the one that the nightly run before
    /// reported, or since `before` if there was none; notes that this one is reported. The snapshot was taken at `moment`, as far as its date can be
    /// right. `None` when it holds nothing of a mail server.
    ///
    /// # Errors
    /// Fails when the store cannot be read.
    pub fn night(
        &mut self,
        record: &SnapshotRecord,
        before: Option<&SnapshotRecord>,
        moment: Timestamp,
    ) -> Result<Option<Summary>, ViewError> {
        let mut page = self.page(record)?;
        let reported = last_reported::of_source(self.store, record).filter(|id| *id != record.id);
        let reported = reported.and_then(|id| Some((page::load(self.store, &id)?, id)));
        let earlier = match (reported, before) {
            (Some((page, id)), _) => Some((id, page)),
            (None, Some(before)) => Some((before.id.clone(), self.page(before)?)),
            (None, None) => None,
        };
        if !page.is_zimbra() && earlier.as_ref().is_none_or(|(_, page)| !page.is_zimbra()) {
            return Ok(None);
        }
        let unread = earlier.as_ref().and_then(|(_, page)| page.store_error.clone());
        page.store_error = page.store_error.or(unread);
        if page.store_error.is_none() {
            // What could not be read is not gone: then nothing is compared, and the next night still compares with the same.
            let changes = earlier.as_ref().map(|(_, earlier)| Changes::between(earlier, &page)).unwrap_or_default();
            page.nightly_diff = Some(NightlyDiff { compared_with: earlier.map(|(id, _)| id), changes });
            page::save(self.store, &record.id, &page);
            last_reported::note(self.store, record);
        }
        tidy(self.store, self.snapshots);
        Ok(Some(Summary::of(&page, moment)))
    }

    /// Looks at the tree at the root of a snapshot, and keeps the page of the snapshot if there is none.
    ///
    /// # Errors
    /// Fails when the store cannot be read.
    pub fn analysis(&mut self, record: &SnapshotRecord) -> Result<Analysis, ViewError> {
        let view = SnapshotView::over(&self.readers, record.clone())?;
        let analysis = self.analyser().analyse(&view, b"")?;
        if page::load(self.store, &record.id).is_none() {
            self.make(&view, &analysis)?;
        }
        Ok(analysis)
    }

    /// Returns what looks at snapshots, for trees that have no pages.
    pub fn analyser(&mut self) -> &mut Analyser {
        let (store, snapshots) = (self.store, self.snapshots);
        self.analyser.get_or_insert_with(|| Analyser::with_kept(store, |id| has(snapshots, id)))
    }

    /// Makes the page of a snapshot of which the tree at the root is known.
    fn make(&mut self, view: &SnapshotView, root: &Analysis) -> Result<Page, ViewError> {
        let mut moved = Vec::new();
        for tree in moved_trees(view)? {
            moved.push(self.analyser().analyse(view, tree.as_bytes())?);
        }
        let page = Page::new(std::iter::once(root).chain(&moved));
        if page.store_error.is_none() {
            page::save(self.store, &view.record().id, &page);
        }
        Ok(page)
    }

    /// Keeps what was found out beside the pages, for later runs. To be called at the end.
    pub fn close(self) {
        if let (Some(analyser), Ok(newest)) = (&self.analyser, self.snapshots.newest()) {
            analyser.keep(self.store, &newest.record.id);
        }
    }
}

fn has(snapshots: &Snapshots, id: &str) -> bool {
    snapshots.all().iter().any(|snapshot| snapshot.record.id == id)
}
