//! What each kind of work costs, in counts that hold still where clocks do not: messages and bytes sent, facts merged, and
//! signatures made and checked, in a mesh of three. Each bound says what it stands for; a change that makes work dearer
//! fails here, however fast the machine is.

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::tally::{Tally, tally};
use sinew_simnet::{
    DiskSetup, Distribution, NodeSetup, Plan, Traffic, World, finished_at, job, micros, millis, round, seconds,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What was counted, for so many pieces of work.
#[derive(Debug)]
struct Cost {
    pieces: u64,
    sent: Traffic,
    /// Bytes of frames, as packed for the way.
    bytes: u64,
    syncs: u64,
    tally: Tally,
}

/// Bounds on what one piece of work costs.
#[derive(Debug, Clone, Copy)]
struct AtMost {
    messages: f64,
    bytes: f64,
    facts: f64,
    signed: f64,
    checked: f64,
    /// Syncs of all disks.
    syncs: f64,
}

impl Cost {
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.pieces as f64
    }

    fn messages(&self) -> f64 {
        self.each(self.sent.total().messages)
    }

    /// Fails when one piece of work costs more than a bound; prints what it costs, by kind too.
    fn at_most(&self, what: &str, bound: AtMost) {
        let found = [
            ("messages", self.messages(), bound.messages),
            ("bytes", self.each(self.bytes), bound.bytes),
            ("facts", self.each(self.tally.facts), bound.facts),
            ("signatures made", self.each(self.tally.signed), bound.signed),
            ("signatures checked", self.each(self.tally.checked), bound.checked),
            ("syncs", self.each(self.syncs), bound.syncs),
        ];
        println!("{what}: {found:.2?}");
        for (kind, sent) in self.sent.kinds() {
            println!("  {:>8.3} {:>8.0} B  {}", self.each(sent.messages), self.each(sent.bytes), kind.name());
        }
        for (name, found, bound) in found {
            assert!(found <= bound, "{what}: {found:.3} {name} each, the bound is {bound}");
        }
    }
}

/// Three nodes that know each other, with room for all that is asked of them.
fn mesh(seed: u64) -> World {
    let setup = NodeSetup { cpu_milli: 100_000, ..Default::default() };
    let mut world = World::seed(seed).with(setup).nodes(NAMES);
    world.run_for(seconds(3));
    world
}

/// Counts what `work` costs, all that follows from it included.
fn cost(world: &mut World, pieces: u64, work: impl FnOnce(&mut World)) -> Cost {
    let (before, counted) = (*world.counters(), tally());
    work(world);
    let after = world.counters();
    let (sent, syncs) = (after.traffic.since(&before.traffic), after.syncs - before.syncs);
    Cost { pieces, sent, bytes: after.bytes - before.bytes, syncs, tally: tally().since(counted) }
}

/// Submits `jobs` at one node, `at_once` under way at a time, until all have ended.
fn stream(world: &mut World, plan: &Plan, jobs: usize, at_once: usize) {
    let ended = world.ended_jobs();
    let mut submitted = 0;
    while world.ended_jobs() - ended < jobs {
        while submitted < jobs && submitted - (world.ended_jobs() - ended) < at_once {
            world.submit_later("a", plan);
            submitted += 1;
        }
        assert!(world.step(), "the mesh stands still");
    }
}

fn small() -> Plan {
    job().cpus(0.01).lasting_exactly(micros(50))
}

/// A job's price must not grow with the number of jobs under way. Two of three run on another node than their brain: an
/// offer, a bid, an award, a report. Two stewards store the spec, and then results and verdict: four messages, and four
/// answers. Two nodes hear of the claim or the seal, executors say what is free when an award begins or ends. Nine facts on
/// each of three nodes. A declined award, or a spec offered twice, breaks the bounds: with awards declined for bids that
/// looked alike it was 21 messages and 19 signatures checked at eight at once. A busy node states many facts under one
/// signature, so that each carries a longer way to the root; but they go in one frame, and packed what they share goes once.
///
/// Each of three disks syncs the spec and the verdict. What is under way at the same time shares syncs.
#[test]
fn durable_jobs() {
    for (at_once, bytes, syncs) in [(1, 7_960.0, 6.3), (8, 7_790.0, 3.2), (64, 4_560.0, 0.46)] {
        let mut world = mesh(1);
        let cost = cost(&mut world, 640, |world| stream(world, &small(), 640, at_once));
        let bound = AtMost { messages: 18.6, bytes, facts: 27.1, signed: 8.1, checked: 14.1, syncs };
        cost.at_most(&format!("a durable job, {at_once} at once"), bound);
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(at_once == 64, world.counters().batches > 100, "only a busy node collects inputs");
    }
}

#[test]
fn arrays_and_rounds() {
    // Where the brain's own node runs an array it costs 15 messages; on another one the award and its end cost some more.
    let mut world = mesh(2);
    let array = cost(&mut world, 10, |world| stream(world, &small().tasks(1_000), 10, 1));
    // One award, one report of all that was done, and an accept: no message and no fact for each task.
    let bound = AtMost { messages: 19.8, bytes: 8_000.0, facts: 27.0, signed: 8.4, checked: 14.0, syncs: 6.3 };
    array.at_most("an array of 1,000", bound);
    let rounds = cost(&mut world, 1, |world| stream(world, &round(100, 4).lasting(millis(20)), 1, 1));
    // Each of 104 outputs is copied once where one node ran them all: a question and an answer each. The rest is by node, not by
    // chunk.
    let bound = AtMost { messages: 236.0, bytes: 48_300.0, facts: 35.7, signed: 9.5, checked: 16.8, syncs: 10.5 };
    rounds.at_most("a round of 100 chunks", bound);
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn idle_minutes() {
    let mut world = mesh(3);
    let idle = cost(&mut world, 1, |world| world.run_for(seconds(60)));
    // A failure detector's packet and what is free, six a second in all; a comparison of ledgers every 1.5 s. No signature.
    let bound = AtMost { messages: 930.0, bytes: 80_000.0, facts: 0.0, signed: 0.0, checked: 0.0, syncs: 0.0 };
    idle.at_most("an idle minute of three nodes", bound);
}

/// A job that finds no room is stored by three, acknowledged, and that is all until there is some.
#[test]
fn waiting_jobs() {
    let setup = NodeSetup { cpu_milli: 1_000, ..Default::default() };
    let mut world = World::seed(4).with(setup).nodes(NAMES);
    world.run_for(seconds(2));
    for _ in NAMES {
        world.submit("a", &job().lasting_exactly(seconds(4_000)));
    }
    world.run_for(seconds(2));
    let waiting = cost(&mut world, 100, |world| {
        for _ in 0..100 {
            world.submit("a", &job());
        }
    });
    // The spec there and back to two stewards. Each of three syncs it, once. An advert now and then, for all of a kind.
    let bound = AtMost { messages: 4.4, bytes: 1_780.0, facts: 3.0, signed: 2.0, checked: 2.0, syncs: 3.0 };
    waiting.at_most("a job that waits for room", bound);
}

/// With one job alone it is ways between nodes that take the time: the spec there and back, during which nodes bid, then an award
/// and a report. With the bids asked for only after the spec was safe it was two more.
#[test]
fn the_verdict_of_one_job_alone_waits_for_four_ways() {
    const WAY_MS: u64 = 50;
    let disk = DiskSetup::syncing_in(Distribution::Constant(1_000));
    let brain = NodeSetup { cpu_milli: 0, disk: disk.clone(), ..Default::default() };
    let worker = NodeSetup { disk, ..Default::default() };
    let mut world = World::seed(5).latency_us(1_000 * WAY_MS, 1_000 * WAY_MS).with(brain).nodes(["a"]);
    world = world.with(worker).nodes(["b", "c"]);
    world.run_for(seconds(3));
    for n in 1..=20 {
        let began = world.now();
        let job = world.submit("a", &small());
        world.run_until(finished_at("a", job, Outcome::Completed));
        let took = (world.now() - began).as_ms();
        assert!(took < 5 * WAY_MS, "job {n} took {took} ms, with {WAY_MS} ms from node to node");
        world.run_for(seconds(1));
    }
}
