//! Metrics of a night in the text format of Prometheus, for the textfile collector of its node exporter.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::last::LastNight;
use super::status::Status;
use crate::access::Replacement;
use crate::plain::escape_text;
use crate::zimbra::ledger::Summary;

struct Page(String);

impl Page {
    /// Begins a metric.
    fn metric(&mut self, name: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP zmreplica_{name} {help}\n# TYPE zmreplica_{name} gauge\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "zmreplica_{name}");
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = escape_text(text).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.metric(name, help);
        self.sample(name, &[], value);
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

/// Renders the metrics of the last run of each source, given with the source's name, and of the store as far as it could be read. `max_session_age` returns how
/// old the sessions of a source may be; `None` is no limit.
pub fn render(
    nights: &[&(String, LastNight)],
    status: Option<&Status>,
    max_session_age: impl Fn(&str) -> Option<Duration>,
) -> String {
    let mut page = Page(String::new());
    let name = "last_run_timestamp_seconds";
    page.metric(name, "When the last nightly run of the source ended.");
    for (source, night) in nights {
        page.sample(name, &[("source", source)], seconds(night.finished));
    }
    let name = "last_run_exit_code";
    page.metric(name, "How the last nightly run of the source ended.");
    for (source, night) in nights {
        page.sample(name, &[("source", source)], f64::from(night.exit_code));
    }
    let name = "last_run_duration_seconds";
    page.metric(name, "How long the last nightly run of the source took, in all and in parts.");
    let with_figures = || nights.iter().filter_map(|(source, night)| Some((source, night, night.figures?)));
    let to_milliseconds = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    for (source, night, run) in with_figures() {
        for (phase, value) in [
            ("all", seconds(night.finished) - seconds(run.started)),
            ("settle", run.settle_seconds),
            ("lock", run.lock_seconds),
            ("snapshot", run.snapshot_seconds),
            ("accounts", run.accounts_seconds),
            ("prune", run.prune_seconds),
        ] {
            page.sample(name, &[("source", source), ("phase", phase)], to_milliseconds(value));
        }
    }
    page.metric("hook_failed", "Whether the hook of the last nightly run of the source failed.");
    for (source, _, run) in with_figures() {
        page.sample("hook_failed", &[("source", source)], flag(run.hook_failed));
    }
    let Some(status) = status else { return page.0 };
    page.one("held", "Whether the store is held.", flag(status.hold.is_some()));
    page.one("snapshots", "Snapshots in the store.", status.snapshots as f64);
    page.one("snapshots_suspect", "Suspect snapshots that nobody has accepted.", status.suspects.len() as f64);
    page.one("snapshots_pinned", "Pinned snapshots.", status.pinned as f64);
    page.metric("store_bytes", "Bytes of the store.");
    for (part, bytes) in
        [("packs", status.pack_bytes), ("commits", status.commit_bytes), ("catalogue", status.catalog_bytes)]
    {
        page.sample("store_bytes", &[("part", part)], bytes as f64);
    }
    type Figure = fn(&super::status::SourceStatus) -> f64;
    let of_sources: [(&str, &str, Figure); 11] = [
        ("last_success_timestamp_seconds", "When the newest snapshot was complete.", |source| {
            seconds(source.finished())
        }),
        (
            "last_good_timestamp_seconds",
            "When the newest snapshot that is not suspect was complete; 0 for none.",
            |source| source.last_good.as_ref().map_or(0.0, |good| seconds(good.finished)),
        ),
        ("snapshot_suspect", "Whether the newest snapshot is suspect and not accepted.", |source| {
            flag(source.newest.state == "suspect")
        }),
        ("snapshot_problems", "Problems of the newest snapshot.", |source| source.newest.problem_count as f64),
        ("snapshot_duration_seconds", "How long the newest snapshot took.", |source| {
            source.newest.elapsed_ms as f64 / 1000.0
        }),
        ("snapshot_names", "Names in the newest snapshot.", |source| source.newest.names as f64),
        ("snapshot_bytes", "Sizes of all inodes in the newest snapshot.", |source| source.newest.bytes as f64),
        ("snapshot_read_bytes", "Bytes that the newest snapshot read.", |source| source.newest.read_bytes as f64),
        ("snapshot_new_bytes", "Bytes that the newest snapshot found new.", |source| source.newest.new_bytes as f64),
        ("snapshot_stored_bytes", "Bytes that the newest snapshot added to packs.", |source| {
            source.newest.stored_bytes as f64
        }),
        ("source_snapshots", "Snapshots of the source.", |source| source.snapshots as f64),
    ];
    for (name, help, value) in of_sources {
        page.metric(name, help);
        for source in &status.sources {
            page.sample(name, &[("source", &source.name)], value(source));
        }
    }
    restorable(&mut page, status, max_session_age);
    page.0
}

/// Adds what can be restored, of the sources of which that is known.
fn restorable(page: &mut Page, status: &Status, max_session_age: impl Fn(&str) -> Option<Duration>) {
    let known: Vec<(&str, &Summary)> =
        status.sources.iter().filter_map(|source| Some((source.name.as_str(), source.restorable.as_ref()?))).collect();
    if known.is_empty() {
        return;
    }
    let name = "accounts_restorable";
    page.metric(name, "Accounts in the newest snapshot, by what can be restored of them, in the words of the command.");
    for (source, found) in &known {
        for (state, count) in found.counts.by_restore_state() {
            page.sample(name, &[("source", source), ("state", state.words())], count as f64);
        }
    }
    let name = "backup_stopped";
    let help =
        "Whether no account can be restored, or none to a time within max-session-age: zmbackup seems to have stopped.";
    page.metric(name, help);
    for (source, found) in &known {
        page.sample(name, &[("source", source)], flag(!found.concerns(max_session_age(source)).is_empty()));
    }
    page.metric("accounts", "Accounts in the newest snapshot, by what can be restored of them.");
    for (source, found) in &known {
        for (state, count) in found.counts.by_state() {
            page.sample("accounts", &[("source", source), ("state", state.word())], count as f64);
        }
    }
    let name = "accounts_worse";
    page.metric(name, "Accounts of which less can be restored than in the night before.");
    for (source, found) in &known {
        page.sample(name, &[("source", source)], found.changes.lost_something().count() as f64);
    }
    page.metric("sessions", "Sessions in the newest snapshot, by state.");
    for (source, found) in &known {
        for (state, count) in &found.sessions {
            page.sample("sessions", &[("source", source), ("state", state.words())], *count as f64);
        }
    }
    let name = "newest_session_timestamp_seconds";
    page.metric(name, "When the newest session that a restore can use started.");
    for (source, found) in &known {
        for session in [&found.newest_full, &found.newest_incremental].into_iter().flatten() {
            page.sample(name, &[("source", source), ("kind", session.kind.word())], seconds(session.start));
        }
    }
}

/// Mode of a new file: the collector is another user.
const MODE: u32 = 0o644;

/// Writes a page so that a reader sees the old one or the new one, never a part. The file that it replaces hands on its mode unless one is `wanted`.
///
/// # Errors
/// Fails when the directory cannot be written to.
pub fn write(path: &Path, page: &str, wanted: Option<u32>) -> io::Result<()> {
    let mut new = Replacement::beside_store(path, wanted, MODE)?;
    new.write_all(page.as_bytes())?;
    new.finish()
}
