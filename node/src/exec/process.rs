//! The `process` runner: a process in a process group of its own, in a [`super::cell`] or, where the operator wants it so, bare.
//!
//! Processes are started through [`std::process::Command`] without hooks between fork and exec, so that std uses
//! `posix_spawn`: no copy of the daemon's page tables, no code of ours in the child. Of the daemon's environment only
//! [`INHERITED`] reaches the program. What a bare program may touch is not limited.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Program, Runners};

use crate::egress::needs_sandbox;

use super::allowlist::{Allowlist, Caps};
use super::body::{Body, CellRun};
use super::cell;
use super::cell::pool::{CellProgram, Sandbox};
use super::control::{Shared, Who};
use super::drive::Driver;
use super::guardian::{NodeTag, RUN_VAR, TAG_VAR};
use super::lookup;
use super::open_files;
use super::outcome::Failure;
use super::runner::{Control, Ended, Execution, Health, Launch, Prepared, RunLimits, Runner, Streams, View};
use super::stop::Bound;
use super::sweep::{self, Target};
use super::switch::Kind;
use super::volumes;

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
    sandbox: Option<Arc<Sandbox>>,
    /// Why nothing may run here, if nothing may.
    refusal: Option<String>,
    /// What may run at all, if that is limited.
    allowlist: Option<Allowlist>,
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
    /// A runner whose processes run bare and carry `tag`, so that strays can be found.
    #[must_use]
    pub fn new(tag: NodeTag) -> Self {
        let mut base: Vec<_> =
            INHERITED.iter().filter_map(|name| std::env::var(name).ok().map(|value| (*name, value))).collect();
        if !base.iter().any(|(name, _)| *name == "PATH") {
            base.push(("PATH", PATH_FALLBACK.to_owned()));
        }
        let nothing = std::fs::File::open("/dev/null").ok().map(OwnedFd::from);
        Self { base, tag, nothing, last: Mutex::new(None), sandbox: None, refusal: None, allowlist: None }
    }

    /// A runner whose processes run in cells.
    #[must_use]
    pub fn sandboxed(tag: NodeTag, sandbox: Arc<Sandbox>) -> Self {
        let mut runner = Self::new(tag);
        for (name, value) in &mut runner.base {
            match *name {
                "PATH" => *value = shown_path(&sandbox, value),
                "HOME" | "TMPDIR" => cell::TMP.clone_into(value),
                _ => {}
            }
        }
        for name in ["HOME", "TMPDIR"] {
            if !runner.base.iter().any(|(known, _)| *known == name) {
                runner.base.push((name, cell::TMP.to_owned()));
            }
        }
        runner.sandbox = Some(sandbox);
        runner
    }

    /// The same runner, for programs of `list` only.
    #[must_use]
    pub fn only(mut self, list: Option<Allowlist>) -> Self {
        self.allowlist = list;
        self
    }

    /// A runner that runs nothing, for this reason.
    #[must_use]
    pub fn refusing(tag: NodeTag, why: String) -> Self {
        Self { refusal: Some(why), ..Self::new(tag) }
    }

    /// What its processes run in, unless they run bare.
    #[must_use]
    pub const fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        self.sandbox.as_ref()
    }

    /// Why nothing may run here, if that is so for good.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The tag its processes carry.
    #[must_use]
    pub const fn tag(&self) -> &NodeTag {
        &self.tag
    }

    /// The variables of the daemon that programs see.
    pub(super) fn base_env(&self) -> &[(&'static str, String)] {
        &self.base
    }

    /// What may run at all, if that is limited.
    pub(super) const fn allowlist(&self) -> Option<&Allowlist> {
        self.allowlist.as_ref()
    }

    fn path<'a>(&'a self, launch: &'a Launch<'_>) -> &'a str {
        let own =
            || self.base.iter().find(|(name, _)| *name == "PATH").map_or(PATH_FALLBACK, |(_, value)| value.as_str());
        launch.env.get("PATH").map_or_else(own, String::as_str)
    }

    fn command(&self, launch: &Launch<'_>, prepared: &Prepared, outputs: [&Pipe; 2]) -> std::io::Result<Command> {
        let mut command = Command::new(&prepared.program);
        if let Some((first, rest)) = launch.argv().split_first() {
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
        command.envs(volumes::variables(launch.place.volumes, View::Host));
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
    fn kind(&self) -> Runners {
        Runners::PROCESS
    }

    fn health(&self) -> Health {
        let trouble = || self.sandbox.as_ref().and_then(|sandbox| sandbox.trouble());
        self.refusal.clone().or_else(trouble).map_or(Health::Ready, Health::Unavailable)
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        let program = self.find(launch)?;
        let caps = match &self.allowlist {
            Some(list) => list.check(&program, launch.argv(), launch.env)?,
            None => Caps::default(),
        };
        Ok(Prepared { program, caps })
    }

    fn start(&self, launch: &Launch<'_>, prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        // Entered before the process exists, so that a sweep cannot take it for a stray.
        let live = sweep::enter(launch.run);
        let pipes = Pipe::pair().map_err(|e| lacking("pipes", &e))?;
        let started = match &self.sandbox {
            Some(sandbox) => self.start_in_cell(sandbox, launch, prepared, &pipes, live)?,
            None => self.start_bare(launch, &prepared, &pipes, live)?,
        };
        let (body, stdin) = started;
        let who = match &body {
            Body::Child(group, _) => Who::Process(group.pid),
            Body::Cell(run) => run.init().map_or(Who::Nobody, Who::ChildOf),
            Body::Call(_) => Who::Nobody,
        };
        let shared = Arc::new(Shared::new(who, launch));
        let (tag, run, pipes) = (self.tag.clone(), launch.run, Arc::new(pipes));
        Ok(Box::new(Process { body, stdin, pipes, shared, tag, run }))
    }

    fn view(&self, _program: &Program) -> View {
        if self.sandbox.is_some() { View::Cell } else { View::Host }
    }

    fn end_job(&self, job: &str) {
        if let Some(sandbox) = &self.sandbox {
            sandbox.end_job(job);
        }
    }

    fn end_idle(&self) {
        if let Some(sandbox) = &self.sandbox {
            sandbox.end_idle();
        }
    }
}

impl ProcessRunner {
    /// Whether programs may reach hosts that their jobs name.
    pub(super) fn has_way_out(&self) -> bool {
        self.refusal.is_none() && self.sandbox.as_ref().is_some_and(|sandbox| sandbox.has_way_out())
    }

    /// Finds the program, under the name that it has for itself.
    fn find(&self, launch: &Launch<'_>) -> Result<PathBuf, Failure> {
        if let Some(why) = &self.refusal {
            return Err(Failure::new(ErrorCode::Deny, why.clone()));
        }
        let name = launch.argv().first().map_or("", String::as_str);
        check_env(launch.env)?;
        needs_sandbox(launch.place.network, self.sandbox.is_some())?;
        let path = self.path(launch);
        if let Some(sandbox) = &self.sandbox
            && (launch.has_files || name.contains('/'))
        {
            return in_cell(sandbox, launch, name, &shown_path(sandbox, path));
        }
        if launch.has_files || name.contains('/') {
            return lookup::find(name, launch.dir, launch.has_files, path);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(found) if found.name == name && found.path == path && found.at.elapsed() < LOOKUP_TTL => {
                Ok(found.program.clone())
            }
            _ => {
                let shown = self.sandbox.as_ref().map_or_else(|| path.to_owned(), |s| shown_path(s, path));
                let program = lookup::find(name, launch.dir, false, &shown)?;
                let (name, path) = (name.to_owned(), path.to_owned());
                *last = Some(Found { name, path, program: program.clone(), at: Instant::now() });
                Ok(program)
            }
        }
    }

    fn start_bare(
        &self,
        launch: &Launch<'_>,
        prepared: &Prepared,
        pipes: &[Pipe; 2],
        live: sweep::Live,
    ) -> Result<(Body, Option<OwnedFd>), Failure> {
        let command = self.command(launch, prepared, [&pipes[0], &pipes[1]]).map_err(|e| lacking("pipes", &e));
        // Before there is a process: it carries the run's number.
        let bound = launch.stop.bind(Kind::Group, 0, launch.run)?;
        let mut child = command?.spawn().map_err(|e| spawn_failure(launch, prepared, &e))?;
        open_files::restore_for(child.id());
        let stdin = child.stdin.take().map(OwnedFd::from);
        let mut group = Group::new(child, live)?;
        bound.pid(Kind::Group, group.pid.as_raw_nonzero().get(), launch.run);
        group.bound = Some(bound);
        let pidfd =
            pidfd_open(group.pid, PidfdFlags::empty()).map_err(|e| lacking("a process descriptor", &e.into()))?;
        Ok((Body::Child(group, pidfd), stdin))
    }

    fn start_in_cell(
        &self,
        sandbox: &Arc<Sandbox>,
        launch: &Launch<'_>,
        prepared: Prepared,
        pipes: &[Pipe; 2],
        live: sweep::Live,
    ) -> Result<(Body, Option<OwnedFd>), Failure> {
        let stdin = launch.feeds_stdin.then(Pipe::new).transpose().map_err(|e| lacking("pipes", &e))?;
        let nothing = stdin.as_ref().map(|pipe| &pipe.read).or(self.nothing.as_ref());
        let nothing = nothing.ok_or_else(|| lacking("an empty input", &std::io::ErrorKind::NotFound.into()))?;
        let stdio = [nothing.as_fd(), pipes[0].write.as_fd(), pipes[1].write.as_fd()];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        // Where a name occurs twice, the later one counts.
        let mut env: Vec<(String, String)> = self.base.iter().map(|(n, v)| owned((n, v))).collect();
        env.extend(launch.env.iter().map(|(n, v)| owned((n, v))));
        env.extend(launch.fixed_env.iter().map(|(n, v)| owned((n, v))));
        env.extend(volumes::variables(launch.place.volumes, View::Cell));
        env.extend([owned((TAG_VAR, self.tag.value())), (RUN_VAR.to_owned(), launch.run.to_string())]);
        let shown = prepared.program.display().to_string();
        let lease = sandbox.take(&launch.place)?;
        let mut run = CellRun::new(lease, shown, live);
        run.bind(launch.stop, launch.run)?;
        let program = CellProgram { program: prepared.program, argv: launch.argv(), env, stdio };
        run.start(program)?;
        Ok((Body::Cell(Box::new(run)), stdin.map(|pipe| pipe.write)))
    }
}

/// Refuses variables that no program can be given.
pub(super) fn check_env(env: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (name, value) in env {
        let bad = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
        if bad || name.len() + value.len() > VARIABLE_LEN_MAX {
            let shown: String = name.chars().take(64).collect();
            return Err(Failure::new(ErrorCode::Invalid, format!("environment variable `{shown}` cannot be set")));
        }
    }
    Ok(())
}

/// The directories of `path` that programs of a cell see.
pub(super) fn shown_path(sandbox: &Sandbox, path: &str) -> String {
    let shown = path.split(':').filter(|dir| sandbox.shows(Path::new(dir)));
    let shown: Vec<&str> = shown.collect();
    if shown.is_empty() { PATH_FALLBACK.to_owned() } else { shown.join(":") }
}

/// Whether a program is named in one of the job's volumes.
fn in_volume(launch: &Launch<'_>, program: &Path) -> bool {
    let plain = !program.components().any(|part| part == std::path::Component::ParentDir);
    plain && launch.place.volumes.iter().any(|volume| program.starts_with(&volume.path))
}

/// Finds a program that is given by a path, or may be among the job's files, under the name that it has in a cell. Nothing is
/// said about files of the host that a cell does not show.
fn in_cell(sandbox: &Sandbox, launch: &Launch<'_>, name: &str, path: &str) -> Result<PathBuf, Failure> {
    let host = launch.place.input.unwrap_or(launch.dir);
    let given = Path::new(name);
    let own = [cell::INPUT, cell::WORK].iter().find_map(|dir| given.strip_prefix(dir).ok());
    let name = match own {
        Some(own) => &format!("./{}", own.display()),
        // Whether it is there shows when it is started.
        None if in_volume(launch, given) => return Ok(given.to_owned()),
        None if given.is_absolute() && !sandbox.shows(given) => return Err(lookup::missing(name)),
        None => name,
    };
    if name.contains('/') && given.components().any(|part| part == std::path::Component::ParentDir) {
        // Whether it is there shows when it is started.
        return Ok(Path::new(cell::WORK).join(given));
    }
    let found = lookup::find(name, host, launch.has_files, path)?;
    let is_own = !given.is_absolute() && found.starts_with(host);
    Ok(if is_own { Path::new(cell::WORK).join(given) } else { found })
}

/// The node lacked something for a task. That is no fault of the task's, and no attempt of it: it is given back.
pub(super) fn lacking(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::Lost, format!("this node could not give the task {what}: {error}"))
}

fn spawn_failure(launch: &Launch<'_>, prepared: &Prepared, error: &std::io::Error) -> Failure {
    if !launch.dir.is_dir() {
        return lacking("its working directory", error);
    }
    not_started(&prepared.program.display().to_string(), error, prepared.program.exists())
}

/// Why `program` could not be started; `found` says whether it was there a moment before.
pub(super) fn not_started(program: &str, error: &std::io::Error, found: bool) -> Failure {
    let why = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) if !found => "it is gone".to_owned(),
        Some(rustix::io::Errno::NOENT) => "it, the interpreter in its first line, or its loader, is missing".to_owned(),
        Some(rustix::io::Errno::NOEXEC) => {
            "it is neither a binary of this machine nor a script with a `#!` line".to_owned()
        }
        Some(rustix::io::Errno::TOOBIG) => "its arguments and environment are longer than the system takes".to_owned(),
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => "this node may not execute it".to_owned(),
        None => error.to_string(),
        Some(
            rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM | rustix::io::Errno::MFILE | rustix::io::Errno::NFILE,
        ) => {
            return lacking(&format!("a process for `{program}`"), error);
        }
        // Something about the program that may pass: its file is being written, for example.
        Some(_) => {
            let message = format!("program `{program}` does not start: {error}");
            return Failure { retryable: true, ..Failure::new(ErrorCode::Invalid, message) };
        }
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
    pub(super) fn new() -> std::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    /// For stdout and stderr.
    pub(super) fn pair() -> std::io::Result<[Self; 2]> {
        Ok([Self::new()?, Self::new()?])
    }
}

/// A child and its process group. Killed and reaped when dropped.
pub(super) struct Group {
    child: Option<Child>,
    pub(super) pid: Pid,
    /// Until it is reaped it is killed when its lease is over.
    pub(super) bound: Option<Bound>,
    _live: sweep::Live,
}

impl Group {
    pub(super) fn new(mut child: Child, mut live: sweep::Live) -> Result<Self, Failure> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::new(ErrorCode::Lost, "the system gave a process id that is none"));
        };
        live.leader(pid);
        Ok(Self { child: Some(child), pid, bound: None, _live: live })
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
        self.bound = None;
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

/// A started process.
#[derive(Debug)]
struct Process {
    body: Body,
    stdin: Option<OwnedFd>,
    pipes: Arc<[Pipe; 2]>,
    shared: Arc<Shared>,
    tag: NodeTag,
    run: u64,
}

impl Execution for Process {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }

    fn drive(self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended {
        let Self { body, stdin, pipes, shared, tag, run } = *self;
        let bare = matches!(body, Body::Child(..));
        let ended = Driver::new(body, stdin, pipes, shared, streams, *limits).run();
        if bare && ended.result.as_ref().is_err_and(|why| why.code != ErrorCode::Exit) {
            // It was ended from outside: what left its group is not to go on until the next sweep.
            sweep::kill_matching(Target::Run(&tag, run));
        }
        ended
    }
}
