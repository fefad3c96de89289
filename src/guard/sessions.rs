//! Sessions that are gone from `sessions/`: deleted by `zmbackup -del` in the course of time, or by accident.
//!
//! Only the age shows it. It is counted from the time in the label to that of the newest session, by the source's own clock, and compared with the age at which
//! sessions usually go: what the configuration says, else what the snapshots of this source have seen so far, for full and incremental sessions apart. As
//! long as nothing is known, the shortest usual retention must have passed, and the oldest must go first. So sessions that go on being deleted while no new
//! ones come are a reason to look, too.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{GuardOptions, MarkedSnapshot, ZimbraSnapshot, counted, listed, shown};
use crate::catalog::snapshot::{ReasonKind, SuspectReason};
use crate::layout::{Label, SESSIONS, SessionKind, session_path};
use crate::view::{Node, Readers, ViewError};

/// So many of the last snapshots are looked at for the age at which sessions go.
const HISTORY: usize = 120;
/// Of each kind so many of the last sessions that went count: few enough to follow a new retention, enough to outvote a single one.
const LAST_GONE: usize = 15;
const DAY_SECONDS: i64 = 86_400;
/// The shortest retention that Zimbra comes with, 8 days in release 10, less a day each for the hours of the deletion and of the newest session.
const SHORTEST_SECONDS: i64 = 6 * DAY_SECONDS;

/// Judges which sessions are there, compared with the last good snapshot.
pub(super) fn judge(
    readers: &Readers,
    earlier: &[MarkedSnapshot],
    old: &ZimbraSnapshot,
    new: &ZimbraSnapshot,
    options: &GuardOptions,
    reasons: &mut Vec<SuspectReason>,
) -> Result<(), ViewError> {
    let mut vanished: Vec<&Label> = Vec::new();
    for label in old.labels.difference(&new.labels) {
        let path = session_path(&label.to_string());
        if !new.leaves_out(path.as_bytes(), true) && !moved_away(new, label)? {
            vanished.push(label);
        }
    }
    if vanished.is_empty() {
        return Ok(());
    }
    let mut gone = |text: String| reasons.push(SuspectReason { kind: ReasonKind::SessionsGone, text });
    let held = counted(old.labels.len() as u64, "session", "sessions");
    let all = match &new.sessions {
        None => Some(format!("sessions/ is gone; it had {held}")),
        Some(directory) if directory.attributes.unreadable.is_some() => {
            Some(format!("sessions/ could not be read at the source; it had {held}"))
        }
        Some(_) if new.labels.is_empty() => Some(format!("No session is left in sessions/; it had {held}")),
        Some(_) => None,
    };
    if let Some(all) = all {
        gone(all);
        return Ok(());
    }
    let is_full = |label: &&Label| label.kind == SessionKind::Full;
    let fulls_gone = vanished.iter().filter(|label| is_full(label)).count() as u64;
    if fulls_gone > 0 && !new.labels.iter().any(|label| is_full(&label)) {
        let count = counted(fulls_gone, "went", "went");
        gone(format!("No full session is left; {count}"));
    }
    let Some(now) = newest(&old.labels).max(newest(&new.labels)) else { return Ok(()) };
    let mut learned = None;
    let mut early: Vec<(&Label, String)> = Vec::new();
    for label in vanished {
        let why = match options.expect_retention {
            Some(age) => {
                // The deletion runs once a day, and the newest session may be as old as sessions are apart.
                let slack = DAY_SECONDS + pace(&old.labels);
                let cutoff = age.before(&now.to_zoned(jiff::tz::TimeZone::UTC));
                let expected = label.start.as_second() <= cutoff.as_second() + slack;
                (!expected).then(|| format!("expect-retention is {age}"))
            }
            None => {
                if learned.is_none() {
                    learned = Some(Learned::from_history(readers, earlier)?);
                }
                learned.as_ref().and_then(|learned| learned.too_early(label, now, &new.labels))
            }
        };
        early.extend(why.map(|why| (label, why)));
    }
    // The reasons why are the same for all of a kind.
    let whys: BTreeSet<&String> = early.iter().map(|(_, why)| why).collect();
    for why in whys {
        let labels: Vec<&Label> = early.iter().filter(|(_, other)| other == why).map(|(label, _)| *label).collect();
        let count = counted(labels.len() as u64, "session", "sessions");
        let deleting = labels.iter().filter(|label| new.deleting.contains(**label)).count();
        let deleting = match deleting {
            0 => String::new(),
            count => format!("; zmbackup is deleting {count} of them now"),
        };
        let text = format!("{count} vanished too early ({why}): {}{deleting}", listed(labels.iter()));
        reasons.push(SuspectReason { kind: ReasonKind::SessionsVanished, text });
    }
    Ok(())
}

/// Judges a `sessions` that is a symbolic link: a snapshot does not follow it. What the last good snapshot has as well is no news.
pub(super) fn judge_link(
    old: Option<&ZimbraSnapshot>,
    new: &ZimbraSnapshot,
    reasons: &mut Vec<SuspectReason>,
) -> Result<(), ViewError> {
    if let Some(link) = new.link.filter(|_| old.is_none_or(|old| old.link.is_none())) {
        let text = format!(
            "sessions is a symbolic link to {}, and links are not followed: the snapshot holds none of the sessions there. Mount that directory at sessions instead, for example with `mount --bind`",
            shown(&new.view.readlink(link)?)
        );
        reasons.push(SuspectReason { kind: ReasonKind::SessionsGone, text });
    }
    Ok(())
}

/// Returns the time of the newest session.
fn newest(labels: &BTreeSet<Label>) -> Option<Timestamp> {
    labels.iter().map(|label| label.start).max()
}

/// Returns the seconds between the last two sessions.
fn pace(labels: &BTreeSet<Label>) -> i64 {
    let mut times: Vec<i64> = labels.iter().map(|label| label.start.as_second()).collect();
    times.sort_unstable_by(|left, right| right.cmp(left));
    times.first().zip(times.get(1)).map_or(0, |(last, before)| last - before)
}

/// Returns whether a session is in the `sessions/` of another directory of the root: an upgrade moves the whole old tree into one.
fn moved_away(new: &ZimbraSnapshot, label: &Label) -> Result<bool, ViewError> {
    for entry in new.view.list(&new.root)? {
        let entry = entry?;
        if let Node::Directory(directory) = &entry.node
            && let Some(Node::Directory(sessions)) = new.view.lookup(directory, SESSIONS.as_bytes())?
            && new.view.lookup(&sessions, label.to_string().as_bytes())?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The usual ages at which sessions went, in seconds.
#[derive(Debug, Default)]
struct Learned {
    full: Option<i64>,
    incremental: Option<i64>,
}

/// Returns the median of the last ages, each with the place of the snapshot in which the session was last seen: dates may be wrong.
fn usual(mut gone: Vec<(usize, i64)>) -> Option<i64> {
    gone.sort_unstable();
    let mut ages: Vec<i64> = gone.iter().rev().take(LAST_GONE).map(|(_, age)| *age).collect();
    ages.sort_unstable();
    ages.get(ages.len() / 2).copied()
}

impl Learned {
    /// Looks at the last good snapshots of the source. A session went some time after it was last seen; one that came back did not go.
    fn from_history(readers: &Readers, earlier: &[MarkedSnapshot]) -> Result<Learned, ViewError> {
        /// When a session was last seen: in which snapshot, and how old it was then, in seconds.
        type Seen = (usize, i64);
        let mut last_seen: BTreeMap<Label, Seen> = BTreeMap::new();
        let mut newest_snapshot = None;
        // Missed first in a night that is suspect and not accepted: an accident, perhaps, which must not become the usual.
        let mut missed: BTreeSet<Label> = BTreeSet::new();
        let first = earlier.len().saturating_sub(HISTORY);
        for (place, snapshot) in earlier.iter().enumerate().skip(first) {
            let labels = ZimbraSnapshot::open(readers, &snapshot.record)?.labels;
            if snapshot.is_suspect() {
                let seen_last_night = last_seen.iter().filter(|(_, (seen, _))| Some(*seen) == newest_snapshot);
                missed.extend(seen_last_night.map(|(label, _)| label).filter(|label| !labels.contains(label)).copied());
                continue;
            }
            missed.retain(|label| !labels.contains(label));
            let now = newest(&labels).map_or(0, |time| time.as_second());
            last_seen.extend(labels.into_iter().map(|label| {
                let age = now - label.start.as_second();
                (label, (place, age))
            }));
            newest_snapshot = Some(place);
        }
        let gone = |kind: SessionKind| {
            let gone =
                last_seen.iter().filter(|(label, (place, _))| label.kind == kind && Some(*place) != newest_snapshot);
            usual(gone.filter(|(label, _)| !missed.contains(label)).map(|(_, seen)| *seen).collect())
        };
        Ok(Learned { full: gone(SessionKind::Full), incremental: gone(SessionKind::Incremental) })
    }

    /// Returns why it is too early for a session to be gone; `None` when it is not.
    fn too_early(&self, label: &Label, now: Timestamp, left: &BTreeSet<Label>) -> Option<String> {
        let age = now.as_second() - label.start.as_second();
        let usual = match label.kind {
            SessionKind::Full => self.full,
            SessionKind::Incremental => self.incremental,
        };
        if let Some(usual) = usual {
            // Months have 28 to 31 days, and neither zmbackup nor the snapshots run at the same minute every day.
            let least = usual - usual / 5 - DAY_SECONDS;
            return (age < least).then(|| format!("this kind usually stays for {} days", usual / DAY_SECONDS));
        }
        if age < SHORTEST_SECONDS {
            return Some("younger than any usual retention".to_owned());
        }
        // Labels sort by time within a kind.
        let older = left.iter().any(|other| other.kind == label.kind && other < label);
        older.then(|| "older ones of this kind are still there".to_owned())
    }
}

/// Says that names are gone from inside sessions.
pub(super) fn incomplete(count: u64, example: &[u8]) -> SuspectReason {
    let names = counted(count, "name is gone", "names are gone");
    let text = format!("{names} from inside sessions that are still there, such as {}", shown(example));
    SuspectReason { kind: ReasonKind::SessionIncomplete, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::parse(text).unwrap()
    }

    fn labels(texts: &[&str]) -> BTreeSet<Label> {
        texts.iter().map(|text| label(text)).collect()
    }

    #[test]
    fn nothing_learned_means_the_shortest_retention_and_oldest_first() {
        let now: Timestamp = "2026-08-20T03:00:00Z".parse().unwrap();
        let nothing = Learned::default();
        let left = labels(&["full-20260808.010000.000", "incr-20260801.010000.000"]);
        let early = |text: &str| nothing.too_early(&label(text), now, &left);
        assert_eq!(early("full-20260801.010000.000"), None, "the oldest of its kind");
        assert!(early("full-20260815.010000.000").is_some_and(|why| why.contains("younger")));
        assert!(early("full-20260809.010000.000").is_some_and(|why| why.contains("older ones")));
    }

    #[test]
    fn the_usual_age_is_learned_for_each_kind() {
        let now: Timestamp = "2026-08-20T03:00:00Z".parse().unwrap();
        let day = DAY_SECONDS;
        let learned = Learned { full: Some(30 * day), incremental: Some(10 * day) };
        let none = BTreeSet::new();
        assert!(
            learned
                .too_early(&label("full-20260730.010000.000"), now, &none)
                .is_some_and(|why| why.contains("30 days"))
        );
        assert_eq!(learned.too_early(&label("full-20260726.010000.000"), now, &none), None);
        assert_eq!(learned.too_early(&label("incr-20260811.010000.000"), now, &none), None);
        assert!(learned.too_early(&label("incr-20260814.010000.000"), now, &none).is_some());
    }

    #[test]
    fn the_pace_is_that_of_the_newest() {
        let weekly = labels(&["full-20260801.010000.000", "full-20260808.010000.000", "incr-20260807.010000.000"]);
        assert_eq!(
            (pace(&weekly), pace(&labels(&["full-20260801.010000.000"])), pace(&labels(&[]))),
            (DAY_SECONDS, 0, 0)
        );
        assert_eq!(newest(&weekly).unwrap().to_string(), "2026-08-08T01:00:00Z");
    }

    #[test]
    fn the_last_that_went_count_and_one_is_outvoted() {
        assert_eq!(usual(Vec::new()), None);
        assert_eq!(usual(vec![(1, 30), (2, 9), (3, 31)]), Some(30));
        // 90 days once, 31 of late.
        let mut gone: Vec<(usize, i64)> = (0..100).map(|night| (night, 90)).collect();
        gone.extend((100..108).map(|night| (night, 31)));
        assert_eq!(usual(gone), Some(31));
    }
}
