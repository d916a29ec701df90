//! Numbers of jobs: none is given out twice, and where one was, both jobs stay known.

use sinew_simnet::{DiskSetup, Distribution, NodeSetup, World, completed, job, seconds, started};

use crate::all_ends_well;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A job is acknowledged by two other disks while the submitter's own takes its time, and the submitter's power goes. It starts
/// again, and takes another job before it has heard of the first.
#[test]
fn a_number_is_not_given_to_a_second_job_after_a_crash() {
    for seed in 12_200..12_206 {
        let mut world = World::seed(seed).nodes(NAMES);
        world.submit("a", &job());
        world.run_until_idle();
        world.run_for(seconds(1));
        world.set_disk("a", DiskSetup::syncing_in(Distribution::Uniform { low: 5_000_000, high: 6_000_000 }));
        let first = world.submit("a", &job().tasks(2).lasting(seconds(20)));
        assert_eq!(world.written_at("a", &first), 0, "only the others have it on disk");
        world.cut_power("a");
        world.set_disk("a", DiskSetup::default());
        world.restart("a");
        world.submit_later("a", &job().tasks(2));
        world.run_until(completed(first));
        all_ends_well(&mut world);
    }
}

/// The mesh's nodes forget jobs by their numbers. A running job that has the number of a forgotten one is not forgotten with
/// it, not even by a node that starts again.
#[test]
fn a_job_with_the_number_of_a_forgotten_one_survives_rolling_restarts() {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(12_210).with(setup).nodes(NAMES);
    let first = world.submit("a", &job());
    let twin = world.submit_with_number_of("a", &job().tasks(2).lasting(seconds(60)), &first);
    world.run_until(completed(first));
    world.run_until(started(twin));
    world.run_for(seconds(15));
    assert_eq!(world.entries(), [1; 5], "the first is forgotten, the second is not");
    for name in NAMES {
        world.kill(name);
        world.run_for(seconds(1));
        world.restart(name);
        world.run_for(seconds(4));
    }
    assert_eq!(world.entries(), [1; 5], "nor is it by then");
    world.run_until(completed(twin));
    world.run_until_idle();
    world.check_safety();
}

/// One that comes when the first is forgotten everywhere is taken in all the same.
#[test]
fn a_job_with_the_number_of_a_forgotten_one_is_taken_in() {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(12_220).with(setup).nodes(NAMES);
    let first = world.submit("a", &job());
    world.run_until(completed(first));
    world.run_for(seconds(15));
    assert_eq!(world.entries(), [0; 5], "it is forgotten");
    let twin = world.submit_with_number_of("a", &job().tasks(2).lasting(seconds(2)), &first);
    world.run_until(completed(twin));
    world.run_until_idle();
    world.check_safety();
}
