//! The run's end of a restore on another host: answers the agent's queries, and sends rows ahead of them.
//!
//! The agent may read what is restored and no more: see `served`.
//!
//! Memory: what the agent requests and does not read is bounded by `SendWindow`, what it sends by `FRAMES_AHEAD`; its queries wait meanwhile.
//!
//! Time: an agent that takes nothing of what it requested, or says nothing but that it is alive, is given up after the user's idle_timeout. The signs of life
//! of this side count for neither. An honest agent reports figures while it does what needs no answer: it removes names, or waits for the disk. An agent that
//! goes on to send queries, or to report figures, is not given up: the user sees how far it is, and may interrupt the restore.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use data_encoding::HEXLOWER;

use super::connect::{AgentChoice, ConnectError, connect};
use super::send_window::SendWindow;
use super::served::{Refused, Served, read_subtree};
use crate::catalog::reader::RemoteRows;
use crate::catalog::tables::Table;
use crate::catalog::{CatalogError, ReadError};
use crate::cause::{Cause, Explained, NoThread};
use crate::coding::{Decoder, put_varint};
use crate::remote::protocol::frame::{self, Frame, Kind};
use crate::remote::protocol::messages::Figures;
use crate::remote::protocol::restore::{ANSWER_MAX_BYTES, Query, Reply, RestoreRequest};
use crate::remote::protocol::{ALIVE_SECONDS, Start, Task};
use crate::remote::transport::{Connection, Transport};
use crate::replica::Replica;
use crate::restore::{RestoreOptions, RestoreProgress, RestoreReport};
use crate::view::SnapshotView;

/// How often the interrupt is looked at.
const TICK: Duration = Duration::from_millis(200);
/// Frames of the agent that may wait: queries of some bytes, and a report of 1 MiB.
const FRAMES_AHEAD: usize = 16;
/// What a frame takes in a queue beside its bytes.
const FRAME_BYTES: usize = 64;

/// What can end a restore on another host early. What was restored until then is complete, file by file.
#[derive(Debug, thiserror::Error)]
pub enum RemoteRestoreError {
    /// There is no agent to restore with.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error(
        "The connection to {host} was lost: {reason}. Files that were restored so far are complete; run the same command again to continue"
    )]
    Lost {
        /// The host.
        host: String,
        /// What happened.
        #[source]
        reason: Cause,
    },
    /// The restore there ended early.
    #[error("On {host}: {message}")]
    Failed {
        /// The host.
        host: String,
        /// What it said.
        message: String,
    },
    /// The catalogue cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The user interrupted the restore.
    #[error("Interrupted. Files that were restored so far are complete; run the same command again to continue")]
    Interrupted,
}

/// What is restored on another host, and how.
#[derive(Clone, Copy)]
pub struct RemoteRestore<'a> {
    /// The store.
    pub replica: &'a Replica,
    /// The snapshot.
    pub view: &'a SnapshotView,
    /// The path in it.
    pub subtree: &'a [u8],
    /// Which agent is used there.
    pub agent: &'a AgentChoice,
    /// Choices; threads and protected directories have no meaning there.
    pub options: &'a RestoreOptions,
    /// How long the agent may say nothing but that it is alive, and read nothing.
    pub idle_timeout: Duration,
}

/// Restores into a directory on another host, as [`crate::restore::restore`] does on this one.
///
/// # Errors
/// See [`RemoteRestoreError`]. Single files that could not be restored are no error but problems in the report.
pub fn restore_to(
    transport: &mut dyn Transport,
    destination: &str,
    what: &RemoteRestore<'_>,
    progress: &RestoreProgress,
) -> Result<RestoreReport, RemoteRestoreError> {
    let RemoteRestore { replica, view, subtree, agent, options, idle_timeout } = *what;
    let host = transport.host().to_owned();
    let start = Start {
        task: Task::Restore,
        root: destination.to_owned(),
        excludes: Vec::new(),
        cross_file_systems: false,
        level: 0,
        threads: 0,
        bytes_per_second: 0,
    };
    let rows = Arc::new(replica.database().read()?);
    // Before the agent waits for it.
    let served = Served::of(&rows, view, subtree, &progress.interrupt).ok_or(RemoteRestoreError::Interrupted)?;
    let served = Arc::new(served);
    let opened = connect(transport, agent, &start, true)?;
    let Connection { mut input, mut output, control } = opened.connection;
    let lost = |reason: Cause| RemoteRestoreError::Lost { host: host.clone(), reason };
    let request = RestoreRequest {
        record: view.record().clone(),
        subtree: HEXLOWER.encode(subtree),
        overwrite: options.overwrite,
        delete: options.delete,
        numeric_ids: options.numeric_ids,
        dry_run: options.dry_run,
        no_specials: options.no_specials,
    };
    let request = serde_json::to_vec(&request).map_err(|error| lost(error.into()))?;
    let mut greeting = Vec::new();
    for dictionary in replica.dictionaries().all() {
        let mut payload = Vec::new();
        put_varint(&mut payload, u64::from(dictionary.id().get()));
        payload.extend_from_slice(dictionary.bytes());
        frame::put_compressed(&mut greeting, Kind::Dictionary, &payload);
    }
    frame::put_compressed(&mut greeting, Kind::RestoreRequest, &request);
    output.write_all(&greeting).and_then(|()| output.flush()).map_err(|error| lost(error.into()))?;

    let window = Arc::new(SendWindow::new());
    thread::scope(|scope| {
        let (frames, incoming) = bounded(FRAMES_AHEAD);
        let (out, outgoing) = unbounded::<Vec<u8>>();
        // The threads that run already end with the connection.
        let start = |started: io::Result<()>| {
            started.map_err(|error| {
                control.abort();
                lost(NoThread(error).into())
            })
        };
        let read = move || read_all(&mut *input, &frames);
        start(thread::Builder::new().spawn_scoped(scope, read).map(drop))?;
        let written = Arc::clone(&window);
        let write = move || write_all(&mut output, &outgoing, &written);
        start(thread::Builder::new().spawn_scoped(scope, write).map(drop))?;
        let ahead =
            Arc::new(PrefetchingRows { served: Arc::clone(&served), out: out.clone(), window: Arc::clone(&window) });
        let ended = Arc::clone(&window);
        let walk = move || read_subtree(ahead, view, subtree, || ended.is_closed(), |_| {});
        // Without it rows come later, when they are requested.
        let _ = thread::Builder::new().spawn_scoped(scope, walk);
        let mut desk =
            Desk { replica, served: &served, out, window: &window, progress, idle_timeout, has_met_damage: false };
        let ended = loop {
            match desk.next(&incoming) {
                Ok(None) => {}
                Ok(Some(Ended::Report(mut report))) => {
                    if desk.has_met_damage {
                        report.damaged = report.damaged.max(1);
                    }
                    break Ok(*report);
                }
                Ok(Some(Ended::Failed(message))) => {
                    break Err(RemoteRestoreError::Failed { host: host.clone(), message });
                }
                Ok(Some(Ended::Interrupted)) => break Err(RemoteRestoreError::Interrupted),
                Ok(Some(Ended::Broken(reason))) => {
                    break Err(lost(Explained::new(reason, format!("; {}", control.exit_info())).into()));
                }
                Err(reason) => break Err(lost(reason)),
            }
        };
        window.close();
        // Ends the threads: the reader sees its end, the writer a channel without senders.
        drop((desk, incoming));
        control.abort();
        ended
    })
}

/// Reads frames to the last one: the life of a thread.
fn read_all(input: &mut dyn Read, frames: &Sender<io::Result<Frame>>) {
    loop {
        let frame = frame::read(input);
        let last = !matches!(&frame, Ok(frame) if !matches!(frame.kind, Kind::Report | Kind::Failed));
        if frames.send(frame).is_err() || last {
            return;
        }
    }
}

/// Writes frames as they come, and a sign of life when none do. That such a sign was written is no sign of the agent's work.
fn write_all(output: &mut dyn Write, outgoing: &Receiver<Vec<u8>>, window: &SendWindow) {
    let mut alive = Vec::new();
    frame::put(&mut alive, Kind::Alive, &[]);
    loop {
        let written = match outgoing.recv_timeout(Duration::from_secs(ALIVE_SECONDS)) {
            Ok(bytes) => {
                let written = output.write_all(&bytes).and_then(|()| output.flush());
                // Also what cannot be written takes no room any more.
                window.written(bytes.capacity() + FRAME_BYTES);
                written
            }
            Err(RecvTimeoutError::Timeout) => output.write_all(&alive).and_then(|()| output.flush()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if written.is_err() {
            return;
        }
    }
}

enum Ended {
    Report(Box<RestoreReport>),
    Failed(String),
    Broken(io::Error),
    Interrupted,
}

/// Where the agent's frames are answered.
struct Desk<'a> {
    replica: &'a Replica,
    served: &'a Served,
    out: Sender<Vec<u8>>,
    window: &'a SendWindow,
    progress: &'a RestoreProgress,
    idle_timeout: Duration,
    /// Whether a row that the agent requested is damaged. It learns that in words only, and cannot count it.
    has_met_damage: bool,
}

impl Desk<'_> {
    /// Waits for a frame and takes it; returns how the restore ended, if it did.
    fn next(&mut self, incoming: &Receiver<io::Result<Frame>>) -> Result<Option<Ended>, Cause> {
        let mut heard = Instant::now();
        loop {
            if self.progress.interrupt.load(Ordering::Relaxed) {
                return Ok(Some(Ended::Interrupted));
            }
            match incoming.recv_timeout(TICK) {
                // Says nothing of what it does.
                Ok(Ok(frame)) if frame.kind == Kind::Alive => {}
                Ok(Ok(frame)) => return self.take(frame),
                Ok(Err(reason)) => return Ok(Some(Ended::Broken(reason))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("it ended".into()),
            }
            // What it was sent and has not read yet it cannot answer.
            heard = heard.max(self.window.last_written());
            if heard.elapsed() > self.idle_timeout {
                return Err(
                    format!("the agent has not reported on its work for {} s", heard.elapsed().as_secs()).into()
                );
            }
        }
    }

    /// Takes one frame of the agent.
    fn take(&mut self, frame: Frame) -> Result<Option<Ended>, Cause> {
        match frame.kind {
            Kind::Query => {
                let (number, query) = Query::decode(&frame.payload)?;
                if !self.wait_for_room()? {
                    return Ok(Some(Ended::Interrupted));
                }
                let mut bytes = Vec::new();
                frame::put(&mut bytes, Kind::Answer, &self.answer(query).encode(number));
                self.window.queued(bytes.capacity() + FRAME_BYTES);
                // A writer that is gone shows at the next read.
                let _ = self.out.send(bytes);
            }
            Kind::Taken => {
                self.window.taken(Decoder::new(&frame.payload).varint()?);
            }
            Kind::Figures => {
                let figures = Figures::decode(&frame.payload)?;
                self.progress.entries.store(figures.names, Ordering::Relaxed);
                self.progress.files.store(figures.files, Ordering::Relaxed);
                self.progress.written_bytes.store(figures.bytes, Ordering::Relaxed);
            }
            Kind::Report => {
                let report = serde_json::from_slice(&frame.payload)?;
                return Ok(Some(Ended::Report(Box::new(report))));
            }
            Kind::Failed => return Ok(Some(Ended::Failed(String::from_utf8_lossy(&frame.payload).into_owned()))),
            other => return Err(format!("the agent sent {other:?} in a restore").into()),
        }
        Ok(None)
    }

    /// Waits until the agent has read enough of what it requested; `false` if the restore is interrupted.
    fn wait_for_room(&self) -> Result<bool, Cause> {
        let began = Instant::now();
        while !self.window.wait_for_room(TICK) {
            if self.progress.interrupt.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let silent = began.max(self.window.last_written()).elapsed();
            if silent > self.idle_timeout {
                return Err(format!("the agent has not read what it requested for {} s", silent.as_secs()).into());
            }
        }
        Ok(true)
    }

    fn answer(&mut self, query: Query) -> Reply {
        match query {
            Query::Row(table, key) => match readable(table) {
                None => Reply::Failed("that table is not for agents".to_owned()),
                Some(table) => match self.served.row(table, key) {
                    Ok(Some(bytes)) if bytes.len() <= ANSWER_MAX_BYTES => Reply::Bytes(bytes),
                    Ok(Some(_)) => Reply::Failed("the row is too long to be sent".to_owned()),
                    Ok(None) => Reply::None,
                    Err(error) => {
                        self.has_met_damage |= matches!(&error, Refused::Catalog(error) if error.is_damage());
                        Reply::Failed(error.to_string())
                    }
                },
            },
            Query::Pack(pack, offset, length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > ANSWER_MAX_BYTES || offset > i64::MAX as u64 {
                    return Reply::Failed("that is too much at once".to_owned());
                }
                let read = self.replica.backend().read_at(&pack.key(), offset, length);
                match read.map(|mut bytes| self.served.blank(&pack, offset, &mut bytes).map(|()| bytes)) {
                    Ok(Ok(bytes)) => Reply::Bytes(bytes),
                    Ok(Err(refused)) => Reply::Failed(refused.to_string()),
                    Err(error) => Reply::Failed(error.to_string()),
                }
            }
        }
    }
}

/// Returns the table if an agent may read it: what a snapshot is made of, and nothing else.
fn readable(number: u8) -> Option<Table> {
    let table = Table::from_repr(number)?;
    matches!(table, Table::Chunks | Table::Packs | Table::Groups | Table::Objects).then_some(table)
}

/// Reads rows, and sends each to the agent on the way.
struct PrefetchingRows {
    served: Arc<Served>,
    out: Sender<Vec<u8>>,
    window: Arc<SendWindow>,
}

impl RemoteRows for PrefetchingRows {
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let unwanted = || CatalogError::from(ReadError::Unwanted(key));
        let row = self.served.row(table, key).map_err(|refused| match refused {
            Refused::Catalog(error) => error,
            Refused::Elsewhere => unwanted(),
        })?;
        if let Some(row) = row.as_ref().filter(|row| row.len() <= ANSWER_MAX_BYTES) {
            if !self.window.reserve_ahead(row.len()) {
                return Err(unwanted());
            }
            let mut payload = vec![table as u8];
            put_varint(&mut payload, key);
            payload.extend_from_slice(row);
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Prefetched, &payload);
            self.window.queued(bytes.capacity() + FRAME_BYTES);
            let _ = self.out.send(bytes);
        }
        Ok(row)
    }
}
