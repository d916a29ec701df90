//! Packets that lie, and the few places where foca by itself would stay wrong.

use proptest::prelude::*;

use super::*;

/// Bytes of `from` to node 0, with `change` made to an otherwise valid gossip.
fn forged(world: &World, from: usize, change: impl FnOnce(&mut packet::Packet)) -> Vec<u8> {
    let to = *world.nodes[0].as_ref().expect("running").foca.identity();
    let src = *world.nodes[from].as_ref().expect("running").foca.identity();
    let header = foca::Header { src, src_incarnation: 0, dst: to, message: foca::Message::Gossip };
    let mut packet = packet::Packet { header, updates: Vec::new() };
    change(&mut packet);
    packet.to_bytes()
}

#[test]
fn nobody_speaks_for_another() {
    let mut world = World::healthy(9, 3);
    let bytes = forged(&world, 1, |_| {});
    let mut refuse = |from: usize, bytes: &[u8]| {
        let mut result = Ok(());
        world.with(0, |now, node| result = node.receive(now, id(from), bytes));
        result.expect_err("refused")
    };
    assert!(matches!(refuse(2, &bytes), MembershipError::Impersonation { .. }));
    assert!(matches!(refuse(9, &bytes), MembershipError::Stranger(_)));
    assert!(matches!(refuse(0, &bytes), MembershipError::Stranger(_)));
    assert!(matches!(refuse(1, &[0; PACKET_MAX + 1]), MembershipError::TooLong(_)));
    assert!(matches!(refuse(1, &[]), MembershipError::Packet(PacketError::Truncated)));
}

/// One member claims lives that nobody had. The victims must be back for good once it stops.
#[test]
fn lies_about_others_do_not_last() {
    let lies = [(5, 0, false), (u64::MAX, u32::MAX, false), (u64::MAX, u32::MAX, true), (1, u32::MAX, false)];
    for (incarnation, renewal, left) in lies {
        let mut world = World::healthy(10, 4);
        // About a third node, and about the receiver itself.
        for victim in [2, 0] {
            let lie = Identity { node: id(victim), incarnation, renewal, left };
            let bytes = forged(&world, 1, |packet| packet.updates.push(Member::down(lie)));
            world.with(0, |now, node| node.receive(now, id(1), &bytes).expect("well formed"));
        }
        assert_ne!(world.sees(0, 2), Some(NodeState::Healthy), "the lie had no effect");
        world.run_for(20_000);
        world.run_until(5_000, |world| world.all_see_all(NodeState::Healthy));
        let changes = world.changes.len();
        world.run_for(20_000);
        assert_eq!(world.changes.len(), changes, "{:?}", &world.changes[changes..]);
    }
}

#[test]
fn strangers_in_packets_are_bounded_and_never_spoken_to() {
    let mut world = World::healthy(12, 2);
    for round in 0..40u8 {
        let bytes = forged(&world, 1, |packet| {
            let unknown = |n: u8| Identity::unknown(NodeId([[n, round, 1, 1]; 8].concat().try_into().expect("32")));
            packet.updates.extend((0..60).map(|n| Member::new(unknown(n), 0, State::Alive)));
            packet.header.message = foca::Message::PingReq { target: unknown(0), probe_number: 1 };
        });
        let now = world.now;
        let node = world.nodes[0].as_mut().expect("running");
        node.receive(now, id(1), &bytes).expect("well formed");
        while let Some(effect) = node.poll_effect() {
            let to_itself = matches!(effect, MembershipEffect::Send { to, .. } if to == id(1));
            assert!(to_itself || matches!(effect, MembershipEffect::RoundTrip { .. }), "{effect:?}");
        }
    }
    let node = world.nodes[0].as_ref().expect("running");
    assert_eq!(node.hearsay.len(), HEARSAY_MAX);
    assert_eq!(node.iter().count(), 2);
}

/// A packet overtaken by its sender's goodbye is no return.
#[test]
fn a_late_packet_does_not_undo_a_goodbye() {
    let mut world = World::healthy(20, 3);
    let late = forged(&world, 1, |_| {});
    world.with(1, |now, node| node.leave(now));
    world.run_until(2_000, |world| world.all_see(1, NodeState::Left));
    world.with(0, |now, node| node.receive(now, id(1), &late).expect("well formed"));
    assert_eq!(world.sees(0, 1), Some(NodeState::Left));
}

/// Node 0 holds `about` as it is, but in `state`, and tells nobody.
fn hold(world: &mut World, about: usize, state: State) {
    world.with(0, |now, node| {
        let held = node.member(id(about)).expect("a member").clone();
        node.io.now = now;
        node.apply(Member::new(*held.id(), held.incarnation(), state), false);
        node.settle();
    });
}

/// foca would count an answer that is about another node, if only the number fits.
#[test]
fn an_answer_about_another_node_saves_no_dead_one() {
    let mut world = World::healthy(16, 4);
    let probing = |world: &World| world.nodes[0].as_ref().and_then(|node| node.io.probing);
    world.run_until(10_000, |world| probing(world) != Some(id(2)));
    world.run_until(10_000, |world| probing(world) == Some(id(2)));
    world.kill(2, false);
    // Helpers have been asked by now, and the period is not over.
    world.run_for(400);
    for (from, about) in [(1, 3), (3, 1)] {
        for probe_number in 0..=u8::MAX {
            let origin = Identity { incarnation: 1, ..Identity::unknown(id(about)) };
            let message = foca::Message::ForwardedAck { origin, probe_number };
            let bytes = forged(&world, from, |packet| packet.header.message = message);
            world.with(0, |now, node| node.receive(now, id(from), &bytes).expect("well formed"));
        }
    }
    assert_eq!(probing(&world), Some(id(2)));
    assert_eq!(world.sees(0, 2), Some(NodeState::Healthy));
    world.run_until(750, |world| world.sees(0, 2) == Some(NodeState::Suspect));
}

/// Told that it was given up, a node takes a new identity; with that foca waits to be spoken to.
#[test]
fn a_renewed_node_goes_on_probing() {
    let mut world = World::healthy(17, 2);
    let bytes = forged(&world, 1, |packet| packet.header.message = foca::Message::TurnUndead);
    world.kill(1, false);
    world.with(0, |now, node| node.receive(now, id(1), &bytes).expect("well formed"));
    assert_eq!(world.nodes[0].as_ref().map(|node| node.foca.identity().renewal), Some(1), "it did not renew");
    world.wire.clear();
    world.run_until(8_000, |world| world.sees(0, 1) == Some(NodeState::Lost));
}

/// The news of a suspicion are spent, and the suspect has not heard them.
#[test]
fn a_suspect_hears_of_it_in_time_to_object() {
    let mut world = World::healthy(18, 3);
    world.run_for(10_000);
    hold(&mut world, 2, State::Suspect);
    assert_eq!(world.sees(0, 2), Some(NodeState::Suspect));
    world.run_until(4_000, |world| world.sees(0, 2) == Some(NodeState::Healthy));
    assert!(!world.ever(2, NodeState::Lost));
}

/// Whoever raised a suspicion died with its timer. foca would hold the suspect as such until its own turn to probe it.
#[test]
fn a_suspicion_of_others_ends_here_too() {
    let mut world = World::healthy(19, 2);
    world.kill(1, false);
    // Stands for a mesh so large that the turn does not come.
    world.nodes[0].as_mut().expect("running").io.clear_timers();
    hold(&mut world, 1, State::Suspect);
    let lost = world.run_until(10_000, |world| world.sees(0, 1) == Some(NodeState::Lost));
    assert!((4_000..8_000).contains(&lost), "{lost} ms");
}

proptest! {
    /// Any bytes, and any damage to good ones: an answer, never a panic, and a detector that goes on.
    #[test]
    fn garbage_is_survived(
        garbage in proptest::collection::vec(any::<u8>(), 0..300),
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        cut in any::<u16>(),
    ) {
        let mut world = World::new(13, 3);
        world.connect_all();
        world.run_for(2_000);
        let mut good = forged(&world, 1, |packet| {
            let third = Identity { incarnation: 1, ..Identity::unknown(id(2)) };
            packet.header.message = foca::Message::PingReq { target: third, probe_number: 3 };
            packet.updates.push(Member::new(third, 0, State::Suspect));
        });
        for (at, byte) in damage {
            let at = usize::from(at) % good.len();
            good[at] = byte;
        }
        good.truncate(good.len() - usize::from(cut) % good.len() / 2);
        let mut refused = Ok(());
        world.with(0, |now, node| {
            refused = node.receive(now, id(1), &garbage);
            let _either = node.receive(now, id(1), &good);
        });
        prop_assert!(refused.is_err());
        world.run_until(30_000, |world| world.all_see_all(NodeState::Healthy));
    }
}
