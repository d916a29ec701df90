//! Durable single-task jobs: from submit to result, one at a time, and as many as go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::counts::{Counts, settled};
use super::meter::{fsync_floor, mesh_cpu_s, quantile_ms};
use crate::api::Request;
use crate::api::client::Client;
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Jobs one after the other, for latency.
const ALONE: u32 = 200;

/// How many jobs, and how they come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// In all.
    pub(super) jobs: u32,
    /// Under way at once.
    pub(super) at_once: u32,
    /// Jobs a second; as many as go without.
    pub(super) rate: Option<u32>,
}

/// How a load went.
#[derive(Debug, Default)]
struct Went {
    /// Seconds until the last job had its result.
    elapsed_s: f64,
    /// Seconds until the last job was acknowledged.
    acknowledged_s: f64,
    /// From each submit to its result, sorted.
    results: Vec<Duration>,
}

fn draft() -> JobDraft {
    let mut draft = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
    // Small enough that slots never run out: what is measured is the deciding.
    draft.resources.cpu_milli = 10;
    draft
}

/// Submits a job and waits for its end: times to the acknowledgement and to the result.
async fn one(client: &Client) -> anyhow::Result<(Duration, Duration)> {
    let began = Instant::now();
    let job = client.submit(draft(), |_, _, _| {}).await?;
    let accepted = began.elapsed();
    let mut watched = client.ask(&Request::Watch { job: job.to_string() }).await?;
    while watched.next().await?.is_some() {}
    Ok((accepted, began.elapsed()))
}

pub(super) async fn run(nodes: usize, load: Load) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes, cpus: 4.0, args: Vec::new() }).await?;
    let floor = fsync_floor(mesh.dir())?;
    let client = mesh.nodes[0].client();
    for _ in 0..20 {
        one(&client).await?;
    }
    let (mut accepted, mut results) = (Vec::new(), Vec::new());
    for _ in 0..load.jobs.min(ALONE) {
        let (a, r) = one(&client).await?;
        accepted.push(a);
        results.push(r);
    }
    accepted.sort_unstable();
    results.sort_unstable();
    settled(&mesh).await?;
    let before = Counts::take(&mesh).await?;
    let cpu_before = mesh_cpu_s(&mesh);
    let went = many(&client, load).await?;
    let cpu = mesh_cpu_s(&mesh) - cpu_before;
    // What is still to be sealed, sent and written belongs to these jobs too.
    let all_settled = settled(&mesh).await?;
    let after = Counts::take(&mesh).await?;
    let floor_ms = floor.as_secs_f64() * 1e3;
    let p50 = quantile_ms(&results, 0.5);
    let jobs = f64::from(load.jobs);
    let mut report = json!({
        "bench": "submit", "nodes": nodes, "jobs": jobs, "at_once": load.at_once, "fsync_floor_ms": floor_ms,
        "accepted_p50_ms": quantile_ms(&accepted, 0.5), "accepted_p99_ms": quantile_ms(&accepted, 0.99),
        "result_p50_ms": p50, "result_p99_ms": quantile_ms(&results, 0.99),
        // A submit and a result are a durable write each, one after the other.
        "p50_beyond_two_fsyncs_ms": p50 - 2.0 * floor_ms,
        // The same of the load, as many at once as it has.
        "p50_ms": quantile_ms(&went.results, 0.5), "p99_ms": quantile_ms(&went.results, 0.99),
        "jobs_per_s": jobs / went.elapsed_s, "acknowledged_per_s": jobs / went.acknowledged_s,
        "cpu_us_per_job": cpu * 1e6 / jobs, "settled": all_settled,
    });
    if let Some(figures) = report.as_object_mut() {
        figures.append(&mut after.per_job(&before, jobs));
    }
    Ok(report)
}

/// Submits the jobs of a load and waits for their results.
async fn many(client: &Client, load: Load) -> anyhow::Result<Went> {
    let next = Arc::new(AtomicU32::new(0));
    let began = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..load.at_once {
        let (client, next) = (client.clone(), Arc::clone(&next));
        workers.push(tokio::spawn(async move {
            let (mut last_ack, mut results) = (Duration::ZERO, Vec::new());
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= load.jobs {
                    return anyhow::Ok((last_ack, results));
                }
                if let Some(rate) = load.rate {
                    let due = Duration::from_secs_f64(f64::from(n) / f64::from(rate));
                    tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
                }
                let start = began.elapsed();
                let (accepted, result) = one(&client).await?;
                last_ack = start + accepted;
                results.push(result);
            }
        }));
    }
    let mut went = Went::default();
    let mut last_ack = Duration::ZERO;
    for worker in workers {
        let (ack, results) = worker.await??;
        last_ack = last_ack.max(ack);
        went.results.extend(results);
    }
    went.elapsed_s = began.elapsed().as_secs_f64();
    went.acknowledged_s = last_ack.as_secs_f64();
    went.results.sort_unstable();
    Ok(went)
}
