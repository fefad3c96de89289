//! Retention rules against an oracle that was written apart from them, on thousands of random histories, across changes of the clocks and leap days.

use std::collections::BTreeSet;

use crate::support::effort::cases;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use proptest::collection::vec;
use proptest::prelude::*;
use zmreplica::catalog::dates::{CLOCK_SLACK, Dates};
use zmreplica::catalog::snapshot::{ReasonKind, SnapshotRecord, SuspectReason, Totals, Verdict, Work};
use zmreplica::ids::{SnapshotNumber, SourceId};
use zmreplica::retention::{Policy, Protections, Rules, Within, WithinUnit, plan};

/// Zones with summer time of an hour and of half an hour, with odd offsets, with a day that never was, and with none of it.
const ZONES: [&str; 7] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "UTC",
];

/// Moments around which something happens to calendars.
const EDGES: [&str; 9] = [
    "2026-03-29T01:00:00Z",
    "2026-10-25T01:00:00Z",
    "2026-03-08T07:00:00Z",
    "2026-11-01T06:00:00Z",
    "2028-02-29T12:00:00Z",
    "2027-12-31T23:00:00Z",
    "2026-04-04T15:00:00Z",
    "2011-12-30T10:00:00Z",
    "2000-02-29T00:00:00Z",
];

fn record(number: u64, time: Timestamp, source: &str, tags: &[&str]) -> (SnapshotNumber, SnapshotRecord) {
    let record = SnapshotRecord {
        id: format!("{number:032x}"),
        time,
        finished: time,
        source: source.to_owned(),
        // No two names here have the same length.
        source_id: Some(SourceId(source.len() as u64)),
        host: String::new(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        excludes: Vec::new(),
        root: String::new(),
        links: Vec::new(),
        problems: None,
        problem_count: 0,
        users: Default::default(),
        groups: Default::default(),
        has_acls: None,
        guard: None,
        totals: Totals::default(),
        work: Work::default(),
        digest: String::new(),
        version: String::new(),
    };
    (SnapshotNumber(number), record)
}

// ---- The oracle: numbers and dates taken apart by hand; from jiff it takes only what the clock showed at a moment, and back. ----

struct Seen {
    number: SnapshotNumber,
    time: Timestamp,
    date: Date,
    hour: i8,
    offset: i32,
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01, counted (Hinnant's formula is not used: this counts years and months).
fn day_number(date: Date) -> i64 {
    let (year, month) = (i64::from(date.year()), i64::from(date.month()));
    let mut days = i64::from(date.day()) - 1;
    for earlier in 1..month {
        days += days_of_month(year, earlier);
    }
    for earlier in 1970..year {
        days += if days_of_month(earlier, 2) == 29 { 366 } else { 365 };
    }
    for later in year..1970 {
        days -= if days_of_month(later, 2) == 29 { 366 } else { 365 };
    }
    days
}

fn start_of_within(newest: &Seen, clock: DateTime, within: Within, zone: &TimeZone) -> Timestamp {
    let count = i64::from(within.count);
    let date = match within.unit {
        WithinUnit::Days => clock.date().checked_sub(count.days()).unwrap(),
        WithinUnit::Weeks => clock.date().checked_sub((count * 7).days()).unwrap(),
        WithinUnit::Months | WithinUnit::Years => {
            let months = if within.unit == WithinUnit::Years { count * 12 } else { count };
            let total = i64::from(clock.year()) * 12 + i64::from(clock.month()) - 1 - months;
            let (year, month) = (total.div_euclid(12), total.rem_euclid(12) + 1);
            let day = i64::from(clock.day()).min(days_of_month(year, month));
            Date::new(year as i16, month as i8, day as i8).unwrap()
        }
    };
    let _ = newest;
    zone.to_timestamp(date.to_datetime(clock.time())).unwrap()
}

fn oracle(records: &[(SnapshotNumber, SnapshotRecord)], policy: &Policy, zone: &TimeZone) -> BTreeSet<SnapshotNumber> {
    let all: BTreeSet<SnapshotNumber> = records.iter().map(|(number, _)| *number).collect();
    let counts = [
        policy.keep_last,
        policy.keep_hourly,
        policy.keep_daily,
        policy.keep_weekly,
        policy.keep_monthly,
        policy.keep_yearly,
    ];
    if counts == [0; 6] && policy.keep_within.is_none() && policy.keep_tags.is_empty() {
        return all;
    }
    let mut kept = BTreeSet::new();
    let sources: BTreeSet<&str> = records.iter().map(|(_, record)| record.source.as_str()).collect();
    for source in sources {
        let mut seen: Vec<Seen> = Vec::new();
        for (number, record) in records.iter().filter(|(_, record)| record.source == source) {
            let offset = zone.to_offset(record.time);
            let clock = offset.to_datetime(record.time);
            let (date, hour, offset) = (clock.date(), clock.hour(), offset.seconds());
            seen.push(Seen { number: *number, time: record.time, date, hour, offset });
            if record.tags.iter().any(|tag| policy.keep_tags.iter().any(|wanted| wanted == tag)) {
                kept.insert(*number);
            }
        }
        // Oldest first; the newest is the last.
        seen.sort_by_key(|one| (one.time, one.number));
        let newest = seen.last().unwrap();
        kept.insert(newest.number);
        kept.insert(seen.iter().map(|one| one.number).max().unwrap());
        kept.extend(seen.iter().rev().take(policy.keep_last as usize).map(|one| one.number));
        if let Some(within) = policy.keep_within {
            let clock = zone.to_datetime(newest.time);
            let start = start_of_within(newest, clock, within, zone);
            kept.extend(seen.iter().filter(|one| one.time >= start).map(|one| one.number));
        }
        type Period = fn(&Seen) -> (i64, i64, i64);
        let rules: [(u32, Period); 5] = [
            (policy.keep_hourly, |one| (day_number(one.date), i64::from(one.hour), i64::from(one.offset))),
            (policy.keep_daily, |one| (day_number(one.date), 0, 0)),
            // 1970-01-01 was a Thursday: three days after a Monday.
            (policy.keep_weekly, |one| ((day_number(one.date) + 3).div_euclid(7), 0, 0)),
            (policy.keep_monthly, |one| (i64::from(one.date.year()), i64::from(one.date.month()), 0)),
            (policy.keep_yearly, |one| (i64::from(one.date.year()), 0, 0)),
        ];
        for (count, period) in rules {
            // All periods that have a snapshot, each with its newest one, the latest of those periods first.
            let mut last_of_each: Vec<(Timestamp, SnapshotNumber)> = Vec::new();
            let mut done: Vec<(i64, i64, i64)> = Vec::new();
            for one in &seen {
                if done.contains(&period(one)) {
                    continue;
                }
                done.push(period(one));
                let newest = seen.iter().rfind(|other| period(other) == period(one)).unwrap();
                last_of_each.push((newest.time, newest.number));
            }
            last_of_each.sort();
            kept.extend(last_of_each.iter().rev().take(count as usize).map(|(_, number)| *number));
        }
    }
    kept
}

/// The dates of a history, as a clock sees them that is right and later than all.
fn sane(records: &[(SnapshotNumber, SnapshotRecord)]) -> Dates {
    Dates::of(records, &BTreeSet::new(), "2100-01-01T00:00:00Z".parse().unwrap())
}

/// Moments of a wrong clock, in seconds from the right one.
fn error() -> impl Strategy<Value = i64> {
    let years: i64 = 86_400 * 365;
    prop_oneof![-40 * years..-years, years..40 * years, -40 * 86_400i64..40 * 86_400, -7200i64..7200]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0u32), 4 => 1..5u32, 1 => 5..400u32]
}

fn within() -> impl Strategy<Value = Option<Within>> {
    let unit =
        prop_oneof![Just(WithinUnit::Days), Just(WithinUnit::Weeks), Just(WithinUnit::Months), Just(WithinUnit::Years)];
    prop_oneof![2 => Just(None), 1 => (1..20u32, unit).prop_map(|(count, unit)| Some(Within { count, unit }))]
}

fn policy() -> impl Strategy<Value = Policy> {
    (count(), count(), count(), count(), count(), count(), within(), proptest::bool::weighted(0.2)).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, keep_within, tag)| Policy {
            keep_last: last,
            keep_hourly: hourly,
            keep_daily: daily,
            keep_weekly: weekly,
            keep_monthly: monthly,
            keep_yearly: yearly,
            keep_within,
            keep_tags: if tag { vec!["t".to_owned()] } else { Vec::new() },
            keep_accounts: None,
        },
    )
}

/// A history: where it begins, and the seconds from each snapshot to the next; whose it is and whether it has the tag.
fn history() -> impl Strategy<Value = Vec<(SnapshotNumber, SnapshotRecord)>> {
    let long = prop_oneof![
        3 => 60..7200i64,
        4 => 80_000..90_000i64,
        2 => 500_000..700_000i64,
        1 => 2_000_000..3_000_000i64,
        1 => Just(0i64),
    ];
    // Nights and weeks around the moment, or minutes within some hours of it.
    let distant = (-4_000_000..400_000i64, vec((long, 0..5u8, proptest::bool::weighted(0.1)), 1..50));
    let near = (-9000..3000i64, vec((300..2400i64, 0..5u8, proptest::bool::weighted(0.1)), 1..25));
    (0..EDGES.len(), prop_oneof![distant, near]).prop_map(|(edge, (before, entries))| {
        let mut second = EDGES[edge].parse::<Timestamp>().unwrap().as_second() + before;
        let mut records = Vec::new();
        for (number, (step, source, tag)) in (0..).zip(entries) {
            second += step;
            let time = Timestamp::from_second(second).unwrap();
            let source = if source == 0 { "/other" } else { "/opt/zimbra/backup" };
            records.push(record(number, time, source, if tag { &["t"] } else { &[] }));
        }
        records
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(6000), ..ProptestConfig::default() })]

    #[test]
    fn rules_keep_what_the_oracle_keeps(records in history(), policy in policy(), zone in 0..ZONES.len()) {
        let zone = TimeZone::get(ZONES[zone]).unwrap();
        let plan = plan(&records, &sane(&records), &Rules::from(&policy), &Protections::default(), &zone);
        let kept: BTreeSet<SnapshotNumber> = plan.kept().map(|decision| decision.number).collect();
        prop_assert_eq!(&kept, &oracle(&records, &policy, &zone), "{:?} in {:?}", policy, zone);
        prop_assert!(plan.decisions.iter().all(|decision| !decision.reasons.is_empty()));
        prop_assert!(plan.decisions.iter().map(|decision| decision.number).eq(records.iter().map(|(number, _)| *number)));
    }

    /// More rules and more protection never keep less, and what is protected stays.
    #[test]
    fn protection_adds(records in history(), policy in policy(), protected in vec(0..50u64, 0..5)) {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let mut protections = Protections::default();
        for number in &protected {
            protections.add(&format!("{number:032x}"), "pinned");
        }
        let without: BTreeSet<SnapshotNumber> =
            plan(&records, &sane(&records), &Rules::from(&policy), &Protections::default(), &zone).kept().map(|one| one.number).collect();
        let with = plan(&records, &sane(&records), &Rules::from(&policy), &protections, &zone);
        for decision in &with.decisions {
            let is_protected = protected.contains(&decision.number.0);
            prop_assert_eq!(decision.keep, is_protected || without.contains(&decision.number));
            prop_assert_eq!(decision.reasons.iter().any(|reason| reason == "pinned"), is_protected);
        }
    }

    /// docs/semantics.md: "A night with a wrong clock removes no other snapshot": whenever the night with the wrong clock was, whatever the clock showed,
    /// whether it was noticed, and whether somebody said that it is in order.
    #[test]
    fn a_wrong_date_lets_no_other_snapshot_go(
        history in history(),
        policy in policy(),
        place in 0..60usize,
        error in error(),
        is_noticed in any::<bool>(),
        is_accepted in any::<bool>(),
        later in 0..100_000i64,
    ) {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let good: Vec<(SnapshotNumber, SnapshotRecord)> =
            history.into_iter().map(|(number, record)| (SnapshotNumber(2 * number.0), record)).collect();
        let place = place % (good.len() + 1);
        let right = good[place.saturating_sub(1)].1.time;
        let (_, mut wrong) = record(place as u64 * 2, right, "/opt/zimbra/backup", &[]);
        let number = SnapshotNumber((2 * place as u64).saturating_sub(1));
        wrong.time = Timestamp::from_second(right.as_second() + error).unwrap();
        if is_noticed && error > 0 {
            let reasons = vec![SuspectReason { kind: ReasonKind::Clock, text: "it jumped".to_owned() }];
            wrong.guard = Some(Verdict { compared_with: None, reasons });
        }
        if place == 0 || good.len() < 2 {
            // Before anything is known no date is wrong.
            return Ok(());
        }
        let now = Timestamp::from_second(good.last().unwrap().1.time.as_second() + later).unwrap();
        let mut all = good.clone();
        all.insert(place, (number, wrong.clone()));
        let accepted = if is_accepted { BTreeSet::from([number]) } else { BTreeSet::new() };
        let dates = Dates::of(&all, &accepted, now);
        let all_good: BTreeSet<SnapshotNumber> = good.iter().map(|(number, _)| *number).collect();
        if !dates.plausible_sets().contains(&all_good) {
            // Its neighbours bear it out.
            let next = good.get(place).map_or(now, |(_, record)| record.time);
            let fits = wrong.time >= right - CLOCK_SLACK && wrong.time <= next + CLOCK_SLACK + CLOCK_SLACK;
            prop_assert!(fits, "{} after {right} and before {next}", wrong.time);
            return Ok(());
        }
        let kept = |records: &[(SnapshotNumber, SnapshotRecord)], dates: &Dates| -> BTreeSet<SnapshotNumber> {
            plan(records, dates, &Rules::from(&policy), &Protections::default(), &zone).kept().map(|one| one.number).collect()
        };
        let (without, with) = (kept(&good, &Dates::of(&good, &accepted, now)), kept(&all, &dates));
        prop_assert!(without.is_subset(&with), "{:?} without, {:?} with {number}", without, with);
    }

    /// Whatever the dates are, the moments follow the order of commits, and none lies after now.
    #[test]
    fn moments_follow_the_order_of_commits(
        errors in vec(prop_oneof![4 => Just(0), 1 => error()], 1..40),
        noticed in vec(any::<bool>(), 40),
        accepted in proptest::collection::btree_set(0..40u64, 0..10),
    ) {
        let first: Timestamp = "2026-01-01T03:00:00Z".parse().unwrap();
        let mut records = Vec::new();
        for (number, error) in (0..).zip(&errors) {
            let mut one = record(number, first + SignedDuration::from_secs(86_400 * number as i64 + error), "/s", &[]);
            if *error > 86_400 * 8 && noticed[number as usize] {
                let reasons = vec![SuspectReason { kind: ReasonKind::Clock, text: "it jumped".to_owned() }];
                one.1.guard = Some(Verdict { compared_with: None, reasons });
            }
            records.push(one);
        }
        let now = first + SignedDuration::from_hours(24 * errors.len() as i64);
        let accepted = accepted.into_iter().map(SnapshotNumber).collect();
        let dates = Dates::of(&records, &accepted, now);
        let moments: Vec<Timestamp> = records.iter().map(|(number, _)| dates.moment(*number).unwrap()).collect();
        for pair in moments.windows(2) {
            prop_assert!(pair[0] <= pair[1] + CLOCK_SLACK, "{:?}", moments);
        }
        prop_assert!(moments.iter().all(|moment| *moment <= now + CLOCK_SLACK));
        for (number, record) in &records {
            prop_assert!(!dates.is_plausible(*number) || dates.moment(*number) == Some(record.time));
        }
    }
}

fn at(times: &[&str]) -> Vec<(SnapshotNumber, SnapshotRecord)> {
    (0..).zip(times).map(|(number, time)| record(number, time.parse().unwrap(), "/s", &[])).collect()
}

fn kept(records: &[(SnapshotNumber, SnapshotRecord)], policy: &Policy, zone: &str) -> Vec<u64> {
    let zone = TimeZone::get(zone).unwrap();
    plan(records, &sane(records), &Rules::from(policy), &Protections::default(), &zone)
        .kept()
        .map(|decision| decision.number.0)
        .collect()
}

/// docs/semantics.md: "The hour that comes twice when summer time ends is two hours."
#[test]
fn the_hour_that_comes_twice_is_two_hours() {
    let records = at(&["2026-10-25T00:10:00Z", "2026-10-25T00:50:00Z", "2026-10-25T01:10:00Z", "2026-10-25T01:50:00Z"]);
    let hourly = Policy { keep_hourly: 9, ..Policy::default() };
    assert_eq!(kept(&records, &hourly, "Europe/Berlin"), [1, 3]);
    let daily = Policy { keep_daily: 9, ..Policy::default() };
    assert_eq!(kept(&records, &daily, "Europe/Berlin"), [3]);
}

/// docs/semantics.md: "Days begin at local midnight"
#[test]
fn days_are_those_of_the_zone() {
    let records = at(&["2026-11-20T22:30:00Z", "2026-11-20T23:30:00Z", "2026-11-21T22:30:00Z"]);
    let daily = Policy { keep_daily: 2, ..Policy::default() };
    assert_eq!(kept(&records, &daily, "Europe/Berlin"), [0, 2]);
    assert_eq!(kept(&records, &daily, "UTC"), [1, 2]);
}

/// docs/semantics.md: "The newest snapshot of each source stays whatever the rules say, and so does the one that was taken last"
#[test]
fn the_newest_of_each_source_stays() {
    let mut records = at(&["2026-11-20T01:00:00Z", "2026-11-21T01:00:00Z"]);
    records.push(record(2, "2026-11-21T02:00:00Z".parse().unwrap(), "/gone", &[]));
    let tagged = Policy { keep_tags: vec!["none has it".to_owned()], ..Policy::default() };
    assert_eq!(kept(&records, &tagged, "UTC"), [1, 2]);
    // What was taken last stays, whatever the clock said.
    records.push(record(3, "2020-01-01T00:00:00Z".parse().unwrap(), "/s", &[]));
    assert_eq!(kept(&records, &tagged, "UTC"), [1, 2, 3]);
    records.pop();
    // Nothing fades away because nobody takes snapshots any more.
    let within = Policy { keep_within: Some("1d".parse().unwrap()), ..Policy::default() };
    assert_eq!(kept(&records, &within, "UTC"), [0, 1, 2]);
    assert_eq!(kept(&records, &Policy::default(), "UTC"), [0, 1, 2], "no rule, nothing goes");
}
