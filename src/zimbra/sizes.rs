//! What sessions weigh: all of a session, and what no older session has.
//!
//! Every name below the sessions is visited once, and the row of every inode once for each session that has it. Memory: two bits for each link group
//! number of the store.

use std::sync::Arc;

use super::site::Session;
use crate::ids::GroupId;
use crate::view::{Node, SnapshotView, ViewError};

/// What one session weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SessionSize {
    /// Names below its directory, directories included.
    pub names: u64,
    /// Sizes of its inodes, each counted once, in bytes.
    pub bytes: u64,
    /// Bytes of inodes that no older session has a name of.
    pub new_bytes: u64,
}

/// A set of link groups, one bit each.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Adds a link group and returns whether it is new.
    fn add(&mut self, group: GroupId) -> bool {
        let (word, bit) = ((group.0 / 64) as usize, 1 << (group.0 % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// Weighs sessions, which stand oldest first.
///
/// # Errors
/// Fails when the store cannot be read.
pub fn session_sizes(view: &SnapshotView, sessions: &[Session]) -> Result<Vec<SessionSize>, ViewError> {
    let (mut seen, mut here) = (Bits::default(), Bits::default());
    let mut sizes = Vec::with_capacity(sessions.len());
    for session in sessions {
        let mut size = SessionSize::default();
        here.clear();
        for entry in view.walk(Node::Directory(Arc::clone(&session.directory)), Vec::new()) {
            let entry = entry?;
            size.names += u64::from(entry.depth > 0);
            if let Node::Group(group) = entry.node
                && here.add(group)
            {
                let bytes = view.group(group)?.attributes.size;
                size.bytes += bytes;
                if seen.add(group) {
                    size.new_bytes += bytes;
                }
            }
        }
        sizes.push(size);
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_know_what_was_added() {
        let mut bits = Bits::default();
        assert!(bits.add(GroupId(1000)) && bits.add(GroupId(0)) && !bits.add(GroupId(1000)));
        bits.clear();
        assert!(bits.add(GroupId(1000)));
    }
}
