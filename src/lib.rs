//! zmreplica: a snapshotting, content-addressed replica store for Zimbra backup trees.
//!
//! The library works and never prints; the command line in `main.rs` and `cli/` owns the terminal, the hints and the exit codes.
//! `docs/architecture.md` has the map of the layers.

pub mod access;
pub mod areas;
mod cache_file;
pub mod catalog;
pub mod cause;
pub mod check;
pub mod coding;
pub mod figures;
mod flock;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod ids;
pub mod layout;
pub mod lease;
pub mod limits;
pub mod memory_limit;
pub mod model;
pub mod mount;
mod mutex;
pub mod nightly;
pub mod passwd;
pub mod plain;
mod prefetch;
pub mod prune;
pub mod remote;
pub mod repair;
pub mod replica;
pub mod report;
pub mod restore;
pub mod retention;
pub mod sandbox;
pub mod snapshot;
pub mod source;
mod sparse_vec;
pub mod store;
pub mod view;
pub mod zimbra;
