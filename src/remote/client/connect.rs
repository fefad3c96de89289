//! Finding an agent on the remote host, or bringing one there, and the handshake with it.
//!
//! 1. `zmreplica` from the user's PATH there, or the path that was named. A key may be bound to an agent by `command=` in `authorized_keys`; then the
//!    host starts that one whatever command is requested.
//! 2. If there is none, or it speaks another version: the one that an earlier run uploaded, found by its hash, so that it is never an old or a damaged one.
//! 3. If that is not there: it is uploaded, once, read back, compared, and tried.
//!
//! What is uploaded is a static program if there is one. Else it is this very program, for a host of the same sort has the libraries that it needs; the trial
//! run shows it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, info};

use crate::areas;
use crate::cause::{Cause, Explained, NoThread};
use crate::remote::protocol::frame::{self, Kind};
use crate::remote::protocol::{Hello, MAGIC, PREAMBLE_BYTES, Start, VERSION, preamble};
use crate::remote::transport::deadline::Deadline;
use crate::remote::transport::upload::{UploadError, upload};
use crate::remote::transport::{Connection, Transport, TransportError, printed, quoted, read_to_mark};
use crate::sandbox::Confinement;

/// Where uploaded agents are, below the home directory there.
const UPLOAD_DIRECTORY: &str = ".cache/zmreplica";
/// The name of the agent to upload, beside this program or in [`LIBRARY_DIRECTORY`].
const BINARY_NAME: &str = "zmreplica-agent";
const LIBRARY_DIRECTORY: &str = "/usr/local/lib/zmreplica";
/// A handshake takes no longer: the agent reads its own program once, and its root.
pub const HANDSHAKE: Duration = Duration::from_secs(120);
/// The largest program that is uploaded: it is held in memory, and a release takes a tenth of that.
const BINARY_MAX_BYTES: u64 = 256 << 20;

/// Which agent is used.
#[derive(Clone, Debug)]
pub struct AgentChoice {
    /// The program on the remote host; `None` looks in the PATH, and uploads one if there is none.
    pub path: Option<String>,
    /// Whether one may be uploaded.
    pub upload: bool,
    /// The program to upload; `None` looks beside this one.
    pub binary: Option<PathBuf>,
    /// How long the handshake with it may take.
    pub handshake: Duration,
}

impl Default for AgentChoice {
    fn default() -> AgentChoice {
        AgentChoice { path: None, upload: true, binary: None, handshake: HANDSHAKE }
    }
}

/// Why there is no agent to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host cannot be reached or used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection broke during the handshake. Another attempt may do.
    #[error("The connection to {host} broke: {reason}")]
    Broken {
        /// The host.
        host: String,
        /// What happened.
        #[source]
        reason: Cause,
    },
    /// There is no agent, and there will be none.
    #[error("{message}")]
    NoAgent {
        /// What was tried, and what to do.
        message: String,
    },
    /// The agent refuses the request.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
    },
}

impl ConnectError {
    /// Returns whether another attempt may go better.
    pub fn may_pass(&self) -> bool {
        matches!(self, ConnectError::Transport(TransportError::Connect { .. }) | ConnectError::Broken { .. })
    }
}

/// A connection to an agent that has begun its task.
pub struct Opened {
    /// The connection; the agent's frames come next.
    pub connection: Connection,
    /// What the agent says of itself.
    pub hello: Hello,
    /// What its kernel confines it with; `None` for one that writes, or is older.
    pub confinement: Option<Confinement>,
    /// Whether it was uploaded just now.
    pub uploaded: bool,
}

/// Why one program is no agent.
enum NotThis {
    /// It is not there, or is something else; how that ended.
    Absent(String),
    /// It speaks another version.
    Version(u32),
    /// Another error.
    Error(ConnectError),
}

/// Connects to an agent and has it begin. With `writable` the agent may write below the root.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect(
    transport: &mut dyn Transport,
    choice: &AgentChoice,
    start: &Start,
    writable: bool,
) -> Result<Opened, ConnectError> {
    let host = transport.host().to_owned();
    let first = choice.path.as_deref().unwrap_or("zmreplica");
    let why = match attempt(transport, &quoted(first), start, (writable, choice.handshake)) {
        Ok((connection, hello, confinement)) => {
            return Ok(Opened { connection, hello, confinement, uploaded: false });
        }
        Err(NotThis::Error(error)) => return Err(error),
        Err(NotThis::Version(version)) => {
            format!("{first} on {host} speaks version {version} of the protocol, and this program version {VERSION}")
        }
        Err(NotThis::Absent(words)) => format!("{first} on {host} is not an agent ({words})"),
    };
    if choice.path.is_some() {
        return Err(ConnectError::NoAgent { message: format!("{why}. Correct --agent-path, or leave it out") });
    }
    if !choice.upload {
        let message =
            format!("{why}, and --no-upload forbids an upload. Install zmreplica {} there", env!("CARGO_PKG_VERSION"));
        return Err(ConnectError::NoAgent { message });
    }
    let binary = binary_to_upload(choice.binary.as_deref())
        .map_err(|reason| ConnectError::NoAgent { message: format!("{why}, and none can be uploaded: {reason}") })?;
    let hash = blake3::hash(&binary.bytes).to_hex().to_string();
    let name = format!("agent-{}-{}", env!("CARGO_PKG_VERSION"), &hash[..16]);
    let program = format!("\"$HOME\"/{UPLOAD_DIRECTORY}/{name}");
    // There from an earlier run, as a rule.
    match attempt(transport, &program, start, (writable, choice.handshake)) {
        Ok((connection, hello, confinement)) if hello.binary == hash => {
            return Ok(Opened { connection, hello, confinement, uploaded: false });
        }
        Err(NotThis::Error(error)) => return Err(error),
        Ok(_) | Err(NotThis::Absent(_) | NotThis::Version(_)) => {}
    }
    info!(
        target: areas::REMOTE,
        bytes = binary.bytes.len(),
        is_static = binary.is_static,
        reason = %why,
        "uploading the agent"
    );
    upload(transport, UPLOAD_DIRECTORY, &name, &binary.bytes).map_err(|error| match error {
        UploadError::Transport(error) => error.into(),
        UploadError::DoesNotRun(words) => does_not_run(&why, &words, &binary),
    })?;
    match attempt(transport, &program, start, (writable, choice.handshake)) {
        Ok((connection, hello, confinement)) if hello.binary == hash => {
            Ok(Opened { connection, hello, confinement, uploaded: true })
        }
        Ok(_) => {
            Err(ConnectError::NoAgent { message: format!("{why}, and what runs there is not the uploaded program") })
        }
        Err(NotThis::Error(error)) => Err(error),
        Err(NotThis::Version(version)) => {
            Err(ConnectError::NoAgent { message: format!("{why}; the uploaded one speaks version {version}") })
        }
        Err(NotThis::Absent(words)) => Err(does_not_run(&why, &words, &binary)),
    }
}

fn does_not_run(why: &str, words: &str, binary: &Binary) -> ConnectError {
    let remedy = if binary.is_static {
        "Use --agentless, or install zmreplica there".to_owned()
    } else {
        format!(
            "{} needs the libraries of this host; scripts/build-agent builds one that needs none. Or use --agentless",
            binary.path.display()
        )
    };
    ConnectError::NoAgent {
        message: format!("{why}, and the one that was uploaded does not run there: {words}. {remedy}"),
    }
}

fn attempt(
    transport: &mut dyn Transport,
    program: &str,
    start: &Start,
    (writable, handshake): (bool, Duration),
) -> Result<(Connection, Hello, Option<Confinement>), NotThis> {
    debug!(target: areas::REMOTE, %program, "trying an agent");
    let host = transport.host().to_owned();
    let broken = |reason: Cause| NotThis::Error(ConnectError::Broken { host: host.clone(), reason });
    // For who looks at the processes there: what counts is the root in `start`. Some login shells read these within quotes, too.
    let shown = !start.root.contains(['\n', '!', '\\', '\'']);
    let root = if shown { format!(" --root {}", quoted(&start.root)) } else { String::new() };
    let writable = if writable { " --writable" } else { "" };
    let command = format!("exec {program} agent{root}{writable}");
    let mut connection = transport.run(&command).map_err(|error| NotThis::Error(error.into()))?;
    let deadline = Deadline::start(std::sync::Arc::clone(&connection.control), handshake)
        .map_err(|error| broken(NoThread(error).into()))?;
    let mut input = deadline.watch(&mut *connection.input);
    let mut seen = Vec::new();
    match read_preamble(&mut input, &mut seen) {
        Ok(VERSION) => {}
        Ok(version) => return Err(NotThis::Version(version)),
        Err(error) => {
            if let Some(reason) = deadline.passed("the handshake") {
                return Err(broken(reason.into()));
            }
            let words = connection.control.exit_info();
            if let Some(error) = words.lasting(&host) {
                return Err(NotThis::Error(error.into()));
            }
            let seen = if words.not_found() { String::new() } else { printed(&seen) };
            // A shell that ends with 126 or 127 has not found the program; one that ends with anything else has found another. A connection that just ends has
            // broken.
            return Err(match words.code {
                Some(255) | None => broken(Explained::new(error, format!("; {words}{seen}")).into()),
                Some(_) => NotThis::Absent(format!("{words}{seen}")),
            });
        }
    }
    let mut greeting = preamble().to_vec();
    let encoded = serde_json::to_vec(start).map_err(|error| broken(error.into()))?;
    frame::put(&mut greeting, Kind::Start, &encoded);
    let mut exchange = || -> io::Result<(frame::Frame, frame::Frame)> {
        connection.output.write_all(&greeting)?;
        connection.output.flush()?;
        Ok((frame::read(&mut input)?, frame::read(&mut input)?))
    };
    let (hello, answer) = match exchange() {
        Ok(frames) => frames,
        Err(error) => {
            if let Some(reason) = deadline.passed("the handshake") {
                return Err(broken(reason.into()));
            }
            let words = connection.control.exit_info();
            return Err(broken(Explained::new(error, format!("; {words}")).into()));
        }
    };
    drop(input);
    if let Some(reason) = deadline.passed("the handshake") {
        return Err(broken(reason.into()));
    }
    drop(deadline);
    let hello: Hello = match hello.kind {
        Kind::Hello => serde_json::from_slice(&hello.payload).map_err(|error| broken(error.into()))?,
        other => return Err(broken(format!("it began with {other:?}").into())),
    };
    match answer.kind {
        Kind::Started => {
            let confinement = answer.payload.first().map(|byte| Confinement::from_byte(*byte));
            Ok((connection, hello, confinement))
        }
        Kind::Failed => {
            let message = String::from_utf8_lossy(&answer.payload).into_owned();
            Err(NotThis::Error(ConnectError::Refused { message }))
        }
        other => Err(broken(format!("it answered with {other:?}").into())),
    }
}

/// Reads to the end of the preamble, over what a login shell may print before, and returns the version. What was read is in `seen`.
fn read_preamble(input: &mut dyn Read, seen: &mut Vec<u8>) -> io::Result<u32> {
    read_to_mark(input, &[&MAGIC], seen)?;
    let mut version = [0; PREAMBLE_BYTES - 8];
    input.read_exact(&mut version)?;
    Ok(u32::from_le_bytes(version))
}

/// A program to upload.
struct Binary {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Whether it needs nothing from the host it is brought to.
    is_static: bool,
}

/// Finds a program to upload: a static one, or else this one.
fn binary_to_upload(given: Option<&Path>) -> Result<Binary, String> {
    let own = std::env::current_exe().ok();
    let beside = own.as_ref().and_then(|own| Some(own.parent()?.join(BINARY_NAME)));
    let library = Path::new(LIBRARY_DIRECTORY).join(BINARY_NAME);
    let candidates: Vec<PathBuf> = match given {
        Some(given) => vec![given.to_owned()],
        None => beside.into_iter().chain([library]).chain(own.clone()).collect(),
    };
    let mut reason = String::new();
    for candidate in &candidates {
        match read_program(candidate) {
            Ok(bytes) => {
                let is_static = is_static(&bytes);
                if is_static || (given.is_none() && Some(candidate) == own.as_ref()) {
                    return Ok(Binary { path: candidate.clone(), bytes, is_static });
                }
                reason = format!("{} is not a static program", candidate.display());
            }
            Err(error) => reason = error,
        }
    }
    Err(match given {
        Some(_) => reason,
        // The last candidate is this program.
        None => format!(
            "there is no static {BINARY_NAME} beside this program or in {LIBRARY_DIRECTORY}, and {reason}; scripts/build-agent builds one"
        ),
    })
}

/// Reads a program to upload, or says why it is none.
fn read_program(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    let file = std::fs::metadata(path).map_err(failed)?;
    if !file.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if file.len() > BINARY_MAX_BYTES {
        let most = BINARY_MAX_BYTES >> 20;
        return Err(format!("{} is larger than {most} MiB: build it without debug information", path.display()));
    }
    std::fs::read(path).map_err(failed)
}

/// Returns whether a program is a 64-bit ELF file that needs no dynamic linker: no program header of type `PT_INTERP`.
fn is_static(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| {
        bytes
            .get(at..at + length)
            .map(|field| field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    // Magic, 64 bits, little endian.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01".as_slice()) {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).all(|header| {
        let at = table.checked_add(header * size).and_then(|at| usize::try_from(at).ok());
        let kind = at.filter(|at| *at < bytes.len()).and_then(|at| number(at, 4));
        kind.is_some_and(|kind| kind != u64::from(PT_INTERP))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_prints_is_passed_over() {
        let mut stream = b"Welcome to mail!\nZMRAGEN\n".to_vec();
        stream.extend_from_slice(&preamble());
        let read = |input: &mut dyn Read| read_preamble(input, &mut Vec::new());
        assert_eq!(read(&mut stream.as_slice()).unwrap(), VERSION);
        assert!(read(&mut b"no such command".as_slice()).is_err());
        assert_eq!(read(&mut std::io::repeat(b'x')).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn static_programs_are_recognized() {
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
        // This test is linked dynamically, unless all of the build is static.
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(is_static(&own), cfg!(target_feature = "crt-static"));
    }

    #[test]
    fn a_program_that_cannot_be_uploaded_is_refused_with_the_reason() {
        let place = tempfile::tempdir().unwrap();
        let refused = |path: &Path| binary_to_upload(Some(path)).err().unwrap();
        assert!(refused(&place.path().join("none")).contains("No such file"));
        assert!(refused(place.path()).contains("is not a file"));
        let path = place.path().join("program");
        std::fs::write(&path, "text").unwrap();
        assert!(refused(&path).contains("is not a static program"));
        std::fs::File::create(&path).unwrap().set_len(BINARY_MAX_BYTES + 1).unwrap();
        assert!(refused(&path).contains("larger than 256 MiB"));
    }
}
