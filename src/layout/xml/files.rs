//! The three files that say what a tree holds: accounts.xml, session.xml, meta.xml.
//!
//! Elements are known by their own names, wherever they stand, and attributes by theirs; others are passed over. So a file of a later release is
//! read as far as it says the same things in the same words.

use std::io::{self, Read};

use jiff::Timestamp;

use super::{Element, Piece, Reading, read};
use crate::layout::label::SessionKind;

/// Root element of all three files.
pub const ROOT: &str = "backupMetadata";

/// An account of accounts.xml.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountEntry {
    /// Its identifier, lower-cased.
    pub id: String,
    /// Its address.
    pub email: String,
    /// Label of its newest full.
    pub latest: Option<String>,
}

/// Reads accounts.xml and calls `visit` for every account that has an identifier.
///
/// # Errors
/// Fails when the input does.
pub fn read_accounts(input: impl Read, mut visit: impl FnMut(AccountEntry)) -> io::Result<Reading> {
    read(input, |piece| {
        if let Piece::Start(element) = piece
            && element.name() == "account"
        {
            let mut entry = AccountEntry::default();
            element.attributes(|name, value| match name {
                "zimbraId" => entry.id = value.to_lowercase(),
                "email" => entry.email = value,
                "latestFullBackupLabel" => entry.latest = Some(value).filter(|label| !label.is_empty()),
                _ => {}
            });
            if !entry.id.is_empty() {
                visit(entry);
            }
        }
    })
}

/// How a session ended for an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccountStatus {
    /// It was backed up.
    Completed,
    /// Its turn had not come.
    NotStarted,
    /// It was being backed up.
    InProgress,
    /// Its backup failed.
    Error,
}

impl AccountStatus {
    fn parse(text: &str) -> Option<AccountStatus> {
        Some(match text {
            "COMPLETED" => AccountStatus::Completed,
            "NOTSTARTED" => AccountStatus::NotStarted,
            "INPROGRESS" => AccountStatus::InProgress,
            "ERROR" => AccountStatus::Error,
            _ => return None,
        })
    }

    /// Returns the status in words.
    pub fn words(self) -> &'static str {
        match self {
            AccountStatus::Completed => "completed",
            AccountStatus::NotStarted => "not started",
            AccountStatus::InProgress => "in progress",
            AccountStatus::Error => "failed",
        }
    }
}

/// An account that a session lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionAccount {
    /// Its identifier, lower-cased.
    pub id: String,
    /// Its address.
    pub email: String,
    /// How the session ended for it. Without a status, or with one that is not known, the account counts as completed: its directory says more.
    pub status: AccountStatus,
}

/// An error that a session reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionError {
    /// Address of the account.
    pub email: String,
    /// What happened.
    pub message: String,
}

/// What session.xml lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionItem {
    /// An account.
    Account(SessionAccount),
    /// An error.
    Error(SessionError),
}

/// What session.xml says of its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFile {
    /// Whether the element that says it was there.
    pub found: bool,
    /// The label.
    pub label: Option<String>,
    /// The release that wrote it.
    pub release: Option<String>,
    /// Full or incremental.
    pub kind: Option<SessionKind>,
    /// When it started.
    pub start: Option<Timestamp>,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// The least sequence number of its redo logs.
    pub min_redo: Option<u64>,
    /// The greatest sequence number of its redo logs.
    pub max_redo: Option<u64>,
    /// Whether shared messages are in zips.
    pub shared_zipped: Option<bool>,
    /// Whether it was aborted.
    pub aborted: bool,
    /// Directory levels above the accounts' directories.
    pub depth: Option<u64>,
    /// How far the file could be read.
    pub reading: Reading,
}

/// Reads session.xml and calls `visit` for every account and error that it lists.
///
/// # Errors
/// Fails when the input does.
pub fn read_session(input: impl Read, mut visit: impl FnMut(SessionItem)) -> io::Result<SessionFile> {
    let mut file = SessionFile::default();
    let mut error: Option<SessionError> = None;
    let reading = read(input, |piece| match piece {
        Piece::Start(element) => match element.name() {
            "backupSet" => backup_set(&element, &mut file),
            "account" => {
                let mut account =
                    SessionAccount { id: String::new(), email: String::new(), status: AccountStatus::Completed };
                element.attributes(|name, value| match name {
                    "zimbraId" => account.id = value.to_lowercase(),
                    "email" => account.email = value,
                    "status" => account.status = AccountStatus::parse(&value).unwrap_or(AccountStatus::Completed),
                    _ => {}
                });
                if !account.id.is_empty() {
                    visit(SessionItem::Account(account));
                }
            }
            "error" => {
                if let Some(unfinished) = error.replace(SessionError::default()) {
                    visit(SessionItem::Error(unfinished));
                }
                if let Some(error) = &mut error {
                    element.attributes(|name, value| {
                        if name == "email" {
                            error.email = value;
                        }
                    });
                }
            }
            _ => {}
        },
        Piece::Text(text) => {
            if let Some(error) = &mut error
                && error.message.len() < super::VALUE_MAX_BYTES
            {
                error.message.push_str(&text);
            }
        }
        Piece::End("error") => {
            if let Some(mut error) = error.take() {
                error.message = error.message.trim().to_owned();
                visit(SessionItem::Error(error));
            }
        }
        Piece::End(_) => {}
    })?;
    if let Some(unfinished) = error {
        visit(SessionItem::Error(unfinished));
    }
    Ok(SessionFile { reading, ..file })
}

fn backup_set(element: &Element<'_>, file: &mut SessionFile) {
    file.found = true;
    element.attributes(|name, value| match name {
        "label" => file.label = Some(value),
        "zcsRelease" => file.release = Some(value),
        "type" => {
            file.kind = [SessionKind::Full, SessionKind::Incremental].into_iter().find(|kind| kind.word() == value);
        }
        "startTime" => file.start = milliseconds(&value),
        "endTime" => file.end = milliseconds(&value),
        "minRedoSeq" => file.min_redo = value.parse().ok(),
        "maxRedoSeq" => file.max_redo = value.parse().ok(),
        "sharedBlobsZipped" => file.shared_zipped = Some(truth(&value)),
        "aborted" => file.aborted = truth(&value),
        "accountsDirectoryDepth" => file.depth = value.parse().ok(),
        _ => {}
    });
}

/// What meta.xml says of one account in one full session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaFile {
    /// Whether the element that says it was there.
    pub found: bool,
    /// Identifier of the account, lower-cased.
    pub id: Option<String>,
    /// Its address.
    pub email: Option<String>,
    /// When its backup started.
    pub start: Option<Timestamp>,
    /// When its backup ended.
    pub end: Option<Timestamp>,
    /// Sequence number of the redo log from which on changes must be replayed.
    pub redo_sequence: Option<u64>,
    /// How far the file could be read.
    pub reading: Reading,
}

/// Reads an account's meta.xml.
///
/// # Errors
/// Fails when the input does.
pub fn read_meta(input: impl Read) -> io::Result<MetaFile> {
    let mut file = MetaFile::default();
    let reading = read(input, |piece| {
        if let Piece::Start(element) = piece
            && element.name() == "accountBackup"
        {
            file.found = true;
            element.attributes(|name, value| match name {
                "zimbraId" => file.id = Some(value.to_lowercase()),
                "email" => file.email = Some(value),
                "startTime" => file.start = milliseconds(&value),
                "endTime" => file.end = milliseconds(&value),
                "redoSeq" => file.redo_sequence = value.parse().ok(),
                _ => {}
            });
        }
    })?;
    Ok(MetaFile { reading, ..file })
}

/// Reads a time in milliseconds since 1970. Zero and less mean that there is none yet.
fn milliseconds(text: &str) -> Option<Timestamp> {
    Timestamp::from_millisecond(text.parse().ok().filter(|time| *time > 0)?).ok()
}

fn truth(text: &str) -> bool {
    matches!(text, "1" | "true" | "TRUE")
}
