//! `zmreplica prune`: removes the snapshots that no rule keeps, and what only they need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use zmreplica::catalog::dates::Dates;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::catalog::sources::SourceName;
use zmreplica::guard::{last_good, marked_snapshots};
use zmreplica::ids::SourceId;
use zmreplica::prune::{
    GRACE, MAX_UNUSED_PERCENT, PruneError, PruneFigures, PruneOptions, PrunePlan, PruneProgress, PruneReport,
    carry_out, plan,
};
use zmreplica::replica::{LockedReplica, Replica};
use zmreplica::retention::{Decision, NamedSnapshots, Policy, Protections, Selection, Within};
use zmreplica::view::{Readers, ResolveError, Snapshots, ViewOptions};
use zmreplica::zimbra::ledger::{self, Ledger};

use super::config::{Retention, Span};
use super::error::{CliError, Exit};
use super::output::{Output, Verbosity, WARNING};
use super::policies::Policies;
use super::progress::{ONE_LINE, live_line, start_follower};
use super::{Context, clock, hold, signals, text};

/// How often the counters are looked at.
const TICK: Duration = Duration::from_millis(120);
/// How often a new plan is made when a snapshot that was to go was mounted meanwhile.
const ATTEMPTS: u32 = 5;

/// Rules of retention, as options. One that is given stands in for the rule of the same name in the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// Keep the N newest snapshots of each source
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u32>,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N")]
    keep_daily: Option<u32>,
    /// Keep the newest of each of the last N weeks that have one
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u32>,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u32>,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N")]
    keep_yearly: Option<u32>,
    /// Keep every snapshot that is no more than SPAN older than the newest: 90d, 12w, 3m (months) or 1y
    #[arg(long, value_name = "SPAN")]
    keep_within: Option<Within>,
    /// Keep every snapshot with this tag; may be repeated
    #[arg(long = "keep-tag", value_name = "TAG")]
    keep_tags: Vec<String>,
    /// Also keep the last snapshot from which an account can be restored whole, for SPAN after the account vanished from the source
    #[arg(long, value_name = "SPAN")]
    keep_accounts: Option<Within>,
}

impl PolicyArgs {
    /// Returns the rules in force: those given, and of the configuration those that were not.
    pub(crate) fn policy(&self, configured: &Policy) -> Policy {
        Policy {
            keep_last: self.keep_last.unwrap_or(configured.keep_last),
            keep_hourly: self.keep_hourly.unwrap_or(configured.keep_hourly),
            keep_daily: self.keep_daily.unwrap_or(configured.keep_daily),
            keep_weekly: self.keep_weekly.unwrap_or(configured.keep_weekly),
            keep_monthly: self.keep_monthly.unwrap_or(configured.keep_monthly),
            keep_yearly: self.keep_yearly.unwrap_or(configured.keep_yearly),
            keep_within: self.keep_within.or(configured.keep_within),
            keep_tags: if self.keep_tags.is_empty() { configured.keep_tags.clone() } else { self.keep_tags.clone() },
            keep_accounts: self.keep_accounts.or(configured.keep_accounts),
        }
    }
}

/// Arguments of `prune`.
#[derive(Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    space: SpaceArgs,
}

/// How space is freed, as options of whatever removes snapshots.
#[derive(Args)]
pub(crate) struct SpaceArgs {
    /// Allow this much of the packs to be unused, in per cent; above it, the packs with the most unused space are repacked
    /// [default: `max-unused` under `[retention]` in the configuration file, else 10]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    max_unused: Option<u8>,
    /// Keep data that nothing needs any more for at least this long, for copies and slow readers; a later prune deletes it.
    /// `0s` deletes it at once, for a disk that is nearly full [default: `grace` under `[retention]` in the configuration file, else 1d]
    #[arg(long, value_name = "DURATION")]
    grace: Option<Span>,
    /// Run even if the store is on hold
    #[arg(long)]
    ignore_hold: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct DecisionEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    decision: &'a Decision,
    /// Bytes in packs that its going frees.
    #[serde(skip_serializing_if = "Option::is_none")]
    freed_bytes: Option<u64>,
}

#[derive(Serialize)]
struct PlanEvent<'a> {
    event: &'static str,
    dry_run: bool,
    /// None where snapshots were named.
    policy: Option<&'a Policy>,
    #[serde(flatten)]
    figures: &'a PruneFigures,
}

#[derive(Serialize)]
struct SummaryEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    report: &'a PruneReport,
}

pub(crate) fn run(context: &Context, args: &PruneArgs) -> Result<Exit, CliError> {
    let mut policies = Policies::of(&context.file, |configured| args.policy.policy(configured));
    policies.only.clone_from(&context.source);
    remove(context, &args.space, &policies, None)
}

/// Removes the snapshots that no rule keeps, or else those that are named, and what only they need.
pub(crate) fn remove(
    context: &Context,
    args: &SpaceArgs,
    policies: &Policies,
    named: Option<&NamedSnapshots>,
) -> Result<Exit, CliError> {
    let options = options(&context.file.retention, args.max_unused, args.grace);
    let shown = if named.is_some() { Shown::Named } else { Shown::WholePlan };
    let shared = PruneContext { named, ..PruneContext::new(&context.output, policies, &options, shown)? };
    if args.dry_run {
        let replica = context.open()?;
        let plan = shared.plan(&replica)?;
        shared.print_plan(&replica, &plan, true)?;
        return Ok(print_doubts(&context.output, &plan));
    }
    let mut replica = context.open_locked()?;
    if !args.ignore_hold {
        hold::refuse(&replica)?;
    }
    let pruned = prune(&shared, &mut replica)?;
    Ok(pruned.exit)
}

/// Shows what the next prune by the rules of the configuration file would do if a source were removed.
pub(crate) fn of_removed(context: &Context, name: &str) -> Result<Exit, CliError> {
    let (policies, options) = (Policies::configured(&context.file), options(&context.file.retention, None, None));
    let replica = context.open()?;
    let sources = replica.catalog()?.sources()?;
    let id = sources.find(name)?;
    let mut shared = PruneContext::new(&context.output, &policies, &options, Shown::WholePlan)?;
    if let Some(source) = sources.get(id) {
        shared.removed.insert(id, source.name.clone());
    }
    let plan = shared.plan(&replica)?;
    shared.print_plan(&replica, &plan, true)?;
    Ok(print_doubts(&context.output, &plan))
}

/// How to prune: as given, else as configured.
fn options(retention: &Retention, max_unused: Option<u8>, grace: Option<Span>) -> PruneOptions {
    let max_unused_percent = max_unused.or(retention.max_unused).unwrap_or(MAX_UNUSED_PERCENT);
    let grace = grace.or(retention.grace.map(|text| text.0)).map_or(GRACE, |span| span.0);
    PruneOptions { max_unused_percent, grace, now: jiff::Timestamp::now() }
}

/// Prunes by the rules of the configuration file, if it has any.
pub(crate) fn by_configuration(
    context: &Context,
    replica: &mut LockedReplica,
    ignore_hold: bool,
) -> Result<Option<Pruned>, CliError> {
    let policies = Policies::configured(&context.file);
    // A removed source's snapshots go in any case.
    if policies.are_empty() && replica.catalog()?.sources()?.removed().is_empty() {
        return Ok(None);
    }
    let options = options(&context.file.retention, None, None);
    if !ignore_hold {
        hold::refuse(replica)?;
    }
    Ok(Some(prune(&PruneContext::new(&context.output, &policies, &options, Shown::Removals)?, replica)?))
}

/// What a prune did.
pub(crate) struct Pruned {
    /// A line for each snapshot that went.
    pub(crate) removed: Vec<String>,
    /// Bytes of the packs that were deleted.
    pub(crate) deleted_bytes: u64,
    /// How the prune ends.
    exit: Exit,
}

/// How much of the plan is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// All of it.
    WholePlan,
    /// What is removed, and the figures: all others stay.
    Named,
    /// Only what is removed, and the result if anything is. This is for a nightly run; `prune --dry-run` or -v shows the rest.
    Removals,
}

/// The rules and options of a prune, and where it reports.
struct PruneContext<'a> {
    output: &'a Output,
    policies: &'a Policies,
    /// The snapshots that are to be removed, if they were named; of the rules, only those apply that keep snapshots for accounts.
    named: Option<&'a NamedSnapshots>,
    options: &'a PruneOptions,
    shown: Shown,
    /// Sources that count as removed, besides those that are.
    removed: BTreeMap<SourceId, SourceName>,
    zone: TimeZone,
    interrupt: Arc<AtomicBool>,
    progress: PruneProgress,
}

impl<'a> PruneContext<'a> {
    fn new(
        output: &'a Output,
        policies: &'a Policies,
        options: &'a PruneOptions,
        shown: Shown,
    ) -> Result<PruneContext<'a>, CliError> {
        let interrupt = signals::interrupt_flag()?;
        let (zone, progress) = (TimeZone::system(), PruneProgress::default());
        let removed = BTreeMap::new();
        Ok(PruneContext { output, policies, named: None, options, shown, removed, zone, interrupt, progress })
    }

    fn plan(&self, replica: &Replica) -> Result<PrunePlan, CliError> {
        let protections = account_protections(self, replica)?;
        let PruneContext { output, policies, named, options, zone, interrupt, progress, .. } = self;
        let mut rules = policies.rules(&replica.catalog()?.sources()?)?;
        rules.removed.extend(self.removed.clone());
        let selection = named.map_or(Selection::Rules(&rules), Selection::Named);
        let plan =
            followed(output, progress, interrupt, || plan(replica, selection, protections, zone, options, progress))??;
        self.refuse_protected(&plan)?;
        Ok(plan)
    }
}

impl PruneContext<'_> {
    /// Refuses a plan in which not all goes that was named.
    fn refuse_protected(&self, plan: &PrunePlan) -> Result<(), CliError> {
        let Some(named) = self.named else { return Ok(()) };
        let decisions = &plan.retention.decisions;
        if let Some(id) = named.ids.iter().find(|id| decisions.iter().all(|decision| decision.id != **id)) {
            return Err(ResolveError::Gone { id: id.clone() }.into());
        }
        let stays = plan.retention.kept().filter(|decision| named.ids.contains(&decision.id)).map(|decision| {
            let id = decision.id.get(..8).unwrap_or(&decision.id);
            let reasons = text::escape(decision.reasons.join(", ").as_bytes());
            format!("Snapshot {id} of {} must stay ({reasons})", text::local_time(decision.time))
        });
        let stays: Vec<String> = stays.collect();
        if stays.is_empty() { Ok(()) } else { Err(CliError::Protected(stays.join(". "))) }
    }

    /// Returns whether everything is reported.
    fn shows_all(&self) -> bool {
        self.shown == Shown::WholePlan || self.output.json() || self.output.verbosity() == Verbosity::Verbose
    }

    fn print_plan(&self, replica: &Replica, plan: &PrunePlan, dry_run: bool) -> Result<(), CliError> {
        let PruneContext { output, policies, .. } = self;
        let figures = &plan.figures;
        if output.json() {
            for decision in &plan.retention.decisions {
                let freed_bytes = plan.freed.get(&decision.number).copied();
                output.event(&DecisionEvent { event: "decision", decision, freed_bytes })?;
            }
            let policy = self.named.is_none().then_some(&policies.policy);
            output.event(&PlanEvent { event: "plan", dry_run, policy, figures })?;
        } else if output.verbosity() > Verbosity::Quiet {
            for decision in plan.retention.decisions.iter().filter(|decision| !decision.keep || self.shows_all()) {
                output.line(&decision_line(output, decision, plan))?;
            }
            if self.shown != Shown::Removals || self.shows_all() {
                for line in figure_lines(figures, plan.grace(), dry_run) {
                    output.line(&line)?;
                }
            }
        }
        if policies.are_empty() && self.shown == Shown::WholePlan && plan.retention.removed().next().is_none() {
            output.note(
                "No retention rules are set, so no snapshot is removed; only unused space is freed. Give rules such as --keep-daily 30, \
                 or a table [retention] in the configuration file.",
            );
        }
        if figures.lost_chunks > 0 {
            output.warn(&format!(
                "{} of kept snapshots {} lost; `zmreplica check` lists the affected files.",
                text::plural(figures.lost_chunks, "chunk", "chunks"),
                if figures.lost_chunks == 1 { "is" } else { "are" },
            ));
        }
        if self.named.is_some() { self.print_baselines(replica, plan) } else { Ok(()) }
    }

    /// Says what the next snapshot of a source is compared with when the last good one goes.
    fn print_baselines(&self, replica: &Replica, plan: &PrunePlan) -> Result<(), CliError> {
        let catalog = replica.catalog()?;
        let (all, sources) = (marked_snapshots(&catalog)?, catalog.sources()?);
        let going: BTreeSet<&str> = plan.retention.removed().map(|decision| decision.id.as_str()).collect();
        let left = last_good(all.iter().filter(|snapshot| !going.contains(snapshot.record.id.as_str())));
        let gone = last_good(&all).into_iter().filter(|(_, good)| going.contains(good.record.id.as_str()));
        for (source, _) in gone {
            let shown = sources.name(source);
            self.output.warn(&match left.get(&source) {
                Some(good) => format!(
                    "The last good snapshot of {shown} goes: the next one is compared with {} of {}",
                    good.record.short_id(),
                    text::local_time(good.record.time)
                ),
                None => format!(
                    "No good snapshot of {shown} is left: the next one is compared with none, so nobody notices what it lacks"
                ),
            });
        }
        Ok(())
    }
}

/// Prunes by rules, and reports what it does.
fn prune(shared: &PruneContext<'_>, replica: &mut LockedReplica) -> Result<Pruned, CliError> {
    let PruneContext { output, interrupt, progress, .. } = shared;
    let mut attempt = 1;
    loop {
        let plan = shared.plan(replica)?;
        shared.print_plan(replica, &plan, false)?;
        // A night reports all doubts itself.
        let exit = if shared.shown != Shown::Removals { print_doubts(output, &plan) } else { Exit::Done };
        output.flush()?;
        match followed(output, progress, interrupt, || carry_out(replica, &plan, progress))? {
            Ok(report) => {
                // The prune is done, whether its leftovers can be found or not.
                if let Ok(snapshots) = replica.catalog().and_then(|catalog| Snapshots::read(&catalog)) {
                    ledger::tidy(replica.path(), &snapshots);
                }
                if shared.shown != Shown::Removals || shared.shows_all() || !plan.is_empty() {
                    print_report(output, &report)?;
                }
                let removed = plan.retention.removed().map(|one| {
                    let id = one.id.get(..8).unwrap_or(&one.id);
                    format!("{id} of {}: {}", text::local_time(one.time), one.reasons.join(", "))
                });
                return Ok(Pruned { removed: removed.collect(), deleted_bytes: report.deleted_bytes, exit });
            }
            Err(PruneError::Leased { id }) if attempt < ATTEMPTS => {
                attempt += 1;
                output.note(&format!("Snapshot {id} has just been mounted and stays; making a new plan."));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Finds the snapshots that `keep-accounts` keeps. Snapshots that were not analysed yet are analysed.
fn account_protections(shared: &PruneContext<'_>, replica: &Replica) -> Result<Protections, CliError> {
    // Where nothing goes, or all that was named, there is nothing to protect.
    let wants = |policy: &Policy| {
        let is_needed = shared.named.map_or(!policy.is_empty(), |named| !named.is_forced);
        policy.keep_accounts.filter(|_| is_needed)
    };
    if !shared.policies.all().any(|policy| wants(policy).is_some()) {
        return Ok(Protections::default());
    }
    // A dry run has no lock, and chunks may move beside it.
    let catalog = replica.following_catalog()?;
    let readers = Readers::new(Arc::new(catalog), Arc::new(replica.chunks()), ViewOptions::default());
    let sources = readers.catalog().sources()?;
    let rules = shared.policies.rules(&sources)?;
    let mut removed = sources.removed();
    removed.extend(shared.removed.clone());
    let mut records = readers.catalog().snapshots()?;
    records.retain(|(_, record)| record.source_id.is_none_or(|id| !removed.contains_key(&id)));
    let snapshots = Snapshots::read(readers.catalog())?;
    let unknown = records.iter().filter(|(_, record)| !ledger::is_kept(replica.path(), &record.id)).count();
    if unknown > 1 {
        let unknown = text::plural(unknown as u64, "snapshot is", "snapshots are");
        shared.output.note(&format!("The accounts of {unknown} looked at first; that is done once."));
    }
    let mut ledger = Ledger::open(replica, readers, &snapshots);
    let dates = Dates::read(&replica.catalog()?, Timestamp::now())?;
    let within = |record: &SnapshotRecord| wants(rules.policy(record.source_id));
    let reasons = ledger::protections(&mut ledger, &records, &dates, within, &shared.zone, || {
        if shared.interrupt.load(Ordering::Relaxed) { Err(PruneError::Interrupted) } else { Ok(()) }
    });
    ledger.close();
    Ok(Protections { reasons: reasons? })
}

/// Does some work while a live line shows its progress.
pub(crate) fn followed<T>(
    output: &Output,
    progress: &PruneProgress,
    interrupt: &AtomicBool,
    work: impl FnOnce() -> T,
) -> Result<T, CliError> {
    std::thread::scope(|scope| {
        // Closed when this closure ends.
        let (_running, stop) = mpsc::channel();
        start_follower(scope, move || follow(output, progress, interrupt, &stop))?;
        Ok(work())
    })
}

fn follow(output: &Output, progress: &PruneProgress, interrupt: &AtomicBool, stop: &Receiver<()>) {
    let bar = live_line(output, ONE_LINE);
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(TICK) {
        if interrupt.load(Ordering::Relaxed) {
            progress.interrupt.store(true, Ordering::Relaxed);
        }
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        let share =
            done.saturating_mul(100).checked_div(total).map(|percent| format!(", {percent} %")).unwrap_or_default();
        bar.set_message(format!("{}: {}{share}", progress.phase().label(), text::count(done)));
        bar.tick();
    }
    bar.finish_and_clear();
}

/// Reports the sources of which nothing is removed because a clock is in doubt; returns the exit code.
fn print_doubts(output: &Output, plan: &PrunePlan) -> Exit {
    for (source, doubt) in &plan.doubts {
        output.warn(&clock::sentence(source, doubt));
    }
    if plan.doubts.is_empty() { Exit::Done } else { Exit::Attention }
}

fn decision_line(output: &Output, decision: &Decision, plan: &PrunePlan) -> String {
    let id = decision.id.get(..8).unwrap_or(&decision.id);
    let (time, source) = (text::local_time(decision.time), text::escape(decision.source.as_bytes()));
    let reasons: Vec<String> = decision.reasons.iter().map(|reason| text::escape(reason.as_bytes())).collect();
    let reasons = reasons.join(", ");
    if decision.keep {
        return format!("keep    {id}  {time}  {source}  {reasons}");
    }
    let freed = text::bytes(plan.freed.get(&decision.number).copied().unwrap_or_default());
    output.styled(WARNING, &format!("remove  {id}  {time}  {source}  {reasons}, frees {freed}"))
}

fn figure_lines(figures: &PruneFigures, grace: Duration, dry_run: bool) -> Vec<String> {
    let would = if dry_run { "would be" } else { "to be" };
    let mut lines = vec![format!(
        "{} kept, {} {would} removed.",
        text::plural(figures.kept_snapshots, "snapshot", "snapshots"),
        text::count(figures.removed_snapshots),
    )];
    if figures.removed_chunks > 0 {
        let unreferenced = match figures.unreferenced_bytes {
            0 => String::new(),
            bytes => format!(", {} of it left by interrupted runs", text::bytes(bytes)),
        };
        lines.push(format!(
            "{} ({}{unreferenced}) {would} removed.",
            text::plural(figures.removed_chunks, "chunk", "chunks"),
            text::bytes(figures.removed_chunk_bytes),
        ));
    }
    if figures.deleted_packs + figures.orphan_packs + figures.rewritten_packs > 0 {
        lines.push(format!(
            "{} ({}) no longer needed, {} ({}) {would} repacked, which copies {}.",
            text::plural(figures.deleted_packs + figures.orphan_packs, "pack", "packs"),
            text::bytes(figures.deleted_pack_bytes + figures.orphan_bytes),
            text::count(figures.rewritten_packs),
            text::bytes(figures.rewritten_bytes),
            text::bytes(figures.copied_bytes),
        ));
    }
    if figures.due_bytes > 0 {
        lines.push(format!("{} that earlier prunes condemned {would} deleted.", text::bytes(figures.due_bytes)));
    }
    if figures.waiting_bytes > 0 {
        lines.push(format!("{} that earlier prunes condemned still wait.", text::bytes(figures.waiting_bytes)));
    }
    let when = if grace.is_zero() { "" } else { " when the grace is over" };
    lines.push(format!(
        "Frees {}{when}; {} stay, {} of them unused.",
        text::bytes(figures.freed_bytes),
        text::bytes(figures.kept_bytes),
        text::bytes(figures.unused_bytes),
    ));
    lines
}

fn print_report(output: &Output, report: &PruneReport) -> Result<(), CliError> {
    if output.json() {
        output.event(&SummaryEvent { event: "summary", report })?;
    } else if output.verbosity() > Verbosity::Quiet {
        output.line(&format!(
            "Removed {}, deleted {} ({}), wrote {} ({}) in {}.",
            text::plural(report.removed_snapshots, "snapshot", "snapshots"),
            text::plural(report.deleted_packs, "pack", "packs"),
            text::bytes(report.deleted_bytes),
            text::plural(report.written_packs, "pack", "packs"),
            text::bytes(report.written_bytes),
            text::duration(Duration::from_millis(report.elapsed_ms)),
        ))?;
        if report.condemned_bytes > 0 && report.deleted_bytes < report.condemned_bytes {
            let bytes = text::bytes(report.condemned_bytes);
            output.line(&format!("Condemned packs of {bytes}: a prune after the grace deletes them."))?;
        }
        if report.folded {
            output.line("Folded commit files into a checkpoint.")?;
        }
        if report.folded_bytes > 0 {
            output.line(&format!("Deleted folded commit files of {}.", text::bytes(report.folded_bytes)))?;
        }
        if let Some((before, after)) = report.compacted {
            output.line(&format!("Compacted the catalogue from {} to {}.", text::bytes(before), text::bytes(after)))?;
        }
    }
    if let Some(reason) = &report.not_folded {
        output.warn(&format!("The commit files were not folded: {reason}. Run `zmreplica check` for details."));
    }
    Ok(())
}
