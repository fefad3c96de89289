//! How the last nightly run ended, kept with the store: a failed night leaves no other trace there.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::write_durably;
use crate::cache_file;

/// How a nightly run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastNight {
    /// When it ended.
    pub finished: Timestamp,
    /// Its exit code.
    pub exit_code: u8,
    /// What happened, in a line.
    pub message: String,
}

fn path(store: &Path) -> PathBuf {
    cache_file::path(store, "last-night.json")
}

impl LastNight {
    /// Reads what is noted; nothing if no night has ended yet.
    pub fn load(store: &Path) -> Option<LastNight> {
        serde_json::from_slice(&fs::read(path(store)).ok()?).ok()
    }

    /// Notes it, if there is a store.
    pub fn save(&self, store: &Path) {
        let path = path(store);
        if path.parent().is_some_and(Path::is_dir)
            && let Ok(bytes) = serde_json::to_vec(self)
        {
            let _ = write_durably(&path, &bytes);
        }
    }

    /// Returns whether it failed or found damage. That another run had the store, or somebody held it, shows in other ways.
    pub fn has_failed(&self) -> bool {
        !matches!(self.exit_code, 0 | 3..=6)
    }
}
