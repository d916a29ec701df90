//! Clocks that are wrong, jump, or run too fast or too slow.

use sinew_simnet::{NodeSetup, World, completed, done, fenced, given_up, job, millis, round, running, seconds};

use crate::{all_ends_well, brain_and_workers, cores};

const HOUR_MS: i64 = 3_600_000;

/// Somebody sets the date: on the brain a day ahead, on a worker a year back, on a steward back and forth. Nobody's lease
/// depends on it.
#[test]
fn dates_that_jump_in_the_middle_of_a_round() {
    for seed in 1_800..1_805 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        let job = world.submit("a", &round(60, 6).lasting(millis(300)));
        world.run_until(done(job, 0, 10));
        world.jump_clock("a", 24 * HOUR_MS);
        world.jump_clock("d", -365 * 24 * HOUR_MS);
        for _ in 0..4 {
            world.jump_clock("b", HOUR_MS);
            world.run_for(millis(300));
            world.jump_clock("b", -HOUR_MS);
            world.run_for(millis(200));
        }
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert_eq!((world.counters().clock_jumps, world.counters().lost_leases), (10, 0));
        assert_eq!(world.executed_again(&job, 0) + world.executed_again(&job, 1), 0);
    }
}

/// The brain's date jumps, and then it dies: its successor, whose date is another one, goes on with what it finds.
#[test]
fn a_takeover_between_dates_years_apart() {
    for seed in 1_810..1_815 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(60).lasting(millis(300)).spread());
        world.run_until(done(job, 0, 10));
        world.jump_clock("a", 5 * 365 * 24 * HOUR_MS);
        world.run_for(seconds(1));
        world.kill("a");
        world.run_until(completed(job));
        world.restart("a");
        all_ends_well(&mut world);
        assert_eq!((world.counters().clock_jumps, world.counters().kills), (1, 1));
    }
}

/// One node's date jumps ahead, past the time for which ended jobs are kept. It forgets early; nothing comes back, and in the
/// end all have forgotten.
#[test]
fn a_date_that_jumps_past_the_grace_time() {
    for seed in 1_820..1_824 {
        let setup = NodeSetup { ledger_grace_ms: 20_000, ..cores(2) };
        let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c", "d"]);
        let jobs: Vec<_> = (0..5).map(|_| world.submit("a", &job().tasks(3))).collect();
        for job in &jobs {
            world.run_until(completed(*job));
        }
        world.run_for(seconds(5));
        assert_eq!(world.entries(), [5, 5, 5, 5]);
        world.jump_clock("c", HOUR_MS);
        world.run_for(seconds(8));
        let [a, b, c, d] = world.entries()[..] else { panic!("four nodes") };
        assert_eq!((a, b, c, d), (5, 5, 0, 5), "only the one whose date jumped forgets");
        world.run_for(seconds(90));
        assert_eq!(world.entries(), [0, 0, 0, 0]);
        assert!(jobs.iter().all(|job| world.executions_of(job).count() == 3), "nothing ran again");
        assert_eq!(world.counters().clock_jumps, 1);
    }
}

/// A submitter's date jumps back between two submits of the same job: both are jobs of their own.
#[test]
fn a_date_that_jumps_back_between_two_submits() {
    for seed in 1_830..1_833 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let first = world.submit("a", &job());
        world.jump_clock("a", -HOUR_MS);
        world.kill("a");
        world.restart("a");
        world.run_for(seconds(2));
        let second = world.submit("a", &job());
        assert_ne!(first, second);
        world.run_until(completed(first));
        world.run_until(completed(second));
        all_ends_well(&mut world);
        assert_eq!(world.counters().clock_jumps, 1);
    }
}

/// Clocks run a tenth too fast or too slow, a thousand times worse than quartz: a worker that is cut off still stops before
/// its tasks go elsewhere, whichever of the two is the slow one.
#[test]
fn a_cut_off_worker_with_a_clock_a_tenth_off() {
    for (seed, brain, worker) in [
        (1_840, 100_000, -100_000),
        (1_841, -100_000, 100_000),
        (1_842, 100_000, -100_000),
        (1_843, 0, -100_000),
        (1_844, 100_000, 0),
    ] {
        let mut world = brain_and_workers(seed, ["w1", "w2", "w3"]);
        for name in ["brain", "w2", "w3"] {
            world.drift_clock(name, brain);
        }
        world.drift_clock("w1", worker);
        let job = world.submit("brain", &job().tasks(9).lasting(seconds(3)).spread());
        world.run_until(running(job, "w1"));
        world.run_for(millis(800));
        world.partition(["w1"], ["brain", "w2", "w3"]);
        world.run_until_within(given_up(job, "w1"), millis(2_200));
        world.expect(fenced(job, "w1"));
        world.check_safety();
        world.run_for(seconds(3));
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
    }
}

/// Every clock runs at its own speed; brains change, and no task runs twice at once.
#[test]
fn takeovers_with_clocks_that_drift_apart() {
    for seed in 1_850..1_856 {
        let mut world = World::seed(seed).nodes(["a", "b", "c", "d"]);
        for (name, ppm) in [("a", 60_000), ("b", -60_000), ("c", 20_000), ("d", -30_000)] {
            world.drift_clock(name, ppm);
        }
        let job = world.submit("a", &job().tasks(60).lasting(millis(700)).spread());
        world.run_until(done(job, 0, 8));
        world.partition(["a", "d"], ["b", "c"]);
        world.run_for(seconds(5));
        world.check_safety();
        world.heal();
        world.run_until(completed(job));
        all_ends_well(&mut world);
        assert!(world.counters().fenced > 0 && world.counters().stalled_frames > 0);
    }
}
