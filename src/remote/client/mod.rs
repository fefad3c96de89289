//! The run's end of a connection: finding or bringing an agent, the handshake, and the tree behind it.

mod answer;
mod blocks;
pub mod connect;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod link;
pub mod restore;
mod send_window;
mod served;
mod tree;

pub use connect::{AgentChoice, ConnectError, HANDSHAKE, connect};
pub use link::{IDLE_TIMEOUT, Stop, WireCounters};
pub use tree::RemoteTree;
