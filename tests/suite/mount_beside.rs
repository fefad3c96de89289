//! A mount while the store changes under it: new snapshots, rewritten packs, a rebuilt catalogue, damage; and a writable mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::mounted::{
    Scene, assert_rsync_finds_nothing, err, eventually, is_alive, mounts_below, signal, unmount,
};
use crate::support::odd::{noise, odd_tree, partition, paths, set_time};
use rustix::process::Signal;
use zmreplica::catalog::chunk::{PackRow, PackedChunk};
use zmreplica::ids::ChunkId;
use zmreplica::mount::{Owners, SnapshotsTree};
use zmreplica::replica::{LockedReplica, Replica};
use zmreplica::store::pack::{ENTRY_HEADER_BYTES, EntryHeader, PACK_TARGET_BYTES, PackBuilder, PackFormat, PackId};
use zmreplica::view::{Readers, ViewOptions};
use zmreplica_treegen::{BlobMode, Config, Generator, Preset};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn all_snapshots_are_shown_as_they_come() {
    let scene = Scene::new();
    fs::write(scene.source().join("first"), "1").unwrap();
    let first = scene.snapshot();
    let pid = scene.mount_with(&["mnt"]);
    let mnt = scene.mnt();
    let before = names(&mnt);
    let [day, latest] = before.as_slice() else { panic!("{before:?}") };
    assert_eq!(latest, "latest");
    assert!(day.len() == 18 && day.ends_with('Z') && &day[10..11] == "T" && !day.contains(':'), "{day}");
    assert_eq!(fs::read_link(mnt.join("latest")).unwrap().to_str(), Some(day.as_str()));
    assert_eq!(fs::read_to_string(mnt.join("latest/first")).unwrap(), "1");
    assert_eq!(scene.leases().len(), 1, "what was entered is leased");
    let inode = fs::metadata(mnt.join("latest/first")).unwrap().ino();

    fs::write(scene.source().join("second"), "2").unwrap();
    fs::remove_file(scene.source().join("first")).unwrap();
    scene.snapshot();
    eventually("the new snapshot is shown", || names(&mnt).len() == 3);
    eventually("latest leads to it", || fs::read_to_string(mnt.join("latest/second")).is_ok_and(|text| text == "2"));
    assert!(!mnt.join("latest/first").exists());
    assert_eq!(fs::read_to_string(mnt.join(day).join("first")).unwrap(), "1");
    assert_eq!(fs::metadata(mnt.join(day).join("first")).unwrap().ino(), inode, "stable for one mount");
    assert_ne!(fs::metadata(mnt.join("latest/second")).unwrap().ino(), inode);
    // The newest one is the source, as far as rsync can see.
    assert_rsync_finds_nothing(&scene.source(), &mnt.join("latest"));
    let leases = scene.leases();
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases.iter().all(|(_, holder, _)| *holder == u64::from(pid)));
    assert!(leases.iter().any(|(id, ..)| *id == first));
    // Where snapshots of all ages are, changes make no sense.
    let message = err(&scene.code(1, &["mount", "--writable", "upper", "mnt2"]));
    assert!(message.contains("name a snapshot") || message.contains("No such file"), "{message}");
    scene.umount();
    assert_eq!(scene.leases(), []);
}

#[test]
fn the_tree_of_all_snapshots_keeps_the_contract() {
    let scene = Scene::new();
    odd_tree(&scene.source());
    scene.snapshot();
    scene.snapshot();
    fs::write(scene.source().join("more"), "more").unwrap();
    scene.snapshot();
    let replica = Arc::new(Replica::open(&scene.store()).unwrap());
    let names_of_all: u64 =
        replica.catalog().unwrap().snapshots().unwrap().iter().map(|(_, record)| record.totals.names).sum();
    let catalog = Arc::new(replica.following_catalog().unwrap());
    let readers = Readers::new(catalog, Arc::new(replica.chunks()), ViewOptions::default());
    let log: zmreplica_fuse::Log = Arc::new(|line: &str| panic!("{line}"));
    let tree = SnapshotsTree::new(replica, readers, None, Owners::ByNumber, scene.mnt(), log).unwrap();
    // A directory for each, though all may be of one second, and `latest`.
    assert_eq!(zmreplica_fuse::check_contract(&tree).unwrap(), names_of_all + 3 + 1);
    assert_eq!(scene.leases().len(), 3);
    drop(tree);
    assert_eq!(scene.leases(), []);
}

/// The files below a directory with their bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = paths(directory).into_iter().filter(|path| fs::symlink_metadata(path).unwrap().is_file());
    files.map(|path| (path.strip_prefix(directory).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

/// Writes all chunks into new packs in another order, commits where they are, and removes the old packs: what a prune does to chunks that stay.
fn rewrite_packs(store: &Path) -> usize {
    let replica = loop {
        match LockedReplica::open(store) {
            Ok(replica) => break replica,
            // A snapshot is just being taken.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut writer = replica.writer().unwrap();
    let reader = Arc::clone(writer.reader());
    let mut old = Vec::new();
    let mut builder = PackBuilder::new(PACK_TARGET_BYTES, PackId::unique(writer.epoch()).unwrap());
    for dictionary in replica.dictionaries().all() {
        builder.push_dictionary(&dictionary).unwrap();
    }
    let mut moved = Vec::new();
    for number in (0..writer.counters().chunk.0).rev().map(ChunkId) {
        let address = reader.chunk_address(number).unwrap();
        let location = address.location;
        let length = ENTRY_HEADER_BYTES + location.stored_length as usize;
        let bytes = replica.backend().read_at(&location.pack.key(), location.offset.into(), length).unwrap();
        let (head, stored) = bytes.split_at(ENTRY_HEADER_BYTES);
        let header = EntryHeader::decode(head.try_into().unwrap()).unwrap();
        let offset = builder.push(header.hash, header.plain_length, header.codec, stored).unwrap();
        old.push(location.pack);
        moved.push(PackedChunk::new(number, offset, &header));
    }
    old.sort_unstable();
    old.dedup();
    let pack = builder.finish();
    replica.backend().put(&pack.id.key(), &[&pack.bytes]).unwrap();
    replica.backend().sync().unwrap();
    let (bytes, chunks) = (pack.bytes.len() as u64, moved.len() as u64);
    writer.add_pack(PackRow { id: pack.id, bytes, chunks, format: PackFormat::V2 }, &moved).unwrap();
    writer.commit().unwrap();
    for id in old.iter().filter(|id| **id != pack.id) {
        replica.backend().delete(&PackId::key(id)).unwrap();
    }
    old.len()
}

#[test]
fn twenty_four_readers_see_no_change_while_the_store_changes() {
    let scene = Scene::new();
    let config = Config { blobs: BlobMode::Files, accounts: 3, messages: 30, ..Config::preset(Preset::Sample) };
    let mut generator = Generator::create(&scene.source(), config, 2).unwrap();
    let blob = scene.source().join("blob");
    fs::write(&blob, noise(6_000_000, 3)).unwrap();
    set_time(&blob, 1_700_000_000, 1);
    scene.snapshot();
    // A small cache, so that reads reach the packs; one mount of the snapshot and one of all.
    scene.mount_with(&["--cache", "1M", "latest", "mnt"]);
    fs::create_dir(scene.path("all")).unwrap();
    scene.mount_with(&["--cache", "1M", "all"]);
    let snapshot = scene.path("all").join(fs::read_link(scene.path("all/latest")).unwrap());
    let expected = contents(&scene.source());
    let files: Vec<_> = expected.iter().collect();

    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..24usize {
            let root = if reader % 2 == 0 { scene.mnt() } else { snapshot.clone() };
            let (files, stop, reads) = (&files, &stop, &reads);
            scope.spawn(move || {
                let mut state = reader * 7919;
                let mut listed = 0;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (path, bytes) = files[(state >> 33) % files.len()];
                    let found = fs::read(root.join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    assert!(found == **bytes, "wrong bytes in {}", path.display());
                    if listed < 3 && reader < 6 {
                        assert_eq!(contents(&root).len(), files.len());
                        listed += 1;
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        let (mut nights, mut rewrites) = (0, 0);
        while started.elapsed() < Duration::from_secs(12) || nights < 3 || rewrites < 3 {
            generator.night().unwrap();
            // From another process, as at night.
            scene.snapshot();
            nights += 1;
            // What the kernel keeps must not hide the store.
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            rewrites += usize::from(rewrite_packs(&scene.store()) > 0);
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        }
        // And a catalogue that is another file all of a sudden.
        scene.ok(&["repair"]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let before = reads.load(Ordering::Relaxed);
        eventually("readers go on", || reads.load(Ordering::Relaxed) > before + 200);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(scene.log(), "", "a server complained");
    assert_eq!(contents(&scene.mnt()).len(), expected.len());
    // The kernel keeps `latest` for a second, and the catalogue is followed once a second.
    // Each night has a session of its own.
    let sessions = |root: &Path| -> BTreeSet<_> {
        fs::read_dir(root.join("sessions")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    eventually("the newest snapshot is shown", || sessions(&scene.path("all/latest")) == sessions(&scene.source()));
    assert!(!snapshot.ends_with(fs::read_link(scene.path("all/latest")).unwrap()));
    assert_rsync_finds_nothing(&scene.source(), &scene.path("all/latest"));
    scene.ok(&["umount", "all"]);
    scene.umount();
}

/// Returns the packs of a store, with the one that was written last at the end.
fn packs(store: &Path) -> Vec<PathBuf> {
    let mut packs: Vec<_> = paths(&store.join("packs")).into_iter().filter(|path| path.is_file()).collect();
    packs.sort_by_key(|path| (fs::metadata(path).unwrap().mtime(), fs::metadata(path).unwrap().mtime_nsec()));
    packs
}

#[test]
fn damage_is_an_error_of_its_file_alone() {
    let scene = Scene::new();
    let write = |name: &str, seed: u64| {
        fs::write(scene.source().join(name), noise(300_000, seed)).unwrap();
        set_time(&scene.source().join(name), 1_700_000_000, 1);
    };
    // Each snapshot leaves a pack of its own.
    write("sound", 1);
    scene.snapshot();
    write("flipped", 5);
    scene.snapshot();
    write("lost", 9);
    scene.snapshot();
    let [_, flipped, lost] = packs(&scene.store()).try_into().unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(flipped).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 200_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 200_000).unwrap();
    fs::remove_file(lost).unwrap();

    scene.mount();
    let mnt = scene.mnt();
    for turn in 0..3 {
        for name in ["flipped", "lost"] {
            let error = fs::read(mnt.join(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{name}: {error}");
        }
        assert_eq!(fs::read(mnt.join("sound")).unwrap(), noise(300_000, 1), "turn {turn}");
        assert_eq!(names(&mnt), ["flipped", "lost", "sound"]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }
    let log = scene.log();
    for (name, word) in [("flipped", "hash"), ("lost", "missing")] {
        let inode = fs::metadata(mnt.join(name)).unwrap().ino();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("inode {inode} "))).collect();
        assert_eq!(lines.len(), 1, "one line for {name}, however often it is read: {log}");
        assert!(lines[0].contains(word), "{}", lines[0]);
    }
    assert_eq!(log.lines().count(), 2, "{log}");
    scene.umount();
}

#[test]
fn a_damaged_catalogue_is_an_error_and_not_a_gap() {
    let scene = Scene::new();
    for number in 0..4000 {
        fs::write(scene.source().join(format!("file {number}")), number.to_string()).unwrap();
    }
    scene.snapshot();
    let database = scene.store().join("catalog.redb");
    let sound = fs::read(&database).unwrap();
    let (mut errors, mut whole) = (0, 0);
    for turn in 0..12 {
        // 4 KiB of nothing, somewhere behind the header.
        let mut damaged = sound.clone();
        let at = 8192 + (damaged.len() - 12_288) / 12 * turn;
        damaged[at..at + 4096].fill(0xa5);
        fs::write(&database, &damaged).unwrap();
        let mounted = scene.command().args(["mount", "--log", "log", "latest", "mnt"]).output().unwrap();
        if !mounted.status.success() {
            errors += 1;
            continue;
        }
        let listing: Result<Vec<_>, _> = fs::read_dir(scene.mnt()).and_then(Iterator::collect);
        match listing {
            Ok(entries) => {
                assert_eq!(entries.len(), 4000, "a listing with a gap");
                whole += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
                errors += 1;
            }
        }
        for number in (0..4000).step_by(97) {
            if let Ok(text) = fs::read_to_string(scene.mnt().join(format!("file {number}"))) {
                assert_eq!(text, number.to_string());
            }
        }
        scene.umount();
    }
    assert!(errors > 0, "{errors} errors, {whole} whole");
    fs::write(&database, &sound).unwrap();
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_writable_mount_keeps_links_in_step_and_the_store_as_it_is() {
    let scene = Scene::new();
    odd_tree(&scene.source());
    scene.snapshot();
    fs::write(scene.source().join("later"), "").unwrap();
    let second = scene.snapshot();
    let digest = |scene: &Scene| {
        let mut files = contents(&scene.store());
        files.retain(|path, _| !path.starts_with("leases"));
        files
    };
    let before = digest(&scene);

    let pid = scene.mount_with(&["--numeric-ids", "--writable", "upper", "latest", "mnt"]);
    let mnt = scene.mnt();
    assert_eq!(mounts_below(&mnt).len(), 2);
    assert_rsync_finds_nothing(&scene.source(), &mnt);
    assert_eq!(partition(&scene.source()), partition(&mnt));

    // One inode under many names: a change through one is seen through all.
    let links = fs::metadata(mnt.join("a")).unwrap().nlink();
    assert_eq!(links, 4);
    fs::OpenOptions::new().append(true).open(mnt.join("deep/a2")).unwrap().write_all_at(b"X", 0).unwrap();
    for name in ["a", "deep/a2", "deep/er/a3", "many/3/zz"] {
        assert_eq!(fs::metadata(mnt.join(name)).unwrap().nlink(), links, "{name}");
        assert_eq!(fs::read(mnt.join(name)).unwrap(), fs::read(mnt.join("a")).unwrap(), "{name}");
    }
    assert_ne!(fs::read(mnt.join("a")).unwrap(), fs::read(scene.source().join("a")).unwrap());
    assert_eq!(fs::read(mnt.join("deep/same")).unwrap(), b"linked", "an equal file that is no link");
    fs::rename(mnt.join("deep"), mnt.join("renamed")).unwrap();
    fs::remove_file(mnt.join("large")).unwrap();
    fs::write(mnt.join("new"), "new").unwrap();
    assert_eq!(fs::read(mnt.join("renamed/large2")).unwrap(), noise(9_000_000, 7));

    // Unmounted as one.
    scene.umount();
    eventually("the server ends", || !is_alive(pid));
    assert!(before == digest(&scene), "the store was written to");

    // The changes are still there, for the same snapshot and no other.
    scene.mount_with(&["--numeric-ids", "--writable", "upper", &second, "mnt"]);
    assert_eq!(fs::read_to_string(mnt.join("new")).unwrap(), "new");
    assert!(mnt.join("renamed/er/a3").exists() && !mnt.join("deep").exists() && !mnt.join("large").exists());
    let pid = scene.leases()[0].1 as u32;
    // By the system's own command, which takes the upper one only.
    unmount(&mnt);
    eventually("the server ends", || !is_alive(pid));
    assert_eq!(mounts_below(&mnt), Vec::<String>::new());
    fs::write(scene.source().join("more"), "").unwrap();
    scene.snapshot();
    for (upper, reason) in [("upper", "another snapshot"), ("source", "not empty"), ("store/upper", "inside the store")]
    {
        let message = err(&scene.code(1, &["mount", "--writable", upper, "latest", "mnt"]));
        assert!(message.contains(reason), "{upper}: {message}");
    }
    assert_eq!(mounts_below(&mnt), Vec::<String>::new());

    // A killed server is no empty directory here either, and is recovered from.
    let pid = scene.mount_with(&["--writable", "upper2", "latest", "mnt"]);
    signal(pid, Signal::KILL);
    eventually("the server ends", || !is_alive(pid));
    let listing: Result<Vec<_>, _> = fs::read_dir(&mnt).and_then(Iterator::collect);
    assert!(listing.is_err(), "{listing:?}");
    scene.mount_with(&["--writable", "upper2", "latest", "mnt"]);
    assert!(mnt.join("more").exists());
    let pid = scene.leases()[0].1 as u32;
    signal(pid, Signal::TERM);
    eventually("the server ends", || !is_alive(pid));
    assert_eq!(mounts_below(&mnt), Vec::<String>::new());
}
