//! kill -9 at moments all over a prune: the store is whole, and the next prune finishes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use zmreplica::replica::{Replica, init};
use zmreplica::store::LocalBackend;

use crate::support::effort::kills;
use crate::support::kills::{kill_after, watch};
use crate::support::locks::open;
use crate::support::oracle::of_directory;
use crate::support::pruning::{
    assert_clean, compare, copy_directory, last, make_source, noise, pack_bytes, prune, take,
};

/// Names the store to the process that is going to be killed.
const STORE: &str = "ZMREPLICA_TEST_PRUNE_STORE";
/// Prunes that are killed.
const KILLS: u32 = 12;

/// What the killed processes do; without its environment this is no test.
#[test]
fn a_prune_in_a_process_of_its_own() {
    if let Some(store) = std::env::var_os(STORE) {
        prune(&mut open(Path::new(&store)), &last(1), 0).unwrap();
    }
}

fn start(store: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "prune_kill::a_prune_in_a_process_of_its_own"])
        .env(STORE, store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_prunes_leave_a_whole_store() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { place.path().join(name) };
    let (base, source) = (at("base"), at("source"));
    init(&base).unwrap();
    let tree = make_source(&source);
    let mut copies = Vec::new();
    for night in 0..6u64 {
        for number in 0..200 {
            fs::write(tree.join(format!("{night}-{number}")), noise(night * 1000 + number, 30_000)).unwrap();
        }
        for number in (0..200).filter(|number| number % 2 == 0 && night > 0) {
            fs::remove_file(tree.join(format!("{}-{number}", night - 1))).unwrap();
        }
        let replica = open(&base);
        copies.push((take(&replica, &source), of_directory(&source)));
    }
    let copy = |name: &str| {
        let store = at(name);
        copy_directory(&base, &store);
        store
    };
    let clean = copy("clean");
    let mut child = start(&clean);
    let whole = watch(&mut child, &clean, u32::MAX);
    assert!(child.wait().unwrap().success());
    let clean_bytes = pack_bytes(&LocalBackend::open(&clean).unwrap());

    let mut killed = 0;
    let kills = kills(KILLS);
    for number in 0..kills {
        let store = copy(&format!("store-{number}"));
        killed += u32::from(kill_after(start(&store), &store, 1 + number * whole / kills));
        {
            // A reader may come first, and finds all that is needed.
            let replica = Replica::open(&store).unwrap();
            assert_clean(&replica, "after a kill");
            compare(&replica, &copies, "after a kill");
        }
        assert!(start(&store).wait().unwrap().success(), "the next prune finishes");
        let replica = Replica::open(&store).unwrap();
        let report = assert_clean(&replica, "after the next prune");
        assert_eq!((report.snapshots, report.orphan_packs), (1, 0));
        compare(&replica, &copies, "after the next prune");
        let bytes = pack_bytes(replica.backend().as_ref());
        assert!(bytes * 100 <= clean_bytes * 102, "{bytes} bytes, and a clean prune leaves {clean_bytes}");
        drop(replica);
        fs::remove_dir_all(&store).unwrap();
    }
    assert!(killed >= 3, "only {killed} prunes could be killed");
}
