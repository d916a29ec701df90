//! Jobs that wait for room: what they cost while nothing changes, and how fast they go once there is room.

use sinew_scheduler::kind::Family;
use sinew_simnet::{Counters, NodeSetup, World, answered, completed, job, millis, seconds};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three nodes of one core each, all busy for so many seconds.
fn busy_mesh(seed: u64, busy: u64) -> World {
    let setup = NodeSetup { cpu_milli: 1_000, ..NodeSetup::default() };
    let mut world = World::seed(seed).with(setup).nodes(NAMES);
    world.run_for(seconds(2));
    for _ in NAMES {
        world.submit("a", &job().lasting_exactly(seconds(busy)));
    }
    world.run_for(seconds(2));
    assert_eq!(world.executions_of_all(), 3, "all three nodes are busy");
    world
}

/// Submits so many short jobs at `a`, and waits until all are taken.
fn submit_many(world: &mut World, jobs: usize) {
    let before = world.acknowledged();
    for _ in 0..jobs {
        let id = world.submit_later("a", &job().lasting_exactly(millis(20)));
        world.run_for(millis(1));
        if world.acknowledged() + 200 < before + jobs {
            continue;
        }
        world.run_until(answered(id));
    }
    world.run_for(seconds(2));
    assert_eq!(world.acknowledged(), before + jobs);
}

/// What happens in so many seconds, and how often a single job was looked at in them.
fn counts_of(world: &mut World, span: u64) -> (Counters, u64) {
    let (before, looks) = (*world.counters(), world.looks());
    world.run_for(seconds(span));
    let mut counters = *world.counters();
    counters.events -= before.events;
    counters.traffic = counters.traffic.since(&before.traffic);
    (counters, world.looks() - looks)
}

/// A long queue costs no more events, messages or looks than a short one, but for a question now and then from the stewards, whose
/// rate is bounded: 512 jobs of a brain in two seconds.
fn costs_nothing(jobs: usize) {
    let mut world = busy_mesh(440, 4_000);
    submit_many(&mut world, 1);
    world.run_for(seconds(60));
    let (one, _) = counts_of(&mut world, 20);
    submit_many(&mut world, jobs);
    world.run_for(seconds(60));
    let (many, looks) = counts_of(&mut world, 20);
    assert!(many.events <= one.events + 100, "{} events with one job waiting, {} with {jobs}", one.events, many.events);
    let messages = |counters: &Counters| counters.traffic.total().messages;
    assert!(messages(&many) <= messages(&one) + 100, "{:?}\n{:?}", one.traffic, many.traffic);
    assert!(looks <= 2 * 10 * 2 * 512, "{looks} looks at single jobs in 20 s");
    assert_eq!(world.executions_of_all(), 3, "the queue waits");
}

#[test]
fn twenty_thousand_waiting_jobs_cost_nothing() {
    costs_nothing(20_000);
}

/// Once there is room, the queue goes in order of arrival, with hardly more messages a job than where each job finds room at once, and
/// without slots that idle while jobs wait.
#[test]
fn a_queue_drains_like_an_unqueued_load() {
    const JOBS: usize = 600;
    let per_job = |world: &World, before: &Counters| {
        let traffic = world.counters().traffic.since(&before.traffic);
        let of = |family| traffic.family(family).messages;
        (of(Family::Claim) + of(Family::Work)) as f64 / JOBS as f64
    };
    let mut world = busy_mesh(441, 1);
    world.run_for(seconds(5));
    let before = *world.counters();
    for _ in 0..JOBS {
        let id = world.submit("a", &job().lasting_exactly(millis(20)));
        world.run_until(completed(id));
    }
    let unqueued = per_job(&world, &before);
    let mut world = busy_mesh(441, 30);
    let jobs: Vec<_> = (0..JOBS).map(|_| world.submit("a", &job().lasting_exactly(millis(20)))).collect();
    assert_eq!(world.executions_of_all(), 3);
    let before = *world.counters();
    world.run_until_idle();
    let starts: Vec<_> = jobs.iter().map(|job| world.executions_of(job).next().expect("it ran").start).collect();
    let took = (*starts.iter().max().unwrap() - *starts.iter().min().unwrap()).as_ms();
    let later_first = |(n, at)| starts[n..].iter().filter(|later| *later < at).count();
    let overtaken = starts.iter().enumerate().map(later_first).max().unwrap();
    let queued = per_job(&world, &before);
    println!(
        "{unqueued} messages a job unqueued, {queued} queued; drained in {took} ms, {overtaken} at most came first"
    );
    assert!(queued <= 1.5 * unqueued, "{unqueued} messages a job unqueued, {queued} queued");
    // Three slots for 12 s of work; what is above 4 s are the round trips between two tasks of a slot.
    assert!(took <= 5_000, "drained in {took} virtual ms");
    assert!(overtaken < NAMES.len(), "{overtaken} later jobs started before one");
    assert_eq!(world.offers_out(), 0);
    world.check_invariants();
}
