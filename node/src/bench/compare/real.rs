//! The experiment with daemons, each a process of its own on this machine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::{DraftProgram, JobDraft};
use sinew_crdt_state::spec::Builtin;

use super::super::meter::{commit_times, load_average, mesh_cpu_s, mesh_waited_s, quantile_ms};
use super::figures::{Figures, Traffic};
use super::links;
use super::{APART, CPUS, CPUS_NOBODY_HAS, Conditions, DRAIN, Experiment};
use crate::api::{Request, TrafficView};
use crate::clock::unix_us;
use crate::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode};
use crate::sightings::{Seen, Sighting};

/// Standard deviations between the median and the 90th percentile of a normal distribution.
const P90_SIGMAS: f64 = 1.281_6;

/// CPU that daemons used and time that they waited for a core, s.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    used: f64,
    waited: f64,
}

impl Cpu {
    fn of(mesh: &LocalMesh) -> Self {
        Self { used: mesh_cpu_s(mesh), waited: mesh_waited_s(mesh) }
    }

    fn since(self, before: Self) -> Self {
        Self { used: self.used - before.used, waited: self.waited - before.waited }
    }

    fn waited_percent(self) -> f64 {
        100.0 * self.waited / (self.used + self.waited).max(f64::MIN_POSITIVE)
    }
}

pub(super) async fn run(plan: &Experiment) -> anyhow::Result<(Figures, Conditions)> {
    let mut conditions = Conditions {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        load: (load_average(), 0.0),
        ..Conditions::default()
    };
    let exe = std::env::current_exe()?;
    let options = LocalMeshOptions { exe, nodes: plan.nodes, cpus: f64::from(CPUS), args: Vec::new() };
    let mesh = LocalMesh::start(&options).await?;
    tokio::time::sleep(plan.idle).await;
    let (before, cpu, began) = (traffic(&mesh).await?, Cpu::of(&mesh), Instant::now());
    tokio::time::sleep(plan.idle).await;
    let (idle_cpu, idle) = (Cpu::of(&mesh).since(cpu), began.elapsed());
    let mut figures = Figures { idle: (traffic(&mesh).await? - before, idle), ..Figures::default() };
    conditions.ping_us = round_trips(&mesh).await?;
    conditions.one_way_us = middle(links::one_way().await?)?;
    let dir = mesh.dir().to_owned();
    conditions.commit_us = middle(tokio::task::spawn_blocking(move || commit_times(&dir)).await??)?;
    adverts(plan, &mesh, &mut figures).await?;
    let cpu = Cpu::of(&mesh);
    let clients = jobs(plan, &mesh, &mut figures).await?;
    let (busy_cpu, busy) = (Cpu::of(&mesh).since(cpu), figures.busy.1);
    let share = busy.as_secs_f64() / idle.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let nodes = plan.nodes as f64;
    conditions.client_start_ms = (quantile_ms(&clients, 0.5), quantile_ms(&clients, 0.99));
    conditions.cpu_ms_per_job = (busy_cpu.used - idle_cpu.used * share) * 1e3 / f64::from(plan.jobs);
    conditions.cpu_percent_idle = idle_cpu.used / idle.as_secs_f64() / nodes * 100.0;
    conditions.waited_percent = (idle_cpu.waited_percent(), busy_cpu.waited_percent());
    conditions.load.1 = load_average();
    conditions.doubts = mesh.nodes.iter().map(doubts).sum();
    Ok((figures, conditions))
}

/// How often a daemon took another for suspect or lost, by its log.
fn doubts(node: &LocalNode) -> usize {
    let log = node.log();
    log.lines().filter(|line| line.contains("state=suspect") || line.contains("state=lost")).count()
}

/// What all daemons have sent, and got by gossip, so far.
async fn traffic(mesh: &LocalMesh) -> anyhow::Result<Traffic> {
    let ask = |node: &LocalNode| {
        let client = node.client();
        async move { client.status().await }
    };
    let views = try_join_all(mesh.nodes.iter().map(ask)).await?;
    Ok(views.iter().map(|view| Traffic::from(view.traffic)).fold(Traffic::default(), |a, b| a + b))
}

impl From<TrafficView> for Traffic {
    fn from(view: TrafficView) -> Self {
        Self {
            control_frames: view.control.sent,
            control_bytes: view.control.sent_bytes,
            bulk_frames: view.bulk.sent,
            bulk_bytes: view.bulk.sent_bytes,
            messages: view.messages_sent,
            published: view.gossip_published,
            copies: view.gossip_copies,
            copies_bytes: view.gossip_copies_bytes,
        }
    }
}

async fn sightings(mesh: &LocalMesh) -> anyhow::Result<Vec<Seen>> {
    let ask = |node: &LocalNode| {
        let client = node.client();
        async move { client.sightings().await }
    };
    Ok(try_join_all(mesh.nodes.iter().map(ask)).await?)
}

/// Half of each round trip that a daemon's ping last measured.
async fn round_trips(mesh: &LocalMesh) -> anyhow::Result<(u64, f64)> {
    let mut half = Vec::new();
    for node in &mesh.nodes {
        let peers = node.client().peers().await?;
        half.extend(peers.iter().filter_map(|p| p.rtt_us).map(|us| Duration::from_micros(u64::from(us) / 2)));
    }
    middle(half)
}

/// The median, µs, and the standard deviation of the logarithm, from the median and the 90th percentile.
fn middle(mut times: Vec<Duration>) -> anyhow::Result<(u64, f64)> {
    times.sort_unstable();
    let (median, high) = (quantile_ms(&times, 0.5), quantile_ms(&times, 0.9));
    anyhow::ensure!(median > 0.0, "nothing was measured");
    let median_us = times[(times.len() - 1) / 2].as_micros();
    Ok((u64::try_from(median_us)?.max(1), ((high / median).ln() / P90_SIGMAS).max(0.01)))
}

fn draft(cpus: u32) -> JobDraft {
    let mut draft = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
    draft.resources.cpu_milli = cpus * 1_000;
    draft
}

/// When each job was first seen.
fn first<'a>(seen: impl IntoIterator<Item = &'a Sighting>) -> BTreeMap<JobId, u64> {
    let mut first: BTreeMap<JobId, u64> = BTreeMap::new();
    for (job, at) in seen {
        first.entry(*job).and_modify(|earlier| *earlier = (*earlier).min(*at)).or_insert(*at);
    }
    first
}

async fn adverts(plan: &Experiment, mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<()> {
    let mut advertised = Vec::new();
    for node in mesh.nodes.iter().cycle().take(plan.adverts as usize) {
        let before = traffic(mesh).await?;
        let job = node.client().submit(draft(CPUS_NOBODY_HAS), |_, _, _| {}).await?;
        advertised.push(job);
        tokio::time::sleep(APART).await;
        figures.spread = figures.spread + (traffic(mesh).await? - before);
        node.client().act(&Request::Cancel { job: job.to_string(), reason: "it was advertised".to_owned() }).await?;
        tokio::time::sleep(APART).await;
    }
    let heard: Vec<BTreeMap<JobId, u64>> = sightings(mesh).await?.iter().map(|seen| first(&seen.adverts)).collect();
    for job in advertised {
        figures.add_advert(plan, heard.iter().filter_map(|node| node.get(&job).copied()).collect());
    }
    figures.arrivals.sort_unstable();
    figures.last_arrivals.sort_unstable();
    let mut peers = 0;
    for node in &mesh.nodes {
        peers += node.client().status().await?.traffic.gossip_peers;
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let mean = peers as f64 / plan.nodes as f64;
    figures.gossip_peers = mean;
    Ok(())
}

/// Runs the jobs; times from their submits at the client to their starts.
async fn jobs(plan: &Experiment, mesh: &LocalMesh, figures: &mut Figures) -> anyhow::Result<Vec<Duration>> {
    let (before, begin) = (traffic(mesh).await?, Instant::now());
    let mut asked = BTreeMap::new();
    for (number, node) in (0..plan.jobs).zip(mesh.nodes.iter().cycle()) {
        tokio::time::sleep(plan.due(number).saturating_sub(begin.elapsed())).await;
        let at = unix_us();
        let job = node.client().submit(draft(1), |_, _, _| {}).await?;
        figures.acknowledged.push(Duration::from_micros(unix_us() - at));
        asked.insert(job, at);
    }
    tokio::time::sleep(DRAIN).await;
    figures.busy = (traffic(mesh).await? - before, begin.elapsed());
    let seen = sightings(mesh).await?;
    let submits = first(seen.iter().flat_map(|s| &s.submits));
    let starts = first(seen.iter().flat_map(|s| &s.starts));
    let mut clients = Vec::new();
    for (job, asked) in asked {
        let Some(start) = starts.get(&job) else {
            figures.unstarted += 1;
            continue;
        };
        let submitted = submits.get(&job).context("a daemon forgot when it took a job")?;
        figures.starts.push(Duration::from_micros(start.saturating_sub(*submitted)));
        clients.push(Duration::from_micros(start.saturating_sub(asked)));
    }
    figures.acknowledged.sort_unstable();
    figures.starts.sort_unstable();
    clients.sort_unstable();
    Ok(clients)
}
