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
        changed_while_read: size == 7,
    }
}

fn rows() -> Vec<Option<LinkGroup>> {
    let acl = vec![Xattr { name: (*b"system.posix_acl_access").into(), value: vec![2, 0, 0, 0].into() }];
    let chunk = |number, length| Segment::Chunk { number, length };
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
            Content::Pages(vec![ContentPage { object: 40, length: 9 }, ContentPage { object: 12, length: 8 }]),
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
        Segment::Chunk { number: 70, length: 5 },
        Segment::Chunk { number: 71, length: 6 },
        Segment::Chunk { number: 2, length: 1 << 20 },
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
    with(&|group| group.content = Content::Segments(vec![Segment::Chunk { number: 5, length: 100 }]));
    with(&|group| group.changed_while_read = true);
    assert!(changed.iter().all(|digest| *digest != base.digest()));
}
