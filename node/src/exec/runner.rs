//! What executes a program: the one trait behind `process` and whatever else can run something (containers, WebAssembly).
//!
//! A runner checks ([`Runner::prepare`]), starts ([`Runner::start`]) and hands over an [`Execution`] that the calling thread
//! drives to its end: feeding stdin, taking stdout and stderr as they come, and enforcing time and output limits. Another
//! thread may look on and end it through [`Control`]. It knows nothing of jobs, chunks, leases or blobs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sinew_crdt_state::program::{Program, Runners};

use super::allowlist::Caps;
use super::cell::pool::Place;
use super::outcome::{Failure, Usage};
use super::stop::{StopHandle, StopReason};
use super::unlinked::Holders;

/// Time between SIGTERM and SIGKILL, and their like: long enough to flush a file, short against a lease.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(2);

/// A kind of execution environment on this node.
pub trait Runner: Send + Sync + fmt::Debug {
    /// Which programs are its own ([`Program::runner`]).
    fn kind(&self) -> Runners;

    /// Whether it could run something now. Asked often: it must not block.
    fn health(&self) -> Health;

    /// Under which names its programs find their directories.
    fn view(&self, _program: &Program) -> View {
        View::Host
    }

    /// Finds what is to be run. A program that is missing is found missing here, before anything has started.
    ///
    /// # Errors
    /// An `E_INVALID` that names what is missing or wrong.
    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure>;

    /// Starts it.
    ///
    /// # Errors
    /// `E_INVALID` when the system refuses the program for good, `E_OOM` when this node lacks a resource now.
    fn start(&self, launch: &Launch<'_>, prepared: Prepared) -> Result<Box<dyn Execution>, Failure>;

    /// A program of `job` is about to use this slot and its directories: what is kept alive there goes, unless it is for that
    /// program. May block.
    fn make_way(&self, _slot: u32, _job: &str, _program: &Program) {}

    /// The job is over on this node: whatever is kept for it goes. May block.
    fn end_job(&self, _job: &str) {}

    /// Lets go of what has been idle for long; called now and then. May block.
    fn end_idle(&self) {}
}

/// Whether a runner works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It does not, for this reason.
    Unavailable(String),
}

/// The names under which programs find their directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The host's.
    Host,
    /// Those of [`super::cell`], the same on every node.
    Cell,
}

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The program, of the runner's own kind.
    pub program: &'a Program,
    /// The file that holds the program's content ([`Program::content`]), if it has any: the runner's to read, not to change.
    pub content: Option<&'a Path>,
    /// The task's number.
    pub task: u32,
    /// The working directory, absolute, as the host names it.
    pub dir: &'a Path,
    /// The slot and the job.
    pub place: Place<'a>,
    /// Whether `dir` holds files of the job, so that a bare program name is looked up there first.
    pub has_files: bool,
    /// The job's variables.
    pub env: &'a BTreeMap<String, String>,
    /// Variables that the job cannot change.
    pub fixed_env: &'a [(&'static str, String)],
    /// The attempt's number in this process, unique; see [`super::sweep`].
    pub run: u64,
    /// Whether stdin is fed; it is empty otherwise.
    pub feeds_stdin: bool,
    /// What it may use: a preparation that takes long ends with its time.
    pub limits: RunLimits,
    /// Ends it.
    pub stop: &'a StopHandle,
}

impl Launch<'_> {
    /// The argument vector, if the program is one.
    #[must_use]
    pub fn argv(&self) -> &[String] {
        match self.program {
            Program::Exec(argv) => argv,
            _ => &[],
        }
    }
}

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The file that will be executed, as the program itself finds it.
    pub program: PathBuf,
    /// What this node lets it use at most.
    pub caps: Caps,
}

/// Takes bytes as they come.
pub trait Sink {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// A failure ends the program and becomes its outcome.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure>;

    /// Whether this is a log: its last bytes count also of a program that is being ended. Of data they would be half of something.
    fn is_log(&self) -> bool {
        false
    }
}

/// Says how many bytes a program has written elsewhere than to its streams.
pub type Elsewhere<'a> = &'a mut dyn FnMut(Holders<'_>) -> Result<u64, Failure>;

/// Where an execution's data comes from and goes to.
pub struct Streams<'a> {
    /// Fed to stdin. It should block only briefly (files, memory): while it blocks, no limit is enforced.
    pub stdin: Option<&'a mut (dyn Read + Send)>,
    /// Takes stdout.
    pub stdout: &'a mut dyn Sink,
    /// Takes stderr.
    pub stderr: &'a mut dyn Sink,
    /// Bytes that the program has written elsewhere (its directories) and that count against the limit, or why it must not go
    /// on writing; asked now and then while it runs, with who may hold files that no directory shows any more.
    pub elsewhere: Option<Elsewhere<'a>>,
}

impl fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

/// What one execution may use.
#[derive(Debug, Clone, Copy)]
pub struct RunLimits {
    /// When the attempt began: a timeout is told in ms since then.
    pub began: Instant,
    /// When its time is over.
    pub deadline: Option<Instant>,
    /// Bytes that the task may write in all.
    pub output_max: u64,
    /// Bytes that earlier programs of the same task wrote.
    pub output_before: u64,
    /// Between asking it to end and killing it.
    pub grace: Duration,
}

impl RunLimits {
    /// Within what the node allows.
    pub(super) fn cap(&mut self, caps: Caps) {
        let deadline = caps.timeout.and_then(|timeout| self.began.checked_add(timeout));
        self.deadline = [self.deadline, deadline].into_iter().flatten().min();
        self.output_max = self.output_max.min(caps.output_max.unwrap_or(u64::MAX));
    }

    /// Whether `bytes` of this program are more than the task may write in all.
    pub(super) const fn is_over_output(&self, bytes: u64) -> bool {
        self.output_before.saturating_add(bytes) > self.output_max
    }

    /// The failure to report once the deadline has passed.
    #[must_use]
    pub fn timeout_failure(&self) -> Failure {
        let allowed = self.deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.began));
        Failure::timeout(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A started program. Dropping it unfinished kills it.
pub trait Execution: Send + fmt::Debug {
    /// For other threads.
    fn control(&self) -> Arc<dyn Control>;

    /// Drives it to its end on this thread.
    fn drive(self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended;
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Good, or why not.
    pub result: Result<(), Failure>,
    /// What it used.
    pub usage: Usage,
}

/// What other threads can do with an execution.
pub trait Control: Send + Sync + fmt::Debug {
    /// Asks for its end.
    fn stop(&self, reason: StopReason);
    /// What it does now.
    fn status(&self) -> Status;
    /// What it uses now.
    fn stats(&self) -> Stats;
    /// The end of what it wrote to stderr so far.
    fn logs(&self) -> Vec<u8>;
}

/// The state of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It runs, as this process where it is one.
    Running(Option<u32>),
    /// It is over.
    Ended,
}

/// What an execution uses at a moment; zero where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// CPU ms so far, user and system, of the program's first process.
    pub cpu_ms: u64,
    /// Resident bytes now, of the same.
    pub rss_bytes: u64,
}
