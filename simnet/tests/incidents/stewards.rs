//! Stewards that are lost, replaced or late.

use sinew_simnet::{
    World, answered, completed, done, job, led_by, micros, millis, round, seconds, taken_over, taken_over_after,
};

use crate::all_ends_well;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Stewards are lost one by one: with one the brain goes on, with none it decides nothing, and goes on when one is back.
#[test]
fn stewards_lost_one_by_one() {
    for seed in 800..805 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(200).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        let stewards = world.stewards(&job);
        world.kill(&stewards[0]);
        world.run_for(seconds(4));
        let with_one = world.accepted_at("a", &job, 0);
        assert!(with_one > 20, "one steward is enough: {with_one}");
        world.kill(&stewards[1]);
        world.run_for(seconds(3));
        let stuck = world.executions_of(&job).count();
        world.run_for(seconds(5));
        assert_eq!(world.executions_of(&job).count(), stuck, "without a majority nothing is started");
        assert!(!world.holds(&completed(job)));
        world.restart(&stewards[0]);
        world.run_until(completed(job));
        world.restart(&stewards[1]);
        all_ends_well(&mut world);
        assert_eq!(world.counters().kills, 2);
    }
}

/// A steward loses its disk and is back at once; then the brain dies. What the other steward knows is enough.
#[test]
fn a_brain_that_dies_after_a_steward_was_wiped() {
    for seed in 810..815 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(120).lasting(millis(300)).spread());
        world.run_until(done(job, 0, 15));
        world.kill("b");
        world.wipe("b");
        world.restart("b");
        world.run_for(seconds(2));
        let before = world.accepted_at("c", &job, 0);
        assert!(before > 10 && !world.holds(&completed(job)));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(3));
        world.run_until(completed(job));
        world.restart("a");
        all_ends_well(&mut world);
    }
}

/// The first to stand for brain is killed while it campaigns: the last member waits, and goes on when any other is back.
#[test]
fn a_candidate_killed_while_it_campaigns() {
    for (seed, back) in [(820, "a"), (821, "other"), (822, "a"), (823, "other")] {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &job().tasks(100).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 10));
        let stewards = world.stewards(&job);
        world.kill("a");
        // Stewards stand after 1.5 s of silence, counted from the last beat.
        world.run_for(millis(1_300));
        assert!(!world.holds(&taken_over(job)), "the campaign is still open");
        world.kill(&stewards[0]);
        world.run_for(seconds(6));
        assert!(world.leaders(&job).is_empty(), "one of three leads nothing");
        world.restart(if back == "a" { "a" } else { &stewards[0] });
        world.run_until_within(taken_over(job), seconds(5));
        world.restart(if back == "a" { &stewards[0] } else { "a" });
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A steward dies while a submit waits for it: the other one makes the majority.
#[test]
fn a_steward_killed_during_a_submit_does_not_hold_it_up() {
    for step in 0..10 {
        let mut world = World::seed(830 + step).nodes(["a", "b", "c"]);
        let request = world.submit_later("a", &round(4, 2));
        world.run_for(micros(step * 200));
        world.kill("b");
        world.run_until_within(answered(request), seconds(2));
        assert_eq!(world.acknowledged(), 1);
        all_ends_well(&mut world);
    }
}

/// A steward that was cut off for a while knows little; as the only one who can, it takes over with all that was decided.
#[test]
fn a_steward_that_lags_takes_over_with_all_that_was_decided() {
    for seed in 840..845 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(80).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 4));
        world.partition(["b"], ["a", "c"]);
        world.run_for(seconds(6));
        let (lag, ahead) = (world.accepted_at("b", &job, 0), world.accepted_at("c", &job, 0));
        assert!(lag + 10 < ahead, "b lags: {lag} of {ahead}");
        world.heal();
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(4));
        world.run_for(millis(500));
        let leader = world.leaders(&job)[0].0.clone();
        assert!(world.accepted_at(&leader, &job, 0) >= ahead, "nothing decided is forgotten");
        world.run_until(completed(job));
        world.restart("a");
        all_ends_well(&mut world);
    }
}

/// The brain is succeeded, and its successor dies in the first moments of its office, while it takes stock.
#[test]
fn a_successor_killed_while_it_takes_stock() {
    for step in 0..10 {
        let mut world = World::seed(850 + step).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(40, 4).lasting(millis(300)));
        world.run_until(done(job, 0, 8));
        world.kill("a");
        let first = world.run_until_within(taken_over(job), seconds(3)).term.unwrap();
        world.run_for(millis(step * 40));
        let successor = if world.holds(&led_by(job, "b")) { "b" } else { "c" };
        world.expect(led_by(job, successor));
        world.restart("a");
        world.kill(successor);
        world.run_until_within(taken_over_after(job, first), seconds(5));
        world.run_until(completed(job));
        world.restart(successor);
        all_ends_well(&mut world);
    }
}
