//! Two pages of the ledger side by side: what became of the accounts and sessions from one snapshot to the next.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::page::{AccountEntry, Page};
use crate::zimbra::account::AccountState;

/// An account that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedAccount {
    /// Its identifier.
    pub id: String,
    /// Its address.
    pub email: String,
    /// What can be restored of it now; `None` when neither accounts.xml nor a full session knows it any more.
    pub state: Option<AccountState>,
}

/// What became of accounts and sessions since an earlier snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Accounts that were whole and are not, but for those that left in their time.
    pub no_longer_whole: Vec<ChangedAccount>,
    /// Accounts that were not whole before either, and of which less can be restored now.
    pub worse: Vec<ChangedAccount>,
    /// Accounts that accounts.xml did not know before either and whose last session is gone: deleted on the server long ago.
    pub left: Vec<ChangedAccount>,
    /// Accounts that were not whole and are.
    pub whole_again: Vec<ChangedAccount>,
    /// Accounts that nothing knew before.
    pub new: Vec<ChangedAccount>,
    /// Labels of sessions that were not there, or not finished.
    pub new_sessions: Vec<String>,
    /// Labels of sessions that are gone.
    pub gone_sessions: Vec<String>,
}

fn changed(entry: &AccountEntry, state: Option<AccountState>) -> ChangedAccount {
    ChangedAccount { id: entry.id.clone(), email: entry.email.clone(), state }
}

impl Changes {
    /// Returns the accounts of which less can be restored than before, but for those that left in their time.
    pub fn lost_something(&self) -> impl Iterator<Item = &ChangedAccount> {
        self.no_longer_whole.iter().chain(&self.worse)
    }

    /// Compares two pages.
    pub fn between(before: &Page, now: &Page) -> Changes {
        let mut changes = Changes::default();
        let mut current: HashMap<&str, &AccountEntry> =
            now.accounts.iter().map(|entry| (entry.id.as_str(), entry)).collect();
        for old in &before.accounts {
            match current.remove(old.id.as_str()) {
                Some(new) if old.is_whole() && !new.is_whole() => {
                    changes.no_longer_whole.push(changed(new, Some(new.state)));
                }
                Some(new) if !old.is_whole() && new.is_whole() => {
                    changes.whole_again.push(changed(new, Some(new.state)));
                }
                Some(new) if new.state > old.state => changes.worse.push(changed(new, Some(new.state))),
                Some(_) => {}
                None if !old.in_accounts => changes.left.push(changed(old, None)),
                None if old.is_whole() => changes.no_longer_whole.push(changed(old, None)),
                None => changes.worse.push(changed(old, None)),
            }
        }
        changes.new = current.into_values().map(|entry| changed(entry, Some(entry.state))).collect();
        changes.new.sort_by(|a, b| (&a.email, &a.id).cmp(&(&b.email, &b.id)));
        let (old, new) = (usable(before), usable(now));
        changes.new_sessions = new.difference(&old).map(|label| (*label).to_owned()).collect();
        changes.gone_sessions = old.difference(&new).map(|label| (*label).to_owned()).collect();
        changes
    }
}

fn usable(page: &Page) -> BTreeSet<&str> {
    page.sessions.iter().filter(|session| session.is_usable()).map(|session| session.label.as_str()).collect()
}
