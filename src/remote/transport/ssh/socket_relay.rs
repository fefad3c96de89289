//! The wire below a session: two threads that carry bytes between the network and a socket pair, whose other end the library has.
//!
//! The library throws away what it has received when its socket ends. With the pair between, the socket stays open when the network breaks: what had arrived is
//! still handed over, chunk by chunk, and need not be sent again. The price is one more copy within the kernel.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::cause::Cause;

/// Bytes carried at a time.
const PIECE_BYTES: usize = 128 << 10;

struct State {
    /// Whether what has arrived is wanted when the network breaks; during a handshake it is not.
    established: AtomicBool,
    ended: Mutex<Option<Arc<dyn Error + Send + Sync>>>,
    wake: OwnedFd,
}

impl State {
    /// Notes the end of the network, and wakes whoever waits for the pair.
    fn end(&self, reason: Cause, relay_end: &UnixStream) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Arc::from(reason));
        if !self.established.load(Ordering::SeqCst) {
            let _ = relay_end.shutdown(Shutdown::Both);
        }
        // Fails only when the counter is at its end, and then it wakes all the same.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A connection and what carries it.
pub(super) struct SocketRelay {
    near: UnixStream,
    /// Kept open, for the library must not see an end that the network's is not.
    _relay_end: UnixStream,
    tcp: TcpStream,
    state: Arc<State>,
}

impl SocketRelay {
    /// Starts to carry; also returns the end for the library.
    pub(super) fn start(tcp: TcpStream) -> io::Result<(SocketRelay, UnixStream)> {
        let (near, relay_end) = UnixStream::pair()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = Arc::new(State { established: AtomicBool::new(false), ended: Mutex::default(), wake });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
        };
        let (mut from, mut to, shared) = (tcp.try_clone()?, relay_end.try_clone()?, Arc::clone(&state));
        spawn(
            "wire-in",
            Box::new(move || {
                let ended = carry(&mut from, &mut to);
                shared.end(ended.err().map_or_else(|| "the remote host ended it".into(), Cause::from), &to);
            }),
        )?;
        let (mut from, mut to, shared) = (relay_end.try_clone()?, tcp.try_clone()?, Arc::clone(&state));
        spawn(
            "wire-out",
            Box::new(move || {
                if let Err(error) = carry(&mut from, &mut to) {
                    shared.end(error.into(), &from);
                }
                // The library's end is closed: nobody wants to hear more.
                let _ = to.shutdown(Shutdown::Both);
            }),
        )?;
        let library = near.try_clone()?;
        Ok((SocketRelay { near, _relay_end: relay_end, tcp, state }, library))
    }

    /// From now on what has arrived is handed over even when the network breaks. If it has broken already, the library sees the end.
    pub(super) fn established(&self) {
        self.state.established.store(true, Ordering::SeqCst);
    }

    /// Returns why the network broke, if it has. What arrived before may still be read.
    pub(super) fn ended(&self) -> Option<Arc<dyn Error + Send + Sync>> {
        self.state.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what is readable when the network breaks.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.state.wake.as_fd()
    }

    /// Breaks the connection off.
    pub(super) fn shut(&self) {
        let _ = self.tcp.shutdown(Shutdown::Both);
        let _ = self.near.shutdown(Shutdown::Both);
    }
}

impl AsFd for SocketRelay {
    /// The library's socket, for poll.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}

fn carry(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
