//! The models themselves: that each fault happens, and that jobs end well under it.

use sinew_scheduler::time::Span;
use sinew_simnet::{
    ClockSetup, CrashPoint, DiskSetup, Distribution, GossipSetup, Latency, Network, NodeSetup, World, completed, done,
    job, millis, round, running, seconds,
};

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

fn ends_well(world: &mut World) {
    let first = world.submit("a", &round(20, 3).lasting(millis(150)));
    let second = world.submit("b", &job().tasks(10).lasting(millis(100)).spread());
    world.run_until(completed(first));
    world.run_until(completed(second));
    world.run_until_idle();
    world.check_invariants();
}

/// Jobs that no node is large enough for are advertised all the while, each by itself as no two need the same.
fn advertise(world: &mut World, at: &str, span: Span) {
    let jobs: Vec<_> = (0..20).map(|n| world.submit(at, &job().cpus(64.0 + f64::from(n)))).collect();
    world.run_for(span);
    for job in jobs {
        world.cancel(at, job).expect("it waits still");
    }
}

fn start_latency_us(world: &mut World) -> u64 {
    let asked = world.now();
    let job = world.submit("a", &job());
    world.run_until(completed(job));
    let start = world.executions_of(&job).next().expect("it ran").start;
    (start - asked).0
}

/// Jobs end on every kind of network, and start the later the slower it is.
#[test]
fn jobs_end_on_a_lan_a_wan_and_around_the_world() {
    let mut starts = Vec::new();
    for network in [Network::lan(), Network::wan(), Network::geo()] {
        let setup = NodeSetup { cpu_milli: 1_000, ..NodeSetup::default() };
        let mut world = World::seed(600).with(setup).network(network).nodes(FIVE);
        starts.push(start_latency_us(&mut world));
        ends_well(&mut world);
    }
    assert!(starts[0] < starts[1] && starts[1] < starts[2], "{starts:?}");
}

/// Lost packets delay frames on a stream and lose none of them.
#[test]
fn a_lossy_link_delays_streams_and_loses_gossip() {
    let mut world = World::seed(601).network(Network { loss: 500, ..Network::wan() }).nodes(FIVE);
    advertise(&mut world, "c", seconds(10));
    ends_well(&mut world);
    let counters = world.counters();
    assert!(counters.retransmitted > 20 && counters.lost_gossip > 5, "{counters:?}");
    assert_eq!(counters.lost_frames, 0);
}

#[test]
fn gossip_arrives_twice_and_out_of_order() {
    let network = Network { duplicates: 2_000, reordered: 2_000, ..Network::default() };
    let mut world = World::seed(602).network(network).nodes(FIVE);
    advertise(&mut world, "c", seconds(10));
    ends_well(&mut world);
    let counters = world.counters();
    assert!(counters.doubled_gossip > 5 && counters.reordered > 100, "{counters:?}");
}

/// A blob that takes two seconds on a slow link delays the task that needs it, and what is sent meanwhile waits.
#[test]
fn blobs_share_the_link_with_frames() {
    let took = |bandwidth| {
        let mut world = World::seed(603).network(Network { bandwidth, ..Network::default() }).nodes(["a", "b", "c"]);
        let started = world.now();
        let job = world.submit("a", &round(6, 2).lasting(millis(100)));
        world.run_until(completed(job));
        let took = world.now() - started;
        world.run_until_idle();
        world.check_invariants();
        (took, world.counters().queued_frames)
    };
    let (free, none) = took(None);
    let (slow, queued) = took(Some(20_000));
    assert!(none == 0 && queued > 10, "{queued}");
    assert!(slow.0 > free.0 + 1_000_000, "{free:?} {slow:?}");
}

#[test]
fn a_link_that_flaps_by_itself_goes_up_and_down() {
    let mut world = World::seed(604).nodes(["a", "b", "c"]);
    world.flap("a", "b", millis(700), millis(400));
    let job = world.submit("a", &job().tasks(20).lasting(millis(300)).spread());
    world.run_until(completed(job));
    assert!(world.counters().flaps >= 2, "{:?}", world.counters());
    world.steady();
    let flaps = world.counters().flaps;
    world.run_for(seconds(5));
    assert_eq!(world.counters().flaps, flaps, "it is over");
    world.run_until_idle();
    world.check_invariants();
}

/// Two nodes behind NATs never meet; a job that starts on one ends nevertheless.
#[test]
fn nodes_that_can_only_dial_out_work_through_others() {
    let hidden = NodeSetup { dials_out_only: true, ..NodeSetup::default() };
    let mut world = World::seed(605).nodes(["a", "b", "c"]);
    world.join_as("x", hidden.clone());
    world.join_as("y", hidden);
    world.run_for(seconds(2));
    assert!(world.counters().unreachable > 0);
    assert!(!world.connected("x", "y") && world.connected("a", "x") && world.connected("y", "b"));
    let job = world.submit("x", &job().tasks(30).lasting(millis(200)).spread());
    world.run_until(running(job, "a"));
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    // The submitter asks only whom it can reach.
    assert!(world.executions_of(&job).all(|e| e.node != 4));
}

/// Every model at once: the same seed still gives the same trace.
#[test]
fn rough_worlds_replay() {
    let run = |seed| {
        let latency = Latency::Regions { median_us: vec![vec![500, 30_000], vec![40_000, 800]], sigma: 0.4 };
        let network = Network { latency, loss: 100, duplicates: 100, reordered: 100, bandwidth: Some(1_000_000) };
        let mut world = World::seed(seed).network(network).nodes(FIVE);
        world.flap("c", "d", seconds(2), seconds(1));
        ends_well(&mut world);
        (world.trace(), *world.counters())
    };
    assert_eq!(run(606), run(606));
    assert_ne!(run(606).0, run(607).0);
}

#[test]
fn medians_are_where_they_should_be() {
    assert_eq!(Distribution::Uniform { low: 2, high: 8 }.median(), 5);
    assert_eq!(Distribution::Pareto { least: 10, shape: 1.0 }.median(), 20);
}

fn with_clock(drift_ppm: i64, offset_ms: i64) -> NodeSetup {
    NodeSetup { clock: ClockSetup { drift_ppm, offset_ms }, ..NodeSetup::default() }
}

/// Clocks that run as differently as cheap quartz does, or worse, end jobs all the same.
#[test]
fn drifting_clocks_end_jobs() {
    for (seed, ppm) in [(620, 200), (621, 5_000), (622, 50_000)] {
        let mut world = World::seed(seed).nodes(["a"]);
        world.join_as("b", with_clock(ppm, 0));
        world.join_as("c", with_clock(-ppm, 0));
        world.run_for(seconds(20));
        let (fast, slow) = (world.shown("b").at, world.shown("c").at);
        assert!(fast - slow > millis(40 * ppm.unsigned_abs() / 1_100), "{fast:?} {slow:?}");
        ends_well(&mut world);
        assert_eq!(world.counters().lost_leases, 0);
    }
}

/// A worker whose clock is slow fences itself later than it should; the margin between fence and lease takes that up.
#[test]
fn a_slow_worker_still_fences_itself_before_anyone_else_starts() {
    for seed in 630..636 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.join_as("d", with_clock(-100_000, 0));
        world.run_for(seconds(2));
        let job = world.submit("a", &job().tasks(16).lasting(seconds(5)).spread());
        world.run_until(running(job, "d"));
        world.partition(["d"], ["a", "b", "c"]);
        world.run_for(seconds(4));
        assert!(world.counters().fenced > 0 && world.counters().lost_leases > 0);
        world.check_safety();
        world.heal();
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

/// Dates that are wrong by a day, and jump while jobs run, move no timer.
#[test]
fn wrong_dates_do_no_harm() {
    const DAY_MS: i64 = 86_400_000;
    for seed in 640..644 {
        let mut world = World::seed(seed).nodes(["a"]);
        world.join_as("b", with_clock(0, DAY_MS));
        world.join_as("c", with_clock(0, -DAY_MS));
        world.run_for(seconds(2));
        assert_eq!(world.shown("b").unix_ms - world.shown("c").unix_ms, 2 * DAY_MS.unsigned_abs());
        let job = world.submit("b", &job().tasks(20).lasting(millis(500)).spread());
        world.run_until(running(job, "a"));
        world.jump_clock("a", DAY_MS);
        world.run_for(seconds(1));
        world.jump_clock("b", -2 * DAY_MS);
        world.run_until(completed(job));
        world.run_until_idle();
        ends_well(&mut world);
        assert_eq!((world.counters().clock_jumps, world.counters().lost_leases), (2, 0));
    }
}

/// A slow disk at the brain holds nothing up, slow disks everywhere do; neither loses a job.
#[test]
fn a_slow_disk_slows_and_loses_nothing() {
    for seed in 650..654 {
        let mut world = World::seed(seed).nodes(FIVE);
        // The brain's own disk is one of three: a majority does without it.
        world.set_disk("a", DiskSetup::syncing_in(Distribution::LogNormal { median: 400_000, sigma: 1.0 }));
        let one = start_latency_us(&mut world);
        ends_well(&mut world);
        for node in FIVE {
            world.set_disk(node, DiskSetup::slow());
        }
        let slow = start_latency_us(&mut world);
        ends_well(&mut world);
        for node in FIVE {
            world.set_disk(node, DiskSetup::default());
        }
        let fast = start_latency_us(&mut world);
        assert!(one < 50_000 && fast < 50_000 && slow > fast, "{one} {fast} {slow}");
    }
}

/// A node crashes before, during and after each of its first writes for a job, and every job ends.
#[test]
fn crashes_at_every_write() {
    for (seed, point) in [(660, CrashPoint::Before), (661, CrashPoint::During), (662, CrashPoint::After)] {
        for writes in 0..12 {
            let mut world = World::seed(seed + 10 * writes).nodes(["a", "b", "c"]);
            world.crash_at_write("a", writes, point);
            world.submit_later("a", &job().tasks(8).lasting(millis(200)).spread());
            world.run_for(seconds(8));
            assert!(!world.is_up("a"), "it crashed {point:?} write {writes}");
            world.restart("a");
            world.run_until_idle();
            ends_well(&mut world);
            assert_eq!(world.counters().kills, 1);
        }
    }
}

/// A disk acknowledges what a crash then takes: one node's word is worth nothing, the others' keeps the job.
#[test]
fn acknowledged_writes_that_a_crash_takes() {
    let mut lost = 0;
    for seed in 670..680 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        world.set_disk("a", DiskSetup { lies: true, ..DiskSetup::default() });
        let job = world.submit("a", &job().tasks(20).lasting(millis(400)).spread());
        world.run_until(done(job, 0, 8));
        world.kill("a");
        world.run_for(millis(300));
        world.restart("a");
        world.run_until(completed(job));
        world.set_disk("a", DiskSetup::default());
        world.run_until_idle();
        world.check_invariants();
        lost += world.counters().lost_syncs;
    }
    assert!(lost > 10, "{lost}");
}

/// Worse than the ledger's journal: a batch is partly there after a crash.
#[test]
fn torn_batches_do_no_harm() {
    let mut torn = 0;
    for seed in 680..700 {
        let setup = NodeSetup { disk: DiskSetup { tears: true, ..DiskSetup::default() }, ..NodeSetup::default() };
        let mut world = World::seed(seed).with(setup).nodes(["a", "b", "c"]);
        let job = world.submit("a", &round(40, 4).lasting(millis(150)));
        for write in [2, 5, 9, 14, 20, 3, 11] {
            world.crash_at_write("a", write, CrashPoint::During);
            world.run_for(seconds(2));
            if !world.is_up("a") {
                world.restart("a");
            }
        }
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
        torn += world.counters().torn_writes;
    }
    assert!(torn > 0);
}

/// A disk runs full in the middle of a job; with room again, everything ends.
#[test]
fn a_disk_runs_full_in_the_middle() {
    for seed in 740..744 {
        let mut world = World::seed(seed).nodes(["a", "b", "c"]);
        let job = world.submit("a", &job().tasks(40).lasting(millis(200)).spread());
        world.set_disk("a", DiskSetup { room: Some(30), ..DiskSetup::default() });
        world.run_for(seconds(4));
        assert_eq!(world.counters().full_disks, 1);
        world.mend_disk("a");
        world.run_until(completed(job));
        world.run_until_idle();
        world.check_invariants();
    }
}

/// Fast and large machines get more of the work than slow and small ones.
#[test]
fn machines_of_unequal_speed_and_size_share_by_what_they_are() {
    let fast = NodeSetup { cpu_milli: 8_000, speed_percent: 200, ..NodeSetup::default() };
    let slow = NodeSetup { cpu_milli: 2_000, speed_percent: 50, ..NodeSetup::default() };
    let mut world = World::seed(700).machines([fast]).nodes(["a"]).machines([slow]).nodes(["b", "c"]);
    let job = world.submit("a", &job().tasks(400).taking(Distribution::Constant(100_000)).spread());
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    let on = |node| world.executions_of(&job).filter(|e| e.node == node).count();
    // 4 times the slots at 4 times the speed.
    assert!(on(0) > 6 * on(1) && on(0) > 6 * on(2), "{} {} {}", on(0), on(1), on(2));
}

#[test]
fn task_durations_with_a_heavy_tail_and_failures_by_chance() {
    for seed in 710..713 {
        let mut world = World::seed(seed).nodes(FIVE);
        let plan = job().tasks(200).taking(Distribution::Pareto { least: 20_000, shape: 1.2 }).retries(10);
        let job = world.submit("a", &plan.failing_at_random(500).spread());
        world.run_until(completed(job));
        let ends = world.executions_of(&job).filter_map(|e| e.end.map(|(end, _)| (end - e.start).0));
        let longest = ends.max().expect("something ran");
        assert!(longest > 200_000 && world.counters().random_failures > 2, "{longest} {:?}", world.counters());
        world.run_until_idle();
        world.check_invariants();
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("n{i}")).collect()
}

/// A mesh too large for everybody to know everybody: connections and gossip degrees stay bounded, and news reach all.
#[test]
fn a_large_mesh_keeps_few_connections_and_hears_everything() {
    let names = names(120);
    let mut world = World::seed(720).connections(50, 8).nodes(names.iter().map(String::as_str));
    advertise(&mut world, "n7", seconds(8));
    let job = world.submit("n5", &job().tasks(60).lasting(millis(300)).spread());
    world.run_until(completed(job));
    world.run_until_idle();
    world.check_invariants();
    let most = names.iter().map(|n| world.connections_of(n)).max().expect("there are nodes");
    assert!(most < 60, "{most} connections");
    for name in &names {
        assert!((2..=9).contains(&world.gossip_degree(name)), "{:?}", world.gossip_degree(name));
    }
    let counters = world.counters();
    assert!(counters.gossip_duplicates > 0 && counters.grafts > 100, "{counters:?}");
    // Each message reaches everybody once, and mesh links carry it again a bounded number of times.
    let reached = (counters.gossip_sent - counters.gossip_duplicates) / counters.gossip_published;
    assert!((110..=120).contains(&reached), "{reached}");
    assert!(counters.gossip_sent < 8 * 120 * counters.gossip_published);
}

/// Half of all gossip is lost; announcements at heartbeats repair it.
#[test]
fn lost_gossip_is_asked_for_again() {
    let names = names(40);
    let setup = GossipSetup { flood_publish: false, ..GossipSetup::libp2p() };
    let mut world = World::seed(721).gossip(setup).connections(10, 8).nodes(names.iter().map(String::as_str));
    world.run_for(seconds(3));
    world.set_network(Network { loss: 5_000, ..Network::default() });
    advertise(&mut world, "n3", seconds(10));
    let counters = *world.counters();
    assert!(counters.ihave > 0 && counters.iwant > 10 && counters.lost_gossip > 100, "{counters:?}");
    world.set_network(Network::default());
    world.run_until_idle();
    world.check_invariants();
}
