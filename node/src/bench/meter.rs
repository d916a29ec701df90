//! What processes used, and what this machine's disk does at best.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use sinew_crdt_state::envelope::seal_batch;
use sinew_crdt_state::identity::Identity;
use sinew_scheduler::io::{Record, Ticket};

use super::ledger::{MESH, facts_of};
use crate::local_mesh::LocalMesh;
use crate::storage::{Storage, StorageEvent};

/// Clock ticks a second in `/proc`: the kernel's `USER_HZ`, 100 on every Linux we run on.
const TICKS_PER_S: f64 = 100.0;

/// CPU seconds that a process has used, user and system.
pub(super) fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; the numbers follow the last one.
    let numbers = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = numbers.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_S
}

/// Seconds that the threads of a process which still run have waited for a core.
fn waited_s(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    // Run time, time on the run queue, turns (Linux, Documentation/scheduler/sched-stats.rst).
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    stats.filter_map(|s| s.split_whitespace().nth(1)?.parse::<f64>().ok()).sum::<f64>() / 1e9
}

/// Seconds that all daemons have waited for a core.
pub(super) fn mesh_waited_s(mesh: &LocalMesh) -> f64 {
    mesh.nodes.iter().filter_map(crate::local_mesh::LocalNode::pid).map(waited_s).sum()
}

/// The system's load over the last minute.
pub(super) fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds of all daemons together.
pub(super) fn mesh_cpu_s(mesh: &LocalMesh) -> f64 {
    mesh.nodes.iter().filter_map(crate::local_mesh::LocalNode::pid).map(cpu_s).sum()
}

/// Resident bytes of a process.
pub(super) fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Median time of appending a few KB to a file and syncing it: what a durable write costs at least.
pub(super) fn fsync_floor(dir: &Path) -> std::io::Result<Duration> {
    const TIMES: usize = 101;
    let mut file = std::fs::File::create(dir.join("fsync"))?;
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[TIMES / 2])
}

/// Times from handing a job's first facts to a ledger's file to their being synced.
pub(super) fn commit_times(dir: &Path) -> anyhow::Result<Vec<Duration>> {
    const TIMES: u64 = 101;
    /// What a steward writes when a job comes in.
    const FACTS: usize = 3;
    let (tx, synced) = std::sync::mpsc::channel();
    let tell = move |event| {
        // Whoever measures waits for each.
        let _ = tx.send(matches!(event, StorageEvent::Persisted(..)));
    };
    let storage = Storage::open(&dir.join("commits.redb"), tell)?;
    let identity = Identity::from_seed([1; 32]);
    let mut times = Vec::new();
    for serial in 0..TIMES {
        let (_, facts) = facts_of(&identity, serial);
        let sealed = seal_batch(&identity, MESH, &facts[..FACTS]);
        let records = sealed.into_iter().map(|(id, envelope)| Record::Fact { id, envelope }).collect();
        let began = Instant::now();
        storage.persist(Ticket(serial), records, true);
        anyhow::ensure!(synced.recv()?, "the disk refuses records");
        times.push(began.elapsed());
    }
    Ok(times)
}

/// The value at `share` (0 to 1) of sorted durations, in ms.
pub(super) fn quantile_ms(sorted: &[Duration], share: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[at].as_secs_f64() * 1e3
}
