//! Links that lose, repeat, overtake, flap, or work one way only.

use sinew_simnet::{
    Network, NodeSetup, World, completed, done, job, led_by, millis, round, running, seconds, taken_over,
};

use crate::{all_ends_well, cores};

/// Gossip arrives twice and out of order, frames overtake each other from stream to stream, and one packet in thirty is lost.
#[test]
fn messages_that_come_twice_late_and_out_of_order() {
    for seed in 1_900..1_905 {
        let bad = Network { loss: 300, duplicates: 2_000, reordered: 2_000, ..Network::lan() };
        let mut world = World::seed(seed).network(bad).nodes(["a", "b", "c", "d"]);
        let round = world.submit("a", &round(60, 6).lasting(millis(200)));
        let too_large = world.submit("b", &job().cpus(64.0));
        world.run_until(completed(round));
        world.run_for(seconds(30));
        world.cancel("b", too_large).expect("it waits still");
        all_ends_well(&mut world);
        let counters = world.counters();
        assert!(counters.doubled_gossip > 0 && counters.reordered > 0 && counters.retransmitted > 0, "{counters:?}");
        assert_eq!(counters.stale_results, 0);
    }
}

/// The links of one steward flap faster than anybody gives anything up.
#[test]
fn a_steward_whose_links_flap() {
    for seed in 1_910..1_914 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(220).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 5));
        let steward = world.stewards(&job)[0].clone();
        for name in ["a", "b", "c", "d"].into_iter().filter(|n| *n != steward) {
            world.flap(name, &steward, millis(300), millis(700));
        }
        world.run_for(seconds(8));
        world.expect(led_by(job, "a"));
        world.check_safety();
        assert!(world.counters().flaps > 10);
        world.steady();
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The brain's links flap with just about the time after which stewards stand for brain.
#[test]
fn a_brain_whose_links_flap_at_the_takeover_time() {
    for (seed, down) in [(1_920, 1_400), (1_921, 1_500), (1_922, 1_600), (1_923, 1_750), (1_924, 2_000)] {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(100).lasting(millis(500)).spread());
        world.run_until(done(job, 0, 5));
        for name in ["b", "c", "d"] {
            world.flap(name, "a", millis(400), millis(down));
        }
        for _ in 0..12 {
            world.run_for(millis(500));
            world.check_safety();
        }
        assert!(world.counters().flaps > 6 && world.counters().fenced > 0);
        world.steady();
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A node behind a NAT can only dial out. It works for others, is cut off, and comes back by its own doing.
#[test]
fn a_worker_that_can_only_dial_out() {
    for seed in 1_930..1_934 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.join_as("nat", NodeSetup { dials_out_only: true, ..cores(2) });
        world.run_for(seconds(2));
        let job = world.submit("a", &job().tasks(60).lasting(millis(400)).spread());
        world.run_until(running(job, "nat"));
        world.partition(["nat"], ["a", "b", "c"]);
        world.run_for(seconds(12));
        assert!(!world.connected("nat", "a"), "the connection is gone for good");
        world.heal();
        world.run_for(seconds(1));
        assert!(world.connected("nat", "a"), "it dialled again");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A round on slow links between continents, whose brain dies: slower, and just as right.
#[test]
fn a_brain_that_dies_in_a_mesh_between_continents() {
    for seed in 1_940..1_943 {
        let mut world = World::seed(seed).network(Network::wan()).nodes(["a", "b", "c", "d", "e"]);
        world.run_for(seconds(2));
        let job = world.submit("a", &round(40, 5).lasting(millis(500)));
        world.run_until(done(job, 0, 10));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(4));
        world.run_until(completed(job));
        world.restart("a");
        all_ends_well(&mut world);
    }
}
