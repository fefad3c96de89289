//! Limits that the system sets a process.
//!
//! Open files: a shell, cron and systemd usually allow 1,024 and let a process have more by itself (the soft and the hard limit). Every command takes
//! what it may have when it starts. Work that can use many takes a share of what there is, and is slower with few; it does not fail.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What counts as no limit: the bound that the kernel itself has by default.
const UNLIMITED: usize = 1 << 20;
/// Open files assumed where the system does not say: what a command has open when its work begins.
const USUALLY_OPEN: usize = 24;

/// Raises the soft limit of open files to the hard one, and returns what holds now.
pub fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused by some sandboxes; what there is must do then.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    open_files()
}

/// Returns how many files this process may have open.
pub fn open_files() -> usize {
    getrlimit(Resource::Nofile).current.map_or(UNLIMITED, |files| usize::try_from(files).unwrap_or(UNLIMITED))
}

/// Returns how many more files this process may open.
pub fn open_files_left() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(USUALLY_OPEN, Iterator::count);
    open_files().saturating_sub(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_had_is_had() {
        assert_eq!(Some(raise_open_files() as u64), getrlimit(Resource::Nofile).maximum.or(Some(UNLIMITED as u64)));
        assert!(open_files_left() < open_files());
    }
}
