//! Tasks through brain, ledger and workers: nothing at all, or a process each.

use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftBatch, DraftProgram, DraftWork, JobDraft, program_from_argv};
use sinew_crdt_state::spec::Builtin;

use super::meter::mesh_cpu_s;
use crate::api::client::Client;
use crate::api::{Reply, Request};
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Submits a batch of `tasks` and waits until it has ended; seconds from submit to end.
async fn batch(client: &Client, program: DraftProgram, tasks: u32, cpu_milli: u32) -> anyhow::Result<f64> {
    let mut draft = JobDraft::batch(program);
    draft.resources.cpu_milli = cpu_milli;
    if let DraftWork::Batch(batch) = &mut draft.work {
        batch.tasks = tasks;
    }
    finish(client, draft).await
}

/// Submits a batch and waits until all of it is done; seconds from submit to end.
pub(super) async fn finish(client: &Client, draft: JobDraft) -> anyhow::Result<f64> {
    let DraftWork::Batch(DraftBatch { tasks, .. }) = draft.work else { anyhow::bail!("the job is no batch") };
    let began = Instant::now();
    let job = client.submit(draft, |_, _, _| {}).await?;
    let mut watched = client.ask(&Request::Watch { job: job.to_string() }).await?;
    let mut last = None;
    while let Some(reply) = watched.next().await? {
        if let Reply::Job { view, .. } = reply {
            last = Some(view);
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    let view = last.context("the daemon went away")?;
    let done: u64 = view.phases.iter().map(|p| p.done).sum();
    anyhow::ensure!(done == u64::from(tasks), "only {done} of {tasks} tasks were done: {:?}", view.outcome);
    Ok(elapsed)
}

pub(super) async fn noop(nodes: usize, tasks: u32) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes, cpus: 4.0, args: Vec::new() }).await?;
    let client = mesh.nodes[0].client();
    // Connections, caches and clocks warm up first.
    batch(&client, DraftProgram::Builtin(Builtin::Noop), 1_000, 1_000).await?;
    let before = mesh_cpu_s(&mesh);
    let elapsed = batch(&client, DraftProgram::Builtin(Builtin::Noop), tasks, 1_000).await?;
    let cpu = mesh_cpu_s(&mesh) - before;
    let tasks = f64::from(tasks);
    Ok(json!({
        "bench": "tasks --runner noop", "nodes": nodes, "tasks": tasks, "elapsed_s": elapsed,
        "tasks_per_s": tasks / elapsed, "cpu_us_per_task": cpu * 1e6 / tasks,
    }))
}

pub(super) async fn processes(tasks: u32, mut command: Vec<String>) -> anyhow::Result<Value> {
    if command.is_empty() {
        command.push("true".to_owned());
    }
    let text = command.join(" ");
    let program = program_from_argv(command)?;
    let floor_tasks = tasks.min(5_000);
    let floor = move || crate::exec::bench::spawn_rate(floor_tasks, SLOTS);
    let before = tokio::task::spawn_blocking(floor).await??;
    let [mut sandboxed, mut bare] = [Side::start("required").await?, Side::start("off").await?];
    // By turns, so that whatever else the machine does meanwhile hits both alike.
    for turn in 0..TURNS {
        let share = (tasks + turn) / TURNS;
        sandboxed.run(&program, share).await?;
        bare.run(&program, share).await?;
    }
    let after = tokio::task::spawn_blocking(floor).await??;
    let floor_per_s = f64::midpoint(before.floor_per_s, after.floor_per_s);
    Ok(json!({
        "bench": format!("tasks -- {text}"), "nodes": 1, "slots": SLOTS, "tasks": tasks,
        "sandboxed_tasks_per_s": sandboxed.rate(), "bare_tasks_per_s": bare.rate(),
        "ratio_sandboxed_to_bare": sandboxed.rate() / bare.rate(),
        "floor_posix_spawn_per_s": floor_per_s, "ratio_to_floor": bare.rate() / floor_per_s,
        "daemon_cpu_us_per_task": bare.cpu_us(), "daemon_cpu_us_per_sandboxed_task": sandboxed.cpu_us(),
    }))
}

/// Slots of the daemons that run processes.
const SLOTS: u32 = 2;
/// How often the two ways alternate.
const TURNS: u32 = 4;

/// A daemon that runs programs one way, and what that took.
struct Side {
    mesh: LocalMesh,
    client: Client,
    tasks: f64,
    elapsed_s: f64,
    cpu_s: f64,
}

impl Side {
    async fn start(sandbox: &str) -> anyhow::Result<Self> {
        let args = ["--sandbox", sandbox].map(str::to_owned).to_vec();
        let options = LocalMeshOptions { exe: std::env::current_exe()?, nodes: 1, cpus: f64::from(SLOTS), args };
        let mesh = LocalMesh::start(&options).await?;
        let client = mesh.nodes[0].client();
        let this = Self { mesh, client, tasks: 0.0, elapsed_s: 0.0, cpu_s: 0.0 };
        batch(&this.client, program_from_argv(vec!["true".to_owned()])?, 100, 1_000).await?;
        Ok(this)
    }

    async fn run(&mut self, program: &DraftProgram, tasks: u32) -> anyhow::Result<()> {
        let cpu_before = mesh_cpu_s(&self.mesh);
        self.elapsed_s += batch(&self.client, program.clone(), tasks, 1_000).await?;
        self.cpu_s += mesh_cpu_s(&self.mesh) - cpu_before;
        self.tasks += f64::from(tasks);
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.tasks / self.elapsed_s
    }

    fn cpu_us(&self) -> f64 {
        self.cpu_s * 1e6 / self.tasks
    }
}
