//! Tasks through brain, ledger and workers: nothing at all, or a process each.

use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftWork, JobDraft, program_from_argv};
use sinew_crdt_state::spec::{Builtin, Program};

use super::meter::mesh_cpu_s;
use crate::api::client::Client;
use crate::api::{Reply, Request};
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Submits a batch of `tasks` and waits until it has ended; seconds from submit to end.
async fn batch(client: &Client, program: Program, tasks: u32, cpu_milli: u32) -> anyhow::Result<f64> {
    let mut draft = JobDraft::batch(program);
    draft.resources.cpu_milli = cpu_milli;
    if let DraftWork::Batch(batch) = &mut draft.work {
        batch.tasks = tasks;
    }
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
    batch(&client, Program::Builtin(Builtin::Noop), 1_000, 1_000).await?;
    let before = mesh_cpu_s(&mesh);
    let elapsed = batch(&client, Program::Builtin(Builtin::Noop), tasks, 1_000).await?;
    let cpu = mesh_cpu_s(&mesh) - before;
    let tasks = f64::from(tasks);
    Ok(json!({
        "bench": "tasks --runner noop", "nodes": nodes, "tasks": tasks, "elapsed_s": elapsed,
        "tasks_per_s": tasks / elapsed, "cpu_us_per_task": cpu * 1e6 / tasks,
    }))
}

pub(super) async fn processes(tasks: u32, mut command: Vec<String>) -> anyhow::Result<Value> {
    const SLOTS: u32 = 2;
    if command.is_empty() {
        command.push("true".to_owned());
    }
    let text = command.join(" ");
    let program = program_from_argv(command)?;
    let floor_tasks = tasks.min(5_000);
    let floor = move || crate::exec::bench::spawn_rate(floor_tasks, SLOTS);
    let before = tokio::task::spawn_blocking(floor).await??;
    let exe = std::env::current_exe()?;
    let options = LocalMeshOptions { exe, nodes: 1, cpus: f64::from(SLOTS), args: Vec::new() };
    let mesh = LocalMesh::start(&options).await?;
    let client = mesh.nodes[0].client();
    batch(&client, program.clone(), 100, 1_000).await?;
    let cpu_before = mesh_cpu_s(&mesh);
    let elapsed = batch(&client, program, tasks, 1_000).await?;
    let cpu = mesh_cpu_s(&mesh) - cpu_before;
    drop(mesh);
    let after = tokio::task::spawn_blocking(floor).await??;
    let floor_per_s = f64::midpoint(before.floor_per_s, after.floor_per_s);
    let tasks = f64::from(tasks);
    let rate = tasks / elapsed;
    Ok(json!({
        "bench": format!("tasks -- {text}"), "nodes": 1, "slots": SLOTS, "tasks": tasks, "elapsed_s": elapsed,
        "tasks_per_s": rate, "floor_posix_spawn_per_s": floor_per_s, "ratio_to_floor": rate / floor_per_s,
        "daemon_cpu_us_per_task": cpu * 1e6 / tasks,
    }))
}
