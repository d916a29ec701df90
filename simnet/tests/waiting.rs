//! Jobs that wait for room: what they cost while nothing changes, and how fast they go once there is room.

use sinew_scheduler::kind::{Family, Kind};
use sinew_simnet::{NodeSetup, Traffic, World, answered, job, millis, seconds};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three nodes of one core each, busy until `busy_until` at least, and so many jobs of `a` behind.
fn queue_of(seed: u64, jobs: usize, busy: u64) -> World {
    let mut world = World::seed(seed).with(NodeSetup { cpu_milli: 1_000, ..NodeSetup::default() }).nodes(NAMES);
    world.run_for(seconds(2));
    for _ in NAMES {
        world.submit("a", &job().lasting_exactly(seconds(busy)));
    }
    world.run_for(seconds(2));
    assert_eq!(world.executions_of_all(), 3, "all three nodes are busy");
    let mut last = None;
    for _ in 0..jobs {
        last = Some(world.submit_later("a", &job().lasting_exactly(millis(50))));
        world.run_for(millis(1));
    }
    world.run_until(answered(last.unwrap()));
    world
}

fn main_counts(world: &mut World, span: u64) -> (u64, Traffic) {
    let before = *world.counters();
    world.run_for(seconds(span));
    (world.counters().events - before.events, world.counters().traffic.since(&before.traffic))
}

#[test]
fn baseline() {
    let n: usize = std::env::var("N").map_or(1000, |n| n.parse().unwrap());
    let mut world = queue_of(440, 0.max(1), 1_000);
    let (events, traffic) = main_counts(&mut world, 20);
    println!("1 waiting: {events} events, {} messages {traffic:?}", traffic.total().messages);
    let mut world = queue_of(440, n, 600);
    world.run_for(seconds(20));
    let t = std::time::Instant::now();
    let (events, traffic) = main_counts(&mut world, 20);
    println!("looks {}", world.looks());
    println!("{n} waiting: {events} events, {} messages, {:?} {traffic:?}", traffic.total().messages, t.elapsed());
    let _ = (Family::Claim, Kind::Offer);
}
