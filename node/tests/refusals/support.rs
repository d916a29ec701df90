//! What these tests share: real daemons on loopback, the real command line with a deadline, and waiting for conditions.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sinew_node::api::client::Client;
use sinew_node::daemon::STDIN_VAR;
use sinew_node::datadir::DataDir;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions};
use tempfile::TempDir;

/// The program under test.
pub(crate) const SINEW: &str = env!("CARGO_BIN_EXE_sinew");
/// Far longer than anything here takes; what waits this long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(POLL);
    }
}

/// [`until`] for things that have to be asked for.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts the exit code, and that stderr holds each of `parts`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, code, "{self}");
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in: {self}");
        }
        self
    }

    /// Asserts success.
    #[track_caller]
    pub(crate) fn done(&self) -> &Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.stdout[..self.stdout.len().min(1_000)];
        write!(f, "exit {}, stderr:\n{}\nstdout:\n{}", self.code, self.stderr, String::from_utf8_lossy(shown))
    }
}

/// A command that runs; killed if the test ends first.
pub(crate) struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("sinew starts");
        let stdout = child.stdout.take().map(reader);
        let stderr = child.stderr.take().map(reader);
        Self { child, stdout, stderr }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    pub(crate) fn wait(mut self) -> Ran {
        let status = until("the command ends", || self.child.try_wait().expect("our child"));
        let text = |end: Option<JoinHandle<Vec<u8>>>| end.map(|t| t.join().expect("reads")).unwrap_or_default();
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        // A signal as shells report it.
        let code = status.code().or_else(|| std::os::unix::process::ExitStatusExt::signal(&status).map(|s| 128 + s));
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ran { code: code.expect("exited or killed"), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// `sinew ARGS` on `data_dir`, run in `cwd`.
pub(crate) fn command(data_dir: &Path, cwd: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(SINEW);
    command.args(args).env("SINEW_DATA_DIR", data_dir).current_dir(cwd);
    command
}

/// Runs `sinew ARGS` to its end.
pub(crate) fn sinew(data_dir: &Path, cwd: &Path, args: &[&str]) -> Ran {
    Running::start(command(data_dir, cwd, args)).wait()
}

/// One daemon on a data dir of the test's choice.
pub(crate) struct Daemon {
    pub(crate) data_dir: PathBuf,
    pub(crate) scratch: TempDir,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// A new mesh of one node with two cores.
    pub(crate) fn start() -> Self {
        let scratch = tempfile::tempdir().expect("scratch");
        let data_dir = scratch.path().join("node");
        Self::start_at(scratch, data_dir)
    }

    pub(crate) fn start_at(scratch: TempDir, data_dir: PathBuf) -> Self {
        sinew(&data_dir, scratch.path(), &["init"]).done();
        let log = scratch.path().join("log");
        let shared = scratch.path().join("shared");
        std::fs::create_dir_all(&shared).expect("mkdir");
        std::fs::set_permissions(&shared, Permissions::from_mode(0o777)).expect("chmod");
        let mut daemon = Self { data_dir, scratch, log, child: None };
        daemon.up();
        daemon
    }

    pub(crate) fn up(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("log");
        let shared = self.shared().to_string_lossy().into_owned();
        let args =
            ["up", "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns", "--cpus", "2", "--sandbox-writable", &shared];
        let mut command = command(&self.data_dir, self.scratch.path(), &args);
        command.env(STDIN_VAR, "1").stdin(Stdio::piped()).stdout(log.try_clone().expect("log")).stderr(log);
        self.child = Some(command.spawn().expect("the daemon starts"));
        until("the daemon answers", || {
            let ended = self.child.as_mut().is_some_and(|c| c.try_wait().expect("our child").is_some());
            assert!(!ended, "the daemon ended: {}", self.log());
            (self.run(&["status"]).code == 0).then_some(())
        });
    }

    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            until("the daemon ends", || child.try_wait().expect("our child"));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `sinew ARGS` on this node, in the scratch directory.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        sinew(&self.data_dir, self.scratch.path(), args)
    }

    pub(crate) fn begin(&self, args: &[&str]) -> Running {
        Running::start(command(&self.data_dir, self.scratch.path(), args))
    }

    /// A directory that tasks may write to.
    pub(crate) fn shared(&self) -> PathBuf {
        self.scratch.path().join("shared")
    }

    /// A file in the scratch directory.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, content).expect("write");
        path
    }

    /// An executable script in the scratch directory.
    pub(crate) fn script(&self, name: &str, body: &str) {
        let path = self.file(name, format!("#!/bin/sh\n{body}\n"));
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("chmod");
    }

    /// All lines of a round's result, sorted.
    pub(crate) fn result(&self, out: &str) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(self.scratch.path().join(out)).expect("a result") {
            let content = std::fs::read(entry.expect("entry").path()).expect("read");
            lines.extend(content.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec));
        }
        lines.sort();
        lines
    }

    /// Asserts that the daemon lives and runs work.
    #[track_caller]
    pub(crate) fn is_alive(&self) {
        let ran = self.run(&["run", "--", "echo", "alive"]);
        assert_eq!((ran.code, ran.stdout().as_str()), (0, "alive\n"), "{ran}\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A mesh of `nodes` daemons with one core each.
pub(crate) async fn mesh(nodes: usize) -> LocalMesh {
    let options = LocalMeshOptions { exe: SINEW.into(), nodes, cpus: 1.0, args: Vec::new() };
    LocalMesh::start(&options).await.expect("the mesh forms")
}

/// A client of the daemon on `data_dir`.
pub(crate) fn client(data_dir: &Path) -> Client {
    Client::new(data_dir, DataDir::at(data_dir).socket())
}

/// Processes, other than this one, whose command line or environment holds `mark`.
pub(crate) fn processes_with(mark: &str) -> Vec<u32> {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        ["cmdline", "environ"].iter().any(|file| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.windows(mark.len()).any(|w| w == mark.as_bytes())
        })
    };
    pids.filter(|pid| *pid != own).filter(holds).collect()
}
