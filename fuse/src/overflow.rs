//! Threads for the reads that the kernel's own threads have no room for.
//!
//! The server's threads take requests of all kinds. Were all of them busy with slow reads, a listing would wait; so only some may read at a
//! time, and the reads beyond go to a queue with threads of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs at once as long as there is room, and behind a queue otherwise.
pub(crate) struct Overflow {
    room: Arc<AtomicUsize>,
    queue: Mutex<Sender<Job>>,
}

impl Overflow {
    /// Starts `threads` threads for the queue; `room` jobs may run on the threads that bring them.
    pub(crate) fn start(room: usize, threads: usize) -> std::io::Result<Overflow> {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..threads {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name(format!("read-{number}")).spawn(move || work(&receiver))?;
        }
        Ok(Overflow { room: Arc::new(AtomicUsize::new(room)), queue: Mutex::new(sender) })
    }

    /// Runs a job here, or hands it to the queue.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let taken = self.room.try_update(Ordering::AcqRel, Ordering::Acquire, |room| room.checked_sub(1));
        if taken.is_ok() {
            // Given back also when the job panics.
            let _back = GiveBack(&self.room);
            job();
            return;
        }
        let sent = self.queue.lock().unwrap_or_else(PoisonError::into_inner).send(Box::new(job));
        if let Err(unsent) = sent {
            // No thread of the queue is left: better late than never.
            (unsent.0)();
        }
    }
}

struct GiveBack<'a>(&'a AtomicUsize);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_full_house_queues_and_blocks_nobody() {
        let overflow = Overflow::start(1, 1).unwrap();
        let (open_gate, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (done, order) = mpsc::channel();
        thread::scope(|scope| {
            // Takes the only room and stays there.
            let (inner_gate, inner_done) = (Arc::clone(&gate), done.clone());
            let (started, has_started) = mpsc::channel();
            let overflow = &overflow;
            scope.spawn(move || {
                overflow.run(move || {
                    started.send(()).unwrap();
                    inner_gate.lock().unwrap().recv().unwrap();
                    inner_done.send("slow").unwrap();
                });
            });
            has_started.recv().unwrap();
            let queued = done.clone();
            overflow.run(move || queued.send("queued").unwrap());
            assert_eq!(order.recv_timeout(Duration::from_secs(20)), Ok("queued"));
            open_gate.send(()).unwrap();
            assert_eq!(order.recv_timeout(Duration::from_secs(20)), Ok("slow"));
        });
        overflow.run(move || done.send("here").unwrap());
        assert_eq!(order.recv_timeout(Duration::from_secs(20)), Ok("here"));
    }
}
