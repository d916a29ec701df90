//! Meshes of one and of two.

use sinew_simnet::{World, completed, done, ended, job, millis, round, running, seconds};

use crate::all_ends_well;

/// A node alone is killed in the middle: its own disk is enough to go on.
#[test]
fn a_mesh_of_one_goes_on_after_its_restart() {
    for seed in 1_700..1_705 {
        let mut world = World::seed(seed).nodes(["a"]);
        let job = world.submit("a", &round(30, 3).lasting(millis(200)));
        world.run_until(done(job, 0, 10));
        let before = world.accepted_at("a", &job, 0);
        world.kill("a");
        world.run_for(seconds(1));
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(before > 0 && world.executed_again(&job, 0) <= 10, "what was written down is not run again");
    }
}

/// A node alone submits; two others join while the job runs and help.
#[test]
fn a_mesh_of_one_that_grows() {
    for seed in 1_710..1_713 {
        let mut world = World::seed(seed).nodes(["a"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 4));
        for name in ["b", "c"] {
            world.join_as(name, crate::cores(2));
        }
        world.run_until_within(running(job, "b"), seconds(4));
        world.run_until_within(running(job, "c"), seconds(4));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.brain_set(&job), ["a"]);
    }
}

/// Of two nodes the worker dies: the other one does all the work.
#[test]
fn a_mesh_of_two_loses_its_worker() {
    for seed in 1_720..1_725 {
        let mut world = World::seed(seed).nodes(["a", "b"]);
        let job = world.submit("a", &job().tasks(30).lasting(millis(400)).spread());
        world.run_until(running(job, "b"));
        world.run_for(millis(500));
        world.kill("b");
        world.run_until(completed(job));
        world.restart("b");
        all_ends_well(&mut world);
        assert_eq!((world.counters().kills, world.accepted_at("b", &job, 0)), (1, 30));
    }
}

/// Of two nodes the brain dies: nobody may take over, and the worker stops; the job goes on when the brain is back.
#[test]
fn a_mesh_of_two_loses_its_brain() {
    for seed in 1_730..1_735 {
        let mut world = World::seed(seed).nodes(["a", "b"]);
        let job = world.submit("a", &job().tasks(40).lasting(millis(400)).spread());
        world.run_until(running(job, "b"));
        world.kill("a");
        world.run_for(seconds(3));
        assert!(world.running_on("b", &job).is_empty() && world.leaders(&job).is_empty());
        world.run_for(seconds(10));
        assert!(!world.holds(&ended(job)));
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Two nodes lose sight of each other: the one that submitted goes on by itself, the other one stops.
#[test]
fn a_mesh_of_two_falls_in_two() {
    for (seed, cut) in [(1_740, 1_800), (1_741, 4_000), (1_742, 25_000)] {
        let mut world = World::seed(seed).nodes(["a", "b"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(400)).spread());
        world.run_until(running(job, "b"));
        let other = world.submit("b", &sinew_simnet::job().tasks(60).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 8));
        assert!(!world.running_on("b", &job).is_empty(), "the cut hurts somebody");
        world.partition(["a"], ["b"]);
        world.run_for(millis(cut));
        assert!(world.running_on("b", &job).is_empty() && world.running_on("a", &other).is_empty());
        assert!(world.counters().fenced > 0);
        world.heal();
        world.run_until(completed(job));
        world.run_until(completed(other));
        all_ends_well(&mut world);
    }
}
