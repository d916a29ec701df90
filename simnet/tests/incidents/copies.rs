//! Old copies of disks: a backup that is put back, and copies of nodes that run in their place.

use sinew_simnet::{World, completed, done, job, led_by, millis, recovered, round, seconds, taken_over};

use crate::all_ends_well;

const SET: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// As with a disk that was lost: a job is acknowledged by the brain and one steward while the other is cut off. That steward comes
/// back on a copy of its disk of before that, and the brain dies. The two that are left know nothing of the results.
#[test]
fn an_old_steward_and_a_stale_one_do_not_elect() {
    for seed in 12_100..12_106 {
        let mut world = World::seed(seed).nodes(SET);
        let job = world.submit("a", &job().tasks(40).lasting(millis(300)));
        world.run_until(done(job, 0, 4));
        let old = world.snapshot("b");
        world.partition(["c"], ["a", "b"]);
        world.run_until(done(job, 0, 16));
        world.run_for(millis(500));
        world.kill("b");
        world.roll_back("b", old);
        world.restart("b");
        world.run_for(millis(100));
        world.kill("a");
        world.heal();
        world.run_for(seconds(6));
        assert!(!world.holds(&taken_over(job)), "nobody leads on what two that know too little say");
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        world.run_until_within(recovered("b"), seconds(1));
    }
}

/// A steward voted its brain out, and comes back on a copy of before the vote, while the brain comes back too: the vote binds it.
#[test]
fn a_vote_on_a_disk_that_was_rolled_back_binds() {
    for seed in 12_110..12_116 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &round(40, 4).lasting(millis(300)));
        world.run_until(done(job, 0, 10));
        let stewards = world.stewards(&job).to_vec();
        let old: Vec<_> = stewards.iter().map(|name| (name.clone(), world.snapshot(name))).collect();
        world.kill("a");
        world.run_until(taken_over(job));
        let voter = old.into_iter().find(|(name, _)| !world.holds(&led_by(job, name))).expect("one of the two leads");
        world.run_for(millis(500));
        world.kill(&voter.0);
        world.roll_back(&voter.0, voter.1);
        world.restart("a");
        world.restart(&voter.0);
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A submitter comes back on an old copy that has never heard of its job, which others run. It gets everything back.
#[test]
fn a_submitter_that_was_rolled_back() {
    for seed in 12_120..12_124 {
        let mut world = World::seed(seed).nodes(NAMES);
        world.submit("a", &job().tasks(2));
        world.run_for(seconds(2));
        let old = world.snapshot("a");
        let job = world.submit("a", &job().tasks(12).lasting(millis(700)).spread());
        world.run_until(done(job, 0, 3));
        world.kill("a");
        world.roll_back("a", old);
        world.run_for(millis(300));
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A copy runs in a node's place, and later the node itself again: each is told apart from the other.
#[test]
fn a_copy_and_then_the_original() {
    for seed in 12_130..12_134 {
        let mut world = World::seed(seed).nodes(NAMES);
        let first = world.submit("a", &job().tasks(20).lasting(millis(400)));
        world.run_until(done(first, 0, 4));
        let member = world.stewards(&first)[0].clone();
        let copy = world.snapshot(&member);
        world.run_until(done(first, 0, 8));
        world.run_for(millis(400));
        world.kill(&member);
        let own = world.snapshot(&member);
        world.roll_back(&member, copy);
        world.restart(&member);
        world.run_for(seconds(2));
        let second = world.submit(&member, &job().tasks(2));
        world.run_for(millis(500));
        world.kill(&member);
        world.roll_back(&member, own);
        world.restart(&member);
        world.run_until(completed(first));
        world.run_until(completed(second));
        all_ends_well(&mut world);
    }
}
