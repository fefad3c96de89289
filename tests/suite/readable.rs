//! Whatever a source holds, even at the limits: what was written can be read, checked, pruned and repaired. And what an earlier version wrote beyond them
//! can be, too.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use crate::support::effort::cases;
use crate::support::locks;
use crate::support::made_up::{Directory, File, MadeUp, Piece, stat};
use crate::support::mounted::{Scene, out};
use zmreplica::catalog::group::{PAGE_HELD_BYTES, for_each_row};
use zmreplica::catalog::reader::CatalogReader;
use zmreplica::catalog::tables::Table;
use zmreplica::ids::GroupId;
use zmreplica::model::{Kind, NAME_MAX_BYTES, XATTRS_MAX_BYTES, Xattr, held_bytes};
use zmreplica::replica::Replica;
use zmreplica::snapshot::SnapshotError;
use zmreplica::snapshot::inode_cache::{CachedInode, InodeCache};
use zmreplica::snapshot::options::{SnapshotOptions, SnapshotReport};
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run_tree;
use zmreplica::source::scan::{Entry, Found, Listing, Problem, ProblemKind};
use zmreplica::view::{Node, SnapshotView, Snapshots, ViewOptions};

fn take(scene: &Scene, tree: MadeUp) -> Result<SnapshotReport, SnapshotError> {
    let (options, progress) = (SnapshotOptions::default(), Arc::new(Progress::default()));
    locks::locked(&scene.store(), |replica| run_tree(replica, Box::new(tree), "made-up", &options, &progress))
}

fn view(replica: &Replica, at: usize) -> SnapshotView {
    let catalog = Arc::new(replica.catalog().unwrap());
    let snapshots = Snapshots::read(&catalog).unwrap();
    let record = snapshots.all()[at].record.clone();
    SnapshotView::open(catalog, Arc::new(replica.chunks()), record, ViewOptions::default()).unwrap()
}

fn newest(scene: &Scene) -> SnapshotView {
    let replica = Replica::open(&scene.store()).unwrap();
    let count = Snapshots::read(&replica.catalog().unwrap()).unwrap().all().len();
    view(&replica, count - 1)
}

/// Returns the names of a snapshot; reads both ends of every file, and all attributes and link counts.
fn read_all(view: &SnapshotView) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    for entry in view.walk(view.root(), Vec::new()) {
        let entry = entry.unwrap();
        let attributes = view.attributes(&entry.node).unwrap();
        assert!(held_bytes(&attributes.xattrs) <= XATTRS_MAX_BYTES);
        if let Node::Group(group) = entry.node {
            assert_eq!(view.link_count(&entry.node).unwrap(), 1);
            let size = attributes.size;
            match view.read(group, 0, 4096) {
                Ok(first) => {
                    assert_eq!(first.len() as u64, size.min(4096));
                    assert_eq!(view.read(group, size.saturating_sub(4096), 8192).unwrap().len() as u64, size.min(4096));
                }
                Err(error) => assert!(size > i64::MAX as u64, "{error}"),
            }
        }
        names.insert(entry.path);
    }
    names
}

/// Asserts that all of a store can be read, checked, pruned, repaired, and gone on with.
fn assert_readable(scene: &Scene) {
    let replica = Replica::open(&scene.store()).unwrap();
    let count = Snapshots::read(&replica.catalog().unwrap()).unwrap().all().len();
    for at in 0..count {
        read_all(&view(&replica, at));
    }
    drop(replica);
    scene.ok(&["check", "--read-data"]);
    scene.ok(&["prune", "--keep-last", "1"]);
    scene.ok(&["check", "--read-data"]);
    scene.ok(&["repair"]);
    scene.ok(&["check"]);
}

fn xattr(name: &str, value: Vec<u8>) -> Xattr {
    Xattr { name: name.as_bytes().into(), value: value.into() }
}

/// Extended attributes of a user that take some `bytes` and begin with `seed`.
fn heavy(seed: u64, bytes: usize) -> Vec<Xattr> {
    let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let pieces = (0..bytes.div_ceil(60_000)).map(|number| {
        let mut value = vec![0; bytes.min(60_000)];
        noise.fill(&mut value);
        xattr(&format!("user.{number:04}"), value)
    });
    pieces.collect()
}

fn piece() -> impl Strategy<Value = Piece> {
    let edge = prop_oneof![
        1u64..100,
        (0u32..64, -2i64..3).prop_map(|(bit, off)| (1u64 << bit).saturating_add_signed(off).max(1)),
        Just(u64::MAX),
        Just(i64::MAX as u64),
    ];
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 1..1024).prop_map(Piece::Literal),
        2 => prop::collection::vec(any::<u8>(), 1..3000).prop_map(Piece::Chunk),
        2 => edge.prop_map(Piece::Zeros),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr>> {
    prop_oneof![
        4 => Just(Vec::new()),
        2 => (0u64..3, 1usize..3000).prop_map(|(seed, bytes)| heavy(seed, bytes)),
        2 => (0u64..3, 800_000usize..1_300_000).prop_map(|(seed, bytes)| heavy(seed, bytes)),
        1 => Just((0..12_000).map(|number| xattr(&format!("user.{number:05}"), Vec::new())).collect()),
    ]
}

fn file() -> impl Strategy<Value = File> {
    let pieces = prop_oneof![
        4 => prop::collection::vec(piece(), 0..5),
        1 => (900usize..2200, piece()).prop_map(|(count, piece)| vec![[piece, Piece::Zeros(3)]; count].concat()),
    ];
    (pieces, xattrs()).prop_map(|(pieces, xattrs)| File { pieces, xattrs })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/' | b'.') { b'x' } else { byte });
    prop_oneof![
        4 => prop::collection::vec(byte.clone(), 1..12),
        1 => prop::collection::vec(byte, 240..300),
    ]
}

fn directory() -> impl Strategy<Value = Directory> {
    let flat = (xattrs(), prop::collection::btree_map(name(), file(), 0..12)).prop_map(|(xattrs, files)| Directory {
        xattrs,
        files: files.into_iter().collect(),
        directories: Vec::new(),
    });
    flat.prop_recursive(4, 24, 6, |inner| {
        let files = prop::collection::btree_map(name(), file(), 1..8);
        let directories = prop::collection::btree_map(name(), inner, 0..6);
        (xattrs(), files, directories).prop_map(|(xattrs, files, directories)| {
            let directories: Vec<_> = directories.into_iter().filter(|(name, _)| !files.contains_key(name)).collect();
            Directory { xattrs, files: files.into_iter().collect(), directories }
        })
    })
}

/// Returns the names that a snapshot of a directory must hold.
fn expected(directory: &Directory, path: &[u8], names: &mut BTreeSet<Vec<u8>>) {
    names.insert(path.to_vec());
    let join = |name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/".as_slice(), name].concat() };
    let fits = |name: &[u8]| name.len() <= NAME_MAX_BYTES;
    names.extend(directory.files.iter().filter(|(name, _)| fits(name)).map(|(name, _)| join(name)));
    for (name, inner) in directory.directories.iter().filter(|(name, _)| fits(name)) {
        expected(inner, &join(name), names);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(12), max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn written_means_readable(first in directory(), second in directory()) {
        let scene = Scene::new();
        for root in [&first, &second] {
            let mut root = root.clone();
            // A name is there once.
            root.files.retain(|(name, _)| name != b"~");
            root.directories.retain(|(name, _)| name != b"~");
            root.files.push((b"~".to_vec(), File::default()));
            take(&scene, MadeUp::of(&root)).unwrap();
            let mut names = BTreeSet::new();
            expected(&root, b"", &mut names);
            prop_assert_eq!(read_all(&newest(&scene)), names);
        }
        assert_readable(&scene);
    }
}

/// Returns what the rows of each page of link groups take in memory.
fn pages_held(scene: &Scene) -> Vec<usize> {
    let replica = Replica::open(&scene.store()).unwrap();
    let catalog: CatalogReader = replica.catalog().unwrap();
    let mut pages = Vec::new();
    let database = catalog.database().unwrap();
    database
        .scan(Table::Groups, 0, |_, payload| {
            let mut held = 0;
            for_each_row(payload?, |_, row| {
                held += row.map_or(0, |row| row.held_bytes());
                Ok::<_, zmreplica::coding::DecodeError>(true)
            })
            .unwrap();
            pages.push(held);
            Ok(())
        })
        .unwrap();
    pages
}

#[test]
fn attributes_fill_pages_of_their_own_and_no_other_snapshot_suffers() {
    let scene = Scene::new();
    let plain = |count: u64| -> Vec<(Vec<u8>, File)> {
        let file =
            |number: u64| File { pieces: vec![Piece::Literal(number.to_le_bytes().to_vec())], ..File::default() };
        (0..count).map(|number| (format!("f{number:03}").into_bytes(), file(number))).collect()
    };
    let mut root = Directory { files: plain(64), ..Directory::default() };
    take(&scene, MadeUp::of(&root)).unwrap();
    // Attributes that differ, some that all have in common, and more than an inode may have.
    for number in 0..40u64 {
        let seed = if number < 20 { number } else { 1000 };
        root.files
            .push((format!("h{number:02}").into_bytes(), File { xattrs: heavy(seed, 900_000), ..File::default() }));
        let directory = Directory { xattrs: heavy(number, 900_000), ..Directory::default() };
        root.directories.push((format!("k{number:02}").into_bytes(), directory));
    }
    let acl = xattr("system.posix_acl_access", vec![2, 0, 0, 0]);
    let mut too_many = heavy(77, 52_000_000);
    too_many.insert(0, acl.clone());
    root.files.push((b"too-many".to_vec(), File { xattrs: too_many.clone(), ..File::default() }));
    root.directories.push((b"too-many-of-directory".to_vec(), Directory { xattrs: too_many, ..Directory::default() }));
    let report = take(&scene, MadeUp::of(&root)).unwrap();
    let shown: Vec<(&[u8], bool)> = report
        .problems
        .iter()
        .map(|problem| (problem.path.as_slice(), problem.message.starts_with("Has more than 1024 KiB of extended")))
        .collect();
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown.contains(&(b"too-many", true)) && shown.contains(&(b"too-many-of-directory", true)));
    let view = newest(&scene);
    for name in ["too-many", "too-many-of-directory"] {
        let node = view.resolve(name.as_bytes()).unwrap();
        assert_eq!(
            view.attributes(&node).unwrap().xattrs,
            std::slice::from_ref(&acl),
            "the list of access rights stays"
        );
    }
    for number in [3, 19, 20, 39u64] {
        let seed = if number < 20 { number } else { 1000 };
        let node = view.resolve(format!("h{number:02}").as_bytes()).unwrap();
        assert_eq!(view.attributes(&node).unwrap().xattrs, heavy(seed, 900_000));
        let node = view.resolve(format!("k{number:02}").as_bytes()).unwrap();
        assert_eq!(view.attributes(&node).unwrap().xattrs, heavy(number, 900_000));
    }
    let held = pages_held(&scene);
    assert!(held.len() >= 40, "{held:?}");
    assert!(held.iter().all(|held| *held <= PAGE_HELD_BYTES.max(1_100_000)), "{held:?}");
    drop(view);
    assert_readable(&scene);
}

#[test]
fn attributes_beyond_the_bound_are_reported_every_night() {
    let scene = Scene::new();
    let root = Directory {
        files: vec![(b"heavy".to_vec(), File { xattrs: heavy(1, 2_000_000), ..File::default() })],
        ..Directory::default()
    };
    for _ in 0..2 {
        assert_eq!(take(&scene, MadeUp::of(&root)).unwrap().record.problem_count, 1);
    }
    assert_readable(&scene);
}

#[test]
fn holes_of_any_length_come_back() {
    let scene = Scene::new();
    let lengths = [(1 << 61) - 1, 1 << 61, 1 << 62, (1 << 62) + 5, i64::MAX as u64, 1 << 63, u64::MAX];
    let files = lengths.iter().map(|length| {
        let file = File { pieces: vec![Piece::Zeros(*length)], ..File::default() };
        (format!("{length:020}").into_bytes(), file)
    });
    let mut files: Vec<_> = files.collect();
    // Together beyond what can be counted.
    let pieces = vec![Piece::Zeros(u64::MAX), Piece::Literal(b"x".to_vec()), Piece::Zeros(u64::MAX)];
    files.push((b"endless".to_vec(), File { pieces, ..File::default() }));
    let report = take(&scene, MadeUp::of(&Directory { files, ..Directory::default() })).unwrap();
    assert_eq!(report.record.problem_count, 3, "{:?}", report.problems);
    assert!(report.problems.iter().all(|problem| problem.message.contains("File too large")));
    let view = newest(&scene);
    for length in &lengths[..5] {
        let Node::Group(group) = view.resolve(format!("{length:020}").as_bytes()).unwrap() else { panic!() };
        assert_eq!(view.read(group, length - 10, 100).unwrap(), [0; 10]);
    }
    assert_readable(&scene);
    // A real one: tmpfs and XFS let anybody make it.
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::File::create(place.path().join("sparse")).unwrap().set_len(1 << 62).unwrap();
    fs::write(place.path().join("small"), "beside it").unwrap();
    scene.ok(&["snapshot", place.path().to_str().unwrap()]);
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_chunk_with_two_lengths_is_refused_and_the_store_stays_whole() {
    let scene = Scene::new();
    let sound = Directory { files: vec![(b"a".to_vec(), File::default())], ..Directory::default() };
    take(&scene, MadeUp::of(&sound)).unwrap();
    let file = File { pieces: vec![Piece::TwoLengths], ..File::default() };
    let refused = take(&scene, MadeUp::of(&Directory { files: vec![(b"b".to_vec(), file)], ..Directory::default() }));
    assert!(matches!(refused, Err(SnapshotError::WrongChunk(_))), "{refused:?}");
    assert_readable(&scene);
}

#[test]
fn a_list_of_problems_ends_where_it_could_not_be_read_back() {
    let scene = Scene::new();
    let mut tree = MadeUp::of(&Directory { files: vec![(b"a".to_vec(), File::default())], ..Directory::default() });
    tree.problems = (0..600u32)
        .map(|number| Problem {
            path: [&number.to_le_bytes(), vec![0xff; 100_000].as_slice()].concat(),
            kind: ProblemKind::Unreadable,
            message: "made up".to_owned(),
            errno: 5,
        })
        .collect();
    let report = take(&scene, tree).unwrap();
    assert_eq!(report.record.problem_count, 600);
    assert!((10..100).contains(&report.problems.len()), "{}", report.problems.len());
    assert_readable(&scene);
}

#[test]
fn names_that_no_directory_takes_are_problems() {
    let scene = Scene::new();
    let long = |length: usize| vec![b'n'; length];
    let inner = Directory { files: vec![(b"below".to_vec(), File::default())], ..Directory::default() };
    let root = Directory {
        files: vec![(long(255), File::default()), (long(256), File::default()), (long(4070), File::default())],
        directories: vec![(long(257), inner.clone()), (long(254), inner)],
        ..Directory::default()
    };
    let report = take(&scene, MadeUp::of(&root)).unwrap();
    assert_eq!(report.record.problem_count, 3);
    let names = read_all(&newest(&scene));
    let below = [long(254), b"/below".to_vec()].concat();
    assert_eq!(names, BTreeSet::from([Vec::new(), long(254), below, long(255)]));
    assert_readable(&scene);
}

/// A tree of one directory in another, with a file at the top and one in the last.
fn deep(levels: usize) -> MadeUp {
    let listings = (0..=levels).map(move |level| {
        let mut entries = Vec::new();
        let inode = |name: &[u8], ino| Entry {
            name: name.into(),
            what: Found::Inode { file_system: 0, ino, stat: Some(Box::new(stat(Kind::File, ino, 0))) },
        };
        if level == 0 {
            entries.push(inode(b"a", 10));
        }
        if level == levels {
            entries.push(inode(b"leaf", 11));
        } else {
            entries.push(Entry { name: b"d".as_slice().into(), what: Found::Directory });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let path = vec![b"d".as_slice(); level].join(&b'/');
        let (stat, xattrs) = (stat(Kind::Directory, 2, 0), Vec::new());
        Listing { path, stat, xattrs, file_system: 0, entries, unreadable: None }
    });
    let leaf = [vec![b"d".as_slice(); levels], vec![b"leaf".as_slice()]].concat().join(&b'/');
    MadeUp::listing(Box::new(listings), HashMap::from([(b"a".to_vec(), File::default()), (leaf, File::default())]))
}

#[test]
fn a_tree_of_any_depth_is_checked_and_searched() {
    let levels = 20_000;
    let scene = Scene::new();
    let report = take(&scene, deep(levels)).unwrap();
    assert_eq!(report.record.totals.directories, levels as u64);
    scene.ok(&["check"]);
    let found = scene.ok(&["find", "leaf"]);
    assert_eq!(found.split('\t').nth(1).unwrap().len(), 2 * levels + "leaf\n".len());
    scene.ok(&["prune", "--keep-last", "1"]);
}

/// Makes one directory in another, and a file in the last.
fn make_deep(root: &Path, levels: usize) {
    let mut at: OwnedFd = fs::File::open(root).unwrap().into();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let leaf = openat(at.as_fd(), "leaf", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    fs::File::from(leaf).write_all(b"at the bottom").unwrap();
}

#[test]
fn a_restore_removes_a_tree_of_any_depth() {
    let scene = Scene::new();
    fs::remove_dir_all(scene.source()).unwrap();
    fs::create_dir(scene.source()).unwrap();
    fs::write(scene.source().join("kept"), "kept").unwrap();
    scene.snapshot();
    let target = scene.path("target");
    fs::create_dir(&target).unwrap();
    make_deep(&target, 20_000);
    let mut limited = Command::new("bash");
    let program = scene.command().get_program().to_owned();
    limited.args(["-c", "ulimit -n 256; exec \"$@\"", "bash"]).arg(program);
    limited.args(scene.command().get_args()).args(["restore", "--delete", "latest", "target"]);
    limited.current_dir(scene.path("."));
    let output = limited.output().unwrap();
    assert!(output.status.success(), "{}", out(&output));
    let left: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
}

/// Writes the file of known inodes with other link groups, whole and of the right commit.
fn falsify_known(scene: &Scene, group: impl Fn(u64) -> u64) {
    let path = scene.store().join("cache/inodes-0");
    let (known, commit, id) = InodeCache::decode(&fs::read(&path).unwrap()).unwrap();
    let inodes = known.inodes().iter().map(|inode| CachedInode { group: GroupId(group(inode.group.0)), ..*inode });
    let other = InodeCache::new(known.acls, known.file_systems.clone(), inodes.collect());
    fs::write(&path, other.encode(commit, &id)).unwrap();
}

#[test]
fn made_up_link_groups_in_the_cache_of_inodes_do_no_harm() {
    let scene = Scene::new();
    for number in 0..30 {
        fs::write(scene.source().join(format!("f{number}")), format!("{number}")).unwrap();
    }
    for wild in [40u64, 300, 1 << 20, (1 << 36) - 1, 1 << 36, 1 << 62, u64::MAX] {
        scene.snapshot();
        falsify_known(&scene, |group| if group % 2 == 0 { wild } else { group });
        scene.ok(&["snapshot", "--dry-run", "source"]);
        scene.ok(&["prune", "--keep-last", "2"]);
        scene.snapshot();
        assert_eq!(read_all(&newest(&scene)).len(), 31);
        scene.ok(&["check", "--read-data"]);
    }
}

#[test]
fn a_store_that_holds_what_it_could_not_read_is_whole_again() {
    let scene = Scene::new();
    fs::remove_dir_all(scene.store()).unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old_stores/too-large.tar.xz");
    let unpacked = Command::new("tar").arg("-C").arg(scene.path(".")).arg("-xJf").arg(archive).status().unwrap();
    assert!(unpacked.success());
    scene.ok(&["check", "--read-data"]);
    let replica = Replica::open(&scene.store()).unwrap();
    let earlier = view(&replica, 0);
    let id = earlier.record().id.clone();
    scene.ok(&["restore", &id, "restored"]);
    for number in 1..=64 {
        let content = fs::read_to_string(scene.path("restored").join(format!("f{number}"))).unwrap();
        assert_eq!(content, format!("file {number}\n"));
    }
    let later = view(&replica, 1);
    for name in ["x0", "x5", "y0", "y5"] {
        let attributes = later.attributes(&later.resolve(name.as_bytes()).unwrap()).unwrap();
        assert_eq!(attributes.xattrs.len(), 800, "{name}");
        assert!(attributes.xattrs.iter().all(|xattr| xattr.value.len() == 65_000));
    }
    drop((earlier, later, replica));
    // It goes on, and new rows do not join the page without measure.
    fs::write(scene.source().join("new"), "new").unwrap();
    scene.snapshot();
    let held = pages_held(&scene);
    assert!(held.len() >= 2 && held[0] > 256 << 20 && held[1] <= PAGE_HELD_BYTES, "{held:?}");
    scene.ok(&["repair"]);
    scene.ok(&["check"]);
    scene.ok(&["prune", "--keep-last", "1"]);
    scene.ok(&["check", "--read-data"]);
}
