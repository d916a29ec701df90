//! What a driver drives: a program that is a child of this process, one in a cell, or a call in a worker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sinew_crdt_state::error_code::ErrorCode;

use super::cell::host::{CellError, Told};
use super::cell::pool::{CellProgram, Lease};
use super::outcome::Failure;
use super::process::{Group, not_started};
use super::procfs;
use super::python::Call;
use super::stop::{Bound, StopHandle};
use super::sweep;
use super::switch::Kind;

/// Bytes written that are not worth ending a task for.
const WRITTEN_MIN: u64 = 1 << 20;

/// How a program ended.
#[derive(Debug)]
pub(super) struct Reaped {
    pub(super) status: ExitStatus,
    pub(super) cpu_ms: u64,
    /// Peak resident bytes of its biggest process; see [`super::drive`] for what a child's figure is worth.
    pub(super) max_rss_bytes: u64,
    /// Why it failed, where that is known better than its status tells.
    pub(super) failure: Option<Failure>,
}

/// A started program.
#[derive(Debug)]
pub(super) enum Body {
    /// Our child, the leader of a process group, and its descriptor.
    Child(Group, OwnedFd),
    /// In a cell.
    Cell(Box<CellRun>),
    /// A call in a worker, which is one of the two above.
    Call(Box<Call>),
}

impl Body {
    /// Becomes readable when the program ends.
    pub(super) fn end_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Child(_, pidfd) => pidfd.as_fd(),
            Self::Cell(run) => run.fd(),
            Self::Call(call) => call.end_fd(),
        }
    }

    /// Becomes readable when a program that is not a process of its own may have ended.
    pub(super) fn reply_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Call(call) => call.reply_fd(),
            Self::Child(..) | Self::Cell(_) => None,
        }
    }

    /// Whether it has ended, once one of these is readable.
    pub(super) fn is_over(&mut self) -> bool {
        match self {
            Self::Call(call) => call.is_over(),
            Self::Child(..) | Self::Cell(_) => true,
        }
    }

    /// How many processes of a cell have no parent in it but the first.
    pub(super) fn cell_children(&self) -> usize {
        match self {
            Self::Cell(run) => run.init().map_or(0, |pid| procfs::children(pid.as_raw_nonzero().get()).len()),
            Self::Child(..) | Self::Call(_) => 0,
        }
    }

    /// Signals the program's group.
    pub(super) fn signal(&mut self, signal: Signal) {
        match self {
            Self::Child(group, _) => group.signal(signal),
            Self::Cell(run) => run.signal(signal),
            Self::Call(call) => call.signal(signal),
        }
    }

    /// The failure to report if it has used more memory than it may.
    pub(super) fn out_of_memory(&self) -> Option<Failure> {
        match self {
            Self::Child(..) => None,
            Self::Cell(run) => run.out_of_memory(),
            Self::Call(call) => call.out_of_memory(),
        }
    }

    /// Whether its processes have written more than a little. Where the kernel does not count that, they have.
    pub(super) fn writes(&self) -> bool {
        let pids = match self {
            Self::Child(group, _) => vec![group.pid.as_raw_nonzero().get()],
            Self::Cell(run) if run.orphans_wrote() => return true,
            Self::Cell(run) => run.lease.as_ref().map(|lease| lease.cell.processes()).unwrap_or_default(),
            Self::Call(call) => return call.writes(),
        };
        pids.into_iter().any(|pid| procfs::written(pid).is_none_or(|bytes| bytes > WRITTEN_MIN))
    }

    /// Its processes, as the host counts, as far as they are known.
    pub(super) fn processes(&self) -> Vec<i32> {
        match self {
            Self::Child(group, _) => procfs::family(group.pid.as_raw_nonzero().get()),
            Self::Cell(run) => run.lease.as_ref().map(|lease| lease.cell.processes()).unwrap_or_default(),
            Self::Call(call) => call.processes(),
        }
    }

    /// Its first process, if there is one.
    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Child(group, _) => Some(group.pid.as_raw_nonzero().get()),
            Self::Cell(run) => run.leader(),
            Self::Call(call) => call.pid(),
        }
    }

    /// Kills what is left of it. When this returns, nothing of it writes any more, except a process that has left the group
    /// of a child.
    pub(super) fn end(&mut self) {
        match self {
            Self::Child(group, _) => group.signal(Signal::KILL),
            Self::Cell(run) => run.end(),
            Self::Call(call) => call.end(),
        }
    }

    /// How it ended.
    ///
    /// # Errors
    /// The failure to report when that is not known, or when it never started.
    pub(super) fn reap(&mut self) -> Result<Reaped, Failure> {
        match self {
            Self::Child(group, _) => {
                let lost = |e| Failure::new(ErrorCode::Lost, format!("the program's exit status was lost: {e}"));
                let ended = group.reap().map_err(lost)?;
                let cpu = ended.rusage.utime + ended.rusage.stime;
                let cpu_ms = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
                Ok(Reaped { status: ended.status, cpu_ms, max_rss_bytes: ended.rusage.maxrss, failure: None })
            }
            Self::Cell(run) => run.reap(),
            Self::Call(call) => call.reap(),
        }
    }

    /// Whether what [`Self::reap`] says about memory is the program's own.
    pub(super) fn knows_memory(&self) -> bool {
        match self {
            Self::Child(..) => false,
            Self::Cell(_) => true,
            Self::Call(call) => call.knows_memory(),
        }
    }
}

/// A program in a cell.
#[derive(Debug)]
pub(super) struct CellRun {
    /// Until its program is gone the cell is killed when its lease is over. Dropped before the cell.
    bound: Option<Bound>,
    /// `None` once it has been given back or given up.
    lease: Option<Lease>,
    program: String,
    /// What the cell said last, or why it says nothing any more.
    told: Option<Result<Told, CellError>>,
    /// Bytes that the dead of earlier tasks wrote, which the cell's first process inherits.
    written_before: u64,
    over_memory: Option<Failure>,
    _live: sweep::Live,
}

impl CellRun {
    /// Takes over a cell, just before its program starts.
    pub(super) fn new(lease: Lease, program: String, live: sweep::Live) -> Self {
        let written_before = procfs::written(lease.cell.pid().as_raw_nonzero().get()).unwrap_or(0);
        Self { bound: None, lease: Some(lease), program, told: None, written_before, over_memory: None, _live: live }
    }

    /// Has the cell killed when the lease of its program is over.
    pub(super) fn bind(&mut self, stop: &StopHandle, run: u64) -> Result<(), Failure> {
        if let Some(pid) = self.init() {
            self.bound = Some(stop.bind(Kind::Cell, pid.as_raw_nonzero().get(), run)?);
        }
        Ok(())
    }

    /// Starts its program.
    pub(super) fn start(&mut self, program: CellProgram<'_>) -> Result<(), CellError> {
        self.lease.as_mut().map_or(Ok(()), |lease| program.start_in(&mut lease.cell))
    }

    /// Whether processes that died without their parent have written more than a little: the kernel adds their counts to the
    /// first process's, whose child they became.
    fn orphans_wrote(&self) -> bool {
        let written = self.init().and_then(|pid| procfs::written(pid.as_raw_nonzero().get()));
        // It is known to root alone.
        written.is_some_and(|bytes| bytes.saturating_sub(self.written_before) > WRITTEN_MIN)
    }

    /// The cell's first process.
    pub(super) fn init(&self) -> Option<Pid> {
        self.lease.as_ref().map(|lease| lease.cell.pid())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // Asked only while the program runs, and the lease ends with it.
        self.lease.as_ref().expect("a cell that is driven has not ended").cell.fd()
    }

    fn leader(&self) -> Option<i32> {
        procfs::children(self.init()?.as_raw_nonzero().get()).first().copied()
    }

    fn signal(&mut self, signal: Signal) {
        // A cell that cannot be talked to is killed, and takes the program with it.
        if let Some(lease) = &self.lease
            && let Err(e) = lease.cell.signal(signal)
        {
            self.told.get_or_insert(Err(e));
        }
    }

    /// Waits for the end, which has been noticed or is brought about.
    fn end(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        if self.told.is_none() {
            self.told = Some(match lease.cell.told_now() {
                Some(told) => told,
                None => lease.cell.kill_program().and_then(|()| lease.cell.told()),
            });
        }
        match &self.told {
            Some(Ok(Told::Ended(exit))) if exit.reusable => {}
            Some(Ok(Told::NotStarted(_))) => {}
            // Dropping the lease kills whatever there is, and with it goes the count of what the kernel killed.
            _ => {
                self.over_memory = self.out_of_memory();
                self.bound = None;
                self.lease = None;
            }
        }
    }

    /// The failure of a program that used more memory than it may.
    fn out_of_memory(&self) -> Option<Failure> {
        let lease = self.lease.as_ref()?;
        lease.cell.ran_out_of_memory().then(|| Failure::out_of_memory(lease.memory_bytes()))
    }

    fn reap(&mut self) -> Result<Reaped, Failure> {
        if self.over_memory.is_none() {
            self.over_memory = self.out_of_memory();
        }
        self.end();
        self.bound = None;
        if self.over_memory.is_some() {
            // Whatever the kernel left alive ends with the cell.
            self.lease = None;
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(why) = self.over_memory.take() {
            return Err(why);
        }
        match self.told.take() {
            Some(Ok(Told::Ended(exit))) => Ok(Reaped {
                status: ExitStatus::from_raw(exit.status),
                cpu_ms: u64::try_from(Duration::from_micros(exit.cpu_us).as_millis()).unwrap_or(u64::MAX),
                max_rss_bytes: exit.max_rss_bytes,
                failure: None,
            }),
            Some(Ok(Told::NotStarted(errno))) => {
                Err(not_started(&self.program, &std::io::Error::from_raw_os_error(errno), true))
            }
            Some(Err(e)) => Err(Failure::new(ErrorCode::Lost, e.to_string())),
            None => Err(Failure::new(ErrorCode::Lost, "the sandbox said nothing about the program's end")),
        }
    }
}
