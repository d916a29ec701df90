//! What a slot's thread calls to run one task: a batch task, a map task or a reduce task. Each call runs the program under its
//! limits and leaves files that the caller stores elsewhere and then deletes with [`super::slot::WorkRoot`]. Nothing here
//! retries, reports or talks to anybody.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sinew_crdt_state::network::Network;
use sinew_crdt_state::spec::{Builtin, Limits, Phase, Program, Resources};

use super::builtin;
use super::cell;
use super::cell::pool::Place;
use super::files::{self, JobFiles, OutputFile};
use super::logs::{FileSink, LiveLog, Log, LogStream, STDERR_LOG_MAX};
use super::mapfile::{MapFile, MapIndex};
use super::merge::{Input, MergeReader};
use super::outcome::{Failure, Success, TaskOutcome, Usage};
use super::outputs::{Left, outputs};
use super::runner::{Control, Ended, Launch, RunLimits, Runner, Sink, Streams, View};
use super::set::Content;
use super::shuffle::{ShuffleConfig, Shuffler};
use super::slot::{Slot, make};
use super::stop::StopHandle;
use super::sweep::next_run;
use super::unlinked::{Holders, Unlinked};
use super::volumes::Mounted;
use crate::secrets::job::JobSecrets;
use crate::secrets::redact::Redacting;

/// Everything about an attempt except its data.
#[derive(Clone, Copy)]
pub struct TaskContext<'a> {
    /// What executes programs.
    pub runner: &'a dyn Runner,
    /// The job's id, as printed.
    pub job: &'a str,
    /// The phase's number.
    pub phase: Phase,
    /// The task's number.
    pub task: u32,
    /// The attempt's number on this node: names its directory.
    pub attempt: u64,
    /// Which attempt of the task it is, counted from 1 over all nodes.
    pub number: u32,
    /// The fence that it was awarded under, term and epoch, for resources that can refuse an older one.
    pub fence: (u32, u32),
    /// The job's files.
    pub files: &'a JobFiles,
    /// Where the content of its programs is.
    pub content: &'a Content,
    /// Directories of this node that it has.
    pub volumes: &'a [Mounted],
    /// The job's variables, with those that are secrets.
    pub env: &'a BTreeMap<String, String>,
    /// The job's secrets.
    pub secrets: Option<&'a JobSecrets>,
    /// What it may use.
    pub limits: Limits,
    /// What it reserves, and in a sandbox is held to.
    pub resources: Resources,
    /// What its programs may connect to.
    pub network: &'a Network,
    /// Between asking it to end and killing it.
    pub grace: Duration,
    /// Ends it.
    pub stop: &'a StopHandle,
    /// Who watches.
    pub live: Option<&'a dyn LiveLog>,
    /// Told of each program that starts, for status and live statistics.
    pub started: Option<&'a (dyn Fn(Arc<dyn Control>) + Sync)>,
}

impl fmt::Debug for TaskContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskContext({} {}-{}-{})", self.job, self.phase, self.task, self.attempt)
    }
}

/// How a batch task ended and what it left.
#[derive(Debug)]
pub struct BatchDone {
    /// How it ended.
    pub outcome: TaskOutcome,
    /// The kept files of its output directory, if it succeeded.
    pub outputs: Vec<OutputFile>,
    /// A file with the encoded [`sinew_blobs::Tree`] of its output directory, where that has more to say than the files.
    pub tree: Option<PathBuf>,
    /// Its stdout, unless empty.
    pub stdout: Option<PathBuf>,
    /// Its stderr, unless empty.
    pub stderr: Option<PathBuf>,
}

/// How a map task ended and what it left.
#[derive(Debug)]
pub struct MapDone {
    /// How it ended.
    pub outcome: TaskOutcome,
    /// The map output and its index, if it succeeded.
    pub output: Option<(PathBuf, MapIndex)>,
    /// Its stderr, unless empty.
    pub stderr: Option<PathBuf>,
}

/// How a reduce task ended and what it left.
#[derive(Debug)]
pub struct ReduceDone {
    /// How it ended.
    pub outcome: TaskOutcome,
    /// The partition's results, if it succeeded; the file may be empty.
    pub output: Option<OutputFile>,
    /// Its stderr, unless empty.
    pub stderr: Option<PathBuf>,
}

/// What a map task does besides mapping.
#[derive(Debug, Clone, Copy)]
pub struct MapWork<'a> {
    /// The mapper.
    pub map: &'a Program,
    /// The combiner.
    pub combine: Option<&'a Program>,
    /// How many partitions.
    pub partitions: u32,
    /// Bytes sorted in memory.
    pub sort_budget: usize,
}

/// Runs a batch task. `keep` are the output paths to keep; empty keeps all.
pub fn run_batch(ctx: &TaskContext<'_>, slot: &mut Slot, program: &Program, keep: &[String]) -> BatchDone {
    run_one(ctx, slot, program, keep, "batch")
}

/// Runs a job's gather command, with all that it leaves.
pub fn run_gather(ctx: &TaskContext<'_>, slot: &mut Slot, program: &Program) -> BatchDone {
    run_one(ctx, slot, program, &[], "gather")
}

fn run_one(
    ctx: &TaskContext<'_>,
    slot: &mut Slot,
    program: &Program,
    keep: &[String],
    role: &'static str,
) -> BatchDone {
    let dir = ctx.attempt_dir(slot);
    let mut stdout = Log::new(&dir, LogStream::Stdout, ctx.live, u64::MAX).redacting(ctx.redacting());
    let mut stderr = Log::new(&dir, LogStream::Stderr, ctx.live, u64::MAX).redacting(ctx.redacting());
    let mut attempt = Attempt::new(ctx, role);
    let (mut left, mut tree) = (Left::default(), None);
    let result = attempt.run(slot, program, None, &mut stdout, &mut stderr);
    let result = result.and(stdout.finish()).and(stderr.finish()).and_then(|()| {
        left = attempt.keep_outputs(slot, &dir, keep)?;
        tree = keep_tree(&dir, &left)?;
        Ok(())
    });
    let outcome = attempt.end(slot, result);
    BatchDone { outcome, outputs: left.files, tree, stdout: stdout.path(), stderr: stderr.path() }
}

/// Writes down what files alone do not say of an output directory.
fn keep_tree(dir: &Path, left: &Left) -> Result<Option<PathBuf>, Failure> {
    if left.tree.is_empty() {
        return Ok(None);
    }
    let path = dir.join("tree");
    let written = make(dir).and_then(|()| std::fs::write(&path, left.tree.encode()));
    written.map_err(|e| Failure::storage("keep what links and directories are in output/", &e))?;
    Ok(Some(path))
}

/// Runs a map task over `input`, one chunk's bytes.
pub fn run_map(ctx: &TaskContext<'_>, slot: &mut Slot, work: &MapWork<'_>, input: &mut (dyn Read + Send)) -> MapDone {
    let dir = ctx.attempt_dir(slot);
    let mut stderr = Log::new(&dir, LogStream::Stderr, ctx.live, STDERR_LOG_MAX).redacting(ctx.redacting());
    let mut attempt = Attempt::new(ctx, "map");
    let path = dir.join("map-output");
    let result = attempt.map(slot, work, input, &path, &mut stderr);
    let (result, index) = split(result);
    let result = result.and(stderr.finish());
    let outcome = attempt.end(slot, result);
    let index = index.filter(|_| outcome.result.is_ok());
    MapDone { outcome, output: index.map(|index| (path, index)), stderr: stderr.path() }
}

/// Runs a reduce task over the sorted lines of one partition, one input from each map task.
pub fn run_reduce(ctx: &TaskContext<'_>, slot: &mut Slot, reduce: &Program, inputs: Vec<Input>) -> ReduceDone {
    let dir = ctx.attempt_dir(slot);
    let mut stderr = Log::new(&dir, LogStream::Stderr, ctx.live, STDERR_LOG_MAX).redacting(ctx.redacting());
    let mut attempt = Attempt::new(ctx, "reduce");
    let path = dir.join("result");
    let (result, size) = split(attempt.reduce(slot, reduce, inputs, &path, &mut stderr));
    let result = result.and(stderr.finish());
    let outcome = attempt.end(slot, result);
    let size = size.filter(|_| outcome.result.is_ok());
    let output = size.map(|size| OutputFile { name: "result".to_owned(), path, size });
    ReduceDone { outcome, output, stderr: stderr.path() }
}

fn split<T>(result: Result<T, Failure>) -> (Result<(), Failure>, Option<T>) {
    match result {
        Ok(value) => (Ok(()), Some(value)),
        Err(failure) => (Err(failure), None),
    }
}

impl TaskContext<'_> {
    /// Takes secrets out of what is printed, if there are any.
    fn redacting(&self) -> Option<Redacting> {
        Some(self.secrets?.redactor()?.stream())
    }

    fn attempt_dir(&self, slot: &Slot) -> PathBuf {
        slot.root().attempt(self.job, self.phase, self.task, self.attempt)
    }
}

/// One attempt under way: what it used so far and what it may still use.
struct Attempt<'a> {
    ctx: &'a TaskContext<'a>,
    role: &'static str,
    began: Instant,
    usage: Usage,
}

impl<'a> Attempt<'a> {
    fn new(ctx: &'a TaskContext<'a>, role: &'static str) -> Self {
        Self { ctx, role, began: Instant::now(), usage: Usage::default() }
    }

    fn limits(&self) -> RunLimits {
        let timeout = self.ctx.limits.timeout_ms.map(Duration::from_millis);
        RunLimits {
            began: self.began,
            // A limit too far away for the clock is none.
            deadline: timeout.and_then(|t| self.began.checked_add(t)),
            output_max: self.ctx.limits.output_bytes_max,
            output_before: self.usage.output_bytes,
            grace: self.ctx.grace,
        }
    }

    /// Runs one program in the slot.
    fn run(
        &mut self,
        slot: &mut Slot,
        program: &Program,
        input: Option<&mut (dyn Read + Send)>,
        stdout: &mut dyn Sink,
        stderr: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let limits = self.limits();
        let ended = match program {
            Program::Builtin(builtin) => builtin::run(builtin, input, stdout, &limits, self.ctx.stop),
            program => self.execute(slot, program, input, stdout, stderr, &limits)?,
        };
        self.usage.add(ended.usage);
        ended.result
    }

    fn execute(
        &self,
        slot: &mut Slot,
        program: &Program,
        input: Option<&mut (dyn Read + Send)>,
        stdout: &mut dyn Sink,
        stderr: &mut dyn Sink,
        limits: &RunLimits,
    ) -> Result<Ended, Failure> {
        let ctx = self.ctx;
        if let Some(reason) = ctx.stop.reason() {
            return Err(reason.failure());
        }
        let view = ctx.runner.view(program);
        // Before the directories are this job's: nothing of another is to see them.
        ctx.runner.make_way(slot.number(), ctx.job, program);
        let changed = slot.change_job(ctx.job);
        changed
            .and_then(|()| slot.prepare(ctx.files, view))
            .map_err(|e| Failure::storage("prepare the working directory", &e))?;
        let fixed_env = self.variables(slot, view)?;
        let launch = Launch {
            program,
            content: program.content().and_then(|blob| ctx.content.get(&blob.hash)).map(PathBuf::as_path),
            task: ctx.task,
            dir: slot.work(),
            place: Place {
                volumes: ctx.volumes,
                secrets: ctx.secrets,
                ..slot.place(ctx.job, ctx.files, ctx.limits.output_bytes_max, ctx.resources, ctx.network)
            },
            has_files: ctx.files.dir().is_some(),
            env: ctx.env,
            fixed_env: &fixed_env,
            run: next_run(),
            feeds_stdin: input.is_some(),
            limits: *limits,
            stop: ctx.stop,
        };
        let prepared = ctx.runner.prepare(&launch)?;
        let mut limits = *limits;
        limits.cap(prepared.caps);
        let execution = ctx.runner.start(&launch, prepared)?;
        if let Some(started) = ctx.started {
            started(execution.control());
        }
        #[expect(clippy::needless_match, reason = "the lifetime inside an Option does not shorten by itself")]
        let stdin: Option<&mut (dyn Read + Send)> = match input {
            Some(input) => Some(input),
            None => None,
        };
        let inside = (view == View::Cell).then(|| Path::new(cell::JOB));
        let mut unlinked = Unlinked::below(inside, slot.job());
        let mut elsewhere = |holders: Holders<'_>| {
            slot.check_disk()?;
            let work = files::size_under(slot.work(), slot.links())?;
            let shown = files::size_under(slot.output(), 0)?.saturating_add(work);
            Ok(shown.saturating_add(unlinked.bytes(holders)))
        };
        Ok(execution.drive(Streams { stdin, stdout, stderr, elsewhere: Some(&mut elsewhere) }, &limits))
    }

    fn variables(&self, slot: &Slot, view: View) -> Result<Vec<(&'static str, String)>, Failure> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let input = self.ctx.files.dir();
        let (input, output) = match view {
            View::Host => (text(input.unwrap_or_else(|| slot.work())), text(slot.output())),
            View::Cell => (input.map_or(cell::WORK, |_| cell::INPUT).to_owned(), cell::OUTPUT.to_owned()),
        };
        let secrets = match (self.ctx.secrets, view) {
            (Some(secrets), View::Host) => secrets.dir(slot.number(), None)?.map(|dir| text(&dir)),
            (Some(secrets), View::Cell) => (!secrets.files().is_empty()).then(|| cell::SECRETS.to_owned()),
            (None, _) => None,
        };
        let mut all = vec![
            ("SINEW_JOB", self.ctx.job.to_owned()),
            ("SINEW_TASK", self.ctx.task.to_string()),
            ("SINEW_PHASE", self.role.to_owned()),
            ("SINEW_ATTEMPT", self.ctx.number.to_string()),
            ("SINEW_FENCE", format!("{}.{}", self.ctx.fence.0, self.ctx.fence.1)),
            ("SINEW_INPUT", input),
            ("SINEW_OUTPUT", output),
        ];
        all.extend(secrets.map(|dir| ("SINEW_SECRETS", dir)));
        Ok(all)
    }

    fn keep_outputs(&mut self, slot: &mut Slot, dir: &Path, keep: &[String]) -> Result<Left, Failure> {
        if !slot.has_output() {
            return if keep.is_empty() { Ok(Left::default()) } else { outputs(slot.output(), keep) };
        }
        let elsewhere = files::size_under(slot.output(), 0)?;
        self.usage.output_bytes = self.usage.output_bytes.saturating_add(elsewhere);
        if self.usage.output_bytes > self.ctx.limits.output_bytes_max {
            return Err(Failure::over_output_cap(self.ctx.limits.output_bytes_max));
        }
        let kept = dir.join("output");
        slot.move_output(&kept).map_err(|e| Failure::storage("keep the output directory", &e))?;
        outputs(&kept, keep)
    }

    fn map(
        &mut self,
        slot: &mut Slot,
        work: &MapWork<'_>,
        input: &mut (dyn Read + Send),
        path: &Path,
        stderr: &mut Log<'_>,
    ) -> Result<MapIndex, Failure> {
        let config = ShuffleConfig {
            partitions: work.partitions,
            budget: work.sort_budget,
            scratch: slot.scratch().to_owned(),
            sum: matches!(work.combine, Some(Program::Builtin(Builtin::Sum))),
        };
        let mut shuffler = Shuffler::new(config.clone());
        self.run(slot, work.map, Some(input), &mut shuffler, stderr)?;
        match work.combine {
            Some(combine) if !config.sum => {
                let scratch = tempfile::tempfile_in(slot.scratch());
                let file = scratch.map_err(|e| Failure::storage("create a sort file", &e))?;
                let mapped = shuffler.finish_file(file)?;
                let mut combined = Shuffler::new(config);
                self.combine(slot, combine, &mapped, &mut combined, stderr)?;
                self.finish(combined, path)
            }
            _ => self.finish(shuffler, path),
        }
    }

    /// Gives the combiner each partition's sorted lines, as a reducer would get them. What it prints is shuffled anew: keys
    /// that it changed go where they belong.
    fn combine(
        &mut self,
        slot: &mut Slot,
        program: &Program,
        mapped: &MapFile,
        combined: &mut Shuffler,
        stderr: &mut Log<'_>,
    ) -> Result<(), Failure> {
        for (partition, entry) in (0_u32..).zip(mapped.index.entries()) {
            if entry.len > 0 {
                let mut lines = mapped.partition(partition);
                self.run(slot, program, Some(&mut lines), combined, stderr)?;
                combined.end_line()?;
            }
        }
        Ok(())
    }

    fn finish(&self, shuffler: Shuffler, path: &Path) -> Result<MapIndex, Failure> {
        if let Some(dir) = path.parent() {
            make(dir).map_err(|e| Failure::storage("make the attempt's directory", &e))?;
        }
        let index = shuffler.finish_at(path)?;
        // Sorting is not interrupted, so a wish or a deadline that passed meanwhile is heeded here.
        self.check()?;
        Ok(index)
    }

    fn check(&self) -> Result<(), Failure> {
        if let Some(reason) = self.ctx.stop.reason() {
            return Err(reason.failure());
        }
        let limits = self.limits();
        if limits.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(limits.timeout_failure());
        }
        Ok(())
    }

    fn reduce(
        &mut self,
        slot: &mut Slot,
        program: &Program,
        inputs: Vec<Input>,
        path: &Path,
        stderr: &mut Log<'_>,
    ) -> Result<u64, Failure> {
        if let Some(dir) = path.parent() {
            make(dir).map_err(|e| Failure::storage("make the attempt's directory", &e))?;
        }
        let file = File::options().write(true).create_new(true).open(path);
        let mut sink = FileSink(file.map_err(|e| Failure::storage("create the result file", &e))?);
        let mut merged = MergeReader::new(inputs, slot.scratch())?;
        self.run(slot, program, Some(&mut merged), &mut sink, stderr)?;
        let meta = sink.0.metadata().map_err(|e| Failure::storage("read the result file", &e))?;
        Ok(meta.len())
    }

    fn end(mut self, slot: &mut Slot, result: Result<(), Failure>) -> TaskOutcome {
        self.usage.wall_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let tidied = slot.tidy(result.is_err()).map_err(|e| Failure::storage("clean the working directory", &e));
        let result = result.and(tidied).map(|()| Success);
        TaskOutcome { result, usage: self.usage }
    }
}
