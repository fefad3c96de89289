//! The run's end of a connection: finding or bringing an agent, the handshake, and the tree behind it.

mod blocks;
pub mod connect;
mod link;
pub mod restore;

mod tree;

pub use connect::{AgentChoice, ConnectError, connect};
pub use link::{PATIENCE, WireCounters};
pub use tree::RemoteTree;
