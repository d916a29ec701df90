//! Which system calls programs in a cell may make: the list that container engines allow to processes without capabilities,
//! less what reaches into other processes (`ptrace`, `process_vm_*`, `pidfd_getfd`), kernel keyrings, `io_uring`, and the older
//! asynchronous I/O (`io_setup`), whose contexts the kernel counts for the whole machine (`fs.aio-max-nr`), and POSIX message
//! queues, which outlive the programs that make them and which landlock keeps from programs all the same.
//!
//! Whatever is not listed does not exist for a program (`ENOSYS`), so that calls of later kernels are out until somebody has
//! looked at them and C libraries fall back to what they know. The dangerous ones that a program may well know of are denied
//! (`EPERM`).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// New namespaces, in `clone`'s flags.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// The kind of a socket, without its flags.
const SOCKET_KIND: u64 = 0xf;
/// The cell's first process, as its programs count. No other number stands for it, and 0 stands for the caller.
const INIT: u64 = 1;
/// `setpriority`'s word for one process.
const PRIO_PROCESS: u32 = 0;
/// `ioprio_set`'s.
const IOPRIO_WHO_PROCESS: u32 = 1;
/// `personality`'s question for the present one.
const PERSONALITY_ASK: u64 = 0xffff_ffff;

/// Allowed whatever the arguments.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_bind, libc::SYS_brk, libc::SYS_capget, libc::SYS_capset, libc::SYS_chdir,
    libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_close_range,
    libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_execve,
    libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fchdir, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown,
    libc::SYS_fchownat, libc::SYS_fcntl, libc::SYS_fdatasync, libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock,
    libc::SYS_fremovexattr, libc::SYS_fsetxattr, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync,
    libc::SYS_ftruncate, libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_get_mempolicy, libc::SYS_get_robust_list,
    libc::SYS_getcpu, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid,
    libc::SYS_getgroups, libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid,
    libc::SYS_getppid, libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid, libc::SYS_getresuid,
    libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname, libc::SYS_getsockopt,
    libc::SYS_gettid, libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1, libc::SYS_inotify_rm_watch, libc::SYS_ioprio_get,
    libc::SYS_kill, libc::SYS_landlock_add_rule, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr, libc::SYS_linkat, libc::SYS_listen, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_lremovexattr, libc::SYS_lseek, libc::SYS_lsetxattr, libc::SYS_madvise, libc::SYS_membarrier,
    libc::SYS_memfd_create, libc::SYS_mincore, libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_mlock, libc::SYS_mlock2,
    libc::SYS_mlockall, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mremap,
    libc::SYS_msgctl, libc::SYS_msgget, libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_msync, libc::SYS_munlock,
    libc::SYS_munlockall, libc::SYS_munmap, libc::SYS_nanosleep, libc::SYS_newfstatat, libc::SYS_openat,
    libc::SYS_openat2, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal, libc::SYS_pipe2, libc::SYS_pkey_alloc,
    libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_ppoll, libc::SYS_prctl, libc::SYS_pread64,
    libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_process_mrelease, libc::SYS_pselect6,
    libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_read, libc::SYS_readahead,
    libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_recvmsg,
    libc::SYS_remap_file_pages, libc::SYS_removexattr, libc::SYS_renameat, libc::SYS_renameat2,
    libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_tgsigqueueinfo, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_sched_getaffinity, libc::SYS_sched_getattr,
    libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_yield, libc::SYS_seccomp, libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop,
    libc::SYS_semtimedop, libc::SYS_sendfile, libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto,
    libc::SYS_set_robust_list, libc::SYS_set_tid_address, libc::SYS_setfsgid, libc::SYS_setfsuid, libc::SYS_setgid,
    libc::SYS_setgroups, libc::SYS_setitimer, libc::SYS_setpgid, libc::SYS_setregid,
    libc::SYS_setresgid, libc::SYS_setresuid, libc::SYS_setreuid, libc::SYS_setrlimit, libc::SYS_setsid,
    libc::SYS_setsockopt, libc::SYS_setuid, libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt,
    libc::SYS_shmget, libc::SYS_shutdown, libc::SYS_sigaltstack, libc::SYS_signalfd4, 
    libc::SYS_splice, libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync,
    libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill,
    libc::SYS_timer_create, libc::SYS_timer_delete, libc::SYS_timer_getoverrun, libc::SYS_timer_gettime,
    libc::SYS_timer_settime, libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime,
    libc::SYS_times, libc::SYS_tkill, libc::SYS_truncate, libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat,
    libc::SYS_utimensat, libc::SYS_vmsplice, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write, libc::SYS_writev,
    // fchmodat2, map_shadow_stack, futex_wake, futex_wait, futex_requeue: the same number everywhere.
    452, 453, 454, 455, 456,
];

/// The older calls of x86-64, which other machines do without.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown, libc::SYS_creat,
    libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_eventfd, libc::SYS_fork,
    libc::SYS_futimesat, libc::SYS_getdents, libc::SYS_getpgrp, libc::SYS_inotify_init, libc::SYS_lchown,
    libc::SYS_link, libc::SYS_lstat, libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_open, libc::SYS_pause,
    libc::SYS_pipe, libc::SYS_poll, libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select,
    libc::SYS_signalfd, libc::SYS_stat, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Denied, rather than unknown: what an attack asks for, and what a program may want an honest answer about.
#[rustfmt::skip]
const DENIED: &[i64] = &[
    libc::SYS_acct, libc::SYS_add_key, libc::SYS_adjtimex, libc::SYS_bpf, libc::SYS_chroot, libc::SYS_clock_adjtime,
    libc::SYS_clock_settime, libc::SYS_delete_module, libc::SYS_fanotify_init, libc::SYS_finit_module,
    libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fsopen, libc::SYS_fspick, libc::SYS_init_module,
    libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup, libc::SYS_kcmp,
    libc::SYS_kexec_load, libc::SYS_keyctl, libc::SYS_mbind, libc::SYS_migrate_pages, libc::SYS_mount,
    libc::SYS_mount_setattr, libc::SYS_move_mount, libc::SYS_move_pages, libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at, libc::SYS_open_tree, libc::SYS_perf_event_open, libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root, libc::SYS_process_madvise, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_ptrace, libc::SYS_quotactl, libc::SYS_reboot, libc::SYS_request_key, libc::SYS_set_mempolicy,
    libc::SYS_setdomainname, libc::SYS_sethostname, libc::SYS_setns, libc::SYS_settimeofday, libc::SYS_swapoff,
    libc::SYS_swapon, libc::SYS_syslog, libc::SYS_umount2, libc::SYS_unshare, libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    // System calls take these arguments as 32-bit numbers: the upper half may hold anything.
    Ok(SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?)
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions)?)
}

/// What depends on arguments: no new namespaces, no raw or odd sockets, no typing into terminals, no address space without
/// randomisation, and no other limits or priorities for the cell's first process, which is the same user.
fn conditional(datagrams: bool) -> Result<Vec<(i64, Vec<SeccompRule>)>, Error> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let family = |family: i32| condition(0, Eq, u64::from(family.unsigned_abs()));
    let kind = |kind: i32| condition(1, MaskedEq(SOCKET_KIND), u64::from(kind.unsigned_abs()));
    let mut sockets = vec![rule(vec![family(libc::AF_UNIX)?])?];
    for internet in [libc::AF_INET, libc::AF_INET6] {
        // TCP and UDP by number or by default, and none of the protocols that modules add to these kinds.
        let kinds = [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)];
        for (plain, own) in kinds.into_iter().take(if datagrams { 2 } else { 1 }) {
            for protocol in [0, own] {
                let protocol = condition(2, Eq, u64::from(protocol.unsigned_abs()))?;
                sockets.push(rule(vec![family(internet)?, kind(plain)?, protocol])?);
            }
        }
    }
    // Routes and addresses, which `getifaddrs` asks for; none of netlink's other protocols.
    sockets.push(rule(vec![family(libc::AF_NETLINK)?, condition(2, Eq, 0)?])?);
    let terminals = rule(vec![condition(1, Ne, libc::TIOCSTI)?, condition(1, Ne, libc::TIOCLINUX)?])?;
    let personalities = [0, PERSONALITY_ASK].into_iter().map(|value| rule(vec![condition(0, Eq, value)?]));
    let spares_init = |call: i64| -> Result<_, Error> { Ok((call, vec![rule(vec![condition(0, Ne, INIT)?])?])) };
    // For a process or thread; groups and users may include the first process.
    let one_spares_init = |call: i64, process: u32| -> Result<_, Error> {
        Ok((call, vec![rule(vec![condition(0, Eq, process.into())?, condition(1, Ne, INIT)?])?]))
    };
    Ok(vec![
        spares_init(libc::SYS_prlimit64)?,
        spares_init(libc::SYS_sched_setaffinity)?,
        spares_init(libc::SYS_sched_setattr)?,
        spares_init(libc::SYS_sched_setparam)?,
        spares_init(libc::SYS_sched_setscheduler)?,
        one_spares_init(libc::SYS_setpriority, PRIO_PROCESS)?,
        one_spares_init(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS)?,
        (libc::SYS_socketpair, vec![rule(vec![family(libc::AF_UNIX)?])?]),
        (libc::SYS_clone, vec![rule(vec![condition(0, MaskedEq(NAMESPACES), 0)?])?]),
        (libc::SYS_socket, sockets),
        (libc::SYS_ioctl, vec![terminals]),
        (libc::SYS_personality, personalities.collect::<Result<_, _>>()?),
    ])
}

/// The two filters, in the order in which they are to be installed: where both object, the later one's answer counts. Without
/// `datagrams` the only sockets of the Internet's families are TCP's.
///
/// # Errors
/// On a machine that the library has no code for.
pub(super) fn filters(datagrams: bool) -> Result<[BpfProgram; 2], Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|number| (*number, Vec::new())).collect();
    allowed.extend(conditional(datagrams)?);
    let denied = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let allow = SeccompFilter::new(allowed, errno(libc::ENOSYS), SeccompAction::Allow, arch)?;
    let deny = SeccompFilter::new(denied, SeccompAction::Allow, errno(libc::EPERM), arch)?;
    Ok([allow.try_into()?, deny.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_both_allowed_and_denied_and_the_filters_fit() {
        let conditional: Vec<i64> = conditional(true).expect("rules").into_iter().map(|(number, _)| number).collect();
        for denied in DENIED {
            assert!(!ALLOWED.contains(denied) && !ALLOWED_HERE.contains(denied) && !conditional.contains(denied));
        }
        // The kernel takes 4,096 instructions.
        for datagrams in [true, false] {
            assert!(filters(datagrams).expect("filters").iter().all(|program| program.len() < 4_096));
        }
    }
}
