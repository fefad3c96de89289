//! Snapshot records: one immutable row a snapshot, a JSON object.
//!
//! JSON, because a record is read by people and by later versions far more often than it is written, and is a few hundred bytes among the
//! megabytes of a night. Everything large is in objects that the record names.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::damage::CatalogDamage;
use super::directory::{Directory, decode_root, encode_root};
use super::error::CatalogError;
use crate::coding::DecodeError;
use crate::ids::{GroupId, ObjectId, SourceId};

/// A record is at most so long, in bytes. Most of it are the numbers of the objects with link counts, and the names of owners.
pub const RECORD_MAX_BYTES: usize = 64 << 20;

/// What a snapshot holds, counted from its own entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Names, directories included, the root not.
    pub names: u64,
    /// Directories, the root not included.
    pub directories: u64,
    /// Link groups: inodes that are no directories.
    pub inodes: u64,
    /// Link groups that are regular files.
    pub files: u64,
    /// Link groups that are symbolic links.
    pub symlinks: u64,
    /// Link groups of other kinds.
    pub specials: u64,
    /// Sum of the sizes of all link groups, each counted once, in bytes.
    pub bytes: u64,
}

/// What a run did to make a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Names left out by exclude patterns.
    pub excluded_names: u64,
    /// `stat` calls made on names other than directories.
    pub stats: u64,
    /// Link groups that are as they were in the last snapshot.
    pub unchanged_inodes: u64,
    /// Link groups whose attributes changed and whose content did not.
    pub attribute_inodes: u64,
    /// Files whose content was read.
    pub read_files: u64,
    /// Bytes of content that were read.
    pub read_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Plain bytes of those chunks.
    pub new_bytes: u64,
    /// Bytes that they take in packs.
    pub stored_bytes: u64,
    /// Bytes that came from the source's host, 0 for a source on this one.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes that went there.
    #[serde(default)]
    pub sent_bytes: u64,
    /// How often the run waited for an answer from there.
    #[serde(default)]
    pub round_trips: u64,
    /// How often it connected.
    #[serde(default)]
    pub connections: u64,
    /// Wall time of the run, in milliseconds.
    pub elapsed_ms: u64,
}

/// Why the guard finds that a person should look at a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonKind {
    /// `sessions/` is gone, empty or unreadable, or no full session is left.
    SessionsGone,
    /// Sessions vanished before their usual age.
    SessionsVanished,
    /// Something vanished inside sessions that are still there.
    SessionIncomplete,
    /// There is no accounts.xml, or it names no session any more.
    AccountsMissing,
    /// accounts.xml names sessions that are not there.
    AccountsDangling,
    /// Too many files were changed in place.
    FilesChanged,
    /// Too many names are gone.
    NamesGone,
    /// The clock had jumped since the snapshot before.
    Clock,
    /// A tree of Zimbra's has device nodes, or files with a set-ID bit.
    Specials,
    /// The guard could not do its work.
    NotExamined,
    /// A kind that a later version knows.
    #[serde(other)]
    Other,
}

/// One reason of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectReason {
    /// Its kind, for programs.
    pub kind: ReasonKind,
    /// What was found, for people.
    pub text: String,
}

/// What the guard found when a snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Identifier of the snapshot that it was compared with: the last good one of the same source, if there was one.
    #[serde(default)]
    pub compared_with: Option<String>,
    /// Why the snapshot is suspect; empty for a good one.
    #[serde(default)]
    pub reasons: Vec<SuspectReason>,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Identifier: 32 hexadecimal digits.
    pub id: String,
    /// When the run began, in UTC.
    pub time: jiff::Timestamp,
    /// When the run ended, in UTC.
    pub finished: jiff::Timestamp,
    /// What was taken, as given on the command line (an absolute path for a local source).
    pub source: String,
    /// The source. Records of earlier versions lack it; what [`CatalogReader::snapshots`](super::reader::CatalogReader::snapshots) returns has it,
    /// merges followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<SourceId>,
    /// Name of the host that the run was on.
    pub host: String,
    /// Tags given by the user.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Exclude patterns in force.
    #[serde(default)]
    pub excludes: Vec<String>,
    /// The root directory, encoded as in a directory page, in hexadecimal.
    pub root: String,
    /// Numbers of the objects that hold the link counts.
    pub links: Vec<ObjectId>,
    /// Number of the object that lists the problems, if there were any.
    #[serde(default)]
    pub problems: Option<ObjectId>,
    /// How many problems there were.
    #[serde(default)]
    pub problem_count: u64,
    /// Names of the owners, by number, as the source knows them.
    #[serde(default)]
    pub users: BTreeMap<u32, String>,
    /// Names of the groups, by number, as the source knows them.
    #[serde(default)]
    pub groups: BTreeMap<u32, String>,
    /// Whether any inode has a POSIX access control list; unknown in records of earlier versions.
    #[serde(default)]
    pub has_acls: Option<bool>,
    /// What the guard found; unknown in records of earlier versions, which count as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Verdict>,
    /// What the snapshot holds.
    pub totals: Totals,
    /// What the run did.
    pub work: Work,
    /// BLAKE3 over the whole tree, in hexadecimal; see [`TreeDigest`].
    pub digest: String,
    /// Version of the program that made it.
    pub version: String,
}

impl SnapshotRecord {
    /// Returns the first eight digits of the identifier, for tables.
    pub fn short_id(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }

    /// Returns the key of the source in notes that a store keeps of each: its number. Earlier versions used its location, which no number looks like.
    pub fn source_key(&self) -> String {
        self.source_id.map_or_else(|| self.source.clone(), |id| id.to_string())
    }

    /// Returns why the guard found the snapshot suspect; nothing for a good one. Its marks say whether somebody has accepted it since.
    pub fn suspect_reasons(&self) -> &[SuspectReason] {
        self.guard.as_ref().map_or(&[], |verdict| &verdict.reasons)
    }

    /// Computes the identifier: the first 16 bytes of a BLAKE3 over the store's identifier, the time, the source and the digest.
    pub fn compute_id(&self, store_id: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [store_id, &self.time.to_string(), &self.source, &self.digest] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])
    }

    /// Returns the root directory.
    ///
    /// # Errors
    /// [`CatalogDamage::Root`] when the record is damaged.
    pub fn root_directory(&self) -> Result<Directory, CatalogError> {
        let bytes = HEXLOWER.decode(self.root.as_bytes()).map_err(|_| DecodeError("a root that is not hexadecimal"));
        let root = bytes.and_then(|bytes| decode_root(&bytes));
        root.map_err(|source| CatalogDamage::Root { id: self.id.clone(), source }.into())
    }

    /// Returns the hexadecimal form of a root directory, as the record holds it.
    pub fn root_of(directory: &Directory) -> String {
        HEXLOWER.encode(&encode_root(directory))
    }

    /// Encodes the record.
    ///
    /// # Errors
    /// Fails only when memory runs out.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// Fails when the bytes are no record, or too many.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotRecord, serde_json::Error> {
        if bytes.len() > RECORD_MAX_BYTES {
            return Err(serde::de::Error::custom("it is longer than any record"));
        }
        serde_json::from_slice(bytes)
    }
}

/// Computes a snapshot's digest: one BLAKE3 over the whole tree.
///
/// Fed depth first, each directory's entries in order of their names: for a link group the byte 0, the name (length as a varint, bytes), the group's
/// number and its row's digest (8 bytes each, little endian); for a directory the byte 1, the name and its attributes (encoded as a directory with
/// an empty inline body, length first), then its entries, then the byte 2. The root is fed as a directory with an empty name.
#[derive(Default)]
pub struct TreeDigest {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

/// The digest gathers this much before it hashes, for speed.
const DIGEST_BUFFER_BYTES: usize = 64 << 10;

impl TreeDigest {
    /// Starts a digest.
    pub fn new() -> TreeDigest {
        TreeDigest::default()
    }

    /// Adds a name of a link group.
    pub fn group(&mut self, name: &[u8], number: GroupId, row_digest: u64) {
        self.buffer.push(0);
        crate::coding::put_bytes(&mut self.buffer, name);
        self.buffer.extend_from_slice(&number.0.to_le_bytes());
        self.buffer.extend_from_slice(&row_digest.to_le_bytes());
        self.flush_if_full();
    }

    /// Enters a directory.
    pub fn enter(&mut self, name: &[u8], attributes: &super::directory::DirectoryAttributes) {
        let alone = Directory { attributes: attributes.clone(), body: super::directory::Body::Inline(Vec::new()) };
        self.buffer.push(1);
        crate::coding::put_bytes(&mut self.buffer, name);
        crate::coding::put_bytes(&mut self.buffer, &encode_root(&alone));
        self.flush_if_full();
    }

    /// Leaves the directory entered last.
    pub fn leave(&mut self) {
        self.buffer.push(2);
    }

    fn flush_if_full(&mut self) {
        if self.buffer.len() >= DIGEST_BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    /// Returns the digest in hexadecimal.
    pub fn finish(mut self) -> String {
        self.hasher.update(&self.buffer);
        self.hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as version 0.1.0 wrote it before there was a guard.
    const EARLY: &str = r#"{"id":"00","time":"2026-08-01T03:00:00Z","finished":"2026-08-01T03:00:01Z","source":"/a","host":"h","root":"00",
        "links":[],"totals":{"names":0,"directories":0,"inodes":0,"files":0,"symlinks":0,"specials":0,"bytes":0},"work":{"excluded_names":0,"stats":0,
        "unchanged_inodes":0,"attribute_inodes":0,"read_files":0,"read_bytes":0,"new_chunks":0,"new_bytes":0,"stored_bytes":0,"elapsed_ms":0},
        "digest":"d","version":"0.1.0"}"#;

    #[test]
    fn records_of_before_the_guard_decode_and_count_as_good() {
        let record = SnapshotRecord::decode(EARLY.as_bytes()).unwrap();
        assert_eq!((&record.guard, record.suspect_reasons()), (&None, &[][..]));
        assert!(!String::from_utf8(record.encode().unwrap()).unwrap().contains("guard"));
        let later = EARLY.replacen(
            "\"digest\"",
            r#""guard":{"compared_with":"ff","reasons":[{"kind":"of-a-later-version","text":"Something"}]},"digest""#,
            1,
        );
        let record = SnapshotRecord::decode(later.as_bytes()).unwrap();
        assert_eq!(record.suspect_reasons()[0].kind, ReasonKind::Other);
    }

    #[test]
    fn the_digest_distinguishes_structure() {
        let digest = |feed: &dyn Fn(&mut TreeDigest)| {
            let mut digest = TreeDigest::new();
            feed(&mut digest);
            digest.finish()
        };
        let attributes = super::super::directory::DirectoryAttributes::default();
        let inside = digest(&|digest| {
            digest.enter(b"d", &attributes);
            digest.group(b"f", GroupId(1), 2);
            digest.leave();
        });
        let beside = digest(&|digest| {
            digest.enter(b"d", &attributes);
            digest.leave();
            digest.group(b"f", GroupId(1), 2);
        });
        assert_ne!(inside, beside);
    }
}
