//! Who may read, write and stop a store: modes whatever the umask, stores of other users, stores that root works in, file systems that lack things.
//!
//! The tests change users and mount file systems: they run as root.

use crate::support::odd::paths;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::programs::copy_program;

use tempfile::TempDir;
use zmreplica_treegen::{Config, Generator, Preset};

/// A user without a name, whose stores and sources the tests use.
const USER: u32 = 60_123;
/// Another one.
const OTHER: u32 = 60_124;

struct Bench {
    directory: TempDir,
    user: u32,
    umask: &'static str,
}

impl Bench {
    /// Makes a small tree of a mail server that belongs to `user`, and a place for the store.
    fn new(user: u32) -> Bench {
        assert!(rustix::process::geteuid().is_root(), "these tests change users: run them as root");
        let directory = TempDir::new().unwrap();
        // Where the program was built others may not get in.
        copy_program(assert_cmd::cargo::cargo_bin!("zmreplica"), &directory.path().join("zmreplica"));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("home")).unwrap();
        let bench = Bench { directory, user, umask: "022" };
        let config = Config { accounts: 3, messages: 30, ..Config::preset(Preset::Sample) };
        let mut generator = Generator::create(&bench.source(), config, 2).unwrap();
        generator.night().unwrap();
        generator.full().unwrap();
        let metrics = bench.path("home/metrics.prom");
        let settings = format!(
            "store = '{}'\nsource = '{}'\nmetrics = '{}'\nlog = '{}'\nmax-session-age = 'off'\n[retention]\nkeep-last = 1\n",
            bench.store().display(),
            bench.source().display(),
            metrics.display(),
            bench.path("home/night.log").display()
        );
        fs::write(bench.path("config.toml"), settings).unwrap();
        for path in paths(&bench.path("home")).iter().chain([&bench.path("home")]) {
            std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("home/store")
    }

    fn source(&self) -> PathBuf {
        self.path("home/source")
    }

    /// Runs the program as a user, under a umask.
    fn run_as(&self, user: u32, umask: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask \"$0\"; exec \"$@\"", umask]).arg(self.path("zmreplica"));
        command.args(arguments).current_dir(self.directory.path());
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("ZMREPLICA_CONFIG", self.path("config.toml"));
        if user != 0 {
            command.uid(user).gid(user);
        }
        command.output().unwrap()
    }

    /// Runs the program as the user.
    fn code(&self, code: i32, arguments: &[&str]) -> String {
        reported(code, arguments, &self.run_as(self.user, self.umask, arguments))
    }

    /// Runs the program as root.
    fn root(&self, code: i32, arguments: &[&str]) -> String {
        reported(code, arguments, &self.run_as(0, self.umask, arguments))
    }

    /// Runs the program as somebody whom the store is no business of.
    fn other(&self, code: i32, arguments: &[&str]) -> String {
        reported(code, arguments, &self.run_as(OTHER, self.umask, arguments))
    }

    fn change(&self, text: &str) {
        fs::write(self.source().join("note"), text).unwrap();
    }
}

fn reported(code: i32, arguments: &[&str], output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Fails unless all of a store is its owner's alone.
fn assert_private(store: &Path, owner: u32) {
    for path in paths(store).iter().map(PathBuf::as_path).chain([store]) {
        let metadata = fs::symlink_metadata(path).unwrap();
        let expected: &[u32] = if metadata.is_dir() { &[0o700] } else { &[0o600, 0o400] };
        assert!(expected.contains(&mode(path)), "{} has mode {:o}", path.display(), mode(path));
        assert_eq!(metadata.uid(), owner, "{}", path.display());
    }
}

/// Makes a store look as one of a release that left modes to the umask.
fn widen(store: &Path) {
    for path in paths(store).iter().map(PathBuf::as_path).chain([store]) {
        let is_object = mode(path) == 0o400;
        match fs::symlink_metadata(path).unwrap().is_dir() {
            true => set_mode(path, 0o755),
            false if is_object => {}
            false => set_mode(path, 0o644),
        }
    }
}

/// Runs everything that makes files in a store.
fn live_a_little(bench: &Bench) {
    bench.code(0, &["init"]);
    bench.code(0, &["snapshot"]);
    bench.code(0, &["accounts"]);
    bench.change("two");
    bench.code(0, &["nightly"]);
    bench.change("three");
    bench.code(0, &["nightly"]);
    bench.code(0, &["restore", "latest:accounts.xml", bench.path("home/restored").to_str().unwrap()]);
    bench.code(0, &["report", bench.path("home/page.html").to_str().unwrap()]);
    bench.code(0, &["check", "--read-data"]);
    bench.code(0, &["repair"]);
    bench.code(0, &["prune", "--keep-last", "1"]);
}

#[test]
fn a_store_is_its_owners_alone_whatever_the_umask() {
    for (user, umask) in [(0, "000"), (USER, "000"), (USER, "077"), (USER, "277")] {
        let bench = Bench { umask, ..Bench::new(user) };
        live_a_little(&bench);
        assert_private(&bench.store(), user);
        assert_eq!(mode(&bench.path("home/night.log")), 0o640);
        assert_eq!(mode(&bench.path("home/page.html")), 0o640);
        assert_eq!(mode(&bench.path("home/metrics.prom")), 0o644, "the collector is another user");
        let metrics = fs::read_to_string(bench.path("home/metrics.prom")).unwrap();
        assert!(metrics.contains("zmreplica_accounts{"), "{metrics}");
        assert!(!metrics.contains('@'), "addresses are nobody else's business: {metrics}");
    }
}

#[test]
fn a_file_that_is_there_keeps_its_mode_and_settings_change_it() {
    let bench = Bench::new(USER);
    let files = ["home/night.log", "home/page.html", "home/metrics.prom"].map(|name| bench.path(name));
    let page = files[1].to_str().unwrap();
    bench.code(0, &["init"]);
    bench.code(0, &["nightly"]);
    bench.code(0, &["report", page]);
    for file in &files {
        set_mode(file, 0o604);
    }
    bench.code(0, &["nightly"]);
    bench.code(0, &["report", page]);
    assert_eq!(files.each_ref().map(|file| mode(file)), [0o604; 3]);

    // A log that is turned over is read by the same people afterwards.
    fs::write(&files[0], vec![b'\n'; 5 << 20]).unwrap();
    bench.code(0, &["nightly"]);
    assert_eq!(fs::metadata(bench.path("home/night.log.1")).unwrap().len(), 5 << 20);
    assert_eq!(mode(&files[0]), 0o604);

    let settings = fs::read_to_string(bench.path("config.toml")).unwrap();
    let modes = "log-mode = '0600'\nreport-mode = '0660'\nmetrics-mode = '0640'\n";
    fs::write(bench.path("config.toml"), format!("{modes}{settings}")).unwrap();
    bench.code(0, &["nightly"]);
    bench.code(0, &["report", page]);
    assert_eq!(files.each_ref().map(|file| mode(file)), [0o600, 0o660, 0o640]);
    fs::write(bench.path("config.toml"), format!("log-mode = 'rw'\n{settings}")).unwrap();
    let said = bench.code(2, &["nightly"]);
    assert!(said.contains("line 1, `log-mode = 'rw'`") && said.contains("0640"), "{said}");
}

#[test]
fn a_store_that_is_open_to_others_is_closed_and_that_is_said() {
    for command in ["snapshots", "snapshot", "repair"] {
        let bench = Bench::new(USER);
        bench.code(0, &["init"]);
        bench.code(0, &["snapshot"]);
        widen(&bench.store());
        let said = bench.code(0, &[command]);
        assert!(said.contains("Other users had access to the store") && said.contains("mode 0755"), "{said}");
        assert_private(&bench.store(), USER);
        let said = bench.code(0, &[command]);
        assert!(!said.contains("Other users"), "{said}");
    }
}

#[test]
fn another_user_learns_whose_store_it_is() {
    let bench = Bench::new(USER);
    bench.code(0, &["init"]);
    bench.code(0, &["snapshot"]);
    fs::create_dir(bench.path("mount")).unwrap();
    chown(bench.path("mount"), Some(OTHER), Some(OTHER)).unwrap();
    let mount = bench.path("mount");
    let commands: [&[&str]; 10] = [
        &["accounts"],
        &["snapshots"],
        &["status"],
        &["mount", "latest", mount.to_str().unwrap()],
        &["check"],
        &["ls", "latest"],
        &["restore", "latest", "/nonexistent"],
        &["prune", "--keep-last", "1"],
        &["repair"],
        &["snapshot"],
    ];
    // As it is, and as releases left it that made directories for everybody.
    for is_wide in [false, true] {
        if is_wide {
            widen(&bench.store());
        }
        for arguments in commands {
            let said = bench.other(1, arguments);
            let expected = format!("run as {USER}, or as root");
            assert!(
                said.contains(&expected) && said.contains(&format!("User {OTHER} may not read")),
                "{arguments:?}: {said}"
            );
        }
    }
}

#[test]
fn root_may_look_into_a_users_store_and_take_a_snapshot_there() {
    for umask in ["022", "077"] {
        let bench = Bench { umask, ..Bench::new(USER) };
        bench.code(0, &["init"]);
        bench.code(0, &["snapshot"]);
        fs::remove_dir_all(bench.store().join("leases")).unwrap();
        let mount = bench.path("mount");
        fs::create_dir(&mount).unwrap();
        let mount = mount.to_str().unwrap();
        bench.root(0, &["accounts"]);
        bench.root(0, &["mount", "latest", mount]);
        bench.change("two");
        // What root has mounted is protected from the user's prune, too.
        bench.code(0, &["nightly"]);
        let said = bench.code(0, &["prune", "--keep-last", "1", "--dry-run"]);
        assert!(said.contains(&format!("in use at {mount}")), "{said}");
        bench.root(0, &["umount", mount]);
        assert_private(&bench.store(), USER);
        bench.change("three");
        bench.root(0, &["snapshot"]);
        bench.root(0, &["prune", "--keep-last", "1"]);
        assert_private(&bench.store(), USER);
        assert!(bench.code(0, &["check", "--read-data"]).contains("No damage found"));
        bench.change("four");
        bench.code(0, &["nightly"]);
        bench.root(0, &["repair"]);
        bench.code(0, &["check", "--read-data"]);
        assert_private(&bench.store(), USER);
    }
}

#[test]
fn a_cache_that_is_somebody_elses_fails_no_run() {
    let bench = Bench::new(USER);
    bench.code(0, &["init"]);
    bench.code(0, &["nightly"]);
    let cache = bench.store().join("cache");
    for path in paths(&cache) {
        chown(&path, Some(0), Some(0)).unwrap();
        set_mode(&path, if path.is_dir() { 0o700 } else { 0o600 });
    }
    bench.change("two");
    bench.code(0, &["nightly"]);
    bench.code(0, &["accounts"]);
    bench.code(0, &["status"]);
    bench.code(0, &["check", "--read-data"]);
    // Not even where nothing in it can be listed or made.
    chown(&cache, Some(0), Some(0)).unwrap();
    set_mode(&cache, 0o700);
    bench.code(0, &["accounts"]);
    bench.code(0, &["status"]);
    bench.code(0, &["check", "--read-data"]);
    bench.change("three");
    bench.code(0, &["nightly"]);
    bench.code(0, &["check", "--read-data"]);
    let aside = fs::read_dir(bench.store()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(aside.filter(|name| name.starts_with("cache.unusable-")).count(), 1);
    assert_eq!(fs::metadata(&cache).unwrap().uid(), USER);
}

#[test]
fn what_may_not_be_read_is_not_damaged() {
    let bench = Bench::new(USER);
    bench.code(0, &["init"]);
    bench.code(0, &["snapshot"]);
    bench.change("two");
    bench.code(0, &["snapshot"]);
    let objects = |directory: &str| paths(&bench.store().join(directory)).into_iter().filter(|path| path.is_file());
    let last_commit = objects("commits").max().unwrap();
    for object in objects("packs").chain([last_commit, bench.store().join("catalog.redb")]) {
        chown(&object, Some(0), Some(0)).unwrap();
        for arguments in [&["check"][..], &["check", "--read-data"], &["repair"]] {
            let said = bench.code(1, arguments);
            let expected = format!("run as root `chown -hR {USER} {}`", bench.store().display());
            assert!(said.contains(&expected) && said.contains(object.to_str().unwrap()), "{said}");
            assert!(!said.contains("Damage") && !said.contains("damage"), "{said}");
        }
        chown(&object, Some(USER), Some(USER)).unwrap();
    }
    // The same of a mode, of a file or a directory, in whatever command.
    let catalog = bench.store().join("catalog.redb");
    for (path, rest) in [(catalog, 0o600), (bench.store().join("commits"), 0o700), (bench.store().join("packs"), 0o700)]
    {
        set_mode(&path, 0);
        for arguments in [
            &["snapshot"][..],
            &["check"],
            &["repair"],
            &["prune", "--keep-last", "1"],
            &["status"],
            &["ls", "latest:"],
        ] {
            let said = bench.code(1, arguments);
            assert!(!said.contains("Damage") && !said.contains("damage"), "{arguments:?}: {said}");
        }
        set_mode(&path, rest);
    }
    bench.code(0, &["check", "--read-data"]);
}

#[test]
fn who_holds_the_lock_is_named() {
    let bench = Bench::new(0);
    bench.code(0, &["init"]);
    let lock = bench.store().join("lock");
    let held = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared).unwrap();
    // The text in the file is that of `init`, which is over.
    let said = bench.code(5, &["snapshot"]);
    assert!(said.contains(&format!("(process {} (", std::process::id())) && said.contains("user root"), "{said}");
}

/// A file system of exFAT, which has no links, owners or modes, on a loop device.
struct ExFat {
    place: PathBuf,
    device: String,
}

impl ExFat {
    fn new(bench: &Bench, options: &str) -> ExFat {
        let image = bench.path("image");
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.exfat").arg(&image));
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(&image)).trim().to_owned();
        let place = bench.path("exfat");
        fs::create_dir(&place).unwrap();
        let mounted = ExFat { place, device };
        run(Command::new("mount.exfat-fuse").args(["-o", options]).arg(&mounted.device).arg(&mounted.place));
        mounted
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_store_works_where_there_are_neither_links_nor_modes() {
    let bench = Bench::new(0);
    for options in ["umask=077", "umask=022"] {
        let disk = ExFat::new(&bench, options);
        let store = disk.place.join("store");
        let of = |arguments: &[&str]| {
            let all: Vec<&str> = ["--store", store.to_str().unwrap()].iter().chain(arguments).copied().collect();
            bench.code(0, &all)
        };
        let is_reported = of(&["init"]).contains("mount it with umask=077");
        assert_eq!(is_reported, options == "umask=022");
        let source = bench.source();
        for night in ["one", "two", "three"] {
            bench.change(night);
            of(&["snapshot", source.to_str().unwrap()]);
            of(&["prune", "--keep-last", "2"]);
        }
        of(&["check", "--read-data"]);
        of(&["repair"]);
        let copy = bench.path("copy");
        of(&["restore", "latest", copy.to_str().unwrap()]);
        run(Command::new("diff").args(["-r", "-x", "TO_DELETE-*", "-x", "lost+found"]).arg(&source).arg(&copy));
        fs::remove_dir_all(copy).unwrap();
        drop(disk);
        fs::remove_dir(bench.path("exfat")).unwrap();
    }
}
