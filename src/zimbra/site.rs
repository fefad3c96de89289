//! The sessions of one tree of one snapshot, and its accounts.xml.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

use super::input::{StoreErrors, store_error};
use super::recent::Recent;
use super::redo::{NamedLogs, RedoLog, RedoLogs, RedoName, SequenceRange};
use crate::catalog::group::Content;
use crate::ids::GroupId;
use crate::layout::xml::{AccountStatus, ROOT, Reading, SessionFile, SessionItem, read_accounts, read_session};
use crate::layout::{
    ACCOUNTS_FILE, Label, REDO_LOGS, SESSION_ACCOUNTS, SESSION_FILE, SESSIONS, SessionKind, UNFINISHED, split_deleting,
};
use crate::model::Kind;
use crate::view::{DirectoryNode, FileInput, InputFailure, Node, SnapshotView, ViewError};

/// A session that was begun, or last moved, longer ago than this is no longer running.
const RUNNING_HOURS: i64 = 24;
/// Errors kept of one session.
const ERRORS_KEPT: usize = 10_000;

/// Where a session stands in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Under `sessions/`, finished.
    Sessions,
    /// Under `sessions/TO_DELETE-<label>`, half removed perhaps.
    Deleting,
    /// Under `tmp/` or `sessions_tmp/`.
    Unfinished,
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Finished, without errors.
    Complete,
    /// Finished; some accounts failed.
    WithErrors,
    /// It was aborted.
    Aborted,
    /// It has no session.xml that can be read, so no restore uses it.
    Invalid,
    /// It was being written when the snapshot was made.
    Running,
    /// It was never finished.
    Leftover,
    /// It was being deleted when the snapshot was made.
    Deleting,
}

impl SessionState {
    /// Returns the state in words.
    pub fn words(self) -> &'static str {
        match self {
            SessionState::Complete => "complete",
            SessionState::WithErrors => "with errors",
            SessionState::Aborted => "aborted",
            SessionState::Invalid => "invalid",
            SessionState::Running => "running",
            SessionState::Leftover => "leftover",
            SessionState::Deleting => "being deleted",
        }
    }
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its label: the directory's name, without `TO_DELETE-`.
    pub label: String,
    /// Path within the snapshot.
    pub path: String,
    /// Where it stands.
    pub place: Place,
    /// Full or incremental.
    pub kind: SessionKind,
    /// When it started: from the label, else from session.xml.
    pub start: Timestamp,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// Its state.
    pub state: SessionState,
    /// The release that wrote it.
    pub release: Option<String>,
    /// Version of its session.xml's format; any is read, as far as it says the same things in the same words.
    pub format_version: Option<String>,
    /// Accounts that it lists.
    pub accounts: u64,
    /// Accounts among them that were not backed up.
    pub failed: u64,
    /// Errors that it reports: address and message.
    pub errors: Vec<(String, String)>,
    /// The redo logs that it holds, as runs of sequence numbers.
    pub redo: Vec<SequenceRange>,
    /// Redo logs that its session.xml names and no session holds.
    pub redo_absent: Vec<SequenceRange>,
    /// What is odd about it, in words.
    pub remarks: Vec<String>,
    pub(super) directory: DirectoryNode,
    pub(super) file: Option<Arc<ParsedSession>>,
}

/// Levels above the accounts' directories where session.xml does not say.
const USUAL_DEPTH: u64 = 2;
/// More levels than this are not believed.
const DEPTH_MAX: u64 = 6;
/// Characters of an account's identifier that name one level.
const LEVEL_CHARACTERS: usize = 3;

impl Session {
    /// Returns how many levels of directories there are above those of the accounts.
    pub(super) fn depth(&self) -> u64 {
        let stated = self.file.as_ref().and_then(|parsed| parsed.file.depth);
        stated.filter(|depth| *depth <= DEPTH_MAX).unwrap_or(USUAL_DEPTH)
    }

    /// Returns the path of an account's directory below that of the session.
    pub fn account_path(&self, id: &str) -> String {
        let mut path = format!("{SESSION_ACCOUNTS}/");
        for level in 0..self.depth() as usize {
            path.push_str(id.get(LEVEL_CHARACTERS * level..LEVEL_CHARACTERS * (level + 1)).unwrap_or_default());
            path.push('/');
        }
        path + id
    }
}

/// Texts by number: addresses and identifiers recur in every session.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Names {
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, number);
        number
    }

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", |text| text)
    }
}

/// A session.xml, read.
#[derive(Debug)]
pub(super) struct ParsedSession {
    pub(super) file: SessionFile,
    pub(super) accounts: Vec<ListedAccount>,
    /// Addresses, lower-cased, and messages.
    pub(super) errors: Vec<(u32, String)>,
}

/// An account of a session.xml: 12 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListedAccount {
    pub(super) id: u32,
    /// Its address, lower-cased.
    pub(super) email: u32,
    pub(super) status: AccountStatus,
}

/// An account of accounts.xml: 12 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownAccount {
    pub(super) id: u32,
    pub(super) email: u32,
    pub(super) latest: Option<u32>,
}

/// An accounts.xml, read.
#[derive(Debug)]
pub(super) struct ParsedAccounts {
    pub(super) accounts: Vec<KnownAccount>,
    pub(super) reading: Reading,
}

/// XML files that were read, by their link groups: a file that does not change from snapshot to snapshot is read once.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) names: Names,
    sessions: Recent<GroupId, Arc<ParsedSession>>,
    accounts: Recent<GroupId, Arc<ParsedAccounts>>,
    /// Of the analysis under way.
    pub(super) store_errors: StoreErrors,
}

impl Files {
    /// Forgets what the last analyses did not use.
    pub(super) fn age(&mut self) {
        self.sessions.age();
        self.accounts.age();
    }

    fn session(&mut self, view: &SnapshotView, group: GroupId) -> Result<Arc<ParsedSession>, String> {
        if let Some(known) = self.sessions.get(&group) {
            return Ok(known);
        }
        let (names, mut accounts, mut errors) = (&mut self.names, Vec::new(), Vec::new());
        let failure = InputFailure::default();
        let file = read_session(FileInput::new(view, group, &failure), |item| match item {
            SessionItem::Account(account) => accounts.push(ListedAccount {
                id: names.number(&account.id),
                email: names.number(&account.email.to_lowercase()),
                status: account.status,
            }),
            SessionItem::Error(error) => {
                if errors.len() < ERRORS_KEPT {
                    errors.push((names.number(&error.email.to_lowercase()), error.message));
                }
            }
        });
        let is_read = self.note(&failure);
        let parsed = Arc::new(ParsedSession { file: file.map_err(|error| error.to_string())?, accounts, errors });
        if is_read {
            self.sessions.insert(group, Arc::clone(&parsed));
        }
        Ok(parsed)
    }

    fn accounts(&mut self, view: &SnapshotView, group: GroupId) -> Result<Arc<ParsedAccounts>, String> {
        if let Some(known) = self.accounts.get(&group) {
            return Ok(known);
        }
        let (names, mut accounts) = (&mut self.names, Vec::new());
        let failure = InputFailure::default();
        let reading = read_accounts(FileInput::new(view, group, &failure), |entry| {
            accounts.push(KnownAccount {
                id: names.number(&entry.id),
                email: names.number(&entry.email),
                latest: entry.latest.map(|label| names.number(&label)),
            });
        });
        let is_read = self.note(&failure);
        let parsed = Arc::new(ParsedAccounts { accounts, reading: reading.map_err(|error| error.to_string())? });
        if is_read {
            self.accounts.insert(group, Arc::clone(&parsed));
        }
        Ok(parsed)
    }

    /// Notes an error of the store that a file met; returns whether there was none.
    fn note(&mut self, failure: &InputFailure) -> bool {
        store_error(failure).inspect_err(|error| self.store_errors.add(error)).is_ok()
    }
}

/// What a tree holds before anything of an account is looked at.
pub(super) struct Site {
    pub(super) sessions: Vec<Session>,
    pub(super) redo: RedoLogs,
    pub(super) accounts: Option<Arc<ParsedAccounts>>,
    /// What is odd about the tree, in words.
    pub(super) remarks: Vec<String>,
}

/// Reads the sessions and accounts.xml of the tree at a path of a snapshot.
pub(super) fn read_site(files: &mut Files, view: &SnapshotView, tree: &[u8]) -> Result<Site, ViewError> {
    let Node::Directory(root) = view.resolve(tree)? else {
        return Err(ViewError::NotADirectory { path: crate::view::display_path(tree) });
    };
    let mut remarks = Vec::new();
    let accounts = match view.lookup(&root, ACCOUNTS_FILE.as_bytes())? {
        Some(Node::Group(group)) => match files.accounts(view, group) {
            Ok(parsed) => {
                if let Some(remark) = parsed.reading.remark(ROOT) {
                    remarks.push(format!("accounts.xml: {remark}. {} accounts could be read", parsed.accounts.len()));
                }
                Some(parsed)
            }
            Err(reason) => {
                remarks.push(format!("accounts.xml cannot be read: {reason}"));
                None
            }
        },
        _ => {
            remarks.push(
                "There is no accounts.xml, and without it accounts cannot be restored by name. Take one from another snapshot, or use accounts.xml.old"
                    .to_owned(),
            );
            None
        }
    };
    let mut sessions = Vec::new();
    match view.lookup(&root, SESSIONS.as_bytes())? {
        Some(Node::Directory(finished)) => {
            read_sessions_below(files, view, &finished, &join(tree, SESSIONS), false, &mut sessions)?;
        }
        Some(Node::Group(group)) if view.group(group)?.attributes.kind == Kind::Symlink => {
            let target = crate::view::display_path(&view.readlink(group)?);
            remarks.push(format!(
                "sessions is a symbolic link to {target}, and the snapshot holds nothing of what is there"
            ));
        }
        _ => remarks.push("There is no directory sessions/: this is not a backup tree, or an empty one".to_owned()),
    }
    for name in UNFINISHED {
        if let Some(Node::Directory(unfinished)) = view.lookup(&root, name.as_bytes())? {
            read_sessions_below(files, view, &unfinished, &join(tree, name), true, &mut sessions)?;
        }
    }
    sessions.sort_by(|a, b| (a.start, &a.path).cmp(&(b.start, &b.path)));
    let redo = read_redo_logs(view, &mut sessions)?;
    Ok(Site { sessions, redo, accounts, remarks })
}

/// Reads the sessions of the tree at a path of a snapshot, oldest first, and what is odd about the tree, in words.
///
/// # Errors
/// Fails when the snapshot has no such directory, or the store cannot be read.
pub fn read_sessions(view: &SnapshotView, tree: &[u8]) -> Result<(Vec<Session>, Vec<String>), ViewError> {
    let site = read_site(&mut Files::default(), view, tree)?;
    Ok((site.sessions, site.remarks))
}

fn join(directory: &[u8], name: &str) -> String {
    let directory = String::from_utf8_lossy(directory);
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn read_sessions_below(
    files: &mut Files,
    view: &SnapshotView,
    directory: &DirectoryNode,
    path: &str,
    unfinished: bool,
    out: &mut Vec<Session>,
) -> Result<(), ViewError> {
    for entry in view.list(directory)? {
        let entry = entry?;
        let (Node::Directory(session), Ok(name)) = (&entry.node, std::str::from_utf8(&entry.name)) else { continue };
        let (is_deleting, label) = split_deleting(name);
        let place = match (unfinished, is_deleting) {
            (true, _) => Place::Unfinished,
            (false, true) => Place::Deleting,
            (false, false) => Place::Sessions,
        };
        let path = format!("{path}/{name}");
        if let Some(session) = read_one(files, view, session, label, path, place)? {
            out.push(session);
        }
    }
    Ok(())
}

/// Reads a session; `None` for a directory that is none.
fn read_one(
    files: &mut Files,
    view: &SnapshotView,
    directory: &DirectoryNode,
    name: &str,
    path: String,
    place: Place,
) -> Result<Option<Session>, ViewError> {
    let label = Label::parse(name);
    let mut remarks = Vec::new();
    let file = match view.lookup(directory, SESSION_FILE.as_bytes())? {
        Some(Node::Group(group)) => match files.session(view, group) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                remarks.push(format!("session.xml cannot be read: {reason}"));
                None
            }
        },
        _ => None,
    };
    let said = file.as_ref().map(|parsed| &parsed.file);
    let Some(start) = label.map(|label| label.start).or_else(|| said.and_then(|file| file.start)) else {
        // Other programs keep their files beside Zimbra's; only what says that it is a session is one.
        return Ok(None);
    };
    if let Some(remark) = said.and_then(|file| file.reading.remark(ROOT)) {
        remarks.push(format!("session.xml: {remark}"));
    }
    if let Some(other) = said.and_then(|file| file.label.as_ref()).filter(|label| *label != name) {
        remarks.push(format!("session.xml is that of {other}"));
    }
    let kind = said.and_then(|file| file.kind).or(label.map(|label| label.kind)).unwrap_or(SessionKind::Full);
    let failed = file.as_ref().map_or(0, |parsed| {
        parsed.accounts.iter().filter(|account| account.status != AccountStatus::Completed).count() as u64
    });
    let valid = said.is_some_and(|file| file.found);
    let state = match place {
        Place::Deleting => SessionState::Deleting,
        Place::Unfinished if is_running(view, directory, start) => SessionState::Running,
        Place::Unfinished => SessionState::Leftover,
        Place::Sessions if !valid => SessionState::Invalid,
        Place::Sessions if said.is_some_and(|file| file.aborted) => SessionState::Aborted,
        Place::Sessions if failed > 0 || file.as_ref().is_some_and(|parsed| !parsed.errors.is_empty()) => {
            SessionState::WithErrors
        }
        Place::Sessions => SessionState::Complete,
    };
    if place == Place::Sessions && !valid && remarks.is_empty() {
        remarks
            .push(if file.is_some() { "session.xml describes no session" } else { "it has no session.xml" }.to_owned());
    }
    let errors = file.as_ref().map_or_else(Vec::new, |parsed| {
        parsed.errors.iter().map(|(email, message)| (files.names.text(*email).to_owned(), message.clone())).collect()
    });
    Ok(Some(Session {
        label: name.to_owned(),
        path,
        place,
        kind,
        start,
        end: said.and_then(|file| file.end),
        state,
        release: said.and_then(|file| file.release.clone()),
        format_version: said.and_then(|file| file.reading.version.clone()),
        accounts: file.as_ref().map_or(0, |parsed| parsed.accounts.len() as u64),
        failed,
        errors,
        redo: Vec::new(),
        redo_absent: Vec::new(),
        remarks,
        directory: Arc::clone(directory),
        file,
    }))
}

/// Only its age distinguishes a session that is being written from one that a crash left.
fn is_running(view: &SnapshotView, directory: &DirectoryNode, start: Timestamp) -> bool {
    let moved = Timestamp::from_second(directory.attributes.mtime.seconds).unwrap_or(Timestamp::MIN);
    let since = view.record().time.checked_sub(Span::new().hours(RUNNING_HOURS)).unwrap_or(Timestamp::MIN);
    start.max(moved) >= since
}

/// Lists the redo logs of all finished sessions.
fn read_redo_logs(view: &SnapshotView, sessions: &mut [Session]) -> Result<RedoLogs, ViewError> {
    let (mut logs, mut named, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    for (place, session) in sessions.iter_mut().enumerate() {
        let directory = match view.lookup(&session.directory, REDO_LOGS.as_bytes())? {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        };
        let mut held = Vec::new();
        for entry in directory.as_ref().map(|directory| view.list(directory)).transpose()?.into_iter().flatten() {
            let entry = entry?;
            let Node::Group(group) = entry.node else { continue };
            let Some(name) = std::str::from_utf8(&entry.name).ok().and_then(RedoName::parse) else { continue };
            if let Content::Unreadable(_) = view.group(group)?.content {
                session.remarks.push(format!("the source could not read {}", String::from_utf8_lossy(&entry.name)));
                continue;
            }
            held.push(name.sequence);
            if session.place == Place::Sessions {
                logs.push(RedoLog { sequence: name.sequence, closed: name.closed, session: place });
            }
        }
        held.sort_unstable();
        session.redo = runs(&held);
        // A full without logs of its own states the numbers that were current while it was written.
        let has_logs = directory.is_some() || session.kind == SessionKind::Incremental;
        if let Some(file) = session.file.as_ref().map(|parsed| &parsed.file)
            && let (Some(first), Some(last)) = (file.min_redo, file.max_redo)
            && has_logs
            && session.place == Place::Sessions
            && first <= last
        {
            let range = SequenceRange { first, last };
            named.push(NamedLogs { range, start: session.start });
            ranges.push((place, range));
        }
    }
    let redo = RedoLogs::new(logs, named);
    for (place, range) in ranges {
        sessions[place].redo_absent = redo.absent(range);
    }
    Ok(redo)
}

/// Returns sorted numbers as runs.
fn runs(numbers: &[u64]) -> Vec<SequenceRange> {
    let mut found: Vec<SequenceRange> = Vec::new();
    for number in numbers {
        match found.last_mut() {
            Some(run) if run.last.checked_add(1) == Some(*number) => run.last = *number,
            Some(run) if run.last == *number => {}
            _ => found.push(SequenceRange { first: *number, last: *number }),
        }
    }
    found
}

/// Returns the directories directly below the root into which an upgrade moved a whole tree: `<old version>-<new version>/`.
///
/// # Errors
/// Fails when the root cannot be read.
pub fn moved_trees(view: &SnapshotView) -> Result<Vec<String>, ViewError> {
    let mut found = Vec::new();
    for entry in view.list(view.root_directory())? {
        let entry = entry?;
        let (Node::Directory(directory), Ok(name)) = (&entry.node, std::str::from_utf8(&entry.name)) else { continue };
        if is_version_pair(name) && matches!(view.lookup(directory, SESSIONS.as_bytes())?, Some(Node::Directory(_))) {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn is_version_pair(name: &str) -> bool {
    let version =
        |text: &str| text.starts_with(|first: char| first.is_ascii_digit()) && !text.contains(char::is_whitespace);
    name.split_once('-').is_some_and(|(old, new)| version(old) && version(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_runs() {
        let run = |first, last| SequenceRange { first, last };
        assert_eq!(runs(&[1, 2, 2, 3, 5, 7, 8]), [run(1, 3), run(5, 5), run(7, 8)]);
        assert_eq!(runs(&[]), []);
    }

    #[test]
    fn moved_trees_are_named_by_two_versions() {
        assert!(is_version_pair("5.0.2_GA_1975-6.0") && is_version_pair("7.0-7.1"));
        for other in ["sessions", "2026", "zextras", "full-20260801.050004.118", "a-1", "1-a b"] {
            assert!(!is_version_pair(other), "{other}");
        }
    }
}
