//! A mesh of real daemons on this machine, each a process with a data dir of its own: for the demo, the benches and the
//! end-to-end tests. Nothing of it outlives the value, however the program ends: the daemons stop when their stdin does,
//! and the directory goes with the value.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sinew_crdt_state::certificate::Ticket;
use sinew_crdt_state::ids::NodeId;
use tempfile::TempDir;

use crate::api::client::{Client, ClientError};
use crate::daemon::STDIN_VAR;
use crate::datadir::{DataDir, DataDirError};

/// A daemon opens two databases and a few sockets: seconds on the slowest disk.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Ending tasks takes their grace time at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(20);

/// Any free TCP port.
const FREE_PORT: &str = "/ip4/127.0.0.1/tcp/0";

/// Why a local mesh could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LocalMeshError {
    /// The system refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A data dir.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A daemon's answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A ticket that a daemon printed.
    #[error(transparent)]
    Ticket(#[from] sinew_crdt_state::certificate::TicketError),
    /// A daemon ended instead of starting.
    #[error("node {node} did not start; the end of its log:\n{log}")]
    NotStarted {
        /// Which.
        node: usize,
        /// What it said.
        log: String,
    },
    /// A node was not let in.
    #[error("`sinew join` failed:\n{log}")]
    NotJoined {
        /// What it said.
        log: String,
    },
    /// The nodes did not find each other.
    #[error("the nodes did not all see each other within {0} s")]
    NotFormed(u64),
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> LocalMeshError {
    move |source| LocalMeshError::Io { doing, source }
}

/// Where one daemon runs, for tests that cut networks.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// A command that goes before `sinew`, such as `ip netns exec NAME`; it must become `sinew` by `exec`.
    pub prefix: Vec<String>,
    /// Where the daemon listens; `None` is a free TCP port on loopback.
    pub listen: Option<String>,
    /// Further arguments of `sinew up`, for this daemon only.
    pub args: Vec<String>,
}

/// How to make a mesh.
#[derive(Debug, Clone)]
pub struct LocalMeshOptions {
    /// The `sinew` program.
    pub exe: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// Cores that each offers.
    pub cpus: f64,
    /// Further arguments of `sinew up`.
    pub args: Vec<String>,
}

/// One daemon.
#[derive(Debug)]
pub struct LocalNode {
    /// Its data dir.
    pub data_dir: PathBuf,
    /// Its id.
    pub id: NodeId,
    child: Option<Child>,
    /// The command line up to `sinew` itself, never empty.
    command: Vec<PathBuf>,
    listen: String,
    args: Vec<String>,
    number: usize,
}

/// Daemons that form a mesh.
#[derive(Debug)]
pub struct LocalMesh {
    /// The daemons; the first founded the mesh.
    pub nodes: Vec<LocalNode>,
    places: Vec<Place>,
    dir: TempDir,
}

impl LocalMesh {
    /// Makes identities and a mesh, starts the daemons, and waits until each sees all others.
    ///
    /// # Errors
    /// [`LocalMeshError`]; nothing is left behind then.
    pub async fn start(options: &LocalMeshOptions) -> Result<Self, LocalMeshError> {
        Self::start_at(options, Vec::new()).await
    }

    /// As [`Self::start`], with a place for each of the first nodes; the others run like this program.
    ///
    /// # Errors
    /// [`LocalMeshError`]; nothing is left behind then.
    pub async fn start_at(options: &LocalMeshOptions, places: Vec<Place>) -> Result<Self, LocalMeshError> {
        let dir = tempfile::Builder::new().prefix("sinew-").tempdir().map_err(io("make a temporary directory"))?;
        let mut mesh = Self { nodes: Vec::new(), places, dir };
        for _ in 0..options.nodes {
            mesh.add(options).await?;
        }
        mesh.wait_formed().await?;
        Ok(mesh)
    }

    /// Adds one more node and starts it.
    ///
    /// # Errors
    /// [`LocalMeshError`].
    pub async fn add(&mut self, options: &LocalMeshOptions) -> Result<(), LocalMeshError> {
        let number = self.nodes.len();
        let data_dir = self.dir.path().join(format!("node{number}"));
        let data = DataDir::at(&data_dir);
        let place = self.places.get(number).cloned().unwrap_or_default();
        let mut command: Vec<PathBuf> = place.prefix.iter().map(PathBuf::from).collect();
        command.push(options.exe.clone());
        let id = match self.nodes.first() {
            None => data.init("local")?.node,
            Some(first) => {
                let ticket = first.client().invite("run,submit,admin".to_owned(), 3_600_000).await?;
                join(&command, &data, &ticket).await?
            }
        };
        let mut args = vec!["--no-mdns".to_owned(), "--cpus".to_owned(), options.cpus.to_string()];
        if !options.args.iter().any(|arg| arg.starts_with("--sandbox")) {
            // Only this program's own jobs run here, mostly built-ins: a machine that cannot isolate programs can do that too.
            args.extend(["--sandbox", "best-effort"].map(str::to_owned));
        }
        args.extend(options.args.iter().cloned().chain(place.args));
        let listen = place.listen.unwrap_or_else(|| FREE_PORT.to_owned());
        let mut node = LocalNode { data_dir, id, child: None, command, listen, args, number };
        node.start().await?;
        self.nodes.push(node);
        Ok(())
    }

    /// Waits until every running node is connected to every other and knows what it offers.
    ///
    /// # Errors
    /// [`LocalMeshError::NotFormed`].
    pub async fn wait_formed(&self) -> Result<(), LocalMeshError> {
        let running: Vec<&LocalNode> = self.nodes.iter().filter(|n| n.child.is_some()).collect();
        let deadline = Instant::now() + START_TIMEOUT;
        for node in &running {
            loop {
                let seen = node.client().peers().await?;
                let formed = running
                    .iter()
                    .all(|other| seen.iter().any(|p| p.node == other.id && p.connected && p.cpu_milli.is_some()));
                if formed {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(LocalMeshError::NotFormed(START_TIMEOUT.as_secs()));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The directory that holds the data dirs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops all daemons in good order.
    pub fn stop(&mut self) {
        for node in &mut self.nodes {
            node.terminate();
        }
        for node in &mut self.nodes {
            node.wait(STOP_TIMEOUT);
        }
    }
}

impl Drop for LocalMesh {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Joins in the node's own place: from elsewhere the ticket's issuer may be out of reach.
async fn join(command: &[PathBuf], data: &DataDir, ticket: &str) -> Result<NodeId, LocalMeshError> {
    let (program, rest) = command.split_first().expect("a command is never empty");
    if rest.is_empty() {
        return Ok(data.join(&ticket.parse::<Ticket>()?).await?.node);
    }
    let joined = Command::new(program).args(rest).args(["join", ticket, "--data-dir"]).arg(data.path()).output();
    let joined = joined.map_err(io("run `sinew join`"))?;
    if !joined.status.success() {
        let log = String::from_utf8_lossy(&joined.stderr).into_owned();
        return Err(LocalMeshError::NotJoined { log });
    }
    Ok(data.identity()?.id())
}

impl Drop for LocalNode {
    // Also one that is not part of a mesh yet, as when a start is interrupted: its directory goes next, and must stay gone.
    fn drop(&mut self) {
        self.terminate();
        self.wait(STOP_TIMEOUT);
    }
}

impl LocalNode {
    /// Starts the daemon (again, then at the address that it had) and waits until it answers.
    ///
    /// # Errors
    /// [`LocalMeshError`].
    pub async fn start(&mut self) -> Result<(), LocalMeshError> {
        let log = File::options().create(true).append(true).open(self.log_path()).map_err(io("open a log file"))?;
        let errors = log.try_clone().map_err(io("open a log file"))?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(["up", "--listen", &self.listen])
            .args(&self.args)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .env(STDIN_VAR, "1")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io("start a daemon"))?;
        self.child = Some(child);
        self.wait_answering().await
    }

    async fn wait_answering(&mut self) -> Result<(), LocalMeshError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let status = self.client().status().await.ok().filter(|s| Some(s.pid) == self.pid());
            if let Some(at) = status.and_then(|s| s.listen.into_iter().next()) {
                // Others know it by this address from now on.
                self.listen = at;
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|c| matches!(c.try_wait(), Ok(Some(_)) | Err(_)));
            if ended || Instant::now() >= deadline {
                self.kill();
                return Err(LocalMeshError::NotStarted { node: self.number, log: self.log_tail() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn log_path(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// The daemon's whole log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A client of this daemon.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.data_dir, DataDir::at(&self.data_dir).socket())
    }

    /// The daemon's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn terminate(&mut self) {
        if let Some(child) = &mut self.child {
            // Its stdin ends: it stops in good order.
            drop(child.stdin.take());
        }
    }

    fn wait(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(None) => return self.kill(),
                _ => self.child = None,
            }
        }
    }
}
