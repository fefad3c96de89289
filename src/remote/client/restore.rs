//! The run's end of a restore on another host: answers the agent's questions, and sends rows ahead of them.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, unbounded};

use super::connect::{AgentChoice, ConnectError, connect};
use crate::catalog::CatalogError;
use crate::catalog::database::{DatabaseReader, Table};
use crate::catalog::reader::{CatalogReader, RowSource};
use crate::catalog::snapshot::to_hex;
use crate::coding::{Decoder, put_varint};
use crate::remote::protocol::frame::{self, Frame, Kind};
use crate::remote::protocol::messages::Figures;
use crate::remote::protocol::restore::{ANSWER_MAX_BYTES, Question, ROWS_AHEAD_BYTES, Reply, Wish};
use crate::remote::protocol::{ALIVE_SECONDS, Start, Task};
use crate::remote::transport::{Connection, Transport};
use crate::replica::Replica;
use crate::restore::{Overwrite, RestoreOptions, RestoreProgress, RestoreReport};
use crate::view::{Node, SnapshotView, ViewOptions};

/// How often the interrupt is looked at.
const TICK: Duration = Duration::from_millis(200);

/// What can end a restore on another host early. What was restored until then is complete, file by file.
#[derive(Debug, thiserror::Error)]
pub enum RemoteRestoreError {
    /// There is no agent to restore with.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error(
        "The connection to {host} was lost: {reason}. Files that were restored so far are complete; run the same command again to go on"
    )]
    Lost {
        /// The host.
        host: String,
        /// What happened.
        reason: String,
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
    #[error("Interrupted. Files that were restored so far are complete; run the same command again to go on")]
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
    let RemoteRestore { replica, view, subtree, agent, options } = *what;
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
    let opened = connect(transport, agent, &start, true)?;
    let Connection { mut input, mut output, control } = opened.connection;
    let lost = |reason: String| RemoteRestoreError::Lost { host: host.clone(), reason };
    let wish = wish(view, subtree, options).map_err(|error| lost(error.to_string()))?;
    let mut greeting = Vec::new();
    for dictionary in replica.dictionaries().all() {
        let mut payload = Vec::new();
        put_varint(&mut payload, u64::from(dictionary.id()));
        payload.extend_from_slice(dictionary.bytes());
        frame::put_compressed(&mut greeting, Kind::Dictionary, &payload);
    }
    frame::put_compressed(&mut greeting, Kind::Wish, &wish);
    output.write_all(&greeting).and_then(|()| output.flush()).map_err(|error| lost(error.to_string()))?;

    let rows = Arc::new(replica.database().read()?);
    let window = Window::default();
    let (out, outgoing) = unbounded::<Vec<u8>>();
    let (frames, incoming) = unbounded();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                match frame::read(&mut input) {
                    Ok(frame) => {
                        let last = matches!(frame.kind, Kind::Report | Kind::Failed);
                        if frames.send(Ok(frame)).is_err() || last {
                            return;
                        }
                    }
                    Err(error) => return drop(frames.send(Err(error.to_string()))),
                }
            }
        });
        scope.spawn(move || write_all(&mut output, &outgoing));
        let ahead = Arc::new(AheadRows { rows: Arc::clone(&rows), out: out.clone(), window: window.clone() });
        let (record, chunks) = (view.record().clone(), Arc::clone(view.chunks()));
        scope.spawn(move || {
            let catalog = Arc::new(CatalogReader::asking(ahead));
            if let Ok(view) = SnapshotView::open(catalog, chunks, record, ViewOptions { cache_bytes: 1 << 20 }) {
                // What cannot be read is told when it is asked for.
                let _ = walk_ahead(&view, subtree);
            }
        });
        let ended = loop {
            if progress.interrupt.load(Ordering::Relaxed) {
                break Err(RemoteRestoreError::Interrupted);
            }
            match incoming.recv_timeout(TICK) {
                Ok(Ok(frame)) => match take(replica, &rows, frame, &out, &window, progress) {
                    Ok(None) => {}
                    Ok(Some(Ended::Report(report))) => break Ok(*report),
                    Ok(Some(Ended::Failed(message))) => {
                        break Err(RemoteRestoreError::Failed { host: host.clone(), message });
                    }
                    Err(reason) => break Err(lost(reason)),
                },
                Ok(Err(reason)) => break Err(lost(format!("{reason}; {}", control.last_words()))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err(lost("it ended".to_owned())),
            }
        };
        window.close();
        drop(out);
        // Ends the threads: the reader sees its end, the writer a channel without senders.
        control.abort();
        ended
    })
}

fn wish(view: &SnapshotView, subtree: &[u8], options: &RestoreOptions) -> Result<Vec<u8>, serde_json::Error> {
    let overwrite = match options.overwrite {
        Overwrite::Never => "never",
        Overwrite::Changed => "changed",
        Overwrite::Always => "always",
    };
    serde_json::to_vec(&Wish {
        record: serde_json::to_value(view.record())?,
        subtree: to_hex(subtree),
        overwrite: overwrite.to_owned(),
        delete: options.delete,
        numeric_ids: options.numeric_ids,
        dry_run: options.dry_run,
    })
}

/// Writes frames as they come, and a sign of life when none do.
fn write_all(output: &mut dyn Write, outgoing: &crossbeam_channel::Receiver<Vec<u8>>) {
    loop {
        let bytes = match outgoing.recv_timeout(Duration::from_secs(ALIVE_SECONDS)) {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Timeout) => {
                let mut alive = Vec::new();
                frame::put(&mut alive, Kind::Alive, &[]);
                alive
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if output.write_all(&bytes).and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

enum Ended {
    Report(Box<RestoreReport>),
    Failed(String),
}

/// Takes one frame of the agent.
fn take(
    replica: &Replica,
    rows: &DatabaseReader,
    frame: Frame,
    out: &crossbeam_channel::Sender<Vec<u8>>,
    window: &Window,
    progress: &RestoreProgress,
) -> Result<Option<Ended>, String> {
    match frame.kind {
        Kind::Alive => {}
        Kind::Ask => {
            let (number, question) = Question::decode(&frame.payload).map_err(|error| error.to_string())?;
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Answer, &answer(replica, rows, question).encode(number));
            // A writer that is gone shows at the next read.
            let _ = out.send(bytes);
        }
        Kind::Taken => window.taken(Decoder::new(&frame.payload).varint().map_err(|error| error.to_string())?),
        Kind::Figures => {
            let figures = Figures::decode(&frame.payload).map_err(|error| error.to_string())?;
            progress.entries.store(figures.names, Ordering::Relaxed);
            progress.files.store(figures.files, Ordering::Relaxed);
            progress.written_bytes.store(figures.bytes, Ordering::Relaxed);
        }
        Kind::Report => {
            let report = serde_json::from_slice(&frame.payload).map_err(|error| error.to_string())?;
            return Ok(Some(Ended::Report(Box::new(report))));
        }
        Kind::Failed => return Ok(Some(Ended::Failed(String::from_utf8_lossy(&frame.payload).into_owned()))),
        other => return Err(format!("the agent sent {other:?} in a restore")),
    }
    Ok(None)
}

fn answer(replica: &Replica, rows: &DatabaseReader, question: Question) -> Reply {
    match question {
        Question::Row(table, key) => match readable(table) {
            None => Reply::Failed("that table is not for agents".to_owned()),
            Some(table) => match rows.get(table, key, |payload| Ok(payload.to_vec())) {
                Ok(Some(bytes)) if bytes.len() <= ANSWER_MAX_BYTES => Reply::Bytes(bytes),
                Ok(Some(_)) => Reply::Failed("the row is too long to travel".to_owned()),
                Ok(None) => Reply::None,
                Err(error) => Reply::Failed(error.to_string()),
            },
        },
        Question::Pack(pack, offset, length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > ANSWER_MAX_BYTES {
                return Reply::Failed("that is too much at once".to_owned());
            }
            match replica.backend().read_at(&pack.key(), offset, length) {
                Ok(bytes) => Reply::Bytes(bytes),
                Err(error) => Reply::Failed(error.to_string()),
            }
        }
    }
}

/// Returns the table if an agent may read it: what a snapshot is made of, and nothing else.
fn readable(number: u8) -> Option<Table> {
    let table = Table::from_number(number)?;
    matches!(table, Table::Chunks | Table::Packs | Table::Groups | Table::Objects).then_some(table)
}

/// How many bytes are sent ahead and not taken.
#[derive(Clone, Default)]
struct Window(Arc<(AtomicUsize, AtomicBool, Mutex<()>, Condvar)>);

impl Window {
    fn taken(&self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let _ = self
            .0
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |under_way| Some(under_way.saturating_sub(bytes)));
        self.0.3.notify_all();
    }

    fn close(&self) {
        self.0.1.store(true, Ordering::SeqCst);
        self.0.3.notify_all();
    }

    /// Waits for room; returns whether there will be any.
    fn enter(&self, bytes: usize) -> bool {
        let mut guard = self.0.2.lock().unwrap_or_else(PoisonError::into_inner);
        while self.0.0.load(Ordering::SeqCst) > ROWS_AHEAD_BYTES {
            if self.0.1.load(Ordering::SeqCst) {
                return false;
            }
            guard = self.0.3.wait_timeout(guard, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.0.0.fetch_add(bytes, Ordering::SeqCst);
        !self.0.1.load(Ordering::SeqCst)
    }
}

/// Reads rows, and sends each to the agent on the way.
struct AheadRows {
    rows: Arc<DatabaseReader>,
    out: crossbeam_channel::Sender<Vec<u8>>,
    window: Window,
}

impl RowSource for AheadRows {
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        let row = self.rows.get(table, key, |payload| Ok(payload.to_vec()))?;
        if let Some(row) = row.as_ref().filter(|row| row.len() <= ANSWER_MAX_BYTES) {
            if !self.window.enter(row.len()) {
                return Err(CatalogError::Missing { what: "need for row", number: key });
            }
            let mut payload = vec![table as u8];
            put_varint(&mut payload, key);
            payload.extend_from_slice(row);
            let mut bytes = Vec::new();
            frame::put(&mut bytes, Kind::Ahead, &payload);
            let _ = self.out.send(bytes);
        }
        Ok(row)
    }
}

/// Looks at everything that the agent will look at, in its order.
fn walk_ahead(view: &SnapshotView, subtree: &[u8]) -> Result<(), crate::view::ViewError> {
    let start = view.resolve(subtree)?;
    for entry in view.walk(start, Vec::new()) {
        let entry = entry?;
        if let Node::Group(number) = entry.node {
            let group = view.group(number)?;
            view.link_count(&entry.node)?;
            let catalog = view.catalog();
            catalog.for_each_segment(&group.content, |segment| {
                if let crate::catalog::group::Segment::Chunk { number, .. } = segment {
                    catalog.address(*number)?;
                }
                Ok::<_, CatalogError>(())
            })?;
        }
    }
    Ok(())
}
