//! Hosts as they are: login shells of all sorts, scripts that print, accounts without a shell, keys that are bound, and the first pull from each.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, run, unmount};
use crate::support::programs::{copy_program, write_program};
use crate::support::pulling::{finished, summary};
use crate::support::sshd::{Sshd, public_half};

/// A scene with a host behind a program, and one behind a real sshd.
struct Bench {
    scene: Scene,
    sshd: Sshd,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { scene: Scene::new(), sshd: Sshd::start("ed25519") };
        fs::create_dir(bench.scene.path("home")).unwrap();
        fs::write(bench.scene.source().join("file"), "text").unwrap();
        bench
    }

    fn agent() -> &'static Path {
        Path::new(assert_cmd::cargo::cargo_bin!("zmreplica"))
    }

    /// Replaces the program in ssh's place; the command is `$1`. The home directory there is `home`.
    fn rsh(&self, text: &str) -> String {
        let path = self.scene.path("rsh");
        let home = self.scene.path("home");
        write_program(&path, &format!("#!/bin/bash\nshift\nexport HOME='{}'\n{text}\n", home.display()));
        path.display().to_string()
    }

    /// Pulls with the program in ssh's place; returns what was said.
    fn pull(&self, code: i32, more: &[&str]) -> String {
        self.pull_of(code, &self.scene.source(), more)
    }

    fn pull_of(&self, code: i32, source: &Path, more: &[&str]) -> String {
        let mut command = self.scene.command();
        command.args(["--json", "snapshot", "--no-default-excludes"]).args(more);
        command.arg("--rsh").arg(self.scene.path("rsh")).arg(format!("far:{}", source.display()));
        let output = finished(&mut command, code);
        out(&output) + &err(&output)
    }

    /// Prepares a pull through sshd, with a file of known hosts.
    fn by_ssh(&self, known: &Path, port: u16) -> Command {
        let mut command = self.scene.command();
        command.args(["--json", "snapshot", "--ssh-key"]).arg(self.sshd.key()).arg("--known-hosts").arg(known);
        command.arg(self.sshd.place(port, &self.scene.source()));
        command
    }

    fn known(&self) -> PathBuf {
        let known = self.scene.path("known");
        fs::write(&known, self.sshd.known_host(self.sshd.port)).unwrap();
        known
    }

    fn uploaded(&self) -> Vec<PathBuf> {
        let folder = self.scene.path("home/.cache/zmreplica");
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }
}

fn at_once(said: &str) {
    assert!(!said.contains("Retrying in"), "{said}");
}

/// What a login shell does with the line that it gets must not matter: csh takes no line ends within quotes, and replaces `!` in them; fish reads backslashes
/// in them.
#[test]
fn every_login_shell_will_do() {
    let bench = Bench::new();
    let odd = bench.scene.path("it's an \\odd! \nsource $HOME");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("file"), "text").unwrap();
    let agent = Bench::agent().display().to_string();
    for shell in ["sh", "bash", "tcsh", "fish"] {
        bench.rsh(&format!("exec {shell} -c \"$1\""));
        for source in [&odd, &bench.scene.source()] {
            for way in [&["--agentless"][..], &["--agent-path", &agent], &[]] {
                bench.pull_of(0, source, way);
                let place = bench.scene.path("restored");
                // Named after the host, in the order of their first snapshots.
                let name = if source == &odd { "far" } else { "far-2" };
                bench.scene.ok(&["restore", "--numeric-ids", &format!("{name}/latest"), "restored"]);
                assert_rsync_finds_nothing(source, &place);
                fs::remove_dir_all(&place).unwrap();
            }
        }
        assert_eq!(bench.uploaded().len(), 1, "{shell}");
        fs::remove_dir_all(bench.scene.path("home/.cache")).unwrap();
    }
}

#[test]
fn a_login_script_that_prints_disturbs_nothing() {
    let bench = Bench::new();
    bench.rsh(
        "echo 'Welcome! ZMRAGEN ZMRPLAIN ZMRUPLOAD'; printf '\\033[32m OK \\033[0m no line end'; exec sh -c \"$1\"",
    );
    bench.pull(0, &["--agentless"]);
    let agent = Bench::agent().display().to_string();
    bench.pull(0, &["--agent-path", &agent]);
    assert!(bench.pull(0, &[]).contains("was uploaded"));
    assert!(!bench.pull(0, &[]).contains("was uploaded"));
    assert_eq!(fs::metadata(&bench.uploaded()[0]).unwrap().permissions().mode() & 0o777, 0o700);
}

/// docs/operations.md: "What another attempt would not change is reported at once"
#[test]
fn what_lasts_is_reported_at_once_with_its_cause() {
    let bench = Bench::new();
    // No shell.
    bench.rsh("exec /usr/sbin/nologin -c \"$1\"");
    for way in [&["--agentless"][..], &[]] {
        let said = bench.pull(1, way);
        at_once(&said);
        assert!(said.contains("This account is currently not available"), "{said}");
    }
    // No such program here, and none that may be run.
    for program in ["no-such-program -x", "/etc/passwd"] {
        let mut command = bench.scene.command();
        let output = finished(command.args(["snapshot", "--rsh", program, "far:/x"]), 1);
        let name = program.split(' ').next().unwrap();
        at_once(&err(&output));
        let said = err(&output);
        assert!(said.contains("Cannot connect to far") && said.contains(name), "{said}");
    }
    // A port where nobody listens.
    let known = bench.known();
    let said = err(&finished(&mut bench.by_ssh(&known, 1), 1));
    at_once(&said);
    assert!(said.contains("127.0.0.1:1: Connection refused") && said.contains("on port 1 "), "{said}");
    // A port where something else listens.
    let mail = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mail.local_addr().unwrap().port();
    let greeter = std::thread::spawn(move || {
        let mut stream = mail.accept().unwrap().0;
        stream.write_all(b"220 mail ESMTP\r\n").unwrap();
        let _ = stream.read(&mut [0]);
    });
    let said = err(&finished(&mut bench.by_ssh(&known, port), 1));
    greeter.join().unwrap();
    at_once(&said);
    assert!(said.contains("is not sshd; it printed: 220 mail ESMTP"), "{said}");
    let by_ssh = |options: &str, port: u16| {
        let mut command = bench.scene.command();
        command.args(["snapshot", "--rsh"]).arg(format!("ssh -F /dev/null -o BatchMode=yes {options}"));
        let said = err(&finished(command.arg(bench.sshd.place(port, &bench.scene.source())), 1));
        at_once(&said);
        said
    };
    let (key, port) = (bench.sshd.key().display().to_string(), bench.sshd.port);
    assert!(by_ssh(&format!("-i {key}"), 1).contains("Connection refused"));
    // A host that is not known, and one that does not let anybody in.
    let unknown = by_ssh(&format!("-i {key} -o UserKnownHostsFile=/dev/null"), port);
    assert!(unknown.contains("Host key verification failed"), "{unknown}");
    bench.sshd.authorize(&[]);
    let denied = by_ssh(&format!("-i {key} -o UserKnownHostsFile={}", known.display()), port);
    assert!(denied.contains("Permission denied"), "{denied}");
}

/// A host that was there before comes back: it is waited for.
#[test]
fn a_host_that_goes_away_in_the_middle_is_waited_for() {
    let bench = Bench::new();
    let count = bench.scene.path("count").display().to_string();
    bench.rsh(&format!(
        "n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}\n\
         case $n in 0) exec 3<&0; stdbuf -o0 head -c 300 < <(sh -c \"$1\" <&3 2>/dev/null); exit 255;;\n\
         1) echo 'ssh: connect to host far port 22: Connection refused' >&2; exit 255;; *) exec sh -c \"$1\";; esac"
    ));
    let said = bench.pull(0, &["--agentless"]);
    assert_eq!(said.matches("Retrying in").count(), 2, "{said}");
    assert!(said.contains("Connection refused"), "{said}");
}

#[test]
fn a_bound_key_says_what_it_is_bound_to() {
    let bench = Bench::new();
    let known = bench.known();
    let bind = |root: &Path| {
        let line = format!(
            "command=\"{} agent --root {}\",restrict {}",
            Bench::agent().display(),
            root.display(),
            public_half(&bench.sshd.key())
        );
        bench.sshd.authorize(&[line]);
    };
    bind(&bench.scene.source());
    finished(&mut bench.by_ssh(&known, bench.sshd.port), 0);
    let said = err(&finished(bench.by_ssh(&known, bench.sshd.port).arg("--agentless"), 1));
    at_once(&said);
    assert!(said.contains("restricted to an agent") && said.contains("Leave out --agentless"), "{said}");
    // It is the missing root that is to blame, not what was requested.
    let missing = bench.scene.path("missing");
    bind(&missing);
    let said = err(&finished(&mut bench.by_ssh(&known, bench.sshd.port), 1));
    assert!(said.contains(&format!("is confined to {}, which it cannot use", missing.display())), "{said}");
}

#[test]
fn a_file_of_known_hosts_that_is_not_there_knows_nobody() {
    let bench = Bench::new();
    let known = bench.scene.path("new-file");
    let said = err(&finished(&mut bench.by_ssh(&known, bench.sshd.port), 1));
    assert!(said.contains("is not known") && said.contains("SHA256:"), "{said}");
    // The command that is shown is the remedy.
    let line = said.split('`').find(|part| part.starts_with("ssh-keyscan")).unwrap();
    assert!(line.ends_with(&known.display().to_string()), "{line}");
    run(Command::new("sh").args(["-c", &format!("{line} 2>/dev/null")]));
    finished(bench.by_ssh(&known, bench.sshd.port).arg("--agent-path").arg(Bench::agent()), 0);
    // One that cannot be read might forbid the host.
    fs::remove_file(&known).unwrap();
    fs::create_dir(&known).unwrap();
    let said = err(&finished(&mut bench.by_ssh(&known, bench.sshd.port), 1));
    assert!(said.contains("Cannot read the known hosts"), "{said}");
}

/// OpenSSH's client is the judge.
#[test]
fn host_keys_are_judged_as_openssh_judges_them() {
    let bench = Bench::new();
    let (known, port) = (bench.scene.path("known"), bench.sshd.port);
    let public = public_half(&bench.sshd.path("host"));
    let key = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let other = public_half(&bench.sshd.key()).split(' ').take(2).collect::<Vec<_>>().join(" ");
    let name = format!("[127.0.0.1]:{port}");
    for (text, hash, lets_in) in [
        (format!("{name} {key}\n"), false, true),
        (format!("{name} {key}\n"), true, true),
        (format!("127.0.0.1 {key}\n"), false, true),
        (format!("* {key}\n"), false, true),
        (format!("[127.0.0.?]:* {key}\n"), false, true),
        (format!("*,!{name} {key}\n"), false, true),
        (format!("*,!{name},!127.0.0.1 {key}\n"), false, false),
        (format!("[localhost]:{port} {key}\n"), false, false),
        (format!("{name} {other}\n{name} {key}\n"), false, true),
        (format!("{name} {other}\n"), false, false),
        (format!("127.0.0.1 {key}\n{name} {other}\n"), false, false),
        (format!("@revoked * {key}\n{name} {key}\n"), false, false),
        (format!("{name} {key}\n@revoked {name} {key}\n"), true, false),
        (format!("{name} {key}\n@revoked {name} {key}\n"), false, false),
        (format!("{name} {key}\n@revoked elsewhere {key}\n"), false, true),
        (format!("{name} {key}\n@revoked * {other}\n"), false, true),
        (format!("@cert-authority * {key}\n"), false, false),
    ] {
        fs::write(&known, &text).unwrap();
        if hash {
            run(Command::new("ssh-keygen").arg("-qHf").arg(&known));
            assert!(fs::read_to_string(&known).unwrap().contains("|1|"));
        }
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "GlobalKnownHostsFile=/dev/null", "-p"]);
        ssh.arg(port.to_string()).arg("-i").arg(bench.sshd.key());
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known.display())).args(["root@127.0.0.1", "true"]);
        assert_eq!(ssh.output().unwrap().status.success(), lets_in, "OpenSSH: {text}");
        let mut command = bench.by_ssh(&known, port);
        let output = command.arg("--agent-path").arg(Bench::agent()).output().unwrap();
        assert_eq!(output.status.success(), lets_in, "{text}: {}", err(&output));
        at_once(&err(&output));
    }
    // What is not understood might be a revocation. OpenSSH passes over it.
    for line in [format!("@banned * {key}"), "@revoked * ssh-ed25519 AAAA".to_owned(), "@revoked".to_owned()] {
        fs::write(&known, format!("{name} {key}\n{line}\n")).unwrap();
        let said = err(&finished(&mut bench.by_ssh(&known, port), 1));
        assert!(said.contains("Line 2 of") && said.contains("cannot be parsed"), "{said}");
    }
}

/// However this program was built, it is brought where there is none, if it runs there.
#[test]
fn the_first_pull_brings_this_very_program() {
    let bench = Bench::new();
    // Alone, as `cargo build` leaves it.
    let own = bench.scene.path("alone/zmreplica");
    fs::create_dir(own.parent().unwrap()).unwrap();
    copy_program(Bench::agent(), &own);
    bench.rsh("exec sh -c \"$1\"");
    let pull = || {
        let mut command = Command::new(&own);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ZMREPLICA_CONFIG", bench.scene.path("empty.toml"));
        command.arg("--store").arg(bench.scene.store()).args(["--json", "snapshot", "--rsh"]);
        command.arg(bench.scene.path("rsh")).arg(format!("far:{}", bench.scene.source().display()));
        let output = finished(&mut command, 0);
        (summary(&output), err(&output))
    };
    assert!(pull().1.contains("was uploaded"));
    let uploaded = bench.uploaded();
    assert_eq!(uploaded.len(), 1);
    assert_eq!(fs::read(&uploaded[0]).unwrap(), fs::read(&own).unwrap());
    assert!(!pull().1.contains("was uploaded"));
    // One that does not run there is taken away again, and the message says what to do in one line.
    fs::remove_dir_all(bench.scene.path("home/.cache")).unwrap();
    let header = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 57]].concat();
    fs::write(bench.scene.path("other"), header).unwrap();
    let other = bench.scene.path("other").display().to_string();
    let said = bench.pull(1, &["--agent-binary", &other]);
    at_once(&said);
    assert!(said.contains("does not run there") && said.contains("Use --agentless"), "{said}");
    // As JSON, and for people.
    assert_eq!(said.trim().lines().count(), 2, "{said}");
    assert_eq!(bench.uploaded(), Vec::<PathBuf>::new());
    // A home that is full.
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(bench.scene.path("home")));
    let said = bench.pull(1, &[]);
    at_once(&said);
    assert!(said.contains("cannot be uploaded to far") && said.contains("No space left"), "{said}");
    assert_eq!(bench.uploaded(), Vec::<PathBuf>::new());
    unmount(&bench.scene.path("home"));
    // A home where nothing can be written.
    fs::remove_dir_all(bench.scene.path("home")).unwrap();
    fs::write(bench.scene.path("home"), "").unwrap();
    let said = bench.pull(1, &[]);
    at_once(&said);
    assert!(said.contains("cannot be uploaded to far") && said.contains("Not a directory"), "{said}");
}
