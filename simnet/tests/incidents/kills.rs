//! Processes that are killed.

use sinew_crdt_state::fact::Outcome;
use sinew_simnet::{
    NodeSetup, Stopped, World, answered, completed, done, finished, given_up, job, micros, millis, round, running,
    seconds, started, taken_over, taken_over_after,
};

use crate::{all_ends_well, brain_and_workers};

/// A worker dies with chunks running: those run again elsewhere within two seconds, finished ones do not.
#[test]
fn a_worker_killed_with_chunks_running_costs_only_those() {
    for seed in 600..605 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(24, 4).lasting(millis(400)));
        world.run_until(running(job, "c"));
        world.run_for(millis(600));
        let cut_short = world.running_on("c", &job);
        assert!(!cut_short.is_empty(), "killed with chunks running");
        let finished_there = world.executions_of(&job).filter(|e| e.node == 2 && e.end.is_some()).count();
        world.kill("c");
        let killed = world.now();
        world.run_until(completed(job));
        world.expect(given_up(job, "c"));
        for (phase, task) in cut_short {
            let again = world.attempts(&job, phase, task).into_iter().find(|e| e.start > killed);
            assert!(again.is_some_and(|e| e.start - killed < seconds(3)), "seed {seed}: {again:?}");
        }
        assert!(world.executed_again(&job, 0) <= finished_there, "what others had finished stays finished");
        world.restart("c");
        all_ends_well(&mut world);
    }
}

/// A worker dies with the only task of a job: the other one gets it under the next epoch, and the job's end stops it there.
#[test]
fn a_killed_workers_only_task_goes_to_the_other_one_under_the_next_epoch() {
    for seed in 610..615 {
        let mut world = brain_and_workers(seed, ["w1", "w2"]);
        let job = world.submit("brain", &job().lasting(seconds(60)));
        world.run_until(started(job)).with_epoch(1);
        let (first, second) = if world.holds(&running(job, "w1")) { ("w1", "w2") } else { ("w2", "w1") };
        world.run_for(millis(700));
        world.kill(first);
        world.run_until_within(running(job, second), seconds(2)).with_epoch(2);
        world.expect(given_up(job, first));
        assert_eq!(world.cancel("brain", job), Ok(()));
        world.run_until_within(finished(job, Outcome::Cancelled), seconds(2));
        world.restart(first);
        all_ends_well(&mut world);
        let ends: Vec<_> = world.executions_of(&job).map(|e| e.end.unwrap().1).collect();
        assert_eq!(ends, [Stopped::Crash, Stopped::ByCore]);
    }
}

/// The brain dies for good while reducers run: the outputs of the maps are found again, no chunk is mapped a second time.
#[test]
fn a_brain_lost_for_good_in_the_reduce_costs_no_chunk() {
    for seed in 620..625 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(24, 8).lasting(millis(600)));
        world.run_until(done(job, 1, 2));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(2));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.executed_again(&job, 0), 0, "seed {seed}");
        assert_eq!(world.counters().restarts, 0);
    }
}

/// A round is acknowledged; its submitter dies that instant, and its disk with all inputs is gone.
#[test]
fn an_acknowledged_round_outlives_its_submitter_and_its_disk() {
    for seed in 630..635 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(12, 4).lasting(millis(200)));
        world.kill("a");
        world.wipe("a");
        world.run_until_within(taken_over(job), seconds(3));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(world.accepted_at("b", &job, 0) == 12 && world.accepted_at("c", &job, 0) == 12);
    }
}

/// A submitter dies before or just after it answers. Whoever got an answer can rely on it; nobody else is left with half a job.
#[test]
fn a_submitter_killed_while_it_submits_leaves_no_half_job() {
    let mut acknowledged = 0;
    for step in 0..24 {
        let mut world = World::seed(640 + step).nodes(["a", "b", "c"]);
        let request = world.submit_later("a", &job().tasks(3));
        world.run_for(micros(step * 250));
        acknowledged += usize::from(world.holds(&answered(request)));
        world.kill("a");
        world.run_for(seconds(4));
        world.restart("a");
        all_ends_well(&mut world);
    }
    assert!((1..24).contains(&acknowledged), "some died before the answer, some after: {acknowledged}");
}

/// The brain dies within milliseconds of the last result: while it accepts, finishes and seals.
#[test]
fn a_brain_killed_while_it_seals_leaves_one_verdict() {
    for step in 0..20 {
        let mut world = World::seed(670 + step).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(4).with_outputs());
        world.run_until(done(job, 0, 4));
        world.run_for(millis(step * 3));
        world.kill("a");
        world.run_until(completed(job));
        world.run_for(seconds(2));
        world.restart("a");
        all_ends_well(&mut world);
        assert_eq!(world.executions_of(&job).filter(|e| e.node != 0).count(), 4 - on(&world, &job, 0), "{step}");
    }
}

/// Attempts of tasks that ran on the node alone.
fn on(world: &World, job: &sinew_crdt_state::ids::JobId, node: usize) -> usize {
    let elsewhere = |task| world.attempts(job, 0, task).iter().any(|e| e.node != node);
    (0..4).filter(|task| !elsewhere(*task)).count()
}

/// Every node is restarted in turn, as for an update, while a round runs.
#[test]
fn a_rolling_restart_goes_unnoticed_by_a_round() {
    for seed in 700..704 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(240, 10).lasting(millis(500)));
        world.run_until(done(job, 0, 5));
        for name in ["a", "b", "c", "d"] {
            world.kill(name);
            world.run_for(millis(300));
            world.restart(name);
            world.run_for(seconds(2));
        }
        assert!(!world.holds(&completed(job)), "restarted in the middle");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!((world.counters().kills, world.counters().restarts), (4, 4));
    }
}

/// The power goes three times within seconds, everywhere at once.
#[test]
fn a_mesh_whose_power_flickers_gets_through_its_round() {
    for seed in 710..715 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("b", &round(60, 6).lasting(millis(500)));
        for flicker in 0..3 {
            world.run_for(millis(700 + 400 * flicker));
            for name in ["a", "b", "c"] {
                world.kill(name);
            }
            world.run_for(millis(150));
            for name in ["c", "a", "b"] {
                world.restart(name);
            }
        }
        assert!(!world.holds(&completed(job)), "it is still under way");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().kills, 9);
    }
}

/// Whoever leads is killed, four times in a row; the one before comes back each time.
#[test]
fn four_brains_in_a_row_die() {
    for seed in 720..724 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(120).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 5));
        let mut term = 1;
        let mut dead: Option<String> = None;
        for _ in 0..4 {
            let leaders = world.leaders(&job);
            let (leader, _) = leaders.iter().max_by_key(|(_, term)| *term).expect("somebody leads").clone();
            world.kill(&leader);
            if let Some(back) = dead.replace(leader) {
                world.restart(&back);
            }
            let seen = world.run_until_within(taken_over_after(job, term), seconds(5));
            assert!(seen.term > Some(term), "terms only grow");
            term = seen.term.unwrap();
            world.run_for(millis(1_500));
        }
        assert!(!world.holds(&completed(job)), "killed in the middle");
        world.restart(&dead.unwrap());
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().kills, 4);
    }
}

/// A worker dies in the milliseconds around the end of its task, before or after its report got out.
#[test]
fn a_worker_killed_as_its_task_ends_leaves_one_result() {
    let mut again = 0;
    for step in 0..16 {
        let mut world = brain_and_workers(730 + step, ["w1", "w2"]);
        let job = world.submit("brain", &job().with_outputs().lasting(millis(300)));
        world.run_until(done(job, 0, 1));
        let worker = if world.executions_of(&job).any(|e| e.node == 1) { "w1" } else { "w2" };
        world.run_for(micros(step * 900));
        world.kill(worker);
        world.join_as("w3", NodeSetup::default());
        world.run_until(completed(job));
        all_ends_well(&mut world);
        again += world.executed_again(&job, 0);
    }
    assert!((1..16).contains(&again), "some reports got out, some did not: {again}");
}
