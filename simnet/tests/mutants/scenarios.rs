//! Runs in which certain mistakes show quickly, each from a seed. They pass on the core as it is.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_simnet::{NodeSetup, World, completed, failed, finished, job, millis, round, running, seconds, started};

const SET: [&str; 3] = ["a", "b", "c"];

/// A worker is cut off just before its task ends, and its report arrives after the task was awarded to another.
pub(crate) fn late_result(seed: u64) {
    let mut world = World::seed(seed);
    world.join_as("brain", NodeSetup { cpu_milli: 0, ..NodeSetup::default() });
    let mut world = world.nodes(["w1", "w2"]);
    let task = world.submit("brain", &job().cpus(1.0).lasting_exactly(millis(1_500)));
    world.run_until(started(task));
    let (first, second) = if world.holds(&running(task, "w1")) { ("w1", "w2") } else { ("w2", "w1") };
    let until = 700 + world.pick(700) as u64;
    world.run_for(millis(until));
    world.partition([first], ["brain", second]);
    world.run_for(millis(1_900));
    world.check_safety();
    world.heal();
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().stalled_frames > 0);
}

/// A member forges a cancel and reports a task that others run.
pub(crate) fn liar(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(12).lasting(seconds(1)).spread());
    world.run_until(running(job, "b"));
    let wait = world.pick(900) as u64;
    world.run_for(millis(wait));
    world.forge_cancel("d", "a", job);
    world.forge_report("d", "a", job);
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().lies == 2 && world.counters().lies_refused > 0);
}

/// The power goes everywhere at the moment of an acknowledgement, and the brain's disk with it.
pub(crate) fn power_cut(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(3));
    for name in SET {
        world.kill(name);
    }
    world.wipe("a");
    world.run_for(millis(300));
    for name in SET {
        world.restart(name);
    }
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// Jobs end and are forgotten while a node that works for them is away.
pub(crate) fn forgotten(seed: u64) {
    let setup = NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &job().tasks(40).lasting(millis(400)).spread());
    world.run_for(seconds(2));
    world.kill("d");
    world.run_until(completed(job));
    world.run_for(seconds(20));
    world.restart("d");
    world.run_for(seconds(90));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.entries(), [0, 0, 0, 0], "everything is forgotten");
}

/// A node is lost for good as soon as a round is complete.
pub(crate) fn disk_lost(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
    let job = world.submit("a", &round(12, 6).lasting(millis(200)));
    world.run_until(completed(job));
    let name = ["b", "c", "d"][world.pick(3)];
    world.kill(name);
    world.wipe(name);
    world.run_for(seconds(1));
    world.restart(name);
    world.run_until_idle();
    world.check_invariants();
}

/// A job is cancelled while it runs.
pub(crate) fn cancelled(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(20).lasting(seconds(5)));
    world.run_until(started(job));
    let wait = world.pick(2_000) as u64;
    world.run_for(millis(wait));
    assert_eq!(world.cancel("b", job), Ok(()));
    world.run_until_within(finished(job, Outcome::Cancelled), seconds(3));
    world.check_safety();
    world.run_until_idle();
    world.check_invariants();
}

/// A task fails once more often than its job tolerates.
pub(crate) fn failing(seed: u64) {
    let mut world = World::seed(seed).nodes(SET);
    let job = world.submit("a", &job().tasks(4).failing(0, 2, 4));
    world.run_until(failed(job, ErrorCode::Exit, 2));
    world.run_until_idle();
    world.check_invariants();
}
