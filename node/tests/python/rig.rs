//! What the tests share: a slot whose functions are called in cells or bare, and what came of a call.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;
use sinew_crdt_state::program::{Params, PythonCall};
use sinew_crdt_state::spec::{Limits, Program, Resources};
use sinew_node::exec::allowlist::Allowlist;
use sinew_node::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::outcome::{Failure, Usage};
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::python::{PythonOptions, PythonRunner};
use sinew_node::exec::runner::{Health, Runner};
use sinew_node::exec::set::{NO_CONTENT, RunnerSet};
use sinew_node::exec::slot::{Slot, WorkRoot};
use sinew_node::exec::stop::{StopHandle, StopReason};
use sinew_node::exec::task::{MapWork, TaskContext, run_batch, run_map};
use sinew_node::exec::volumes::Mounted;
use sinew_node::secrets::job::JobSecrets;

/// Longest wait for something that happens within milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One slot of one node.
pub(crate) struct Rig {
    /// Away while a call has it.
    slot: Option<Slot>,
    pub(crate) runners: RunnerSet,
    pub(crate) files: JobFiles,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: Option<JobSecrets>,
    pub(crate) volumes: Vec<Mounted>,
    pub(crate) limits: Limits,
    pub(crate) resources: Resources,
    pub(crate) network: Network,
    pub(crate) job: &'static str,
    /// Ends the next call once it has written this to stderr.
    pub(crate) stop_at: Option<&'static str>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sandboxed: bool,
    root: WorkRoot,
    task: u32,
}

/// How a call ended and what it left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) result: Result<(), Failure>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) usage: Usage,
}

impl Ran {
    pub(crate) fn good(&self) -> &Self {
        assert!(self.result.is_ok(), "{self:?}");
        self
    }

    /// What it printed; it must have ended well.
    pub(crate) fn text(&self) -> &str {
        self.good().stdout.trim()
    }

    /// What it returned; it must have ended well.
    pub(crate) fn value(&self) -> serde_json::Value {
        let text = self.good().outputs.get("result.json").expect("a result");
        serde_json::from_str(text).expect("json")
    }

    pub(crate) fn failure(&self) -> &Failure {
        self.result.as_ref().expect_err("it should have failed")
    }

    /// It failed like this, and what is said of it holds `part`.
    pub(crate) fn fails(&self, code: ErrorCode, part: &str) -> &Failure {
        let failure = self.failure();
        assert!(failure.code == code && failure.message.contains(part), "{code} {part}: {self:?}");
        failure
    }
}

pub(crate) fn options(python: &PythonOptions) -> SandboxOptions {
    SandboxOptions {
        mode: SandboxMode::Required,
        exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")),
        readable: python.readable(),
        writable: Vec::new(),
        tmp_bytes: 32 << 20,
        memory_bytes: 1 << 30,
        slots: 1,
    }
}

impl Rig {
    /// Functions are called in cells, with every piece in place.
    pub(crate) fn sandboxed() -> Self {
        Self::with(&PythonOptions::default(), None)
    }

    pub(crate) fn with(python: &PythonOptions, allowed: Option<Allowlist>) -> Self {
        Self::made(python, true, |tag| {
            let (sandbox, missing) = Sandbox::probe(options(python), &tag).expect("a machine that isolates");
            assert!(missing.is_empty(), "{missing:?}");
            ProcessRunner::sandboxed(tag, sandbox.expect("a sandbox")).only(allowed)
        })
    }

    /// Functions are called as this test's user and can do what it can.
    pub(crate) fn bare() -> Self {
        Self::made(
            &PythonOptions { interpreter: Some("/usr/bin/python3".into()), ..PythonOptions::default() },
            false,
            ProcessRunner::new,
        )
    }

    /// What marks the processes of this node.
    pub(crate) fn tag(&self) -> NodeTag {
        self.runners.process().tag().clone()
    }

    /// Both ways.
    pub(crate) fn each() -> [Self; 2] {
        [Self::sandboxed(), Self::bare()]
    }

    fn made(python: &PythonOptions, sandboxed: bool, process: impl FnOnce(NodeTag) -> ProcessRunner) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        let process = process(NodeTag::new(dir.path().to_str().expect("utf-8")));
        let runner = PythonRunner::new(python.clone(), &process);
        assert!(matches!(runner.health(), Health::Unavailable(_)), "not before it was tried out");
        runner.try_out();
        assert_eq!(runner.health(), Health::Ready);
        Self {
            slot: Some(root.slot(0).expect("slot")),
            root,
            runners: RunnerSet::new(process).with(Arc::new(runner)),
            files: JobFiles::none(),
            env: BTreeMap::new(),
            secrets: None,
            volumes: Vec::new(),
            limits: Limits { timeout_ms: Some(60_000), ..Limits::default() },
            resources: Resources::default(),
            network: Network::default(),
            job: "job",
            stop_at: None,
            dir,
            sandboxed,
            task: 0,
        }
    }

    /// Gives the job a module `m` with this text.
    pub(crate) fn module(mut self, text: &str) -> Self {
        self.place(&[("m.py", text)]);
        self
    }

    /// Gives the job files.
    pub(crate) fn place(&mut self, files: &[(&str, &str)]) {
        self.task += 1;
        let input = self.root.input(&format!("{}-{}", self.job, self.task));
        let mut placing = JobFiles::place_in(&input).expect("place");
        for (path, text) in files {
            placing.add(path, false, &mut text.as_bytes()).expect("add");
        }
        self.files = placing.finish();
    }

    fn context<'a>(&'a self, log: &'a Watch<'a>) -> TaskContext<'a> {
        TaskContext {
            runner: &self.runners,
            job: self.job,
            phase: 0,
            task: self.task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &NO_CONTENT,
            volumes: &self.volumes,
            env: self.secrets.as_ref().map_or(&self.env, JobSecrets::env),
            secrets: self.secrets.as_ref(),
            limits: self.limits,
            resources: self.resources,
            network: &self.network,
            grace: Duration::from_millis(200),
            stop: log.stop,
            live: Some(log),
            started: None,
        }
    }

    /// Calls a function without parameters.
    pub(crate) fn call(&mut self, call: &str) -> Ran {
        self.call_with(call, "{}")
    }

    pub(crate) fn call_with(&mut self, call: &str, params: &str) -> Ran {
        self.run(&python(call, params))
    }

    pub(crate) fn run(&mut self, program: &Program) -> Ran {
        self.task += 1;
        let stop = StopHandle::new().expect("handle");
        let log = Watch { stop: &stop, at: self.stop_at };
        let mut slot = self.slot.take().expect("a slot");
        let done = run_batch(&self.context(&log), &mut slot, program, &[]);
        self.slot = Some(slot);
        let read = |path: Option<PathBuf>| {
            path.map(|p| String::from_utf8_lossy(&std::fs::read(p).expect("log")).into_owned()).unwrap_or_default()
        };
        let file = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        Ran {
            result: done.outcome.result.map(|_| ()),
            stdout: read(done.stdout),
            stderr: read(done.stderr),
            outputs: done.outputs.into_iter().map(|o| (o.name, file(&o.path))).collect(),
            usage: done.outcome.usage,
        }
    }

    /// Calls a function as a mapper of one partition; the sorted lines.
    pub(crate) fn map(&mut self, call: &str, input: &str) -> Result<String, Failure> {
        self.task += 1;
        let stop = StopHandle::new().expect("handle");
        let log = Watch { stop: &stop, at: None };
        let mut slot = self.slot.take().expect("a slot");
        let map = python(call, "{}");
        let work = MapWork { map: &map, combine: None, partitions: 1, sort_budget: 1 << 20 };
        let done = run_map(&self.context(&log), &mut slot, &work, &mut input.as_bytes());
        self.slot = Some(slot);
        done.outcome.result?;
        let (path, index) = done.output.expect("output");
        let range = index.range_of(0).expect("a partition");
        let mut file = std::fs::File::open(path).expect("open");
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(range.start)).expect("seek");
        let mut text = String::new();
        file.take(range.end - range.start).read_to_string(&mut text).expect("read");
        Ok(text)
    }
}

pub(crate) fn python(call: &str, params: &str) -> Program {
    Program::Python(PythonCall { call: call.to_owned(), params: Params::Json(params.to_owned()) })
}

/// Looks on, and ends the call when it is where the test wants it.
struct Watch<'a> {
    stop: &'a StopHandle,
    at: Option<&'static str>,
}

impl sinew_node::exec::logs::LiveLog for Watch<'_> {
    fn see(&self, _stream: sinew_node::exec::logs::LogStream, bytes: &[u8]) {
        if self.at.is_some_and(|at| String::from_utf8_lossy(bytes).contains(at)) {
            self.stop.stop(StopReason::Cancelled);
        }
    }
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes whose environment holds `mark`.
pub(crate) fn processes_with(mark: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        text.windows(mark.len()).any(|w| w == mark.as_bytes())
    };
    pids.filter(holds).collect()
}
