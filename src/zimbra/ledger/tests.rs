//! Pages, what became of accounts from one to the next, and which snapshots must stay.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::catalog::dates::Dates;
use crate::catalog::snapshot::SnapshotRecord;
use crate::ids::SnapshotNumber;
use crate::layout::SessionKind;
use crate::replica::{Replica, init};
use crate::retention::{Within, WithinUnit};
use crate::view::ViewOptions;
use crate::zimbra::account::{AccountState, Interval};
use crate::zimbra::site::SessionState;

fn entry(id: &str, state: AccountState) -> AccountEntry {
    AccountEntry {
        id: id.to_owned(),
        email: format!("{id}@example.com"),
        other_emails: Vec::new(),
        state,
        in_accounts: true,
        from: None,
        to: Some(night(0)),
        faults: 0,
        gravest_fault: None,
        tree: None,
        gaps: None,
    }
}

fn night(at: usize) -> Timestamp {
    Timestamp::from_second(1_785_546_000).unwrap() + SignedDuration::from_hours(24 * at as i64)
}

fn record(at: usize) -> SnapshotRecord {
    let (id, time) = (format!("{at:032x}"), night(at));
    let value = serde_json::json!({
        "id": id, "time": time, "finished": time, "source": "/opt/zimbra/backup", "host": "mail", "root": "", "links": [],
        "problem_count": 0, "totals": crate::catalog::snapshot::Totals::default(), "work": crate::catalog::snapshot::Work::default(),
        "digest": "", "version": "0",
    });
    serde_json::from_value(value).unwrap()
}

fn page(accounts: Vec<AccountEntry>) -> Page {
    Page { accounts, ..Page::default() }
}

#[test]
fn a_page_is_believed_only_whole_and_of_its_snapshot() {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join("cache")).unwrap();
    let (one, other) = (record(1).id, record(2).id);
    let written = page(vec![entry("a", AccountState::Whole), entry("b", AccountState::Lost)]);
    page::save(store.path(), &one, &written);
    assert_eq!(kept(store.path(), &one), Some(written));
    assert_eq!(kept(store.path(), &other), None);
    let directory = store.path().join("cache/ledger");
    fs::copy(directory.join(&one), directory.join(&other)).unwrap();
    assert_eq!(kept(store.path(), &other), None, "that of another snapshot");
    let bytes = fs::read(directory.join(&one)).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        fs::write(directory.join(&one), &bad).unwrap();
        assert_eq!(kept(store.path(), &one), None, "{at}");
    }
    fs::write(directory.join("0.tmp"), "half").unwrap();
    fs::write(directory.join(&one), &bytes).unwrap();
    page::tidy(store.path(), |id| id == one);
    let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [std::ffi::OsString::from(&one)]);
}

#[test]
fn what_became_of_accounts_and_sessions_is_reported() {
    use AccountState::{Behind, Lost, Whole};
    let session =
        |label: &str, state| SessionEntry { label: label.to_owned(), kind: SessionKind::Full, start: night(0), state };
    let departed = AccountEntry { in_accounts: false, ..entry("departed", Whole) };
    let mut before = page(vec![
        entry("stays", Whole),
        entry("breaks", Whole),
        entry("heals", Behind),
        entry("vanishes", Whole),
        entry("vanishes-broken", Behind),
        entry("worsens", Behind),
        departed,
    ]);
    before.sessions = vec![session("full-1", SessionState::Complete), session("full-2", SessionState::Running)];
    let mut now = page(vec![
        entry("stays", Whole),
        entry("breaks", Behind),
        entry("heals", Whole),
        entry("comes", Lost),
        entry("worsens", Lost),
    ]);
    now.sessions = vec![session("full-2", SessionState::WithErrors), session("full-3", SessionState::Running)];
    let diff = NightlyDiff { compared_with: Some("id".to_owned()), changes: Changes::between(&before, &now) };
    let page = Page { nightly_diff: Some(diff), ..now.clone() };
    let stored = serde_json::to_value(&page).unwrap();
    assert_eq!(stored["told"]["compared_with"], "id", "what pages of earlier versions call it");
    let summary = Summary::of(&page, night(0));
    assert!(summary.wants_attention() && !Summary::of(&now, night(0)).wants_attention());
    let changes = &summary.changes;
    let ids = |accounts: &[ChangedAccount]| accounts.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&changes.no_longer_whole), ["breaks", "vanishes"]);
    assert_eq!(changes.no_longer_whole[0].state, Some(Behind));
    assert_eq!(changes.no_longer_whole[1].state, None);
    assert_eq!(ids(&changes.worse), ["vanishes-broken", "worsens"]);
    assert_eq!(ids(&changes.left), ["departed"], "an account that leaves in its time is no alarm");
    assert_eq!((ids(&changes.whole_again), ids(&changes.new)), (vec!["heals".to_owned()], vec!["comes".to_owned()]));
    assert_eq!(
        (&changes.new_sessions[..], &changes.gone_sessions[..]),
        (&["full-2".to_owned()][..], &["full-1".to_owned()][..])
    );
    assert_eq!((summary.running, summary.counts.whole, summary.counts.accounts), (vec!["full-3".to_owned()], 2, 5));
    assert_eq!(summary.newest_full.unwrap().label, "full-2");
    assert!(Changes::between(&now, &now) == Changes::default());
}

#[test]
fn what_is_lost_without_a_worse_state_is_told_and_what_expires_or_never_came_is_not() {
    let interval = |from, to| Interval { from: night(from), to: night(to) };
    let with = |from: usize, to: usize, times: &[Interval], sessions: &[&str]| AccountEntry {
        from: Some(night(from)),
        to: Some(night(to)),
        gaps: Some(Gaps {
            times: times.to_vec(),
            sessions: sessions.iter().map(|label| (*label).to_owned()).collect(),
        }),
        ..entry("a", AccountState::Whole)
    };
    let page = |entry: AccountEntry, fulls: &[usize]| Page {
        sessions: fulls.iter().map(|at| session(SessionKind::Full, *at)).collect(),
        ..page(vec![entry])
    };
    let old = page(with(0, 14, &[], &[]), &[0, 7, 14]);
    let less = |old: &Page, now: &Page| Changes::between(old, now).lost_something().count();
    let all = [0, 7, 14, 21];
    assert_eq!(less(&old, &old), 0);
    assert_eq!(less(&old, &page(with(0, 14, &[interval(3, 7)], &["full-0"]), &all)), 1, "an incremental went");
    assert_eq!(less(&old, &page(with(0, 13, &[], &[]), &all)), 1, "the newest one went");
    assert_eq!(less(&old, &page(with(7, 14, &[], &[]), &all)), 1, "the first full is there and of no use any more");
    assert_eq!(less(&old, &page(with(7, 14, &[], &[]), &all[1..])), 0, "it left in its time");
    assert_eq!(less(&old, &page(with(0, 14, &[], &["full-7"]), &all)), 1, "messages of a session that was there");
    assert_eq!(less(&old, &page(with(0, 21, &[], &["full-21"]), &all)), 0, "messages that a new one lacks");
    assert_eq!(less(&old, &page(with(0, 21, &[interval(14, 21)], &[]), &all)), 0, "times that were never there");
    let gappy = page(with(0, 14, &[interval(3, 7)], &["full-0"]), &[0, 7, 14]);
    assert_eq!(less(&gappy, &gappy), 0, "no news");
    assert_eq!(less(&gappy, &page(with(0, 14, &[interval(2, 7)], &["full-0"]), &all)), 1, "the gap has grown");
    assert_eq!(less(&gappy, &old), 0, "it was filled");
    let unknown = page(AccountEntry { gaps: None, ..with(0, 14, &[], &[]) }, &[0, 7, 14]);
    assert_eq!(less(&unknown, &gappy), 0, "a page of an earlier version does not tell");
}

fn session(kind: SessionKind, at: usize) -> SessionEntry {
    let label = format!("{}-{at}", if kind == SessionKind::Full { "full" } else { "incr" });
    SessionEntry { label, kind, start: night(at), state: SessionState::Complete }
}

#[test]
fn ages_count_up_to_the_snapshot_by_dates_that_can_be_right() {
    let sessions = |nights: &[usize]| nights.iter().map(|at| session(SessionKind::Incremental, *at)).collect();
    let page = |nights: &[usize], to: usize, state| Page {
        sessions: sessions(nights),
        ..page(vec![AccountEntry { to: Some(night(to)), ..entry("a", state) }])
    };
    let days = |count: u64| Some(std::time::Duration::from_secs(count * 86_400));
    let concerns = |page: &Page, at: usize, limit| Summary::of(page, night(at)).concerns(limit);
    let whole = AccountState::Whole;
    let stopped = |label: Option<&str>, days: i64| Concern::Stopped {
        label: label.map(str::to_owned),
        age_seconds: days * 86_400,
    };
    let usual = page(&[3, 10], 10, whole);
    assert_eq!(concerns(&usual, 13, days(3)), []);
    assert_eq!(concerns(&usual, 14, days(3)), [stopped(Some("incr-10"), 4)]);
    assert_eq!(concerns(&usual, 14, days(5)), []);
    assert_eq!(concerns(&usual, 1000, None), []);
    // A clock was ahead when a session began, or now is behind.
    assert_eq!(concerns(&page(&[3, 10, 900], 10, whole), 14, days(3)), [stopped(Some("incr-10"), 4)]);
    assert_eq!(concerns(&page(&[10, 11], 11, whole), 5, days(3)), []);
    // Nothing at the root, and an older tree.
    assert_eq!(concerns(&page(&[], 10, whole), 14, days(3)), [stopped(None, 4)]);
    assert_eq!(
        concerns(&page(&[3, 14], 10, whole), 14, days(3)),
        [Concern::Behind { newest: night(10), age_seconds: 4 * 86_400 }]
    );
    let lost = Page { accounts: vec![AccountEntry { to: None, ..entry("a", AccountState::Lost) }], ..usual };
    assert_eq!(concerns(&lost, 10, days(3)), [Concern::NothingRestorable { accounts: 1 }]);
    assert_eq!(concerns(&Page::default(), 10, None), [Concern::NothingRestorable { accounts: 0 }]);
}

/// What one account is in one night; `None` when nothing knows it.
type State = Option<AccountState>;

/// One store under a history of nights.
struct Nights {
    _directory: tempfile::TempDir,
    replica: Replica,
    /// Snapshots that are there.
    there: Vec<(SnapshotNumber, SnapshotRecord)>,
}

impl Nights {
    fn new() -> Nights {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        init(&store).unwrap();
        Nights { replica: Replica::open(&store).unwrap(), there: Vec::new(), _directory: directory }
    }

    /// Takes a snapshot in which the accounts are in these states, then removes all but the newest few and what is protected; returns what is protected, by
    /// night.
    fn take(&mut self, at: usize, states: &[State], keep: usize, within: Within) -> BTreeMap<usize, String> {
        let accounts = states.iter().enumerate();
        let accounts = accounts.filter_map(|(id, state)| Some(entry(&format!("account-{id}"), (*state)?))).collect();
        self.take_entries(at, accounts, keep, within)
    }

    fn take_entries(
        &mut self,
        at: usize,
        accounts: Vec<AccountEntry>,
        keep: usize,
        within: Within,
    ) -> BTreeMap<usize, String> {
        let record = record(at);
        page::save(self.replica.path(), &record.id, &page(accounts));
        self.there.push((SnapshotNumber(at as u64 + 1), record));
        let readers = Readers::new(
            Arc::new(self.replica.catalog().unwrap()),
            Arc::new(self.replica.chunks()),
            ViewOptions::default(),
        );
        let snapshots = Snapshots::default();
        let mut ledger = Ledger::open(&self.replica, readers, &snapshots);
        let dates = Dates::of(&self.there, &BTreeSet::new(), night(10_000));
        let reasons = protections(
            &mut ledger,
            &self.there,
            &dates,
            |_| Some(within),
            &TimeZone::UTC,
            || Ok::<(), Infallible>(()),
        )
        .unwrap();
        let from = self.there.len().saturating_sub(keep);
        let newest: BTreeSet<String> = self.there[from..].iter().map(|(_, record)| record.id.clone()).collect();
        self.there.retain(|(_, record)| newest.contains(&record.id) || reasons.contains_key(&record.id));
        let here: BTreeSet<&String> = self.there.iter().map(|(_, record)| &record.id).collect();
        page::tidy(self.replica.path(), |id| here.contains(&id.to_owned()));
        let place = |id: &str| usize::from_str_radix(id, 16).unwrap();
        reasons.into_iter().map(|(id, reasons)| (place(&id), reasons.join("; "))).collect()
    }
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        3 => Just(Some(AccountState::Whole)),
        1 => Just(Some(AccountState::Behind)),
        1 => Just(Some(AccountState::Lost)),
        2 => Just(None),
    ]
}

/// An account for some nights in the same state, and then in another: as accounts are.
fn life(nights: usize) -> impl Strategy<Value = Vec<State>> {
    prop::collection::vec((state(), 1..12usize), 1..6).prop_map(move |runs| {
        let states = runs.into_iter().flat_map(|(state, length)| vec![state; length]);
        states.chain(std::iter::repeat(None)).take(nights).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(8), ..ProptestConfig::default() })]

    /// Night for night, over a history of which the store has only what was kept: exactly what the whole history requires stays.
    #[test]
    fn the_last_whole_snapshot_of_each_account_stays_for_its_time(
        lives in prop::collection::vec(life(40), 1..5),
        keep in 1..6usize,
        days in 1..25u32,
    ) {
        let within = Within { count: days, unit: WithinUnit::Days };
        let mut nights = Nights::new();
        for at in 0..40 {
            let states: Vec<State> = lives.iter().map(|life| life[at]).collect();
            let found: BTreeSet<usize> = nights.take(at, &states, keep, within).into_keys().collect();
            let mut wanted = BTreeSet::new();
            for life in &lives {
                // The best of what is there; the best of all that there ever was is it, unless the account came back after its time.
                let best = |is_counted: &dyn Fn(usize) -> bool| {
                    let known = (0..=at).filter(|night| is_counted(*night)).filter_map(|night| Some((life[night]?, night)));
                    known.filter(|(state, _)| *state < AccountState::Lost).min_by_key(|(state, night)| (*state, at - night))
                };
                let is_there = |night: usize| nights.there.iter().any(|(number, _)| number.0 == night as u64 + 1);
                let is_due = |night: usize| {
                    let known = life[..=night].iter().rposition(Option::is_some).unwrap_or_default();
                    known == night || night - (known + 1) <= days as usize
                };
                if let Some((_, night)) = best(&is_there).filter(|(_, night)| *night < at)
                    && is_due(at)
                {
                    wanted.insert(night);
                }
                if let Some((_, night)) = best(&|_| true).filter(|(_, night)| (*night..=at).all(is_due)) {
                    prop_assert!(is_there(night), "night {}: the snapshot of night {} is gone", at, night);
                }
            }
            prop_assert_eq!(&found, &wanted, "night {}", at);
        }
    }
}

#[test]
fn a_snapshot_whose_accounts_xml_knows_the_account_is_worth_more() {
    let within: Within = "1y".parse().unwrap();
    let mut nights = Nights::new();
    let whole = entry("a", AccountState::Whole);
    let unnamed = AccountEntry { in_accounts: false, ..whole.clone() };
    nights.take_entries(0, vec![whole.clone()], 1, within);
    nights.take_entries(1, vec![whole], 1, within);
    // Deleted on the server, and still in its sessions.
    assert!(nights.take_entries(2, vec![unnamed.clone()], 1, within).contains_key(&1));
    nights.take_entries(3, vec![unnamed], 1, within);
    assert_eq!(nights.take_entries(4, Vec::new(), 1, within).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn reasons_name_the_accounts_and_the_day() {
    let mut nights = Nights::new();
    let within: Within = "3d".parse().unwrap();
    let (whole, broken) = (Some(AccountState::Whole), Some(AccountState::Behind));
    assert_eq!(nights.take(0, &[whole, whole, whole], 1, within), BTreeMap::new());
    let reasons = nights.take(1, &[whole, broken, None], 1, within);
    assert_eq!(
        reasons[&0],
        "the last with account-1@example.com, account-2@example.com whole (until the newest is as good)"
    );
    for at in 2..5 {
        let reasons = nights.take(at, &[whole, whole, None], 1, within);
        assert_eq!(reasons[&0], "the last with account-2@example.com whole (until 2026-08-05)", "night {at}");
    }
    let mut poor = Nights::new();
    poor.take(0, &[broken], 1, within);
    assert_eq!(
        poor.take(1, &[None], 1, within)[&0],
        "the last with account-0@example.com (behind) as whole as ever (until 2026-08-05)"
    );
    // It was missed first in the second night, whose snapshot is gone long since.
    assert_eq!(nights.take(5, &[whole, whole, None], 1, within), BTreeMap::new());
    assert_eq!(nights.there.len(), 1);
}
