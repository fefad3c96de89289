//! What a night reads, and what it does when the source moves under it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{XattrFlags, setxattr};
use zmreplica::catalog::snapshot::Work;
use zmreplica::model::{Kind, Stat};
use zmreplica::replica::init;
use zmreplica::snapshot::SnapshotError;
use zmreplica::snapshot::options::{SnapshotOptions, SnapshotReport};
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::source::chunker::SinkClosed;
use zmreplica::source::read::{
    CutChunk, EventSink, InodeReader, ReadEvent, ReadOutcome, ReadRequest, ReadResult, Want, stat_at,
};

use crate::support::locks;
use crate::support::odd::settle;

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("source/tmp/full-1/blobs")).unwrap();
        init(&directory.path().join("store")).unwrap();
        Scene { directory }
    }

    fn source(&self, path: &str) -> PathBuf {
        self.directory.path().join("source").join(path)
    }

    fn night(&self, options: &SnapshotOptions) -> SnapshotReport {
        let replica = locks::open(&self.directory.path().join("store"));
        run(&replica, &self.source(""), options, &Arc::new(Progress::default())).unwrap()
    }

    fn work(&self) -> Work {
        self.night(&SnapshotOptions::default()).record.work
    }
}

/// docs/semantics.md: "a renamed directory or a new full session that is hard-linked to the old ones reads nothing that it shares."
#[test]
fn a_rename_or_a_new_link_reads_nothing() {
    let scene = Scene::new();
    for number in 0..20 {
        fs::write(scene.source(&format!("tmp/full-1/blobs/{number}.msg")), vec![number; 5000]).unwrap();
    }
    settle();
    let first = scene.work();
    assert_eq!((first.read_files, first.new_chunks), (20, 20));

    fs::rename(scene.source("tmp"), scene.source("sessions")).unwrap();
    fs::create_dir_all(scene.source("sessions/full-2/blobs")).unwrap();
    for number in 0..20 {
        let name = format!("blobs/{number}.msg");
        fs::hard_link(scene.source("sessions/full-1").join(&name), scene.source("sessions/full-2").join(&name))
            .unwrap();
    }
    settle();
    let second = scene.night(&SnapshotOptions::default()).record;
    assert_eq!((second.work.read_files, second.work.read_bytes, second.work.new_chunks), (0, 0, 0));
    assert_eq!((second.work.attribute_inodes, second.totals.inodes), (20, 20), "each ctime moved");
    // The ctimes are known now.
    let third = scene.work();
    assert_eq!((third.attribute_inodes, third.unchanged_inodes), (0, 20));

    let rescan = SnapshotOptions { rescan: true, ..SnapshotOptions::default() };
    let rescanned = scene.night(&rescan).record;
    assert_eq!((rescanned.work.read_files, rescanned.work.new_chunks), (20, 0));
    assert_eq!(rescanned.digest, scene.night(&SnapshotOptions::default()).record.digest, "nothing changed");
}

#[test]
fn attributes_change_without_reading_the_content() {
    let scene = Scene::new();
    let path = scene.source("tmp/full-1/meta.xml");
    fs::write(&path, vec![b'x'; 3000]).unwrap();
    settle();
    let first = scene.night(&SnapshotOptions::default()).record;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    settle();
    let second = scene.night(&SnapshotOptions::default()).record;
    setxattr(&path, "user.note", b"text", XattrFlags::empty()).unwrap();
    settle();
    let third = scene.night(&SnapshotOptions::default()).record;
    for work in [second.work, third.work] {
        assert_eq!((work.read_files, work.attribute_inodes), (0, 1));
    }
    assert!(first.digest != second.digest && second.digest != third.digest);
    // Same size and a new mtime: the content counts as changed.
    fs::write(&path, vec![b'y'; 3000]).unwrap();
    settle();
    assert_eq!(scene.work().read_files, 1);
}

#[test]
fn an_empty_source_and_a_lost_cache() {
    let scene = Scene::new();
    fs::write(scene.source("tmp/file"), b"some bytes that are more than a literal may be, by a good deal of them")
        .unwrap();
    settle();
    let first = scene.night(&SnapshotOptions::default()).record;
    // docs/format.md: "Without it ... the next night reads and hashes everything and stores nothing twice."
    fs::remove_file(scene.directory.path().join("store/cache/inodes-0")).unwrap();
    let second = scene.night(&SnapshotOptions::default()).record;
    assert_eq!((second.work.read_files, second.work.new_chunks), (1, 0));
    assert_eq!(first.totals, second.totals);

    fs::remove_dir_all(scene.source("tmp")).unwrap();
    let replica = locks::open(&scene.directory.path().join("store"));
    let ended = run(&replica, &scene.source(""), &SnapshotOptions::default(), &Arc::new(Progress::default()));
    assert!(matches!(ended, Err(SnapshotError::EmptySource { .. })));
}

/// Does something to the source at the first segment of each attempt.
struct Meddler<F: FnMut()> {
    meddle: F,
    at_start: bool,
    delivered: Vec<u8>,
}

impl<F: FnMut()> EventSink for Meddler<F> {
    fn event(&mut self, event: ReadEvent<CutChunk>, _bytes: usize) -> Result<(), SinkClosed> {
        match event {
            ReadEvent::Restart => {
                self.at_start = true;
                self.delivered.clear();
            }
            ReadEvent::Chunk(CutChunk { plain, .. }) => {
                if std::mem::take(&mut self.at_start) {
                    (self.meddle)();
                }
                self.delivered.extend_from_slice(&plain);
            }
            ReadEvent::Literal(bytes) => self.delivered.extend_from_slice(&bytes),
            ReadEvent::Zeros(_) | ReadEvent::Done(_) => {}
        }
        Ok(())
    }
}

fn stat_of(path: &Path) -> Stat {
    let parent = File::open(path.parent().unwrap()).unwrap();
    stat_at(std::os::fd::AsFd::as_fd(&parent), path.file_name().unwrap().as_encoded_bytes()).unwrap()
}

fn read(root: &Path, name: &str, stat: Stat, meddle: impl FnMut()) -> (ReadOutcome, Vec<u8>) {
    let mut reader = InodeReader::new(Arc::new(OwnedFd::from(File::open(root).unwrap())));
    let mut sink = Meddler { meddle, at_start: true, delivered: Vec::new() };
    let request = ReadRequest { path: name.as_bytes().to_vec(), stat, want: Want::Content };
    let Ok(outcome) = reader.read(&request, &mut sink) else { panic!("the sink is open") };
    (outcome, sink.delivered)
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_file_that_changes_once_is_read_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    fs::write(&path, noise(3 << 20)).unwrap();
    let mut times = 0;
    let (outcome, delivered) = read(root.path(), "log", stat_of(&path), || {
        times += 1;
        if times == 1 {
            OpenOptions::new().append(true).open(&path).unwrap().write_all(b"one more line").unwrap();
        }
    });
    assert!(matches!(outcome.result, ReadResult::Read));
    assert_eq!(times, 2);
    assert_eq!(delivered, fs::read(&path).unwrap());
    assert_eq!(outcome.stat.size, delivered.len() as u64);
}

#[test]
fn a_file_that_keeps_changing_is_taken_and_marked() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    fs::write(&path, noise(3 << 20)).unwrap();
    let (outcome, delivered) = read(root.path(), "log", stat_of(&path), || {
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"one more line").unwrap();
    });
    assert!(matches!(outcome.result, ReadResult::Changed));
    assert_eq!(outcome.stat.size, delivered.len() as u64, "what is recorded is what was read");

    // Cut short while it is read: what is there no more is not made up.
    fs::write(&path, noise(3 << 20)).unwrap();
    let mut length = 2 << 20;
    let (outcome, delivered) = read(root.path(), "log", stat_of(&path), || {
        length -= 300_000;
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    });
    assert!(matches!(outcome.result, ReadResult::Changed));
    assert_eq!(outcome.stat.size, delivered.len() as u64);
    assert_eq!(delivered, noise(delivered.len()));
}

#[test]
fn an_exchanged_a_vanished_and_a_late_file() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    let path = root.path().join("accounts.xml");
    fs::write(&path, b"old").unwrap();
    let old = stat_of(&path);
    fs::write(
        root.path().join("accounts.xml.new"),
        b"new and longer than a literal: <backupMetadata>......................</backupMetadata>",
    )
    .unwrap();
    fs::rename(root.path().join("accounts.xml.new"), &path).unwrap();
    let (outcome, delivered) = read(root.path(), "accounts.xml", old, || {});
    assert!(matches!(outcome.result, ReadResult::Read));
    assert_eq!(outcome.stat.ino, fs::metadata(&path).unwrap().ino());
    assert_eq!(delivered, fs::read(&path).unwrap());

    let (outcome, _) = read(root.path(), "sub/gone", old, || {});
    assert!(matches!(outcome.result, ReadResult::Vanished));

    // docs/semantics.md: a file directly below the source is waited for.
    fs::remove_file(&path).unwrap();
    let late = path.clone();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        let file = File::create(late).unwrap();
        file.write_all_at(b"late", 0).unwrap();
    });
    let (outcome, _) = read(root.path(), "accounts.xml", old, || {});
    writer.join().unwrap();
    assert!(matches!(outcome.result, ReadResult::Read));
    assert_eq!(outcome.stat.kind, Kind::File);
}

/// docs/semantics.md: "`accounts.xml` is replaced by two renames, between which there is none."
#[test]
fn a_root_file_that_is_being_replaced_is_waited_for() {
    let scene = Scene::new();
    let path = scene.source("accounts.xml");
    fs::write(&path, b"<accounts/>").unwrap();
    settle();
    let first = scene.night(&SnapshotOptions::default()).record;
    fs::rename(&path, scene.directory.path().join("aside")).unwrap();
    let (from, to) = (scene.directory.path().join("aside"), path.clone());
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        fs::rename(from, to).unwrap();
    });
    let second = scene.night(&SnapshotOptions::default()).record;
    writer.join().unwrap();
    assert_eq!(first.totals, second.totals);
    // One that stays away is gone, and its going is no problem of the run.
    fs::remove_file(&path).unwrap();
    let third = scene.night(&SnapshotOptions::default());
    assert_eq!((third.record.totals.files, third.record.problem_count), (0, 0));
}
