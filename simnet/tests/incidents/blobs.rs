//! Inputs and outputs whose holders are gone.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_scheduler::kind::Kind;
use sinew_simnet::{NodeSetup, Stopped, World, completed, done, failed, job, micros, millis, round, running, seconds};

use crate::{all_ends_well, cores};

/// A reducer's sources were on a node that is dead: their copies serve.
#[test]
fn another_holder_serves_what_a_killed_one_had() {
    for seed in 1_600..1_605 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(24, 30).lasting(millis(300)));
        world.run_until(done(job, 1, 3));
        let maps = world.executions_of(&job).filter(|e| e.phase == 0 && e.node == 3).count();
        assert!(maps > 0, "it holds map outputs");
        world.kill("d");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.executed_again(&job, 0), 0, "no chunk had to be mapped again");
    }
}

/// The only holder of an input goes away before a worker has it, and comes back: the task is tried again and completes.
#[test]
fn a_fetch_whose_only_holder_was_away_is_tried_again() {
    for seed in 1_610..1_615 {
        let mut world = World::seed(seed).with(cores(0)).nodes(["a", "b"]).with(cores(1)).nodes(["w"]);
        let job = world.submit("a", &round(8, 2).lasting(millis(400)));
        world.run_until(running(job, "w"));
        world.kill("a");
        world.run_for(seconds(4));
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Everybody who had a job's inputs has lost them, and is in reach for as long as one waits for those that are gone: the job says so
/// instead of hanging.
#[test]
fn an_input_that_nobody_has_any_more_fails_the_job() {
    for seed in 1_620..1_625 {
        let hasty = NodeSetup { copy_again_after_ms: 8_000, ..cores(0) };
        let mut world = World::seed(seed).with(hasty).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(4, 2).lasting(millis(200)));
        world.run_for(millis(500));
        for name in ["a", "b", "c"] {
            world.lose_blobs(name);
        }
        assert!(world.counters().lost_blobs >= 6);
        world.join_as("w", cores(2));
        world.run_until_within(sinew_simnet::ended(job), seconds(30));
        let attempts: Vec<_> = world.executions_of(&job).collect();
        assert!(attempts.iter().all(|e| matches!(e.end, Some((_, Stopped::Blocked | Stopped::ByCore)))));
        let task = (0..4).find(|t| world.holds(&failed(job, ErrorCode::Fetch, *t)));
        assert!(task.is_some(), "the verdict names the cause");
        all_ends_well(&mut world);
    }
}

/// One holder of the inputs has lost them and does not know it: others serve.
#[test]
fn a_holder_that_lost_its_blobs_is_passed_over() {
    for seed in 1_630..1_635 {
        let mut world = World::seed(seed).with(cores(0)).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(12, 3).lasting(millis(200)));
        world.run_for(millis(500));
        world.lose_blobs("a");
        assert!(world.counters().lost_blobs > 0);
        for worker in ["w1", "w2"] {
            world.join_as(worker, cores(2));
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(world.executions_of(&job).all(|e| !matches!(e.end, Some((_, Stopped::Failed)))));
    }
}

/// A node dies with outputs that nobody had copied yet: whatever the job completes with is on two disks.
#[test]
fn outputs_are_on_two_nodes_when_a_job_completes() {
    for seed in 1_640..1_645 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(12).with_outputs().lasting(millis(300)).spread());
        world.run_until(done(job, 0, 4));
        world.kill("d");
        world.run_until(completed(job));
        assert!((0..12).all(|task| world.holders(&job, 0, task) >= 1), "nothing is lost with one node");
        world.restart("d");
        all_ends_well(&mut world);
        assert!((0..12).all(|task| world.holders(&job, 0, task) >= 2), "one more may die");
    }
}

/// One worker cannot reach the others, but reaches the brain: its reducers get no sources. Others run them.
#[test]
fn a_worker_that_reaches_the_brain_but_no_sources() {
    for seed in 1_650..1_656 {
        let mut world = crate::brain_and_workers(seed, ["w1", "w2", "w3", "w4"]);
        let job = world.submit("brain", &round(24, 16).lasting(millis(300)));
        world.run_until(done(job, 0, 20));
        let lone = world.bystanders(&job)[0].clone();
        let others: Vec<&str> = ["w1", "w2", "w3", "w4"].into_iter().filter(|n| *n != lone).collect();
        world.partition([lone.as_str()], others);
        world.run_until(completed(job));
        let in_vain = world.executions_of(&job).filter(|e| matches!(e.end, Some((_, Stopped::Blocked)))).count();
        assert!(in_vain > 0, "some reducer went without its sources");
        assert!(
            world.executions_of(&job).all(|e| !matches!(e.end, Some((_, Stopped::Failed)))),
            "at no attempt's cost"
        );
        all_ends_well(&mut world);
    }
}

/// A node is done with its tasks, gives its slots back, and dies for good before its last outputs were copied: nobody holds a
/// lease of it any more, and those tasks run again all the same.
#[test]
fn a_maker_that_dies_when_its_slots_are_given_back() {
    let mut again = 0;
    for step in 0..12 {
        let mut world = World::seed(1_660 + step).nodes(["a", "b", "c", "d"]);
        let job =
            world.submit("a", &job().tasks(8).with_outputs().lasting_exactly(millis(300)).slow_task(0, 7, seconds(2)));
        world.run_until(done(job, 0, 6));
        world.run_for(sinew_simnet::micros(step * 500));
        world.kill("d");
        world.wipe("d");
        world.run_until_within(completed(job), seconds(20));
        again += world.executed_again(&job, 0);
        all_ends_well(&mut world);
    }
    assert!(again > 0, "some outputs were gone");
}

/// Both stewards die, and the brain is alone with results that it made itself. They wait for somebody to hold the copies: with
/// one alone the next lost disk would take them.
#[test]
fn results_of_a_brain_alone_wait_for_a_second_holder() {
    for step in 0..8 {
        let mut world = World::seed(1_320 + step).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(6).with_outputs().lasting(millis(300)).spread());
        world.run_until(running(job, "a"));
        world.kill("b");
        world.kill("c");
        world.run_for(seconds(4) + millis(250 * step));
        world.restart("b");
        world.restart("c");
        world.run_until(completed(job));
        for task in 0..6 {
            assert!(world.holders(&job, 0, task) >= 2, "task {task}, step {step}");
        }
        all_ends_well(&mut world);
    }
}

/// The maker of outputs dies before anybody copied them, and until its lease ends every copy is refused. It is asked for again
/// with patience, not as fast as refusals come.
#[test]
fn copies_that_everybody_refuses_are_asked_for_with_patience() {
    let mut most = 0;
    let mut step = 0;
    for seed in 1_460..1_500 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(8).with_outputs().lasting(millis(300)).spread());
        world.run_for(millis(250));
        if step == 12 || !world.holds(&running(job, "d")) {
            continue;
        }
        step += 1;
        let started = world.counters().traffic.of(Kind::Copy).messages;
        while world.counters().traffic.of(Kind::Copy).messages == started {
            world.run_for(micros(500));
        }
        world.run_for(micros(500 * step));
        world.kill("d");
        let before = world.counters().traffic.of(Kind::Copy).messages;
        world.run_for(millis(1_400));
        most = most.max(world.counters().traffic.of(Kind::Copy).messages - before);
        world.restart("d");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert_eq!(step, 12, "it runs there often enough");
    assert!((2..80).contains(&most), "{most} times of eight outputs in seven beats");
}
