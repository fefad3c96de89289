//! Which snapshots stay, and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Zoned;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::policy::Policy;
use crate::catalog::dates::Dates;
use crate::catalog::snapshot::SnapshotRecord;
use crate::catalog::sources::SourceName;
use crate::ids::{SnapshotNumber, SourceId};

/// What other parts of the program protect, whatever the rules say: pins, leases, everything since the last good snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protections {
    /// For each snapshot, by its whole identifier, the reasons, fit for people.
    pub reasons: BTreeMap<String, Vec<String>>,
}

impl Protections {
    /// Adds a reason to keep a snapshot.
    pub fn add(&mut self, id: &str, reason: impl Into<String>) {
        self.reasons.entry(id.to_owned()).or_default().push(reason.into());
    }
}

/// Snapshots that somebody has named to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedSnapshots {
    /// Their whole identifiers.
    pub ids: BTreeSet<String>,
    /// Whether those go too that only the guard keeps, such as the last good one of a source. Pinned ones and those in use stay all the same.
    pub is_forced: bool,
}

/// What is to go.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// What no rule keeps.
    Rules(&'a Rules),
    /// Certain snapshots.
    Named(&'a NamedSnapshots),
}

/// The rules of retention of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The rules of sources that have none of their own.
    pub policy: Policy,
    /// The rules of those that have.
    pub by_source: BTreeMap<SourceId, Policy>,
    /// The sources that are removed.
    pub removed: BTreeMap<SourceId, SourceName>,
}

impl Rules {
    /// Returns the rules of a source.
    pub fn policy(&self, source: Option<SourceId>) -> &Policy {
        source.and_then(|id| self.by_source.get(&id)).unwrap_or(&self.policy)
    }

    /// Returns whether no snapshot can go.
    pub fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.by_source.values().all(Policy::is_empty) && self.removed.is_empty()
    }
}

impl From<&Policy> for Rules {
    fn from(policy: &Policy) -> Rules {
        Rules { policy: policy.clone(), ..Rules::default() }
    }
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Its number in the catalogue.
    pub number: SnapshotNumber,
    /// Its identifier.
    pub id: String,
    /// When it was begun, as its record says.
    pub time: jiff::Timestamp,
    /// Its source.
    pub source: String,
    /// Whether it stays.
    pub keep: bool,
    /// Why it stays or goes; never empty.
    pub reasons: Vec<String>,
}

/// What becomes of all snapshots, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// One for each snapshot, in order of their numbers.
    pub decisions: Vec<Decision>,
}

impl RetentionPlan {
    /// Returns what stays.
    pub fn kept(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| decision.keep)
    }

    /// Returns what goes.
    pub fn removed(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| !decision.keep)
    }
}

/// A rule that keeps the newest snapshot of each of the last so many periods.
struct Calendar {
    name: &'static str,
    count: u32,
    /// Names the period of a moment; two moments are of one period if and only if it is the same.
    period: fn(&Zoned) -> String,
}

fn calendars(policy: &Policy) -> [Calendar; 5] {
    [
        // The hour that is repeated when summer time ends is two hours.
        Calendar {
            name: "hourly",
            count: policy.keep_hourly,
            period: |time| time.strftime("%Y-%m-%d %H:00 (%:z)").to_string(),
        },
        Calendar { name: "daily", count: policy.keep_daily, period: |time| time.strftime("%Y-%m-%d").to_string() },
        Calendar { name: "weekly", count: policy.keep_weekly, period: |time| time.strftime("%G-W%V").to_string() },
        Calendar { name: "monthly", count: policy.keep_monthly, period: |time| time.strftime("%Y-%m").to_string() },
        Calendar { name: "yearly", count: policy.keep_yearly, period: |time| time.strftime("%Y").to_string() },
    ]
}

/// Decides what becomes of each snapshot. Times are read in `zone`; what counts as the past is what lies before the newest snapshot of the same
/// source, so that a source that is not taken any more does not fade away.
///
/// - Of a source that is removed, what no protection keeps goes.
/// - Without a rule everything else stays.
/// - The newest snapshot of each source stays, by plausible dates and by the order of commits.
/// - Each rule keeps what it names, and so does each protection; what none keeps goes.
///
/// Rules are applied several times where dates cannot be right: to the snapshots with plausible dates alone, and to all, each with its moment. What any keeps
/// stays. So a wrong date takes no other snapshot's place, and the snapshot that bears it is kept as one of its neighbours would be.
pub fn plan(
    records: &[(SnapshotNumber, SnapshotRecord)],
    dates: &Dates,
    rules: &Rules,
    protections: &Protections,
    zone: &TimeZone,
) -> RetentionPlan {
    let mut reasons: Vec<Vec<String>> = records.iter().map(|_| Vec::new()).collect();
    let mut by_source: HashMap<Option<SourceId>, Vec<usize>> = HashMap::new();
    let removed_name = |record: &SnapshotRecord| record.source_id.and_then(|id| rules.removed.get(&id));
    for (at, (_, record)) in records.iter().enumerate().filter(|(_, (_, record))| removed_name(record).is_none()) {
        by_source.entry(record.source_id).or_default().push(at);
    }
    let sets = dates.plausible_sets();
    let no_reasons = || -> Vec<Vec<String>> { records.iter().map(|_| Vec::new()).collect() };
    let zoned = |time: jiff::Timestamp| time.to_zoned(zone.clone());
    // In a set of plausible dates each counts with its own.
    let dated = |at: usize| records[at].1.time;
    let moment = |at: usize| dates.moment(records[at].0).unwrap_or(records[at].1.time);
    for (source, mut places) in by_source {
        let policy = rules.policy(source);
        places.sort_by_key(|at| std::cmp::Reverse((moment(*at), records[*at].0)));
        for (pass, set) in sets.iter().enumerate() {
            let mut plausible: Vec<(usize, Zoned)> =
                places.iter().filter(|at| set.contains(&records[**at].0)).map(|at| (*at, zoned(dated(*at)))).collect();
            plausible.sort_by_key(|(at, time)| std::cmp::Reverse((time.timestamp(), records[*at].0)));
            let mut found = no_reasons();
            one_source(records, &plausible, policy, &mut found);
            add(&mut reasons, found, pass > 0);
        }
        if places.iter().any(|at| !dates.is_plausible(records[*at].0)) {
            let all: Vec<(usize, Zoned)> = places.iter().map(|at| (*at, zoned(moment(*at)))).collect();
            let mut found = no_reasons();
            one_source(records, &all, policy, &mut found);
            add(&mut reasons, found, true);
            for at in places.into_iter().filter(|at| !dates.is_plausible(records[*at].0)) {
                if !reasons[at].is_empty() {
                    reasons[at].push(format!("counted as of {}", zoned(moment(at)).strftime("%Y-%m-%d %H:%M")));
                }
            }
        }
    }
    let decisions = records.iter().zip(reasons).map(|((number, record), mut reasons)| {
        reasons.extend(protections.reasons.get(&record.id).into_iter().flatten().cloned());
        let removed_name = removed_name(record);
        if removed_name.is_none() && reasons.is_empty() && rules.policy(record.source_id).is_empty() {
            reasons.push("no rule says that anything may go".to_owned());
        }
        let keep = !reasons.is_empty();
        if !keep {
            reasons.push(match removed_name {
                Some(name) => format!("the source {name} is removed"),
                None => "no rule keeps it".to_owned(),
            });
        }
        let (id, source) = (record.id.clone(), record.source.clone());
        Decision { number: *number, id, time: record.time, source, keep, reasons }
    });
    RetentionPlan { decisions: decisions.collect() }
}

/// Decides what becomes of each snapshot when those with certain identifiers are to go: of these, the ones that a protection keeps stay, and so do all others.
pub fn plan_named(
    records: &[(SnapshotNumber, SnapshotRecord)],
    ids: &BTreeSet<String>,
    protections: &Protections,
) -> RetentionPlan {
    let decisions = records.iter().map(|(number, record)| {
        let protected = protections.reasons.get(&record.id).filter(|_| ids.contains(&record.id));
        let (keep, reasons) = match (ids.contains(&record.id), protected) {
            (false, _) => (true, vec!["not named".to_owned()]),
            (true, None) => (false, vec!["named".to_owned()]),
            (true, Some(reasons)) => (true, reasons.clone()),
        };
        let (id, source) = (record.id.clone(), record.source.clone());
        Decision { number: *number, id, time: record.time, source, keep, reasons }
    });
    RetentionPlan { decisions: decisions.collect() }
}

/// Adds reasons that were found; those of a later pass only where there are none yet.
fn add(reasons: &mut [Vec<String>], found: Vec<Vec<String>>, is_later: bool) {
    for (reasons, mut found) in reasons.iter_mut().zip(found) {
        if !is_later || reasons.is_empty() {
            reasons.append(&mut found);
        }
    }
}

/// Notes what the rules keep of one source's snapshots, which come newest first.
fn one_source(
    records: &[(SnapshotNumber, SnapshotRecord)],
    newest_first: &[(usize, Zoned)],
    policy: &Policy,
    reasons: &mut [Vec<String>],
) {
    let Some((newest, newest_time)) = newest_first.first() else { return };
    reasons[*newest].push("newest".to_owned());
    // Clocks may disagree by a little.
    if let Some((last, _)) = newest_first.iter().max_by_key(|(at, _)| records[*at].0).filter(|(at, _)| at != newest) {
        reasons[*last].push("taken last".to_owned());
    }
    for (place, (at, _)) in newest_first.iter().enumerate().take(policy.keep_last as usize) {
        reasons[*at].push(format!("last {} of {}", place + 1, policy.keep_last));
    }
    if let Some(within) = &policy.keep_within {
        let start = within.before(newest_time);
        for (at, _) in newest_first.iter().filter(|(_, time)| time.timestamp() >= start) {
            reasons[*at].push(format!("within {within}"));
        }
    }
    for Calendar { name, count, period } in calendars(policy) {
        // A set, not the period before: clocks are set back, and a snapshot may be of an hour that was seen before.
        let mut seen = BTreeSet::new();
        for (at, time) in newest_first {
            if seen.len() as u64 >= u64::from(count) {
                break;
            }
            let period = period(time);
            if seen.insert(period.clone()) {
                reasons[*at].push(format!("{name} {period}"));
            }
        }
    }
    for (at, _) in newest_first {
        for tag in records[*at].1.tags.iter().filter(|tag| policy.keep_tags.contains(tag)) {
            reasons[*at].push(format!("tag {tag}"));
        }
    }
}
