//! Silence just below and just above the limits at which leases end.

use sinew_scheduler::config::{FENCE_AFTER, KEEP_AFTER, LEASE, TAKEOVER_AFTER};
use sinew_simnet::{World, completed, done, fenced, given_up, job, millis, running, seconds, taken_over};

use crate::{all_ends_well, brain_and_workers};

/// A link fails for just about as long as a lease lasts, again and again, each time a little longer.
#[test]
fn cuts_that_end_around_the_moment_of_fencing_and_of_giving_up() {
    for (seed, limit) in [(1_100, KEEP_AFTER), (1_101, FENCE_AFTER), (1_102, LEASE), (1_103, FENCE_AFTER)] {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(60).lasting(millis(1_300)).spread());
        world.run_until(running(job, "w3"));
        for step in 0..21 {
            world.partition(["w3"], ["brain", "w1", "w2"]);
            world.run_for(millis(limit.as_ms() - 200 + 20 * step));
            world.heal();
            world.run_for(millis(450));
            world.check_safety();
        }
        assert!(world.counters().stalled_frames > 0);
        if limit != KEEP_AFTER {
            world.expect(fenced(job, "w3"));
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The brain's links fail for just about as long as stewards wait before they stand.
#[test]
fn a_brain_that_is_back_just_as_stewards_stand() {
    let mut takeovers = 0;
    for step in 0..24 {
        let mut world = World::seed(1_110 + step).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(800)).spread());
        world.run_until(done(job, 0, 4));
        world.partition(["a"], ["b", "c", "d"]);
        world.run_for(millis(TAKEOVER_AFTER.as_ms() - 240 + 20 * step));
        world.heal();
        world.run_for(seconds(2));
        assert!(world.leaders(&job).len() == 1, "{:?}", world.leaders(&job));
        takeovers += u32::from(world.holds(&taken_over(job)));
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert!((1..24).contains(&takeovers), "some were in time, some were not: {takeovers}");
}

/// A worker's beats arrive, the answers to them do not: it must stop before its tasks go elsewhere.
#[test]
fn a_worker_that_hears_no_answers_stops() {
    for seed in 1_140..1_145 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(6).lasting(seconds(4)).spread());
        world.run_until(running(job, "w1"));
        world.run_for(millis(500));
        for from in ["brain", "w2", "w3"] {
            world.cut_one_way(from, "w1");
        }
        world.run_until_within(fenced(job, "w1"), millis(1_400));
        // As long as it takes to kill them.
        world.run_for(millis(25));
        assert!(world.running_on("w1", &job).is_empty());
        world.run_for(seconds(4));
        world.check_safety();
        assert!(world.counters().stalled_frames > 0);
        all_ends_well(&mut world);
        world.expect(completed(job));
    }
}

/// The other way round: the worker hears everything and is not heard.
#[test]
fn a_worker_that_is_not_heard_is_given_up_after_it_stopped() {
    for seed in 1_150..1_155 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(6).lasting(seconds(4)).spread());
        world.run_until(running(job, "w1"));
        world.run_for(millis(500));
        for to in ["brain", "w2", "w3"] {
            world.cut_one_way("w1", to);
        }
        world.run_until_within(given_up(job, "w1"), millis(2_000));
        world.expect(fenced(job, "w1"));
        all_ends_well(&mut world);
        world.expect(completed(job));
    }
}

/// Round trips to the other side of the world, close to what a brain allows itself for an answer: slow, and nothing is given up.
#[test]
fn a_mesh_around_the_world_keeps_its_leases() {
    for seed in 1_160..1_163 {
        let mut world = World::seed(seed).latency_us(70_000, 130_000).nodes(["a", "b", "c", "d"]);
        world.run_for(seconds(3));
        let job = world.submit("a", &job().tasks(40).lasting(millis(900)).spread());
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!((world.counters().lost_leases, world.executed_again(&job, 0)), (0, 0));
    }
}

/// Answers take longer than leases last: nothing can be held, and nothing runs twice. With better links the job completes.
#[test]
fn a_mesh_with_links_slower_than_its_leases() {
    let mut hit = 0;
    for seed in 1_170..1_173 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(30).lasting(millis(900)).spread());
        world.run_until(done(job, 0, 2));
        world = world.latency_us(500_000, 900_000);
        for _ in 0..20 {
            world.run_for(millis(500));
            world.check_safety();
        }
        hit += world.counters().fenced + world.counters().lost_leases;
        world = world.latency_us(200, 1_000);
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert!(hit > 0, "leases ended for slowness");
}
