//! What is half begun or half there: an `init` that was killed, the very first snapshot, a catalogue that is missing, pages of it that are zeroed.

use crate::support::odd::files;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Bytes of a page of redb.
const PAGE_BYTES: usize = 4096;

fn command(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmreplica"));
    command.env_remove("RUST_BACKTRACE").env("ZMREPLICA_STORE", store).env("ZMREPLICA_CONFIG", "/dev/null");
    command
}

/// Runs a command; returns its exit code and all that it wrote.
fn run(store: &Path, arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = command(store).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
    assert!(!text.contains("zmreplica: internal error") && !text.contains("panicked"), "{arguments:?}: {text}");
    (status.code().unwrap_or(-1), text)
}

fn done(store: &Path, arguments: &[&str]) -> String {
    let (code, text) = run(store, arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
    text
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn source(place: &Path) -> PathBuf {
    let source = place.join("source");
    fs::create_dir(&source).unwrap();
    for number in 0..300 {
        fs::write(source.join(format!("f{number}")), format!("text {number}\n")).unwrap();
    }
    source
}

/// An `init` that was killed can be repeated, whenever that was; a store that has lost its settings is not taken for one.
#[test]
fn a_killed_init_can_be_repeated() {
    let place = tempfile::tempdir().unwrap();
    let store = place.path().join("store");
    for round in 0..30u64 {
        let mut child = command(&store).arg("init").stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(round * 1500));
        child.kill().unwrap();
        child.wait().unwrap();
        if !store.join("config.json").exists() {
            done(&store, &["init"]);
        }
        done(&store, &["check"]);
        fs::remove_dir_all(&store).unwrap();
    }
    // Every state that it may be killed in: the files in the order in which they are made, the last one half written.
    done(&store, &["init"]);
    fs::remove_file(store.join("config.json")).unwrap();
    let whole = fs::read(store.join("catalog.redb")).unwrap();
    for length in [0, 1, 100, PAGE_BYTES, whole.len() / 2, whole.len()] {
        fs::write(store.join("catalog.redb"), &whole[..length]).unwrap();
        fs::remove_dir(store.join("packs")).unwrap();
        fs::write(store.join(".config.json.tmp-0123456789abcdef"), "{\"for").unwrap();
        done(&store, &["init"]);
        done(&store, &["check"]);
        fs::remove_file(store.join("config.json")).unwrap();
    }
    for (name, bytes) in [("packs/note", ""), ("mail", "x")] {
        fs::write(store.join(name), bytes).unwrap();
        let (code, text) = run(&store, &["init"]);
        assert!(code == 1 && text.contains("is not empty"), "{name}: {text}");
        fs::remove_file(store.join(name)).unwrap();
    }
    assert_eq!(fs::read(store.join("catalog.redb")).unwrap().len(), whole.len(), "refused, it changes nothing");
}

/// "After it, the database is one commit behind: the next writer applies the file": in the very first run as well.
#[test]
fn power_lost_in_the_first_snapshot_is_no_damage() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), source(place.path()));
    done(&store, &["init"]);
    let empty = fs::read(store.join("catalog.redb")).unwrap();
    done(&store, &["snapshot", source.to_str().unwrap()]);
    // The state between the first commit file and its transaction.
    fs::write(store.join("catalog.redb"), empty).unwrap();
    let mut commits: Vec<PathBuf> = files(&store.join("commits"));
    commits.sort();
    assert!(commits.len() > 1);
    commits.iter().skip(1).for_each(|later| fs::remove_file(later).unwrap());
    let text = done(&store, &["check", "--read-data"]);
    assert!(text.contains("1 commit file is not in the catalogue yet"), "{text}");
    done(&store, &["snapshot", source.to_str().unwrap()]);
    done(&store, &["check", "--read-data"]);
}

/// `repair` says that the old catalogue is kept when there is one, and only then.
#[test]
fn repair_speaks_of_an_old_catalogue_only_if_there_is_one() {
    let place = tempfile::tempdir().unwrap();
    let (store, source) = (place.path().join("store"), source(place.path()));
    done(&store, &["init"]);
    done(&store, &["snapshot", source.to_str().unwrap()]);
    let kept = |store: &Path| {
        let names = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("catalog.redb.damaged-")).count()
    };
    // Both within a second: each old one is kept.
    for count in 1..3 {
        let text = done(&store, &["repair"]);
        assert!(text.contains("The old one is kept"), "{text}");
        assert_eq!(kept(&store), count);
    }
    fs::remove_file(store.join("catalog.redb")).unwrap();
    let text = done(&store, &["repair"]);
    assert!(!text.contains("old one"), "{text}");
    assert_eq!(kept(&store), 2);
    done(&store, &["check", "--read-data"]);
}

/// Every page of the catalogue zeroed: what the check finds clean can be written to, what it does not is repaired, and every command reports damage as damage.
#[test]
fn a_zeroed_page_of_the_catalogue_is_damage_and_repaired() {
    let place = tempfile::tempdir().unwrap();
    let (base, store, source) = (place.path().join("base"), place.path().join("store"), source(place.path()));
    let (out, tree) = (place.path().join("out"), source.to_str().unwrap());
    done(&base, &["init"]);
    done(&base, &["snapshot", tree]);
    fs::write(source.join("more"), "more").unwrap();
    done(&base, &["snapshot", tree]);
    let whole = fs::read(base.join("catalog.redb")).unwrap();
    let (mut damaged, mut silent) = (0, 0);
    for page in 0..whole.len() / PAGE_BYTES {
        copy(&base, &store);
        let mut bytes = whole.clone();
        bytes[page * PAGE_BYTES..][..PAGE_BYTES].fill(0);
        let catalog = store.join("catalog.redb");
        fs::set_permissions(&catalog, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&catalog, &bytes).unwrap();
        let (checked, found) = run(&store, &["check", "--read-data"]);
        for arguments in
            [&["status"][..], &["snapshots"], &["ls", "-R", "latest"], &["prune", "--dry-run", "--keep-last", "1"]]
        {
            let (code, text) = run(&store, arguments);
            assert!(code == 0 || code == 7, "page {page}: {arguments:?} {code}: {text}");
            assert!(code == 0 || text.contains("`zmreplica repair"), "page {page}: {arguments:?}: {text}");
            assert!(code == 0 || checked == 7, "page {page}: {arguments:?} finds damage, the check none: {text}");
        }
        let _ = fs::remove_dir_all(&out);
        let (restored, text) = run(&store, &["restore", "latest", out.to_str().unwrap()]);
        match restored {
            0 => {
                let same = Command::new("diff").arg("-r").args([&source, &out]).status().unwrap();
                assert!(same.success(), "page {page}: restored otherwise");
            }
            code => assert!(code == 7 && checked == 7, "page {page}: {code}: {text}"),
        }
        let (taken, text) = run(&store, &["snapshot", tree]);
        assert!(taken == 0 || taken == 7, "page {page}: {taken}: {text}");
        assert!(checked == 0 || found.contains("`zmreplica repair`"), "page {page}: {found}");
        if checked == 0 {
            assert_eq!(taken, 0, "page {page}: the check finds nothing, and a run cannot write: {text}");
            silent += 1;
            continue;
        }
        assert_eq!(checked, 7, "page {page}: {found}");
        damaged += 1;
        done(&store, &["repair"]);
        done(&store, &["check", "--read-data"]);
        done(&store, &["snapshot", tree]);
    }
    assert!(damaged > 5 && silent > 0, "{damaged} pages matter, {silent} do not");
}
