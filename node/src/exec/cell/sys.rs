//! The system calls that no safe library of ours has. All of this crate's `unsafe` is here, each with why it is sound.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Questions for how many System V objects there are, as `linux/shm.h`, `linux/msg.h` and `linux/sem.h` number them.
const SHM_INFO: i32 = 14;
const MSG_INFO: i32 = 12;
const SEM_INFO: i32 = 19;
/// `kcmp`'s word for tables of descriptors, as `linux/kcmp.h` numbers it.
const KCMP_FILES: i32 = 2;
/// This very process, for `ioprio_set`.
const IOPRIO_WHO_PROCESS: i32 = 1;

/// Memory shared with another process, as words.
pub(in crate::exec) struct SharedWords {
    at: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: atomics may be used from anywhere, and the mapping stays until the drop.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `len` words of a memory file, which must be sealed against shrinking and be as long at least.
    pub(in crate::exec) fn map(memory: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<AtomicU64>();
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel wants it, of a file that does not shrink.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { at, len })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page, and any bytes are an integer. Others write to it only as to atomics.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
    }
}

/// Keeps what this process has in memory there, as far as it may: it is to go on where the machine swaps.
pub(in crate::exec) fn stay_in_memory() {
    // SAFETY: numbers only. That it may not do so is no error: then it is swapped like any other.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) };
}

/// A dead child.
pub(super) struct Dead {
    pub(super) pid: i32,
    pub(super) status: i32,
    pub(super) usage: libc::rusage,
}

/// Sees to it that no descriptor from `first` on is inherited by a program.
pub(super) fn keep_from_programs(first: u32) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: it marks descriptors and closes none.
    check(unsafe { libc::close_range(first, libc::c_uint::MAX, flags) }.into()).map(|_| ())
}

/// CPU time of a process so far, user and system, without its children.
pub(in crate::exec) fn process_cpu(pid: i32) -> Option<Duration> {
    // The clock's number as the kernel has it: the id's complement above three bits for the kind, here the scheduler's count.
    let clock = (!pid << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time` alone, and refuses a number that is none.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) }.into()).ok()?;
    Some(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).ok()?))
}

/// Whether two threads are known to have one table of descriptors.
pub(in crate::exec) fn same_files(one: i32, other: i32) -> bool {
    // SAFETY: numbers only. It fails where the kernel cannot compare, or a thread is gone: then nothing is known.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// Leaves the namespaces named.
pub(super) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay as they are");
    // SAFETY: unsound only with FILES, where threads would disagree about descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Forks; the child becomes a child of this process's parent. `None` in the child. For a process with one thread.
pub(super) fn fork_for_parent() -> io::Result<Option<i32>> {
    let flags = i64::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is a fork. With one thread no lock is held in the child's copy of the memory.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0_i64, 0_i64, 0_i64, 0_i64) })?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid > 0))
}

/// Reaps one child. `None` when there is none, or, unless `wait`, none that is dead.
pub(super) fn reap(wait: bool) -> io::Result<Option<Dead>> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let options = if wait { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: both pointers are to our own memory, which outlives the call.
        let pid = unsafe { libc::wait4(-1, &raw mut status, options, usage.as_mut_ptr()) };
        match check(pid.into()) {
            Ok(0) => return Ok(None),
            // SAFETY: it is numbers only, all of them zero before the kernel wrote them.
            Ok(_) => return Ok(Some(Dead { pid, status, usage: unsafe { usage.assume_init() } })),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// System V objects of this IPC namespace: segments of shared memory, message queues and sets of semaphores.
pub(super) fn ipc_objects() -> io::Result<u64> {
    // Longer than each of the three structures that the kernel writes; all begin with numbers of 32 bits.
    let mut info = [0_i32; 64];
    let mut objects = 0;
    for kind in [Ipc::Memory, Ipc::Queues, Ipc::Semaphores] {
        info.fill(0);
        let at = info.as_mut_ptr();
        // SAFETY: with these commands the kernel ignores the id and writes one structure, which fits, to `info`.
        let asked = unsafe {
            match kind {
                Ipc::Memory => libc::shmctl(0, SHM_INFO, at.cast()),
                Ipc::Queues => libc::msgctl(0, MSG_INFO, at.cast()),
                Ipc::Semaphores => libc::semctl(0, 0, SEM_INFO, at),
            }
        };
        match check(asked.into()) {
            // `used_ids`, `msgpool` and `semusz`.
            Ok(_) => objects += u64::try_from(info[if matches!(kind, Ipc::Semaphores) { 7 } else { 0 }]).unwrap_or(0),
            // A kernel built without them.
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(objects)
}

/// The kinds of System V objects.
#[derive(Clone, Copy)]
enum Ipc {
    Memory,
    Queues,
    Semaphores,
}

/// Sets this process's disk priority, class and level in one number.
pub(super) fn set_io_priority(priority: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) }).map(|_| ())
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount at `at`, and to those below it where it is `deep`.
pub(super) fn set_mount_attributes(at: &Path, attributes: u64, deep: bool) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_encoded_bytes())?;
    let set = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = if deep { libc::AT_RECURSIVE } else { 0 };
    let len = size_of::<libc::mount_attr>();
    // SAFETY: `path` ends with a NUL and `set` has the length given; both outlive the call, which keeps neither.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), flags, &raw const set, len) };
    check(done).map(|_| ())
}

/// Gives this network namespace's loopback interface a further address and brings it up. `socket` is any of this namespace.
pub(super) fn loopback_up(socket: BorrowedFd<'_>, address: Ipv4Addr) -> io::Result<()> {
    // A further address has a label of its own; the interface stays one.
    let mut request = interface(b"lo:1");
    let addr = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain bytes of one length, and any bytes are a `sockaddr`.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(addr) };
    let mut up = interface(b"lo");
    up.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    for (call, request) in [(libc::SIOCSIFFLAGS, &up), (libc::SIOCSIFADDR, &request)] {
        // SAFETY: the request has the type that these calls read, and outlives them.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), call as libc::Ioctl, std::ptr::from_ref(request)) }.into())?;
    }
    Ok(())
}

fn interface(name: &[u8]) -> libc::ifreq {
    // SAFETY: it is bytes and a union of plain types, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
