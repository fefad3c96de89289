use super::*;

fn attributes(seconds: i64) -> DirectoryAttributes {
    DirectoryAttributes {
        mode: 0o750,
        uid: 999,
        gid: 999,
        mtime: Timestamp { seconds, nanos: 7 },
        ..Default::default()
    }
}

fn entry(name: &str, node: Node) -> Entry {
    Entry { name: name.as_bytes().into(), node }
}

fn directory_node(attributes: DirectoryAttributes, body: Body) -> Node {
    Node::Directory(Arc::new(Directory { attributes, body }))
}

fn sample() -> Vec<Entry> {
    let with_acl = DirectoryAttributes {
        xattrs: vec![Xattr { name: (*b"system.posix_acl_default").into(), value: (*b"\x02\0\0\0").into() }],
        unreadable: Some(13),
        mount_point: true,
        ..attributes(-77)
    };
    vec![
        entry("accounts.xml", Node::Group(0)),
        entry(
            "blobs",
            directory_node(
                attributes(100),
                Body::Folded(vec![
                    entry("0", directory_node(attributes(120), Body::Folded(vec![entry("x.msg2", Node::Group(90))]))),
                    entry("1", Node::Group(91)),
                ]),
            ),
        ),
        entry("index", directory_node(with_acl, Body::Page(12))),
        entry("large", directory_node(attributes(4), Body::Index(13))),
        entry("z", Node::Group(5)),
    ]
}

#[test]
fn pages_round_trip() {
    let names = encode_names(&sample());
    let page = encode_page(77, &sample());
    assert_eq!(names_of_page(&page).unwrap(), 77);
    assert_eq!(decode_page(&page, &names).unwrap(), sample());
    assert_eq!(sample()[1].nodes(), 4);
}

#[test]
fn damaged_pages_are_errors_or_well_formed() {
    let names = encode_names(&sample());
    let page = encode_page(77, &sample());
    for at in 0..page.len() {
        assert!(decode_page(&page[..at], &names).is_err());
        for bit in 0..8 {
            let mut bad = page.clone();
            bad[at] ^= 1 << bit;
            let _ = decode_page(&bad, &names);
        }
    }
    for at in 0..names.len() {
        assert!(decode_page(&page, &names[..at]).is_err());
    }
    for bad in ["", ".", "..", "a/b", "a\0b"] {
        let list = vec![entry(bad, Node::Group(1))];
        assert!(decode_page(&encode_page(1, &list), &encode_names(&list)).is_err(), "{bad:?}");
    }
    let unsorted = vec![entry("b", Node::Group(1)), entry("a", Node::Group(2))];
    assert!(decode_page(&encode_page(1, &unsorted), &encode_names(&unsorted)).is_err());
}

#[test]
fn roots_and_indexes_round_trip() {
    let root = Directory { attributes: attributes(9), body: Body::Index(4) };
    assert_eq!(decode_root(&encode_root(&root)).unwrap(), root);
    let pages = vec![
        IndexPage { separator: (*b"").into(), page: 50, entries: 48 },
        IndexPage { separator: (*b"k").into(), page: 12, entries: 3 },
    ];
    assert_eq!(decode_index(&encode_index(&pages)).unwrap(), pages);
    assert_eq!(&*separator(b"abc", b"abd"), b"abd");
    assert_eq!(&*separator(b"abc", b"b"), b"b");
    assert_eq!(&*separator(b"ab", b"abd"), b"abd");
}

#[test]
fn page_ends_are_pinned_and_spread() {
    let ends = (0..48_000u32).filter(|number| ends_page(format!("name-{number}").as_bytes(), 1)).count();
    assert!((1600..2400).contains(&ends), "{ends} of an expected 2000");
    let first: Vec<u32> = (0..2000).filter(|number| ends_page(format!("{number}.msg").as_bytes(), 1)).take(4).collect();
    assert_eq!(first, PINNED_ENDS);
}

/// The first four of the names `0.msg`, `1.msg` ... that end a page: part of the format.
const PINNED_ENDS: [u32; 4] = [37, 71, 102, 144];
