//! Durable single-task jobs: from submit to result, one at a time, and as many as go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::meter::{fsync_floor, mesh_cpu_s, quantile_ms};
use crate::api::Request;
use crate::api::client::Client;
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Jobs one after the other, for latency.
const ALONE: usize = 200;
/// Jobs under way at once, for throughput.
const AT_ONCE: u32 = 64;

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

pub(super) async fn run(nodes: usize, jobs: u32, rate: Option<u32>) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes, cpus: 4.0, args: Vec::new() }).await?;
    let floor = fsync_floor(mesh.dir())?;
    let client = mesh.nodes[0].client();
    for _ in 0..20 {
        one(&client).await?;
    }
    let (mut accepted, mut results) = (Vec::new(), Vec::new());
    for _ in 0..ALONE {
        let (a, r) = one(&client).await?;
        accepted.push(a);
        results.push(r);
    }
    accepted.sort_unstable();
    results.sort_unstable();
    let cpu_before = mesh_cpu_s(&mesh);
    let (elapsed, submit_elapsed) = many(&client, jobs, rate).await?;
    let cpu = mesh_cpu_s(&mesh) - cpu_before;
    let floor_ms = floor.as_secs_f64() * 1e3;
    let p50 = quantile_ms(&results, 0.5);
    let jobs = f64::from(jobs);
    Ok(json!({
        "bench": "submit", "nodes": nodes, "jobs": jobs, "fsync_floor_ms": floor_ms,
        "accepted_p50_ms": quantile_ms(&accepted, 0.5), "accepted_p99_ms": quantile_ms(&accepted, 0.99),
        "result_p50_ms": p50, "result_p99_ms": quantile_ms(&results, 0.99),
        // A submit and a result are a durable write each, one after the other.
        "p50_beyond_two_fsyncs_ms": p50 - 2.0 * floor_ms,
        "jobs_per_s": jobs / elapsed, "acknowledged_per_s": jobs / submit_elapsed, "cpu_us_per_job": cpu * 1e6 / jobs,
    }))
}

/// Submits `jobs`, many at once; seconds until the last had its result, and until the last was acknowledged.
async fn many(client: &Client, jobs: u32, rate: Option<u32>) -> anyhow::Result<(f64, f64)> {
    let next = Arc::new(AtomicU32::new(0));
    let began = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..AT_ONCE {
        let (client, next) = (client.clone(), Arc::clone(&next));
        workers.push(tokio::spawn(async move {
            let mut last_ack = Duration::ZERO;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= jobs {
                    return anyhow::Ok(last_ack);
                }
                if let Some(rate) = rate {
                    let due = Duration::from_secs_f64(f64::from(n) / f64::from(rate));
                    tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
                }
                let start = began.elapsed();
                let (accepted, _) = one(&client).await?;
                last_ack = start + accepted;
            }
        }));
    }
    let mut last_ack = Duration::ZERO;
    for worker in workers {
        last_ack = last_ack.max(worker.await??);
    }
    Ok((began.elapsed().as_secs_f64(), last_ack.as_secs_f64()))
}
