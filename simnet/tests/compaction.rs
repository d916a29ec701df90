//! Sealed jobs are forgotten after their grace time, everywhere and for good.

use sinew_simnet::{NodeSetup, World, completed, job, millis, seconds};

const GRACE_MS: u64 = 4_000;

fn world(seed: u64) -> World {
    let setup = NodeSetup { ledger_grace_ms: GRACE_MS, ..NodeSetup::default() };
    World::seed(seed).with(setup).nodes(["a", "b", "c", "d"])
}

#[test]
fn forgotten_jobs_leave_no_trace_in_memory_and_do_not_come_back() {
    for seed in 500..505 {
        let mut world = world(seed);
        for _ in 0..40 {
            world.submit_later("a", &job().lasting(millis(50)));
            world.run_for(millis(100));
        }
        world.run_for(seconds(20));
        assert_eq!(world.acknowledged(), 40);
        assert_eq!(world.entries(), [0, 0, 0, 0], "every ledger is empty");
        let before = world.counters().bytes;
        world.run_for(seconds(10));
        let quiet = world.counters().bytes - before;
        assert!(quiet < 50_000, "nothing is asked for again: {quiet} bytes");
    }
}

/// A node that was away while a job ended and was forgotten learns of its end all the same.
#[test]
fn a_node_that_missed_the_end_forgets_too() {
    for seed in 510..515 {
        let mut world = world(seed);
        let job = world.submit("a", &job().tasks(40).lasting(millis(400)).spread());
        world.run_for(seconds(2));
        world.kill("d");
        world.run_until(completed(job));
        world.run_for(seconds(20));
        assert_eq!(world.entries()[..3], [0, 0, 0]);
        world.restart("d");
        assert!(world.entries()[3] > 0, "it still knows the job as open");
        // Others ask for what they just forgot again only after a minute.
        world.run_for(seconds(90));
        assert_eq!(world.entries(), [0, 0, 0, 0]);
        assert!(world.executions_of(&job).all(|e| e.end.is_some()));
    }
}
