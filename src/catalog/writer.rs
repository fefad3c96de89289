//! Writing the catalogue: numbers for what is new, and commits.
//!
//! A writer gathers changes in memory and writes them at [`CatalogWriter::commit`]: first the commit file, made durable, then one transaction of
//! the database. A crash before the commit file is complete leaves nothing; between the two it leaves a commit file that the next writer
//! applies. Packs that a change refers to must be durable before `commit` is called.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::chunk::{self, ChunkPage, ChunkRow, PAGE_ROWS, PackRow, PackedChunk};
use super::commit::{self, CommitId};
use super::commit_log::last_commit;
use super::condemned::{self, Condemned, CondemnedRow};
use super::database::CatalogDatabase;
use super::error::{CatalogError, WriteError, Written};
use super::group::{self, LinkGroup, PAGE_HELD_BYTES};
use super::hold::Hold;
use super::marks::SnapshotMarks;
use super::meta::{COUNTERS, Counters, HOLD, LOCATIONS, SOURCES, STORE};
use super::object::{self, ObjectEncoder, ObjectKind};
use super::reader::CatalogReader;
use super::row_id::RowKind;
use super::snapshot::{RECORD_MAX_BYTES, SnapshotRecord};
use super::sources::Sources;
use super::tables::{Change, Index, Table};
use crate::ids::{ChunkId, CommitNumber, DictionaryId, GroupId, ObjectId, PackNumber, SnapshotNumber};
use crate::model::ChunkHash;
use crate::store::backend::Backend;

/// The page of link groups that is being filled.
#[derive(Clone, Copy)]
struct OpenPage {
    page: u64,
    /// What its rows take in memory, in bytes; more than a page may if that was not looked at to the end.
    held: usize,
}

/// Gathers changes and commits them.
pub struct CatalogWriter {
    database: Arc<CatalogDatabase>,
    backend: Arc<dyn Backend>,
    reader: Arc<CatalogReader>,
    counters: Counters,
    last: (CommitNumber, CommitId),
    encoder: ObjectEncoder,
    pub(super) changes: Vec<Change>,
    pub(super) pending_bytes: usize,
    chunks: HashMap<ChunkHash, (ChunkId, u32)>,
    chunk_rows: BTreeMap<u64, ChunkPage>,
    objects: HashMap<[u8; 32], ObjectId>,
    groups: Vec<(GroupId, LinkGroup)>,
    open_page: Option<OpenPage>,
    /// What the store's row of `meta` is to be, if it is not that yet.
    store: Option<Vec<u8>>,
    epoch: u32,
    next_condemned: Option<u64>,
    /// A commit has failed. What it left may be half done, so that another one on top of it would be, too.
    is_poisoned: bool,
}

impl CatalogWriter {
    /// Starts writing on top of the last commit. The caller holds the store's lock and has rolled forward.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn new(database: Arc<CatalogDatabase>, backend: Arc<dyn Backend>) -> Result<CatalogWriter, CatalogError> {
        let reader = Arc::new(CatalogReader::new(&database)?);
        let counters = Counters::read(&*reader.database()?)?;
        let last = last_commit(&*reader.database()?)?;
        let encoder = ObjectEncoder::new().map_err(WriteError::Compress)?;
        Ok(CatalogWriter {
            database,
            backend,
            reader,
            counters,
            last,
            encoder,
            changes: Vec::new(),
            pending_bytes: 0,
            chunks: HashMap::new(),
            chunk_rows: BTreeMap::new(),
            objects: HashMap::new(),
            groups: Vec::new(),
            store: None,
            // One above the last commit: it grows with every writer that commits anything.
            epoch: u32::try_from(last.0.next().0).unwrap_or(u32::MAX),
            next_condemned: None,
            is_poisoned: false,
            open_page: None,
        })
    }

    /// Says what `config.json` holds. Where the catalogue does not say the same, it will with the next commit; there is none for this alone.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub(crate) fn describe_store(&mut self, row: Vec<u8>) -> Result<(), CatalogError> {
        let is_same = match self.reader.database()?.get(Table::Meta, STORE, |found| Ok(found == row)) {
            Err(error) if error.is_damage() => None,
            found => found?,
        };
        self.store = (is_same != Some(true)).then_some(row);
        Ok(())
    }

    /// Returns a reader of the last commit.
    pub fn reader(&self) -> &Arc<CatalogReader> {
        &self.reader
    }

    /// Returns the number and identifier of the last commit.
    pub fn last_commit(&self) -> (CommitNumber, CommitId) {
        self.last
    }

    /// Returns the counters, pending rows included.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Estimates the memory that pending changes hold, in bytes.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Returns the number of a chunk, and whether it is new: then its bytes must be stored and
    /// [`CatalogWriter::place_chunk`] be called before the next commit.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn intern_chunk(&mut self, hash: &ChunkHash, plain_length: u32) -> Result<(ChunkId, bool), CatalogError> {
        if let Some((number, length)) = self.chunks.get(hash) {
            if *length != plain_length {
                let lengths = (*length, plain_length);
                return Err(WriteError::TwoLengths { hash: hash.to_string(), lengths }.into());
            }
            return Ok((*number, false));
        }
        let number = match self.reader.find_chunk_row(hash, plain_length)? {
            Some((number, row)) if !row.is_lost() => return Ok((number, false)),
            // The bytes come back under the number that older snapshots know them by, and make those whole again.
            Some((number, _)) => number,
            None => {
                let number = self.counters.chunk;
                self.counters.chunk.0 += 1;
                number
            }
        };
        self.chunks.insert(*hash, (number, plain_length));
        self.pending_bytes += 160;
        Ok((number, true))
    }

    /// Takes back the number of a new chunk that will not be stored. The number stays unused.
    pub fn forget_chunk(&mut self, hash: &ChunkHash) {
        self.chunks.remove(hash);
    }

    /// Sets where a chunk lies.
    ///
    /// # Errors
    /// Fails when its page cannot be read.
    pub fn place_chunk(&mut self, number: ChunkId, row: ChunkRow) -> Result<(), CatalogError> {
        let page = number.0 / PAGE_ROWS;
        let slot = (number.0 % PAGE_ROWS) as usize;
        let rows = match self.chunk_rows.entry(page) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(self.reader.chunk_rows(page)?),
        };
        if rows.len() <= slot {
            rows.resize(slot + 1, None);
        }
        rows[slot] = Some(row);
        Ok(())
    }

    /// Adds a pack with the chunks that are to lie in it from now on, and returns its number.
    ///
    /// # Errors
    /// As [`place_chunk`](CatalogWriter::place_chunk).
    pub fn add_pack(&mut self, row: PackRow, chunks: &[PackedChunk]) -> Result<PackNumber, CatalogError> {
        let number = self.counters.pack;
        self.counters.pack.0 += 1;
        self.put(Table::Packs, number.0, row.encode());
        for chunk in chunks {
            self.place_chunk(chunk.number, chunk.row(number))?;
        }
        Ok(number)
    }

    /// Returns the epoch that the ids of packs begin with which this writer's run makes.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Condemns an object: a later run deletes it.
    ///
    /// # Errors
    /// Fails when a row of the table is damaged.
    pub fn condemn(&mut self, what: Condemned, bytes: u64, now: jiff::Timestamp) -> Result<(), CatalogError> {
        let number = match self.next_condemned {
            Some(number) => number,
            None => condemned::read_all(&self.reader)?.last().map_or(0, |(number, _)| number + 1),
        };
        self.next_condemned = Some(number + 1);
        self.set_condemned(number, &CondemnedRow::new(what, bytes, now));
        Ok(())
    }

    /// Writes the row of a condemned object anew.
    pub fn set_condemned(&mut self, number: u64, row: &CondemnedRow) {
        self.put(Table::Condemned, number, row.encode());
    }

    /// Adds a dictionary under the number that chunks compressed with it carry.
    pub fn add_dictionary(&mut self, id: DictionaryId, bytes: &[u8]) {
        self.put(Table::Dictionaries, u64::from(id.get()), bytes.to_vec());
    }

    /// Adds a link group and returns its number.
    ///
    /// A page ends before the row with which its rows would take more memory than [`PAGE_HELD_BYTES`].
    ///
    /// # Errors
    /// Fails when the page that is to be continued cannot be read.
    pub fn add_group(&mut self, group: LinkGroup) -> Result<GroupId, CatalogError> {
        let held = group.held_bytes();
        let page = self.counters.group.0 / PAGE_ROWS;
        let mut open = match self.open_page {
            Some(open) if open.page == page => open,
            _ if self.counters.group.0.is_multiple_of(PAGE_ROWS) => OpenPage { page, held: 0 },
            _ => OpenPage { page, held: self.held_by_page(page)? },
        };
        if open.held > 0 && open.held + held > PAGE_HELD_BYTES {
            open = OpenPage { page: page + 1, held: 0 };
            self.counters.group = GroupId(open.page * PAGE_ROWS);
        }
        open.held += held;
        self.open_page = Some(open);
        let number = self.counters.group;
        self.counters.group.0 += 1;
        self.pending_bytes += held;
        self.groups.push((number, group));
        Ok(number)
    }

    /// Returns what the rows of a page take in memory; of one that takes too much, some of it.
    fn held_by_page(&self, page: u64) -> Result<usize, CatalogError> {
        let mut held = 0;
        self.reader.for_each_group(page, |_, row| {
            held += row.map_or(0, |row| row.held_bytes());
            Ok::<_, CatalogError>(held <= PAGE_HELD_BYTES)
        })?;
        Ok(held)
    }

    /// Returns the number of an object with these bytes, which is new only when no other has them.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn intern_object(&mut self, kind: ObjectKind, plain: &[u8]) -> Result<ObjectId, CatalogError> {
        let hash = object::hash(kind, plain);
        if let Some(number) = self.objects.get(&hash) {
            return Ok(*number);
        }
        if let Some(number) = self.reader.find_object(&hash)? {
            return Ok(number);
        }
        let (bytes, most) = (plain.len() as u64, kind.written_max_bytes() as u64);
        if bytes > most {
            return Err(WriteError::TooLarge { what: Written::Object, bytes, most }.into());
        }
        let number = self.counters.object;
        self.counters.object.0 += 1;
        let stored = self.encoder.encode(kind, &hash, plain);
        self.put(Table::Objects, number.0, stored);
        self.changes.push(Change::PutIndex(Index::Objects, hash, number.0));
        self.objects.insert(hash, number);
        self.pending_bytes += 160;
        Ok(number)
    }

    /// Sets the sources, in place of those that there were.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn set_sources(&mut self, sources: &Sources) -> Result<(), CatalogError> {
        let encode = |source| WriteError::Encode { row: RowKind::Meta.row(SOURCES), source };
        let (listed, locations) = sources.encode().map_err(encode)?;
        self.put(Table::Meta, SOURCES, listed);
        self.put(Table::Meta, LOCATIONS, locations);
        Ok(())
    }

    /// Adds a snapshot and returns its number.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn add_snapshot(&mut self, record: &SnapshotRecord) -> Result<SnapshotNumber, CatalogError> {
        let number = self.counters.snapshot;
        let encoded =
            record.encode().map_err(|source| WriteError::Encode { row: RowKind::Snapshot.row(number), source })?;
        let (bytes, most) = (encoded.len() as u64, RECORD_MAX_BYTES as u64);
        if bytes > most {
            return Err(WriteError::TooLarge { what: Written::Snapshot, bytes, most }.into());
        }
        self.counters.snapshot.0 += 1;
        self.put(Table::Snapshots, number.0, encoded);
        Ok(number)
    }

    /// Sets the marks of a snapshot, in place of those that it had. Without any the row goes.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn set_marks(&mut self, number: SnapshotNumber, marks: &SnapshotMarks) -> Result<(), CatalogError> {
        if marks.is_empty() {
            self.changes.push(Change::Delete(Table::Marks, number.0));
            return Ok(());
        }
        let encoded = serde_json::to_vec(marks)
            .map_err(|source| WriteError::Encode { row: RowKind::Marks.row(number), source })?;
        self.put(Table::Marks, number.0, encoded);
        Ok(())
    }

    /// Sets the hold, or takes it away.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn set_hold(&mut self, hold: Option<&Hold>) -> Result<(), CatalogError> {
        let Some(hold) = hold else {
            self.changes.push(Change::Delete(Table::Meta, HOLD));
            return Ok(());
        };
        let encoded =
            serde_json::to_vec(hold).map_err(|source| WriteError::Encode { row: RowKind::Meta.row(HOLD), source })?;
        self.put(Table::Meta, HOLD, encoded);
        Ok(())
    }

    pub(super) fn put(&mut self, table: Table, key: u64, payload: Vec<u8>) {
        self.pending_bytes += payload.len() + 64;
        self.changes.push(Change::Put(table, key, payload));
    }

    /// Writes all pending changes: durable when it returns. Without pending changes it does nothing.
    ///
    /// # Errors
    /// On an error nothing of this commit counts, unless its commit file was complete: then the next writer applies it. Nothing can be written through
    /// this writer any more: every further commit is [`WriteError::Poisoned`].
    pub fn commit(&mut self) -> Result<(), CatalogError> {
        // Ended early in any way, a panic included, it stays poisoned.
        if std::mem::replace(&mut self.is_poisoned, true) {
            return Err(WriteError::Poisoned.into());
        }
        self.write_pending()?;
        self.is_poisoned = false;
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), CatalogError> {
        self.flush_groups()?;
        for (page, rows) in std::mem::take(&mut self.chunk_rows) {
            self.changes.push(Change::Put(Table::Chunks, page, chunk::encode_page(&rows)));
        }
        let mut chunks: Vec<(ChunkHash, ChunkId)> =
            self.chunks.drain().map(|(hash, (number, _))| (hash, number)).collect();
        chunks.sort_unstable_by_key(|(_, number)| *number);
        for (hash, number) in chunks {
            self.changes.push(Change::PutIndex(Index::Chunks, hash.0, number.0));
        }
        if self.changes.is_empty() {
            return Ok(());
        }
        self.changes.push(Change::Put(Table::Meta, COUNTERS, self.counters.encode()));
        if let Some(row) = self.store.take() {
            self.changes.push(Change::Put(Table::Meta, STORE, row));
        }
        let number = self.last.0.next();
        let key = commit::key(number);
        let (file, id) = commit::encode(number, &self.last.1, &self.changes)?;
        self.backend.put(&key, &[&file])?;
        self.backend.sync()?;
        self.changes.push(Change::Put(Table::Commits, number.0, id.to_vec()));
        self.database.apply(&self.changes)?;
        self.changes.clear();
        self.objects.clear();
        self.pending_bytes = 0;
        self.last = (number, id);
        self.reader = Arc::new(CatalogReader::new(&self.database)?);
        Ok(())
    }

    fn flush_groups(&mut self) -> Result<(), CatalogError> {
        let groups = std::mem::take(&mut self.groups);
        let mut groups = groups.into_iter().peekable();
        while let Some(page) = groups.peek().map(|(number, _)| number.0 / PAGE_ROWS) {
            let mut rows = self.reader.group_rows(page)?;
            while let Some((number, group)) = groups.next_if(|(number, _)| number.0 / PAGE_ROWS == page) {
                // A gap is a number whose group was removed.
                rows.resize((number.0 % PAGE_ROWS) as usize, None);
                rows.push(Some(group));
            }
            self.changes.push(Change::Put(Table::Groups, page, group::encode_page(&rows)));
        }
        Ok(())
    }
}
