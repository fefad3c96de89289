//! Hostile remote hosts: agents that make a run take memory, or hold it forever, and runs that do so to an agent. Over real pipes, with the real programs,
//! whose peak of memory is read from the kernel.
//!
//! A hostile agent is this very test program: a run starts it as its `--rsh`, with the name of an attack in the environment, and it plays its part in the test
//! `hostile_peer`.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use crate::support::mounted::{Scene, eventually};
use crate::support::odd::noise;
use crate::support::programs::write_program;
use crate::support::{odd, peer};
use zmreplica::coding::put_varint;
use zmreplica::ids::{ChunkId, DictionaryId};
use zmreplica::model::ChunkHash;
use zmreplica::remote::client::RemoteTree;
use zmreplica::remote::protocol::fields::StatCoder;
use zmreplica::remote::protocol::frame::{self, Kind};
use zmreplica::remote::protocol::messages::{Event, encode_requests, put_event};
use zmreplica::remote::protocol::{MAGIC, Start, Task, VERSION};
use zmreplica::remote::transport::{Connection, Control, ExitInfo};
use zmreplica::source::chunk_intake::{ArrivedChunk, ChunkIntake, IntakeFailed, NumberedChunk};
use zmreplica::source::read::{CutChunk, ReadEvent, ReadRequest, Want};
use zmreplica::source::tree::SourceTree;

/// More than any honest work of these tests takes, in KiB; each attack took a multiple of it.
const RUN_MAX_KIB: u64 = 400 << 10;
const AGENT_MAX_KIB: u64 = 250 << 10;

/// Plays a hostile agent when this program is started as one.
#[test]
fn hostile_peer() {
    if let Ok(attack) = std::env::var("HOSTILE_ATTACK") {
        peer::play(&attack);
        std::process::exit(0);
    }
}

/// What a process took at most, in KiB, and how it ended.
fn watched(mut child: Child) -> (u64, ExitStatus) {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let mut ended = None;
    eventually("the program ends", || {
        for _ in 0..50 {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let now = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
            peak = peak.max(now);
            ended = child.try_wait().unwrap();
            if ended.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ended.is_some()
    });
    (peak, ended.unwrap())
}

/// A scene whose remote host is hostile.
struct Bench {
    scene: Scene,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { scene: Scene::new() };
        let own = std::env::current_exe().unwrap();
        let script = format!("#!/bin/sh\nexec '{}' --exact hostile::hostile_peer --nocapture\n", own.display());
        bench.rsh(&script);
        bench
    }

    fn rsh(&self, script: &str) {
        let rsh = self.scene.path("rsh");
        write_program(&rsh, script);
    }

    fn command(&self, attack: &str, arguments: &[&str]) -> Command {
        let mut command = self.scene.command();
        command.env("HOSTILE_ATTACK", attack).env("HOSTILE_SCENE", self.scene.path(""));
        command.args(arguments).arg("--rsh").arg(self.scene.path("rsh"));
        command
    }

    /// Pulls from the hostile host; returns the peak, the exit code and what was said.
    fn pull(&self, attack: &str, more: &[&str]) -> (u64, i32, String) {
        let mut command = self.command(attack, &["snapshot", "--retries", "0", "--timeout", "2"]);
        command.args(more).arg("far:/tree");
        self.finish(command)
    }

    fn finish(&self, mut command: Command) -> (u64, i32, String) {
        let said = self.scene.path("said");
        let file = fs::File::create(&said).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let (peak, status) = watched(command.spawn().unwrap());
        let said = fs::read_to_string(&said).unwrap();
        let _ = writeln!(std::io::stderr(), "peak {} MiB, {status}: {:.300}", peak >> 10, said.trim());
        (peak, status.code().unwrap_or(-1), said)
    }
}

#[test]
fn a_run_takes_no_more_memory_than_it_should_whatever_an_agent_sends() {
    let bench = Bench::new();
    for (attack, said) in [
        ("restarts", "begun anew"),
        ("problems", "the scan ends before its directories"),
        ("file-systems", "file systems"),
        ("xattrs-of-directories", "has not answered"),
        ("empty-frames", "more than was requested"),
        ("deep-names", "more names in one directory"),
        ("events", "more parts of answers"),
    ] {
        let (peak, _, reported) = bench.pull(attack, &[]);
        assert!(reported.contains(said), "{attack}: {reported}");
        assert!(peak > 0 && peak < RUN_MAX_KIB, "{attack}: {peak} KiB");
    }
    // A block that the last scan had, offered over and over.
    let (_, code, reported) = bench.pull("known-block", &[]);
    assert_eq!(code, 3, "{reported}");
    let (peak, _, reported) = bench.pull("known-block-again", &[]);
    assert!(reported.contains("more listing blocks at once"), "{reported}");
    assert!(peak > 0 && peak < RUN_MAX_KIB, "{peak} KiB");
}

#[test]
fn a_run_does_not_wait_for_an_agent_that_brings_nothing() {
    let bench = Bench::new();
    for (attack, said) in [
        ("drip-noise", "the handshake was not complete"),
        ("drip-hello", "the handshake was not complete"),
        ("silence", "the handshake was not complete"),
        ("drip-frame", "has not answered for 2 s"),
        ("drip-restarts", "begun anew"),
        ("drip-figures", "is no progress"),
        ("drip-zeros", "is no progress"),
    ] {
        let (_, code, reported) = bench.pull(attack, &[]);
        assert_eq!(code, 1, "{attack}: {reported}");
        assert!(reported.contains(said), "{attack}: {reported}");
    }
    // Whatever the agent does, the whole run has an end if it is given one.
    let mut command = bench.command("drip-figures", &["snapshot", "--max-duration", "3s", "--timeout", "600"]);
    command.arg("far:/tree");
    let (_, code, reported) = bench.finish(command);
    assert_eq!(code, 1, "{reported}");
    assert!(reported.contains("stopped after 3 s") && reported.contains("--max-duration"), "{reported}");
}

#[test]
fn a_run_without_an_agent_does_not_wait_for_ever_either() {
    let bench = Bench::new();
    let drip = "while :; do printf x; sleep 0.3; done";
    // A shell that greets, and then sends nothing, or a byte now and then.
    let greeting = "head -c 500 >/dev/null; echo 'ZMRPLAIN1 ok'";
    for (script, said) in [
        ("exec sleep 300".to_owned(), "was not complete"),
        (drip.to_owned(), "was not complete"),
        (format!("{greeting}; exec sleep 300"), "nothing came for 2 s"),
        (format!("{greeting}; {drip}"), "is no progress"),
    ] {
        bench.rsh(&format!("#!/bin/sh\n{script}\n"));
        let (_, code, reported) = bench.pull("none", &["--agentless"]);
        assert_eq!(code, 1, "{script}: {reported}");
        assert!(reported.contains(said), "{script}: {reported}");
    }
    // The end of the whole run comes also while nothing does.
    bench.rsh(&format!("#!/bin/sh\n{greeting}; exec sleep 300\n"));
    let mut command = bench.command("none", &["snapshot", "--agentless", "--max-duration", "2s", "--timeout", "600"]);
    command.arg("far:/tree");
    let (_, code, reported) = bench.finish(command);
    assert_eq!((code, reported.contains("stopped after 2 s")), (1, true), "{reported}");
}

#[test]
fn a_run_that_is_ended_by_its_limit_is_gone_on_with() {
    let bench = Bench::new();
    for file in 0..40u64 {
        fs::write(bench.scene.source().join(format!("{file:02}")), noise(200_000, 2 * file)).unwrap();
    }
    bench.rsh("#!/bin/sh\nshift\nexec sh -c \"$1\"\n");
    let program = assert_cmd::cargo::cargo_bin!("zmreplica");
    let pull = |more: &[&str]| {
        let mut command = bench.scene.command();
        command.args(["--json", "snapshot", "--rsh"]).arg(bench.scene.path("rsh")).arg("--agent-path").arg(program);
        command.args(more).arg(format!("far:{}", bench.scene.source().display()));
        bench.finish(command)
    };
    let (_, code, reported) = pull(&["--bwlimit", "1M", "--max-duration", "3s"]);
    assert_eq!(code, 1, "{reported}");
    assert!(reported.contains("stopped after 3 s"), "{reported}");
    // Also by the configuration, and where the source is local.
    fs::write(bench.scene.path("limit.toml"), "max-duration = '0s'\n").unwrap();
    let mut command = bench.scene.command();
    command.env("ZMREPLICA_CONFIG", bench.scene.path("limit.toml")).arg("snapshot").arg(bench.scene.source());
    let (_, code, reported) = bench.finish(command);
    assert_eq!((code, reported.contains("stopped after 0 s")), (1, true), "{reported}");
    let (_, code, reported) = pull(&[]);
    assert_eq!(code, 0, "{reported}");
    let summary: serde_json::Value = serde_json::from_str(reported.lines().last().unwrap()).unwrap();
    assert_eq!(summary["totals"]["files"], 40);
    let read = summary["work"]["read_bytes"].as_u64().unwrap();
    assert!(read < 40 * 200_000, "nothing of the first run was kept: {read} bytes were read again");
}

/// Makes a snapshot of two directories, and returns the identifier of its pack.
fn two_directories(bench: &Bench) -> String {
    for (name, seed) in [("mine", 2), ("others", 4)] {
        fs::create_dir(bench.scene.source().join(name)).unwrap();
        fs::write(bench.scene.source().join(name).join("mail"), noise(300_000, seed)).unwrap();
        fs::write(bench.scene.source().join(name).join("note"), format!("a note of {name}").repeat(20)).unwrap();
        std::os::unix::fs::symlink(format!("target-of-{name}"), bench.scene.source().join(name).join("link")).unwrap();
    }
    bench.scene.ok(&["snapshot", bench.scene.source().to_str().unwrap()]);
    let pack = odd::paths(&bench.scene.store().join("packs")).into_iter().find(|path| path.is_file()).unwrap();
    pack.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Prepares a restore of a path to the hostile host.
fn restoring(bench: &Bench, attack: &str, path: &str, timeout: &str) -> Command {
    let mut command = bench.command(attack, &["restore", path, "--timeout", timeout]);
    command.env("HOSTILE_PACK", fs::read_to_string(bench.scene.path("pack")).unwrap());
    command.arg("far:/tree");
    command
}

#[test]
fn a_host_that_is_restored_to_cannot_hold_memory_or_time() {
    let bench = Bench::new();
    fs::write(bench.scene.path("pack"), two_directories(&bench)).unwrap();
    // More than the ten seconds after which the run gives a sign of life itself: that is none of the agent's.
    let longer = "12";
    for (attack, timeout, said) in [
        ("unread-answers", "2", "has not read what it requested"),
        ("mute", "2", "has not reported on its work"),
        ("mute", longer, "has not reported on its work"),
    ] {
        let (peak, code, reported) = bench.finish(restoring(&bench, attack, "latest", timeout));
        assert_eq!(code, 1, "{reported}");
        assert!(reported.contains(said), "{attack}: {reported}");
        assert!(peak > 0 && peak < RUN_MAX_KIB, "{attack}: {peak} KiB");
    }
}

#[test]
fn a_host_that_is_restored_to_reads_what_is_restored_and_nothing_else() {
    let bench = Bench::new();
    let pack = two_directories(&bench);
    fs::write(bench.scene.path("pack"), &pack).unwrap();
    // Everything that can be requested, written down by the peer: rows of all tables, and the whole pack.
    let (_, _, reported) = bench.finish(restoring(&bench, "steal", "latest:mine", "2"));
    let stolen = fs::read(bench.scene.path("stolen")).unwrap_or_else(|error| panic!("{error}: {reported}"));
    let holds = |needle: &[u8]| stolen.windows(needle.len()).any(|window| window == needle);
    let (mine, others) = (noise(300_000, 2), noise(300_000, 4));
    assert!(holds(&mine[1000..1064]) && holds(b"target-of-mine"), "the peer got nothing");
    for at in (0..others.len() - 64).step_by(4096) {
        assert!(!holds(&others[at..at + 64]), "bytes of another directory at {at}");
    }
    assert!(!holds(b"target-of-others"), "a row of another directory");
    // Nothing is missing for an honest one.
    bench.rsh("#!/bin/sh\nshift\nexec sh -c \"$1\"\n");
    let program = assert_cmd::cargo::cargo_bin!("zmreplica");
    for (path, place) in [("latest:mine", "restored"), ("latest", "all"), ("latest:others/mail", "mail")] {
        let mut command = bench.scene.command();
        command.args(["restore", "--numeric-ids", path, "--rsh"]).arg(bench.scene.path("rsh")).arg("--agent-path");
        command.arg(program).arg(format!("far:{}", bench.scene.path(place).display()));
        let (_, code, reported) = bench.finish(command);
        assert_eq!(code, 0, "{reported}");
    }
    let same = |one: &Path, other: &Path| assert_eq!(fs::read(one).unwrap(), fs::read(other).unwrap());
    for name in ["mail", "note"] {
        same(&bench.scene.source().join("mine").join(name), &bench.scene.path("restored").join(name));
        same(&bench.scene.source().join("others").join(name), &bench.scene.path("all/others").join(name));
    }
    same(&bench.scene.source().join("others/mail"), &bench.scene.path("mail"));
}

/// Wants every chunk, and gets none.
struct Wanting(u64);

impl ChunkIntake for Wanting {
    fn take(&mut self, chunk: CutChunk) -> Result<NumberedChunk, IntakeFailed> {
        let length = chunk.plain.len() as u32;
        Ok(NumberedChunk { number: self.offer(&chunk.hash, length)?.0, length })
    }

    fn offer(&mut self, _: &ChunkHash, _: u32) -> Result<(ChunkId, bool), IntakeFailed> {
        self.0 += 1;
        Ok((ChunkId(self.0), true))
    }

    fn arrive(&mut self, _: ArrivedChunk) -> Result<(), IntakeFailed> {
        Ok(())
    }

    fn forget(&mut self, _: &ChunkHash) {}

    fn dictionary(&self) -> Option<(DictionaryId, &[u8])> {
        None
    }
}

struct Socket(UnixStream);

impl Control for Socket {
    fn abort(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    fn exit_info(&self) -> ExitInfo {
        ExitInfo::default()
    }
}

#[test]
fn what_comes_instead_of_chunks_that_are_due_is_bounded() {
    let (near, remote) = UnixStream::pair().unwrap();
    let mut sending = remote.try_clone().unwrap();
    let (begin, due) = std::sync::mpsc::channel();
    let flood = std::thread::spawn(move || {
        let mut coder = StatCoder::default();
        let (mut first, mut more, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        put_event(&mut first, &mut coder, &Event::Zeros(1));
        put_event(&mut first, &mut coder, &Event::Offer(ChunkHash::of(b"one"), 3));
        frame::put(&mut bytes, Kind::Events, &first);
        sending.write_all(&bytes).unwrap();
        (0..30_000).for_each(|_| put_event(&mut more, &mut coder, &Event::Zeros(1)));
        bytes.clear();
        frame::put(&mut bytes, Kind::Events, &more);
        let mut sent = 0;
        due.recv().unwrap();
        while sending.write_all(&bytes).is_ok() && sent < 1 << 30 {
            sent += bytes.len();
        }
        sent
    });
    let connection = Connection {
        input: Box::new(near.try_clone().unwrap()),
        output: Box::new(near.try_clone().unwrap()),
        control: Arc::new(Socket(near)),
    };
    let idle_timeout = std::time::Duration::from_secs(60);
    let mut tree = RemoteTree::start(connection, Arc::default(), Path::new(""), idle_timeout).unwrap();
    let mut intake = Wanting(0);
    tree.submit(request(b"file".to_vec())).unwrap();
    tree.flush().unwrap();
    let taking = std::thread::spawn(move || drop(std::io::copy(&mut &remote, &mut std::io::sink())));
    assert!(matches!(tree.receive(&mut intake).unwrap(), ReadEvent::Zeros(1)));
    begin.send(()).unwrap();
    // A commit waits for the chunk that was wanted, which never comes.
    let said = tree.wait_for_chunks(&mut intake).unwrap_err().to_string();
    assert!(said.contains("not the chunks that were"), "{said}");
    drop(tree);
    let sent = flood.join().unwrap();
    assert!(sent < 200 << 20, "{sent} bytes were taken");
    taking.join().unwrap();
}

/// An agent as a key would start it, and a hostile run.
struct Agent {
    child: Child,
    input: std::process::ChildStdin,
}

impl Agent {
    fn start(root: &Path) -> Agent {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("zmreplica"));
        command.args(["agent", "--root"]).arg(root).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let start = Start {
            task: Task::Pull,
            root: root.display().to_string(),
            excludes: Vec::new(),
            cross_file_systems: false,
            level: 3,
            threads: 1,
            bytes_per_second: 0,
        };
        let mut greeting = MAGIC.to_vec();
        greeting.extend_from_slice(&VERSION.to_le_bytes());
        frame::put(&mut greeting, Kind::Start, &serde_json::to_vec(&start).unwrap());
        input.write_all(&greeting).unwrap();
        Agent { child, input }
    }

    /// Sends a frame over and over, reading nothing, until the agent has ended or has had all of them; returns its peak.
    fn flood(mut self, kind: Kind, payload: &[u8], times: usize) -> u64 {
        let mut one = Vec::new();
        frame::put_compressed(&mut one, kind, payload);
        let mut input = self.input;
        let sending = std::thread::spawn(move || {
            for _ in 0..times {
                if input.write_all(&one).and_then(|()| input.flush()).is_err() {
                    break;
                }
            }
            // Time to take in what came.
            std::thread::sleep(std::time::Duration::from_secs(1));
        });
        // Held, and never read.
        let output = self.child.stdout.take();
        let (peak, _) = watched(self.child);
        drop(output);
        sending.join().unwrap();
        let _ = writeln!(std::io::stderr(), "{kind:?}: peak {} MiB", peak >> 10);
        peak
    }
}

fn request(path: Vec<u8>) -> ReadRequest {
    ReadRequest { path, stat: zmreplica::model::ZERO_STAT, want: Want::Content }
}

#[test]
fn an_agent_takes_no_more_memory_than_it_should_whatever_a_run_sends() {
    let directory = tempfile::tempdir().unwrap();
    let root: PathBuf = directory.path().canonicalize().unwrap();
    for file in 0..2000 {
        fs::write(root.join(format!("{file}")), noise(4000, file)).unwrap();
    }
    // Paths that share all but their last byte: each takes 100 kB, and some bytes on the wire.
    let long = vec!["d".repeat(200); 500].join("/").into_bytes();
    let twice = encode_requests(&[request(long.clone()), request(long.clone())]);
    let (first, second) = twice.split_at(encode_requests(&[request(long.clone())]).len());
    let peak = Agent::start(&root).flood(Kind::Reads, &[first, &second.repeat(15_000)].concat(), 1);
    assert!(peak > 0 && peak < AGENT_MAX_KIB, "shared paths: {peak} KiB");
    // Requests for files that are there, whose answers nobody reads.
    let many: Vec<ReadRequest> = (0..2000).map(|file| request(format!("{file}").into_bytes())).collect();
    let peak = Agent::start(&root).flood(Kind::Reads, &encode_requests(&many), 1500);
    assert!(peak > 0 && peak < AGENT_MAX_KIB, "requests: {peak} KiB");
    let apart = encode_requests(&[request(long[..100_000].to_vec())]);
    let peak = Agent::start(&root).flood(Kind::ReadApart, &apart, 5_000);
    assert!(peak > 0 && peak < AGENT_MAX_KIB, "requests apart: {peak} KiB");
    // Answers to offers that were never made.
    let mut bits = Vec::new();
    put_varint(&mut bits, 8_000_000);
    bits.resize(bits.len() + 1_000_000, 0xff);
    for kind in [Kind::ChunksWanted, Kind::BlocksWanted] {
        let peak = Agent::start(&root).flood(kind, &bits, 300);
        assert!(peak > 0 && peak < AGENT_MAX_KIB, "{kind:?}: {peak} KiB");
    }
}

#[test]
fn both_ends_limit_their_memory() {
    let directory = tempfile::tempdir().unwrap();
    let limit = |pid: u32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let line = limits.lines().find(|line| line.starts_with("Max data size")).unwrap_or_default().to_owned();
        line.split_whitespace().nth(3).and_then(|soft| soft.parse::<u64>().ok())
    };
    let agent = Agent::start(directory.path());
    eventually("the agent has a limit", || limit(agent.child.id()).is_some());
    drop(agent.input);
    watched(agent.child);
    let bench = Bench::new();
    let mut command = bench.command("silence", &["snapshot", "--retries", "0", "--timeout", "2"]);
    let child = command.arg("far:/tree").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the run has a limit", || limit(child.id()).is_some());
    watched(child);
}
