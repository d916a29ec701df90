//! The experiment in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use sinew_crdt_state::ids::JobId;
use sinew_scheduler::time::{Span, Time};
use sinew_simnet::{DiskSetup, Distribution, Latency, Network, NodeSetup, World, job};

use super::figures::{Figures, Traffic};
use super::{APART, CPUS, CPUS_NOBODY_HAS, Conditions, DRAIN, Experiment};

/// Any seed does: the experiment has no faults, and averages.
const SEED: u64 = 1;

fn span(time: Duration) -> Span {
    Span(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn time(span: Span) -> Duration {
    Duration::from_micros(span.0)
}

fn spread((median, sigma): (u64, f64)) -> Distribution {
    Distribution::LogNormal { median, sigma }
}

fn traffic(world: &World) -> Traffic {
    let c = world.counters();
    Traffic {
        control_frames: c.control_frames,
        control_bytes: c.control_bytes,
        bulk_frames: c.frames - c.control_frames,
        bulk_bytes: c.bytes - c.control_bytes,
        messages: c.messages,
        published: c.gossip_published,
        copies: c.gossip_sent,
        copies_bytes: c.gossip_bytes,
    }
}

pub(super) fn run(plan: &Experiment, conditions: &Conditions) -> Figures {
    let names: Vec<String> = (0..plan.nodes).map(|n| format!("n{n}")).collect();
    let machine = NodeSetup {
        cpu_milli: CPUS * 1_000,
        disk: DiskSetup::syncing_in(spread(conditions.commit_us)),
        ..NodeSetup::default()
    };
    let network = Network { latency: Latency::Same(spread(conditions.one_way_us)), ..Network::default() };
    let world = World::seed(SEED).with(machine).network(network);
    let mut world = world.nodes(names.iter().map(String::as_str));
    world.run_for(span(plan.idle));
    let before = traffic(&world);
    world.run_for(span(plan.idle));
    let mut figures = Figures { idle: (traffic(&world) - before, plan.idle), ..Figures::default() };
    adverts(plan, &mut world, &names, &mut figures);
    jobs(plan, &mut world, &names, &mut figures);
    figures
}

fn adverts(plan: &Experiment, world: &mut World, names: &[String], figures: &mut Figures) {
    world.note_adverts();
    let waits = job().cpus(f64::from(CPUS_NOBODY_HAS));
    let mut advertised = Vec::new();
    for name in names.iter().cycle().take(plan.adverts as usize) {
        let before = traffic(world);
        let id = world.submit(name, &waits);
        advertised.push(id);
        world.run_for(span(APART));
        figures.spread = figures.spread + (traffic(world) - before);
        if let Err(error) = world.cancel(name, id) {
            debug_assert!(false, "{error}");
        }
        world.run_for(span(APART));
    }
    let mut first: BTreeMap<JobId, BTreeMap<usize, Time>> = BTreeMap::new();
    for heard in world.adverts_heard() {
        first.entry(heard.job).or_default().entry(heard.node).or_insert(heard.at);
    }
    for id in advertised {
        figures.add_advert(plan, first.remove(&id).unwrap_or_default().into_values().map(|t| t.0).collect());
    }
    figures.arrivals.sort_unstable();
    figures.last_arrivals.sort_unstable();
    let peers: usize = names.iter().map(|name| world.gossip_degree(name)).sum();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let mean = peers as f64 / names.len() as f64;
    figures.gossip_peers = mean;
}

fn jobs(plan: &Experiment, world: &mut World, names: &[String], figures: &mut Figures) {
    let short = job().lasting_exactly(Span(0));
    let (before, begin) = (traffic(world), world.now());
    let mut submitted = Vec::new();
    for (number, name) in (0..plan.jobs).zip(names.iter().cycle()) {
        let due = begin + span(plan.due(number));
        if due > world.now() {
            world.run_for(due - world.now());
        }
        let at = world.now();
        let id = world.submit(name, &short);
        figures.acknowledged.push(time(world.now() - at));
        submitted.push((id, at));
    }
    world.run_for(span(DRAIN));
    figures.busy = (traffic(world) - before, time(world.now() - begin));
    for (id, at) in submitted {
        match world.executions_of(&id).map(|e| e.start).min() {
            Some(start) => figures.starts.push(time(start - at)),
            None => figures.unstarted += 1,
        }
    }
    figures.acknowledged.sort_unstable();
    figures.starts.sort_unstable();
}
