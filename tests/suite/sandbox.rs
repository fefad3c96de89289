//! What a confined thread can do and what not, on the kernel that runs this. Both restrictions hold per thread, so the other threads of this process check the
//! result.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use zmreplica::sandbox::{Confinement, read_only};

struct Scene {
    directory: TempDir,
    tcp: TcpListener,
    _unix: UnixListener,
}

impl Scene {
    fn new() -> Scene {
        let directory = TempDir::new().unwrap();
        fs::create_dir_all(directory.path().join("root/sub")).unwrap();
        for name in ["root/file", "root/sub/file", "secret"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        symlink("../secret", directory.path().join("root/link")).unwrap();
        let unix = UnixListener::bind(directory.path().join("root/socket")).unwrap();
        Scene { tcp: TcpListener::bind("127.0.0.1:0").unwrap(), _unix: unix, directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }
}

/// Sets the flags of a file to what they are. Some file systems have none: then the answer is the kernel's, and not a refusal.
fn set_again(file: &File) -> rustix::io::Result<()> {
    let flags = rustix::fs::ioctl_getflags(file).unwrap_or(rustix::fs::IFlags::empty());
    rustix::fs::ioctl_setflags(file, flags)
}

/// Everything that must be refused, with its name.
fn refused(root: &Path, tcp: std::net::SocketAddr) -> Vec<(&'static str, io::Result<()>)> {
    let file = root.join("file");
    let outside = root.parent().unwrap().join("secret");
    let opened = File::open(&file).unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    let mode = fs::Permissions::from_mode(0o777);
    vec![
        ("open outside", File::open(&outside).map(drop)),
        ("open through a link that leads outside", File::open(root.join("link")).map(drop)),
        ("open above", File::open(root.join("../secret")).map(drop)),
        ("list outside", fs::read_dir(root.parent().unwrap()).map(drop)),
        ("read the accounts of this host", fs::read("/etc/passwd").map(drop)),
        ("look at another process", fs::read("/proc/1/stat").map(drop)),
        ("make a file", File::create(root.join("new")).map(drop)),
        ("make a file outside", File::create(root.parent().unwrap().join("new")).map(drop)),
        ("write", OpenOptions::new().append(true).open(&file).and_then(|mut file| file.write_all(b"x"))),
        ("write and read", OpenOptions::new().read(true).write(true).open(&file).map(drop)),
        ("cut short", rustix::fs::ftruncate(&opened, 0).map_err(io::Error::from)),
        ("remove", fs::remove_file(&file)),
        ("remove a directory", fs::remove_dir_all(root.join("sub"))),
        ("rename", fs::rename(&file, root.join("other"))),
        ("link", fs::hard_link(&file, root.join("other"))),
        ("symlink", symlink("file", root.join("another"))),
        ("make a directory", fs::create_dir(root.join("directory"))),
        ("change the mode", fs::set_permissions(&file, mode.clone())),
        ("change the mode of an open file", opened.set_permissions(mode)),
        ("change the owner", std::os::unix::fs::chown(&file, Some(1), Some(1))),
        ("change the times", opened.set_times(times)),
        (
            "set an attribute",
            rustix::fs::setxattr(&file, "user.x", b"x", rustix::fs::XattrFlags::empty()).map_err(io::Error::from),
        ),
        ("set a flag", set_again(&opened).map_err(io::Error::from)),
        ("signal a process", rustix::process::test_kill_process(rustix::process::getpid()).map_err(io::Error::from)),
        ("run a program", Command::new("/bin/true").status().map(drop)),
        ("run a shell", Command::new("sh").args(["-c", "true"]).status().map(drop)),
        ("connect", TcpStream::connect(tcp).map(drop)),
        ("listen", TcpListener::bind("127.0.0.1:0").map(drop)),
        ("make a socket", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("connect to a socket of this host", UnixStream::connect(root.join("socket")).map(drop)),
        ("make a pair of sockets", UnixStream::pair().map(drop)),
    ]
}

#[test]
fn a_confined_thread_reads_below_its_root_and_does_nothing_else() {
    let scene = Scene::new();
    let (root, tcp) = (scene.root(), scene.tcp.local_addr().unwrap());
    // Each of it can be done otherwise, so that a refusal means something.
    let copy = Scene::new();
    for (what, result) in refused(&copy.root(), copy.tcp.local_addr().unwrap()) {
        // Some need what one before has taken away, and no file that is open for reading can be cut short.
        let gone =
            ["cut short", "rename", "link", "change the mode", "change the owner", "set an attribute", "set a flag"];
        let is_in_order = result.is_ok() || gone.contains(&what);
        assert!(is_in_order, "{what}: {result:?}");
    }
    let before = fs::metadata(root.join("file")).unwrap();
    let confined = std::thread::spawn(move || {
        let confinement = read_only(&root);
        assert_eq!(confinement, Confinement { landlock: true, seccomp: true }, "this kernel has both");
        for name in ["file", "sub/file"] {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), format!("root/{name}"));
        }
        assert_eq!(fs::read_dir(&root).unwrap().count(), 4);
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("../secret"));
        assert!(!fs::read("/proc/self/mountinfo").unwrap().is_empty(), "the scan looks for mount points");
        let mut results = refused(&root, tcp);
        // What it starts is as confined as it is.
        results.extend(std::thread::spawn(move || refused(&root, tcp)).join().unwrap());
        results
    });
    for (what, result) in confined.join().unwrap() {
        let kind = result.expect_err(what).raw_os_error().map(rustix::io::Errno::from_raw_os_error);
        assert!([Some(rustix::io::Errno::PERM), Some(rustix::io::Errno::ACCESS)].contains(&kind), "{what}: {kind:?}");
    }
    let after = fs::metadata(scene.root().join("file")).unwrap();
    assert_eq!((before.modified().unwrap(), before.permissions()), (after.modified().unwrap(), after.permissions()));
    assert_eq!(fs::read_dir(scene.root()).unwrap().count(), 4);
    // The other threads of the process are as free as before.
    fs::read("/etc/passwd").unwrap();
}

#[test]
fn what_is_enforced_travels_as_a_byte() {
    for byte in 0..4 {
        assert_eq!(Confinement::from_byte(byte).to_byte(), byte);
    }
    assert_eq!(Confinement::from_byte(0xff), Confinement { landlock: true, seccomp: true });
}
