//! A small generated Zimbra tree as the source of a scene, as old as a test wants it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use serde_json::Value;
use zmreplica::guard;
use zmreplica::replica::Replica;
use zmreplica_treegen::{Config, Generator, Preset};

use super::mounted::{Scene, out};

const DAY_MS: i64 = 86_400_000;

/// Makes the source a tree whose first full session was taken so many days ago: three fulls a week apart and their incrementals. With 15 days the newest
/// session is of last night; with more than 17, zmbackup seems to have stopped.
pub fn tree(scene: &Scene, days_ago: i64) -> Generator {
    let now = jiff::Timestamp::now().as_millisecond();
    let config = Config {
        accounts: 3,
        messages: 20,
        mean_size_bytes: 2_000,
        start_ms: now - days_ago * DAY_MS,
        ..Config::preset(Preset::Sample)
    };
    Generator::create(&scene.source(), config, 1).unwrap()
}

/// Runs `nightly` on the source and expects an exit code; returns what it reported as JSON in the end.
pub fn night(scene: &Scene, code: i32) -> Value {
    last(&scene.code(code, &["--json", "nightly", "source"]))
}

/// Runs the program with the configuration of the scene and expects an exit code.
pub fn configured(scene: &Scene, code: i32, arguments: &[&str]) -> Output {
    let all: Vec<&str> = ["--config", "config.toml"].iter().chain(arguments).copied().collect();
    scene.code(code, &all)
}

/// The event of that name among those that a command wrote.
pub fn event(output: &Output, name: &str) -> Value {
    let events = events(output);
    events
        .into_iter()
        .find(|event| event["event"] == name)
        .unwrap_or_else(|| panic!("no event {name}: {}", out(output)))
}

pub fn events(output: &Output) -> Vec<Value> {
    out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn last(output: &Output) -> Value {
    event(output, "nightly")
}

/// The snapshots as `snapshots --json` lists them.
pub fn snapshots(scene: &Scene) -> Vec<Value> {
    events(&scene.code(0, &["--json", "snapshots"]))
}

/// What must be kept, as prune receives it: the numbers of the snapshots.
pub fn protected(scene: &Scene) -> Vec<u64> {
    let replica = Replica::open(&scene.store()).unwrap();
    let catalog = Arc::new(replica.catalog().unwrap());
    let all = guard::marked_snapshots(&catalog).unwrap();
    let kept = guard::protections(&all, &BTreeMap::new());
    assert!(kept.values().all(|reasons| !reasons.is_empty() && reasons.iter().all(|reason| !reason.is_empty())));
    all.iter().filter(|snapshot| kept.contains_key(&snapshot.record.id)).map(|snapshot| snapshot.number.0).collect()
}

/// The reasons of a snapshot as one text.
pub fn reasons(snapshot: &Value) -> String {
    let reasons: Vec<&str> =
        snapshot["reasons"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    reasons.join("\n")
}

/// Replaces a file as a program does that writes a new one and renames it.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}
