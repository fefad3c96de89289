//! What a store says of itself: format and features, `config.json` lost or damaged, and what a later version wrote, which is refused and never touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use zmreplica::catalog::commit;
use zmreplica::catalog::commit_log::{self, last_commit};
use zmreplica::catalog::tables::{Change, Table};
use zmreplica::catalog::{checkpoint, checkpoint_writer};
use zmreplica::ids::CommitNumber;
use zmreplica::replica::{FEATURES, LockedReplica, Replica, ReplicaError, StoreConfig};

use crate::support::locks::locked;
use crate::support::mounted::{Scene, err, out};
use crate::support::odd::files;

/// Number of the row of `meta` with what config.json holds.
const ROW: u64 = 3;

/// A store with one snapshot of one file.
fn scene() -> Scene {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "hello").unwrap();
    scene.snapshot();
    scene
}

fn config_of(scene: &Scene) -> PathBuf {
    scene.store().join("config.json")
}

/// Writes a config.json with a checksum that fits.
fn write_config(scene: &Scene, fields: &BTreeMap<String, Value>) {
    let mut fields = fields.clone();
    fields.remove("check");
    let check = HEXLOWER.encode(&blake3::hash(&serde_json::to_vec(&fields).unwrap()).as_bytes()[..16]);
    fields.insert("check".to_owned(), Value::from(check));
    fs::write(config_of(scene), serde_json::to_vec_pretty(&fields).unwrap()).unwrap();
}

fn fields_of(scene: &Scene) -> BTreeMap<String, Value> {
    serde_json::from_slice(&fs::read(config_of(scene)).unwrap()).unwrap()
}

fn row_of(scene: &Scene) -> Option<Value> {
    let replica = Replica::open(&scene.store()).unwrap();
    let database = replica.catalog().unwrap().database().unwrap();
    database.get(Table::Meta, ROW, |payload| Ok(serde_json::from_slice(payload).unwrap())).unwrap()
}

/// Every file of the store with its bytes; the lock, and the catalogue's own bytes, which change when it is opened for writing, left out.
fn content(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in files(store) {
        match path.file_name().unwrap().to_str().unwrap() {
            "lock" | "catalog.redb.rebuild" => {}
            "catalog.redb" => drop(found.insert(path, Vec::new())),
            _ => drop(found.insert(path.clone(), fs::read(path).unwrap())),
        }
    }
    found
}

/// Runs commands of every sort, which must all refuse and name a reason, and leave the store as it is.
fn assert_all_refuse(scene: &Scene, commands: &[&[&str]], reason: &str) {
    let before = content(&scene.store());
    for arguments in commands {
        let reported = err(&scene.code(1, arguments));
        assert!(reported.contains(reason), "{arguments:?}: {reported}");
        let after = content(&scene.store());
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{arguments:?}");
        assert!(after == before, "{arguments:?} changed a file");
    }
}

const COMMANDS: [&[&str]; 17] = [
    &["snapshots"],
    &["ls", "latest"],
    &["cat", "latest:file"],
    &["find", "f*"],
    &["restore", "latest", "out"],
    &["mount", "latest", "mnt"],
    &["accounts"],
    &["status"],
    &["stats"],
    &["check"],
    &["check", "--read-data"],
    &["snapshot", "source"],
    &["nightly", "source"],
    &["hold"],
    &["prune", "--keep-last", "1"],
    &["repair"],
    &["repair", "--read-data"],
];

#[test]
fn a_new_store_is_of_format_2_and_its_first_commit_says_the_same() {
    let scene = Scene::new();
    let file = fs::read_to_string(config_of(&scene)).unwrap();
    // What a program that knows format 1 only looks at; it refuses every other number.
    assert!(file.contains("\"format\": 2"), "{file}");
    assert_eq!(fields_of(&scene)["features"], json!(FEATURES));
    assert_eq!(row_of(&scene), None);
    fs::write(scene.source().join("file"), "hello").unwrap();
    let reported = scene.command().args(["snapshot", "source"]).output().unwrap();
    assert!(reported.status.success() && !err(&reported).contains("format"), "{}", err(&reported));
    let mut fields = fields_of(&scene);
    fields.remove("check");
    assert_eq!(row_of(&scene), Some(json!(fields)));
    assert_eq!(fs::read_to_string(config_of(&scene)).unwrap(), file);
    // It is in the commit files: a catalogue that was made from them has it.
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    scene.ok(&["repair"]);
    assert_eq!(row_of(&scene), Some(json!(fields)));
}

#[test]
fn every_byte_of_the_settings_may_be_lost() {
    let scene = scene();
    let good = fs::read(config_of(&scene)).unwrap();
    let config = StoreConfig::read(&scene.store()).unwrap();
    let mut broken: Vec<Vec<u8>> =
        vec![Vec::new(), b"{}".to_vec(), vec![0; good.len()], good[..good.len() / 2].to_vec()];
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        broken.push(flipped);
    }
    for bytes in broken {
        fs::write(config_of(&scene), &bytes).unwrap();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert!(matches!(Replica::open(&scene.store()), Err(ReplicaError::Config { .. })), "{shown}");
        assert!(matches!(LockedReplica::open(&scene.store()), Err(ReplicaError::Config { .. })), "{shown}");
        let report: Value = serde_json::from_str(&scene.ok(&["--json", "repair"])).unwrap();
        let done = &report["config"];
        assert_eq!((&done["from"], &done["new_id"]), (&json!("catalog"), &json!(false)), "{shown}");
        assert_eq!(StoreConfig::read(&scene.store()).unwrap(), config, "{shown}");
        // Old catalogues and damaged settings are kept by the second they were found in.
        for entry in fs::read_dir(scene.store()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().contains("damaged") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    scene.ok(&["check", "--read-data"]);
    assert_eq!(scene.ok(&["cat", "latest:file"]), "hello");
}

#[test]
fn lost_settings_are_damage_and_repair_says_what_it_did() {
    let scene = scene();
    let good = fs::read(config_of(&scene)).unwrap();
    for bytes in [None, Some(&b""[..]), Some(&b"{\"format\": 2"[..])] {
        match bytes {
            None => fs::remove_file(config_of(&scene)).unwrap(),
            Some(bytes) => fs::write(config_of(&scene), bytes).unwrap(),
        }
        for arguments in [&["snapshots"][..], &["snapshot", "source"], &["check"], &["restore", "latest", "out"]] {
            let reported = err(&scene.code(7, arguments));
            assert!(
                reported.contains("config.json is damaged") && reported.contains("`zmreplica repair` restores it"),
                "{reported}"
            );
        }
        let reported = err(&scene.code(0, &["repair"]));
        assert!(reported.contains("It was restored from the catalogue"), "{reported}");
        assert_eq!(fs::read(config_of(&scene)).unwrap(), good);
        let kept = bytes.is_some_and(|bytes| !bytes.is_empty());
        assert_eq!(reported.contains("config.json.damaged-"), kept, "{reported}");
        scene.ok(&["check"]);
        scene.snapshot();
    }
    // The catalogue, too: from the commit files; and when these are folded, from the checkpoint.
    for folded in [false, true] {
        if folded {
            locked(&scene.store(), |replica| {
                let database = replica.catalog().unwrap().database().unwrap();
                let written = checkpoint_writer::write(&database, replica.backend().as_ref(), None).unwrap();
                checkpoint_writer::delete_superseded(replica.backend().as_ref(), written.number).unwrap();
            });
            assert_eq!(fs::read_dir(scene.store().join("commits")).unwrap().count(), 0);
        }
        fs::remove_file(config_of(&scene)).unwrap();
        fs::write(scene.store().join("catalog.redb"), "no catalogue").unwrap();
        let report: Value = serde_json::from_str(&scene.ok(&["--json", "repair"])).unwrap();
        assert_eq!(report["config"]["from"], "commit_files", "{report}");
        assert_eq!(fs::read(config_of(&scene)).unwrap(), good);
        scene.ok(&["check"]);
    }
    // No store is made of what is none.
    fs::create_dir(scene.path("none")).unwrap();
    let mut command = scene.command_on(&scene.path("none"));
    let reported = command.arg("repair").output().unwrap();
    assert_eq!(reported.status.code(), Some(1));
    assert!(
        err(&reported).contains("is not a store") && fs::read_dir(scene.path("none")).unwrap().next().is_none(),
        "{}",
        err(&reported)
    );
}

#[test]
fn settings_of_another_store_are_found_and_put_right() {
    let scene = scene();
    let good = fs::read(config_of(&scene)).unwrap();
    let other = scene.path("other");
    assert!(scene.command_on(&other).args(["-q", "init"]).status().unwrap().success());
    fs::copy(other.join("config.json"), config_of(&scene)).unwrap();
    let reported = out(&scene.code(7, &["check"]));
    assert!(reported.contains("config.json") && reported.contains("does not match the catalogue"), "{reported}");
    scene.ok(&["repair"]);
    assert_eq!(fs::read(config_of(&scene)).unwrap(), good);
    scene.ok(&["check"]);
}

#[test]
fn unknown_features_are_refused_and_named_by_every_command() {
    let scene = scene();
    let good = fields_of(&scene);
    let mut fields = good.clone();
    fields.insert("features".to_owned(), json!(["condemned", "keys", "packs-2", "sources", "tiers"]));
    fields.insert("keyring".to_owned(), json!({"slots": 2}));
    write_config(&scene, &fields);
    assert_all_refuse(&scene, &COMMANDS, "does not know: keys, tiers. A newer zmreplica is needed");
    fields.insert("format".to_owned(), json!(3));
    fields.insert("features".to_owned(), json!({"another": "form"}));
    write_config(&scene, &fields);
    assert_all_refuse(&scene, &COMMANDS, "has format 3");

    // The file is lost, and the catalogue, or else a commit file, records them.
    let mut row = good.clone();
    row.remove("check");
    row.insert("features".to_owned(), json!(["condemned", "packs-2", "sources", "tiers"]));
    write_config(&scene, &good);
    let change = Change::Put(Table::Meta, ROW, serde_json::to_vec(&row).unwrap());
    locked(&scene.store(), |replica| replica.database().apply(std::slice::from_ref(&change)).unwrap());
    fs::remove_file(config_of(&scene)).unwrap();
    assert_all_refuse(&scene, &[&["repair"]], "does not know: tiers");
    put_commit(&scene, &commit_with(&scene, &[change]));
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    assert_all_refuse(&scene, &[&["repair"]], "does not know: tiers");
}

/// Puts header and checksum around a body, as commit files and the files of checkpoints have them.
fn frame(magic: &[u8; 8], flags: u8, number: CommitNumber, id: &[u8], body: &[u8]) -> Vec<u8> {
    let mut file = magic.to_vec();
    file.extend_from_slice(&[flags, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&number.0.to_le_bytes());
    file.extend_from_slice(id);
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(&zstd::bulk::compress(body, 3).unwrap());
    let hash = blake3::hash(&file);
    file.extend_from_slice(hash.as_bytes());
    file
}

/// One row of a table that this version does not know.
const UNKNOWN_ROW: &[u8] = &[100 << 1, 7, 2, b'h', b'i'];

/// Number and identifier of the last commit.
fn last(scene: &Scene) -> (CommitNumber, [u8; 16]) {
    let replica = Replica::open(&scene.store()).unwrap();
    last_commit(&replica.catalog().unwrap().database().unwrap()).unwrap()
}

fn commit_with(scene: &Scene, changes: &[Change]) -> (CommitNumber, Vec<u8>) {
    let files = commit_log::commit_files(&zmreplica::store::LocalBackend::open(scene.store()).unwrap()).unwrap();
    let number = *files.last().unwrap();
    let key = commit::key(number);
    let file = fs::read(scene.store().join(&key)).unwrap();
    let before = commit::CommitFile::open(&key, &file).unwrap().id;
    (number.next(), commit::encode(number.next(), &before, changes).unwrap().0)
}

fn put_commit(scene: &Scene, (number, bytes): &(CommitNumber, Vec<u8>)) {
    fs::write(scene.store().join(commit::key(*number)), bytes).unwrap();
}

#[test]
fn a_commit_of_a_later_version_is_never_damage() {
    type Make = fn(CommitNumber, &[u8]) -> Vec<u8>;
    let kinds: [(Make, &str); 3] = [
        (|number, id| frame(b"ZMRCMMT1", 0, number, id, UNKNOWN_ROW), "has rows of table 100"),
        (|number, id| frame(b"ZMRCMMT1", 2, number, id, b""), "has flags"),
        (|number, id| frame(b"ZMRCMMT2", 0, number, id, b""), "has another version"),
    ];
    let writing: [&[&str]; 6] = [
        &["snapshot", "source"],
        &["prune", "--keep-last", "1"],
        &["hold"],
        &["check"],
        &["repair"],
        &["repair", "--read-data"],
    ];
    for (make, reason) in kinds {
        let scene = scene();
        scene.snapshot();
        let (number, id) = last(&scene);
        // One that the catalogue has not seen. What it has seen can be read.
        put_commit(&scene, &(number.next(), make(number.next(), &id)));
        assert_all_refuse(&scene, &writing, reason);
        assert_eq!(scene.ok(&["cat", "latest:file"]), "hello");
        // With damage elsewhere, which alone would be repaired.
        let first = scene.store().join(commit::key(CommitNumber(1)));
        let good = fs::read(&first).unwrap();
        fs::write(&first, "damaged").unwrap();
        assert_all_refuse(&scene, &[&["repair"]], reason);
        fs::write(scene.store().join("catalog.redb"), "no catalogue").unwrap();
        assert_all_refuse(&scene, &[&["repair"]], reason);
        fs::remove_file(config_of(&scene)).unwrap();
        assert_all_refuse(&scene, &[&["repair"]], reason);
        fs::write(&first, good).unwrap();
        assert_all_refuse(&scene, &[&["repair"]], reason);
    }
}

#[test]
fn a_checkpoint_of_a_later_version_is_never_damage() {
    for what in ["flags of the head", "flags of a part", "rows of a part"] {
        let scene = scene();
        let (number, id) = last(&scene);
        let part = match what {
            "flags of a part" => frame(b"ZMRCKPP1", 4, number, &id, b""),
            _ => frame(b"ZMRCKPP1", 0, number, &id, UNKNOWN_ROW),
        };
        let mut body = vec![1, 100];
        body.extend_from_slice(&blake3::hash(&part[..part.len() - 32]).as_bytes()[..16]);
        let head = frame(b"ZMRCKPT1", u8::from(what == "flags of the head") << 1, number, &id, &body);
        let folder = scene.store().join("checkpoints");
        fs::create_dir_all(&folder).unwrap();
        fs::write(scene.store().join(checkpoint::key(number)), head).unwrap();
        fs::write(folder.join(format!("{:016x}.00000000", number.0)), part).unwrap();
        let reason = if what == "rows of a part" { "has rows of table 100" } else { "has flags" };
        assert_all_refuse(&scene, &[&["check"], &["repair"]], reason);
        // Nor does a fold take its place. Parts do not matter to a catalogue that has the commit.
        if what == "flags of the head" {
            assert_all_refuse(&scene, &[&["snapshot", "source"], &["prune", "--keep-last", "1"]], reason);
            let backend = zmreplica::store::LocalBackend::open(scene.store()).unwrap();
            let database = Replica::open(&scene.store()).unwrap().catalog().unwrap().database().unwrap();
            let before = content(&scene.store());
            let refused = checkpoint_writer::write(&database, &backend, None).unwrap_err();
            assert!(refused.to_string().contains(reason) && !refused.is_damage(), "{refused}");
            assert!(content(&scene.store()) == before);
        }
        fs::write(scene.store().join("catalog.redb"), "no catalogue").unwrap();
        assert_all_refuse(&scene, &[&["repair"]], reason);
    }
}

#[test]
fn a_row_in_an_unknown_coding_is_never_damage() {
    let scene = scene();
    let mut changes = Vec::new();
    let database = Replica::open(&scene.store()).unwrap().catalog().unwrap().database().unwrap();
    for (table, coding_at) in [(Table::Groups, 0), (Table::Objects, 1)] {
        let taken = database.scan(table, 0, |number, payload| {
            let good = payload?.to_vec();
            let mut other = good.clone();
            other[coding_at] = 9;
            changes.push((Change::Put(table, number, other), Change::Put(table, number, good)));
            Ok(())
        });
        taken.unwrap();
    }
    drop(database);
    assert!(changes.len() >= 3, "{changes:?}");
    for (other, good) in changes {
        locked(&scene.store(), |replica| replica.database().apply(std::slice::from_ref(&other)).unwrap());
        let reported = err(&scene.code(1, &["check"]));
        assert!(reported.contains("has a coding, which this version does not know"), "{other:?}: {reported}");
        locked(&scene.store(), |replica| replica.database().apply(&[good]).unwrap());
    }
    scene.ok(&["check"]);
}
