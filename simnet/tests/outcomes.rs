//! How jobs end: retries, failures, cancels, refusals.

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_scheduler::config::GIVEN_BACK_MAX;
use sinew_scheduler::io::{CancelError, SubmitError};
use sinew_simnet::{NodeSetup, Stopped, World, completed, failed, finished, job, millis, running, seconds, started};

#[test]
fn a_task_that_fails_three_times_then_succeeds() {
    let mut world = World::seed(300).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(4).failing(0, 2, 3));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    let attempts: Vec<_> = world.executions_of(&job).filter(|e| e.task == 2).collect();
    assert_eq!(attempts.len(), 4);
    assert_eq!(attempts.iter().filter(|e| matches!(e.end, Some((_, Stopped::Failed)))).count(), 3);
    assert_eq!(attempts.iter().map(|e| e.attempt).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for pair in attempts.windows(2) {
        assert!(pair[1].start - pair[0].end.unwrap().0 >= millis(100), "the delay is kept");
    }
}

#[test]
fn a_task_that_fails_once_too_often_fails_the_job() {
    let mut world = World::seed(301).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(4).failing(0, 2, 4));
    world.run_until(failed(job, ErrorCode::Exit, 2));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executions_of(&job).filter(|e| e.task == 2).count(), 4);
}

/// A node that cannot run a task is no reason to give the task up: another one does, or the same one later.
#[test]
fn what_nodes_give_back_counts_as_no_attempt() {
    for (seed, names) in [(304, &["a", "b", "c"][..]), (305, &["a"])] {
        let mut world = World::seed(seed).nodes(names.iter().copied());
        let job = world.submit("a", &job().tasks(4).retries(1).given_back(0, 2, 5).failing(0, 2, 1));
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
        let attempts: Vec<_> = world.executions_of(&job).filter(|e| e.task == 2).collect();
        assert_eq!(attempts.iter().map(|e| e.attempt).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 1], "in {names:?}");
        assert!(names.len() == 1 || attempts[0].node != attempts[1].node, "another node is asked first");
    }
}

/// ... but not for ever: the task may be what breaks them.
#[test]
fn what_nodes_give_back_without_end_fails() {
    let mut world = World::seed(306).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(4).retries(1).given_back(0, 2, u32::MAX));
    world.run_for(seconds(100));
    world.run_until(failed(job, ErrorCode::Lost, 2));
    world.run_until_idle();
    world.check_invariants();
    let count = world.executions_of(&job).filter(|e| e.task == 2).count();
    assert_eq!(count, usize::try_from(GIVEN_BACK_MAX).expect("few") + 2);
}

#[test]
fn an_error_that_no_retry_cures_fails_the_job_at_once() {
    let mut world = World::seed(302).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(4).fatal(0, 1, ErrorCode::Invalid));
    world.run_until(failed(job, ErrorCode::Invalid, 1));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executions_of(&job).filter(|e| e.task == 1).count(), 1);
}

#[test]
fn the_submitter_an_admin_and_nobody_else_may_cancel() {
    let mut world = World::seed(303).nodes(["a", "b", "c"]);
    world.join_as("guest", NodeSetup { roles: Roles::RUN.union(Roles::SUBMIT), ..NodeSetup::default() });
    world.run_for(seconds(2));
    for (who, at) in [("a", "the submitter"), ("b", "an admin")] {
        let job = world.submit("a", &job().tasks(20).lasting(seconds(5)));
        world.run_until(started(job));
        world.run_for(seconds(1));
        assert_eq!(world.cancel("guest", job), Err(CancelError::Denied));
        assert_eq!(world.cancel(who, job), Ok(()), "{at} may");
        world.expect(finished(job, Outcome::Cancelled));
        world.run_until_idle();
        assert!(world.executions_of(&job).all(|e| e.end.is_some()), "everything was stopped");
        assert_eq!(world.cancel(who, job), Err(CancelError::Ended));
    }
    let own = world.submit("guest", &job().lasting(seconds(5)));
    assert_eq!(world.cancel("guest", own), Ok(()));
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn a_submit_that_the_disk_refuses_leaves_nothing() {
    let mut world = World::seed(304).nodes(["a", "b", "c"]);
    world.fail_disk("a");
    let refused = world.try_submit("a", &job());
    assert!(matches!(refused, Err(SubmitError::Disk(_))), "{refused:?}");
    assert!(matches!(world.try_submit("a", &job()), Err(SubmitError::Disk(_))), "known to fail");
    world.run_for(seconds(5));
    world.mend_disk("a");
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executions_of_all(), 0, "nothing ran");
    let job = world.submit("a", &job());
    world.run_until(completed(job));
}

#[test]
fn a_submit_without_a_majority_is_withdrawn() {
    let mut world = World::seed(305).nodes(["a", "b", "c"]);
    world.partition(["a"], ["b", "c"]);
    let refused = world.try_submit("a", &job());
    assert!(matches!(refused, Err(SubmitError::Unknown { withdrawing: true, .. })), "{refused:?}");
    world.heal();
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executions_of_all(), 0, "nothing ran");
}

#[test]
fn two_nodes_are_a_mesh_too() {
    let mut world = World::seed(306).nodes(["a", "b"]);
    let job = world.submit("a", &job().tasks(30).spread().with_outputs());
    world.run_until(running(job, "b"));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn a_node_that_joins_in_the_middle_gets_work() {
    let mut world = World::seed(307).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(200).lasting(millis(300)).spread());
    world.run_for(seconds(1));
    world.join_as("d", NodeSetup::default());
    world.run_until_within(running(job, "d"), seconds(2));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn a_job_waits_for_a_node_that_fits() {
    let mut world = World::seed(308).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().cpus(6.0));
    world.run_for(seconds(5));
    assert_eq!(world.executions_of(&job).count(), 0);
    world.join_as("big", NodeSetup { cpu_milli: 8_000, ..NodeSetup::default() });
    world.run_until_within(completed(job), seconds(3));
    world.run_until_idle();
    world.check_invariants();
}
