//! What clients are told: outcomes that nobody knows, other tries, cancels that nobody decides, nodes that are alone.

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::spec::Alone;
use sinew_scheduler::io::{CancelError, Response, SubmitError};
use sinew_simnet::{World, completed, ended, finished, job, millis, round, seconds, started};

use crate::all_ends_well;

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Everybody hears the submitter and it hears nobody: its job runs elsewhere, and it must not call it refused.
#[test]
fn a_submitter_that_is_heard_and_hears_nobody_says_that_it_does_not_know() {
    for seed in 2_300..2_310 {
        let mut world = World::seed(seed).nodes(FIVE);
        for from in ["a", "b", "c", "d"] {
            world.cut_one_way(from, "e");
        }
        let answer = world.try_submit("e", &job().tasks(4).lasting(seconds(2)));
        let Err(SubmitError::Unknown { job, withdrawing: true, .. }) = answer else { panic!("{answer:?}") };
        world.run_for(seconds(5));
        world.heal();
        world.run_until(ended(job));
        all_ends_well(&mut world);
        assert!(world.counters().stalled_frames > 0);
    }
}

/// A submit is given up while its node is cut off, and the node is restarted before anybody has heard of the withdrawal. Nothing
/// of the job may run afterwards.
#[test]
fn a_withdrawal_outlives_a_restart() {
    for seed in 2_310..2_320 {
        let mut world = World::seed(seed).nodes(FIVE);
        world.partition(["a"], ["b", "c", "d", "e"]);
        let answer = world.try_submit("a", &job());
        let Err(SubmitError::Unknown { job, withdrawing: true, .. }) = answer else { panic!("{answer:?}") };
        world.run_for(seconds(1));
        world.kill("a");
        world.run_for(seconds(1));
        world.restart("a");
        world.run_for(seconds(1));
        world.heal();
        world.run_until(finished(job, Outcome::Cancelled));
        all_ends_well(&mut world);
        assert_eq!(world.executions_of_all(), 0, "nothing ran");
    }
}

/// The submitter's disk fails when the others have the job already: it is withdrawn, or nobody knows.
#[test]
fn a_disk_that_fails_behind_the_submit_refuses_only_what_never_runs() {
    for seed in 2_320..2_330 {
        let mut world = World::seed(seed).nodes(FIVE);
        let request = world.submit_later("a", &job().tasks(3));
        world.fail_disk("a");
        world.run_for(seconds(20));
        let answer = world.answer_to(request).cloned();
        assert!(matches!(answer, Some(Response::Submitted(Ok(_) | Err(_)))), "{answer:?}");
        world.mend_disk("a");
        all_ends_well(&mut world);
    }
}

/// A client tries again under its key: at once, after a restart of its node, and when the job is long forgotten.
#[test]
fn one_key_makes_one_job() {
    for seed in 2_330..2_335 {
        let setup = sinew_simnet::NodeSetup { ledger_grace_ms: 4_000, ..sinew_simnet::NodeSetup::default() };
        let mut world = World::seed(seed).with(setup).nodes(FIVE);
        let plan = job().tasks(2).lasting(seconds(3));
        let first = world.submit_keyed("a", &plan, "nightly");
        let second = world.submit_keyed("a", &plan, "nightly");
        world.run_for(millis(500));
        world.kill("a");
        world.restart("a");
        world.run_for(seconds(1));
        let third = world.submit_keyed("a", &plan, "nightly");
        world.run_for(seconds(2));
        let Some(Response::Submitted(Ok(job))) = world.answer_to(third).cloned() else { panic!("it is taken") };
        for request in [first, second] {
            assert_eq!(world.answer_to(request), Some(&Response::Submitted(Ok(job))));
        }
        world.run_until(completed(job));
        world.run_for(seconds(20));
        assert_eq!(world.entries(), [0; 5], "it is forgotten");
        let last = world.submit_keyed("a", &plan, "nightly");
        let other = world.submit_keyed("a", &plan.clone().cpus(0.5), "nightly");
        world.run_for(seconds(1));
        assert_eq!(world.answer_to(last), Some(&Response::Submitted(Ok(job))));
        let answer = world.answer_to(other).cloned();
        let taken = SubmitError::KeyTaken { key: "nightly".to_owned(), job };
        assert_eq!(answer, Some(Response::Submitted(Err(taken))));
        world.check_safety();
    }
}

/// Under a key an unknown outcome is not withdrawn: the next try finds the job.
#[test]
fn a_try_that_timed_out_is_found_by_the_next_one() {
    for seed in 2_340..2_345 {
        let mut world = World::seed(seed).nodes(FIVE);
        world.partition(["a"], ["b", "c", "d", "e"]);
        let first = world.submit_keyed("a", &job(), "k");
        world.run_for(seconds(17));
        let Some(Response::Submitted(Err(SubmitError::Unknown { job: id, withdrawing: false, .. }))) =
            world.answer_to(first).cloned()
        else {
            panic!("{:?}", world.answer_to(first))
        };
        let second = world.submit_keyed("a", &job(), "k");
        world.run_for(seconds(1));
        assert_eq!(world.answer_to(second), None, "it waits for its job");
        world.heal();
        world.run_until(completed(id));
        assert_eq!(world.answer_to(second), Some(&Response::Submitted(Ok(id))));
        all_ends_well(&mut world);
    }
}

/// Two of a job's three deciding nodes are gone: a cancel says that it is not decided, and takes effect when they are back.
#[test]
fn a_cancel_that_nobody_decides_says_so() {
    for seed in 2_350..2_355 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(4).lasting(seconds(60)));
        world.run_until(started(job));
        world.kill("b");
        world.kill("c");
        world.run_for(seconds(6));
        let Err(CancelError::Undecided { job: named, why }) = world.cancel("a", job) else { panic!("decided by one") };
        assert!(named == job && why.starts_with("waiting for a majority: ") && why.contains(" lost since "), "{why}");
        world.kill("a");
        for name in ["a", "b", "c"] {
            world.restart(name);
        }
        world.run_until_within(finished(job, Outcome::Cancelled), seconds(20));
        all_ends_well(&mut world);
    }
}

/// A node that is cut off takes a job alone: it says so, and as soon as others are back they hold all of it, so that its disk may
/// be lost.
#[test]
fn what_a_node_took_alone_is_copied_once_others_are_there() {
    for seed in 2_360..2_370 {
        let mut world = World::seed(seed).nodes(FIVE);
        world.partition(["e"], ["a", "b", "c", "d"]);
        world.run_for(seconds(12));
        let job = world.submit("e", &round(6, 3).lasting(millis(200)));
        let alone = world.state("e", &job).expect("it is on disk").spec.alone;
        assert_eq!(alone, Some(Alone { in_reach: 1, known: 5 }));
        if seed % 2 == 0 {
            world.run_until(completed(job));
        } else {
            world.run_for(millis(500));
        }
        world.heal();
        world.run_until(completed(job));
        world.run_for(seconds(30));
        world.kill("e");
        world.wipe("e");
        world.restart("e");
        world.run_for(seconds(2));
        all_ends_well(&mut world);
        assert!(world.state("a", &job).is_some(), "others can show it");
    }
}

/// Right after all daemons were started anew a job is submitted: its node waits for the members that it knows.
#[test]
fn a_node_waits_for_known_members_after_a_restart() {
    for seed in 2_370..2_380 {
        let mut world = World::seed(seed).nodes(FIVE);
        world.run_for(seconds(1));
        for name in FIVE {
            world.kill(name);
        }
        for name in FIVE {
            world.restart(name);
        }
        let job = world.submit("c", &job().tasks(3));
        assert_eq!(world.brain_set(&job).len(), 3);
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Two nodes are all there is: nobody waits, and nothing is said.
#[test]
fn a_small_mesh_is_not_alone() {
    let mut world = World::seed(2_380).nodes(["a", "b"]);
    let before = world.now();
    let job = world.submit("a", &job().lasting(seconds(1)));
    assert!(world.now() - before < seconds(1));
    assert_eq!(world.state("a", &job).expect("it is on disk").spec.alone, None);
    world.run_until(completed(job));
    all_ends_well(&mut world);
}
