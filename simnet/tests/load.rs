//! Many jobs, lost frames, random faults.

use sinew_simnet::{NodeSetup, World, job, millis, round, seconds};

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

fn under_loss(seed: u64, per_ten_thousand: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    world.lose_frames(per_ten_thousand);
    for i in 0..60 {
        let plan = if i % 6 == 0 { round(12, 3) } else { job().tasks(1 + i % 4) };
        world.submit_later(NAMES[i as usize % 5], &plan.lasting(millis(100)));
        world.run_for(millis(50));
    }
    world.run_for(seconds(20));
    world.lose_frames(0);
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().lost_frames > 10);
    assert!(world.acknowledged() >= 59, "{}", world.acknowledged());
}

#[test]
fn one_percent_of_frames_lost() {
    for seed in 400..404 {
        under_loss(seed, 100);
    }
}

#[test]
fn five_percent_of_frames_lost() {
    for seed in 410..414 {
        under_loss(seed, 500);
    }
}

#[test]
fn a_hundred_jobs_a_second_on_ten_nodes() {
    let setup = NodeSetup { cpu_milli: 4_000, ..NodeSetup::default() };
    let mut world = World::seed(420).with(setup).nodes(NAMES);
    for i in 0..3_000 {
        world.submit_later(NAMES[i % 10], &job().lasting(millis(100)));
        world.run_for(millis(10));
    }
    world.run_until_idle();
    world.check_invariants();
    assert_eq!(world.acknowledged(), 3_000);
    assert_eq!(world.double_starts().len(), 0);
}
