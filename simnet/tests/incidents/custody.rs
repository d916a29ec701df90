//! Copies that must exist: of jobs that share blobs, and of what nodes held that are gone for good.

use sinew_crdt_state::ids::JobId;
use sinew_simnet::{NodeSetup, Plan, World, completed, done, job, millis, round, running, seconds};

use crate::{all_ends_well, cores};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A mesh that forgets jobs four seconds after their end.
fn forgetful(seed: u64) -> World {
    World::seed(seed).with(NodeSetup { ledger_grace_ms: 4_000, ..NodeSetup::default() }).nodes(NAMES)
}

fn with_output() -> Plan {
    job().with_outputs().lasting(millis(200)).spread()
}

/// Lets go of what is forgotten, everywhere.
fn prune_all(world: &mut World) {
    for name in NAMES {
        if world.is_up(name) {
            world.prune_outputs(name);
        }
    }
}

/// The machine is gone, with its disk.
fn lose(world: &mut World, name: &str) {
    world.kill(name);
    world.wipe(name);
}

/// Two jobs leave the same; the first one's outputs are pruned once they are old. The second one's copies are its own: its
/// second holder had the blob already, and kept it for the first job only.
#[test]
fn equal_jobs_each_have_their_copies() {
    for seed in 3_000..3_010 {
        let mut world = forgetful(seed);
        let plan = with_output().tasks(3).with_equal_outputs("same");
        let first = world.submit("a", &plan);
        world.run_until(completed(first));
        world.run_for(seconds(15));
        let second = world.submit("b", &plan);
        world.run_until(completed(second));
        prune_all(&mut world);
        world.check_recorded_copies();
        for task in 0..3 {
            assert_eq!(world.keepers(&second, 0, task).len(), 2, "seed {seed}");
        }
        let lost = world.keepers(&second, 0, 0)[0].clone();
        lose(&mut world, &lost);
        assert_eq!(world.keepers(&second, 0, 0).len(), 1, "the other one is left");
    }
}

/// The same with inputs: a steward that had them for an earlier job keeps them for the later one too, so that the submitter's
/// loss does not stop it.
#[test]
fn equal_inputs_are_kept_for_each_job() {
    for seed in 3_010..3_016 {
        let mut world = forgetful(seed);
        let plan = round(12, 2).lasting(millis(800)).with_equal_outputs("same");
        let first = world.submit("a", &plan);
        world.run_until(completed(first));
        world.run_for(seconds(15));
        let second = world.submit("a", &plan);
        prune_all(&mut world);
        assert!(world.input_keepers(&second).len() >= 2, "{:?}", world.input_keepers(&second));
        lose(&mut world, "a");
        world.run_until(completed(second));
        all_ends_well(&mut world);
    }
}

/// One of the two holders of each output is lost for good, and later the other: in between, a third has it.
#[test]
fn outputs_are_copied_again_when_a_holder_is_gone_for_good() {
    let mut moved = 0;
    for seed in 3_020..3_024 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &with_output().tasks(4));
        world.run_until(completed(job));
        world.run_until_idle();
        for name in ["b", "c", "d"] {
            moved += world.keepers(&job, 0, 0).iter().filter(|n| *n == name).count();
            lose(&mut world, name);
            world.run_for(seconds(75));
            world.check_copied_again();
        }
    }
    assert!(moved >= 6, "outputs were lost with their holders: {moved}");
}

/// The same for a job of which the ledgers have forgotten all but its receipt. What was copied again goes when the rest goes.
#[test]
fn outputs_of_forgotten_jobs_are_copied_again_and_go_in_the_end() {
    for seed in 3_030..3_034 {
        let mut world = forgetful(seed);
        let job = world.submit("a", &with_output().tasks(2));
        world.run_until(completed(job));
        world.run_for(seconds(20));
        assert_eq!(world.entries(), [0; 5], "it is forgotten");
        let lost = world.keepers(&job, 0, 0)[0].clone();
        lose(&mut world, &lost);
        world.run_for(seconds(75));
        world.check_copied_again();
        prune_all(&mut world);
        assert!(world.keepers(&job, 0, 0).is_empty(), "{:?}", world.keepers(&job, 0, 0));
    }
}

/// The holder that is left is restarted while it waits, or while a copy is being made: it goes on with it.
#[test]
fn a_holder_that_restarts_still_has_it_copied() {
    for seed in 3_040..3_046 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &with_output());
        world.run_until(completed(job));
        world.run_until_idle();
        let holders = world.keepers(&job, 0, 0);
        lose(&mut world, &holders[0]);
        let wait = [30_000, 59_900, 60_000, 60_010, 62_000, 63_000][usize::try_from(seed - 3_040).unwrap()];
        world.run_for(millis(wait));
        world.kill(&holders[1]);
        world.run_for(millis(300));
        world.restart(&holders[1]);
        world.run_for(seconds(75));
        world.check_copied_again();
    }
}

/// A holder is away for less than the time, or comes back later: nothing is copied, or one copy more is there.
#[test]
fn a_holder_that_comes_back_in_time_costs_nothing() {
    for (seed, away, most) in [(3_050, 30, 2), (3_051, 100, 3)] {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &with_output());
        world.run_until(completed(job));
        world.run_until_idle();
        let holders = world.keepers(&job, 0, 0);
        world.kill(&holders[0]);
        world.run_for(seconds(away));
        world.restart(&holders[0]);
        world.run_for(seconds(100));
        world.check_copied_again();
        assert_eq!(world.keepers(&job, 0, 0).len(), most);
        world.check_recorded_copies();
        all_ends_well(&mut world);
    }
}

/// With nobody left to take a copy the holder waits, and has it made once there is somebody.
#[test]
fn a_copy_waits_for_a_node_that_can_take_it() {
    let mut world = World::seed(3_055).nodes(["a", "b", "c"]);
    let job = world.submit("a", &with_output());
    world.run_until(completed(job));
    world.run_until_idle();
    let holders = world.keepers(&job, 0, 0);
    let third = ["a", "b", "c"].into_iter().find(|n| !holders.contains(&(*n).to_owned())).unwrap();
    world.kill(third);
    lose(&mut world, &holders[0]);
    world.run_for(seconds(90));
    assert_eq!(world.keepers(&job, 0, 0), [holders[1].clone()]);
    world.restart(third);
    world.run_for(seconds(75));
    world.check_copied_again();
}

/// A steward is lost for good while a job runs: its inputs, and what its tasks have left so far, are on as many nodes again.
#[test]
fn inputs_and_results_of_a_running_job_are_copied_again() {
    for seed in 3_060..3_063 {
        let mut world = World::seed(seed).with(cores(1)).nodes(NAMES);
        let job = world.submit("a", &round(12, 2).lasting(seconds(40)));
        world.run_until(running(job, "a"));
        let set = world.brain_set(&job);
        let steward = set.iter().find(|n| *n != "a").cloned().unwrap();
        world.run_until(done(job, 0, 4));
        lose(&mut world, &steward);
        world.run_for(seconds(75));
        assert!(world.input_keepers(&job).len() >= 3, "{:?}", world.input_keepers(&job));
        let few: Vec<u32> = (0..4).filter(|t| world.keepers(&job, 0, *t).len() == 1).collect();
        assert!(few.is_empty(), "{few:?}");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Of many jobs' outputs a lost node held, all are copied again, with one transfer at a time for each holder.
#[test]
fn many_jobs_lose_a_holder_at_once() {
    let mut world = World::seed(3_070).nodes(NAMES);
    let jobs: Vec<JobId> = (0..40).map(|n| world.submit(NAMES[n % 5], &with_output().tasks(2))).collect();
    for job in &jobs {
        world.run_until(completed(*job));
    }
    world.run_until_idle();
    lose(&mut world, "d");
    world.run_for(seconds(120));
    world.check_copied_again();
}

/// A member asks another one to keep what belongs to no job: of a job under way, of one that has ended, and of one that nobody
/// knows. Nothing of it is fetched.
#[test]
fn what_is_no_jobs_is_not_kept() {
    let mut world = World::seed(3_080).nodes(NAMES);
    let job = world.submit("a", &with_output().tasks(4));
    world.run_until(done(job, 0, 1));
    let blob = world.forge_keep("d", "b", job);
    world.run_for(seconds(1));
    assert!(world.has_blob("d", &blob) && !world.has_blob("b", &blob));
    world.run_until(completed(job));
    world.run_until_idle();
    world.forge_keep("d", "b", job);
    world.forge_keep("d", "c", JobId([7; 32]));
    world.run_for(seconds(12));
    assert!(["a", "b", "c", "e"].into_iter().all(|name| !world.has_blob(name, &blob)));
    // Who is asked again does not wait for an answer that never came.
    let lost = world.keepers(&job, 0, 0)[0].clone();
    lose(&mut world, &lost);
    world.run_for(seconds(75));
    world.check_copied_again();
}
