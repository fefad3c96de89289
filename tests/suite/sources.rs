//! Sources from outside: they have names and may move, and a command that does not say which one is meant answers for none.

use std::fs;

use serde_json::Value;
use zmreplica::catalog::tables::{Change, Table};

use crate::support::locks::locked;
use crate::support::mounted::{Scene, err, out};
use crate::support::zimbra::{configured, event, events};

/// Two sources in one store, `first` and `second`, of which the first was taken last.
fn two_sources() -> Scene {
    let scene = Scene::new();
    for (name, content) in [("first", "1"), ("second", "2")] {
        fs::create_dir(scene.path(name)).unwrap();
        fs::write(scene.path(name).join("file"), content).unwrap();
        fs::write(scene.path(name).join(name), content).unwrap();
    }
    for name in ["first", "second", "first"] {
        scene.ok(&["snapshot", name]);
    }
    scene
}

fn sources(scene: &Scene) -> Vec<Value> {
    events(&scene.code(0, &["--json", "source", "list"]))
}

/// Name, number of snapshots and state of each source.
fn listed(scene: &Scene) -> Vec<(String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |one: &Value| (text(&one["name"]), one["snapshots"].as_u64().unwrap(), text(&one["state"]));
    sources(scene).iter().map(row).collect()
}

fn row(name: &str, snapshots: u64, state: &str) -> (String, u64, String) {
    (name.to_owned(), snapshots, state.to_owned())
}

#[test]
fn latest_and_times_are_refused_where_they_could_be_of_several_sources() {
    let scene = two_sources();
    for arguments in [
        &["ls", "latest"][..],
        &["cat", "latest:file"],
        &["ls", "2099-01-01"],
        &["diff", "latest", "first/latest"],
        &["accept", "latest"],
        &["pin", "latest"],
        &["restore", "latest", "new"],
        &["mount", "latest", "mnt"],
        &["accounts"],
        &["sessions"],
        &["drill"],
    ] {
        let output = scene.code(2, arguments);
        let word = if arguments.contains(&"2099-01-01") { "2099-01-01" } else { "latest" };
        assert!(err(&output).contains(&format!("first/{word} or second/{word}")), "{arguments:?}: {}", err(&output));
    }
    assert!(!scene.path("new").exists());
    for (arguments, content) in [
        (&["cat", "first/latest:file"][..], "1"),
        (&["cat", "second/latest:file"], "2"),
        (&["cat", "second/2099-01-01:file"], "2"),
        (&["--source", "second", "cat", "latest:file"], "2"),
        (&["cat", "--source", "first", "2099-01-01:file"], "1"),
    ] {
        assert_eq!(scene.ok(arguments), content, "{arguments:?}");
    }
    let mut command = scene.command();
    let chosen = command.env("ZMREPLICA_SOURCE", "second").args(["cat", "latest:file"]).output().unwrap();
    assert_eq!(out(&chosen), "2");
    let unknown = scene.code(1, &["--source", "third", "ls", "latest"]);
    assert!(err(&unknown).contains("No source is named third; there are first, second"), "{}", err(&unknown));
    // An identifier names one snapshot of the store, but not one of another source than the one that is meant.
    let all = events(&scene.code(0, &["--json", "snapshots"]));
    let id = all[1]["id"].as_str().unwrap();
    assert_eq!(scene.ok(&["cat", &format!("{id}:file")]), "2");
    scene.code(2, &["--source", "first", "cat", &format!("{id}:file")]);
    let own = events(&scene.code(0, &["--json", "snapshots", "--source", "first"]));
    assert_eq!(own.len(), 2);
    assert!(own.iter().all(|one| one["source_name"] == "first"));
    assert_eq!(events(&scene.code(0, &["--json", "snapshots", "--last", "1"])).len(), 2, "the newest of each");
}

#[test]
fn a_source_goes_on_under_its_name_wherever_it_is() {
    let scene = two_sources();
    scene.ok(&["source", "rename", "first", "mail1"]);
    assert_eq!(listed(&scene), [row("mail1", 2, "active"), row("second", 1, "active")]);
    let taken = scene.code(1, &["source", "rename", "second", "mail1"]);
    assert!(err(&taken).contains("Another source has the name mail1"), "{}", err(&taken));
    scene.code(2, &["source", "rename", "second", "latest"]);
    // Moved: nothing is read again, and the guard compares with what was there before.
    fs::rename(scene.path("first"), scene.path("moved")).unwrap();
    scene.ok(&["source", "relocate", "mail1", "moved"]);
    let night = event(&scene.code(0, &["--json", "--source", "mail1", "snapshot"]), "summary");
    assert_eq!((night["work"]["read_files"].as_u64(), night["source_name"].as_str()), (Some(0), Some("mail1")));
    assert!(night["compared_with"].is_string());
    // The location that it had is still understood, and so is another spelling under the same name.
    std::os::unix::fs::symlink("moved", scene.path("first")).unwrap();
    scene.ok(&["snapshot", "first"]);
    let said = scene.code(0, &["--source", "mail1", "snapshot", "moved/../moved"]);
    assert!(err(&said).contains("The source mail1 is at"), "{}", err(&said));
    assert_eq!(listed(&scene), [row("mail1", 5, "active"), row("second", 1, "active")]);
    let other = scene.code(1, &["--source", "mail1", "snapshot", "second"]);
    assert!(err(&other).contains("is the location of the source second, not of mail1"), "{}", err(&other));
    let shown = scene.ok(&["source", "show", "mail1"]);
    assert!(shown.contains("Formerly") && shown.contains("Snapshots  5"), "{shown}");
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_merged_source_brings_its_history_with_it() {
    let scene = two_sources();
    scene.ok(&["source", "merge", "second", "first"]);
    assert_eq!(listed(&scene), [row("first", 3, "active")]);
    assert_eq!(scene.ok(&["cat", "latest:file"]), "1", "there is one source now");
    // Its location leads to the other: the guard compares with that one's last night.
    let night = event(&scene.code(0, &["--json", "snapshot", "second", "--rescan"]), "summary");
    assert_eq!(night["source_name"], "first");
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_retired_source_is_not_missed() {
    let scene = two_sources();
    let stale = |arguments: &[&str]| scene.command().args(arguments).output().unwrap().status.code();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(stale(&["status", "--max-age", "0s"]), Some(4));
    scene.ok(&["source", "retire", "first"]);
    scene.ok(&["source", "retire", "second"]);
    assert_eq!(listed(&scene), [row("first", 2, "retired"), row("second", 1, "retired")]);
    assert_eq!(stale(&["status", "--max-age", "0s"]), Some(0));
    scene.ok(&["source", "retire", "--undo", "second"]);
    assert_eq!(stale(&["status", "--max-age", "0s"]), Some(4));
    scene.ok(&["snapshot", "first"]);
    assert_eq!(listed(&scene)[0], row("first", 3, "active"), "a new snapshot ends it");
}

#[test]
fn a_removed_source_goes_with_the_next_prune_but_for_what_is_pinned() {
    let scene = two_sources();
    let plan = scene.code(0, &["--json", "source", "remove", "first", "--dry-run"]);
    let going = events(&plan).iter().filter(|one| one["keep"] == false).count();
    assert_eq!(going, 2, "{}", out(&plan));
    assert_eq!(listed(&scene)[0], row("first", 2, "active"), "a dry run changes nothing");
    scene.ok(&["source", "remove", "first"]);
    let refused = scene.code(1, &["snapshot", "first"]);
    assert!(err(&refused).contains("The source first is removed"), "{}", err(&refused));
    scene.ok(&["source", "remove", "--undo", "first"]);
    scene.ok(&["snapshot", "first"]);
    scene.ok(&["pin", "first/latest"]);
    scene.ok(&["source", "remove", "first"]);
    // No rule is needed for it, and the other source keeps everything.
    scene.ok(&["prune"]);
    assert_eq!(listed(&scene), [row("first", 1, "removed"), row("second", 1, "active")]);
    scene.ok(&["unpin", "first/latest"]);
    scene.ok(&["prune", "--grace", "0s"]);
    assert_eq!(listed(&scene), [row("second", 1, "active")]);
    let stats = event(&scene.code(0, &["--json", "check", "--read-data"]), "summary");
    assert_eq!(stats["snapshots"], 1);
    // Its name is free, and what comes under it is another source.
    scene.ok(&["snapshot", "first"]);
    assert_eq!(listed(&scene), [row("second", 1, "active"), row("first", 1, "active")]);
}

#[test]
fn what_is_said_of_sources_survives_a_rebuilt_catalogue() {
    let scene = two_sources();
    scene.ok(&["source", "rename", "first", "mail1"]);
    scene.ok(&["source", "relocate", "mail1", "/elsewhere"]);
    scene.ok(&["source", "retire", "second"]);
    let before = sources(&scene);
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    scene.code(0, &["repair"]);
    assert_eq!(sources(&scene), before);
}

/// A configuration with a table for each of both sources.
fn configure(scene: &Scene, more: &str) {
    let table = |name: &str| format!("[[source]]\nname = '{name}'\nlocation = '{}'\n", scene.path(name).display());
    let settings = format!(
        "store = '{}'\nmetrics = '{}'\n{more}\n{}{}[source.retention]\nkeep-last = 1\n",
        scene.store().display(),
        scene.path("metrics").display(),
        table("first"),
        table("second"),
    );
    fs::write(scene.path("config.toml"), settings).unwrap();
}

#[test]
fn nightly_takes_every_configured_source_and_ends_with_the_worst_code() {
    let scene = two_sources();
    configure(&scene, "");
    let night = |code: i32| events(&configured(&scene, code, &["--json", "nightly"]));
    let codes = |all: &[Value]| -> Vec<(String, u64)> {
        let summary = all.iter().find(|one| one["event"] == "summary" && one["sources"].is_array()).unwrap();
        let sources = summary["sources"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        sources.iter().map(|one| (text(&one["source_name"]), one["exit_code"].as_u64().unwrap())).collect()
    };
    let pair = |first: u64, second: u64| vec![("first".to_owned(), first), ("second".to_owned(), second)];
    assert_eq!(codes(&night(0)), pair(0, 0));
    // The rules of the second are its own; the first has none, and everything stays.
    assert_eq!(listed(&scene), [row("first", 3, "active"), row("second", 1, "active")]);
    let sample = |name: &str, source: &str| {
        let metrics = fs::read_to_string(scene.path("metrics")).unwrap();
        let key = format!("zmreplica_{name}{{source=\"{source}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&key)).unwrap().to_owned()
    };
    // The first fails, and the second's good night does not erase that; nor the other way round.
    for (fails, works, expected) in [("first", "second", pair(1, 0)), ("second", "first", pair(0, 1))] {
        fs::rename(scene.path(fails), scene.path("away")).unwrap();
        assert_eq!(codes(&night(1)), expected);
        assert_eq!(
            (sample("last_run_exit_code", fails), sample("last_run_exit_code", works)),
            ("1".to_owned(), "0".to_owned())
        );
        configured(&scene, 0, &["nightly", "--source", works]);
        let status = configured(&scene, 4, &["status"]);
        assert!(out(&status).contains(&format!("The last nightly run of {fails} failed")), "{}", out(&status));
        assert!(!out(&status).contains(&format!("run of {works}")), "{}", out(&status));
        fs::rename(scene.path("away"), scene.path(fails)).unwrap();
        configured(&scene, 0, &["--source", fails, "nightly"]);
        configured(&scene, 0, &["status"]);
    }
    // One snapshot is of one source.
    let several = configured(&scene, 2, &["snapshot"]);
    assert!(err(&several).contains("choose one with --source (first, second)"), "{}", err(&several));
    configured(&scene, 0, &["snapshot", "--source", "second"]);
    let kept = listed(&scene);
    configured(&scene, 0, &["prune"]);
    assert_eq!(listed(&scene), [kept[0].clone(), row("second", 1, "active")]);
}

#[test]
fn a_location_in_the_configuration_may_change_under_the_same_name() {
    let scene = two_sources();
    fs::rename(scene.path("first"), scene.path("moved")).unwrap();
    configure(&scene, "");
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let before = format!("location = '{}'", scene.path("first").display());
    let after = format!("location = '{}'", scene.path("moved").display());
    fs::write(scene.path("config.toml"), settings.replace(&before, &after)).unwrap();
    configured(&scene, 0, &["nightly"]);
    assert_eq!(listed(&scene)[0], row("first", 3, "active"));
}

#[test]
fn a_restore_onto_another_source_is_refused_unless_it_is_meant() {
    let scene = two_sources();
    std::os::unix::fs::symlink("second", scene.path("link")).unwrap();
    fs::create_dir(scene.path("second/deep")).unwrap();
    let tree = |name: &str| {
        let mut names: Vec<_> =
            fs::read_dir(scene.path(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = tree("second");
    let here = format!("127.0.0.1:{}", scene.path("second").display());
    for place in ["second", "link", "second/deep", "second/new", ".", &here] {
        let refused = scene.code(2, &["restore", "first/latest", place, "--dry-run"]);
        let said = err(&refused);
        assert!(said.contains("of the source first") && said.contains("where the source second is"), "{place}: {said}");
    }
    scene.code(2, &["restore", "first/latest", "second", "--delete"]);
    assert_eq!(tree("second"), before);
    // Its own place, and what is no source's, are free.
    fs::remove_file(scene.path("first/file")).unwrap();
    scene.ok(&["restore", "first/latest", "first"]);
    assert_eq!(fs::read(scene.path("first/file")).unwrap(), b"1");
    scene.ok(&["restore", "first/latest", "elsewhere"]);
    scene.ok(&["restore", "first/latest", "second", "--other-source", "--overwrite", "always"]);
    assert_eq!(fs::read(scene.path("second/file")).unwrap(), b"1");
}

#[test]
fn a_mount_of_all_snapshots_of_one_source_has_its_times_and_its_latest() {
    let scene = two_sources();
    for (name, content, times) in [("first", "1", 2), ("second", "2", 1)] {
        scene.mount_with(&["--source", name, "mnt"]);
        assert_eq!(fs::read(scene.mnt().join("latest/file")).unwrap(), content.as_bytes());
        assert_eq!(fs::read_dir(scene.mnt()).unwrap().count(), times + 1, "one for each, and latest");
        scene.umount();
    }
}

/// Puts a payload into a row of `meta`.
fn put_meta(scene: &Scene, row: u64, payload: &[u8]) {
    let change = Change::Put(Table::Meta, row, payload.to_vec());
    locked(&scene.store(), |replica| replica.database().apply(std::slice::from_ref(&change)).unwrap());
}

#[test]
fn a_damaged_list_of_sources_keeps_nobody_from_reading() {
    let scene = two_sources();
    let all = events(&scene.code(0, &["--json", "snapshots"]));
    put_meta(&scene, 4, b"[{}]");
    let id = all[1]["id"].as_str().unwrap();
    let read = scene.code(0, &["cat", &format!("{id}:file")]);
    assert_eq!(out(&read), "2");
    assert!(err(&read).contains("The names of sources are not known"), "{}", err(&read));
    // What removes or adds something must know them.
    scene.code(7, &["prune", "--keep-last", "1"]);
    scene.code(7, &["snapshot", "first"]);
    scene.code(7, &["check"]);
    scene.code(0, &["repair"]);
    assert_eq!(listed(&scene), [row("first", 2, "active"), row("second", 1, "active")]);
}

#[test]
fn a_prune_is_of_the_source_that_is_meant_and_finds_a_table_by_its_location() {
    let scene = two_sources();
    scene.ok(&["snapshot", "second"]);
    scene.ok(&["prune", "--source", "second", "--keep-last", "1"]);
    assert_eq!(listed(&scene), [row("first", 2, "active"), row("second", 1, "active")]);
    // Renamed in the store and not in the file: the general rule would let one go that the table keeps.
    configure(&scene, "[retention]\nkeep-last = 1");
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let settings = settings.replacen(
        "[[source]]\nname = 'second'",
        "[source.retention]\nkeep-last = 9\n[[source]]\nname = 'second'",
        1,
    );
    fs::write(scene.path("config.toml"), settings).unwrap();
    scene.ok(&["source", "rename", "first", "mail1"]);
    configured(&scene, 0, &["prune"]);
    assert_eq!(listed(&scene)[0], row("mail1", 2, "active"));
}

#[test]
fn a_failed_night_is_reported_until_the_source_has_a_good_one_or_is_no_more() {
    let scene = two_sources();
    let away = |name: &str| fs::rename(scene.path(name), scene.path("away")).unwrap();
    let back = |name: &str| fs::rename(scene.path("away"), scene.path(name)).unwrap();
    let failed = |name: &str| {
        let said = out(&scene.code(4, &["status"]));
        assert!(said.contains(&format!("The last nightly run of {name} failed")), "{said}");
    };
    // However its location is spelled.
    let spelled = format!("{}/", scene.path("first").display());
    away("first");
    scene.code(1, &["nightly", &spelled]);
    failed("first");
    // A hold or another source's night makes it no better.
    scene.ok(&["hold"]);
    scene.code(6, &["nightly", &spelled]);
    scene.ok(&["release"]);
    scene.code(0, &["nightly", "second"]);
    failed("first");
    back("first");
    scene.code(0, &["nightly", &spelled]);
    scene.code(0, &["status"]);
    // A server that is no more has no nights to be missed.
    away("second");
    scene.code(1, &["nightly", "second"]);
    failed("second");
    scene.ok(&["source", "retire", "second"]);
    scene.code(0, &["status"]);
    scene.ok(&["source", "merge", "second", "first"]);
    scene.code(0, &["nightly", "first", "--metrics", "metrics"]);
    let metrics = fs::read_to_string(scene.path("metrics")).unwrap();
    assert_eq!(metrics.matches("zmreplica_last_run_exit_code{").count(), 1, "{metrics}");
}

#[test]
fn a_source_without_snapshots_is_reported() {
    let scene = two_sources();
    scene.ok(&["forget", "--force", "second/latest"]);
    let said = out(&scene.code(4, &["status", "--source", "second"]));
    assert!(said.contains("The source second has no snapshot"), "{said}");
    scene.ok(&["status", "--source", "first"]);
    scene.ok(&["source", "retire", "second"]);
    scene.ok(&["status"]);
    let gone = scene.code(0, &["source", "remove", "second"]);
    assert!(err(&gone).contains("it had no snapshots"), "{}", err(&gone));
    assert_eq!(listed(&scene), [row("first", 2, "active")]);
}
