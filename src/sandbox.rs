//! A thread that reads one tree and does nothing else: the kernel sees to it.
//!
//! The agent of a pull takes requests from another host. Its code opens nothing outside of its root and writes nothing, and in case that code is wrong, two
//! walls of the kernel stand behind it. *Landlock* lets the thread open files and directories below the root for reading, and the table of mounts; nothing else
//! can be opened, made, run or connected to. *seccomp* refuses the calls that make sockets, run programs, change the system, or change files in ways that
//! Landlock leaves alone (modes, owners, attributes, times). Both hold for the calling thread and all that it starts later, forever.
//!
//! The walls are there for paths that lead to the wrong place and for mistakes in this program's code. They do not hold code of a stranger that runs in the
//! process: threads that started before share its memory and are not confined. Nor does the filter see what `openat2` opens, for its flags lie in memory: where
//! there is no Landlock, it may open for writing.
//!
//! A kernel without one of them, or a processor that the filter does not know, is no reason not to serve: what is enforced is returned.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// The newest rules of Landlock that are requested; an older kernel enforces those that it knows.
const LANDLOCK: ABI = ABI::V6;
/// What a scan reads besides the tree: which of its directories are mount points.
const MOUNTS: &str = "/proc/self/mountinfo";
/// Numbers of the x32 calls, by which a filter for x86-64 could be passed by.
#[cfg(target_arch = "x86_64")]
const X32_BIT: i64 = 0x4000_0000;

// Calls that are younger than the C library's table of them. Their numbers are the same on all processors.
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const OPEN_TREE_ATTR: i64 = 467;
const FILE_SETATTR: i64 = 469;

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Nothing outside of the root can be opened.
    pub landlock: bool,
    /// Calls that a reader does not need are refused.
    pub seccomp: bool,
}

impl Confinement {
    /// Returns it as a byte: 1 for Landlock, 2 for seccomp.
    pub fn to_byte(self) -> u8 {
        u8::from(self.landlock) | u8::from(self.seccomp) << 1
    }

    /// Returns what a byte stands for.
    pub fn from_byte(byte: u8) -> Confinement {
        Confinement { landlock: byte & 1 != 0, seccomp: byte & 2 != 0 }
    }
}

/// Confines the calling thread, and those that it starts from now on, to reading below a directory.
pub fn read_only(root: &Path) -> Confinement {
    Confinement { landlock: confine_paths(root).unwrap_or(false), seccomp: confine_calls().unwrap_or(false) }
}

/// Returns whether Landlock enforces anything.
fn confine_paths(root: &Path) -> Result<bool, Box<dyn std::error::Error>> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rule = |path: &Path, access: BitFlags<AccessFs>| PathFd::new(path).map(|fd| PathBeneath::new(fd, access));
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rule(rule(root, read)?)?;
    if let Ok(mounts) = rule(Path::new(MOUNTS), AccessFs::ReadFile.into()) {
        rules = rules.add_rule(mounts)?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// Returns whether the filter of calls is in force.
fn confine_calls() -> Result<bool, Box<dyn std::error::Error>> {
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(false) };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in refused_calls() {
        rules.insert(call, Vec::new());
        #[cfg(target_arch = "x86_64")]
        rules.insert(call | X32_BIT, Vec::new());
    }
    for (call, argument) in opening_calls() {
        rules.insert(call, writing(argument)?);
        #[cfg(target_arch = "x86_64")]
        rules.insert(call | X32_BIT, writing(argument)?);
    }
    rules.insert(libc::SYS_ioctl, changing_files()?);
    #[cfg(target_arch = "x86_64")]
    for call in [514, libc::SYS_ioctl] {
        rules.insert(call | X32_BIT, changing_files()?);
    }
    // The calls that have numbers of their own as x32: execve, ptrace, process_vm_writev, execveat.
    #[cfg(target_arch = "x86_64")]
    rules.extend([520, 521, 540, 545].map(|call| (call | X32_BIT, Vec::new())));
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    apply_filter(&program)?;
    Ok(true)
}

/// Returns the rules that match an opening for writing, by the place of the flags among the arguments.
fn writing(argument: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let flags = [
        (libc::O_ACCMODE, libc::O_WRONLY),
        (libc::O_ACCMODE, libc::O_RDWR),
        (libc::O_CREAT, libc::O_CREAT),
        (libc::O_TRUNC, libc::O_TRUNC),
    ];
    let rule = |(mask, value): (i32, i32)| {
        let mask = SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
        let value = u64::from(value.unsigned_abs());
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, mask, value)?])
    };
    flags.into_iter().map(rule).collect()
}

/// Returns the rules that match an `ioctl` by which a file that is open for reading, or its file system, is changed. The numbers are those of the processors
/// that the filter knows.
fn changing_files() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // FS_IOC_SETFLAGS for programs of 64 and 32 bits, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION, FS_IOC_ENABLE_VERITY, FS_IOC_SET_ENCRYPTION_POLICY, FIFREEZE,
    // FITHAW, FITRIM.
    let requests: [u64; 9] = [
        0x4008_6602,
        0x4004_6602,
        0x401c_5820,
        0x4008_7602,
        0x4080_6685,
        0x800c_6613,
        0xc004_5877,
        0xc004_5878,
        0xc018_5879,
    ];
    let rule =
        |request| SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?]);
    requests.into_iter().map(rule).collect()
}

/// Calls that open by flags, with the place of the flags.
fn opening_calls() -> Vec<(i64, u8)> {
    #[cfg(target_arch = "x86_64")]
    let old = [(libc::SYS_open, 1)];
    #[cfg(not(target_arch = "x86_64"))]
    let old = [];
    [(libc::SYS_openat, 2)].into_iter().chain(old).collect()
}

/// Calls that a reader of files never makes.
fn refused_calls() -> Vec<i64> {
    // Names that came before those with `at`, on processors that had a Linux then.
    #[cfg(target_arch = "x86_64")]
    let old = [
        libc::SYS_creat,
        libc::SYS_unlink,
        libc::SYS_rmdir,
        libc::SYS_rename,
        libc::SYS_mkdir,
        libc::SYS_mknod,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_lchown,
        libc::SYS_utime,
        libc::SYS_utimes,
        libc::SYS_futimesat,
        libc::SYS_renameat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_kexec_file_load,
    ];
    #[cfg(target_arch = "aarch64")]
    let old = [libc::SYS_renameat, libc::SYS_kexec_file_load];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let old = [];
    let all = [
        // Other hosts and other programs.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_io_uring_setup,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_send_signal,
        // Files.
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_truncate,
        libc::SYS_ftruncate,
        libc::SYS_fallocate,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        libc::SYS_utimensat,
        libc::SYS_open_by_handle_at,
        FCHMODAT2,
        SETXATTRAT,
        REMOVEXATTRAT,
        FILE_SETATTR,
        // The system.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_open_tree,
        OPEN_TREE_ATTR,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_syslog,
    ];
    all.into_iter().chain(old).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can only be called by its number has to be looked for by its number.
    #[test]
    fn calls_without_a_name_in_the_library_are_refused_too() {
        let refused = refused_calls();
        for call in [452, 463, 466, 467, 469, libc::SYS_adjtimex, libc::SYS_quotactl, libc::SYS_syslog] {
            assert!(refused.contains(&call), "{call}");
        }
    }
}
