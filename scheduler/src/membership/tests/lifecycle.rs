//! Members come, die, leave, sleep and return; links fail.

use super::*;

#[test]
fn one_node_is_a_mesh() {
    let mut world = World::new(1, 1);
    world.run_for(60_000);
    assert_eq!(world.sees(0, 0), Some(NodeState::Healthy));
    assert_eq!(world.sent, [0]);
    let node = world.nodes[0].as_ref().expect("running");
    assert_eq!(node.iter().collect::<Vec<_>>(), [(id(0), NodeState::Healthy, 1)]);
}

/// A process that dies closes its connections: suspect within a second, lost five after that.
#[test]
fn a_killed_node_is_suspect_then_lost() {
    for (seed, count) in [(1, 2), (2, 3), (3, 10)] {
        let mut world = World::healthy(seed, count);
        world.run_for(5_000);
        world.kill(1, true);
        let suspect = world.run_until(3_000, |world| world.all_doubt(1));
        let lost = world.run_until(10_000, |world| world.all_see(1, NodeState::Lost));
        assert!(suspect <= 1_000 && (3_000..=6_000).contains(&lost), "{count} nodes: {suspect} ms, {lost} ms");
        assert!((0..count).filter(|node| *node != 1).all(|node| !world.ever(node, NodeState::Suspect)));
    }
}

/// A pulled cable closes nothing: the regular probes have to find out.
#[test]
fn a_silent_node_is_found_by_probing() {
    for seed in 0..10 {
        let mut world = World::healthy(seed, 3);
        world.kill(1, false);
        let suspect = world.run_until(6_000, |world| world.all_doubt(1));
        let lost = world.run_until(10_000, |world| world.all_see(1, NodeState::Lost));
        assert!(suspect <= 5_000 && lost <= 6_000, "seed {seed}: {suspect} ms, {lost} ms");
    }
}

#[test]
fn a_node_reachable_only_through_another_is_not_lost() {
    for seed in 0..5 {
        let mut world = World::healthy(seed, 3);
        world.cut(0, 1);
        world.disconnect(0, 1);
        world.run_for(60_000);
        assert!(world.lost > 0, "the cut was never felt");
        assert!(!(0..3).any(|node| world.ever(node, NodeState::Suspect)), "{:?}", world.changes);
        assert!(world.all_see_all(NodeState::Healthy));
    }
}

#[test]
fn one_deaf_direction_is_survived() {
    for seed in 0..5 {
        let mut world = World::healthy(seed, 3);
        world.cut.insert((0, 1));
        world.run_for(60_000);
        assert!(world.lost > 0, "the cut was never felt");
        assert!(!(0..3).any(|node| world.ever(node, NodeState::Suspect)), "{:?}", world.changes);
    }
}

#[test]
fn a_tenth_of_the_messages_lost_loses_nobody() {
    let mut world = World::healthy(7, 6);
    world.loss_percent = 10;
    world.run_for(120_000);
    assert!(world.lost > 50, "only {} lost", world.lost);
    assert!(!(0..6).any(|node| world.ever(node, NodeState::Lost)), "{:?}", world.changes);
}

/// Newer, the same (a broken clock) and an older incarnation (a clock set back) after 1.
#[test]
fn a_restarted_node_is_healthy_again() {
    for (seed, incarnation) in [(1, 2), (2, 1), (3, 0)] {
        for quick in [true, false] {
            let mut world = World::healthy(seed, 4);
            world.kill(1, true);
            if !quick {
                world.run_until(10_000, |world| world.all_see(1, NodeState::Lost));
            }
            world.start(1, incarnation);
            // It finds one neighbour first, and the others by hearsay and later connections.
            world.connect(1, 0);
            world.run_for(300);
            world.connect(1, 2);
            world.connect(1, 3);
            world.run_until(3_000, |world| world.all_see_all(NodeState::Healthy));
            world.run_for(20_000);
            assert!(world.all_see_all(NodeState::Healthy), "{incarnation} {quick}: {:?}", world.changes);
            let seen = world.nodes[0].as_ref().and_then(|node| node.iter().find(|(node, ..)| *node == id(1)));
            assert!(seen.is_some_and(|(_, _, seen)| seen >= incarnation));
        }
    }
}

/// Its clock set back, in a mesh too large for it to convince every member in person.
#[test]
fn an_older_incarnation_is_accepted_by_all_soon() {
    let mut world = World::healthy(14, 24);
    world.kill(1, true);
    world.run_until(15_000, |world| world.all_see(1, NodeState::Lost));
    world.start(1, 0);
    for other in (0..24).filter(|other| *other != 1) {
        world.with(1, |now, node| node.learn(now, id(other)));
    }
    world.connect(1, 0);
    world.run_until(10_000, |world| world.all_see_all(NodeState::Healthy));
    let changes = world.changes.len();
    world.run_for(30_000);
    assert_eq!(world.changes.len(), changes, "{:?}", &world.changes[changes..]);
}

/// The restart is quicker than anyone notices, and the new process does not know that it should introduce itself.
#[test]
fn a_ping_for_a_former_self_is_answered() {
    let mut world = World::healthy(15, 2);
    world.kill(1, false);
    world.start(1, 2);
    world.with(1, |now, node| node.learn(now, id(0)));
    world.run_for(10_000);
    assert!(!world.ever(1, NodeState::Suspect), "{:?}", world.changes);
    let incarnation = |node: &Membership| node.iter().find(|(node, ..)| *node == id(1)).map(|(_, _, seen)| seen);
    assert_eq!(world.nodes[0].as_ref().and_then(incarnation), Some(2));
}

/// Nobody noticed the partition but the detectors, so no new connection brings the sides together either.
#[test]
fn both_sides_of_a_healed_partition_find_each_other() {
    for count in [2, 4] {
        let mut world = World::healthy(11, count);
        for a in 0..count / 2 {
            for b in count / 2..count {
                world.cut(a, b);
            }
        }
        world.run_for(60_000);
        assert_eq!(world.sees(0, count - 1), Some(NodeState::Lost));
        assert_eq!(world.sees(count - 1, 0), Some(NodeState::Lost));
        world.cut.clear();
        world.run_until(15_000, |world| world.all_see_all(NodeState::Healthy));
    }
}

/// A laptop sleeps: the others lose it, it does not lose them, and it is back soon after it wakes. Whatever it was waiting
/// for when it fell asleep.
#[test]
fn a_paused_node_blames_itself() {
    for phase in 0..100 {
        let mut world = World::healthy(5, 3);
        world.run_for(phase * 10);
        let paused = world.nodes[1].take();
        world.run_for(30_000);
        assert!(world.all_see(1, NodeState::Lost));
        let slept = world.changes.len();
        world.nodes[1] = paused;
        world.run_until(5_000, |world| world.all_see_all(NodeState::Healthy));
        assert!(!world.changes[slept..].iter().any(|change| change.1 == 1), "phase {phase}: {:?}", world.changes);
    }
}

#[test]
fn a_leaving_node_is_left_not_lost_and_may_return() {
    let mut world = World::healthy(4, 5);
    world.with(1, |now, node| node.leave(now));
    assert_eq!(world.sees(1, 1), Some(NodeState::Left));
    world.run_until(2_000, |world| world.all_see(1, NodeState::Left));
    world.kill(1, true);
    world.run_for(20_000);
    assert!(world.all_see(1, NodeState::Left) && !world.ever(1, NodeState::Lost));
    world.start(1, 2);
    world.connect_all();
    world.run_until(3_000, |world| world.all_see_all(NodeState::Healthy));
}

#[test]
fn a_learned_node_is_known_by_hearsay_and_a_stranger_is_not() {
    let mut world = World::new(6, 3);
    // A line: 0 – 1 – 2. Node 0 has no certificate of 2 yet.
    world.connect(0, 1);
    world.connect(1, 2);
    world.run_for(5_000);
    assert_eq!(world.sees(0, 2), None);
    assert_eq!(world.sees(0, 1), Some(NodeState::Healthy));
    let held = world.nodes[0].as_ref().expect("running");
    assert!(held.hearsay.contains_key(&id(2)) && held.member(id(2)).is_none());
    world.with(0, |now, node| node.learn(now, id(2)));
    world.with(2, |now, node| node.learn(now, id(0)));
    assert_eq!(world.sees(0, 2), Some(NodeState::Healthy));
    world.run_for(5_000);
    assert!(world.all_see_all(NodeState::Healthy));
    world.with(0, |now, node| node.forget(now, id(2)));
    world.run_for(5_000);
    assert_eq!(world.sees(0, 2), None);
    assert_eq!(world.changes.iter().rfind(|c| c.1 == 0).map(|c| (c.2, c.3)), Some((2, NodeState::Left)));
}

#[test]
fn a_member_never_heard_of_ends_as_lost() {
    let mut world = World::new(8, 1);
    world.with(0, |now, node| node.learn(now, id(9)));
    assert_eq!(world.sees(0, 9), Some(NodeState::Joining));
    world.run_until(20_000, |world| world.sees(0, 9) == Some(NodeState::Lost));
}

/// The cost per node must be that of the protocol, not that of the mesh.
#[test]
fn messages_per_node_do_not_grow_with_the_mesh() {
    let rate = |count: usize| {
        let mut world = World::healthy(3, count);
        world.run_for(5_000);
        world.sent.fill(0);
        world.run_for(20_000);
        assert!((0..count).all(|node| !world.ever(node, NodeState::Suspect)));
        (world.sent.iter().max().copied().unwrap_or(0) / 20, world)
    };
    let ((small, _), (large, mut world)) = (rate(5), rate(100));
    assert!((1..=4).contains(&small) && (1..=4).contains(&large), "{small} and {large} messages a second");
    // News cost more, but for everyone at most so many rounds of gossip: five a second to three members each.
    world.sent.fill(0);
    world.kill(1, false);
    let suspect = world.run_until(5_000, |world| world.all_doubt(1));
    let took = suspect + world.run_until(12_000, |world| world.all_see(1, NodeState::Lost));
    let most = world.sent.iter().max().copied().unwrap_or(0);
    assert!(most * 1_000 <= took * (4 + 15), "{most} messages in {took} ms");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut world = World::healthy(seed, 8);
        world.loss_percent = 20;
        world.run_for(20_000);
        world.kill(3, true);
        world.run_for(20_000);
        world.start(3, 2);
        world.connect_all();
        world.run_for(20_000);
        (world.trace.finalize(), world.changes)
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42).0, run(43).0);
}
