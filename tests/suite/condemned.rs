//! What nothing needs any more is condemned first and deleted later: copies, slow readers and clocks that are wrong for one night miss nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use zmreplica::catalog::CatalogError;
use zmreplica::catalog::checkpoint_writer;
use zmreplica::catalog::chunk::PackRow;
use zmreplica::catalog::condemned::{self, Condemned};
use zmreplica::catalog::tables::Table;
use zmreplica::prune::{PruneOptions, PruneProgress, PruneReport, carry_out, plan};
use zmreplica::repair::{RepairOptions, repair};
use zmreplica::replica::{LockedReplica, Replica, init};
use zmreplica::retention::{Protections, Rules, Selection};

use crate::support::locks;
use crate::support::mounted::{Scene, err};
use crate::support::odd::files;
use crate::support::oracle::{assert_same, of_directory};
use crate::support::pruning::{assert_clean, copy_directory, last, noise, take};

const DAY: Duration = Duration::from_secs(86_400);

/// A store with two snapshots: the second lacks a file of the first, and has another.
struct Site {
    place: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let site = Site { place: tempfile::tempdir().unwrap() };
        init(&site.store()).unwrap();
        fs::create_dir(site.source()).unwrap();
        fs::write(site.source().join("stays"), noise(1, 300_000)).unwrap();
        fs::write(site.source().join("goes"), noise(2, 400_000)).unwrap();
        let replica = site.open();
        take(&replica, &site.source());
        fs::remove_file(site.source().join("goes")).unwrap();
        fs::write(site.source().join("new"), noise(3, 300_000)).unwrap();
        take(&replica, &site.source());
        site
    }

    fn store(&self) -> PathBuf {
        self.place.path().join("store")
    }

    fn source(&self) -> PathBuf {
        self.place.path().join("source")
    }

    fn copy(&self) -> Site {
        let copy = Site { place: tempfile::tempdir().unwrap() };
        copy_directory(&self.store(), &copy.store());
        copy
    }

    fn open(&self) -> LockedReplica {
        locks::open(&self.store())
    }

    /// Prunes to the newest snapshot with the clock so many days on.
    fn prune(&self, days: i64, grace: Duration) -> PruneReport {
        let now = Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        let (options, progress) = (PruneOptions { max_unused_percent: 0, grace, now }, PruneProgress::default());
        let mut replica = self.open();
        let rules = Rules::from(&last(1));
        let plan =
            plan(&replica, Selection::Rules(&rules), Protections::default(), &TimeZone::UTC, &options, &progress)
                .unwrap();
        carry_out(&mut replica, &plan, &progress).unwrap()
    }

    fn packs(&self) -> BTreeSet<String> {
        let packs = files(&self.store().join("packs")).into_iter();
        packs.map(|pack| pack.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// The packs that wait to be deleted.
    fn condemned(&self) -> BTreeSet<String> {
        let replica = Replica::open(&self.store()).unwrap();
        let packs = condemned::read_packs(&replica.catalog().unwrap()).unwrap();
        packs.into_iter().map(|(id, _)| id.to_string()).collect()
    }
}

#[test]
fn what_is_condemned_goes_when_two_runs_on_different_days_have_seen_it() {
    let site = Site::new();
    let before = site.packs();
    let first = site.prune(0, DAY);
    assert!(first.condemned_bytes > 400_000 && first.deleted_packs == 0, "{first:?}");
    let waiting = site.condemned();
    assert!(!waiting.is_empty() && waiting.is_subset(&before) && waiting.is_subset(&site.packs()));
    assert_clean(&site.open(), "");

    // The same bytes again: stored anew under another id, for what is condemned is never taken up again.
    fs::write(site.source().join("goes"), noise(2, 400_000)).unwrap();
    take(&site.open(), &site.source());
    assert_eq!(site.condemned(), waiting);
    let expected = of_directory(&site.source());

    for day in [0, 1, 1] {
        assert_eq!(site.prune(day, DAY).deleted_packs, 0, "day {day}");
    }
    assert!(waiting.is_subset(&site.packs()));
    let third = site.prune(2, DAY);
    assert_eq!((third.deleted_packs, third.deleted_bytes > 400_000), (waiting.len() as u64, true));
    assert!(waiting.is_disjoint(&site.packs()) && site.condemned().is_disjoint(&waiting));
    assert_clean(&site.open(), "");
    let restored = site.place.path().join("restored");
    let scene = Scene::new();
    let ended = scene.command_on(&site.store()).args(["restore", "latest", &text(&restored)]).output().unwrap();
    assert!(ended.status.success(), "{}", err(&ended));
    assert_same(&of_directory(&restored), &expected, "after the sweep");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_clock_ten_years_ahead_for_one_night_deletes_nothing() {
    let site = Site::new();
    site.prune(0, DAY);
    let waiting = site.condemned();
    assert_eq!(site.prune(3650, DAY).deleted_packs, 0);
    assert_eq!(site.prune(1, DAY).deleted_packs, 0, "the clock went back: the grace begins anew");
    assert_eq!(site.prune(2, DAY).deleted_packs, 0);
    assert!(waiting.is_subset(&site.packs()));
    assert_eq!(site.prune(3, DAY).deleted_packs, waiting.len() as u64);
}

#[test]
fn without_grace_it_goes_at_once() {
    let site = Site::new();
    site.prune(0, DAY);
    let waiting = site.condemned();
    let report = site.prune(0, Duration::ZERO);
    assert_eq!((report.deleted_packs, site.condemned().len()), (waiting.len() as u64, 0));
    assert!(waiting.is_disjoint(&site.packs()));
    assert_clean(&site.open(), "");
}

#[test]
fn a_repair_copies_what_only_a_condemned_pack_still_has() {
    let site = Site::new();
    site.prune(0, DAY);
    let condemned = site.condemned();
    // The packs that were written in its place are lost; what was condemned has the same chunks still.
    let lost: Vec<String> = site.packs().difference(&condemned).cloned().collect();
    for id in &lost {
        fs::remove_file(site.store().join("packs").join(&id[..2]).join(id)).unwrap();
    }
    locks::wait_until_free(&site.store());
    let report = repair(&site.store(), RepairOptions::default(), &PruneProgress::default()).unwrap();
    assert!(report.found_chunks > 0, "{report:?}");
    let replica = site.open();
    for (_, row) in condemned::read_all(&replica.catalog().unwrap()).unwrap() {
        if let Condemned::Pack(id) = row.what {
            assert!(condemned.contains(&id.to_string()), "condemned it stays");
        }
    }
    drop(replica);
    site.prune(0, Duration::ZERO);
    // `stays` was in the condemned pack and is whole; `new` was only in what was lost.
    let restored = site.place.path().join("restored");
    let scene = Scene::new();
    let ended = scene.command_on(&site.store()).args(["restore", "latest", &text(&restored)]).output().unwrap();
    assert!(restored.join("stays").exists(), "{}", err(&ended));
    assert_eq!(fs::read(restored.join("stays")).unwrap(), noise(1, 300_000));
}

/// `rsync` copies the store again and again while snapshots are taken and pruned with the usual grace; each copy is repaired, and is whole.
#[test]
fn a_copy_that_is_taken_beside_prunes_is_whole() {
    let scene = Scene::new();
    fs::write(scene.source().join("first"), noise(999, 100_000)).unwrap();
    scene.snapshot();
    let over = AtomicBool::new(false);
    let copies = std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let mut copies = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let copy = scene.path(&format!("copy-{}", copies.len()));
                let mut rsync = Command::new("rsync");
                // As the documentation says. A folder or a temporary file that goes while it is copied is code 24.
                rsync.args([
                    "-a",
                    "--bwlimit=20000",
                    "--exclude=/catalog.redb*",
                    "--exclude=/cache",
                    "--exclude=/leases",
                ]);
                let code = rsync.arg(format!("{}/", text(&scene.store()))).arg(&copy).status().unwrap().code();
                assert!(matches!(code, Some(0 | 24)), "{code:?}");
                copies.push(copy);
            }
            copies
        });
        for night in 0..14 {
            for file in 0..4 {
                fs::write(scene.source().join(format!("{file}")), noise(night * 10 + file, 700_000)).unwrap();
            }
            scene.snapshot();
            scene.ok(&["prune", "--keep-last", "1", "--max-unused", "0"]);
        }
        over.store(true, Ordering::Relaxed);
        copying.join().unwrap()
    });
    assert!(copies.len() >= 3, "{copies:?}");
    let mut with_snapshots = 0;
    for copy in copies {
        for arguments in [&["repair"][..], &["check", "--read-data"]] {
            let output = scene.command_on(&copy).args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?} of {}: {}", text(&copy), err(&output));
        }
        let listed = scene.command_on(&copy).args(["--json", "snapshots"]).output().unwrap();
        with_snapshots += usize::from(!listed.stdout.is_empty());
    }
    assert!(with_snapshots >= 2);
}

/// Stores of format 1 may have two rows of one pack: its id followed from the content. The row that goes takes nothing from the one that stays.
#[test]
fn a_pack_that_another_row_names_is_not_deleted() {
    for grace in [DAY, Duration::ZERO] {
        let site = Site::new();
        let replica = site.open();
        let mut writer = replica.writer().unwrap();
        let mut packs = Vec::new();
        let catalog = replica.catalog().unwrap();
        let scan = |_: u64, payload: Result<&[u8], CatalogError>| {
            packs.push(PackRow::decode(payload?).unwrap());
            Ok(())
        };
        catalog.database().unwrap().scan(Table::Packs, 0, scan).unwrap();
        // A second row that holds nothing in use, and, as a repair may bring it about, a pack that is condemned and in use.
        for row in packs.clone() {
            writer.add_pack(row, &[]).unwrap();
            writer.condemn(Condemned::Pack(row.id), row.bytes, Timestamp::now()).unwrap();
        }
        writer.commit().unwrap();
        drop(writer);
        drop(replica);
        for day in 0..4 {
            site.prune(day, grace);
        }
        let replica = site.open();
        assert_clean(&replica, "");
        drop(replica);
        let restored = site.place.path().join("restored");
        let scene = Scene::new();
        let ended = scene.command_on(&site.store()).args(["restore", "latest", &text(&restored)]).output().unwrap();
        assert!(ended.status.success(), "{}", err(&ended));
        assert_same(&of_directory(&restored), &of_directory(&site.source()), "");
    }
}

/// Until a prune deletes them, what a checkpoint took the place of saves the store when that is damaged.
#[test]
fn a_damaged_checkpoint_is_made_good_by_the_commit_files_before_it() {
    let site = Site::new();
    let replica = site.open();
    let backend = replica.backend().as_ref();
    let written = checkpoint_writer::write(&replica.database().read().unwrap(), backend, None).unwrap();
    assert!(checkpoint_writer::list_superseded(backend, written.number).unwrap().len() as u64 >= written.number.0);
    drop(replica);
    let expected = of_directory(&site.source());
    for damaged in ["part", "head"] {
        let site = site.copy();
        let part = site.store().join(format!("checkpoints/{:016x}.00000000", written.number.0));
        let file = if damaged == "part" { part } else { part.with_extension("") };
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        fs::remove_file(site.store().join("catalog.redb")).unwrap();
        locks::wait_until_free(&site.store());
        let report = repair(&site.store(), RepairOptions::default(), &PruneProgress::default()).unwrap();
        assert_eq!((report.snapshots, report.lost_chunks), (2, 0), "{damaged}: {report:?}");
        assert_clean(&site.open(), damaged);
        let restored = site.place.path().join(damaged);
        let scene = Scene::new();
        let ended = scene.command_on(&site.store()).args(["restore", "latest", &text(&restored)]).output().unwrap();
        assert!(ended.status.success(), "{}", err(&ended));
        assert_same(&of_directory(&restored), &expected, damaged);
    }
}

/// The commit files that a checkpoint stands for are deleted only while each of its parts can be read.
#[test]
fn what_a_damaged_checkpoint_took_the_place_of_is_not_deleted() {
    for damaged in ["part", "head"] {
        let site = Site::new();
        let replica = site.open();
        let backend = replica.backend().as_ref();
        let written = checkpoint_writer::write(&replica.database().read().unwrap(), backend, None).unwrap();
        let superseded = checkpoint_writer::list_superseded(backend, written.number).unwrap();
        assert!(!superseded.is_empty());
        let part = site.store().join(format!("checkpoints/{:016x}.00000000", written.number.0));
        let file = if damaged == "part" { part } else { part.with_extension("") };
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert!(
            checkpoint_writer::delete_superseded(backend, written.number).is_err_and(|error| error.is_damage()),
            "{damaged}"
        );
        assert_eq!(checkpoint_writer::list_superseded(backend, written.number).unwrap(), superseded, "{damaged}");
        fs::write(&file, whole).unwrap();
        assert!(checkpoint_writer::delete_superseded(backend, written.number).unwrap() > 0);
        assert!(checkpoint_writer::list_superseded(backend, written.number).unwrap().is_empty());
    }
}
