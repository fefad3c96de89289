//! What became of the accounts and sessions of a source since the snapshot that the nightly run before reported, as a page keeps it.

use serde::{Deserialize, Serialize};

use crate::zimbra::account::{AccountState, RestoreState};

/// An account that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedAccount {
    /// Its identifier.
    pub id: String,
    /// Its address.
    pub email: String,
    /// What can be restored of it now; `None` when neither accounts.xml nor a full session knows it any more.
    pub state: Option<AccountState>,
    /// The same in the words that people read; `None` also in what earlier versions noted.
    #[serde(default)]
    pub restore_state: Option<RestoreState>,
}

/// What became of accounts and sessions since an earlier snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Accounts that were whole and are not, but for those that left in their time.
    pub no_longer_whole: Vec<ChangedAccount>,
    /// Accounts that were not whole before either, and of which less can be restored now.
    pub worse: Vec<ChangedAccount>,
    /// Accounts of which less can be restored now, though `state` is what it was: times or messages that sessions held which are still there, or the
    /// newest time.
    #[serde(default)]
    pub more_gaps: Vec<ChangedAccount>,
    /// Accounts that accounts.xml did not know before either and whose last session is gone: deleted on the server long ago.
    pub left: Vec<ChangedAccount>,
    /// Accounts that were not whole and are.
    pub whole_again: Vec<ChangedAccount>,
    /// Accounts that nothing knew before.
    pub new: Vec<ChangedAccount>,
    /// Labels of sessions that were not there, or not finished.
    pub new_sessions: Vec<String>,
    /// Labels of sessions that are gone.
    pub gone_sessions: Vec<String>,
}

impl Changes {
    /// Returns the accounts of which less can be restored than before, but for those that left in their time.
    pub fn lost_something(&self) -> impl Iterator<Item = &ChangedAccount> {
        self.no_longer_whole.iter().chain(&self.worse).chain(&self.more_gaps)
    }
}

/// What became of accounts and sessions, as a nightly run reported it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NightlyDiff {
    /// Identifier of the snapshot that it was compared with: the one of the nightly run before, as a rule.
    pub compared_with: Option<String>,
    /// What changed since then.
    pub changes: Changes,
}
