//! A TCP proxy that delays, counts and cuts: the network between two hosts, on one.

// Not every user needs all of it.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// What all connections share.
#[derive(Default)]
pub struct Traffic {
    /// Bytes carried towards the server.
    pub up: AtomicU64,
    /// Bytes carried from it.
    pub down: AtomicU64,
    /// The connection that carries the byte of this number from the server is cut; 0 for none. Cleared by the cut.
    pub cut_at: AtomicU64,
    /// Cuts so target_end.
    pub cuts: AtomicU64,
}

/// A running proxy. It runs until the process ends.
pub struct Proxy {
    pub port: u16,
    pub traffic: Arc<Traffic>,
}

impl Proxy {
    /// Listens on a port of its own (0 chooses) and carries everything to `target` on this host, each byte `delay` later.
    pub fn start(port: u16, target: u16, delay: Duration) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let traffic = Arc::new(Traffic::default());
        let shared = Arc::clone(&traffic);
        std::thread::spawn(move || {
            for client_end in listener.incoming() {
                let (Ok(client_end), Ok(target_end)) = (client_end, TcpStream::connect(("127.0.0.1", target))) else {
                    continue;
                };
                for (from, to, down) in [(&client_end, &target_end, false), (&target_end, &client_end, true)] {
                    let _ = from.set_nodelay(true);
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let traffic = Arc::clone(&shared);
                    std::thread::spawn(move || carry(from, to, delay, &traffic, down));
                }
            }
        });
        Proxy { port, traffic }
    }
}

fn carry(mut from: TcpStream, to: TcpStream, delay: Duration, traffic: &Arc<Traffic>, down: bool) {
    // With a delay, deep enough for what is on its way: a wire holds it too.
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(if delay.is_zero() { 1 } else { 1024 });
    let mut out = to.try_clone().unwrap();
    let back = from.try_clone().unwrap();
    let traffic = Arc::clone(traffic);
    let writer = std::thread::spawn(move || {
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let counter = if down { &traffic.down } else { &traffic.up };
            let after = counter.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
            let cut = traffic.cut_at.load(Ordering::Relaxed);
            if down && cut != 0 && after >= cut {
                traffic.cut_at.store(0, Ordering::Relaxed);
                traffic.cuts.fetch_add(1, Ordering::Relaxed);
                let _ = back.shutdown(Shutdown::Both);
                let _ = out.shutdown(Shutdown::Both);
                return;
            }
            if out.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = out.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
}
