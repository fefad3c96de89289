//! A report of a store as one HTML page that needs nothing else: no network, no further files.
//!
//! Whoever calls gathers the [`Report`]; [`write()`] only puts it down. Every text is escaped, and the page's own policy forbids it to load anything.
//! Without scripts everything is shown; a script adds the search.

mod charts;
mod page;

use std::io::{self, BufWriter, Write};
use std::path::Path;

use askama::Template;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::access::Replacement;
use crate::figures::count;
use crate::zimbra::account::RestoreState;
use page::Page;

/// How a night ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NightState {
    /// All is well.
    Complete,
    /// Some files could not be read.
    Problems,
    /// A person should look: sessions vanished, less can be restored of accounts, or zmbackup seems to have stopped.
    Attention,
}

impl NightState {
    fn class(self) -> &'static str {
        match self {
            NightState::Complete => "good",
            NightState::Problems => "warn",
            NightState::Attention => "bad",
        }
    }

    fn words(self) -> &'static str {
        match self {
            NightState::Complete => "complete",
            NightState::Problems => "with problems",
            NightState::Attention => "needs attention",
        }
    }
}

/// One snapshot.
#[derive(Clone, Debug)]
pub struct Night {
    /// First digits of the snapshot's identifier.
    pub id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// How it ended.
    pub state: NightState,
    /// What it is about it, in words.
    pub remark: String,
    /// Bytes of all its inodes, each counted once.
    pub source_bytes: u64,
    /// Bytes of chunks that it added, before compression.
    pub new_bytes: u64,
    /// Bytes that it added to the packs.
    pub stored_bytes: u64,
}

/// One session across the snapshots.
#[derive(Clone, Debug)]
pub struct SessionBar {
    /// Its label.
    pub label: String,
    /// Whether it is a full one.
    pub is_full: bool,
    /// When it started.
    pub start: Timestamp,
    /// The first snapshot with it.
    pub appeared: Timestamp,
    /// The last snapshot with it.
    pub last_seen: Timestamp,
    /// The first snapshot without it.
    pub vanished: Option<Timestamp>,
    /// Why it should not have vanished.
    pub unexpected: Option<String>,
}

/// One account of the newest snapshot.
#[derive(Clone, Debug)]
pub struct AccountRow {
    /// Its address.
    pub email: String,
    /// What can be restored of it.
    pub state: RestoreState,
    /// Its newest full.
    pub newest_full: String,
    /// The times to which it can be restored.
    pub intervals: Vec<(Timestamp, Timestamp)>,
    /// What is missing, in words.
    pub missing: Vec<String>,
    /// The snapshot in which it was last up to date, if it is not now.
    pub last_up_to_date: Option<String>,
}

impl AccountRow {
    fn class(&self) -> &'static str {
        match self.state {
            RestoreState::UpToDate => "good",
            RestoreState::WithGaps | RestoreState::Behind => "warn",
            RestoreState::Lost => "bad",
        }
    }
}

/// Something that vanished or broke between two snapshots.
#[derive(Clone, Debug)]
pub struct Event {
    /// The snapshot that shows it.
    pub time: Timestamp,
    /// Whether a person should look at it.
    pub is_bad: bool,
    /// What it was, in words.
    pub text: String,
}

/// What a page shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// When it was made.
    pub made: Timestamp,
    /// The zone in which times are shown.
    pub zone: TimeZone,
    /// What is replicated.
    pub source: String,
    /// Directory of the store.
    pub store: String,
    /// Bytes that the packs take.
    pub pack_bytes: u64,
    /// The snapshots, oldest first.
    pub nights: Vec<Night>,
    /// The sessions, by start.
    pub sessions: Vec<SessionBar>,
    /// The accounts, by address.
    pub accounts: Vec<AccountRow>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
    /// What is odd about the newest snapshot's tree.
    pub remarks: Vec<String>,
}

impl Report {
    fn day(&self, time: &Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d").to_string()
    }

    fn minute(&self, time: &Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M").to_string()
    }

    fn account_count(&self) -> String {
        count(self.accounts.len() as u64)
    }

    fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or("the local zone of the host that made the report")
    }
}

/// Mode of a new page: it has addresses in it.
const MODE: u32 = 0o640;

/// Writes the page beside its place and moves it there, so that a viewer never sees half a page. The file that it replaces hands on its mode unless one is
/// `wanted`. Returns its size.
///
/// # Errors
/// Fails when it cannot be written; the old page stays then.
pub fn write_file(report: &Report, path: &Path, wanted: Option<u32>) -> io::Result<u64> {
    let mut out = BufWriter::new(Replacement::beside_store(path, wanted, MODE)?);
    write(report, &mut out)?;
    let new = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let bytes = new.length()?;
    new.finish()?;
    Ok(bytes)
}

/// Writes the page.
///
/// # Errors
/// Fails when `out` does.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    Page { report }.write_into(out)
}
