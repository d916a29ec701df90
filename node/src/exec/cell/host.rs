//! The daemon's side of a cell: starting it, starting programs in it, ending it. A cell that says something odd, or nothing
//! where it should, is killed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, geteuid, kill_process, pidfd_open, pidfd_send_signal, waitid,
};

use super::cgroup::{Cgroups, Group, Share};
use super::init::{CELL_COMMAND, INSIDE_ID};
use super::network;
use super::wire::{Channel, Exit, Missing, Report, Request, Setup, Spawn, WireError};
use crate::egress::{Egress, Gate};
use crate::exec::guardian::{NodeTag, RUN_VAR, TAG_VAR};
use crate::exec::outcome::Failure;
use crate::exec::process::lacking;
use crate::exec::procfs;
use crate::exec::sweep::{self, next_run};

/// Who programs are outside, where the daemon is root: this and the slot's number, above every range that systems give out.
const OUTSIDE_ID: u32 = 1_900_000_000;
/// A cell answers within milliseconds; one that takes this long on a busy machine is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of a killed cell takes milliseconds, and longer only where something in it is stuck in the kernel.
const DEATH_MAX: Duration = Duration::from_secs(3);

/// Why a cell could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// This machine does not give a piece that it needs.
    #[error("this machine gives no {0}")]
    Missing(Missing),
    /// It broke.
    #[error("the sandbox broke while {doing}: {problem}")]
    Broken {
        /// What was going on.
        doing: &'static str,
        /// What happened.
        problem: String,
    },
    /// The job may not have here what it asks for.
    #[error("{0}")]
    Denied(Failure),
}

impl From<CellError> for Failure {
    /// Of a task that wanted the cell.
    fn from(error: CellError) -> Self {
        match error {
            CellError::Denied(failure) => failure,
            other => lacking("a sandbox", &io::Error::other(other)),
        }
    }
}

fn broken(doing: &'static str) -> impl Fn(&dyn fmt::Display) -> CellError {
    move |problem| CellError::Broken { doing, problem: problem.to_string() }
}

/// What a cell says of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) enum Told {
    /// It ended.
    Ended(Exit),
    /// It could not be started, for this `errno`.
    NotStarted(i32),
}

/// What a cell is made from.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    /// This program.
    pub(super) exe: &'a Path,
    pub(super) tag: &'a NodeTag,
    /// The slot's number.
    pub(super) slot: u32,
    pub(super) setup: Setup,
    pub(super) cgroups: &'a Arc<Cgroups>,
    pub(super) share: Share,
    /// The way out, where the setup has routes.
    pub(super) egress: Option<&'a Egress>,
}

/// A running cell. Dropping it kills everything in it.
pub struct Cell {
    channel: Channel,
    pid: Pid,
    pidfd: OwnedFd,
    missing: Vec<Missing>,
    /// The way out, if there is one; open while a program runs.
    gate: Option<Gate>,
    cgroups: Arc<Cgroups>,
    group: Option<Group>,
    /// How often the kernel had killed for want of memory when the present program started.
    ooms: u64,
    _live: sweep::Live,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cell({:?})", self.pid)
    }
}

impl Cell {
    /// Sets one up.
    pub(super) fn start(plan: &Plan<'_>) -> Result<Self, CellError> {
        let failed = broken("starting");
        let ids = OutsideId::choose(plan.slot);
        let mut setup = plan.setup.clone();
        setup.drop_groups = ids.by_root;
        hand_over(&setup.job, ids).map_err(|e| failed(&e))?;
        let (channel, child, mut live) = launch(plan).map_err(|e| failed(&e))?;
        // However this ends, the process that was started is waited for: it exits as soon as the socket is closed.
        let mut helper = Helper(child);
        let mut channel = channel;
        channel.send(&Request::Setup(Box::new(setup)), &[]).map_err(|e| failed(&e))?;
        let pid = match channel.receive().map_err(|e| failed(&e))? {
            Report::Born(pid) => Pid::from_raw(pid).ok_or_else(|| failed(&"a process id that is none"))?,
            Report::Failed(missing) => return Err(CellError::Missing(missing)),
            _ => return Err(failed(&"an answer out of turn")),
        };
        live.leader(pid);
        helper.0.wait().map_err(|e| failed(&e))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(&e))?;
        let (cgroups, missing) = (Arc::clone(plan.cgroups), Vec::new());
        let mut cell = Self { channel, pid, pidfd, missing, gate: None, cgroups, group: None, ooms: 0, _live: live };
        // Before anything of the cell exists that could use much.
        cell.group = Some(cell.cgroups.enter(plan.share, pid).map_err(|e| failed(&e))?);
        ids.map(pid)
            .map_err(|e| CellError::Missing(Missing { piece: "mapping of users".to_owned(), why: e.to_string() }))?;
        // Nothing but this very program runs in the cell until it is ready.
        cell.channel.let_fds(!plan.setup.routes.is_empty());
        cell.channel.send(&Request::Mapped, &[]).map_err(|e| failed(&e))?;
        match cell.channel.receive().map_err(|e| failed(&e))? {
            Report::Ready(missing) => cell.missing = missing,
            Report::Failed(missing) => return Err(CellError::Missing(missing)),
            _ => return Err(failed(&"an answer out of turn")),
        }
        cell.channel.let_fds(false);
        let fds = cell.channel.take_fds();
        if let Some(egress) = plan.egress.filter(|_| !plan.setup.routes.is_empty()) {
            let doors = network::doors(&plan.setup.routes, fds).map_err(|e| failed(&e))?;
            cell.gate = Some(egress.gate(doors).map_err(|e| failed(&e))?);
        }
        Ok(cell)
    }

    /// What this machine did not give it.
    pub(super) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Its first process, as the host counts.
    pub(in crate::exec) const fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether the kernel has killed in it for want of memory since the present program started.
    pub(in crate::exec) fn ran_out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.ooms() > self.ooms)
    }

    /// Its processes but the first, as the host counts, as far as they are known.
    pub(in crate::exec) fn processes(&self) -> Vec<i32> {
        let init = self.pid.as_raw_nonzero().get();
        let mut pids = self.group.as_ref().map(Group::processes).unwrap_or_default();
        if pids.is_empty() {
            pids = procfs::children(init);
        }
        pids.retain(|pid| *pid != init);
        pids
    }

    /// Becomes readable when it has something to report.
    pub(in crate::exec) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.fd()
    }

    /// Starts a program, with stdin, stdout and stderr.
    pub(super) fn spawn(&mut self, spawn: Spawn, stdio: [BorrowedFd<'_>; 3]) -> Result<(), CellError> {
        self.ooms = self.group.as_ref().map_or(0, Group::ooms);
        self.gate.as_mut().map_or(Ok(()), Gate::open).map_err(|e| broken("opening the way to the job's hosts")(&e))?;
        self.channel.send(&Request::Spawn(spawn), &stdio).map_err(|e| broken("starting a program")(&e))
    }

    /// Signals the program's process group; SIGKILL ends all that it started.
    pub(in crate::exec) fn signal(&self, signal: Signal) -> Result<(), CellError> {
        let request = if signal == Signal::KILL { Request::Kill } else { Request::Signal(signal.as_raw()) };
        self.channel.send(&request, &[]).map_err(|e| broken("signalling a program")(&e))
    }

    /// Kills the program and all that it started.
    pub(in crate::exec) fn kill_program(&self) -> Result<(), CellError> {
        self.signal(Signal::KILL)
    }

    /// Waits for word of the program.
    pub(in crate::exec) fn told(&mut self) -> Result<Told, CellError> {
        let told = self.channel.receive();
        if let Some(gate) = &mut self.gate {
            gate.shut();
        }
        match told {
            Ok(Report::Ended(exit)) => Ok(Told::Ended(exit)),
            Ok(Report::NotStarted(errno)) => Ok(Told::NotStarted(errno)),
            Ok(_) => Err(broken("running a program")(&"an answer out of turn")),
            Err(e) => Err(broken("running a program")(&e)),
        }
    }

    /// Word of the program, if there is any.
    pub(in crate::exec) fn told_now(&mut self) -> Option<Result<Told, CellError>> {
        is_readable(self.channel.fd()).then(|| self.told())
    }

    /// Waits for the end of its first process; whether it came.
    fn ends_within(&self, most: Duration) -> bool {
        let deadline = Instant::now() + most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                other => return other.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Whether it still lives.
    pub(super) fn is_alive(&self) -> bool {
        !is_readable(self.pidfd.as_fd())
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

impl Drop for Cell {
    fn drop(&mut self) {
        // It fails where the process has ended, which is what is wanted.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if !self.ends_within(DEATH_MAX) {
            // Its first process dies once all others have: those that nothing has reached yet are named one by one.
            for pid in self.group.as_ref().map(Group::processes).unwrap_or_default() {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
            // What is stuck even then is left to the sweeps.
            self.ends_within(DEATH_MAX);
        }
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if let Some(group) = self.group.take() {
            self.cgroups.remove(group);
        }
    }
}

/// The process that makes the cell's first process and exits.
struct Helper(std::process::Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It exits by itself once its work is done or the socket is closed; killed, it does so at once.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn launch(plan: &Plan<'_>) -> io::Result<(Channel, std::process::Child, sweep::Live)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
    let run = next_run();
    // Entered before the process exists, so that a sweep cannot take it for a stray.
    let live = sweep::enter(run);
    let mut command = Command::new(plan.exe);
    command.arg0("sinew").arg(CELL_COMMAND).env_clear().env(TAG_VAR, plan.tag.value()).env(RUN_VAR, run.to_string());
    command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
    Ok((Channel::daemon(ours), command.spawn()?, live))
}

/// Who programs of a cell are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OutsideId {
    uid: u32,
    gid: u32,
    /// Whether the daemon is root and may map whom it likes.
    by_root: bool,
}

impl OutsideId {
    fn choose(slot: u32) -> Self {
        let id = OUTSIDE_ID.saturating_add(slot);
        let own = Self { uid: geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), by_root: false };
        if own.uid == 0 && maps("/proc/self/uid_map", id) && maps("/proc/self/gid_map", id) {
            Self { uid: id, gid: id, by_root: true }
        } else {
            own
        }
    }

    /// Writes the maps of the namespace that `pid` has made.
    fn map(self, pid: Pid) -> io::Result<()> {
        let dir = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        if !self.by_root {
            std::fs::write(dir.join("setgroups"), "deny")?;
        }
        std::fs::write(dir.join("gid_map"), format!("{INSIDE_ID} {} 1\n", self.gid))?;
        std::fs::write(dir.join("uid_map"), format!("{INSIDE_ID} {} 1\n", self.uid))
    }
}

/// Whether the namespace that this process is in has `id` at all.
fn maps(map: &str, id: u32) -> bool {
    let text = std::fs::read_to_string(map).unwrap_or_default();
    text.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().filter_map(|n| n.parse::<u64>().ok());
        let (Some(first), Some(_), Some(len)) = (numbers.next(), numbers.next(), numbers.next()) else { return false };
        (first..first.saturating_add(len)).contains(&u64::from(id))
    })
}

/// Gives the slot's directories to the user that its tasks are outside of whatever isolates them, and says who that is: one
/// without a name, or the daemon's own user and group where the daemon may not make files anybody else's.
pub(in crate::exec) fn hand_over_to_task(slot: u32, job: &Path) -> io::Result<(u32, u32)> {
    let ids = OutsideId::choose(slot);
    hand_over(job, ids)?;
    Ok((ids.uid, ids.gid))
}

/// Gives the slot's directories to the cell's user.
fn hand_over(job: &Path, ids: OutsideId) -> io::Result<()> {
    if !ids.by_root {
        return Ok(());
    }
    for name in ["work", "output"] {
        std::os::unix::fs::lchown(job.join(name), Some(ids.uid), Some(ids.gid))?;
    }
    Ok(())
}

impl From<WireError> for CellError {
    fn from(error: WireError) -> Self {
        Self::Broken { doing: "talking to it", problem: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("map");
        let path = file.to_str().expect("utf-8");
        std::fs::write(&file, "         0     100000      65536\n").expect("write");
        assert!(maps(path, 0) && maps(path, 65_535) && !maps(path, 65_536));
        std::fs::write(&file, "0 0 4294967295\n").expect("write");
        assert!(maps(path, OUTSIDE_ID));
        assert!(!maps("/no/such/map", 0));
    }
}
