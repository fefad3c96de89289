//! The source on another host: the agent that runs there, the protocol, the connection, and the tree that a run sees.
//!
//! ```text
//!  run -> client (a SourceTree) -> frames -> transport ~~~ ssh ~~~ stdin, stdout -> frames -> agent -> source (scan, read, cut)
//! ```
//!
//! Where no agent may run, [`agentless`] does the same with a shell, `find` and `tar` on the remote host, and cuts and hashes here.
//!
//! The agent is the same program, started with `zmreplica agent`. It reads below one root, writes nothing, and ends with its connection.
//!
//! Architecture invariant: a tree of another host believes nothing that the remote host says. Names are checked, lengths bounded, chunks hashed, before
//! anything of it reaches the catalogue or a pack.

pub mod agent;
pub mod agentless;
pub mod client;
pub mod protocol;
pub mod transport;
