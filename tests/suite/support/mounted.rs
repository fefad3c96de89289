//! A store, a source and a place to mount on, driven through the command as a user does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is bound to happen; none of the tests waits for it to pass.
pub const SOON: Duration = Duration::from_secs(300);
/// How long a program that is just being started may keep a file of a mount open.
const UNMOUNTED: Duration = Duration::from_secs(10);

/// Whom the top of a source belongs to: nobody whom a default would name.
pub const SOURCE_OWNER: u32 = 54321;
/// And when it was changed, in seconds since 1970 and nanoseconds: not while the test runs.
pub const SOURCE_TIME: (i64, i64) = (1_023_456_789, 987_654_321);

/// One test's directory. What is still mounted in it is taken away at the end.
pub struct Scene {
    directory: TempDir,
}

impl Scene {
    /// Makes an empty source, an empty store and the place `mnt`.
    pub fn new() -> Scene {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root: run scripts/test as root, or scripts/test --unprivileged for the others"
        );
        let scene = Scene { directory: TempDir::new().unwrap() };
        fs::create_dir(scene.source()).unwrap();
        // What a wrong default cannot hit by chance.
        std::os::unix::fs::chown(scene.source(), Some(SOURCE_OWNER), Some(SOURCE_OWNER + 1)).unwrap();
        fs::create_dir(scene.mnt()).unwrap();
        scene.ok(&["init"]);
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Prepares the program with an environment that cannot disturb.
    pub fn command(&self) -> Command {
        self.command_on(&self.store())
    }

    /// Prepares the program for another store.
    pub fn command_on(&self, store: &Path) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("zmreplica"));
        fs::write(self.path("empty.toml"), "").unwrap();
        command.env_clear().env("TZ", "UTC").env("ZMREPLICA_CONFIG", self.path("empty.toml"));
        // Where fusermount3 is, for users other than root.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir(self.directory.path()).arg("--store").arg(store);
        command
    }

    /// Runs the program and expects an exit code.
    pub fn code(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.command().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
        output
    }

    /// Runs the program, expects success and returns stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        out(&self.code(0, arguments))
    }

    /// Takes a snapshot of the whole source and returns its identifier.
    pub fn snapshot(&self) -> String {
        self.snapshot_with(0)
    }

    /// Takes a snapshot that the guard finds suspect.
    pub fn suspect_snapshot(&self) -> String {
        self.snapshot_with(4)
    }

    fn snapshot_with(&self, code: i32) -> String {
        let time = rustix::fs::Timespec { tv_sec: SOURCE_TIME.0, tv_nsec: SOURCE_TIME.1 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, self.source(), &times, rustix::fs::AtFlags::empty()).unwrap();
        let said = out(&self.code(code, &["--json", "snapshot", "--no-default-excludes", "source"]));
        let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(summary["event"], "summary");
        summary["id"].as_str().unwrap().to_owned()
    }

    /// Mounts the newest snapshot at `mnt`.
    pub fn mount(&self) -> u32 {
        self.mount_with(&["latest", "mnt"])
    }

    /// Mounts and returns the process that serves.
    pub fn mount_with(&self, arguments: &[&str]) -> u32 {
        let mut all = vec!["--json", "mount", "--log", "log"];
        all.extend(arguments);
        let event: Value = serde_json::from_str(&self.ok(&all)).unwrap();
        assert_eq!(event["event"], "mounted");
        event["pid"].as_u64().unwrap().try_into().unwrap()
    }

    pub fn umount(&self) {
        self.ok(&["umount", "mnt"]);
        assert_eq!(mounts_below(self.directory.path()), Vec::<String>::new());
        assert_eq!(fs::read_dir(self.mnt()).unwrap().count(), 0);
    }

    /// Returns what servers logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the leases as `snapshots` lists them: snapshot, process, mount point.
    pub fn leases(&self) -> Vec<(String, u64, String)> {
        let mut leases = Vec::new();
        for line in self.ok(&["--json", "snapshots"]).lines() {
            let snapshot: Value = serde_json::from_str(line).unwrap();
            for lease in snapshot["leases"].as_array().unwrap() {
                let place = lease["mount_point"].as_str().unwrap().to_owned();
                leases.push((snapshot["id"].as_str().unwrap().to_owned(), lease["pid"].as_u64().unwrap(), place));
            }
        }
        leases
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A failed test must not leave anything that the next one, or the user, trips over.
        for _ in 0..8 {
            for place in mounts_below(self.directory.path()) {
                let _ = Command::new("umount").arg("-l").arg(place).stderr(Stdio::null()).status();
            }
        }
    }
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs another program, expects success and returns stdout.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}{}", out(&output), err(&output));
    out(&output)
}

/// Unmounts with the system's own command. A program that another test is just starting may have a file in there open for a moment.
pub fn unmount(place: &Path) {
    let mut said = String::new();
    let unmounted = || {
        let output = Command::new("umount").arg(place).output().unwrap();
        said = err(&output);
        output.status.success() || !said.contains("busy")
    };
    within(UNMOUNTED, "the unmount", unmounted);
    assert_eq!(said, "", "{}", place.display());
}

/// Runs a line of shell, with `$1`, `$2`, ... and expects success.
pub fn shell(line: &str, arguments: &[&Path]) -> String {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", line, "bash"]).args(arguments))
}

/// Asserts that rsync, comparing every byte, finds nothing to do.
pub fn assert_rsync_finds_nothing(left: &Path, right: &Path) {
    let differences = shell(r#"rsync -aHAXnic --numeric-ids --delete "$1/" "$2/""#, &[left, right]);
    assert_eq!(differences, "", "rsync finds differences");
}

/// Returns the mount points at or below a directory, last mounted first.
pub fn mounts_below(directory: &Path) -> Vec<String> {
    let directory = fs::canonicalize(directory).unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<String> =
        places.filter(|place| Path::new(place).starts_with(&directory)).map(str::to_owned).collect();
    below.reverse();
    below
}

/// Waits for what is bound to come true.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(SOON, what, holds);
}

fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn is_alive(pid: u32) -> bool {
    // A child of init that is just being reaped counts as gone.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Ends a child when the test does.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
