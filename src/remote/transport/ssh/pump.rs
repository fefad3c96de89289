//! One thread for each SSH session, for the library has one lock for each: it carries bytes between the channel and two queues, and never waits but in `poll`.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use ssh2::{Channel, Session};

use super::super::{Connection, Control, ExitInfo, SILENCE, Silence, keep_end};
use super::socket_relay::SocketRelay;
use super::wants_to_write;

/// Size of one read from the channel.
const READ_BYTES: usize = 128 << 10;
/// Reads that may wait for the receiver.
const READS_AHEAD: usize = 64;
/// Bytes that may wait to be sent.
const WRITES_AHEAD_BYTES: usize = 1 << 20;
/// The longest sleep: keep-alives are due every 15 seconds.
const NAP: Duration = Duration::from_secs(5);
const KEEPALIVE_SECONDS: u32 = 15;
/// How long the remote host may take to report how its command ended.
const END_TIME: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    outgoing: VecDeque<u8>,
    /// The writer was dropped: the remote host is to see the end of its stdin.
    writer_gone: bool,
    /// The receiver waits for nothing: its queue is full.
    full: bool,
    aborted: bool,
    /// The thread has ended.
    done: bool,
    failure: Option<Arc<io::Error>>,
    code: Option<i32>,
    stderr: Vec<u8>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is at its end, and then it wakes all the same.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Starts the thread for an open channel on which a command runs.
pub(super) fn start(session: Session, channel: Channel, relay: SocketRelay) -> io::Result<Connection> {
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), wake });
    let (sender, receiver) = bounded(READS_AHEAD);
    session.set_blocking(false);
    session.set_keepalive(true, KEEPALIVE_SECONDS);
    relay.established();
    let pump = Pump { session, channel, relay, shared: Arc::clone(&shared), sender: Some(sender) };
    std::thread::Builder::new().name("ssh".to_owned()).spawn(move || pump.run())?;
    let silence = Silence::of(SILENCE);
    let control = Arc::new(SshControl(Arc::clone(&shared), silence.clone()));
    Ok(Connection {
        input: Box::new(SshReader { receiver, shared: Arc::clone(&shared), silence, piece: Vec::new(), at: 0 }),
        output: Box::new(SshWriter(shared)),
        control,
    })
}

struct Pump {
    session: Session,
    channel: Channel,
    relay: SocketRelay,
    shared: Arc<Shared>,
    sender: Option<Sender<Vec<u8>>>,
}

impl Pump {
    fn run(mut self) {
        let ended = self.carry();
        let is_well = ended.is_ok();
        self.shared.lock().failure = ended.err().map(Arc::new);
        // The receiver sees the end.
        self.sender = None;
        if is_well {
            self.take_leave();
        }
        let mut state = self.shared.lock();
        state.done = true;
        drop(state);
        self.shared.changed.notify_all();
        // Without this, dropping the session may wait for a peer that is gone.
        self.relay.shut();
    }

    /// Carries bytes until the remote host ends its output, or the connection is broken off.
    fn carry(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut eof_sent = false;
        let mut keepalive = Instant::now();
        let mut last_look = false;
        loop {
            if self.shared.lock().aborted {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was broken off"));
            }
            let mut moved = self.take_in(&mut buffer)?;
            moved |= self.take_stderr(&mut buffer)?;
            moved |= self.send_out(&mut eof_sent)?;
            if self.channel.eof() && !moved {
                return Ok(());
            }
            if keepalive.elapsed() >= NAP {
                keepalive = Instant::now();
                would_block(self.session.keepalive_send().map(|_| 0).map_err(io::Error::from))?;
            }
            if moved {
                continue;
            }
            match self.relay.ended() {
                // All that had arrived has been handed over.
                Some(reason) if last_look && !self.is_full() => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, reason));
                }
                // Something may have come between the last read and the end.
                Some(_) if !self.is_full() => last_look = true,
                _ => self.wait()?,
            }
        }
    }

    fn take_in(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut moved = false;
        while let Some(sender) = &self.sender {
            if sender.is_full() {
                let mut state = self.shared.lock();
                state.full = true;
                // It may have taken one meanwhile, and not known that this thread waits.
                if sender.is_full() {
                    break;
                }
                state.full = false;
            }
            match would_block(self.channel.read(buffer))? {
                Some(count @ 1..) => {
                    moved = true;
                    if sender.send(buffer[..count].to_vec()).is_err() {
                        // Nobody listens any more.
                        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the connection is no longer wanted"));
                    }
                }
                _ => break,
            }
        }
        Ok(moved)
    }

    fn take_stderr(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let count = would_block(self.channel.stderr().read(buffer))?.unwrap_or(0);
        if count > 0 {
            keep_end(&mut self.shared.lock().stderr, &buffer[..count]);
        }
        Ok(count > 0)
    }

    fn send_out(&mut self, eof_sent: &mut bool) -> io::Result<bool> {
        let mut moved = false;
        loop {
            let (piece, last) = {
                let state = self.shared.lock();
                (state.outgoing.as_slices().0.iter().take(READ_BYTES).copied().collect::<Vec<u8>>(), state.writer_gone)
            };
            if piece.is_empty() {
                if last && !*eof_sent {
                    *eof_sent = would_block(self.channel.send_eof().map(|()| 0).map_err(io::Error::from))?.is_some();
                }
                return Ok(moved);
            }
            match would_block(self.channel.write(&piece))? {
                Some(count @ 1..) => {
                    moved = true;
                    self.shared.lock().outgoing.drain(..count);
                    self.shared.changed.notify_all();
                }
                _ => return Ok(moved),
            }
        }
    }

    /// Returns whether the receiver has to take something before more can be read.
    fn is_full(&self) -> bool {
        self.shared.lock().full
    }

    /// Sleeps until something can be done.
    fn wait(&self) -> io::Result<()> {
        let (full, ended) = (self.is_full(), self.relay.ended().is_some());
        // A full queue is no reason to look at what comes, unless something wants to go out.
        let mut wanted = if full { PollFlags::empty() } else { PollFlags::IN };
        if wants_to_write(&self.session) {
            wanted |= PollFlags::OUT;
        }
        let timeout = Timespec { tv_sec: NAP.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [
            PollFd::from_borrowed_fd(self.relay.as_fd(), wanted),
            PollFd::from_borrowed_fd(if ended { self.shared.wake.as_fd() } else { self.relay.wake() }, PollFlags::IN),
            PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Empties the counter; it is empty after most naps.
        let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8][..]);
        Ok(())
    }

    /// Learns how the command ended.
    fn take_leave(&mut self) {
        let until = Instant::now() + END_TIME;
        let mut buffer = vec![0; 4096];
        let mut closing = false;
        while Instant::now() < until && !self.shared.lock().aborted {
            let _ = self.take_stderr(&mut buffer);
            if !closing {
                closing = matches!(would_block(self.channel.close().map(|()| 0).map_err(io::Error::from)), Ok(Some(_)));
            }
            match would_block(self.channel.wait_close().map(|()| 0).map_err(io::Error::from)) {
                Ok(Some(_)) => {
                    self.shared.lock().code = self.channel.exit_status().ok();
                    return;
                }
                Ok(None) => {}
                Err(_) => return,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Turns "would block" into `None`.
fn would_block(answer: io::Result<usize>) -> io::Result<Option<usize>> {
    match answer {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The command's stdout.
struct SshReader {
    receiver: Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    silence: Silence,
    piece: Vec<u8>,
    at: usize,
}

impl Read for SshReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.piece.len() {
            let silence = self.silence.get();
            match self.receiver.recv_timeout(silence) {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(RecvTimeoutError::Timeout) => {
                    let message = format!("nothing came for {} s", silence.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return match self.shared.lock().failure.clone() {
                        Some(reason) => Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)),
                        None => Ok(0),
                    };
                }
            }
            let was_full = std::mem::take(&mut self.shared.lock().full);
            if was_full {
                self.shared.wake();
            }
        }
        let count = (self.piece.len() - self.at).min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

/// The command's stdin.
struct SshWriter(Arc<Shared>);

impl Write for SshWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.outgoing.len() >= WRITES_AHEAD_BYTES && !state.done && !state.aborted {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.done || state.aborted {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.outgoing.extend(bytes);
        drop(state);
        self.0.wake();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SshWriter {
    fn drop(&mut self) {
        self.0.lock().writer_gone = true;
        self.0.wake();
    }
}

struct SshControl(Arc<Shared>, Silence);

impl Control for SshControl {
    fn set_silence(&self, span: Duration) {
        self.1.set(span);
    }

    fn abort(&self) {
        self.0.lock().aborted = true;
        self.0.changed.notify_all();
        self.0.wake();
    }

    fn exit_info(&self) -> ExitInfo {
        let until = Instant::now() + END_TIME + END_TIME;
        let mut state = self.0.lock();
        while !state.done {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        ExitInfo { code: state.code, stderr: String::from_utf8_lossy(&state.stderr).into_owned(), carrier: false }
    }
}
