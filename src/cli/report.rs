//! `zmreplica report`: one self-contained HTML page about a store.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;
use zmreplica::catalog::dates::Dates;
use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::guard::{MarkedSnapshot, marked_snapshots};
use zmreplica::layout::{Label, SessionKind};
use zmreplica::nightly::status::pack_bytes;
use zmreplica::report::{self, AccountRow, Event, Night, NightState, Report, SessionBar};
use zmreplica::view::{Readers, SnapshotView, ViewOptions};
use zmreplica::zimbra::Analysis;
use zmreplica::zimbra::account::{Account, RestoreState};
use zmreplica::zimbra::history::{SessionLife, session_lives, session_names};
use zmreplica::zimbra::ledger::{ChangedAccount, Changes, Ledger, Page, Summary};

use super::accounts::{self, before_and_with};
use super::error::{CliError, Exit};
use super::leased::Leased;
use super::{Context, text};

/// Accounts that a line about several names at most.
const NAMED: usize = 10;

/// Arguments of `report`.
#[derive(Args)]
pub(crate) struct ReportArgs {
    /// The file to write; `-` for stdout
    #[arg(value_name = "FILE.html")]
    file: PathBuf,
    /// The newest snapshot to report on
    #[arg(long, value_name = "SNAP", default_value = "latest")]
    snapshot: String,
    /// Cover the snapshots of the last N days
    #[arg(long, value_name = "N", default_value_t = 35)]
    days: u32,
}

#[derive(Serialize)]
struct WrittenEvent<'a> {
    event: &'static str,
    file: &'a str,
    bytes: u64,
    snapshots: u64,
    accounts: u64,
}

pub(crate) fn run(context: &Context, args: &ReportArgs) -> Result<Exit, CliError> {
    let (report, exit) = gather(context, args)?;
    if args.file == Path::new("-") {
        let mut stdout = context.output.stdout();
        report::write(&report, &mut *stdout)?;
        return Ok(exit);
    }
    let bytes = report::write_file(&report, &args.file, context.config.report_mode()).map_err(|error| {
        CliError::Failed(format!("Cannot write {}: {error}", text::escape(args.file.as_os_str().as_encoded_bytes())))
    })?;
    let file = args.file.display().to_string();
    let (snapshots, accounts) = (report.nights.len() as u64, report.accounts.len() as u64);
    if context.output.json() {
        context.output.event(&WrittenEvent { event: "report", file: &file, bytes, snapshots, accounts })?;
    } else {
        context.output.note(&format!(
            "{}: {}, {}, {}",
            text::escape(file.as_bytes()),
            text::bytes(bytes),
            text::plural(snapshots, "snapshot", "snapshots"),
            text::plural(accounts, "account", "accounts")
        ));
    }
    Ok(exit)
}

fn gather(context: &Context, args: &ReportArgs) -> Result<(Report, Exit), CliError> {
    let replica = context.open()?;
    let readers =
        Readers::new(Arc::new(replica.following_catalog()?), Arc::new(replica.chunks()), ViewOptions::default());
    let purpose = Path::new("zmreplica report");
    let Leased { snapshots: all, lease: _lease } =
        accounts::leased_before(context, &replica, readers.catalog(), purpose, &args.snapshot)?;
    let chosen = all.resolve(&args.snapshot)?;
    let records: Vec<&SnapshotRecord> =
        before_and_with(&all, chosen).into_iter().map(|snapshot| &snapshot.record).collect();
    let view = |record: &SnapshotRecord| SnapshotView::over(&readers, record.clone());
    let mut names = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        names.push(session_names(&view(record)?, b"", at)?);
    }
    let lives = session_lives(&names);
    let since = chosen.record.time.checked_sub(Span::new().hours(24 * i64::from(args.days))).unwrap_or(Timestamp::MIN);
    let dates = Dates::read(readers.catalog(), Timestamp::now())?;
    let mut follower =
        Follower { max_session_age: context.age_limits(all.source_name(chosen)).session, ..Follower::default() };
    let mut ledger = Ledger::open(&replica, readers.clone(), &all);
    for (at, snapshot) in before_and_with(&all, chosen).into_iter().enumerate() {
        let record = &snapshot.record;
        if record.time >= since || at + 1 == records.len() {
            let moment = dates.moment(snapshot.number).unwrap_or(record.time);
            follower.night(at, record, moment, ledger.page(record)?);
        }
    }
    let newest = ledger.analysis(&chosen.record)?;
    ledger.close();
    let exit = accounts::unread(context, &newest).unwrap_or(Exit::Done);
    // Of one night the guard's word comes first: the sort below keeps the order.
    let mut events = suspects(&readers, &records)?;
    events.extend(lives.iter().filter_map(|life| vanished(&records, life)));
    events.extend(std::mem::take(&mut follower.events));
    events.sort_by_key(|(at, _)| *at);
    let concerns = std::mem::take(&mut follower.concerns);
    let nights = records.iter().enumerate().map(|(at, record)| night(at, record, &events, &concerns)).collect();
    // What goes on stands above everything else.
    let going_on = concerns.range(records.len() - 1..).flat_map(|(_, sentences)| sentences.iter().cloned());
    let report = Report {
        made: Timestamp::now(),
        zone: TimeZone::system(),
        source: chosen.record.source.clone(),
        store: replica.path().display().to_string(),
        pack_bytes: pack_bytes(readers.catalog())?,
        nights,
        sessions: lives.iter().map(|life| bar(&records, life)).collect(),
        accounts: newest.accounts.iter().map(|account| follower.row(&records, &newest, account)).collect(),
        events: events.into_iter().map(|(_, event)| event).collect(),
        remarks: going_on.chain(remarks(&newest)).collect(),
    };
    Ok((report, exit))
}

/// Reports the snapshots that the guard found suspect and nobody has accepted.
fn suspects(readers: &Readers, records: &[&SnapshotRecord]) -> Result<Vec<(usize, Event)>, CliError> {
    let mut events = Vec::new();
    for one in marked_snapshots(readers.catalog())?.into_iter().filter(MarkedSnapshot::is_suspect) {
        if let Some(at) = records.iter().position(|record| record.id == one.record.id) {
            let reasons: Vec<&str> = one.record.suspect_reasons().iter().map(|reason| reason.text.as_str()).collect();
            let text = format!("{} is suspect: {}", one.record.short_id(), reasons.join("; "));
            events.push((at, Event { time: one.record.time, is_bad: true, text }));
        }
    }
    Ok(events)
}

fn remarks(analysis: &Analysis) -> Vec<String> {
    let sessions = analysis.sessions.iter();
    let of_sessions = sessions.flat_map(|session| session.remarks.iter().map(move |remark| (&session.label, remark)));
    let shared = analysis.shared_remarks.iter().map(|(at, remark)| (&analysis.sessions[*at].label, remark));
    let described = of_sessions.chain(shared).map(|(label, remark)| format!("{label}: {remark}"));
    analysis.remarks.iter().cloned().chain(described).collect()
}

fn night(
    at: usize,
    record: &SnapshotRecord,
    events: &[(usize, Event)],
    concerns: &BTreeMap<usize, Vec<String>>,
) -> Night {
    let bad = events.iter().filter(|(of, event)| *of == at && event.is_bad).map(|(_, event)| &event.text);
    let first = bad.chain(concerns.get(&at).into_iter().flatten()).next();
    let (state, remark) = match (first, record.problem_count) {
        (Some(first), _) => (NightState::Attention, first.clone()),
        (None, 0) => (NightState::Complete, String::new()),
        (None, problems) => (NightState::Problems, text::plural(problems, "problem", "problems")),
    };
    Night {
        id: record.short_id().to_owned(),
        time: record.time,
        state,
        remark,
        source_bytes: record.totals.bytes,
        new_bytes: record.work.new_bytes,
        stored_bytes: record.work.stored_bytes,
    }
}

fn vanished(records: &[&SnapshotRecord], life: &SessionLife) -> Option<(usize, Event)> {
    let gone = life.vanished.as_ref()?;
    let text = match &gone.unexpected {
        None => format!("{} was deleted in its time", life.label),
        Some(reason) => format!("{} vanished: {reason}", life.label),
    };
    Some((gone.snapshot, Event { time: records[gone.snapshot].time, is_bad: gone.unexpected.is_some(), text }))
}

fn bar(records: &[&SnapshotRecord], life: &SessionLife) -> SessionBar {
    SessionBar {
        label: life.label.clone(),
        is_full: Label::parse(&life.label).is_some_and(|label| label.kind == SessionKind::Full),
        start: life.start,
        appeared: records[life.appeared].time,
        last_seen: records[life.last_seen].time,
        vanished: life.vanished.as_ref().map(|gone| records[gone.snapshot].time),
        unexpected: life.vanished.as_ref().and_then(|gone| gone.unexpected.clone()),
    }
}

/// Follows accounts from snapshot to snapshot.
#[derive(Default)]
struct Follower {
    /// The page of the snapshot before.
    before: Option<Page>,
    /// The last snapshot in which each was up to date.
    last_up_to_date: HashMap<String, usize>,
    /// How old the newest session may be.
    max_session_age: Option<Duration>,
    events: Vec<(usize, Event)>,
    /// What was wrong with a night by itself: as an event it is reported when it begins.
    concerns: BTreeMap<usize, Vec<String>>,
}

impl Follower {
    fn night(&mut self, at: usize, record: &SnapshotRecord, moment: Timestamp, page: Page) {
        for entry in page.accounts.iter().filter(|entry| entry.restore_state() == RestoreState::UpToDate) {
            self.last_up_to_date.insert(entry.id.clone(), at);
        }
        if page.is_zimbra() {
            let concerns = Summary::of(&page, moment).concerns(self.max_session_age);
            let sentence = |concern| accounts::night::concern_sentence(concern, self.max_session_age);
            let sentences: Vec<String> = concerns.iter().map(sentence).collect();
            if let (Some(first), false) = (sentences.first(), at > 0 && self.concerns.contains_key(&(at - 1))) {
                self.events.push((at, Event { time: record.time, is_bad: true, text: first.clone() }));
            }
            if !sentences.is_empty() {
                self.concerns.insert(at, sentences);
            }
        }
        if let Some(before) = &self.before {
            let Changes { no_longer_whole, mut worse, more_gaps, left, whole_again, new, .. } =
                Changes::between(before, &page);
            worse.extend(more_gaps);
            worse.extend(no_longer_whole);
            let found = [
                (described("less restorable than before", &worse), true),
                (described("gone with the last session that held them", &left), false),
                (described("restorable to the newest time again", &whole_again), false),
                (described("new", &new), false),
            ];
            for (text, is_bad) in found {
                if let Some(text) = text {
                    self.events.push((at, Event { time: record.time, is_bad, text }));
                }
            }
        }
        self.before = Some(page);
    }

    fn row(&self, records: &[&SnapshotRecord], analysis: &Analysis, account: &Account) -> AccountRow {
        let state = account.restore_state();
        let last = self.last_up_to_date.get(&account.id).filter(|_| state != RestoreState::UpToDate);
        AccountRow {
            email: account.email.clone(),
            state,
            newest_full: account
                .fulls
                .last()
                .map_or_else(|| "none".to_owned(), |full| analysis.sessions[full.session].label.clone()),
            intervals: account.intervals.iter().map(|interval| (interval.from, interval.to)).collect(),
            missing: account.faults.iter().map(|fault| fault.text.clone()).collect(),
            last_up_to_date: last
                .map(|at| format!("{} of {}", records[*at].short_id(), text::local_time(records[*at].time))),
        }
    }
}

/// Names accounts of which something is to be reported; `None` when there are none.
fn described(what: &str, accounts: &[ChangedAccount]) -> Option<String> {
    let mut emails: Vec<&str> = accounts.iter().map(|account| account.email.as_str()).collect();
    emails.sort_unstable();
    let named = emails.get(..NAMED).unwrap_or(&emails);
    let more = emails.len() - named.len();
    let rest = if more > 0 { format!(" and {} more", text::count(more as u64)) } else { String::new() };
    let count = text::plural(emails.len() as u64, "account is", "accounts are");
    (!emails.is_empty()).then(|| format!("{count} {what}: {}{rest}", named.join(", ")))
}
