//! What the unattended night needs beside a snapshot: waiting for zmbackup, the state of the replica in a few figures, metrics, hooks.
//!
//! The order of a night is in the command, `zmreplica nightly`. Nothing here prints.

pub mod hooks;
pub mod last;
pub mod metrics;
pub mod quiesce;
pub mod status;
