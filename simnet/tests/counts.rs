//! What each kind of work costs, in counts that hold still where clocks do not: messages and bytes sent, facts merged, and
//! signatures made and checked, in a mesh of three. Each bound says what it stands for; a change that makes work dearer
//! fails here, however fast the machine is.

use sinew_crdt_state::tally::{Tally, tally};
use sinew_simnet::{Plan, Traffic, World, job, micros, millis, round, seconds};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What was counted, for so many pieces of work.
#[derive(Debug)]
struct Cost {
    pieces: u64,
    sent: Traffic,
    tally: Tally,
}

impl Cost {
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.pieces as f64
    }

    fn messages(&self) -> f64 {
        self.each(self.sent.total().messages)
    }

    /// Fails when one piece of work costs more than a bound; prints what it costs, by kind too.
    fn at_most(&self, what: &str, messages: f64, bytes: f64, facts: f64, signed: f64, checked: f64) {
        let found = [
            ("messages", self.messages(), messages),
            ("bytes", self.each(self.sent.total().bytes), bytes),
            ("facts", self.each(self.tally.facts), facts),
            ("signatures made", self.each(self.tally.signed), signed),
            ("signatures checked", self.each(self.tally.checked), checked),
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
    let setup = sinew_simnet::NodeSetup { cpu_milli: 100_000, ..Default::default() };
    let mut world = World::seed(seed).with(setup).nodes(NAMES);
    world.run_for(seconds(3));
    world
}

/// Counts what `work` costs, all that follows from it included.
fn cost(world: &mut World, pieces: u64, work: impl FnOnce(&mut World)) -> Cost {
    let (sent, counted) = (world.counters().traffic, tally());
    work(world);
    Cost { pieces, sent: world.counters().traffic.since(&sent), tally: tally().since(counted) }
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
/// looked alike it was 21 messages and 19 signatures checked at eight at once.
#[test]
fn durable_jobs() {
    for at_once in [1, 8, 64] {
        let mut world = mesh(1);
        let cost = cost(&mut world, 640, |world| stream(world, &small(), 640, at_once));
        cost.at_most(&format!("a durable job, {at_once} at once"), 18.6, 13_600.0, 27.1, 8.8, 15.4);
        world.run_until_idle();
        world.check_invariants();
    }
}

#[test]
fn arrays_and_rounds() {
    // Of all nodes the brain's own runs the array; on another one the award and its end cost some messages more.
    let mut world = mesh(4);
    let array = cost(&mut world, 1, |world| stream(world, &small().tasks(1_000), 1, 1));
    // One award, one report of all that was done, and an accept: no message and no fact for each task.
    array.at_most("an array of 1,000", 18.0, 13_000.0, 27.0, 8.0, 12.0);
    let rounds = cost(&mut world, 1, |world| stream(world, &round(100, 4).lasting(millis(20)), 1, 1));
    // Half of all outputs are copied from the other node: a question and an answer each. The rest is by node, not by chunk.
    rounds.at_most("a round of 100 chunks", 150.0, 205_000.0, 38.0, 14.0, 24.0);
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn idle_minutes() {
    let mut world = mesh(3);
    let idle = cost(&mut world, 1, |world| world.run_for(seconds(60)));
    // A failure detector's packet and what is free, six a second in all; a comparison of ledgers every 1.5 s. No signature.
    idle.at_most("an idle minute of three nodes", 930.0, 80_000.0, 0.0, 0.0, 0.0);
}
