//! The first process of a cell: sets the cell up, then starts programs and buries them. One thread, and nothing in it that
//! a program of the cell could reach: its memory and its executable are closed to them, the kernel ignores their signals to
//! process 1, and it reads only what the daemon says.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, kill_process_group, pidfd_open};
use rustix::thread::UnshareFlags;

use super::leftovers::Leftovers;
use super::wire::{Channel, Exit, Missing, Report, Request, Setup, Spawn, WireError};
use super::{WORK, confine, mounts, network, sys};

/// The hidden subcommand that is a cell's first process.
pub const CELL_COMMAND: &str = "__cell";
/// A piece without which System V objects are the host's.
const IPC_NAMESPACE: &str = "ipc namespace";
/// A piece without which there is no network for programs either.
pub(super) const NETWORK_NAMESPACE: &str = "network namespace";
/// Who programs are, inside: a number that stands for an unprivileged user outside.
pub(super) const INSIDE_ID: u32 = 1_000;
/// Orphans that died while a program runs are buried this often: they count as processes until then.
const BURY_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// The body of `sinew __cell`; its stdin is the socket to the daemon. Returns the exit code.
#[must_use]
pub fn cell_main() -> u8 {
    match take_socket().map_err(WireError::System).and_then(|socket| run(Channel::cell(socket))) {
        Ok(()) | Err(WireError::Closed) => 0,
        Err(_) => 1,
    }
}

/// Moves the socket away from descriptor 0, where a program's stdin goes, and sees to it that no program inherits anything.
fn take_socket() -> io::Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(&null)?;
    sys::keep_from_programs(3)?;
    Ok(socket)
}

fn run(mut channel: Channel) -> Result<(), WireError> {
    let Request::Setup(setup) = channel.receive()? else { return Err(WireError::Garbage("no setup".to_owned())) };
    let failed = |channel: &Channel, piece: &str, e: &dyn std::fmt::Display| {
        channel.send(&Report::Failed(Missing { piece: piece.to_owned(), why: e.to_string() }), &[])
    };
    let mut missing = match separate() {
        Ok(missing) => missing,
        Err((piece, e)) => return failed(&channel, piece, &e),
    };
    let apart = missing.iter().find(|m| m.piece == NETWORK_NAMESPACE);
    if let Some(lacks) = apart.filter(|_| !setup.routes.is_empty()) {
        // Its doors would be the host's.
        return channel.send(&Report::Failed(lacks.clone()), &[]);
    }
    // The child is process 1, and the daemon's child as this one is: who started it need not stay.
    match sys::fork_for_parent() {
        Ok(None) => {}
        Ok(Some(pid)) => return channel.send(&Report::Born(pid), &[]),
        Err(e) => return failed(&channel, "a first process", &e),
    }
    let Request::Mapped = channel.receive()? else { return Err(WireError::Garbage("no maps".to_owned())) };
    // In the mount namespace that they will be mounted in, and while this process still is who the daemon is.
    let sources = match mounts::Sources::open(&setup) {
        Ok(sources) => sources,
        Err(e) => return failed(&channel, "the job's directories", &e),
    };
    if let Err((piece, e)) = become_task(&setup) {
        return failed(&channel, piece, &e);
    }
    match mounts::enter(&setup, sources) {
        Ok(more) => missing.extend(more),
        Err(e) => return failed(&channel, "a root of its own", &e),
    }
    if let Err(e) = rustix::process::setsid().map(|_| ()).and(rustix::process::chdir(WORK)) {
        return failed(&channel, "a session of its own", &e);
    }
    // While this process may still do so in its network namespace.
    let doors = match network::open(&setup.routes) {
        Ok(doors) => doors,
        Err(e) => return failed(&channel, "sockets for the job's hosts", &e),
    };
    let own_objects = missing.iter().all(|m| m.piece != IPC_NAMESPACE);
    let leftovers = match Leftovers::new(&setup, own_objects) {
        Ok(leftovers) => leftovers,
        Err(e) => return failed(&channel, "temporary directories", &e),
    };
    missing.extend(confine::confine(&setup));
    let fds: Vec<_> = doors.iter().map(AsFd::as_fd).collect();
    channel.send(&Report::Ready(missing), &fds)?;
    drop(doors);
    serve(&mut channel, &leftovers)
}

/// Leaves the host's namespaces. Those that nothing can go on without fail it; the others come back if they are missing.
fn separate() -> Result<Vec<Missing>, (&'static str, Errno)> {
    sys::unshare(UnshareFlags::NEWUSER).map_err(|e| ("a user namespace", e))?;
    sys::unshare(UnshareFlags::NEWNS).map_err(|e| ("a mount namespace", e))?;
    sys::unshare(UnshareFlags::NEWPID).map_err(|e| ("a process namespace", e))?;
    let mut missing = Vec::new();
    for (piece, flag) in [
        (NETWORK_NAMESPACE, UnshareFlags::NEWNET),
        (IPC_NAMESPACE, UnshareFlags::NEWIPC),
        ("uts namespace", UnshareFlags::NEWUTS),
        ("cgroup namespace", UnshareFlags::NEWCGROUP),
    ] {
        missing.extend(sys::unshare(flag).err().map(|e| Missing { piece: piece.to_owned(), why: e.to_string() }));
    }
    if missing.iter().all(|m| m.piece != "uts namespace") {
        // A name that says nothing about the host.
        let _ = rustix::system::sethostname(b"cell");
    }
    Ok(missing)
}

/// Takes on the unprivileged identity, keeping, inside, what the setup needs.
fn become_task(setup: &Setup) -> Result<(), (&'static str, Errno)> {
    rustix::thread::set_keep_capabilities(true).map_err(|e| ("capabilities for the setup", e))?;
    if setup.drop_groups {
        rustix::thread::set_thread_groups(&[]).map_err(|e| ("no supplementary groups", e))?;
    }
    let (uid, gid) = (Uid::from_raw(INSIDE_ID), Gid::from_raw(INSIDE_ID));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| ("an unprivileged group", e))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| ("an unprivileged user", e))?;
    // Whoever forks this process's memory gets it with this mask.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// A program that was started.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
}

fn serve(channel: &mut Channel, leftovers: &Leftovers) -> Result<(), WireError> {
    let mut running: Option<Running> = None;
    loop {
        while let Some(request) = channel.buffered()? {
            obey(channel, &mut running, request)?;
        }
        let (said, ended) = wait(channel, running.as_ref())?;
        if running.is_some()
            && let Some(exit) = bury(leftovers, running.as_ref(), ended)?
        {
            running = None;
            channel.send(&Report::Ended(exit), &[])?;
        }
        if said {
            channel.fill()?;
        }
    }
}

/// Waits for the daemon's word or the program's end: whether there is the one, and the other.
fn wait(channel: &Channel, running: Option<&Running>) -> Result<(bool, bool), Errno> {
    let socket = channel.fd();
    let mut fds = vec![PollFd::new(&socket, PollFlags::IN)];
    fds.extend(running.map(|program| PollFd::new(&program.pidfd, PollFlags::IN)));
    match poll(&mut fds, running.map(|_| &BURY_EVERY)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e),
    }
    Ok((!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty())))
}

fn obey(channel: &mut Channel, running: &mut Option<Running>, request: Request) -> Result<(), WireError> {
    match request {
        Request::Spawn(spawn) if running.is_none() => match start(&spawn, channel.take_fds()) {
            Ok(program) => *running = Some(program),
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                channel.send(&Report::NotStarted(errno), &[])?;
            }
        },
        Request::Signal(number) => {
            if let (Some(program), Some(signal)) = (&running, Signal::from_named_raw(number)) {
                // It fails where the group has ended, which is on its way to be noticed.
                let _ = kill_process_group(program.pid, signal);
            }
        }
        Request::Kill => kill_all(),
        Request::Setup(_) | Request::Mapped | Request::Spawn(_) => {
            return Err(WireError::Garbage("not now".to_owned()));
        }
    }
    Ok(())
}

fn start(spawn: &Spawn, fds: Vec<OwnedFd>) -> io::Result<Running> {
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(Errno::BADF.into());
    };
    let mut command = Command::new(&spawn.program);
    if let Some((first, rest)) = spawn.argv.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear().envs(spawn.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr)).process_group(0);
    let child = command.spawn()?;
    // Not waited for through this: whoever reaps, reaps orphans too.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    let running = pid.and_then(|pid| Ok(Running { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? }));
    if running.is_err() {
        // What the daemon will be told has not started is not to run on.
        kill_all();
        while sys::reap(true)?.is_some() {}
    }
    Ok(running?)
}

/// Kills everything in the cell but this process. No program can start one faster: the kernel does it in one go.
fn kill_all() {
    // Process 1 as a group stands for all processes, and process 1 itself is spared.
    if rustix::process::getpid() == Pid::INIT {
        let _ = kill_process_group(Pid::INIT, Signal::KILL);
    }
}

/// Reaps what is dead. If the program itself is, whatever it left is killed and reaped too, and its end comes back.
fn bury(leftovers: &Leftovers, running: Option<&Running>, ended: bool) -> io::Result<Option<Exit>> {
    let Some(program) = running else { return Ok(None) };
    let mut exit = None;
    while let Some(dead) = sys::reap(ended && exit.is_none())? {
        if dead.pid == program.pid.as_raw_nonzero().get() {
            exit = Some(dead);
            break;
        }
    }
    let Some(dead) = exit else { return Ok(None) };
    kill_all();
    while sys::reap(true)?.is_some() {}
    let time =
        |t: libc::timeval| Duration::new(t.tv_sec.unsigned_abs(), 0) + Duration::from_micros(t.tv_usec.unsigned_abs());
    let cpu = time(dead.usage.ru_utime) + time(dead.usage.ru_stime);
    Ok(Some(Exit {
        status: dead.status,
        cpu_us: u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX),
        max_rss_bytes: dead.usage.ru_maxrss.unsigned_abs() * 1_024,
        reusable: leftovers.clear(),
    }))
}
