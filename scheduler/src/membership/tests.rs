//! Meshes of detectors on a virtual clock and a virtual network.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;

use super::packet::PACKET_MAX;
use super::*;

mod lifecycle;
mod mistrust;

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
                MembershipEffect::RoundTrip { trip, .. } => assert!(trip <= Span::ms(1_100), "{trip:?}"),
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
            assert!(self.step(end), "not reached within {ms} ms: {:#?}", self.nodes);
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
