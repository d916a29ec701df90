//! What is known of a running container beside the thread that drives it: what it uses, and the end of what it wrote to stderr.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use bollard::query_parameters::{InspectContainerOptions, StatsOptionsBuilder};
use futures::StreamExt;

use super::engine::Engine;
use crate::exec::control::Tail;
use crate::exec::procfs;
use crate::exec::runner::{Control, Launch, Stats, Status};
use crate::exec::stop::{StopHandle, StopReason};

/// The engine is asked for what a container uses after this, then after twice as long, and so on to the longest: short tasks
/// get a figure, and long ones do not cost the engine anything to speak of.
const STATS_FIRST: Duration = Duration::from_millis(50);
const STATS_EVERY_MAX: Duration = Duration::from_secs(1);

/// What the driving thread shares with [`Control`].
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stop: StopHandle,
    ended: AtomicBool,
    cpu_ms: AtomicU64,
    rss_bytes: AtomicU64,
    rss_peak: AtomicU64,
    /// Its first process, as the host counts; 0 until it is known.
    pid: AtomicI32,
    tail: Tail,
}

impl Shared {
    pub(super) fn new(launch: &Launch<'_>) -> Self {
        let zero = || AtomicU64::new(0);
        let (cpu_ms, rss_bytes, rss_peak) = (zero(), zero(), zero());
        let (stop, tail) = (launch.stop.clone(), Tail::at(&launch.place));
        Self { stop, ended: AtomicBool::new(false), cpu_ms, rss_bytes, rss_peak, pid: AtomicI32::new(0), tail }
    }

    pub(super) fn add_stderr(&self, bytes: &[u8]) {
        self.tail.add(bytes);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Its processes, as far as they are known.
    pub(super) fn processes(&self) -> Vec<i32> {
        let pid = self.pid.load(Ordering::Relaxed);
        if pid > 0 { procfs::family(pid) } else { Vec::new() }
    }

    /// CPU ms and the highest resident bytes, as far as the engine was asked.
    pub(super) fn used(&self) -> (u64, u64) {
        (self.cpu_ms.load(Ordering::Relaxed), self.rss_peak.load(Ordering::Relaxed))
    }
}

impl Control for Shared {
    fn stop(&self, reason: StopReason) {
        self.stop.stop(reason);
    }

    fn status(&self) -> Status {
        // Its processes are the engine's.
        if self.ended.load(Ordering::Acquire) { Status::Ended } else { Status::Running(None) }
    }

    fn stats(&self) -> Stats {
        if self.ended.load(Ordering::Acquire) {
            return Stats::default();
        }
        Stats { cpu_ms: self.cpu_ms.load(Ordering::Relaxed), rss_bytes: self.rss_bytes.load(Ordering::Relaxed) }
    }

    fn logs(&self) -> Vec<u8> {
        self.tail.get()
    }
}

/// Asks the engine now and then what the container uses.
pub(super) async fn sample(engine: Engine, name: String, shared: Arc<Shared>) {
    let mut pause = STATS_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        if shared.pid.load(Ordering::Relaxed) == 0
            && let Ok(found) = engine.docker.inspect_container(&name, None::<InspectContainerOptions>).await
        {
            let pid = found.state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok());
            shared.pid.store(pid.unwrap_or(0), Ordering::Relaxed);
        }
        pause = (pause * 2).min(STATS_EVERY_MAX);
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let Some(Ok(stats)) = engine.docker.stats(&name, Some(options)).next().await else { continue };
        let cpu_ns = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|usage| usage.total_usage);
        shared.cpu_ms.fetch_max(cpu_ns.unwrap_or(0) / 1_000_000, Ordering::Relaxed);
        let memory = stats.memory_stats.unwrap_or_default();
        // What files merely pass through is no use of memory, as other clients count.
        let inactive =
            memory.stats.as_ref().and_then(|s| s.get("total_inactive_file").or_else(|| s.get("inactive_file")));
        let used = memory.usage.unwrap_or(0).saturating_sub(inactive.copied().unwrap_or(0));
        shared.rss_bytes.store(used, Ordering::Relaxed);
        shared.rss_peak.fetch_max(used, Ordering::Relaxed);
    }
}
