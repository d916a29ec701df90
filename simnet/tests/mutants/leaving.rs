//! Nodes that leave in good order.

use sinew_scheduler::io::Leave;
use sinew_simnet::{NodeSetup, World, completed, job, led_by, millis, running, seconds, started, taken_over};

/// A worker leaves while it runs the only task of a job that tolerates no failure; another has room for it.
pub(crate) fn leaving_worker(seed: u64) {
    let mut world = World::seed(seed);
    world.join_as("brain", NodeSetup { cpu_milli: 0, ..NodeSetup::default() });
    let mut world = world.nodes(["w1", "w2"]);
    let task = world.submit("brain", &job().cpus(1.0).lasting_exactly(seconds(6)).retries(0));
    world.run_until(started(task));
    let worker = if world.holds(&running(task, "w1")) { "w1" } else { "w2" };
    let wait = world.pick(3_000) as u64;
    world.run_for(millis(wait));
    world.leave(worker, Leave::HandOver);
    world.run_until(completed(task));
    assert!(!world.is_up(worker), "it did not leave");
    assert!(!world.was_doubted(worker), "one that left was called suspect, or lost");
    let failed = world.state("brain", &task).map_or(0, |state| state.failures(0, 0).count());
    assert_eq!(failed, 0, "leaving counted as a failure");
    world.restart(worker);
    world.run_for(seconds(3));
    assert!(!world.was_doubted(worker) && world.sees_well("brain", worker), "it is back");
    world.run_until_idle();
    world.check_invariants();
}

/// A brain leaves in the middle of its job, and runs a part of it too.
pub(crate) fn leaving_brain(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let task = world.submit("a", &job().tasks(16).lasting(seconds(2)).spread().retries(0));
    world.run_until(started(task));
    let wait = world.pick(3_000) as u64;
    world.run_for(millis(wait));
    world.leave("a", Leave::HandOver);
    world.run_until(taken_over(task));
    world.run_until(completed(task));
    assert!(!world.holds(&led_by(task, "a")));
    assert!(!world.was_doubted("a"), "one that left was called suspect, or lost");
    world.check_safety();
    world.restart("a");
    world.run_until_idle();
    world.check_invariants();
}

/// A node that nobody hears is asked to take a job, and leaves at once.
pub(crate) fn leaving_submitter(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    for other in ["b", "c", "d"] {
        world.cut_one_way("a", other);
    }
    world.submit_later("a", &job().tasks(4).lasting(seconds(2)));
    let wait = 50 + world.pick(1_000) as u64;
    world.run_for(millis(wait));
    world.leave("a", Leave::AtOnce);
    world.run_for(seconds(2));
    world.heal();
    world.run_until_idle();
    world.check_invariants();
}
