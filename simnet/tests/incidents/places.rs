//! Room that several jobs want, nodes that come and go, jobs that look for a place.

use sinew_crdt_state::certificate::Roles;
use sinew_simnet::{NodeSetup, Stopped, World, completed, done, job, micros, millis, round, running, seconds, started};

use crate::{all_ends_well, brain_and_workers, cores};

/// Two brains want the last slot in the same moment: one gets it, the other one's job waits its turn.
#[test]
fn two_jobs_for_the_last_slot() {
    for seed in 1_400..1_410 {
        let mut world = World::seed(seed).with(cores(0)).nodes(["a", "b"]).with(cores(1)).nodes(["worker"]);
        let requests = [world.submit_later("a", &job()), world.submit_later("b", &job())];
        world.run_for(seconds(3));
        assert!(requests.iter().all(|r| world.answer_to(*r).is_some()));
        assert_eq!(world.acknowledged(), 2);
        all_ends_well(&mut world);
        assert_eq!(world.executions_of_all(), 2);
        let mut spans: Vec<_> = world.all_executions().iter().map(|e| (e.start, e.end.unwrap().0)).collect();
        spans.sort();
        assert!(spans[0].1 <= spans[1].0, "one after the other: {spans:?}");
    }
}

/// Two nodes bid for the only task of a job: one gets it, and nothing stays reserved on the other.
#[test]
fn two_bids_for_the_only_task() {
    for seed in 1_470..1_480 {
        let mut world = brain_and_workers(seed, ["w1", "w2"]);
        let one = world.submit("brain", &job().lasting(seconds(2)));
        world.run_until(started(one));
        assert_eq!(world.bidders(&one).len(), 2, "both had bid");
        let other = if world.holds(&running(one, "w1")) { "w2" } else { "w1" };
        let two = world.submit("brain", &job());
        world.run_until_within(running(two, other), millis(100));
        world.run_until(completed(two));
        world.run_until(completed(one));
        all_ends_well(&mut world);
        assert_eq!(world.executions_of_all(), 2);
    }
}

/// The node that wins is dead when it should hear of it, or dies just after: the runner-up gets the task.
#[test]
fn a_winner_that_dies_around_its_award() {
    let (mut before, mut after) = (0, 0);
    for step in 0..16 {
        let mut world = brain_and_workers(1_480 + step, ["w1", "w2"]);
        world.submit_later("brain", &job().lasting(millis(500)));
        world.run_for(micros(1_500 + step * 250));
        let hit = world.all_executions().len();
        let winner =
            if world.all_executions().first().is_some_and(|e| e.node == world.number("w2")) { "w2" } else { "w1" };
        before += usize::from(hit == 0);
        after += hit;
        world.kill(winner);
        world.run_for(seconds(4));
        assert_eq!(world.acknowledged(), 1);
        world.restart(winner);
        all_ends_well(&mut world);
        let done = world.all_executions().iter().filter(|e| matches!(e.end, Some((_, Stopped::Done)))).count();
        assert_eq!(done, 1);
    }
    assert!(before > 0 && after > 0, "killed before the start {before} times, after it {after} times");
}

/// Adverts get lost, all of them: jobs that wait for room find it all the same.
#[test]
fn jobs_find_room_without_adverts() {
    for seed in 1_500..1_504 {
        let mut world = brain_and_workers(seed, ["w1", "w2"]);
        world.lose_adverts(true);
        let long = world.submit("brain", &job().tasks(2).lasting(seconds(4)).spread());
        world.run_until(running(long, "w1"));
        let waits = world.submit("brain", &job().tasks(6).lasting(millis(200)));
        world.run_for(seconds(6));
        assert!(world.counters().lost_adverts > 0, "it was advertised in vain");
        world.run_until_within(completed(waits), seconds(4));
        let late = world.submit("brain", &job().cpus(4.0));
        world.run_for(seconds(3));
        world.join_as("big", cores(8));
        world.run_until_within(running(late, "big"), seconds(4));
        world.lose_adverts(false);
        all_ends_well(&mut world);
    }
}

/// A node of one slot is all that is left; ten brains compete for it. All get their turn soon.
#[test]
fn ten_brains_and_one_slot() {
    const BRAINS: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    for seed in 1_410..1_413 {
        let mut world = World::seed(seed).with(cores(0)).nodes(BRAINS).with(cores(1)).nodes(["worker"]);
        for brain in BRAINS {
            world.submit_later(brain, &job().tasks(2));
        }
        world.run_for(seconds(15));
        assert_eq!((world.acknowledged(), world.executions_of_all()), (10, 20), "none starves");
        all_ends_well(&mut world);
    }
}

/// A node takes an offer, and its room is gone when the award comes: it declines, and the runner-up gets the task.
#[test]
fn nodes_that_are_full_when_the_award_comes_decline() {
    for seed in 1_420..1_422 {
        let mut world =
            World::seed(seed).with(cores(0)).nodes(["a", "b", "c"]).with(cores(1)).nodes(["w1", "w2", "w3"]);
        for _ in 0..10 {
            for brain in ["a", "b", "c"] {
                world.submit_later(brain, &job().lasting(millis(120)));
            }
            world.run_for(millis(130));
        }
        world.run_until_idle();
        world.check_invariants();
        assert_eq!(world.acknowledged(), 30);
        assert_eq!(world.executions_of_all(), 30, "each ran once");
    }
}

/// A node joins while a round maps, and another while it reduces: both get work, with everything it needs.
#[test]
fn nodes_that_join_in_the_middle_of_a_round() {
    for seed in 1_430..1_434 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 40).lasting(millis(300)));
        world.run_until(done(job, 0, 20));
        world.join_as("d", cores(2));
        world.run_until_within(running(job, "d"), seconds(3));
        world.run_until(done(job, 1, 4));
        world.join_as("e", cores(2));
        world.run_until_within(running(job, "e"), seconds(3));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        let late: Vec<_> = world.executions_of(&job).filter(|e| e.node == world.number("e")).collect();
        assert!(late.iter().all(|e| e.phase == 1) && late.len() > 1);
    }
}

/// A node joins whose certificate lets it run nothing: it is not asked to.
#[test]
fn a_node_without_the_role_gets_no_work() {
    let mut world = World::seed(1_440).with(cores(1)).nodes(["a", "b", "c"]);
    world.join_as("guest", NodeSetup { roles: Roles::SUBMIT, ..cores(8) });
    world.run_for(seconds(2));
    let job = world.submit("guest", &job().tasks(30).lasting(millis(200)).spread());
    world.run_until(completed(job));
    all_ends_well(&mut world);
    assert!(world.executions_of(&job).all(|e| e.node != world.number("guest")));
    assert_eq!(world.executions_of(&job).count(), 30);
}

/// The only node that a job fits on leaves and comes back: the job waits for it.
#[test]
fn a_job_waits_for_the_only_node_that_fits_it() {
    for seed in 1_450..1_455 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.join_as("big", cores(8));
        world.run_for(seconds(2));
        let job = world.submit("a", &job().cpus(6.0).lasting(seconds(3)));
        world.run_until(running(job, "big"));
        world.run_for(seconds(1));
        world.kill("big");
        world.run_for(seconds(10));
        assert!(!world.holds(&started(job)), "nobody else takes it");
        world.restart("big");
        world.run_until_within(running(job, "big"), seconds(5));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.executions_of(&job).count(), 2);
    }
}

/// Nodes come and go all the time while a long job runs.
#[test]
fn workers_that_come_and_go() {
    for seed in 1_460..1_463 {
        let mut world = brain_and_workers(seed, ["s1", "s2", "w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(150).lasting(millis(500)).spread());
        world.run_until(done(job, 0, 10));
        for turn in 0..9 {
            let name = ["w1", "w2", "w3"][turn % 3];
            world.kill(name);
            world.run_for(millis(900));
            world.restart(name);
            world.run_for(millis(400));
        }
        assert!(!world.holds(&completed(job)));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().kills, 9);
    }
}
