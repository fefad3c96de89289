//! The state of the replica in a few figures: what `status` and the metrics report.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::last::LastNight;
use crate::catalog::CatalogError;
use crate::catalog::condemned;
use crate::catalog::dates::{ClockDoubt, Dates};
use crate::catalog::reader::CatalogReader;
use crate::catalog::sources::Sources;
use crate::guard::{Hold, MarkedSnapshot, hold_in_force, marked_snapshots};
use crate::ids::SourceId;
use crate::lease::{self, LeaseInfo};
use crate::replica::{Replica, lock_holder};
use crate::zimbra::ledger::{self, Concern, Summary};

/// A newest snapshot that is older than this needs attention, by default: one night may be late, none may be missed.
pub const MAX_AGE: Duration = Duration::from_secs(36 * 3600);

/// A newest session that is older than this needs attention, by default: zmbackup runs every day, and a weekend may pass.
pub const MAX_SESSION_AGE: Duration = Duration::from_secs(3 * 24 * 3600);

/// So long a failed night of a place counts of which the store has no snapshot.
const NO_SOURCE_AGE: SignedDuration = SignedDuration::from_hours(3 * 24);

/// How old things may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgeLimits {
    /// The newest snapshot of a source.
    pub snapshot: Duration,
    /// The newest session in it that a restore can use; `None` is no limit.
    pub session: Option<Duration>,
}

impl Default for AgeLimits {
    fn default() -> AgeLimits {
        AgeLimits { snapshot: MAX_AGE, session: Some(MAX_SESSION_AGE) }
    }
}

/// One snapshot in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Brief {
    /// Identifier.
    pub id: String,
    /// The name of its source.
    pub source_name: String,
    /// When the run began.
    pub time: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// `complete`, `problems` or `suspect`.
    pub state: &'static str,
    /// How many problems it has.
    pub problem_count: u64,
    /// Names.
    pub names: u64,
    /// Sizes of all inodes, in bytes.
    pub bytes: u64,
    /// Bytes read by the run.
    pub read_bytes: u64,
    /// Bytes in chunks that the run found new.
    pub new_bytes: u64,
    /// Bytes that the run added to packs.
    pub stored_bytes: u64,
    /// How long the run took, in milliseconds.
    pub elapsed_ms: u64,
    /// What the guard found, unless it was accepted.
    pub reasons: Vec<String>,
}

impl Brief {
    fn of(snapshot: &MarkedSnapshot, sources: &Sources) -> Brief {
        let record = &snapshot.record;
        let reasons = if snapshot.is_suspect() { record.suspect_reasons() } else { &[] };
        Brief {
            id: record.id.clone(),
            source_name: sources.name(record.source_id).to_owned(),
            time: record.time,
            finished: record.finished,
            state: snapshot.state(),
            problem_count: record.problem_count,
            names: record.totals.names,
            bytes: record.totals.bytes,
            read_bytes: record.work.read_bytes,
            new_bytes: record.work.new_bytes,
            stored_bytes: record.work.stored_bytes,
            elapsed_ms: record.work.elapsed_ms,
            reasons: reasons.iter().map(|reason| reason.text.clone()).collect(),
        }
    }
}

/// One source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub source: String,
    /// Since when it is retired: then its age needs no attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
    /// How many snapshots there are of it.
    pub snapshots: u64,
    /// The newest one.
    pub newest: Brief,
    /// Whether its date can be right. If not, `moment` lies between those of its neighbours.
    pub is_plausible: bool,
    /// When it began, as far as dates can be right.
    pub moment: Timestamp,
    /// Seconds since then.
    pub age_seconds: i64,
    /// The newest one that is not suspect.
    pub last_good: Option<Brief>,
    /// How the last nightly run of it ended.
    pub last_night: Option<LastNight>,
    /// What can be restored from the newest one; `None` when it holds nothing of a mail server, or nobody has looked yet: a nightly run does.
    pub restorable: Option<Summary>,
}

impl SourceStatus {
    /// Returns when the newest snapshot was complete; of one whose date cannot be right, when it was begun as far as that is known.
    pub fn finished(&self) -> Timestamp {
        if self.is_plausible { self.newest.finished } else { self.moment }
    }
}

/// The state of the replica.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// When this was found.
    pub at: Timestamp,
    /// Directory of the store.
    pub store: String,
    /// The sources.
    pub sources: Vec<SourceStatus>,
    /// The sources of which nothing is removed because a clock is in doubt, and why.
    #[serde(skip)]
    pub doubts: Vec<(String, ClockDoubt)>,
    /// The names of the sources in use that have none.
    #[serde(skip)]
    pub without_snapshots: Vec<String>,
    /// How many snapshots there are.
    pub snapshots: u64,
    /// Suspect snapshots that nobody has accepted, oldest first.
    pub suspects: Vec<Brief>,
    /// How many snapshots are pinned.
    pub pinned: u64,
    /// The hold, if there is one.
    pub hold: Option<Hold>,
    /// What is mounted.
    pub leases: Vec<LeaseInfo>,
    /// The process that writes to the store now, in words.
    pub writer: Option<String>,
    /// How the last nightly run ended, of whichever source.
    pub last_night: Option<LastNight>,
    /// How the last nightly run of each source ended, the latest last, with the name of the source, or its location when the store has no snapshot of it.
    #[serde(skip)]
    pub nights: Vec<(String, LastNight)>,
    /// Bytes in packs.
    pub pack_bytes: u64,
    /// Bytes that nothing needs any more and that a later prune deletes.
    pub condemned_bytes: u64,
    /// Bytes in commit files.
    pub commit_bytes: u64,
    /// Bytes of the catalogue.
    pub catalog_bytes: u64,
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// There is no snapshot.
    NoSnapshot,
    /// There is none of a source, whose first run has not come to its end, or whose snapshots were all removed.
    NoSnapshotOf {
        /// The source.
        source: String,
    },
    /// The newest snapshot of a source is too old.
    Old {
        /// The source.
        source: String,
        /// Its age in seconds.
        age_seconds: i64,
    },
    /// Snapshots of a source are later than the clock.
    Clock {
        /// The source.
        source: String,
        /// What was found.
        doubt: ClockDoubt,
    },
    /// Snapshots of a source are suspect.
    Suspect {
        /// The source.
        source: String,
        /// How many.
        count: u64,
    },
    /// The newest snapshot of a source has problems.
    Problems {
        /// The source.
        source: String,
        /// How many.
        count: u64,
    },
    /// The last nightly run of a source failed, and no snapshot was taken since.
    NightFailed {
        /// The source.
        source: String,
        /// How it ended.
        night: LastNight,
    },
    /// Something about the sessions or accounts of a source is wrong, night after night.
    Restorable {
        /// The source.
        source: String,
        /// What it is.
        concern: Concern,
    },
    /// Of accounts of a source less can be restored than the night before.
    LessRestorable {
        /// The source.
        source: String,
        /// How many.
        count: u64,
    },
}

impl Status {
    /// Gathers the state of a store.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn gather(replica: &Replica, now: Timestamp) -> Result<Status, CatalogError> {
        let catalog = replica.catalog()?;
        let all = marked_snapshots(&catalog)?;
        let known = catalog.sources()?;
        let mut by_source: BTreeMap<Option<SourceId>, Vec<&MarkedSnapshot>> = BTreeMap::new();
        for snapshot in &all {
            by_source.entry(snapshot.record.source_id).or_default().push(snapshot);
        }
        let in_use = known.iter().filter(|(_, source)| source.removed.is_none() && source.retired.is_none());
        let without = in_use.filter(|(id, _)| !by_source.contains_key(&Some(*id)));
        let without_snapshots: Vec<String> = without.map(|(_, source)| source.name.to_string()).collect();
        let dates = Dates::read(&catalog, now)?;
        let mut sources = Vec::new();
        for (source, own) in by_source {
            let Some(newest) = own.last() else { continue };
            let good = own.iter().rev().find(|snapshot| !snapshot.is_suspect());
            let entry = source.and_then(|id| known.get(id));
            let moment = dates.moment(newest.number).unwrap_or(newest.record.time);
            sources.push(SourceStatus {
                name: known.name(source).to_owned(),
                source: entry.map_or_else(|| newest.record.source.clone(), |entry| entry.location.clone()),
                retired: entry.and_then(|entry| entry.retired),
                snapshots: own.len() as u64,
                newest: Brief::of(newest, &known),
                is_plausible: dates.is_plausible(newest.number),
                moment,
                age_seconds: now.as_second() - moment.as_second(),
                last_good: good.map(|snapshot| Brief::of(snapshot, &known)),
                last_night: None,
                restorable: restorable(replica, newest, moment),
            });
        }
        let nights = last_nights(replica, &known, now);
        for source in &mut sources {
            source.last_night = nights.iter().rfind(|(name, _)| *name == source.name).map(|(_, night)| night.clone());
        }
        let commits = replica.backend().list("commits/")?;
        Ok(Status {
            at: now,
            store: replica.path().display().to_string(),
            sources,
            doubts: dates.doubts().into_iter().map(|(source, doubt)| (known.name(source).to_owned(), doubt)).collect(),
            without_snapshots,
            snapshots: all.len() as u64,
            suspects: all
                .iter()
                .filter(|snapshot| snapshot.is_suspect())
                .map(|snapshot| Brief::of(snapshot, &known))
                .collect(),
            pinned: all.iter().filter(|snapshot| snapshot.marks.pinned.is_some()).count() as u64,
            hold: hold_in_force(&catalog, now)?,
            // If the mounts cannot be listed, the rest is still reported.
            leases: lease::list(replica.path()).unwrap_or_default(),
            writer: lock_holder(replica.path()),
            last_night: nights.last().map(|(_, night)| night.clone()),
            nights,
            pack_bytes: pack_bytes(&catalog)?,
            condemned_bytes: condemned::read_all(&catalog)?.iter().map(|(_, row)| row.bytes).sum(),
            commit_bytes: commits.iter().map(|(_, bytes)| bytes).sum(),
            catalog_bytes: std::fs::metadata(replica.database().path()).map_or(0, |metadata| metadata.len()),
        })
    }

    /// Leaves what is of one source, and of the store.
    pub fn only(&mut self, name: &str) {
        self.sources.retain(|source| source.name == name);
        self.without_snapshots.retain(|source| source == name);
        self.doubts.retain(|(source, _)| source == name);
        self.suspects.retain(|suspect| suspect.source_name == name);
        self.nights.retain(|(source, _)| source == name);
        self.last_night = self.nights.last().map(|(_, night)| night.clone());
    }

    /// Returns what a person should look at; `limits_of` returns the limits of a source. The age of a snapshot counts only while nobody holds the store, and
    /// no age of a retired source counts.
    pub fn findings(&self, limits_of: impl Fn(&str) -> AgeLimits) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.snapshots == 0 {
            findings.push(Finding::NoSnapshot);
        } else {
            let without = self.without_snapshots.iter();
            findings.extend(without.map(|source| Finding::NoSnapshotOf { source: source.clone() }));
        }
        for (source, night) in self.nights.iter().filter(|(_, night)| night.has_failed()) {
            // Of which source an earlier version noted the night is not known: a snapshot of any succeeds it.
            let own = self.sources.iter().filter(|one| one.name == *source || source.is_empty());
            let newest = own.map(SourceStatus::finished).max();
            // A hold is reported separately.
            if newest.is_none_or(|newest| newest < night.finished) && self.hold.is_none() {
                findings.push(Finding::NightFailed { source: source.clone(), night: night.clone() });
            }
        }
        for (source, doubt) in &self.doubts {
            // A jump makes snapshots suspect, which is reported below.
            if matches!(doubt, ClockDoubt::Later { .. }) {
                findings.push(Finding::Clock { source: source.clone(), doubt: doubt.clone() });
            }
        }
        let mut suspects: BTreeMap<&str, u64> = BTreeMap::new();
        for suspect in &self.suspects {
            *suspects.entry(&suspect.source_name).or_default() += 1;
        }
        findings
            .extend(suspects.into_iter().map(|(source, count)| Finding::Suspect { source: source.to_owned(), count }));
        for SourceStatus { name, retired, newest, age_seconds, restorable, .. } in &self.sources {
            let (source, age_seconds, limits) = (name.clone(), *age_seconds, limits_of(name));
            let session = limits.session.filter(|_| retired.is_none());
            let concerns = restorable.iter().flat_map(|found| found.concerns(session));
            findings.extend(concerns.map(|concern| Finding::Restorable { source: source.clone(), concern }));
            if let Some(found) = restorable.as_ref().filter(|found| found.wants_attention()) {
                let count = found.changes.lost_something().count() as u64;
                findings.push(Finding::LessRestorable { source: source.clone(), count });
            }
            if newest.problem_count > 0 {
                findings.push(Finding::Problems { source: source.clone(), count: newest.problem_count });
            }
            if self.hold.is_none()
                && retired.is_none()
                && u64::try_from(age_seconds).is_ok_and(|age| age > limits.snapshot.as_secs())
            {
                findings.push(Finding::Old { source, age_seconds });
            }
        }
        findings
    }

    /// Returns all bytes of the store.
    pub fn store_bytes(&self) -> u64 {
        self.pack_bytes + self.condemned_bytes + self.commit_bytes + self.catalog_bytes
    }
}

/// Returns how the last night of each source ended, the latest last: of those that are in use, and of places that are no source if it was of late. They come with the
/// name of the source, or its location when it has no name; nothing when neither is known.
fn last_nights(replica: &Replica, known: &Sources, now: Timestamp) -> Vec<(String, LastNight)> {
    let mut by_name: BTreeMap<String, LastNight> = BTreeMap::new();
    for night in LastNight::load_all(replica.path()) {
        let by_location = || night.location.as_deref().and_then(|location| known.by_location(location));
        let id = night.source_id.map(|id| known.resolve(id)).or_else(by_location);
        let name = match (id.and_then(|id| known.get(id)), &night.location) {
            (Some(source), _) if source.is_gone || source.removed.is_some() || source.retired.is_some() => continue,
            (Some(source), _) => source.name.to_string(),
            // Nothing else would ever end the report of a night whose location was mistyped.
            (None, Some(_)) if now.duration_since(night.finished) > NO_SOURCE_AGE => continue,
            (None, location) => location.clone().unwrap_or_default(),
        };
        // Merged sources have one name, and the later night counts.
        by_name.insert(name, night);
    }
    let mut nights: Vec<(String, LastNight)> = by_name.into_iter().collect();
    nights.sort_by_key(|(_, night)| night.finished);
    nights
}

/// Sums up what is kept of the accounts of a source's newest snapshot, which was taken at a moment.
fn restorable(replica: &Replica, newest: &MarkedSnapshot, moment: Timestamp) -> Option<Summary> {
    let page = ledger::kept(replica.path(), &newest.record.id)?;
    (page.is_zimbra() || page.nightly_diff.is_some()).then(|| Summary::of(&page, moment))
}

/// Returns the bytes of all packs.
///
/// # Errors
/// Fails when the catalogue cannot be read.
pub fn pack_bytes(catalog: &CatalogReader) -> Result<u64, CatalogError> {
    let mut bytes = 0;
    catalog.for_each_pack(|_, row| {
        bytes += row.bytes;
        Ok(())
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(problem_count: u64) -> Brief {
        let time = Timestamp::UNIX_EPOCH;
        Brief {
            id: "00".to_owned(),
            source_name: "old".to_owned(),
            time,
            finished: time,
            state: "complete",
            problem_count,
            names: 1,
            bytes: 1,
            read_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            elapsed_ms: 0,
            reasons: Vec::new(),
        }
    }

    fn source(name: &str, problem_count: u64, age_seconds: i64) -> SourceStatus {
        SourceStatus {
            name: name.to_owned(),
            source: format!("/{name}"),
            retired: None,
            snapshots: 1,
            newest: brief(problem_count),
            is_plausible: true,
            moment: Timestamp::UNIX_EPOCH,
            age_seconds,
            last_good: None,
            last_night: None,
            restorable: None,
        }
    }

    #[test]
    fn each_source_is_judged_by_its_newest_snapshot() {
        let hour = 3600;
        let mut status = Status {
            at: Timestamp::UNIX_EPOCH,
            store: "/s".to_owned(),
            sources: vec![source("young", 0, 35 * hour), source("old", 3, 37 * hour), source("ahead", 0, -5)],
            doubts: Vec::new(),
            without_snapshots: Vec::new(),
            snapshots: 3,
            suspects: Vec::new(),
            pinned: 0,
            hold: None,
            leases: Vec::new(),
            writer: None,
            last_night: None,
            nights: Vec::new(),
            pack_bytes: 0,
            condemned_bytes: 0,
            commit_bytes: 0,
            catalog_bytes: 0,
        };
        let problems = Finding::Problems { source: "old".to_owned(), count: 3 };
        let old = Finding::Old { source: "old".to_owned(), age_seconds: 37 * hour };
        assert_eq!(status.findings(|_| AgeLimits::default()), [problems.clone(), old]);
        status.hold = Some(Hold { since: Timestamp::UNIX_EPOCH, until: None, reason: None });
        status.suspects.push(brief(0));
        assert_eq!(
            status.findings(|_| AgeLimits::default()),
            [Finding::Suspect { source: "old".to_owned(), count: 1 }, problems],
            "held: the age is no news"
        );
    }
}
