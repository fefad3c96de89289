//! `zmreplica accounts`: what can be restored of every account.

mod explain;
mod history;
pub(super) mod night;
mod table;

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::catalog::reader::CatalogReader;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::replica::Replica;
use zmreplica::view::{Readers, SnapshotView, Snapshots, StoredSnapshot, ViewError, ViewOptions, parse_time};
use zmreplica::zimbra::account::{Account, AccountState, Answer, Fault, Interval, RestoreState};
use zmreplica::zimbra::ledger::{AccountEntry, ChangedAccount, Changes, Ledger, Page};
use zmreplica::zimbra::plan::{RestorePlan, plan};
use zmreplica::zimbra::redo::SequenceRange;
use zmreplica::zimbra::{Analysis, moved_trees};

use super::error::{CliError, Exit};
use super::leased::{Leased, leased};
use super::{Context, text};

/// Arguments of `accounts`.
#[derive(Args)]
#[command(after_help = "\
States: up to date (everything can be restored, up to the newest time in the sessions); with gaps (up to that time, but messages or times in between are missing, or an older full session \
must be named); behind (only up to an earlier time, because redo logs are missing); lost (no full session has the account).

Exit code 4: less of an account can be restored than from the previous snapshot.")]
pub(crate) struct AccountsArgs {
    /// The snapshot
    #[arg(value_name = "SNAP", default_value = "latest")]
    snapshot: String,
    /// Explain one account: its sessions, what is missing, and how to restore it
    #[arg(long, value_name = "ADDRESS|ID")]
    account: Option<String>,
    /// Report for one moment: 2026-11-22T03:00, or the end of a day
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Report when each account was last up to date, over all snapshots up to SNAP
    #[arg(long, conflicts_with = "at")]
    history: bool,
    /// List only accounts that are not up to date
    #[arg(long)]
    faulty: bool,
    /// Directory of the snapshot that holds the backup tree, for example one that an upgrade moved [default: the root]
    #[arg(long, value_name = "PATH")]
    tree: Option<String>,
    /// Mount point to use in the commands that are shown
    #[arg(long, value_name = "DIR", default_value = "/mnt/zimbra")]
    mountpoint: String,
}

/// What the parts of this command share.
struct AccountsContext<'a> {
    context: &'a Context,
    args: &'a AccountsArgs,
    readers: Readers,
    /// Snapshots of the same source up to the one that is requested, oldest first.
    snapshots: Vec<&'a StoredSnapshot>,
    ledger: Ledger<'a>,
}

impl AccountsContext<'_> {
    fn view(&self, record: &SnapshotRecord) -> Result<SnapshotView, CliError> {
        Ok(SnapshotView::over(&self.readers, record.clone())?)
    }

    /// Analyses the tree that the arguments name in a snapshot; `None` when the snapshot does not have it.
    fn analyse(&mut self, record: &SnapshotRecord) -> Result<Option<Analysis>, CliError> {
        let Some(tree) = self.args.tree.as_deref().filter(|tree| !tree.is_empty()) else {
            return Ok(Some(self.ledger.analysis(record)?));
        };
        let view = self.view(record)?;
        match self.ledger.analyser().analyse(&view, tree.as_bytes()) {
            Ok(analysis) => Ok(Some(analysis)),
            Err(ViewError::NotFound { .. } | ViewError::NotADirectory { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Summarizes the accounts of the tree that the arguments name in a snapshot, without one of all; `None` when the snapshot does not have it.
    fn entries(&mut self, record: &SnapshotRecord) -> Result<Option<Vec<AccountEntry>>, CliError> {
        Ok(self.page(record)?.map(|page| page.accounts))
    }

    /// Summarizes the tree that the arguments name in a snapshot, without one all of its trees; `None` when the snapshot does not have it.
    fn page(&mut self, record: &SnapshotRecord) -> Result<Option<Page>, CliError> {
        if self.args.tree.as_deref().is_none_or(str::is_empty) {
            return Ok(Some(self.ledger.page(record)?));
        }
        Ok(self.analyse(record)?.map(|analysis| Page::new([&analysis])))
    }
}

pub(crate) fn run(context: &Context, args: &AccountsArgs) -> Result<Exit, CliError> {
    let at = match &args.at {
        Some(given) => Some(parse_time(given).ok_or_else(|| {
            CliError::Usage(format!("--at `{given}` is not a time: give 2026-11-22T03:00 or a day such as 2026-11-22"))
        })?),
        None => None,
    };
    let replica = context.open()?;
    let readers =
        Readers::new(Arc::new(replica.following_catalog()?), Arc::new(replica.chunks()), ViewOptions::default());
    let purpose = Path::new("zmreplica accounts");
    let Leased { snapshots: all, lease: _lease } =
        leased_before(context, &replica, readers.catalog(), purpose, &args.snapshot)?;
    let chosen = all.resolve(&args.snapshot)?;
    let snapshots = before_and_with(&all, chosen);
    let ledger = Ledger::open(&replica, readers.clone(), &all);
    let mut shared = AccountsContext { context, args, readers, snapshots, ledger };
    let result = answer(&mut shared, chosen, at);
    shared.ledger.close();
    result
}

fn answer(shared: &mut AccountsContext<'_>, chosen: &StoredSnapshot, at: Option<Timestamp>) -> Result<Exit, CliError> {
    let args = shared.args;
    if args.history {
        return history::run(shared);
    }
    let before = before(shared)?;
    let analysis = shared.analyse(&chosen.record)?.ok_or_else(|| {
        let tree = args.tree.as_deref().unwrap_or_default();
        CliError::Failed(format!("The snapshot {} has no directory {tree}", chosen.record.short_id()))
    })?;
    let compared = compare(before, &analysis);
    let exit = match &args.account {
        Some(name) => explain::run(shared, chosen, &analysis, name, at, &compared),
        None => {
            table::run(shared, chosen, &analysis, at, &compared)?;
            Ok(exit(&compared))
        }
    }?;
    Ok(unread(shared.context, &analysis).unwrap_or(exit))
}

/// Warns that a part of the store could not be read, if that is so, and returns how the command ends then.
pub(super) fn unread(context: &Context, analysis: &Analysis) -> Option<Exit> {
    let error = analysis.store_error.as_ref()?;
    context.output.warn(&format!(
        "A part of the store could not be read, so this report may be incomplete: {}. Run `zmreplica check` for details",
        error.text
    ));
    Some(if error.is_damage { Exit::Damage } else { Exit::Incomplete })
}

/// Leases a snapshot and those of the same source before it.
pub(super) fn leased_before(
    context: &Context,
    replica: &Replica,
    catalog: &CatalogReader,
    purpose: &Path,
    spec: &str,
) -> Result<Leased, CliError> {
    leased(context, replica, catalog, purpose, |all| {
        let chosen = before_and_with(all, all.resolve(spec)?).into_iter();
        Ok(chosen.map(|snapshot| snapshot.record.id.clone()).collect())
    })
}

/// Returns the snapshots of the same source up to a chosen one, in the order in which they were taken.
pub(super) fn before_and_with<'a>(all: &'a Snapshots, chosen: &StoredSnapshot) -> Vec<&'a StoredSnapshot> {
    let of_source = all.all().iter().filter(|one| one.record.source_id == chosen.record.source_id);
    of_source.take_while(|one| one.number <= chosen.number).collect()
}

/// Takes from the snapshot before, if there is one, what is compared: its identifier, and its page.
fn before(shared: &mut AccountsContext<'_>) -> Result<Option<(String, Page)>, CliError> {
    let Some([before, _]) = shared.snapshots.last_chunk::<2>().copied() else { return Ok(None) };
    let Some(mut page) = shared.page(&before.record)? else {
        return Ok(Some((before.record.id.clone(), Page::default())));
    };
    // Trees that were moved aside are reported on request.
    page.accounts.retain(|account| account.tree.is_none());
    Ok(Some((before.record.id.clone(), page)))
}

/// What the previous snapshot shows.
#[derive(Default)]
struct Compared {
    /// Identifier of that snapshot.
    with: Option<String>,
    /// Accounts that were whole there and are not now.
    no_longer_whole: Vec<ChangedAccount>,
    /// Others of which less can be restored.
    others: Vec<ChangedAccount>,
}

impl Compared {
    /// Returns the accounts of which less can be restored.
    fn less_restorable(&self) -> impl Iterator<Item = &ChangedAccount> {
        self.no_longer_whole.iter().chain(&self.others)
    }
}

fn compare(before: Option<(String, Page)>, now: &Analysis) -> Compared {
    let Some((snapshot, page)) = before else { return Compared::default() };
    let Changes { mut no_longer_whole, worse, more_gaps, left, .. } = Changes::between(&page, &Page::new([now]));
    let was_whole = |account: &ChangedAccount| page.accounts.iter().any(|old| old.id == account.id && old.is_whole());
    no_longer_whole.extend(left.into_iter().filter(was_whole));
    let others = worse.into_iter().chain(more_gaps).collect();
    Compared { with: Some(snapshot), no_longer_whole, others }
}

fn is_whole(account: &Account) -> bool {
    account.state == AccountState::Whole
}

fn is_up_to_date(account: &Account) -> bool {
    account.restore_state() == RestoreState::UpToDate
}

fn exit(compared: &Compared) -> Exit {
    if compared.less_restorable().next().is_none() { Exit::Done } else { Exit::Attention }
}

/// Reports what is odd about a tree as a whole.
fn print_remarks(context: &Context, analysis: &Analysis) {
    for remark in &analysis.remarks {
        context.output.warn(&text::escape(remark.as_bytes()));
    }
    for session in &analysis.sessions {
        for remark in &session.remarks {
            context.output.warn(&text::escape(format!("{}: {remark}", session.label).as_bytes()));
        }
    }
    for (session, remark) in &analysis.shared_remarks {
        context.output.warn(&text::escape(format!("{}: {remark}", analysis.sessions[*session].label).as_bytes()));
    }
}

/// Reports trees that an upgrade moved aside.
fn print_moved(shared: &AccountsContext<'_>, view: &SnapshotView) -> Result<(), CliError> {
    if shared.args.tree.is_none() && !shared.context.output.json() {
        for tree in moved_trees(view)? {
            let shown = text::escape(tree.as_bytes());
            shared
                .context
                .output
                .note(&format!("An upgrade moved an older tree to {shown}; use --tree {shown} to see it."));
        }
    }
    Ok(())
}

/// An account, as JSON.
#[derive(Serialize)]
struct AccountEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tree: &'a str,
    id: &'a str,
    email: &'a str,
    other_emails: &'a [String],
    state: AccountState,
    restore_state: RestoreState,
    in_accounts_xml: bool,
    latest_named: Option<&'a str>,
    newest_full: Option<&'a str>,
    intervals: &'a [Interval],
    fulls: Vec<FullEvent<'a>>,
    faults: &'a [Fault],
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<AtEvent<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<RestoreEvent<'a>>,
}

#[derive(Serialize)]
struct FullEvent<'a> {
    label: &'a str,
    start: Timestamp,
    reach: Timestamp,
    usable: bool,
    complete: bool,
    messages: u64,
    redo: Option<SequenceRange>,
}

/// The answer for one moment.
#[derive(Serialize)]
struct AtEvent<'a> {
    time: Timestamp,
    restorable: bool,
    full: Option<&'a str>,
    /// Whether the full must be named to the vendor's tool.
    label_needed: bool,
    /// Where the time cannot be restored: the last one before it that can.
    last_before: Option<Timestamp>,
}

#[derive(Serialize)]
struct RestoreEvent<'a> {
    full: &'a str,
    time: Timestamp,
    sessions: Vec<ReadEvent<'a>>,
    commands: Vec<String>,
}

#[derive(Serialize)]
struct ReadEvent<'a> {
    label: &'a str,
    full: bool,
    redo: &'a [SequenceRange],
}

impl<'a> AccountEvent<'a> {
    fn new(snapshot: &'a str, analysis: &'a Analysis, account: &'a Account, at: Option<Timestamp>) -> AccountEvent<'a> {
        let label = |full: usize| analysis.sessions[account.fulls[full].session].label.as_str();
        let fulls = account.fulls.iter().enumerate().map(|(place, full)| FullEvent {
            label: label(place),
            start: full.start,
            reach: full.reach,
            usable: full.usable,
            complete: full.complete,
            messages: full.messages,
            redo: full.chain.replayable,
        });
        let answer = |time| match account.answer(Some(time)) {
            Answer::Restorable { full, usual } => {
                AtEvent { time, restorable: true, full: Some(label(full)), label_needed: !usual, last_before: None }
            }
            Answer::Only { time: last_before } => {
                AtEvent { time, restorable: false, full: None, label_needed: false, last_before }
            }
        };
        AccountEvent {
            event: "account",
            snapshot,
            tree: &analysis.tree,
            id: &account.id,
            email: &account.email,
            other_emails: &account.other_emails,
            state: account.state,
            restore_state: account.restore_state(),
            in_accounts_xml: account.in_accounts,
            latest_named: account.latest.as_deref(),
            newest_full: account.fulls.len().checked_sub(1).map(label),
            intervals: &account.intervals,
            fulls: fulls.collect(),
            faults: &account.faults,
            at: at.map(answer),
            restore: None,
        }
    }

    fn with_restore(
        self,
        analysis: &'a Analysis,
        plan: Option<&'a RestorePlan>,
        commands: Vec<String>,
    ) -> AccountEvent<'a> {
        let restore = plan.map(|plan| RestoreEvent {
            full: &plan.label,
            time: plan.time,
            sessions: plan
                .reads
                .iter()
                .map(|read| ReadEvent {
                    label: &analysis.sessions[read.session].label,
                    full: read.is_full,
                    redo: &read.logs,
                })
                .collect(),
            commands,
        });
        AccountEvent { restore, ..self }
    }
}
