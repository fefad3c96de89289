//! A page of the ledger: the accounts and sessions of one snapshot in short, and the file that it is kept in.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::account::{Account, AccountState, Fault, Interval, RestoreState, Severity, StateCounts, is_named};
use super::super::analysis::Analysis;
use super::super::cache::{seal, unseal};
use super::super::input::StoreError;
use super::super::site::{Session, SessionState};
use super::nightly_diff::NightlyDiff;
use crate::access::{self, write_durably};
use crate::cache_file;
use crate::layout::SessionKind;

/// Changes whenever the same snapshot would be judged in another way: pages of other editions are made anew.
const MAGIC: &[u8; 8] = b"ZMRLEDG1";
const DIRECTORY: &str = "ledger";

/// One account of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountEntry {
    /// Its identifier.
    pub id: String,
    /// Its address.
    pub email: String,
    /// Other addresses that sessions know it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_emails: Vec<String>,
    /// What can be restored of it.
    pub state: AccountState,
    /// Whether the accounts.xml at the snapshot's root knows it.
    pub in_accounts: bool,
    /// The first time to which it can be restored.
    pub from: Option<Timestamp>,
    /// The last one.
    pub to: Option<Timestamp>,
    /// How many things are missing or wrong.
    pub faults: u64,
    /// The gravest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gravest_fault: Option<Fault>,
    /// The directory into which an upgrade moved the tree that it is in; `None` for the snapshot's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// What is missing between the first time and the last; `None` in pages of earlier versions, which did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps: Option<Gaps>,
}

/// What of an account cannot be restored, though earlier and later times can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gaps {
    /// Times between those to which it can be restored, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<Interval>,
    /// Labels of the sessions of which something is missing, or behind which redo logs are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<String>,
}

impl Gaps {
    fn of(account: &Account) -> Gaps {
        let times = account.intervals.windows(2).map(|pair| Interval { from: pair[0].to, to: pair[1].from }).collect();
        let losses = account.faults.iter().filter(|fault| fault.severity > Severity::Notice);
        let mut sessions: Vec<String> = losses.filter_map(|fault| fault.session.clone()).collect();
        sessions.sort_unstable();
        sessions.dedup();
        Gaps { times, sessions }
    }
}

impl AccountEntry {
    fn new(account: &Account, tree: &str) -> AccountEntry {
        AccountEntry {
            state: account.state,
            // That of a tree that was moved aside says what was once.
            in_accounts: account.in_accounts && tree.is_empty(),
            from: account.intervals.first().map(|interval| interval.from),
            to: account.intervals.last().map(|interval| interval.to),
            faults: account.faults.len() as u64,
            gravest_fault: account.gravest_fault().cloned(),
            id: account.id.clone(),
            email: account.email.clone(),
            other_emails: account.other_emails.clone(),
            tree: (!tree.is_empty()).then(|| tree.to_owned()),
            gaps: Some(Gaps::of(account)),
        }
    }

    /// Returns what can be restored of it, in the words that people read.
    pub fn restore_state(&self) -> RestoreState {
        RestoreState::of(self.state, self.gravest_fault.as_ref())
    }

    /// Returns whether everything can be restored.
    pub fn is_whole(&self) -> bool {
        self.state == AccountState::Whole
    }

    /// Returns whether the text names the account: an address that it has or had, or its identifier, in any case.
    pub fn is_named(&self, text: &str) -> bool {
        is_named(text, &self.id, &self.email, &self.other_emails)
    }
}

/// One session of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// Its label.
    pub label: String,
    /// Full or incremental.
    pub kind: SessionKind,
    /// When it started.
    pub start: Timestamp,
    /// Its state.
    pub state: SessionState,
}

impl SessionEntry {
    fn new(session: &Session) -> SessionEntry {
        let Session { label, kind, start, state, .. } = session;
        SessionEntry { label: label.clone(), kind: *kind, start: *start, state: *state }
    }

    /// Returns whether a restore can use it.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, SessionState::Complete | SessionState::WithErrors | SessionState::Aborted)
    }
}

/// What one snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The accounts of the tree at the root, by address, and then those that only trees hold that an upgrade moved aside.
    pub accounts: Vec<AccountEntry>,
    /// The sessions of the tree at the root, oldest first.
    pub sessions: Vec<SessionEntry>,
    /// What the nightly run that took the snapshot reported of it.
    #[serde(rename = "told", default, skip_serializing_if = "Option::is_none")]
    pub nightly_diff: Option<NightlyDiff>,
    /// What kept a part of the snapshot from being looked at. Such a page says too little, and is not kept.
    #[serde(skip)]
    pub store_error: Option<StoreError>,
}

impl Page {
    /// Makes the page of what was found in the trees of a snapshot, the one at the root first.
    pub fn new<'a>(trees: impl IntoIterator<Item = &'a Analysis>) -> Page {
        let mut page = Page::default();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for Analysis { tree, sessions, accounts, store_error, .. } in trees {
            if page.store_error.is_none() {
                page.store_error.clone_from(store_error);
            }
            if tree.is_empty() {
                page.sessions = sessions.iter().map(SessionEntry::new).collect();
            }
            for account in accounts {
                let entry = AccountEntry::new(account, tree);
                match places.get(account.id.as_str()) {
                    None => {
                        places.insert(&account.id, page.accounts.len());
                        page.accounts.push(entry);
                    }
                    // The root's tree goes on from the moved ones, so that counts, whatever an older one still holds; of moved ones the best.
                    Some(at) => {
                        let known = &mut page.accounts[*at];
                        if known.tree.is_some() && entry.state < known.state {
                            *known = entry;
                        }
                    }
                }
            }
        }
        page
    }

    /// Returns whether there is anything of a mail server in the snapshot.
    pub fn is_zimbra(&self) -> bool {
        !self.accounts.is_empty() || !self.sessions.is_empty()
    }

    /// Counts the accounts by state.
    pub fn counts(&self) -> StateCounts {
        StateCounts::of(self.accounts.iter().map(|account| (account.state, account.restore_state())))
    }

    /// Returns the newest session that a restore can use, as of a moment. Where sessions are later than it, a clock was wrong when they began: they
    /// count only if there are no others.
    pub fn newest_usable(&self, moment: Timestamp) -> Option<&SessionEntry> {
        let usable = || self.sessions.iter().filter(|session| session.is_usable());
        let past = usable().filter(|session| session.start <= latest(moment));
        past.max_by_key(|session| session.start).or_else(|| usable().min_by_key(|session| session.start))
    }

    /// Returns the newest time to which an account can be restored, as of a moment; times later than it count as sessions do.
    pub fn newest_time(&self, moment: Timestamp) -> Option<Timestamp> {
        let times = || self.accounts.iter().filter_map(|account| account.to);
        times().filter(|time| *time <= latest(moment)).max().or_else(|| times().min())
    }

    /// Counts the sessions by state.
    pub fn session_counts(&self) -> BTreeMap<SessionState, u64> {
        let mut counts = BTreeMap::new();
        for session in &self.sessions {
            *counts.entry(session.state).or_insert(0) += 1;
        }
        counts
    }
}

/// Labels are in UTC, but hosts have local time for it at times: sessions may be later than the snapshot that holds them by this.
const ZONES: SignedDuration = SignedDuration::from_hours(24);

fn latest(moment: Timestamp) -> Timestamp {
    moment.saturating_add(ZONES).unwrap_or(Timestamp::MAX)
}

fn directory(store: &Path) -> PathBuf {
    cache_file::path(store, DIRECTORY)
}

/// Returns the place of a page.
pub(super) fn path(store: &Path, snapshot: &str) -> PathBuf {
    directory(store).join(snapshot)
}

/// Returns the page of a snapshot if it is kept, whole and of this edition.
pub(super) fn load(store: &Path, snapshot: &str) -> Option<Page> {
    let bytes = fs::read(path(store, snapshot)).ok()?;
    unseal(MAGIC, &bytes, |id| id == snapshot)
}

/// Keeps a page. It can be made again, so a store that cannot be written to is no error.
pub(super) fn save(store: &Path, snapshot: &str, page: &Page) {
    if let Some(bytes) = seal(MAGIC, snapshot, page)
        && directory(store).parent().is_some_and(|cache| access::create_directory(cache).is_ok())
        && access::create_directory(&directory(store)).is_ok()
    {
        let _ = write_durably(&path(store, snapshot), &bytes);
    }
}

/// Removes the pages of snapshots that are gone. What cannot be removed stays, and does no harm.
pub(super) fn tidy(store: &Path, has_snapshot: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(directory(store)).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_none_or(|name| !has_snapshot(name)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
