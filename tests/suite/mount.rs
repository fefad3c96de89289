//! What a real mount shows, judged by the programs that administrators use: rsync, cp, tar, find, du, unzip, fio.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::mounted::{self, Scene, assert_rsync_finds_nothing, run, shell};
use crate::support::odd::{noise, odd_tree, partition, paths, set_time, times};
use zmreplica_treegen::{BlobMode, Config, Generator, Preset};

/// Everything that `stat` reports for a tree but the times of access and change, and what differs between file systems.
fn attributes(tree: &Path) -> BTreeMap<std::path::PathBuf, [u64; 8]> {
    let mut all = BTreeMap::new();
    for path in paths(tree) {
        let of = fs::symlink_metadata(&path).unwrap();
        let is_directory = of.is_dir();
        // Directories are as large as their file system likes, and FUSE counts no subdirectories.
        let size = if is_directory { 0 } else { of.size() };
        let links = if is_directory { 0 } else { of.nlink() };
        let row = [
            of.mode().into(),
            links,
            of.uid().into(),
            of.gid().into(),
            size,
            of.rdev(),
            of.mtime() as u64,
            of.mtime_nsec() as u64,
        ];
        all.insert(path.strip_prefix(tree).unwrap().to_owned(), row);
    }
    all
}

/// Asserts that a tree that was copied out of the mount is the source again, link groups and all.
fn assert_copy(source: &Path, copy: &Path) {
    assert_rsync_finds_nothing(source, copy);
    assert_eq!(partition(source), partition(copy), "{}", copy.display());
}

/// Asserts that mount and source are the same in every way there is to look.
fn assert_same(scene: &Scene) {
    let (source, mnt) = (scene.source(), scene.mnt());
    assert_rsync_finds_nothing(&source, &mnt);
    assert_rsync_finds_nothing(&mnt, &source);
    assert_eq!(attributes(&source), attributes(&mnt));
    assert_eq!(partition(&source), partition(&mnt));
    assert_eq!(times(&source), times(&mnt));
    // The ACLs among them are compared as the bytes that they are, and as getfacl understands them.
    let getfattr =
        r#"cd "$1" && find . ! -type l -print0 | sort -z | xargs -0 getfattr --dump --match=- --encoding=hex"#;
    assert_eq!(shell(getfattr, &[&source]), shell(getfattr, &[&mnt]));
    let getfacl = r#"cd "$1" && find . ! -type l -print0 | sort -z | xargs -0 getfacl --numeric"#;
    assert_eq!(shell(getfacl, &[&source]), shell(getfacl, &[&mnt]));
}

#[test]
fn an_odd_tree_is_shown_as_it_is() {
    let scene = Scene::new();
    odd_tree(&scene.source());
    scene.snapshot();
    scene.mount_with(&["--numeric-ids", "latest", "mnt"]);
    let (source, mnt) = (scene.source(), scene.mnt());
    assert_same(&scene);

    // Once more from the server, not from what the kernel kept.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_same(&scene);

    let copy = |how: &str, from: &Path, to: &str| {
        let target = scene.path(to);
        fs::create_dir(&target).unwrap();
        shell(how, &[from, &target]);
        target
    };
    assert_copy(&source, &copy(r#"cp -a "$1/." "$2""#, &mnt, "cp"));
    assert_copy(&source, &copy(r#"rsync -aHAX --numeric-ids "$1/" "$2/""#, &mnt, "rsync"));
    // tar keeps neither sockets nor the links of pipes, whatever it reads from.
    let tar = r#"tar -C "$1" --xattrs --xattrs-include='*' --acls --sparse -cf - . | tar -C "$2" --xattrs --xattrs-include='*' --acls -xpf -"#;
    assert_copy(&copy(tar, &source, "tar"), &copy(tar, &mnt, "tar of mount"));

    // Holes are zeros, and `du` does not count them.
    let sparse = fs::File::open(mnt.join("sparse")).unwrap();
    let mut bytes = vec![1; 1 << 20];
    sparse.read_exact_at(&mut bytes, 30 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(sparse.metadata().unwrap().blocks() * 512 < 1 << 20);
    drop(sparse);
    scene.umount();
}

#[test]
fn nothing_can_be_written() {
    let scene = Scene::new();
    odd_tree(&scene.source());
    scene.snapshot();
    scene.mount();
    let file = scene.mnt().join("a");
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()), "{what}");
    };
    refused("open for writing", fs::OpenOptions::new().write(true).open(&file).map(drop));
    refused("create", fs::File::create(scene.mnt().join("new")).map(drop));
    refused("mkdir", fs::create_dir(scene.mnt().join("new")));
    refused("unlink", fs::remove_file(&file));
    refused("rename", fs::rename(&file, scene.mnt().join("b")));
    refused("link", fs::hard_link(&file, scene.mnt().join("b")));
    refused("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o600)));
    refused("chown", std::os::unix::fs::chown(&file, Some(1), None));
    scene.umount();
}

/// A generated tree with one form of blobs, and the ways to look at one.
fn generated(blobs: BlobMode) {
    let scene = Scene::new();
    let config =
        Config { blobs, accounts: 5, messages: 40, owner: Some((4242, 4343)), ..Config::preset(Preset::Sample) };
    let mut generator = Generator::create(&scene.source(), config, 2).unwrap();
    generator.night().unwrap();
    generator.full().unwrap();
    scene.snapshot();
    scene.mount();
    let (source, mnt) = (scene.source(), scene.mnt());
    assert_same(&scene);
    assert_eq!(fs::metadata(mnt.join("accounts.xml")).unwrap().uid(), 4242);

    let mut zips = 0;
    for path in paths(&mnt).iter().filter(|path| path.extension().is_some_and(|extension| extension == "zip")) {
        run(Command::new("unzip").arg("-tqq").arg(path));
        zips += 1;
    }
    assert_eq!(zips > 0, blobs != BlobMode::Files);

    // Names of one inode are found; of the largest group, so that it is one of many names.
    let mut names: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for path in paths(&mnt) {
        names.entry(fs::symlink_metadata(&path).unwrap().ino()).or_default().push(path);
    }
    let group = names.values().max_by_key(|names| names.len()).unwrap();
    assert!(group.len() >= 2, "the tree has hard links in every form");
    let same = |root: &Path, name: &Path| {
        let all = shell(r#"find "$1" -samefile "$2" -printf '%P\n' | sort"#, &[root, name]);
        all.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let relative = group[0].strip_prefix(&mnt).unwrap();
    let found = same(&mnt, &group[0]);
    assert_eq!(found.len(), group.len());
    assert_eq!(found, same(&source, &source.join(relative)));

    // `du` counts each inode once. File systems differ in what a directory takes: files only.
    let du = r#"cd "$1" && find . -type f -print0 | du --files0-from=- -c --apparent-size -B1 | tail -n1"#;
    assert_eq!(shell(du, &[&source]), shell(du, &[&mnt]));
    let du = r#"cd "$1" && find . -type f -print0 | du --files0-from=- -c -B1 | tail -n1 | cut -f1"#;
    let taken = |root: &Path| shell(du, &[root]).trim().parse::<f64>().unwrap();
    let (at_source, at_mount) = (taken(&source), taken(&mnt));
    assert!((at_mount / at_source - 1.0).abs() < 0.05, "du: {at_source} at the source, {at_mount} at the mount");

    // `df` shows the bytes of all inodes, and no room.
    let total: u64 = names
        .values()
        .map(|names| fs::symlink_metadata(&names[0]).unwrap())
        .filter(|of| !of.is_dir())
        .map(|of| of.size())
        .sum();
    let df = run(Command::new("df").args(["-B1", "--output=size,avail,itotal,iavail"]).arg(&mnt));
    let figures: Vec<u64> = df.lines().nth(1).unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(figures, [total.next_multiple_of(4096), 0, names.len() as u64 + 1, 0]);

    let copy = scene.path("copy");
    shell(r#"cp -a "$1/." "$2""#, &[&mnt, &copy]);
    assert_copy(&source, &copy);
    scene.umount();
}

#[test]
fn a_tree_of_single_blobs_is_shown_as_it_is() {
    generated(BlobMode::Files);
}

#[test]
fn a_tree_of_stored_zips_is_shown_as_it_is() {
    generated(BlobMode::Zipstore);
}

#[test]
fn a_tree_of_deflated_zips_is_shown_as_it_is() {
    generated(BlobMode::Zip);
}

#[test]
fn reads_of_every_kind_agree_with_the_source() {
    let scene = Scene::new();
    let (source, mnt) = (scene.source(), scene.mnt());
    // fio writes a check value into each block, and later verifies them in any order.
    let write = [
        "--name=blocks",
        "--rw=write",
        "--bs=4k",
        "--size=24m",
        "--verify=crc32c",
        "--do_verify=0",
        "--ioengine=psync",
    ];
    run(Command::new("fio")
        .current_dir(scene.path(""))
        .args(write)
        .arg(format!("--filename={}", source.join("blocks").display())));
    fs::write(source.join("large"), noise(20_000_000, 11)).unwrap();
    set_time(&source.join("large"), 1_700_000_000, 1);
    scene.snapshot();
    scene.mount();

    let verify = |root: &Path, bs: &str| {
        let mut fio = Command::new("fio");
        fio.args(["--name=blocks", "--rw=randread", "--verify=crc32c", "--verify_fatal=1", "--size=24m", "--readonly"]);
        fio.args(["--allow_file_create=0", "--ioengine=psync", "--bs=4k"]).arg(format!("--numjobs={bs}"));
        fio.arg(format!("--filename={}", root.join("blocks").display())).current_dir(scene.path("")).output().unwrap()
    };
    for jobs in ["1", "4"] {
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let output = verify(&mnt, jobs);
        assert!(output.status.success(), "{}{}", mounted::out(&output), mounted::err(&output));
    }
    // The judge is awake: it finds a block that is not as it was.
    fs::OpenOptions::new().write(true).open(source.join("blocks")).unwrap().write_all_at(b"x", 5_000_000).unwrap();
    assert!(!verify(&source, "1").status.success());

    let compare = r#"
import mmap, os, random, sys
left, right = (open(path, "rb") for path in sys.argv[1:])
left, right = (mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) for file in (left, right))
random.seed(7)
for _ in range(3000):
    at = random.randrange(len(left))
    assert left[at:at + 5000] == right[at:at + 5000], at
assert left[:] == right[:]
"#;
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    run(Command::new("python3").args(["-c", compare]).arg(source.join("large")).arg(mnt.join("large")));
    scene.umount();
}

#[test]
fn a_file_of_a_terabyte_with_nothing_in_it_is_shown() {
    let scene = Scene::new();
    let file = fs::File::create(scene.source().join("huge")).unwrap();
    file.write_all_at(b"front", 0).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"back", (1 << 40) - 4).unwrap();
    drop(file);
    scene.snapshot();
    scene.mount();
    let huge = fs::File::open(scene.mnt().join("huge")).unwrap();
    let of = huge.metadata().unwrap();
    assert_eq!(of.size(), 1 << 40);
    assert!(of.blocks() * 512 <= 64 << 10, "{} blocks", of.blocks());
    let mut bytes = [0; 8];
    huge.read_exact_at(&mut bytes, (1 << 40) - 8).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0back");
    assert_eq!(huge.read_at(&mut bytes, 1 << 40).unwrap(), 0);
    huge.read_exact_at(&mut bytes, 1 << 39).unwrap();
    assert_eq!(bytes, [0; 8]);
    drop(huge);
    scene.umount();
}
