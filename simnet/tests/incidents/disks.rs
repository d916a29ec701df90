//! Disks that are full, come back empty, or lose what was not synced.

use sinew_scheduler::io::SubmitError;
use sinew_simnet::{
    CrashPoint, DiskSetup, Distribution, World, completed, done, job, led_by, millis, round, running, seconds,
    taken_over,
};

use crate::{all_ends_well, brain_and_workers};

/// One steward's disk is full when a job is submitted: the other one makes the majority.
#[test]
fn a_submit_with_one_steward_whose_disk_is_full() {
    for seed in 1_500..1_505 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.fail_disk("b");
        let job = world.submit("a", &job().tasks(4));
        assert_eq!(world.accepted_at("b", &job, 0), 0);
        world.run_until(completed(job));
        assert!(world.executions_of(&job).all(|e| e.node != 1), "nothing runs where nothing can be written down");
        world.mend_disk("b");
        all_ends_well(&mut world);
    }
}

/// Both stewards' disks are full: the submit is refused, and nothing of it is left.
#[test]
fn a_submit_with_both_stewards_disks_full() {
    for seed in 1_510..1_513 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.fail_disk("b");
        world.fail_disk("c");
        let refused = world.try_submit("a", &job());
        assert!(matches!(refused, Err(SubmitError::Unknown { .. })), "{refused:?}");
        world.mend_disk("b");
        world.mend_disk("c");
        all_ends_well(&mut world);
        assert_eq!(world.executions_of_all(), 0);
    }
}

/// The brain's disk fills up in the middle: nothing is decided that is not on disk, and the job completes once it is mended.
#[test]
fn a_brain_whose_disk_fills_up_in_the_middle() {
    for seed in 1_520..1_525 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(40, 4).lasting(millis(300)));
        world.run_until(done(job, 0, 10));
        world.fail_disk("a");
        world.run_for(seconds(5));
        world.check_safety();
        world.mend_disk("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The brain's disk fills up, and then its power goes: whatever it had not written is lost, nothing that was decided is.
#[test]
fn a_brain_whose_disk_fills_up_and_then_dies() {
    for seed in 1_530..1_535 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(300)).spread());
        world.run_until(done(job, 0, 10));
        world.fail_disk("a");
        world.run_for(seconds(1));
        world.kill("a");
        world.run_until_within(taken_over(job), seconds(3));
        world.restart("a");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A worker's disk fills up: it gets nothing new until there is room again.
#[test]
fn a_worker_whose_disk_is_full_gets_no_work() {
    for seed in 1_540..1_545 {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        world.fail_disk("w3");
        world.run_for(seconds(2));
        let first = world.submit("brain", &job().tasks(12).lasting(millis(200)).spread());
        world.run_until(completed(first));
        assert!(world.executions_of(&first).all(|e| e.node != world.number("w3")));
        world.mend_disk("w3");
        world.run_for(seconds(2));
        let second = world.submit("brain", &job().tasks(12).lasting(millis(200)).spread());
        world.run_until_within(running(second, "w3"), seconds(2));
        world.run_until(completed(second));
        all_ends_well(&mut world);
    }
}

/// Every disk fills up at once, and is mended half a minute later.
#[test]
fn every_disk_full_at_once() {
    for seed in 1_550..1_553 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 10));
        for name in ["a", "b", "c"] {
            world.fail_disk(name);
        }
        let written = ["a", "b", "c"].map(|n| world.written_at(n, &job));
        world.run_for(seconds(30));
        assert_eq!(["a", "b", "c"].map(|n| world.written_at(n, &job)), written, "nothing is written");
        assert!(!world.holds(&completed(job)));
        assert!(matches!(world.try_submit("b", &sinew_simnet::job()), Err(SubmitError::Disk(_))));
        for name in ["a", "b", "c"] {
            world.mend_disk(name);
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// A node comes back with an empty disk while it still leads in the eyes of others; it must not speak for what it forgot.
#[test]
fn a_brain_back_at_once_with_an_empty_disk() {
    for step in 0..8 {
        let mut world = World::seed(1_560 + step).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 15));
        world.kill("a");
        world.wipe("a");
        world.run_for(millis(20 + 50 * step));
        world.restart("a");
        world.run_until_within(taken_over(job), seconds(6));
        assert!(!world.holds(&led_by(job, "a")) || world.leaders(&job).iter().all(|(_, term)| *term > 1));
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// The brain's disk takes half a second for each sync, as one that rebuilds its array does: everything is slower, nobody
/// takes its place, and nothing runs twice.
#[test]
fn a_slow_disk_on_the_brain() {
    for seed in 1_580..1_584 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.set_disk("a", syncing_in_ms(300, 700));
        let job = world.submit("a", &round(40, 4).lasting(millis(200)));
        world.run_until(completed(job));
        assert!(!world.holds(&taken_over(job)), "slow is not dead");
        all_ends_well(&mut world);
        assert_eq!((world.counters().lost_leases, world.executed_again(&job, 0)), (0, 0));
    }
}

/// The brain's disk hangs for seconds at a time, and its stewards' are fine: their majority is enough to go on.
#[test]
fn a_disk_that_hangs_on_the_brain_is_outvoted() {
    for seed in 1_585..1_588 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.set_disk("a", syncing_in_ms(4_000, 6_000));
        let asked = world.now();
        let job = world.submit("a", &job().tasks(6));
        assert!(world.now() - asked < millis(500), "acknowledged by the stewards' disks");
        world.run_until(completed(job));
        assert!(world.now() - asked < seconds(4), "done before the first sync is");
        all_ends_well(&mut world);
    }
}

/// Both stewards have slow disks: a submit waits for the faster one, as long as it takes.
#[test]
fn slow_disks_on_both_stewards() {
    for seed in 1_590..1_593 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.set_disk("b", syncing_in_ms(800, 1_000));
        world.set_disk("c", syncing_in_ms(1_800, 2_000));
        let asked = world.now();
        let job = world.submit("a", &job().tasks(6));
        let waited = world.now() - asked;
        assert!((millis(800)..millis(1_100)).contains(&waited), "{} ms", waited.as_ms());
        world.kill("a");
        world.run_until(completed(job));
        world.restart("a");
        all_ends_well(&mut world);
    }
}

/// The brain crashes at each of its first writes in turn: before it, in it, and after it.
#[test]
fn a_brain_that_crashes_at_every_write() {
    let mut acknowledged = 0;
    for (i, point) in [CrashPoint::Before, CrashPoint::During, CrashPoint::After].into_iter().enumerate() {
        for write in 0..7 {
            let mut world = World::seed(1_600 + 20 * i as u64 + write).nodes(["a", "b", "c"]);
            world.crash_at_write("a", write, point);
            world.submit_later("a", &job().tasks(3).with_outputs().lasting(millis(150)));
            world.run_for(seconds(5));
            assert!(!world.is_up("a"), "it crashed at write {write}");
            acknowledged += world.acknowledged();
            world.restart("a");
            world.run_for(seconds(1));
            all_ends_well(&mut world);
        }
    }
    assert!((1..21).contains(&acknowledged), "some crashes came before the answer, some after: {acknowledged}");
}

/// A steward crashes at each of its first writes: its answer was on disk, or was not given.
#[test]
fn a_steward_that_crashes_at_every_write() {
    for (i, point) in [CrashPoint::Before, CrashPoint::During, CrashPoint::After].into_iter().enumerate() {
        for write in 0..5 {
            let mut world = World::seed(1_660 + 10 * i as u64 + write).nodes(["a", "b", "c"]);
            world.crash_at_write("b", write, point);
            let job = world.submit("a", &job().tasks(8).lasting(millis(250)).spread());
            world.run_for(millis(800));
            assert!(!world.is_up("b"), "it crashed at write {write}");
            // What the brain knew goes with it: the one steward left must know all that was decided.
            world.kill("a");
            world.restart("b");
            world.run_until(completed(job));
            world.restart("a");
            all_ends_well(&mut world);
        }
    }
}

/// A node alone with a job crashes in each of its writes in turn, of which a part is there: of the last one the seal, but not
/// the mark that the job is sealed. Nothing that it knew before may be lost to that.
#[test]
fn a_lone_node_whose_writes_tear() {
    let mut torn = 0;
    for seed in 0..240 {
        let (write, mut world) = (seed % 40, World::seed(1_720 + seed).nodes(["a", "b"]));
        world.set_disk("a", DiskSetup { tears: true, ..DiskSetup::default() });
        world.kill("b");
        let job = world.submit("a", &job().tasks(10).lasting(millis(100)));
        world.crash_at_write("a", write, CrashPoint::During);
        world.run_for(seconds(8));
        torn += world.counters().torn_writes;
        if !world.is_up("a") {
            world.restart("a");
        }
        world.restart("b");
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
    assert!(torn > 5, "{torn}");
}

/// A brain without stewards says that the job is sealed and crashes before that is on its disk. Back, it takes office again, and
/// while its disk is slow to write that down, it hears from the other node that it had sealed the job itself.
#[test]
fn a_brain_that_learns_of_its_own_seal() {
    for step in 0..16 {
        let mut world = World::seed(1_890 + step).nodes(["a", "b"]);
        let job = world.submit("a", &job().tasks(6).lasting(millis(100)).spread());
        world.set_disk("a", syncing_in_ms(900, 1_100));
        while world.state("b", &job).is_none_or(|state| state.seal.is_none()) {
            assert!(world.step());
        }
        world.kill("a");
        world.partition(["a"], ["b"]);
        world.restart("a");
        world.run_for(millis(300 * step));
        world.heal();
        world.run_for(seconds(8));
        world.set_disk("a", DiskSetup::default());
        all_ends_well(&mut world);
        assert!(world.leaders(&job).is_empty());
    }
}

/// A steward's disk acknowledges what it only has in its cache, and loses that in a crash. The other two make up for it.
#[test]
fn a_steward_whose_disk_lies() {
    for seed in 1_690..1_694 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.set_disk("b", DiskSetup { lies: true, ..DiskSetup::default() });
        let job = world.submit("a", &round(40, 4).lasting(millis(200)));
        world.run_until(done(job, 0, 15));
        world.kill("b");
        world.restart("b");
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!(world.counters().kills, 1);
    }
}

fn syncing_in_ms(low: u64, high: u64) -> DiskSetup {
    DiskSetup::syncing_in(Distribution::Uniform { low: low * 1_000, high: high * 1_000 })
}
