//! Device numbers of this host and the numbers of file systems in the scan, each way.

use std::sync::{Mutex, PoisonError};

use super::super::protocol::fields::NO_FILE_SYSTEM;
use crate::model::Stat;
use crate::source::scan::{Found, Listing};

/// What the scan reported for file systems so far. The scan's thread adds, the reading ones ask.
#[derive(Default)]
pub(super) struct Devices {
    by_number: Mutex<Vec<Option<u64>>>,
}

impl Devices {
    /// Notes the device numbers of a listing.
    pub(super) fn note(&self, listing: &Listing) {
        if listing.unreadable.is_none() {
            self.add(listing.file_system, listing.stat.dev);
        }
        for entry in &listing.entries {
            if let Found::Inode { file_system, stat: Some(stat), .. } = &entry.what
                && *file_system != listing.file_system
            {
                self.add(*file_system, stat.dev);
            }
        }
    }

    fn add(&self, file_system: u32, dev: u64) {
        let mut known = self.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        let at = file_system as usize;
        if known.len() <= at {
            known.resize(at + 1, None);
        }
        known[at] = Some(dev);
    }

    /// Returns a stat of the scan as it is on this host. One of a file system that nobody named fits no file.
    pub(super) fn to_host(&self, stat: &Stat) -> Stat {
        let known = self.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(stat.dev).unwrap_or(usize::MAX);
        Stat { dev: known.get(at).copied().flatten().unwrap_or(u64::MAX), ..*stat }
    }

    /// Returns a stat of this host as the scan has it.
    pub(super) fn to_scan(&self, stat: &Stat) -> Stat {
        let known = self.by_number.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|dev| *dev == Some(stat.dev));
        Stat { dev: at.map_or(NO_FILE_SYSTEM, |at| at as u64), ..*stat }
    }
}
