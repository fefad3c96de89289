//! Pulling without an agent: what the programs of the remote host say on stderr and by their exit codes is heard.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out};
use crate::support::odd::noise;
use crate::support::odd::settle;
use crate::support::programs::write_program;
use crate::support::pulling::finished;

/// A scene with a program in ssh's place that runs the command here.
struct Bench(Scene);

impl Bench {
    fn new() -> Bench {
        let bench = Bench(Scene::new());
        bench.rsh("exec sh -c \"$1\"");
        bench
    }

    fn source(&self, name: &str) -> PathBuf {
        self.0.source().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.0.path(name);
        write_program(&path, &format!("#!/bin/bash\n{text}\n"));
    }

    fn rsh(&self, text: &str) {
        self.script("rsh", &format!("shift\n{text}"));
    }

    /// Makes calls of the system on one file of the remote host fail.
    fn failing(&self, name: &str, inject: &str) {
        let file = self.source(name);
        self.rsh(&format!("exec strace -f -qq -o /dev/null -P '{}' {inject} sh -c \"$1\"", file.display()));
    }

    /// Puts a program before the remote host's own one; `real` is that.
    fn fake(&self, name: &str, text: &str) {
        fs::create_dir_all(self.0.path("bin")).unwrap();
        self.script(&format!("bin/{name}"), &format!("PATH=/usr/bin:/bin\nreal={name}\n{text}"));
        self.rsh(&format!("PATH='{}':$PATH exec sh -c \"$1\"", self.0.path("bin").display()));
    }

    fn pull(&self, code: i32, more: &[&str]) -> String {
        let mut command: Command = self.0.command();
        command.args(["--json", "snapshot", "--no-default-excludes", "--agentless"]).args(more);
        command.arg("--rsh").arg(self.0.path("rsh")).arg(format!("far:{}", self.0.source().display()));
        let output = finished(&mut command, code);
        out(&output) + &err(&output)
    }

    fn assert_restored(&self) {
        let place = self.0.path("restored");
        let _ = fs::remove_dir_all(&place);
        self.0.ok(&["restore", "--numeric-ids", "latest", "restored"]);
        assert_rsync_finds_nothing(&self.0.source(), &place);
        self.0.ok(&["check", "--read-data"]);
    }
}

/// tar fills up with zeros what it cannot read, and the member looks whole. docs/semantics.md: "a file or directory could not be read | its attributes, marked"
#[test]
fn a_read_error_within_a_file_is_a_problem_of_that_file() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    fs::write(bench.source("d/bad: \\odd\nname"), noise(3_000_000, 1)).unwrap();
    fs::write(bench.source("d/beside"), noise(300_000, 2)).unwrap();
    // More than a batch, so that it is read alone.
    fs::write(bench.source("large"), noise(40_000_000, 3)).unwrap();
    let sparse = fs::File::create(bench.source("sparse")).unwrap();
    sparse.write_all_at(&noise(2_000_000, 4), 5 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    settle();
    for (name, call) in [("d/bad: \\odd\nname", 100), ("large", 1000), ("sparse", 50)] {
        bench.failing(name, &format!("-e trace=read -e inject=read:error=EIO:when={call}+"));
        let store = bench.0.store();
        let said = bench.pull(3, &[]);
        assert!(said.contains("\"problem_count\":1"), "{said}");
        assert!(said.contains("Cannot be read (Input/output error"), "{name}: {said}");
        // Nothing of what tar made up is there.
        let shown = serde_json::to_string(name).unwrap();
        assert!(said.contains(&format!("\"path\":{shown}")), "{said}");
        let path = format!("latest:{name}");
        let output = bench.0.command().args(["cat", &path]).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{name}");
        let beside = bench.0.command().args(["cat", "latest:d/beside"]).output().unwrap();
        assert_eq!(beside.stdout, noise(300_000, 2));
        // The next night reads it, though nothing of it changed.
        bench.rsh("exec sh -c \"$1\"");
        bench.pull(0, &[]);
        bench.assert_restored();
        fs::remove_dir_all(&store).unwrap();
        bench.0.ok(&["init"]);
    }
}

/// tar warns, goes on without them, and ends with 0.
#[test]
fn extended_attributes_that_cannot_be_read_are_a_problem() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    fs::write(bench.source("d/f"), "text").unwrap();
    for name in ["d", "d/f"] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(bench.source(name), "user.a", b"b", flags).unwrap();
    }
    settle();
    let calls = "flistxattr,llistxattr,listxattr";
    for name in ["d/f", "d"] {
        bench.failing(name, &format!("-e trace={calls} -e inject={calls}:error=EIO"));
        let said = bench.pull(3, &[]);
        assert!(said.contains(&format!("\"path\":\"{name}\"")), "{said}");
    }
    // A file system that has none is one where nothing has any.
    bench.failing("d/f", &format!("-e trace={calls} -e inject={calls}:error=EOPNOTSUPP"));
    bench.pull(0, &["--rescan"]);
    bench.rsh("exec sh -c \"$1\"");
    bench.pull(0, &["--rescan"]);
    bench.assert_restored();
}

#[test]
fn a_program_that_does_not_come_to_its_end_ends_the_run() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    fs::write(bench.source("d/f"), noise(500_000, 1)).unwrap();
    settle();
    for (tool, text) in [
        // In the middle of a member, and behind the end of a whole archive.
        ("tar", "case \"$*\" in *'-cf -'*) $real \"$@\" | head -c 100000; kill -9 $$;; *) exec $real \"$@\";; esac"),
        ("tar", "case \"$*\" in *'-cf -'*) $real \"$@\"; kill -9 $$;; *) exec $real \"$@\";; esac"),
        (
            "tar",
            "case \"$*\" in *'-cf -'*) $real \"$@\" | head -c 100000; echo 'tar: memory exhausted' >&2; \
             echo 'tar: Error is not recoverable: exiting now' >&2; exit 2;; *) exec $real \"$@\";; esac",
        ),
        ("find", "case \"$*\" in *maxdepth*) kill -9 $$;; *) exec $real \"$@\";; esac"),
        ("getent", "kill -9 $$"),
    ] {
        bench.fake(tool, text);
        let said = bench.pull(1, &["--retries", "0"]);
        assert!(said.contains("was lost"), "{tool}: {said}");
        fs::remove_file(bench.0.path("bin").join(tool)).unwrap();
    }
    assert_eq!(bench.0.ok(&["--json", "snapshots"]), "");
    bench.rsh("exec sh -c \"$1\"");
    bench.pull(0, &[]);
    bench.assert_restored();
}

/// A code without a reason that is understood spoils the whole answer: nothing of it counts as read.
#[test]
fn what_is_not_understood_is_not_believed() {
    let bench = Bench::new();
    for name in ["e", "f"] {
        fs::write(bench.source(name), noise(100_000, 1)).unwrap();
    }
    settle();
    for text in ["exit 2", "echo 'tar: something new' >&2", "echo 'tar: ./g: odd' >&2; echo other >&2; exit 1"] {
        bench.fake("tar", &format!("case \"$*\" in *'-cf -'*) $real \"$@\"; {text};; *) exec $real \"$@\";; esac"));
        let said = bench.pull(3, &["--rescan"]);
        assert!(said.contains("\"problem_count\":2"), "{text}: {said}");
    }
    // A tar that warns before it has done anything is none to work with.
    bench.fake("tar", "echo 'tar: XATTR support is not available' >&2; exec $real \"$@\"");
    let said = bench.pull(1, &[]);
    assert!(said.contains("The tar on far lacks") && said.contains("XATTR support"), "{said}");
    // Others' words are passed over.
    bench.fake("tar", "echo 'ERROR: ld.so: object cannot be preloaded: ignored.' >&2; exec $real \"$@\"");
    bench.pull(0, &["--rescan"]);
    bench.assert_restored();
}

/// docs/semantics.md: "a name vanished between scan and reading | nothing": only what `find` says is gone is gone.
#[test]
fn a_name_that_cannot_be_looked_at_is_not_gone() {
    let bench = Bench::new();
    fs::create_dir(bench.source("d")).unwrap();
    for name in ["d/f", "d/g"] {
        fs::write(bench.source(name), name).unwrap();
    }
    settle();
    for text in ["printf \"find: './d/f': Input/output error\\n\" >&2; exit 1", "exit 1"] {
        let without =
            format!("for n; do shift; [ \"$n\" = ./d/f ] || set -- \"$@\" \"$n\"; done; $real \"$@\"; {text}");
        bench.fake("find", &format!("case \"$*\" in *./d/f*) {without};; *) exec $real \"$@\";; esac"));
        let said = bench.pull(3, &["--rescan"]);
        assert!(said.contains("Cannot be read (Input/output error") && !said.contains("Vanished"), "{said}");
        assert!(bench.0.ok(&["ls", "-R", "latest"]).contains('f'));
    }
}
