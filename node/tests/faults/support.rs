//! What the tests share: a mesh with a journal of what its tasks really did, rounds of known result, waits with a deadline.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::manifest::{DraftFile, DraftWork, JobDraft, Split, program_from_text};
use sinew_crdt_state::state::{Event, Status};
use sinew_node::api::Request;
use sinew_node::clock::unix_ms;
use sinew_node::exec::shuffle::{key_of, partition_of};
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, Place};
use sinew_scheduler::view::JobView;
use tokio::sync::{Mutex, MutexGuard};

/// Longest wait for anything: several times what it takes on a busy two-core machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(25);
/// Detection to re-award is promised within 2 s; a loaded machine may add to that.
pub(crate) const REAWARD_MAX_MS: u64 = 10_000;

/// Writes a line before and after its work: which task, in which daemon, when.
const MAP: &str = r#"say() { echo "map $SINEW_TASK $SINEW_NODE_TAG $1 $(date +%s%3N)" >> "$JOURNAL"; }
say start
sleep "$MAP_S"
awk '{ for (i = 1; i <= NF; i++) print $i "\t1" }'
say end
"#;
const REDUCE: &str = r#"say() { echo "reduce $SINEW_TASK $SINEW_NODE_TAG $1 $(date +%s%3N)" >> "$JOURNAL"; }
say start
sleep "$REDUCE_S"
awk -F '\t' '$1 != k { if (NR > 1) print k "\t" n; k = $1; n = 0 } { n += $2 } END { if (NR) print k "\t" n }'
say end
"#;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) phase: String,
    pub(crate) task: u32,
    /// The daemon.
    pub(crate) pid: u32,
    pub(crate) started: bool,
    pub(crate) at_ms: u64,
}

/// A map-reduce round whose result is known.
pub(crate) struct Round {
    pub(crate) chunks: u32,
    pub(crate) map_s: f64,
    pub(crate) reduce_s: f64,
    pub(crate) partitions: u32,
}

/// Daemons, and what their tasks wrote down.
pub(crate) struct World {
    pub(crate) mesh: LocalMesh,
    pub(crate) scratch: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

/// One mesh at a time, also where all tests share a process: two on a small machine take each other's time.
static ONE: Mutex<()> = Mutex::const_new(());

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", PATIENCE.as_secs());
        tokio::time::sleep(POLL).await;
    }
}

/// Events of one kind, oldest first.
pub(crate) fn events<'a>(timeline: &'a [Event], what: &'a str) -> impl Iterator<Item = &'a Event> {
    timeline.iter().filter(move |e| e.what == what)
}

/// The process id of the daemon with this tag, as its tasks know it.
pub(crate) fn daemon_of(tag: &str) -> u32 {
    let (_, run) = tag.split_once(':').expect("a tag");
    let (pid, _) = run.split_once('-').expect("a tag");
    u32::from_str_radix(pid, 16).expect("a process id")
}

/// A new directory in a plain place: sockets below it need short paths.
///
/// Sandboxed tasks write to it, as another user.
fn scratch() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("sinew-faults-").tempdir().expect("dir");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod");
    dir
}

impl World {
    /// So many nodes with two cores each.
    pub(crate) async fn new(nodes: usize) -> Self {
        Self::at(nodes, Vec::new()).await
    }

    /// Nodes in these places.
    pub(crate) async fn at(nodes: usize, places: Vec<Place>) -> Self {
        Self::start(nodes, places, &[]).await
    }

    /// So many nodes, each started with these flags too.
    pub(crate) async fn with(nodes: usize, flags: &[String]) -> Self {
        Self::start(nodes, Vec::new(), flags).await
    }

    async fn start(nodes: usize, places: Vec<Place>, flags: &[String]) -> Self {
        let one = ONE.lock().await;
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
        let scratch = scratch();
        let mut args = vec!["--sandbox-writable".to_owned(), scratch.path().to_string_lossy().into_owned()];
        args.extend(flags.iter().cloned());
        let options = LocalMeshOptions { exe, nodes, cpus: 2.0, args };
        let mesh = LocalMesh::start_at(&options, places).await.expect("mesh");
        let world = Self { mesh, scratch, _one: one };
        std::fs::write(world.journal_path(), "").expect("journal");
        std::fs::set_permissions(world.journal_path(), Permissions::from_mode(0o666)).expect("chmod");
        world
    }

    fn journal_path(&self) -> PathBuf {
        self.scratch.path().join("journal")
    }

    /// What tasks did so far.
    pub(crate) fn journal(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(self.journal_path()).expect("journal");
        let line = |line: &str| {
            let [phase, task, tag, what, at_ms] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            Line {
                phase: phase.to_owned(),
                task: task.parse().expect("task"),
                pid: daemon_of(tag),
                started: what == "start",
                at_ms: at_ms.parse().expect("time"),
            }
        };
        // A line that is being written is none yet.
        text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(line).collect()
    }

    /// Tasks of a phase that started in daemon `pid` and did not end there.
    pub(crate) fn running(&self, phase: &str, pid: u32) -> Vec<u32> {
        let mut open: BTreeMap<u32, i32> = BTreeMap::new();
        for line in self.journal().iter().filter(|l| l.phase == phase && l.pid == pid) {
            *open.entry(line.task).or_default() += if line.started { 1 } else { -1 };
        }
        open.into_iter().filter(|(_, n)| *n > 0).map(|(task, _)| task).collect()
    }

    /// How often each task of a phase was started.
    pub(crate) fn starts(&self, phase: &str) -> BTreeMap<u32, usize> {
        let mut starts = BTreeMap::new();
        for line in self.journal().iter().filter(|l| l.phase == phase && l.started) {
            *starts.entry(line.task).or_default() += 1;
        }
        starts
    }

    /// The daemon of a node.
    pub(crate) fn pid(&self, node: usize) -> u32 {
        self.mesh.nodes[node].pid().expect("running")
    }

    /// Which of ours it is.
    pub(crate) fn number(&self, id: NodeId) -> usize {
        self.mesh.nodes.iter().position(|n| n.id == id).expect("one of ours")
    }

    /// `kill -9`; returns when, unix ms.
    pub(crate) fn kill(&mut self, node: usize) -> u64 {
        let pid = self.pid(node);
        let at = unix_ms();
        self.mesh.nodes[node].kill();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "daemon {pid} is still there");
        at
    }

    /// Submits a round through a node.
    pub(crate) async fn submit(&self, node: usize, round: &Round) -> String {
        let client = self.mesh.nodes[node].client();
        client.submit(self.draft(round), |_, _, _| {}).await.expect("submit").to_string()
    }

    pub(crate) fn draft(&self, round: &Round) -> JobDraft {
        let inputs = self.inputs(round);
        let program = |text: &str| program_from_text(text).expect("program");
        let mut draft = JobDraft::map_reduce(
            vec![inputs.to_string_lossy().into_owned()],
            program("sh map.sh"),
            program("sh reduce.sh"),
        );
        let DraftWork::MapReduce(work) = &mut draft.work else { panic!("a round") };
        work.split = Split::Files;
        work.partitions = round.partitions;
        work.files = vec![DraftFile::inline("map.sh", MAP), DraftFile::inline("reduce.sh", REDUCE)];
        draft.env = BTreeMap::from([
            ("JOURNAL".to_owned(), self.journal_path().to_string_lossy().into_owned()),
            ("MAP_S".to_owned(), round.map_s.to_string()),
            ("REDUCE_S".to_owned(), round.reduce_s.to_string()),
        ]);
        draft
    }

    /// One file per chunk, each different.
    fn inputs(&self, round: &Round) -> PathBuf {
        let dir = self.scratch.path().join("inputs");
        std::fs::create_dir_all(&dir).expect("dir");
        for chunk in 0..round.chunks {
            let line = |n: u32| format!("w{} w{} é{} chunk{chunk}\n", n % 37, (n * 7 + chunk) % 101, n % 5);
            let text: String = (0..200).map(line).collect();
            std::fs::write(dir.join(format!("{chunk:04}.txt")), text).expect("input");
        }
        dir
    }

    /// The partitions as a shell makes them of the same inputs with the same programs.
    pub(crate) fn expected(&self, round: &Round) -> Vec<Vec<u8>> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(self.inputs(round)).expect("dir").map(|e| e.expect("entry").path()).collect();
        paths.sort();
        let text: Vec<u8> = paths.iter().flat_map(|p| std::fs::read(p).expect("input")).collect();
        let mapped = pipe(&["sh", "-c", MAP], &text);
        let mut parts = vec![Vec::new(); round.partitions as usize];
        for line in mapped.split_inclusive(|b| *b == b'\n') {
            parts[partition_of(key_of(&line[..line.len() - 1]), round.partitions) as usize].extend_from_slice(line);
        }
        parts.iter().map(|part| pipe(&["sh", "-c", REDUCE], &pipe(&["sort"], part))).collect()
    }

    /// The job as a node sees it.
    pub(crate) async fn job(&self, node: usize, job: &str) -> (JobView, Vec<Event>) {
        self.mesh.nodes[node].client().job(job).await.expect("job")
    }

    /// Waits until a node sees something in the job; what does not know the job yet sees nothing.
    pub(crate) async fn sees<T>(
        &self,
        node: usize,
        job: &str,
        what: &str,
        mut pick: impl FnMut(&JobView, &[Event]) -> Option<T>,
    ) -> T {
        let client = self.mesh.nodes[node].client();
        until(what, async || client.job(job).await.ok().and_then(|(view, timeline)| pick(&view, &timeline))).await
    }

    /// Waits until the job is sealed as a node sees it, and returns that view.
    pub(crate) async fn sealed(&self, node: usize, job: &str) -> (JobView, Vec<Event>) {
        let done = |view: &JobView, timeline: &[Event]| {
            (view.status == Status::Sealed).then(|| (view.clone(), timeline.to_vec()))
        };
        self.sees(node, job, "the job is sealed", done).await
    }

    /// The job completed, once, and its result is what the shell says.
    pub(crate) async fn check(&self, node: usize, job: &str, round: &Round) {
        let (view, timeline) = self.sealed(node, job).await;
        assert_eq!(view.outcome, Some(sinew_crdt_state::fact::Outcome::Completed), "{view:?}");
        assert_eq!(events(&timeline, "finish").count(), 1, "{timeline:#?}");
        assert_eq!(events(&timeline, "seal").count(), 1, "{timeline:#?}");
        for phase in &view.phases {
            assert_eq!(phase.done, phase.tasks, "{view:?}");
        }
        let out = self.scratch.path().join(format!("out{node}"));
        self.mesh.nodes[node].client().act(&Request::Get { job: job.to_owned(), out: out.clone() }).await.expect("get");
        for (i, expected) in self.expected(round).iter().enumerate() {
            let got = std::fs::read(out.join(format!("part-{i:05}"))).expect("part");
            assert!(got == *expected, "partition {i} differs:\n{}", String::from_utf8_lossy(&got));
        }
    }

    /// Waits until all running nodes know the same.
    pub(crate) async fn converged(&self) {
        until("all ledgers are equal", async || {
            let mut roots = Vec::new();
            for node in self.mesh.nodes.iter().filter(|n| n.pid().is_some()) {
                roots.push(node.client().status().await.expect("status").ledger_root);
            }
            roots.windows(2).all(|w| w[0] == w[1]).then_some(())
        })
        .await;
    }

    /// Map tasks whose acceptance a node has in its ledger.
    pub(crate) async fn accepted(&self, node: usize, job: &str) -> Vec<u32> {
        let placements = self.job(node, job).await.0.placements;
        placements.iter().filter(|p| p.phase == 0).flat_map(|p| p.start..p.start + p.len).collect()
    }
}

/// The daemons' last words, where a test fails.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (i, node) in self.mesh.nodes.iter().enumerate() {
                eprintln!("--- node {i} {}\n{}", node.id.short(), node.log_tail());
            }
        }
    }
}

fn pipe(argv: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env("LC_ALL", "C").env("JOURNAL", "/dev/null").env("MAP_S", "0").env("REDUCE_S", "0");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("write"));
        child.wait_with_output().expect("output").stdout
    })
}
