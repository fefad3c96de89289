//! The service's restrictions leave room for a night: its capabilities are enough, and each of them is needed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const UNIT: &str = include_str!("../../packaging/systemd/zmreplica-nightly.service");
const PULL: &str = include_str!("../../packaging/systemd/zmreplica-pull.conf");

const EXAMPLE: &str = include_str!("../../packaging/zmreplica.toml");

/// The last value of a setting, as systemd reads a unit.
fn setting<'a>(unit: &'a str, name: &str) -> Option<&'a str> {
    unit.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// Capabilities as setpriv writes them.
fn capabilities(unit: &str) -> Vec<String> {
    let names = setting(unit, "CapabilityBoundingSet").unwrap();
    names.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase()).collect()
}

/// Runs a program as root with these capabilities and no others, and without new privileges.
fn run_with(capabilities: &[String], directory: &Path, arguments: &[&str]) -> Output {
    let set = |first: &str| capabilities.iter().fold(first.to_owned(), |set, name| format!("{set},+{name}"));
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--inh-caps=-all", "--bounding-set", &set("-all"), "--"]);
    command.arg(assert_cmd::cargo::cargo_bin!("zmreplica")).args(["--store", "store"]).args(arguments);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TZ", "UTC").current_dir(directory).output().unwrap()
}

/// A source of one user that nobody else can read, and a store of another.
fn scene() -> TempDir {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root, to give files to others and to drop capabilities"
    );
    let scene = TempDir::new().unwrap();
    fs::create_dir_all(scene.path().join("source/private")).unwrap();
    fs::write(scene.path().join("source/private/file"), "text").unwrap();
    for name in ["source/private/file", "source/private"] {
        let path = scene.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(if name.ends_with("file") { 0o400 } else { 0o700 }))
            .unwrap();
        std::os::unix::fs::chown(&path, Some(4711), Some(4711)).unwrap();
    }
    let store = scene.path().join("store");
    let made = Command::new(assert_cmd::cargo::cargo_bin!("zmreplica")).arg("--store").arg(&store).arg("init").output();
    assert!(made.unwrap().status.success());
    let given = Command::new("chown").args(["-R", "4712:4712"]).arg(&store).status().unwrap();
    assert!(given.success());
    scene
}

#[test]
fn a_night_needs_no_more_than_the_services_capabilities() {
    let scene = scene();
    let all = capabilities(UNIT);
    assert_eq!(all.len(), 4);
    for arguments in [&["nightly", "source"][..], &["check", "--read-data"], &["prune", "--keep-last", "1"]] {
        let output = run_with(&all, scene.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // A file that others cannot read was read, and what was made belongs to the store's owner.
    let listed = run_with(&all, scene.path(), &["cat", "latest:private/file"]);
    assert_eq!(listed.stdout, b"text");
    let commits =
        fs::read_dir(scene.path().join("store/commits")).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    assert!(commits.map(|metadata| metadata.uid()).all(|uid| uid == 4712));
    // Without any a night of this kind fails or is incomplete, so they are not there for nothing.
    assert_ne!(run_with(&[], scene.path(), &["nightly", "source"]).status.code(), Some(0));
}

#[test]
fn a_pull_runs_as_a_user_of_its_own_without_capabilities() {
    assert_eq!(setting(PULL, "User"), Some("zmreplica"));
    assert_eq!((capabilities(PULL).len(), setting(PULL, "AmbientCapabilities")), (0, Some("")));
    for (name, value) in [("NoNewPrivileges", "yes"), ("UMask", "0077"), ("PrivateTmp", "yes")] {
        assert_eq!(setting(UNIT, name), Some(value), "{name}");
    }
    assert!(setting(UNIT, "MemoryMax").is_some());
    // The example's log is not for this user. What is said instead lies in a directory of its own.
    let log = EXAMPLE.lines().find_map(|line| line.strip_prefix("log = ")).unwrap().trim_matches('"');
    assert!(PULL.contains(&format!("cannot open {log},")), "{log}");
    let own = format!("/var/log/{}", setting(PULL, "LogsDirectory").unwrap());
    assert!(PULL.contains(&format!("log = \"{own}/")) && EXAMPLE.contains(&own), "{own}");
}
