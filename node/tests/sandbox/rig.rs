//! What the tests share: a slot whose programs run in cells or bare, and what came of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;
use sinew_crdt_state::spec::{Limits, Program, Resources};
use sinew_node::egress::{Egress, Rules};
use sinew_node::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::outcome::{Failure, Usage};
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::set::NO_CONTENT;
use sinew_node::exec::slot::{Slot, WorkRoot};
use sinew_node::exec::stop::StopHandle;
use sinew_node::exec::task::{TaskContext, run_batch};
use sinew_node::exec::volumes::Mounted;

/// Longest wait for something that happens within milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What fits into a task's `/tmp`.
pub(crate) const TMP_BYTES: u64 = 32 << 20;

/// One slot of one node.
pub(crate) struct Rig {
    pub(crate) slot: Slot,
    pub(crate) runner: ProcessRunner,
    pub(crate) files: JobFiles,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) volumes: Vec<Mounted>,
    pub(crate) limits: Limits,
    pub(crate) resources: Resources,
    pub(crate) network: Network,
    pub(crate) dir: tempfile::TempDir,
    task: u32,
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) result: Result<(), Failure>,
    pub(crate) stdout: String,
    pub(crate) outputs: Vec<String>,
    pub(crate) usage: Usage,
}

impl Ran {
    /// What it printed; it must have ended well.
    pub(crate) fn text(&self) -> &str {
        assert!(self.result.is_ok(), "{self:?}");
        self.stdout.trim()
    }

    pub(crate) fn failure(&self) -> &Failure {
        self.result.as_ref().expect_err("it should have failed")
    }

    pub(crate) fn fails_with(&self, code: ErrorCode) {
        assert_eq!(self.failure().code, code, "{self:?}");
    }
}

pub(crate) fn options() -> SandboxOptions {
    SandboxOptions {
        mode: SandboxMode::Required,
        exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")),
        readable: Vec::new(),
        writable: Vec::new(),
        tmp_bytes: TMP_BYTES,
        memory_bytes: 1 << 30,
        slots: 1,
    }
}

/// Where a daemon that is to be killed notes its tag, in the directory for temporary files that it was given.
const TAG_FILE: &str = "tag";

impl Rig {
    /// For [`remove_groups`].
    pub(crate) fn note_tag(&self) {
        std::fs::write(std::env::temp_dir().join(TAG_FILE), self.runner.tag().value()).expect("tag");
    }

    /// Programs run in cells, with every piece in place.
    pub(crate) fn sandboxed() -> Self {
        Self::with(&options())
    }

    /// The same, with the node's directory in `dir`.
    pub(crate) fn sandboxed_in(dir: tempfile::TempDir) -> Self {
        Self::with_in(&options(), dir)
    }

    pub(crate) fn with(options: &SandboxOptions) -> Self {
        Self::with_in(options, tempfile::tempdir().expect("dir"))
    }

    fn with_in(options: &SandboxOptions, dir: tempfile::TempDir) -> Self {
        Self::at(dir, |tag| {
            let (sandbox, missing) = Sandbox::probe(options.clone(), &tag).expect("a machine that isolates");
            assert!(options.mode != SandboxMode::Required || missing.is_empty(), "{missing:?}");
            ProcessRunner::sandboxed(tag, sandbox.expect("a sandbox"))
        })
    }

    /// Programs run as this test's user and can do what it can.
    pub(crate) fn bare() -> Self {
        Self::at(tempfile::tempdir().expect("dir"), ProcessRunner::new)
    }

    fn at(dir: tempfile::TempDir, runner: impl FnOnce(NodeTag) -> ProcessRunner) -> Self {
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        Self {
            slot: root.slot(0).expect("slot"),
            runner: runner(NodeTag::new(dir.path().to_str().expect("utf-8"))),
            files: JobFiles::none(),
            env: BTreeMap::new(),
            volumes: Vec::new(),
            limits: Limits { timeout_ms: Some(60_000), ..Limits::default() },
            resources: Resources::default(),
            network: Network::default(),
            dir,
            task: 0,
        }
    }

    /// Gives the job files.
    pub(crate) fn place(&mut self, files: &[(&str, &str)]) {
        let mut placing = JobFiles::place_in(&self.slot.root().input("job")).expect("place");
        for (path, text) in files {
            placing.add(path, text.starts_with("#!"), &mut text.as_bytes()).expect("add");
        }
        self.files = placing.finish();
    }

    pub(crate) fn run(&mut self, argv: &[&str]) -> Ran {
        self.run_as("job", argv)
    }

    pub(crate) fn run_as(&mut self, job: &str, argv: &[&str]) -> Ran {
        self.task += 1;
        let stop = StopHandle::new().expect("handle");
        let ctx = TaskContext {
            runner: &self.runner,
            job,
            phase: 0,
            task: self.task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &NO_CONTENT,
            volumes: &self.volumes,
            env: &self.env,
            secrets: None,
            limits: self.limits,
            resources: self.resources,
            network: &self.network,
            grace: Duration::from_millis(200),
            stop: &stop,
            live: None,
            started: None,
        };
        let program = Program::Exec(argv.iter().map(|a| (*a).to_owned()).collect());
        let done = run_batch(&ctx, &mut self.slot, &program, &[]);
        Ran {
            result: done.outcome.result.map(|_| ()),
            stdout: done.stdout.map(|p| std::fs::read_to_string(p).expect("stdout")).unwrap_or_default(),
            outputs: done.outputs.into_iter().map(|o| o.name).collect(),
            usage: done.outcome.usage,
        }
    }

    pub(crate) fn python(&mut self, script: &str) -> Ran {
        self.run(&["python3", "-c", &format!("{PRELUDE}\n{script}")])
    }
}

/// What attempts are written with: `attempt(f)` prints what `f` returned, or that it was refused and with which error.
const PRELUDE: &str = "
import ctypes, errno, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, f):
    try: print(what, 'worked:', f())
    except OSError as e: print(what, 'refused:', errno.errorcode.get(e.errno, e.errno))
def call(name, *args):
    r = name(*args)
    if r < 0: raise OSError(ctypes.get_errno(), 'refused')
    return r
def syscall(*args): return call(libc.syscall, *[ctypes.c_long(a) for a in args])
";

/// Runs a script bare and in a cell; gives what each printed.
pub(crate) fn both(script: &str) -> [String; 2] {
    let bare = Rig::bare().python(script).text().to_owned();
    let sandboxed = Rig::sandboxed().python(script).text().to_owned();
    [bare, sandboxed]
}

/// Every line of `text` tells of a refusal.
pub(crate) fn all_refused(text: &str) {
    assert!(!text.is_empty() && text.lines().all(|line| line.contains(" refused: ")), "{text}");
}

/// Every line of `text` tells of a refusal with this error, which the barrier that is meant gives and a chance failure does not.
pub(crate) fn all_refused_with(errno: &str, text: &str) {
    assert!(
        !text.is_empty() && text.lines().all(|line| line.ends_with(&format!(" refused: {errno}"))),
        "{errno}: {text}"
    );
}

/// Every line of `text` tells of a success.
pub(crate) fn all_worked(text: &str) {
    assert!(!text.is_empty() && text.lines().all(|line| line.contains(" worked: ")), "{text}");
}

/// Processes whose arguments hold `mark`.
pub(crate) fn processes_with(mark: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let own = i32::try_from(std::process::id()).expect("pid");
    let holds = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.windows(mark.len()).any(|w| w == mark.as_bytes())
    };
    pids.filter(|pid| *pid != own).filter(holds).collect()
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file that only its owner may read.
pub(crate) fn secret(path: &Path) {
    std::fs::write(path, "the secret").expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("chmod");
}

/// A policy that allows these hosts.
pub(crate) fn policy(hosts: &[&str]) -> Network {
    let mut network = Network::default();
    hosts.iter().for_each(|host| network.allow(host).expect("host"));
    network
}

/// A runtime for what passes between programs and hosts.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

impl Rig {
    /// Lets programs whose jobs name hosts reach those that these rules allow.
    pub(crate) fn let_out(&self, runtime: &tokio::runtime::Runtime, rules: &[&str]) -> usize {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        let egress = Egress::new(Rules::parse(&rules).expect("rules"), runtime.handle().clone(), 1);
        let connections_max = egress.connections_max();
        self.runner.sandbox().expect("a sandbox").let_out(egress);
        connections_max
    }
}

/// Removes the control groups of a killed daemon that noted its tag in `dir`, as its guardian would, or its next start.
pub(crate) fn remove_groups(dir: &Path) {
    let tag = std::fs::read_to_string(dir.join(TAG_FILE)).expect("tag");
    let mut guardian = std::process::Command::new(env!("CARGO_BIN_EXE_sinew"));
    let guardian = guardian.args(["__guardian", &tag]).stdin(std::process::Stdio::null());
    assert!(guardian.status().expect("guardian").success());
    let left = crate::limits::walk("/sys/fs/cgroup".into(), 6);
    let name = tag.replace(':', "-");
    assert!(!left.iter().any(|dir| dir.to_string_lossy().contains(&name)), "{left:?}");
}
