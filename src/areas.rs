//! The areas of work that spans and events of `tracing` name as their target.
//!
//! They are the words that a user may write in a filter, so they stay when modules are renamed. The library only emits; who subscribes decides where it
//! goes. Without a subscriber an event costs the look at one atomic number.
//!
//! Events are for steps: a run, an attempt, a pack, a listing of the store, a commit, a request that failed. Nothing is emitted for each chunk, each file
//! or each name, so a run of any size emits as many events as it has packs and commits. No event carries a user's name, a password, the command line of an
//! `--rsh` program, or key material.

/// Runs: what a snapshot goes through.
pub const RUN: &str = "run";
/// Everything on another host: connecting, the agent, attempts.
pub const REMOTE: &str = "remote";
/// Mounts: requests that fail or are slow.
pub const MOUNT: &str = zmreplica_fuse::TRACE_TARGET;
/// Prunes and repairs, step by step.
pub const PRUNE: &str = "prune";
/// Calls to the storage of the store: objects written, listed, deleted.
pub const STORE: &str = "store";

/// All of them.
pub const ALL: [&str; 5] = [RUN, REMOTE, MOUNT, PRUNE, STORE];
