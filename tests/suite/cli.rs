//! The command line from outside: what it prints where, exit codes, and that errors say what to do.

// A test that cannot run here says so.
#![allow(clippy::print_stderr)]

use crate::support::mounted::{err, out};
use crate::support::odd::files;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::Value;
use tempfile::TempDir;

/// A store and a small source in a directory of their own.
struct Bench {
    directory: TempDir,
}

impl Bench {
    /// Makes the source; the store is not there yet.
    fn new() -> Bench {
        let bench = Bench { directory: TempDir::new().unwrap() };
        let source = bench.source();
        fs::create_dir_all(source.join("sessions/full-1/accounts")).unwrap();
        fs::create_dir_all(source.join("lost+found")).unwrap();
        fs::write(source.join("accounts.xml"), "<accounts/>\n").unwrap();
        fs::write(source.join("sessions/full-1/session.xml"), "<session/>\n").unwrap();
        fs::write(source.join("sessions/full-1/blob"), vec![b'x'; 100_000]).unwrap();
        fs::write(source.join("sessions/full-1/empty"), "").unwrap();
        fs::hard_link(source.join("sessions/full-1/blob"), source.join("sessions/full-1/accounts/same")).unwrap();
        symlink("accounts.xml", source.join("link")).unwrap();
        // A night reads files again that were written in the very moment of the one before: these are older than that.
        let hour_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 3600;
        let time = Timespec { tv_sec: hour_ago as i64, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        for file in files(&source) {
            utimensat(CWD, file, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        bench
    }

    /// Makes the source and an empty store.
    fn with_store() -> Bench {
        let bench = Bench::new();
        bench.ok(&["init"]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// Prepares the program without any store named, and with an environment that cannot disturb.
    fn bare(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("zmreplica"));
        command.env_clear().env("TZ", "UTC").current_dir(self.directory.path());
        // A file of the host must not decide what the tests see.
        fs::write(self.path("empty.toml"), "").unwrap();
        command.env("ZMREPLICA_CONFIG", self.path("empty.toml"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.bare().arg("--store").arg(self.path("store")).args(arguments).output().unwrap()
    }

    /// Runs and expects an exit code.
    fn code(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
        output
    }

    /// Runs, expects success and returns stdout.
    fn ok(&self, arguments: &[&str]) -> String {
        out(&self.code(0, arguments))
    }

    fn snapshot(&self) -> String {
        self.ok(&["snapshot", self.source().to_str().unwrap()])
    }
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0xff;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// User and group without any rights.
const NOBODY: u32 = 65534;

fn give_to_nobody(path: &Path) {
    std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give_to_nobody(&entry.unwrap().path());
        }
    }
}

#[test]
fn a_snapshot_is_taken_listed_and_read() {
    let bench = Bench::with_store();
    let text = bench.snapshot();
    assert!(text.contains("9 names") && text.contains("complete"), "{text}");
    let second = bench.snapshot();
    assert!(second.contains("0 files, 0 B"), "{second}");

    let list = bench.ok(&["snapshots"]);
    assert_eq!(list.lines().count(), 3, "{list}");
    let json = events(&bench.ok(&["snapshots", "--json"]));
    assert_eq!(json.len(), 2);
    assert_eq!(json[0]["event"], "snapshot");
    assert_eq!(json[0]["state"], "complete");
    assert_eq!(json[0]["totals"]["names"], 9);
    assert_eq!(json[0]["source"], bench.source().to_str().unwrap());
    assert!(json[0]["time"].as_str().unwrap().ends_with('Z'));

    let id = json[0]["id"].as_str().unwrap();
    assert_eq!(bench.ok(&["cat", &format!("{}:/accounts.xml", &id[..10])]), "<accounts/>\n");
    assert_eq!(bench.ok(&["ls", "latest"]), "accounts.xml\nlink\nsessions\n");
    let recursive = bench.ok(&["ls", "-R", "latest:sessions"]);
    assert_eq!(
        recursive,
        "full-1\nfull-1/accounts\nfull-1/accounts/same\nfull-1/blob\nfull-1/empty\nfull-1/session.xml\n"
    );
    let long = bench.ok(&["ls", "-l", "latest:/sessions/full-1/"]);
    assert!(long.lines().nth(1).unwrap().starts_with("-rw"), "{long}");
    assert!(long.contains("   2 "), "the blob has two names: {long}");
    assert!(bench.ok(&["ls", "-l", "latest:link"]).ends_with("link -> accounts.xml\n"));
    let entries = events(&bench.ok(&["ls", "-R", "--json", "latest"]));
    let group = |path: &str| entries.iter().find(|entry| entry["path"] == path).unwrap()["link_group"].clone();
    assert_eq!(group("sessions/full-1/blob"), group("sessions/full-1/accounts/same"));
    assert_ne!(group("sessions/full-1/blob"), group("accounts.xml"));
}

#[test]
fn names_of_any_bytes_are_kept_for_programs_and_shown_in_json() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::with_store();
    let name = std::ffi::OsStr::from_bytes(b"bad\xff\n");
    fs::write(bench.source().join(name), "").unwrap();
    bench.snapshot();
    let output = bench.code(0, &["ls", "latest"]);
    assert!(output.stdout.windows(5).any(|bytes| bytes == b"bad\xff\n"));
    let entries = events(&bench.ok(&["ls", "--json", "latest"]));
    let entry = entries.iter().find(|entry| entry["path_bytes"] == "626164ff0a").unwrap();
    assert_eq!(entry["path"], "bad\\xff\\x0a");
}

#[test]
fn differences_are_shown_by_letter() {
    let bench = Bench::with_store();
    let session = bench.source().join("sessions/full-1");
    fs::write(session.join("pair-a"), "pair").unwrap();
    fs::hard_link(session.join("pair-a"), session.join("pair-b")).unwrap();
    bench.snapshot();
    assert_eq!(bench.ok(&["diff", "latest", "latest"]), "");

    let keep_time = |path: &Path, action: &dyn Fn()| {
        let time = fs::metadata(path).unwrap().modified().unwrap();
        action();
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    fs::write(session.join("session.xml"), "<session>2</session>\n").unwrap();
    fs::remove_file(session.join("empty")).unwrap();
    fs::write(session.join("added"), "new").unwrap();
    fs::set_permissions(session.join("blob"), fs::Permissions::from_mode(0o600)).unwrap();
    // The pair is parted: the same bytes, mode and time, but two inodes.
    keep_time(&session.join("pair-b"), &|| {
        fs::write(session.join("copy"), "pair").unwrap();
        fs::rename(session.join("copy"), session.join("pair-b")).unwrap();
    });
    bench.snapshot();
    let ids: Vec<String> = events(&bench.ok(&["snapshots", "--json"]))
        .iter()
        .map(|snapshot| snapshot["id"].as_str().unwrap().to_owned())
        .collect();
    let text = bench.ok(&["diff", &ids[0], "latest"]);
    let expected = "U sessions/full-1\n\
        U sessions/full-1/accounts/same\n\
        + sessions/full-1/added\n\
        U sessions/full-1/blob\n\
        - sessions/full-1/empty\n\
        L sessions/full-1/pair-b\n\
        M sessions/full-1/session.xml\n";
    assert_eq!(text, expected);
    let json = events(&bench.ok(&["--json", "diff", &ids[0], &ids[1]]));
    assert_eq!(json.last().unwrap()["attributes"], 3);
    assert!(json.iter().any(|event| event["change"] == "links" && event["path"] == "sessions/full-1/pair-b"));
}

#[test]
fn paths_are_found_in_one_snapshot_or_all() {
    let bench = Bench::with_store();
    bench.snapshot();
    fs::write(bench.source().join("sessions/other.xml"), "").unwrap();
    bench.snapshot();
    let all = bench.ok(&["find", "*.xml"]);
    let rows: Vec<(usize, &str)> = all
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(ids, path)| (ids.split(',').count(), path))
        .collect();
    assert_eq!(rows, [(2, "accounts.xml"), (2, "sessions/full-1/session.xml"), (1, "sessions/other.xml")]);
    assert_eq!(bench.ok(&["find", "/sessions/*.xml", "--snapshot", "latest"]), "sessions/other.xml\n");
    assert_eq!(bench.ok(&["find", "full-*/", "--snapshot", "latest"]), "sessions/full-1\n");
    let json = events(&bench.ok(&["find", "--json", "link"]));
    assert_eq!((json[0]["kind"].as_str(), json[0]["snapshots"].as_array().map(Vec::len)), (Some("symlink"), Some(2)));
}

#[test]
fn a_restored_tree_is_the_tree() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::with_store();
    bench.snapshot();
    let restored = bench.path("restored");
    bench.ok(&["restore", "--dry-run", "latest", restored.to_str().unwrap()]);
    assert!(!restored.join("accounts.xml").exists());
    bench.ok(&["restore", "latest", restored.to_str().unwrap()]);
    let blob = fs::metadata(restored.join("sessions/full-1/blob")).unwrap();
    assert_eq!(blob.ino(), fs::metadata(restored.join("sessions/full-1/accounts/same")).unwrap().ino());
    assert_eq!(fs::read(restored.join("accounts.xml")).unwrap(), b"<accounts/>\n");
    assert!(!restored.join("lost+found").exists());
    fs::write(restored.join("extra"), "").unwrap();
    let summary = events(&bench.ok(&["--json", "restore", "--delete", "latest:/", restored.to_str().unwrap()]));
    assert_eq!(summary.last().unwrap()["deleted"], 1);
    assert!(!restored.join("extra").exists());
}

#[test]
fn nothing_but_the_summary_is_said_without_a_terminal() {
    let bench = Bench::with_store();
    let output = bench.code(0, &["snapshot", "source"]);
    assert_eq!(err(&output), "");
    assert!(!out(&output).contains('\x1b'));
    let output = bench.code(0, &["-q", "snapshot", "source"]);
    assert_eq!((out(&output), err(&output)), (String::new(), String::new()));
    let output = bench.code(0, &["--json", "snapshot", "source", "--tag", "a", "--tag", "b"]);
    let events = events(&out(&output));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"], "summary");
    assert_eq!(events[0]["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(err(&output), "");
}

#[test]
fn a_dry_run_stores_nothing() {
    let bench = Bench::with_store();
    let output = bench.ok(&["snapshot", "--dry-run", "source"]);
    assert!(output.contains("Nothing was stored"), "{output}");
    assert_eq!(bench.ok(&["snapshots", "--json"]), "");
    let events = events(&bench.ok(&["snapshot", "--dry-run", "--json", "source"]));
    assert_eq!((events[0]["dry_run"].as_bool(), events[0]["names"].as_u64()), (Some(true), Some(9)));
}

#[test]
fn excludes_come_from_the_command_line_and_the_file() {
    let bench = Bench::with_store();
    let config = bench.path("zmreplica.toml");
    let settings = format!("store = {:?}\nsource = {:?}\nexclude = ['/link']\n", bench.path("store"), bench.source());
    fs::write(&config, settings).unwrap();
    let run = |arguments: &[&str]| bench.bare().arg("--config").arg(&config).args(arguments).output().unwrap();
    let output = run(&["snapshot", "--exclude", "empty", "--no-default-excludes"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let names = out(&run(&["ls", "-R", "latest"]));
    assert!(names.contains("lost+found") && !names.contains("empty") && !names.contains("link"), "{names}");

    fs::write(&config, "sorce = '/x'\n").unwrap();
    let output = run(&["snapshots"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("sorce"), "{}", err(&output));
}

#[test]
fn mistakes_of_usage_say_what_to_do() {
    let bench = Bench::with_store();
    for (arguments, reported) in [
        (&["snapshot", "root@mail:"][..], "[user@]host:path"),
        (&["snapshot", "ssh://mail"], "it has no path"),
        (&["snapshot", "--bwlimit", "fast", "mail:/tmp"], "--bwlimit"),
        (&["snapshot"], "source"),
        (&["snapshot", "--compression-level", "20", "source"], "1..=19"),
        (&["snapshot", "--exclude", "[", "source"], "pattern"),
        (&["snapshot", "--ssh-key", "k", "--rsh", "ssh", "mail:/tmp"], "cannot be used"),
        (&["restore", "latest", "mail:"], "[user@]host:path"),
        (&["find", "["], "pattern"),
        (&["no-such-command"], "no-such-command"),
        (&["check", "--read-data=0"], "1..=100"),
        (&["-q", "-v", "snapshots"], "cannot be used"),
    ] {
        let output = bench.code(2, arguments);
        assert!(err(&output).contains(reported), "{arguments:?}: {}", err(&output));
        assert_eq!(out(&output), "");
    }
    let output = bench.bare().arg("snapshots").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("ZMREPLICA_STORE"));
    let event = &events(&out(&bench.code(2, &["--json", "snapshot", "mail:"])))[0];
    assert_eq!((event["event"].as_str(), event["exit_code"].as_u64()), (Some("error"), Some(2)));
    let event = &events(&out(&bench.code(2, &["--json", "no-such-command"])))[0];
    assert_eq!(event["exit_code"], 2);
}

#[test]
fn failures_say_what_to_do() {
    let bench = Bench::new();
    assert!(err(&bench.code(1, &["snapshots"])).contains("init"));
    bench.ok(&["init"]);
    assert!(err(&bench.code(1, &["init"])).contains("not empty"));
    assert!(err(&bench.code(1, &["cat", "latest:accounts.xml"])).contains("zmreplica snapshot"));
    assert!(err(&bench.code(1, &["snapshot", "not-there"])).contains("not-there"));
    fs::create_dir(bench.path("nothing")).unwrap();
    assert!(err(&bench.code(1, &["snapshot", "nothing"])).contains("mount"));
    bench.snapshot();
    assert!(err(&bench.code(1, &["cat", "latest:no/such"])).contains("not in the snapshot"));
    assert!(err(&bench.code(1, &["cat", "latest:sessions"])).contains("is a directory"));
    bench.code(1, &["ls", "ffffffffff"]);
    bench.code(2, &["ls", "yesterday"]);
    let event = &events(&out(&bench.code(1, &["--json", "cat", "latest:no/such"])))[0];
    assert_eq!((event["event"].as_str(), event["exit_code"].as_u64()), (Some("error"), Some(1)));
}

#[test]
fn what_cannot_be_read_makes_the_exit_code_3() {
    use std::os::unix::process::CommandExt;
    let bench = Bench::with_store();
    let locked = bench.source().join("sessions/locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    // Permissions do not stop root, so root runs the program as somebody else.
    let as_root = fs::read_dir(&locked).is_ok();
    let run = |arguments: &[&str]| {
        let mut command = bench.bare();
        command.arg("--store").arg(bench.path("store")).args(arguments);
        if as_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output()
    };
    if as_root {
        give_to_nobody(bench.directory.path());
    }
    let output = match run(&["snapshot", "source"]) {
        Ok(output) => output,
        Err(error) => return eprintln!("NOT TESTED: another user cannot run the program: {error}"),
    };
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    assert!(err(&output).contains("sessions/locked"), "{}", err(&output));
    assert!(out(&output).contains("but for 1 problem"), "{}", out(&output));
    let listed = events(&out(&run(&["snapshots", "--json"]).unwrap()));
    assert_eq!(listed[0]["state"], "problems");
    let output = run(&["--json", "snapshot", "source"]).unwrap();
    assert_eq!(output.status.code(), Some(3));
    let reported = events(&out(&output));
    assert_eq!(
        (reported[0]["event"].as_str(), reported[0]["path"].as_str()),
        (Some("problem"), Some("sessions/locked"))
    );
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_held_store_makes_the_exit_code_5() {
    let bench = Bench::with_store();
    bench.snapshot();
    let lock = fs::File::open(bench.path("store/lock")).unwrap();
    lock.lock().unwrap();
    let output = bench.code(5, &["snapshot", "source"]);
    assert!(err(&output).contains("Another run"), "{}", err(&output));
    bench.code(5, &["repair"]);
    bench.code(5, &["prune"]);
    // Readers need no lock.
    assert_eq!(bench.ok(&["ls", "latest"]).lines().count(), 3);
}

#[test]
fn damage_makes_the_exit_code_7() {
    let bench = Bench::with_store();
    bench.snapshot();
    bench.ok(&["check", "--read-data"]);
    let pack = files(&bench.path("store/packs")).remove(0);
    let middle = fs::metadata(&pack).unwrap().len() as usize / 2;
    flip(&pack, middle);
    let output = bench.code(7, &["check", "--read-data=100"]);
    assert!(out(&output).contains("damage: "), "{}", out(&output));
    let found = events(&out(&bench.code(7, &["check", "--read-data", "--json"])));
    assert_eq!(found[0]["event"], "damage");
    assert_eq!(found.last().unwrap()["clean"], false);
    fs::remove_file(&pack).unwrap();
    let output = bench.code(7, &["cat", "latest:sessions/full-1/blob"]);
    assert!(err(&output).contains("sessions/full-1/blob"), "{}", err(&output));
}

#[test]
fn a_lost_catalogue_is_rebuilt() {
    let bench = Bench::with_store();
    bench.snapshot();
    let before = bench.ok(&["ls", "-lR", "latest"]);
    fs::write(bench.path("store/catalog.redb"), vec![0; 10_000]).unwrap();
    let output = bench.code(7, &["ls", "latest"]);
    assert!(err(&output).contains("zmreplica repair"), "{}", err(&output));
    let output = bench.code(0, &["repair"]);
    assert!(err(&output).contains("1 snapshot"), "{}", err(&output));
    assert_eq!(bench.ok(&["ls", "-lR", "latest"]), before);
    bench.snapshot();
    bench.ok(&["check"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    use std::process::Stdio;
    let bench = Bench::with_store();
    for number in 0..3000 {
        fs::write(bench.source().join(format!("a-file-with-quite-a-long-name-{number:05}")), "").unwrap();
    }
    bench.snapshot();
    let mut child = bench
        .bare()
        .arg("--store")
        .arg(bench.path("store"))
        .args(["ls", "-R", "latest"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), err(&output)), (Some(0), String::new()));
}

#[test]
fn figures_and_completions_are_written() {
    let bench = Bench::with_store();
    bench.snapshot();
    assert!(bench.ok(&["stats"]).contains("deduplication"));
    let stats = &events(&bench.ok(&["stats", "--json"]))[0];
    assert_eq!((stats["event"].as_str(), stats["snapshots"].as_u64()), (Some("stats"), Some(1)));
    for shell in ["bash", "zsh", "fish"] {
        let output = bench.bare().args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && out(&output).contains("zmreplica"), "{shell}");
    }
    assert!(out(&bench.bare().arg("--help").output().unwrap()).contains("Exit codes"));
}

/// The events of a name, of the lines of JSON that a command wrote.
fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_prune_says_what_goes_and_why_and_does_it() {
    let bench = Bench::with_store();
    for number in 0..4 {
        fs::write(bench.source().join("sessions/full-1/blob"), format!("{number} ").repeat(40_000)).unwrap();
        let tag: &[&str] = if number == 1 { &["--tag", "before-upgrade"] } else { &[] };
        bench.ok(&[&["snapshot", "source"], tag].concat());
    }
    // Without a rule nothing goes, and that is said.
    let output = bench.code(0, &["prune"]);
    assert!(
        err(&output).contains("No retention rules are set") && out(&output).contains("4 snapshots kept"),
        "{}",
        err(&output)
    );
    // The plan is the same with and without --dry-run.
    let keep = ["--json", "prune", "--keep-last", "1", "--keep-tag", "before-upgrade"];
    let arguments = [&keep[..], &["--max-unused", "0", "--grace", "0s"]].concat();
    let planned = events(&bench.ok(&[&arguments[..], &["--dry-run"]].concat()));
    let done = events(&bench.ok(&arguments));
    assert_eq!(named(&planned, "decision"), named(&done, "decision"));
    let decisions = named(&planned, "decision");
    let kept: Vec<bool> = decisions.iter().map(|decision| decision["keep"].as_bool().unwrap()).collect();
    assert_eq!(kept, [false, true, false, true]);
    assert_eq!(decisions[1]["reasons"][0], "tag before-upgrade");
    assert!(decisions[0]["freed_bytes"].as_u64().unwrap() > 0 && decisions[1].get("freed_bytes").is_none());
    let (plan, summary) = (named(&planned, "plan")[0], named(&done, "summary")[0]);
    assert_eq!((plan["dry_run"].as_bool(), plan["removed_snapshots"].as_u64()), (Some(true), Some(2)));
    assert_eq!(summary["removed_snapshots"], 2);
    assert!(summary["deleted_bytes"].as_u64() > summary["written_bytes"].as_u64(), "{summary}");
    assert!(named(&planned, "summary").is_empty());
    assert_eq!(events(&bench.ok(&["--json", "snapshots"])).len(), 2);
    bench.ok(&["check", "--read-data"]);

    // Rules of the configuration file; those of the command line stand in for them.
    fs::write(bench.path("rules.toml"), "[retention]\nkeep-last = 2\nkeep-tags = ['none']\n").unwrap();
    let rules = bench.path("rules.toml").display().to_string();
    let text = bench.ok(&["--config", &rules, "prune", "--dry-run"]);
    assert!(text.contains("2 snapshots kept, 0 would be removed"), "{text}");
    let text = bench.ok(&["--config", &rules, "prune", "--keep-last", "1"]);
    assert!(text.contains("remove  ") && text.contains("no rule keeps it, frees"), "{text}");
    assert_eq!(events(&bench.ok(&["--json", "snapshots"])).len(), 1);

    let message = err(&bench.code(2, &["prune", "--keep-within", "3 months"]));
    assert!(message.contains("3m"), "{message}");
    for pack in files(&bench.path("store/packs")) {
        fs::remove_file(pack).unwrap();
    }
    let message = err(&bench.code(7, &["prune", "--keep-last", "1"]));
    assert!(message.contains("Nothing was removed") && message.contains("zmreplica repair"), "{message}");
    let output = bench.code(7, &["repair"]);
    assert!(out(&output).contains("damaged pack") && out(&output).contains("is lost"), "{}", out(&output));
    // The source still has all of it.
    bench.ok(&["snapshot", "source"]);
    bench.ok(&["check", "--read-data"]);
}
