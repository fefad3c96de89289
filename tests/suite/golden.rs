//! Pins the bytes of the catalogue's encodings. A failure here means that stores made before could no longer be read:
//! change the format version, not these figures. Packs and cut points are pinned beside their code.

use data_encoding::HEXLOWER;
use zmreplica::catalog::chunk::{self, ChunkPlace, ChunkRow, PackRow};
use zmreplica::catalog::condemned::{Condemned, CondemnedRow};
use zmreplica::catalog::directory::{self, Body, Directory, DirectoryAttributes, Entry, IndexPage, Node};
use zmreplica::catalog::group::{self, Content, ContentPage, LinkGroup, Segment};
use zmreplica::catalog::object::{self, ObjectEncoder, ObjectKind};
use zmreplica::catalog::{commit, link_counts};
use zmreplica::ids::{ChunkId, CommitNumber, GroupId, ObjectId, PackNumber};
use zmreplica::model::{Attributes, Kind, Timestamp, Xattr};
use zmreplica::store::pack::{PackFormat, PackId};

#[test]
fn chunk_and_pack_rows() {
    let row = |pack, offset| {
        let place = ChunkPlace::At { pack: PackNumber(pack), offset, stored_length: 300 };
        ChunkRow { place, plain_length: 1000, prefix: *b"abcdefgh" }
    };
    let page = chunk::encode_page(&[Some(row(7, 16)), Some(row(7, 16 + 44 + 300)), None]);
    assert_eq!(HEXLOWER.encode(&page), "03020710ac02e807616263646566676801ac02e807616263646566676800");
    let pack = |format| PackRow { id: PackId([0x11; 16]), bytes: 40_000, chunks: 9, format };
    assert_eq!(HEXLOWER.encode(&pack(PackFormat::V1).encode()), "11111111111111111111111111111111c0b80209");
    assert_eq!(HEXLOWER.encode(&pack(PackFormat::V2).encode()), "11111111111111111111111111111111c0b8020902");
    let condemned = |what| CondemnedRow { what, bytes: 300, since: 1000, latest: -3, seen_on: Some(20_000) };
    let row = condemned(Condemned::Pack(PackId([0x22; 16])));
    assert_eq!(HEXLOWER.encode(&row.encode()), "0122222222222222222222222222222222ac02d00f05a19c01");
    assert_eq!(HEXLOWER.encode(&condemned(Condemned::OlderThan(CommitNumber(700))).encode()), "02bc05ac02d00f05a19c01");
}

fn group(kind: Kind, size: u64, content: Content) -> Option<LinkGroup> {
    let mtime = Timestamp { seconds: 1000, nanos: 5 };
    let xattrs = vec![Xattr { name: (*b"user.a").into(), value: (*b"v").into() }];
    let attributes = Attributes { kind, mode: 0o640, uid: 1, gid: 2, mtime, size, rdev: 0, xattrs };
    Some(LinkGroup { attributes, content, has_changed_while_read: false })
}

#[test]
fn link_groups() {
    let chunk = |number, length| Segment::Chunk { number: ChunkId(number), length };
    let page = group::encode_page(&[
        group(Kind::File, 10, Content::Segments(vec![chunk(0, 10)])),
        None,
        group(Kind::Symlink, 1, Content::Segments(vec![Segment::Literal((*b"t").into())])),
        group(Kind::File, 9, Content::Pages(vec![ContentPage { object: ObjectId(3), length: 9 }])),
        group(Kind::File, 4, Content::Unreadable(13)),
    ]);
    assert_eq!(
        HEXLOWER.encode(&page),
        "000521a0030102d00f050a0106757365722e61017603003500050100050105743100050900020106093100050400010d"
    );
    let segments = group::encode_segments(&[chunk(5, 10), Segment::Zeros(3), Segment::Literal((*b"PK").into())]);
    assert_eq!(HEXLOWER.encode(&segments), "03280a0e09504b");
}

#[test]
fn directories() {
    let attributes = DirectoryAttributes {
        mode: 0o750,
        uid: 1,
        gid: 2,
        mtime: Timestamp { seconds: -1, nanos: 7 },
        ..DirectoryAttributes::default()
    };
    let file = Entry { name: (*b"f").into(), node: Node::Group(GroupId(4)) };
    let inner = Directory { attributes: attributes.clone(), body: Body::Inline(vec![file.clone()]) };
    let entries = [Entry { name: (*b"d").into(), node: Node::Directory(inner.into()) }, file];
    assert_eq!(HEXLOWER.encode(&directory::encode_names(&entries)), "016401660166");
    assert_eq!(
        HEXLOWER.encode(&directory::encode_page(ObjectId(9), &entries)),
        "090201e803010201070420".to_owned() + "04"
    );
    let root = Directory { attributes, body: Body::Index(ObjectId(3)) };
    assert_eq!(HEXLOWER.encode(&directory::encode_root(&root)), "01e80301020107".to_owned() + "0e");
    let index = directory::encode_index(&[
        IndexPage { separator: Box::default(), page: ObjectId(8), entries: 2 },
        IndexPage { separator: (*b"m").into(), page: ObjectId(6), entries: 1 },
    ]);
    assert_eq!(HEXLOWER.encode(&index), "02001002016d0301");
}

#[test]
fn links_and_objects() {
    let counts = [(4097, 5), (4098, 5), (4100, 1)].map(|(group, count)| (GroupId(group), count));
    assert_eq!(HEXLOWER.encode(&link_counts::encode_page(1, &counts)), "01010205010101");
    let hash = object::hash(ObjectKind::Names, b"plain");
    let stored = ObjectEncoder::new().unwrap().encode(ObjectKind::Names, &hash, b"plain");
    assert_eq!(stored[..2], [1, 0]);
    assert_eq!(stored[2..10], hash[..8]);
    assert_eq!(&stored[10..], b"plain");
}

#[test]
fn commit_file_headers() {
    let (file, id) = commit::encode(CommitNumber(0x0102), &[9; 16], &[]).unwrap();
    assert_eq!(&file[..16], b"ZMRCMMT1\0\0\0\0\0\0\0\0");
    assert_eq!(file[16..24], [2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(file[24..40], [9; 16]);
    assert_eq!(file[40..48], [0; 8]);
    let hash = blake3::hash(&file[..file.len() - 32]);
    assert_eq!(file[file.len() - 32..], *hash.as_bytes());
    assert_eq!(id, hash.as_bytes()[..16]);
    assert_eq!(commit::key(CommitNumber(0x0102)), "commits/0000000000000102");
}
