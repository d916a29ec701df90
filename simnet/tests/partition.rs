//! Cut links: the side with a majority goes on, the other waits, and all agree afterwards.

use sinew_simnet::{
    NodeSetup, Refusal::StaleEpoch, World, completed, done, job, millis, rejected_result, round, running, seconds,
    started, taken_over,
};

/// A worker cut off past its lease must not have its late result accepted.
#[test]
fn late_result_is_fenced_after_partition() {
    let mut world = World::seed(7);
    world.join_as("brain", NodeSetup { cpu_milli: 0, ..NodeSetup::default() });
    let mut world = world.nodes(["w1", "w2"]);
    let task = world.submit("brain", &job().cpus(1.0).lasting_exactly(millis(1_500)));
    world.run_until(started(task));
    let (first, second) = if world.holds(&running(task, "w1")) { ("w1", "w2") } else { ("w2", "w1") };
    world.run_for(seconds(1));
    // The task ends while its node is cut off and not yet fenced; its report cannot get through.
    world.partition([first], ["brain", second]);
    world.run_for(millis(1_900));
    world.expect(running(task, second)).with_epoch(2);
    world.heal();
    world.run_until_idle();
    world.expect(rejected_result(task, first, StaleEpoch));
    world.check_invariants();
    assert!(world.counters().fenced > 0 && world.counters().stalled_frames > 0);
}

/// The brain is cut off from both stewards: they go on, it decides nothing, and all agree afterwards.
#[test]
fn the_majority_goes_on_without_a_cut_off_brain() {
    for seed in 200..210 {
        for cut in [3_000, 15_000] {
            let mut world = World::seed(seed).nodes(["a", "b", "c"]);
            let job = world.submit("a", &round(60, 6).lasting(millis(200)));
            world.run_until(done(job, 0, 20));
            world.partition(["a"], ["b", "c"]);
            let seen = world.run_until_within(taken_over(job), millis(2_500));
            assert!(seen.term > Some(1));
            world.run_for(millis(cut));
            world.heal();
            world.run_until(completed(job));
            world.run_until_idle();
            world.check_invariants();
            assert!(world.counters().stalled_frames > 0);
        }
    }
}

/// A worker and steward is cut off from the brain and the other steward: the brain goes on.
#[test]
fn the_brain_goes_on_with_a_majority() {
    for seed in 210..220 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        world.partition(["c"], ["a", "b"]);
        world.run_until_within(completed(job), seconds(30));
        world.heal();
        world.run_until_idle();
        world.check_invariants();
        assert!(world.counters().stalled_frames > 0 && world.counters().lost_leases > 0);
    }
}

/// A worker that hears nothing for three seconds stops by itself before anyone else starts.
#[test]
fn a_worker_without_answers_fences_itself() {
    for seed in 220..230 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(16).lasting(seconds(5)).spread());
        world.run_until(running(job, "d"));
        world.run_for(millis(300));
        for peer in ["a", "b", "c"] {
            world.cut_one_way("d", peer);
        }
        world.run_for(seconds(3));
        assert!(world.counters().fenced > 0, "it fenced itself");
        world.check_safety();
        world.heal();
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

/// A link that goes up and down around the lease's length never makes a task run twice at once.
#[test]
fn a_flapping_link_never_doubles_a_task() {
    for seed in 230..240 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(900)).spread());
        world.run_until(running(job, "d"));
        for i in 0..12 {
            world.partition(["a"], ["d"]);
            world.run_for(millis(850 + 100 * (i % 9)));
            world.heal();
            world.run_for(millis(150 + 50 * (i % 5)));
        }
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
        assert!(world.counters().stalled_frames > 0);
    }
}

/// The brain and one worker are cut off together: no task runs on both sides.
#[test]
fn a_cut_off_brain_does_not_keep_its_workers_going() {
    for seed in 240..250 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
        let job = world.submit("a", &job().tasks(80).lasting(millis(900)).spread());
        world.run_until(done(job, 0, 10));
        world.partition(["a", "d"], ["b", "c", "e"]);
        world.run_for(seconds(6));
        world.check_safety();
        world.heal();
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

/// One direction of one link is dead: whoever leads, leads alone.
#[test]
fn one_way_cuts_leave_one_brain() {
    for seed in 250..260 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 5));
        world.cut_one_way("a", "b");
        world.run_for(seconds(4));
        world.heal();
        world.cut_one_way("c", "a");
        world.run_for(seconds(4));
        world.heal();
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}
