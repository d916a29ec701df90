//! What jobs cost that wait for a machine which is not there: CPU and memory of a mesh's daemons.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::counts::settled;
use super::meter::{mesh_cpu_s, rss_bytes};
use crate::api::client::Client;
use crate::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode};

/// Jobs handed in at once.
const AT_ONCE: u32 = 32;

pub(super) async fn run(nodes: usize, jobs: u32, seconds: u32) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes, cpus: 1.0, args: Vec::new() }).await?;
    let span = Duration::from_secs(u64::from(seconds));
    settled(&mesh).await?;
    let idle = percent_per_daemon(&mesh, span).await;
    let rss_idle = rss_mb_max(&mesh);
    let began = Instant::now();
    submit(&mesh.nodes[0].client(), jobs).await?;
    let submit_s = began.elapsed().as_secs_f64();
    let all_settled = settled(&mesh).await?;
    let waiting = percent_per_daemon(&mesh, span).await;
    Ok(json!({
        "bench": "waiting", "nodes": nodes, "jobs": jobs, "seconds": seconds, "settled": all_settled,
        "submit_per_s": f64::from(jobs) / submit_s,
        "floor_idle_cpu_percent_per_daemon": idle, "waiting_cpu_percent_per_daemon": waiting,
        "floor_idle_rss_mb_max": rss_idle, "waiting_rss_mb_max": rss_mb_max(&mesh),
    }))
}

/// Submits jobs that no node of the mesh can run.
async fn submit(client: &Client, jobs: u32) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let mut workers = Vec::new();
    for _ in 0..AT_ONCE {
        let (client, next) = (client.clone(), Arc::clone(&next));
        workers.push(tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                let mut draft = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
                draft.labels.insert("bench".to_owned(), "nowhere".to_owned());
                client.submit(draft, |_, _, _| {}).await?;
            }
            anyhow::Ok(())
        }));
    }
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

async fn percent_per_daemon(mesh: &LocalMesh, span: Duration) -> f64 {
    let before = mesh_cpu_s(mesh);
    tokio::time::sleep(span).await;
    let daemons = u32::try_from(mesh.nodes.len()).unwrap_or(u32::MAX);
    (mesh_cpu_s(mesh) - before) / span.as_secs_f64() / f64::from(daemons) * 100.0
}

fn rss_mb_max(mesh: &LocalMesh) -> f64 {
    let largest = mesh.nodes.iter().filter_map(LocalNode::pid).map(rss_bytes).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mb = largest as f64 / 1e6;
    mb
}
