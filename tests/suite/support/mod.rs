//! What several tests use.

pub mod edits;
pub mod effort;
pub mod kills;
pub mod locks;
pub mod made_up;
pub mod mounted;
pub mod odd;
pub mod oracle;
pub mod peer;
pub mod programs;
pub mod proxy;
pub mod pruning;
pub mod pulling;
pub mod redate;
pub mod sshd;
pub mod zimbra;
