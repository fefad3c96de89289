//! A connection through another program, such as `ssh -J gateway`: anything that runs a command on a host and carries its stdin and stdout.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::spec::RemoteSpec;
use super::ssh::PASSPHRASE_VARIABLE;
use super::{Connection, Control, ExitInfo, SILENCE, Silence, Transport, TransportError, keep_end};
use crate::cause::{Cause, During, NoThread};
use crate::mutex::lock;

/// How long a program may take to end after its stdout has.
const END_TIME: Duration = Duration::from_secs(5);
/// How long its stderr may stay open after the program ended: one that it left behind, as a shared connection of `ssh`, may hold it forever.
const STDERR_TIME: Duration = Duration::from_secs(1);

/// Runs commands on a host through a program of the user's choice.
pub struct CommandTransport {
    program: String,
    spec: RemoteSpec,
}

impl CommandTransport {
    /// Takes the program with its options, as a line for the shell.
    pub fn new(program: &str, spec: &RemoteSpec) -> CommandTransport {
        CommandTransport { program: program.to_owned(), spec: spec.clone() }
    }

    fn error(&self, reason: impl Into<Cause>) -> TransportError {
        TransportError::Connect { host: self.spec.host.clone(), reason: reason.into() }
    }
}

impl Transport for CommandTransport {
    fn run(&mut self, command: &str) -> Result<Connection, TransportError> {
        let mut program = Command::new("/bin/sh");
        // The shell splits the program's own options; everything else is passed as it is.
        program.arg("-c").arg(format!("exec {} \"$@\"", self.program)).arg("sh");
        if let Some(user) = &self.spec.user {
            program.args(["-l", user]);
        }
        if let Some(port) = self.spec.port {
            program.args(["-p", &port.to_string()]);
        }
        program.arg(&self.spec.host).arg(command);
        program.env_remove(PASSPHRASE_VARIABLE);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program
            .spawn()
            .map_err(|error| self.error(During::new(format!("{} cannot be started", self.program), error)))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(self.error("its pipes are missing"));
        };
        let silence = Silence::of(SILENCE);
        let (reading_stderr, stderr_ended) = bounded(0);
        let control = Arc::new(ChildControl {
            silence: silence.clone(),
            child: Mutex::new(child),
            stderr: Mutex::default(),
            stderr_ended,
            program: self.program.clone(),
        });
        let keeper = Arc::clone(&control);
        let spawned = std::thread::Builder::new().name("rsh-stderr".to_owned()).spawn(move || {
            keeper.keep(stderr);
            drop(reading_stderr);
        });
        spawned.map_err(|error| self.error(NoThread(error)))?;
        Ok(Connection {
            input: Box::new(TimedReader { fd: stdout.into(), silence }),
            output: Box::new(PipeWriter { pipe: stdin, _control: Arc::clone(&control) }),
            control,
        })
    }

    fn host(&self) -> &str {
        &self.spec.host
    }
}

struct ChildControl {
    silence: Silence,
    child: Mutex<Child>,
    stderr: Mutex<Vec<u8>>,
    /// Disconnected once all of stderr has been read.
    stderr_ended: Receiver<()>,
    program: String,
}

impl ChildControl {
    /// Returns whether the shell here says that it has no such program: `sh: 1: exec: NAME: not found`. The one there names another.
    fn is_not_found(&self, stderr: &str) -> bool {
        let name = self.program.split_whitespace().next().unwrap_or_default();
        stderr.lines().any(|line| {
            line.contains(&format!(" {name}: "))
                && ["not found", "Permission denied", "No such file"].iter().any(|why| line.contains(why))
        })
    }

    fn keep(&self, mut stderr: impl Read) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            keep_end(&mut lock(&self.stderr), &buffer[..count]);
        }
    }
}

impl Control for ChildControl {
    fn set_silence(&self, span: Duration) {
        self.silence.set(span);
    }

    fn abort(&self) {
        let mut child = lock(&self.child);
        // Fails for one that has ended, which is as good.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn exit_info(&self) -> ExitInfo {
        let until = Instant::now() + END_TIME;
        let code = loop {
            match lock(&self.child).try_wait() {
                Ok(Some(status)) => break status.code(),
                Ok(None) if Instant::now() < until => {}
                _ => break None,
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // The reason of the end may stand in what the thread has not read yet. Nothing is ever sent.
        let _ = self.stderr_ended.recv_timeout(STDERR_TIME);
        let stderr = String::from_utf8_lossy(&lock(&self.stderr)).into_owned();
        let carrier = matches!(code, Some(126 | 127)) && self.is_not_found(&stderr);
        ExitInfo { code, stderr, carrier }
    }
}

impl Drop for ChildControl {
    fn drop(&mut self) {
        self.abort();
    }
}

/// The program's stdin. Holds the program, so that it lives as long as somebody talks to it.
struct PipeWriter {
    pipe: ChildStdin,
    _control: Arc<ChildControl>,
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pipe.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

/// Reads a descriptor, and fails when no byte came for long.
pub struct TimedReader {
    fd: OwnedFd,
    silence: Silence,
}

impl TimedReader {
    /// Reads `fd`; each read waits at most so long.
    pub fn new(fd: OwnedFd, idle_timeout: Duration) -> TimedReader {
        TimedReader { fd, silence: Silence::of(idle_timeout) }
    }
}

impl Read for TimedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let idle_timeout = self.silence.get();
        let until = Instant::now() + idle_timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => {
                    let seconds = idle_timeout.as_secs();
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {seconds} s")));
                }
                Ok(_) => match rustix::io::read(&self.fd, &mut *buffer) {
                    Err(rustix::io::Errno::INTR) => {}
                    answer => return Ok(answer?),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cause of an end decides whether another attempt is worth it, so it must not get lost on a busy host.
    #[test]
    fn the_reason_of_an_end_is_waited_for() {
        let spec = RemoteSpec::parse("far:/x");
        let late = "sh -c '(exec >&-; sleep 0.3; echo late >&2) & exit 255' ;";
        let mut transport = CommandTransport::new(late, &spec.unwrap().unwrap());
        let mut connection = transport.run("true").unwrap();
        assert_eq!(connection.input.read(&mut [0]).unwrap(), 0);
        let words = connection.control.exit_info();
        assert_eq!((words.code, words.stderr.as_str()), (Some(255), "late\n"));
    }
}
