//! Finds and ends processes that outlived their task. Every process of a task carries two variables from birth, inherited by
//! its descendants however they daemonise: [`TAG_VAR`], which names the daemon, and [`RUN_VAR`], which numbers the attempt.
//! A process with our tag and a number that is not running is a stray.
//!
//! While the daemon runs, strays are among its descendants: it is a subreaper, so an orphan of a task becomes its child. Only
//! they are looked at, so that a sweep costs the same beside thousands of foreign processes. All of `/proc` is looked through
//! when the tag is of a run that has no living daemon, and where the kernel does not list children.
//!
//! What escapes: a program that starts descendants with an emptied environment in another session, or that overwrites its own
//! environment in place. Only a container around it would hold those. And, until the daemon's end, a program that has the
//! rights to enter a foreign process namespace and leaves an orphan there.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use super::guardian::{NodeTag, RUN_VAR, TAG_VAR};
use super::procfs;

/// How long a dead child that nobody claims is left alone: between `spawn` and its entry here a task's own process is
/// unclaimed too, for microseconds.
const UNCLAIMED_MIN: Duration = Duration::from_secs(1);

static NEXT_RUN: AtomicU64 = AtomicU64::new(1);
static LIVE: LazyLock<Mutex<LiveSet>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct LiveSet {
    runs: HashSet<u64>,
    leaders: HashSet<i32>,
}

fn live_set() -> MutexGuard<'static, LiveSet> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number for an attempt that no other attempt of this process has.
#[must_use]
pub fn next_run() -> u64 {
    NEXT_RUN.fetch_add(1, Ordering::Relaxed)
}

/// Marks a run as live until it is dropped.
#[derive(Debug)]
pub(crate) struct Live {
    run: u64,
    leader: Option<i32>,
}

/// Enters a run before its process is started.
pub(crate) fn enter(run: u64) -> Live {
    live_set().runs.insert(run);
    Live { run, leader: None }
}

impl Live {
    /// Enters the run's process, so that nobody else reaps it.
    pub(crate) fn leader(&mut self, pid: Pid) {
        let pid = pid.as_raw_nonzero().get();
        live_set().leaders.insert(pid);
        self.leader = Some(pid);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut live = live_set();
        live.runs.remove(&self.run);
        if let Some(pid) = self.leader {
            live.leaders.remove(&pid);
        }
    }
}

/// Which tagged processes to end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    /// Those of this very daemon run whose attempt is over.
    Strays(&'a NodeTag),
    /// Those of one attempt.
    Run(&'a NodeTag, u64),
    /// Those of some attempts, wherever they are: for a guardian, whose descendants they are not.
    Runs(&'a NodeTag, &'a HashSet<u64>),
    /// All of this very daemon run.
    All(&'a NodeTag),
    /// Those of earlier runs on the same data directory.
    Earlier(&'a NodeTag),
}

impl Target<'_> {
    fn matches(self, environ: &[u8]) -> bool {
        let Some(value) = procfs::variable(environ, TAG_VAR) else { return false };
        let run = || procfs::variable(environ, RUN_VAR).and_then(|run| run.parse::<u64>().ok());
        match self {
            Self::All(tag) => value == tag.value(),
            Self::Run(tag, wanted) => value == tag.value() && run() == Some(wanted),
            Self::Runs(tag, wanted) => value == tag.value() && run().is_some_and(|run| wanted.contains(&run)),
            Self::Earlier(tag) => tag.is_earlier(value),
            Self::Strays(tag) => value == tag.value() && !run().is_some_and(|run| live_set().runs.contains(&run)),
        }
    }
}

/// Most looks at the system in one call: what forks faster than this is left to the next call.
const PASSES_MAX: usize = 16;

/// Processes among which some are looked for.
struct Look {
    /// Children of this process, and where the kernel does not list them, all processes.
    children: Vec<i32>,
    /// Those that may match, this process not among them.
    candidates: Vec<i32>,
}

/// Whether processes of ours may run that are no descendants of this one.
static ELSEWHERE: AtomicBool = AtomicBool::new(false);

/// Says whether processes of ours may run that are no descendants of this one: those of containers whose engine is gone, which
/// nobody else would end. As long as they may, every sweep looks at all processes of the machine.
pub(super) fn look_elsewhere(may_run: bool) {
    ELSEWHERE.store(may_run, Ordering::Relaxed);
}

impl Look {
    fn everywhere() -> Self {
        let mut candidates = procfs::pids();
        candidates.retain(|pid| *pid != own_pid());
        Self { children: candidates.clone(), candidates }
    }

    /// At this process's descendants, if orphans among them stay that.
    fn below() -> Self {
        if !matches!(rustix::process::child_subreaper(), Ok(Some(_))) {
            return Self::everywhere();
        }
        let Some(descent) = procfs::descent(own_pid()) else {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::info!("this kernel does not list children: looking for strays goes through all processes");
            });
            return Self::everywhere();
        };
        Self { children: descent.children, candidates: descent.all }
    }

    fn at(target: Target<'_>) -> Self {
        match target {
            Target::Strays(_) | Target::Run(..) if !ELSEWHERE.load(Ordering::Relaxed) => Self::below(),
            Target::Strays(_) | Target::Run(..) => Self::everywhere(),
            // Their daemon is gone, and they went to another process with it; or it goes now, and nothing may stay.
            Target::All(_) | Target::Earlier(_) | Target::Runs(..) => Self::everywhere(),
        }
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// Kills every process that matches and says how many there were. It looks until it finds no new one, for a process may
/// have forked between the look and its end, and the child would outlive the only one that names it.
pub(super) fn kill_matching(target: Target<'_>) -> usize {
    kill_among(Look::at(target), target)
}

fn kill_among(mut look: Look, target: Target<'_>) -> usize {
    let mut killed = HashSet::new();
    for _ in 0..PASSES_MAX {
        let before = killed.len();
        killed.extend(look.candidates.iter().filter_map(|pid| kill_one(*pid, target)));
        if killed.len() == before {
            break;
        }
        look = Look::at(target);
    }
    killed.len()
}

/// Kills the process if it matches, and names it for good: by its number and the time of its start.
fn kill_one(pid: i32, target: Target<'_>) -> Option<(i32, u64)> {
    target.matches(&procfs::environ(pid)?).then_some(())?;
    // The number may have been given away since: the descriptor cannot, so look again through it.
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    target.matches(&procfs::environ(pid)?).then_some(())?;
    let started = procfs::stat(pid)?.started;
    pidfd_send_signal(&pidfd, Signal::KILL).ok()?;
    Some((pid, started))
}

/// Ends strays and buries dead children that re-parented to the daemon. One per daemon; call it every second or so.
#[derive(Debug)]
pub struct Sweeper {
    tag: NodeTag,
    unclaimed: HashMap<(i32, u64), Instant>,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Strays killed.
    pub killed: usize,
    /// Dead re-parented children reaped.
    pub reaped: usize,
    /// Entries of `/proc` that were read for it: what it cost.
    pub reads: u64,
}

impl Sweeper {
    /// A sweeper for the processes of `tag`.
    #[must_use]
    pub fn new(tag: NodeTag) -> Self {
        Self { tag, unclaimed: HashMap::new() }
    }

    /// Looks at every process that descends from this one, again if it found a stray.
    pub fn sweep(&mut self) -> Swept {
        let before = procfs::reads();
        let target = Target::Strays(&self.tag);
        let look = Look::at(target);
        let children = look.children.clone();
        let killed = kill_among(look, target);
        let reaped = self.reap(&children);
        Swept { killed, reaped, reads: procfs::reads() - before }
    }

    /// Reaps children that are dead, that are in another process group than ours (so nothing the daemon started with plain
    /// `Command`), that no run claims, and that have been so for a while.
    fn reap(&mut self, children: &[i32]) -> usize {
        let own = own_pid();
        let own_group = rustix::process::getpgrp().as_raw_nonzero().get();
        let dead = |pid: i32| -> Option<(i32, u64)> {
            let stat = procfs::stat(pid)?;
            let ours = stat.parent == own && stat.state == b'Z' && stat.group != own_group;
            (ours && !live_set().leaders.contains(&pid)).then_some((pid, stat.started))
        };
        let now = Instant::now();
        let found: Vec<_> = children.iter().filter_map(|pid| dead(*pid)).collect();
        self.unclaimed.retain(|key, _| found.contains(key));
        let mut reaped = 0;
        for key in found {
            let since = *self.unclaimed.entry(key).or_insert(now);
            if now.duration_since(since) < UNCLAIMED_MIN || live_set().leaders.contains(&key.0) {
                continue;
            }
            let Some(pid) = Pid::from_raw(key.0) else { continue };
            let done = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            reaped += usize::from(matches!(done, Ok(Some(_))));
            self.unclaimed.remove(&key);
        }
        reaped
    }
}
