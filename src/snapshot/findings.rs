//! What a run finds out about the tree for the record of its snapshot, beside the tree itself.

use super::owners::{Acls, Owners};
use super::problems::{Problems, RunProblem};
use crate::catalog::snapshot::{Totals, Work};
use crate::model::{self, Kind, NAME_MAX_BYTES, Stat, Xattr};

/// Figures, owners and problems of one run.
pub(super) struct Findings {
    pub(super) totals: Totals,
    pub(super) work: Work,
    pub(super) owners: Owners,
    pub(super) acls: Acls,
    pub(super) problems: Problems,
}

impl Findings {
    /// Starts with what is known of access control lists.
    pub(super) fn new(acls: Acls) -> Findings {
        Findings {
            totals: Totals::default(),
            work: Work::default(),
            owners: Owners::default(),
            acls,
            problems: Problems::default(),
        }
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, path: &[u8], message: impl Into<String>) {
        self.problems.push(RunProblem { path: path.to_vec(), message: message.into() });
    }

    /// Counts an inode in.
    pub(super) fn add(&mut self, stat: &Stat) {
        count(&mut self.totals, stat, 1);
    }

    /// Counts an inode out again.
    pub(super) fn remove(&mut self, stat: &Stat) {
        count(&mut self.totals, stat, -1);
    }

    /// Notes that a name is longer than any that is taken.
    pub(super) fn leave_out_long_name(&mut self, path: &[u8], name: &[u8]) {
        let length = name.len();
        let message = format!(
            "Its name has {length} bytes, more than {NAME_MAX_BYTES}; neither it nor anything below it is in the snapshot"
        );
        self.problem(path, message);
    }

    /// Takes extended attributes as far as a snapshot takes them of one inode, and notes a problem where there are more. Returns whether all are there.
    pub(super) fn take_xattrs(&mut self, path: &[u8], xattrs: &mut Vec<Xattr>, max_bytes: usize) -> bool {
        let are_all = model::bound_xattrs(xattrs, max_bytes);
        if !are_all {
            let most = max_bytes >> 10;
            let message = format!(
                "Has more than {most} KiB of extended attributes; the snapshot leaves out those of users (user.*)"
            );
            self.problem(path, message);
        }
        self.acls.note(xattrs);
        are_all
    }
}

fn count(totals: &mut Totals, stat: &Stat, by: i64) {
    let of_kind = match stat.kind {
        Kind::File => &mut totals.files,
        Kind::Symlink => &mut totals.symlinks,
        _ => &mut totals.specials,
    };
    *of_kind = of_kind.saturating_add_signed(by);
    // A source may state any size.
    let add = if by < 0 { u64::saturating_sub } else { u64::saturating_add };
    totals.bytes = add(totals.bytes, stat.size);
}
