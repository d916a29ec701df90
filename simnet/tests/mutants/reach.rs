//! Runs in which inputs are out of reach, or workers end nothing.

use std::collections::BTreeSet;

use sinew_crdt_state::ids::JobId;
use sinew_simnet::{Network, NodeSetup, World, completed, done, job, millis, round, seconds, started};

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Map outputs are copied again, or made anew, ten seconds after their holders are gone: a run need not take a minute for it.
fn hasty() -> NodeSetup {
    NodeSetup { copy_again_after_ms: 10_000, ..NodeSetup::default() }
}

/// A round whose last map task takes long, and two nodes of which at most one is in the brain set and that hold, alone, the output
/// of another map task. `None` where no two such nodes are there.
fn nearly_mapped(world: &mut World) -> Option<(JobId, Vec<&'static str>)> {
    let plan = round(10, 4).lasting(millis(300)).slow_task(0, 9, seconds(6));
    let job = world.submit("a", &plan);
    world.run_until(done(job, 0, 9));
    world.run_for(seconds(1));
    let set: BTreeSet<String> = world.brain_set(&job).into_iter().collect();
    let busy: Vec<&str> = FIVE.into_iter().filter(|n| !world.running_on(n, &job).is_empty()).collect();
    let pair = (0..9).map(|task| world.recorded_holders("a", &job, 0, task)).find(|pair| {
        let apart = !pair.contains("a") && !busy.iter().any(|n| pair.contains(*n));
        pair.len() == 2 && apart && pair.iter().filter(|n| set.contains(*n)).count() < 2
    })?;
    Some((job, FIVE.into_iter().filter(|n| pair.contains(*n)).collect()))
}

/// The only holders of a map output are cut off for longer than any task would be tried, and come back.
pub(crate) fn cut_off_holders(seed: u64) {
    let mut world = World::seed(seed).nodes(FIVE);
    let Some((job, pair)) = nearly_mapped(&mut world) else { return };
    let rest = FIVE.into_iter().filter(|n| !pair.contains(n));
    world.partition(pair.iter().copied(), rest);
    world.run_for(seconds(20));
    assert!(world.counters().blocked > 0, "nothing was out of reach");
    world.heal();
    world.run_until_within(completed(job), seconds(25));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.counters().made_anew, 0, "what is only out of reach is waited for");
}

/// The only holders of a map output are lost for good.
pub(crate) fn lost_holders(seed: u64) {
    let mut world = World::seed(seed).with(hasty()).nodes(FIVE);
    let Some((job, pair)) = nearly_mapped(&mut world) else { return };
    for name in pair {
        world.kill(name);
        world.wipe(name);
    }
    world.run_until_within(completed(job), seconds(60));
    assert!(world.counters().made_anew > 0, "nothing was lost");
    world.run_until_idle();
    world.check_invariants();
}

/// A node answers every beat and begins nothing.
pub(crate) fn hog(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c"]);
    world.hog("c");
    let plan = job().tasks(6).lasting(millis(500)).limit(seconds(5)).spread();
    let job = world.submit("a", &plan);
    world.run_until(started(job));
    world.run_until_within(completed(job), seconds(60));
    assert!(world.counters().hogged > 0 && world.counters().overdue > 0, "nobody hogged");
    world.run_until_idle();
    world.check_invariants();
}

/// The inputs of a job take longer to its set than a submit waits without any progress.
pub(crate) fn slow_inputs(seed: u64) {
    let network = Network { bandwidth: Some(4_000_000), ..Network::lan() };
    let mut world = World::seed(seed).network(network).nodes(["a", "b", "c"]);
    let job = world.submit("a", &round(3, 2).inputs_of(60_000_000));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

/// A node that is asked to hold copies never answers. Nodes that run nothing hold them too, so every output has somebody else.
pub(crate) fn mute_holder(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c"]);
    world.mute("c");
    let job = world.submit("a", &job().tasks(12).lasting(millis(300)).spread().with_outputs());
    world.run_until_within(completed(job), seconds(45));
    assert!(world.counters().hogged > 0, "nobody was asked for a copy in vain");
}

/// A job of one task, which a node takes and never begins, long before its limit.
pub(crate) fn only_task(seed: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c"]);
    world.hog("c");
    let job = world.submit("a", &job().lasting(millis(500)).limit(seconds(100)));
    world.run_for(seconds(3));
    if world.counters().hogged == 0 {
        return;
    }
    world.run_until_within(completed(job), seconds(75));
    world.run_until_idle();
    world.check_invariants();
}
