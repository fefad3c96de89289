//! The drill: reading all that a restore of an account would read, from a tree as the vendor's tools see it.
//!
//! Files are read from their first to their last byte through the file system, so everything between the store and a restore takes part. Messages are
//! also checked against the vendor's own digest in their names, wherever they lie: individual files (compressed with gzip or not), entries of private zips, and
//! of shared zips. What several accounts share, such as redo logs, is read once.

mod digest;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::{DeflateDecoder, MultiGzDecoder};
use rawzip::{CompressionMethod, FileReader, ZipArchive, ZipArchiveEntryWayfinder};

use super::account::Account;
use super::analysis::Analysis;
use super::blob::{
    BlobName, DigestKey, SHA1_DIGEST_LEN, SHA256_DIGEST_LEN, last_component, shared_digest, shared_path,
};
use super::plan::RestorePlan;
use super::redo::RedoName;
use crate::layout::{ACCOUNTS_FILE, REDO_LOGS, SESSION_FILE, SHARED_BLOBS};
use digest::{Hasher, read_through};

/// Bytes of a central directory read at a time.
const DIRECTORY_BYTES: usize = 256 << 10;
/// First bytes of a file compressed with gzip.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Directories deeper than this below an account's are not those of a backup.
const DEPTH_MAX: usize = 64;
/// Faults kept of one account.
const FAULTS_KEPT: usize = 100;

/// What kind of fault a drill finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrillFaultKind {
    /// A file or directory that is needed is not there.
    Missing,
    /// A file cannot be read to its end.
    Unreadable,
    /// A message does not have the digest that its name says.
    WrongDigest,
    /// A zip or an entry of it is damaged.
    ZipDamaged,
}

/// One thing that a restore would stumble over.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DrillFault {
    /// Its kind.
    pub kind: DrillFaultKind,
    /// Path within the tree.
    pub path: String,
    /// What happened.
    pub reason: String,
}

/// What was read for one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Drilled {
    /// Files read, those shared with accounts before it not included.
    pub files: u64,
    /// Bytes of them; of messages in zips their plain bytes too.
    pub bytes: u64,
    /// Messages that have the digest that their names say.
    pub messages: u64,
    /// How many faults there are.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<DrillFault>,
}

impl Drilled {
    fn fault(&mut self, fault: DrillFault) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }
}

/// A shared zip, open, and where the messages of a session lie in such zips.
struct SharedZips {
    zips: Vec<(PathBuf, ZipArchive<FileReader>)>,
    entries: HashMap<DigestKey, (usize, ZipArchiveEntryWayfinder, bool)>,
}

/// Reads what restores would read, account by account.
pub struct Driller<'a> {
    root: &'a Path,
    analysis: &'a Analysis,
    interrupt: &'a AtomicBool,
    /// Files that more than one account needs, and what is wrong with them.
    shared_files: HashMap<PathBuf, Option<DrillFault>>,
    /// Of the session that was drilled last.
    shared_zips: Option<(usize, SharedZips)>,
    buffer: Vec<u8>,
    directory_buffer: Vec<u8>,
}

impl<'a> Driller<'a> {
    /// Prepares to read the tree at `root`, of which this is the analysis. Once `interrupt` is set, nothing more is read, and what is reported of the account
    /// at hand is incomplete.
    pub fn new(root: &'a Path, analysis: &'a Analysis, interrupt: &'a AtomicBool) -> Driller<'a> {
        Driller {
            root,
            analysis,
            interrupt,
            shared_files: HashMap::new(),
            shared_zips: None,
            buffer: Vec::new(),
            directory_buffer: Vec::new(),
        }
    }

    /// Reads all that the planned restore of an account reads.
    pub fn account(&mut self, account: &Account, plan: &RestorePlan) -> Drilled {
        let mut drilled = Drilled::default();
        self.common(&mut drilled, PathBuf::from(ACCOUNTS_FILE));
        for read in &plan.reads {
            let session = &self.analysis.sessions[read.session];
            let directory = self.session_path(&session.path);
            self.common(&mut drilled, directory.join(SESSION_FILE));
            self.redo_logs(&mut drilled, &directory, read.logs.iter().map(|range| (range.first, range.last)).collect());
            if read.is_full {
                let own = directory.join(session.account_path(&account.id));
                let mut wanted = Vec::new();
                self.directory(&mut drilled, &own, 0, &mut wanted);
                for digest in wanted {
                    self.shared_message(&mut drilled, read.session, &directory, &digest);
                }
            }
        }
        drilled
    }

    /// Returns a session's path within the tree; the analysis knows it from the snapshot's root.
    fn session_path(&self, path: &str) -> PathBuf {
        let tree = self.analysis.tree.trim_matches('/');
        PathBuf::from(path.strip_prefix(tree).unwrap_or(path).trim_start_matches('/'))
    }

    /// Reads a file that other accounts need too, unless it was read before.
    fn common(&mut self, drilled: &mut Drilled, path: PathBuf) {
        if !self.shared_files.contains_key(&path) {
            let fault = self.whole_file(drilled, &path, None).err();
            self.shared_files.insert(path.clone(), fault);
        }
        if let Some(Some(fault)) = self.shared_files.get(&path) {
            drilled.fault(fault.clone());
        }
    }

    fn redo_logs(&mut self, drilled: &mut Drilled, session: &Path, mut wanted: Vec<(u64, u64)>) {
        if wanted.is_empty() {
            return;
        }
        let directory = session.join(REDO_LOGS);
        let listing = match list(&self.root.join(&directory)) {
            Ok(listing) => listing,
            Err(error) => return drilled.fault(fault(&directory, &error)),
        };
        let mut logs: Vec<(u64, String)> = Vec::new();
        for name in listing {
            if let Some(log) = RedoName::parse(&name) {
                logs.push((log.sequence, name));
            }
        }
        logs.sort_unstable();
        for (sequence, name) in logs {
            if wanted.iter().any(|(first, last)| (*first..=*last).contains(&sequence)) {
                self.common(drilled, directory.join(name));
                // What is found need not be looked for any more.
                wanted.retain(|range| *range != (sequence, sequence));
            }
        }
    }

    /// Reads everything below a directory of an account; adds the digests that placeholders name to `wanted`.
    fn directory(&mut self, drilled: &mut Drilled, path: &Path, depth: usize, wanted: &mut Vec<Vec<u8>>) {
        let listing = match list(&self.root.join(path)) {
            Ok(listing) if depth < DEPTH_MAX => listing,
            Ok(_) => return,
            Err(error) => return drilled.fault(fault(path, &error)),
        };
        for name in listing {
            let below = path.join(&name);
            let kind = match fs::symlink_metadata(self.root.join(&below)) {
                Ok(kind) => kind,
                Err(error) => {
                    drilled.fault(fault(&below, &error));
                    continue;
                }
            };
            if kind.is_dir() {
                self.directory(drilled, &below, depth + 1, wanted);
                continue;
            }
            let blob = BlobName::parse(name.as_bytes());
            let outcome = match blob {
                Some(blob) if kind.len() == 0 && blob.is_shared() => {
                    wanted.push(blob.digest.to_vec());
                    Ok(())
                }
                Some(blob) => self.whole_file(drilled, &below, Some(blob.digest)),
                None if name.ends_with(".zip") => self.private_zip(drilled, &below, wanted),
                None => self.whole_file(drilled, &below, None),
            };
            if let Err(fault) = outcome {
                drilled.fault(fault);
            }
        }
    }

    /// Reads a file to its end; with a digest, holds its content against it.
    fn whole_file(&mut self, drilled: &mut Drilled, path: &Path, digest: Option<&[u8]>) -> Result<(), DrillFault> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |error: io::Error| fault(path, &error);
        let mut file = File::open(self.root.join(path)).map_err(failed)?;
        let (bytes, found) = read_through(&file, digest.map(Hasher::for_digest), &mut self.buffer).map_err(failed)?;
        drilled.files += 1;
        drilled.bytes += bytes;
        let Some((digest, found)) = digest.zip(found) else { return Ok(()) };
        if found.as_bytes() != digest && !self.is_gzip_of(&mut file, digest).map_err(failed)? {
            return Err(wrong_digest(path, &found));
        }
        drilled.messages += 1;
        Ok(())
    }

    /// Returns whether a file is compressed, as volumes of the mail store may be, and has the digest when it is not.
    fn is_gzip_of(&mut self, file: &mut File, digest: &[u8]) -> io::Result<bool> {
        let mut magic = [0; 2];
        file.seek(SeekFrom::Start(0))?;
        if file.read_exact(&mut magic).is_err() || magic != GZIP_MAGIC {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(0))?;
        let plain = read_through(MultiGzDecoder::new(file), Some(Hasher::for_digest(digest)), &mut self.buffer);
        // What cannot be decompressed is no compressed message.
        Ok(plain.is_ok_and(|(_, found)| found.is_some_and(|found| found.as_bytes() == digest)))
    }

    /// Reads a private zip, entry by entry.
    fn private_zip(&mut self, drilled: &mut Drilled, path: &Path, wanted: &mut Vec<Vec<u8>>) -> Result<(), DrillFault> {
        // Every byte, those between the entries too.
        self.whole_file(drilled, path, None)?;
        let archive = self.open_zip(path)?;
        let mut entries = Vec::new();
        self.for_each_entry(path, &archive, |name, size, entry, is_deflated| {
            if let Some(blob) = BlobName::parse(last_component(name)) {
                if size == 0 && blob.is_shared() {
                    wanted.push(blob.digest.to_vec());
                } else {
                    entries.push((blob.digest.to_vec(), entry, is_deflated));
                }
            }
        })?;
        for (digest, entry, is_deflated) in entries {
            if let Err(fault) = check_entry(path, &archive, entry, is_deflated, &digest, &mut self.buffer, drilled) {
                drilled.fault(fault);
            }
        }
        Ok(())
    }

    fn open_zip(&mut self, path: &Path) -> Result<ZipArchive<FileReader>, DrillFault> {
        let file = File::open(self.root.join(path)).map_err(|error| fault(path, &error))?;
        self.directory_buffer.resize(DIRECTORY_BYTES, 0);
        ZipArchive::from_file(file, &mut self.directory_buffer).map_err(|error| zip_fault(path, &error))
    }

    fn for_each_entry(
        &mut self,
        path: &Path,
        archive: &ZipArchive<FileReader>,
        mut visit: impl FnMut(&[u8], u64, ZipArchiveEntryWayfinder, bool),
    ) -> Result<(), DrillFault> {
        let mut records = archive.entries(&mut self.directory_buffer);
        while let Some(record) = records.next_entry().map_err(|error| zip_fault(path, &error))? {
            let is_deflated = record.compression_method() != CompressionMethod::STORE;
            visit(record.file_path().as_bytes(), record.uncompressed_size_hint(), record.wayfinder(), is_deflated);
        }
        Ok(())
    }

    /// Reads the message that a placeholder stands for.
    fn shared_message(&mut self, drilled: &mut Drilled, place: usize, session: &Path, digest: &[u8]) {
        if digest.len() != SHA1_DIGEST_LEN && digest.len() != SHA256_DIGEST_LEN {
            return;
        }
        let file = session.join(SHARED_BLOBS).join(shared_path(digest));
        if fs::symlink_metadata(self.root.join(&file)).is_ok() {
            if let Err(fault) = self.whole_file(drilled, &file, Some(digest)) {
                drilled.fault(fault);
            }
            return;
        }
        if self.shared_zips.as_ref().is_none_or(|(known, _)| *known != place) {
            let zips = self.index_shared_zips(drilled, &session.join(SHARED_BLOBS));
            self.shared_zips = Some((place, zips));
        }
        let found = self.shared_zips.as_ref().and_then(|(_, shared)| {
            let (zip, entry, is_deflated) = shared.entries.get(&DigestKey::of(digest))?;
            let (path, archive) = &shared.zips[*zip];
            Some(check_entry(path, archive, *entry, *is_deflated, digest, &mut self.buffer, drilled))
        });
        match found {
            Some(Ok(())) => {}
            Some(Err(fault)) => drilled.fault(fault),
            None => drilled.fault(DrillFault {
                kind: DrillFaultKind::Missing,
                path: file.display().to_string(),
                reason: "the shared message of a placeholder is missing".to_owned(),
            }),
        }
    }

    /// Finds the messages in a session's shared zips. A zip that cannot be used is a fault of the account that is first to need it.
    fn index_shared_zips(&mut self, drilled: &mut Drilled, directory: &Path) -> SharedZips {
        let mut shared = SharedZips { zips: Vec::new(), entries: HashMap::new() };
        let names = list(&self.root.join(directory)).unwrap_or_default();
        for path in names.iter().filter(|name| name.ends_with(".zip")).map(|name| directory.join(name)) {
            let place = shared.zips.len();
            let entries = &mut shared.entries;
            let outcome = self.open_zip(&path).and_then(|archive| {
                self.for_each_entry(&path, &archive, |name, _, entry, is_deflated| {
                    if let Some(digest) = shared_digest(name) {
                        entries.insert(DigestKey::of(digest), (place, entry, is_deflated));
                    }
                })?;
                Ok(archive)
            });
            match outcome {
                Ok(archive) => shared.zips.push((path, archive)),
                Err(fault) => {
                    shared.entries.retain(|_, (of, ..)| *of != place);
                    drilled.fault(fault);
                }
            }
        }
        shared
    }
}

/// Reads an entry to its end, and holds it against its checksum and its digest.
fn check_entry(
    path: &Path,
    archive: &ZipArchive<FileReader>,
    entry: ZipArchiveEntryWayfinder,
    is_deflated: bool,
    digest: &[u8],
    buffer: &mut Vec<u8>,
    drilled: &mut Drilled,
) -> Result<(), DrillFault> {
    let entry = archive.get_entry(entry).map_err(|error| zip_fault(path, &error))?;
    let hasher = Some(Hasher::for_digest(digest));
    let read = if is_deflated {
        read_through(entry.verifying_reader(DeflateDecoder::new(entry.reader())), hasher, buffer)
    } else {
        read_through(entry.verifying_reader(entry.reader()), hasher, buffer)
    };
    // An error of the system is no damage of the zip.
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(_) => fault(path, &error),
        None => zip_fault(path, &error),
    };
    let (bytes, found) = read.map_err(failed)?;
    drilled.bytes += bytes;
    match found {
        Some(found) if found.as_bytes() != digest => Err(wrong_digest(path, &found)),
        _ => {
            drilled.messages += 1;
            Ok(())
        }
    }
}

/// Lists a directory in order of names. Names that are not UTF-8 are none of the vendor's.
fn list(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn fault(path: &Path, error: &io::Error) -> DrillFault {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => DrillFaultKind::Missing,
        _ => DrillFaultKind::Unreadable,
    };
    DrillFault { kind, path: path.display().to_string(), reason: error.to_string() }
}

fn zip_fault(path: &Path, error: &impl std::fmt::Display) -> DrillFault {
    DrillFault { kind: DrillFaultKind::ZipDamaged, path: path.display().to_string(), reason: error.to_string() }
}

fn wrong_digest(path: &Path, found: &str) -> DrillFault {
    let reason = format!("the message has the digest {found}, which does not match its name");
    DrillFault { kind: DrillFaultKind::WrongDigest, path: path.display().to_string(), reason }
}
