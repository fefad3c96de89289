//! `zmreplica forget`: named snapshots go by the plan of a prune, and what must stay does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use zmreplica::lease::{self, LeaseInfo};
use zmreplica::replica::Replica;
use zmreplica::store::LocalBackend;
use zmreplica::view::Snapshots;

use crate::support::mounted::{Scene, err, out};
use crate::support::oracle::{Tree, assert_same, of_directory, of_snapshot};
use crate::support::pruning::{assert_clean, noise, pack_bytes};
use crate::support::zimbra::{self, event, events, snapshots};

/// Each night has a file of its own and more than the guard lets go.
fn nights(scene: &Scene, count: u64) -> Vec<String> {
    let tree = scene.source().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..150 {
        fs::write(tree.join(number.to_string()), noise(number, 500)).unwrap();
    }
    let night = |night: u64| {
        let _ = fs::remove_file(tree.join(format!("of-{}", night.wrapping_sub(1))));
        fs::write(tree.join(format!("of-{night}")), noise(1000 + night, 60_000)).unwrap();
        scene.snapshot()
    };
    (0..count).map(night).collect()
}

/// Nearly all names go.
fn accident(scene: &Scene) -> String {
    for number in 0..140 {
        fs::remove_file(scene.source().join("tree").join(number.to_string())).unwrap();
    }
    scene.suspect_snapshot()
}

fn ids(scene: &Scene) -> Vec<String> {
    snapshots(scene).iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
}

fn stored(scene: &Scene) -> u64 {
    pack_bytes(&LocalBackend::open(scene.store()).unwrap())
}

/// Fails unless the store is whole and its newest snapshot equals the source.
fn assert_whole(scene: &Scene) {
    let replica = Replica::open(&scene.store()).unwrap();
    assert_clean(&replica, "the store");
    let newest = Snapshots::read(&replica.catalog().unwrap()).unwrap().newest().unwrap().clone();
    let tree: Tree = of_directory(&scene.source());
    assert_same(&tree, &of_snapshot(&replica, &newest).unwrap(), "the newest snapshot");
}

/// Runs `forget` and expects that it removes nothing; returns what it says.
fn refused(scene: &Scene, code: i32, arguments: &[&str]) -> String {
    let before = (ids(scene), stored(scene));
    let said = err(&scene.code(code, &[&["forget"], arguments].concat()));
    assert_eq!(before, (ids(scene), stored(scene)), "{said}");
    said
}

#[test]
fn named_snapshots_go_by_the_plan_of_a_prune() {
    let scene = Scene::new();
    let all = nights(&scene, 5);
    let twice = [all[1].as_str(), &all[1][..12], &all[3], "--grace", "0s", "--max-unused", "0"];
    let before = stored(&scene);
    let dry = scene.code(0, &[&["--json", "forget", "--dry-run"][..], &twice].concat());
    assert_eq!((ids(&scene), stored(&scene)), (all.clone(), before), "a dry run changes nothing");

    let output = scene.code(0, &[&["--json", "forget"][..], &twice].concat());
    let [plan, dry_plan] = [&output, &dry].map(|output| event(output, "plan"));
    assert_eq!((&plan["removed_snapshots"], &plan["kept_snapshots"]), (&2.into(), &3.into()));
    assert_eq!((&plan["policy"], &dry_plan["dry_run"]), (&Value::Null, &true.into()));
    for key in ["removed_chunks", "rewritten_packs", "deleted_packs", "freed_bytes", "removed_chunk_bytes"] {
        assert_eq!(plan[key], dry_plan[key], "{key}");
    }
    let decisions: BTreeMap<String, Value> = events(&output)
        .into_iter()
        .filter(|event| event["event"] == "decision")
        .map(|event| (event["id"].as_str().unwrap().to_owned(), event))
        .collect();
    for (at, id) in all.iter().enumerate() {
        let (keep, reason) = if [1, 3].contains(&at) { (false, "named") } else { (true, "not named") };
        assert_eq!((&decisions[id]["keep"], &decisions[id]["reasons"][0]), (&keep.into(), &reason.into()));
        assert_eq!(decisions[id]["freed_bytes"].as_u64().is_some_and(|bytes| bytes >= 60_000), !keep);
    }
    // The same events with the same keys as those of a prune.
    let prune = scene.code(0, &["--json", "prune", "--keep-last", "3", "--grace", "0s"]);
    let keys = |event: &Value| event.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for name in ["plan", "summary"] {
        assert_eq!(keys(&event(&output, name)), keys(&event(&prune, name)));
    }
    assert_eq!(event(&output, "summary")["removed_snapshots"], 2);
    assert_eq!(ids(&scene), [&all[0], &all[2], &all[4]].map(String::clone));
    assert!(stored(&scene) + 120_000 <= before, "{} of {before}", stored(&scene));
    assert_whole(&scene);

    let text = scene.ok(&["forget", &all[2]]);
    assert_eq!(text.lines().filter(|line| line.contains(" named")).count(), 1, "{text}");
    assert!(text.contains("2 snapshots kept, 1 to be removed.") && text.contains("Removed 1 snapshot"), "{text}");
    assert!(!text.contains("keep "), "that others stay goes without saying: {text}");
    // A wrong name among right ones, and nothing goes.
    assert!(refused(&scene, 1, &[&all[0], "0123456789abcdef"]).contains("No snapshot is named"));
    assert!(refused(&scene, 2, &[&all[0], "yesterday"]).contains("names no snapshot"));
}

#[test]
fn what_is_pinned_in_use_or_the_last_good_one_stays() {
    let scene = Scene::new();
    let all = nights(&scene, 4);
    scene.ok(&["pin", &all[0], "--reason", "before the upgrade"]);
    for force in [&[][..], &["--force"]] {
        let said = refused(&scene, 1, &[&[all[0].as_str(), all[1].as_str()], force].concat());
        assert!(
            said.contains(&format!("Snapshot {} of ", &all[0][..8])) && said.contains("(pinned: before the upgrade)"),
            "{said}"
        );
        assert!(
            !said.contains(&all[1][..8]) && said.contains("Nothing was removed") && said.contains("unpin"),
            "{said}"
        );
        let dry = refused(&scene, 1, &[&[all[0].as_str(), "--dry-run"], force].concat());
        assert!(dry.contains("pinned"), "{dry}");
        let lease =
            lease::take(&scene.store(), &LeaseInfo::of_this_process(Path::new("/mnt/here"), vec![all[1].clone()]));
        let said = refused(&scene, 1, &[&[all[1].as_str()], force].concat());
        assert!(said.contains("in use at /mnt/here (process") && said.contains("umount"), "{said}");
        drop(lease.unwrap());
    }
    let said = refused(&scene, 1, &["latest"]);
    assert!(said.contains("the last good one of its source") && said.contains("--force"), "{said}");

    scene.ok(&["hold", "--reason", "upgrade"]);
    assert!(refused(&scene, 6, &[&all[1]]).contains("upgrade"));
    refused(&scene, 6, &[&all[1], "--force"]);
    scene.ok(&["forget", &all[1], "--ignore-hold"]);
    scene.ok(&["release"]);
    scene.ok(&["unpin", &all[0]]);
    scene.ok(&["forget", &all[0]]);
    assert_eq!(ids(&scene), all[2..]);
    assert_whole(&scene);
}

/// docs/semantics.md: "The next snapshot is compared with the newest good one that is left"
#[test]
fn the_guard_compares_with_what_is_left() {
    let scene = Scene::new();
    let all = nights(&scene, 2);
    let suspect = accident(&scene);
    // All since the last good one, and that one.
    for id in [&all[1], &suspect] {
        assert!(refused(&scene, 1, &[id]).contains("--force"));
    }
    let said = err(&scene.code(0, &["forget", "--force", &all[1]]));
    assert!(said.contains(&format!("the next one is compared with {} of ", &all[0][..8])), "{said}");
    let next = scene.suspect_snapshot();
    assert_eq!(snapshots(&scene).last().unwrap()["compared_with"], all[0].as_str());
    // Without the suspect ones everything is as it was before them.
    let said = err(&scene.code(0, &["forget", "--force", &suspect, &next]));
    assert!(!said.contains("compared"), "{said}");
    assert_eq!((ids(&scene), zimbra::protected(&scene)), (vec![all[0].clone()], vec![]));
    let again = scene.suspect_snapshot();
    scene.ok(&["accept", "latest"]);
    // What was accepted is the last good one, and goes with its mark.
    assert!(refused(&scene, 1, &[&again]).contains("the last good one"));
    scene.ok(&["forget", &all[0]]);
    let said = err(&scene.code(0, &["forget", "--force", &again]));
    assert!(said.contains("No good snapshot of") && said.contains("is left"), "{said}");
    assert_eq!(ids(&scene), Vec::<String>::new());
    assert!(refused(&scene, 1, &["latest", "--force"]).contains("no snapshots yet"));
    scene.snapshot();
    let first = &snapshots(&scene)[0];
    assert_eq!((&first["compared_with"], &first["state"]), (&Value::Null, &"complete".into()));
    assert_whole(&scene);
}

/// docs/semantics.md: "What only the newest snapshot of a source needs goes with it, and the next run reads it again."
#[test]
fn the_newest_goes_with_its_data_and_the_next_run_reads_it_again() {
    let scene = Scene::new();
    let all = nights(&scene, 3);
    let before = stored(&scene);
    scene.ok(&["forget", "--force", "latest", "--grace", "0s", "--max-unused", "0"]);
    assert_eq!(ids(&scene), all[..2]);
    assert!(stored(&scene) + 60_000 <= before, "{} of {before}", stored(&scene));
    assert_clean(&Replica::open(&scene.store()).unwrap(), "without the newest");
    scene.snapshot();
    let work = &snapshots(&scene)[2]["work"];
    assert_eq!((&work["read_files"], &work["read_bytes"]), (&1.into(), &60_000.into()), "{work}");
    assert_whole(&scene);

    // All of one source, beside another.
    let other = scene.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), noise(9, 90_000)).unwrap();
    scene.ok(&["snapshot", "other"]);
    let before = stored(&scene);
    scene.ok(&["forget", "--force", "other/latest", "--grace", "0s", "--max-unused", "0"]);
    assert!(stored(&scene) + 90_000 <= before, "{} of {before}", stored(&scene));
    assert_whole(&scene);
    scene.ok(&["snapshot", "other"]);
    assert_eq!(scene.command().args(["cat", "other/latest:file"]).output().unwrap().stdout, noise(9, 90_000));
    scene.ok(&["check", "--read-data"]);
}

/// docs/operations.md, of what is refused: "if `keep-accounts` is configured, the last snapshot with an account whole"
#[test]
fn accounts_and_reports_survive() {
    let scene = Scene::new();
    let generator = zimbra::tree(&scene, 15);
    let first = zimbra::night(&scene, 0);
    let newest = generator.labels().into_iter().rfind(|label| label.starts_with("full-")).unwrap();
    let accounts = scene.source().join("sessions").join(newest).join("accounts");
    let meta = crate::support::odd::files(&accounts).into_iter().find(|path| path.ends_with("meta.xml")).unwrap();
    zimbra::replace(&meta, "<oops");
    let second = zimbra::night(&scene, 4);
    let id = |night: &Value| night["snapshot"]["id"].as_str().unwrap().to_owned();
    let settings = format!("store = '{}'\n[retention]\nkeep-accounts = '1y'\n", scene.store().display());
    fs::write(scene.path("config.toml"), settings).unwrap();
    let said = err(&zimbra::configured(&scene, 1, &["forget", &id(&first)]));
    assert!(said.contains("the last with") && said.contains("--force"), "{said}");
    assert_eq!(snapshots(&scene).len(), 2);
    zimbra::configured(&scene, 0, &["forget", "--force", &id(&first)]);

    // What was reported of a night stays what the next one is compared with: it tells what is new.
    zimbra::configured(&scene, 0, &["forget", "--force", &id(&second)]);
    let third = zimbra::night(&scene, 0);
    assert_eq!(third["restorable"]["compared_with"], second["snapshot"]["id"]);
    assert!(!out(&scene.code(0, &["accounts"])).is_empty());
}
