//! Two pages of the ledger side by side: what became of the accounts and sessions from one snapshot to the next.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::nightly_diff::{ChangedAccount, Changes};
use super::page::{AccountEntry, Page};
use crate::layout::SessionKind;
use crate::zimbra::account::Interval;

fn changed(entry: &AccountEntry) -> ChangedAccount {
    let (state, restore_state) = (Some(entry.state), Some(entry.restore_state()));
    ChangedAccount { id: entry.id.clone(), email: entry.email.clone(), state, restore_state }
}

fn gone(entry: &AccountEntry) -> ChangedAccount {
    ChangedAccount { state: None, restore_state: None, ..changed(entry) }
}

impl Changes {
    /// Compares two pages.
    pub fn between(before: &Page, now: &Page) -> Changes {
        let mut changes = Changes::default();
        let mut current: HashMap<&str, &AccountEntry> =
            now.accounts.iter().map(|entry| (entry.id.as_str(), entry)).collect();
        let sessions = Sessions::of(before, now);
        for old in &before.accounts {
            match current.remove(old.id.as_str()) {
                Some(new) if old.is_whole() && !new.is_whole() => {
                    changes.no_longer_whole.push(changed(new));
                }
                Some(new) if !old.is_whole() && new.is_whole() => {
                    changes.whole_again.push(changed(new));
                }
                Some(new) if new.state > old.state => changes.worse.push(changed(new)),
                Some(new) if sessions.lost_something(old, new) => changes.more_gaps.push(changed(new)),
                Some(_) => {}
                None if !old.in_accounts => changes.left.push(gone(old)),
                None if old.is_whole() => changes.no_longer_whole.push(gone(old)),
                None => changes.worse.push(gone(old)),
            }
        }
        changes.new = current.into_values().map(changed).collect();
        changes.new.sort_by(|a, b| (&a.email, &a.id).cmp(&(&b.email, &b.id)));
        let (old, new) = (usable(before), usable(now));
        changes.new_sessions = new.difference(&old).map(|label| (*label).to_owned()).collect();
        changes.gone_sessions = old.difference(&new).map(|label| (*label).to_owned()).collect();
        changes
    }
}

/// The sessions by which a loss differs from what leaves in its time.
struct Sessions<'a> {
    /// Those that were there before.
    before: BTreeSet<&'a str>,
    /// When the full sessions started that are still there.
    fulls: BTreeSet<Timestamp>,
}

impl<'a> Sessions<'a> {
    fn of(before: &'a Page, now: &Page) -> Sessions<'a> {
        let fulls = now.sessions.iter().filter(|session| session.kind == SessionKind::Full && session.is_usable());
        Sessions { before: usable(before), fulls: fulls.map(|session| session.start).collect() }
    }

    /// Returns whether less can be restored of an account whose state is no worse. The oldest times leave with the full session that they begin with;
    /// what a new session lacks was not there before.
    fn lost_something(&self, old: &AccountEntry, new: &AccountEntry) -> bool {
        let Some((from, to)) = new.from.zip(new.to) else { return false };
        if old.to.is_some_and(|before| to < before) {
            return true;
        }
        if old.from.is_some_and(|before| before < from && self.fulls.contains(&before)) {
            return true;
        }
        // A page of an earlier version does not say.
        let (Some(known), Some(gaps)) = (&old.gaps, &new.gaps) else { return false };
        let was_missing = |time: &Interval| known.times.iter().any(|gap| gap.from <= time.from && time.to <= gap.to);
        // What came after the newest time of before was not lost.
        let end = old.to.unwrap_or(Timestamp::MAX);
        gaps.times.iter().any(|gap| gap.from < end && !was_missing(gap))
            || gaps.sessions.iter().any(|label| self.before.contains(label.as_str()) && !known.sessions.contains(label))
    }
}

fn usable(page: &Page) -> BTreeSet<&str> {
    page.sessions.iter().filter(|session| session.is_usable()).map(|session| session.label.as_str()).collect()
}
