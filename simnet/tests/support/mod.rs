//! The mixed fault workload: first safety under all faults, then, healed, every job must end.

use sinew_simnet::{World, job, millis, round, seconds};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Random kills, restarts, partitions, one-way cuts and losses under a load of jobs and rounds, all from the seed.
pub(crate) fn mixed(seed: u64) {
    let mut world = World::seed(seed);
    if std::env::var_os("SIMNET_VERBOSE").is_some() {
        world = world.verbose();
    }
    let mut world = world.nodes(NAMES);
    let mut down: Vec<&str> = Vec::new();
    for step in 0..40 {
        if step == 20 && world.counters().kills == 0 {
            // One seed in some hundreds draws none.
            world.kill(NAMES[0]);
            down.push(NAMES[0]);
        }
        fault(&mut world, &mut down);
        let submitter = NAMES[world.pick(5)];
        if !down.contains(&submitter) {
            let tasks = 1 + u32::try_from(world.pick(12)).expect("below 12");
            let plan = if step % 4 == 0 { round(tasks * 2, 3) } else { job().tasks(tasks) };
            let length = 50 + world.pick(800) as u64;
            world.submit_later(submitter, &plan.lasting(millis(length)).spread());
        }
        let pause = 100 + world.pick(1_500) as u64;
        world.run_for(millis(pause));
        world.check_safety();
    }
    world.heal();
    world.lose_frames(0);
    for name in down {
        world.restart(name);
    }
    world.run_for(seconds(5));
    world.run_until_idle();
    world.check_invariants();
    let counters = world.counters();
    assert!(counters.kills > 0 && counters.restarts > 0 && world.acknowledged() > 5, "{counters:?}");
}

fn fault(world: &mut World, down: &mut Vec<&str>) {
    let name = NAMES[world.pick(NAMES.len())];
    match world.pick(10) {
        0 | 1 if down.len() < 2 && !down.contains(&name) => {
            world.kill(name);
            down.push(name);
        }
        2 | 3 if !down.is_empty() => world.restart(down.remove(0)),
        4 => {
            let others: Vec<&str> = NAMES.into_iter().filter(|n| *n != name).collect();
            world.partition([name], others);
        }
        5 => {
            let (from, to) = (NAMES[world.pick(5)], NAMES[world.pick(5)]);
            if from != to {
                world.cut_one_way(from, to);
            }
        }
        6 => world.heal(),
        7 => {
            let loss = world.pick(300) as u64;
            world.lose_frames(loss);
        }
        _ => {}
    }
}
