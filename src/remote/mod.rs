//! The source on another host: the agent that runs there, the protocol, the connection, and the tree that a run sees.
//!
//! ```text
//!  run -> client (a SourceTree) -> frames -> transport ~~~ ssh ~~~ stdin, stdout -> frames -> agent -> source (scan, read, cut)
//! ```
//!
//! The agent is the same program, started with `zmreplica agent`. It reads below one root, writes nothing, and ends with its connection.
//!
//! Architecture invariant: the client believes nothing that the agent says. Names are checked, lengths bounded, chunks hashed, before anything of it
//! reaches the catalogue or a pack.

pub mod agent;
pub mod client;
pub mod protocol;
pub mod transport;
