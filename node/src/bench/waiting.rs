//! What jobs cost that wait for a machine which is not there: CPU and memory of a mesh's daemons. Then the machine comes, and
//! the queue drains: beside a load of as many jobs that find it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::counts::settled;
use super::meter::{mesh_cpu_s, rss_bytes};
use crate::api::Request;
use crate::api::client::Client;
use crate::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode};

/// Jobs handed in at once.
const AT_ONCE: u32 = 64;
/// Between two looks at a queue that drains.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A queue of which nothing drains for so long never will.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(nodes: usize, jobs: u32, seconds: u32) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let options = LocalMeshOptions { exe, nodes, cpus: 1.0, args: Vec::new() };
    let mut mesh = LocalMesh::start(&options).await?;
    let span = Duration::from_secs(u64::from(seconds));
    settled(&mesh).await?;
    let idle = percent_per_daemon(&mesh, span).await;
    let rss_idle = rss_mb_max(&mesh);
    let began = Instant::now();
    submit(&mesh.nodes[0].client(), jobs).await?;
    let submit_s = began.elapsed().as_secs_f64();
    let all_settled = settled(&mesh).await?;
    let waiting = percent_per_daemon(&mesh, span).await;
    let rss_waiting = rss_mb_max(&mesh);
    let client = mesh.nodes[0].client();
    // The machine that they wait for, with room for all that can be under way.
    let args = vec!["--label".to_owned(), format!("{}={}", LABEL.0, LABEL.1)];
    mesh.add(&LocalMeshOptions { cpus: 4.0, args, ..options }).await?;
    let drained_s = drained(&client, jobs).await?;
    let began = Instant::now();
    submit_and_watch(&client, jobs).await?;
    let unqueued_s = began.elapsed().as_secs_f64();
    Ok(json!({
        "bench": "waiting", "nodes": nodes, "jobs": jobs, "seconds": seconds, "settled": all_settled,
        "submit_per_s": f64::from(jobs) / submit_s,
        "floor_idle_cpu_percent_per_daemon": idle, "waiting_cpu_percent_per_daemon": waiting,
        "floor_idle_rss_mb_max": rss_idle, "waiting_rss_mb_max": rss_waiting,
        "drained_per_s": f64::from(jobs) / drained_s, "floor_unqueued_per_s": f64::from(jobs) / unqueued_s,
    }))
}

/// The label of the machine that is not there.
const LABEL: (&str, &str) = ("bench", "later");

fn draft() -> JobDraft {
    let mut draft = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
    draft.resources.cpu_milli = 10;
    draft.labels.insert(LABEL.0.to_owned(), LABEL.1.to_owned());
    draft
}

/// Submits jobs.
async fn submit(client: &Client, jobs: u32) -> anyhow::Result<()> {
    many(client, jobs, false).await
}

/// Submits jobs, each once an earlier one has ended.
async fn submit_and_watch(client: &Client, jobs: u32) -> anyhow::Result<()> {
    many(client, jobs, true).await
}

async fn many(client: &Client, jobs: u32, watch: bool) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let mut workers = Vec::new();
    for _ in 0..AT_ONCE {
        let (client, next) = (client.clone(), Arc::clone(&next));
        workers.push(tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < jobs {
                let job = client.submit(draft(), |_, _, _| {}).await?;
                if watch {
                    let mut watched = client.ask(&Request::Watch { job: job.to_string() }).await?;
                    while watched.next().await?.is_some() {}
                }
            }
            anyhow::Ok(())
        }));
    }
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

/// Waits until none of so many jobs is open any more: seconds since the first of them ended.
async fn drained(client: &Client, jobs: u32) -> anyhow::Result<f64> {
    let all = usize::try_from(jobs)?;
    let (mut first, mut open, mut changed) = (None, all, Instant::now());
    loop {
        let now_open = client.status().await?.ledger_entries.0;
        if now_open < open {
            (open, changed) = (now_open, Instant::now());
            first.get_or_insert(changed);
        }
        if let (Some(first), 0) = (first, open) {
            return Ok(changed.duration_since(first).as_secs_f64());
        }
        anyhow::ensure!(
            changed.elapsed() < PATIENCE,
            "{open} of {jobs} jobs still wait, and none has ended for a minute"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
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
