//! Directory objects: the trees of all snapshots, sharing what did not change.
//!
//! A directory's entries, sorted by name, are cut into pages where a name's hash says so, so that an entry more or less changes one
//! page. A page is two objects: the *names*, which a new full session shares with the one before, and the *nodes*, which say what each
//! name stands for. A small directory is inline: its entries stand in its parent's page, directly behind its own.
//!
//! Names object: every name of the page in the order of the nodes (length, bytes).
//!
//! Page object: number of the names object, count of direct entries, then the nodes depth first (all varints). A node begins with a varint
//! whose low two bits are 0 for a link group (the rest is the zigzag difference to one above the last group) or 1 for a directory (the rest are
//! flags: 1 mode and owner as at the last directory, 2 extended attributes follow, 4 could not be read, 8 another file system is mounted on
//! it and was left out). A directory goes on with: mode, uid, gid unless flag 1; mtime seconds as a signed difference to the last
//! directory's, nanoseconds; with flag 2 the attributes (count, then name and value); with flag 4 the error number; then its body.
//!
//! A body is a varint: low two bits 0 inline (the rest is the count of its entries, whose nodes follow), 1 one page object (the rest is its
//! number), 2 an index object (the rest is its number).
//!
//! A page ends behind a name whose hash says so, or, whatever the name, at [`PAGE_MAX_NODES`] nodes or [`PAGE_MAX_BYTES`]; a directory with large extended
//! attributes is not inline. Where names were chosen so that every one ends a page, and the index would grow beyond measure, hashes do not count.
//!
//! Index object: count of pages, then for each: separator (length, bytes: every name in the page is at or above it, every name before
//! is below it), object number of the page as a signed difference, count of direct entries.

use std::sync::Arc;

use crate::coding::{DecodeError, Decoder, Source as _, put_bytes, put_signed, put_varint, unzigzag, zigzag};
use crate::ids::{GroupId, ObjectId};
use crate::model::{Timestamp, Xattr};

/// A directory with at most this many entries, those of inline directories in it included, stands inline in its parent's page.
pub const INLINE_MAX_NODES: usize = 24;
/// One name in so many ends a page. A week brings some 2% new names, spread over a directory by their hashes, and each touches a page:
/// with 48 names to a page a new full session of 286,000 names cost 19 bytes a name, nearly all of it names stored again.
const PAGE_AVERAGE: u32 = 24;
/// A page ends at the latest after so many nodes, if its last direct entry allows.
pub const PAGE_MAX_NODES: usize = 512;
/// It also ends when names and extended attributes take so many bytes.
pub const PAGE_MAX_BYTES: usize = 512 << 10;
/// A directory whose entries take more than this is not inline, in bytes.
pub const INLINE_MAX_BYTES: usize = 64 << 10;
/// An index that would take more than this has its pages cut by their length alone, in bytes.
pub const INDEX_MAX_BYTES: usize = 64 << 20;
/// More nodes than this in a page are refused while decoding; writers end pages at some 540.
const PAGE_NODES_LIMIT: usize = 4096;
/// More extended attributes than this in a page are refused while decoding. Writers that knew no bound of bytes could hardly come so far.
const PAGE_XATTRS_LIMIT: usize = 4 << 20;
/// More pages than this in an index are refused while decoding; each has 24 names on the average.
const INDEX_PAGES_LIMIT: usize = 16 << 20;
/// Deeper nesting of inline directories is refused while decoding; the writer never puts more nodes inline than [`INLINE_MAX_NODES`].
const INLINE_MAX_DEPTH: usize = INLINE_MAX_NODES + 1;

/// Attributes of one directory in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryAttributes {
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Error number, when the source could not list the directory: its entries are then missing or incomplete.
    pub unreadable: Option<u32>,
    /// Whether another file system is mounted on it, which the snapshot leaves out.
    pub is_mount_point: bool,
}

/// What a name stands for.
///
/// A link group's number identifies a file within its store for ever. A directory has no number of its own: equal directories of
/// different snapshots, or of different places in one, may share everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file, symbolic link or special file, by the number of its link group.
    Group(GroupId),
    /// A directory.
    Directory(Arc<Directory>),
}

/// A directory: attributes and entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Its attributes.
    pub attributes: DirectoryAttributes,
    /// Where its entries are.
    pub body: Body,
}

/// Where a directory's entries are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Here, sorted by name.
    Inline(Vec<Entry>),
    /// In one page object.
    Page(ObjectId),
    /// In the pages of an index object.
    Index(ObjectId),
}

impl Default for Body {
    fn default() -> Self {
        Body::Inline(Vec::new())
    }
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// One component, any bytes but NUL and `/`.
    pub name: Box<[u8]>,
    /// What it stands for.
    pub node: Node,
}

impl Entry {
    /// Counts the nodes that this entry puts into its page: itself and what is inline in it.
    pub fn nodes(&self) -> usize {
        match &self.node {
            Node::Group(_) => 1,
            Node::Directory(directory) => 1 + directory.inline_nodes(),
        }
    }
}

impl Entry {
    /// Returns what names and extended attributes of this entry put into its page, roughly and in bytes.
    pub fn page_bytes(&self) -> usize {
        let node = match &self.node {
            Node::Group(_) => 0,
            Node::Directory(directory) => {
                crate::model::held_bytes(&directory.attributes.xattrs) + directory.inline_bytes()
            }
        };
        self.name.len() + 16 + node
    }
}

impl Directory {
    /// Returns what inline entries put into the page, roughly and in bytes.
    fn inline_bytes(&self) -> usize {
        match &self.body {
            Body::Inline(entries) => entries.iter().map(Entry::page_bytes).sum(),
            _ => 0,
        }
    }

    /// Counts the nodes of inline entries.
    pub fn inline_nodes(&self) -> usize {
        match &self.body {
            Body::Inline(entries) => entries.iter().map(Entry::nodes).sum(),
            _ => 0,
        }
    }
}

/// Returns whether a page may end behind the entry of this name. Depends on the name alone, so equal names fall into equal pages.
pub fn is_page_end(name: &[u8]) -> bool {
    fnv(name).is_multiple_of(PAGE_AVERAGE)
}

/// Cuts the entries of a directory into pages.
pub fn cut_pages(entries: &[Entry]) -> Vec<&[Entry]> {
    let pages = cut(entries, is_page_end);
    let index_bytes = |pages: &[&[Entry]]| -> usize {
        let firsts = pages.iter().filter_map(|page| page.first());
        firsts.map(|first| first.name.len() + 16).sum()
    };
    if index_bytes(&pages) <= INDEX_MAX_BYTES { pages } else { cut(entries, |_| false) }
}

fn cut(entries: &[Entry], ends: impl Fn(&[u8]) -> bool) -> Vec<&[Entry]> {
    let mut pages = Vec::new();
    let (mut first, mut nodes, mut bytes) = (0, 0, 0);
    for (at, entry) in entries.iter().enumerate() {
        nodes += entry.nodes();
        bytes += entry.page_bytes();
        // Before the entry that would be too much, unless the page had none then.
        if bytes > PAGE_MAX_BYTES && at > first {
            pages.push(&entries[first..at]);
            (first, nodes, bytes) = (at, entry.nodes(), entry.page_bytes());
        }
        if at + 1 == entries.len() || nodes >= PAGE_MAX_NODES || bytes >= PAGE_MAX_BYTES || ends(&entry.name) {
            pages.push(&entries[first..=at]);
            (first, nodes, bytes) = (at + 1, 0, 0);
        }
    }
    pages
}

/// Returns whether a directory's entries stand in the page of the directory above.
pub fn fits_inline(entries: &[Entry]) -> bool {
    entries.iter().map(Entry::nodes).sum::<usize>() <= INLINE_MAX_NODES
        && entries.iter().map(Entry::page_bytes).sum::<usize>() <= INLINE_MAX_BYTES
}

/// Computes a 32-bit FNV-1a hash, mixed once more so that its low bits depend on every byte.
fn fnv(name: &[u8]) -> u32 {
    let hash = name.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d) >> 8
}

/// Encodes the names of a page.
pub fn encode_names(entries: &[Entry]) -> Vec<u8> {
    fn walk(out: &mut Vec<u8>, entries: &[Entry]) {
        for entry in entries {
            put_bytes(out, &entry.name);
            if let Node::Directory(directory) = &entry.node
                && let Body::Inline(inner) = &directory.body
            {
                walk(out, inner);
            }
        }
    }
    let mut out = Vec::new();
    walk(&mut out, entries);
    out
}

struct Context {
    group: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    /// Nodes and extended attributes that may still come; counted while decoding.
    nodes_left: usize,
    xattrs_left: usize,
}

impl Default for Context {
    fn default() -> Self {
        Context {
            group: u64::MAX,
            mode: 0,
            uid: 0,
            gid: 0,
            seconds: 0,
            nodes_left: PAGE_NODES_LIMIT,
            xattrs_left: PAGE_XATTRS_LIMIT,
        }
    }
}

/// Encodes the nodes of a page whose names are in object `names`.
pub fn encode_page(names: ObjectId, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, names.0);
    put_varint(&mut out, entries.len() as u64);
    let mut context = Context::default();
    for entry in entries {
        put_node(&mut out, &entry.node, &mut context);
    }
    out
}

fn put_node(out: &mut Vec<u8>, node: &Node, context: &mut Context) {
    match node {
        Node::Group(number) => {
            put_varint(out, zigzag(number.0.wrapping_sub(context.group.wrapping_add(1)) as i64) << 2);
            context.group = number.0;
        }
        Node::Directory(directory) => put_directory(out, directory, context),
    }
}

fn put_directory(out: &mut Vec<u8>, directory: &Directory, context: &mut Context) {
    let attributes = &directory.attributes;
    let same = (context.mode, context.uid, context.gid) == (attributes.mode, attributes.uid, attributes.gid);
    let flags = u64::from(same)
        | u64::from(!attributes.xattrs.is_empty()) << 1
        | u64::from(attributes.unreadable.is_some()) << 2
        | u64::from(attributes.is_mount_point) << 3;
    put_varint(out, flags << 2 | 1);
    if !same {
        put_varint(out, u64::from(attributes.mode));
        put_varint(out, u64::from(attributes.uid));
        put_varint(out, u64::from(attributes.gid));
        (context.mode, context.uid, context.gid) = (attributes.mode, attributes.uid, attributes.gid);
    }
    put_signed(out, attributes.mtime.seconds.wrapping_sub(context.seconds));
    context.seconds = attributes.mtime.seconds;
    put_varint(out, u64::from(attributes.mtime.nanos));
    if !attributes.xattrs.is_empty() {
        put_varint(out, attributes.xattrs.len() as u64);
        for xattr in &attributes.xattrs {
            put_bytes(out, &xattr.name);
            put_bytes(out, &xattr.value);
        }
    }
    if let Some(errno) = attributes.unreadable {
        put_varint(out, u64::from(errno));
    }
    match &directory.body {
        Body::Inline(entries) => {
            put_varint(out, (entries.len() as u64) << 2);
            for entry in entries {
                put_node(out, &entry.node, context);
            }
        }
        Body::Page(number) => put_varint(out, number.0 << 2 | 1),
        Body::Index(number) => put_varint(out, number.0 << 2 | 2),
    }
}

/// Encodes a directory on its own, as a snapshot record holds its root.
pub fn encode_root(directory: &Directory) -> Vec<u8> {
    let mut out = Vec::new();
    put_directory(&mut out, directory, &mut Context::default());
    out
}

/// Decodes a root whose entries are not inline.
///
/// # Errors
/// Fails when the bytes are not what [`encode_root`] produces for such a directory.
pub fn decode_root(bytes: &[u8]) -> Result<Directory, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let mut no_names = Decoder::new(&[]);
    let head = decoder.varint()?;
    if head & 3 != 1 {
        return Err(DecodeError("a root that is no directory"));
    }
    let root = decode_directory(&mut decoder, &mut no_names, head >> 2, &mut Context::default(), 0)?;
    decoder.finish()?;
    Ok(root)
}

/// Returns the number of the names object that a page refers to.
///
/// # Errors
/// Fails when the page is damaged.
pub fn names_of_page(page: &[u8]) -> Result<ObjectId, DecodeError> {
    ObjectId::decoded(Decoder::new(page).varint()?)
}

/// Decodes a page with the names of its names object.
///
/// # Errors
/// Fails when the two are not what [`encode_page`] and [`encode_names`] produce, or do not belong together.
pub fn decode_page(page: &[u8], names: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let mut decoder = Decoder::new(page);
    decoder.varint()?;
    let mut names = Decoder::new(names);
    let mut context = Context::default();
    let list = decode_entries(&mut decoder, &mut names, &mut context, 0)?;
    decoder.finish()?;
    names.finish()?;
    Ok(list)
}

fn decode_entries(
    decoder: &mut Decoder<'_>,
    names: &mut Decoder<'_>,
    context: &mut Context,
    depth: usize,
) -> Result<Vec<Entry>, DecodeError> {
    let count = decoder.count()?;
    decode_entry_list(decoder, names, context, count, depth)
}

fn decode_entry_list(
    decoder: &mut Decoder<'_>,
    names: &mut Decoder<'_>,
    context: &mut Context,
    count: usize,
    depth: usize,
) -> Result<Vec<Entry>, DecodeError> {
    if depth > INLINE_MAX_DEPTH {
        return Err(DecodeError("inline directories are nested too deep"));
    }
    context.nodes_left = context.nodes_left.checked_sub(count).ok_or(DecodeError("a page has too many nodes"))?;
    let mut list: Vec<Entry> = Vec::with_capacity(count);
    for _ in 0..count {
        let name = names.bytes()?;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(DecodeError("a name that no directory can hold"));
        }
        if list.last().is_some_and(|last| *last.name >= *name) {
            return Err(DecodeError("names are not in order"));
        }
        let head = decoder.varint()?;
        let node = match head & 3 {
            0 => {
                context.group = Decoder::add(context.group.wrapping_add(1), unzigzag(head >> 2))?;
                Node::Group(GroupId(context.group))
            }
            1 => Node::Directory(Arc::new(decode_directory(decoder, names, head >> 2, context, depth)?)),
            _ => return Err(DecodeError("an unknown kind of node")),
        };
        list.push(Entry { name: name.into(), node });
    }
    Ok(list)
}

fn decode_directory(
    decoder: &mut Decoder<'_>,
    names: &mut Decoder<'_>,
    flags: u64,
    context: &mut Context,
    depth: usize,
) -> Result<Directory, DecodeError> {
    if flags & !15 != 0 {
        return Err(DecodeError("unknown flags of a directory"));
    }
    if flags & 1 == 0 {
        context.mode = decoder.varint32()?;
        context.uid = decoder.varint32()?;
        context.gid = decoder.varint32()?;
    }
    context.seconds = context.seconds.wrapping_add(decoder.signed()?);
    let nanos = decoder.varint32()?;
    if nanos >= 1_000_000_000 {
        return Err(DecodeError("nanoseconds exceed a second"));
    }
    let mut attributes = DirectoryAttributes {
        mode: context.mode,
        uid: context.uid,
        gid: context.gid,
        mtime: Timestamp { seconds: context.seconds, nanos },
        xattrs: Vec::new(),
        unreadable: None,
        is_mount_point: flags & 8 != 0,
    };
    if flags & 2 != 0 {
        let count = decoder.count()?;
        let left = context.xattrs_left.checked_sub(count);
        context.xattrs_left = left.ok_or(DecodeError("a page has too many extended attributes"))?;
        for _ in 0..count {
            attributes.xattrs.push(Xattr { name: decoder.bytes()?.into(), value: decoder.bytes()?.into() });
        }
    }
    if flags & 4 != 0 {
        attributes.unreadable = Some(decoder.varint32()?);
    }
    let body = decoder.varint()?;
    let body = match body & 3 {
        0 => {
            let count = usize::try_from(body >> 2).map_err(|_| DecodeError("a count is out of range"))?;
            if count > decoder.remaining() {
                return Err(DecodeError("a count exceeds the bytes that are there"));
            }
            Body::Inline(decode_entry_list(decoder, names, context, count, depth + 1)?)
        }
        1 => Body::Page(ObjectId::decoded(body >> 2)?),
        2 => Body::Index(ObjectId::decoded(body >> 2)?),
        _ => return Err(DecodeError("an unknown kind of body")),
    };
    Ok(Directory { attributes, body })
}

/// One page of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexPage {
    /// Every name in the page is at or above it, every name in the pages before is below it.
    pub separator: Box<[u8]>,
    /// Number of the page object.
    pub page: ObjectId,
    /// Count of direct entries in the page.
    pub entries: u64,
}

/// Encodes an index.
pub fn encode_index(pages: &[IndexPage]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, pages.len() as u64);
    let mut last = 0u64;
    for page in pages {
        put_bytes(&mut out, &page.separator);
        put_signed(&mut out, page.page.0.wrapping_sub(last) as i64);
        put_varint(&mut out, page.entries);
        last = page.page.0;
    }
    out
}

/// Decodes an index.
///
/// # Errors
/// Fails when the bytes are not what [`encode_index`] produces.
pub fn decode_index(bytes: &[u8]) -> Result<Vec<IndexPage>, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let mut pages: Vec<IndexPage> = Vec::new();
    let mut last = 0u64;
    for _ in 0..decoder.count_up_to(INDEX_PAGES_LIMIT)? {
        let separator: Box<[u8]> = decoder.bytes()?.into();
        if pages.last().is_some_and(|before| before.separator >= separator) {
            return Err(DecodeError("separators are not in order"));
        }
        last = Decoder::add(last, decoder.signed()?)?;
        pages.push(IndexPage { separator, page: ObjectId(last), entries: decoder.varint()? });
    }
    decoder.finish()?;
    Ok(pages)
}

/// Returns the shortest byte string above `before` and at or below `first`: what an index needs to separate two pages.
pub fn separator(before: &[u8], first: &[u8]) -> Box<[u8]> {
    let common = before.iter().zip(first).take_while(|(left, right)| left == right).count();
    first[..(common + 1).min(first.len())].into()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
