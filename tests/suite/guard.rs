//! The guard from outside: accidents make a night suspect and are undone, what is usual does not.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, run, shell, unmount};
use crate::support::zimbra::{self, event, night, protected, reasons, replace, snapshots, tree};
use serde_json::Value;

const NONE: [u64; 0] = [];

/// A good night of a tree whose sessions are old.
fn old_night(scene: &Scene) {
    scene.code(0, &["nightly", "source", "--max-session-age", "off"]);
}

/// A source of usual age, and a copy of it to judge by, after two good nights.
fn before_the_accident() -> Scene {
    let scene = Scene::new();
    tree(&scene, 15);
    shell(r#"cp -a "$1" "$2""#, &[&scene.source(), &scene.path("before")]);
    night(&scene, 0);
    night(&scene, 0);
    assert_eq!(protected(&scene), NONE);
    scene
}

/// The five-minute undo of docs/operations.md, and what must hold around it: `suspect` nights have passed since the last good one.
fn undo_and_accept(scene: &Scene, suspect: usize) {
    let all = snapshots(scene);
    assert_eq!(all.len(), 2 + suspect);
    for (at, snapshot) in all.iter().enumerate() {
        assert_eq!(snapshot["state"], if at < 2 { "complete" } else { "suspect" });
    }
    // Everything since the last good one is kept; the one before it is up to the policy.
    let since_good: Vec<u64> = (1..all.len() as u64).collect();
    assert_eq!(protected(scene), since_good);
    scene.code(4, &["status"]);

    let good = all[1]["id"].as_str().unwrap();
    assert_eq!(all[2]["compared_with"], good);
    scene.ok(&["restore", good, "source"]);
    assert_rsync_finds_nothing(&scene.path("before"), &scene.source());
    scene.ok(&["mount", good, "mnt"]);
    // The snapshot does not hold it.
    fs::remove_dir(scene.path("before/lost+found")).unwrap();
    shell(r#"touch -r "$1" "$2""#, &[&scene.source(), &scene.path("before")]);
    assert_rsync_finds_nothing(&scene.path("before"), &scene.mnt());
    scene.umount();

    // The next night is good again, and nobody has accepted the others.
    let after = night(scene, 0);
    assert_eq!((&after["snapshot"]["state"], after["suspects"].as_u64()), (&"complete".into(), Some(suspect as u64)));
    assert_eq!(protected(scene), (1..=all.len() as u64).collect::<Vec<_>>());
    scene.code(4, &["status"]);
    scene.ok(&["accept", "latest"]);
    assert_eq!(protected(scene), NONE);
    scene.ok(&["status"]);
    assert!(snapshots(scene).iter().all(|snapshot| snapshot["state"] == "complete"));
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_deleted_sessions_directory_is_suspect_night_after_night_until_it_is_undone() {
    let scene = before_the_accident();
    fs::remove_dir_all(scene.source().join("sessions")).unwrap();
    let reported = night(&scene, 4);
    assert_eq!((&reported["outcome"], &reported["snapshot"]["state"]), (&"warning".into(), &"suspect".into()));
    assert!(reasons(&reported["snapshot"]).contains("sessions/ is gone; it had 15 sessions"), "{reported}");
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "sessions-gone");
    // Compared with the last good one, not with the one before, which has no sessions either.
    let again = night(&scene, 4);
    assert!(reasons(&again["snapshot"]).contains("sessions/ is gone"));
    let table = scene.code(0, &["snapshots"]);
    assert!(err(&table).contains("sessions/ is gone"), "{}", err(&table));
    undo_and_accept(&scene, 2);
}

/// docs/operations.md: "what is there is left alone, and the names that come back are linked with it again."
#[test]
fn one_lost_session_comes_back_linked_with_the_others() {
    let scene = before_the_accident();
    shell(r#"rm -r "$(ls -d "$1"/sessions/full-* | sed -n 2p)""#, &[&scene.source()]);
    let reported = night(&scene, 4);
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "sessions-vanished", "{reported}");
    let good = snapshots(&scene)[1]["id"].as_str().unwrap().to_owned();
    scene.ok(&["restore", &format!("{good}:sessions"), "source/sessions"]);
    assert_rsync_finds_nothing(&scene.path("before/sessions"), &scene.source().join("sessions"));
    let healed = night(&scene, 0);
    assert_eq!(healed["snapshot"]["totals"], snapshots(&scene)[1]["totals"]);
}

#[test]
fn device_nodes_and_set_id_files_are_suspect_when_they_come_and_no_news_afterwards() {
    let scene = before_the_accident();
    // In a session that is there, in a new directory, and under a name that was a usual file's.
    let line = r#"cd "$1"; full=$(ls -d sessions/full-* | tail -1); mkdir -p tmp/new/deep; mknod tmp/new/deep/null c 1 3; mkfifo tmp/new/fifo
        chmod 4755 "$full/session.xml"; echo x > "$full/sgid"; chmod 2755 "$full/sgid"; ln "$full/sgid" tmp/new/sgid2"#;
    shell(line, &[&scene.source()]);
    let reported = night(&scene, 4);
    let text = reasons(&reported["snapshot"]);
    assert!(text.contains("4 names of device nodes, or of files with a set-user-ID"), "{text}");
    for name in ["/session.xml", "/sgid", "tmp/new/deep/null", "tmp/new/sgid2"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "specials");
    assert!(reasons(&night(&scene, 4)["snapshot"]).contains("4 names"), "night after night until it is accepted");
    scene.ok(&["accept", "latest"]);
    night(&scene, 0);
    shell(r#"mknod "$1/disk" b 7 99"#, &[&scene.source()]);
    let text = reasons(&night(&scene, 4)["snapshot"]);
    assert!(text.contains("1 name of") && text.contains(": disk"), "{text}");
}

#[test]
fn sessions_emptied_or_without_any_full_are_suspect_however_old_they_are() {
    let scene = Scene::new();
    tree(&scene, 400);
    old_night(&scene);
    shell(r#"rm -rf "$1"/sessions/full-*"#, &[&scene.source()]);
    assert!(reasons(&night(&scene, 4)["snapshot"]).contains("No full session is left"));
    shell(r#"rm -rf "$1"/sessions/*"#, &[&scene.source()]);
    assert!(reasons(&night(&scene, 4)["snapshot"]).contains("No session is left in sessions/"));
}

#[test]
fn a_lost_accounts_xml_is_suspect_until_it_is_back() {
    let scene = before_the_accident();
    fs::remove_file(scene.source().join("accounts.xml")).unwrap();
    let reported = night(&scene, 4);
    assert!(reasons(&reported["snapshot"]).contains("accounts.xml is missing"), "{reported}");
    undo_and_accept(&scene, 1);
}

#[test]
fn an_unmounted_source_is_an_error_and_commits_nothing() {
    let scene = Scene::new();
    fs::rename(scene.source(), scene.path("volume")).unwrap();
    fs::create_dir(scene.source()).unwrap();
    run(std::process::Command::new("mount").arg("--bind").args([scene.path("volume"), scene.source()]));
    tree(&scene, 15);
    night(&scene, 0);
    unmount(&scene.source());
    assert_eq!(fs::read_dir(scene.source()).unwrap().count(), 0);

    let reported = night(&scene, 1);
    assert_eq!(reported["outcome"], "failure");
    assert!(reported["message"].as_str().unwrap().contains("is empty"), "{reported}");
    assert_eq!((reported["snapshot"].clone(), snapshots(&scene).len()), (Value::Null, 1));
    assert_eq!(protected(&scene), NONE, "nothing is suspect, and without a new snapshot nothing ages");

    // Mounted again, all is as before; and had the volume been lost, the last snapshot would have everything.
    scene.ok(&["restore", "latest", "source"]);
    fs::create_dir(scene.source().join("lost+found")).unwrap();
    shell(
        r#"chmod 700 "$2/lost+found"; touch -r "$1/lost+found" "$2/lost+found"; touch -r "$1" "$2""#,
        &[&scene.path("volume"), &scene.source()],
    );
    assert_rsync_finds_nothing(&scene.path("volume"), &scene.source());
    night(&scene, 0);
}

#[test]
fn what_zmbackup_deletes_in_its_time_is_expected() {
    let scene = Scene::new();
    let mut generator = tree(&scene, 15);
    night(&scene, 0);
    // Half deleted, entirely deleted, and the next ones: oldest first, incrementals among them.
    generator.delete(None, false).unwrap();
    night(&scene, 0);
    generator.delete(None, true).unwrap();
    night(&scene, 0);
    for _ in 0..3 {
        generator.delete(None, true).unwrap();
    }
    night(&scene, 0);
    // Also where the snapshot shows what is being deleted.
    generator.delete(None, false).unwrap();
    scene.code(0, &["nightly", "--no-default-excludes", "source"]);
    assert_eq!(protected(&scene), NONE);
}

#[test]
fn sessions_that_go_too_early_are_suspect() {
    let scene = Scene::new();
    let mut generator = tree(&scene, 15);
    night(&scene, 0);
    // Nothing is known of the retention here: a younger one goes while older ones stay.
    let second = generator.labels().into_iter().filter(|label| label.starts_with("full-")).nth(1).unwrap();
    generator.delete(Some(&second), false).unwrap();
    let output = scene.code(4, &["--json", "nightly", "--no-default-excludes", "source"]);
    let why = reasons(&zimbra::event(&output, "nightly")["snapshot"]);
    assert!(why.contains("older ones of this kind are still there") && why.contains(&second), "{why}");
    assert!(why.contains("zmbackup is deleting 1 of them"), "{why}");
    scene.ok(&["accept", "latest"]);

    // The file says how long they usually stay.
    fs::write(scene.path("config.toml"), "[guard]\nexpect-retention = '3m'\n").unwrap();
    generator.delete(None, true).unwrap();
    let oldest = generator.delete(None, true).unwrap();
    let output = scene.code(4, &["--config", "config.toml", "--json", "nightly", "source"]);
    let why = reasons(&zimbra::event(&output, "nightly")["snapshot"]);
    assert!(why.contains("expect-retention is 3m") && why.contains(&oldest), "{why}");
    fs::write(scene.path("config.toml"), "[guard]\nexpect-retention = '2w'\n").unwrap();
    scene.code(0, &["--config", "config.toml", "nightly", "source"]);
}

#[test]
fn the_usual_age_is_learned_from_earlier_nights() {
    let scene = Scene::new();
    let mut generator = tree(&scene, 15);
    night(&scene, 0);
    // The newest session is from the 14th day. Incrementals of the first days go, as they do at this site.
    for _ in 0..4 {
        generator.delete(None, true).unwrap();
    }
    night(&scene, 0);
    // A day later the next one.
    generator.night().unwrap();
    generator.delete(None, true).unwrap();
    night(&scene, 0);
    // Those of the last days are too young.
    let labels = generator.labels();
    let young: Vec<&String> = labels.iter().filter(|label| label.starts_with("incr-")).rev().skip(1).take(2).collect();
    for label in &young {
        generator.delete(Some(label), true).unwrap();
    }
    let why = reasons(&night(&scene, 4)["snapshot"]);
    assert!(why.contains("2 sessions vanished too early (this kind usually stays for 12 days)"), "{why}");
    assert!(young.iter().all(|label| why.contains(*label)), "{why}");
}

#[test]
fn an_accident_that_nobody_accepted_does_not_become_the_usual() {
    let scene = Scene::new();
    let mut generator = tree(&scene, 15);
    night(&scene, 0);
    generator.delete(None, true).unwrap();
    generator.delete(None, true).unwrap();
    night(&scene, 0);
    let incrementals = |generator: &zmreplica_treegen::Generator| {
        let labels = generator.labels().into_iter().filter(|label| label.starts_with("incr-"));
        labels.rev().collect::<Vec<String>>()
    };
    // Far more go too early than ever went in time.
    for label in &incrementals(&generator)[1..6] {
        generator.delete(Some(label), true).unwrap();
    }
    let mut state = night(&scene, 4)["snapshot"]["state"].clone();
    // Until those would have been old enough, and a night is good again.
    for _ in 0..14 {
        generator.night().unwrap();
        let output = scene.command().args(["--json", "nightly", "source"]).output().unwrap();
        state = event(&output, "nightly")["snapshot"]["state"].clone();
        if state == "complete" {
            break;
        }
    }
    assert_eq!(state, "complete");
    let young = incrementals(&generator).remove(5);
    generator.delete(Some(&young), true).unwrap();
    let why = reasons(&night(&scene, 4)["snapshot"]);
    assert!(why.contains(&young) && why.contains("usually stays for"), "{why}");
}

#[test]
fn accounts_xml_that_names_a_session_that_is_not_there_is_suspect_once() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    let path = scene.source().join("accounts.xml");
    let text = fs::read_to_string(&path).unwrap();
    let label = text.split("latestFullBackupLabel=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let ghost = format!("{}.999", &label[..label.len() - 4]);
    replace(&path, &text.replacen(&label, &ghost, 1));
    let reported = night(&scene, 4);
    assert!(reasons(&reported["snapshot"]).contains(&format!("1 session that is not there: {ghost}")), "{reported}");
    scene.ok(&["accept", "latest", "--reason", "an account that is gone"]);
    night(&scene, 0);
    assert_eq!(snapshots(&scene)[1]["accepted"]["reason"], "an account that is gone");
    replace(&path, "<none/>");
    assert!(reasons(&night(&scene, 4)["snapshot"]).contains("accounts.xml no longer names any session"));
}

#[test]
fn names_that_are_gone_from_inside_a_session_are_suspect() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    shell(r#"rm -r "$(ls -d "$1"/sessions/full-*/accounts/* | head -1)""#, &[&scene.source()]);
    let reported = night(&scene, 4);
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "session-incomplete", "{reported}");
    assert!(reasons(&reported["snapshot"]).contains("sessions/full-"), "{reported}");
}

#[test]
fn nights_of_a_healthy_source_are_good() {
    let scene = Scene::new();
    let mut generator = tree(&scene, 15);
    night(&scene, 0);
    for _ in 0..3 {
        generator.night().unwrap();
        night(&scene, 0);
    }
    // A session that is being written, and is finished later: it moves out of tmp/.
    generator.begin(zmreplica_treegen::Kind::Full).unwrap();
    night(&scene, 0);
    generator.finish().unwrap();
    night(&scene, 0);
    // An upgrade moves the whole old tree into a directory.
    let old = scene.source().join("7.1-8.0");
    fs::create_dir(&old).unwrap();
    fs::rename(scene.source().join("sessions"), old.join("sessions")).unwrap();
    let reported = night(&scene, 4);
    assert!(!reasons(&reported["snapshot"]).contains("is gone"), "{reported}");
    assert!(reasons(&reported["snapshot"]).contains("accounts.xml names"), "its accounts.xml stayed: {reported}");
}

fn plain_tree(source: &Path) {
    for number in 0..400 {
        let directory = source.join(format!("d{}", number % 7));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), format!("text of {number}")).unwrap();
    }
}

fn rewrite(source: &Path, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let file = fs::OpenOptions::new().write(true).open(source.join(format!("d{}/{number}", number % 7))).unwrap();
        file.write_all_at(b"TEXT", 0).unwrap();
    }
}

#[test]
fn a_tree_that_is_not_zimbras_gets_the_general_rules() {
    let scene = Scene::new();
    plain_tree(&scene.source());
    fs::write(scene.source().join("accounts.xml"), "<accounts/>").unwrap();
    night(&scene, 0);
    // A fifth may change, and under a hundred files nothing is a mass.
    rewrite(&scene.source(), 0..90);
    fs::remove_file(scene.source().join("accounts.xml")).unwrap();
    night(&scene, 0);
    rewrite(&scene.source(), 100..220);
    fs::remove_dir_all(scene.source().join("d6")).unwrap();
    let reported = night(&scene, 4);
    let why = reasons(&reported["snapshot"]);
    assert!(why.contains("files were changed in place (26%; changed-share allows 20%)"), "{why}");
    scene.ok(&["accept", "latest"]);
    for number in 0..4 {
        fs::remove_dir_all(scene.source().join(format!("d{number}"))).unwrap();
    }
    let why = reasons(&night(&scene, 4)["snapshot"]);
    assert!(why.contains("are gone (lost-share allows 50%)"), "{why}");
}

/// docs/semantics.md: "A file with many names counts once".
#[test]
fn names_of_one_changed_file_are_no_mass_change() {
    let scene = Scene::new();
    plain_tree(&scene.source());
    let file = scene.source().join("d0/0");
    for number in 0..200 {
        fs::hard_link(&file, scene.source().join(format!("name-{number}"))).unwrap();
    }
    night(&scene, 0);
    rewrite(&scene.source(), 0..1);
    night(&scene, 0);
    let all = snapshots(&scene);
    let changes = scene.ok(&["diff", all[0]["id"].as_str().unwrap(), all[1]["id"].as_str().unwrap()]);
    assert_eq!(changes.lines().filter(|line| line.starts_with("M ")).count(), 201, "{changes}");
}

#[test]
fn what_keeps_the_guard_from_its_work_is_a_reason_to_look() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    // The packs are lost, accounts.xml among them, and nothing at the source is new.
    fs::rename(scene.store().join("packs"), scene.path("packs")).unwrap();
    fs::create_dir(scene.store().join("packs")).unwrap();
    // Damage: what can be restored cannot be found out either.
    let reported = night(&scene, 7);
    assert_eq!(reported["snapshot"]["suspect"][0]["kind"], "not-examined", "{reported}");
    assert_eq!(reported["restorable"]["changes"]["no_longer_whole"].as_array().unwrap().len(), 0, "{reported}");
    fs::remove_dir_all(scene.store().join("packs")).unwrap();
    fs::rename(scene.path("packs"), scene.store().join("packs")).unwrap();
    night(&scene, 0);
}

#[test]
fn a_first_snapshot_may_be_suspect_by_itself() {
    let scene = Scene::new();
    tree(&scene, 15);
    fs::remove_file(scene.source().join("accounts.xml")).unwrap();
    let reported = night(&scene, 4);
    assert_eq!(reported["snapshot"]["compared_with"], Value::Null);
    assert_eq!(protected(&scene), [0]);
    scene.ok(&["accept", "latest"]);
    night(&scene, 0);
}

#[test]
fn pins_accepted_snapshots_and_a_hold_survive_a_rebuilt_catalogue() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    fs::rename(scene.source().join("sessions"), scene.path("aside")).unwrap();
    night(&scene, 4);
    night(&scene, 4);
    let all = snapshots(&scene);
    let ids: Vec<&str> = all.iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
    scene.ok(&["pin", ids[0], "--reason", "before the move"]);
    // Up to that one: the newer one stays suspect.
    let output = scene.code(0, &["accept", ids[1]]);
    assert!(err(&output).contains("1 newer snapshot is still suspect"), "{}", err(&output));
    assert_eq!(protected(&scene), [0, 1, 2], "pinned; the last good one is the accepted one; suspect");
    scene.ok(&["hold", "--reason", "a move"]);
    let listed = |scene: &Scene| scene.ok(&["--json", "snapshots"]);
    let before = listed(&scene);
    assert!(before.contains("before the move"));
    scene.ok(&["check"]);
    fs::remove_file(scene.store().join("catalog.redb")).unwrap();
    scene.ok(&["repair"]);
    assert_eq!(listed(&scene), before);
    assert_eq!(protected(&scene), [0, 1, 2]);
    night(&scene, 6);
    scene.ok(&["release"]);
    scene.ok(&["unpin", ids[0]]);
    scene.ok(&["check"]);
    assert_eq!(protected(&scene), [1, 2]);
    // Nothing has changed since the accepted one; that no account can be restored is told all the same.
    assert_eq!(night(&scene, 4)["snapshot"]["state"], "complete");
}

#[test]
fn what_is_left_out_from_now_on_is_not_missed() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    let patterns = ["--exclude", "/sessions/incr-*", "--exclude", "/sessions/*/sys", "--exclude", "/accounts.xml"];
    // A night would say that less can be restored from it, as is true.
    let all: Vec<&str> = ["snapshot", "source"].iter().chain(&patterns).copied().collect();
    scene.code(0, &all);
}

/// A store of before there were marks has no table for them.
#[test]
fn a_catalogue_without_marks_is_read_and_gets_them() {
    let scene = Scene::new();
    tree(&scene, 15);
    night(&scene, 0);
    {
        let mut builder = redb::Database::builder();
        let database = builder.set_concurrency_mode(redb::ConcurrencyMode::SingleWriter);
        let database = database.open(scene.store().join("catalog.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        assert!(transaction.delete_table(redb::TableDefinition::<u64, &[u8]>::new("marks")).unwrap());
        transaction.commit().unwrap();
    }
    assert_eq!(protected(&scene), NONE);
    scene.ok(&["status"]);
    scene.ok(&["check"]);
    scene.ok(&["unpin", "latest"]);
    scene.ok(&["pin", "latest"]);
    assert_eq!(protected(&scene), [0]);
    scene.ok(&["check"]);
    night(&scene, 0);
}

/// Three months with weekly fulls, daily incrementals and a retention of four weeks, beside them the archives of another tool, which are rotated as well: no
/// false alarm in any night, and an accident at the end.
#[test]
fn a_season_of_nights_raises_no_alarm() {
    let scene = Scene::new();
    let now = jiff::Timestamp::now().as_millisecond();
    let config = zmreplica_treegen::Config {
        accounts: 1,
        messages: 2,
        mean_size_bytes: 500,
        fulls: 1,
        incrementals: 6,
        start_ms: now - 91 * 86_400_000,
        ..zmreplica_treegen::Config::preset(zmreplica_treegen::Preset::Sample)
    };
    let mut generator = zmreplica_treegen::Generator::create(&scene.source(), config, 1).unwrap();
    let mut deleted = 0;
    let beside = |name: String| scene.source().join(name);
    let items = beside("zextras/items".to_owned());
    fs::create_dir_all(&items).unwrap();
    for day in 1..90u32 {
        if day % 7 == 0 {
            generator.full().unwrap()
        } else {
            generator.night().unwrap()
        };
        if day > 28 {
            // zmbackup -del 28d: what began more than 28 days before this day's session.
            generator.delete(None, true).unwrap();
            deleted += 1;
        }
        // A set of archives each week, of which three are kept, and one more file each day, for a week.
        if day % 7 == 0 {
            let set = |day: u32| beside(format!("full-2026{day:04}"));
            fs::create_dir(set(day)).unwrap();
            (0..110).for_each(|number| fs::write(set(day).join(format!("{number}.tgz")), "archive").unwrap());
            if day > 21 {
                fs::remove_dir_all(set(day - 21)).unwrap();
            }
        }
        fs::write(beside(format!("log-{day}.tgz")), "archive").unwrap();
        if day > 7 {
            fs::remove_file(beside(format!("log-{}.tgz", day - 7))).unwrap();
        }
        // Another tool writes items, and removes the old ones once a month.
        (0..10).for_each(|number| fs::write(items.join(format!("{day:02}-{number}")), "item").unwrap());
        if day % 30 == 0 {
            let old = |name: &str| name.split('-').next().unwrap().parse::<u32>().unwrap() + 40 < day;
            for entry in fs::read_dir(&items).unwrap().map(|entry| entry.unwrap()) {
                if old(entry.file_name().to_str().unwrap()) {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        old_night(&scene);
    }
    assert_eq!((deleted, generator.labels().len()), (61, 29));
    assert_eq!(protected(&scene), NONE);
    // -del 1w, by mistake.
    for _ in 0..20 {
        generator.delete(None, true).unwrap();
    }
    let reported = night(&scene, 4);
    assert!(reasons(&reported["snapshot"]).contains("usually stays for 27 days"), "{reported}");
}
