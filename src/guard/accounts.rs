//! What `accounts.xml` says: the label of each account's newest full backup.
//!
//! The file is read in a stream. What in it is not well-formed is stepped over: the tree is replicated as faithfully, and a question of form must not keep
//! anybody awake.

use std::collections::BTreeSet;

use super::{ZimbraSnapshot, counted, listed};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::layout::xml::read_accounts;
use crate::layout::{ACCOUNTS_FILE, session_path};
use crate::view::{FileInput, InputFailure, ViewError};

/// Longer values are no labels.
const LABEL_MAX_BYTES: usize = 256;
/// Further labels are not kept; a site has some hundreds of sessions.
const MAX_LABELS: usize = 100_000;

/// Judges accounts.xml. What the last good snapshot lacks as well is no news.
pub(super) fn judge(
    old: Option<&ZimbraSnapshot>,
    new: &ZimbraSnapshot,
    reasons: &mut Vec<SuspectReason>,
) -> Result<(), ViewError> {
    if new.leaves_out(ACCOUNTS_FILE.as_bytes(), false) {
        return Ok(());
    }
    let mut found = |kind, text: String| reasons.push(SuspectReason { kind, text });
    let named = labels(new)?;
    let before = match old {
        // Most nights it is the same file.
        Some(old) if old.root_file(ACCOUNTS_FILE.as_bytes())? == new.root_file(ACCOUNTS_FILE.as_bytes())? => {
            named.clone()
        }
        Some(old) => labels(old)?,
        None => Named::Labels(BTreeSet::new()),
    };
    let named = match named {
        Named::Labels(named) => named,
        Named::Missing if before == Named::Missing => return Ok(()),
        Named::Missing => {
            let text = "accounts.xml is missing: no account can be restored by name";
            found(ReasonKind::AccountsMissing, text.to_owned());
            return Ok(());
        }
        Named::Unreadable => {
            let text =
                "accounts.xml could not be read at the source: no account can be restored by name from this snapshot";
            found(ReasonKind::AccountsMissing, text.to_owned());
            return Ok(());
        }
    };
    let before = match before {
        Named::Labels(before) => before,
        Named::Missing | Named::Unreadable => BTreeSet::new(),
    };
    if named.is_empty() && !before.is_empty() {
        let count = counted(before.len() as u64, "session", "sessions");
        found(ReasonKind::AccountsMissing, format!("accounts.xml no longer names any session; it named {count}"));
    }
    let dangling = |side: &ZimbraSnapshot, named: BTreeSet<String>| -> Result<BTreeSet<String>, ViewError> {
        let mut missing = BTreeSet::new();
        for label in named {
            let there = side.leaves_out(session_path(&label).as_bytes(), true)
                || match &side.sessions {
                    Some(sessions) => side.view.lookup(sessions, label.as_bytes())?.is_some(),
                    None => false,
                };
            if !there {
                missing.insert(label);
            }
        }
        Ok(missing)
    };
    let known = match old {
        Some(old) => dangling(old, before)?,
        None => BTreeSet::new(),
    };
    let missing = dangling(new, named)?;
    let news: Vec<&String> = missing.difference(&known).collect();
    if !news.is_empty() {
        let count = counted(news.len() as u64, "session that is not there", "sessions that are not there");
        let text = format!("accounts.xml names {count}: {}", listed(news.iter()));
        found(ReasonKind::AccountsDangling, text);
    }
    Ok(())
}

/// What accounts.xml names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    /// There is no such file.
    Missing,
    /// The source could not read it.
    Unreadable,
    /// These labels.
    Labels(BTreeSet<String>),
}

fn labels(side: &ZimbraSnapshot) -> Result<Named, ViewError> {
    let Some(group) = side.root_file(ACCOUNTS_FILE.as_bytes())? else { return Ok(Named::Missing) };
    let failure = InputFailure::default();
    let mut labels = BTreeSet::new();
    let read = read_accounts(FileInput::new(&side.view, group, &failure), |account| {
        if let Some(label) = account.latest
            && label.len() <= LABEL_MAX_BYTES
            && labels.len() < MAX_LABELS
        {
            labels.insert(label);
        }
    });
    match (failure.take(), read) {
        (Some(ViewError::Unreadable { .. }), _) => Ok(Named::Unreadable),
        (Some(error), _) => Err(error),
        // The input fails for no other reason.
        (None, Ok(_) | Err(_)) => Ok(Named::Labels(labels)),
    }
}
