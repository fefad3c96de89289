//! The loop of a run: from a tree to a committed snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{info, info_span, warn};

use super::SnapshotError;
use super::adopt::adopt;
use super::chunk_writer::ChunkWriter;
use super::classifier::Classifier;
use super::content_builder::ContentBuilder;
use super::inode_cache::{self, InodeCache};
use super::listings_in_flight::{ListingsInFlight, Pending, PendingListing};
use super::options::{RunRequest, SnapshotReport};
use super::read_results::{Answer, InFlightRead, read_apart, take_event};
use super::root_files::{root_files, wait_for_root_files};
use super::run_inodes::Slot;
use super::snapshot_record;
use super::storage::Storage;
use super::tree_builder::{Resolved, ResolvedListing, TreeBuilder};
use crate::areas;
use crate::catalog::sources::SourceName;
use crate::catalog::writer::CatalogWriter;
use crate::guard;
use crate::ids::SourceId;
use crate::model::NAME_MAX_BYTES;
use crate::source::read::ReadRequest;
use crate::source::scan::Listing;
use crate::source::tree::SourceTree;

/// Takes a snapshot of a tree and commits it.
///
/// # Errors
/// See [`SnapshotError`]. When the run ends early, what was stored so far is committed if that is possible.
pub(super) fn take_snapshot(
    request: RunRequest<'_>,
    tree: Box<dyn SourceTree + '_>,
) -> Result<SnapshotReport, SnapshotError> {
    let _span = info_span!(target: areas::RUN, "snapshot").entered();
    info!(target: areas::RUN, rescan = request.options.rescan, "run started");
    let result = BackupRun::start(request, tree).and_then(BackupRun::work);
    match &result {
        Ok(SnapshotReport { record, .. }) => info!(
            target: areas::RUN,
            snapshot = %record.short_id(),
            names = record.totals.names,
            read_files = record.work.read_files,
            read_bytes = record.work.read_bytes,
            stored_bytes = record.work.stored_bytes,
            problems = record.problem_count,
            is_suspect = !record.suspect_reasons().is_empty(),
            elapsed_ms = record.work.elapsed_ms,
            "snapshot committed"
        ),
        // Why is the command's own message. It may have the source's name, and with that a user of another host.
        Err(_) => warn!(target: areas::RUN, "run ended without a snapshot"),
    }
    result
}

/// A run under way: listings come from the source and are classified, wait for what has to be read, and are built into the tree.
struct BackupRun<'a> {
    request: RunRequest<'a>,
    source_id: SourceId,
    source_name: SourceName,
    source: Box<dyn SourceTree + 'a>,
    /// Files directly below the root that the last snapshot had.
    last_root_files: Vec<Box<[u8]>>,
    classifier: Classifier<'a>,
    in_flight: ListingsInFlight,
    tree: TreeBuilder,
    storage: Storage,
}

impl<'a> BackupRun<'a> {
    /// Starts the threads that store.
    fn start(request: RunRequest<'a>, source: Box<dyn SourceTree + 'a>) -> Result<BackupRun<'a>, SnapshotError> {
        let RunRequest { replica, options, progress, start, .. } = request;
        let mut catalog = replica.writer()?;
        let adopted = adopt(replica, &mut catalog)?;
        if adopted > 0 {
            progress.report(format!("{adopted} chunks that an interrupted run had stored are taken over."));
        }
        let (source_id, source_name) = choose_source(&request, &mut catalog)?;
        let mut snapshots = catalog.reader().snapshots()?.into_iter().rev();
        let last = snapshots.find(|(_, record)| record.source_id == Some(source_id)).map(|(_, record)| record);
        let known = inode_cache::load(replica, source_id, last.as_ref()).unwrap_or_default();
        let mut last_root_files = Vec::new();
        if let Some(last) = &last {
            progress.expected_names.store(last.totals.names, Ordering::Relaxed);
            last_root_files = root_files(catalog.reader(), last)?;
        }
        let chunks = ChunkWriter::start(
            Arc::clone(replica.backend()),
            Arc::clone(replica.dictionaries()),
            catalog.epoch(),
            options.compression,
            Arc::clone(&progress.chunks),
        )?;
        Ok(BackupRun {
            request,
            source_id,
            source_name,
            source,
            last_root_files,
            classifier: Classifier::new(known, options.rescan, start.time, progress),
            in_flight: ListingsInFlight::default(),
            tree: TreeBuilder::new(),
            storage: Storage::new(catalog, chunks, options.progress_interval),
        })
    }

    fn work(mut self) -> Result<SnapshotReport, SnapshotError> {
        match self.take() {
            Ok(()) => self.finish(),
            Err(error @ (SnapshotError::Interrupted | SnapshotError::TooLong { .. } | SnapshotError::Source(_))) => {
                self.keep_what_came()?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Scans, reads and builds the tree.
    fn take(&mut self) -> Result<(), SnapshotError> {
        while let Some(mut listing) = self.source.next_listing()? {
            self.request.progress.check_interrupt()?;
            if has_long_name(&listing.path) {
                // Below a directory that was left out for its name.
                continue;
            }
            if listing.path.is_empty() {
                self.look_at_root(&mut listing)?;
            }
            self.in_flight.push(self.classifier.classify(listing, &mut *self.source)?);
            let is_full = self.in_flight.is_full();
            if is_full || self.in_flight.is_flush_due() {
                self.source.flush()?;
                self.in_flight.flushed();
            }
            while is_full && self.in_flight.is_half_full() {
                let Some(listing) = self.in_flight.pop() else { break };
                self.complete(listing)?;
            }
            // Listings that wait for nothing are completed at once.
            while let Some(listing) = self.in_flight.pop_ready() {
                self.complete(listing)?;
            }
        }
        self.request.progress.scanned.store(true, Ordering::Relaxed);
        info!(target: areas::RUN, names = self.request.progress.names.load(Ordering::Relaxed), "scan finished");
        self.source.flush()?;
        while let Some(listing) = self.in_flight.pop() {
            self.request.progress.check_interrupt()?;
            self.complete(listing)?;
        }
        Ok(())
    }

    fn look_at_root(&mut self, listing: &mut Listing) -> Result<(), SnapshotError> {
        let last = std::mem::take(&mut self.last_root_files);
        wait_for_root_files(last, self.request.excludes, &mut *self.source, listing)?;
        if listing.entries.is_empty() && listing.unreadable.is_none() {
            return Err(SnapshotError::EmptySource { path: self.request.location.to_owned() });
        }
        Ok(())
    }

    /// Takes the answers that a listing waits for, and builds it into the tree.
    fn complete(&mut self, listing: PendingListing) -> Result<(), SnapshotError> {
        let PendingListing { name, prefix, attributes, entries: pending } = listing;
        if let Ok(mut current) = self.request.progress.current.try_lock() {
            current.clone_from(&prefix);
        }
        let mut entries = Vec::with_capacity(pending.len());
        for (name, pending) in pending {
            let resolved = match pending {
                Pending::Ready(resolved) => Some(resolved),
                Pending::LeftOut => None,
                Pending::Read(read) => {
                    let answer = self.answer()?;
                    let path = [prefix.as_slice(), &*name].concat();
                    let resolved = self.classifier.finish_inode(&path, &read, answer, &mut self.storage)?;
                    self.request.progress.check_interrupt()?;
                    self.commit_if_due()?;
                    resolved
                }
                Pending::Same(slot) => self.same_as(slot, || [prefix.as_slice(), &*name].concat())?,
            };
            if let Some(resolved) = resolved {
                entries.push((name, resolved));
            }
        }
        self.tree.listing(&mut self.storage.catalog, ResolvedListing { name, attributes, entries })?;
        self.commit_if_due()
    }

    /// Takes the answer to the oldest request.
    fn answer(&mut self) -> Result<Answer, SnapshotError> {
        let mut content = ContentBuilder::default();
        loop {
            let event = self.storage.receive(|intake| self.source.receive(intake))?;
            let progress = self.request.progress;
            if let Some(outcome) = take_event(event, &mut self.storage.catalog, &mut content, progress)? {
                return Ok(Answer { outcome, content });
            }
            // One file may be most of a tree.
            progress.check_interrupt()?;
            if self.storage.is_large() {
                self.commit_progress()?;
            }
        }
    }

    /// Resolves a further name of an inode; reads the inode by this name if its first one failed.
    fn same_as(&mut self, slot: u32, path: impl FnOnce() -> Vec<u8>) -> Result<Option<Resolved>, SnapshotError> {
        match self.classifier.slot(slot) {
            Slot::Group(number, digest) => Ok(Some(Resolved::Group(number, digest))),
            Slot::Requested => Ok(None),
            Slot::Lost(stat, file_system) => {
                let read: InFlightRead = self.classifier.read_again(slot, stat, file_system);
                let request = ReadRequest { path: path(), stat, want: read.want };
                let answer = read_apart(&mut *self.source, &request, &mut self.storage, self.request.progress)?;
                self.classifier.finish_inode(&request.path, &read, answer, &mut self.storage)
            }
        }
    }

    fn commit_if_due(&mut self) -> Result<(), SnapshotError> {
        if self.storage.is_commit_due() { self.commit_progress() } else { Ok(()) }
    }

    /// Commits what there is, so that a later run need not read or store it again.
    fn commit_progress(&mut self) -> Result<(), SnapshotError> {
        self.storage.commit_progress(&mut *self.source)?;
        save_known(&self.request, self.source_id, &self.storage.catalog, &self.classifier.known_so_far());
        info!(target: areas::RUN, "progress committed");
        Ok(())
    }

    /// Commits what there is when the run cannot go on.
    fn keep_what_came(&mut self) -> Result<(), SnapshotError> {
        let work = self.classifier.findings().work;
        self.request.progress.add_reads(work.read_files, work.read_bytes);
        self.storage.receive(|intake| {
            self.source.abandon(intake);
            Ok(())
        })?;
        self.commit_progress()
    }

    /// Commits the tree, and then the snapshot.
    fn finish(self) -> Result<SnapshotReport, SnapshotError> {
        let BackupRun { request, source_id, source_name, mut source, mut classifier, tree, mut storage, .. } = self;
        let RunRequest { replica, options, progress, start, .. } = request;
        progress.committing.store(true, Ordering::Relaxed);
        let end = source.end_of_scan();
        let findings = classifier.findings();
        findings.problems.extend(&end.problems);
        findings.work.excluded_names = end.excluded;
        findings.work.stats = end.stats;
        let tree = tree.finish().ok_or(SnapshotError::ScanIncomplete)?;
        let owners = source.owner_names(findings.owners.users(), findings.owners.groups())?;
        storage.store_all(&mut *source)?;
        progress.add_to(&mut findings.work);
        findings.work.elapsed_ms = start.clock.elapsed().as_millis() as u64;
        let mut record = snapshot_record::describe(&request, source_id, &tree, owners, findings, &mut storage.catalog)?;
        record.id = record.compute_id(&replica.config().id);
        // The guard reads the tree, so the tree is committed first, as progress is, and the record behind it.
        storage.catalog.commit()?;
        info!(target: areas::RUN, "tree committed; the guard examines it");
        record.guard = Some(guard::examine(replica, storage.catalog.reader(), &record, &options.guard));
        let number = storage.catalog.add_snapshot(&record)?;
        storage.catalog.commit()?;
        let (findings, known, has_changed) = classifier.finish();
        if has_changed {
            save_known(&request, source_id, &storage.catalog, &known);
        }
        Ok(SnapshotReport { number, record, source: source_name, problems: findings.problems.into_kept() })
    }
}

/// Chooses the source that the snapshot is of, and notes where it is.
fn choose_source(
    request: &RunRequest<'_>,
    catalog: &mut CatalogWriter,
) -> Result<(SourceId, SourceName), SnapshotError> {
    let before = catalog.reader().sources()?;
    let mut sources = before.clone();
    let chosen = sources.choose(request.location, request.options.source.as_ref())?;
    let name = chosen.name.clone();
    if let Some(before) = &chosen.moved_from {
        request.progress.report(format!("The source {name} is at {} now; it was at {before}.", request.location));
    } else if chosen.is_new && sources.iter().count() > 1 {
        request.progress.report(format!("{} is a new source, named {name}.", request.location));
    }
    if sources != before {
        catalog.set_sources(&sources)?;
    }
    Ok((chosen.id, name))
}

/// Saves what the next run may know. It is a cache: failing to write it costs the next run time and nothing else.
fn save_known(request: &RunRequest<'_>, source: SourceId, catalog: &CatalogWriter, known: &InodeCache) {
    let (number, id) = catalog.last_commit();
    let _ = known.save(&inode_cache::path(request.replica.path(), source), number, &id);
}

/// Returns whether a path has a name that is longer than any directory of a snapshot has.
fn has_long_name(path: &[u8]) -> bool {
    path.len() > NAME_MAX_BYTES && path.split(|byte| *byte == b'/').any(|name| name.len() > NAME_MAX_BYTES)
}
