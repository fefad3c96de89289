//! Waiting for another run to release the store.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Signal;
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;

use crate::support::locks;
use crate::support::mounted::{Killed, Scene, err, eventually, signal};
use crate::support::zimbra::{configured, snapshots};

const WAITING: &str = "Waiting for it to end";

/// A command under way, and what it has written to stderr so far.
struct Running {
    child: Killed,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(scene: &Scene, arguments: &[&str]) -> Running {
        let mut command = scene.command();
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child: Child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (stderr, shared) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&said));
        let reader = thread::spawn(move || {
            for line in stderr.lines() {
                shared.lock().unwrap().push_str(&(line.unwrap() + "\n"));
            }
        });
        Running { child: Killed(child), said, reader: Some(reader) }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn until_it_says(&self, text: &str) {
        eventually(&format!("stderr has `{text}`"), || self.said().contains(text));
    }

    /// Waits for its end; returns the exit code and all of stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.0.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status.code(), self.said())
    }
}

fn scene() -> Scene {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    let settings = format!(
        "store = '{}'\nsource = '{}'\nmetrics = '{}'\nlog = '{}'\n[hooks]\non-success = 'cat > {}'\n",
        scene.store().display(),
        scene.source().display(),
        scene.path("metrics").display(),
        scene.path("log").display(),
        scene.path("reported").display(),
    );
    fs::write(scene.path("config.toml"), settings).unwrap();
    scene
}

/// docs/operations.md: "Of two nightly runs that start at the same time, the second waits for the first."
#[test]
fn two_nights_at_once_run_one_after_the_other() {
    let scene = scene();
    let held = locks::open(&scene.store());
    let nights = [0, 1].map(|_| Running::start(&scene, &["--config", "config.toml", "nightly"]));
    nights.iter().for_each(|night| night.until_it_says(WAITING));
    drop(held);
    let holder =
        format!("Another run holds the store {} (process {}, since 2", scene.store().display(), std::process::id());
    for night in nights {
        let (code, said) = night.end();
        assert_eq!((code, said.matches(WAITING).count()), (Some(0), 1), "{said}");
        assert!(said.contains(&holder) && said.contains("at most 1 h 0 min") && said.contains("Waited "), "{said}");
    }
    assert_eq!(snapshots(&scene).len(), 2);
    let log = fs::read_to_string(scene.path("log")).unwrap();
    assert_eq!((log.matches(WAITING).count(), log.matches("for the other run").count()), (2, 2), "{log}");
    let reported: serde_json::Value = serde_json::from_slice(&fs::read(scene.path("reported")).unwrap()).unwrap();
    assert!(reported["lock_wait_ms"].as_u64().unwrap() > 0, "{reported}");
    let metrics = fs::read_to_string(scene.path("metrics")).unwrap();
    let seconds = metrics
        .lines()
        .find_map(|line| line.strip_prefix("zmreplica_last_run_duration_seconds{source=\"source\",phase=\"lock\"} "));
    assert!(seconds.unwrap().parse::<f64>().unwrap() > 0.0, "{metrics}");
}

#[test]
fn a_wait_that_is_over_ends_with_code_5() {
    let scene = scene();
    scene.snapshot();
    let held = locks::open(&scene.store());
    let said = err(&scene.code(5, &["--wait-lock", "1s", "pin", "latest"]));
    assert!(said.contains("at most 1.0 s") && said.contains("Wait for it to end; nothing was changed"), "{said}");
    // Nobody waits without the option, except a night.
    for arguments in [&["pin", "latest"][..], &["snapshot", "source"], &["nightly", "source", "--wait-lock", "0"]] {
        let said = err(&scene.code(5, arguments));
        assert!(!said.contains(WAITING) && said.contains("--wait-lock"), "{said}");
    }
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap();
    fs::write(scene.path("config.toml"), format!("wait-lock = '1s'\n{settings}")).unwrap();
    for arguments in [&["pin", "latest"][..], &["nightly"]] {
        assert!(err(&configured(&scene, 5, arguments)).contains("at most 1.0 s"), "{arguments:?}");
    }
    assert!(!err(&configured(&scene, 5, &["--wait-lock", "0", "pin", "latest"])).contains(WAITING));
    drop(held);
    locks::wait_until_free(&scene.store());
    assert_eq!(err(&configured(&scene, 0, &["pin", "latest"])).matches(WAITING).count(), 0, "it is free");
}

#[test]
fn every_command_that_writes_waits_and_can_be_interrupted() {
    let scene = scene();
    scene.snapshot();
    let held = locks::open(&scene.store());
    let commands: [&[&str]; 9] = [
        &["snapshot", "source"],
        &["nightly", "source"],
        &["prune", "--keep-last", "1"],
        &["accept", "latest"],
        &["pin", "latest"],
        &["unpin", "latest"],
        &["hold"],
        &["release"],
        &["repair"],
    ];
    let running = commands.map(|command| Running::start(&scene, &[&["--wait-lock", "1h"], command].concat()));
    for (one, command) in running.iter().zip(commands) {
        one.until_it_says(WAITING);
        signal(one.child.0.id(), Signal::TERM);
        eventually(&format!("{command:?} is interrupted"), || one.said().contains("Interrupted while waiting"));
    }
    for one in running {
        let (code, said) = one.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Nothing was changed"), "{said}");
    }
    drop(held);
    locks::wait_until_free(&scene.store());
    assert_eq!(snapshots(&scene).len(), 1);
}

/// docs/operations.md: "A name such as `latest` stands for what was there when the command was given"
#[test]
fn latest_is_what_was_there_when_the_command_was_given() {
    let scene = scene();
    let seen = scene.snapshot();
    let held = locks::open(&scene.store());
    let pinning = Running::start(&scene, &["--wait-lock", "1h", "pin", "latest"]);
    pinning.until_it_says(WAITING);
    run(&held, &scene.source(), &SnapshotOptions::default(), &Arc::new(Progress::default())).unwrap();
    drop(held);
    let (code, said) = pinning.end();
    assert_eq!(code, Some(0), "{said}");
    let all = snapshots(&scene);
    assert_eq!((all.len(), &all[0]["id"]), (2, &seen.into()));
    assert!(!all[0]["pinned"].is_null() && all[1]["pinned"].is_null(), "{all:?}");
}

/// docs/operations.md: "If zmbackup has started meanwhile, the run releases the store and waits for zmbackup, too."
#[test]
fn zmbackup_that_started_during_the_wait_is_waited_for() {
    let scene = scene();
    let held = locks::open(&scene.store());
    let night = Running::start(&scene, &["nightly", "source", "--settle", "1h", "--settle-quiet", "2s"]);
    night.until_it_says(WAITING);
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        let session = scene.source().join("tmp/full-1");
        fs::create_dir_all(&session).unwrap();
        let written = &written;
        scope.spawn(move || {
            for number in 0.. {
                if written.load(Ordering::Relaxed) {
                    break;
                }
                fs::write(session.join("blob"), number.to_string()).unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        drop(held);
        night.until_it_says("for the other run");
        locks::wait_until_free(&scene.store());
        written.store(true, Ordering::Relaxed);
    });
    let (code, said) = night.end();
    assert_eq!((code, said.matches("until nothing in tmp/ had changed").count()), (Some(0), 2), "{said}");
    assert_eq!(snapshots(&scene).len(), 1);
}
