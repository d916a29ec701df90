//! Daemons whose tasks are containers.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerSummary, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, ListContainersOptionsBuilder, StartContainerOptions};
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::manifest::{DraftContent, DraftProgram, DraftWork, JobDraft, parse};
use sinew_crdt_state::state::Status;
use sinew_node::api::Request;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, Place};

use crate::engine::TestEngine;
use crate::image::{Recipe, make};
use crate::rig::PATIENCE;

pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Daemons that use these engines.
async fn mesh(engines: &[&str]) -> LocalMesh {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    let options = LocalMeshOptions { exe, nodes: engines.len(), cpus: 2.0, args: Vec::new() };
    let place = |engine: &&str| Place { args: vec!["--docker".to_owned(), (*engine).to_owned()], ..Place::default() };
    LocalMesh::start_at(&options, engines.iter().map(place).collect()).await.expect("mesh")
}

/// The job of `examples/docker.toml`, with the archive that it names at `archive`.
fn example(archive: &Path) -> JobDraft {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/docker.toml");
    let mut draft = parse(&std::fs::read(manifest).expect("manifest"), None).expect("a good manifest");
    let DraftWork::Batch(batch) = &mut draft.work else { panic!("a batch") };
    let content = batch.program.content_mut().expect("an archive");
    assert_eq!(*content, DraftContent::Path("image.tar".to_owned()));
    *content = DraftContent::Path(archive.to_str().expect("UTF-8").to_owned());
    draft
}

fn files(dir: &Path) -> Vec<String> {
    let mut texts: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.expect("entry"))
        .filter(|entry| entry.file_name() == "greeting")
        .map(|entry| std::fs::read_to_string(entry.path()).expect("text"))
        .collect();
    texts.sort();
    texts
}

/// The job of the example as one task that stays.
fn sleeper(archive: &Path, seconds: &str) -> JobDraft {
    std::fs::write(archive, make(&Recipe::default()).archive).expect("write");
    let mut draft = example(archive);
    let DraftWork::Batch(batch) = &mut draft.work else { panic!("a batch") };
    let DraftProgram::Container(container) = &mut batch.program else { panic!("a container") };
    container.argv = vec!["sleep".to_owned(), seconds.to_owned()];
    (batch.tasks, batch.outputs) = (1, Vec::new());
    draft
}

/// Whether a process with exactly these arguments lives.
fn lives(argv: &[&str]) -> bool {
    let wanted: Vec<u8> = argv.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes.map(|entry| entry.path().join("cmdline")).any(|path| std::fs::read(path).is_ok_and(|text| text == wanted))
}

/// The containers of a node's tasks.
pub(crate) async fn containers(client: &Docker, node: &str) -> Vec<ContainerSummary> {
    let filters: HashMap<String, Vec<String>> = [("label".to_owned(), vec![format!("sinew.node={node}")])].into();
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    client.list_containers(Some(options)).await.expect("list")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_travels_over_the_mesh_to_nodes_that_have_an_engine() {
    let Some(engine) = tokio::task::spawn_blocking(TestEngine::shared).await.expect("engine") else { return };
    let socket = engine.socket().to_str().expect("UTF-8").to_owned();
    let mesh = mesh(&["off", &socket, &socket]).await;
    let submitter = mesh.nodes[0].client();
    let workers: BTreeSet<_> = mesh.nodes[1..].iter().map(|node| node.id).collect();
    until("both say that they run containers", async || {
        let peers = submitter.peers().await.expect("peers");
        let able = peers.iter().filter(|p| p.runners.contains("docker")).map(|p| p.node);
        (able.collect::<BTreeSet<_>>() == workers).then_some(())
    })
    .await;
    let status = submitter.status().await.expect("status");
    let why = status.runners.iter().find(|(runner, _)| runner == "docker").and_then(|(_, why)| why.clone());
    assert!(why.is_some_and(|why| why.contains("turned off")));
    let archive = mesh.dir().join("image.tar");
    std::fs::write(&archive, make(&Recipe { tags: vec!["busybox:latest"], ..Recipe::default() }).archive)
        .expect("write");
    let job = submitter.submit(example(&archive), |_, _, _| {}).await.expect("submit").to_string();
    let view = until("the job has ended", async || {
        let (view, _) = submitter.job(&job).await.ok()?;
        (view.status == Status::Sealed).then_some(view)
    })
    .await;
    assert_eq!(view.outcome, Some(Outcome::Completed), "{view:?}\n{}\n{}", mesh.nodes[1].log(), mesh.nodes[2].log());
    assert!(view.shares.iter().all(|share| share.done.iter().sum::<u64>() == 0 || workers.contains(&share.node)));
    let out = mesh.dir().join("out");
    submitter.act(&Request::Get { job, out: out.clone() }).await.expect("get");
    let expected: Vec<String> = (0..4).map(|task| format!("hello from task {task}\n")).collect();
    assert_eq!(files(&out), expected);
    let client = engine.client().negotiate_version().await.expect("engine");
    for node in &mesh.nodes {
        assert_eq!(containers(&client, &node.id.to_string()).await, []);
    }
    drop(mesh);
    tokio::task::spawn_blocking(|| drop(engine)).await.expect("end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemons_containers_go_and_nobody_elses() {
    let Some(engine) = tokio::task::spawn_blocking(TestEngine::shared).await.expect("engine") else { return };
    let client = engine.client().negotiate_version().await.expect("engine");
    let mut mesh = mesh(&[engine.socket().to_str().expect("UTF-8")]).await;
    let node = mesh.nodes[0].id.to_string();
    let archive = mesh.dir().join("image.tar");
    let job = mesh.nodes[0].client().submit(sleeper(&archive, "987"), |_, _, _| {}).await.expect("submit").to_string();
    let running = async |not: Option<&str>| {
        let all = containers(&client, &node).await;
        let is = |c: &ContainerSummary| format!("{:?}", c.state).contains("RUNNING") && c.id.as_deref() != not;
        all.into_iter().find(is).and_then(|c| c.id)
    };
    let first = until("the task runs", async || running(None).await).await;
    // Somebody else's, of the very same image.
    let image = client.inspect_container(&first, None).await.expect("inspect").image;
    let body = ContainerCreateBody {
        image,
        cmd: Some(["sleep", "987"].map(str::to_owned).to_vec()),
        host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let foreign = client.create_container(None::<CreateContainerOptions>, body).await.expect("create").id;
    client.start_container(&foreign, None::<StartContainerOptions>).await.expect("start");
    mesh.nodes[0].kill();
    // Its processes end with the daemon: the guardian sees to that.
    until("the container has ended", async || running(None).await.is_none().then_some(())).await;
    mesh.nodes[0].start().await.expect("start again");
    let again =
        async || (!containers(&client, &node).await.iter().any(|c| c.id.as_deref() == Some(&first))).then_some(());
    until("the container is gone", again).await;
    until("the task runs again", async || running(Some(&first)).await).await;
    mesh.nodes[0].client().act(&Request::Cancel { job, reason: "enough".to_owned() }).await.expect("cancel");
    until("no container is left", async || containers(&client, &node).await.is_empty().then_some(())).await;
    let other = client.inspect_container(&foreign, None).await.expect("inspect").state.expect("state");
    assert_eq!(other.running, Some(true));
    drop(mesh);
    let options = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(&foreign, Some(options)).await.expect("remove");
    tokio::task::spawn_blocking(|| drop(engine)).await.expect("end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_goes_and_comes_shows_in_what_its_node_offers() {
    const SECONDS: &str = "98765";
    let Some(mut engine) = tokio::task::spawn_blocking(TestEngine::own).await.expect("engine") else { return };
    let mesh = mesh(&["off", engine.socket().to_str().expect("UTF-8")]).await;
    let (submitter, worker) = (mesh.nodes[0].client(), mesh.nodes[1].id);
    let offers = async |offered: bool| {
        until(if offered { "containers are offered" } else { "containers are offered no more" }, async || {
            let peers = submitter.peers().await.expect("peers");
            peers.iter().any(|p| p.node == worker && p.runners.contains("docker") == offered).then_some(())
        })
        .await;
    };
    offers(true).await;
    let mut draft = sleeper(&mesh.dir().join("image.tar"), SECONDS);
    // Some attempts may fail before everybody knows that the engine is gone.
    (draft.retry.attempts, draft.retry.delay_ms) = (20, 500);
    let job = submitter.submit(draft, |_, _, _| {}).await.expect("submit").to_string();
    until("the task runs", async || lives(&["sleep", SECONDS]).then_some(())).await;
    engine = tokio::task::spawn_blocking(|| {
        engine.kill();
        engine
    })
    .await
    .expect("kill");
    offers(false).await;
    // No engine holds it any more; the daemon finds it all the same.
    until("its process is gone", async || (!lives(&["sleep", SECONDS])).then_some(())).await;
    engine = tokio::task::spawn_blocking(|| {
        engine.start_again();
        engine
    })
    .await
    .expect("start");
    offers(true).await;
    until("the task runs again", async || lives(&["sleep", SECONDS]).then_some(())).await;
    submitter.act(&Request::Cancel { job, reason: "enough".to_owned() }).await.expect("cancel");
    until("its process is gone", async || (!lives(&["sleep", SECONDS])).then_some(())).await;
    drop(mesh);
    tokio::task::spawn_blocking(|| drop(engine)).await.expect("end");
}
