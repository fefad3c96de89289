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
        is_mount_point: true,
        ..attributes(-77)
    };
    vec![
        entry("accounts.xml", Node::Group(GroupId(0))),
        entry(
            "blobs",
            directory_node(
                attributes(100),
                Body::Inline(vec![
                    entry(
                        "0",
                        directory_node(attributes(120), Body::Inline(vec![entry("x.msg2", Node::Group(GroupId(90)))])),
                    ),
                    entry("1", Node::Group(GroupId(91))),
                ]),
            ),
        ),
        entry("index", directory_node(with_acl, Body::Page(ObjectId(12)))),
        entry("large", directory_node(attributes(4), Body::Index(ObjectId(13)))),
        entry("z", Node::Group(GroupId(5))),
    ]
}

#[test]
fn pages_round_trip() {
    let names = encode_names(&sample());
    let page = encode_page(ObjectId(77), &sample());
    assert_eq!(names_of_page(&page).unwrap(), ObjectId(77));
    assert_eq!(decode_page(&page, &names).unwrap(), sample());
    assert_eq!(sample()[1].nodes(), 4);
}

#[test]
fn damaged_pages_are_errors_or_well_formed() {
    let names = encode_names(&sample());
    let page = encode_page(ObjectId(77), &sample());
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
        let list = vec![entry(bad, Node::Group(GroupId(1)))];
        assert!(decode_page(&encode_page(ObjectId(1), &list), &encode_names(&list)).is_err(), "{bad:?}");
    }
    let unsorted = vec![entry("b", Node::Group(GroupId(1))), entry("a", Node::Group(GroupId(2)))];
    assert!(decode_page(&encode_page(ObjectId(1), &unsorted), &encode_names(&unsorted)).is_err());
}

#[test]
fn roots_and_indexes_round_trip() {
    let root = Directory { attributes: attributes(9), body: Body::Index(ObjectId(4)) };
    assert_eq!(decode_root(&encode_root(&root)).unwrap(), root);
    let pages = vec![
        IndexPage { separator: (*b"").into(), page: ObjectId(50), entries: 48 },
        IndexPage { separator: (*b"k").into(), page: ObjectId(12), entries: 3 },
    ];
    assert_eq!(decode_index(&encode_index(&pages)).unwrap(), pages);
    assert_eq!(&*separator(b"abc", b"abd"), b"abd");
    assert_eq!(&*separator(b"abc", b"b"), b"b");
    assert_eq!(&*separator(b"ab", b"abd"), b"abd");
}

#[test]
fn page_ends_are_pinned_and_spread() {
    let ends = (0..48_000u32).filter(|number| is_page_end(format!("name-{number}").as_bytes())).count();
    assert!((1600..2400).contains(&ends), "{ends} of an expected 2000");
    let first: Vec<u32> = (0..2000).filter(|number| is_page_end(format!("{number}.msg").as_bytes())).take(4).collect();
    assert_eq!(first, PINNED_ENDS);
}

/// The first four of the names `0.msg`, `1.msg` ... that end a page: part of the format.
const PINNED_ENDS: [u32; 4] = [37, 71, 102, 144];

/// A file and an empty directory with the given extended attributes.
fn heavy(name: String, value_bytes: usize) -> Entry {
    let xattrs = vec![Xattr { name: (*b"user.a").into(), value: vec![7; value_bytes].into() }];
    let attributes = DirectoryAttributes { xattrs, ..DirectoryAttributes::default() };
    Entry {
        name: name.into_bytes().into(),
        node: Node::Directory(Arc::new(Directory { attributes, body: Body::default() })),
    }
}

#[test]
fn pages_end_by_bytes_and_large_attributes_are_not_inline() {
    let entries: Vec<Entry> = (0..40).map(|number| heavy(format!("d{number:03}"), 100_000)).collect();
    assert!(!fits_inline(&entries[..1]), "one alone is too much");
    let small: Vec<Entry> = (0..24).map(|number| heavy(format!("d{number:03}"), 100)).collect();
    assert!(fits_inline(&small) && !fits_inline(&[small.clone(), entries[..1].to_vec()].concat()));
    let pages = cut_pages(&entries);
    assert_eq!(pages.concat(), entries);
    let largest = pages.iter().map(|page| page.iter().map(Entry::page_bytes).sum::<usize>()).max().unwrap();
    assert!((PAGE_MAX_BYTES / 2..=PAGE_MAX_BYTES).contains(&largest), "{largest}");
    // One that is too large for any page has one of its own.
    let alone = [heavy("a".to_owned(), 10), heavy("b".to_owned(), 1 << 20), heavy("c".to_owned(), 10)];
    assert!(cut_pages(&alone).iter().any(|page| page.len() == 1 && *page[0].name == *b"b"));
}

#[test]
fn names_that_all_end_pages_make_no_endless_index() {
    // As a hostile source would choose them: long, alike, and each with a hash that ends a page.
    let names = (0u64..).map(|number| format!("{}{number:012}", "x".repeat(243)));
    let mut names: Vec<String> = names.filter(|name| is_page_end(name.as_bytes())).take(1000).collect();
    names.sort();
    let entries: Vec<Entry> = names.iter().map(|name| entry(name, Node::Group(GroupId(1)))).collect();
    assert_eq!(cut(&entries, is_page_end).len(), 1000);
    assert_eq!(cut_pages(&entries).len(), 1000, "they are few");
    let many: Vec<Entry> = entries.iter().cycle().take(300_000).cloned().collect();
    let pages = cut_pages(&many);
    assert_eq!(pages.len(), many.len().div_ceil(PAGE_MAX_NODES));
    assert!(pages.iter().map(|page| page[0].name.len() + 16).sum::<usize>() < INDEX_MAX_BYTES);
}

#[test]
fn made_up_counts_take_no_memory() {
    // A page of one directory, with as many nodes and attributes as bytes follow.
    let mut page = vec![1];
    put_varint(&mut page, 5000);
    page.resize(1 << 20, 0);
    assert_eq!(decode_page(&page, &[1; 1 << 16]), Err(DecodeError("a page has too many nodes")));
    let mut root = vec![2 << 2 | 1, 0, 0, 0, 0, 0];
    put_varint(&mut root, 5 << 20);
    root.resize(12 << 20, 0);
    assert_eq!(decode_root(&root), Err(DecodeError("a page has too many extended attributes")));
}
