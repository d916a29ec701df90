//! Starting workers: in a cell where programs run in cells, bare where they run bare.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::json;
use sinew_crdt_state::network::NO_NETWORK;
use sinew_crdt_state::spec::Resources;

use super::PythonOptions;
use super::interpreter::is_name;
use super::worker::{Identity, SCRIPT, Said, Worker, connection};
use crate::egress::needs_sandbox;
use crate::exec::body::{Body, CellRun};
use crate::exec::cell;
use crate::exec::cell::pool::{CellProgram, Fit, Place, Sandbox};
use crate::exec::guardian::{NodeTag, RUN_VAR, TAG_VAR};
use crate::exec::lookup;
use crate::exec::open_files;
use crate::exec::outcome::Failure;
use crate::exec::process::{Group, Pipe, ProcessRunner, lacking, not_started, shown_path};
use crate::exec::runner::{Launch, View};
use crate::exec::sweep::{self, next_run};
use crate::exec::volumes;

/// An interpreter answers in a tenth of a second; on a disk that has just been woken, in a few.
const TRIAL_MAX: Duration = Duration::from_secs(30);
/// The slot of the worker that is tried out: one that no node has.
const TRIAL_SLOT: u32 = 1_000_000;
/// Bytes that its task may write.
const TRIAL_OUTPUT_MAX: u64 = 1 << 20;
/// What an interpreter that does not start may say about it, bytes.
const REASON_MAX: usize = 1_000;
/// A worker that has used this part of its memory, as the inverse, makes room: what it holds of one call it may not need for
/// the next.
const MEMORY_SHARE: u64 = 2;

/// Options of the interpreter: nothing of the variables or the user's directory decides what is imported, nothing is written
/// beside modules, and text is UTF-8 whatever the machine's language.
const FLAGS: [&str; 5] = ["-I", "-B", "-X", "utf8", "-c"];

/// How workers are started on this node.
#[derive(Debug)]
pub(super) struct Starter {
    options: PythonOptions,
    sandbox: Option<Arc<Sandbox>>,
    tag: NodeTag,
    base: Vec<(&'static str, String)>,
    refuses: bool,
    /// Whether modules may come from the job's files.
    takes_files: bool,
}

/// What the worker's script is told at its start.
struct Config {
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

impl Starter {
    pub(super) fn new(options: PythonOptions, process: &ProcessRunner, takes_files: bool) -> Self {
        let (sandbox, tag) = (process.sandbox().cloned(), process.tag().clone());
        let refuses = process.refusal().is_some();
        Self { options, sandbox, tag, base: process.base_env().to_vec(), refuses, takes_files }
    }

    /// Why no worker can be started now, as far as that is the sandbox's.
    pub(super) fn trouble(&self) -> Option<String> {
        self.sandbox.as_ref().and_then(|sandbox| sandbox.trouble())
    }

    /// Whether this node runs no programs at all.
    pub(super) const fn runs_nothing(&self) -> bool {
        self.refuses
    }

    pub(super) const fn view(&self) -> View {
        if self.sandbox.is_some() { View::Cell } else { View::Host }
    }

    pub(super) fn shown(&self) -> String {
        self.options.program().display().to_string()
    }

    /// The interpreter's file, as workers find it.
    pub(super) fn program(&self) -> Result<PathBuf, Failure> {
        let program = self.options.program();
        let own = self.base.iter().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| value.as_str());
        let path = self.sandbox.as_ref().map_or_else(|| own.to_owned(), |sandbox| shown_path(sandbox, own));
        let name = program.to_string_lossy();
        if is_name(&program) {
            return lookup::find(&name, Path::new("/"), false, &path);
        }
        lookup::find(&name, Path::new("/"), false, "")
    }

    /// A worker for this call's job and place.
    pub(super) fn start(&self, launch: &Launch<'_>) -> Result<Worker, Failure> {
        self.start_at(&launch.place, launch.dir, launch.env)
    }

    fn start_at(&self, place: &Place<'_>, dir: &Path, env: &BTreeMap<String, String>) -> Result<Worker, Failure> {
        needs_sandbox(place.network, self.sandbox.is_some())?;
        let program = self.program()?;
        let pipes = Pipe::pair().map_err(|e| lacking("pipes", &e))?;
        let (ours, theirs) = connection().map_err(|e| lacking("a connection to a worker", &e))?;
        let run = next_run();
        // Entered before the process exists, so that a sweep cannot take it for a stray.
        let live = sweep::enter(run);
        let (body, memory_bytes) = match &self.sandbox {
            Some(sandbox) => {
                let lease = sandbox.take(place)?;
                let memory = lease.memory_bytes();
                let config = self.config(&program, place, dir, env, run, memory);
                let mut cell = CellRun::new(lease, program.display().to_string(), live);
                let stdio = [theirs.as_fd(), pipes[0].write.as_fd(), pipes[1].write.as_fd()];
                let started = CellProgram { program, argv: &config.argv, env: config.env, stdio };
                cell.start(started)?;
                (Body::Cell(Box::new(cell)), memory)
            }
            None => {
                let memory = place.resources.memory_bytes;
                let memory = if memory == 0 { u64::MAX } else { memory };
                let config = self.config(&program, place, dir, env, run, memory);
                (bare(&program, &config, dir, theirs, &pipes, live)?, memory)
            }
        };
        let identity = Identity { fit: Fit::of(place), env: env.clone(), memory_bytes, tag: self.tag.clone(), run };
        Ok(Worker::new(body, ours, Arc::new(pipes), identity))
    }

    fn config(
        &self,
        program: &Path,
        place: &Place<'_>,
        dir: &Path,
        env: &BTreeMap<String, String>,
        run: u64,
        memory_bytes: u64,
    ) -> Config {
        let input = place.input.filter(|_| self.takes_files);
        let (input, work) = match &self.sandbox {
            Some(_) => (input.map(|_| Path::new(cell::INPUT)), Path::new(cell::WORK)),
            None => (input, dir),
        };
        let paths: Vec<_> = self.options.paths.iter().map(PathBuf::as_path).chain(input).collect();
        let scratch = |sandbox: &Arc<Sandbox>| {
            [cell::TMP, "/dev/shm"].map(|dir| (dir, !sandbox.shows_below(Path::new(dir)))).to_vec()
        };
        let scratch = self.sandbox.as_ref().map(scratch).unwrap_or_default();
        let rss_kib_max = memory_bytes / MEMORY_SHARE / 1_024;
        let config = json!({ "paths": paths, "work": work, "scratch": scratch, "rss_kib_max": rss_kib_max });
        let words = std::iter::once(program.display().to_string());
        let words = words.chain(FLAGS.map(str::to_owned)).chain([SCRIPT.to_owned(), config.to_string()]);
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        // Where a name occurs twice, the later one counts.
        let mut all: Vec<(String, String)> = self.base.iter().map(|(n, v)| owned((n, v))).collect();
        all.extend(env.iter().map(|(n, v)| owned((n, v))));
        all.extend(volumes::variables(place.volumes, self.view()));
        all.extend([owned((TAG_VAR, self.tag.value())), (RUN_VAR.to_owned(), run.to_string())]);
        Config { argv: words.collect(), env: all }
    }

    /// The version of the interpreter, or why there is none that works.
    pub(super) fn try_out(&self) -> Result<String, String> {
        if let Some(path) = self.options.missing_path() {
            return Err(format!("`python.paths` names {}, which is no directory", path.display()));
        }
        let dir = tempfile::tempdir().map_err(|e| format!("no directory to try it out in: {e}"))?;
        for name in ["work", "output"] {
            std::fs::create_dir(dir.path().join(name)).map_err(|e| format!("no directory to try it out in: {e}"))?;
        }
        let place = Place {
            slot: TRIAL_SLOT,
            dir: dir.path(),
            generation: 0,
            job: "",
            input: None,
            volumes: &[],
            output_max: TRIAL_OUTPUT_MAX,
            resources: Resources::default(),
            network: &NO_NETWORK,
            secrets: None,
        };
        let work = dir.path().join("work");
        let worker = self.start_at(&place, &work, &BTreeMap::new()).map_err(|why| why.message)?;
        // What cannot be sent was not awaited either: it has ended, and shows why.
        let _ = worker.send("{}", None);
        hello(worker).map_err(|why| format!("{}: {why}", self.shown()))
    }
}

fn bare(
    program: &Path,
    config: &Config,
    dir: &Path,
    stdin: OwnedFd,
    pipes: &[Pipe; 2],
    live: sweep::Live,
) -> Result<Body, Failure> {
    let copies = pipes[0].write.try_clone().and_then(|stdout| Ok((stdout, pipes[1].write.try_clone()?)));
    let (stdout, stderr) = copies.map_err(|e| lacking("pipes", &e))?;
    let mut command = Command::new(program);
    command.args(&config.argv[1..]).current_dir(dir).env_clear().envs(config.env.iter().map(|(n, v)| (n, v)));
    command.stdin(stdin).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr)).process_group(0);
    let child = command.spawn().map_err(|e| not_started(&program.display().to_string(), &e, program.exists()))?;
    open_files::restore_for(child.id());
    let group = Group::new(child, live)?;
    let pidfd = pidfd_open(group.pid, PidfdFlags::empty()).map_err(|e| lacking("a process descriptor", &e.into()))?;
    Ok(Body::Child(group, pidfd))
}

/// Waits for a new worker's first word.
fn hello(mut worker: Worker) -> Result<String, String> {
    let deadline = Instant::now() + TRIAL_MAX;
    loop {
        match worker.hear() {
            Said::Reply(reply) => return Ok(reply.message),
            Said::Garbage => return Err("it answers what is no reply".to_owned()),
            Said::Closed => return Err(last_words(&mut worker)),
            Said::Nothing => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("it did not answer within {} s", TRIAL_MAX.as_secs()));
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        // An interruption or an error shows in the next look.
        let _ = poll(&mut [PollFd::from_borrowed_fd(worker.fd(), PollFlags::IN)], Some(&left));
    }
}

/// Why an interpreter ended instead of answering.
fn last_words(worker: &mut Worker) -> String {
    worker.body.end();
    let ended = match worker.body.reap() {
        Ok(reaped) => format!("it ended at once ({})", reaped.status),
        Err(why) => why.message,
    };
    let mut text = vec![0; REASON_MAX];
    let waiting = rustix::io::ioctl_fionread(&worker.pipes[1].read).unwrap_or(0);
    let read = worker.pipes[1].read.try_clone().map(std::fs::File::from);
    let len = if waiting == 0 { 0 } else { read.and_then(|mut file| file.read(&mut text)).unwrap_or(0) };
    let text = String::from_utf8_lossy(&text[..len]);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.map_or(ended.clone(), |line| format!("{ended}: {line}"))
}
