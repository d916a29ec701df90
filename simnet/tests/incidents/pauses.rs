//! Machines that stand still for a while and go on as if nothing had happened.

use sinew_simnet::{
    DiskSetup, Distribution, Refusal::StaleEpoch, World, completed, done, fenced, given_up, job, led_by, millis,
    rejected_result, round, running, seconds, started, taken_over,
};

use crate::{all_ends_well, brain_and_workers, cores};

/// The brain stands still for longer than its lease; back, it believes to lead still, and decides nothing.
#[test]
fn a_brain_that_pauses_for_longer_than_its_lease() {
    for seed in 1_200..1_203 {
        for pause in [2_500, 6_000, 14_000] {
            let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
            let job = world.submit("a", &round(80, 8).lasting(millis(300)));
            world.run_until(done(job, 0, 20));
            world.pause("a");
            world.run_until_within(taken_over(job), seconds(3));
            world.run_for(millis(pause - 2_000));
            world.resume("a");
            world.run_for(seconds(1));
            let leaders = world.leaders(&job);
            assert!(leaders.len() <= 1 && leaders.iter().all(|(_, term)| *term > 1), "{leaders:?}");
            world.run_until(completed(job));
            all_ends_well(&mut world);
            assert_eq!(world.counters().pauses, 1);
        }
    }
}

/// The brain stands still, but is back before anyone stands for its place.
#[test]
fn a_brain_that_pauses_for_less_than_its_lease_stays() {
    for seed in 1_210..1_215 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(200).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        for _ in 0..5 {
            world.pause("a");
            world.run_for(millis(900));
            world.resume("a");
            world.run_for(millis(600));
        }
        world.expect(led_by(job, "a"));
        assert!(!world.holds(&taken_over(job)));
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().pauses, 5);
    }
}

/// A worker stands still with its task nearly done. When it goes on the task ends at once; its result comes too late.
#[test]
fn a_worker_that_pauses_reports_what_no_longer_counts() {
    for seed in 1_220..1_225 {
        let mut world = brain_and_workers(seed, ["w1", "w2"]);
        let job = world.submit("brain", &job().lasting_exactly(seconds(2)));
        world.run_until(started(job));
        let (first, second) = if world.holds(&running(job, "w1")) { ("w1", "w2") } else { ("w2", "w1") };
        world.run_for(millis(1_500));
        world.pause(first);
        world.run_until_within(running(job, second), seconds(2)).with_epoch(2);
        world.run_for(millis(200));
        world.resume(first);
        world.run_for(millis(500));
        assert!(world.running_on(first, &job).is_empty(), "it stopped or ended");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        world.expect(given_up(job, first));
        assert!(world.holds(&fenced(job, first)) || world.holds(&rejected_result(job, first, StaleEpoch)));
        assert!(world.accepted_at("brain", &job, 0) == 1);
    }
}

/// A laptop sleeps for half a minute in the middle of a long task: the task is elsewhere by then, and is not run on.
#[test]
fn a_laptop_that_sleeps_for_half_a_minute() {
    for seed in 1_230..1_233 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(9).lasting(seconds(20)).spread());
        world.run_until(running(job, "w1"));
        world.run_for(seconds(1));
        let hers = world.running_on("w1", &job);
        world.pause("w1");
        world.run_for(seconds(30));
        world.resume("w1");
        world.run_for(seconds(1));
        world.expect(fenced(job, "w1"));
        assert!(world.running_on("w1", &job).iter().all(|task| !hers.contains(task)), "its lease is over");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(hers.iter().all(|(phase, task)| world.attempts(&job, *phase, *task).len() > 1));
    }
}

/// The whole mesh is one host's virtual machines, and the host sleeps.
#[test]
fn a_mesh_that_stands_still_as_a_whole() {
    for (seed, pause) in [(1_240, 1_200), (1_241, 3_000), (1_242, 30_000)] {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 15));
        for name in ["a", "b", "c"] {
            world.pause(name);
        }
        world.run_for(millis(pause));
        for name in ["c", "b", "a"] {
            world.resume(name);
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().pauses, 3);
    }
}

/// A steward stands still while its brain is cut off from the other one, so that nobody is in charge. Back, it stands for brain
/// at once, and then hears and answers the brain's beats that waited for it. With its answer the brain is in charge again and
/// starts what there was no room for before; so the steward must let go of its candidacy.
#[test]
fn a_steward_back_from_a_pause_answers_its_brain_and_does_not_depose_it() {
    let mut began = 0;
    for step in 0..24 {
        let mut world = World::seed(1_260 + step).with(cores(1)).nodes(["a"]).with(cores(0)).nodes(["s", "t"]);
        let other = world.submit("t", &job().lasting(seconds(12)));
        world.run_until(running(other, "a"));
        let job = world.submit("a", &job().tasks(4).lasting(millis(800)).spread());
        assert_eq!(world.executions_of(&job).count(), 0, "there is no room");
        // Its own vote takes a while, in which the brain works on its answer.
        let fsync_us = Distribution::Uniform { low: 100_000, high: 300_000 };
        world.set_disk("s", DiskSetup::syncing_in(fsync_us));
        world.pause("s");
        world.join_as("w", cores(2));
        world.partition(["a", "s"], ["t", "w"]);
        world.run_for(millis(1_800 + 50 * step));
        began += world.executions_of(&job).count();
        world.heal();
        world.resume("s");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert_eq!(began, 0, "nobody was in charge");
}

/// A worker's daemon is stopped, swapped out, or in a debugger, for a second or for long. Its tasks run on; when their leases are
/// over they end all the same, before anybody else starts them.
#[test]
fn a_daemon_that_stands_still_alone() {
    for (seed, stall) in [(1_270, 700), (1_271, 1_100), (1_272, 1_700), (1_273, 6_000), (1_274, 20_000)] {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        let job = world.submit("brain", &job().tasks(12).lasting(seconds(5)).spread());
        world.run_until(running(job, "w1"));
        world.run_for(seconds(1));
        let hers = world.running_on("w1", &job);
        assert!(!hers.is_empty());
        world.stall("w1");
        world.run_for(millis(stall));
        world.check_safety();
        let left = world.running_on("w1", &job);
        assert!(stall > 1_000 || left == hers, "a lease that may be renewed yet is not over");
        assert!(stall < 1_500 || left.is_empty(), "nobody renews it");
        world.resume("w1");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!((world.counters().stalls, world.counters().pauses), (1, 0));
        assert!(stall < 1_500 || world.counters().switched > 0);
    }
}

/// A task ends well while its daemon stands still for a moment: its result counts.
#[test]
fn a_task_that_ends_while_its_daemon_stands_still_counts() {
    for seed in 1_280..1_283 {
        let mut world = brain_and_workers(seed, ["w1"]);
        let job = world.submit("brain", &job().lasting_exactly(seconds(2)));
        world.run_until(running(job, "w1"));
        world.run_for(millis(1_800));
        world.stall("w1");
        world.run_for(millis(500));
        assert!(world.running_on("w1", &job).is_empty(), "it has ended");
        world.resume("w1");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.attempts(&job, 0, 0).len(), 1);
    }
}

/// A steward votes, stands still, and comes back when another term has begun.
#[test]
fn a_steward_that_pauses_through_an_election() {
    for step in 0..8 {
        let mut world = World::seed(1_250 + step).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(80).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        world.kill("a");
        world.run_for(millis(1_400 + 60 * step));
        world.pause("b");
        world.run_for(seconds(1));
        world.restart("a");
        world.run_for(seconds(4));
        world.resume("b");
        world.run_for(seconds(1));
        assert!(world.leaders(&job).len() <= 1, "{:?}", world.leaders(&job));
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}
