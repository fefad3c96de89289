//! A report of a store as one HTML page that needs nothing else: no network, no further files.
//!
//! Whoever calls gathers the [`Report`]; [`write()`] only puts it down. Every text is escaped, and the page's own policy forbids it to load anything.
//! Without scripts everything is shown; a script adds the search.

mod charts;
mod html;

use std::io::{self, BufWriter, Write};
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::access::Replacement;
use crate::figures::{bytes, count};
use crate::zimbra::account::AccountState;
use html::{Escaped, day_and_time};

/// How a night ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NightState {
    /// All is well.
    Complete,
    /// Some files could not be read.
    Problems,
    /// A person should look: sessions vanished, or accounts are no longer whole.
    Attention,
}

impl NightState {
    fn class(self) -> &'static str {
        match self {
            NightState::Complete => "good",
            NightState::Problems => "warn",
            NightState::Attention => "bad",
        }
    }

    fn words(self) -> &'static str {
        match self {
            NightState::Complete => "complete",
            NightState::Problems => "with problems",
            NightState::Attention => "needs attention",
        }
    }
}

/// One snapshot.
#[derive(Clone, Debug)]
pub struct Night {
    /// First digits of the snapshot's identifier.
    pub id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// How it ended.
    pub state: NightState,
    /// What it is about it, in words.
    pub remark: String,
    /// Bytes of all its inodes, each counted once.
    pub source_bytes: u64,
    /// Bytes of chunks that it added, before compression.
    pub new_bytes: u64,
    /// Bytes that it added to the packs.
    pub stored_bytes: u64,
}

/// One session across the snapshots.
#[derive(Clone, Debug)]
pub struct SessionBar {
    /// Its label.
    pub label: String,
    /// Whether it is a full one.
    pub is_full: bool,
    /// When it started.
    pub start: Timestamp,
    /// The first snapshot with it.
    pub appeared: Timestamp,
    /// The last snapshot with it.
    pub last_seen: Timestamp,
    /// The first snapshot without it.
    pub vanished: Option<Timestamp>,
    /// Why it should not have vanished.
    pub unexpected: Option<String>,
}

/// One account of the newest snapshot.
#[derive(Clone, Debug)]
pub struct AccountRow {
    /// Its address.
    pub email: String,
    /// What can be restored of it.
    pub state: AccountState,
    /// Its newest full.
    pub newest_full: String,
    /// The times to which it can be restored.
    pub intervals: Vec<(Timestamp, Timestamp)>,
    /// What is missing, in words.
    pub missing: Vec<String>,
    /// The snapshot in which it was last whole, if it is not now.
    pub last_whole: Option<String>,
}

/// Something that vanished or broke between two snapshots.
#[derive(Clone, Debug)]
pub struct Event {
    /// The snapshot that shows it.
    pub time: Timestamp,
    /// Whether a person should look at it.
    pub is_bad: bool,
    /// What it was, in words.
    pub text: String,
}

/// What a page shows.
#[derive(Clone, Debug)]
pub struct Report {
    /// When it was made.
    pub made: Timestamp,
    /// The zone in which times are shown.
    pub zone: TimeZone,
    /// What is replicated.
    pub source: String,
    /// Directory of the store.
    pub store: String,
    /// Bytes that the packs take.
    pub pack_bytes: u64,
    /// The snapshots, oldest first.
    pub nights: Vec<Night>,
    /// The sessions, by start.
    pub sessions: Vec<SessionBar>,
    /// The accounts, by address.
    pub accounts: Vec<AccountRow>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
    /// What is odd about the newest snapshot's tree.
    pub remarks: Vec<String>,
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The page may use what is in it and nothing else.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Mode of a new page: it has addresses in it.
const MODE: u32 = 0o640;

/// Writes the page beside its place and moves it there, so that a viewer never sees half a page. The file that it replaces hands on its mode unless one is
/// `wanted`. Returns its size.
///
/// # Errors
/// Fails when it cannot be written; the old page stays then.
pub fn write_file(report: &Report, path: &Path, wanted: Option<u32>) -> io::Result<u64> {
    let mut out = BufWriter::new(Replacement::beside_store(path, wanted, MODE)?);
    write(report, &mut out)?;
    let new = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let bytes = new.length()?;
    new.finish()?;
    Ok(bytes)
}

/// Writes the page.
///
/// # Errors
/// Fails when `out` does.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let source = Escaped(&report.source);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>Replica of {source}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Replica of {source}</h1>\n"
    )?;
    writeln!(
        out,
        "<p class=\"sub\">Store {}, as of {}. Times are in {}.</p>",
        Escaped(&report.store),
        day_and_time(report.made, &report.zone),
        Escaped(report.zone.iana_name().unwrap_or("the local zone of the host that made the report"))
    )?;
    headline(report, out)?;
    charts::calendar(report, out)?;
    charts::growth(report, out)?;
    charts::sessions(report, out)?;
    events(report, out)?;
    accounts(report, out)?;
    write!(out, "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n")
}

/// The figures that matter first.
fn headline(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let of = |state: AccountState| report.accounts.iter().filter(|account| account.state == state).count() as u64;
    let total = report.accounts.len() as u64;
    let whole = of(AccountState::Whole);
    let mut cards: Vec<(&str, String, String)> = Vec::new();
    let class = if total > 0 && whole == total { "good" } else { "bad" };
    let mut others = Vec::new();
    for state in [AccountState::Incomplete, AccountState::Behind, AccountState::Lost] {
        if of(state) > 0 {
            others.push(format!("{} {}", count(of(state)), state.word()));
        }
    }
    let others = match (total, others.is_empty()) {
        (0, _) => "the snapshot knows no account".to_owned(),
        (_, true) => "nothing is missing".to_owned(),
        (_, false) => others.join(", "),
    };
    cards.push((
        class,
        format!("{} of {}", count(whole), count(total)),
        format!("accounts can be restored whole; {others}"),
    ));
    if let Some(night) = report.nights.last() {
        let when = day_and_time(night.time, &report.zone);
        cards.push((night.state.class(), when, format!("newest snapshot, {}: {}", night.id, night.state.words())));
        let held: u64 = report.nights.iter().map(|night| night.source_bytes).sum();
        let ratio = if report.pack_bytes > 0 { held as f64 / report.pack_bytes as f64 } else { 0.0 };
        cards.push((
            "plain",
            bytes(report.pack_bytes),
            format!(
                "hold {} snapshots of together {}: {ratio:.1} times less",
                count(report.nights.len() as u64),
                bytes(held)
            ),
        ));
    }
    writeln!(out, "<section class=\"cards\">")?;
    for (class, value, words) in cards {
        writeln!(out, "<div class=\"card {class}\"><b>{}</b><span>{}</span></div>", Escaped(&value), Escaped(&words))?;
    }
    writeln!(out, "</section>")?;
    for remark in &report.remarks {
        writeln!(out, "<p class=\"remark\">{}</p>", Escaped(remark))?;
    }
    Ok(())
}

fn events(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "<section id=\"events\"><h2>What vanished or broke</h2>")?;
    if report.events.is_empty() {
        return writeln!(out, "<p>Nothing in the time shown.</p></section>");
    }
    writeln!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>Snapshot of</th><th></th><th>What</th></tr></thead><tbody>"
    )?;
    for event in report.events.iter().rev() {
        let (class, word) = if event.is_bad { ("bad", "look") } else { ("good", "fine") };
        writeln!(
            out,
            "<tr><td class=\"time\">{}</td><td><span class=\"tag {class}\">{word}</span></td><td>{}</td></tr>",
            day_and_time(event.time, &report.zone),
            Escaped(&event.text)
        )?;
    }
    writeln!(out, "</tbody></table></div></section>")
}

fn accounts(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<section id=\"accounts\"><h2>Accounts</h2>\n<p class=\"controls\"><label>Search <input id=\"search\" type=\"search\" autocomplete=\"off\" \
         placeholder=\"address, state, session\"></label> <label><input id=\"faulty\" type=\"checkbox\"> not whole only</label> <span id=\"shown\" \
         aria-live=\"polite\">{} accounts</span></p>",
        count(report.accounts.len() as u64)
    )?;
    writeln!(
        out,
        "<div class=\"scroll\"><table><thead><tr><th>Account</th><th>State</th><th>Newest full</th><th>Restorable</th><th>What is missing</th></tr></thead>\
         <tbody id=\"rows\">"
    )?;
    let span = span(report);
    for account in &report.accounts {
        let state = account.state;
        let class = match state {
            AccountState::Whole => "good",
            AccountState::Incomplete | AccountState::Behind => "warn",
            AccountState::Lost => "bad",
        };
        write!(
            out,
            "<tr><td class=\"name\">{}</td><td><span class=\"tag {class}\">{}</span></td><td class=\"time\">{}</td><td>",
            Escaped(&account.email),
            state.word(),
            Escaped(&account.newest_full)
        )?;
        charts::intervals(account, span, &report.zone, out)?;
        write!(out, "</td><td>")?;
        for text in &account.missing {
            write!(out, "<div>{}</div>", Escaped(text))?;
        }
        if let Some(last) = &account.last_whole {
            write!(out, "<div>last whole in the snapshot {}</div>", Escaped(last))?;
        }
        writeln!(out, "</td></tr>")?;
    }
    writeln!(out, "</tbody></table></div></section>")
}

/// Returns the times that the accounts' bars span.
fn span(report: &Report) -> (Timestamp, Timestamp) {
    let all = || report.accounts.iter().flat_map(|account| &account.intervals);
    let from = all().map(|interval| interval.0).min().unwrap_or(report.made);
    let to = all().map(|interval| interval.1).max().unwrap_or(report.made);
    (from, to)
}
