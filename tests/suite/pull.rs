//! Pulling through a real sshd: the same snapshots as from a local path, whatever the keys, and nothing where it is not trusted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::mounted::{self, Scene, assert_rsync_finds_nothing, err, out, run};
use crate::support::odd::{self, odd_tree, partition};
use crate::support::pulling::{assert_same, finished, summary};
use crate::support::sshd::{Sshd, make_key, public_half};
use serde_json::Value;
use zmreplica::catalog::tables::Table;
use zmreplica::replica::Replica;
use zmreplica_treegen::{BlobMode, Config, Generator, Preset};

/// A scene with a server that sees its source, and a home directory that knows the server.
struct Bench {
    scene: Scene,
    sshd: Sshd,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_host_key("ed25519")
    }

    fn with_host_key(kind: &str) -> Bench {
        let bench = Bench { scene: Scene::new(), sshd: Sshd::start(kind) };
        fs::create_dir_all(bench.home(".ssh")).unwrap();
        fs::write(bench.home(".ssh/known_hosts"), bench.sshd.known_host(bench.sshd.port)).unwrap();
        finished(bench.scene.command_on(&bench.scene.path("local")).arg("init"), 0);
        bench
    }

    fn home(&self, name: &str) -> PathBuf {
        self.scene.path("home").join(name)
    }

    fn place(&self) -> String {
        self.sshd.place(self.sshd.port, &self.scene.source())
    }

    /// Prepares a pull of the whole source with the server's own agent.
    fn pull(&self) -> Command {
        let mut command = self.scene.command();
        command.env("HOME", self.home("")).args([
            "--json",
            "-v",
            "snapshot",
            "--no-default-excludes",
            "--retries",
            "0",
        ]);
        command.arg("--agent-path").arg(assert_cmd::cargo::cargo_bin!("zmreplica"));
        command
    }

    /// Pulls with the server's usual key, and returns the summary.
    fn pulled(&self) -> Value {
        let mut command = self.pull();
        command.arg("--ssh-key").arg(self.sshd.key()).arg(self.place());
        summary(&finished(&mut command, 0))
    }

    /// Pulls through OpenSSH's client.
    fn pulled_by_rsh(&self) -> Value {
        let mut command = self.pull();
        let known = self.home(".ssh/known_hosts");
        let key = self.sshd.key();
        let ssh = format!(
            "ssh -o BatchMode=yes -o IdentitiesOnly=yes -o 'UserKnownHostsFile={}' -i '{}'",
            known.display(),
            key.display()
        );
        command.arg("--rsh").arg(ssh).arg(self.place());
        summary(&finished(&mut command, 0))
    }

    /// Takes the source from its path, into a store of its own.
    fn taken_locally(&self) -> Value {
        let arguments = ["--json", "snapshot", "--no-default-excludes", "source"];
        let mut command = self.scene.command_on(&self.scene.path("local"));
        summary(&finished(command.args(arguments), 0))
    }

    /// Pulls with a key, and returns what was said.
    fn by_key(&self, code: i32, key: &Path, environment: &[(&str, &str)]) -> String {
        let mut command = self.pull();
        command.envs(environment.iter().copied()).arg("--ssh-key").arg(key).arg(self.place());
        err(&finished(&mut command, code))
    }
}

fn nights_are_the_same(blobs: BlobMode, by_rsh: bool) {
    let bench = Bench::new();
    let config = Config { blobs, accounts: 4, messages: 40, ..Config::preset(Preset::Sample) };
    let mut generator = Generator::create(&bench.scene.source(), config, 2).unwrap();
    fs::create_dir(bench.scene.source().join("zextras")).unwrap();
    for file in 0..20 {
        let path = bench.scene.source().join(format!("zextras/{file}"));
        fs::write(&path, odd::noise(9000, 2 * file)).unwrap();
        // Old enough not to be read once more the next night.
        odd::set_time(&path, 1_700_000_000, 5);
    }
    for night in 0..5 {
        match night {
            1 => drop(generator.night().unwrap()),
            2 => drop(generator.full().unwrap()),
            // Nothing of what has another name is read again.
            3 => fs::rename(bench.scene.source().join("zextras"), bench.scene.source().join("ng")).unwrap(),
            _ => {}
        }
        let pulled = if by_rsh { bench.pulled_by_rsh() } else { bench.pulled() };
        let local = bench.taken_locally();
        assert_same(&pulled, &local);
        let work = &pulled["work"];
        assert_eq!(work["connections"], 1);
        if night >= 3 {
            assert_eq!(work["read_files"], 0);
        }
        if night == 4 {
            let names = pulled["totals"]["names"].as_u64().unwrap();
            let transferred = work["received_bytes"].as_u64().unwrap() + work["sent_bytes"].as_u64().unwrap();
            assert!(transferred <= 2 * names, "{transferred} bytes for {names} names");
        }
    }
    bench.scene.ok(&["check", "--read-data"]);
}

#[test]
fn nights_of_individual_files_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Files, false);
}

#[test]
fn nights_of_stored_zips_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Zipstore, false);
}

#[test]
fn nights_of_deflated_zips_are_as_from_a_local_path() {
    nights_are_the_same(BlobMode::Zip, false);
}

#[test]
fn nights_through_another_program_are_as_from_a_local_path() {
    for blobs in [BlobMode::Files, BlobMode::Zipstore, BlobMode::Zip] {
        nights_are_the_same(blobs, true);
    }
}

#[test]
fn everything_that_a_tree_can_hold_comes_over() {
    let bench = Bench::new();
    odd_tree(&bench.scene.source());
    let (pulled, by_rsh, local) = (bench.pulled(), bench.pulled_by_rsh(), bench.taken_locally());
    assert_same(&pulled, &local);
    assert_eq!(by_rsh["digest"], local["digest"]);
    assert_eq!(pulled["totals"], by_rsh["totals"]);
    // A hole of a terabyte is not transferred.
    assert!(pulled["work"]["received_bytes"].as_u64().unwrap() < 50_000_000);
    bench.scene.ok(&["restore", "--numeric-ids", "latest", "restored"]);
    assert_rsync_finds_nothing(&bench.scene.source(), &bench.scene.path("restored"));
    assert_eq!(partition(&bench.scene.source()), partition(&bench.scene.path("restored")));
}

#[test]
fn chunks_may_be_compressed_here() {
    let bench = Bench::new();
    let config = Config { accounts: 3, messages: 40, ..Config::preset(Preset::Sample) };
    Generator::create(&bench.scene.source(), config, 1).unwrap();
    let mut command = bench.pull();
    command
        .arg("--ssh-key")
        .arg(bench.sshd.key())
        .args(["--compress-at", "replica", "--bwlimit", "200M"])
        .arg(bench.place());
    let pulled = summary(&finished(&mut command, 0));
    assert_same(&pulled, &bench.taken_locally());
    let (came, new) =
        (pulled["work"]["received_bytes"].as_u64().unwrap(), pulled["work"]["new_bytes"].as_u64().unwrap());
    assert!(came > new, "{came} bytes came for {new} new ones");
    bench.scene.ok(&["check", "--read-data"]);
}

#[test]
fn a_dry_run_reads_nothing_and_says_what_would_be() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let mut command = bench.pull();
    command.arg("--dry-run").arg("--ssh-key").arg(bench.sshd.key()).arg(bench.place());
    let would = summary(&finished(&mut command, 0));
    assert_eq!((&would["read_files"], &would["read_bytes"]), (&Value::from(1), &Value::from(4)));
    assert_eq!(bench.scene.ok(&["--json", "snapshots"]), "");
}

#[test]
fn keys_of_all_kinds_log_in() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let keys: Vec<PathBuf> = [("ed25519", ""), ("rsa", ""), ("ecdsa", ""), ("ed25519", "word"), ("rsa", "word")]
        .into_iter()
        .enumerate()
        .map(|(number, (kind, word))| make_key(&bench.sshd.path(&format!("key-{number}")), kind, word))
        .collect();
    bench.sshd.authorize(&keys.iter().map(|key| public_half(key)).collect::<Vec<_>>());
    for key in &keys[..3] {
        bench.by_key(0, key, &[]);
    }
    for key in &keys[3..] {
        bench.by_key(0, key, &[("ZMREPLICA_SSH_PASSPHRASE", "word")]);
        let said = bench.by_key(1, key, &[("ZMREPLICA_SSH_PASSPHRASE", "wrong")]);
        assert!(said.contains("passphrase right?"), "{said}");
        let said = bench.by_key(1, key, &[]);
        assert!(said.contains("it is encrypted"), "{said}");
    }
    // A key that the host does not know.
    let said = bench.by_key(1, &bench.sshd.key(), &[]);
    assert!(said.contains("does not accept it") && said.contains("authorized_keys"), "{said}");
}

#[test]
fn hosts_with_keys_of_all_kinds_are_known() {
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let bench = Bench::with_host_key(kind);
        fs::write(bench.scene.source().join("file"), "text").unwrap();
        bench.pulled();
        // The names hidden behind hashes, as Debian's ssh writes them, among others.
        let known = bench.home(".ssh/known_hosts");
        let other =
            "mail.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ1dCBub3QgYSBrZXkgb2YgYW55Ym9keSBoZXJlISEh\n";
        fs::write(&known, format!("# comment\n{other}{}", fs::read_to_string(&known).unwrap())).unwrap();
        run(Command::new("ssh-keygen").arg("-H").arg("-f").arg(&known));
        assert!(fs::read_to_string(&known).unwrap().contains("|1|"));
        bench.pulled();
    }
}

#[test]
fn a_host_that_is_unknown_or_has_changed_is_refused() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let known = bench.home(".ssh/known_hosts");
    fs::write(&known, "").unwrap();
    let said = bench.by_key(1, &bench.sshd.key(), &[]);
    assert!(said.contains("is not known") && said.contains("SHA256:") && said.contains("ssh-keyscan -p"), "{said}");
    // The fingerprint is the one that the administrator sees.
    let shown = run(Command::new("ssh-keygen").arg("-lf").arg(bench.sshd.path("host.pub")));
    assert!(said.contains(shown.split(' ').nth(1).unwrap()), "{said}: {shown}");
    let other = make_key(&bench.sshd.path("other"), "ed25519", "");
    let key = public_half(&other);
    let key: Vec<&str> = key.split(' ').take(2).collect();
    fs::write(&known, format!("[127.0.0.1]:{} {}\n", bench.sshd.port, key.join(" "))).unwrap();
    let said = bench.by_key(1, &bench.sshd.key(), &[]);
    assert!(said.contains("CHANGED") && said.contains("ssh-keygen -f"), "{said}");
    assert!(!bench.sshd.log().contains("Accepted publickey"), "{}", bench.sshd.log());
    assert_eq!(bench.scene.ok(&["--json", "snapshots"]), "");
}

#[test]
fn keys_of_an_ssh_agent_log_in() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let key = make_key(&bench.sshd.path("agent-key"), "ed25519", "");
    bench.sshd.authorize(&[public_half(&key)]);
    let socket = bench.sshd.path("agent.sock");
    let agent = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(std::process::Stdio::null()).spawn();
    let _agent = mounted::Killed(agent.unwrap());
    mounted::eventually("the agent listens", || socket.exists());
    let mut command = bench.pull();
    command.env("SSH_AUTH_SOCK", &socket).arg(bench.place());
    let said = err(&finished(&mut command, 1));
    assert!(said.contains("holds no key"), "{said}");
    run(Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket));
    finished(&mut command, 0);
}

#[test]
fn a_confined_key_reads_below_its_root_and_nothing_else() {
    let bench = Bench::new();
    fs::create_dir_all(bench.scene.source().join("inner")).unwrap();
    fs::write(bench.scene.source().join("inner/file"), "text").unwrap();
    let program = assert_cmd::cargo::cargo_bin!("zmreplica");
    let source = bench.scene.source();
    let confined = format!(
        "command=\"{} agent --root {}\",restrict {}",
        program.display(),
        source.display(),
        public_half(&bench.sshd.key())
    );
    bench.sshd.authorize(&[confined]);
    bench.pulled();
    let pull = |path: &Path, code| {
        let mut command = bench.pull();
        command.arg("--ssh-key").arg(bench.sshd.key()).arg(bench.sshd.place(bench.sshd.port, path));
        err(&finished(&mut command, code))
    };
    pull(&source.join("inner"), 0);
    for elsewhere in [Path::new("/etc"), &source.join(".."), Path::new("/")] {
        let said = pull(elsewhere, 1);
        assert!(said.contains("is confined to") && !said.contains("--writable"), "{said}");
    }
    // A link that leads out is where it leads.
    std::os::unix::fs::symlink("/etc", source.join("inner/out")).unwrap();
    assert!(pull(&source.join("inner/out"), 1).contains("is confined to"));
    // Whatever command is requested, the agent is what starts.
    let mut ssh = Command::new("ssh");
    ssh.args(["-o", "BatchMode=yes", "-p", &bench.sshd.port.to_string(), "-i"]).arg(bench.sshd.key());
    ssh.arg("-o").arg(format!("UserKnownHostsFile={}", bench.home(".ssh/known_hosts").display()));
    let output = ssh.args(["root@127.0.0.1", "touch", "/tmp/zmreplica-was-not-confined"]).output().unwrap();
    assert!(output.stdout.starts_with(b"ZMRAGENT"), "{}", out(&output));
    assert!(!Path::new("/tmp/zmreplica-was-not-confined").exists());
}

#[test]
fn what_is_not_there_is_said_with_the_remedy() {
    let bench = Bench::new();
    let key = bench.sshd.key();
    let pull = |arguments: &[&str], place: &str, code| {
        let mut command = bench.scene.command();
        command.env("HOME", bench.home("")).args(["snapshot", "--retries", "0", "--ssh-key"]).arg(&key);
        err(&finished(command.args(arguments).arg(place), code))
    };
    let said = pull(&["--agent-path", "/no/such/agent"], &bench.place(), 1);
    assert!(said.contains("no/such/agent") && said.contains("--agent-path"), "{said}");
    let said = pull(&["--no-upload"], &bench.place(), 1);
    assert!(said.contains("Install zmreplica"), "{said}");
    let said = pull(&["--agent-binary", "/etc/hostname"], &bench.place(), 1);
    assert!(said.contains("not a static program"), "{said}");
    let agent = assert_cmd::cargo::cargo_bin!("zmreplica").display().to_string();
    let said = pull(&["--agent-path", &agent], &bench.sshd.place(bench.sshd.port, Path::new("/no/such")), 1);
    assert!(said.contains("/no/such") && said.contains("Check the path"), "{said}");
    let said = pull(&["--agent-path", &agent], "ssh://root@127.0.0.1:1/tmp", 1);
    assert!(said.contains("Cannot connect to 127.0.0.1"), "{said}");
    // The source is empty.
    let said = pull(&["--agent-path", &agent], &bench.place(), 1);
    assert!(said.contains("is empty"), "{said}");
    let said = pull(&[], "host:", 2);
    assert!(said.contains("[user@]host:path"), "{said}");
}

/// Restores to the server, with the server's own agent.
fn restore(bench: &Bench, arguments: &[&str], place: &Path, code: i32) -> Output {
    let mut command = bench.scene.command();
    command.env("HOME", bench.home("")).args(["--json", "restore", "--ssh-key"]).arg(bench.sshd.key());
    command.arg("--agent-path").arg(assert_cmd::cargo::cargo_bin!("zmreplica")).args(arguments);
    finished(command.arg(bench.sshd.place(bench.sshd.port, place)), code)
}

#[test]
fn a_deleted_session_is_put_back_on_its_host() {
    let bench = Bench::new();
    let config = Config { accounts: 4, messages: 40, ..Config::preset(Preset::Sample) };
    let generator = Generator::create(&bench.scene.source(), config, 2).unwrap();
    drop(generator);
    run(Command::new("cp").arg("-a").arg(bench.scene.source()).arg(bench.scene.path("before")));
    bench.pulled();
    fs::remove_dir_all(bench.scene.source().join("sessions")).unwrap();
    fs::remove_file(bench.scene.source().join("accounts.xml")).unwrap();
    let would = summary(&restore(&bench, &["--dry-run", "--numeric-ids", "latest"], &bench.scene.source(), 0));
    assert!(!bench.scene.source().join("accounts.xml").exists());
    let done = summary(&restore(&bench, &["--numeric-ids", "latest"], &bench.scene.source(), 0));
    assert_eq!(would["entries"], done["entries"]);
    assert!(done["files"].as_u64().unwrap() > 100 && done["links"].as_u64().unwrap() > 100, "{done}");
    assert_rsync_finds_nothing(&bench.scene.path("before"), &bench.scene.source());
    assert_eq!(partition(&bench.scene.path("before")), partition(&bench.scene.source()));
    // Again changes nothing; one session alone goes where it is wanted.
    let again = summary(&restore(&bench, &["--numeric-ids", "latest"], &bench.scene.source(), 0));
    assert_eq!((&again["files"], &again["links"]), (&Value::from(0), &Value::from(0)));
    let session = fs::read_dir(bench.scene.source().join("sessions")).unwrap().next().unwrap().unwrap();
    let name = format!("latest:sessions/{}", session.file_name().to_str().unwrap());
    restore(&bench, &["--numeric-ids", &name], &bench.scene.path("elsewhere"), 0);
    assert_rsync_finds_nothing(&session.path(), &bench.scene.path("elsewhere"));
}

#[test]
fn everything_that_a_tree_can_hold_is_put_back() {
    let bench = Bench::new();
    odd_tree(&bench.scene.source());
    bench.pulled();
    restore(&bench, &["--numeric-ids", "latest"], &bench.scene.path("restored"), 0);
    assert_rsync_finds_nothing(&bench.scene.source(), &bench.scene.path("restored"));
    assert_eq!(partition(&bench.scene.source()), partition(&bench.scene.path("restored")));
    assert_eq!(odd::times(&bench.scene.source()), odd::times(&bench.scene.path("restored")));
}

#[test]
fn a_key_that_only_reads_puts_nothing_back() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let program = assert_cmd::cargo::cargo_bin!("zmreplica").display().to_string();
    let root = bench.scene.source().display().to_string();
    let key = public_half(&bench.sshd.key());
    bench.sshd.authorize(&[format!("command=\"{program} agent --root {root}\",restrict {key}")]);
    bench.pulled();
    fs::remove_file(bench.scene.source().join("file")).unwrap();
    let said = err(&restore(&bench, &["latest"], &bench.scene.source(), 1));
    assert!(said.contains("only reads") && said.contains("--writable"), "{said}");
    assert!(!bench.scene.source().join("file").exists());
    // One that may write is confined all the same.
    bench.sshd.authorize(&[format!("command=\"{program} agent --root {root} --writable\",restrict {key}")]);
    let said = err(&restore(&bench, &["latest"], &bench.scene.path("elsewhere"), 1));
    assert!(said.contains("is confined to"), "{said}");
    restore(&bench, &["latest"], &bench.scene.source(), 0);
    assert_eq!(fs::read_to_string(bench.scene.source().join("file")).unwrap(), "text");
}

#[test]
fn damage_of_the_store_is_reported_and_not_restored() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), odd::noise(300_000, 4)).unwrap();
    fs::write(bench.scene.source().join("small"), "text").unwrap();
    bench.pulled();
    let pack = odd::paths(&bench.scene.store().join("packs")).into_iter().find(|path| path.is_file()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    let done = restore(&bench, &["latest"], &bench.scene.path("restored"), 7);
    assert_eq!(summary(&done)["damaged"], 1);
    assert!(!bench.scene.path("restored/file").exists());
    assert_eq!(fs::read_to_string(bench.scene.path("restored/small")).unwrap(), "text");
    bytes[middle] ^= 1;
    fs::write(&pack, &bytes).unwrap();

    // A row whose check value does not fit: the agent never sees it.
    let mut row = Vec::new();
    let database = Replica::open(&bench.scene.store()).unwrap().catalog().unwrap().database().unwrap();
    let scanned = database.scan(Table::Groups, 0, |_, payload| {
        row = payload?.to_vec();
        Ok(())
    });
    scanned.unwrap();
    drop(database);
    let catalog = bench.scene.store().join("catalog.redb");
    let mut bytes = fs::read(&catalog).unwrap();
    let places: Vec<usize> = (0..bytes.len() - row.len()).filter(|at| bytes[*at..].starts_with(&row)).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place + row.len() / 2] ^= 1;
    }
    fs::write(&catalog, bytes).unwrap();
    let done = restore(&bench, &["latest"], &bench.scene.path("again"), 7);
    assert!(summary(&done)["damaged"].as_u64().unwrap() > 0);
    assert!(!bench.scene.path("again/small").exists());
}

/// The static agent that `scripts/build-agent` makes, and `scripts/test` before this test.
fn static_agent() -> PathBuf {
    let agent = match std::env::var_os("ZMREPLICA_TEST_AGENT") {
        Some(agent) => PathBuf::from(agent),
        None => assert_cmd::cargo::cargo_bin!("zmreplica").with_file_name("zmreplica-agent"),
    };
    assert!(
        agent.exists(),
        "{} is not there: run scripts/build-agent --dev, or all tests by scripts/test",
        agent.display()
    );
    agent
}

#[test]
fn the_agent_is_brought_where_there_is_none() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let ssh = format!(
        "ssh -o BatchMode=yes -o IdentitiesOnly=yes -o 'UserKnownHostsFile={}' -i '{}'",
        bench.home(".ssh/known_hosts").display(),
        bench.sshd.key().display()
    );
    let key = bench.sshd.key().display().to_string();
    for way in [["--ssh-key", &key], ["--rsh", &ssh]] {
        let pull = || {
            let mut command = bench.scene.command();
            command.env("HOME", bench.home("")).args(["--json", "snapshot", "--retries", "0", "--agent-binary"]);
            command.arg(static_agent()).args(way).arg(bench.place());
            let output = finished(&mut command, 0);
            (summary(&output), err(&output))
        };
        let (first, said) = pull();
        assert_eq!(first["totals"]["files"], 1);
        assert!(said.contains("was uploaded"), "{said}");
        let uploads = bench.sshd.uploads();
        let [uploaded] = uploads.as_slice() else { panic!("{uploads:?}") };
        assert_eq!(fs::read(uploaded).unwrap(), fs::read(static_agent()).unwrap());
        let (second, said) = pull();
        assert!(!said.contains("was uploaded"), "{said}");
        assert_eq!(second["totals"], first["totals"]);
        // One that was changed there is not trusted, and replaced.
        let mut bytes = fs::read(uploaded).unwrap();
        bytes.push(0);
        // In its place, not into it: the agent of the last pull may still be about to end.
        let (changed, mode) = (uploaded.with_file_name("changed"), fs::metadata(uploaded).unwrap().permissions());
        fs::write(&changed, &bytes).unwrap();
        fs::set_permissions(&changed, mode).unwrap();
        fs::rename(&changed, uploaded).unwrap();
        let (_, said) = pull();
        assert!(said.contains("was uploaded"), "{said}");
        fs::remove_file(uploaded).unwrap();
    }
}

/// The kernel that runs these tests has both.
#[test]
fn the_agent_is_confined_by_its_kernel_and_that_is_said_to_those_who_want_to_know() {
    let bench = Bench::new();
    fs::write(bench.scene.source().join("file"), "text").unwrap();
    let said = |verbose: bool| {
        let mut command = bench.scene.command();
        command.env("HOME", bench.home("")).arg("snapshot").arg("--ssh-key").arg(bench.sshd.key()).arg(bench.place());
        command.arg("--agent-path").arg(assert_cmd::cargo::cargo_bin!("zmreplica"));
        if verbose {
            command.arg("-v");
        }
        err(&finished(&mut command, 0))
    };
    assert!(said(true).contains("is confined to reading (Landlock, seccomp)"));
    assert!(!said(false).contains("confined"));
}
