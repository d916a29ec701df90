//! A daemon that is killed while it runs a task of every runner, and what its next start makes of that.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions};
use sinew_crdt_state::manifest::{Format, parse};
use sinew_node::api::Request;
use sinew_node::api::client::Client;
use sinew_node::exec::guardian::TAG_VAR;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions};

use crate::engine::TestEngine;
use crate::image::{Recipe, make};
use crate::mesh::{containers, until};

/// Waits for ever, as each kind of program; those that can leave something behind try to.
const PROCESS: &str = r#"
[batch]
command = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]
"#;
const CONTAINER: &str = r#"
[batch.docker]
archive = "image.tar"
args = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]
"#;
const FUNCTION: &str = r#"
[batch.python]
call = "stay:run"
"#;
const MODULE: &str = r#"
[batch.wasm]
module = "stay.wasm"
"#;
const FUNCTION_FILE: &str = "import os, time
def run():
    if os.fork() == 0: os.setsid()
    time.sleep(1000)
";
const MODULE_TEXT: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))"#;

/// Somebody else's, which looks much like the daemon's own.
struct Foreign {
    process: Child,
    group: PathBuf,
    container: String,
}

/// Processes with `what` in their environment.
fn processes_with(what: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| environment(*pid).split('\0').any(|variable| variable.contains(what))).collect()
}

fn environment(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Control groups whose names begin with `prefix`.
fn groups(prefix: &str) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new("/sys/fs/cgroup").into_iter().flatten();
    let named = all.filter(|e| e.file_type().is_dir() && e.file_name().to_string_lossy().starts_with(prefix));
    named.map(walkdir::DirEntry::into_path).collect()
}

/// Mounts below `dir`.
fn mounts(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let dir = dir.to_str().expect("UTF-8");
    text.lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|at| at.starts_with(dir)))
        .map(str::to_owned)
        .collect()
}

impl Foreign {
    /// `beside` is a control group of the daemon's.
    async fn start(client: &Docker, image: Option<String>, beside: &Path) -> Self {
        let other = "0123456789abcdef0123456789abcdef";
        let process = Command::new("sleep").arg("1000").env(TAG_VAR, format!("{other}:1-1")).spawn().expect("sleep");
        let group = beside.parent().expect("a group above").join(format!("sinew-{other}-1-1"));
        std::fs::create_dir(&group).expect("a group");
        let body = ContainerCreateBody {
            image,
            cmd: Some(["sleep", "1000"].map(str::to_owned).to_vec()),
            labels: Some([("sinew.node".to_owned(), "another node".to_owned())].into()),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let container = client.create_container(None::<CreateContainerOptions>, body).await.expect("create").id;
        client.start_container(&container, None::<StartContainerOptions>).await.expect("start");
        Self { process, group, container }
    }

    async fn is_untouched(&mut self, client: &Docker) {
        assert!(self.process.try_wait().expect("wait").is_none(), "another's process was ended");
        assert!(self.group.is_dir(), "another's control group was removed");
        let state = client.inspect_container(&self.container, None).await.expect("inspect").state.expect("state");
        assert_eq!(state.running, Some(true), "another's container was ended");
    }

    async fn end(&mut self, client: &Docker) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        client.remove_container(&self.container, Some(options)).await.expect("remove");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// One daemon with every runner, and where its jobs' files are.
async fn daemon(engine: &TestEngine, files: &Path) -> LocalMesh {
    std::fs::set_permissions(files, PermissionsExt::from_mode(0o755)).expect("chmod");
    std::fs::write(files.join("stay.py"), FUNCTION_FILE).expect("write");
    std::fs::write(files.join("stay.wasm"), wat::parse_str(MODULE_TEXT).expect("a module")).expect("write");
    std::fs::write(files.join("image.tar"), make(&Recipe::default()).archive).expect("write");
    let config = files.join("sinew.toml");
    std::fs::write(&config, format!("[python]\npaths = [{:?}]\n", files.display().to_string())).expect("write");
    let socket = engine.socket();
    let args = ["--sandbox", "required", "--config", config.to_str().expect("UTF-8"), "--docker"];
    let args = args.into_iter().chain(socket.to_str()).map(str::to_owned).collect();
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 1, cpus: 4.0, args }).await.expect("mesh");
    until("every runner is ready", async || {
        let status = mesh.nodes[0].client().status().await.ok()?;
        status.runners.iter().all(|(_, why)| why.is_none()).then_some(())
    })
    .await;
    mesh
}

async fn submit_each(client: &Client, files: &Path, mark: &str) -> Vec<String> {
    let mut jobs = Vec::new();
    for program in [PROCESS, CONTAINER, FUNCTION, MODULE] {
        let manifest = format!("type = \"batch\"\n[env]\nMARK = \"{mark}\"\n{program}");
        let mut draft = parse(manifest.as_bytes(), Some(Format::Toml)).expect("a manifest");
        draft.anchor_paths(files.to_str().expect("UTF-8"));
        jobs.push(client.submit(draft, |_, _, _| {}).await.expect("submit").to_string());
    }
    jobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_killed_daemons_tasks_nothing_is_left_whatever_ran_them() {
    let Some(engine) = tokio::task::spawn_blocking(TestEngine::shared).await.expect("engine") else { return };
    let docker = engine.client().negotiate_version().await.expect("engine");
    let files = tempfile::tempdir().expect("dir");
    let mut mesh = daemon(&engine, files.path()).await;
    let node = mesh.nodes[0].id.to_string();
    let mark = format!("killed-{}", std::process::id());
    let jobs = submit_each(&mesh.nodes[0].client(), files.path(), &mark).await;
    // Two processes each of the three that are processes; the module runs in the daemon itself.
    let all_run = async |client: &Client| {
        until("a task of every runner runs", async || {
            for job in &jobs {
                let (view, _) = client.job(job).await.ok()?;
                view.phases.iter().any(|phase| phase.running == 1).then_some(())?;
            }
            // The shell of the first and of the container is there besides.
            (processes_with(&mark).len() == 3 + 3 + 2).then_some(())
        })
        .await;
    };
    all_run(&mesh.nodes[0].client()).await;
    let first: Vec<_> = containers(&docker, &node).await.into_iter().filter_map(|c| c.id).collect();
    assert_eq!(first.len(), 1);
    let tag = processes_with(&mark).into_iter().find_map(|pid| {
        let environment = environment(pid);
        environment.split('\0').find_map(|v| v.strip_prefix(TAG_VAR)?.strip_prefix('=')).map(str::to_owned)
    });
    let tag = tag.expect("a tagged process");
    let earlier = format!("sinew-{}", tag.replace(':', "-"));
    let image = docker.inspect_container(&first[0], None).await.expect("inspect").image;
    let mut foreign = Foreign::start(&docker, image, &groups(&earlier)[0]).await;

    mesh.nodes[0].kill();
    until("no process of a task is left, with no daemon", async || processes_with(&mark).is_empty().then_some(()))
        .await;
    mesh.nodes[0].start().await.expect("start again");
    until("the groups and containers of the earlier run are gone", async || {
        let left = containers(&docker, &node).await;
        (groups(&earlier).is_empty() && !left.iter().any(|c| c.id.as_ref() == first.first())).then_some(())
    })
    .await;
    all_run(&mesh.nodes[0].client()).await;
    foreign.is_untouched(&docker).await;

    for job in jobs {
        let cancel = Request::Cancel { job, reason: "enough".to_owned() };
        mesh.nodes[0].client().act(&cancel).await.expect("cancel");
    }
    let slots = mesh.nodes[0].data_dir.join("work/slots");
    until("nothing of the tasks is left", async || {
        let containers = containers(&docker, &node).await;
        let written = walkdir::WalkDir::new(&slots).into_iter().flatten().filter(|e| e.file_type().is_file()).count();
        (processes_with(&mark).is_empty() && containers.is_empty() && written == 0).then_some(())
    })
    .await;
    mesh.stop();
    let (directory, _) = tag.split_once(':').expect("a directory and a run");
    assert_eq!(groups(&format!("sinew-{directory}-")), Vec::<PathBuf>::new());
    assert_eq!(mounts(mesh.dir()), Vec::<String>::new());
    foreign.is_untouched(&docker).await;
    foreign.end(&docker).await;
    drop((mesh, foreign));
    tokio::task::spawn_blocking(|| drop(engine)).await.expect("end");
}

/// Stopped, it renews nothing and ends nothing; whatever runs its tasks, they end with their leases, and run again when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_stopped_daemons_tasks_none_runs_on_whatever_ran_them() {
    let Some(engine) = tokio::task::spawn_blocking(TestEngine::shared).await.expect("engine") else { return };
    let docker = engine.client().negotiate_version().await.expect("engine");
    let files = tempfile::tempdir().expect("dir");
    let mut mesh = daemon(&engine, files.path()).await;
    let node = mesh.nodes[0].id.to_string();
    let mark = format!("stopped-{}", std::process::id());
    let jobs = submit_each(&mesh.nodes[0].client(), files.path(), &mark).await;
    let all_run = async || (processes_with(&mark).len() == 3 + 3 + 2).then_some(());
    until("a task of every runner runs", all_run).await;
    let pid = i32::try_from(mesh.nodes[0].pid().expect("it runs")).expect("a process id");
    let daemon = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(daemon, rustix::process::Signal::STOP).expect("stop");
    until("no process of a task is left, with a daemon that does nothing", async || {
        processes_with(&mark).is_empty().then_some(())
    })
    .await;
    until("the engine knows that too", async || {
        let running = Some(bollard::models::ContainerSummaryStateEnum::RUNNING);
        containers(&docker, &node).await.iter().all(|c| c.state != running).then_some(())
    })
    .await;
    rustix::process::kill_process(daemon, rustix::process::Signal::CONT).expect("continue");
    until("they run again", all_run).await;
    for job in jobs {
        let cancel = Request::Cancel { job, reason: "enough".to_owned() };
        mesh.nodes[0].client().act(&cancel).await.expect("cancel");
    }
    until("nothing of the tasks is left", async || {
        (processes_with(&mark).is_empty() && containers(&docker, &node).await.is_empty()).then_some(())
    })
    .await;
    mesh.stop();
    drop(mesh);
    tokio::task::spawn_blocking(|| drop(engine)).await.expect("end");
}
