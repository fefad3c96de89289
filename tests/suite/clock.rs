//! A clock that is wrong for a night costs nothing: ahead, behind, and right after half a year.
//!
//! The clock of this host is not touched. Instead the snapshots of the store get other dates, which comes to the same.

use std::fs;

use crate::support::locks;
use crate::support::mounted::{Scene, err, out};
use crate::support::redate::{days, redate};
use crate::support::zimbra::configured;
use crate::support::zimbra::{event, snapshots};
use serde_json::Value;
use zmreplica::catalog::hold::Hold;
use zmreplica::replica::Replica;
use zmreplica::view::Snapshots;

/// Six good nights in a store that keeps three months.
fn six_nights() -> Scene {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    for _ in 0..6 {
        scene.ok(&["snapshot", "source"]);
    }
    let settings = format!(
        "store = '{}'\nsource = '{}'\n[retention]\nkeep-within = '3m'\n",
        scene.store().display(),
        scene.source().display(),
    );
    fs::write(scene.path("config.toml"), settings).unwrap();
    scene
}

fn night(scene: &Scene, code: i32) -> Value {
    event(&configured(scene, code, &["--json", "nightly"]), "nightly")
}

const TEN_YEARS: i64 = 3650;

/// docs/semantics.md: "A night with a wrong clock removes no other snapshot"
#[test]
fn a_night_with_the_clock_years_ahead_removes_nothing() {
    let scene = six_nights();
    // For the store it is ten years later than last night.
    redate(&scene.store(), |at, _| days(at as i64 - 6 - TEN_YEARS));
    let reported = night(&scene, 4);
    assert_eq!((&reported["outcome"], &reported["removed_snapshots"]), (&"warning".into(), &0.into()), "{reported}");
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "clock", "{reported}");
    assert_eq!(snapshots(&scene).len(), 7);
    // Neither does another night like it, nor a prune by hand; both say so.
    assert_eq!(night(&scene, 4)["removed_snapshots"], 0);
    for arguments in [&["prune", "--keep-last", "1"][..], &["prune", "--dry-run"]] {
        let output = configured(&scene, 4, arguments);
        assert!(err(&output).contains("Nothing of this source is removed until"), "{}", err(&output));
    }
    assert_eq!(snapshots(&scene).len(), 8);

    // The clock is set right: the six are of last week, the two of the year after next decade.
    redate(&scene.store(), |at, _| match at as i64 {
        at @ 0..6 => days(at - 8),
        at => days(at - 8 + TEN_YEARS),
    });
    let reported = night(&scene, 4);
    assert_eq!(
        (&reported["snapshot"]["state"], &reported["removed_snapshots"]),
        (&"complete".into(), &0.into()),
        "{reported}"
    );
    let all = snapshots(&scene);
    assert_eq!(all.len(), 9);
    let status = scene.code(4, &["status"]);
    assert!(out(&status).contains("2 snapshots of source are suspect"), "{}", out(&status));
    assert!(
        out(&status).contains("2 snapshots are of") || out(&status).contains("ahead of the clock"),
        "{}",
        out(&status)
    );
    // `latest` is the one that was taken last, not the one with the last date; a time finds the right ones.
    let named = |spec: &str| {
        let catalog = Replica::open(&scene.store()).unwrap().catalog().unwrap();
        Snapshots::read(&catalog).unwrap().resolve(spec).unwrap().record.id.clone()
    };
    assert_eq!(named("latest"), all[8]["id"]);
    assert_eq!(named(&days(-4).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()), all[4]["id"]);
    let listed = scene.code(0, &["snapshots"]);
    assert_eq!(err(&listed).matches("its date is not plausible").count(), 2, "{}", err(&listed));

    // Accepted, it is no alarm any more, and still costs nothing.
    scene.ok(&["accept", "latest"]);
    let reported = night(&scene, 0);
    assert_eq!((reported["removed_snapshots"].clone(), snapshots(&scene).len()), (0.into(), 10));
    scene.ok(&["status"]);
    scene.ok(&["check"]);
    // Among dates that can be right the rules go on.
    configured(&scene, 0, &["prune", "--keep-within", "1d"]);
    let left: Vec<Value> = snapshots(&scene).into_iter().map(|snapshot| snapshot["id"].clone()).collect();
    assert!(left.contains(&all[8]["id"]) && !left.contains(&all[0]["id"]), "{left:?}");
}

/// docs/semantics.md: "a host that was off for half a year: `accept` ends it"
#[test]
fn a_host_that_was_off_for_half_a_year_is_no_alarm_for_ever() {
    let scene = six_nights();
    redate(&scene.store(), |at, _| days(at as i64 - 6 - 180));
    assert_eq!(night(&scene, 4)["removed_snapshots"], 0);
    assert_eq!(night(&scene, 4)["removed_snapshots"], 0);
    scene.ok(&["accept", "latest"]);
    // The dates are right, so three months count from today.
    assert_eq!(night(&scene, 0)["removed_snapshots"], 6);
    assert_eq!(snapshots(&scene).len(), 3);
    scene.ok(&["status"]);
}

#[test]
fn how_far_a_clock_may_jump_can_be_set() {
    let scene = six_nights();
    redate(&scene.store(), |at, _| days(at as i64 - 6 - 180));
    let settings = fs::read_to_string(scene.path("config.toml")).unwrap() + "[guard]\nclock-jump = '1y'\n";
    fs::write(scene.path("config.toml"), settings).unwrap();
    assert_eq!(night(&scene, 0)["removed_snapshots"], 6);
}

#[test]
fn a_night_with_the_clock_behind_removes_nothing_and_is_kept_as_its_neighbours_are() {
    let scene = six_nights();
    // For the store it is a year before last night.
    redate(&scene.store(), |at, _| days(at as i64 - 6 + 365));
    let reported = night(&scene, 4);
    assert_eq!(
        (&reported["snapshot"]["state"], &reported["removed_snapshots"]),
        (&"complete".into(), &0.into()),
        "{reported}"
    );
    let output = scene.code(4, &["snapshot", "source"]);
    assert!(err(&output).contains("ahead of the clock of this host"), "{}", err(&output));
    configured(&scene, 4, &["prune", "--keep-last", "1"]);
    assert_eq!(snapshots(&scene).len(), 8);
    assert!(
        out(&scene.code(4, &["status"])).contains("6 snapshots are of")
            || out(&scene.code(4, &["status"])).contains("6 snapshots")
    );

    redate(&scene.store(), |at, _| match at as i64 {
        at @ 0..6 => days(at - 8),
        at => days(at - 8 - 365),
    });
    let reported = night(&scene, 0);
    assert_eq!((reported["removed_snapshots"].clone(), snapshots(&scene).len()), (0.into(), 9));
    scene.ok(&["status"]);
    // By their dates both would be gone.
    configured(&scene, 0, &["prune"]);
    assert_eq!(snapshots(&scene).len(), 9);
}

#[test]
fn a_clock_that_is_ahead_does_not_end_a_hold() {
    let scene = six_nights();
    let hold = |until: i64| {
        locks::locked(&scene.store(), |replica| {
            let mut writer = replica.writer().unwrap();
            writer.set_hold(Some(&Hold { since: days(until - 1), until: Some(days(until)), reason: None })).unwrap();
            writer.commit().unwrap();
        });
    };
    redate(&scene.store(), |at, _| days(at as i64 - 6 - TEN_YEARS));
    hold(1 - TEN_YEARS);
    let reported = night(&scene, 6);
    assert!(reported["message"].as_str().unwrap().contains("`zmreplica release` ends it"), "{reported}");
    configured(&scene, 6, &["prune"]);
    assert_eq!(snapshots(&scene).len(), 6);
    // A hold of months that ends ends, though nothing was taken meanwhile.
    hold(-1);
    redate(&scene.store(), |at, _| days(at as i64 - 6 - 100));
    night(&scene, 4);
    scene.ok(&["accept", "latest"]);
    hold(1 - TEN_YEARS);
    night(&scene, 0);
}
