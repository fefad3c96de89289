//! Two pages of the ledger side by side: what became of the accounts and sessions from one snapshot to the next.

use std::collections::{BTreeSet, HashMap};

use super::nightly_diff::{ChangedAccount, Changes};
use super::page::{AccountEntry, Page};
use crate::zimbra::account::AccountState;

fn changed(entry: &AccountEntry, state: Option<AccountState>) -> ChangedAccount {
    ChangedAccount { id: entry.id.clone(), email: entry.email.clone(), state }
}

impl Changes {
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
