//! Names that lead to something else from one look to the next: in a tree of this host, through an agent, and without one. Each is a problem of that name and
//! of no other.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use zmreplica::check::{CheckOptions, CheckProgress, check};
use zmreplica::model::{Stat, Timestamp, ZERO_STAT};
use zmreplica::remote::agentless::{AgentlessOptions, AgentlessTree};
use zmreplica::remote::client::{AgentChoice, RemoteTree, connect};
use zmreplica::remote::protocol::{Start, Task};
use zmreplica::remote::transport::command::CommandTransport;
use zmreplica::remote::transport::spec::RemoteSpec;
use zmreplica::replica::{Replica, init};
use zmreplica::snapshot::options::{SnapshotOptions, SnapshotReport};
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run_tree;
use zmreplica::source::chunk_intake::{AnswerSink, ChunkIntake, NumberedChunk};
use zmreplica::source::chunker::SinkClosed;
use zmreplica::source::exclude_patterns::ExcludePatterns;
use zmreplica::source::read::{
    CutChunk, EventSink, InodeReader, ReadEvent, ReadOutcome, ReadRequest, ReadResult, Want, stat_at,
};
use zmreplica::source::scan::{Listing, ScanOptions};
use zmreplica::source::tree::{LocalTree, OwnerNames, ScanEnd, SourceError, SourceTree};

use crate::support::locks;
use crate::support::programs::write_program;

const MODES: [&str; 3] = ["local", "agent", "agentless"];

/// When the tree is disturbed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Behind the first listing: most of the tree is not scanned yet.
    Scanning,
    /// Behind the last listing and before the first request.
    Reading,
}

/// A tree that is changed at one moment.
struct Disturbed<'t> {
    tree: Box<dyn SourceTree>,
    when: When,
    change: Option<Box<dyn FnOnce() + 't>>,
    /// Requests that wait for the change.
    held: Vec<ReadRequest>,
}

impl Disturbed<'_> {
    fn disturb(&mut self) -> Result<(), SourceError> {
        if let Some(change) = self.change.take() {
            change();
        }
        self.held.drain(..).try_for_each(|request| self.tree.submit(request))
    }
}

impl SourceTree for Disturbed<'_> {
    fn next_listing(&mut self) -> Result<Option<Listing>, SourceError> {
        let next = self.tree.next_listing()?;
        if self.when == When::Scanning || next.is_none() {
            self.disturb()?;
        }
        Ok(next)
    }

    fn file_systems(&self) -> Vec<Vec<u8>> {
        self.tree.file_systems()
    }

    fn end_of_scan(&mut self) -> ScanEnd {
        self.tree.end_of_scan()
    }

    fn stat_root_entry(&mut self, name: &[u8]) -> Result<Option<Stat>, SourceError> {
        self.tree.stat_root_entry(name)
    }

    fn submit(&mut self, request: ReadRequest) -> Result<(), SourceError> {
        if self.change.is_some() {
            self.held.push(request);
            return Ok(());
        }
        self.tree.submit(request)
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.tree.flush()
    }

    fn receive(&mut self, intake: &mut dyn ChunkIntake) -> Result<ReadEvent<NumberedChunk>, SourceError> {
        self.disturb()?;
        self.tree.receive(intake)
    }

    fn read_apart(&mut self, request: &ReadRequest, sink: &mut dyn AnswerSink) -> Result<ReadOutcome, SourceError> {
        self.tree.read_apart(request, sink)
    }

    fn abandon(&mut self, intake: &mut dyn ChunkIntake) {
        self.tree.abandon(intake);
    }

    fn wait_for_chunks(&mut self, intake: &mut dyn ChunkIntake) -> Result<(), SourceError> {
        self.tree.wait_for_chunks(intake)
    }

    fn owner_names(&mut self, users: &BTreeSet<u32>, groups: &BTreeSet<u32>) -> Result<OwnerNames, SourceError> {
        self.tree.owner_names(users, groups)
    }
}

struct Scene {
    directory: tempfile::TempDir,
    mode: &'static str,
}

impl Scene {
    fn new(mode: &'static str) -> Scene {
        let scene = Scene { directory: tempfile::tempdir().unwrap(), mode };
        fs::create_dir(scene.source()).unwrap();
        init(&scene.store()).unwrap();
        // In ssh's place: the command runs here.
        let rsh = scene.path("rsh");
        write_program(&rsh, "#!/bin/sh\nshift\nexec sh -c \"$1\"\n");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn tree(&self) -> Box<dyn SourceTree> {
        let root = self.source().display().to_string();
        let spec = RemoteSpec { user: None, host: "far".to_owned(), port: None, path: root.clone() };
        let mut transport = CommandTransport::new(self.path("rsh").to_str().unwrap(), &spec);
        match self.mode {
            "local" => {
                let options = ScanOptions { ahead_entries: 20_000, threads: 1, ..ScanOptions::default() };
                Box::new(LocalTree::start(&self.source(), options, 1).unwrap())
            }
            "agent" => {
                let program = assert_cmd::cargo::cargo_bin!("zmreplica").display().to_string();
                let choice = AgentChoice { path: Some(program), ..AgentChoice::default() };
                let start = Start {
                    task: Task::Pull,
                    root,
                    excludes: Vec::new(),
                    cross_file_systems: false,
                    level: 3,
                    threads: 1,
                    bytes_per_second: 0,
                };
                let opened = connect(&mut transport, &choice, &start, false).unwrap();
                let blocks = self.store().join("cache/listing-0");
                Box::new(
                    RemoteTree::start(opened.connection, Arc::default(), &blocks, Duration::from_secs(60)).unwrap(),
                )
            }
            _ => {
                let options = AgentlessOptions {
                    root,
                    excludes: ExcludePatterns::default(),
                    cross_file_systems: false,
                    scan_only: false,
                    bytes_per_second: 0,
                    idle_timeout: Duration::from_secs(60),
                    spool: self.store().join("cache"),
                    interrupted: Arc::new(|| false),
                };
                Box::new(AgentlessTree::open(&mut transport, &options, &Arc::default()).unwrap())
            }
        }
    }

    fn run(&self, when: When, change: impl FnOnce()) -> Result<SnapshotReport, String> {
        let replica = locks::open(&self.store());
        let tree = Disturbed { tree: self.tree(), when, change: Some(Box::new(change)), held: Vec::new() };
        let options = SnapshotOptions { threads: 1, ..SnapshotOptions::default() };
        run_tree(&replica, Box::new(tree), "far:source", &options, &Arc::new(Progress::default()))
            .map_err(|error| format!("{}: {error}", self.mode))
    }

    fn check(&self) {
        let options = CheckOptions { read_data_percent: Some(100), ..CheckOptions::default() };
        let report = check(&Replica::open(&self.store()).unwrap(), &options, &CheckProgress::default()).unwrap();
        assert!(report.damages.is_empty(), "{}: {:?}", self.mode, report.damages);
    }
}

fn problems(report: &SnapshotReport) -> BTreeSet<String> {
    report.problems.iter().map(|problem| String::from_utf8_lossy(&problem.path).into_owned()).collect()
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

fn make(path: &Path, kind: &str) {
    match kind {
        "file" => fs::write(path, format!("file {}", path.display()).repeat(90)).unwrap(),
        "link" => symlink(path.parent().unwrap().join("elsewhere"), path).unwrap(),
        "fifo" => mknodat(CWD, path, FileType::Fifo, Mode::from(0o600), 0).unwrap(),
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "directory" => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("inner"), "inner").unwrap();
        }
        _ => {}
    }
}

#[test]
fn a_name_that_becomes_something_else_before_it_is_read_is_a_problem_of_that_name() {
    const KINDS: [&str; 6] = ["file", "link", "fifo", "socket", "directory", "gone"];
    let mut digests = BTreeSet::new();
    for mode in MODES {
        let scene = Scene::new(mode);
        // One level down: nobody waits there for a name to come back.
        let inner = scene.source().join("in");
        make(&scene.path("elsewhere"), "directory");
        fs::create_dir(&inner).unwrap();
        make(&inner.join("elsewhere"), "directory");
        let (mut changes, mut vanish) = (Vec::new(), BTreeSet::new());
        for before in &KINDS[..4] {
            for after in KINDS.iter().filter(|after| *after != before) {
                let name = format!("{before}-{after}");
                make(&inner.join(&name), before);
                if matches!(*after, "directory" | "gone") {
                    vanish.insert(format!("in/{name}"));
                }
                changes.push((inner.join(name), *after));
            }
        }
        for after in ["file", "link", "gone"] {
            make(&inner.join(format!("above-{after}")), "directory");
            changes.push((inner.join(format!("above-{after}")), after));
            vanish.insert(format!("in/above-{after}/inner"));
        }
        // The first of two names of an inode; the second one still leads to it.
        make(&inner.join("linked-a"), "file");
        fs::hard_link(inner.join("linked-a"), inner.join("linked-b")).unwrap();
        changes.push((inner.join("linked-a"), "directory"));
        vanish.insert("in/linked-a".to_owned());

        let report = scene.run(When::Reading, || {
            for (path, after) in &changes {
                remove(path);
                make(path, after);
            }
        });
        let report = report.unwrap();
        assert_eq!(problems(&report), vanish, "{mode}");
        scene.check();
        // The next run takes what is there.
        let report = scene.run(When::Reading, || {}).unwrap();
        assert_eq!(problems(&report), BTreeSet::new(), "{mode}");
        assert!(report.problems.is_empty(), "{mode}: {:?}", report.problems);
        scene.check();
        digests.insert(report.record.totals.names);
    }
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn a_directory_that_becomes_something_else_before_it_is_scanned_is_a_problem_of_that_name() {
    for mode in MODES {
        let scene = Scene::new(mode);
        let source = scene.source();
        // More names than any scan is ahead.
        for (number, first) in ["one", "two"].into_iter().enumerate() {
            fs::write(source.join(first), first).unwrap();
            for directory in 0..60 {
                let directory = source.join(format!("many-{number}-{directory:02}"));
                fs::create_dir(&directory).unwrap();
                for name in 0..1000 {
                    fs::hard_link(source.join(first), directory.join(format!("{name:040}"))).unwrap();
                }
            }
        }
        let mut gone = BTreeSet::new();
        for after in ["file", "link", "fifo", "socket", "gone"] {
            make(&source.join(format!("z-{after}")), "directory");
            gone.insert(format!("z-{after}"));
        }
        make(&source.join("elsewhere"), "directory");
        let report = scene.run(When::Scanning, || {
            for name in &gone {
                remove(&source.join(name));
                make(&source.join(name), &name[2..]);
            }
        });
        let report = report.unwrap();
        // `find` may have been there before; what it saw is then missing when it is read.
        let found: BTreeSet<String> =
            problems(&report).iter().map(|path| path.split('/').next().unwrap().to_owned()).collect();
        assert_eq!(found, gone, "{mode}");
        scene.check();
        let report = scene.run(When::Reading, || {}).unwrap();
        assert!(report.problems.is_empty(), "{mode}: {:?}", report.problems);
        scene.check();
    }
}

/// Counts what is delivered.
struct Delivered(u64);

impl EventSink for Delivered {
    fn event(&mut self, _: ReadEvent<CutChunk>, bytes: usize) -> Result<(), SinkClosed> {
        self.0 += bytes as u64;
        Ok(())
    }
}

#[test]
fn a_file_under_a_used_inode_number_is_read_though_size_and_time_are_those_of_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "content").unwrap();
    let root = Arc::new(OwnedFd::from(fs::File::open(directory.path()).unwrap()));
    let now = stat_at(root.as_fd(), b"file").unwrap();
    let mut reader = InodeReader::new(root);
    let birth = now.btime.map(|birth| Timestamp { seconds: birth.seconds - 60, ..birth });
    for (scanned, due) in [(now, 0), (Stat { btime: birth, ..now }, 7), (Stat { ino: now.ino + 1, ..now }, 7)] {
        let mut delivered = Delivered(0);
        let request = ReadRequest { path: b"file".to_vec(), stat: scanned, want: Want::Attributes };
        let outcome = reader.read(&request, &mut delivered).unwrap();
        assert!(matches!(outcome.result, ReadResult::Read));
        assert_eq!((delivered.0, outcome.stat), (due, now), "{scanned:?}");
    }
}

/// Lets the kernel answer one call of this thread with an error, if an argument has some bits.
fn let_fail(call: i64, argument: u8, bits: u64, errno: Errno) {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), bits).unwrap();
    let rules = [(call, vec![SeccompRule::new(vec![condition]).unwrap()])].into_iter().collect();
    let answer = SeccompAction::Errno(errno.raw_os_error().unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn what_a_file_system_refuses_with_the_error_of_another_kind_is_unreadable_and_not_vanished() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "content").unwrap();
    symlink("file", directory.path().join("link")).unwrap();
    let root = Arc::new(OwnedFd::from(fs::File::open(directory.path()).unwrap()));
    let opening = u64::from(libc::O_NONBLOCK.unsigned_abs());
    for (name, call, argument, bits, errno) in [
        ("file", libc::SYS_openat, 2, opening, Errno::LOOP),
        ("file", libc::SYS_openat, 2, opening, Errno::NXIO),
        ("file", libc::SYS_openat, 2, opening, Errno::NODEV),
        ("link", libc::SYS_readlinkat, 0, 0, Errno::INVAL),
    ] {
        let root = Arc::clone(&root);
        let read = move || {
            let stat = stat_at(root.as_fd(), name.as_bytes()).unwrap();
            let_fail(call, argument, bits, errno);
            let request = ReadRequest { path: name.as_bytes().to_vec(), stat, want: Want::Content };
            let outcome = InodeReader::new(root).read(&request, &mut Delivered(0)).unwrap();
            let failed = matches!(outcome.result, ReadResult::Failed(code) if code == errno.raw_os_error());
            assert!(failed, "{name} {errno}: {:?}", outcome.result);
        };
        // The filter ends with the thread.
        std::thread::spawn(read).join().unwrap();
    }
}

#[test]
fn a_path_leads_nowhere_above_the_root() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("root/inner")).unwrap();
    let root = Arc::new(OwnedFd::from(fs::File::open(directory.path().join("root")).unwrap()));
    let mut reader = InodeReader::new(root);
    let stat = ZERO_STAT;
    for path in ["..", "inner/..", ".", "inner/.", "", "inner/", "/etc/passwd", "inner/../../root"] {
        let request = ReadRequest { path: path.as_bytes().to_vec(), stat, want: Want::Content };
        let outcome = reader.read(&request, &mut Delivered(0)).unwrap();
        assert_eq!(outcome.stat, stat, "{path:?} shows what is there");
        assert!(matches!(outcome.result, ReadResult::Failed(_)), "{path:?}");
    }
}
