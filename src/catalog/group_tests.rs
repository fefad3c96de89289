use super::*;

fn group(kind: Kind, content: Content, size: u64, xattrs: Vec<Xattr>) -> LinkGroup {
    LinkGroup {
        attributes: Attributes {
            kind,
            mode: 0o640,
            uid: 999,
            gid: 998,
            mtime: Timestamp { seconds: -5, nanos: 999_999_999 },
            size,
            rdev: if kind == Kind::CharDevice { 0x0501 } else { 0 },
            xattrs,
        },
        content,
        has_changed_while_read: size == 7,
    }
}

fn rows() -> Vec<Option<LinkGroup>> {
    let acl = vec![Xattr { name: (*b"system.posix_acl_access").into(), value: vec![2, 0, 0, 0].into() }];
    let chunk = |number, length| Segment::Chunk { number: ChunkId(number), length };
    vec![
        Some(group(Kind::File, Content::Segments(vec![chunk(0, 100)]), 100, Vec::new())),
        Some(group(Kind::File, Content::Segments(vec![chunk(1, 100)]), 100, acl.clone())),
        None,
        Some(group(Kind::File, Content::Segments(vec![chunk(9, 7)]), 7, acl)),
        Some(group(
            Kind::File,
            Content::Segments(vec![Segment::Literal((*b"PK").into()), Segment::Zeros(1 << 40), chunk(3, 5)]),
            (1 << 40) + 7,
            Vec::new(),
        )),
        Some(group(Kind::Symlink, Content::Segments(vec![Segment::Literal((*b"target").into())]), 6, Vec::new())),
        Some(group(Kind::CharDevice, Content::Empty, 0, Vec::new())),
        Some(group(Kind::File, Content::Unreadable(13), 55, Vec::new())),
        Some(group(
            Kind::File,
            Content::Pages(vec![
                ContentPage { object: ObjectId(40), length: 9 },
                ContentPage { object: ObjectId(12), length: 8 },
            ]),
            17,
            Vec::new(),
        )),
    ]
}

#[test]
fn pages_round_trip() {
    let page = encode_page(&rows());
    assert_eq!(decode_page(&page).unwrap(), rows());
    let many: Vec<_> = rows().into_iter().cycle().take(256).collect();
    let page = encode_page(&many);
    assert_eq!(page[0], 1, "a full page is compressed");
    assert_eq!(decode_page(&page).unwrap(), many);
}

#[test]
fn damaged_pages_never_panic() {
    let page = encode_page(&rows());
    for at in 0..page.len() {
        let _ = decode_page(&page[..at]);
        for bit in 0..8 {
            let mut bad = page.clone();
            bad[at] ^= 1 << bit;
            let _ = decode_page(&bad);
        }
    }
}

#[test]
fn segments_round_trip() {
    let segments = vec![
        Segment::Chunk { number: ChunkId(70), length: 5 },
        Segment::Chunk { number: ChunkId(71), length: 6 },
        Segment::Chunk { number: ChunkId(2), length: 1 << 20 },
        Segment::Literal((*b"header").into()),
        Segment::Zeros(3),
    ];
    assert_eq!(decode_segments(&encode_segments(&segments)).unwrap(), segments);
}

#[test]
fn the_digest_depends_on_every_field() {
    let base = rows()[0].clone().unwrap();
    let mut changed = Vec::new();
    let mut with = |edit: &dyn Fn(&mut LinkGroup)| {
        let mut other = base.clone();
        edit(&mut other);
        changed.push(other.digest());
    };
    with(&|group| group.attributes.mode = 0o600);
    with(&|group| group.attributes.uid = 1);
    with(&|group| group.attributes.mtime.nanos = 1);
    with(&|group| group.content = Content::Segments(vec![Segment::Chunk { number: ChunkId(5), length: 100 }]));
    with(&|group| group.has_changed_while_read = true);
    assert!(changed.iter().all(|digest| *digest != base.digest()));
}

/// Rows with so much that a page of them is decoded and encoded as a stream.
fn heavy_rows() -> Vec<Option<LinkGroup>> {
    let row = |number: u8| {
        let value = |at: u8| vec![number ^ at; 60_000].into_boxed_slice();
        let xattrs = (0..30).map(|at| Xattr { name: format!("user.{at:02}").into_bytes().into(), value: value(at) });
        // Every third has the attributes of the one before.
        let xattrs: Vec<Xattr> = if number % 3 == 2 { Vec::new() } else { xattrs.collect() };
        Some(group(Kind::File, Content::Empty, u64::from(number), xattrs))
    };
    (0..12).map(row).collect()
}

#[test]
fn pages_without_measure_are_read_and_written_anew_row_by_row() {
    let rows = heavy_rows();
    let page = encode_page(&rows);
    let mut plain_bytes = Decoder::new(&page[1..]);
    assert!(plain_bytes.varint().unwrap() > WHOLE_PAGE_BYTES);
    assert_eq!(decode_page(&page).unwrap(), rows);
    let kept = retain_rows(&page, |at| at % 2 == 1).unwrap().unwrap();
    let left: Vec<_> = rows.iter().enumerate().map(|(at, row)| row.clone().filter(|_| at % 2 == 1)).collect();
    assert_eq!(decode_page(&kept).unwrap(), left);
    assert_eq!(decode_page(&retain_rows(&page, |at| at == 2).unwrap().unwrap()).unwrap()[2], rows[2]);
    assert_eq!(retain_rows(&page, |_| false).unwrap(), None);
    for bad in [&page[..page.len() - 5], &page[..20]] {
        assert!(decode_page(bad).is_err());
    }
    let mut longer = vec![1];
    put_varint(&mut longer, 20 << 20);
    longer.extend_from_slice(&zstd::bulk::compress(&vec![0; 10 << 20], 3).unwrap());
    assert!(decode_page(&longer).is_err());
}

#[test]
fn made_up_counts_take_no_memory() {
    let page = |row: &[u8]| [&[0, 1][..], row, &vec![0; 1 << 20]].concat();
    let mut attributes = vec![0x31, 0, 0, 0];
    put_varint(&mut attributes, 1 << 19);
    assert_eq!(decode_page(&page(&attributes)), Err(DecodeError("a count exceeds what any writer makes")));
    let mut segments = vec![0x11, 0, 0, 0, 5];
    put_varint(&mut segments, 1 << 19);
    assert_eq!(decode_page(&page(&segments)), Err(DecodeError("a count exceeds what any writer makes")));
    let mut list = Vec::new();
    put_varint(&mut list, 1 << 19);
    list.resize(1 << 20, 2);
    assert!(decode_segments(&list).is_err());
    // Numbers that no row has.
    for number in [crate::coding::NUMBER_LIMIT, 1 << 40] {
        let segments = [Segment::Chunk { number: ChunkId(number), length: 5 }];
        assert!(decode_segments(&encode_segments(&segments)).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_rows_or_an_error(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        cut in 0usize..200,
    ) {
        use crate::catalog::{chunk, directory, link_counts, references};
        let whole = [&[0][..], &bytes].concat();
        let _ = (decode_page(&bytes), decode_page(&whole), retain_rows(&whole, |at| at % 2 == 0), decode_segments(&bytes));
        let (page, names) = bytes.split_at(cut.min(bytes.len()));
        let _ = (directory::decode_page(page, names), directory::decode_root(&bytes), directory::decode_index(&bytes));
        let _ = (references::visit_page(&bytes, |_| ()), link_counts::decode_page(&bytes), chunk::decode_page(&bytes));
    }
}
