//! A connection by SSH, spoken by this program itself.
//!
//! OpenSSH's client takes 2 MiB before it waits for the remote host to hear of it, which over 40 ms makes 38 MiB/s at most; here the window is
//! [`WINDOW_BYTES`]. Neither `ssh_config` nor jump hosts are known: [`super::command`] is for those.

mod hostkeys;
mod keys;
mod pump;
mod socket_relay;

use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ssh2::{BlockDirections, MethodType, Session};

use super::spec::RemoteSpec;
use super::{CONNECT_TIME, Connection, Transport, TransportError, printed};
use crate::cause::{Cause, During, Explained};
pub use keys::{AskPassphrase, Passphrase};
use socket_relay::SocketRelay;

/// Bytes that the remote host may send before it waits. At 40 ms of round trip 8 MiB carry 100 to 180 MiB/s.
pub const WINDOW_BYTES: u32 = 8 << 20;
/// Largest packet, in bytes, as OpenSSH's server sends them.
const PACKET_BYTES: u32 = 32 << 10;
const DEFAULT_PORT: u16 = 22;
/// How long is waited for sshd's first line behind others ...
const GREETING_TIME: Duration = Duration::from_secs(5);
/// ... and between two looks.
const NAP: Duration = Duration::from_millis(50);
/// libssh2's numbers for "no common key exchange" and "no common method".
const KEX_FAILURE: i32 = -5;
const METHOD_NOT_SUPPORTED: i32 = -33;
/// Ciphers in order of preference: those that processors have instructions for come first.
const CIPHERS: &str =
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr";

/// Environment variable that holds the passphrase of an encrypted key. It is for this program alone: what it starts does not inherit it.
pub const PASSPHRASE_VARIABLE: &str = "ZMREPLICA_SSH_PASSPHRASE";

/// How to connect.
#[derive(Clone, Default)]
pub struct SshOptions {
    /// The private key; without it ssh-agent and the usual files in `~/.ssh` are tried.
    pub key_file: Option<PathBuf>,
    /// The file of known hosts; without it `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// Where the passphrase of an encrypted key comes from.
    pub passphrase: Passphrase,
}

/// Runs commands on a host by SSH. Each has a connection of its own.
pub struct SshTransport {
    spec: RemoteSpec,
    options: SshOptions,
}

impl SshTransport {
    /// Prepares to connect; nothing is done yet.
    pub fn new(spec: &RemoteSpec, options: SshOptions) -> SshTransport {
        SshTransport { spec: spec.clone(), options }
    }

    fn connect(&self) -> Result<(Session, SocketRelay), TransportError> {
        let host = &self.spec.host;
        let port = self.spec.port.unwrap_or(DEFAULT_PORT);
        let failed = |reason: Cause| TransportError::Connect { host: host.clone(), reason };
        let stream = connect_tcp(host, port).map_err(|error| no_stream(host, port, error))?;
        if let Some(said) = other_greeting(&stream) {
            let reason = format!("what listens on port {port} there is not sshd{said}").into();
            return Err(TransportError::Unreachable { host: host.clone(), reason });
        }
        let _ = stream.set_nodelay(true);
        let (relay, wire) = SocketRelay::start(stream).map_err(|error| failed(error.into()))?;
        let mut session = Session::new().map_err(|error| failed(error.into()))?;
        session.set_timeout(CONNECT_TIME.as_millis() as u32);
        session.set_tcp_stream(wire);
        let known = hostkeys::KnownKeys::load(self.options.known_hosts.as_deref())?;
        let preferred = known.algorithms(host, port);
        for (method, list) in
            [(MethodType::HostKey, preferred.as_str()), (MethodType::CryptCs, CIPHERS), (MethodType::CryptSc, CIPHERS)]
        {
            session.method_pref(method, list).map_err(|error| failed(error.into()))?;
        }
        session.handshake().map_err(|error| match error.code() {
            // Nothing that both know.
            ssh2::ErrorCode::Session(KEX_FAILURE | METHOD_NOT_SUPPORTED) => {
                let message = format!(
                    "Cannot talk to {host}: {error}. Its sshd offers no method that this program supports; use --rsh ssh"
                );
                TransportError::Refused { message }
            }
            _ => failed(
                During::new("the handshake failed", Explained::new(error, format!(". Is port {port} that of sshd?")))
                    .into(),
            ),
        })?;
        known.check(&session, host, port)?;
        let user = self.spec.user.clone().or_else(local_user).unwrap_or_else(|| "root".to_owned());
        keys::authenticate(&session, host, &user, self.options.key_file.as_deref(), &self.options.passphrase)?;
        Ok((session, relay))
    }

    fn failed(&self, what: &str, error: impl Into<Cause>) -> TransportError {
        TransportError::Connect { host: self.spec.host.clone(), reason: During::new(what, error).into() }
    }
}

fn connect_tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIME) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(std::io::Error::new(error.kind(), During::new(address.to_string(), error))),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// Returns what another service than sshd says first; `None` for sshd, and for one that says nothing. The library would wait for more.
fn other_greeting(stream: &TcpStream) -> Option<String> {
    let until = Instant::now() + GREETING_TIME;
    let mut seen = [0; 255];
    stream.set_read_timeout(Some(GREETING_TIME)).ok()?;
    let count = loop {
        let count = stream.peek(&mut seen).unwrap_or(0);
        // Lines may come before that of the version.
        let enough = count == 0 || count == seen.len() || Instant::now() >= until;
        if enough || memchr::memmem::find(&seen[..count], b"SSH-").is_some() {
            break count;
        }
        std::thread::sleep(NAP);
    };
    stream.set_read_timeout(None).ok()?;
    let other = count > 0 && count < seen.len() && memchr::memmem::find(&seen[..count], b"SSH-").is_none();
    other.then(|| printed(&seen[..count]))
}

/// Distinguishes a port where nobody listens, or a name that nobody has, from failures that may pass.
fn no_stream(host: &str, port: u16, error: std::io::Error) -> TransportError {
    let (host, said) = (host.to_owned(), error.to_string());
    // The resolver's errors have no kind of their own.
    let is_unknown = said.contains("failed to lookup address") && !said.contains("Temporary failure");
    if error.kind() == std::io::ErrorKind::ConnectionRefused {
        let reason = Explained::new(error, format!(". Does sshd listen on port {port} there?")).into();
        return TransportError::Unreachable { host, reason };
    }
    let reason = error.into();
    if is_unknown { TransportError::Unreachable { host, reason } } else { TransportError::Connect { host, reason } }
}

fn local_user() -> Option<String> {
    Some(uzers::get_current_username()?.to_string_lossy().into_owned())
}

impl Transport for SshTransport {
    fn run(&mut self, command: &str) -> Result<Connection, TransportError> {
        let (session, relay) = self.connect()?;
        let mut channel = session
            .channel_open("session", WINDOW_BYTES, PACKET_BYTES, None)
            .map_err(|error| self.failed("no session", error))?;
        channel.exec(command).map_err(|error| self.failed("the command was refused", error))?;
        pump::start(session, channel, relay).map_err(|error| self.failed("the connection cannot be used", error))
    }

    fn host(&self) -> &str {
        &self.spec.host
    }
}

/// Says what a session waits for, for poll.
fn wants_to_write(session: &Session) -> bool {
    matches!(session.block_directions(), BlockDirections::Outbound | BlockDirections::Both)
}
