//! Restores where something is short or somebody interferes: few open files, attributes that do not fit, a user who exchanges names while root restores.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::mounted::{
    Killed, Scene, assert_rsync_finds_nothing, err, eventually, out, run, shell, signal, unmount,
};
use crate::support::odd::{files, set_mode, set_time};
use crate::support::programs::{copy_program, write_program};
use crate::support::pulling::summary;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags, getxattr, mkdirat, mknodat,
    openat, renameat_with, setxattr,
};
use rustix::process::Signal;
use serde_json::Value;

/// Runs the program with a limit of open files, soft and hard.
fn with_files(scene: &Scene, files: u32, arguments: &[&str]) -> Output {
    let program = scene.command();
    let mut command = Command::new("bash");
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(scene.source().parent().unwrap());
    command.args(["-c", "ulimit -n $0; exec \"$@\""]).arg(files.to_string());
    command.arg(program.get_program()).args(program.get_args()).args(arguments);
    command.output().unwrap()
}

fn problems(output: &Output) -> Vec<(String, String)> {
    let text = out(output);
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let word = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    events
        .filter(|event| event["event"] == "problem")
        .map(|event| (word(&event, "path"), word(&event, "message")))
        .collect()
}

#[test]
fn with_few_open_files_every_name_comes_back() {
    let scene = Scene::new();
    // Wide, with directories whose last names come late and links from each to each; and deep.
    for number in 0..150 {
        let directory = scene.source().join(format!("{number:03}/a/b"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("x"), vec![number as u8; 3000]).unwrap();
        fs::hard_link(directory.join("x"), scene.source().join(format!("{:03}/z", 149 - number))).unwrap_or_else(
            |_| {
                fs::hard_link(directory.join("x"), directory.join("z")).unwrap();
            },
        );
        fs::hard_link(directory.join("x"), scene.source().join(format!("link {number}"))).unwrap();
        set_mode(&directory, 0o500);
        set_time(&directory, 1_000_000_000 + number, 9);
    }
    let deep = scene.source().join("deep");
    let mut path = deep.clone();
    for _ in 0..300 {
        path.push("d");
    }
    fs::create_dir_all(&path).unwrap();
    for (level, directory) in path.ancestors().take(300).enumerate() {
        fs::write(directory.join("f"), level.to_string()).unwrap();
        set_time(directory, 1_100_000_000 + level as i64, 9);
    }
    scene.snapshot();
    for files in [256, 64, 40] {
        let target = scene.path(&format!("target {files}"));
        let report = with_files(&scene, files, &["--json", "restore", "latest", target.to_str().unwrap()]);
        assert_eq!(report.status.code(), Some(0), "{files} files: {}{}", out(&report), err(&report));
        assert_rsync_finds_nothing(&scene.source(), &target);
        // In place, and with everything to remove.
        shell(r#"cp -a "$1/000" "$1/deep/d/d/stray"; for d in "$1"/*/a; do touch "$d/stray"; done"#, &[&target]);
        let report = with_files(&scene, files, &["restore", "--delete", "latest", target.to_str().unwrap()]);
        assert_eq!(report.status.code(), Some(0), "{files} files: {}{}", out(&report), err(&report));
        assert_rsync_finds_nothing(&scene.source(), &target);
    }
}

#[test]
fn a_soft_limit_of_open_files_is_raised_by_every_command() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    scene.snapshot();
    // What a command has, its child has: the transport's program.
    for command in ["snapshot", "restore"] {
        let place = format!("{}:/none", "host");
        let arguments: Vec<&str> = match command {
            "snapshot" => vec!["snapshot", &place],
            _ => vec!["restore", "latest", &place],
        };
        let reported = scene.path("reported");
        let rsh = format!("sh -c 'ulimit -Sn > {}; exit 9'", reported.display());
        let program = scene.command();
        let mut limited = Command::new("bash");
        limited.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited.current_dir(scene.path("")).args(["-c", "ulimit -Sn 99; ulimit -Hn 777; exec \"$@\"", "bash"]);
        limited.arg(program.get_program()).args(program.get_args()).args(&arguments).args(["--rsh", &rsh]);
        let output = limited.output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        assert_eq!(fs::read_to_string(&reported).unwrap_or_default().trim(), "777", "{command}: {}", err(&output));
        fs::remove_file(reported).unwrap();
    }
}

/// Opens a chain of directories from the top down, of which a path would be too long.
fn chain(top: &Path, levels: usize, mut each: impl FnMut(&OwnedFd, usize)) {
    let mut at = OwnedFd::from(fs::File::open(top).unwrap());
    for level in 0..levels {
        each(&at, level);
        at = openat(&at, "d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_much_deeper_than_the_limit_of_open_files_comes_back() {
    const LEVELS: usize = 5000;
    let scene = Scene::new();
    chain(&scene.source(), LEVELS, |at, level| {
        mkdirat(at, "d", Mode::RWXU).unwrap();
        if level % 100 == 0 {
            mknodat(at, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        }
        let time = Timespec { tv_sec: 1_000_000 + level as i64, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(at, &times).unwrap();
    });
    scene.snapshot();
    let report = with_files(&scene, 64, &["--json", "restore", "latest", "target"]);
    assert_eq!(report.status.code(), Some(0), "{}{}", out(&report), err(&report));
    assert_eq!(summary(&report)["entries"], LEVELS + LEVELS / 100);
    let mut fifos = 0;
    chain(&scene.path("target"), LEVELS, |at, level| {
        let stat = rustix::fs::fstat(at).unwrap();
        assert!(level == 0 || stat.st_mtime == 1_000_000 + level as i64, "level {level}");
        fifos += usize::from(rustix::fs::statat(at, "fifo", AtFlags::SYMLINK_NOFOLLOW).is_ok());
    });
    assert_eq!(fifos, LEVELS / 100);
    // rm of coreutils uses descriptors, too; the test's own cleaning need not.
    shell(r#"rm -rf "$1"/* "$2""#, &[&scene.source(), &scene.path("target")]);
}

/// A file system in a file, mounted at a name of the scene.
fn mount_ext4(scene: &Scene, name: &str, options: &str) -> PathBuf {
    let image = scene.path(&format!("{name}.img"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-E", options]).arg(&image));
    let place = scene.path(name);
    fs::create_dir(&place).unwrap();
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place));
    place
}

#[test]
fn an_attribute_that_does_not_fit_is_a_problem_of_its_name() {
    let scene = Scene::new();
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(scene.source()));
    let at = |name: &str| scene.source().join(name);
    fs::create_dir(at("directory")).unwrap();
    for name in ["a", "big", "c", "directory/d", "z"] {
        fs::write(at(name), format!("text of {name}")).unwrap();
        setxattr(at(name), "user.small", b"fits", XattrFlags::empty()).unwrap();
    }
    for name in ["big", "directory"] {
        setxattr(at(name), "user.big", &vec![b'x'; 60_000], XattrFlags::empty()).unwrap();
        setxattr(at(name), "user.bigger", &vec![b'y'; 60_001], XattrFlags::empty()).unwrap();
        setxattr(at(name), "user.after", b"fits as well", XattrFlags::empty()).unwrap();
        set_time(&at(name), 1_234_567_890, 9);
    }
    // A time that ext4 does not have, in the year 2905.
    set_time(&at("c"), 29_500_000_000, 9);
    scene.snapshot();
    let disk = mount_ext4(&scene, "disk", "lazy_itable_init=1");
    let report = scene.code(3, &["--json", "restore", "latest", "disk/target"]);
    let found = problems(&report);
    assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["big", "c", "directory"]);
    for (path, message) in &found {
        if path == "c" {
            assert!(message.contains("modification time"), "{message}");
            continue;
        }
        assert!(
            message.contains("user.big (60000 bytes) and 1 more") && message.contains("No space left"),
            "{path}: {message}"
        );
    }
    let target = disk.join("target");
    // All else is as it should be, also of the two.
    let differences = shell(r#"rsync -aHAnic --numeric-ids --delete "$1/" "$2/""#, &[&scene.source(), &target]);
    assert_eq!(differences, ".f..t...... c\n");
    for name in ["a", "big", "c", "directory/d", "z"] {
        let mut value = [0; 16];
        let length = getxattr(target.join(name), "user.small", &mut value).unwrap();
        assert_eq!(&value[..length], b"fits", "{name}");
    }
    assert!(getxattr(target.join("big"), "user.after", &mut [0; 64][..]).is_ok());
    // A disk that is really full is still reported as such.
    let rest = rustix::fs::statvfs(&disk).unwrap();
    fs::write(at("more"), vec![0x55; (rest.f_bavail * rest.f_frsize) as usize + (8 << 20)]).unwrap();
    scene.snapshot();
    shell(r#"fallocate -l 40M "$1/filler""#, &[&disk]);
    set_time(&at("more"), 7, 9);
    let report = scene.command().args(["restore", "latest", "disk/target"]).output().unwrap();
    assert!(err(&report).contains("Free some space"), "{}", err(&report));
    unmount(&disk);
    unmount(&scene.source());
}

const USER: u32 = 4242;
const OF_ROOT: &str = "what only root may read";
const OF_USER: &str = "what the user may change";
/// Names that the user exchanges: one of root's, and one of the user's.
const EXCHANGED: [(&str, &str); 4] =
    [("secret", "public"), ("dir-r", "dir-u"), ("fifo-r", "fifo-u"), ("dir-u/x", "dir-u/y")];
const EXCHANGE_IN: &str = "ZMREPLICA_TEST_EXCHANGE_IN";

/// What the user's process does until it is ended.
#[test]
#[ignore = "is run by a test, as another user"]
fn exchange_names_for_ever() {
    let Some(directory) = std::env::var_os(EXCHANGE_IN) else { return };
    let directory = Path::new(&directory);
    loop {
        for (left, right) in EXCHANGED {
            // Fails when the restore has just removed one.
            let _ = renameat_with(CWD, directory.join(left), CWD, directory.join(right), RenameFlags::EXCHANGE);
        }
    }
}

fn write_as(path: &Path, text: &str, owner: u32, mode: u32) {
    fs::write(path, format!("{text:30}")).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    set_mode(path, mode);
    // Size and time prove nothing.
    set_time(path, 1_500_000_000, 9);
}

/// Returns whether all threads of a process are stopped.
fn stands_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let state = |task: PathBuf| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
    };
    tasks.map(|task| task.unwrap().path()).all(state)
}

/// Asserts that nothing of root's was handed over.
fn assert_nothing_handed_over(tree: &Path) {
    let mut of_root = 0;
    for path in files(tree) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_file() && fs::read_to_string(&path).unwrap().starts_with(OF_ROOT) {
            of_root += 1;
            let seen = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            assert_eq!(seen, (0, 0, 0o600), "{} was handed over", path.display());
        }
    }
    assert!(of_root > 0);
}

#[test]
fn names_that_a_user_exchanges_meanwhile_hand_over_nothing_of_roots() {
    let scene = Scene::new();
    let at = |name: &str| scene.source().join(name);
    chown(scene.source(), Some(USER), Some(USER)).unwrap();
    for (name, owner, mode) in [("dir-r", 0, 0o700), ("dir-u", USER, 0o755)] {
        fs::create_dir(at(name)).unwrap();
        chown(at(name), Some(owner), Some(owner)).unwrap();
        set_mode(&at(name), mode);
    }
    for directory in ["", "dir-u/", "dir-r/"] {
        let (root, user) = if directory.is_empty() { ("secret", "public") } else { ("x", "y") };
        write_as(&at(&format!("{directory}{root}")), OF_ROOT, 0, 0o600);
        write_as(&at(&format!("{directory}{user}")), OF_USER, USER, 0o644);
    }
    // Of root's, and for all to read: a change of mode would give away what another name leads to.
    write_as(&at("dir-u/readme"), OF_USER, 0, 0o644);
    for (name, owner, mode) in [("fifo-r", 0, 0o600), ("fifo-u", USER, 0o666)] {
        mknodat(CWD, at(name), FileType::Fifo, Mode::empty(), 0).unwrap();
        chown(at(name), Some(owner), Some(owner)).unwrap();
        set_mode(&at(name), mode);
    }
    // Links of both, in directories of both.
    fs::hard_link(at("secret"), at("dir-r/secret2")).unwrap();
    fs::hard_link(at("public"), at("dir-r/public2")).unwrap();
    scene.snapshot();

    set_mode(scene.source().parent().unwrap(), 0o755);
    let home = scene.path("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let target = home.join("tree");
    scene.ok(&["restore", "--numeric-ids", "latest", "home/tree"]);
    assert_rsync_finds_nothing(&scene.source(), &target);

    // A copy, for the build directory may be closed to other users.
    let program = scene.path("exchange");
    copy_program(&std::env::current_exe().unwrap(), &program);
    let child = Command::new(&program)
        .args(["--exact", "restore_hard::exchange_names_for_ever", "--ignored"])
        .env(EXCHANGE_IN, &target)
        .uid(USER)
        .gid(USER)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let user = Killed(child);
    let pid = user.0.id();
    let inode = |name: &str| fs::symlink_metadata(target.join(name)).map_or(0, |metadata| metadata.ino());
    let before = inode("dir-r");
    eventually("the user exchanges names", || inode("dir-r") != before);
    for round in 0..60 {
        let choice: &[&str] = match round % 3 {
            0 => &["restore", "--numeric-ids", "latest", "home/tree"],
            1 => &["restore", "--numeric-ids", "--delete", "latest", "home/tree"],
            _ => &["restore", "--numeric-ids", "--overwrite", "always", "latest", "home/tree"],
        };
        let output = scene.command().args(choice).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{}{}", out(&output), err(&output));
        signal(pid, Signal::STOP);
        eventually("the user's process stands still", || stands_still(pid));
        assert_nothing_handed_over(&target);
        signal(pid, Signal::CONT);
    }
    drop(user);
    // When nobody interferes, the same command makes it whole.
    shell(r#"rm -f "$1"/.zmreplica-* "$1"/*/.zmreplica-*"#, &[&target]);
    scene.ok(&["restore", "--numeric-ids", "--delete", "latest", "home/tree"]);
    assert_rsync_finds_nothing(&scene.source(), &target);
}

#[test]
fn root_follows_no_link_of_a_user_to_the_destination() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    scene.snapshot();
    let (home, victim) = (scene.path("home"), scene.path("victim"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&victim).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let link = home.join("link");
    symlink(&victim, &link).unwrap();
    rustix::fs::chownat(
        CWD,
        &link,
        Some(rustix::fs::Uid::from_raw(USER)),
        Some(rustix::fs::Gid::from_raw(USER)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    symlink("home/link", scene.path("to link")).unwrap();
    let rsh = scene.path("rsh");
    write_program(&rsh, "#!/bin/bash\nshift\neval \"$*\"\n");
    let rsh = rsh.to_str().unwrap();
    let agent = assert_cmd::cargo::cargo_bin!("zmreplica").to_str().unwrap();
    let destinations = [
        ("latest", "home/link"),
        ("latest", "home/link/"),
        ("latest", "home/./link/."),
        ("latest", "to link"),
        ("latest:file", "home/link"),
        ("latest:file", "home/link//"),
        ("latest:file", "home/link/new"),
        ("latest:file", "to link/new"),
    ];
    for (what, destination) in destinations {
        let remote = format!("far:{}", scene.path("").join(destination).display());
        let by_agent = ["restore", "--rsh", rsh, "--agent-path", agent, what, &remote];
        for arguments in [&["restore", what, destination][..], &by_agent] {
            let message = err(&scene.code(1, arguments));
            let is_reported = message.contains("symbolic link of user 4242") && message.contains("name the directory");
            assert!(is_reported, "{arguments:?}: {message}");
        }
    }
    // An agent that is confined to a directory further up resolves the path itself.
    let bound = scene.path("bound");
    let line = format!("exec {agent} agent --writable --root {}", scene.path("").display());
    write_program(&bound, &format!("#!/bin/bash\n{line}\n"));
    let remote = format!("far:{}/", link.display());
    let message = err(&scene.code(1, &["restore", "--rsh", bound.to_str().unwrap(), "latest", &remote]));
    assert!(message.contains("symbolic link of user 4242"), "{message}");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // Root's own link is one that root meant.
    symlink("victim", scene.path("own")).unwrap();
    symlink("own", scene.path("own2")).unwrap();
    for (number, (what, destination)) in
        [("latest", "own/"), ("latest", "own2"), ("latest:file", "own2"), ("latest:file", "own2/file")]
            .into_iter()
            .enumerate()
    {
        scene.ok(&["restore", what, destination]);
        assert!(victim.join("file").exists(), "{number}");
        fs::remove_file(victim.join("file")).unwrap();
    }
    // One that leads nowhere is not made into something.
    symlink("nowhere", scene.path("broken")).unwrap();
    scene.code(1, &["restore", "latest", "broken"]);
    assert!(!scene.path("nowhere").exists());
    scene.ok(&["restore", "latest", "a/b/../c/"]);
    assert!(scene.path("a/c/file").exists());
}

/// The capability to become any user, effective at once, as the file system has it.
const CAN_BECOME_ANYBODY: [u8; 20] = [1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPABILITIES: &str = "security.capability";

#[test]
fn a_file_of_a_user_gets_no_rights_that_he_cannot_give_it() {
    let scene = Scene::new();
    let at = |name: &str| scene.source().join(name);
    chown(scene.source(), Some(USER), Some(USER)).unwrap();
    for name in ["g", "c", "plain"] {
        fs::write(at(name), "good").unwrap();
        chown(at(name), Some(USER), Some(if name == "g" { 0 } else { USER })).unwrap();
        set_mode(&at(name), if name == "g" { 0o2755 } else { 0o755 });
        set_time(&at(name), 1_500_000_000, 9);
    }
    setxattr(at("c"), CAPABILITIES, &CAN_BECOME_ANYBODY, XattrFlags::empty()).unwrap();
    scene.snapshot();
    let home = scene.path("home");
    fs::create_dir(&home).unwrap();
    for name in ["g", "c", "plain"] {
        fs::write(home.join(name), "EVIL").unwrap();
        chown(home.join(name), Some(USER), Some(USER)).unwrap();
        set_mode(&home.join(name), 0o755);
        set_time(&home.join(name), 1_500_000_000, 9);
    }
    chown(&home, Some(USER), Some(USER)).unwrap();
    let restore = ["--json", "restore", "--numeric-ids", "latest", "home"];
    assert_eq!(summary(&scene.code(0, &restore))["unchanged"], 1);
    for name in ["g", "c"] {
        assert_eq!(fs::read_to_string(home.join(name)).unwrap(), "good", "{name}");
    }
    assert_eq!(fs::metadata(home.join("g")).unwrap().mode() & 0o7777, 0o2755);
    assert!(getxattr(home.join("c"), CAPABILITIES, &mut [0; 64][..]).is_ok());
    // With nothing to gain, they are kept.
    let again = summary(&scene.code(0, &restore));
    assert_eq!((&again["unchanged"], &again["files"]), (&3.into(), &0.into()));
    let without = summary(&scene.code(0, &["--json", "restore", "--no-specials", "latest", "without"]));
    assert_eq!((&without["set_id_files"], &without["left_out"]), (&2.into(), &2.into()));
    assert_eq!(fs::read_dir(scene.path("without")).unwrap().count(), 1);
}

#[test]
fn with_few_open_files_deep_strays_go() {
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    fs::write(scene.source().join("taken"), "text").unwrap();
    scene.snapshot();
    for files in [40, 48, 64] {
        let target = scene.path(&format!("target {files}"));
        scene.ok(&["restore", "latest", target.to_str().unwrap()]);
        fs::remove_file(target.join("taken")).unwrap();
        let way = vec!["d"; 150].join("/");
        for name in ["stray", "taken"] {
            fs::create_dir_all(target.join(name).join(&way)).unwrap();
            fs::write(target.join(name).join(&way).join("file"), "text").unwrap();
        }
        let report = with_files(&scene, files, &["restore", "--delete", "latest", target.to_str().unwrap()]);
        assert_eq!(report.status.code(), Some(0), "{files} files: {}{}", out(&report), err(&report));
        assert_rsync_finds_nothing(&scene.source(), &target);
    }
}

#[test]
fn device_nodes_and_set_id_files_are_counted_and_left_out_on_request() {
    let scene = Scene::new();
    let at = |name: &str| scene.source().join(name);
    for (name, mode) in [("set-uid", 0o4755), ("set-gid", 0o2755), ("sticky", 0o1644), ("plain", 0o755)] {
        fs::write(at(name), name).unwrap();
        set_mode(&at(name), mode);
    }
    fs::create_dir(at("directory")).unwrap();
    set_mode(&at("directory"), 0o2775);
    fs::hard_link(at("set-uid"), at("directory/set-uid2")).unwrap();
    mknodat(CWD, at("device"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    mknodat(CWD, at("disk"), FileType::BlockDevice, Mode::RUSR, rustix::fs::makedev(7, 200)).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    scene.snapshot();
    let figures = |arguments: &[&str]| {
        let summary = summary(&scene.code(0, arguments));
        ["set_id_files", "device_nodes", "left_out"].map(|key| summary[key].as_u64().unwrap())
    };
    assert_eq!(figures(&["--json", "restore", "latest", "all"]), [3, 2, 0]);
    assert_rsync_finds_nothing(&scene.source(), &scene.path("all"));
    let said = err(&scene.code(0, &["restore", "latest", "all"]));
    assert!(said.contains("3 files with a set-user-ID") && said.contains("2 device nodes"), "{said}");
    assert!(said.contains("--no-specials"), "{said}");
    assert_eq!(figures(&["--json", "restore", "--no-specials", "latest", "some"]), [3, 2, 5]);
    let mut left: Vec<_> =
        shell(r#"cd "$1"; find . -printf '%P\n'"#, &[&scene.path("some")]).lines().map(str::to_owned).collect();
    left.sort();
    assert_eq!(left, ["", "directory", "fifo", "plain", "sticky"]);
    assert_eq!(fs::metadata(scene.path("some/directory")).unwrap().mode() & 0o7777, 0o2775);
}
