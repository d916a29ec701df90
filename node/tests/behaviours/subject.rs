//! A runner with a program for each behaviour, and a slot in which its tasks run.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::NO_NETWORK;
use sinew_crdt_state::spec::{Limits, Program, Resources};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::outcome::{Failure, Usage};
use sinew_node::exec::runner::{Control, Runner};
use sinew_node::exec::set::Content;
use sinew_node::exec::slot::{Slot, WorkRoot};
use sinew_node::exec::stop::StopHandle;
use sinew_node::exec::task::{MapWork, TaskContext, run_batch, run_map};
use sinew_node::exec::volumes::Mounted;

/// Longest wait for something that happens within milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The memory that a subject's programs may use.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

/// What a program of a subject does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Nothing, successfully.
    Succeed,
    /// Writes `that was wrong` to stderr and exits with status 3.
    ExitThree,
    /// Prints `hello` and ends the line.
    Print,
    /// Copies stdin to stdout.
    CopyStdin,
    /// Copies `in.txt` of its input directory to `out.txt` of its output directory.
    CopyFile,
    /// Prints all its variables.
    ShowVariables,
    /// Uses the processor for ever.
    Spin,
    /// Writes `here` to stderr and then waits for ever.
    Linger,
    /// Uses more memory than it may.
    Devour,
    /// Writes to stdout for ever.
    FillStdout,
    /// Writes to a file of its output directory for ever.
    FillFile,
    /// Cannot do anything: it is not there.
    NotExist,
}

/// A runner and its programs. To add one: implement this in a file of its own and call `contract!` there.
pub(crate) trait Subject {
    /// The runner.
    fn runner(&self) -> Arc<dyn Runner>;

    /// A program of its kind.
    fn program(&self, does: Does) -> Program;

    /// Where the content of its programs is.
    fn content(&self) -> Content {
        Content::new()
    }

    /// Whether its programs are held to their memory.
    fn limits_memory(&self) -> bool {
        true
    }

    /// Whether it is known before a program starts that it is not there.
    fn knows_absence(&self) -> bool {
        true
    }

    /// Whether what a running program uses is known at once, not only in the end.
    fn knows_stats(&self) -> bool {
        true
    }
}

/// How a program ended and what it left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) result: Result<(), Failure>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// Names and contents of its output files.
    pub(crate) outputs: Vec<(String, Vec<u8>)>,
    pub(crate) usage: Usage,
}

impl Ran {
    /// What it printed; it must have ended well.
    pub(crate) fn text(&self) -> String {
        assert!(self.result.is_ok(), "{:?}", self.result);
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Why it failed; it must have, with this code.
    pub(crate) fn fails_with(&self, code: ErrorCode) -> &Failure {
        let failure = self.result.as_ref().expect_err("it should have failed");
        assert_eq!(failure.code, code, "{failure:?}");
        failure
    }
}

/// One slot of one node.
pub(crate) struct Bench {
    /// There, except while a task runs in it.
    slot: Option<Slot>,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) content: Content,
    pub(crate) files: JobFiles,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) volumes: Vec<Mounted>,
    pub(crate) limits: Limits,
    pub(crate) resources: Resources,
    pub(crate) dir: tempfile::TempDir,
    /// The job, and the task that ran last.
    pub(crate) job: String,
    pub(crate) task: u32,
}

impl Bench {
    pub(crate) fn new(runner: Arc<dyn Runner>, content: Content) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        Self {
            slot: Some(root.slot(0).expect("slot")),
            runner,
            content,
            files: JobFiles::none(),
            env: BTreeMap::new(),
            volumes: Vec::new(),
            limits: Limits { timeout_ms: Some(120_000), ..Limits::default() },
            resources: Resources { memory_bytes: MEMORY_BYTES, ..Resources::default() },
            dir,
            job: "job".to_owned(),
            task: 0,
        }
    }

    pub(crate) fn of(subject: &impl Subject) -> Self {
        Self::new(subject.runner(), subject.content())
    }

    /// Gives the job files.
    pub(crate) fn place(&mut self, files: &[(&str, &[u8])]) {
        let mut placing = JobFiles::place_in(&self.slot().root().input("job")).expect("place");
        for (path, bytes) in files {
            placing.add(path, false, &mut &bytes[..]).expect("add");
        }
        self.files = placing.finish();
    }

    fn context<'a>(
        &'a self,
        stop: &'a StopHandle,
        started: Option<&'a (dyn Fn(Arc<dyn Control>) + Sync)>,
    ) -> TaskContext<'a> {
        TaskContext {
            runner: &*self.runner,
            job: &self.job,
            phase: 0,
            task: self.task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &self.content,
            volumes: &self.volumes,
            env: &self.env,
            secrets: None,
            limits: self.limits,
            resources: self.resources,
            network: &NO_NETWORK,
            grace: Duration::from_millis(200),
            stop,
            live: None,
            started,
        }
    }

    pub(crate) fn run(&mut self, program: &Program) -> Ran {
        let stop = StopHandle::new().expect("handle");
        self.watched(program, &stop, None)
    }

    pub(crate) fn watched(
        &mut self,
        program: &Program,
        stop: &StopHandle,
        started: Option<&(dyn Fn(Arc<dyn Control>) + Sync)>,
    ) -> Ran {
        self.task = self.task.wrapping_add(1);
        let mut slot = self.slot.take().expect("no task runs");
        let done = run_batch(&self.context(stop, started), &mut slot, program, &[]);
        self.slot = Some(slot);
        let read = |path: &PathBuf| std::fs::read(path).expect("what it left");
        Ran {
            result: done.outcome.result.map(|_| ()),
            stdout: done.stdout.as_ref().map(read).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&done.stderr.as_ref().map(read).unwrap_or_default()).into_owned(),
            outputs: done.outputs.iter().map(|o| (o.name.clone(), read(&o.path))).collect(),
            usage: done.outcome.usage,
        }
    }

    /// The slot's directories.
    pub(crate) fn slot(&self) -> &Slot {
        self.slot.as_ref().expect("no task runs")
    }

    /// Runs it as a mapper over `input`; gives the lines that it printed, sorted.
    pub(crate) fn map(&mut self, program: &Program, mut input: &[u8]) -> Vec<Vec<u8>> {
        self.task = self.task.wrapping_add(1);
        let stop = StopHandle::new().expect("handle");
        let mut slot = self.slot.take().expect("no task runs");
        let work = MapWork { map: program, combine: None, partitions: 1, sort_budget: 64 << 20 };
        let done = run_map(&self.context(&stop, None), &mut slot, &work, &mut input);
        self.slot = Some(slot);
        done.outcome.result.expect("mapped");
        let (path, index) = done.output.expect("an output");
        let range = index.range_of(0).expect("a partition");
        let bytes = std::fs::read(path).expect("read");
        let [from, to] = [range.start, range.end].map(|at| usize::try_from(at).expect("small"));
        bytes[from..to].split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    }
}

/// Waits for a condition.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of all files below `dir`.
pub(crate) fn bytes_under(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_under(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
            _ => 0,
        })
        .sum()
}

/// So many lines, sorted.
pub(crate) fn lines(count: u32) -> Vec<u8> {
    let mut text = Vec::new();
    std::io::repeat(b'x').take(20).read_to_end(&mut text).expect("memory");
    let filler = String::from_utf8(text).expect("ascii");
    (0..count).flat_map(|n| format!("{n:08} {filler}\n").into_bytes()).collect()
}
