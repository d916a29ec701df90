//! Daemons that call functions: the example, modules that the nodes have, a round of map-reduce, and what is left of a daemon
//! that is killed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::manifest::{Format, JobDraft, parse};
use sinew_crdt_state::state::Status;
use sinew_node::api::Request;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions};
use tokio::sync::{Mutex, MutexGuard};

use crate::rig::{PATIENCE, processes_with};

/// One mesh at a time: two on a small machine take each other's time.
static ONE: Mutex<()> = Mutex::const_new(());

struct World {
    mesh: LocalMesh,
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
}

impl World {
    /// Three daemons that isolate programs and have a module of their own.
    async fn new() -> Self {
        let one = ONE.lock().await;
        let dir = tempfile::tempdir().expect("dir");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("chmod");
        let modules = dir.path().join("modules");
        std::fs::create_dir(&modules).expect("mkdir");
        std::fs::write(modules.join("known.py"), KNOWN).expect("write");
        let config = dir.path().join("sinew.toml");
        std::fs::write(&config, format!("[python]\npaths = [{:?}]\n", modules.display().to_string())).expect("write");
        let args = ["--sandbox", "required", "--config", config.to_str().expect("utf-8")].map(str::to_owned).to_vec();
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
        let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 3, cpus: 2.0, args }).await.expect("mesh");
        Self { mesh, dir, _one: one }
    }

    async fn submit(&self, manifest: &str, base: &Path) -> String {
        let mut draft: JobDraft = parse(manifest.as_bytes(), Some(Format::Toml)).expect("a manifest");
        draft.anchor_paths(base.to_str().expect("utf-8"));
        self.mesh.nodes[0].client().submit(draft, |_, _, _| {}).await.expect("submit").to_string()
    }

    /// Waits for the job's good end and returns its files, by name.
    async fn results(&self, job: &str) -> Vec<(String, String)> {
        let client = self.mesh.nodes[1].client();
        let sealed = async || client.job(job).await.ok().filter(|(view, _)| view.status == Status::Sealed);
        let (view, timeline) = until("the job is sealed", sealed).await;
        assert_eq!(view.outcome, Some(Outcome::Completed), "{view:?} {timeline:#?}");
        let out = self.dir.path().join(job);
        client.act(&Request::Get { job: job.to_owned(), out: out.clone() }).await.expect("get");
        let files = walkdir::WalkDir::new(&out).sort_by_file_name().into_iter().map(|entry| entry.expect("entry"));
        let files = files.filter(|entry| entry.file_type().is_file());
        let name = |path: &Path| path.strip_prefix(&out).expect("below").display().to_string();
        files.map(|e| (name(e.path()), std::fs::read_to_string(e.path()).expect("text"))).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.mesh.nodes {
                eprintln!("--- {}\n{}", node.id.short(), node.log_tail());
            }
        }
    }
}

const KNOWN: &str = "import os, sys, time
def where(): return [__file__, os.getcwd()]
def words():
    for line in sys.stdin:
        for word in line.split(): yield word, 1
def total():
    counts = {}
    for line in sys.stdin:
        word, n = line.rstrip('\\n').split('\\t')
        counts[word] = counts.get(word, 0) + int(n)
    for word in sorted(counts): print(word, counts[word], sep='\\t')
def stay():
    if os.fork() == 0: os.setsid()
    time.sleep(1000)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_daemons_call_functions_of_the_job_and_of_their_own() {
    let world = World::new().await;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").join("examples");
    let manifest = std::fs::read_to_string(examples.join("python.toml")).expect("example");
    let job = world.submit(&manifest, &examples).await;
    let files = world.results(&job).await;
    let results: Vec<serde_json::Value> = files
        .iter()
        .filter(|(name, _)| name.ends_with("result.json"))
        .map(|(_, text)| serde_json::from_str(text).expect("json"))
        .collect();
    let expected: Vec<_> = (0..4).map(|task| serde_json::json!({"task": task, "top": [["the", 3]]})).collect();
    assert_eq!(results, expected, "{files:?}");
    assert!(files.iter().any(|(_, text)| text == "counted 12 words\n"), "{files:?}");

    let own = "type = \"batch\"\n[batch]\n[batch.python]\ncall = \"known:where\"\n";
    let job = world.submit(own, world.dir.path()).await;
    let files = world.results(&job).await;
    let module = world.dir.path().join("modules/known.py");
    let value: serde_json::Value = serde_json::from_str(&files[0].1).expect("json");
    assert_eq!(value, serde_json::json!([module, "/job/work"]), "{files:?}");

    std::fs::write(world.dir.path().join("a.txt"), "b a\na\n").expect("write");
    std::fs::write(world.dir.path().join("b.txt"), "a c\n").expect("write");
    let round = "type = \"map_reduce\"\n[map_reduce]\ninputs = [\"a.txt\", \"b.txt\"]\npartitions = 1\n\
         map = { python = { call = \"known:words\" } }\ncombine = { python = { call = \"known:total\" } }\n\
         reduce = { python = { call = \"known:total\" } }\n";
    let job = world.submit(round, world.dir.path()).await;
    let files = world.results(&job).await;
    assert_eq!(files, [("part-00000".to_owned(), "a\t3\nb\t1\nc\t1\n".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_function_whose_daemon_is_killed() {
    let mut world = World::new().await;
    let mark = format!("killed-{}", std::process::id());
    let manifest = format!(
        "type = \"batch\"\n[env]\nMARK = \"{mark}\"\n[batch]\ntasks = 3\n[batch.python]\ncall = \"known:stay\"\n"
    );
    world.submit(&manifest, world.dir.path()).await;
    // Worker and child of each task.
    until("all tasks run", async || (processes_with(&mark).len() == 6).then_some(())).await;
    for node in &mut world.mesh.nodes {
        node.kill();
    }
    until("they are gone", async || processes_with(&mark).is_empty().then_some(())).await;
    // A restart finds nothing either, and ends what it started anew with the job.
    for node in &mut world.mesh.nodes {
        node.start().await.expect("start");
    }
    let client = world.mesh.nodes[0].client();
    until("the tasks run again", async || (processes_with(&mark).len() == 6).then_some(())).await;
    let job = client.jobs(1).await.expect("jobs")[0].id.to_string();
    client.act(&Request::Cancel { job, reason: "enough".to_owned() }).await.expect("cancel");
    until("they are gone", async || processes_with(&mark).is_empty().then_some(())).await;
}
