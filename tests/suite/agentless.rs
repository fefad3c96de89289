//! Pulling without an agent: the same snapshots with nothing but a shell, find and tar on the remote host.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, run};
use crate::support::odd::settle;
use crate::support::odd::{noise, odd_tree, partition, set_mode};
use crate::support::programs::write_program;
use crate::support::pulling::{assert_same, finished, summary};
use crate::support::sshd::Sshd;
use serde_json::Value;
use zmreplica_treegen::{BlobMode, Config, Generator, Preset};

/// A scene with a program in ssh's place that runs the command here.
struct Bench {
    scene: Scene,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { scene: Scene::new() };
        finished(bench.scene.command_on(&bench.scene.path("local")).arg("init"), 0);
        fs::create_dir(bench.bin()).unwrap();
        bench.rsh(&format!("PATH='{}':$PATH exec sh -c \"$1\"", bench.bin().display()));
        bench
    }

    /// Where programs lie that the remote host finds before its own.
    fn bin(&self) -> PathBuf {
        self.scene.path("bin")
    }

    fn script(&self, path: &Path, text: &str) {
        write_program(path, &format!("#!/bin/bash\n{text}\n"));
    }

    /// Replaces what stands in ssh's place; the command is `$1`.
    fn rsh(&self, text: &str) {
        self.script(&self.scene.path("rsh"), &format!("shift\n{text}"));
    }

    /// Puts a program before the remote host's own one.
    fn fake(&self, name: &str, text: &str) {
        self.script(&self.bin().join(name), text);
    }

    fn source(&self, name: &str) -> PathBuf {
        self.scene.source().join(name)
    }

    /// Prepares a pull of the whole source.
    fn pull(&self) -> Command {
        let mut command = self.scene.command();
        command.args(["--json", "-v", "snapshot", "--no-default-excludes", "--agentless"]);
        command.arg("--rsh").arg(self.scene.path("rsh")).arg(format!("far:{}", self.scene.source().display()));
        command
    }

    fn pulled(&self) -> Value {
        summary(&finished(&mut self.pull(), 0))
    }

    /// Pulls with an exit code; returns what was said on stdout and stderr.
    fn pulled_with(&self, code: i32, more: &[&str]) -> String {
        let output = finished(self.pull().args(more), code);
        out(&output) + &err(&output)
    }

    /// Takes the source from its path, into a store of its own.
    fn taken_locally(&self) -> Value {
        self.taken_locally_with(0)
    }

    fn taken_locally_with(&self, code: i32) -> Value {
        let arguments = ["--json", "snapshot", "--no-default-excludes", "source"];
        let mut command = self.scene.command_on(&self.scene.path("local"));
        summary(&finished(command.args(arguments), code))
    }

    /// Restores the newest snapshot and returns where.
    fn restored(&self) -> PathBuf {
        let place = self.scene.path("restored");
        let _ = fs::remove_dir_all(&place);
        self.scene.ok(&["restore", "--numeric-ids", "latest", "restored"]);
        place
    }
}

/// docs/semantics.md: "The snapshot is the one that an agent would have made."
fn nights_are_the_same(blobs: BlobMode) {
    let bench = Bench::new();
    let config = Config { blobs, accounts: 4, messages: 40, ..Config::preset(Preset::Sample) };
    let mut generator = Generator::create(&bench.scene.source(), config, 2).unwrap();
    for night in 0..5 {
        match night {
            1 => drop(generator.night().unwrap()),
            // Hard-linked to the first.
            2 => drop(generator.full().unwrap()),
            3 => fs::rename(bench.source("sessions"), bench.source("renamed")).unwrap(),
            _ => {}
        }
        // The guard takes sessions that are elsewhere for an accident, from either source.
        let code = if night >= 3 { 4 } else { 0 };
        let pulled = summary(&finished(&mut bench.pull(), code));
        let local = bench.taken_locally_with(code);
        assert_same(&pulled, &local);
        assert_eq!(pulled["reasons"], local["reasons"]);
        assert_eq!(pulled["work"]["connections"], 1);
        if night >= 3 {
            assert_eq!(pulled["work"]["read_files"], 0);
        }
    }
    bench.scene.ok(&["check", "--read-data"]);
    assert_rsync_finds_nothing(&bench.scene.source(), &bench.restored());
}

#[test]
fn nights_of_individual_files_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Files);
}

#[test]
fn nights_of_stored_zips_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Zipstore);
}

#[test]
fn nights_of_deflated_zips_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Zip);
}

#[test]
fn a_rename_or_a_new_link_reads_nothing() {
    let bench = Bench::new();
    fs::create_dir_all(bench.source("tmp/full-1")).unwrap();
    for number in 0..20 {
        fs::write(bench.source(&format!("tmp/full-1/{number}.msg")), noise(200_000, number + 1)).unwrap();
    }
    settle();
    let first = bench.pulled();
    assert_eq!(first["work"]["read_files"], 20);
    fs::rename(bench.source("tmp"), bench.source("sessions")).unwrap();
    fs::create_dir_all(bench.source("sessions/full-2")).unwrap();
    for number in 0..20 {
        let name = |full: &str| bench.source(&format!("sessions/{full}/{number}.msg"));
        fs::hard_link(name("full-1"), name("full-2")).unwrap();
    }
    let second = bench.pulled();
    assert_eq!((&second["work"]["read_files"], &second["work"]["attribute_inodes"]), (&0.into(), &20.into()));
    // Not on the wire either.
    assert!(second["work"]["received_bytes"].as_u64().unwrap() < 50_000, "{second}");
    let third = bench.pulled();
    assert_eq!((&third["work"]["read_files"], &third["work"]["unchanged_inodes"]), (&0.into(), &20.into()));
    assert_eq!(second["digest"], third["digest"]);
}

#[test]
fn everything_that_a_tree_can_hold_comes_over() {
    let bench = Bench::new();
    odd_tree(&bench.scene.source());
    // A hole of a terabyte is not transferred.
    fs::File::create(bench.source("huge")).unwrap().set_len(1 << 40).unwrap();
    let hole = fs::File::create(bench.source("tail")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&hole, &noise(50_000, 77), 0).unwrap();
    hole.set_len(3 << 20).unwrap();
    // Names that are options, patterns or escapes to somebody.
    for name in [
        "-rf",
        "--checkpoint-action=exec=sh",
        "*?[a]",
        "back\\nslash",
        " lead",
        "trail ",
        "\\",
        "x\ty",
        "ZMREND tar",
        "E",
    ] {
        fs::write(bench.source(name), name).unwrap();
    }
    fs::create_dir(bench.source("none")).unwrap();
    settle();
    let pulled = bench.pulled();
    assert_same(&pulled, &bench.taken_locally());
    assert!(pulled["work"]["received_bytes"].as_u64().unwrap() < 50_000_000);
    bench.scene.ok(&["check", "--read-data"]);
    fs::remove_file(bench.source("huge")).unwrap();
    let again = bench.pulled();
    assert_same(&again, &bench.taken_locally());
    // Sockets and device nodes included: what was noted is what the next scan sees.
    assert_eq!((&again["work"]["read_files"], &again["work"]["attribute_inodes"]), (&0.into(), &0.into()));
    let restored = bench.restored();
    assert_rsync_finds_nothing(&bench.scene.source(), &restored);
    assert_eq!(partition(&bench.scene.source()), partition(&restored));
    // Attributes alone change: read as such, and seen.
    rustix::fs::setxattr(bench.source("large"), "user.new", b"x\ny=z", rustix::fs::XattrFlags::empty()).unwrap();
    set_mode(&bench.source("empty"), 0o600);
    set_mode(&bench.source("fifo"), 0o600);
    assert_same(&bench.pulled(), &bench.taken_locally());
}

#[test]
fn a_real_sshd_and_either_way_to_it() {
    let bench = Bench::new();
    let sshd = Sshd::start("ed25519");
    let home = bench.scene.path("home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    fs::write(home.join(".ssh/known_hosts"), sshd.known_host(sshd.port)).unwrap();
    odd_tree(&bench.scene.source());
    let config = Config { accounts: 3, messages: 30, ..Config::preset(Preset::Sample) };
    Generator::create(&bench.source("zimbra"), config, 1).unwrap();
    settle();
    let place = sshd.place(sshd.port, &bench.scene.source());
    let pull = |more: &[&str]| {
        let mut command = bench.scene.command();
        command.env("HOME", &home).args(["--json", "-v", "snapshot", "--no-default-excludes", "--agentless"]);
        finished(command.args(more).arg(&place), 0)
    };
    let key = sshd.key().display().to_string();
    let first = pull(&["--ssh-key", &key]);
    assert_same(&summary(&first), &bench.taken_locally());
    // Said once, at the start.
    assert_eq!(err(&first).matches("Without an agent on 127.0.0.1").count(), 1, "{}", err(&first));
    let known = home.join(".ssh/known_hosts");
    let ssh = format!("ssh -o BatchMode=yes -o 'UserKnownHostsFile={}' -i '{key}'", known.display());
    let by_ssh = pull(&["--rsh", &ssh]);
    assert_same(&summary(&by_ssh), &bench.taken_locally());
    // And with an agent, over the same store: "every file is read once more and nothing is stored again."
    let mut command = bench.scene.command();
    command.env("HOME", &home).args(["--json", "snapshot", "--no-default-excludes", "--ssh-key", &key, "--agent-path"]);
    let by_agent = summary(&finished(command.arg(assert_cmd::cargo::cargo_bin!("zmreplica")).arg(&place), 0));
    assert_eq!((&by_agent["digest"], &by_agent["work"]["new_chunks"]), (&summary(&by_ssh)["digest"], &0.into()));
}

#[test]
fn excludes_boundaries_and_dry_runs() {
    let bench = Bench::new();
    for path in ["keep/a", "lost+found/x", "sessions/TO_DELETE-full-1/y", "core/deep/z", "keep/core"] {
        fs::create_dir_all(bench.source(path).parent().unwrap()).unwrap();
        fs::write(bench.source(path), path).unwrap();
    }
    fs::create_dir(bench.source("mounted")).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(bench.source("mounted")));
    fs::write(bench.source("mounted/inside"), "inside").unwrap();
    settle();
    let both = |more: &[&str]| {
        let base = |command: &mut Command| {
            command.args(["--json", "snapshot", "--exclude", "core"]).args(more);
        };
        let mut pulled = bench.scene.command();
        base(&mut pulled);
        pulled.args(["--agentless", "--rsh"]).arg(bench.scene.path("rsh"));
        pulled.arg(format!("far:{}", bench.scene.source().display()));
        let mut local = bench.scene.command_on(&bench.scene.path("local"));
        base(&mut local);
        (summary(&finished(&mut pulled, 0)), summary(&finished(local.arg("source"), 0)))
    };
    let (pulled, local) = both(&["--dry-run"]);
    for figure in ["names", "excluded_names", "read_files", "read_bytes", "unchanged_inodes", "problem_count"] {
        assert_eq!(pulled[figure], local[figure], "{figure}");
    }
    assert_eq!(bench.scene.ok(&["--json", "snapshots"]), "");
    let (pulled, local) = both(&[]);
    assert_same(&pulled, &local);
    assert_eq!(pulled["work"]["excluded_names"], local["work"]["excluded_names"]);
    assert!(!bench.scene.ok(&["ls", "-R", "latest"]).contains("inside"));
    let (pulled, local) = both(&["--all-file-systems"]);
    assert_same(&pulled, &local);
    assert!(bench.scene.ok(&["ls", "-R", "latest"]).contains("inside"));
    // The configuration file does as well.
    fs::write(bench.scene.path("config.toml"), "[remote]\nagentless = true\n").unwrap();
    let mut command = bench.scene.command();
    command.env("ZMREPLICA_CONFIG", bench.scene.path("config.toml")).args([
        "--json",
        "snapshot",
        "--exclude",
        "core",
        "--rsh",
    ]);
    command.arg(bench.scene.path("rsh")).arg("--all-file-systems");
    let output = finished(command.arg(format!("far:{}", bench.scene.source().display())), 0);
    assert_eq!(summary(&output)["digest"], pulled["digest"]);
    for other in [&["--no-upload"][..], &["--agent-path", "x"], &["--compress-at", "source"]] {
        finished(bench.pull().args(other), 2);
    }
}

/// docs/semantics.md: "a file or directory could not be read | its attributes, marked"
#[test]
fn what_cannot_be_read_is_named() {
    let bench = Bench::new();
    fs::create_dir_all(bench.source("closed/in")).unwrap();
    for (name, mode) in [("open", 0o644), ("secret", 0o600), ("closed/in/x", 0o644)] {
        fs::write(bench.source(name), name.repeat(100)).unwrap();
        set_mode(&bench.source(name), mode);
        chown(bench.source(name), Some(1), Some(1)).unwrap();
    }
    set_mode(&bench.source("closed"), 0o700);
    set_mode(bench.scene.source().parent().unwrap(), 0o755);
    set_mode(&bench.scene.source(), 0o755);
    bench.rsh("exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c \"$1\"");
    let said = bench.pulled_with(3, &[]);
    assert!(said.contains("\"path\":\"secret\"") && said.contains("Permission denied"), "{said}");
    assert!(said.contains("\"path\":\"closed\""), "{said}");
    assert!(said.contains("\"problem_count\":2"), "{said}");
    let listed = bench.scene.ok(&["ls", "-R", "latest"]);
    assert!(listed.contains("secret") && listed.contains("closed") && !listed.contains("closed/in"), "{listed}");
    assert_eq!(bench.scene.ok(&["cat", "latest:open"]), "open".repeat(100));
    bench.scene.ok(&["check", "--read-data"]);
    // The root itself.
    set_mode(&bench.scene.source(), 0o700);
    let said = bench.pulled_with(1, &[]);
    assert!(said.contains("Cannot scan") && said.contains("Permission denied"), "{said}");
}

#[test]
fn files_that_vanish_change_or_are_exchanged_while_they_are_read() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    for name in ["d/gone", "d/log", "d/swapped", "d/still"] {
        fs::write(bench.source(name), noise(300_000, 5)).unwrap();
    }
    let tree = bench.scene.source().display().to_string();
    let once = bench.scene.path("once").display().to_string();
    // Behind the scan and before the first file; and again behind it.
    bench.fake(
        "tar",
        &format!(
            "PATH=/usr/bin:/bin\ncase \"$*\" in *'-cf -'*) ;; *) exec tar \"$@\";; esac\n\
             if [ ! -e {once} ]; then rm -f {tree}/d/gone; fi\ntar \"$@\"\n\
             if [ ! -e {once} ]; then touch {once}; echo more >> {tree}/d/log; \
             echo other > {tree}/d/new; mv {tree}/d/new {tree}/d/swapped; fi"
        ),
    );
    let said = bench.pulled_with(3, &[]);
    assert!(said.contains("\"problem_count\":1") && said.contains("\"path\":\"d/gone\""), "{said}");
    let restored = bench.restored();
    // The directory's time is that of the scan; what came behind may have been in another second.
    run(Command::new("touch").arg("-r").arg(restored.join("d")).arg(bench.source("d")));
    assert_rsync_finds_nothing(&bench.scene.source(), &restored);
    bench.scene.ok(&["check", "--read-data"]);

    // One that never rests is taken and marked, as long as it was when it was taken.
    bench.fake(
        "tar",
        &format!("PATH=/usr/bin:/bin\ntar \"$@\"\ncase \"$*\" in *'-cf -'*) echo more >> {tree}/d/log;; esac"),
    );
    fs::write(bench.source("d/log"), noise(400_000, 6)).unwrap();
    let said = bench.pulled_with(3, &[]);
    assert!(said.contains("Kept changing") && said.contains("\"path\":\"d/log\""), "{said}");
    bench.scene.ok(&["check", "--read-data"]);
    assert_eq!(fs::read(bench.restored().join("d/log")).unwrap()[..400_000], noise(400_000, 6));
    // Cut short while it is read: what tar makes up is not kept.
    bench.fake(
        "tar",
        &format!("PATH=/usr/bin:/bin\ntar \"$@\"\ncase \"$*\" in *'-cf -'*) truncate -s -1000 {tree}/d/log;; esac"),
    );
    fs::write(bench.source("d/log"), noise(500_000, 8)).unwrap();
    bench.pulled_with(3, &[]);
    let kept = fs::read(bench.restored().join("d/log")).unwrap();
    assert_eq!(kept, noise(500_000, 8)[..kept.len()]);
    bench.scene.ok(&["check", "--read-data"]);
}

/// docs/semantics.md: "A file directly below the source is waited for, half a second"
#[test]
fn a_root_file_that_is_being_replaced_is_waited_for() {
    let bench = Bench::new();
    fs::write(bench.source("accounts.xml"), "<accounts/>").unwrap();
    fs::write(bench.source("other"), "other").unwrap();
    settle();
    let first = bench.pulled();
    fs::rename(bench.source("accounts.xml"), bench.scene.path("aside")).unwrap();
    let (from, to) = (bench.scene.path("aside"), bench.source("accounts.xml"));
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        fs::rename(from, to).unwrap();
    });
    let second = bench.pulled();
    writer.join().unwrap();
    assert_eq!(first["totals"], second["totals"]);
}

#[test]
fn a_connection_that_breaks_is_made_again_and_goes_on() {
    let bench = Bench::new();
    for number in 0..40 {
        fs::write(bench.source(&format!("f{number:02}")), noise(1_000_000, number + 1)).unwrap();
    }
    settle();
    let count = bench.scene.path("count").display().to_string();
    // The first breaks in the scan, the second among the contents.
    bench.rsh(&format!(
        "n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}\n\
         case $n in 0) limit=3000;; 1) limit=36000000;; *) exec sh -c \"$1\";; esac\n\
         sh -c \"$1\" | stdbuf -o0 head -c $limit\nexit 255"
    ));
    let output = finished(&mut bench.pull(), 0);
    let pulled = summary(&output);
    let local = bench.taken_locally();
    assert_eq!((&pulled["digest"], &pulled["totals"]), (&local["digest"], &local["totals"]));
    assert_eq!(
        (&pulled["work"]["connections"], &pulled["work"]["new_chunks"]),
        (&3.into(), &local["work"]["new_chunks"])
    );
    // What the second had brought was not sent again, but for the batch that was cut off.
    let received = pulled["work"]["received_bytes"].as_u64().unwrap();
    assert!(received < 36_000_000 + 40_000_000, "{received}");
    assert!(err(&output).contains("Retrying in"), "{}", err(&output));
    bench.scene.ok(&["check", "--read-data"]);
    // Without attempts it is an error, and the next run goes on.
    bench.rsh("sh -c \"$1\" | stdbuf -o0 head -c 3000; exit 255");
    let said = bench.pulled_with(1, &["--retries", "0"]);
    assert!(said.contains("connection"), "{said}");
}

#[test]
fn a_host_that_cannot_do_it_is_reported() {
    let bench = Bench::new();
    fs::write(bench.source("file"), "text").unwrap();
    let mut command = bench.scene.command();
    command.args(["snapshot", "--agentless", "--rsh"]).arg(bench.scene.path("rsh")).arg("far:/nowhere/at/all");
    let said = err(&finished(&mut command, 1));
    assert!(said.contains("Cannot scan /nowhere/at/all on far") && said.contains("No such file"), "{said}");
    bench.fake("tar", "echo 'bsdtar 3.6.2 - libarchive 3.6.2'");
    assert!(bench.pulled_with(1, &[]).contains("far has no GNU tar"));
    fs::remove_file(bench.bin().join("tar")).unwrap();
    bench.fake("find", "exit 1");
    assert!(bench.pulled_with(1, &[]).contains("far has no GNU find"));
    bench.rsh("exec false");
    assert!(bench.pulled_with(1, &[]).contains("No shell can be used on far"));
    bench.rsh("echo 'Welcome to far!'; exec sh -c \"$1\"");
    fs::remove_file(bench.bin().join("find")).unwrap();
    bench.pulled();
}

/// A remote host that lies ends the run with an error, and leaves the store as it was.
#[test]
fn a_hostile_remote_host_harms_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    fs::write(bench.source("d/file"), noise(100_000, 3)).unwrap();
    fs::write(bench.source("e"), "e").unwrap();
    settle();
    let good = bench.pulled();
    fs::write(bench.source("e"), "another").unwrap();
    let greeting = "head -c 0; printf 'ZMRPLAIN1 ok\\n'";
    let record = |path: &str| format!("d 755 0 0 2 0 1.0 1.0 9 9 0 {path}\\0");
    let scan =
        |records: &str| format!("{greeting}; printf '{}{records}E\\0ZMREND scan 6\\ncode 0'; sleep 0.3", record("."));
    let bad = [
        format!("{greeting}; cat /dev/urandom"),
        format!("{greeting}; cat /dev/zero"),
        format!("{greeting}; yes"),
        format!("{greeting}; tr '\\0' x </dev/zero"),
        "cat /dev/zero".to_owned(),
        "exec yes".to_owned(),
        scan(&record("./..")),
        scan(&record("./a/../../b")),
        scan(&record("/etc")),
        scan(&record("./orphan/of/nobody")),
        scan(&format!("{0}{0}", record("./twice"))),
        scan(&record(".")),
        scan("f 644 0 0 1 99999999999999999999 1.0 1.0 9 9 0 ./f\\0"),
        scan("f 644 0 0 1 5 1.0 1.0 9 9 99999999999999999 ./f\\0"),
        scan("x\\0"),
        // Content that is none, for a file that is said to be there.
        format!(
            "{greeting}; printf '{}f 644 0 0 1 5 1.0 1.0 9 9 8 ./f\\0E\\0ZMREND scan 6\\ncode 0ZMREND look 6\\ncode 0'; cat /dev/urandom",
            record(".")
        ),
        format!(
            "{greeting}; printf '{}f 644 0 0 1 5 1.0 1.0 9 9 8 ./f\\0E\\0ZMREND scan 6\\ncode 0ZMREND look 6\\ncode 0'; \
                 cd /; tar --format=pax -b 20 -cf - ./etc/passwd; printf 'ZMREND tar 6\\ncode 0'; sleep 0.3",
            record(".")
        ),
    ];
    for text in &bad {
        bench.rsh(text);
        let said = bench.pulled_with(1, &["--retries", "0"]);
        assert!(said.contains("source side") || said.contains("far") || said.contains("was lost"), "{text}: {said}");
    }
    // Tools that lie, in a shell that does not.
    bench.rsh(&format!("PATH='{}':$PATH exec sh -c \"$1\"", bench.bin().display()));
    for (tool, text) in [
        ("tar", "case $1 in --version) exec /usr/bin/tar --version;; esac; cat /dev/urandom"),
        (
            "tar",
            "case $1 in --version) exec /usr/bin/tar --version;; esac; cd /; PATH=/usr/bin:/bin; \
                 case \"$*\" in *'-cf -'*) exec tar --format=pax -cf - ./etc/hostname;; *) exec tar \"$@\";; esac",
        ),
        ("find", "case $1 in --version) exec /usr/bin/find --version;; esac; kill -9 $$"),
    ] {
        bench.fake(tool, text);
        bench.pulled_with(1, &["--retries", "0"]);
        fs::remove_file(bench.bin().join(tool)).unwrap();
    }
    bench.scene.ok(&["check", "--read-data"]);
    let one = bench.scene.ok(&["--json", "snapshots"]);
    assert_eq!(one.lines().count(), 1);
    assert!(one.contains(good["id"].as_str().unwrap()));
    bench.pulled();
    assert_rsync_finds_nothing(&bench.scene.source(), &bench.restored());
}
