//! What a person wants to know of a night: how many accounts are whole, what became of them since the night before, and the sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::nightly_diff::{Changes, NightlyDiff};
use super::page::{Page, SessionEntry};
use crate::layout::SessionKind;
use crate::zimbra::account::StateCounts;
use crate::zimbra::input::StoreError;
use crate::zimbra::site::SessionState;

/// What can be restored from a snapshot, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The accounts by state.
    pub counts: StateCounts,
    /// The sessions by state.
    pub sessions: BTreeMap<SessionState, u64>,
    /// The newest full session that a restore can use.
    pub newest_full: Option<SessionEntry>,
    /// The newest incremental session that a restore can use.
    pub newest_incremental: Option<SessionEntry>,
    /// The newest of both, as far as a clock is not known to have been wrong.
    pub newest_usable: Option<SessionEntry>,
    /// The newest time to which any account can be restored.
    pub newest_time: Option<Timestamp>,
    /// When the snapshot was taken, as far as its date can be right: ages count up to then.
    #[serde(skip)]
    pub moment: Timestamp,
    /// Sessions that were being written.
    pub running: Vec<String>,
    /// Identifier of the snapshot that the nightly run compared it with; `None` when it was the first, when no nightly run has reported it, or a part of either
    /// could not be read.
    pub compared_with: Option<String>,
    /// What became of accounts and sessions since then.
    pub changes: Changes,
    /// What kept a part of the snapshot from being looked at; what is said above may be too little then.
    pub store_error: Option<StoreError>,
}

/// Something that is wrong with a snapshot by itself, night after night until it is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// No account can be restored.
    NothingRestorable {
        /// How many accounts there are.
        accounts: u64,
    },
    /// The newest session that a restore can use is too old.
    Stopped {
        /// Its label; `None` if there is none, and an older tree holds what can be restored.
        label: Option<String>,
        /// Its age, or that of the newest time that can be restored, in seconds.
        age_seconds: i64,
    },
    /// There are newer sessions, but no account can be restored to a time that is new enough.
    Behind {
        /// The newest time.
        newest: Timestamp,
        /// Its age in seconds.
        age_seconds: i64,
    },
}

impl Summary {
    /// Sums up a page, with what the nightly run reported of it, of a snapshot that was taken at a moment.
    pub fn of(page: &Page, moment: Timestamp) -> Summary {
        let newest = |kind| {
            let usable = page.sessions.iter().filter(|session| session.kind == kind && session.is_usable());
            usable.max_by_key(|session| session.start).cloned()
        };
        let running = page.sessions.iter().filter(|session| session.state == SessionState::Running);
        let NightlyDiff { compared_with, changes } = page.nightly_diff.clone().unwrap_or_default();
        Summary {
            counts: page.counts(),
            sessions: page.session_counts(),
            newest_full: newest(SessionKind::Full),
            newest_incremental: newest(SessionKind::Incremental),
            newest_usable: page.newest_usable(moment).cloned(),
            newest_time: page.newest_time(moment),
            moment,
            running: running.map(|session| session.label.clone()).collect(),
            compared_with,
            changes,
            store_error: page.store_error.clone(),
        }
    }

    /// Returns whether a person should look at it: less can be restored of an account than before, and it did not leave in its time.
    pub fn wants_attention(&self) -> bool {
        self.changes.lost_something().next().is_some()
    }

    /// Returns what is wrong by itself. Sessions and times may be so old at most; `None` is no limit.
    pub fn concerns(&self, max_session_age: Option<Duration>) -> Vec<Concern> {
        let mut concerns = Vec::new();
        if self.store_error.is_some() {
            // It says too little, and that is said.
            return concerns;
        }
        if self.counts.accounts == self.counts.lost {
            concerns.push(Concern::NothingRestorable { accounts: self.counts.accounts });
        }
        let age_seconds = |time: Timestamp| self.moment.as_second() - time.as_second();
        let is_old = |time: Timestamp| {
            let limit = max_session_age.map(|limit| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX));
            limit.is_some_and(|limit| age_seconds(time) > limit)
        };
        match (&self.newest_usable, self.newest_time) {
            (Some(session), _) if is_old(session.start) => {
                let age_seconds = age_seconds(session.start);
                concerns.push(Concern::Stopped { label: Some(session.label.clone()), age_seconds });
            }
            (None, Some(newest)) if is_old(newest) => {
                concerns.push(Concern::Stopped { label: None, age_seconds: age_seconds(newest) });
            }
            (Some(_), Some(newest)) if is_old(newest) => {
                concerns.push(Concern::Behind { newest, age_seconds: age_seconds(newest) });
            }
            _ => {}
        }
        concerns
    }
}
