//! Names of owners: numbers differ between hosts, names seldom do.

use std::collections::{BTreeMap, BTreeSet};

/// Gathers the numbers in use, and names them at the end.
#[derive(Default)]
pub struct Owners {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    last: Option<(u32, u32)>,
}

impl Owners {
    /// Notes the owner and group of one inode.
    pub fn note(&mut self, uid: u32, gid: u32) {
        if self.last != Some((uid, gid)) {
            self.last = Some((uid, gid));
            self.users.insert(uid);
            self.groups.insert(gid);
        }
    }

    /// Returns the names that this host knows, of users and of groups.
    pub fn names(&self) -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
        let users = self.users.iter().filter_map(|uid| {
            uzers::get_user_by_uid(*uid).map(|user| (*uid, user.name().to_string_lossy().into_owned()))
        });
        let groups = self.groups.iter().filter_map(|gid| {
            uzers::get_group_by_gid(*gid).map(|group| (*gid, group.name().to_string_lossy().into_owned()))
        });
        (users.collect(), groups.collect())
    }
}
