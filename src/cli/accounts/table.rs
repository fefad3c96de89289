//! All accounts of a snapshot, one a line.

use comfy_table::Color;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::view::StoredSnapshot;
use zmreplica::zimbra::Analysis;
use zmreplica::zimbra::account::{Account, Answer, Fault, Interval, RestoreState, Severity, StateCounts};

use super::super::error::CliError;
use super::super::output::Output;
use super::super::table::Cell;
use super::super::{table, text};
use super::{AccountEvent, AccountsContext, Compared, is_up_to_date, print_moved, print_remarks};

#[derive(Serialize)]
struct SummaryEvent<'a> {
    event: &'static str,
    snapshot: &'a str,
    time: Timestamp,
    #[serde(flatten)]
    counts: StateCounts,
    remarks: Vec<String>,
    compared_with: Option<&'a str>,
    no_longer_whole: Vec<&'a str>,
    less_restorable: Vec<&'a str>,
}

pub(super) fn run(
    shared: &AccountsContext<'_>,
    chosen: &StoredSnapshot,
    analysis: &Analysis,
    at: Option<Timestamp>,
    compared: &Compared,
) -> Result<(), CliError> {
    let output = &shared.context.output;
    let record = &chosen.record;
    let rows = analysis.accounts.iter().filter(|account| !shared.args.faulty || !is_up_to_date(account));
    if output.json() {
        for account in rows {
            output.event(&AccountEvent::new(&record.id, analysis, account, at))?;
        }
        let of_session = |session: usize, remark: &String| format!("{}: {remark}", analysis.sessions[session].label);
        let mut remarks = analysis.remarks.clone();
        for (place, session) in analysis.sessions.iter().enumerate() {
            remarks.extend(session.remarks.iter().map(|remark| of_session(place, remark)));
        }
        remarks.extend(analysis.shared_remarks.iter().map(|(place, remark)| of_session(*place, remark)));
        return Ok(output.event(&SummaryEvent {
            event: "summary",
            snapshot: &record.id,
            time: record.time,
            counts: counts(analysis),
            remarks,
            compared_with: compared.with.as_deref(),
            no_longer_whole: compared.no_longer_whole.iter().map(|account| account.email.as_str()).collect(),
            less_restorable: compared.less_restorable().map(|account| account.email.as_str()).collect(),
        })?);
    }
    print_remarks(shared.context, analysis);
    let rows: Vec<&Account> = rows.collect();
    if !rows.is_empty() {
        match at {
            Some(time) => moment(output, analysis, &rows, time)?,
            None => overview(output, analysis, &rows)?,
        }
    }
    output.note(&format!(
        "{} of {}: {}",
        record.short_id(),
        text::local_time(record.time),
        format_counts(&counts(analysis))
    ));
    print_moved(shared, &shared.view(record)?)?;
    let less: Vec<&str> = compared.less_restorable().map(|account| account.email.as_str()).collect();
    if let (Some(with), false) = (&compared.with, less.is_empty()) {
        let with = with.get(..8).unwrap_or(with);
        output.warn(&format!(
            "Less can be restored than from the previous snapshot, {with}, of {}: {}. `zmreplica accounts --account ADDRESS` explains how to restore one",
            text::plural(less.len() as u64, "account", "accounts"),
            text::first_of(less.into_iter())
        ));
    }
    Ok(())
}

fn overview(output: &Output, analysis: &Analysis, rows: &[&Account]) -> Result<(), CliError> {
    let mut table =
        table::new(output, &["ACCOUNT", "STATE", "NEWEST FULL", "RESTORABLE FROM", "TO", "WHAT IS MISSING"], &[]);
    for account in rows {
        let newest = account.fulls.last().map_or("-", |full| &analysis.sessions[full.session].label);
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), text::local_time);
        let mut missing = faults_in_short(account.gravest_fault(), account.faults.len() as u64);
        if account.intervals.len() > 1 {
            let hole =
                |pair: &[Interval]| format!("{} to {}", text::local_time(pair[0].to), text::local_time(pair[1].from));
            let holes: Vec<String> = account.intervals.windows(2).map(hole).collect();
            let holes = format!("not {}", holes.join(", not "));
            missing = if missing.is_empty() { holes } else { format!("{holes}; {missing}") };
        }
        table.add_row(vec![
            Cell::new(text::escape(account.email.as_bytes())),
            Cell::new(account.restore_state().words()).fg(colour(account.restore_state())),
            Cell::new(text::escape(newest.as_bytes())),
            Cell::new(time(account.intervals.first().map(|interval| interval.from))),
            Cell::new(time(account.intervals.last().map(|interval| interval.to))),
            Cell::new(missing),
        ]);
    }
    table::write(output, &mut table)
}

fn moment(output: &Output, analysis: &Analysis, rows: &[&Account], time: Timestamp) -> Result<(), CliError> {
    let mut table = table::new(output, &["ACCOUNT", "RESTORABLE", "FROM", "REMARK"], &[]);
    for account in rows {
        let (word, colour, from, remark) = match account.answer(Some(time)) {
            Answer::Restorable { full, usual } => {
                let full = &account.fulls[full];
                let label = &analysis.sessions[full.session].label;
                let remark = match (usual, full.complete) {
                    (true, true) => String::new(),
                    (false, _) => "a newer full is unusable: name this one (-lb)".to_owned(),
                    (true, false) => faults_in_short(account.gravest_fault(), account.faults.len() as u64),
                };
                ("yes", if remark.is_empty() { Color::Green } else { Color::Yellow }, label.as_str(), remark)
            }
            Answer::Only { time: Some(last) } => (
                "no",
                Color::Red,
                "-",
                format!("the last time before that can be restored is {}", text::local_time(last)),
            ),
            Answer::Only { time: None } => ("no", Color::Red, "-", "no full session holds it as of then".to_owned()),
        };
        table.add_row(vec![
            Cell::new(text::escape(account.email.as_bytes())),
            Cell::new(word).fg(colour),
            Cell::new(text::escape(from.as_bytes())),
            Cell::new(remark),
        ]);
    }
    table::write(output, &mut table)
}

fn counts(analysis: &Analysis) -> StateCounts {
    StateCounts::of(analysis.accounts.iter().map(|account| (account.state, account.restore_state())))
}

/// Reports how many accounts there are, and how many in which state.
pub(super) fn format_counts(counts: &StateCounts) -> String {
    let all = text::plural(counts.accounts, "account", "accounts");
    let present = counts.by_restore_state().into_iter().filter(|(_, count)| *count > 0);
    let described: Vec<String> =
        present.map(|(state, count)| format!("{} {}", text::count(count), state.words())).collect();
    if described.is_empty() { all } else { format!("{all}: {}", described.join(", ")) }
}

/// Returns the colour of a state.
pub(super) fn colour(state: RestoreState) -> Color {
    match state {
        RestoreState::UpToDate => Color::Green,
        RestoreState::WithGaps | RestoreState::Behind => Color::Yellow,
        RestoreState::Lost => Color::Red,
    }
}

/// Returns the gravest fault of an account, and how many more there are.
pub(super) fn faults_in_short(gravest: Option<&Fault>, count: u64) -> String {
    let Some(worst) = gravest else { return String::new() };
    let more = count.saturating_sub(1);
    let rest = if more > 0 { format!(" (+{more})") } else { String::new() };
    let prefix = if worst.severity == Severity::Notice { "note: " } else { "" };
    format!("{prefix}{}{rest}", text::escape(worst.text.as_bytes()))
}
