//! A last wall against a peer that makes this program take memory: a limit that the process sets itself.
//!
//! What the other side of a connection can make this one hold is bounded where it is held (see `remote`). Should one of these bounds fail, the process ends itself, as an allocation fails,
//! before the host has to choose what to end. The limit is `RLIMIT_DATA`: private mappings that may be written, also what was never touched of them, and not, as `RLIMIT_AS`, address space
//! that is only set aside, of which the allocator and threads take much. So it has to leave room for stacks, and for tables that grow: for a moment these are there twice. It is the soft limit: hooks and programs that are started may raise it again.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::sysinfo;

/// How much of the host's memory a process may take.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    /// An agent, on the mail server: three quarters of the memory, at least 1 GiB. It needs some 100 MB, and 40 bytes for each inode of several names.
    Agent,
    /// A run on the replica that talks to another host: three quarters of memory and swap, at least 4 GiB.
    Run,
}

impl Share {
    fn limit(self, memory_bytes: u64, swap_bytes: u64) -> u64 {
        match self {
            Share::Agent => (memory_bytes / 4).saturating_mul(3).max(1 << 30),
            Share::Run => (memory_bytes.saturating_add(swap_bytes) / 4).saturating_mul(3).max(4 << 30),
        }
    }
}

/// Sets the limit, unless a lower one is set already. Where the system refuses, there is none.
pub fn limit_memory(share: Share) {
    let host = sysinfo();
    let unit = u64::from(host.mem_unit.max(1));
    let bytes = |count: u64| count.saturating_mul(unit);
    // Lossless on every system that has so much memory.
    let limit = share.limit(bytes(host.totalram as u64), bytes(host.totalswap as u64));
    let Rlimit { current, maximum } = getrlimit(Resource::Data);
    let current = Some(current.unwrap_or(u64::MAX).min(limit).min(maximum.unwrap_or(u64::MAX)));
    let _ = setrlimit(Resource::Data, Rlimit { current, maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_room_for_honest_work_and_for_the_host() {
        const GIB: u64 = 1 << 30;
        assert_eq!(Share::Agent.limit(16 * GIB, 8 * GIB), 12 * GIB);
        assert_eq!(Share::Agent.limit(GIB, 0), GIB);
        assert_eq!(Share::Run.limit(16 * GIB, 8 * GIB), 18 * GIB);
        assert_eq!(Share::Run.limit(2 * GIB, 0), 4 * GIB);
    }
}
