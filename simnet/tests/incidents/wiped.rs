//! Members of a brain set that come back with an empty disk: what they promised and stored is gone, and they say so.

use sinew_crdt_state::ids::DiskId;
use sinew_scheduler::io::Response;
use sinew_simnet::{
    CrashPoint, DiskSetup, World, answered, completed, done, ended, job, led_by, millis, recovered, round, seconds,
    taken_over,
};

use crate::all_ends_well;

const SET: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn lose_disk(world: &mut World, name: &str) {
    world.kill(name);
    world.wipe(name);
}

/// A job is acknowledged by the brain and one steward while the other is cut off. That steward's disk is lost, and the brain
/// dies: the two that are left know nothing of the results. They must wait for the brain, and decide nothing without it.
#[test]
fn a_wiped_steward_and_a_stale_one_do_not_elect() {
    let mut waited = 0;
    for seed in 1_900..1_906 {
        let mut world = World::seed(seed).nodes(SET);
        let job = world.submit("a", &job().tasks(40).lasting(millis(300)));
        world.run_until(done(job, 0, 4));
        world.partition(["c"], ["a", "b"]);
        world.run_until(done(job, 0, 16));
        world.run_for(millis(500));
        world.kill("a");
        lose_disk(&mut world, "b");
        world.heal();
        world.run_for(millis(200));
        world.restart("b");
        world.run_for(seconds(6));
        assert!(!world.holds(&taken_over(job)), "nobody leads on what two that know too little say");
        waited += 1;
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        world.run_until_within(recovered("b"), seconds(1));
    }
    assert_eq!(waited, 6);
}

/// A steward loses its disk at the very moment of a replication. Whatever it acknowledged before, it holds again before it
/// counts again; then the brain may die.
#[test]
fn a_steward_wiped_during_a_replication() {
    for step in 0..8 {
        let mut world = World::seed(1_910 + step).nodes(NAMES);
        let job = world.submit("a", &round(60, 4).lasting(millis(200)));
        world.run_until(done(job, 0, 20));
        world.run_for(sinew_simnet::micros(step * 300));
        let steward = world.stewards(&job)[0].clone();
        lose_disk(&mut world, &steward);
        world.run_for(millis(300));
        world.restart(&steward);
        world.run_for(seconds(2));
        let again = world.state(&steward, &job).expect("it has the job again");
        let first = world.state("a", &job).expect("the brain has it");
        if first.seal.is_none() {
            assert!(again.promised_by_any() == first.promised_by_any());
        }
        world.kill("a");
        world.run_until(ended(job));
        world.restart("a");
        all_ends_well(&mut world);
        world.expect(completed(job));
        world.run_until_within(recovered(&steward), seconds(1));
    }
}

/// A submitter that was cut off names the disks that the two others had before. Neither stored anything of the job on those, and
/// each waits for the others to remember: the one that does is enough.
#[test]
fn a_submit_that_names_two_disks_replaced_unseen() {
    for seed in 1_980..1_988 {
        let mut world = World::seed(seed).nodes(SET);
        world.run_for(seconds(1));
        world.partition(["a"], ["b", "c"]);
        for name in ["b", "c"] {
            lose_disk(&mut world, name);
            world.restart(name);
            world.run_for(millis(100));
            world.run_until_within(recovered(name), seconds(1));
        }
        let request = world.submit_later("a", &job().tasks(6).lasting(millis(200)));
        world.heal();
        world.run_until(answered(request));
        all_ends_well(&mut world);
    }
}

/// A node takes a job in the instant in which it is connected again: it has not heard yet which disks the others have, and names
/// nobody with a disk that is not theirs: it waits until they have said.
#[test]
fn a_submit_before_the_others_said_who_they_are() {
    for seed in 1_990..1_998 {
        let mut world = World::seed(seed).nodes(SET);
        world.run_for(seconds(1));
        world.kill("a");
        world.run_for(millis(500));
        world.restart("a");
        while !(world.connected("a", "b") && world.connected("a", "c")) {
            assert!(world.step());
        }
        let request = world.submit_later("a", &job().tasks(4).lasting(millis(200)));
        world.run_until(answered(request));
        let Some(Response::Submitted(Ok(job))) = world.answer_to(request).cloned() else { panic!("it is taken") };
        let spec = world.state("a", &job).expect("it is known").spec;
        assert!(spec.brain_disks.iter().all(|disk| *disk != DiskId::default()), "{:?}", spec.brain_disks);
        assert_eq!(spec.brain_set.len(), 3);
        all_ends_well(&mut world);
    }
}

/// A steward votes, and its disk is lost with the vote. It must not help the deposed brain to decide: it learns from the one it
/// voted for that it had promised something.
#[test]
fn a_steward_wiped_after_its_vote() {
    for step in 0..8 {
        let mut world = World::seed(1_920 + step).nodes(SET);
        let job = world.submit("a", &job().tasks(60).lasting(millis(300)).spread());
        world.run_until(done(job, 0, 10));
        world.partition(["a"], ["b", "c"]);
        let seen = world.run_until_within(taken_over(job), seconds(6));
        let term = seen.term.expect("a term");
        let (brain, _) = world.leaders(&job).into_iter().find(|(_, t)| *t == term).expect("it leads");
        let voter = if brain == "b" { "c" } else { "b" };
        lose_disk(&mut world, voter);
        world.run_for(millis(100 * step));
        world.restart(voter);
        // Now the old brain hears the member that has forgotten its vote, and not its successor.
        world.heal();
        world.partition(["a", voter], [brain.as_str()]);
        world.run_for(seconds(5));
        let leads = |name: &str| world.leaders(&job).iter().any(|(n, _)| n == name);
        assert!(!leads(voter), "it has not caught up: one of two that it must ask is cut off");
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The brain dies, and while its stewards take over one of them loses its disk: the job waits for whoever comes back first with
/// its disk, and loses nothing.
#[test]
fn a_steward_wiped_during_a_takeover() {
    for step in 0..8 {
        let mut world = World::seed(1_930 + step).nodes(SET);
        let job = world.submit("a", &job().tasks(60).lasting(millis(300)).spread());
        world.run_until(done(job, 0, 15));
        let known = world.accepted_at("a", &job, 0);
        world.kill("a");
        world.run_for(millis(1_450 + 60 * step));
        lose_disk(&mut world, "b");
        world.run_for(millis(200));
        world.restart("b");
        world.run_for(seconds(4));
        assert!(!world.holds(&led_by(job, "b")), "b must ask a first");
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(known > 0);
        world.run_until_within(recovered("b"), seconds(1));
    }
}

/// The brain's disk is lost while it leads, and again as soon as it is back: it has the job from its stewards each time.
#[test]
fn a_brain_wiped_twice_in_a_row() {
    for step in 0..6 {
        let mut world = World::seed(1_940 + step).nodes(NAMES);
        let job = world.submit("a", &round(40, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 10));
        for wait in [50, 400] {
            lose_disk(&mut world, "a");
            world.run_for(millis(wait + 40 * step));
            world.restart("a");
            world.run_for(millis(1_000));
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
        world.run_until_within(recovered("a"), seconds(1));
    }
}

/// Of the two nodes that hold a round's output, one loses its disk after the round, and later the other. In between the first
/// has fetched what it should hold, so nothing is gone.
#[test]
fn both_holders_of_an_output_are_wiped_one_after_the_other() {
    let mut lost = 0;
    for seed in 1_950..1_956 {
        let mut world = World::seed(seed).nodes(NAMES);
        let job = world.submit("a", &round(20, 5).lasting(millis(200)));
        world.run_until(completed(job));
        world.run_until_idle();
        for name in NAMES {
            lost += world.holders_among(&[name.to_owned()], &job, 1, 0);
            lose_disk(&mut world, name);
            world.run_for(millis(500));
            world.restart(name);
            world.run_until_idle();
            world.run_until_within(recovered(name), seconds(1));
        }
        world.check_invariants();
    }
    assert!(lost >= 12, "each output was lost with both its holders: {lost}");
}

/// A node is restarted while it fetches what its lost disk held: it goes on with it.
#[test]
fn a_restart_while_outputs_are_fetched_again() {
    for step in 0..6 {
        let mut world = World::seed(1_960 + step).nodes(NAMES);
        let job = world.submit("a", &round(20, 20).lasting(millis(200)));
        world.run_until(completed(job));
        world.run_until_idle();
        let holder = NAMES.into_iter().find(|n| world.holders_among(&[(*n).to_owned()], &job, 1, 0) == 1).unwrap();
        lose_disk(&mut world, holder);
        world.run_for(millis(300));
        world.restart(holder);
        world.run_for(millis(60 * step));
        world.kill(holder);
        world.run_for(millis(50));
        world.restart(holder);
        all_ends_well(&mut world);
        world.run_until_within(recovered(holder), seconds(1));
    }
}

/// The write that tells of a sealed job is torn, on a node that has just lost its disk: it comes back knowing that the job ended,
/// and all the same that it has to fetch the outputs.
#[test]
fn a_write_torn_while_ended_jobs_are_learned_again() {
    let mut torn = 0;
    for step in 0..60 {
        let mut world = World::seed(2_060 + step).nodes(SET);
        for _ in 0..6 {
            world.submit("a", &job().tasks(1).with_outputs().lasting(millis(50)).spread());
        }
        world.run_until_idle();
        lose_disk(&mut world, "b");
        world.set_disk("b", DiskSetup { tears: true, ..DiskSetup::default() });
        world.restart("b");
        world.crash_at_write("b", step % 4, CrashPoint::During);
        world.run_for(seconds(2));
        torn += world.counters().torn_writes;
        world.set_disk("b", DiskSetup::default());
        if !world.is_up("b") {
            world.restart("b");
        }
        all_ends_well(&mut world);
        world.run_until_within(recovered("b"), seconds(1));
    }
    assert!(torn > 8, "{torn}");
}

/// In a large mesh the other holder of what a lost disk had may be nobody to whom there is a connection: it is dialled.
#[test]
fn outputs_are_fetched_again_from_a_holder_without_a_connection() {
    let mut far = 0;
    for seed in 2_030..2_036 {
        let mut world = World::seed(seed).connections(1, 2).nodes(["a", "b", "c", "d", "e", "f", "g", "h"]);
        let job = world.submit("a", &round(16, 8).lasting(millis(200)).spread());
        world.run_until(completed(job));
        world.run_for(seconds(90));
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let holders = |world: &World, task| {
            names
                .into_iter()
                .filter(|n| world.holders_among(&[(*n).to_owned()], &job, 1, task) == 1)
                .collect::<Vec<_>>()
        };
        let pairs: Vec<_> = (0..8).map(|task| holders(&world, task)).collect();
        let pair = pairs.iter().find(|p| p.len() == 2 && !world.connected(p[0], p[1])).cloned();
        let Some([lost, _]) = pair.as_deref() else { continue };
        lose_disk(&mut world, lost);
        world.run_for(millis(500));
        world.restart(lost);
        world.run_until_within(recovered(lost), seconds(60));
        far += 1;
    }
    assert!(far > 2, "{far}");
}
