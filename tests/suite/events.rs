//! What `-v`, `-vv` and ZMREPLICA_LOG show of the steps of a command, and that everything else stays as it is without them.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::mounted::{Scene, err, out};
use crate::support::odd::files;
use crate::support::programs::write_program;
use crate::support::pulling::{finished, summary};

/// Makes a source of so many files in some directories.
fn scene_of(files: usize) -> Scene {
    let scene = Scene::new();
    for number in 0..files {
        let directory = scene.source().join(format!("directory-{}", number % 30));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), format!("message {number}")).unwrap();
    }
    scene
}

fn snapshot(scene: &Scene, options: &[&str], filter: Option<&str>) -> Output {
    let mut command = scene.command();
    command.args(options).args(["snapshot", "source"]);
    if let Some(filter) = filter {
        command.env("ZMREPLICA_LOG", filter);
    }
    finished(&mut command, 0)
}

/// Returns the events on stderr of a level.
fn events(output: &Output, level: &str) -> Vec<String> {
    err(output).lines().filter(|line| line.contains(&format!(" {level} "))).map(str::to_owned).collect()
}

fn has(events: &[String], words: &str) -> bool {
    events.iter().any(|event| event.contains(words))
}

#[test]
fn a_run_shows_its_steps_on_request() {
    let scene = scene_of(5);
    let silent = snapshot(&scene, &[], None);
    assert_eq!(err(&silent), "");
    let steps = snapshot(&scene, &["-v"], None);
    let shown = events(&steps, "INFO");
    assert!(has(&shown, "snapshot: run: run started") && has(&shown, "snapshot: run: snapshot committed"), "{shown:?}");
    assert!(has(&shown, "run: scan finished names=10") && has(&shown, "the guard examines it"), "{shown:?}");
    assert!(events(&steps, "DEBUG").is_empty());
    // Each begins with the time, and is one line.
    let time = |line: &str| line.split(' ').next().unwrap().parse::<jiff::Timestamp>();
    assert!(shown.iter().all(|line| time(line).is_ok()), "{shown:?}");
    let calls = snapshot(&scene, &["-vv"], None);
    assert!(has(&events(&calls, "DEBUG"), "store: put commits/"), "{}", err(&calls));
    // stdout is the same, in JSON too.
    let lines = |output: &Output| out(output).lines().count();
    assert_eq!((lines(&steps), lines(&calls)), (lines(&silent), lines(&silent)));
    let json = snapshot(&scene, &["--json", "-vv"], None);
    let plain = snapshot(&scene, &["--json"], None);
    let keys = |output: &Output| summary(output).as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), keys(&plain));
    assert!(out(&json).lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(!events(&json, "DEBUG").is_empty());
}

#[test]
fn a_filter_goes_before_v() {
    let scene = scene_of(5);
    let storage = snapshot(&scene, &["-v"], Some("store=debug"));
    assert!(!events(&storage, "DEBUG").is_empty() && events(&storage, "INFO").is_empty(), "{}", err(&storage));
    assert_eq!(err(&snapshot(&scene, &[], Some("off"))), "");
    assert_eq!(err(&snapshot(&scene, &[], Some(""))), "");
    let steps = snapshot(&scene, &["-q"], Some("run=info"));
    assert!(has(&events(&steps, "INFO"), "run started"), "{}", err(&steps));
    assert_eq!(out(&steps), "");
    for (filter, reason) in [
        ("prnue=debug", "there is no area `prnue`. The areas are run, remote, mount, prune, store"),
        ("loud", "`loud` is not a level"),
    ] {
        let mut command = scene.command();
        let refused = finished(command.arg("snapshots").env("ZMREPLICA_LOG", filter), 2);
        assert!(err(&refused).contains("ZMREPLICA_LOG") && err(&refused).contains(reason), "{}", err(&refused));
    }
}

/// Nothing is emitted for a name, a file or a chunk.
#[test]
fn a_large_run_has_as_many_events_as_a_small_one() {
    let count = |files| {
        let all = snapshot(&scene_of(files), &[], Some("trace"));
        err(&all).lines().count()
    };
    let (small, large) = (count(300), count(3000));
    assert!(small > 5, "{small}");
    // A pack more for the dictionary, as the case may be.
    assert!(large <= small + 5, "{small} events for 300 files, {large} for 3,000");
}

#[test]
fn a_prune_shows_its_steps() {
    let scene = scene_of(5);
    for number in 0..2 {
        fs::write(scene.source().join("changing"), format!("text {number}")).unwrap();
        snapshot(&scene, &[], None);
    }
    let pruned = scene.code(0, &["-v", "prune", "--keep-last", "1", "--grace", "0s"]);
    let shown = events(&pruned, "INFO");
    for step in ["finding what is in use", "removing rows", "deleting packs", "repacking"] {
        assert!(has(&shown, step), "{step}: {shown:?}");
    }
    assert!(has(&shown, "prune finished removed_snapshots=1"), "{shown:?}");
}

/// A host whose agent writes events of its own, and whose login needs a secret.
#[test]
fn a_pull_shows_the_other_host_and_no_secret() {
    let scene = scene_of(5);
    let rsh = scene.path("rsh");
    write_program(&rsh, "#!/bin/sh\nshift 5\nexport ZMREPLICA_LOG=\"$AGENT_EVENTS\"\nexec sh -c \"$1\"\n");
    let pull = |options: &[&str], agent_events: &str| {
        let mut command: Command = scene.command();
        command.args(options).arg("snapshot").arg("--agent-path").arg(assert_cmd::cargo::cargo_bin!("zmreplica"));
        command.arg("--rsh").arg(format!("{} --password hunter2", rsh.display())).env("AGENT_EVENTS", agent_events);
        command.arg(format!("ssh://me:hunter2@far{}", scene.source().display()));
        finished(&mut command, 0)
    };
    assert_eq!(events(&pull(&[], "trace"), "INFO"), [""; 0]);
    let steps = pull(&["-v"], "trace");
    let shown = events(&steps, "INFO");
    let place = format!("host=far path={}", scene.source().display());
    for words in [&place, "attempt{number=1}", "agent started", "connection closed", "snapshot committed"] {
        assert!(has(&shown, words), "{words}: {shown:?}");
    }
    let calls = pull(&["-vv"], "trace");
    let shown = events(&calls, "DEBUG");
    assert!(
        has(&shown, "stderr of the remote host") && has(&shown, "INFO remote: agent started root="),
        "{}",
        err(&calls)
    );
    assert!(!has(&events(&pull(&["-vv"], ""), "DEBUG"), "stderr of the remote host"));
    // The name of the snapshot's source is the user's own, on stdout.
    assert!(![err(&steps), err(&calls)].iter().any(|text| text.contains("hunter2")));
}

#[test]
fn a_mount_in_the_background_writes_events_to_its_log() {
    let scene = scene_of(1);
    fs::write(scene.source().join("large"), vec![7; 100_000]).unwrap();
    snapshot(&scene, &[], None);
    let packs = scene.store().join("packs");
    for pack in files(&packs) {
        fs::write(pack, "damage").unwrap();
    }
    for (options, log) in [(&[][..], "silent"), (&["-v"][..], "reported")] {
        let mut command = scene.command();
        command.args(options).args(["mount", "--log", log, "latest", "mnt"]);
        finished(&mut command, 0);
        assert!(fs::read(scene.mnt().join("large")).is_err());
        scene.ok(&["umount", "mnt"]);
    }
    let log = |name: &str| fs::read_to_string(scene.path(name)).unwrap();
    assert!(log("silent").contains("cannot be read") && !log("silent").contains("WARN"), "{}", log("silent"));
    assert!(log("reported").contains(" WARN mount: read failed inode="), "{}", log("reported"));
}
