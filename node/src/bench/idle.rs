//! What a lone daemon costs that does nothing: alone on the machine, and beside many foreign processes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::meter::{cpu_s, rss_bytes};
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// What a daemon does once after its start is over by then: Python is tried out, caches are filled.
const SETTLE: Duration = Duration::from_secs(5);

/// Processes that sleep, ended with the value.
struct Foreign(Vec<Child>);

impl Foreign {
    fn start(count: u32) -> anyhow::Result<Self> {
        let mut this = Self(Vec::new());
        for _ in 0..count {
            let mut sleep = Command::new("sleep");
            sleep.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            this.0.push(sleep.spawn().context("cannot start `sleep`")?);
        }
        Ok(this)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Both fail only when it is gone already.
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

pub(super) async fn run(seconds: u32, foreign: u32) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 1, cpus: 1.0, args: Vec::new() }).await?;
    let pid = mesh.nodes[0].pid().context("the daemon is gone")?;
    let span = Duration::from_secs(u64::from(seconds));
    tokio::time::sleep(SETTLE.min(span)).await;
    let alone = percent_of_core(pid, span).await;
    let others = Foreign::start(foreign)?;
    let beside = percent_of_core(pid, span).await;
    drop(others);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let rss_mb = rss_bytes(pid) as f64 / 1e6;
    Ok(json!({
        "bench": "idle", "seconds": seconds, "idle_cpu_percent": alone, "foreign_processes": foreign,
        "idle_cpu_percent_beside_foreign": beside, "idle_rss_mb": rss_mb,
    }))
}

async fn percent_of_core(pid: u32, span: Duration) -> f64 {
    let before = cpu_s(pid);
    tokio::time::sleep(span).await;
    (cpu_s(pid) - before) / span.as_secs_f64() * 100.0
}
