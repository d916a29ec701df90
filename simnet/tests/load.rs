//! Many jobs, lost frames, random faults.

use sinew_scheduler::time::Span;
use sinew_simnet::{NodeSetup, World, answered, completed, job, millis, round, seconds};

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

fn under_loss(seed: u64, per_ten_thousand: u64) {
    let mut world = World::seed(seed).nodes(["a", "b", "c", "d", "e"]);
    world.lose_frames(per_ten_thousand);
    for i in 0..120 {
        let plan = if i % 6 == 0 { round(12, 3) } else { job().tasks(1 + i % 4) };
        world.submit_later(NAMES[i as usize % 5], &plan.lasting(millis(100)));
        world.run_for(millis(50));
    }
    world.run_for(seconds(20));
    world.lose_frames(0);
    world.run_until_idle();
    world.check_invariants();
    assert!(world.counters().lost_frames > 20, "{:?}", world.counters());
    assert!(world.acknowledged() >= 119, "{}", world.acknowledged());
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

/// Forty-five nodes, of which two brains run nothing, and these have a slot each: so many that a node tells its load unasked
/// every four seconds only.
fn with_workers(seed: u64, workers: &[&str]) -> World {
    let idle = NodeSetup { cpu_milli: 0, ..NodeSetup::default() };
    let names: Vec<String> = (0..43 - workers.len()).map(|n| format!("idle-{n}")).collect();
    let mut world =
        World::seed(seed).with(idle).nodes(["brain", "other"].into_iter().chain(names.iter().map(|n| &**n)));
    for worker in workers {
        world.join_as(worker, NodeSetup { cpu_milli: 1_000, ..NodeSetup::default() });
    }
    world.run_for(seconds(2));
    world
}

/// Submits a job of one task and says how long it takes to start.
fn start_of(world: &mut World, brain: &str, lasting: Span) -> Span {
    let before = world.now();
    let job = world.submit(brain, &job().lasting_exactly(lasting));
    world.run_until(completed(job));
    world.attempts(&job, 0, 0)[0].start - before
}

/// A brain that takes the slots of its own ended jobs for taken waits for digests after as many jobs as the mesh has slots.
#[test]
fn slots_of_ended_jobs_are_known_to_be_free() {
    let mut world = with_workers(430, &["v", "w"]);
    let starts: Vec<Span> = (0..20).map(|_| start_of(&mut world, "brain", millis(50))).collect();
    assert!(starts.iter().all(|start| *start < millis(30)), "{starts:?}");
    world.run_until_idle();
    world.check_invariants();
}

/// The only worker was busy with another brain's job when it was asked. Nothing tells the brain when that ends.
#[test]
fn a_node_that_had_no_room_is_asked_again() {
    let mut world = with_workers(431, &["w"]);
    let first = world.submit_later("other", &job().lasting_exactly(millis(300)));
    world.run_until(answered(first));
    world.run_for(millis(20));
    let waited = start_of(&mut world, "brain", millis(50));
    assert!(waited > millis(250), "the worker was not busy: {waited:?}");
    assert!(waited < millis(1_300), "only the next advert brought the two together: {waited:?}");
    world.run_until_idle();
    world.check_invariants();
}

/// While a task runs, its worker beats five times a second, its brain too, and both are answered. The stewards wait for beats to
/// stay away: they are not called to see whether one has.
#[test]
fn stewards_are_not_called_while_their_brain_lives() {
    let events = |world: &mut World| {
        let before = world.counters().events;
        world.run_for(seconds(20));
        (world.counters().events - before) / 20
    };
    let mut world = World::seed(420).nodes(["a", "b", "c", "d", "e"]);
    world.run_for(seconds(10));
    let idle = events(&mut world);
    let job = world.submit("a", &job().tasks(1).lasting(seconds(60)));
    world.run_for(seconds(5));
    let busy = events(&mut world);
    // 45 a second are beats and answers; looks ten times a second from two stewards would be 20 more.
    assert!(busy - idle < 55, "{idle} events a second idle, {busy} with one task running");
    world.run_until(completed(job));
}
