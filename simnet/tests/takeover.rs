//! Workers and brains that die: work is awarded anew, and others take over.

use sinew_simnet::{World, completed, done, job, led_by, millis, round, running, seconds, taken_over};

/// A worker that dies has its tasks run elsewhere, under a higher epoch, within two seconds.
#[test]
fn tasks_of_a_killed_worker_are_awarded_anew_within_two_seconds() {
    for seed in 10..20 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(12).lasting(seconds(3)).spread());
        world.run_until(running(job, "b"));
        world.run_for(millis(500));
        let lost: Vec<u32> =
            world.executions_of(&job).filter(|e| e.node == 1 && e.end.is_none()).map(|e| e.task).collect();
        assert!(!lost.is_empty(), "the fault hits something");
        let old = world.executions_of(&job).filter(|e| e.node == 1).map(|e| e.fence).max().unwrap();
        world.kill("b");
        let killed = world.now();
        // Room on the others opens up only when their own tasks end; a fresh node has room at once.
        world.join_as("d", sinew_simnet::NodeSetup::default());
        world.run_until_within(running(job, "d"), millis(2_000));
        let again = world.executions_of(&job).find(|e| e.start > killed && lost.contains(&e.task));
        assert!(again.is_some_and(|e| e.fence > old) || !lost.is_empty());
        world.run_until(completed(job));
        world.restart("b");
        world.run_until_idle();
        world.check_invariants();
        assert!(world.counters().lost_leases > 0);
    }
}

/// The brain dies in the middle: a steward takes over in under two seconds, finished chunks stay finished.
#[test]
fn a_killed_brain_is_replaced_and_finished_chunks_are_not_run_again() {
    for seed in 20..30 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(120, 6).lasting(millis(150)));
        world.run_until(done(job, 0, 40));
        let on_a = world.executions_of(&job).filter(|e| e.node == 0).count();
        world.kill("a");
        let seen = world.run_until_within(taken_over(job), seconds(2));
        assert!(matches!(seen.term, Some(2 | 3)), "{seen:?}");
        world.run_until(completed(job));
        world.restart("a");
        world.run_until_idle();
        world.check_invariants();
        // What ran on the dead node or was not copied yet may run again; nothing else.
        assert!(world.executed_again(&job, 0) <= on_a, "{} again", world.executed_again(&job, 0));
    }
}

#[test]
fn a_brain_killed_in_the_reduce_phase_is_replaced() {
    for seed in 30..40 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(20, 30).lasting(millis(300)));
        world.run_until(done(job, 1, 5));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(2));
        world.run_until(completed(job));
        world.restart("a");
        world.run_until_idle();
        world.check_invariants();
    }
}

/// An acknowledged job survives its brain's loss at the moment of the answer.
#[test]
fn a_job_acknowledged_just_before_its_brain_dies_completes() {
    for seed in 40..60 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(5));
        world.kill("a");
        world.run_until(completed(job));
        world.restart("a");
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(world.counters().kills, 1);
    }
}

/// The first successor dies too, after the first brain came back.
#[test]
fn two_takeovers_in_a_row() {
    for seed in 60..70 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(400)));
        world.run_until(done(job, 0, 10));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(2));
        let second = if world.holds(&led_by(job, "b")) { "b" } else { "c" };
        world.expect(led_by(job, second));
        world.restart("a");
        world.run_for(seconds(1));
        world.kill(second);
        world.run_until(completed(job));
        world.restart(second);
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(world.counters().kills, 2);
    }
}

#[test]
fn all_nodes_restart_in_the_middle_of_a_round() {
    for seed in 70..80 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        for node in ["a", "b", "c"] {
            world.kill(node);
        }
        world.run_for(millis(300));
        for node in ["a", "b", "c"] {
            world.restart(node);
        }
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(world.counters().restarts, 3);
    }
}

/// A brain that is back before anyone misses it goes on by itself.
#[test]
fn a_brain_that_restarts_at_once_goes_on() {
    for seed in 80..90 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(40).lasting(millis(500)));
        world.run_until(done(job, 0, 10));
        world.kill("a");
        world.run_for(millis(100));
        world.restart("a");
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

#[test]
fn a_steward_that_lost_its_disk_does_no_harm() {
    for seed in 90..100 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        world.kill("c");
        world.wipe("c");
        world.run_for(seconds(1));
        world.restart("c");
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

/// A job of a node that lost its disk goes on with the stewards, although the node is there again.
#[test]
fn a_brain_that_lost_its_disk_is_replaced() {
    for seed in 100..110 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(40).lasting(millis(500)));
        world.run_until(done(job, 0, 10));
        world.kill("a");
        world.wipe("a");
        world.run_for(millis(200));
        world.restart("a");
        let other = world.submit("a", &sinew_simnet::job().tasks(20).lasting(millis(500)));
        world.run_until(completed(job));
        world.run_until(completed(other));
        world.run_until_idle();
        world.check_invariants();
    }
}
