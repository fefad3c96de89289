//! The life of a mount: where it may be, whom it belongs to, how it begins and ends, and what a crash leaves.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mounted::{
    Killed, SOURCE_TIME, Scene, err, eventually, is_alive, mounts_below, out, run, signal, unmount,
};
use crate::support::odd::acl;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::Signal;
use serde_json::Value;

/// A source with a file, a directory and a file with two names.
fn small() -> Scene {
    let scene = Scene::new();
    fs::create_dir(scene.source().join("sessions")).unwrap();
    fs::write(scene.source().join("accounts.xml"), "<accounts/>\n").unwrap();
    fs::write(scene.source().join("sessions/one"), "one").unwrap();
    fs::hard_link(scene.source().join("sessions/one"), scene.source().join("two")).unwrap();
    scene.snapshot();
    scene
}

fn is_mounted(scene: &Scene) -> bool {
    !mounts_below(&scene.mnt()).is_empty()
}

#[test]
fn places_that_make_no_sense_are_refused_with_the_reason() {
    let scene = small();
    fs::create_dir(scene.path("white space")).unwrap();
    fs::create_dir(scene.store().join("inside")).unwrap();
    fs::write(scene.path("file"), "").unwrap();
    symlink(scene.store(), scene.path("link")).unwrap();
    for (place, reason) in [
        ("white space", "white space"),
        ("store", "inside the store"),
        ("store/inside", "inside the store"),
        ("link/inside", "inside the store"),
        ("file", "not a directory"),
        ("none", "No such file"),
        (".", "would be hidden"),
    ] {
        for foreground in [false, true] {
            let mut arguments = vec!["mount", "latest", place];
            arguments.extend(foreground.then_some("--foreground"));
            let message = err(&scene.code(1, &arguments));
            assert!(message.contains(reason), "{place}: {message}");
            assert_eq!(message.matches("error:").count(), 1, "{message}");
        }
    }
    assert!(err(&scene.code(1, &["mount", "12ab", "mnt"])).contains("12ab"));
    assert!(err(&scene.code(2, &["mount", "--owner", "nobody-of-that-name", "latest", "mnt"])).contains("no user"));
    assert!(err(&scene.code(1, &["umount", "mnt"])).contains("not a mount of zmreplica"));
    assert!(err(&scene.code(1, &["umount", "/proc"])).contains("not a mount of zmreplica"));
    // As JSON an error is one object on stdout, also when it is the second process that fails.
    let event: Value = serde_json::from_str(&out(&scene.code(1, &["--json", "mount", "latest", "none"]))).unwrap();
    assert_eq!((&event["event"], &event["exit_code"]), (&"error".into(), &1.into()));
    assert_eq!(mounts_below(&scene.path("")), Vec::<String>::new());
    assert_eq!(scene.leases(), []);

    scene.mount();
    assert!(err(&scene.code(1, &["mount", "latest", "mnt"])).contains("mounted there already"));
    scene.umount();
}

#[test]
fn a_mount_holds_a_lease_that_is_shown() {
    let scene = small();
    let id = scene.snapshot();
    let pid = scene.mount();
    let place = scene.mnt().display().to_string();
    assert_eq!(scene.leases(), [(id.clone(), pid.into(), place.clone())]);
    let table = scene.ok(&["snapshots"]);
    assert!(table.lines().next().unwrap().contains("MOUNTED AT"), "{table}");
    assert!(table.lines().nth(2).unwrap().ends_with(&format!("{place} ({pid})")), "{table}");
    scene.umount();
    assert!(!is_alive(pid), "umount returns when the server has ended");
    assert_eq!(scene.leases(), []);
    assert!(!scene.ok(&["snapshots"]).contains("MOUNTED"));

    // It ends with the process, however that ends.
    let pid = scene.mount();
    signal(pid, Signal::KILL);
    eventually("the lease of a killed server ends", || scene.leases().is_empty());
}

#[test]
fn a_killed_server_leaves_an_error_and_can_be_mounted_over() {
    let scene = small();
    let pid = scene.mount();
    assert_eq!(fs::read_to_string(scene.mnt().join("two")).unwrap(), "one");
    signal(pid, Signal::KILL);
    eventually("the mount is dead", || fs::read_dir(scene.mnt()).is_err());
    // What was looked at before may still be in the kernel's memory; a listing must never be empty.
    assert_eq!(fs::read_dir(scene.mnt()).unwrap_err().kind(), ErrorKind::NotConnected);
    let rsync = Command::new("rsync")
        .args(["-a", "--delete"])
        .arg(format!("{}/", scene.mnt().display()))
        .arg(scene.path("copy"))
        .output();
    assert!(!rsync.unwrap().status.success(), "rsync takes a dead mount for an empty directory");

    let output = scene.code(0, &["mount", "latest", "mnt"]);
    assert!(err(&output).contains("server had died"), "{}", err(&output));
    assert_eq!(fs::read_to_string(scene.mnt().join("two")).unwrap(), "one");
    assert_eq!(mounts_below(&scene.path("")).len(), 1, "the dead mount is gone");
    scene.umount();

    // umount takes a dead one away as well.
    let pid = scene.mount();
    signal(pid, Signal::KILL);
    eventually("the mount is dead", || fs::read_dir(scene.mnt()).is_err());
    scene.umount();
}

#[test]
fn signals_unmount_and_users_may_finish() {
    let scene = small();
    for (kind, foreground) in [(Signal::TERM, false), (Signal::INT, true), (Signal::TERM, true), (Signal::HUP, true)] {
        if foreground {
            let mut command = scene.command();
            command.args(["mount", "--foreground", "latest", "mnt"]).stderr(Stdio::piped());
            let mut server = Killed(command.spawn().unwrap());
            eventually("it is mounted", || is_mounted(&scene));
            signal(server.0.id(), kind);
            assert_eq!(server.0.wait().unwrap().code(), Some(0), "{kind:?}");
        } else {
            let pid = scene.mount();
            signal(pid, kind);
            eventually("the server ends", || !is_alive(pid));
        }
        assert!(!is_mounted(&scene), "{kind:?}");
        assert_eq!(scene.leases(), []);
    }

    // Whoever has a file open keeps it; the place is free at once.
    fs::write(scene.source().join("long"), vec![b'x'; 3_000_000]).unwrap();
    scene.snapshot();
    let pid = scene.mount();
    let open = fs::File::open(scene.mnt().join("long")).unwrap();
    assert!(err(&scene.code(1, &["umount", "mnt"])).contains("in use"));
    assert!(is_mounted(&scene));
    signal(pid, Signal::TERM);
    eventually("the place is free", || !is_mounted(&scene));
    assert_eq!(std::io::read_to_string(&open).unwrap().len(), 3_000_000);
    assert_eq!(scene.leases().len(), 1, "what is read is leased");
    drop(open);
    eventually("the server ends", || !is_alive(pid));
    assert_eq!(scene.leases(), []);
    assert!(scene.log().contains("still in use"), "{}", scene.log());

    // The same on request.
    let pid = scene.mount();
    let open = fs::File::open(scene.mnt().join("long")).unwrap();
    scene.ok(&["umount", "--lazy", "mnt"]);
    assert!(!is_mounted(&scene) && is_alive(pid));
    drop(open);
    eventually("the server ends", || !is_alive(pid));
}

#[test]
fn a_hundred_mounts_leave_nothing_behind() {
    let scene = small();
    for turn in 0..100 {
        let pid = if turn % 2 == 0 { scene.mount() } else { scene.mount_with(&["mnt"]) };
        let file = if turn % 2 == 0 { "two" } else { "latest/two" };
        assert_eq!(fs::read_to_string(scene.mnt().join(file)).unwrap(), "one");
        if turn % 4 < 2 {
            scene.umount();
        } else {
            // By the system's own command, which knows nothing of servers.
            unmount(&scene.mnt());
        }
        // Its lease is the last thing that `umount` waits for; the process needs a moment more.
        eventually("the server ends", || !is_alive(pid));
    }
    assert_eq!(mounts_below(&scene.path("")), Vec::<String>::new());
    assert_eq!(fs::read_dir(scene.store().join("leases")).unwrap().count(), 1, "the gate alone");
    assert_eq!(scene.log(), "");
    scene.ok(&["check", "--read-data"]);
}

#[test]
fn mount_and_fstab_know_it() {
    let scene = small();
    let first = scene.snapshot();
    fs::write(scene.source().join("later"), "").unwrap();
    scene.snapshot();
    // mount(8) looks for helpers in /sbin, in a name space of its own here, so that the system's directories stay as they are.
    let script = r#"
mount --bind "$1/sbin" /sbin 2>/dev/null || mount --bind "$1/sbin" /usr/sbin
mount -t fuse.zmreplica "$2#$3" "$4" -o ro,nofail,owner=nobody,x-systemd.automount
test "$(stat -c %U "$4/two")" = nobody && test ! -e "$4/later"
umount "$4"
printf '%s#all %s fuse.zmreplica ro,noauto,_netdev,numeric_ids 0 0\n' "$2" "$4" > "$1/fstab"
mount --fstab "$1/fstab" "$4"
test "$(stat -c %u "$4/latest/two")" = 0 && test -e "$4/latest/later"
findmnt -no FSTYPE "$4"
umount "$4"
mount -t fuse.zmreplica "$2#none" "$4" 2>"$1/refused" && exit 1
cat "$1/refused"
"#;
    let helpers = scene.path("sbin");
    fs::create_dir(&helpers).unwrap();
    symlink(assert_cmd::cargo::cargo_bin!("zmreplica"), helpers.join("mount.fuse.zmreplica")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "/bin/bash", "-euxo", "pipefail", "-c", script, "bash"])
        .arg(scene.path(""))
        .arg(scene.store())
        .arg(first)
        .arg(scene.mnt())
        .env("ZMREPLICA_CONFIG", scene.path("empty.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    assert!(out(&output).contains("fuse.zmreplica"), "{}", out(&output));
    assert!(out(&output).contains("none names no snapshot"), "{}", out(&output));
    eventually("the servers have ended", || scene.leases().is_empty());
}

/// Runs a command as the user and group `nobody` (65534).
fn as_nobody(program: &str) -> Command {
    let mut command = Command::new(program);
    command.uid(65534).gid(65534);
    command
}

/// Lets other users reach the scene's directory.
fn open_up(scene: &Scene) {
    fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_user_reads_what_permissions_allow_and_nothing_else() {
    let scene = Scene::new();
    open_up(&scene);
    let source = scene.source();
    let write = |path: &str, mode: u32, owner: u32| {
        fs::write(source.join(path), path).unwrap();
        fs::set_permissions(source.join(path), fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(source.join(path), Some(owner), Some(owner)).unwrap();
    };
    for (directory, mode) in [("open", 0o755), ("closed", 0o700), ("blind", 0o711)] {
        fs::DirBuilder::new().mode(mode).create(source.join(directory)).unwrap();
        fs::set_permissions(source.join(directory), fs::Permissions::from_mode(mode)).unwrap();
        write(&format!("{directory}/public"), 0o644, 0);
        write(&format!("{directory}/secret"), 0o600, 0);
        write(&format!("{directory}/own"), 0o600, 65534);
    }
    // An access control list that opens what the mode closes.
    write("listed", 0o600, 0);
    run(Command::new("setfacl").args(["-m", "u:65534:r"]).arg(source.join("listed")));
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    scene.snapshot();
    let look = |root: &Path| {
        let mut answers = Vec::new();
        for path in ["open", "closed", "blind"] {
            let listed = as_nobody("ls").arg(root.join(path)).output().unwrap();
            answers.push((path.to_owned(), listed.status.success(), out(&listed)));
            for file in ["public", "secret", "own"] {
                let read = as_nobody("cat").arg(root.join(path).join(file)).output().unwrap();
                answers.push((format!("{path}/{file}"), read.status.success(), out(&read)));
            }
        }
        let read = as_nobody("cat").arg(root.join("listed")).output().unwrap();
        answers.push(("listed".to_owned(), read.status.success(), out(&read)));
        answers
    };
    let expected = look(&source);
    assert_eq!(expected.iter().filter(|(_, allowed, _)| *allowed).count(), 6, "{expected:?}");
    scene.mount_with(&["--numeric-ids", "latest", "mnt"]);
    // Root has been everywhere, so that the kernel has all of it at hand, and again when it has not.
    run(Command::new("find").arg(scene.mnt()).arg("-ls"));
    assert_eq!(look(&scene.mnt()), expected);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(look(&scene.mnt()), expected);
    scene.umount();

    // Not even a look for others when they are not allowed in.
    scene.mount_with(&["--no-allow-other", "latest", "mnt"]);
    let listed = as_nobody("ls").arg(scene.mnt()).output().unwrap();
    assert!(!listed.status.success() && err(&listed).contains("Permission denied"), "{}", err(&listed));
    scene.umount();
}

#[test]
fn a_user_can_mount_too() {
    let scene = small();
    open_up(&scene);
    fs::write(scene.path("empty.toml"), "").unwrap();
    for path in ["store", "mnt"] {
        run(Command::new("chown").args(["-R", "65534:65534"]).arg(scene.path(path)));
    }
    // The device is open to users on most systems; here it is made so in a name space of its own.
    let script = r#"
mknod -m 666 "$1/fuse" c 10 229 && mount --bind "$1/fuse" /dev/fuse
user="setpriv --reuid=65534 --regid=65534 --clear-groups"
$user "$4" --store "$2" mount latest "$3"
findmnt -no FSTYPE,SOURCE "$3"
ls "$3" && exit 1 # Root is another user.
$user cat "$3/two"
$user touch "$3/new" && exit 1
$user "$4" --store "$2" umount "$3"
! mountpoint -q "$3"
test "$(ls "$2/leases")" = gate
"#;
    let output = Command::new("unshare")
        .args(["--mount", "/bin/bash", "-euxo", "pipefail", "-c", script, "bash"])
        .args([scene.path(""), scene.store(), scene.mnt()])
        .arg(assert_cmd::cargo::cargo_bin!("zmreplica"))
        .env("ZMREPLICA_CONFIG", scene.path("empty.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    assert!(out(&output).starts_with("fuse.zmreplica") && out(&output).ends_with("one"), "{}", out(&output));
}

#[test]
fn owners_are_shown_as_requested() {
    let scene = small();
    let two = scene.source().join("two");
    std::os::unix::fs::chown(&two, Some(65534), Some(65534)).unwrap();
    std::os::unix::fs::chown(scene.source().join("accounts.xml"), Some(54321), Some(54322)).unwrap();
    scene.snapshot();
    let owner = |name: &str| {
        let of = fs::metadata(scene.mnt().join(name)).unwrap();
        (of.uid(), of.gid())
    };
    for (arguments, of_two, of_accounts) in [
        (&["latest", "mnt"][..], (65534, 65534), (54321, 54322)),
        (&["--numeric-ids", "latest", "mnt"], (65534, 65534), (54321, 54322)),
        (&["--owner", "daemon", "latest", "mnt"], (1, 1), (1, 1)),
        (&["--owner", "daemon:mail", "latest", "mnt"], (1, 8), (1, 8)),
        (&["--owner", "777:888", "latest", "mnt"], (777, 888), (777, 888)),
        (&["--owner", "777", "latest", "mnt"], (777, 65534), (777, 54322)),
    ] {
        scene.mount_with(arguments);
        assert_eq!((owner("two"), owner("accounts.xml")), (of_two, of_accounts), "{arguments:?}");
        scene.umount();
    }

    // A host where the same names have other numbers.
    let script = r#"
sed 's/^\(nobody:[^:]*\):65534:65534:/\1:4001:4002:/' /etc/passwd > "$1/passwd" && mount --bind "$1/passwd" /etc/passwd
sed 's/^\(nogroup:[^:]*\):65534:/\1:4002:/' /etc/group > "$1/group" && mount --bind "$1/group" /etc/group
for options in "" --numeric-ids; do
    "$4" --quiet --store "$2" mount $options latest "$3"
    stat -c %u:%g "$3/two" "$3/accounts.xml"
    "$4" --store "$2" umount "$3"
done
"#;
    let shown = run(Command::new("unshare")
        .args(["--mount", "/bin/bash", "-euo", "pipefail", "-c", script, "bash"])
        .args([scene.path(""), scene.store(), scene.mnt()])
        .arg(assert_cmd::cargo::cargo_bin!("zmreplica"))
        .env("ZMREPLICA_CONFIG", scene.path("empty.toml")));
    assert_eq!(shown, "4001:4002\n54321:54322\n65534:65534\n54321:54322\n");
}

#[test]
fn the_top_of_a_writable_mount_is_that_of_the_snapshot_and_its_owners() {
    const OWNER: u32 = 4242;
    let scene = Scene::new();
    let source = scene.source();
    fs::write(source.join("file"), "text").unwrap();
    chown(&source, Some(OWNER), Some(OWNER + 1)).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o2750)).unwrap();
    for (name, value) in [
        ("user.note", b"of the top".to_vec()),
        ("system.posix_acl_access", acl()),
        ("system.posix_acl_default", acl()),
        // An order to the overlay, which is not this one's.
        ("trusted.overlay.opaque", b"y".to_vec()),
    ] {
        setxattr(&source, name, &value, XattrFlags::empty()).unwrap();
    }
    let first = scene.snapshot();
    chown(&source, Some(0), Some(0)).unwrap();
    let shown = |place: &Path| {
        let metadata = fs::metadata(place).unwrap();
        let value = |name: &str| {
            let mut buffer = [0; 256];
            getxattr(place, name, &mut buffer).map(|length| buffer[..length].to_vec()).ok()
        };
        let attributes =
            ["user.note", "system.posix_acl_access", "system.posix_acl_default"].map(|name| value(name).unwrap());
        assert_eq!(attributes[1], acl());
        let times = (metadata.mtime(), metadata.mtime_nsec());
        (metadata.uid(), metadata.gid(), metadata.mode(), times, attributes)
    };
    let mnt = scene.mnt();
    scene.mount_with(&["--numeric-ids", &first, "mnt"]);
    let wanted = shown(&mnt);
    assert_eq!((wanted.0, wanted.1, wanted.3), (OWNER, OWNER + 1, SOURCE_TIME));
    scene.umount();
    let mount = || scene.mount_with(&["--numeric-ids", "--writable", "upper", &first, "mnt"]);
    mount();
    assert_eq!(shown(&mnt), wanted);
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "text", "the overlay takes the directory for opaque");
    // Its owner may write there, who is not root.
    fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    run(Command::new("touch").arg(mnt.join("of the owner")).uid(OWNER).gid(OWNER));
    assert_eq!(fs::metadata(mnt.join("of the owner")).unwrap().uid(), OWNER);
    // What is changed there is kept.
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o700)).unwrap();
    scene.umount();
    mount();
    assert_eq!(fs::metadata(&mnt).unwrap().mode() & 0o7777, 0o700);
    assert!(mnt.join("of the owner").exists());
    scene.umount();
    // Owners as the mount shows them.
    scene.mount_with(&["--owner", "17:18", "--writable", "upper2", &first, "mnt"]);
    let metadata = fs::metadata(&mnt).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (17, 18));
    scene.umount();
}

#[test]
fn a_mount_keeps_nothing_that_its_caller_has_open() {
    let scene = small();
    let script = r#"exec 7>lock; flock -n 7; exec 8>pipe-end; said=$("$@" 2>&1); echo "$said""#;
    let program = scene.command();
    let mut command = Command::new("bash");
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(scene.path("")).args(["-euc", script, "bash"]).arg(program.get_program());
    command.args(program.get_args()).args(["--json", "mount", "--log", "log", "latest", "mnt"]);
    let event: Value = serde_json::from_str(&run(&mut command)).unwrap();
    let pid = event["pid"].as_u64().unwrap();
    run(Command::new("flock").arg("-n").arg(scene.path("lock")).arg("true"));
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let Ok(file) = fs::read_link(entry.unwrap().path()) else { continue };
        let its_own = file.starts_with(scene.store()) || !file.starts_with(scene.path("")) || file == scene.path("log");
        assert!(its_own, "the server has {} open", file.display());
    }
    scene.umount();
}
