//! The agent as the destination of a restore: writes below one directory what a snapshot elsewhere holds, by the same code as a restore on one host.
//!
//! Rows that came before their query are kept up to [`PREFETCHED_MAX_BYTES`], the oldest thrown away first.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Sender, bounded};
use data_encoding::HEXLOWER;

use super::AgentError;
use super::news::{News, unwritten_kib};
use super::outbox::Outbox;
use crate::catalog::reader::{CatalogReader, RemoteRows};
use crate::catalog::tables::Table;
use crate::catalog::{CatalogError, ReadError};
use crate::cause::{Cause, During};
use crate::coding::{Decoder, put_varint};
use crate::ids::DictionaryId;
use crate::mutex::lock;
use crate::remote::protocol::frame::{self, Frame, Kind};
use crate::remote::protocol::restore::{ANSWER_MAX_BYTES, Query, ROWS_AHEAD_BYTES, Reply, RestoreRequest};
use crate::restore::{RestoreOptions, RestoreProgress, RestoreReport, restore};
use crate::store::backend::{Backend, BackendError};
use crate::store::codec::{Dictionary, DictionarySet};
use crate::store::pack::PackId;
use crate::store::reader::ChunkReader;
use crate::view::{SnapshotView, ViewOptions};

/// The agent keeps less than a restore on the replica would: the mail server's memory is not its own.
const VIEW: ViewOptions = ViewOptions { cache_bytes: 8 << 20 };

/// Most bytes of rows that came before their query, as they count in memory: the run's window, of which small rows take several times their length.
const PREFETCHED_MAX_BYTES: usize = 6 * ROWS_AHEAD_BYTES;
/// What such a row takes beside its bytes.
const ROW_BYTES: usize = 128;
/// Most bytes of dictionaries. A store has one of 112 KiB, as a rule.
const DICTIONARIES_MAX_BYTES: usize = 64 << 20;

/// What waits for the other side's answers.
struct Exchange {
    outbox: Outbox,
    next: AtomicU64,
    /// `None` once the connection is gone.
    waiting: Mutex<Option<HashMap<u64, Sender<Reply>>>>,
    prefetched: Mutex<Prefetched>,
}

/// Rows that arrived before they were requested.
#[derive(Default)]
struct Prefetched {
    rows: HashMap<(u8, u64), Vec<u8>>,
    order: VecDeque<(u8, u64)>,
    bytes: usize,
}

impl Exchange {
    fn send(&self, query: Query) -> Result<crossbeam_channel::Receiver<Reply>, String> {
        let gone = || "the connection to the replica is gone".to_owned();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = bounded(1);
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(number, sender);
        self.outbox.send(Kind::Query, &query.encode(number)).map_err(|_| gone())?;
        Ok(receiver)
    }

    fn answer(&self, query: Query) -> Result<Option<Vec<u8>>, String> {
        match self.send(query)?.recv() {
            Ok(Reply::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Reply::None) => Ok(None),
            Ok(Reply::Failed(reason)) => Err(reason),
            Err(_) => Err("the connection to the replica is gone".to_owned()),
        }
    }

    /// Takes a prefetched row, and reports to the other side that there is room.
    fn take_prefetched(&self, table: u8, key: u64) -> Option<Vec<u8>> {
        let payload = {
            let mut prefetched = lock(&self.prefetched);
            let payload = prefetched.rows.remove(&(table, key))?;
            prefetched.bytes -= payload.len() + ROW_BYTES;
            payload
        };
        self.taken(payload.len());
        Some(payload)
    }

    fn taken(&self, bytes: usize) {
        let mut payload = Vec::new();
        put_varint(&mut payload, bytes as u64);
        let _ = self.outbox.send(Kind::Taken, &payload);
    }

    fn keep_prefetched(&self, payload: &[u8]) -> Result<(), AgentError> {
        let mut decoder = Decoder::new(payload);
        let place = (decoder.byte()?, decoder.varint()?);
        let row = decoder.take(decoder.remaining())?.to_vec();
        let mut thrown = 0;
        {
            let mut prefetched = lock(&self.prefetched);
            prefetched.bytes += row.len() + ROW_BYTES;
            if let Some(before) = prefetched.rows.insert(place, row) {
                prefetched.bytes -= before.len() + ROW_BYTES;
                thrown += before.len();
            }
            prefetched.order.push_back(place);
            while prefetched.bytes > PREFETCHED_MAX_BYTES || prefetched.order.len() > 1 << 20 {
                let Some(oldest) = prefetched.order.pop_front() else { break };
                if let Some(row) = prefetched.rows.remove(&oldest) {
                    prefetched.bytes -= row.len() + ROW_BYTES;
                    thrown += row.len();
                }
            }
        }
        if thrown > 0 {
            self.taken(thrown);
        }
        Ok(())
    }

    /// Takes frames until the other side ends.
    fn take_all(&self, input: &mut dyn Read, progress: &RestoreProgress) {
        while let Ok(Frame { kind, payload }) = frame::read(input) {
            let taken = match kind {
                Kind::Alive => Ok(()),
                Kind::Prefetched => self.keep_prefetched(&payload),
                Kind::Answer => Reply::decode(&payload).map_err(AgentError::from).map(|(number, reply)| {
                    let waiting = lock(&self.waiting).as_mut().and_then(|waiting| waiting.remove(&number));
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(reply);
                    }
                }),
                other => Err(AgentError::Protocol(format!("{other:?} in a restore").into())),
            };
            if taken.is_err() {
                break;
            }
        }
        // Without answers nothing more can be restored; what is complete stays.
        progress.interrupt.store(true, Ordering::Relaxed);
        *lock(&self.waiting) = None;
        self.outbox.break_off();
    }
}

impl RemoteRows for Exchange {
    fn row(&self, table: Table, key: u64) -> Result<Option<Vec<u8>>, CatalogError> {
        if let Some(row) = self.take_prefetched(table as u8, key) {
            return Ok(Some(row));
        }
        self.answer(Query::Row(table as u8, key)).map_err(|message| ReadError::Remote { message }.into())
    }
}

/// The packs of the replica. Nothing but reading is there.
struct FarPacks(Arc<Exchange>);

impl FarPacks {
    fn refuse<T>(operation: &'static str) -> Result<T, BackendError> {
        Err(BackendError::io(operation, "the packs of the replica", std::io::ErrorKind::Unsupported.into()))
    }
}

impl Backend for FarPacks {
    fn put(&self, _key: &str, _parts: &[&[u8]]) -> Result<(), BackendError> {
        FarPacks::refuse("write")
    }

    fn sync(&self) -> Result<(), BackendError> {
        FarPacks::refuse("sync")
    }

    fn read_into(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<(), BackendError> {
        let failed = |reason: String| BackendError::io("read", key, std::io::Error::other(reason));
        let pack = PackId::from_key(key).ok_or_else(|| BackendError::BadKey { key: key.to_owned() })?;
        // All queries first: the answers then come in one round trip.
        let mut replies = Vec::new();
        for (at, piece) in buffer.chunks_mut(ANSWER_MAX_BYTES).enumerate() {
            let offset = offset + (at * ANSWER_MAX_BYTES) as u64;
            let query = Query::Pack(pack, offset, piece.len() as u64);
            replies.push((self.0.send(query).map_err(failed)?, piece));
        }
        for (answer, piece) in replies {
            match answer.recv() {
                Ok(Reply::Bytes(bytes)) if bytes.len() == piece.len() => piece.copy_from_slice(&bytes),
                Ok(Reply::Bytes(_)) => return Err(failed("an answer of another length".to_owned())),
                Ok(Reply::None) => return Err(BackendError::NotFound { key: key.to_owned() }),
                Ok(Reply::Failed(reason)) => return Err(failed(reason)),
                Err(_) => return Err(failed("the connection to the replica is gone".to_owned())),
            }
        }
        Ok(())
    }

    fn size(&self, _key: &str) -> Result<Option<u64>, BackendError> {
        FarPacks::refuse("measure")
    }

    fn list(&self, _prefix: &str) -> Result<Vec<(String, u64)>, BackendError> {
        FarPacks::refuse("list")
    }

    fn delete(&self, _key: &str) -> Result<(), BackendError> {
        FarPacks::refuse("delete")
    }
}

/// Restores what the run requests into `root`.
pub(super) fn serve(mut input: impl Read + Send, mut output: impl Write + Send, root: &Path) -> Result<(), AgentError> {
    let (request, dictionaries) = match read_request(&mut input) {
        Ok(read) => read,
        Err(error) => {
            // The run shows why; that it is gone is no other reason.
            let _ = frame::write(&mut output, Kind::Failed, error.to_string().as_bytes());
            return Err(error);
        }
    };
    let exchange = Arc::new(Exchange {
        outbox: Outbox::default(),
        next: AtomicU64::new(0),
        waiting: Mutex::new(Some(HashMap::new())),
        prefetched: Mutex::default(),
    });
    let progress = RestoreProgress::default();
    std::thread::scope(|scope| {
        let (exchange, progress) = (&exchange, &progress);
        let mut news = News::default();
        let write = move || exchange.outbox.write_all(&mut output, 0, || news.of(progress, unwritten_kib));
        std::thread::Builder::new().spawn_scoped(scope, write)?;
        let take = move || exchange.take_all(&mut input, progress);
        if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, take) {
            exchange.outbox.fail(&format!("The agent cannot start a thread: {error}"));
            exchange.outbox.close();
            return Ok(());
        }
        let report = run(request, dictionaries, root, exchange, progress);
        let report = report.and_then(|report| Ok(serde_json::to_vec(&bounded_report(report))?));
        match report {
            Ok(encoded) => drop(exchange.outbox.send_compressed(Kind::Report, &encoded)),
            // Over the connection it is words.
            Err(error) => exchange.outbox.fail(&error.to_string()),
        }
        // The other side ends the connection when it has the report, and with it the threads.
        exchange.outbox.close();
        Ok(())
    })
}

fn read_request(input: &mut dyn Read) -> Result<(RestoreRequest, DictionarySet), AgentError> {
    let dictionaries = DictionarySet::new();
    let mut dictionary_bytes = 0;
    loop {
        let Frame { kind, payload } = frame::read(input)?;
        match kind {
            Kind::Alive => {}
            Kind::Dictionary => {
                let mut decoder = Decoder::new(&payload);
                let id = DictionaryId::decoded(decoder.varint32()?)?;
                let bytes = decoder.take(decoder.remaining())?.to_vec();
                dictionary_bytes += bytes.len() + ROW_BYTES;
                if dictionary_bytes > DICTIONARIES_MAX_BYTES {
                    return Err(AgentError::Protocol("more dictionaries than a store has".into()));
                }
                let made = Dictionary::new(id, bytes);
                dictionaries.insert(Arc::new(made)).map_err(|error| AgentError::Protocol(error.into()))?;
            }
            Kind::RestoreRequest => {
                let request = serde_json::from_slice(&payload).map_err(|error| {
                    AgentError::Protocol(During::new("a restore that this version does not know", error).into())
                })?;
                return Ok((request, dictionaries));
            }
            other => return Err(AgentError::Protocol(format!("{other:?} before a request").into())),
        }
    }
}

fn run(
    request: RestoreRequest,
    dictionaries: DictionarySet,
    root: &Path,
    exchange: &Arc<Exchange>,
    progress: &RestoreProgress,
) -> Result<RestoreReport, Cause> {
    let subtree =
        HEXLOWER.decode(request.subtree.as_bytes()).map_err(|error| During::new("The path of a restore", error))?;
    let rows: Arc<dyn RemoteRows> = Arc::clone(exchange) as Arc<dyn RemoteRows>;
    let catalog = Arc::new(CatalogReader::over_remote_rows(rows));
    let packs: Arc<dyn Backend> = Arc::new(FarPacks(Arc::clone(exchange)));
    let chunks = Arc::new(ChunkReader::new(packs, Arc::new(dictionaries)));
    let view = SnapshotView::open(catalog, chunks, request.record, VIEW)?;
    let options = RestoreOptions {
        overwrite: request.overwrite,
        delete: request.delete,
        numeric_ids: request.numeric_ids,
        dry_run: request.dry_run,
        no_specials: request.no_specials,
        // More threads than processors: each waits for answers now and then.
        threads: std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 8),
        protect: Vec::new(),
    };
    Ok(restore(&view, &subtree, root, &options, progress)?)
}

/// Cuts what a frame could not hold.
fn bounded_report(mut report: RestoreReport) -> RestoreReport {
    let mut room = frame::PAYLOAD_MAX / 4;
    report.problems.retain(|problem| {
        room = room.saturating_sub(problem.path.len() + problem.message.len() + 64);
        room > 0
    });
    report.deletions.retain(|path| {
        room = room.saturating_sub(path.len() + 8);
        room > 0
    });
    report
}
