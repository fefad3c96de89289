//! Owners as this host knows them: numbers differ between hosts, names seldom do.

use std::collections::HashMap;

use crate::catalog::snapshot::SnapshotRecord;
use crate::passwd;

/// Maps the owners of a snapshot to those that are shown or restored.
#[derive(Clone, Debug, Default)]
pub struct OwnerMap {
    users: HashMap<u32, u32>,
    groups: HashMap<u32, u32>,
    everything: Option<(u32, Option<u32>)>,
}

impl OwnerMap {
    /// Leaves all numbers as they are.
    pub fn by_number() -> OwnerMap {
        OwnerMap::default()
    }

    /// Maps a snapshot's owners to those who have the same names here. Root stays root, and a name that this host does not have keeps its number.
    pub fn by_name(record: &SnapshotRecord) -> OwnerMap {
        let mut map = OwnerMap::default();
        for (number, name) in record.users.iter().filter(|(number, _)| **number != 0) {
            if let Some(uid) = passwd::user_id(name) {
                map.users.insert(*number, uid);
            }
        }
        for (number, name) in record.groups.iter().filter(|(number, _)| **number != 0) {
            if let Some(gid) = passwd::group_id(name) {
                map.groups.insert(*number, gid);
            }
        }
        map
    }

    /// Gives everything to one owner, and to one group if there is one named.
    pub fn all_to(uid: u32, gid: Option<u32>) -> OwnerMap {
        OwnerMap { everything: Some((uid, gid)), ..OwnerMap::default() }
    }

    /// Returns the owner and group here of numbers in the snapshot.
    pub fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self.everything {
            Some((user, group)) => (user, group.unwrap_or(gid)),
            None => (self.users.get(&uid).copied().unwrap_or(uid), self.groups.get(&gid).copied().unwrap_or(gid)),
        }
    }
}
