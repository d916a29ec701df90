//! Jobs on a healthy mesh.

use sinew_simnet::{World, completed, job, millis, round};

#[test]
fn one_node_runs_a_job_alone() {
    let mut world = World::seed(1).nodes(["a"]);
    let job = world.submit("a", &job());
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn three_nodes_run_a_job() {
    let mut world = World::seed(2).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job());
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
}

#[test]
fn a_thousand_tasks_spread_over_three_nodes() {
    let mut world = World::seed(3).nodes(["a", "b", "c"]);
    let job = world.submit("a", &job().tasks(1_000).lasting(millis(20)));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    for node in 0..3 {
        let here = world.executions_of(&job).filter(|e| e.node == node).count();
        assert!(here > 200, "node {node} ran {here}");
    }
    assert_eq!(world.executed_again(&job, 0), 0);
}

#[test]
fn a_round_maps_copies_and_reduces() {
    let mut world = World::seed(4).nodes(["a", "b", "c"]);
    let job = world.submit("a", &round(60, 6));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.executed_again(&job, 0) + world.executed_again(&job, 1), 0);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(20, 3));
        world.run_until(completed(job));
        world.run_until_idle();
        (world.trace(), *world.counters())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).0, run(6).0);
}
