//! The `process` runner: a plain process of the node, in a process group of its own, without a container around it.
//!
//! Processes are started through [`std::process::Command`] without hooks between fork and exec, so that std uses
//! `posix_spawn`: no copy of the daemon's page tables, no code of ours in the child. Of the daemon's environment only
//! [`INHERITED`] reaches the program. What it does not do: limit what the program may touch.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use sinew_crdt_state::error_code::ErrorCode;

use super::drive::Driver;
use super::guardian::{NodeTag, RUN_VAR, TAG_VAR};
use super::lookup;
use super::outcome::{Failure, STDERR_TAIL_MAX};
use super::procfs;
use super::runner::{Control, Ended, Execution, Health, Launch, Prepared, RunLimits, Runner, Stats, Status, Streams};
use super::stop::{StopHandle, StopReason};
use super::sweep::{self, Target};

/// Variables of the daemon that programs see. Everything else, tokens above all, stays with the daemon.
pub const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// Where programs are looked up when the daemon itself has no `PATH`.
const PATH_FALLBACK: &str = "/usr/local/bin:/usr/bin:/bin";

/// How long a lookup is believed: a dozen directories take as long as a tenth of a task, and a program put in an earlier one
/// may be noticed a second later.
const LOOKUP_TTL: Duration = Duration::from_secs(1);

/// Longest variable name or value taken from a spec; the kernel's limit for one string is 128 KiB.
const VARIABLE_LEN_MAX: usize = 128 * 1024;

/// Runs programs as processes.
#[derive(Debug)]
pub struct ProcessRunner {
    base: Vec<(&'static str, String)>,
    tag: NodeTag,
    /// What programs without input read: opened once, because a descriptor is copied in a tenth of the time.
    nothing: Option<OwnedFd>,
    last: Mutex<Option<Found>>,
}

/// The last lookup in `PATH`: a job's tasks all ask for the same program.
#[derive(Debug)]
struct Found {
    name: String,
    path: String,
    program: PathBuf,
    at: Instant,
}

impl ProcessRunner {
    /// A runner whose processes carry `tag`, so that strays can be found.
    #[must_use]
    pub fn new(tag: NodeTag) -> Self {
        let mut base: Vec<_> =
            INHERITED.iter().filter_map(|name| std::env::var(name).ok().map(|value| (*name, value))).collect();
        if !base.iter().any(|(name, _)| *name == "PATH") {
            base.push(("PATH", PATH_FALLBACK.to_owned()));
        }
        let nothing = std::fs::File::open("/dev/null").ok().map(OwnedFd::from);
        Self { base, tag, nothing, last: Mutex::new(None) }
    }

    /// The tag its processes carry.
    #[must_use]
    pub const fn tag(&self) -> &NodeTag {
        &self.tag
    }

    fn path<'a>(&'a self, launch: &'a Launch<'_>) -> &'a str {
        let own =
            || self.base.iter().find(|(name, _)| *name == "PATH").map_or(PATH_FALLBACK, |(_, value)| value.as_str());
        launch.env.get("PATH").map_or_else(own, String::as_str)
    }

    fn command(&self, launch: &Launch<'_>, prepared: &Prepared, outputs: [&Pipe; 2]) -> std::io::Result<Command> {
        let mut command = Command::new(&prepared.program);
        if let Some((first, rest)) = launch.argv.split_first() {
            command.arg0(first).args(rest);
        }
        command.current_dir(launch.dir).env_clear();
        for (name, value) in &self.base {
            command.env(name, value);
        }
        command.envs(launch.env);
        for (name, value) in launch.fixed_env {
            command.env(name, value);
        }
        command.env(TAG_VAR, self.tag.value()).env(RUN_VAR, launch.run.to_string());
        match &self.nothing {
            _ if launch.feeds_stdin => command.stdin(Stdio::piped()),
            Some(nothing) => command.stdin(nothing.try_clone()?),
            None => command.stdin(Stdio::null()),
        };
        let [stdout, stderr] = outputs;
        command.stdout(stdout.write.try_clone()?).stderr(stderr.write.try_clone()?).process_group(0);
        Ok(command)
    }
}

impl Runner for ProcessRunner {
    fn name(&self) -> &'static str {
        "process"
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        let name = launch.argv.first().map_or("", String::as_str);
        for (name, value) in launch.env {
            let bad = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
            if bad || name.len() + value.len() > VARIABLE_LEN_MAX {
                let shown: String = name.chars().take(64).collect();
                return Err(Failure::new(ErrorCode::Invalid, format!("environment variable `{shown}` cannot be set")));
            }
        }
        let path = self.path(launch);
        if launch.has_files || name.contains('/') {
            return lookup::find(name, launch.dir, launch.has_files, path).map(|program| Prepared { program });
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(found) if found.name == name && found.path == path && found.at.elapsed() < LOOKUP_TTL => {
                Ok(Prepared { program: found.program.clone() })
            }
            _ => {
                let program = lookup::find(name, launch.dir, false, path)?;
                let (name, path) = (name.to_owned(), path.to_owned());
                *last = Some(Found { name, path, program: program.clone(), at: Instant::now() });
                Ok(Prepared { program })
            }
        }
    }

    fn start(&self, launch: &Launch<'_>, prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        // Entered before the process exists, so that a sweep cannot take it for a stray.
        let live = sweep::enter(launch.run);
        let pipes = Pipe::new().and_then(|stdout| Ok([stdout, Pipe::new()?])).map_err(|e| lacking("pipes", &e))?;
        let command = self.command(launch, &prepared, [&pipes[0], &pipes[1]]).map_err(|e| lacking("pipes", &e));
        let mut child = command?.spawn().map_err(|e| spawn_failure(launch, &prepared, &e))?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let group = Group::new(child, live)?;
        let pidfd =
            pidfd_open(group.pid, PidfdFlags::empty()).map_err(|e| lacking("a process descriptor", &e.into()))?;
        let shared = Arc::new(Shared::new(group.pid, launch.stop.clone()));
        let (tag, run) = (self.tag.clone(), launch.run);
        Ok(Box::new(Process { group, pidfd, stdin, pipes, shared, tag, run }))
    }
}

fn lacking(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::Oom, format!("this node could not give the task {what}: {error}"))
}

fn spawn_failure(launch: &Launch<'_>, prepared: &Prepared, error: &std::io::Error) -> Failure {
    let program = prepared.program.display();
    if !launch.dir.is_dir() {
        return lacking("its working directory", error);
    }
    let why = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) if !prepared.program.exists() => "it is gone".to_owned(),
        Some(rustix::io::Errno::NOENT) => "the interpreter in its first line, or its loader, is missing".to_owned(),
        Some(rustix::io::Errno::NOEXEC) => {
            "it is neither a binary of this machine nor a script with a `#!` line".to_owned()
        }
        Some(rustix::io::Errno::TOOBIG) => "its arguments and environment are longer than the system takes".to_owned(),
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => "this node may not execute it".to_owned(),
        None => error.to_string(),
        Some(_) => return lacking(&format!("a process for `{program}`"), error),
    };
    Failure::new(ErrorCode::Invalid, format!("program `{program}` does not start: {why}"))
}

/// A pipe for what a program writes. The daemon keeps the writing end open too: the end of the program is told by its pidfd,
/// and without this each stream it closes on its way out would wake the daemon once more, which is felt at thousands a second.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

impl Pipe {
    fn new() -> std::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }
}

/// A child and its process group. Killed and reaped when dropped.
pub(super) struct Group {
    child: Option<Child>,
    pub(super) pid: Pid,
    _live: sweep::Live,
}

impl Group {
    fn new(mut child: Child, mut live: sweep::Live) -> Result<Self, Failure> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::new(ErrorCode::Oom, "the system gave a process id that is none"));
        };
        live.leader(pid);
        Ok(Self { child: Some(child), pid, _live: live })
    }

    /// Signals the whole group. The leader is our unreaped child, so the number cannot have been given away.
    pub(super) fn signal(&self, signal: Signal) {
        if self.child.is_some() {
            // It fails when only zombies are left, or for members that changed their user: nothing to do about either.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Reaps the leader, which must have ended.
    pub(super) fn reap(&mut self) -> std::io::Result<wait4::ResUse> {
        let child = self.child.take().ok_or_else(|| std::io::Error::other("reaped already"))?;
        wait4::Wait4::wait4(child)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if self.child.is_some() {
            let _ = self.reap();
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({:?})", self.pid)
    }
}

/// What the driving thread shares with [`Control`].
#[derive(Debug)]
pub(super) struct Shared {
    pid: Pid,
    pub(super) stop: StopHandle,
    ended: AtomicBool,
    tail: Mutex<Vec<u8>>,
}

impl Shared {
    const fn new(pid: Pid, stop: StopHandle) -> Self {
        Self { pid, stop, ended: AtomicBool::new(false), tail: Mutex::new(Vec::new()) }
    }

    /// Keeps the end of stderr.
    pub(super) fn add_stderr(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &bytes[bytes.len().saturating_sub(STDERR_TAIL_MAX)..];
        let keep = STDERR_TAIL_MAX - new.len();
        let drop = tail.len().saturating_sub(keep);
        tail.drain(..drop);
        tail.extend_from_slice(new);
    }

    pub(super) fn tail(&self) -> Vec<u8> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Control for Shared {
    fn stop(&self, reason: StopReason) {
        self.stop.stop(reason);
    }

    fn status(&self) -> Status {
        if self.ended.load(Ordering::Acquire) {
            Status::Ended
        } else {
            Status::Running(u32::try_from(self.pid.as_raw_nonzero().get()).ok())
        }
    }

    fn stats(&self) -> Stats {
        if self.ended.load(Ordering::Acquire) {
            return Stats::default();
        }
        let pid = self.pid.as_raw_nonzero().get();
        Stats { cpu_ms: procfs::stat(pid).map_or(0, |s| s.cpu_ms), rss_bytes: procfs::rss(pid).unwrap_or(0) }
    }

    fn logs(&self) -> Vec<u8> {
        self.tail()
    }
}

/// A started process.
#[derive(Debug)]
struct Process {
    group: Group,
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    pipes: [Pipe; 2],
    shared: Arc<Shared>,
    tag: NodeTag,
    run: u64,
}

impl Execution for Process {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }

    fn drive(self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended {
        let Self { group, pidfd, stdin, pipes, shared, tag, run } = *self;
        let ended = Driver::new(group, pidfd, stdin, pipes, shared, streams, *limits).run();
        if ended.result.as_ref().is_err_and(|why| why.code != ErrorCode::Exit) {
            // It was ended from outside: what left its group is not to go on until the next sweep. Rare, so the look at all
            // processes may cost its few ms.
            sweep::kill_matching(Target::Run(&tag, run));
        }
        ended
    }
}
