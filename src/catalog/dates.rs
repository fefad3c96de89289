//! When snapshots were taken, as far as their dates can be right.
//!
//! A record bears the time that the clock of its host showed, and clocks are wrong at times: for one night, or for a year. What is known for sure is the order
//! of commits, which is the order of numbers, and that nothing was taken after now. So a date is *plausible* if it is not later than the clock, if the guard
//! did not find a jump that nobody has accepted, and if it belongs to the longest run of such dates that never goes back. A few hundred good nights outvote a
//! bad one in this way, whichever direction its clock was wrong in.
//!
//! Every snapshot gets a moment to count with. That of a plausible one is its date. That of another lies between those of its neighbours, and keeps its
//! distance from neighbours that are as wrong as it is: three hundred nights under a clock that was a year ahead stay three hundred nights.
//!
//! Memory: some 100 bytes for each snapshot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::CatalogError;
use super::marks;
use super::reader::CatalogReader;
use super::snapshot::{ReasonKind, SnapshotRecord};
use crate::ids::{SnapshotNumber, SourceId};

/// Clocks may disagree by this much without a report: hosts that write to one store, a clock that is set back a little, local time taken for UTC at
/// most hosts' distance.
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_hours(1);
/// Of so many of the last distances between snapshots the usual one is learned.
const LAST_GAPS: usize = 10;
/// With fewer distances nothing is usual yet.
const LEAST_GAPS: usize = 3;
/// A snapshot may be so many usual distances after the one before.
const USUAL_GAPS: i32 = 4;
/// It may always be this much after it.
const LEAST_JUMP: SignedDuration = SignedDuration::from_hours(8 * 24);
/// It may be this much after it while nothing is usual yet. Longer distances count for no more than this between snapshots whose dates cannot be right.
const UNKNOWN_JUMP: SignedDuration = SignedDuration::from_hours(32 * 24);

/// One snapshot among its neighbours.
#[derive(Clone, Debug)]
struct Dated {
    source: Option<SourceId>,
    id: String,
    date: Timestamp,
    /// The moment that it counts with.
    moment: Timestamp,
    is_plausible: bool,
    is_accepted: bool,
    /// The guard found that the clock had jumped.
    has_jumped: bool,
}

/// Why nothing of a source is removed for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClockDoubt {
    /// Snapshots are later than the clock.
    Later {
        /// How many.
        count: u64,
        /// The last of them in the order of commits.
        last: String,
        /// The latest date among them.
        date: Timestamp,
    },
    /// A snapshot was taken too long after the one before.
    Jump {
        /// The last such one in the order of commits.
        last: String,
        /// Its date.
        date: Timestamp,
    },
}

/// The dates of all snapshots of a store, as one moment sees them.
#[derive(Clone, Debug)]
pub struct Dates {
    now: Timestamp,
    all: BTreeMap<SnapshotNumber, Dated>,
    /// What else may be the snapshots with right dates. Where two neighbours contradict each other and all others bear out both, it is unknown which of them is
    /// right.
    others: Vec<BTreeSet<SnapshotNumber>>,
}

impl Dates {
    /// Reads the dates of a store.
    ///
    /// # Errors
    /// Fails when the catalogue cannot be read.
    pub fn read(catalog: &CatalogReader, now: Timestamp) -> Result<Dates, CatalogError> {
        let marks = marks::read_all(catalog)?;
        let accepted = marks.iter().filter(|(_, marks)| marks.accepted.is_some()).map(|(number, _)| *number).collect();
        Ok(Dates::of(&catalog.snapshots()?, &accepted, now))
    }

    /// Judges the dates of snapshots, given by number, of which some are accepted.
    pub fn of(
        records: &[(SnapshotNumber, SnapshotRecord)],
        accepted: &BTreeSet<SnapshotNumber>,
        now: Timestamp,
    ) -> Dates {
        let all = records.iter().map(|(number, record)| {
            let dated = Dated {
                source: record.source_id,
                id: record.id.clone(),
                date: record.time,
                moment: record.time,
                is_plausible: false,
                is_accepted: accepted.contains(number),
                has_jumped: record.suspect_reasons().iter().any(|reason| reason.kind == ReasonKind::Clock),
            };
            (*number, dated)
        });
        let mut dates = Dates { now, all: all.collect(), others: Vec::new() };
        dates.judge();
        dates
    }

    fn judge(&mut self) {
        let latest = later(self.now, CLOCK_SLACK);
        let numbers: Vec<SnapshotNumber> = self.all.keys().copied().collect();
        let mut own: Vec<&mut Dated> = self.all.values_mut().collect();
        let may_be = |one: &Dated| one.date <= latest && (!one.has_jumped || one.is_accepted);
        // Those of which nothing was ever said first: they bear out the others.
        let sure: Vec<usize> = (0..own.len()).filter(|at| may_be(own[*at]) && !own[*at].has_jumped).collect();
        let times: Vec<Timestamp> = sure.iter().map(|at| own[*at].date).collect();
        for at in longest_run(&times, Tie::LeastSpan) {
            own[sure[at]].is_plausible = true;
        }
        let others = [Tie::Earlier, Tie::Later].map(|tie| longest_run(&times, tie));
        let contradicted: BTreeSet<usize> = sure.iter().copied().filter(|at| !own[*at].is_plausible).collect();
        // Then what lies between its plausible neighbours, give or take what clocks may disagree.
        let mut next = latest;
        let mut before: Vec<Option<Timestamp>> = Vec::with_capacity(own.len());
        let mut last = None;
        for one in &own {
            before.push(last);
            last = if one.is_plausible { Some(one.date) } else { last };
        }
        for (one, before) in own.iter_mut().zip(before).rev() {
            let fits = one.date <= later(next, CLOCK_SLACK)
                && before.is_none_or(|before| later(one.date, CLOCK_SLACK) >= before);
            one.is_plausible |= may_be(one) && fits;
            if one.is_plausible {
                next = next.min(one.date);
            }
        }
        give_moments(&mut own, self.now);
        if contradicted.is_empty() {
            return;
        }
        // What was never in question belongs to each.
        let fit = |at: &usize| own[*at].is_plausible && (own[*at].has_jumped || contradicted.contains(at));
        let fit: Vec<SnapshotNumber> = (0..own.len()).filter(fit).map(|at| numbers[at]).collect();
        self.others = others
            .into_iter()
            .map(|run| run.into_iter().map(|at| numbers[sure[at]]).chain(fit.iter().copied()).collect())
            .collect();
    }

    /// Returns sets of snapshots of which one holds those whose dates are right, as far as that is known: one set, unless neighbours contradict each other.
    pub fn plausible_sets(&self) -> Vec<BTreeSet<SnapshotNumber>> {
        let plausible = self.all.iter().filter(|(_, one)| one.is_plausible).map(|(number, _)| *number).collect();
        let mut sets = vec![plausible];
        sets.extend(self.others.iter().cloned());
        sets.dedup();
        sets
    }

    /// Returns the moment that a snapshot counts with.
    pub fn moment(&self, number: SnapshotNumber) -> Option<Timestamp> {
        self.all.get(&number).map(|one| one.moment)
    }

    /// Returns whether the date of a snapshot can be right.
    pub fn is_plausible(&self, number: SnapshotNumber) -> bool {
        self.all.get(&number).is_some_and(|one| one.is_plausible)
    }

    /// Returns whether a snapshot is later than the clock, and nobody has accepted that.
    pub fn is_later_than_clock(&self, number: SnapshotNumber) -> bool {
        self.all.get(&number).is_some_and(|one| self.is_later(one))
    }

    fn is_later(&self, one: &Dated) -> bool {
        !one.is_accepted && one.date > later(self.now, CLOCK_SLACK)
    }

    /// Tells why nothing of a source may be removed now: a rule that counts back from a wrong date would take good snapshots.
    pub fn doubt(&self, source: Option<SourceId>) -> Option<ClockDoubt> {
        let own = || self.all.values().filter(|one| one.source == source);
        let late: Vec<&Dated> = own().filter(|one| self.is_later(one)).collect();
        if let (Some(last), Some(date)) = (late.last(), late.iter().map(|one| one.date).max()) {
            return Some(ClockDoubt::Later { count: late.len() as u64, last: last.id.clone(), date });
        }
        let jumped = own().rfind(|one| one.has_jumped && !one.is_accepted);
        jumped.map(|last| ClockDoubt::Jump { last: last.id.clone(), date: last.date })
    }

    /// Returns the doubts of all sources.
    pub fn doubts(&self) -> Vec<(Option<SourceId>, ClockDoubt)> {
        let sources: BTreeSet<Option<SourceId>> = self.all.values().map(|one| one.source).collect();
        sources.into_iter().filter_map(|source| Some((source, self.doubt(source)?))).collect()
    }

    /// Returns the identifier and the date of the newest snapshot of the store whose date is plausible: the last time that the clock is known to have shown.
    pub fn last_known(&self) -> Option<(&str, Timestamp)> {
        let plausible = self.all.values().filter(|one| one.is_plausible);
        plausible.max_by_key(|one| one.date).map(|one| (one.id.as_str(), one.date))
    }

    /// Returns how long after the one before a snapshot of a source may be taken: four times what is usual for it, and at least eight days.
    pub fn usual_jump(&self, source: Option<SourceId>) -> SignedDuration {
        let own = self.all.values().filter(|one| one.source == source && one.is_plausible);
        let times: Vec<Timestamp> = own.map(|one| one.date).collect();
        let mut gaps: Vec<SignedDuration> =
            times.windows(2).rev().take(LAST_GAPS).map(|pair| pair[1].duration_since(pair[0])).collect();
        if gaps.len() < LEAST_GAPS {
            return UNKNOWN_JUMP;
        }
        gaps.sort_unstable();
        gaps[gaps.len() / 2].saturating_mul(USUAL_GAPS).max(LEAST_JUMP)
    }

    /// Returns whether the clock shows a time so long after everything that is known that it may be wrong. `since` is known besides.
    pub fn is_clock_in_doubt(&self, since: Timestamp) -> bool {
        let known = self.last_known().map_or(since, |(_, time)| time.max(since));
        self.now.duration_since(known) > UNKNOWN_JUMP
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn earlier(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

/// Gives those without a plausible date a moment between their neighbours'.
fn give_moments(own: &mut [&mut Dated], now: Timestamp) {
    let mut at = 0;
    while at < own.len() {
        if own[at].is_plausible {
            at += 1;
            continue;
        }
        let end = (at..own.len()).find(|end| own[*end].is_plausible).unwrap_or(own.len());
        let before = at.checked_sub(1).map(|before| own[before].moment);
        let after = own.get(end).map(|after| after.moment);
        // How far each is from the next of them.
        let gaps: Vec<SignedDuration> = (at..end.saturating_sub(1))
            .map(|one| own[one + 1].date.duration_since(own[one].date).clamp(SignedDuration::ZERO, UNKNOWN_JUMP))
            .collect();
        match (before, after) {
            (Some(before), None) => {
                own[at].moment = before;
                for (place, gap) in gaps.iter().enumerate() {
                    own[at + place + 1].moment = later(own[at + place].moment, *gap).min(now.max(before));
                }
            }
            (before, after) => {
                let after = after.unwrap_or_else(|| now.min(own[end - 1].date));
                own[end - 1].moment = after;
                for (place, gap) in gaps.iter().enumerate().rev() {
                    let moment = earlier(own[at + place + 1].moment, *gap);
                    own[at + place].moment = before.map_or(moment, |before| moment.max(before)).min(after);
                }
            }
        }
        at = end;
    }
}

/// Which of several equally long runs is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// The one that spans least, for an outlier spans much.
    LeastSpan,
    /// The one with what was there first.
    Earlier,
    /// The one with what came last.
    Later,
}

/// Returns the places of the longest run of times that never goes back.
fn longest_run(times: &[Timestamp], tie: Tie) -> Vec<usize> {
    /// A run: its length, what else it is chosen by, its first time, its last place.
    type Run = (usize, (Timestamp, i64), Timestamp, usize);
    let rank_of = |first: Timestamp, at: usize| match tie {
        Tie::LeastSpan => (first, 0),
        Tie::Earlier => (Timestamp::MIN, -(at as i64)),
        Tie::Later => (Timestamp::MIN, at as i64),
    };
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    // For each time the best run that ends at it or before: a Fenwick tree of maxima.
    let mut tree: Vec<Option<Run>> = vec![None; sorted.len() + 1];
    let mut before: Vec<Option<usize>> = Vec::with_capacity(times.len());
    let mut best: Option<(usize, Reverse<SignedDuration>, i64, usize)> = None;
    for (at, time) in times.iter().enumerate() {
        let rank = sorted.partition_point(|other| other <= time);
        let mut place = rank;
        let mut longest: Option<Run> = None;
        while place > 0 {
            longest = longest.max(tree[place]);
            place &= place - 1;
        }
        let (length, first) = longest.map_or((1, *time), |(length, _, first, _)| (length + 1, first));
        let run = (length, rank_of(first, at), first, at);
        before.push(longest.map(|(_, _, _, last)| last));
        let mut place = rank;
        while place < tree.len() {
            tree[place] = tree[place].max(Some(run));
            place += place & place.wrapping_neg();
        }
        let (span, order) = match tie {
            Tie::LeastSpan => (time.duration_since(first), -(at as i64)),
            Tie::Earlier => (SignedDuration::ZERO, -(at as i64)),
            Tie::Later => (SignedDuration::ZERO, at as i64),
        };
        best = best.max(Some((length, Reverse(span), order, at)));
    }
    let mut run = Vec::new();
    let mut at = best.map(|(_, _, _, at)| at);
    while let Some(place) = at {
        run.push(place);
        at = before[place];
    }
    run.reverse();
    run
}

#[cfg(test)]
#[path = "dates_tests.rs"]
mod tests;
