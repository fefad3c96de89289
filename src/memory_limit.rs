//! A limit that the process sets for its own memory: the last defence against a peer that makes it allocate too much.
//!
//! What the other side of a connection can make this process hold is bounded where it is held (see `remote`). If one of these bounds fails, an allocation fails
//! and the process ends, before the kernel has to choose a process to kill.
//!
//! The limit is `RLIMIT_DATA`. It counts private writable mappings, whether they were touched or not. Unlike `RLIMIT_AS` it does not count reserved address
//! space, of which the allocator and threads take much. It must leave room for stacks, and for tables that grow and exist twice for a moment. Only the soft
//! limit is set: hooks and child processes may raise it again.

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
