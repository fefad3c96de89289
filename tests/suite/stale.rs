//! Backups that stopped, and what cannot be restored: told every night until it is right, in the same words everywhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::mounted::{Scene, err, out, shell};
use crate::support::redate::{days, redate};
use crate::support::zimbra::{event, events, reasons, tree};
use serde_json::Value;

/// A night with metrics; returns its event.
fn night(scene: &Scene, code: i32) -> Value {
    event(&scene.code(code, &["--json", "nightly", "source", "--metrics", "night.prom"]), "nightly")
}

fn concerns(event: &Value) -> Vec<&str> {
    event["concerns"].as_array().unwrap().iter().map(|sentence| sentence.as_str().unwrap()).collect()
}

fn findings(scene: &Scene, code: i32, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["--json", "status"].iter().chain(arguments).copied().collect();
    event(&scene.code(code, &all), "status")["findings"].to_string()
}

/// Whether the metrics have a sample of the only source.
fn has_sample(scene: &Scene, name: &str, labels: &str, value: u64) -> bool {
    let line = format!("zmreplica_{name}{{source=\"source\"{labels}}} {value}");
    fs::read_to_string(scene.path("night.prom")).unwrap().lines().any(|sample| sample == line)
}

fn remove(scene: &Scene, label: &str) {
    fs::remove_dir_all(scene.source().join("sessions").join(label)).unwrap();
}

/// docs/semantics.md: "every night until it is right"
#[test]
fn a_zmbackup_that_has_stopped_is_told_every_night_until_it_goes_on() {
    let scene = Scene::new();
    // The newest session is six days old.
    let mut generator = tree(&scene, 20);
    let newest = generator.labels().pop().unwrap();
    for _ in 0..3 {
        let told = night(&scene, 4);
        assert_eq!((&told["outcome"], &told["snapshot"]["state"]), (&"warning".into(), &"complete".into()));
        let [concern] = concerns(&told)[..] else { panic!("{told}") };
        assert!(concern.starts_with("zmbackup seems to have stopped: the newest session that a restore can use, "));
        assert!(concern.contains(&newest) && concern.contains("(max-session-age is 3 days 0 h)"), "{concern}");
        assert!(told["message"].as_str().unwrap().contains("zmbackup seems to have stopped"), "{told}");
        assert!(has_sample(&scene, "backup_stopped", "", 1));
        assert!(findings(&scene, 4, &[]).contains("zmbackup seems to have stopped"));
        scene.ok(&["report", "page.html"]);
        let page = fs::read_to_string(scene.path("page.html")).unwrap();
        assert!(page.contains("zmbackup seems to have stopped") && page.contains("needs attention"));
    }
    let text = scene.code(4, &["status"]);
    assert!(out(&text).starts_with("Look at this:\n") && out(&text).contains(&newest), "{}", out(&text));

    // It may be meant so.
    for limit in ["8d", "off", "0"] {
        scene.code(0, &["nightly", "source", "--max-session-age", limit]);
        assert_eq!(findings(&scene, 0, &["--max-session-age", limit]), "[]");
        fs::write(scene.path("config.toml"), format!("max-session-age = '{limit}'\n")).unwrap();
        for command in [&["nightly", "source"][..], &["status"]] {
            scene.code(0, &[&["--config", "config.toml"], command].concat());
        }
    }
    scene.code(2, &["nightly", "source", "--max-session-age", "never"]);

    for _ in 0..6 {
        generator.night().unwrap();
    }
    assert!(concerns(&night(&scene, 0)).is_empty());
    assert!(has_sample(&scene, "backup_stopped", "", 0));
    assert_eq!(findings(&scene, 0, &[]), "[]");
}

#[test]
fn clocks_that_are_wrong_neither_hide_nor_make_up_that_zmbackup_has_stopped() {
    let scene = Scene::new();
    let generator = tree(&scene, 20);
    let newest = generator.labels().pop().unwrap();
    // A night on which the clock of the mail server was ahead.
    let sessions = scene.source().join("sessions");
    shell(r#"cp -a "$1" "$2""#, &[&sessions.join(&newest), &sessions.join("full-20990101.010000.000")]);
    let told = night(&scene, 4);
    assert!(concerns(&told).iter().any(|concern| concern.contains(&newest)), "{told}");
    // And one on which that of this host is: for the store it is ten years after last night.
    redate(&scene.store(), |_, _| days(-3650));
    let told = night(&scene, 4);
    assert_eq!(told["snapshot"]["suspect"][0]["kind"], "clock", "{told}");
    assert!(concerns(&told).is_empty(), "{told}");
}

#[test]
fn a_first_night_in_which_no_account_can_be_restored_is_not_fine() {
    let scene = Scene::new();
    tree(&scene, 15);
    shell(r#"find "$1" -name meta.xml -delete"#, &[&scene.source()]);
    for _ in 0..2 {
        let told = night(&scene, 4);
        assert_eq!(told["snapshot"]["state"], "complete", "{told}");
        let [concern] = concerns(&told)[..] else { panic!("{told}") };
        assert!(concern.starts_with("No account can be restored: no full session that can be used has any of 3 known"));
        assert!(has_sample(&scene, "backup_stopped", "", 1));
        assert!(has_sample(&scene, "accounts_restorable", ",state=\"lost\"", 3));
        assert!(findings(&scene, 4, &["--max-session-age", "off"]).contains("No account can be restored"));
    }
}

#[test]
fn a_symbolic_link_in_place_of_the_sessions_is_not_fine() {
    let scene = Scene::new();
    tree(&scene, 15);
    let (sessions, elsewhere) = (scene.source().join("sessions"), scene.path("elsewhere"));
    fs::rename(&sessions, &elsewhere).unwrap();
    symlink(&elsewhere, &sessions).unwrap();
    for _ in 0..2 {
        let told = night(&scene, 4);
        assert_eq!(told["snapshot"]["suspect"][0]["kind"], "sessions-gone", "{told}");
        let why = reasons(&told["snapshot"]);
        assert!(why.contains(&format!("sessions is a symbolic link to {}", elsewhere.display())), "{why}");
        assert!(concerns(&told)[0].starts_with("No account can be restored"), "{told}");
    }
    // That it is a link may be accepted; that nothing can be restored remains.
    scene.ok(&["accept", "latest"]);
    let told = night(&scene, 4);
    assert_eq!(told["snapshot"]["state"], "complete", "{told}");
    assert!(err(&scene.code(0, &["accounts"])).contains("sessions is a symbolic link to"));
    fs::remove_file(&sessions).unwrap();
    fs::rename(&elsewhere, &sessions).unwrap();
    night(&scene, 0);

    // Without anything else that is Zimbra's.
    let alone = Scene::new();
    fs::write(alone.source().join("file"), "text").unwrap();
    symlink("/nowhere", alone.source().join("sessions")).unwrap();
    assert!(reasons(&night(&alone, 4)["snapshot"]).contains("sessions is a symbolic link to /nowhere"));
}

#[test]
fn an_accounts_xml_that_was_never_there_is_told_every_night() {
    let scene = Scene::new();
    tree(&scene, 15);
    fs::remove_file(scene.source().join("accounts.xml")).unwrap();
    for _ in 0..2 {
        assert!(reasons(&night(&scene, 4)["snapshot"]).contains("accounts.xml is missing"));
        assert!(findings(&scene, 4, &[]).contains("suspect"));
    }
}

/// The states of the accounts, as each of the commands has them.
fn assert_state_everywhere(scene: &Scene, words: &str, accounts_exit: i32) {
    let table = scene.code(accounts_exit, &["accounts"]);
    assert_eq!(out(&table).matches(&format!(" {words} ")).count(), 3, "{}", out(&table));
    assert!(err(&table).contains(&format!("3 accounts: 3 {words}")), "{}", err(&table));
    let json = events(&scene.code(accounts_exit, &["--json", "accounts"]));
    assert_eq!(json.iter().filter(|event| event["restore_state"] == words).count(), 3);
    assert_eq!(json.last().unwrap()[words.replace(' ', "_")], 3);
    assert!(has_sample(scene, "accounts_restorable", &format!(",state=\"{words}\""), 3));
    scene.ok(&["report", "page.html"]);
    let page = fs::read_to_string(scene.path("page.html")).unwrap();
    assert!(page.matches(&format!(">{words}<")).count() >= 3);
    for text in [out(&table), err(&table), page] {
        assert!(!text.contains("whole"), "{text}");
    }
}

/// docs/semantics.md: "less can be restored"
#[test]
fn an_incremental_that_an_older_full_needs_is_missed() {
    let scene = Scene::new();
    let generator = tree(&scene, 15);
    night(&scene, 0);
    assert_state_everywhere(&scene, "up to date", 0);
    let of_kind =
        |kind: &str| generator.labels().into_iter().filter(|label| label.starts_with(kind)).collect::<Vec<_>>();
    let (fulls, incrementals) = (of_kind("full-"), of_kind("incr-"));

    // The oldest of its kind and old enough, so the guard has nothing to say; the full before needs it.
    remove(&scene, &incrementals[0]);
    let told = night(&scene, 4);
    assert_eq!(told["snapshot"]["state"], "complete", "{told}");
    let changes = &told["restorable"]["changes"];
    let less = changes["more_gaps"].as_array().unwrap();
    assert_eq!(less.len(), 3, "{told}");
    assert_eq!((&less[0]["state"], &less[0]["restore_state"]), (&"whole".into(), &"with gaps".into()));
    assert_eq!(told["restorable"]["counts"]["whole"], 3, "what this key meant it means");
    assert_eq!((&changes["no_longer_whole"], &changes["worse"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert!(findings(&scene, 4, &[]).contains("Of 3 accounts less can be restored"));
    assert_state_everywhere(&scene, "with gaps", 4);
    let summary = events(&scene.code(4, &["--json", "accounts"])).pop().unwrap();
    assert_eq!(summary["less_restorable"].as_array().unwrap().len(), 3, "{summary}");
    assert_eq!(summary["no_longer_whole"], Value::Array(vec![]));

    // No news the night after; another one is news, though they had gaps before.
    let told = night(&scene, 0);
    assert!(told["message"].as_str().unwrap().contains("3 accounts are not up to date"), "{told}");
    remove(&scene, &incrementals[7]);
    assert_eq!(night(&scene, 4)["restorable"]["changes"]["more_gaps"].as_array().unwrap().len(), 3);
    scene.ok(&["accept", "latest"]);

    // The first full goes in its time, and with it the times that it restored.
    remove(&scene, &fulls[0]);
    let told = night(&scene, 0);
    assert_eq!(told["restorable"]["changes"]["more_gaps"], Value::Array(vec![]), "{told}");
}

#[test]
fn redo_logs_that_are_missing_stop_the_newest_time() {
    let scene = Scene::new();
    // The newest full is six days old, and the incrementals behind it are of the days since; all of their logs are gone but the last.
    let mut generator = tree(&scene, 20);
    let mut last = String::new();
    for _ in 0..6 {
        let label = generator.night().unwrap();
        if !last.is_empty() {
            empty(&scene.source().join("sessions").join(&last).join("redologs"));
        }
        last = label;
    }
    let told = night(&scene, 4);
    let [concern] = concerns(&told)[..] else { panic!("{told}") };
    assert!(concern.starts_with("No account can be restored to a time after ") && concern.contains("newer sessions"));
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}
