//! One experiment twice: with daemons on loopback, and in the simulator with links and disks as fast as those here measured.
//!
//! A mesh forms and settles, is watched while idle, spreads adverts of jobs that no node can take, and then runs short jobs
//! at a gentle rate, submitted to one node after the other. Both runs count the same things in the same places.

mod figures;
mod links;
mod real;
mod simulated;

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use figures::{rows, table};

/// Between two adverts: each travels alone.
const APART: Duration = Duration::from_millis(500);
/// After the last job, for what still goes on about it: reports, seals, ledgers that compare themselves.
const DRAIN: Duration = Duration::from_secs(5);
/// Cores of each node: a few more than its jobs take.
const CPUS: u32 = 2;
/// Cores that a job asks for which is only to be advertised.
const CPUS_NOBODY_HAS: u32 = 64;

/// What is done, in both worlds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Experiment {
    /// Nodes.
    pub(super) nodes: usize,
    /// Adverts, one after the other.
    pub(super) adverts: u32,
    /// Jobs.
    pub(super) jobs: u32,
    /// Jobs a second.
    pub(super) rate: u32,
    /// How long the mesh settles, and is then watched while idle.
    pub(super) idle: Duration,
}

/// What was measured here for the simulator to go by, and what else tells of the machine.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Conditions {
    /// Cores of the machine.
    cores: usize,
    /// Load average of the last minute before and after: includes the daemons.
    load: (f64, f64),
    /// Half a round trip of a frame between two nodes, µs: median, and the spread of its logarithm.
    one_way_us: (u64, f64),
    /// Half a round trip of libp2p's ping between two daemons, which passes no queue, µs: the same.
    ping_us: (u64, f64),
    /// From handing records to the ledger's file to their being synced, µs: the same.
    commit_us: (u64, f64),
    /// From a client's submit to the start of the task, ms: p50 and p99.
    client_start_ms: (f64, f64),
    /// CPU of all daemons for one job, ms, beyond what they use when idle.
    cpu_ms_per_job: f64,
    /// CPU of one idle daemon, percent of a core.
    cpu_percent_idle: f64,
    /// Times that a daemon doubted another, which was alive all the while.
    doubts: usize,
    /// Of the time in which a daemon's thread could have run, how much it waited for a core, percent: idle, with jobs.
    waited_percent: (f64, f64),
}

/// Runs both and prints the comparison.
///
/// # Errors
/// Whatever went wrong, in words.
pub(super) async fn run(plan: Experiment, json: bool) -> anyhow::Result<u8> {
    let (real, conditions) = real::run(&plan).await?;
    let simulated = tokio::task::spawn_blocking(move || simulated::run(&plan, &conditions)).await?;
    let rows = rows(&plan, &real, &simulated);
    if json {
        let plan = json!({
            "nodes": plan.nodes, "adverts": plan.adverts, "jobs": plan.jobs, "rate": plan.rate,
            "idle_s": plan.idle.as_secs(),
        });
        println!("{}", json!({ "bench": "sim-vs-real", "plan": plan, "conditions": conditions, "rows": rows }));
    } else {
        print!("{}\n{}", table(&rows), conditions.text());
    }
    Ok(0)
}

impl Experiment {
    /// When a job is submitted, from the first on.
    fn due(&self, number: u32) -> Duration {
        Duration::from_secs_f64(f64::from(number) / f64::from(self.rate))
    }
}

impl Conditions {
    fn text(&self) -> String {
        let ((link, link_sigma), (commit, commit_sigma)) = (self.one_way_us, self.commit_us);
        format!(
            "simulated with links of {link} µs (sigma {link_sigma:.2}) and syncs of {commit} µs (sigma {commit_sigma:.2}), as \
             measured (a ping: {} µs)\nclient to start: p50 {:.2} ms, p99 {:.2} ms; CPU a job {:.2} ms, an idle daemon {:.2} %\nwaiting for \
             one of {} cores: {:.0} % of the time idle, {:.0} % with jobs; load {:.1} before, {:.1} after; {} doubts\n",
            self.ping_us.0,
            self.client_start_ms.0,
            self.client_start_ms.1,
            self.cpu_ms_per_job,
            self.cpu_percent_idle,
            self.cores,
            self.waited_percent.0,
            self.waited_percent.1,
            self.load.0,
            self.load.1,
            self.doubts,
        )
    }
}
