//! How the last nightly run of each source ended, kept with the store: a failed night leaves no other trace there, and another source's good night must not
//! erase it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::write_durably;
use crate::cache_file;
use crate::flock::{Hold, acquire};
use crate::ids::SourceId;

/// What is reported of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFigures {
    /// When it began.
    pub started: Timestamp,
    /// Seconds of waiting for zmbackup.
    pub settle_seconds: f64,
    /// Seconds of waiting for another run.
    pub lock_seconds: f64,
    /// Seconds of the snapshot.
    pub snapshot_seconds: f64,
    /// Seconds of finding out what can be restored.
    pub accounts_seconds: f64,
    /// Seconds of the prune.
    pub prune_seconds: f64,
    /// Whether a hook failed.
    pub hook_failed: bool,
}

/// How long another night may take to note its end.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// So many nights are kept, the latest: of places that are no source any more, or never were one, nothing else goes.
const NIGHTS_MAX: usize = 1000;

/// How a nightly run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastNight {
    /// Number of the source, once the store has a snapshot of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<SourceId>,
    /// Where the source is; `None` when that is not known: no source was named, or an earlier version noted the night.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// When it ended.
    pub finished: Timestamp,
    /// Its exit code.
    pub exit_code: u8,
    /// What happened, in a line.
    pub message: String,
    /// What it took; earlier versions did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<RunFigures>,
}

/// The file: a list, or the one night that earlier versions noted.
#[derive(Deserialize)]
#[serde(untagged)]
enum Noted {
    All(Vec<LastNight>),
    One(LastNight),
}

fn path(store: &Path) -> PathBuf {
    cache_file::path(store, "last-night.json")
}

impl LastNight {
    /// Reads what is noted, the latest last; nothing if no night has ended yet.
    pub fn load_all(store: &Path) -> Vec<LastNight> {
        let noted = fs::read(path(store)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut nights = match noted {
            None => Vec::new(),
            Some(Noted::All(nights)) => nights,
            Some(Noted::One(night)) => vec![night],
        };
        nights.sort_by_key(|night| night.finished);
        nights
    }

    /// Notes it in place of the last one of its source, if there is a store.
    pub fn save(self, store: &Path) {
        let path = path(store);
        if !path.parent().is_some_and(Path::is_dir) {
            return;
        }
        // Nights of several sources may end at the same time. Where the lock cannot be had, one of them may be lost.
        let directory = path.parent().and_then(|directory| File::open(directory).ok());
        let _ = directory.as_ref().map(|directory| acquire(directory, Hold::Alone, LOCK_WAIT));
        let mut nights = LastNight::load_all(store);
        // A night that did nothing, because of a hold or another run, makes no failure good.
        if self.has_done_nothing() && nights.iter().any(|other| self.is_of_same_source(other) && other.has_failed()) {
            return;
        }
        // What an earlier version noted says of no source which it was.
        nights.retain(|other| !self.is_of_same_source(other) && !other.is_of_no_source());
        nights.push(self);
        let extra = nights.len().saturating_sub(NIGHTS_MAX);
        nights.drain(..extra);
        if let Ok(bytes) = serde_json::to_vec(&nights) {
            let _ = write_durably(&path, &bytes);
        }
    }

    fn is_of_same_source(&self, other: &LastNight) -> bool {
        let has_same_number = self.source_id.is_some() && self.source_id == other.source_id;
        has_same_number || (self.location.is_some() && self.location == other.location)
    }

    fn is_of_no_source(&self) -> bool {
        self.source_id.is_none() && self.location.is_none()
    }

    /// Returns whether another run had the store, or somebody held it.
    fn has_done_nothing(&self) -> bool {
        matches!(self.exit_code, 5 | 6)
    }

    /// Returns whether it failed or found damage. That another run had the store, or somebody held it, shows in other ways.
    pub fn has_failed(&self) -> bool {
        !matches!(self.exit_code, 0 | 3..=6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn night(source: Option<u64>, location: &str, exit_code: u8) -> LastNight {
        LastNight {
            source_id: source.map(SourceId),
            location: Some(location.to_owned()),
            finished: Timestamp::from_second(i64::from(exit_code)).unwrap(),
            exit_code,
            message: String::new(),
            figures: None,
        }
    }

    #[test]
    fn a_good_night_of_one_source_erases_no_bad_one_of_another() {
        let place = tempfile::tempdir().unwrap();
        let store = place.path();
        fs::create_dir(path(store).parent().unwrap()).unwrap();
        let codes = || LastNight::load_all(store).iter().map(|night| night.exit_code).collect::<Vec<_>>();
        let old = br#"{"finished":"2026-11-22T03:00:00Z","exit_code":1,"message":"of an earlier version"}"#;
        fs::write(path(store), old).unwrap();
        assert_eq!(codes(), [1]);
        night(Some(0), "a", 1).save(store);
        night(Some(1), "b", 3).save(store);
        assert_eq!(codes(), [1, 3], "what no source is known of has been succeeded");
        night(Some(1), "c", 0).save(store);
        assert_eq!(codes(), [0, 1], "by its number, wherever it is");
        // One that failed before the source had a number, and then succeeds.
        night(None, "new", 7).save(store);
        night(Some(2), "new", 4).save(store);
        assert_eq!(codes(), [0, 1, 4]);
        // What another run or a hold kept from its work makes no failure good, and succeeds what went well.
        night(Some(0), "a", 6).save(store);
        night(Some(2), "new", 5).save(store);
        assert_eq!(codes(), [0, 1, 5]);
    }
}
