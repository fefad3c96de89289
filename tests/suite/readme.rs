//! The commands of README.md, as they stand and in their order, against a host on loopback that has nothing of this program.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::mounted::{self, Scene, err, out};
use crate::support::programs::copy_program;
use crate::support::sshd::{Sshd, public_half};
use zmreplica_treegen::{Config, Generator, Preset};

/// The lines of the first block of commands below a heading.
fn commands(text: &str, heading: &str) -> Vec<String> {
    let (_, below) = text.split_once(heading).unwrap();
    let (_, block) = below.split_once("```sh\n").unwrap();
    block.split_once("```").unwrap().0.lines().map(str::to_owned).collect()
}

#[test]
fn the_tour_works_as_it_stands() {
    let (scene, sshd) = (Scene::new(), Sshd::start("ed25519"));
    let ssh = scene.path("home/.ssh");
    fs::create_dir_all(&ssh).unwrap();
    fs::copy(sshd.key(), ssh.join("id_ed25519")).unwrap();
    fs::write(ssh.join("id_ed25519.pub"), public_half(&sshd.key())).unwrap();
    fs::write(ssh.join("known_hosts"), sshd.known_host(sshd.port)).unwrap();
    let start_ms = jiff::Timestamp::now().as_millisecond() - 15 * 86_400_000;
    let config = Config { accounts: 3, messages: 20, start_ms, ..Config::preset(Preset::Sample) };
    Generator::create(&scene.source(), config, 2).unwrap();
    let accounts = fs::read_to_string(scene.source().join("accounts.xml")).unwrap();
    let account = accounts.split('"').find(|word| word.contains('@')).unwrap();
    // What `cargo build` leaves, and nothing beside it.
    let built = scene.path("clone/target/release/zmreplica");
    fs::create_dir_all(built.parent().unwrap()).unwrap();
    copy_program(assert_cmd::cargo::cargo_bin!("zmreplica"), &built);
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let lines = commands(&readme, "## A tour");
    // What is the reader's own; each of these is there.
    let own = [
        ("cargo build --release && ", String::new()),
        ("=/srv/replica", format!("={}", scene.path("replica").display())),
        ("zimbra@mail.example.com:/opt/zimbra/backup", sshd.place(sshd.port, &scene.source())),
        ("user@example.com", account.to_owned()),
        ("/tmp/sessions", scene.path("sessions").display().to_string()),
        ("/mnt/zimbra", scene.mnt().display().to_string()),
    ];
    for (given, _) in &own {
        assert!(lines.iter().any(|line| line.contains(given)), "{given}");
    }
    let mut script = "set -eo pipefail\n".to_owned();
    for line in &lines {
        let replaced = own.iter().fold(line.clone(), |line, (given, mine)| line.replace(given, mine));
        script.push_str(&format!("echo \"+ {}\" >&2\n{replaced}\n", line.replace(['"', '$', '`'], "")));
    }
    let mut command = Command::new("bash");
    command.arg("-c").arg(&script).current_dir(scene.path("clone")).env_clear().env("HOME", scene.path("home"));
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("TZ", "UTC")
        .env("ZMREPLICA_CONFIG", scene.path("empty.toml"));
    let output = command.output().unwrap();
    let said = out(&output) + &err(&output);
    assert!(output.status.success(), "{said}");
    assert!(err(&output).contains("was uploaded to"), "{said}");
    assert!(scene.path("clone/page.html").exists());
    mounted::assert_rsync_finds_nothing(&scene.source().join("sessions"), &scene.path("sessions"));
}
