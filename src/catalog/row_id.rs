//! How errors name the rows of the catalogue, and parts of them.

use std::fmt;

/// What a number of the catalogue counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// A whole table, by its number in commit files.
    Table,
    /// A row of the table `meta`.
    Meta,
    /// A page of chunk rows.
    ChunkPage,
    /// A chunk.
    Chunk,
    /// An entry of the chunk index, by the chunk that it names.
    ChunkIndexEntry,
    /// A pack.
    Pack,
    /// A page of link groups.
    GroupPage,
    /// A link group.
    Group,
    /// The link count of a link group.
    LinkCount,
    /// An object.
    Object,
    /// A directory page, by its object.
    DirectoryPage,
    /// The index of a large directory, by its object.
    DirectoryIndex,
    /// A page of segments, by its object.
    ContentPage,
    /// A page of link counts, by its object.
    LinkCountPage,
    /// An entry of the object index, by the object that it names.
    ObjectIndexEntry,
    /// A snapshot's record.
    Snapshot,
    /// A row of a commit.
    Commit,
    /// A dictionary.
    Dictionary,
    /// The marks of a snapshot.
    Marks,
    /// A condemned object.
    Condemned,
}

impl RowKind {
    /// Names the row of a number.
    pub fn row(self, number: impl Into<u64>) -> RowId {
        RowId { kind: self, number: number.into() }
    }
}

impl fmt::Display for RowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowKind::Table => "table",
            RowKind::Meta => "meta row",
            RowKind::ChunkPage => "page of chunk rows",
            RowKind::Chunk => "chunk",
            RowKind::ChunkIndexEntry => "chunk index entry",
            RowKind::Pack => "pack row",
            RowKind::GroupPage => "page of link groups",
            RowKind::Group => "link group",
            RowKind::LinkCount => "link count of link group",
            RowKind::Object => "object",
            RowKind::DirectoryPage => "directory page",
            RowKind::DirectoryIndex => "directory index",
            RowKind::ContentPage => "content object",
            RowKind::LinkCountPage => "page of link counts",
            RowKind::ObjectIndexEntry => "object index entry",
            RowKind::Snapshot => "snapshot record",
            RowKind::Commit => "commit row",
            RowKind::Dictionary => "dictionary",
            RowKind::Marks => "marks of snapshot",
            RowKind::Condemned => "condemned object",
        })
    }
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowId {
    /// Its kind.
    pub kind: RowKind,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.number)
    }
}
