//! Crashes: `kill -9` of a process that takes a snapshot, a catalogue that is behind its commit files, and a backend that fails at every single operation.
//! What was committed stays, what was not is not there, and a run goes on from where the last one got to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use zmreplica::catalog::chunk::{PackRow, PackedChunk};
use zmreplica::catalog::database::CatalogDatabase;
use zmreplica::catalog::group::{Content, LinkGroup, Segment};
use zmreplica::catalog::reader::CatalogReader;
use zmreplica::catalog::roll_forward::roll_forward;
use zmreplica::catalog::snapshot::Work;
use zmreplica::catalog::tables::Table;
use zmreplica::catalog::writer::CatalogWriter;
use zmreplica::check::{CheckOptions, CheckProgress, check};
use zmreplica::ids::CommitNumber;
use zmreplica::model::{Attributes, ChunkHash, Codec, Kind, Timestamp};
use zmreplica::replica::{Replica, init};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::store::backend::Backend;
use zmreplica::store::{MemoryBackend, PackBuilder, PackFormat, PackId};
use zmreplica::view::Snapshots;

use crate::support::kills::{kill_after, watch};
use crate::support::locks;
use crate::support::odd::files;
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot};
use crate::support::pruning::noise;

/// Names the store to the process that is going to be killed.
const STORE: &str = "ZMREPLICA_TEST_CRASH_STORE";
/// Names the source to it.
const SOURCE: &str = "ZMREPLICA_TEST_CRASH_SOURCE";
/// Runs that are killed.
const KILLS: u32 = 10;
/// Commits of a run that stores something: its tree, then its record.
const COMMITS: u64 = 2;

fn take(store: &Path, source: &Path, progress_interval: Duration) -> Work {
    let replica = locks::open(store);
    let options = SnapshotOptions { progress_interval, ..SnapshotOptions::default() };
    run(&replica, source, &options, &Arc::new(Progress::default())).unwrap().record.work
}

/// What the killed processes do; without its environment this is no test.
#[test]
fn a_run_in_a_process_of_its_own() {
    if let (Some(store), Some(source)) = (std::env::var_os(STORE), std::env::var_os(SOURCE)) {
        take(Path::new(&store), Path::new(&source), Duration::from_millis(100));
    }
}

fn start(store: &Path, source: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::a_run_in_a_process_of_its_own"])
        .env(STORE, store)
        .env(SOURCE, source)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn pack_bytes(store: &Path) -> u64 {
    files(&store.join("packs")).iter().map(|pack| pack.metadata().unwrap().len()).sum()
}

fn snapshots_of(replica: &Replica) -> usize {
    Snapshots::read(&replica.catalog().unwrap()).unwrap().all().len()
}

/// Opens the store, which a reader may do after any crash, and compares all snapshots.
fn assert_intact(store: &Path, expected: &[&Tree], read_data: bool) {
    let replica = Replica::open(store).unwrap();
    let options = CheckOptions { read_data_percent: read_data.then_some(100), ..CheckOptions::default() };
    let report = check(&replica, &options, &CheckProgress::default()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.damages);
    assert!(report.rebuildable);
    let snapshots = Snapshots::read(&replica.catalog().unwrap()).unwrap();
    assert_eq!(snapshots.all().len(), expected.len());
    for (snapshot, expected) in snapshots.all().iter().zip(expected) {
        assert_same(expected, &of_snapshot(&replica, snapshot).unwrap(), "a snapshot from before the crash");
    }
}

#[test]
fn killed_runs_lose_nothing_and_repeat_little() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { place.path().join(name) };
    let (store, clean, small, source) = (at("store"), at("clean"), at("small"), at("source"));
    fs::create_dir(&small).unwrap();
    for number in 0..20 {
        fs::write(small.join(number.to_string()), noise(number, 3000)).unwrap();
    }
    fs::create_dir(&source).unwrap();
    for directory in 0..40u64 {
        let directory_path = source.join(format!("d{directory}"));
        fs::create_dir(&directory_path).unwrap();
        for number in 0..30 {
            let path = directory_path.join(number.to_string());
            let seed = 1000 + directory * 100 + number;
            // Half of the tree is noise, half compresses.
            match number % 2 {
                0 => fs::write(&path, noise(seed, 50_000 + (seed % 977) as usize)).unwrap(),
                _ => fs::write(&path, format!("{seed}: a line like many another\r\n").repeat(1700)).unwrap(),
            }
            fs::hard_link(&path, directory_path.join(format!("{number}-again"))).unwrap();
        }
    }
    let (before, after) = (of_directory(&small), of_directory(&source));

    for store in [&store, &clean] {
        init(store).unwrap();
        take(store, &small, Duration::from_secs(60));
    }
    let mut child = start(&clean, &source);
    let whole = watch(&mut child, &clean, u32::MAX);
    assert!(child.wait().unwrap().success());

    let mut killed = 0;
    for number in 0..KILLS {
        // Early and late in what a run writes: the later ones come further each time, since they go on from progress.
        if !kill_after(start(&store, &source), &store, 1 + number * 7 % KILLS * whole / (3 * KILLS)) {
            break;
        }
        killed += 1;
        let has_finished = || snapshots_of(&Replica::open(&store).unwrap()) == 2;
        if !has_finished() {
            assert_intact(&store, &[&before], false);
            // The next run first catches up with a commit file that the catalogue is behind.
            drop(locks::open(&store));
        }
        if has_finished() {
            // The kill struck behind the commit.
            break;
        }
    }
    assert!(killed >= 3, "only {killed} runs could be killed");
    if snapshots_of(&Replica::open(&store).unwrap()) < 2 {
        assert!(start(&store, &source).wait().unwrap().success());
    }
    assert_intact(&store, &[&before, &after], true);
    let (taken, needed) = (pack_bytes(&store), pack_bytes(&clean));
    assert!(taken * 10 <= needed * 13, "{killed} killed runs have stored {taken} bytes, and a clean one {needed}");

    // And once more from the commit files alone.
    fs::remove_file(store.join("catalog.redb")).unwrap();
    locks::patiently(|| locks::rebuild(&store));
    assert_intact(&store, &[&before, &after], false);
}

#[test]
fn a_catalogue_behind_its_commit_files_catches_up() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir(&source).unwrap();
    let mut trees = Vec::new();
    let mut catalogs = vec![fs::read(store.join("catalog.redb")).unwrap()];
    for number in 0..4u64 {
        fs::write(source.join(format!("file-{number}")), noise(number, 5000)).unwrap();
        fs::hard_link(source.join("file-0"), source.join(format!("name-{number}"))).unwrap();
        take(&store, &source, Duration::from_secs(60));
        trees.push(of_directory(&source));
        catalogs.push(fs::read(store.join("catalog.redb")).unwrap());
    }
    let all: Vec<&Tree> = trees.iter().collect();
    for (number, catalog) in catalogs.iter().enumerate() {
        fs::write(store.join("catalog.redb"), catalog).unwrap();
        {
            // A reader sees the state of the catalogue's last commit.
            let replica = Replica::open(&store).unwrap();
            let report = check(&replica, &CheckOptions::default(), &CheckProgress::default()).unwrap();
            assert_eq!((report.snapshots, report.waiting_commits), (number as u64, COMMITS * (4 - number as u64)));
            // An empty catalogue beside commit files is damage; one that is behind is not.
            assert_eq!(report.is_clean(), number > 0, "{:#?}", report.damages);
        }
        let replica = locks::open(&store);
        assert_eq!(replica.recovered_commits(), COMMITS * (4 - number as u64));
        drop(replica);
        assert_intact(&store, &all, true);
    }
}

/// docs/format.md: a crash between both commits of a run leaves progress.
#[test]
fn a_crash_before_the_record_is_committed_leaves_progress() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), place.path().join("source"));
    init(&store).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file-0"), noise(0, 5000)).unwrap();
    take(&store, &source, Duration::from_secs(60));
    let catalog = fs::read(store.join("catalog.redb")).unwrap();
    let first = of_directory(&source);
    fs::write(source.join("file-1"), noise(1, 5000)).unwrap();
    take(&store, &source, Duration::from_secs(60));
    fs::write(store.join("catalog.redb"), catalog).unwrap();
    fs::remove_file(store.join(zmreplica::catalog::commit::key(CommitNumber(2 * COMMITS)))).unwrap();

    let replica = locks::open(&store);
    assert_eq!(replica.recovered_commits(), 1);
    drop(replica);
    assert_intact(&store, &[&first], true);
    assert_eq!(take(&store, &source, Duration::from_secs(60)).new_chunks, 0);
    let second = of_directory(&source);
    assert_intact(&store, &[&first, &second], true);
}

/// Stores a chunk and commits a link group of it, as a run does: the pack durable first, then the commit.
fn commit_one(database: &Arc<CatalogDatabase>, backend: &Arc<MemoryBackend>, seed: u64) -> Result<(), String> {
    let plain = noise(seed, 100);
    let hash = ChunkHash::of(&plain);
    let mut writer = CatalogWriter::new(Arc::clone(database), Arc::clone(backend) as Arc<dyn Backend>)
        .map_err(|error| error.to_string())?;
    let (number, is_new) = writer.intern_chunk(&hash, 100).map_err(|error| error.to_string())?;
    assert!(is_new, "each round has a chunk of its own");
    let mut builder = PackBuilder::new(1 << 20, PackId::unique(writer.epoch()).unwrap());
    let offset = builder.push(hash, 100, Codec::Plain, &plain).unwrap();
    let pack = builder.finish();
    backend.put(&pack.id.key(), &[&pack.bytes]).map_err(|error| error.to_string())?;
    backend.sync().map_err(|error| error.to_string())?;
    let row = PackRow { id: pack.id, bytes: pack.bytes.len() as u64, chunks: 1, format: PackFormat::V2 };
    let chunk = PackedChunk { number, offset, stored_length: 100, plain_length: 100, prefix: hash.prefix() };
    writer.add_pack(row, &[chunk]).map_err(|error| error.to_string())?;
    writer
        .add_group(LinkGroup {
            attributes: Attributes {
                kind: Kind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: Timestamp { seconds: seed as i64, nanos: 0 },
                size: 100,
                rdev: 0,
                xattrs: Vec::new(),
            },
            content: Content::Segments(vec![Segment::Chunk { number, length: 100 }]),
            has_changed_while_read: false,
        })
        .unwrap();
    writer.commit().map_err(|error| error.to_string())
}

/// Counts the link groups, each of which must have its chunk in a pack that is there.
fn count_groups(database: &CatalogDatabase, backend: &MemoryBackend) -> usize {
    let reader = CatalogReader::new(database).unwrap();
    let groups: Vec<LinkGroup> = reader.group_rows(0).unwrap().into_iter().flatten().collect();
    for group in &groups {
        let Content::Segments(segments) = &group.content else { panic!("a content that was not written") };
        let [Segment::Chunk { number, .. }] = segments.as_slice() else { panic!("segments that were not written") };
        let address = reader.chunk_address(*number).unwrap();
        assert!(backend.size(&address.location.pack.key()).unwrap().is_some(), "a chunk without its pack");
    }
    let mut packs = 0;
    reader
        .database()
        .unwrap()
        .scan(Table::Packs, 0, |_, _| {
            packs += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(packs, groups.len());
    groups.len()
}

#[test]
fn a_backend_that_fails_at_any_operation_loses_no_commit() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("catalog.redb");
    for forgets_all in [true, false] {
        let mut failing = 1;
        loop {
            let _ = fs::remove_file(&path);
            let database = Arc::new(CatalogDatabase::open_or_create(&path).unwrap());
            let backend = Arc::new(MemoryBackend::new());
            commit_one(&database, &backend, 1).unwrap();
            let behind = fs::read(&path).unwrap();
            backend.die_after(failing);
            let second = commit_one(&database, &backend, 2);
            drop(database);
            if forgets_all {
                backend.crash()
            } else {
                backend.crash_keeping_some(failing)
            }
            // Once with the catalogue as it was left, once with one that has not seen the last transaction.
            let left = fs::read(&path).unwrap();
            let mut counts = Vec::new();
            for catalog in [left, behind] {
                fs::write(&path, catalog).unwrap();
                let database = CatalogDatabase::open(&path).unwrap();
                roll_forward(&database, backend.as_ref()).unwrap();
                counts.push(count_groups(&database, &backend));
            }
            assert_eq!(counts[0], counts[1], "operation {failing}: the commit files decide");
            match second {
                Ok(()) => assert_eq!(counts[0], 2, "operation {failing}: a commit that returned is there"),
                Err(_) => assert!((1..=2).contains(&counts[0]), "operation {failing}"),
            }
            // The store goes on.
            let database = Arc::new(CatalogDatabase::open(&path).unwrap());
            roll_forward(&database, backend.as_ref()).unwrap();
            commit_one(&database, &backend, 3).unwrap();
            assert_eq!(count_groups(&database, &backend), counts[0] + 1, "operation {failing}");
            if second.is_ok() {
                break;
            }
            failing += 1;
        }
        assert!(failing > 4, "the commit has operations that can fail");
    }
}
