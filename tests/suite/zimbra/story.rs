//! The whole story from outside: a mailbox is lost, the session that held it was deleted, and the deletion was replicated.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use zmreplica_treegen::{BlobMode, Config, Generator};

use super::site::small;
use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, shell};

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn scene(config: Config) -> (Scene, Generator) {
    let scene = Scene::new();
    let generator = Generator::create(&scene.source(), config, 2).unwrap();
    (scene, generator)
}

/// docs/restore.md: from `accounts` to a mount to the ready `zmrestore` line.
#[test]
fn a_lost_mailbox_is_found_and_restored() {
    // Auto-grouped, so that one session alone holds an account.
    let (scene, generator) = scene(Config { accounts: 7, groups: 7, fulls: 1, ..small(BlobMode::Files) });
    let before = scene.path("before");
    let good = scene.snapshot();
    shell(r#"cp -a "$1" "$2""#, &[&scene.source(), &before]);
    assert!(scene.ok(&["accounts"]).contains("up to date"));

    // The newest session is deleted by accident, and the night after faithfully records it.
    let label = generator.labels().pop().unwrap();
    fs::remove_dir_all(scene.source().join("sessions").join(&label)).unwrap();
    let bad = scene.suspect_snapshot();

    // 1. The morning after: the table names the account, and the exit code calls for attention.
    let table = scene.code(4, &["accounts"]);
    assert!(out(&table).lines().any(|line| line.contains(" lost ") && line.contains(&label)), "{}", out(&table));
    assert!(err(&table).contains("Less can be restored than from the previous snapshot"), "{}", err(&table));
    let json = events(&out(&scene.code(4, &["--json", "accounts"])));
    let summary = json.last().unwrap();
    assert_eq!((summary["event"].as_str(), summary["compared_with"].as_str()), (Some("summary"), Some(good.as_str())));
    assert_eq!((summary["accounts"].as_u64(), summary["lost"].as_u64()), (Some(7), Some(1)));
    let lost: Vec<&Value> = json.iter().filter(|event| event["state"] == "lost").collect();
    let [lost] = lost[..] else { panic!("{json:?}") };
    let email = lost["email"].as_str().unwrap();
    assert!(summary["no_longer_whole"].as_array().unwrap().iter().any(|name| name == email));
    assert_eq!(
        (lost["snapshot"].as_str(), lost["faults"][0]["kind"].as_str()),
        (Some(bad.as_str()), Some("latest_absent"))
    );

    // 2. When was it last whole? And which session went?
    let history = out(&scene.code(0, &["accounts", "--history", "--account", email]));
    assert_eq!(
        history.lines().filter(|line| line.contains("up to date") || line.contains("lost")).count(),
        2,
        "{history}"
    );
    let all = events(&scene.ok(&["--json", "accounts", "--history"]));
    let of = all.iter().find(|event| event["email"] == email).unwrap();
    assert_eq!((of["last_whole_snapshot"].as_str(), of["state"].as_str()), (Some(good.as_str()), Some("lost")));
    let sessions = scene.ok(&["sessions"]);
    assert!(sessions.lines().any(|line| line.starts_with(&label) && line.contains("no: ")), "{sessions}");

    // 3. The way back, as commands.
    let mount_point = scene.mnt();
    let explained = scene.code(4, &["accounts", "--account", email, "--mountpoint", mount_point.to_str().unwrap()]);
    let explained = out(&explained);
    assert!(
        explained.contains("cannot be restored from this snapshot") && explained.contains(&good[..8]),
        "{explained}"
    );
    let commands: Vec<&str> = explained.lines().map(str::trim).filter(|line| line.starts_with("zm")).collect();
    let [mount, restore, beside, umount] = commands[..] else { panic!("{explained}") };
    assert_eq!(restore, format!("zmrestore -t {} -a {email} -br", mount_point.display()));
    assert_eq!(beside, format!("{restore} -ca -pre restored_"));

    // A moment that only the earlier snapshot has is answered from there.
    let at = format!("{}-{}-{}T23:00:00Z", &label[5..9], &label[9..11], &label[11..13]);
    let moment = scene.code(4, &["accounts", "--account", email, "--at", &at]);
    assert!(out(&moment).contains("cannot be restored"), "{}", out(&moment));
    let shortly = format!("{}T{}:{}Z", &at[..10], &label[14..16], &label[16..18]);
    let answered = out(&scene.code(4, &["accounts", "--account", email, "--at", &shortly]));
    assert!(answered.contains(&format!("The time can be restored from the snapshot {}", &good[..8])), "{answered}");
    assert!(answered.contains("-restoreToTime"), "{answered}");

    // 4. Pasted into a shell. In place of the vendor's tool: what it would read is there, and as it was.
    paste(&scene, mount);
    assert_rsync_finds_nothing(&before, &mount_point);
    let email_of = |tree: &Path| fs::read_to_string(tree.join("accounts.xml")).unwrap().contains(email);
    assert!(email_of(&mount_point));
    paste(&scene, umount);
    assert_eq!(fs::read_dir(&mount_point).unwrap().count(), 0);
    drop(generator);
}

/// Runs a line as a user would, with the program found by its name.
fn paste(scene: &Scene, line: &str) {
    let program = assert_cmd::cargo::cargo_bin!("zmreplica");
    let mut command = Command::new("bash");
    let path =
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", program.parent().unwrap().display());
    command.env("PATH", path).env("ZMREPLICA_CONFIG", scene.path("empty.toml")).args(["-euc", line]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}{}", out(&output), err(&output));
}

#[test]
fn a_moment_is_answered_for_every_account() {
    let (scene, mut generator) = scene(small(BlobMode::Files));
    generator.night().unwrap();
    scene.snapshot();
    let labels = generator.labels();
    let fulls: Vec<&String> = labels.iter().filter(|label| label.starts_with("full-")).collect();
    let day = |label: &str| format!("{}-{}-{}", &label[5..9], &label[9..11], &label[11..13]);
    let moment = format!("{}T12:00:00Z", day(fulls[1]));
    let answers = events(&scene.ok(&["--json", "accounts", "--at", &moment]));
    for answer in &answers[..7] {
        assert_eq!(
            (answer["at"]["restorable"].as_bool(), answer["at"]["full"].as_str()),
            (Some(true), Some(fulls[1].as_str()))
        );
    }
    let early = events(&scene.ok(&["--json", "accounts", "--at", "2020-01-01"]));
    assert!(early[..7].iter().all(|answer| answer["at"]["restorable"] == false));
    let email = answers[0]["email"].as_str().unwrap();
    let explained = scene.ok(&["accounts", "--account", email, "--at", &moment]);
    assert!(
        explained.contains(&format!("-lb {} -br -restoreToTime {}.120000.999", fulls[1], &fulls[1][5..13])),
        "{explained}"
    );
    // Only the sessions up to that moment are read.
    assert!(!explained.contains(&format!("  {}: the account", fulls[2])), "{explained}");
    let said = scene.code(2, &["accounts", "--at", "yesterday"]);
    assert!(err(&said).contains("is not a time"));
    let unknown = scene.code(1, &["accounts", "--account", &email[..4]]);
    assert!(err(&unknown).contains("did you mean") && err(&unknown).contains(email), "{}", err(&unknown));
}

#[test]
fn sessions_are_listed_with_their_states_sizes_and_lives() {
    let (scene, mut generator) = scene(small(BlobMode::Files));
    let first = scene.snapshot();
    generator.delete(None, true).unwrap();
    generator.begin(zmreplica_treegen::Kind::Incremental).unwrap();
    let second = scene.snapshot();
    let listed = events(&scene.ok(&["--json", "sessions"]));
    let sessions: Vec<&Value> = listed.iter().filter(|event| event["event"] == "session").collect();
    assert_eq!(sessions.len(), generator.labels().len() + 1);
    let running = sessions.last().unwrap();
    assert!(running["path"].as_str().unwrap().starts_with("tmp/") && running["appeared"].is_null());
    for session in &sessions[..sessions.len() - 1] {
        assert_eq!((session["state"].as_str(), session["appeared"].as_str()), (Some("complete"), Some(first.as_str())));
        let size = &session["size"];
        assert!(
            size["bytes"].as_u64().unwrap() >= size["new_bytes"].as_u64().unwrap()
                && size["new_bytes"].as_u64().unwrap() > 0
        );
        let of = scene.source().join(session["path"].as_str().unwrap());
        let bytes: u64 =
            shell(r#"find "$1" ! -type d -printf '%i %s\n' | sort -u | awk '{s+=$2} END {print s+0}'"#, &[&of])
                .trim()
                .parse()
                .unwrap();
        assert_eq!(size["bytes"].as_u64(), Some(bytes), "{session}");
    }
    // The second full shares its private messages with the first.
    let fulls: Vec<&&Value> = sessions.iter().filter(|session| session["kind"] == "full").collect();
    assert!(fulls[1]["size"]["new_bytes"].as_u64() < fulls[1]["size"]["bytes"].as_u64());
    let vanished: Vec<&Value> = listed.iter().filter(|event| event["event"] == "vanished").collect();
    let [gone] = vanished[..] else { panic!("{listed:?}") };
    assert_eq!((gone["expected"].as_bool(), gone["vanished"].as_str()), (Some(true), Some(second.as_str())));
    let quick = events(&scene.ok(&["--json", "sessions", "--no-sizes"]));
    assert!(quick.iter().all(|event| event.get("size").is_none()));
    let table = scene.ok(&["sessions", &first]);
    assert_eq!(table.lines().count(), 1 + generator.labels().len() + 1, "{table}");
}

/// `all` are all accounts to zmrestore, and what begins with a dash is an option; a file that says so is damaged, or forged.
#[test]
fn what_is_no_address_gets_no_command_to_paste() {
    let (scene, _generator) = scene(small(BlobMode::Files));
    scene.snapshot();
    let listed = events(&scene.ok(&["--json", "accounts"]));
    let mut email = listed[0]["email"].as_str().unwrap().to_owned();
    let reported = |name: &str, json: &[&str]| {
        let name = format!("--account={name}");
        out(&scene.command().args(json).args(["accounts", &name]).output().unwrap())
    };
    assert_eq!(reported(&email, &[]).matches("zmrestore -t").count(), 2);
    for name in ["all", "-sys", "-a@example.com", "b@example.com all"] {
        let replaced = format!("s|email=\"{email}\"|email=\"{name}\"|g");
        shell(r#"find "$1" -name '*.xml' -exec sed -i "$2" {} +"#, &[&scene.source(), Path::new(&replaced)]);
        scene.snapshot();
        let text = reported(name, &[]);
        assert!(text.contains(": up to date") && text.contains("No command is shown"), "{name}: {text}");
        assert!(!text.contains("zmrestore -"), "{name}: {text}");
        let event = &events(&reported(name, &["--json"]))[0];
        assert_eq!(event["email"], name);
        assert_eq!(event["restore"]["commands"].as_array().map(Vec::len), Some(0), "{event}");
        email = name.to_owned();
    }
}
