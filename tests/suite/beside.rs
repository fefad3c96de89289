//! The guard and what stands beside `sessions/`: other tools' backups and archives.

use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::support::mounted::Scene;
use crate::support::zimbra::{night, reasons, tree};

fn add(directory: &Path, numbers: Range<u32>) {
    fs::create_dir_all(directory).unwrap();
    for number in numbers {
        fs::write(directory.join(format!("item-{number}")), format!("text of {number}")).unwrap();
    }
}

fn remove(directory: &Path, numbers: Range<u32>) {
    for number in numbers {
        fs::remove_file(directory.join(format!("item-{number}"))).unwrap();
    }
}

/// A tree of Zimbra's with the backup of another tool, and archives, after a good night.
fn with_others() -> Scene {
    let scene = Scene::new();
    tree(&scene, 15);
    add(&scene.source().join("zextras/accounts/items"), 0..400);
    add(&scene.source(), 0..150);
    night(&scene, 0);
    scene
}

/// The only reason for which the night's snapshot is suspect.
fn reason(scene: &Scene, kind: &str) -> String {
    let told = night(scene, 4);
    let snapshot = &told["snapshot"];
    assert_eq!(snapshot["suspect"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(snapshot["suspect"][0]["kind"], kind, "{told}");
    reasons(snapshot)
}

#[test]
fn most_of_another_tools_backup_is_gone() {
    let scene = with_others();
    // Half of it may go.
    remove(&scene.source().join("zextras/accounts/items"), 0..200);
    night(&scene, 0);
    remove(&scene.source().join("zextras/accounts/items"), 200..390);
    let told = reason(&scene, "names-gone");
    assert_eq!(
        told,
        "190 of 203 names are gone from zextras/ (94%; lost-share allows 50%), such as zextras/accounts/items/item-200"
    );
    assert_eq!(told, reason(&scene, "names-gone"), "night after night");
    add(&scene.source().join("zextras/accounts/items"), 200..390);
    night(&scene, 0);
    fs::remove_dir_all(scene.source().join("zextras")).unwrap();
    assert!(reason(&scene, "names-gone").starts_with("203 of 203 names are gone from zextras/ (100%;"));
}

#[test]
fn archives_in_the_top_directory_are_gone() {
    let scene = with_others();
    remove(&scene.source(), 0..150);
    let told = reason(&scene, "names-gone");
    // accounts.xml and accounts.xml.old are among them.
    assert!(told.starts_with("150 of 152 names are gone from the top directory itself (99%;"), "{told}");
}

#[test]
fn many_small_directories_are_gone_together() {
    let scene = with_others();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
        add(&scene.source().join(name), 0..90);
    }
    night(&scene, 0);
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        fs::remove_dir_all(scene.source().join(name)).unwrap();
    }
    let told = reason(&scene, "names-gone");
    assert!(told.starts_with("910 of 1647 names are gone beside sessions/ (55%;"), "{told}");
}

#[test]
fn files_beside_the_sessions_that_are_overwritten_are_counted_by_themselves() {
    let scene = with_others();
    let items = scene.source().join("zextras/accounts/items");
    for number in 0..120 {
        fs::write(items.join(format!("item-{number}")), "encrypted").unwrap();
    }
    let told = reason(&scene, "files-changed");
    assert_eq!(told, "120 of 400 files in zextras/ were changed in place (30%; changed-share allows 20%)");
}

#[test]
fn what_is_renamed_moved_or_left_out_is_not_gone() {
    let scene = with_others();
    fs::rename(scene.source().join("zextras"), scene.source().join("ng")).unwrap();
    night(&scene, 0);
    fs::create_dir(scene.source().join("before-the-upgrade")).unwrap();
    fs::rename(scene.source().join("ng"), scene.source().join("before-the-upgrade/ng")).unwrap();
    night(&scene, 0);
    scene.code(0, &["nightly", "--exclude", "/before-the-upgrade", "source"]);
}

/// docs/semantics.md: "about as much was lost or changed there twice".
#[test]
fn what_was_accepted_twice_is_usual_and_more_than_that_is_not() {
    let scene = Scene::new();
    tree(&scene, 15);
    let archives = scene.source().join("archives");
    add(&archives, 0..300);
    night(&scene, 0);
    // All archives are written anew every night, under the same names.
    for turn in 0..5 {
        for number in 0..300 {
            fs::write(archives.join(format!("item-{number}")), format!("turn {turn} of {number}")).unwrap();
        }
        if turn < 2 {
            assert!(reason(&scene, "files-changed").contains("300 of 300 files in archives/"));
            scene.ok(&["accept", "latest"]);
        } else {
            night(&scene, 0);
        }
    }
    remove(&archives, 0..200);
    assert!(reason(&scene, "names-gone").contains("200 of 301 names are gone from archives/"));
}

#[test]
fn sets_of_archives_that_are_rotated_are_no_alarm_and_all_sets_are() {
    let scene = Scene::new();
    tree(&scene, 15);
    let set = |week: u32| scene.source().join(format!("full-202611{week:02}010000"));
    for week in 1..4 {
        add(&set(week), 0..120);
    }
    night(&scene, 0);
    for week in 4..7 {
        // The oldest goes before the newest comes.
        fs::remove_dir_all(set(week - 3)).unwrap();
        night(&scene, 0);
        add(&set(week), 0..120);
        night(&scene, 0);
    }
    fs::remove_dir_all(set(4)).unwrap();
    fs::remove_dir_all(set(5)).unwrap();
    let told = reason(&scene, "names-gone");
    assert!(told.starts_with("242 of 363 names are gone from the directories full-*/ (67%;"), "{told}");
    assert!(told.ends_with("such as full-20261104010000"), "{told}");
}
