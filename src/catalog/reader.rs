//! Reading the catalogue: rows by number, decoded and cached, each verified.
//!
//! A reader sees the catalogue of one commit, or follows the commits. It may be shared between threads. Its caches hold at most some 25 MB of decoded pages
//! where extended attributes are as small as they are with mail; each page of link groups that has larger ones takes up to half a MiB, and of directories
//! somewhat more.

use std::path::PathBuf;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::CatalogError;
use super::chunk::{self, ChunkPage, ChunkPlace, ChunkRow, PAGE_ROWS, PackRow};
use super::damage::RowFault;
use super::database::CatalogDatabase;
use super::database_reader::DatabaseReader;
use super::directory::{self, Entry, IndexPage};
use super::group::{self, Content, LinkGroup, Segment};
use super::latest_commit::LatestCommitReader;
pub use super::latest_commit::OpenDatabase;
use super::object::{self, ObjectKind};
use super::row_id::RowKind;
pub use super::row_source::RemoteRows;
use super::row_source::RowSource;
use super::snapshot::SnapshotRecord;
use super::sources::Sources;
use super::tables::{Index, Table};
use crate::coding::DecodeError;
use crate::ids::{ChunkId, DictionaryId, GroupId, ObjectId, PackNumber, SnapshotNumber};
use crate::model::ChunkHash;
use crate::store::codec::{Dictionary, DictionarySet};
use crate::store::entry::{ChunkAddress, Location};

const CHUNK_PAGES: usize = 512;
const GROUP_PAGES: usize = 192;
const DIRECTORY_PAGES: usize = 1024;
const PACK_ROWS: usize = 4096;
/// Memory for the rows of one page of link groups that are kept, in bytes: all, of a page that this version wrote, but for one that is larger alone.
const CACHED_PAGE_BYTES: usize = 2 * group::PAGE_HELD_BYTES;
/// A page of a directory whose names and extended attributes take more than this is not kept, in bytes.
const CACHED_DIRECTORY_BYTES: usize = 2 * directory::PAGE_MAX_BYTES;

type GroupPage = Vec<Option<Arc<LinkGroup>>>;

/// A view of the catalogue.
pub struct CatalogReader {
    rows: RowSource,
    chunks: Cache<u64, Arc<ChunkPage>>,
    groups: Cache<u64, Arc<GroupPage>>,
    pages: Cache<ObjectId, Arc<Vec<Entry>>>,
    packs: Cache<PackNumber, PackRow>,
}

impl CatalogReader {
    /// Starts reading the last commit.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn new(database: &CatalogDatabase) -> Result<CatalogReader, CatalogError> {
        Ok(CatalogReader::over(RowSource::Fixed(Arc::new(database.read()?))))
    }

    /// Starts to follow the commits of the database at `path`. Call [`release`](CatalogReader::release) every second or so, lest an old commit
    /// stays pinned while nothing is read.
    ///
    /// # Errors
    /// Fails when the database cannot be opened now.
    pub fn following(path: PathBuf, open: OpenDatabase) -> Result<CatalogReader, CatalogError> {
        let reader = CatalogReader::over(RowSource::Latest(LatestCommitReader::new(path, open)));
        reader.rows.get()?;
        Ok(reader)
    }

    /// Reads a catalogue that lies on another host, row by row.
    pub fn over_remote_rows(source: Arc<dyn RemoteRows>) -> CatalogReader {
        CatalogReader::over(RowSource::Remote(source))
    }

    fn over(rows: RowSource) -> CatalogReader {
        CatalogReader {
            rows,
            chunks: Cache::new(CHUNK_PAGES),
            groups: Cache::new(GROUP_PAGES),
            pages: Cache::new(DIRECTORY_PAGES),
            packs: Cache::new(PACK_ROWS),
        }
    }

    /// Returns the raw tables, for `check`.
    ///
    /// # Errors
    /// Fails for a reader that follows the commits, when redb fails.
    pub fn database(&self) -> Result<Arc<DatabaseReader>, CatalogError> {
        self.rows.get()
    }

    /// Lets a reader that follows the commits give its transaction back when its time is over.
    pub fn release(&self) {
        if let RowSource::Latest(latest) = &self.rows {
            latest.release(false);
        }
    }

    /// Lets a reader that follows the commits forget where chunks are and look at the newest commit: packs may have been rewritten.
    /// Returns whether that can change an answer.
    pub fn refresh(&self) -> bool {
        let RowSource::Latest(latest) = &self.rows else { return false };
        latest.release(true);
        self.chunks.clear();
        self.packs.clear();
        true
    }

    fn chunk_page(&self, page: u64) -> Result<Option<Arc<ChunkPage>>, CatalogError> {
        if let Some(found) = self.chunks.get(&page) {
            return Ok(Some(found));
        }
        self.fetch_chunk_page(page)
    }

    fn fetch_chunk_page(&self, page: u64) -> Result<Option<Arc<ChunkPage>>, CatalogError> {
        let decoded = self.rows.payload(Table::Chunks, page, |payload| {
            CatalogError::decode_row(RowKind::ChunkPage.row(page), || chunk::decode_page(payload))
        })?;
        Ok(decoded.map(|decoded| {
            let decoded = Arc::new(decoded);
            self.chunks.insert(page, Arc::clone(&decoded));
            decoded
        }))
    }

    /// Returns a page of chunk rows as stored; empty when there is none.
    ///
    /// # Errors
    /// [`CatalogDamage::Row`](super::CatalogDamage::Row) when it is damaged.
    pub fn chunk_rows(&self, page: u64) -> Result<ChunkPage, CatalogError> {
        Ok(self.chunk_page(page)?.map_or_else(Vec::new, |page| page.as_ref().clone()))
    }

    /// Returns the row of a chunk.
    ///
    /// # Errors
    /// [`CatalogDamage::Missing`](super::CatalogDamage::Missing) when there is no such chunk.
    pub fn chunk(&self, number: ChunkId) -> Result<ChunkRow, CatalogError> {
        let row = |page: Option<Arc<ChunkPage>>| page?.get((number.0 % PAGE_ROWS) as usize).copied().flatten();
        let page = number.0 / PAGE_ROWS;
        if let Some(found) = row(self.chunk_page(page)?) {
            return Ok(found);
        }
        // A later commit may have added rows to a page that is cached.
        row(self.fetch_chunk_page(page)?).ok_or(CatalogError::missing(RowKind::Chunk.row(number)))
    }

    /// Returns the row of a pack.
    ///
    /// # Errors
    /// [`CatalogDamage::Missing`](super::CatalogDamage::Missing) when there is no such pack.
    pub fn pack(&self, number: PackNumber) -> Result<PackRow, CatalogError> {
        if let Some(row) = self.packs.get(&number) {
            return Ok(row);
        }
        let row = self
            .rows
            .payload(Table::Packs, number.0, |payload| {
                CatalogError::decode_row(RowKind::Pack.row(number), || PackRow::decode(payload))
            })?
            .ok_or(CatalogError::missing(RowKind::Pack.row(number)))?;
        self.packs.insert(number, row);
        Ok(row)
    }

    /// Calls `visit` for every row of a chunk, in order of their numbers.
    ///
    /// # Errors
    /// Fails when a page is damaged or `visit` fails.
    pub fn for_each_chunk(
        &self,
        mut visit: impl FnMut(ChunkId, &ChunkRow) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.database()?.scan(Table::Chunks, 0, |page, payload| {
            let rows = chunk::decode_page(payload?)
                .map_err(|error| CatalogError::of_row(RowKind::ChunkPage.row(page), error))?;
            for (number, row) in (page * PAGE_ROWS..).map(ChunkId).zip(&rows) {
                if let Some(row) = row {
                    visit(number, row)?;
                }
            }
            Ok(())
        })
    }

    /// Calls `visit` for every row of a pack, in order of their numbers.
    ///
    /// # Errors
    /// Fails when a row is damaged or `visit` fails.
    pub fn for_each_pack(
        &self,
        mut visit: impl FnMut(PackNumber, PackRow) -> Result<(), CatalogError>,
    ) -> Result<(), CatalogError> {
        self.database()?.scan(Table::Packs, 0, |number, payload| {
            let row =
                PackRow::decode(payload?).map_err(|error| CatalogError::of_row(RowKind::Pack.row(number), error))?;
            visit(PackNumber(number), row)
        })
    }

    /// Returns where a chunk lies and the first bytes of its hash, as the chunk reader wants them.
    ///
    /// # Errors
    /// [`CatalogDamage::Missing`](super::CatalogDamage::Missing) when the chunk or its pack is not in the catalogue.
    pub fn chunk_address(&self, number: ChunkId) -> Result<ChunkAddress, CatalogError> {
        let row = self.chunk(number)?;
        let ChunkPlace::At { pack, offset, stored_length } = row.place else {
            return Err(CatalogError::of_row(RowKind::Chunk.row(number), RowFault::Lost));
        };
        let pack = self.pack(pack)?.id;
        let location = Location { pack, offset, stored_length, plain_length: row.plain_length };
        Ok(ChunkAddress { location, hash_prefix: row.prefix })
    }

    /// Finds a chunk by its hash. The index's answer is confirmed against the chunk's row, so a damaged index can
    /// cost space and never makes one chunk stand for another.
    ///
    /// # Errors
    /// Fails when redb fails or the row is damaged.
    pub fn find_chunk(&self, hash: &ChunkHash, plain_length: u32) -> Result<Option<ChunkId>, CatalogError> {
        Ok(self.find_chunk_row(hash, plain_length)?.filter(|(_, row)| !row.is_lost()).map(|(number, _)| number))
    }

    /// Finds the number and the row of a chunk by its hash, also when its bytes are lost.
    ///
    /// # Errors
    /// Fails when redb fails or the row is damaged.
    pub fn find_chunk_row(
        &self,
        hash: &ChunkHash,
        plain_length: u32,
    ) -> Result<Option<(ChunkId, ChunkRow)>, CatalogError> {
        let Some(number) = self.rows.get()?.find(Index::Chunks, &hash.0)?.map(ChunkId) else {
            return Ok(None);
        };
        match self.chunk(number) {
            Ok(row) if row.prefix == hash.prefix() && row.plain_length == plain_length => Ok(Some((number, row))),
            Ok(_) => Ok(None),
            Err(error) if error.is_missing_row() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` for each row of a page of link groups, with its place in the page, until it returns `false`. Nothing where there is no such page.
    ///
    /// Memory: one row at a time, whatever the page.
    ///
    /// # Errors
    /// [`CatalogDamage::Row`](super::CatalogDamage::Row) when it is damaged, or what `visit` returns.
    pub fn for_each_group<E: From<CatalogError>>(
        &self,
        page: u64,
        mut visit: impl FnMut(usize, Option<LinkGroup>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut failure = None;
        self.rows.payload(Table::Groups, page, |payload| {
            CatalogError::decode_row(RowKind::GroupPage.row(page), || {
                group::for_each_row(payload, |at, row| match visit(at, row) {
                    Ok(goes_on) => Ok(goes_on),
                    Err(error) => {
                        failure = Some(error);
                        Ok::<_, DecodeError>(false)
                    }
                })
            })
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Returns a page of link groups as stored; empty when there is none. Only for pages that take little memory: those that are still being filled.
    ///
    /// # Errors
    /// [`CatalogDamage::Row`](super::CatalogDamage::Row) when it is damaged.
    pub fn group_rows(&self, page: u64) -> Result<Vec<Option<LinkGroup>>, CatalogError> {
        let rows = self.rows.payload(Table::Groups, page, |payload| {
            CatalogError::decode_row(RowKind::GroupPage.row(page), || group::decode_page(payload))
        })?;
        Ok(rows.unwrap_or_default())
    }

    /// Returns a link group.
    ///
    /// # Errors
    /// [`CatalogDamage::Missing`](super::CatalogDamage::Missing) when there is no such group.
    pub fn group(&self, number: GroupId) -> Result<Arc<LinkGroup>, CatalogError> {
        let page = number.0 / PAGE_ROWS;
        let row = |rows: &GroupPage| rows.get((number.0 % PAGE_ROWS) as usize).cloned().flatten();
        // A later commit may have added rows to a page that is cached, and large rows are not kept.
        if let Some(found) = self.groups.get(&page).and_then(|rows| row(&rows)) {
            return Ok(found);
        }
        let slot = (number.0 % PAGE_ROWS) as usize;
        let (mut rows, mut found, mut held) = (GroupPage::new(), None, 0);
        self.for_each_group(page, |at, row| {
            let row_bytes = row.as_ref().map_or(0, LinkGroup::held_bytes);
            let row = row.map(Arc::new);
            if at == slot {
                found.clone_from(&row);
            }
            // Of a page without measure, as earlier versions made them, the large rows are decoded anew each time.
            let is_kept = held + row_bytes <= CACHED_PAGE_BYTES;
            held += if is_kept { row_bytes } else { 0 };
            rows.push(row.filter(|_| is_kept));
            Ok::<_, CatalogError>(true)
        })?;
        self.groups.insert(page, Arc::new(rows));
        found.ok_or(CatalogError::missing(RowKind::Group.row(number)))
    }

    /// Returns the plain bytes of an object.
    ///
    /// # Errors
    /// [`CatalogDamage`](super::CatalogDamage) when it cannot be had as it was written.
    pub fn object(&self, kind: ObjectKind, number: ObjectId) -> Result<Vec<u8>, CatalogError> {
        self.rows
            .payload(Table::Objects, number.0, |payload| {
                CatalogError::decode_row(RowKind::Object.row(number), || object::decode(kind, payload))
            })?
            .ok_or(CatalogError::missing(RowKind::Object.row(number)))
    }

    /// Finds an object by its hash; the index's answer is confirmed against the object itself.
    ///
    /// # Errors
    /// Fails when redb fails.
    pub fn find_object(&self, hash: &[u8; 32]) -> Result<Option<ObjectId>, CatalogError> {
        let Some(number) = self.rows.get()?.find(Index::Objects, hash)?.map(ObjectId) else {
            return Ok(None);
        };
        let confirmed = self.rows.payload(Table::Objects, number.0, |payload| Ok(object::has_hash(payload, hash)))?;
        Ok((confirmed == Some(true)).then_some(number))
    }

    /// Returns the entries of a directory page.
    ///
    /// # Errors
    /// Fails when the page or its names are missing or damaged.
    pub fn directory_page(&self, number: ObjectId) -> Result<Arc<Vec<Entry>>, CatalogError> {
        if let Some(found) = self.pages.get(&number) {
            return Ok(found);
        }
        let page = self.object(ObjectKind::Page, number)?;
        let row = RowKind::DirectoryPage.row(number);
        let names = CatalogError::decode_row(row, || directory::names_of_page(&page))?;
        let names = self.object(ObjectKind::Names, names)?;
        let entries = CatalogError::decode_row(row, || directory::decode_page(&page, &names))?;
        let bytes: usize = entries.iter().map(Entry::page_bytes).sum();
        let entries = Arc::new(entries);
        // Earlier versions made pages without measure where directories have large extended attributes.
        if bytes > CACHED_DIRECTORY_BYTES {
            return Ok(entries);
        }
        self.pages.insert(number, Arc::clone(&entries));
        Ok(entries)
    }

    /// Returns the pages of a large directory.
    ///
    /// # Errors
    /// Fails when the index object is missing or damaged.
    pub fn directory_index(&self, number: ObjectId) -> Result<Vec<IndexPage>, CatalogError> {
        let bytes = self.object(ObjectKind::Index, number)?;
        CatalogError::decode_row(RowKind::DirectoryIndex.row(number), || directory::decode_index(&bytes))
    }

    /// Returns the segments of one content object.
    ///
    /// # Errors
    /// Fails when the object is missing or damaged.
    pub fn content_page(&self, number: ObjectId) -> Result<Vec<Segment>, CatalogError> {
        let bytes = self.object(ObjectKind::Content, number)?;
        CatalogError::decode_row(RowKind::ContentPage.row(number), || group::decode_segments(&bytes))
    }

    /// Calls `visit` for every segment of a content, in file order. An unreadable or empty content has none.
    ///
    /// # Errors
    /// Fails when a content object is missing or damaged or does not have its stated length, or `visit` fails.
    pub fn for_each_segment<E: From<CatalogError>>(
        &self,
        content: &Content,
        mut visit: impl FnMut(&Segment) -> Result<(), E>,
    ) -> Result<(), E> {
        match content {
            Content::Empty | Content::Unreadable(_) => Ok(()),
            Content::Segments(segments) => segments.iter().try_for_each(visit),
            Content::Pages(pages) => {
                for page in pages {
                    let segments = self.content_page(page.object)?;
                    if group::total_length(&segments) != Some(page.length) {
                        return Err(E::from(CatalogError::of_row(
                            RowKind::ContentPage.row(page.object),
                            RowFault::Length,
                        )));
                    }
                    segments.iter().try_for_each(&mut visit)?;
                }
                Ok(())
            }
        }
    }

    /// Returns the sources of the store.
    ///
    /// # Errors
    /// Fails when a row is damaged.
    pub fn sources(&self) -> Result<Sources, CatalogError> {
        Sources::read(&*self.database()?)
    }

    /// Returns all snapshot records with their numbers, oldest first. Each has its source's number, unless the catalogue knows no such source. A damaged list
    /// of sources keeps nobody from reading; whoever changes or removes something asks for [`sources`](CatalogReader::sources), too.
    ///
    /// # Errors
    /// Fails when a record is damaged.
    pub fn snapshots(&self) -> Result<Vec<(SnapshotNumber, SnapshotRecord)>, CatalogError> {
        let sources = match self.sources() {
            // Each record has its source's number; merges and the names are what is lost.
            Err(error) if error.is_damage() => Sources::default(),
            sources => sources?,
        };
        let mut records = Vec::new();
        self.rows.get()?.scan(Table::Snapshots, 0, |number, payload| {
            let mut record = SnapshotRecord::decode(payload?)
                .map_err(|error| CatalogError::of_row(RowKind::Snapshot.row(number), error))?;
            record.source_id = sources.of_record(&record);
            records.push((SnapshotNumber(number), record));
            Ok(())
        })?;
        Ok(records)
    }

    /// Returns the bytes of all dictionaries, by number.
    ///
    /// # Errors
    /// Fails when one is damaged.
    pub fn dictionaries(&self) -> Result<Vec<(DictionaryId, Vec<u8>)>, CatalogError> {
        let mut all = Vec::new();
        self.rows.get()?.scan(Table::Dictionaries, 0, |number, payload| {
            let id = u32::try_from(number).ok().and_then(|id| DictionaryId::decoded(id).ok());
            let id = id.ok_or_else(|| CatalogError::of_row(RowKind::Dictionary.row(number), RowFault::Number))?;
            all.push((id, payload?.to_vec()));
            Ok(())
        })?;
        Ok(all)
    }

    /// Adds the dictionaries that are not in the set yet.
    ///
    /// # Errors
    /// Fails when one is damaged.
    pub fn load_dictionaries(&self, set: &DictionarySet) -> Result<(), CatalogError> {
        for (id, bytes) in self.dictionaries()? {
            if set.get(id).is_none() {
                let row = RowKind::Dictionary.row(id.get());
                set.insert(Arc::new(Dictionary::new(id, bytes))).map_err(|error| CatalogError::of_row(row, error))?;
            }
        }
        Ok(())
    }
}
