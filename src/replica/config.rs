//! `config.json`: what a store says of itself.
//!
//! A JSON object. The same fields without `check`, as compact JSON with sorted keys, are row 3 of the catalogue's table `meta`, and so in commit files and
//! checkpoints: `repair` makes a lost or damaged file again from there.
//!
//! | field | what |
//! | --- | --- |
//! | `format` | 1 or 2 |
//! | `id` | identifier of the store, 32 hexadecimal digits; the identifiers of its snapshots are made with it |
//! | `created` | when the store was made |
//! | `features` | from format 2 on: names of what a program must know to use the store |
//! | `id_since_snapshot` | only where a repair gave the store a new `id`: number of the first snapshot whose identifier is made with it |
//! | `check` | from format 2 on, whatever the format: the first 16 bytes of the BLAKE3 over all other fields, as the row of `meta` has them, in hexadecimal |
//!
//! Fields that this version does not know are kept. A format or a feature that it does not know is refused by every command, and nothing is changed.
//!
//! Order of writes: `init` writes the file last. Whoever opens a store for writing that is of format 1, or lacks a feature of this version, replaces the file
//! first (temporary file, sync, rename, sync of the directory), before any object is written. So a program that does not know what comes refuses the store
//! from then on, and *a crash leaves a store that is marked for more than is in it, which does no harm*. The row of `meta` follows with the next commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{ReplicaError, SettingsFault, io_error, refused};
use super::format::{CATALOG, CONFIG, FEATURES, FORMAT_VERSION};
use crate::access::write_durably;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::SnapshotNumber;

/// A larger file was not written by this program; it is not read further.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Bytes of the checksum.
const CHECK_BYTES: usize = 16;

/// What `config.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    /// Format version.
    pub format: u32,
    /// Identifier of the store: 32 hexadecimal digits.
    pub id: String,
    /// When the store was made.
    pub created: Timestamp,
    /// What a program must know to use the store.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<String>,
    /// Number of the first snapshot whose identifier is made with `id`, where a repair could not find out the `id` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_since_snapshot: Option<SnapshotNumber>,
    /// Fields of later versions.
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Serialize)]
struct Sealed<'a> {
    #[serde(flatten)]
    config: &'a StoreConfig,
    check: String,
}

/// Why bytes are no settings that this version can use.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// They are invalid.
    Damaged(SettingsFault),
    /// They are of a later format.
    Format(u32),
}

impl From<serde_json::Error> for Unusable {
    fn from(error: serde_json::Error) -> Unusable {
        Unusable::Damaged(error.into())
    }
}

impl Unusable {
    /// Returns the error for the store in a directory.
    pub(crate) fn of(self, path: &Path) -> ReplicaError {
        match self {
            Unusable::Damaged(fault) => ReplicaError::Config { path: path.join(CONFIG).display().to_string(), fault },
            Unusable::Format(found) => ReplicaError::Version { path: path.display().to_string(), found },
        }
    }
}

fn check_of(row: &[u8]) -> String {
    HEXLOWER.encode(&blake3::hash(row).as_bytes()[..CHECK_BYTES])
}

impl StoreConfig {
    /// Makes the settings of a store of this version with a new identifier.
    ///
    /// # Errors
    /// Fails when the system has no random bytes.
    pub(crate) fn new(created: Timestamp) -> Result<StoreConfig, ReplicaError> {
        let mut seed = [0u8; 16];
        let filled = getrandom::fill(&mut seed).map_err(io::Error::from);
        filled.map_err(io_error("Cannot get random bytes from", Path::new("the system")))?;
        let first = StoreConfig {
            format: 1,
            id: HEXLOWER.encode(&seed),
            created,
            features: BTreeSet::new(),
            id_since_snapshot: None,
            other: BTreeMap::new(),
        };
        Ok(first.raised())
    }

    /// Returns the settings as format 1 has them.
    pub(crate) fn of_format_1(&self) -> StoreConfig {
        StoreConfig { format: 1, features: BTreeSet::new(), ..self.clone() }
    }

    /// Reads and verifies the settings of the store in a directory.
    ///
    /// # Errors
    /// [`ReplicaError::NotAStore`] when there is no store; [`ReplicaError::Config`] when the file is damaged, or missing from a store;
    /// [`ReplicaError::Version`] and [`ReplicaError::Unsupported`] when a later version wrote it.
    pub fn read(path: &Path) -> Result<StoreConfig, ReplicaError> {
        let file = path.join(CONFIG);
        let mut bytes = Vec::new();
        let read = File::open(&file).and_then(|open| open.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_objects(path) => {
                return Err(Unusable::Damaged(SettingsFault::Missing).of(path));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(ReplicaError::NotAStore { path: path.display().to_string() });
            }
            Err(error) => return Err(refused(path, "Cannot read", &file)(error)),
            Ok(_) => {}
        }
        let config = StoreConfig::decode(&bytes).map_err(|error| error.of(path))?;
        config.refuse_unknown(path)?;
        Ok(config)
    }

    /// Replaces the file; what it says is durable on return.
    ///
    /// # Errors
    /// Fails when it cannot be written; the old one is still there then.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ReplicaError> {
        let file = path.join(CONFIG);
        let text = self.encode().map_err(|error| Unusable::from(error).of(path))?;
        write_durably(&file, &text).map_err(refused(path, "Cannot write", &file))
    }

    /// Decodes the bytes of the file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<StoreConfig, Unusable> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Unusable::Damaged(SettingsFault::TooLong));
        }
        let mut fields: BTreeMap<String, Value> = serde_json::from_slice(bytes)?;
        let stated = fields.remove("check");
        match &stated {
            Some(stated) if *stated != check_of(&serde_json::to_vec(&fields)?) => {
                return Err(Unusable::Damaged(SettingsFault::Checksum));
            }
            // Files of format 1 alone have none.
            None if fields.get("format") != Some(&Value::from(1)) => {
                return Err(Unusable::Damaged(SettingsFault::NoChecksum));
            }
            _ => {}
        }
        StoreConfig::from_fields(fields)
    }

    /// Decodes the row of `meta`.
    pub(crate) fn from_row(payload: &[u8]) -> Result<StoreConfig, Unusable> {
        let mut fields: BTreeMap<String, Value> = serde_json::from_slice(payload)?;
        // No row has one. A file made with it would have two checksums, and be refused.
        fields.remove("check");
        StoreConfig::from_fields(fields)
    }

    fn from_fields(fields: BTreeMap<String, Value>) -> Result<StoreConfig, Unusable> {
        // In a later format the other fields may be anything.
        let format = fields.get("format").and_then(Value::as_u64).and_then(|format| u32::try_from(format).ok());
        match format {
            None | Some(0) => return Err(Unusable::Damaged(SettingsFault::NoFormat)),
            Some(format) if format > FORMAT_VERSION => return Err(Unusable::Format(format)),
            Some(_) => {}
        }
        let config: StoreConfig = serde_json::from_value(Value::Object(Map::from_iter(fields)))?;
        if !is_id(config.id.as_bytes()) {
            return Err(Unusable::Damaged(SettingsFault::Id));
        }
        Ok(config)
    }

    /// Encodes the row of `meta`.
    pub(crate) fn to_row(&self) -> serde_json::Result<Vec<u8>> {
        let fields: BTreeMap<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        serde_json::to_vec(&fields)
    }

    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        // A file of format 1 is as that format has it.
        if self.format == 1 {
            return serde_json::to_vec_pretty(self);
        }
        serde_json::to_vec_pretty(&Sealed { config: self, check: check_of(&self.to_row()?) })
    }

    /// Refuses features that this version does not know.
    pub(crate) fn refuse_unknown(&self, path: &Path) -> Result<(), ReplicaError> {
        let unknown: Vec<&str> =
            self.features.iter().map(String::as_str).filter(|name| !FEATURES.contains(name)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(ReplicaError::Unsupported { path: path.display().to_string(), features: unknown.join(", ") })
    }

    /// Returns the settings with the format and the features of this version.
    pub(crate) fn raised(&self) -> StoreConfig {
        let mut raised = self.clone();
        raised.format = FORMAT_VERSION;
        raised.features.extend(FEATURES.map(str::to_owned));
        raised
    }

    /// Returns the settings as they must be given what the catalogue's row says. They may be ahead of it by what was raised since its last commit, and in
    /// nothing else.
    pub(crate) fn merged(&self, row: &StoreConfig) -> StoreConfig {
        let mut merged = row.clone();
        merged.format = row.format.max(self.format);
        merged.features.extend(self.features.iter().cloned());
        merged.id_since_snapshot = row.id_since_snapshot.or(self.id_since_snapshot);
        self.other.iter().for_each(|(name, value)| {
            merged.other.entry(name.clone()).or_insert_with(|| value.clone());
        });
        merged
    }

    /// Returns whether a snapshot's identifier is made with the store's, or is from before the store had that.
    pub(crate) fn is_of(&self, number: SnapshotNumber, record: &SnapshotRecord) -> bool {
        number < self.id_since_snapshot.unwrap_or_default() || record.compute_id(&self.id) == record.id
    }
}

/// Returns whether bytes are an identifier of a store.
pub(crate) fn is_id(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn object_directories(path: &Path) -> [PathBuf; 3] {
    ["packs", "commits", "checkpoints"].map(|name| path.join(name))
}

/// Returns whether a directory without settings holds objects of a store.
fn has_objects(path: &Path) -> bool {
    object_directories(path).iter().any(|each| fs::read_dir(each).is_ok_and(|mut listing| listing.next().is_some()))
}

/// Returns whether a directory is evidently that of a store, objects or not.
pub(crate) fn is_like_store(path: &Path) -> bool {
    path.join(CATALOG).is_file() || object_directories(path).iter().any(|each| each.is_dir())
}

/// Returns when the oldest object of a store was written.
pub(crate) fn oldest_object(path: &Path) -> Option<Timestamp> {
    let entries = |directory: &Path| -> Vec<PathBuf> {
        let listing = fs::read_dir(directory).into_iter().flatten().flatten();
        listing.map(|entry| entry.path()).collect()
    };
    let below = |each: &Path| {
        entries(each).into_iter().flat_map(|entry| if entry.is_dir() { entries(&entry) } else { vec![entry] })
    };
    let files = object_directories(path).into_iter().flat_map(|each| below(&each).collect::<Vec<_>>());
    let times = files.filter_map(|file| Timestamp::try_from(fs::metadata(file).ok()?.modified().ok()?).ok());
    times.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StoreConfig {
        StoreConfig {
            format: 2,
            id: "00112233445566778899aabbccddeeff".to_owned(),
            created: "2026-11-26T01:02:03Z".parse().unwrap(),
            features: FEATURES.map(str::to_owned).into(),
            id_since_snapshot: None,
            other: BTreeMap::new(),
        }
    }

    /// A failure here means that stores made before would be called damaged.
    #[test]
    fn the_bytes_are_as_documented() {
        let row = br#"{"created":"2026-11-26T01:02:03Z","features":["condemned","packs-2","sources"],"format":2,"id":"00112233445566778899aabbccddeeff"}"#;
        assert_eq!(String::from_utf8(sample().to_row().unwrap()).unwrap(), String::from_utf8_lossy(row));
        let file: Value = serde_json::from_slice(&sample().encode().unwrap()).unwrap();
        assert_eq!(file["check"], HEXLOWER.encode(&blake3::hash(row).as_bytes()[..16]));
        assert_eq!(StoreConfig::decode(&sample().encode().unwrap()).unwrap(), sample());
        assert_eq!(StoreConfig::from_row(row).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_reported() {
        let file = sample().encode().unwrap();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                let found = StoreConfig::decode(&bad);
                assert!(matches!(found, Err(Unusable::Damaged(_))), "bit {bit} of byte {at}: {found:?}");
            }
            assert!(matches!(StoreConfig::decode(&file[..at]), Err(Unusable::Damaged(_))), "cut at {at}");
        }
    }

    #[test]
    fn format_1_is_read_as_it_is_and_raised_to_this_version() {
        let text = br#"{ "format": 1, "id": "00112233445566778899aabbccddeeff", "created": "2026-11-26T01:02:03Z" }"#;
        let first = StoreConfig::decode(text).unwrap();
        assert_eq!((first.format, first.features.len()), (1, 0));
        assert_eq!(first.raised(), sample());
        assert_eq!(sample().raised(), sample());
        let written = String::from_utf8(first.encode().unwrap()).unwrap();
        assert!(!written.contains("check") && !written.contains("features"), "{written}");
    }

    #[test]
    fn later_formats_features_and_fields() {
        let mut later = sample();
        later.other.insert("zone".to_owned(), Value::from(vec![1, 2]));
        assert_eq!(StoreConfig::decode(&later.encode().unwrap()).unwrap(), later);
        assert!(later.refuse_unknown(Path::new("/s")).is_ok());
        later.features.extend(["tiers".to_owned(), "keys".to_owned()]);
        let refused = later.refuse_unknown(Path::new("/s")).unwrap_err().to_string();
        assert!(refused.contains("keys, tiers") && refused.contains("/s"), "{refused}");
        let mut fields: BTreeMap<String, Value> = serde_json::from_slice(&sample().to_row().unwrap()).unwrap();
        fields.insert("format".to_owned(), Value::from(3));
        fields.insert("features".to_owned(), Value::from("another form"));
        let check = check_of(&serde_json::to_vec(&fields).unwrap());
        fields.insert("check".to_owned(), Value::from(check));
        let found = StoreConfig::decode(&serde_json::to_vec(&fields).unwrap());
        assert!(matches!(found, Err(Unusable::Format(3))), "{found:?}");
    }

    #[test]
    fn the_row_of_the_catalogue_may_be_behind_and_not_different() {
        let row = StoreConfig { format: 1, features: BTreeSet::new(), ..sample() };
        assert_eq!(sample().merged(&row), sample());
        assert_eq!(row.merged(&sample()), sample());
        let other = StoreConfig { id: "ff".repeat(16), ..sample() };
        assert_eq!(other.merged(&sample()), sample());
    }
}
