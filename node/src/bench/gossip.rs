//! How long an advert takes to reach every node, and what a daemon costs that does nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::meter::{mesh_cpu_s, quantile_ms, rss_bytes};
use crate::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode};

/// Jobs advertised, one after the other.
const ADVERTS: usize = 20;
/// Between two of them, so that each travels alone.
const APART: Duration = Duration::from_millis(250);
/// How long an idle mesh is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Everything must have been heard by then.
const HEARD_BY: Duration = Duration::from_secs(5);

async fn seen(node: &LocalNode) -> anyhow::Result<BTreeMap<JobId, u64>> {
    let mut first = BTreeMap::new();
    for (job, at) in node.client().sightings().await?.adverts {
        first.entry(job).or_insert(at);
    }
    Ok(first)
}

pub(super) async fn run(nodes: usize) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let began = Instant::now();
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes, cpus: 1.0, args: Vec::new() }).await?;
    let formed_s = began.elapsed().as_secs_f64();
    let (idle_cpu, rss) = idle(&mesh).await;
    let client = mesh.nodes[0].client();
    let mut jobs = Vec::new();
    for _ in 0..ADVERTS {
        // Nobody has this label: the job waits, and is advertised.
        let mut draft = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
        draft.labels.insert("bench".to_owned(), "nowhere".to_owned());
        jobs.push(client.submit(draft, |_, _, _| {}).await?);
        tokio::time::sleep(APART).await;
    }
    tokio::time::sleep(HEARD_BY.min(Duration::from_secs(1))).await;
    let published = seen(&mesh.nodes[0]).await?;
    let (mut times, mut missed) = (Vec::new(), 0);
    for node in &mesh.nodes[1..] {
        let heard = seen(node).await?;
        for job in &jobs {
            match (published.get(job), heard.get(job)) {
                (Some(sent), Some(at)) => times.push(Duration::from_micros(at.saturating_sub(*sent))),
                _ => missed += 1,
            }
        }
    }
    times.sort_unstable();
    Ok(json!({
        "bench": "gossip", "nodes": nodes, "formed_s": formed_s, "adverts": jobs.len(), "deliveries": times.len(),
        "deliveries_missed": missed, "p50_ms": quantile_ms(&times, 0.5), "p99_ms": quantile_ms(&times, 0.99),
        "max_ms": quantile_ms(&times, 1.0), "idle_cpu_percent_per_daemon": idle_cpu, "idle_rss_mb_max": rss,
    }))
}

/// CPU per daemon in percent of a core, and the largest resident size in MB.
async fn idle(mesh: &LocalMesh) -> (f64, f64) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = mesh_cpu_s(mesh);
    tokio::time::sleep(IDLE).await;
    let used = mesh_cpu_s(mesh) - before;
    let largest = mesh.nodes.iter().filter_map(LocalNode::pid).map(rss_bytes).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let figures = (used / IDLE.as_secs_f64() / mesh.nodes.len() as f64 * 100.0, largest as f64 / 1e6);
    figures
}
