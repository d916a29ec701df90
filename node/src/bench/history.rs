//! A node with a long history: how long it takes to start, what it keeps in memory, and how long a list of its last jobs takes.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sinew_crdt_state::cbor;
use sinew_crdt_state::change::fact_id;
use sinew_crdt_state::envelope::{BATCH_LEN_MAX, seal_batch};
use sinew_crdt_state::fact::{Executed, Fact, Outcome, Statement, Usage};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{Hash, JobId};
use sinew_scheduler::view::{Ending, JobRow};

use super::ledger::{MESH, facts_of};
use super::meter::{quantile_ms, rss_bytes};
use crate::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode};
use crate::storage::Archive;

/// Facts that stay of a job: its spec, the receipt, the seal.
const KEPT: usize = 3;
/// Memory is looked at so long after a start: the first seconds' allocations are over.
const SETTLE: Duration = Duration::from_secs(3);
/// Lists of which the median is told.
const LISTS: usize = 51;

pub(super) async fn run(jobs: u64) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mut mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 1, cpus: 1.0, args: Vec::new() }).await?;
    mesh.stop();
    let empty = start(&mut mesh.nodes[0]).await?;
    mesh.stop();
    let path = mesh.nodes[0].data_dir.join("ledger.redb");
    let began = Instant::now();
    let (at, len) = (path.clone(), jobs);
    tokio::task::spawn_blocking(move || fill(&at, len)).await??;
    let made_s = began.elapsed().as_secs_f64();
    let bytes = std::fs::metadata(&path)?.len();
    let full = start(&mut mesh.nodes[0]).await?;
    let lists = lists(&mesh.nodes[0]).await?;
    mesh.nodes[0].kill();
    let killed = start(&mut mesh.nodes[0]).await?;
    mesh.stop();
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let bytes_per_job = bytes as f64 / jobs as f64;
    Ok(json!({
        "bench": "history", "jobs": jobs, "made_in_s": made_s, "ledger_bytes_per_job": bytes_per_job,
        "start_empty_ms": empty.0, "start_ms": full.0, "start_after_kill_ms": killed.0,
        "rss_empty_bytes": empty.1, "rss_bytes": full.1, "rss_after_kill_bytes": killed.1,
        "list_of_5_p50_ms": quantile_ms(&lists, 0.5), "list_of_5_max_ms": quantile_ms(&lists, 1.0),
    }))
}

/// Starts a daemon: milliseconds until it answers, and its memory when it has settled.
async fn start(node: &mut LocalNode) -> anyhow::Result<(f64, u64)> {
    let began = Instant::now();
    node.start().await?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    tokio::time::sleep(SETTLE).await;
    let pid = node.pid().ok_or_else(|| anyhow::anyhow!("the daemon has ended"))?;
    Ok((ms, rss_bytes(pid)))
}

/// How long the list of the last five jobs takes, sorted.
async fn lists(node: &LocalNode) -> anyhow::Result<Vec<Duration>> {
    let client = node.client();
    let mut times = Vec::with_capacity(LISTS);
    for _ in 0..LISTS {
        let began = Instant::now();
        let shown = client.jobs(5).await?;
        times.push(began.elapsed());
        anyhow::ensure!(shown.len() == 5, "the list has {} jobs", shown.len());
    }
    times.sort_unstable();
    Ok(times)
}

/// Fills a ledger with jobs that were completed, sealed and forgotten, signed as a busy node signs.
fn fill(path: &Path, jobs: u64) -> anyhow::Result<()> {
    let identity = Identity::from_seed([1; 32]);
    let mut archive = Archive::open(path, identity.id())?;
    let batch = (BATCH_LEN_MAX / KEPT) as u64;
    let mut first = 1;
    while first <= jobs {
        let last = jobs.min(first + batch - 1);
        let statements: Vec<(JobId, Statement)> =
            (first..=last).flat_map(|serial| receipt(&identity, serial)).collect();
        let sealed = seal_batch(&identity, MESH, &statements);
        for (serial, facts) in (first..=last).zip(sealed.chunks(KEPT)) {
            let row = JobRow {
                name: format!("job {serial}"),
                kind: "batch".to_owned(),
                ending: Some(Ending::Completed),
                tasks: (1, 1),
                submitter: identity.id(),
                submitted_ms: serial,
                key: None,
            };
            archive.add(facts[0].1.entry, serial, facts.to_vec(), row)?;
        }
        first = last + 1;
    }
    Ok(archive.finish()?)
}

/// What stays of a job.
fn receipt(identity: &Identity, serial: u64) -> [(JobId, Statement); KEPT] {
    let (job, facts) = facts_of(identity, serial);
    let [(_, submit), ..] = &facts[..] else { unreachable!("a job begins with its spec") };
    let stated = |fact| Statement { at_ms: serial, fact };
    let executed = stated(Fact::Receipt(Executed { tasks: 1, usage: Usage::default(), outputs: Hash::of(&[]) }));
    let named = fact_id(identity.id(), &cbor::to_vec(&executed));
    let receipts = vec![(identity.id(), named)];
    let seal = stated(Fact::Seal { term: 1, outcome: Outcome::Completed, receipts, anew: 0 });
    [(job, submit.clone()), (job, executed), (job, seal)]
}
