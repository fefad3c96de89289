//! Decoders of what lies in a store.

use std::sync::Arc;

use super::driver::parts;
use crate::catalog::chunk::{self, PackRow};
use crate::catalog::commit::{self, CommitFile};
use crate::catalog::condemned::CondemnedRow;
use crate::catalog::meta::Counters;
use crate::catalog::object::{self, ObjectEncoder, ObjectKind};
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::{CatalogError, checkpoint, directory, group, link_counts, marks};
use crate::coding::DecodeError;
use crate::ids::{CommitNumber, SnapshotNumber};
use crate::model::{ChunkHash, Codec};
use crate::replica::StoreConfig;
use crate::snapshot::inode_cache::InodeCache;
use crate::store::pack::{ENTRY_HEADER_BYTES, PACK_END_MAGIC, PACK_MAGIC_2};
use crate::store::{
    Backend, ChunkReader, Decompressor, DictionarySet, EntryHeader, MemoryBackend, PackId, is_as_written, list_pack,
    verify_pack,
};

/// A page of chunk rows.
pub(super) fn chunk_page(bytes: &[u8]) {
    if let Ok(page) = chunk::decode_page(bytes) {
        assert_eq!(chunk::decode_page(&chunk::encode_page(&page)), Ok(page));
    }
}

/// A page of link groups. A large one is read row by row, as everywhere, and not kept.
pub(super) fn group_page(bytes: &[u8]) {
    let (mut rows, mut held) = (Vec::new(), 0);
    let read = group::for_each_row(bytes, |at, row| {
        held += row.as_ref().map_or(0, group::LinkGroup::held_bytes);
        assert!(at < 256);
        if held <= 1 << 20 {
            rows.push(row);
        }
        Ok::<_, DecodeError>(true)
    });
    if read.is_err() {
        return;
    }
    let kept = group::retain_rows(bytes, |at| at % 2 == 0).expect("what was read once is read again");
    if held > 1 << 20 {
        return;
    }
    assert_eq!(group::decode_page(&group::encode_page(&rows)).as_ref(), Ok(&rows));
    let mut even: Vec<_> = rows.into_iter().enumerate().map(|(at, row)| row.filter(|_| at % 2 == 0)).collect();
    even.truncate(even.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
    assert_eq!(kept.map(|page| group::decode_page(&page)), (!even.is_empty()).then_some(Ok(even)));
}

/// Segments of a content object.
pub(super) fn content(bytes: &[u8]) {
    if let Ok(segments) = group::decode_segments(bytes) {
        let _ = group::total_length(&segments);
        assert_eq!(group::decode_segments(&group::encode_segments(&segments)), Ok(segments));
    }
}

/// A page of link counts.
pub(super) fn link_counts(bytes: &[u8]) {
    if let Ok((page, counts)) = link_counts::decode_page(bytes) {
        assert_eq!(link_counts::decode_page(&link_counts::encode_page(page, &counts)), Ok((page, counts)));
    }
}

/// A directory page: the names, then the nodes, as parts.
pub(super) fn directory_page(bytes: &[u8]) {
    let [names, page, ..] = parts(bytes)[..] else { return };
    if let Ok(entries) = directory::decode_page(page, names) {
        let number = directory::names_of_page(page).unwrap_or_default();
        let (names, page) = (directory::encode_names(&entries), directory::encode_page(number, &entries));
        assert_eq!(directory::cut_pages(&entries).concat(), entries);
        assert_eq!(directory::decode_page(&page, &names), Ok(entries));
    }
}

/// A root directory.
pub(super) fn directory_root(bytes: &[u8]) {
    if let Ok(root) = directory::decode_root(bytes) {
        assert_eq!(directory::decode_root(&directory::encode_root(&root)), Ok(root));
    }
}

/// The index of a large directory.
pub(super) fn directory_index(bytes: &[u8]) {
    if let Ok(pages) = directory::decode_index(bytes) {
        assert_eq!(directory::decode_index(&directory::encode_index(&pages)), Ok(pages));
    }
}

/// An object: as it is stored, and its plain bytes.
pub(super) fn object(bytes: &[u8]) {
    if let Some(kind) = object::stored_kind(bytes) {
        let _ = object::decode(kind, bytes);
        let hash = object::hash(kind, bytes);
        let stored = ObjectEncoder::new().expect("there is memory").encode(kind, &hash, bytes);
        assert!(object::has_hash(&stored, &hash) && object::stored_kind(&stored) == Some(kind));
        assert_eq!(object::decode(kind, &stored).as_deref(), Ok(bytes));
        assert!(object::decode(ObjectKind::Links, &stored).is_err() || kind == ObjectKind::Links);
    }
}

/// Smaller rows; the first byte says which.
pub(super) fn rows(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => {
            if let Ok(row) = PackRow::decode(bytes) {
                assert_eq!(PackRow::decode(&row.encode()), Ok(row));
            }
        }
        1 => {
            if let Ok(row) = CondemnedRow::decode(bytes) {
                let now = jiff::Timestamp::UNIX_EPOCH;
                let _ = row.judge(now, std::time::Duration::from_secs(86_400));
                assert_eq!(CondemnedRow::decode(&row.encode()), Ok(row));
            }
        }
        2 => {
            if let Ok(row) = Counters::decode(bytes) {
                assert_eq!(Counters::decode(&row.encode()), Ok(row));
            }
        }
        _ => {
            if let Ok(row) = marks::decode(SnapshotNumber(1), bytes) {
                let again = serde_json::to_vec(&row).expect("what was decoded is encoded");
                assert_eq!(marks::decode(SnapshotNumber(1), &again).ok(), Some(row));
            }
        }
    }
}

/// The record of a snapshot, and the directory in it.
pub(super) fn snapshot_record(bytes: &[u8]) {
    if let Ok(record) = SnapshotRecord::decode(bytes) {
        let _ = (record.short_id(), record.compute_id("store"));
        if let Ok(root) = record.root_directory() {
            assert_eq!(directory::decode_root(&directory::encode_root(&root)), Ok(root));
        }
        let again = record.encode().expect("what was decoded is encoded");
        assert_eq!(SnapshotRecord::decode(&again).ok(), Some(record));
    }
}

/// Makes a file of the form of commit files. Where the first byte is odd, its bytes are the compressed ones, behind the plain length that they are said to
/// have.
fn framed(magic: &[u8; 8], number: u64, named: &[u8; 16], body: &[u8]) -> Vec<u8> {
    let (first, body) = body.split_first().unwrap_or((&0, &[]));
    let (packed, length) = match body.split_first_chunk() {
        Some((length, rest)) if first & 1 == 1 => (rest.to_vec(), u64::from_le_bytes(*length)),
        _ => (zstd::bulk::compress(body, 1).unwrap_or_default(), body.len() as u64),
    };
    let mut file = [magic.as_slice(), &[0; 8], &number.to_le_bytes(), named, &length.to_le_bytes(), &packed].concat();
    file.extend_from_slice(blake3::hash(&file).as_bytes());
    file
}

/// The body of a commit file.
pub(super) fn commit(bytes: &[u8]) {
    let (key, none) = (commit::key(CommitNumber(1)), [0; 16]);
    let read = |file: &[u8]| {
        let mut changes = Vec::new();
        CommitFile::open(&key, file)?.for_each_batch(|batch| {
            // A compressed body may unfold to more than is worth a second round.
            if changes.len() < 10_000 {
                changes.extend(batch);
            }
            Ok(())
        })?;
        Ok::<_, CatalogError>(changes)
    };
    if let Ok(changes) = read(&framed(commit::MAGIC, 1, &none, bytes)) {
        let (file, _) = commit::encode(CommitNumber(1), &none, &changes).expect("what was decoded is encoded");
        assert_eq!(read(&file).ok(), Some(changes));
    }
}

/// The bodies of a checkpoint's head and of its part. The head is read as it is given; then in its place one that names the part.
pub(super) fn checkpoint(bytes: &[u8]) {
    let [head, part, ..] = parts(bytes)[..] else { return };
    let (number, commit) = (7, [3; 16]);
    let part = framed(b"ZMRCKPP1", number, &commit, part);
    let id = &blake3::hash(&part[..part.len() - 32]);
    let proper = [&[0, 1, 0], &id.as_bytes()[..16]].concat();
    for head in [head, &proper] {
        let backend = MemoryBackend::new();
        let key = checkpoint::key(CommitNumber(number));
        let put = |key: &str, file: &[u8]| backend.put(key, &[file]).expect("a sound key");
        put(&key, &framed(b"ZMRCKPT1", number, &commit, head));
        put(&format!("{key}.00000000"), &part);
        let _ = checkpoint::newest_whole(&backend);
        let _ = checkpoint::is_newest_damaged(&backend);
        if let Ok(found) = checkpoint::read_head(&backend, CommitNumber(number)) {
            let whole = found.for_each_part(&backend, |_| Ok(())).is_ok();
            let mut readable = true;
            found.for_each_readable_part(&backend, |changes| readable &= changes.is_ok());
            assert_eq!(whole, readable);
        } else {
            assert_ne!(head, proper, "a head that names its part");
        }
    }
}

/// The file of known inodes, without its magic and its check value.
pub(super) fn inode_cache(bytes: &[u8]) {
    let mut file = [b"ZMRINOD2", bytes].concat();
    file.extend_from_slice(blake3::hash(&file).as_bytes());
    if let Ok((known, number, id)) = InodeCache::decode(&file) {
        assert_eq!(known.encode(number, &id), file);
        assert!(known.inodes().iter().all(|inode| known.find(inode.file_system, inode.ino) == Some(inode)));
    }
}

/// The settings of a store: the file, and the row of the catalogue, from which a file is made.
pub(super) fn config(bytes: &[u8]) {
    let _ = StoreConfig::decode(bytes);
    if let Ok(config) = StoreConfig::from_row(bytes) {
        let file = config.encode().expect("what was decoded is encoded");
        assert_eq!(StoreConfig::decode(&file).unwrap(), config);
        let row = config.to_row().expect("what was decoded is encoded");
        assert_eq!(StoreConfig::from_row(&row).unwrap(), config);
        let raised = config.raised().merged(&config);
        assert_eq!(raised.merged(&raised), raised);
    }
}

/// A chunk as it is stored: the codec, the plain length (3 bytes), the bytes.
pub(super) fn codec(bytes: &[u8]) {
    let [codec, a, b, c, stored @ ..] = bytes else { return };
    let codec = if codec & 1 == 0 { Codec::Plain } else { Codec::Zstd };
    let (length, none) = (u32::from_le_bytes([*a, *b, *c, 0]), DictionarySet::new());
    let mut decompressor = Decompressor::new().expect("there is memory");
    let plain = decompressor.decompress(codec, &none, stored, length);
    let mut target = vec![0; length as usize];
    let into = decompressor.decompress_into(codec, &none, stored, &mut target);
    assert_eq!(plain.ok(), into.is_ok().then_some(target));
}

/// A pack. Where the first byte is odd, as it is; else its entries, to which hashes, header and trailer are made, so that all of it is whole but for what is
/// compressed.
pub(super) fn pack(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let id = PackId([5; 16]);
    let file = if first & 1 == 1 { rest.to_vec() } else { finished(id, rest) };
    let backend = Arc::new(MemoryBackend::new());
    backend.put(&id.key(), &[&file]).expect("a sound key");
    let dictionaries = Arc::new(DictionarySet::new());
    let listing = list_pack(&*backend, id);
    let Ok(findings) = verify_pack(&*backend, id, &dictionaries) else { return };
    let reader = ChunkReader::new(Arc::clone(&backend) as Arc<dyn Backend>, dictionaries);
    for entry in findings.entries.iter().filter(|entry| entry.header.dictionary.is_none()) {
        let plain = reader.read_chunk(&entry.location(id), entry.header.hash.prefix());
        assert_eq!(plain.ok().map(|plain| ChunkHash::of(&plain)), Some(entry.header.hash));
    }
    if findings.damage.is_empty() {
        assert_eq!(listing.map(|listing| listing.entries).ok(), Some(findings.entries));
        assert_eq!(is_as_written(&*backend, id).ok(), Some(true));
    }
}

fn finished(id: PackId, entries: &[u8]) -> Vec<u8> {
    let mut file = [PACK_MAGIC_2.as_slice(), &[0; 8], &id.0, &[0; 48]].concat();
    let mut headers = blake3::Hasher::new();
    headers.update(&file);
    let (mut rest, mut count) = (entries, 0u32);
    while let Some((header, behind)) = rest.split_first_chunk::<ENTRY_HEADER_BYTES>()
        && let Some(mut header) = EntryHeader::decode(header)
        && let Some((stored, behind)) = behind.split_at_checked(header.stored_length as usize)
    {
        if header.codec == Codec::Plain {
            header.hash = ChunkHash::of(stored);
        } else if let Ok(plain) = zstd::bulk::decompress(stored, header.plain_length as usize) {
            header.hash = ChunkHash::of(&plain);
        }
        headers.update(&header.encode());
        file.extend_from_slice(&header.encode());
        file.extend_from_slice(stored);
        (rest, count) = (behind, count + 1);
    }
    file.extend_from_slice(rest);
    let length = file.len() as u64 + 72;
    file.extend_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&[0; 4]);
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(headers.finalize().as_bytes());
    file.extend_from_slice(&blake3::hash(&file).as_bytes()[..16]);
    file.extend_from_slice(&PACK_END_MAGIC);
    file
}
