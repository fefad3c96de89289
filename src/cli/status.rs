//! `zmreplica status`: reports in ten lines, and some for each further source, whether the replica is healthy.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::nightly::status::{AgeLimits, Finding, SourceStatus, Status};

use super::accounts::night;
use super::config::{AgeLimit, Span};
use super::error::{CliError, Exit};
use super::output::{GOOD, WARNING};
use super::{Context, clock, hold, text};

/// Suspect snapshots that are reported one by one.
const TOLD: usize = 3;

/// Arguments of `status`.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 healthy; 4 something needs attention (no snapshot, too old, suspect, problems, a failed nightly run, accounts of which less can be restored, no account that can be restored, no recent session); 6 on hold, and otherwise healthy; 7 damage; 1 the state cannot be determined.")]
pub(crate) struct StatusArgs {
    /// Report the newest snapshot as too old beyond this age [default: `max-age` in the configuration file, else 36h]
    #[arg(long, value_name = "SPAN")]
    max_age: Option<Span>,
    /// Report that zmbackup seems to have stopped if the newest session that a restore can use was older than this in the newest snapshot; `off` for no
    /// limit [default: `max-session-age` in the configuration file, else 3d]
    #[arg(long, value_name = "SPAN")]
    max_session_age: Option<AgeLimit>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "status")]
struct StatusEvent<'a> {
    /// `fine`, `attention` or `held`.
    verdict: &'static str,
    findings: Vec<String>,
    exit_code: u8,
    #[serde(flatten)]
    status: &'a Status,
}

pub(crate) fn run(context: &Context, args: &StatusArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let mut status = Status::gather(&replica, Timestamp::now())?;
    if let Some(source) = &context.source {
        let sources = replica.catalog()?.sources()?;
        status.only(sources.name(Some(sources.find(source)?)));
    }
    let limits_of = |source: &str| {
        let configured = context.age_limits(source);
        AgeLimits {
            snapshot: args.max_age.map_or(configured.snapshot, |age| age.0),
            session: args.max_session_age.map_or(configured.session, |limit| limit.0),
        }
    };
    let findings = status.findings(limits_of);
    let findings: Vec<String> = findings.iter().map(|finding| sentence(finding, limits_of)).collect();
    let (verdict, exit) = match (&status.hold, findings.is_empty()) {
        (_, false) => ("attention", Exit::Attention),
        (Some(_), true) => ("held", Exit::Held),
        (None, true) => ("fine", Exit::Done),
    };
    if output.json() {
        output.event(&StatusEvent { verdict, findings, exit_code: exit as u8, status: &status })?;
        return Ok(exit);
    }
    let (style, head) = match verdict {
        "fine" => (GOOD, "The replica is fine."),
        "held" => (WARNING, "The replica is healthy, and on hold: nothing is stored or removed."),
        _ => (WARNING, "Look at this:"),
    };
    output.line(&output.styled(style, head))?;
    for finding in &findings {
        output.line(&format!("  {finding}"))?;
    }
    for (name, value) in lines(&status) {
        output.line(&format!("{name:<11} {value}"))?;
    }
    Ok(exit)
}

fn sentence(finding: &Finding, limits_of: impl Fn(&str) -> AgeLimits) -> String {
    match finding {
        Finding::NoSnapshotOf { source } => {
            format!("The source {source} has no snapshot; `zmreplica source retire {source}` if it is no more")
        }
        Finding::NoSnapshot => "The store has no snapshot yet; `zmreplica snapshot` takes one".to_owned(),
        Finding::Old { source, age_seconds } => format!(
            "The newest snapshot of {} is {} old; it should be {} at most",
            text::escape(source.as_bytes()),
            text::age(*age_seconds),
            text::age(i64::try_from(limits_of(source).snapshot.as_secs()).unwrap_or(i64::MAX)),
        ),
        Finding::Clock { source, doubt } => clock::sentence(source, doubt),
        Finding::Suspect { source, count } => format!(
            "{} of {source} {} suspect and not accepted; `zmreplica snapshots` shows why",
            text::plural(*count, "snapshot", "snapshots"),
            if *count == 1 { "is" } else { "are" },
        ),
        Finding::NightFailed { source, night } => format!(
            "The last nightly run{} failed at {} (exit code {}): {}",
            if source.is_empty() { String::new() } else { format!(" of {}", text::escape(source.as_bytes())) },
            text::local_time(night.finished),
            night.exit_code,
            text::escape(night.message.as_bytes()),
        ),
        Finding::Restorable { source, concern } => {
            format!(
                "{}: {}",
                text::escape(source.as_bytes()),
                night::concern_sentence(concern, limits_of(source).session)
            )
        }
        Finding::LessRestorable { source, count } => format!(
            "Of {} less can be restored from the newest snapshot of {} than the night before; `zmreplica accounts --faulty` lists them",
            text::plural(*count, "account", "accounts"),
            text::escape(source.as_bytes()),
        ),
        Finding::Problems { source, count } => format!(
            "The newest snapshot of {} has {}",
            text::escape(source.as_bytes()),
            text::plural(*count, "problem", "problems")
        ),
    }
}

fn lines(status: &Status) -> Vec<(&'static str, String)> {
    let mut lines = vec![(
        "Store",
        format!(
            "{}: {} ({} in packs)",
            status.store,
            text::bytes(status.store_bytes()),
            text::bytes(status.pack_bytes)
        ),
    )];
    lines.push(("Snapshots", format!("{}, {} pinned", text::count(status.snapshots), text::count(status.pinned))));
    for SourceStatus { name, newest, age_seconds, last_good, restorable, .. } in &status.sources {
        let state = match newest.problem_count {
            0 => newest.state.to_owned(),
            count => format!("{}, {}", newest.state, text::plural(count, "problem", "problems")),
        };
        let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
        lines.push((
            "Newest",
            format!(
                "{} of {}, {} ago, of {}: {state}; {}, {}",
                short(&newest.id),
                text::local_time(newest.time),
                text::age(*age_seconds),
                name,
                text::plural(newest.names, "name", "names"),
                text::bytes(newest.bytes),
            ),
        ));
        if newest.state == "suspect" {
            let good = last_good.as_ref().map(|good| format!("{} of {}", short(&good.id), text::local_time(good.time)));
            lines.push(("Last good", good.unwrap_or_else(|| "none".to_owned())));
        }
        if let Some(found) = restorable {
            let hint =
                if found.counts.up_to_date < found.counts.accounts { " (`zmreplica accounts --faulty`)" } else { "" };
            lines.push(("Accounts", format!("{}{hint}", night::accounts_line(found))));
            lines.push(("Sessions", night::sessions_line(found)));
        }
    }
    for suspect in status.suspects.iter().rev().take(TOLD) {
        let reasons = suspect.reasons.join("; ");
        lines.push(("Suspect", format!("{}: {reasons}", suspect.id.get(..8).unwrap_or(&suspect.id))));
    }
    if status.suspects.len() > TOLD {
        let more = text::count((status.suspects.len() - TOLD) as u64);
        lines.push(("Suspect", format!("{more} more; `zmreplica snapshots` lists them")));
    }
    if status.condemned_bytes > 0 {
        let bytes = text::bytes(status.condemned_bytes);
        lines.push(("Condemned", format!("{bytes} that nothing needs will be deleted by a later prune")));
    }
    lines.push(("Held", status.hold.as_ref().map_or("no".to_owned(), hold::sentence)));
    let mounts: Vec<String> = status
        .leases
        .iter()
        .map(|lease| format!("{} (process {})", text::escape(lease.mount_point.as_bytes()), lease.pid))
        .collect();
    lines.push(("Mounted", if mounts.is_empty() { "nothing".to_owned() } else { mounts.join(", ") }));
    let writer = status.writer.as_deref().unwrap_or("nobody");
    lines.push(("Writing", writer.to_owned()));
    lines
}
