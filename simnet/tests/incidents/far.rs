//! Nodes that are far from each other, and links that get longer.

use sinew_scheduler::config::LEASE;
use sinew_simnet::{Latency, Network, World, completed, ended, job, millis, seconds, started, taken_over};

use crate::all_ends_well;

const NAMES: [&str; 4] = ["a", "b", "c", "far"];

/// The last of four nodes is so far from the others, one way; they are a millisecond from each other.
fn with_far(one_way_ms: u64, sigma: f64) -> Network {
    let us = |from: usize, to: usize| if (from == 3) == (to == 3) { 500 } else { one_way_ms * 1_000 };
    let median_us = (0..4).map(|from| (0..4).map(|to| us(from, to)).collect()).collect();
    Network { latency: Latency::Regions { median_us, sigma }, ..Network::lan() }
}

/// Without a fault no lease is lost and no task is started twice, wherever the job comes from.
#[test]
fn far_nodes_keep_their_leases() {
    for (seed, one_way_ms, sigma) in [(2_400, 100, 0.1), (2_401, 200, 0.1), (2_402, 300, 0.15), (2_403, 600, 0.1)] {
        for from in ["far", "a"] {
            let mut world = World::seed(seed).network(with_far(one_way_ms, sigma)).nodes(NAMES);
            world.run_for(seconds(20));
            let tasks = world.submit(from, &job().tasks(6).lasting(seconds(8)).spread());
            world.run_until_within(completed(tasks), seconds(90));
            let starts = world.executions_of(&tasks).count();
            assert_eq!(starts, 6, "{one_way_ms} ms one way, from {from}: every task is started once");
            assert!(!world.holds(&taken_over(tasks)), "{one_way_ms} ms one way, from {from}");
            all_ends_well(&mut world);
        }
    }
}

/// Nodes that have measured nothing yet, and a job that is there before they have.
#[test]
fn a_job_from_far_away_right_at_the_start() {
    for seed in 2_410..2_414 {
        let mut world = World::seed(seed).network(with_far(300, 0.1)).nodes(NAMES);
        let task = world.submit("far", &job().lasting(seconds(1)));
        world.run_until_within(completed(task), seconds(40));
        all_ends_well(&mut world);
    }
}

/// While a job runs, its node's links get so long that its pace is too fast for them.
#[test]
fn a_node_that_moves_away_takes_a_slower_pace() {
    for seed in 2_420..2_424 {
        let mut world = World::seed(seed).network(with_far(1, 0.1)).nodes(NAMES);
        let tasks = world.submit("far", &job().tasks(8).lasting(seconds(5)).spread());
        world.run_until(started(tasks));
        world.set_network(with_far(350, 0.1));
        world.run_until_within(completed(tasks), seconds(120));
        all_ends_well(&mut world);
    }
}

/// A slow pace keeps what a fast one does: its brain dies, and no task of it is started anew before it is fenced.
#[test]
fn a_brain_far_away_dies() {
    for seed in 2_430..2_436 {
        let mut world = World::seed(seed).network(with_far(300, 0.1)).nodes(NAMES);
        world.run_for(seconds(20));
        let tasks = world.submit("far", &job().tasks(6).lasting(seconds(6)).spread());
        world.run_until(started(tasks));
        let wait = world.pick(2_000) as u64;
        world.run_for(millis(wait));
        world.kill("far");
        world.run_for(millis(4 * LEASE.as_ms()));
        world.restart("far");
        world.run_until_within(ended(tasks), seconds(120));
        all_ends_well(&mut world);
    }
}

/// The submitter's links got longer a moment ago, and it has hardly measured that.
#[test]
fn a_job_soon_after_links_got_longer() {
    for seed in 2_440..2_446 {
        let mut world = World::seed(seed).network(with_far(1, 0.1)).nodes(NAMES);
        world.run_for(seconds(30));
        world.set_network(with_far(225, 0.05));
        let wait = 6_000 + world.pick(4_000) as u64;
        world.run_for(millis(wait));
        let tasks = world.submit("far", &job().tasks(6).lasting(seconds(8)).spread());
        world.run_until_within(completed(tasks), seconds(90));
        let starts = world.executions_of(&tasks).count();
        assert!(starts <= 9, "seed {seed}: {starts} starts of six tasks");
        all_ends_well(&mut world);
    }
}
