//! The unattended night: holds and pins, waiting for zmbackup, the log, hooks, metrics, `status`, and the check of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::locks;
use crate::support::mounted::{self, Scene, err, eventually, out};
use crate::support::odd;
use crate::support::programs::write_program;
use crate::support::zimbra::configured;
use crate::support::zimbra::{self, event, night, protected, snapshots};
use serde_json::Value;

/// A plain source and a configuration that lets each outcome write what it receives to a file of its name.
fn scene() -> Scene {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    let received = scene.path("received");
    fs::create_dir(&received).unwrap();
    let hook = |name: &str| format!("{name} = 'cat > {0}/$ZMREPLICA_OUTCOME; echo said'\n", received.display());
    let settings = format!(
        "store = '{}'\nsource = '{}'\nmetrics = '{}'\nlog = '{}'\n[hooks]\n{}{}{}",
        scene.store().display(),
        scene.source().display(),
        scene.path("zmreplica.prom").display(),
        scene.path("night.log").display(),
        hook("on-success"),
        hook("on-warning"),
        hook("on-failure"),
    );
    fs::write(scene.path("config.toml"), settings).unwrap();
    scene
}

/// What the hooks received since the last call, by outcome.
fn hook_events(scene: &Scene) -> BTreeMap<String, Value> {
    let mut received = BTreeMap::new();
    for entry in fs::read_dir(scene.path("received")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        received.insert(name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
        fs::remove_file(path).unwrap();
    }
    received
}

/// The key of a sample of the source.
fn of_source(name: &str) -> String {
    format!("zmreplica_{name}{{source=\"source\"}}")
}

/// The samples of the metrics; fails unless each is announced, and all are numbers.
fn metrics(scene: &Scene) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(scene.path("zmreplica.prom")).unwrap();
    assert!(text.ends_with('\n'));
    let mut announced = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind, "gauge");
            assert!(announced.insert(name.to_owned()), "{name} is announced twice");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(announced.contains(sample.split('{').next().unwrap()), "{sample}");
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} twice");
        }
    }
    samples
}

fn files(directory: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned());
    names.collect()
}

#[test]
fn a_good_night_is_reported_everywhere() {
    let scene = scene();
    let output = configured(&scene, 0, &["nightly"]);
    assert!(out(&output).contains("complete") && err(&output).contains("said"), "{}{}", out(&output), err(&output));
    assert!(!out(&output).contains("said"), "what a hook writes is talk");
    let snapshot = &snapshots(&scene)[0];
    let reported = hook_events(&scene);
    assert_eq!(reported.keys().collect::<Vec<_>>(), ["success"]);
    let event = &reported["success"];
    assert_eq!((&event["event"], &event["outcome"]), (&"nightly".into(), &"success".into()));
    assert_eq!((&event["exit_code"], &event["snapshot"]["id"]), (&0.into(), &snapshot["id"]));
    assert_eq!((&event["source"], &event["suspects"]), (&scene.source().to_str().unwrap().into(), &0.into()));

    let samples = metrics(&scene);
    let source = |name: &str| samples[&of_source(name)];
    let finished: jiff::Timestamp = snapshot["finished"].as_str().unwrap().parse().unwrap();
    assert!((source("last_success_timestamp_seconds") - finished.as_millisecond() as f64 / 1000.0).abs() < 0.002);
    assert_eq!((source("snapshot_names"), source("snapshot_problems"), source("snapshot_suspect")), (1.0, 0.0, 0.0));
    assert_eq!((source("last_run_exit_code"), samples["zmreplica_held"]), (0.0, 0.0));
    let packs: u64 = odd::files(&scene.store().join("packs")).iter().map(|pack| pack.metadata().unwrap().len()).sum();
    assert_eq!(samples["zmreplica_store_bytes{part=\"packs\"}"], packs as f64);

    // Cron mails whatever is said.
    let plain = scene.code(0, &["-q", "nightly", "source", "--settle", "1h", "--settle-quiet", "0s"]);
    assert_eq!((out(&plain), err(&plain)), (String::new(), String::new()));

    let log = fs::read_to_string(scene.path("night.log")).unwrap();
    assert!(log.contains("Nightly run of") && log.contains("All went well"), "{log}");
    assert!(!files(&scene.path("")).iter().any(|name| name.contains(".tmp-")), "nothing half written is left");
}

#[test]
fn a_night_that_fails_is_reported_too_and_keeps_what_was() {
    let scene = scene();
    configured(&scene, 0, &["nightly"]);
    let good = metrics(&scene);
    hook_events(&scene);
    fs::remove_file(scene.source().join("file")).unwrap();
    configured(&scene, 1, &["nightly"]);
    let reported = hook_events(&scene);
    assert_eq!(reported.keys().collect::<Vec<_>>(), ["failure"]);
    assert!(reported["failure"]["message"].as_str().unwrap().contains("is empty"));
    assert_eq!(reported["failure"]["snapshot"], Value::Null);
    let samples = metrics(&scene);
    assert_eq!(samples[&of_source("last_run_exit_code")], 1.0);
    let success = of_source("last_success_timestamp_seconds");
    assert_eq!(samples[&success], good[&success]);
    assert!(fs::read_to_string(scene.path("night.log")).unwrap().contains("error: The source"));

    // Of a store that cannot be opened nothing is reported.
    fs::remove_file(scene.store().join("config.json")).unwrap();
    configured(&scene, 7, &["nightly"]);
    let samples = metrics(&scene);
    let location = scene.source().display().to_string();
    // What its sources are called is not known then.
    assert_eq!(samples[&format!("zmreplica_last_run_exit_code{{source=\"{location}\"}}")], 7.0);
    assert!(!samples.contains_key("zmreplica_snapshots"));
}

#[test]
fn a_store_that_another_run_holds_is_a_warning() {
    let scene = scene();
    configured(&scene, 0, &["nightly"]);
    hook_events(&scene);
    let held = locks::open(&scene.store());
    configured(&scene, 5, &["nightly", "--wait-lock", "0"]);
    let message = hook_events(&scene)["warning"]["message"].as_str().unwrap().to_owned();
    let process = format!("process {}", std::process::id());
    assert!(message.contains(&process), "{message}");
    let status = out(&configured(&scene, 0, &["status"]));
    assert!(status.contains(&process), "{status}");
    drop(held);
    locks::wait_until_free(&scene.store());
    assert!(out(&configured(&scene, 0, &["status"])).contains("nobody"));
}

#[test]
fn a_hook_that_fails_is_reported_and_changes_nothing_else() {
    let scene = scene();
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let (head, _) = settings.split_once("[hooks]").unwrap();
    fs::write(scene.path("config.toml"), format!("{head}[hooks]\non-success = ['/bin/false']\n")).unwrap();
    let output = configured(&scene, 0, &["nightly"]);
    assert!(err(&output).contains("`/bin/false` failed"), "{}", err(&output));
    assert_eq!(metrics(&scene)[&of_source("hook_failed")], 1.0);
    assert_eq!(snapshots(&scene).len(), 1);
}

/// packaging/mail-hook, with a program in place of sendmail that keeps the mail.
#[test]
fn the_example_hook_mails() {
    let scene = scene();
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let (head, _) = settings.split_once("[hooks]").unwrap();
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mail-hook");
    let line = format!("{} postmaster@example.com", hook.display());
    fs::write(scene.path("config.toml"), format!("{head}[hooks]\non-failure = {line:?}\n")).unwrap();
    write_program(&scene.path("sendmail"), "#!/bin/sh\necho \"$*\" > arguments\ncat > mail\n");
    configured(&scene, 0, &["nightly"]);
    fs::remove_file(scene.source().join("file")).unwrap();
    let mut command = scene.command();
    command.env("SENDMAIL", scene.path("sendmail")).env("ZMREPLICA", assert_cmd::cargo::cargo_bin!("zmreplica"));
    let output = command.args(["--config", "config.toml", "nightly"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let mail = fs::read_to_string(scene.path("mail")).unwrap();
    let (headers, body) = mail.split_once("\n\n").unwrap();
    assert!(headers.contains("To: postmaster@example.com") && headers.contains(": source: failure"), "{mail}");
    assert!(
        body.contains("is empty")
            && body.contains("The last nightly run of source failed")
            && body.contains("\"exit_code\":1"),
        "{mail}"
    );
    assert_eq!(fs::read_to_string(scene.path("arguments")).unwrap(), "-i -t\n");
}

/// What comes from the source ends up in the message of a night that failed; the alarm must get through all the same.
#[test]
fn a_source_cannot_silence_its_own_alarm() {
    let scene = scene();
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let (head, _) = settings.split_once("source =").unwrap();
    let log = scene.path("night.log");
    let rsh = scene.path("rsh");
    let forged = "\u{1b}]0;x\u{7}\u{9b}2J\\n2026-11-27T02:00:00Z [1] All went well\u{202e}";
    // A host that says what no variable of an environment can hold.
    write_program(
        &rsh,
        &format!(
            "#!/bin/sh\necho \"rsh: ${{ZMREPLICA_SSH_PASSPHRASE-unset}}\" >> {}\nprintf 'a\\0b{forged}\\n' >&2\nexit 255\n",
            scene.path("inherited").display()
        ),
    );
    let hook = format!(
        "cat > {0}; printf %s \"$ZMREPLICA_MESSAGE\" > {1}; echo \"hook: ${{ZMREPLICA_SSH_PASSPHRASE-unset}}\" >> {2}",
        scene.path("details").display(),
        scene.path("message").display(),
        scene.path("inherited").display()
    );
    let long = "x".repeat(300_000);
    for source in ["host:/opt/zimbra/backup".to_owned(), format!("/{long}"), format!("/\u{1b}[2J\n{long}")] {
        let _ = fs::remove_file(&log);
        let _ = fs::remove_file(scene.path("message"));
        let rest = format!(
            "log = {:?}\nsource = {}\nmetrics = {:?}\n[remote]\nrsh = {:?}\nretries = 0\n[hooks]\non-failure = {hook:?}\n",
            log,
            toml::Value::String(source),
            scene.path("zmreplica.prom"),
            rsh
        );
        fs::write(scene.path("config.toml"), format!("{}{rest}", head)).unwrap();
        let mut command = scene.command();
        command.env("ZMREPLICA_SSH_PASSPHRASE", "secret");
        let output = command.args(["--config", "config.toml", "nightly"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", err(&output));
        let samples = metrics(&scene);
        let hook = samples.iter().find(|(key, _)| key.starts_with("zmreplica_hook_failed{"));
        assert!(hook.is_some_and(|(key, failed)| *failed == 0.0 && key.len() < 5000), "{}", err(&output));
        let message = fs::read_to_string(scene.path("message")).unwrap();
        assert!(!message.is_empty() && message.len() <= 4096, "{} bytes", message.len());
        let details: Value = serde_json::from_slice(&fs::read(scene.path("details")).unwrap()).unwrap();
        assert_eq!(details["message"].as_str(), Some(message.as_str()));
        let log = fs::read_to_string(&log).unwrap();
        for text in [&message, &log, &err(&output)] {
            assert!(text.chars().all(|letter| letter == '\n' || zmreplica::plain::is_plain(letter)), "{text:?}");
        }
        assert!(log.lines().all(|line| line.len() < 9000 && !line.starts_with("2026-11-27T02:00:00Z [1]")), "{log}");
        assert!(log.lines().any(|line| line.contains("] error: ")), "{log}");
    }
    let inherited = fs::read_to_string(scene.path("inherited")).unwrap();
    assert!(inherited.contains("rsh: unset") && inherited.contains("hook: unset"), "{inherited}");
    assert!(!inherited.contains("secret"), "{inherited}");
}

#[test]
fn the_log_does_not_grow_large() {
    let scene = scene();
    let log = scene.path("night.log");
    fs::write(&log, vec![b'x'; 5 << 20]).unwrap();
    configured(&scene, 0, &["nightly"]);
    assert!(fs::metadata(&log).unwrap().len() < 10_000);
    assert_eq!(fs::metadata(scene.path("night.log.1")).unwrap().len(), 5 << 20);
    // A log that cannot be opened is no reason to take no snapshot.
    let output = configured(&scene, 0, &["nightly", "--log", "/no/such/log"]);
    assert!(err(&output).contains("/no/such/log"), "{}", err(&output));
    assert_eq!(snapshots(&scene).len(), 2);
}

#[test]
fn while_the_store_is_held_nothing_is_done_and_said_so() {
    let scene = scene();
    night(&scene, 0);
    let output = configured(&scene, 0, &["hold", "--reason", "disks are moved"]);
    assert!(err(&output).contains("on hold since") && err(&output).contains("disks are moved"), "{}", err(&output));
    for command in [&["nightly"][..], &["snapshot"]] {
        let output = configured(&scene, 6, command);
        assert!(err(&output).contains("disks are moved") && err(&output).contains("zmreplica release"));
    }
    assert_eq!(snapshots(&scene).len(), 1);
    assert!(hook_events(&scene)["warning"]["message"].as_str().unwrap().contains("disks are moved"));
    assert_eq!(metrics(&scene)["zmreplica_held"], 1.0);
    let status: Value = serde_json::from_str(&out(&configured(&scene, 6, &["--json", "status"]))).unwrap();
    assert_eq!((&status["verdict"], &status["hold"]["reason"]), (&"held".into(), &"disks are moved".into()));
    // Reading goes on, and so does who knows what he does.
    scene.ok(&["ls", "latest"]);
    configured(&scene, 0, &["snapshot", "--ignore-hold"]);
    configured(&scene, 0, &["snapshot", "--dry-run"]);
    configured(&scene, 0, &["release"]);
    assert!(err(&configured(&scene, 0, &["release"])).contains("was not held"));
    configured(&scene, 0, &["nightly"]);
    assert_eq!(snapshots(&scene).len(), 3);
}

#[test]
fn a_hold_may_end_by_itself() {
    let scene = scene();
    night(&scene, 0);
    for wrong in ["2020-01-01", "0s", "tomorrow", "5m", "90"] {
        scene.code(2, &["hold", "--until", wrong]);
    }
    let event: Value = serde_json::from_str(&scene.ok(&["--json", "hold", "--until", "2999-12-31"])).unwrap();
    assert!(event["hold"]["until"].as_str().unwrap().starts_with("2999-12-31T23:59:59"));
    scene.code(6, &["status"]);
    scene.ok(&["hold", "--until", "1s"]);
    eventually("the hold ends", || {
        let output = scene.command().args(["nightly", "source"]).output().unwrap();
        assert!([Some(0), Some(6)].contains(&output.status.code()), "{}", err(&output));
        output.status.code() == Some(0)
    });
    scene.ok(&["status"]);
}

#[test]
fn pins_are_shown_and_protect() {
    let scene = scene();
    for _ in 0..3 {
        night(&scene, 0);
    }
    let all = snapshots(&scene);
    let id = |at: usize| all[at]["id"].as_str().unwrap();
    scene.ok(&["pin", id(0), "latest", "--reason", "the audit"]);
    assert_eq!(protected(&scene), [0, 2]);
    assert_eq!(snapshots(&scene)[0]["pinned"]["reason"], "the audit");
    let table = scene.ok(&["snapshots"]);
    assert_eq!(table.matches("pinned").count(), 2, "{table}");
    assert!(scene.ok(&["status"]).contains("2 pinned"));
    assert!(err(&scene.code(0, &["unpin", id(1)])).contains("was not pinned"));
    // One that is not there: nothing is done to the others.
    scene.code(1, &["unpin", id(0), "0123456789abcdef"]);
    assert_eq!(protected(&scene), [0, 2]);
    scene.ok(&["unpin", id(0), id(2)]);
    assert_eq!(protected(&scene), [0; 0]);
}

#[test]
fn status_says_whether_all_is_fine() {
    let scene = scene();
    let json = |code: i32, arguments: &[&str]| {
        let all: Vec<&str> = ["--json", "status"].iter().chain(arguments).copied().collect();
        event(&scene.code(code, &all), "status")
    };
    assert!(json(4, &[])["findings"][0].as_str().unwrap().contains("no snapshot"));
    night(&scene, 0);
    let status = json(0, &[]);
    assert_eq!((&status["verdict"], &status["snapshots"]), (&"fine".into(), &1.into()));
    assert_eq!(status["sources"][0]["newest"]["state"], "complete");
    let text = scene.ok(&["status"]);
    assert!(text.starts_with("The replica is fine.\n") && text.lines().count() <= 10, "{text}");
    eventually("a snapshot gets old", || {
        scene.command().args(["status", "--max-age", "0s"]).output().unwrap().status.code() == Some(4)
    });
    assert!(json(4, &["--max-age", "0s"])["findings"][0].as_str().unwrap().contains("old"));
    // While it is held, its age is no news.
    scene.ok(&["hold"]);
    json(6, &["--max-age", "0s"]);
    scene.ok(&["release"]);
    fs::write(scene.store().join("catalog.redb"), vec![0; 10_000]).unwrap();
    scene.code(7, &["status"]);
}

#[test]
fn a_running_zmbackup_is_waited_for() {
    let scene = scene();
    fs::create_dir_all(scene.source().join("tmp/full-1")).unwrap();
    let output = configured(&scene, 0, &["--json", "nightly", "--settle", "1h", "--settle-quiet", "1s"]);
    let settled = &event(&output, "nightly")["settle"];
    assert_eq!(settled["quiet"], true);
    // Nothing has changed meanwhile.
    let output = configured(&scene, 0, &["nightly", "--settle", "1h", "--settle-quiet", "1s"]);
    assert!(err(&output).contains("Waited"), "{}", err(&output));

    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(scene.source().join("tmp/full-1/file"), "").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        let output = configured(&scene, 0, &["--json", "nightly", "--settle", "1s", "--settle-quiet", "1h"]);
        stop.store(true, Ordering::Relaxed);
        let settled = &event(&output, "nightly")["settle"];
        assert_eq!(settled["quiet"], false);
        assert!(settled["waited_ms"].as_u64().unwrap() >= 1000);
        assert!(err(&output).contains("still writing"), "{}", err(&output));
    });
    // Without a wish nobody waits.
    assert_eq!(event(&configured(&scene, 0, &["--json", "nightly"]), "nightly")["settle"], Value::Null);
}

/// docs/operations.md: "as long as nobody accepts it, nothing since the last good one is removed".
#[test]
fn the_night_prunes_and_an_accident_holds_it_back() {
    let scene = Scene::new();
    zimbra::tree(&scene, 15);
    let settings = |retention: &str| {
        let (store, source) = (scene.store(), scene.source());
        let text = format!("store = '{}'\nsource = '{}'\n{retention}", store.display(), source.display());
        fs::write(scene.path("config.toml"), text).unwrap();
    };
    let numbers =
        || -> Vec<u64> { snapshots(&scene).iter().map(|snapshot| snapshot["number"].as_u64().unwrap()).collect() };
    settings("");
    for _ in 0..3 {
        configured(&scene, 0, &["nightly"]);
    }
    assert_eq!(numbers(), [0, 1, 2], "no policy, no prune");
    settings("[retention]\nkeep-last = 1\nmax-unused = 0\n");
    configured(&scene, 0, &["pin", "latest"]);
    let output = configured(&scene, 0, &["--json", "nightly"]);
    assert_eq!(zimbra::events(&output).last().unwrap()["event"], "nightly");
    assert_eq!(numbers(), [2, 3], "one is pinned, the other is the newest");
    fs::rename(scene.source().join("sessions"), scene.path("aside")).unwrap();
    for _ in 0..3 {
        configured(&scene, 4, &["nightly"]);
    }
    assert_eq!(numbers(), [2, 3, 4, 5, 6], "the last good one and all since; the one before is pinned");
    // It restores, every byte of it.
    let good = snapshots(&scene)[1]["id"].as_str().unwrap().to_owned();
    configured(&scene, 0, &["restore", &format!("{good}:sessions"), "source/sessions"]);
    mounted::assert_rsync_finds_nothing(&scene.path("aside"), &scene.source().join("sessions"));
    configured(&scene, 0, &["nightly"]);
    assert_eq!(numbers(), [2, 3, 4, 5, 6, 7], "healed, and nobody has accepted it");
    // While it is held, prune does nothing either.
    configured(&scene, 0, &["accept", "latest"]);
    configured(&scene, 0, &["hold"]);
    configured(&scene, 6, &["prune"]);
    configured(&scene, 0, &["prune", "--dry-run"]);
    configured(&scene, 0, &["release"]);
    configured(&scene, 0, &["nightly"]);
    assert_eq!(numbers(), [2, 8]);
    configured(&scene, 0, &["unpin", snapshots(&scene)[0]["id"].as_str().unwrap()]);
    configured(&scene, 0, &["prune"]);
    assert_eq!(numbers(), [8]);
    configured(&scene, 0, &["check", "--read-data"]);
    configured(&scene, 0, &["repair"]);
    configured(&scene, 0, &["check", "--read-data"]);
}

#[test]
fn config_check_reports_all_mistakes_at_once() {
    let scene = scene();
    let output = configured(&scene, 0, &["config", "check"]);
    assert!(out(&output).contains("is in order") && out(&output).contains("retention.keep-daily"), "{}", out(&output));
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    let wrong = settings.replacen("metrics = '", "stroe = 'x'\nexclude = ['[']\nmetrics = '/no/such/", 1);
    let wrong =
        wrong.replacen("[hooks]", "[guard]\nchanged-share = '200%'\n[retention]\nkeep-within = '3 months'\n[hooks]", 1);
    fs::write(scene.path("config.toml"), &wrong).unwrap();
    let output = configured(&scene, 2, &["config", "check"]);
    for part in ["stroe is not a setting; store is one", "guard.changed-share", "retention.keep-within: `3 months`"] {
        assert!(out(&output).contains(part), "{part}: {}", out(&output));
    }
    // Any other command says so too, and where to look.
    assert!(err(&configured(&scene, 2, &["nightly"])).contains("config check"));

    // What does not fit the host is reported once the rest is understood.
    let wrong = settings.replacen("metrics = '", "exclude = ['[']\nmetrics = '/no/such/", 1).replacen(
        "'cat",
        "'/no/such/cat",
        1,
    );
    let wrong = wrong.replacen(&format!("source = '{}'", scene.source().display()), "source = '/no/such/source'", 1);
    fs::write(scene.path("config.toml"), wrong).unwrap();
    let output = configured(&scene, 2, &["--json", "config", "check"]);
    let mistakes: Vec<Value> =
        zimbra::events(&output).into_iter().filter(|event| event["event"] == "mistake").collect();
    assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    assert_eq!(event(&output, "summary")["mistakes"], 4);
    assert!(err(&scene.code(2, &["--config", "nothing.toml", "config", "check"])).contains("nothing.toml"));
}

/// `exclude` is what the message recommends, so it must be taken.
#[test]
fn a_store_inside_its_source_is_taken_when_it_is_left_out_as_the_message_says() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    let store = scene.source().join("sub/rep[1]");
    fs::create_dir(scene.source().join("sub")).unwrap();
    let run = |arguments: &[&str], code| {
        let output = scene.command_on(&store).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
        output
    };
    run(&["init"], 0);
    for dry in [&[][..], &["--dry-run"]] {
        let all = |more: &[&str], code| {
            let arguments = [&["snapshot", "source"], dry, more].concat();
            run(&arguments, code)
        };
        let refused = err(&all(&[], 1));
        let (_, pattern) = refused.split_once("--exclude '").expect("a pattern");
        let (pattern, _) = pattern.split_once('\'').unwrap();
        // A directory above it does as well, a name inside it does not.
        all(&["--exclude", "sub"], 0);
        all(&["--exclude", "packs"], 1);
        all(&["--exclude", pattern], 0);
    }
    let listed = run(&["--json", "ls", "latest:sub"], 0);
    assert!(!out(&listed).contains("rep"), "{}", out(&listed));
    run(&["check"], 0);
    // The source itself cannot be left out.
    let itself = run(&["snapshot", store.to_str().unwrap()], 1);
    assert!(err(&itself).contains("move it") && !err(&itself).contains("--exclude"), "{}", err(&itself));
}

#[test]
fn status_reports_every_source_and_counts_the_suspects_that_it_does_not_name() {
    let scene = Scene::new();
    for name in ["a", "b", "c", "d", "e"] {
        fs::create_dir(scene.path(name)).unwrap();
        fs::write(scene.path(name).join("file"), name).unwrap();
        scene.ok(&["snapshot", name]);
    }
    let reported = out(&scene.code(0, &["status"]));
    assert_eq!(reported.matches("\nNewest ").count(), 5, "{reported}");
}

#[test]
fn a_night_reports_what_its_prune_removed_and_not_the_whole_plan() {
    let scene = scene();
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap() + "[retention]\nkeep-last = 2\n";
    fs::write(scene.path("config.toml"), settings).unwrap();
    for _ in 0..2 {
        let reported = out(&configured(&scene, 0, &["nightly"]));
        assert!(!reported.contains("keep ") && !reported.contains("Removed"), "{reported}");
    }
    let reported = out(&configured(&scene, 0, &["nightly"]));
    assert!(
        !reported.contains("keep ") && reported.contains("remove  ") && reported.contains("Removed 1 snapshot"),
        "{reported}"
    );
    let reported = out(&configured(&scene, 0, &["-v", "nightly"]));
    assert!(reported.contains("keep ") && reported.contains("Frees "), "{reported}");
}
