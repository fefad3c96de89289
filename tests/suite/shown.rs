//! What leaves the program for people: whatever names, paths and texts hold, they neither act on a terminal nor begin a line.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::mounted::Scene;
use serde_json::Value;

/// Whatever a source is called, it neither acts on a terminal nor forges a line, in any of the commands that show it.
#[test]
fn what_leaves_only_shows_itself() {
    let hostile = "s\u{1b}[2J\u{1b}]0;t\u{7}\r\nerror: forged \u{9b}31m\u{202e}gpj\u{2066}\u{200f}\u{2028}'$(x)";
    let scene = Scene::new();
    let source = scene.path(hostile);
    fs::rename(scene.source(), &source).unwrap();
    fs::write(source.join("file"), "text").unwrap();
    let (place, home) = (source.to_str().unwrap(), scene.path("home"));
    fs::create_dir(&home).unwrap();
    let report = scene.path("page.html");
    let restored = home.join(hostile);
    let restored = restored.to_str().unwrap();
    let missing = format!("latest:{hostile}");
    let commands: [(i32, &[&str]); 23] = [
        (0, &["-v", "snapshot", place]),
        (0, &["snapshot", "--dry-run", place]),
        (1, &["snapshot", &format!("{place}-not-there")]),
        (2, &["snapshot", "--tag", hostile, place]),
        (0, &["snapshots"]),
        (0, &["status"]),
        (0, &["accounts"]),
        (1, &["accounts", "--account", hostile]),
        (0, &["sessions"]),
        (0, &["prune", "--keep-last", "1", "--dry-run"]),
        (0, &["pin", "--reason", hostile, "latest"]),
        (0, &["snapshots"]),
        (0, &["restore", "latest", restored]),
        (0, &["restore", "-v", "latest", restored]),
        (1, &["cat", &missing]),
        (1, &["ls", &missing]),
        (1, &["snapshots", "--store", hostile]),
        (2, &["snapshots", "--config", hostile]),
        (0, &["report", report.to_str().unwrap()]),
        (0, &["hold", "--reason", hostile]),
        (6, &["snapshot", place]),
        (6, &["status"]),
        (0, &["release"]),
    ];
    for json in [false, true] {
        for (code, arguments) in commands {
            // The store is named by the environment, so that an argument may name another.
            let mut command = bare(&scene);
            if json {
                command.arg("--json");
            }
            let output = command.args(arguments).output().unwrap();
            let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
            for text in [&out, &err] {
                assert!(
                    text.chars().all(|letter| letter == '\n' || zmreplica::plain::is_plain(letter)),
                    "{arguments:?}: {text:?}"
                );
                assert!(!text.lines().any(|line| line.starts_with("error: forged")), "{arguments:?}: {text}");
            }
            if json {
                for line in out.lines() {
                    serde_json::from_str::<Value>(line).unwrap();
                }
            }
        }
        fs::remove_dir_all(restored).unwrap();
    }
    let page = fs::read_to_string(report).unwrap();
    assert!(page.chars().all(|letter| letter == '\n' || zmreplica::plain::is_plain(letter)), "{page:?}");
}

/// On a terminal, where there are colours and a live line: names of files, too, show themselves only.
#[test]
fn on_a_terminal_names_only_show_themselves() {
    let scene = Scene::new();
    fs::write(scene.source().join("accounts.xml"), "<accounts/>\n").unwrap();
    let before = scene.snapshot();
    let hostile = "n\u{1b}]0;t\u{7}\u{1b}[2J\r\nerror: forged \u{9b}31m\u{202e}gpj";
    fs::create_dir(scene.source().join(hostile)).unwrap();
    fs::write(scene.source().join(hostile).join(hostile), "text").unwrap();
    symlink(hostile, scene.source().join("to")).unwrap();
    for arguments in [
        "snapshot source",
        "ls -l latest",
        "ls -R latest",
        "find '*'",
        "find --snapshot latest '*'",
        &format!("diff {before} latest"),
        "check",
        "restore latest copy",
    ] {
        let line = format!("'{}' --store store {arguments}", assert_cmd::cargo::cargo_bin!("zmreplica").display());
        let mut command = Command::new("script");
        // A terminal of its own, which `script` makes.
        command.args(["-qec", &line, "/dev/null"]).current_dir(scene.path("")).env_clear();
        command
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "xterm-256color")
            .env("ZMREPLICA_CONFIG", scene.path("empty.toml"));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // What is left without our own colours and those moves of the live line.
        let mut rest = text.as_str();
        let mut shown = String::new();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            shown.push_str(before);
            let end = after.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(after.len() - 1);
            let (sequence, after) = after.split_at(end + 1);
            let is_ours = sequence.starts_with('[') && sequence.ends_with(['m', 'K', 'A', 'B', 'h', 'l']);
            assert!(is_ours, "{arguments}: {sequence:?} in {text:?}");
            rest = after;
        }
        shown.push_str(rest);
        let is_harmless = |letter: char| matches!(letter, '\n' | '\r' | '\t') || zmreplica::plain::is_plain(letter);
        assert!(shown.chars().all(is_harmless), "{arguments}: {text:?}");
        let is_named = arguments != "check" && !arguments.starts_with("restore") && !arguments.starts_with("snapshot");
        // On a slow machine the live line of the others shows the path, too.
        assert!(shown.contains("error: forged") || !is_named, "{arguments}: {text}");
        assert!(!shown.lines().any(|line| line.starts_with("error: forged")), "{arguments}: {text}");
    }
}

fn bare(scene: &Scene) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("zmreplica"));
    command.env_clear().env("TZ", "UTC").env("ZMREPLICA_CONFIG", scene.path("empty.toml"));
    command.env("ZMREPLICA_STORE", scene.store()).current_dir(scene.path(""));
    command
}
