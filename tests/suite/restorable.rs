//! What a night reports of the accounts, and the snapshots that stay for their sake.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, shell};
use crate::support::odd::files;
use crate::support::zimbra::{event, events, replace, snapshots, tree};
use serde_json::Value;
use zmreplica_treegen::{Config, Generator, Preset};

/// A night with metrics; returns its event.
fn night(scene: &Scene, code: i32) -> Value {
    event(&scene.code(code, &["--json", "nightly", "source", "--metrics", "night.prom"]), "nightly")
}

fn metrics(scene: &Scene) -> String {
    fs::read_to_string(scene.path("night.prom")).unwrap()
}

fn status(scene: &Scene, code: i32) -> Value {
    event(&scene.code(code, &["--json", "status"]), "status")["sources"][0]["restorable"].clone()
}

/// The meta.xml of one account in the newest full session.
fn a_meta(scene: &Scene, generator: &Generator) -> PathBuf {
    let newest = generator.labels().into_iter().rfind(|label| label.starts_with("full-")).unwrap();
    let session = scene.source().join("sessions").join(newest);
    PathBuf::from(shell(r#"find "$1/accounts" -name meta.xml | sort | head -n 1"#, &[&session]).trim())
}

#[test]
fn a_night_reports_what_can_be_restored_and_keeps_it() {
    let scene = Scene::new();
    let generator = tree(&scene, 15);
    let first = night(&scene, 0);
    let found = &first["restorable"];
    assert_eq!((&found["counts"]["accounts"], &found["counts"]["whole"]), (&3.into(), &3.into()));
    assert_eq!(found["sessions"]["complete"].as_u64(), Some(generator.labels().len() as u64));
    assert_eq!(found["compared_with"], Value::Null);
    assert_eq!(status(&scene, 0), *found, "status reports the same without an analysis");
    let newest_full = generator.labels().into_iter().rfind(|label| label.starts_with("full-")).unwrap();
    assert_eq!(found["newest_full"]["label"].as_str(), Some(newest_full.as_str()));
    let source = "source=\"source\"";
    let text = metrics(&scene);
    for sample in [
        format!("zmreplica_accounts{{{source},state=\"whole\"}} 3"),
        format!("zmreplica_accounts{{{source},state=\"lost\"}} 0"),
        format!("zmreplica_accounts_worse{{{source}}} 0"),
        format!("zmreplica_sessions{{{source},state=\"complete\"}} {}", generator.labels().len()),
    ] {
        assert!(text.contains(&sample), "{sample}: {text}");
    }
    assert!(
        text.contains(&format!("duration_seconds{{{source},phase=\"accounts\"}}")) && text.contains("kind=\"full\""),
        "{text}"
    );

    // One account's newest backup is spoilt in place, which is too little for the guard.
    let meta = a_meta(&scene, &generator);
    let good = fs::read_to_string(&meta).unwrap();
    replace(&meta, "<oops");
    let second = night(&scene, 4);
    assert_eq!((&second["snapshot"]["state"], &second["outcome"]), (&"complete".into(), &"warning".into()));
    let lost = second["restorable"]["changes"]["no_longer_whole"].as_array().unwrap();
    let [lost] = &lost[..] else { panic!("{second}") };
    assert_eq!(
        (&lost["state"], &second["restorable"]["compared_with"]),
        (&"incomplete".into(), &first["snapshot"]["id"])
    );
    let email = lost["email"].as_str().unwrap();
    assert!(metrics(&scene).contains(&format!("zmreplica_accounts_worse{{{source}}} 1")));
    let said = out(&scene.code(4, &["status"]));
    assert!(said.contains("Of 1 account less can be restored") && said.contains("2 up to date, 1 with gaps"), "{said}");
    assert!(out(&scene.code(4, &["accounts", "--account", email])).contains("meta.xml"));

    // A night without news is no alarm, and says how it stands.
    let third = night(&scene, 0);
    assert_eq!(third["restorable"]["counts"]["incomplete"], 1);
    // What becomes worse is an alarm again, also when a snapshot by hand saw it first, and was removed.
    for full in generator.labels().iter().filter(|label| label.starts_with("full-")) {
        let meta = meta.to_str().unwrap().replace(&newest_full, full);
        replace(Path::new(&meta), "<oops");
    }
    scene.code(0, &["snapshot", "source"]);
    scene.ok(&["prune", "--keep-last", "1"]);
    let fourth = night(&scene, 4);
    assert_eq!(fourth["restorable"]["changes"]["worse"][0]["state"], "lost");
    assert_eq!(fourth["restorable"]["compared_with"], third["snapshot"]["id"]);
    night(&scene, 0);
    replace(&meta, &good);
    let plain = scene.code(0, &["nightly", "source"]);
    assert!(out(&plain).contains("accounts   3 accounts: 2 up to date, 1 with gaps; 1 recovered"), "{}", out(&plain));
    assert!(out(&plain).contains("sessions   "), "{}", out(&plain));

    // Pages can be lost: `status` then knows nothing, and whoever needs them makes them again.
    let kept = fs::read_dir(scene.store().join("cache/ledger")).unwrap().count();
    assert_eq!(kept, snapshots(&scene).len() - 1, "nobody has requested the one taken by hand");
    let before = status(&scene, 0);
    fs::remove_dir_all(scene.store().join("cache")).unwrap();
    fs::create_dir(scene.store().join("cache")).unwrap();
    assert_eq!(status(&scene, 0), Value::Null);
    let history = events(&scene.code(0, &["--json", "accounts", "--history"]));
    assert_eq!(history.len(), 3);
    assert_eq!(status(&scene, 0)["counts"], before["counts"]);
    // Those of snapshots that are gone go with them.
    scene.ok(&["prune", "--keep-last", "2"]);
    assert_eq!(fs::read_dir(scene.store().join("cache/ledger")).unwrap().count(), 2);
    // A repair may change what can be read.
    scene.ok(&["repair"]);
    assert_eq!(status(&scene, 0), Value::Null);
}

#[test]
fn a_tree_that_is_not_zimbras_is_not_judged() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    assert_eq!(night(&scene, 0)["restorable"], Value::Null);
    assert_eq!(status(&scene, 0), Value::Null);
    assert!(!metrics(&scene).contains("zmreplica_accounts{"));
    let plain = scene.code(0, &["nightly", "source"]);
    assert!(!out(&plain).contains("accounts  "), "{}", out(&plain));
    scene.ok(&["prune", "--keep-last", "1", "--keep-accounts", "1y"]);
    assert_eq!(snapshots(&scene).len(), 1);
}

#[test]
fn a_damaged_store_ends_no_night() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    fs::remove_dir_all(scene.store().join("cache/ledger")).unwrap();
    fs::remove_file(scene.store().join("cache/zimbra-facts")).unwrap();
    // The XML files cannot be read any more: the snapshot is taken, and the night says what it could not do.
    for path in files(&scene.store().join("packs")) {
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![0u8; usize::try_from(length).unwrap()]).unwrap();
    }
    fs::write(scene.source().join("new"), "text").unwrap();
    let output = scene.code(7, &["--json", "nightly", "source", "--metrics", "night.prom"]);
    let night = event(&output, "nightly");
    assert_eq!(snapshots(&scene).len(), 2);
    assert!(!night["snapshot"].is_null() && night["restorable"]["store_error"]["is_damage"] == true, "{night}");
    assert!(err(&output).contains("zmreplica check"), "{}", err(&output));
    assert!(err(&scene.code(7, &["accounts"])).contains("may be incomplete"));
    assert_eq!(status(&scene, 4), Value::Null, "what could not be read is not kept as if there were nothing");
    let plan = scene.code(0, &["--json", "prune", "--dry-run", "--keep-last", "1", "--keep-accounts", "1y"]);
    assert!(decisions(&plan)[0].1.contains("cannot be determined"), "{}", out(&plan));
}

/// The email of an account, and the session that alone holds it.
fn vanish(scene: &Scene, generator: &Generator) -> String {
    let label = generator.labels().into_iter().rfind(|label| label.starts_with("full-")).unwrap();
    let accounts = scene.source().join("accounts.xml");
    let text = fs::read_to_string(&accounts).unwrap();
    let line = text.lines().find(|line| line.contains(&label)).unwrap();
    let email = line.split("email=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    replace(&accounts, &text.replace(&format!("{line}\n"), ""));
    fs::remove_dir_all(scene.source().join("sessions").join(&label)).unwrap();
    email
}

fn decisions(output: &Output) -> Vec<(bool, String)> {
    let all = events(output).into_iter().filter(|event| event["event"] == "decision");
    all.map(|event| (event["keep"] == true, event["reasons"].to_string())).collect()
}

#[test]
fn the_last_snapshot_of_an_account_that_vanished_stays() {
    let scene = Scene::new();
    // Auto-grouped, so that one session alone holds an account.
    let config = Config {
        accounts: 7,
        messages: 16,
        groups: 7,
        fulls: 1,
        incrementals: 3,
        mean_size_bytes: 2_000,
        ..Config::preset(Preset::Sample)
    };
    let generator = Generator::create(&scene.source(), config, 2).unwrap();
    scene.snapshot();
    let last = scene.snapshot();
    shell(r#"cp -a "$1" "$2""#, &[&scene.source(), &scene.path("before")]);
    let email = vanish(&scene, &generator);
    scene.suspect_snapshot();
    scene.ok(&["accept", "latest"]);
    fs::write(scene.source().join("later"), "text").unwrap();
    let newest = scene.snapshot();

    let plan = |more: &[&str]| {
        decisions(&scene.code(0, &[&["--json", "prune", "--dry-run", "--keep-last", "1"], more].concat()))
    };
    assert_eq!(plan(&[]).iter().map(|(keep, _)| *keep).collect::<Vec<_>>(), [false, false, false, true]);
    let with = plan(&["--keep-accounts", "1y"]);
    assert_eq!(with.iter().map(|(keep, _)| *keep).collect::<Vec<_>>(), [false, true, false, true]);
    assert!(with[1].1.contains(&format!("the last with {email} whole (until 2")), "{with:?}");
    // It adds to rules, and is none by itself.
    let alone = decisions(&scene.code(0, &["--json", "prune", "--dry-run", "--keep-accounts", "1y"]));
    assert!(alone.iter().all(|(keep, _)| *keep), "{alone:?}");
    // What is kept beside the store's catalogue may be lost or spoilt.
    let pages = scene.store().join("cache/ledger");
    for page in fs::read_dir(&pages).unwrap() {
        fs::write(page.unwrap().path(), "spoilt").unwrap();
    }
    assert_eq!(plan(&["--keep-accounts", "1y"]), with);
    fs::remove_dir_all(&pages).unwrap();
    fs::remove_file(scene.store().join("cache/zimbra-vanished")).unwrap();
    assert_eq!(plan(&["--keep-accounts", "1y"]), with);

    // In the night, as configured.
    let settings = format!(
        "store = '{}'\nsource = '{}'\nmax-session-age = 'off'\n[retention]\nkeep-last = 1\nkeep-accounts = '1y'\n",
        scene.store().display(),
        scene.source().display()
    );
    fs::write(scene.path("night.toml"), settings).unwrap();
    for _ in 0..3 {
        scene.code(0, &["--config", "night.toml", "nightly"]);
    }
    let left: Vec<Value> = snapshots(&scene);
    assert_eq!(left.len(), 2);
    assert_eq!(left[0]["id"].as_str(), Some(last.as_str()));
    assert_ne!(left[1]["id"].as_str(), Some(newest.as_str()));
    scene.ok(&["check", "--read-data"]);
    let explained = scene.ok(&["accounts", &last, "--account", &email]);
    assert!(explained.contains("zmrestore -t"), "{explained}");
    fs::create_dir(scene.path("restored")).unwrap();
    scene.ok(&["restore", &last, "restored"]);
    assert_rsync_finds_nothing(&scene.path("before"), &scene.path("restored"));
    let unreadable = scene.code(2, &["prune", "--keep-accounts", "one year"]);
    assert!(err(&unreadable).contains("1y"), "{}", err(&unreadable));
}

#[test]
fn an_old_tree_that_is_taken_away_is_no_alarm_and_is_still_found() {
    let scene = Scene::new();
    tree(&scene, 15);
    let start_ms = jiff::Timestamp::now().as_millisecond() - 60 * 86_400_000;
    let other = Config { accounts: 5, messages: 6, mean_size_bytes: 1_000, start_ms, ..Config::preset(Preset::Sample) };
    // As an upgrade leaves it.
    let moved = scene.source().join("8.8.15-10.0.0");
    Generator::create(&moved, other, 1).unwrap();
    fs::remove_file(scene.source().join("8.8.15-10.0.0.treegen.json")).ok();
    let first = night(&scene, 0);
    // The three of the root's tree, and two that were deleted before the upgrade.
    assert_eq!(first["restorable"]["counts"]["accounts"], 5, "{first}");
    let root = fs::read_to_string(scene.source().join("accounts.xml")).unwrap();
    let history = events(&scene.code(0, &["--json", "accounts", "--history"]));
    let old = history.iter().filter_map(|event| event["email"].as_str()).find(|email| !root.contains(*email)).unwrap();
    fs::remove_dir_all(&moved).unwrap();
    let output = scene.command().args(["--json", "nightly", "source"]).output().unwrap();
    let second = event(&output, "nightly");
    let changes = &second["restorable"]["changes"];
    assert_eq!(changes["no_longer_whole"].as_array().unwrap().len(), 0, "{second}");
    assert_eq!(changes["left"].as_array().unwrap().len() as u64, 2, "{second}");
    let said = err(&scene.code(1, &["accounts", "--account", old]));
    let id = first["snapshot"]["id"].as_str().unwrap();
    let command = format!("zmreplica accounts {} --tree=8.8.15-10.0.0 --account={old}", &id[..8]);
    assert!(said.contains(&command), "{said}");
    let reported = scene.ok(&["accounts", &id[..8], "--tree", "8.8.15-10.0.0", "--account", old]);
    assert!(reported.contains("up to date"), "{reported}");
}
