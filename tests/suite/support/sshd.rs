//! A real sshd on loopback, with keys of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::mounted::run;

/// The server; ended with the value.
pub struct Sshd {
    directory: TempDir,
    child: Child,
    pub port: u16,
}

/// Makes a key pair and returns the private half's path.
pub fn make_key(file: &Path, kind: &str, passphrase: &str) -> PathBuf {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"]).arg(file);
    if kind == "rsa" {
        command.args(["-b", "2048"]);
    }
    run(&mut command);
    file.to_owned()
}

pub fn public_half(key: &Path) -> String {
    fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned()
}

impl Sshd {
    /// Starts a server with one host key; the user's key `key` may log in. The home directory there is the server's own, and empty.
    pub fn start(host_key: &str) -> Sshd {
        let directory = tempfile::Builder::new().prefix("sshd").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_key(&path("host"), host_key, "");
        let key = make_key(&path("key"), "ed25519", "");
        fs::write(path("authorized_keys"), public_half(&key)).unwrap();
        fs::create_dir(path("home")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\nAuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nSubsystem sftp internal-sftp\nSetEnv HOME={home}\n",
            host = path("host").display(),
            keys = path("authorized_keys").display(),
            home = path("home").display(),
        );
        fs::write(path("config"), config).unwrap();
        // Where Debian's sshd drops its privileges; a service makes it otherwise.
        fs::create_dir_all("/run/sshd").unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-e").arg("-f").arg(path("config"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let sshd = Sshd { directory, child, port };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "sshd does not start: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        sshd
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the agents that were uploaded.
    pub fn uploads(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.path("home/.cache/zmreplica")).into_iter().flatten();
        names.map(|entry| entry.unwrap().path()).collect()
    }

    pub fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// Lets these keys in, each a line of authorized_keys.
    pub fn authorize(&self, lines: &[String]) {
        fs::write(self.path("authorized_keys"), lines.join("\n") + "\n").unwrap();
    }

    /// Returns a line of known_hosts for the server behind a port.
    pub fn known_host(&self, port: u16) -> String {
        let public = public_half(&self.path("host"));
        let key: Vec<&str> = public.split(' ').take(2).collect();
        format!("[127.0.0.1]:{port} {}\n", key.join(" "))
    }

    /// Names a directory on the server, behind a port.
    pub fn place(&self, port: u16, path: &Path) -> String {
        format!("ssh://root@127.0.0.1:{port}{}", path.display())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
