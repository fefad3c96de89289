//! Connections that break, agents that die, runs that are killed, and remote hosts that lie.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::effort::cases;
use crate::support::locks;
use crate::support::mounted::{self, Scene, err, eventually, out, signal};
use crate::support::odd::{self, noise};
use crate::support::proxy::Proxy;
use crate::support::sshd::Sshd;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::process::Signal;
use serde_json::Value;
use zmreplica::check::{CheckOptions, CheckProgress, check};
use zmreplica::remote::agent::{AgentOptions, serve};
use zmreplica::remote::client::{RemoteTree, WireCounters};
use zmreplica::remote::protocol::{Start, Task};
use zmreplica::remote::transport::{Connection, Control, ExitInfo};
use zmreplica::replica::{Replica, init};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run_tree;

struct Bench {
    scene: Scene,
    sshd: Sshd,
    proxy: Proxy,
}

impl Bench {
    fn new() -> Bench {
        let (scene, sshd) = (Scene::new(), Sshd::start("ed25519"));
        let proxy = Proxy::start(0, sshd.port, Duration::ZERO);
        fs::write(scene.path("known_hosts"), sshd.known_host(proxy.port)).unwrap();
        Bench { scene, sshd, proxy }
    }

    /// Prepares a pull through the proxy into a store.
    fn pull(&self, store: &Path) -> Command {
        let mut command = self.scene.command_on(store);
        command.args(["--json", "snapshot", "--known-hosts"]).arg(self.scene.path("known_hosts"));
        command.arg("--ssh-key").arg(self.sshd.key());
        command.arg("--agent-path").arg(assert_cmd::cargo::cargo_bin!("zmreplica"));
        command.arg(self.sshd.place(self.proxy.port, &self.scene.source()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn store(&self, name: &str) -> PathBuf {
        let store = self.scene.path(name);
        let output = self.scene.command_on(&store).arg("init").output().unwrap();
        assert!(output.status.success(), "{}", err(&output));
        store
    }

    fn transferred(&self) -> u64 {
        self.proxy.traffic.up.load(Ordering::Relaxed) + self.proxy.traffic.down.load(Ordering::Relaxed)
    }

    fn check(&self, store: &Path) {
        let output = self.scene.command_on(store).args(["check", "--read-data"]).output().unwrap();
        assert!(output.status.success(), "{}{}", out(&output), err(&output));
    }
}

fn finish(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", out(&output), err(&output));
    serde_json::from_str(out(&output).lines().last().unwrap()).unwrap()
}

fn pack_bytes(store: &Path) -> u64 {
    // What is just being written has another name, and may be gone the next moment.
    let whole = |path: &&PathBuf| path.is_file() && !path.to_string_lossy().contains(".tmp-");
    let packs = odd::paths(&store.join("packs"));
    packs.iter().filter(whole).map(|path| fs::metadata(path).map_or(0, |file| file.len())).sum()
}

#[test]
fn a_pull_that_is_cut_twenty_times_sends_little_twice() {
    let bench = Bench::new();
    for file in 0..2000 {
        fs::write(bench.scene.source().join(format!("{file:04}")), noise(150_000, 2 * file)).unwrap();
    }
    let whole = finish(bench.pull(&bench.store("uncut")).spawn().unwrap());
    let uncut = bench.transferred();
    let store = bench.store("cut");
    let down = &bench.proxy.traffic.down;
    let child = bench.pull(&store).spawn().unwrap();
    for cut in 1..=20 {
        let step = uncut / 40 + (cut * 7919) % (uncut / 60);
        bench.proxy.traffic.cut_at.store(down.load(Ordering::Relaxed) + step, Ordering::Relaxed);
        eventually("the connection is cut", || bench.proxy.traffic.cuts.load(Ordering::Relaxed) == cut);
    }
    let summary = finish(child);
    assert_eq!(summary["work"]["connections"], 21);
    assert_eq!(summary["totals"], whole["totals"]);
    assert_eq!(summary["problem_count"], 0);
    let all = bench.transferred() - uncut;
    assert!(all <= uncut + uncut / 10, "{all} bytes instead of {uncut}");
    bench.check(&store);
    let restored = bench.scene.path("restored");
    let output = bench.scene.command_on(&store).args(["restore", "--numeric-ids", "latest"]).arg(&restored).output();
    assert!(output.unwrap().status.success());
    mounted::assert_rsync_finds_nothing(&bench.scene.source(), &restored);
}

/// Finds the agent that serves a directory.
fn agent_of(root: &Path) -> Option<u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&b"agent".as_slice()) && words.contains(&root.as_os_str().as_encoded_bytes())
    })
}

#[test]
fn a_killed_agent_is_started_again() {
    let bench = Bench::new();
    for file in 0..200 {
        fs::write(bench.scene.source().join(format!("{file:03}")), noise(200_000, 2 * file)).unwrap();
    }
    let store = bench.store("replica");
    let child = bench.pull(&store).arg("--bwlimit").arg("20M").spawn().unwrap();
    for _ in 0..2 {
        let before = bench.transferred();
        eventually("something comes", || bench.transferred() > before + 4_000_000);
        signal(agent_of(&bench.scene.source()).unwrap(), Signal::KILL);
        eventually("the agent is gone", || agent_of(&bench.scene.source()).is_none());
        eventually("another one comes", || agent_of(&bench.scene.source()).is_some());
    }
    let summary = finish(child);
    assert_eq!((&summary["work"]["connections"], &summary["problem_count"]), (&Value::from(3), &Value::from(0)));
    eventually("the agent ends with its run", || agent_of(&bench.scene.source()).is_none());
    bench.check(&store);
}

#[test]
fn a_killed_run_is_gone_on_with() {
    let bench = Bench::new();
    for file in 0..160 {
        fs::write(bench.scene.source().join(format!("{file:03}")), noise(1_000_000, 2 * file)).unwrap();
    }
    let store = bench.store("replica");
    let mut child = bench.pull(&store).spawn().unwrap();
    // Packs of 32 MiB; nothing of it is committed yet.
    eventually("some packs are there", || pack_bytes(&store) > 90_000_000);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the agent ends with its run", || agent_of(&bench.scene.source()).is_none());
    let kept = pack_bytes(&store);
    let before = bench.transferred();
    let summary = finish(bench.pull(&store).spawn().unwrap());
    let again = bench.transferred() - before;
    assert!(again <= 160_000_000 - kept + 8_000_000, "{again} bytes though {kept} were there");
    assert_eq!(summary["totals"]["files"], 160);
    bench.check(&store);
}

/// Flips one byte of a stream.
struct Flipping<R> {
    inner: R,
    at: u64,
    mask: u8,
    position: u64,
    /// Ends the stream at `at` instead.
    cut: bool,
}

impl<R: Read> Read for Flipping<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if (self.position..self.position + count as u64).contains(&self.at) {
            let at = (self.at - self.position) as usize;
            if self.cut {
                self.position += count as u64;
                return Ok(at);
            }
            buffer[at] ^= self.mask;
        }
        self.position += count as u64;
        Ok(count)
    }
}

struct Socket(UnixStream, AtomicBool);

impl Control for Socket {
    fn abort(&self) {
        self.1.store(true, Ordering::Relaxed);
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    fn exit_info(&self) -> ExitInfo {
        ExitInfo::default()
    }
}

/// Runs an agent in this process, its output changed on the way, and takes a snapshot of what it says.
fn pull_flipped(source: &Path, store: &Path, at: u64, mask: u8, cut: bool) -> Result<String, String> {
    let (near, remote) = UnixStream::pair().unwrap();
    let (input, output) = (remote.try_clone().unwrap(), remote);
    let agent = std::thread::spawn(move || {
        let _ = serve(&input, &output, &AgentOptions::default());
        let _ = output.shutdown(std::net::Shutdown::Both);
    });
    let start = Start {
        task: Task::Pull,
        root: source.display().to_string(),
        excludes: Vec::new(),
        cross_file_systems: false,
        level: 3,
        threads: 1,
        bytes_per_second: 0,
    };
    let mut reading = near.try_clone().unwrap();
    let mut writing = near.try_clone().unwrap();
    // The handshake, as the client does it; then the stream is no longer what it was.
    let mut greeting = [0; 12];
    reading.read_exact(&mut greeting).unwrap();
    writing.write_all(&greeting).unwrap();
    zmreplica::remote::protocol::frame::write(
        &mut writing,
        zmreplica::remote::protocol::frame::Kind::Start,
        &serde_json::to_vec(&start).unwrap(),
    )
    .unwrap();
    for _ in 0..2 {
        zmreplica::remote::protocol::frame::read(&mut reading).unwrap();
    }
    let connection = Connection {
        input: Box::new(Flipping { inner: reading, at, mask, position: 0, cut }),
        output: Box::new(writing),
        control: Arc::new(Socket(near, AtomicBool::new(false))),
    };
    let result = {
        let replica = locks::open(store);
        let (wire, blocks) = (Arc::new(WireCounters::default()), store.join("cache/listing-0"));
        let tree = RemoteTree::start(connection, wire, &blocks, Duration::from_millis(700));
        let options = SnapshotOptions { threads: 1, ..SnapshotOptions::default() };
        run_tree(&replica, Box::new(tree.unwrap()), "far:away", &options, &Arc::new(Progress::default()))
    };
    agent.join().unwrap();
    result.map(|report| report.record.digest).map_err(|error| error.to_string())
}

#[test]
fn a_remote_host_that_sends_anything_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir_all(source.join("inner/deep")).unwrap();
    for file in 0..30u64 {
        let place = if file % 3 == 0 { "inner/deep" } else { "inner" };
        fs::write(source.join(place).join(format!("{file}")), noise(file as usize * 1500 + 3, 2 * file)).unwrap();
        fs::hard_link(source.join(place).join(format!("{file}")), source.join(format!("link-{file}"))).unwrap();
    }
    std::os::unix::fs::symlink("inner", source.join("symlink")).unwrap();
    // The length of what an agent sends, and the right answer.
    let right = directory.path().join("right");
    init(&right).unwrap();
    let digest = pull_flipped(&source, &right, u64::MAX, 0, false).unwrap();
    let mut runner =
        TestRunner::new(ProptestConfig { cases: cases(60), source_file: Some(file!()), ..ProptestConfig::default() });
    let tried = AtomicU64::new(0);
    let outcome = runner.run(&(0u64..700_000, 1u8.., any::<bool>()), |(at, mask, cut)| {
        let store = directory.path().join(format!("store-{}", tried.fetch_add(1, Ordering::Relaxed)));
        init(&store).unwrap();
        let first = pull_flipped(&source, &store, at, mask, cut);
        let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
        let report = check(&Replica::open(&store).unwrap(), &options, &CheckProgress::default()).unwrap();
        prop_assert!(report.damages.is_empty(), "{:?} after {first:?}", report.damages);
        // Whatever was kept of it, the truth is what the next run takes.
        let again = pull_flipped(&source, &store, u64::MAX, 0, false);
        prop_assert!(again.is_ok(), "{again:?} after {first:?}");
        fs::remove_dir_all(&store).unwrap();
        Ok(())
    });
    outcome.unwrap();
    let store = directory.path().join("again");
    init(&store).unwrap();
    assert_eq!(pull_flipped(&source, &store, u64::MAX, 0, false), Ok(digest));
}
