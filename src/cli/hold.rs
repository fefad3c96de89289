//! `zmreplica hold` and `release`: let no run take or remove anything, and let them again.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use zmreplica::guard::{self, Hold};
use zmreplica::replica::Replica;
use zmreplica::view::parse_time;

use super::config::Span;
use super::error::{CliError, Exit};
use super::{Context, text};

/// Arguments of `hold`.
#[derive(Args)]
pub(crate) struct HoldArgs {
    /// The reason, shown to others
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Release the hold automatically: at a time (2026-11-22, meaning the end of that day, or 2026-11-22T06:00) or after a span (12h, 3d)
    #[arg(long, value_name = "TIME", value_parser = parse_end)]
    until: Option<Timestamp>,
}

/// Arguments of `release`.
#[derive(Args)]
pub(crate) struct ReleaseArgs {}

#[derive(Serialize)]
#[serde(tag = "event", rename = "hold")]
struct HoldEvent {
    held: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<Hold>,
}

fn parse_end(given: &str) -> Result<Timestamp, String> {
    let now = Timestamp::now();
    // Five months are as likely to be meant by 5m as five minutes, and a hold must not end too early.
    let is_clear = given.ends_with(['s', 'h', 'd']) || given.ends_with("min");
    let end = match given.parse::<Span>() {
        Ok(_) if !is_clear => None,
        Ok(span) => now.checked_add(span.0).ok(),
        Err(_) => parse_time(given),
    };
    match end {
        None => Err("give a time such as 2026-11-22 or 2026-11-22T06:00, or a span such as 12h or 3d".to_owned()),
        Some(end) if end <= now => Err("that is over already".to_owned()),
        Some(end) => Ok(end),
    }
}

/// Says that a store is held, since when and why.
pub(crate) fn sentence(hold: &Hold) -> String {
    let mut text = format!("The store has been on hold since {}", text::local_time(hold.since));
    if let Some(until) = hold.until {
        text.push_str(&format!(", until {}", text::local_time(until)));
        if until <= Timestamp::now() {
            text.push_str(
                ", which would be over, but the clock has jumped since the last snapshot; if the clock is right, `zmreplica release` ends it",
            );
        }
    }
    if let Some(reason) = &hold.reason {
        text.push_str(&format!(": {}", text::escape(reason.as_bytes())));
    }
    text
}

/// Refuses to go on while the store is held.
pub(crate) fn refuse(replica: &Replica) -> Result<(), CliError> {
    match guard::hold_in_force(&replica.catalog()?, Timestamp::now())? {
        Some(hold) => Err(CliError::Held(sentence(&hold))),
        None => Ok(()),
    }
}

pub(crate) fn hold(context: &Context, args: &HoldArgs) -> Result<Exit, CliError> {
    let replica = context.open_locked()?;
    let hold = Hold { since: Timestamp::now(), until: args.until, reason: args.reason.clone() };
    let mut writer = replica.writer()?;
    writer.set_hold(Some(&hold))?;
    writer.commit()?;
    if context.output.json() {
        context.output.event(&HoldEvent { held: true, hold: Some(hold) })?;
    } else {
        context.output.note(&format!("{}. `zmreplica release` ends it.", sentence(&hold)));
    }
    Ok(Exit::Done)
}

pub(crate) fn release(context: &Context, _args: &ReleaseArgs) -> Result<Exit, CliError> {
    let replica = context.open_locked()?;
    let was = guard::hold_in_force(&replica.catalog()?, Timestamp::now())?;
    if was.is_some() {
        let mut writer = replica.writer()?;
        writer.set_hold(None)?;
        writer.commit()?;
    }
    if context.output.json() {
        context.output.event(&HoldEvent { held: false, hold: None })?;
    } else {
        context.output.note(match was {
            Some(_) => "The hold is released: runs take and remove snapshots again.",
            None => "The store was not held.",
        });
    }
    Ok(Exit::Done)
}
