//! Names of owners, from a thread of its own that is started before the others are confined.
//!
//! The names come from the system's C library, which may load modules and query a daemon or a directory server, by whatever way the host is set up. None of
//! that can be done behind the restrictions of [`sandbox`](crate::sandbox). This thread takes numbers and gives names; nothing else reaches it.

use std::collections::BTreeSet;
use std::io;

use crossbeam_channel::{Sender, bounded};

use crate::source::tree::{OwnerNames, owner_names};

/// A question, and where the answer goes.
type Query = (BTreeSet<u32>, BTreeSet<u32>, Sender<OwnerNames>);

/// The way to the thread, which ends with it.
pub(super) struct Names(Sender<Query>);

impl Names {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Names> {
        let (sender, questions) = bounded::<Query>(1);
        std::thread::Builder::new().name("names".to_owned()).spawn(move || {
            for (users, groups, answer) in questions {
                // The requester may be gone.
                let _ = answer.send(owner_names(&users, &groups));
            }
        })?;
        Ok(Names(sender))
    }

    /// Looks up names; none when the thread is gone.
    pub(super) fn of(&self, users: BTreeSet<u32>, groups: BTreeSet<u32>) -> OwnerNames {
        let (sender, answer) = bounded(1);
        let _ = self.0.send((users, groups, sender));
        answer.recv().unwrap_or_default()
    }
}
