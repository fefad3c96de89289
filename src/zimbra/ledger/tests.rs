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
use crate::zimbra::account::AccountState;
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
    let summary = Summary::of(&page);
    assert!(summary.wants_attention() && !Summary::of(&now).wants_attention());
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
        let reasons =
            protections(&mut ledger, &self.there, &dates, within, &TimeZone::UTC, || Ok::<(), Infallible>(())).unwrap();
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
