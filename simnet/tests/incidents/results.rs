//! Results that come twice, late, or from where they should not.

use sinew_simnet::{
    NodeSetup, Stopped, World, completed, done, given_up, job, millis, round, running, seconds, started, taken_over,
};

use crate::{all_ends_well, brain_and_workers};

/// A straggler is started a second time elsewhere; both end well, and one result counts.
#[test]
fn a_straggler_and_its_twin_give_one_result() {
    let mut both = 0;
    for seed in 1_300..1_306 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(10, 2).slow_task(0, 3, millis(4_000)));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        let runs = world.attempts(&job, 0, 3);
        assert_eq!(runs.len(), 2, "it was started elsewhere too");
        assert!(runs[0].node != runs[1].node && runs[0].start < runs[1].start);
        assert!(runs.iter().any(|e| matches!(e.end, Some((_, Stopped::Done)))));
        assert_eq!(world.accepted_at("a", &job, 0), 10);
        both += usize::from(runs.iter().all(|e| e.end.is_some()));
    }
    assert_eq!(both, 6, "neither is left running");
}

/// A straggler's twin is under way when the straggler's node dies: the twin goes on, nothing runs a third time.
#[test]
fn a_straggler_dies_and_its_twin_goes_on() {
    for seed in 1_310..1_315 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3", "w4"]);
        let job = world.submit("brain", &round(8, 2).slow_task(0, 3, seconds(8)));
        world.run_until(done(job, 0, 7));
        world.run_for(seconds(4));
        let runs = world.attempts(&job, 0, 3);
        assert_eq!(runs.len(), 2, "its twin runs");
        let names = ["brain", "w1", "w2", "w3", "w4"];
        world.kill(names[runs[0].node]);
        world.run_until_within(completed(job), seconds(9));
        all_ends_well(&mut world);
        let runs = world.attempts(&job, 0, 3);
        assert_eq!(runs.len(), 2, "nothing ran a third time: {runs:?}");
        assert!(matches!(runs[1].end, Some((_, Stopped::Done))));
    }
}

/// The brain changes while a worker is cut off with a task that it finishes: the new brain has it run again, and what comes
/// later from the worker changes nothing.
#[test]
fn a_result_for_a_brain_of_the_past() {
    for seed in 1_320..1_326 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(30).lasting_exactly(millis(700)).spread());
        world.run_until(done(job, 0, 6));
        world.run_for(millis(100));
        let lone = world.bystanders(&job)[0].clone();
        let rest: Vec<&str> = ["brain", "w1", "w2", "w3"].into_iter().filter(|n| *n != lone).collect();
        world.partition([lone.as_str()], rest);
        world.kill("brain");
        let term = world.run_until_within(taken_over(job), seconds(3)).term;
        assert!(term > Some(1));
        world.run_for(seconds(2));
        world.heal();
        world.run_until(completed(job));
        world.restart("brain");
        all_ends_well(&mut world);
        assert!(world.counters().stalled_frames > 0);
        assert!(world.executed_again(&job, 0) > 0, "something was finished too late");
        assert!(["brain", "w1", "w2", "w3"].iter().all(|n| world.accepted_at(n, &job, 0) == 30));
    }
}

/// A worker finished its task, and loses its disk with the only copy of the output before it could be copied.
#[test]
fn a_worker_that_loses_its_disk_with_a_finished_result() {
    let mut again = 0;
    for step in 0..12 {
        let mut world = brain_and_workers(1_330 + step, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().with_outputs().lasting(millis(300)));
        world.run_until(done(job, 0, 1));
        let node = world.executions_of(&job).next().unwrap().node;
        world.run_for(sinew_simnet::micros(step * 700));
        let worker = ["brain", "w1", "w2", "w3"][node];
        world.kill(worker);
        world.wipe(worker);
        world.run_for(millis(200));
        world.restart(worker);
        world.run_until(completed(job));
        all_ends_well(&mut world);
        again += world.executed_again(&job, 0);
    }
    assert!((1..12).contains(&again), "some had to run again, some were copied in time: {again}");
}

/// Map outputs are lost with both nodes that had them. That is one loss more than two copies cover: they are made anew.
#[test]
fn map_outputs_lost_with_all_their_copies_are_made_anew() {
    let mut lost = 0;
    for seed in 1_350..1_355 {
        let hasty = NodeSetup { copy_again_after_ms: 8_000, ..crate::cores(1) };
        let mut world = World::seed(seed).with(hasty).nodes(["a", "b", "c", "d", "e"]);
        let job = world.submit("a", &round(30, 20).lasting(millis(400)));
        world.run_until(done(job, 1, 2));
        let gone = world.bystanders(&job);
        let vanished = (0..30).any(|task| world.holders_among(&gone, &job, 0, task) == world.holders(&job, 0, task));
        for name in &gone {
            world.kill(name);
            world.wipe(name);
        }
        world.run_until_within(completed(job), seconds(60));
        assert_eq!(world.counters().made_anew > 0, vanished, "if anything is gone, and only then");
        lost += usize::from(vanished);
        for name in &gone {
            world.restart(name);
        }
        all_ends_well(&mut world);
    }
    assert!(lost > 0, "somewhere both copies were lost");
}

/// A worker fails a task, is cut off while the retry waits, and the retry runs elsewhere as the next attempt.
#[test]
fn a_retry_counts_on_when_its_node_is_gone() {
    for seed in 1_360..1_365 {
        let mut world = brain_and_workers(seed, ["w1", "w2"]);
        let job = world.submit("brain", &job().failing(0, 0, 2).lasting(millis(300)));
        world.run_until(started(job));
        let first = if world.holds(&running(job, "w1")) { "w1" } else { "w2" };
        let rest = if first == "w1" { "w2" } else { "w1" };
        world.run_for(millis(250));
        world.run_until_within(failed_once(job), millis(200));
        world.partition([first], ["brain", rest]);
        world.run_until(completed(job));
        all_ends_well(&mut world);
        let failed = world.attempts(&job, 0, 0).iter().filter(|e| matches!(e.end, Some((_, Stopped::Failed)))).count();
        assert_eq!(failed, 2, "an attempt that its node failed counts, one that was lost does not");
        world.expect(given_up(job, first));
    }
}

fn failed_once(job: sinew_crdt_state::ids::JobId) -> sinew_simnet::Condition {
    sinew_simnet::failed_attempts(job, 0, 0, 1)
}
