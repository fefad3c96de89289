//! One run: from a source to a committed snapshot.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::{info, info_span, warn};

use super::SnapshotError;
use super::chunk_writer::ChunkWriter;
use super::inode_cache::InodeCache;
use super::inodes::{RunInodes, Slot, Verdict};
use super::intake::Intake;
use super::options::{RunProblem, SnapshotOptions, SnapshotReport, cores};
use super::owners::{Acls, Owners};
use super::progress::Progress;
use super::read_results::{InFlightRead, Pending, PendingListing, has_long_name};
use super::source_name::source_name;
use super::tree_builder::{Resolved, ResolvedListing, TreeBuilder};
use crate::areas;
use crate::catalog::commit_log::commit_id;
use crate::catalog::directory::DirectoryAttributes;
use crate::catalog::link_counts;
use crate::catalog::object::ObjectKind;
use crate::catalog::reader::CatalogReader;
use crate::catalog::snapshot::{SnapshotRecord, Totals, Work};
use crate::catalog::writer::CatalogWriter;
use crate::guard;
use crate::ids::SourceId;
use crate::model::{Kind, NAME_MAX_BYTES, Stat};
use crate::paged::Paged;
use crate::replica::{LockedReplica, Replica};
use crate::source::exclude::Excludes;
use crate::source::read::{ReadRequest, Want};
use crate::source::scan::{Found, Listing, ScanOptions};
use crate::source::tree::{LocalTree, SourceError, SourceTree};

/// Read requests that may be unanswered before the run stops classifying and completes listings.
const WINDOW_REQUESTS: usize = 8192;
/// Names that may wait behind unanswered requests, some 270 bytes each where directories are small: a night with few changes has few requests, however many names there are.
const PENDING_NAMES: usize = 1 << 17;
/// Pending changes of the catalogue that make the run commit its progress, in bytes.
const PROGRESS_PENDING_BYTES: usize = 48 << 20;
/// Takes a snapshot of a local tree and commits it.
///
/// # Errors
/// See [`SnapshotError`]. The store then is as it was, but for progress that the next run makes use of.
pub fn run(
    replica: &LockedReplica,
    source: &Path,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<SnapshotReport, SnapshotError> {
    let begun = Begun::now();
    let excludes = Excludes::new(&options.excludes, options.default_excludes)?;
    let (real, name) = source_name(replica, source, &excludes)?;
    let threads = if options.threads == 0 { cores().min(4) } else { options.threads };
    let tree = LocalTree::start(&real, scan_options(options, excludes), threads)?;
    run_over(replica, Box::new(tree), &name, options, progress, &begun)
}

/// Takes a snapshot of any tree, known under a name, and commits it.
///
/// # Errors
/// See [`SnapshotError`]. The store then is as it was, but for progress that the next run makes use of.
pub fn run_tree(
    replica: &LockedReplica,
    tree: Box<dyn SourceTree + '_>,
    name: &str,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
) -> Result<SnapshotReport, SnapshotError> {
    run_over(replica, tree, name, options, progress, &Begun::now())
}

/// When a run began: its snapshot's time, however often it had to connect anew.
pub(super) struct Begun {
    started: jiff::Timestamp,
    clock: Instant,
}

impl Begun {
    pub(super) fn now() -> Begun {
        Begun { started: jiff::Timestamp::now(), clock: Instant::now() }
    }
}

/// Takes a snapshot of a tree that is known under a name.
///
/// When the run ends early, what was stored so far is committed if that is possible.
pub(super) fn run_over(
    replica: &LockedReplica,
    tree: Box<dyn SourceTree + '_>,
    name: &str,
    options: &SnapshotOptions,
    progress: &Arc<Progress>,
    begun: &Begun,
) -> Result<SnapshotReport, SnapshotError> {
    let _span = info_span!(target: areas::RUN, "snapshot").entered();
    info!(target: areas::RUN, rescan = options.rescan, "run started");
    let result = BackupRun::start(replica, tree, name, options, progress, begun).and_then(BackupRun::work);
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
        Err(error) => warn!(target: areas::RUN, %error, "run ended without a snapshot"),
    }
    result
}

pub(super) fn scan_options(options: &SnapshotOptions, excludes: Excludes) -> ScanOptions {
    ScanOptions {
        excludes,
        cross_file_systems: options.cross_file_systems,
        threads: options.threads,
        ..ScanOptions::default()
    }
}

fn known_path(replica: &Replica, source: SourceId) -> PathBuf {
    replica.path().join("cache").join(format!("inodes-{source}"))
}

/// Loads what is known of a source's inodes. `last` is its newest snapshot.
pub(super) fn load_inode_cache(
    replica: &Replica,
    source: SourceId,
    last: Option<&SnapshotRecord>,
) -> Option<InodeCache> {
    let reader = replica.database().read().ok()?;
    let mut known = InodeCache::load(&known_path(replica, source), |number, id| {
        commit_id(&reader, number).is_ok_and(|found| found == Some(*id))
    })?;
    let catalog = replica.catalog().ok()?;
    let named = last.map(|last| named_groups(&catalog, last)).unwrap_or_default();
    known.retain_present(&catalog, |group| named.get(group)).ok()?;
    Some(known)
}

/// Returns the link groups that a snapshot names, by its link counts. Those whose counts cannot be read are left out. A byte for each.
fn named_groups(catalog: &CatalogReader, snapshot: &SnapshotRecord) -> Paged<bool> {
    let mut named = Paged::new();
    for object in &snapshot.links {
        let Ok(page) = catalog.object(ObjectKind::Links, *object) else { continue };
        let Ok((_, counts)) = link_counts::decode_page(&page) else { continue };
        counts.iter().for_each(|(group, _)| *named.entry(*group) = true);
    }
    named
}

pub(super) struct BackupRun<'a> {
    pub(super) replica: &'a LockedReplica,
    pub(super) options: &'a SnapshotOptions,
    pub(super) progress: &'a Arc<Progress>,
    pub(super) source_tree: Box<dyn SourceTree + 'a>,
    pub(super) writer: CatalogWriter,
    pub(super) chunks: ChunkWriter,
    pub(super) inodes: RunInodes,
    pub(super) problems: Vec<RunProblem>,
    pub(super) problem_count: u64,
    pub(super) problem_bytes: usize,
    pub(super) totals: Totals,
    pub(super) work: Work,
    pub(super) owners: Owners,
    /// Maps the scan's numbers of file systems to lasting ones.
    file_systems: Vec<u32>,
    tree: TreeBuilder,
    pending: VecDeque<PendingListing>,
    /// Names of those.
    pending_names: usize,
    requests: usize,
    source: String,
    source_id: SourceId,
    started: jiff::Timestamp,
    clock: Instant,
    last_commit: Instant,
    excludes: Vec<String>,
    pub(super) last_root_files: Vec<Box<[u8]>>,
    pub(super) acls: Acls,
}

impl<'a> BackupRun<'a> {
    fn start(
        replica: &'a LockedReplica,
        source_tree: Box<dyn SourceTree + 'a>,
        source: &str,
        options: &'a SnapshotOptions,
        progress: &'a Arc<Progress>,
        begun: &Begun,
    ) -> Result<BackupRun<'a>, SnapshotError> {
        let excludes = Excludes::new(&options.excludes, options.default_excludes)?;
        let patterns = excludes.patterns().map(str::to_owned).collect();
        let mut writer = replica.writer()?;
        let adopted = super::adopt::adopt(replica, &mut writer)?;
        if adopted > 0 {
            progress.tell(format!("{adopted} chunks that an interrupted run had stored are taken over."));
        }
        let source_id = writer.intern_source(source)?;
        let last = writer.reader().snapshots()?.into_iter().rev().find(|(_, record)| record.source == source);
        let known = load_inode_cache(replica, source_id, last.as_ref().map(|(_, record)| record)).unwrap_or_default();
        let acls = if known.is_empty() || options.rescan { Acls::none() } else { Acls(known.acls) };
        let mut last_root_files = Vec::new();
        if let Some((_, record)) = &last {
            progress.expected_names.store(record.totals.names, Ordering::Relaxed);
            last_root_files = super::root_files::root_files(writer.reader(), record)?;
        }
        let chunks = ChunkWriter::start(
            Arc::clone(replica.backend()),
            Arc::clone(replica.dictionaries()),
            writer.epoch(),
            options.compression,
            Arc::clone(&progress.chunks),
        )?;
        Ok(BackupRun {
            replica,
            options,
            progress,
            source_tree,
            writer,
            chunks,
            inodes: RunInodes::new(known, options.rescan, begun.started),
            problems: Vec::new(),
            problem_count: 0,
            problem_bytes: 0,
            totals: Totals::default(),
            work: Work::default(),
            owners: Owners::default(),
            file_systems: Vec::new(),
            tree: TreeBuilder::new(),
            pending: VecDeque::new(),
            pending_names: 0,
            requests: 0,
            source: source.to_owned(),
            source_id,
            started: begun.started,
            clock: begun.clock,
            last_commit: Instant::now(),
            excludes: patterns,
            last_root_files,
            acls,
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
        // Names that waited when requests were last sent off.
        let mut flushed_names = 0;
        while let Some(listing) = self.source_tree.next_listing()? {
            self.check_interrupt()?;
            if has_long_name(&listing.path) {
                // Below a directory that was left out for its name.
                continue;
            }
            let pending = self.classify(listing)?;
            self.pending_names += pending.names();
            self.pending.push_back(pending);
            if self.pending_names >= flushed_names + PENDING_NAMES / 2 {
                // Few requests, and many names behind them: the answers are there when they are waited for.
                self.source_tree.flush()?;
                flushed_names = self.pending_names;
            }
            if self.requests >= WINDOW_REQUESTS || self.pending_names >= PENDING_NAMES {
                self.source_tree.flush()?;
                while self.requests > WINDOW_REQUESTS / 2 || self.pending_names > PENDING_NAMES / 2 {
                    self.complete_one()?;
                }
            }
            // Listings that wait for nothing are completed at once.
            while self.pending.front().is_some_and(|front| front.requests == 0) {
                self.complete_one()?;
            }
            flushed_names = flushed_names.min(self.pending_names);
        }
        self.progress.scanned.store(true, Ordering::Relaxed);
        self.source_tree.flush()?;
        while !self.pending.is_empty() {
            self.check_interrupt()?;
            self.complete_one()?;
        }
        Ok(())
    }

    /// Commits what there is when the run cannot go on.
    fn keep_what_came(&mut self) -> Result<(), SnapshotError> {
        self.progress.add_reads(self.work.read_files, self.work.read_bytes);
        self.with_intake(|tree, intake| {
            tree.abandon(intake);
            Ok(())
        })?;
        self.commit_progress()
    }

    pub(super) fn check_interrupt(&mut self) -> Result<(), SnapshotError> {
        if self.progress.interrupted() { Err(self.progress.interruption()) } else { Ok(()) }
    }

    /// Returns the lasting number of a file system of the scan.
    fn file_system(&mut self, scanned: u32) -> u32 {
        let at = scanned as usize;
        if at >= self.file_systems.len() {
            let mounts = self.source_tree.file_systems();
            for mount in mounts.iter().skip(self.file_systems.len()) {
                let lasting = self.inodes.file_system(mount);
                self.file_systems.push(lasting);
            }
        }
        self.file_systems.get(at).copied().unwrap_or(u32::MAX)
    }

    fn classify(&mut self, mut listing: Listing) -> Result<PendingListing, SnapshotError> {
        if listing.path.is_empty() {
            self.wait_for_root_files(&mut listing)?;
            if listing.entries.is_empty() && listing.unreadable.is_none() {
                return Err(SnapshotError::EmptySource { path: self.source.clone() });
            }
        }
        Progress::add(&self.progress.names, listing.entries.len() as u64);
        self.bound_directory_xattrs(&mut listing);
        self.acls.note(&listing.xattrs);
        let mut pending = PendingListing::new(&listing, &mut self.owners);
        if let Some(problem) = &listing.unreadable {
            let RunProblem { path, message } = RunProblem::from(problem);
            self.problem(path, message);
        }
        let mut prefix = listing.path;
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        for entry in listing.entries {
            if entry.name.len() > NAME_MAX_BYTES {
                self.leave_out_long_name(&prefix, &entry.name);
                continue;
            }
            let state = match entry.what {
                Found::Directory => Pending::Ready(Resolved::Directory),
                Found::Boundary(stat) => {
                    self.owners.note(stat.uid, stat.gid);
                    Pending::Ready(Resolved::Leaf(Box::new(DirectoryAttributes {
                        is_mount_point: true,
                        ..super::read_results::directory_attributes(&stat, Vec::new(), None)
                    })))
                }
                Found::Inode { file_system, ino, stat } => {
                    let file_system = self.file_system(file_system);
                    self.classify_inode(&prefix, &entry.name, file_system, ino, stat.map(|stat| *stat), &mut pending)?
                }
            };
            pending.entries.push((entry.name, state));
        }
        pending.prefix = prefix;
        pending.weigh();
        self.requests += pending.requests;
        Ok(pending)
    }

    fn classify_inode(
        &mut self,
        prefix: &[u8],
        name: &[u8],
        file_system: u32,
        ino: u64,
        stat: Option<Stat>,
        pending: &mut PendingListing,
    ) -> Result<Pending, SnapshotError> {
        let known_slot = self.inodes.slot(file_system, ino);
        let stat = match (stat, known_slot) {
            (None, Some(slot)) => return Ok(Pending::Same(slot)),
            (Some(stat), Some(slot)) if self.inodes.is_same(slot, &stat) => return Ok(Pending::Same(slot)),
            (Some(stat), _) => stat,
            (None, None) => return Ok(Pending::Dropped),
        };
        self.owners.note(stat.uid, stat.gid);
        self.totals.count(&stat, 1);
        let verdict = self.inodes.judge(file_system, &stat);
        let several = stat.nlink > 1;
        let (want, known) = match verdict {
            Verdict::Unchanged(known) => {
                self.work.unchanged_inodes += 1;
                self.inodes.keep(known);
                if several {
                    self.inodes.add_slot(file_system, &stat, Slot::Group(known.group, known.row_digest));
                }
                return Ok(Pending::Ready(Resolved::Group(known.group, known.row_digest)));
            }
            Verdict::Attributes(known) => (Want::Attributes, Some(known)),
            // An empty file and a device have nothing to read.
            Verdict::Content(known) if stat.size == 0 && stat.kind != Kind::Symlink => (Want::Attributes, known),
            Verdict::Content(known) => (Want::Content, known),
        };
        if want == Want::Content {
            Progress::add(&self.progress.asked_files, 1);
            Progress::add(&self.progress.asked_bytes, stat.size);
        }
        let slot = several.then(|| self.inodes.add_slot(file_system, &stat, Slot::Requested));
        let mut path = prefix.to_vec();
        path.extend_from_slice(name);
        self.source_tree.submit(ReadRequest { path, stat, want })?;
        pending.requests += 1;
        Ok(Pending::Read(Box::new(InFlightRead {
            slot,
            file_system,
            stat,
            want,
            known,
            same_content: matches!(verdict, Verdict::Attributes(_)),
        })))
    }

    /// Completes the oldest pending listing.
    fn complete_one(&mut self) -> Result<(), SnapshotError> {
        let Some(listing) = self.pending.pop_front() else { return Ok(()) };
        self.pending_names -= listing.names();
        if let Ok(mut current) = self.progress.current.try_lock() {
            current.clone_from(&listing.prefix);
        }
        let mut entries = Vec::with_capacity(listing.entries.len());
        for (name, pending) in listing.entries {
            let resolved = match pending {
                Pending::Ready(resolved) => Some(resolved),
                Pending::Dropped => None,
                Pending::Read(read) => {
                    self.requests -= 1;
                    let resolved = self.answer(&listing.prefix, &name, *read)?;
                    self.check_interrupt()?;
                    self.commit_if_due()?;
                    resolved
                }
                Pending::Same(slot) => self.same_as(&listing.prefix, &name, slot)?,
            };
            if let Some(resolved) = resolved {
                entries.push((name, resolved));
            }
        }
        let resolved = ResolvedListing { name: listing.name, attributes: listing.attributes, entries };
        self.tree.listing(&mut self.writer, resolved)?;
        self.commit_if_due()
    }

    fn commit_if_due(&mut self) -> Result<(), SnapshotError> {
        let due = self.last_commit.elapsed() >= self.options.progress_interval;
        if due || self.writer.pending_bytes() >= PROGRESS_PENDING_BYTES { self.commit_progress() } else { Ok(()) }
    }

    /// Commits within a file of which the catalogue has got much already.
    pub(super) fn commit_if_large(&mut self) -> Result<(), SnapshotError> {
        if self.writer.pending_bytes() >= PROGRESS_PENDING_BYTES { self.commit_progress() } else { Ok(()) }
    }

    /// Resolves a further name of an inode; reads the inode by this name if its first one failed.
    fn same_as(&mut self, prefix: &[u8], name: &[u8], slot: u32) -> Result<Option<Resolved>, SnapshotError> {
        match self.inodes.get(slot) {
            Slot::Group(number, digest) => Ok(Some(Resolved::Group(number, digest))),
            Slot::Requested => Ok(None),
            Slot::Lost(stat, file_system) => {
                let path = [prefix, name].concat();
                let request = ReadRequest { path, stat, want: Want::Content };
                self.totals.count(&stat, 1);
                let (outcome, builder) = self.read_apart(&request)?;
                let read = InFlightRead {
                    slot: Some(slot),
                    file_system,
                    stat,
                    want: Want::Content,
                    known: None,
                    same_content: false,
                };
                self.finish_inode(&request.path, read, outcome, builder)
            }
        }
    }

    /// Commits what there is, so that a later run need not read or store it again.
    pub(super) fn commit_progress(&mut self) -> Result<(), SnapshotError> {
        self.store_all()?;
        self.writer.commit()?;
        self.save_inode_cache(&self.inodes.so_far(self.acls.answer()));
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Waits until every chunk that has a number is in a pack.
    fn store_all(&mut self) -> Result<(), SnapshotError> {
        self.with_intake(|tree, intake| tree.wait_for_chunks(intake))?;
        self.chunks.flush(&mut self.writer)
    }

    /// Does something that may bring chunks of another host.
    pub(super) fn with_intake<T>(
        &mut self,
        work: impl FnOnce(&mut dyn SourceTree, &mut Intake<'_>) -> Result<T, SourceError>,
    ) -> Result<T, SnapshotError> {
        let mut intake = Intake::new(&mut self.writer, &mut self.chunks);
        let result = work(&mut *self.source_tree, &mut intake);
        match intake.into_failure() {
            Some(failure) => Err(failure),
            None => Ok(result?),
        }
    }

    /// Saves what the next run may know. It is a cache: failing to write it costs the next run time and nothing else.
    fn save_inode_cache(&self, known: &InodeCache) {
        let (number, id) = self.writer.last_commit();
        let _ = known.save(&known_path(self.replica, self.source_id), number, &id);
    }

    fn finish(mut self) -> Result<SnapshotReport, SnapshotError> {
        self.progress.committing.store(true, Ordering::Relaxed);
        let end = self.source_tree.end_of_scan();
        for problem in &end.problems {
            let RunProblem { path, message } = RunProblem::from(problem);
            self.problem(path, message);
        }
        self.work.excluded_names = end.excluded;
        self.work.stats = end.stats;
        let tree = std::mem::take(&mut self.tree).finish().ok_or(SnapshotError::ScanIncomplete)?;
        let owners = self.source_tree.owner_names(self.owners.users(), self.owners.groups())?;
        self.store_all()?;
        let mut link_objects = Vec::new();
        for page in link_counts::encode(&tree.link_counts) {
            link_objects.push(self.writer.intern_object(ObjectKind::Links, &page)?);
        }
        let problems = self.problems_object()?;
        self.totals.names = tree.names;
        self.totals.directories = tree.directories;
        self.totals.inodes = tree.link_counts.len() as u64;
        self.work.new_chunks = self.progress.chunks.new_chunks.load(Ordering::Relaxed);
        self.work.new_bytes = self.progress.chunks.new_bytes.load(Ordering::Relaxed);
        self.work.stored_bytes = self.progress.chunks.stored_bytes.load(Ordering::Relaxed);
        let (earlier_files, earlier_bytes) = self.progress.earlier_reads();
        self.work.read_files += earlier_files;
        self.work.read_bytes += earlier_bytes;
        let wire = &self.progress.wire;
        self.work.received_bytes = wire.received_bytes.load(Ordering::Relaxed);
        self.work.sent_bytes = wire.sent_bytes.load(Ordering::Relaxed);
        self.work.round_trips = wire.waits.load(Ordering::Relaxed);
        self.work.connections = wire.connections.load(Ordering::Relaxed);
        self.work.elapsed_ms = self.clock.elapsed().as_millis() as u64;
        let mut record = SnapshotRecord {
            id: String::new(),
            time: self.started,
            finished: jiff::Timestamp::now(),
            source: self.source.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            tags: self.options.tags.clone(),
            excludes: self.excludes.clone(),
            root: SnapshotRecord::root_of(&tree.root),
            links: link_objects,
            problems,
            problem_count: self.problem_count,
            users: owners.users,
            groups: owners.groups,
            has_acls: self.acls.answer(),
            guard: None,
            totals: self.totals,
            work: self.work,
            digest: tree.digest,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        record.id = record.compute_id(&self.replica.config().id);
        // The guard reads the tree, so the tree is committed first, as progress is, and the record behind it.
        self.writer.commit()?;
        record.guard = Some(guard::examine(self.replica, self.writer.reader(), &record, &self.options.guard));
        let number = self.writer.add_snapshot(&record)?;
        self.writer.commit()?;
        let inodes = std::mem::replace(&mut self.inodes, RunInodes::new(InodeCache::default(), false, self.started));
        let (known, changed) = inodes.finish(self.acls.answer());
        if changed {
            self.save_inode_cache(&known);
        }
        Ok(SnapshotReport { number, record, problems: std::mem::take(&mut self.problems) })
    }

    fn problems_object(&mut self) -> Result<Option<u64>, SnapshotError> {
        if self.problems.is_empty() {
            return Ok(None);
        }
        let mut lines = Vec::new();
        for problem in &self.problems {
            if serde_json::to_writer(&mut lines, problem).is_ok() {
                // Writing to a Vec cannot fail.
                let _ = lines.write_all(b"\n");
            }
        }
        Ok(Some(self.writer.intern_object(ObjectKind::Problems, &lines)?))
    }
}

impl Totals {
    /// Counts one inode in; or out again, with a `by` of -1.
    pub(super) fn count(&mut self, stat: &Stat, by: i64) {
        let of_kind = match stat.kind {
            Kind::File => &mut self.files,
            Kind::Symlink => &mut self.symlinks,
            _ => &mut self.specials,
        };
        *of_kind = of_kind.saturating_add_signed(by);
        // A source may state any size.
        let add = if by < 0 { u64::saturating_sub } else { u64::saturating_add };
        self.bytes = add(self.bytes, stat.size);
    }
}
