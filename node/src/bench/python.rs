//! Calls of Python functions: by the runner alone, and as a job's tasks through a daemon.

use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftFile, DraftWork, JobDraft};
use sinew_crdt_state::program::ProgramOf;

use super::meter::mesh_cpu_s;
use super::tasks::finish;
use crate::exec::python::bench::{NOOP, call_rate, noop};
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Workers at a time.
const SLOTS: u32 = 2;
/// Tasks before the clock starts.
const WARM_UP: u32 = 200;

fn job(tasks: u32) -> JobDraft {
    let mut draft = JobDraft::batch(ProgramOf::Python(noop()));
    draft.resources.cpu_milli = 1_000;
    if let DraftWork::Batch(batch) = &mut draft.work {
        batch.tasks = tasks;
        batch.inputs = vec![DraftFile::inline(format!("{}.py", NOOP.0), NOOP.1)];
    }
    draft
}

pub(super) async fn run(tasks: u32) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let own = exe.clone();
    let alone = tokio::task::spawn_blocking(move || call_rate(&own, tasks, SLOTS)).await??;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 1, cpus: f64::from(SLOTS), args: Vec::new() }).await?;
    let client = mesh.nodes[0].client();
    finish(&client, job(WARM_UP)).await?;
    let before = mesh_cpu_s(&mesh);
    let elapsed_s = finish(&client, job(tasks)).await?;
    let daemon_cpu_s = mesh_cpu_s(&mesh) - before;
    Ok(json!({
        "bench": "tasks --runner python", "workers": SLOTS, "calls": tasks, "isolated": alone.isolated,
        "runner_calls_per_s": alone.calls_per_s, "runner_driver_cpu_us_per_call": alone.driver_cpu_us,
        "runner_worker_cpu_us_per_call": alone.worker_cpu_us,
        "daemon_calls_per_s": f64::from(tasks) / elapsed_s, "daemon_cpu_us_per_call": daemon_cpu_s * 1e6 / f64::from(tasks),
    }))
}
