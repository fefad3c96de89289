//! What a person wants to know of a night: how many accounts are whole, what became of them since the night before, and the sessions.

use std::collections::BTreeMap;

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

impl Summary {
    /// Sums up a page, with what the nightly run reported of it.
    pub fn of(page: &Page) -> Summary {
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
}
