//! Meshes of detectors on a virtual clock and a virtual network.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::RngExt;

use super::*;

/// Round trips of 10 to 30 ms: a slow LAN, a quick WAN.
const LATENCY_MS: std::ops::Range<u64> = 5..15;

struct World {
    now: Time,
    nodes: Vec<Option<Membership>>,
    runs: u64,
    /// In flight: arrival → from, to, bytes.
    wire: BTreeMap<(Time, u64), (usize, usize, Vec<u8>)>,
    /// Pairs (from, to) that lose everything.
    cut: BTreeSet<(usize, usize)>,
    loss_percent: u32,
    rng: ChaCha8Rng,
    sent: Vec<u64>,
    lost: u64,
    changes: Vec<(Time, usize, usize, NodeState)>,
    /// Hash of every byte sent, in order.
    trace: blake3::Hasher,
}

fn id(node: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(node as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    bytes[31] = u8::try_from(node).expect("few nodes");
    NodeId(bytes)
}

fn index(node: NodeId) -> usize {
    usize::from(node.0[31])
}

impl World {
    fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            now: Time(1_000_000),
            nodes: (0..count).map(|_| None).collect(),
            runs: 0,
            wire: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            sent: vec![0; count],
            lost: 0,
            changes: Vec::new(),
            trace: blake3::Hasher::new(),
        };
        for node in 0..count {
            world.start(node, 1);
        }
        world
    }

    /// `count` nodes, all connected, all seen as healthy by all.
    fn healthy(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed, count);
        world.connect_all();
        world.run_until(10_000, |world| world.all_see_all(NodeState::Healthy));
        world
    }

    fn start(&mut self, node: usize, incarnation: u64) {
        self.runs += 1;
        let seed = *blake3::hash(&[self.rng.random::<[u8; 8]>(), self.runs.to_be_bytes()].concat()).as_bytes();
        self.nodes[node] = Some(Membership::new(id(node), incarnation, seed, MembershipConfig::default()));
    }

    fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.connect(a, b);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.with(a, |now, node| node.peer_up(now, id(b)));
        self.with(b, |now, node| node.peer_up(now, id(a)));
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        self.with(a, |now, node| node.peer_down(now, id(b)));
        self.with(b, |now, node| node.peer_down(now, id(a)));
    }

    /// The process dies. Its connections break visibly or, as when a cable is pulled, not.
    fn kill(&mut self, node: usize, visibly: bool) {
        self.nodes[node] = None;
        for other in (0..self.nodes.len()).filter(|_| visibly) {
            self.with(other, |now, membership| membership.peer_down(now, id(node)));
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
    }

    fn with(&mut self, node: usize, input: impl FnOnce(Time, &mut Membership)) {
        let Some(membership) = &mut self.nodes[node] else { return };
        input(self.now, membership);
        while let Some(effect) = membership.poll_effect() {
            match effect {
                MembershipEffect::Changed { node: about, to, .. } => {
                    self.changes.push((self.now, node, index(about), to));
                }
                MembershipEffect::Send { to, bytes } => {
                    assert!(bytes.len() <= PACKET_MAX);
                    self.trace.update(&self.now.0.to_be_bytes()).update(&to.0).update(&bytes);
                    self.sent[node] += 1;
                    let dropped = self.rng.random_range(0..100) < self.loss_percent;
                    if dropped || self.cut.contains(&(node, index(to))) {
                        self.lost += 1;
                        continue;
                    }
                    let at = self.now + Span(self.rng.random_range(LATENCY_MS.start * 1000..LATENCY_MS.end * 1000));
                    let order = self.sent.iter().sum();
                    self.wire.insert((at, order), (node, index(to), bytes));
                }
            }
        }
    }

    /// One arrival or timer, if there is one before `end`.
    fn step(&mut self, end: Time) -> bool {
        let arrival = self.wire.first_key_value().map(|(key, _)| key.0);
        let timers = self.nodes.iter().enumerate();
        let timer = timers.filter_map(|(node, m)| Some((m.as_ref()?.poll_timeout()?, node))).min();
        let next = [arrival, timer.map(|(at, _)| at)].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        if arrival == Some(next) {
            let (_, (from, to, bytes)) = self.wire.pop_first().expect("an arrival");
            // Only what an honest node sent is on the wire. Before the two know each other it is still refused.
            self.with(to, |now, node| match node.receive(now, id(from), &bytes) {
                Ok(()) | Err(MembershipError::Stranger(_)) => {}
                Err(error) => panic!("{from} to {to}: {error}"),
            });
        } else if let Some((_, node)) = timer {
            self.with(node, |now, node| node.tick(now));
        }
        true
    }

    fn run_for(&mut self, ms: u64) {
        let end = self.now + Span::ms(ms);
        while self.step(end) {}
    }

    /// Runs until `done`, at most `ms`. Returns how long it took.
    fn run_until(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> u64 {
        let (start, end) = (self.now, self.now + Span::ms(ms));
        while !done(self) {
            assert!(self.step(end), "not reached within {ms} ms: {:?}", self.nodes);
        }
        (self.now - start).as_ms()
    }

    fn sees(&self, observer: usize, about: usize) -> Option<NodeState> {
        self.nodes[observer].as_ref()?.state(id(about))
    }

    fn all_see(&self, about: usize, state: NodeState) -> bool {
        let observers = (0..self.nodes.len()).filter(|node| *node != about && self.nodes[*node].is_some());
        observers.into_iter().all(|observer| self.sees(observer, about) == Some(state))
    }

    /// Nobody counts `about` as healthy any more: suspect, or lost already where the news came late.
    fn all_doubt(&self, about: usize) -> bool {
        (0..self.nodes.len()).all(|observer| self.sees(observer, about) != Some(NodeState::Healthy))
    }

    fn all_see_all(&self, state: NodeState) -> bool {
        (0..self.nodes.len()).all(|about| self.all_see(about, state))
    }

    fn ever(&self, about: usize, state: NodeState) -> bool {
        self.changes.iter().any(|(_, _, node, to)| (*node, *to) == (about, state))
    }
}

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

/// A laptop sleeps: the others lose it, it does not lose them, and it is back soon after it wakes.
#[test]
fn a_paused_node_blames_itself() {
    let mut world = World::healthy(5, 3);
    let paused = world.nodes[1].take();
    world.run_for(60_000);
    assert!(world.all_see(1, NodeState::Lost));
    world.nodes[1] = paused;
    world.run_until(10_000, |world| world.all_see_all(NodeState::Healthy));
    let blamed = |change: &&(Time, usize, usize, NodeState)| change.1 == 1 && change.3 != NodeState::Healthy;
    assert_eq!(world.changes.iter().filter(|change| change.0 > Time(1_000_000)).find(blamed), None);
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
            assert!(matches!(effect, MembershipEffect::Send { to, .. } if to == id(1)), "{effect:?}");
        }
    }
    let node = world.nodes[0].as_ref().expect("running");
    assert_eq!(node.hearsay.len(), HEARSAY_MAX);
    assert_eq!(node.iter().count(), 2);
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
