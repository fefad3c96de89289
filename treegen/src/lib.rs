//! Generates Zimbra backup trees for tests and benchmarks.
//!
//! A tree follows entirely from its parameters and its sessions: the same seed gives the same names, bytes, modes,
//! modification times and hard links. See [`Generator`] for the steps of a tree's life.

mod blobs;
pub mod clock;
pub mod config;
mod digest;
mod disk;
mod error;
mod generator;
pub mod mailbox;
pub mod message;
mod redo;
pub mod rng;
mod session;
mod session_files;
mod summary;
#[cfg(test)]
mod tests;
pub mod words;
mod xml;
pub mod zip;

pub use config::{BlobMode, Config, Kind, Preset};
pub use error::{Error, Result};
pub use generator::Generator;
pub use summary::Summary;
