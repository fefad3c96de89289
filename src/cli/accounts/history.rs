//! All snapshots: when each account was last up to date.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use zmreplica::zimbra::account::{AccountState, RestoreState};
use zmreplica::zimbra::ledger::AccountEntry;

use super::super::error::{CliError, Exit};
use super::super::table::Cell;
use super::super::{table, text};
use super::AccountsContext;
use super::table::{colour, faults_in_short};

/// One account across snapshots.
struct AccountSpan {
    email: String,
    first: usize,
    last: usize,
    last_whole: Option<usize>,
    last_up_to_date: Option<usize>,
    /// In the last snapshot that has it.
    state: AccountState,
    restore_state: RestoreState,
}

#[derive(Serialize)]
struct HistoryEvent<'a> {
    event: &'static str,
    id: &'a str,
    email: &'a str,
    first_snapshot: &'a str,
    last_snapshot: &'a str,
    last_whole_snapshot: Option<&'a str>,
    last_whole_time: Option<Timestamp>,
    /// In the newest snapshot; none when that does not have it.
    state: Option<AccountState>,
    last_up_to_date_snapshot: Option<&'a str>,
    last_up_to_date_time: Option<Timestamp>,
    restore_state: Option<RestoreState>,
}

/// One account in one snapshot.
#[derive(Serialize)]
struct StateEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    time: Timestamp,
    id: &'a str,
    email: &'a str,
    state: AccountState,
    restore_state: RestoreState,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    faults: u64,
}

pub(super) fn run(shared: &mut AccountsContext<'_>) -> Result<Exit, CliError> {
    match shared.args.account.clone() {
        Some(name) => one(shared, &name),
        None => all(shared),
    }
}

fn all(shared: &mut AccountsContext<'_>) -> Result<Exit, CliError> {
    let mut spans: BTreeMap<String, AccountSpan> = BTreeMap::new();
    let snapshots = shared.snapshots.clone();
    for (at, snapshot) in snapshots.iter().enumerate() {
        let Some(accounts) = shared.entries(&snapshot.record)? else { continue };
        for account in accounts {
            let span = spans.entry(account.id.clone()).or_insert_with(|| AccountSpan {
                email: String::new(),
                first: at,
                last: at,
                last_whole: None,
                last_up_to_date: None,
                state: account.state,
                restore_state: account.restore_state(),
            });
            span.last = at;
            (span.state, span.restore_state) = (account.state, account.restore_state());
            if account.is_whole() {
                span.last_whole = Some(at);
            }
            if span.restore_state == RestoreState::UpToDate {
                span.last_up_to_date = Some(at);
            }
            span.email = account.email;
        }
    }
    let newest = snapshots.len().saturating_sub(1);
    // Of one that is gone and one that came after under the same address, the newer stands below.
    let mut rows: Vec<(&String, &AccountSpan)> = spans.iter().collect();
    rows.sort_by(|a, b| (&a.1.email, a.1.first).cmp(&(&b.1.email, b.1.first)));
    rows.retain(|(_, span)| !shared.args.faulty || span.last_up_to_date != Some(newest));
    let output = &shared.context.output;
    let id = |at: usize| snapshots[at].record.id.as_str();
    if output.json() {
        for (account, span) in rows {
            output.event(&HistoryEvent {
                event: "account_history",
                id: account,
                email: &span.email,
                first_snapshot: id(span.first),
                last_snapshot: id(span.last),
                last_whole_snapshot: span.last_whole.map(id),
                last_whole_time: span.last_whole.map(|at| snapshots[at].record.time),
                state: (span.last == newest).then_some(span.state),
                last_up_to_date_snapshot: span.last_up_to_date.map(id),
                last_up_to_date_time: span.last_up_to_date.map(|at| snapshots[at].record.time),
                restore_state: (span.last == newest).then_some(span.restore_state),
            })?;
        }
        return Ok(Exit::Done);
    }
    let names = ["ACCOUNT", "NOW", "LAST UP TO DATE IN", "OF", "FIRST SEEN", "LAST SEEN"];
    let mut table = table::new(output, &names, &[]);
    for (_, span) in rows {
        let time = |at: usize| text::local_time(snapshots[at].record.time);
        let dash = || "-".to_owned();
        let now = if span.last == newest { span.restore_state.words() } else { "gone" };
        table.add_row(vec![
            Cell::new(text::escape(span.email.as_bytes())),
            Cell::new(now).fg(if span.last == newest { colour(span.restore_state) } else { comfy_table::Color::Red }),
            Cell::new(span.last_up_to_date.map_or_else(dash, |at| snapshots[at].record.short_id().to_owned())),
            Cell::new(span.last_up_to_date.map_or_else(dash, time)),
            Cell::new(time(span.first)),
            Cell::new(time(span.last)),
        ]);
    }
    table::write(output, &mut table)?;
    Ok(Exit::Done)
}

fn one(shared: &mut AccountsContext<'_>, name: &str) -> Result<Exit, CliError> {
    let output = &shared.context.output;
    let names = ["SNAPSHOT", "OF", "ACCOUNT", "STATE", "RESTORABLE FROM", "TO", "WHAT IS MISSING"];
    let mut table = table::new(output, &names, &[]);
    let mut found = false;
    for snapshot in shared.snapshots.clone() {
        let record = &snapshot.record;
        let Some(accounts) = shared.entries(record)? else { continue };
        let named: Vec<&AccountEntry> = accounts.iter().filter(|account| account.is_named(name)).collect();
        for account in &named {
            found = true;
            let (from, to) = (account.from, account.to);
            if output.json() {
                output.event(&StateEvent {
                    event: "account_state",
                    snapshot: &record.id,
                    time: record.time,
                    id: &account.id,
                    email: &account.email,
                    state: account.state,
                    restore_state: account.restore_state(),
                    from,
                    to,
                    faults: account.faults,
                })?;
                continue;
            }
            let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), text::local_time);
            table.add_row(vec![
                Cell::new(record.short_id()),
                Cell::new(text::local_time(record.time)),
                Cell::new(text::escape(account.email.as_bytes())),
                Cell::new(account.restore_state().words()).fg(colour(account.restore_state())),
                Cell::new(time(from)),
                Cell::new(time(to)),
                Cell::new(faults_in_short(account.gravest_fault.as_ref(), account.faults)),
            ]);
        }
        if named.is_empty() && found && !output.json() {
            let mut row = vec![Cell::new(record.short_id()), Cell::new(text::local_time(record.time)), Cell::new("-")];
            row.push(Cell::new("gone").fg(comfy_table::Color::Red));
            table.add_row(row);
        }
    }
    if !found {
        let name = text::escape(name.as_bytes());
        return Err(CliError::Failed(format!(
            "No snapshot has an account {name}; `zmreplica accounts --history` lists all accounts"
        )));
    }
    if !output.json() {
        table::write(output, &mut table)?;
    }
    Ok(Exit::Done)
}
