//! `zmreplica history`: each version of a path once, and when it vanished.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde_json::Value;
use zmreplica::catalog::directory::{Body, encode_root};
use zmreplica::ids::ObjectId;

use crate::support::locks;
use crate::support::mounted::{Scene, err, out};
use crate::support::zimbra::{events, replace};

/// The versions of a path as `--json` lists them.
fn versions(scene: &Scene, path: &OsStr) -> Vec<Value> {
    let output = scene.command().args(["--json", "history"]).arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    events(&output)
}

fn span(version: &Value) -> (&str, &str, u64, Option<&str>) {
    let text = |key: &str| version[key].as_str();
    let of = |key: &str| text(key).unwrap();
    (of("first_snapshot"), of("last_snapshot"), version["snapshots"].as_u64().unwrap(), text("vanished_snapshot"))
}

/// A file that is written, left alone, linked, replaced, deleted and written again; a directory around it.
#[test]
fn each_version_is_listed_once_with_its_span() {
    let scene = Scene::new();
    let directory = scene.source().join("sessions/full-1");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("blob");
    fs::write(&file, "first").unwrap();
    let mut ids = vec![scene.snapshot(), scene.snapshot()];
    fs::hard_link(&file, scene.source().join("other")).unwrap();
    ids.push(scene.snapshot());
    replace(&file, "second and longer");
    ids.push(scene.snapshot());
    fs::remove_file(&file).unwrap();
    ids.push(scene.snapshot());
    ids.push(scene.snapshot());
    // The very inode of the first version comes back.
    fs::rename(scene.source().join("other"), &file).unwrap();
    ids.push(scene.snapshot());
    fs::remove_dir_all(scene.source().join("sessions")).unwrap();
    fs::write(scene.source().join("sessions"), "a file where a directory was").unwrap();
    ids.push(scene.snapshot());
    let id = |at: usize| ids[at].as_str();

    let found = versions(&scene, OsStr::new("sessions/full-1/blob"));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(span(&found[0]), (id(0), id(6), 4, Some(id(7))), "{found:#?}");
    assert_eq!(span(&found[1]), (id(3), id(3), 1, Some(id(4))));
    assert_eq!([&found[0]["snapshots_between"], &found[0]["size"], &found[0]["names"]], [7, 5, 1]);
    assert_eq!(
        (&found[1]["size"], &found[1]["kind"], &found[1]["unreadable"]),
        (&17.into(), &"file".into(), &false.into())
    );
    assert!(found[0]["link_group"].is_u64() && found[0]["link_group"] != found[1]["link_group"]);
    let listed = events(&scene.code(0, &["--json", "ls", &format!("{}:sessions/full-1", id(3))]));
    for key in ["mtime", "link_group", "size", "kind"] {
        assert_eq!(found[1][key], listed[0][key], "{key}");
    }

    // Its other name has a history of its own.
    let other = versions(&scene, OsStr::new("/other"));
    assert_eq!(other.iter().map(span).collect::<Vec<_>>(), [(id(2), id(5), 4, Some(id(6)))]);
    assert_eq!(other[0]["link_group"], found[0]["link_group"]);
    assert_eq!(other[0]["names"], 1, "in the last snapshot that has it");

    // A directory changes with whatever is below it: a file, no file, the file again. Attributes count, too.
    let directories = versions(&scene, OsStr::new("sessions/"));
    assert!(directories.iter().all(|version| version["source"] == "source"));
    let spans: Vec<_> = directories.iter().map(span).collect();
    assert_eq!((spans[0].0, spans[0].1, spans[0].2), (id(0), id(2), 3), "{spans:#?}");
    let last = directories.last().unwrap();
    assert_eq!((&last["kind"], span(last)), (&"file".into(), (id(7), id(7), 1, None)));
    assert_eq!([&directories[0]["entries"], &directories[0]["link_group"]], [&1.into(), &Value::Null]);
    assert!(directories.iter().all(|version| version["vanished_snapshot"].is_null()), "another took its place");

    // The root has no name.
    assert_eq!(versions(&scene, OsStr::new("/")).first().map(|root| root["path"].clone()), Some("".into()));

    let text = scene.ok(&["history", "sessions/full-1/blob"]);
    let [head, first, what, gone, ..] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert_eq!(head, "sessions/full-1/blob in source: 2 versions");
    assert!(first.starts_with(&format!("  first {} of ", &id(0)[..8])) && first.len() <= 80, "{text}");
    assert!(what.contains(", 1 name; 4 of 7 snapshots") && gone.contains(&id(7)[..8]), "{text}");
}

#[test]
fn paths_may_be_of_any_bytes_and_sources_are_apart() {
    let scene = Scene::new();
    let name = OsStr::from_bytes(b"odd \xff\n:name");
    let other = scene.path("other-source");
    fs::create_dir_all(other.join("dir")).unwrap();
    fs::create_dir(scene.source().join("dir")).unwrap();
    for source in [scene.source(), other.clone()] {
        fs::write(source.join("dir").join(name), "text").unwrap();
    }
    scene.ok(&["snapshot", "source"]);
    scene.ok(&["snapshot", "other-source"]);
    let path = Path::new("//dir/./").join(name);
    let found = versions(&scene, path.as_os_str());
    let sources: Vec<&str> = found.iter().map(|version| version["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["other-source", "source"]);
    assert!(found.iter().all(|version| version["path_bytes"].as_str().unwrap().ends_with("6f646420ff0a3a6e616d65")));
    assert!(found.iter().all(|version| version["vanished_snapshot"].is_null()));

    let nothing = scene.code(1, &["history", "dir/no such name"]);
    assert!(err(&nothing).contains("dir/no such name is in no snapshot") && out(&nothing).is_empty());
    assert!(err(&scene.code(1, &["history", "dir/../dir"])).contains(".."));
}

/// What cannot be read is neither there nor gone: the other snapshots are shown, and the damage is reported.
#[test]
fn a_snapshot_that_is_damaged_is_left_out() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    let first = scene.snapshot();
    locks::locked(&scene.store(), |replica| {
        let (_, mut record) = replica.catalog().unwrap().snapshots().unwrap().swap_remove(0);
        let mut root = record.root_directory().unwrap();
        root.body = Body::Page(ObjectId(999_999));
        record.root = HEXLOWER.encode(&encode_root(&root));
        record.id = record.compute_id(&replica.config().id);
        let mut writer = replica.writer().unwrap();
        writer.add_snapshot(&record).unwrap();
        writer.commit().unwrap();
    });
    let output = scene.code(7, &["--json", "history", "file"]);
    let found = events(&output);
    assert_eq!(span(&found[0]), (first.as_str(), first.as_str(), 1, None), "{found:#?}");
    assert_eq!((found.len(), &found[1]["event"]), (2, &"error".into()));
    assert!(err(&output).contains("is left out"), "{}", err(&output));
}
