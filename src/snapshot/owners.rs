//! What a run learns of permissions: names of owners, for numbers differ between hosts and names seldom do; whether there are access
//! control lists.

use std::collections::BTreeSet;

use crate::model::Xattr;

/// Names of the extended attributes that hold POSIX access control lists begin so.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Most users, and most groups, that are noted; the others have no names. A hostile source may have another owner for every file.
const OWNERS_MAX: usize = 1_000_000;

/// Whether a snapshot has access control lists. Those of unchanged inodes are not read again, so the answer builds on what is known of them.
#[derive(Clone, Copy, Debug)]
pub struct Acls(pub Option<bool>);

impl Acls {
    /// Starts where every inode will be looked at.
    pub fn none() -> Acls {
        Acls(Some(false))
    }

    /// Notes the attributes of one inode.
    pub fn note(&mut self, xattrs: &[Xattr]) {
        if xattrs.iter().any(|xattr| xattr.name.starts_with(ACL_PREFIX)) {
            self.0 = Some(true);
        }
    }

    /// Returns what is known.
    pub fn answer(self) -> Option<bool> {
        self.0
    }
}

/// Gathers the numbers in use.
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
            for (known, number) in [(&mut self.users, uid), (&mut self.groups, gid)] {
                if known.len() < OWNERS_MAX {
                    known.insert(number);
                }
            }
        }
    }

    /// Returns the users in use.
    pub fn users(&self) -> &BTreeSet<u32> {
        &self.users
    }

    /// Returns the groups in use.
    pub fn groups(&self) -> &BTreeSet<u32> {
        &self.groups
    }
}
