//! One account: its sessions, what is missing, and how to restore it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::plain::quoted;
use zmreplica::view::StoredSnapshot;
use zmreplica::zimbra::account::{Account, FullOfAccount};
use zmreplica::zimbra::plan::{RestorePlan, read_words};
use zmreplica::zimbra::{Analysis, moved_trees};

use super::super::error::{CliError, Exit};
use super::super::{Context, text};
use super::{AccountEvent, AccountsContext, Compared, is_whole, plan, print_remarks};

/// Most addresses that are offered in place of one that is not known.
const OFFERED: usize = 8;

/// Where an account was last whole.
#[derive(Serialize)]
struct LastWholeEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    time: Timestamp,
    email: &'a str,
    commands: &'a [String],
}

pub(super) fn run(
    shared: &mut AccountsContext<'_>,
    chosen: &StoredSnapshot,
    analysis: &Analysis,
    name: &str,
    at: Option<Timestamp>,
    compared: &Compared,
) -> Result<Exit, CliError> {
    let context = shared.context;
    let mountpoint = shared.args.mountpoint.clone();
    let mut ids: Vec<String> = Vec::new();
    let mut all_well = true;
    if !context.output.json() {
        print_remarks(context, analysis);
    }
    let moved = moved(shared, chosen, analysis, name)?;
    for analysis in std::iter::once(analysis).chain(moved.as_ref()) {
        for account in analysis.accounts.iter().filter(|account| account.is_named(name)) {
            ids.push(account.id.clone());
            let answer = plan(analysis, account, at);
            all_well &= if at.is_some() { answer.is_ok() } else { is_whole(account) };
            print_account(context, &chosen.record, analysis, account, at, answer.as_ref(), &mountpoint)?;
        }
    }
    let mut was_found = !ids.is_empty();
    if !all_well || !was_found {
        if !was_found && !context.output.json() {
            let (name, id) = (text::escape(name.as_bytes()), chosen.record.short_id());
            context.output.note(&format!("The snapshot {id} has no account {name}."));
        }
        was_found |= look_back(shared, name, &mut ids, at, &mountpoint)?;
    }
    if !was_found {
        return Err(match moved_earlier(shared, name)? {
            Some(error) => error,
            None => unknown(analysis, name, &chosen.record),
        });
    }
    let attention = compared.less_restorable().any(|account| ids.contains(&account.id));
    Ok(if attention { Exit::Attention } else { Exit::Done })
}

/// Analyses the tree that an upgrade moved aside and that knows an account which the tree itself does not.
fn moved(
    shared: &mut AccountsContext<'_>,
    chosen: &StoredSnapshot,
    analysis: &Analysis,
    name: &str,
) -> Result<Option<Analysis>, CliError> {
    if shared.args.tree.is_some() || analysis.accounts.iter().any(|account| account.is_named(name)) {
        return Ok(None);
    }
    let view = shared.view(&chosen.record)?;
    for tree in moved_trees(&view)? {
        let found = shared.ledger.analyser().analyse(&view, tree.as_bytes())?;
        if found.accounts.iter().any(|account| account.is_named(name)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Finds the newest earlier snapshot in which the account is whole, or the time can be restored, and reports how to restore it from there.
fn look_back(
    shared: &mut AccountsContext<'_>,
    name: &str,
    ids: &mut Vec<String>,
    at: Option<Timestamp>,
    mountpoint: &str,
) -> Result<bool, CliError> {
    let context = shared.context;
    let earlier: Vec<&StoredSnapshot> = shared.snapshots.iter().rev().skip(1).copied().collect();
    for snapshot in earlier {
        let Some(analysis) = shared.analyse(&snapshot.record)? else { continue };
        let is_it = |account: &&Account| {
            let named = account.is_named(name) || ids.contains(&account.id);
            named && if at.is_some() { plan(&analysis, account, at).is_ok() } else { is_whole(account) }
        };
        let Some(account) = analysis.accounts.iter().find(is_it) else { continue };
        ids.push(account.id.clone());
        let Ok(plan) = plan(&analysis, account, at) else { continue };
        let record = &snapshot.record;
        let commands = commands(context, record, &analysis, account, &plan, mountpoint);
        let output = &context.output;
        if output.json() {
            output.event(&LastWholeEvent {
                event: "last_whole",
                snapshot: &record.id,
                time: record.time,
                email: &account.email,
                commands: &commands,
            })?;
        } else {
            let what = if at.is_some() {
                "The time can be restored from"
            } else {
                "Its newest time could last be restored from"
            };
            output.line("")?;
            output.line(&format!("{what} the snapshot {} of {}.", record.short_id(), text::local_time(record.time)))?;
            print_plan(context, &analysis, &plan, &commands)?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Looks for the account in trees that an upgrade had moved aside in earlier snapshots, and says which command shows it.
fn moved_earlier(shared: &mut AccountsContext<'_>, name: &str) -> Result<Option<CliError>, CliError> {
    let earlier: Vec<&StoredSnapshot> = shared.snapshots.iter().rev().copied().collect();
    for snapshot in earlier {
        let id = snapshot.record.short_id();
        let accounts = shared.entries(&snapshot.record)?.unwrap_or_default();
        let found = accounts.into_iter().find(|account| account.is_named(name) && account.tree.is_some());
        if let Some(tree) = found.and_then(|account| account.tree) {
            let (name_word, tree_word) = (quoted(name), quoted(&tree));
            return Ok(Some(CliError::Failed(format!(
                "No tree at the root of a snapshot has an account {name}, but {tree} in the snapshot {id} does: run `zmreplica accounts {id} --tree={tree_word} --account={name_word}`"
            ))));
        }
    }
    Ok(None)
}

fn unknown(analysis: &Analysis, name: &str, record: &SnapshotRecord) -> CliError {
    let wanted = name.to_lowercase();
    let local = wanted.split('@').next().unwrap_or_default();
    let similar = analysis.accounts.iter().filter(|account| {
        let email = account.email.to_lowercase();
        !local.is_empty() && email.contains(local)
    });
    let offered: Vec<String> = similar.take(OFFERED).map(|account| text::escape(account.email.as_bytes())).collect();
    let hint = if offered.is_empty() {
        "`zmreplica accounts --history` lists all accounts in snapshots".to_owned()
    } else {
        format!("did you mean {}?", offered.join(", "))
    };
    let name = text::escape(name.as_bytes());
    CliError::Failed(format!("No account {name} in the snapshot {} or an earlier one; {hint}", record.short_id()))
}

fn print_account(
    context: &Context,
    record: &SnapshotRecord,
    analysis: &Analysis,
    account: &Account,
    at: Option<Timestamp>,
    answer: Result<&RestorePlan, &Option<Timestamp>>,
    mountpoint: &str,
) -> Result<(), CliError> {
    let output = &context.output;
    let commands =
        answer.map_or_else(|_| Vec::new(), |plan| commands(context, record, analysis, account, plan, mountpoint));
    if output.json() {
        let event = AccountEvent::new(&record.id, analysis, account, at);
        return Ok(output.event(&event.with_restore(analysis, answer.ok(), commands))?);
    }
    let escaped = |name: &str| text::escape(name.as_bytes());
    output.line(&format!(
        "{} ({}): {}",
        escaped(&account.email),
        escaped(&account.id),
        account.restore_state().words()
    ))?;
    let field = |name: &str, value: &str| output.line(&format!("  {name:<15}{value}"));
    field("Snapshot", &format!("{} of {}", record.short_id(), text::local_time(record.time)))?;
    if !analysis.tree.is_empty() {
        field("Tree", &escaped(&analysis.tree))?;
    }
    if !account.other_emails.is_empty() {
        field("Also known as", &escaped(&account.other_emails.join(", ")))?;
    }
    for (place, interval) in account.intervals.iter().enumerate() {
        let name = if place == 0 { "Restorable" } else { "and" };
        field(name, &format!("{} to {}", text::local_time(interval.from), text::local_time(interval.to)))?;
    }
    if account.intervals.is_empty() {
        field("Restorable", "not at all")?;
    }
    for (place, full) in account.fulls.iter().enumerate() {
        field(if place == 0 { "Full sessions" } else { "" }, &full_words(analysis, full))?;
    }
    for (place, fault) in account.faults.iter().enumerate() {
        field(if place == 0 { "Missing" } else { "" }, &escaped(&fault.text))?;
    }
    if account.faults.is_empty() {
        field("Missing", "nothing")?;
    }
    output.line("")?;
    match (answer, at) {
        (Ok(plan), Some(time)) => {
            output.line(&format!("It can be restored to {}.", text::local_time(time)))?;
            print_plan(context, analysis, plan, &commands)
        }
        (Ok(plan), None) => print_plan(context, analysis, plan, &commands),
        (Err(Some(last)), Some(time)) => Ok(output.line(&format!(
            "It cannot be restored to {}; the last time before that can is {}.",
            text::local_time(time),
            text::local_time(*last)
        ))?),
        (Err(_), _) => Ok(output.line("It cannot be restored from this snapshot.")?),
    }
}

fn full_words(analysis: &Analysis, full: &FullOfAccount) -> String {
    let state = match (full.usable, full.complete) {
        (true, true) => "complete",
        (true, false) => "incomplete",
        (false, _) => "unusable",
    };
    let redo = full.chain.replayable.map_or_else(
        || "no redo logs behind it".to_owned(),
        |range| format!("redo logs {range}, up to {}", text::local_time(full.reach)),
    );
    let label = text::escape(analysis.sessions[full.session].label.as_bytes());
    format!("{label}: {state}, {}, {redo}", text::plural(full.messages, "message", "messages"))
}

fn print_plan(context: &Context, analysis: &Analysis, plan: &RestorePlan, commands: &[String]) -> Result<(), CliError> {
    let output = &context.output;
    output.line(&format!("A restore to {} reads:", text::local_time(plan.time)))?;
    for read in &plan.reads {
        output.line(&format!("  {}", text::escape(read_words(&analysis.sessions[read.session], read).as_bytes())))?;
    }
    if commands.is_empty() {
        output.line("  # No command is shown, because the name of the account or of its session is not a valid address or label.")?;
    }
    let beside = format!("# or next to it, as {}...:", zmreplica::zimbra::plan::RESTORED_PREFIX);
    let words = [
        "# To restore it, mount the snapshot as a backup tree,",
        "# restore the account in place",
        &beside,
        "# and at the end:",
    ];
    for (words, command) in words.into_iter().zip(commands) {
        output.line(&format!("  {words}"))?;
        output.line(&format!("  {command}"))?;
    }
    if plan.is_time_needed {
        output.note("zmrestore reads the time in the time zone of its server; the time above is in that of this host.");
    }
    Ok(())
}

/// Returns the commands that restore an account, to be pasted one by one; none when its name cannot be given to the vendor's tool.
fn commands(
    context: &Context,
    record: &SnapshotRecord,
    analysis: &Analysis,
    account: &Account,
    plan: &RestorePlan,
    mountpoint: &str,
) -> Vec<String> {
    let zone = TimeZone::system();
    let target = match analysis.tree.trim_matches('/') {
        "" => mountpoint.to_owned(),
        tree => format!("{}/{tree}", mountpoint.trim_end_matches('/')),
    };
    let store = context.store().map(|store| store.display().to_string()).unwrap_or_default();
    let program = format!("zmreplica --store {}", quoted(&store));
    let place = quoted(mountpoint);
    let restore = plan.command(&target, &account.email, &zone).zip(plan.command_beside(&target, &account.email, &zone));
    let Some((in_place, beside)) = restore else { return Vec::new() };
    vec![
        format!("{program} mount {} {place}", record.short_id()),
        in_place,
        beside,
        format!("{program} umount {place}"),
    ]
}
