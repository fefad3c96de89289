//! The last snapshot from which an account can be restored whole must stay for a while after the account vanished.
//!
//! Deleting an account on the server takes it out of accounts.xml, and with its last full session it is gone from the tree. Asked for months later, it can
//! be had from the snapshots of the time before only, of which the last has its newest state.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Ledger;
use super::page::{AccountEntry, Page};
use crate::catalog::dates::Dates;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::SnapshotNumber;
use crate::retention::Within;
use crate::zimbra::account::AccountState;
use crate::zimbra::cache::{read_note, write_note};

/// Accounts that a reason names.
const NAMED: usize = 3;

/// What a snapshot is restorability to an account: its state, and of equal states better with an accounts.xml that knows it, which a restore by name needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Restorability {
    state: AccountState,
    is_unnamed: bool,
}

/// One account through the snapshots of a source.
struct AccountHistory {
    email: String,
    /// The best state that a snapshot holds it in, and the last one that does, by place. What can be restored of it in no way is in none.
    best: Option<(Restorability, usize)>,
    /// The last one that knows it.
    last_known: usize,
}

/// The accounts for which one snapshot kept.
#[derive(Default)]
struct KeepReason {
    emails: Vec<String>,
    /// Until when, if they vanished.
    until: Option<Timestamp>,
    /// Whether one of them is still there, in a worse state.
    is_broken_one: bool,
    /// Whether one of them never was whole.
    is_part: bool,
}

/// Returns which snapshots must stay because they are the last from which an account can be restored whole, or if it never was whole as well as from any, and
/// why, by their identifiers. That of an account that is there and in a worse state stays until it is as well again; that of one that vanished for `within`,
/// counted from the first snapshot without it to the newest of its source. A snapshot whose accounts cannot be determined stays, too.
///
/// Pages that are not there are made. `step` is called after each snapshot, and may end it.
///
/// # Errors
/// What `step` returns.
///
/// Memory: some 150 bytes for each account that any snapshot knows.
pub fn protections<E>(
    ledger: &mut Ledger<'_>,
    records: &[(SnapshotNumber, SnapshotRecord)],
    dates: &Dates,
    within: impl Fn(&SnapshotRecord) -> Option<Within>,
    zone: &TimeZone,
    mut step: impl FnMut() -> Result<(), E>,
) -> Result<BTreeMap<String, Vec<String>>, E> {
    let mut by_source: BTreeMap<String, Vec<&(SnapshotNumber, SnapshotRecord)>> = BTreeMap::new();
    for one in records {
        let key = one.1.source_key();
        by_source.entry(key).or_default().push(one);
    }
    let noted: Vanished = read_note(ledger.store(), NAME, MAGIC);
    let mut vanished = Vanished::new();
    for (key, own) in &by_source {
        // What is noted of a source without snapshots goes: there is nothing to keep.
        let of_source = noted.get(key).or_else(|| noted.get(&own.last()?.1.source));
        vanished.insert(key.clone(), of_source.cloned().unwrap_or_default());
    }
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, mut own) in by_source {
        let Some(within) = own.last().and_then(|(_, newest)| within(newest)) else { continue };
        // In the order in which they were taken: a clock may be wrong.
        own.sort_by_key(|(number, _)| *number);
        let moments: Vec<Timestamp> =
            own.iter().map(|(number, record)| dates.moment(*number).unwrap_or(record.time)).collect();
        let own: Vec<&SnapshotRecord> = own.into_iter().map(|(_, record)| record).collect();
        let mut histories: HashMap<String, AccountHistory> = HashMap::new();
        for (at, record) in own.iter().enumerate() {
            let unknown = match ledger.page(record) {
                Ok(page) => {
                    let error = page.store_error.as_ref().map(|error| error.text.clone());
                    add_page(&mut histories, at, page);
                    error
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = unknown {
                let reason = format!("which accounts it has whole cannot be determined: {error}");
                reasons.entry(record.id.clone()).or_default().push(reason);
            }
            step()?;
        }
        for (at, kept) in keep_reasons(&moments, histories, vanished.entry(key).or_default(), within, zone) {
            reasons.entry(own[at].id.clone()).or_default().push(reason(kept, zone));
        }
    }
    vanished.retain(|_, accounts| !accounts.is_empty());
    if vanished != noted
        && let Some((_, newest)) = records.last()
    {
        write_note(ledger.store(), NAME, MAGIC, &newest.id, &vanished);
    }
    Ok(reasons)
}

/// When accounts vanished, by identifier: the time of the first snapshot that knew nothing of them. The snapshots in between go in time, and that moment with
/// them, so it is noted.
type VanishedOf = BTreeMap<String, Timestamp>;

/// The same of each source.
type Vanished = BTreeMap<String, VanishedOf>;

const MAGIC: &[u8; 8] = b"ZMRGONE1";

/// Without this file an account counts as vanished since the oldest snapshot that is left without it, so its last whole one stays longer, not shorter.
const NAME: &str = "zimbra-vanished";

fn add_page(histories: &mut HashMap<String, AccountHistory>, at: usize, page: Page) {
    // A page that says too little says nothing good: that snapshot stays for itself, and the one before as well.
    let is_sure = page.store_error.is_none();
    for AccountEntry { id, email, state, in_accounts, .. } in page.accounts {
        let restorability = Restorability { state, is_unnamed: !in_accounts };
        let new = || AccountHistory { email: String::new(), best: None, last_known: at };
        let history = histories.entry(id).or_insert_with(new);
        (history.last_known, history.email) = (at, email);
        let is_best = state < AccountState::Lost && history.best.is_none_or(|(best, _)| restorability <= best);
        if is_sure && is_best {
            history.best = Some((restorability, at));
        }
    }
}

/// Returns by position which snapshots of a source stay, given when they were taken.
fn keep_reasons(
    own: &[Timestamp],
    histories: HashMap<String, AccountHistory>,
    vanished: &mut VanishedOf,
    within: Within,
    zone: &TimeZone,
) -> BTreeMap<usize, KeepReason> {
    let Some(newest) = own.len().checked_sub(1) else { return BTreeMap::new() };
    let start = within.before(&own[newest].to_zoned(zone.clone()));
    let noted = std::mem::take(vanished);
    let mut found: BTreeMap<usize, KeepReason> = BTreeMap::new();
    for (id, history) in histories {
        // The newest snapshot of a source never goes.
        let Some((Restorability { state, .. }, at)) = history.best.filter(|(_, at)| *at < newest) else { continue };
        let name = match state {
            AccountState::Whole => history.email,
            other => format!("{} ({})", history.email, other.word()),
        };
        let is_part = state > AccountState::Whole;
        if history.last_known == newest {
            let kept = found.entry(at).or_default();
            kept.is_part |= is_part;
            kept.emails.push(name);
            kept.is_broken_one = true;
            continue;
        }
        let first_without = own[history.last_known + 1];
        // A note was made when more snapshots were there. An older one is of an earlier vanishing: the account came back after it.
        let noted = noted.get(&id).filter(|time| **time > own[history.last_known]);
        let since = noted.copied().unwrap_or(first_without);
        vanished.insert(id, since);
        if since >= start {
            let kept = found.entry(at).or_default();
            kept.is_part |= is_part;
            kept.emails.push(name);
            kept.until = kept.until.max(Some(within.after(&since.to_zoned(zone.clone()))));
        }
    }
    found
}

fn reason(mut kept: KeepReason, zone: &TimeZone) -> String {
    kept.emails.sort_unstable();
    let named: Vec<&str> = kept.emails.iter().take(NAMED).map(String::as_str).collect();
    let more = kept.emails.len() - named.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let until = match (kept.is_broken_one, kept.until) {
        (true, _) => " (until the newest is as good)".to_owned(),
        (false, Some(until)) => format!(" (until {})", until.to_zoned(zone.clone()).strftime("%Y-%m-%d")),
        (false, None) => String::new(),
    };
    let how = if kept.is_part { "as whole as ever" } else { "whole" };
    format!("the last with {}{rest} {how}{until}", named.join(", "))
}
