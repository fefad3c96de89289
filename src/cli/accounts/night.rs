//! What can be restored after a night: determined once, and reported in a few lines by `nightly` and `status`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use zmreplica::catalog::dates::Dates;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::replica::Replica;
use zmreplica::view::{Readers, Snapshots, ViewOptions};
use zmreplica::zimbra::ledger::{ChangedAccount, Concern, Ledger, Summary};

use super::super::error::CliError;
use super::super::text;
use super::before_and_with;
use super::table::format_counts;

/// Finds out what can be restored from a snapshot, and what became of it since the last nightly run; `None` when it holds nothing of a mail server. What was
/// found is kept with the snapshot.
pub(crate) fn find_out(replica: &Replica, record: &SnapshotRecord) -> Result<Option<Summary>, CliError> {
    let readers = Readers::new(Arc::new(replica.catalog()?), Arc::new(replica.chunks()), ViewOptions::default());
    let all = Snapshots::read(readers.catalog())?;
    let chosen = all.resolve(&record.id)?;
    let so_far = before_and_with(&all, chosen);
    let moment = Dates::read(readers.catalog(), Timestamp::now())?.moment(chosen.number).unwrap_or(record.time);
    let before = so_far.last_chunk::<2>().map(|[before, _]| before.record.clone());
    let mut ledger = Ledger::open(replica, readers, &all);
    let summary = ledger.night(record, before.as_ref(), moment)?;
    ledger.close();
    Ok(summary)
}

/// Reports how many accounts are in which state, and what became of them.
pub(crate) fn accounts_line(found: &Summary) -> String {
    let changes = &found.changes;
    let mut parts = vec![format_counts(&found.counts)];
    for (accounts, what) in [(&changes.whole_again, "recovered"), (&changes.new, "new"), (&changes.left, "gone")] {
        if !accounts.is_empty() {
            let names = text::first_of(accounts.iter().map(|account| account.email.as_str()));
            parts.push(format!("{} {what}: {names}", text::count(accounts.len() as u64)));
        }
    }
    parts.join("; ")
}

/// Reports how many sessions are in which state, and which came and went.
pub(crate) fn sessions_line(found: &Summary) -> String {
    let all: u64 = found.sessions.values().sum();
    let states: Vec<String> =
        found.sessions.iter().map(|(state, count)| format!("{} {}", text::count(*count), state.words())).collect();
    let mut line = text::plural(all, "session", "sessions");
    if !states.is_empty() {
        line += &format!(": {}", states.join(", "));
    }
    for (labels, what) in
        [(&found.running, "running"), (&found.changes.new_sessions, "new"), (&found.changes.gone_sessions, "gone")]
    {
        if !labels.is_empty() {
            line += &format!("; {what}: {}", text::first_of(labels.iter().map(String::as_str)));
        }
    }
    line
}

/// Says of which accounts less can be restored than before, and how to learn why; `None` when there is none.
pub(crate) fn lost_something(found: &Summary) -> Option<String> {
    let word = |account: &ChangedAccount| {
        format!("{} ({})", account.email, account.restore_state.map_or("gone", |state| state.words()))
    };
    let lost: Vec<String> = found.changes.lost_something().map(word).collect();
    (!lost.is_empty()).then(|| {
        format!(
            "less can be restored than the night before of {}: {}. `zmreplica accounts --account ADDRESS` explains why, and how to restore one",
            text::plural(lost.len() as u64, "account", "accounts"),
            text::first_of(lost.iter().map(String::as_str))
        )
    })
}

/// Says what is wrong with what can be restored, by itself. Sessions may be so old at most.
pub(crate) fn concern_sentence(concern: &Concern, max_session_age: Option<Duration>) -> String {
    let limit = text::age(max_session_age.map_or(0, |limit| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX)));
    match concern {
        Concern::NothingRestorable { accounts: 0 } => {
            "No account can be restored: no session in sessions/ lists one, and accounts.xml does not either".to_owned()
        }
        Concern::NothingRestorable { accounts } => format!(
            "No account can be restored: no full session that can be used has any of {}; `zmreplica accounts` shows what is missing",
            text::plural(*accounts, "known account", "known accounts"),
        ),
        Concern::Stopped { label: Some(label), age_seconds } => format!(
            "zmbackup seems to have stopped: the newest session that a restore can use, {}, began {} before the snapshot (max-session-age is {limit})",
            text::escape(label.as_bytes()),
            text::age(*age_seconds),
        ),
        Concern::Stopped { label: None, age_seconds } => format!(
            "zmbackup seems to have stopped: sessions/ has no session that a restore can use, and older trees end {} before the snapshot (max-session-age is {limit})",
            text::age(*age_seconds),
        ),
        Concern::Behind { newest, age_seconds } => format!(
            "No account can be restored to a time after {}, {} before the snapshot (max-session-age is {limit}), though there are newer sessions; `zmreplica accounts` shows what is missing",
            text::local_time(*newest),
            text::age(*age_seconds),
        ),
    }
}
