//! What can be restored of one account: its fulls, the times that they reach, and what is missing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::redo::Chain;

/// What can be restored of an account now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountState {
    /// Everything, up to the newest time that the sessions hold.
    Whole,
    /// The account up to the newest time, but not by the usual way or not all of it: messages are missing, or its newest full is unusable and an
    /// older one must be named.
    Incomplete,
    /// Its state of an earlier time only: redo logs are missing.
    Behind,
    /// Nothing: no full session that can be used holds it.
    Lost,
}

impl AccountState {
    /// Returns the state in a word.
    pub fn word(self) -> &'static str {
        match self {
            AccountState::Whole => "whole",
            AccountState::Incomplete => "incomplete",
            AccountState::Behind => "behind",
            AccountState::Lost => "lost",
        }
    }
}

/// What can be restored of an account, in the words that people read: as [`AccountState`], which says nothing of what is missing at older times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RestoreState {
    /// Everything, to any time from the first to the newest.
    #[serde(rename = "up to date")]
    UpToDate,
    /// Its newest time, but something is missing: messages, times in between, or the usual way.
    #[serde(rename = "with gaps")]
    WithGaps,
    /// Its state of an earlier time only.
    #[serde(rename = "behind")]
    Behind,
    /// Nothing.
    #[serde(rename = "lost")]
    Lost,
}

impl RestoreState {
    /// Judges an account by its state and the gravest thing that is missing or wrong.
    pub fn of(state: AccountState, gravest: Option<&Fault>) -> RestoreState {
        let has_gaps = gravest.is_some_and(|fault| fault.severity > Severity::Notice);
        match state {
            AccountState::Whole if !has_gaps => RestoreState::UpToDate,
            AccountState::Whole | AccountState::Incomplete => RestoreState::WithGaps,
            AccountState::Behind => RestoreState::Behind,
            AccountState::Lost => RestoreState::Lost,
        }
    }

    /// Returns the state in a word or two.
    pub fn words(self) -> &'static str {
        match self {
            RestoreState::UpToDate => "up to date",
            RestoreState::WithGaps => "with gaps",
            RestoreState::Behind => "behind",
            RestoreState::Lost => "lost",
        }
    }
}

/// How many accounts are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateCounts {
    /// All of them.
    pub accounts: u64,
    /// Those that are [`RestoreState::UpToDate`].
    pub up_to_date: u64,
    /// Those that are [`RestoreState::WithGaps`].
    pub with_gaps: u64,
    /// Those that are [`AccountState::Whole`].
    pub whole: u64,
    /// Those that are [`AccountState::Incomplete`].
    pub incomplete: u64,
    /// Those that are [`AccountState::Behind`].
    pub behind: u64,
    /// Those that are [`AccountState::Lost`].
    pub lost: u64,
}

impl StateCounts {
    /// Counts accounts by their states.
    pub fn of(states: impl IntoIterator<Item = (AccountState, RestoreState)>) -> StateCounts {
        let mut counts = StateCounts::default();
        for (state, restore_state) in states {
            counts.accounts += 1;
            counts.up_to_date += u64::from(restore_state == RestoreState::UpToDate);
            counts.with_gaps += u64::from(restore_state == RestoreState::WithGaps);
            *match state {
                AccountState::Whole => &mut counts.whole,
                AccountState::Incomplete => &mut counts.incomplete,
                AccountState::Behind => &mut counts.behind,
                AccountState::Lost => &mut counts.lost,
            } += 1;
        }
        counts
    }

    /// Returns the states with their counts, best first.
    pub fn by_state(&self) -> [(AccountState, u64); 4] {
        [
            (AccountState::Whole, self.whole),
            (AccountState::Incomplete, self.incomplete),
            (AccountState::Behind, self.behind),
            (AccountState::Lost, self.lost),
        ]
    }

    /// Returns the same in the words that people read, best first.
    pub fn by_restore_state(&self) -> [(RestoreState, u64); 4] {
        [
            (RestoreState::UpToDate, self.up_to_date),
            (RestoreState::WithGaps, self.with_gaps),
            (RestoreState::Behind, self.behind),
            (RestoreState::Lost, self.lost),
        ]
    }
}

/// What a fault does to a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; an older session stands in.
    Notice,
    /// Something will be missing in what is restored.
    Loss,
    /// The session, or the times behind a gap, cannot be restored.
    Block,
}

/// Names a kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A session that should have held the account lists it as failed or not done.
    NotBackedUp,
    /// accounts.xml names a full that is not there.
    LatestAbsent,
    /// accounts.xml does not know the account, though a session does.
    NotInAccounts,
    /// A full lists the account, and has no directory of it.
    DirectoryAbsent,
    /// The account's directory in a full has no meta.xml: it was not finished.
    Unfinished,
    /// The account's meta.xml in a full cannot be used.
    MetaDamaged,
    /// The dump of the account's tables is missing.
    DatabaseAbsent,
    /// The account's LDAP data is missing.
    LdapAbsent,
    /// The source could not read files.
    Unreadable,
    /// A zip is damaged.
    ZipDamaged,
    /// Placeholders name messages that the session does not hold.
    SharedMissing,
    /// Redo logs are missing.
    RedoGap,
    /// The store could not be read.
    StoreDamaged,
}

/// One thing that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// What it does to a restore.
    pub severity: Severity,
    /// Label of the session that it is in or counts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What it is, in words.
    pub text: String,
}

/// An account in one full session.
#[derive(Clone, Debug)]
pub struct FullOfAccount {
    /// The session, by place in the list of sessions.
    pub session: usize,
    /// When the session started: the first time that it restores to.
    pub start: Timestamp,
    /// The last time that a restore from it reaches.
    pub reach: Timestamp,
    /// Whether a restore can use it at all.
    pub usable: bool,
    /// Whether nothing of it is missing.
    pub complete: bool,
    /// Blobs that it holds of the account, placeholders included.
    pub messages: u64,
    /// The redo logs that a restore replays behind it.
    pub chain: Chain,
}

/// Times to which an account can be restored, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

/// What can be restored of one account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its identifier.
    pub id: String,
    /// Its address: that of accounts.xml, else that of the newest session.
    pub email: String,
    /// Other addresses that sessions know it by, lower-cased: it was renamed.
    pub other_emails: Vec<String>,
    /// Whether accounts.xml knows it.
    pub in_accounts: bool,
    /// The full that accounts.xml names as its newest.
    pub latest: Option<String>,
    /// What can be restored of it now.
    pub state: AccountState,
    /// The full sessions that list it without an error, oldest first.
    pub fulls: Vec<FullOfAccount>,
    /// The times to which it can be restored, oldest first.
    pub intervals: Vec<Interval>,
    /// All that is missing or wrong, in the order of sessions.
    pub faults: Vec<Fault>,
}

/// How an account is restored to a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// From this full, by place in [`Account::fulls`], and the redo logs behind it.
    Restorable {
        /// The full to restore from.
        full: usize,
        /// Whether it is the one that the vendor's tool takes by itself; else it must be named.
        usual: bool,
    },
    /// The time lies behind the last redo log, or in or behind a gap: the last time that can be had, if there is one.
    Only {
        /// That time.
        time: Option<Timestamp>,
    },
}

impl Account {
    /// Returns what can be restored of it now, in the words that people read.
    pub fn restore_state(&self) -> RestoreState {
        RestoreState::of(self.state, self.gravest_fault())
    }

    /// Returns the gravest thing that is missing or wrong; of equals the newest, which says most.
    pub fn gravest_fault(&self) -> Option<&Fault> {
        self.faults.iter().max_by_key(|fault| fault.severity)
    }

    /// Returns how the account is restored to a time; without one, to the newest there is.
    pub fn answer(&self, time: Option<Timestamp>) -> Answer {
        let Some(time) = time else {
            // What reaches farthest; of equals the newest, which has the least to replay.
            let usable = self.fulls.iter().enumerate().filter(|(_, full)| full.usable);
            return match usable.max_by_key(|(_, full)| full.reach) {
                Some((full, _)) => Answer::Restorable { full, usual: full + 1 == self.fulls.len() },
                None => Answer::Only { time: None },
            };
        };
        let before = self.fulls.iter().rposition(|full| full.start <= time);
        let found = self.fulls.iter().rposition(|full| full.usable && full.start <= time && time <= full.reach);
        match found {
            Some(full) => Answer::Restorable { full, usual: before == Some(full) },
            None => {
                let earlier = self.intervals.iter().rev().find(|interval| interval.from <= time);
                Answer::Only { time: earlier.map(|interval| interval.to.min(time)) }
            }
        }
    }

    /// Returns whether the text names the account: an address that it has or had, or its identifier, in any case.
    pub fn is_named(&self, text: &str) -> bool {
        is_named(text, &self.id, &self.email, &self.other_emails)
    }
}

/// Returns whether a text is one of an account's names, in any case. Identifiers and other addresses are lower-cased.
pub(super) fn is_named(text: &str, id: &str, email: &str, other_emails: &[String]) -> bool {
    let text = text.to_lowercase();
    id == text || email.to_lowercase() == text || other_emails.contains(&text)
}

/// Joins the times of usable fulls where they touch.
pub(super) fn intervals(fulls: &[FullOfAccount]) -> Vec<Interval> {
    let mut joined: Vec<Interval> = Vec::new();
    for full in fulls.iter().filter(|full| full.usable) {
        match joined.last_mut() {
            Some(last) if full.start <= last.to => last.to = last.to.max(full.reach),
            _ => joined.push(Interval { from: full.start, to: full.reach }),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn account(fulls: &[(i64, i64, bool)]) -> Account {
        let full = |(at_place, (start, reach, usable)): (usize, &(i64, i64, bool))| FullOfAccount {
            session: at_place,
            start: at(*start),
            reach: at(*reach),
            usable: *usable,
            complete: *usable,
            messages: 0,
            chain: Chain::default(),
        };
        let fulls: Vec<FullOfAccount> = fulls.iter().enumerate().map(full).collect();
        Account {
            id: "a-1".to_owned(),
            email: "New@example.com".to_owned(),
            other_emails: vec!["old@example.com".to_owned()],
            in_accounts: true,
            latest: None,
            state: AccountState::Whole,
            intervals: intervals(&fulls),
            fulls,
            faults: Vec::new(),
        }
    }

    #[test]
    fn what_is_missing_at_older_times_is_a_gap_and_a_note_is_none() {
        let fault = |severity| Fault { kind: FaultKind::RedoGap, severity, session: None, text: String::new() };
        let of = |state, severity: Option<Severity>| RestoreState::of(state, severity.map(fault).as_ref()).words();
        assert_eq!(of(AccountState::Whole, None), "up to date");
        assert_eq!(of(AccountState::Whole, Some(Severity::Notice)), "up to date");
        assert_eq!(of(AccountState::Whole, Some(Severity::Loss)), "with gaps");
        assert_eq!(of(AccountState::Whole, Some(Severity::Block)), "with gaps");
        assert_eq!(of(AccountState::Incomplete, None), "with gaps");
        assert_eq!(of(AccountState::Behind, Some(Severity::Block)), "behind");
        assert_eq!(of(AccountState::Lost, None), "lost");
        for state in [RestoreState::UpToDate, RestoreState::WithGaps, RestoreState::Behind, RestoreState::Lost] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.words());
        }
    }

    #[test]
    fn times_are_answered_from_the_newest_full_that_reaches_them() {
        let account = account(&[(10, 35, true), (20, 25, false), (40, 60, true)]);
        assert_eq!(account.intervals, [Interval { from: at(10), to: at(35) }, Interval { from: at(40), to: at(60) }]);
        assert_eq!(account.answer(Some(at(15))), Answer::Restorable { full: 0, usual: true });
        assert_eq!(account.answer(Some(at(22))), Answer::Restorable { full: 0, usual: false });
        assert_eq!(account.answer(Some(at(37))), Answer::Only { time: Some(at(35)) });
        assert_eq!(account.answer(Some(at(50))), Answer::Restorable { full: 2, usual: true });
        assert_eq!(account.answer(Some(at(99))), Answer::Only { time: Some(at(60)) });
        assert_eq!(account.answer(Some(at(5))), Answer::Only { time: None });
        assert_eq!(account.answer(None), Answer::Restorable { full: 2, usual: true });
    }

    #[test]
    fn the_newest_time_is_that_of_the_full_that_reaches_farthest() {
        // The newest full's own logs are gone, and an older one's chain goes on: it must be named.
        let reaching = account(&[(10, 60, true), (40, 45, true)]);
        assert_eq!(reaching.answer(None), Answer::Restorable { full: 0, usual: false });
        let equal = account(&[(10, 60, true), (40, 60, true)]);
        assert_eq!(equal.answer(None), Answer::Restorable { full: 1, usual: true });
        assert_eq!(account(&[(10, 60, false)]).answer(None), Answer::Only { time: None });
    }

    #[test]
    fn names_of_any_time_and_case_are_understood() {
        let account = account(&[]);
        for name in ["new@EXAMPLE.com", "OLD@example.com", "A-1"] {
            assert!(account.is_named(name), "{name}");
        }
        assert!(!account.is_named("other@example.com"));
    }
}
