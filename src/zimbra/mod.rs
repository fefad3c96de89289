//! What a Zimbra backup tree holds: sessions, accounts, and what can be restored.
//!
//! Everything here reads snapshots; nothing that takes or keeps them depends on it. A tree that cannot be understood is replicated just as well, and the
//! answers say what could not be read.
//!
//! From the bottom: [`redo`] and [`blob`] know names of files, [`layout`](crate::layout) those above and the three XML files; a session is put together from
//! those, an account's facts from its directory, and [`Analyser`] judges what can be restored. [`history`] compares snapshots, [`sizes`] weighs sessions.
//! [`ledger`] keeps what was found with each snapshot.

pub mod account;
mod analysis;
pub mod blob;
mod cache;
pub mod drill;
mod facts;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod history;
mod input;
pub mod ledger;
pub mod plan;
mod recent;
pub mod redo;
mod site;
pub mod sizes;

pub use analysis::{Analyser, Analysis};
pub use input::StoreError;
pub use site::{Place, Session, SessionState, moved_trees, read_sessions};
