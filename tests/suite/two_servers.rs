//! Two mailbox servers in one store, each behind its own sshd: an accident on one and a good night on the other, in both orders. Every command tells the
//! right one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use zmreplica_treegen::{Config, Generator, Preset};

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, err, out, run};
use crate::support::sshd::Sshd;
use crate::support::zimbra::{event, events};

const DAY_MS: i64 = 86_400_000;

/// Two servers and a store that pulls from both.
struct Site {
    scene: Scene,
    servers: [Sshd; 2],
}

const NAMES: [&str; 2] = ["mail1", "mail2"];

impl Site {
    fn new() -> Site {
        let site = Site { scene: Scene::new(), servers: [Sshd::start("ed25519"), Sshd::start("ed25519")] };
        fs::create_dir_all(site.scene.path("home/.ssh")).unwrap();
        let known: String = site.servers.iter().map(|sshd| sshd.known_host(sshd.port)).collect();
        fs::write(site.scene.path("home/.ssh/known_hosts"), known).unwrap();
        let mut settings =
            format!("store = '{}'\nmetrics = '{}'\n", site.scene.store().display(), site.metrics().display());
        for (at, name) in NAMES.iter().enumerate() {
            let config = Config {
                accounts: 3,
                messages: 20,
                seed: 7 + at as u64,
                mean_size_bytes: 2_000,
                start_ms: jiff::Timestamp::now().as_millisecond() - 15 * DAY_MS,
                ..Config::preset(Preset::Sample)
            };
            fs::create_dir(site.tree(at)).unwrap();
            drop(Generator::create(&site.tree(at), config, 1).unwrap());
            run(Command::new("cp").arg("-a").arg(site.tree(at)).arg(site.scene.path(&format!("before{at}"))));
            settings += &format!(
                "[[source]]\nname = '{name}'\nlocation = '{}'\n[source.remote]\nssh-key = '{}'\nagent-path = '{}'\nretries = 0\n",
                site.place(at),
                site.servers[at].key().display(),
                assert_cmd::cargo::cargo_bin!("zmreplica").display(),
            );
        }
        fs::write(site.scene.path("config.toml"), settings).unwrap();
        site
    }

    fn tree(&self, at: usize) -> PathBuf {
        self.scene.path(NAMES[at])
    }

    fn metrics(&self) -> PathBuf {
        self.scene.path("metrics")
    }

    fn place(&self, at: usize) -> String {
        self.servers[at].place(self.servers[at].port, &self.tree(at))
    }

    fn code(&self, code: i32, arguments: &[&str]) -> Output {
        let mut command = self.scene.command();
        let output = command
            .env("HOME", self.scene.path("home"))
            .args(["--config", "config.toml"])
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
        output
    }

    /// The night of one server.
    fn night(&self, at: usize, code: i32) -> Value {
        event(&self.code(code, &["--json", "nightly", "--source", NAMES[at]]), "nightly")
    }

    fn sample(&self, name: &str, at: usize) -> String {
        let text = fs::read_to_string(self.metrics()).unwrap();
        let key = format!("zmreplica_{name}{{source=\"{}\"}} ", NAMES[at]);
        text.lines().find_map(|line| line.strip_prefix(&key)).unwrap_or_else(|| panic!("{key}: {text}")).to_owned()
    }

    /// Restores to a server.
    fn restore(&self, code: i32, snapshot: &str, at: usize) -> Output {
        let agent = assert_cmd::cargo::cargo_bin!("zmreplica").display().to_string();
        let (key, place) = (self.servers[at].key().display().to_string(), self.place(at));
        self.code(code, &["restore", snapshot, &place, "--ssh-key", &key, "--agent-path", &agent])
    }
}

/// What must hold when the last night of `bad` was suspect, whichever server ran last.
fn assert_all_tell(site: &Site, bad: usize) {
    let good = 1 - bad;
    let (bad_name, good_name) = (NAMES[bad], NAMES[good]);
    let said = out(&site.code(4, &["status"]));
    assert!(said.contains(&format!("1 snapshot of {bad_name} is suspect")), "{said}");
    assert!(!said.contains(&format!("of {good_name} is suspect")), "{said}");
    site.code(0, &["status", "--source", good_name]);
    site.code(4, &["status", "--source", bad_name]);
    assert_eq!(
        (site.sample("snapshot_suspect", bad), site.sample("snapshot_suspect", good)),
        ("1".to_owned(), "0".to_owned())
    );
    assert_eq!(
        (site.sample("last_run_exit_code", bad), site.sample("last_run_exit_code", good)),
        ("4".to_owned(), "0".to_owned())
    );
    // Nobody accepts, restores or mounts what happens to be the newest.
    for arguments in
        [&["accept", "latest"][..], &["restore", "latest", "new"], &["mount", "latest", "mnt"], &["sessions"]]
    {
        assert!(err(&site.code(2, arguments)).contains("mail1/latest or mail2/latest"), "{arguments:?}");
    }
    let has_lost_sessions = |name: &str| {
        let listed = events(&site.code(0, &["--json", "--source", name, "sessions"]));
        listed.iter().any(|session| session["vanished"].is_string())
    };
    assert_eq!((has_lost_sessions(good_name), has_lost_sessions(bad_name)), (false, true));
    let accepted = event(&site.code(0, &["--json", "accept", &format!("{good_name}/latest")]), "summary");
    assert_eq!(accepted["accepted"], 0, "there is nothing to accept of the good one");
    site.code(4, &["status"]);
    // The wrong server is refused before anything is written there.
    let before = fs::metadata(site.tree(good)).unwrap().mtime();
    let refused = site.restore(2, &format!("{bad_name}/latest"), good);
    assert!(err(&refused).contains(&format!("where the source {good_name} is")), "{}", err(&refused));
    assert_eq!(fs::metadata(site.tree(good)).unwrap().mtime(), before);
}

fn story(accident_is_last: bool) {
    let site = Site::new();
    let (bad, good) = (0, 1);
    // The whole file at once.
    let nights = events(&site.code(0, &["--json", "nightly"]));
    assert_eq!(nights.iter().filter(|night| night["event"] == "nightly" && night["exit_code"] == 0).count(), 2);
    fs::remove_dir_all(site.tree(bad).join("sessions")).unwrap();
    if accident_is_last {
        site.night(good, 0);
        site.night(bad, 4);
    } else {
        site.night(bad, 4);
        site.night(good, 0);
    }
    assert_all_tell(&site, bad);
    let all = events(&site.code(0, &["--json", "snapshots", "--source", NAMES[bad]]));
    assert_eq!(all[1]["compared_with"], all[0]["id"], "with its own last good one");
    // The undo, on the right one.
    site.restore(0, all[0]["id"].as_str().unwrap(), bad);
    assert_rsync_finds_nothing(&site.scene.path("before0"), &site.tree(bad));
    assert_rsync_finds_nothing(&site.scene.path("before1"), &site.tree(good));
    let after = site.night(bad, 0);
    assert_eq!(after["snapshot"]["state"], "complete");
    assert_eq!(site.sample("snapshot_suspect", bad), "0");
    site.code(0, &["accept", &format!("{}/latest", NAMES[bad])]);
    site.code(0, &["status"]);
    site.code(0, &["check", "--read-data"]);
}

#[test]
fn an_accident_on_one_server_and_then_a_good_night_on_the_other() {
    story(false);
}

#[test]
fn a_good_night_on_one_server_and_then_an_accident_on_the_other() {
    story(true);
}

#[test]
fn config_check_names_what_is_wrong_with_each_source() {
    let site = Site::new();
    let checked = site.code(0, &["config", "check", "--connect"]);
    for (at, name) in NAMES.iter().enumerate() {
        let said = format!("source {name}: connected to {}", site.place(at));
        assert!(err(&checked).contains(&said), "{}", err(&checked));
    }
    let settings = fs::read_to_string(site.scene.path("config.toml")).unwrap();
    let key = site.servers[0].key().display().to_string();
    let place = site.place(1);
    let wrong = settings.replace(&key, "/no/such/key").replace(&place, &format!("{place}/none"));
    fs::write(site.scene.path("config.toml"), wrong).unwrap();
    let said = out(&site.code(2, &["config", "check", "--connect"]));
    assert!(said.contains("source mail1: remote.ssh-key: /no/such/key cannot be read"), "{said}");
    assert!(said.contains("source mail2: ") && said.contains("/none is not there or is empty"), "{said}");
    let wrong = settings.replace("name = 'mail2'", "name = 'mail1'");
    fs::write(site.scene.path("config.toml"), wrong).unwrap();
    let said = out(&site.code(2, &["config", "check"]));
    assert!(said.contains("two sources have the name mail1"), "{said}");
}
