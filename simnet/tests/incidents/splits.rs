//! Meshes that fall apart into sides, and what users ask for meanwhile.

use sinew_crdt_state::fact::Outcome;
use sinew_scheduler::io::{CancelError, SubmitError};
use sinew_simnet::{
    Refusal::StaleEpoch, World, completed, done, ended, fenced, finished, finished_at, given_up, job, led_by, millis,
    rejected_result, round, running, seconds, taken_over,
};

use crate::{all_ends_well, brain_and_workers};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Half and half; the brain's half has one steward and goes on, the other half stops.
#[test]
fn an_even_split_where_the_brain_keeps_a_steward() {
    for seed in 900..905 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(120).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        let (stewards, bystander) = (world.stewards(&job), world.bystanders(&job)[0].clone());
        world.partition(["a", &stewards[0]], [stewards[1].as_str(), &bystander]);
        world.run_for(seconds(6));
        assert_eq!(world.leaders(&job), [("a".to_owned(), 1)]);
        assert!(world.running_on(&stewards[1], &job).is_empty() && world.running_on(&bystander, &job).is_empty());
        assert!(world.counters().stalled_frames > 0 && world.counters().fenced > 0);
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Half and half; both stewards are on the other half, which goes on without the brain.
#[test]
fn an_even_split_where_the_stewards_are_on_the_other_side() {
    for seed in 910..915 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(120).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        let (stewards, bystander) = (world.stewards(&job), world.bystanders(&job)[0].clone());
        world.partition(["a", &bystander], refs(&stewards));
        world.run_until_within(taken_over(job), seconds(3));
        world.run_for(seconds(3));
        assert!(world.running_on("a", &job).is_empty() && world.running_on(&bystander, &job).is_empty());
        world.run_until(completed(job));
        assert!(world.counters().stalled_frames > 0);
        all_ends_well(&mut world);
    }
}

/// Everybody is alone: nothing is decided anywhere, nothing runs on, and nothing is lost.
#[test]
fn a_mesh_in_pieces_waits_until_it_is_whole() {
    for seed in 920..925 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(40, 4).lasting(millis(300)));
        world.run_until(done(job, 0, 15));
        world.partition(["a"], ["b", "c"]);
        world.partition(["b"], ["c"]);
        world.run_for(seconds(3));
        let before = world.executions_of(&job).count();
        world.run_for(seconds(20));
        assert_eq!(world.executions_of(&job).count(), before, "nothing was started");
        assert!(["a", "b", "c"].iter().all(|n| world.running_on(n, &job).is_empty()), "nothing runs on");
        assert!(!world.holds(&ended(job)));
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(world.counters().stalled_frames > 0);
    }
}

/// Jobs are submitted on both sides of a split. What the small side took it keeps, and both end once.
#[test]
fn submits_on_both_sides_of_a_split() {
    for seed in 930..935 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
        world.partition(["a", "b", "c", "d"], ["e"]);
        let left = world.submit("a", &job().tasks(6).with_outputs());
        // Before it has noticed, the small side still counts on nodes that it cannot reach.
        let early = world.try_submit("e", &job());
        let seen = world.counters().stalled_frames;
        assert!(matches!(early, Err(SubmitError::Unknown { .. })) && seen > 0, "{early:?}");
        // Afterwards it is a mesh of one.
        let right = world.submit("e", &job().tasks(6).with_outputs());
        world.run_until(completed(left));
        world.run_until(completed(right));
        all_ends_well(&mut world);
        for (name, job) in [("a", left), ("a", right), ("e", left), ("e", right)] {
            world.expect(finished_at(name, job, Outcome::Completed));
        }
    }
}

/// A cancel is asked for where the brain cannot hear it: it waits and takes effect once the split is over.
#[test]
fn a_cancel_asked_for_on_the_small_side_comes_through_later() {
    for seed in 940..945 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(400).lasting(millis(500)).spread());
        world.run_until(done(job, 0, 10));
        let far = world.bystanders(&job)[0].clone();
        let near: Vec<&str> = NAMES.into_iter().filter(|n| *n != far).collect();
        world.partition([far.as_str()], near.iter().copied());
        world.run_for(seconds(2));
        let undecided = world.cancel(&far, job);
        assert!(matches!(undecided, Err(CancelError::Undecided { .. })), "an admin may, wherever he is: {undecided:?}");
        assert!(!world.holds(&ended(job)), "nobody who decides knows of it");
        assert!(!world.running_on("a", &job).is_empty(), "the job goes on");
        world.heal();
        world.run_until_within(finished(job, Outcome::Cancelled), seconds(15));
        all_ends_well(&mut world);
        assert_eq!(world.cancel("a", job), Err(CancelError::Ended));
    }
}

/// A brain that is cut off is told to cancel: the majority completes the job meanwhile, and that is what counts everywhere.
#[test]
fn a_cancel_at_a_brain_that_is_cut_off_comes_too_late() {
    for seed in 950..955 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(40).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        world.partition(["a"], ["b", "c", "d"]);
        world.run_for(millis(300));
        world.cancel_later("a", job);
        world.run_for(millis(500));
        world.expect(finished_at("a", job, Outcome::Cancelled));
        assert!(!world.is_told_of_end("a", &job), "the verdict is not final");
        world.run_until(completed(job));
        assert!(!world.is_told_of_end("a", &job), "it cannot know");
        all_ends_well(&mut world);
        for name in NAMES {
            world.expect(finished_at(name, job, Outcome::Completed));
        }
        assert!(world.counters().stalled_frames > 0);
    }
}

/// A brain in the minority writes down nothing more: what its ledger says when it is fenced, it says until the end of the split.
#[test]
fn a_brain_in_the_minority_makes_no_progress() {
    for seed in 960..965 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(24, 4).lasting(millis(400)));
        world.run_until(done(job, 0, 6));
        world.partition(["a"], ["b", "c"]);
        // Deciding ends after half a second, running after another one.
        world.run_for(millis(1_700));
        let stuck = world.accepted_at("a", &job, 0);
        assert!(stuck < 24 && world.running_on("a", &job).is_empty());
        world.run_until(completed(job));
        assert_eq!(world.accepted_at("a", &job, 0), stuck);
        assert!(world.state("a", &job).is_some_and(|s| s.term == 1 && s.outcome().is_none()));
        all_ends_well(&mut world);
        assert_eq!(world.accepted_at("a", &job, 0), 24);
    }
}

/// A worker is cut off with chunks running: it stops in time, its late results are refused, others' count.
#[test]
fn a_cut_off_workers_late_chunks_do_not_count() {
    let mut refused = 0;
    for seed in 970..975 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &round(60, 3).lasting_exactly(millis(700)));
        world.run_until(done(job, 0, 9));
        let lone = world.bystanders(&job)[0].clone();
        world.run_for(millis(100));
        let cut_short = world.running_on(&lone, &job);
        assert!(!cut_short.is_empty(), "cut off with chunks running");
        let rest: Vec<&str> = ["brain", "w1", "w2", "w3"].into_iter().filter(|n| *n != lone).collect();
        world.partition([lone.as_str()], rest);
        world.run_until_within(fenced(job, &lone), millis(1_300));
        assert!(world.running_on(&lone, &job).is_empty(), "it stopped by itself");
        world.run_until_within(given_up(job, &lone), millis(900));
        world.run_for(seconds(3));
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        refused += u64::from(world.holds(&rejected_result(job, &lone, StaleEpoch)));
        for (phase, task) in cut_short {
            let runs = world.attempts(&job, phase, task);
            assert!(runs.len() > 1, "it ran again: {runs:?}");
        }
    }
    assert!(refused > 0, "some results came late");
}

/// The two ends of the mesh see the middle but not each other. Whoever leads, leads alone.
#[test]
fn two_that_see_a_third_but_not_each_other() {
    for seed in 980..985 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(80).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        world.partition(["a"], ["c"]);
        for _ in 0..10 {
            world.run_for(millis(700));
            assert!(world.leaders(&job).len() <= 1, "{:?}", world.leaders(&job));
            world.check_safety();
        }
        world.expect(led_by(job, "a"));
        assert!(world.counters().stalled_frames > 0 && !world.holds(&completed(job)));
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The cut moves around the mesh, so that each node is alone for a while.
#[test]
fn a_cut_that_moves_from_node_to_node() {
    for seed in 990..994 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &round(120, 8).lasting(millis(400)));
        world.run_until(done(job, 0, 10));
        for alone in ["a", "b", "c", "d", "a"] {
            world.partition([alone], NAMES.into_iter().filter(|n| *n != alone));
            world.run_for(millis(2_200));
            world.check_safety();
            world.heal();
            world.run_for(millis(300));
        }
        assert!(world.counters().stalled_frames > 0 && world.counters().fenced > 0);
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A node joins the smaller side of a split: it works for that side only when the split is over.
#[test]
fn a_node_that_joins_the_wrong_side() {
    for seed in 995..998 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(150).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        world.partition(["c"], ["a", "b"]);
        world.join_as("d", crate::cores(2));
        world.partition(["d"], ["a", "b"]);
        world.run_for(seconds(4));
        assert!(world.running_on("d", &job).is_empty());
        world.heal();
        world.run_until_within(running(job, "d"), seconds(5));
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}
