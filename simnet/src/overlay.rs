//! The gossip overlay, as gossipsub 1.1 keeps it: per topic a mesh of bounded degree over the open connections, grafted and
//! pruned at heartbeats; eager push along the mesh; IHAVE and IWANT for what it missed; each message handled once per
//! node. What a core publishes twice is two messages: the daemon puts a counter before each.
//!
//! No heartbeat is ticked through. A node's mesh is looked at after a heartbeat's time when its connections changed, and a
//! message's announcements are worked out only while somebody lacks it: every other heartbeat would change nothing.
//! Scores, the outbound quota and opportunistic grafting matter under attack only, and are modelled in `attack`. Not modelled:
//! IDONTWANT, fan-out (every node subscribes to every topic).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sinew_scheduler::io::Input;
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::Topic;

use crate::attack::Attack;
use crate::queue::{Event, Index, Life, Model};
use crate::world::World;

/// As libp2p's default.
pub(crate) const HEARTBEAT: Span = Span::ms(1_000);
/// A pruned peer is not grafted again before this (gossipsub 1.1, prune backoff).
pub(crate) const BACKOFF: Span = Span::ms(60_000);
/// Heartbeats in which a message is announced.
const ANNOUNCED: u32 = 3;
/// Bytes of a message beside its payload: the daemon's counter, author, signature, sequence number, topic, lengths.
const OVERHEAD: u64 = 200;

/// The overlay's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GossipSetup {
    /// Peers in a mesh that a node strives for (D).
    pub degree: usize,
    /// With fewer, it grafts (`D_lo`).
    pub degree_low: usize,
    /// With more, it prunes (`D_hi`).
    pub degree_high: usize,
    /// Peers outside the mesh that messages are announced to, at least (`D_lazy`).
    pub lazy: usize,
    /// Whether an author sends to all its peers rather than to its mesh.
    pub flood_publish: bool,
}

impl Default for GossipSetup {
    /// What the daemon sets.
    fn default() -> Self {
        Self { degree: 4, degree_low: 2, degree_high: 8, lazy: 4, flood_publish: true }
    }
}

impl GossipSetup {
    /// What libp2p sets unless told otherwise.
    #[must_use]
    pub const fn libp2p() -> Self {
        Self { degree: 6, degree_low: 5, degree_high: 12, lazy: 6, flood_publish: true }
    }
}

/// A message on its way through the mesh.
#[derive(Debug)]
struct Rumour {
    author: Index,
    topic: Topic,
    payload: Arc<[u8]>,
    /// A bit per node that had it.
    seen: Vec<u64>,
}

impl Rumour {
    fn has(&self, node: Index) -> bool {
        self.seen.get(node / 64).is_some_and(|word| word & (1 << (node % 64)) != 0)
    }

    /// Whether it is new to the node.
    fn mark(&mut self, node: Index) -> bool {
        let new = !self.has(node);
        if self.seen.len() <= node / 64 {
            self.seen.resize(node / 64 + 1, 0);
        }
        self.seen[node / 64] |= 1 << (node % 64);
        new
    }
}

/// All nodes' views of the overlay.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) setup: GossipSetup,
    meshes: BTreeMap<(Index, Topic), BTreeSet<Index>>,
    pub(crate) backoff: BTreeMap<(Index, Index, Topic), Time>,
    /// Connections that the first of the two dialled.
    outbound: BTreeSet<(Index, Index)>,
    pub(crate) attack: Attack,
    /// Nodes whose next heartbeat is in the queue.
    beating: BTreeSet<Index>,
    rumours: BTreeMap<u64, Rumour>,
    last: u64,
}

impl Overlay {
    pub(crate) fn mesh(&self, node: Index, topic: Topic) -> impl Iterator<Item = Index> {
        self.meshes.get(&(node, topic)).into_iter().flatten().copied()
    }

    fn degree(&self, node: Index, topic: Topic) -> usize {
        self.meshes.get(&(node, topic)).map_or(0, BTreeSet::len)
    }

    pub(crate) fn enter(&mut self, node: Index, peer: Index, topic: Topic, now: Time) {
        self.meshes.entry((node, topic)).or_default().insert(peer);
        self.attack.took_in(node, peer, topic, now);
    }

    pub(crate) fn is_outbound(&self, node: Index, peer: Index) -> bool {
        self.outbound.contains(&(node, peer))
    }

    pub(crate) fn leave(&mut self, node: Index, peer: Index, topic: Topic) -> bool {
        self.meshes.get_mut(&(node, topic)).is_some_and(|mesh| mesh.remove(&peer))
    }

    pub(crate) fn may_graft(&self, node: Index, peer: Index, topic: Topic, now: Time) -> bool {
        self.backoff.get(&(node, peer, topic)).is_none_or(|until| *until <= now)
    }
}

pub(crate) const TOPICS: [Topic; 1] = [Topic::Advert];

impl World {
    /// Gossip works with these parameters.
    #[must_use]
    pub const fn gossip(mut self, setup: GossipSetup) -> Self {
        self.overlay.setup = setup;
        self
    }

    /// How many peers a node has in the mesh for adverts.
    #[must_use]
    pub fn gossip_degree(&self, name: &str) -> usize {
        self.overlay.degree(self.index(name), Topic::Advert)
    }

    pub(crate) fn publish(&mut self, from: Index, topic: Topic, payload: &[u8]) {
        self.trace.add(payload);
        self.note_advert(from, topic, payload);
        self.counters.gossip_published += 1;
        self.overlay.last += 1;
        let number = self.overlay.last;
        let mut rumour = Rumour { author: from, topic, payload: payload.into(), seen: Vec::new() };
        rumour.mark(from);
        self.overlay.rumours.insert(number, rumour);
        let to: Vec<Index> = if self.overlay.setup.flood_publish {
            self.links.peers(from).collect()
        } else {
            self.overlay.mesh(from, topic).collect()
        };
        for to in to {
            self.pass_on(from, to, number, Span(0));
        }
        // Heartbeats of those who have it come at any time within the next period.
        let wait = Span(self.dice(HEARTBEAT.0));
        self.queue.push(self.now + wait, Event::Model(Model::Announce { rumour: number, round: 1 }));
    }

    fn pass_on(&mut self, from: Index, to: Index, number: u64, wait: Span) {
        if !self.reaches(from, to) {
            return;
        }
        let Some(rumour) = self.overlay.rumours.get(&number) else { return };
        let (topic, len) = (rumour.topic, rumour.payload.len() as u64 + OVERHEAD);
        self.counters.gossip_sent += 1;
        self.counters.gossip_bytes += len;
        self.counters.traffic.count(topic.into(), len);
        if self.chance(self.links.loss.max(self.links.network.loss)) {
            self.counters.lost_gossip += 1;
            return;
        }
        let copies = 1 + u64::from(self.chance(self.links.network.duplicates));
        self.counters.doubled_gossip += copies - 1;
        let life = self.roll.life(to);
        for _ in 0..copies {
            let at = self.now + wait + self.transmit(from, to, len) + self.latency(from, to);
            self.queue.push(at, Event::Model(Model::Gossip { from, to: life, rumour: number }));
        }
    }

    pub(crate) fn gossip_arrived(&mut self, from: Index, to: Life, number: u64) {
        if !self.is_alive(to) {
            return;
        }
        let node = to.node;
        // One that is forgotten here has reached everyone, or was announced for the last time.
        let rumour = self.overlay.rumours.get_mut(&number);
        let Some(rumour) = rumour.filter(|r| !r.has(node)) else {
            self.counters.gossip_duplicates += 1;
            return;
        };
        rumour.mark(node);
        let (author, topic, payload) = (rumour.author, rumour.topic, rumour.payload.to_vec());
        let onwards: Vec<Index> = self.overlay.mesh(node, topic).filter(|p| *p != from && *p != author).collect();
        self.overlay.attack.delivered_first(node, from, topic, self.now);
        for peer in onwards {
            if self.overlay.attack.withholds(node, author, peer) {
                self.counters.gossip_withheld += 1;
            } else {
                self.pass_on(node, peer, number, Span(0));
            }
        }
        let from = self.nodes[author].id();
        self.note_advert(node, topic, &payload);
        self.input(node, Input::Gossip { from, topic, payload });
    }

    /// Heartbeats announce a message to some peers outside the mesh; who lacks it asks the first that does.
    pub(crate) fn announce(&mut self, number: u64, round: u32) {
        let Some(rumour) = self.overlay.rumours.get(&number) else { return };
        let (topic, author) = (rumour.topic, rumour.author);
        let lacking: Vec<Index> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_up() && !rumour.has(*n)).collect();
        if lacking.is_empty() || round > ANNOUNCED {
            self.overlay.rumours.remove(&number);
            return self.settle_delivery(topic, lacking.len());
        }
        for node in lacking {
            let has = |peer: &Index| self.overlay.rumours.get(&number).is_some_and(|r| r.has(*peer));
            let holders: Vec<Index> = self.links.peers(node).filter(has).collect();
            let honest = holders.into_iter().filter(|holder| !self.overlay.attack.withholds(*holder, author, node));
            let honest: Vec<Index> = honest.collect();
            if let Some(holder) = honest.into_iter().find(|holder| self.tells(*holder, node, topic)) {
                self.counters.iwant += 1;
                let asking = self.round_trip(holder, node);
                self.pass_on(holder, node, number, asking);
            }
        }
        self.queue.push(self.now + HEARTBEAT, Event::Model(Model::Announce { rumour: number, round: round + 1 }));
    }

    /// A message has gone where it will go.
    fn settle_delivery(&mut self, topic: Topic, lacking: usize) {
        let others = self.nodes.iter().filter(|n| n.is_up()).count().saturating_sub(1);
        match topic {
            Topic::Advert => {
                self.counters.adverts_due += others as u64;
                self.counters.adverts_missed += lacking as u64;
            }
        }
    }

    /// Whether a peer's heartbeat tells a node what it has, and the node hears it.
    fn tells(&mut self, holder: Index, node: Index, topic: Topic) -> bool {
        if !self.reaches(holder, node) || self.overlay.mesh(holder, topic).any(|p| p == node) {
            return false;
        }
        let outside = self.links.peers(holder).count().saturating_sub(self.overlay.degree(holder, topic));
        // gossipsub's gossip factor: a quarter of them, and no fewer than `lazy`.
        let told = self.overlay.setup.lazy.max(outside / 4);
        let picked = self.dice(outside as u64) < told as u64;
        if !picked {
            return false;
        }
        self.counters.ihave += 1;
        !self.chance(self.links.loss.max(self.links.network.loss))
    }

    /// A connection came or went: the node's next heartbeat has work to do.
    pub(crate) fn beat_soon(&mut self, node: Index, wait: Span) {
        if self.nodes[node].is_up() && self.overlay.beating.insert(node) {
            let life = self.roll.life(node);
            self.queue.push(self.now + wait, Event::Model(Model::Beat(life)));
        }
    }

    /// `a` has dialled `b`.
    pub(crate) fn overlay_connected(&mut self, a: Index, b: Index) {
        self.overlay.outbound.insert((a, b));
        for node in [a, b] {
            let wait = Span(self.dice(HEARTBEAT.0));
            self.beat_soon(node, wait);
        }
    }

    pub(crate) fn overlay_disconnected(&mut self, a: Index, b: Index) {
        self.overlay.outbound.remove(&(a, b));
        self.overlay.outbound.remove(&(b, a));
        for topic in TOPICS {
            for (node, peer) in [(a, b), (b, a)] {
                if self.overlay.leave(node, peer, topic) {
                    self.beat_soon(node, HEARTBEAT);
                }
            }
        }
    }

    pub(crate) fn beat(&mut self, life: Life) {
        self.overlay.beating.remove(&life.node);
        if !self.is_alive(life) {
            // It was started again meanwhile.
            return self.beat_soon(life.node, HEARTBEAT);
        }
        for topic in TOPICS {
            let degree = self.overlay.degree(life.node, topic);
            if degree < self.overlay.setup.degree_low {
                self.graft_some(life.node, topic, self.overlay.setup.degree - degree);
            } else if degree > self.overlay.setup.degree_high {
                self.prune_some(life.node, topic, degree - self.overlay.setup.degree);
            }
            if self.overlay.attack.is_on() {
                self.fill_outbound(life.node, topic);
            }
        }
    }

    fn graft_some(&mut self, node: Index, topic: Topic, wanted: usize) {
        let outside: Vec<Index> =
            self.links.peers(node).filter(|p| self.overlay.mesh(node, topic).all(|m| m != *p)).collect();
        let (free, later): (Vec<_>, Vec<_>) =
            outside.into_iter().partition(|p| self.overlay.may_graft(node, *p, topic, self.now));
        self.graft_from(node, topic, wanted, free);
        if self.overlay.degree(node, topic) < self.overlay.setup.degree_low && !later.is_empty() {
            self.beat_soon(node, BACKOFF);
        }
    }

    /// Grafts so many of `free` at random; says how many there were.
    pub(crate) fn graft_from(&mut self, node: Index, topic: Topic, wanted: usize, mut free: Vec<Index>) -> u64 {
        let count = wanted.min(free.len());
        for _ in 0..count {
            let pick = self.pick(free.len());
            let peer = free.swap_remove(pick);
            self.overlay.enter(node, peer, topic, self.now);
            self.counters.grafts += 1;
            self.control(node, peer, topic, true);
        }
        count as u64
    }

    fn prune_some(&mut self, node: Index, topic: Topic, surplus: usize) {
        if self.overlay.attack.is_on() {
            for peer in self.worst_in_mesh(node, topic, surplus) {
                self.prune(node, peer, topic);
            }
            return;
        }
        let mut mesh: Vec<Index> = self.overlay.mesh(node, topic).collect();
        for _ in 0..surplus {
            let pick = self.pick(mesh.len());
            self.prune(node, mesh.swap_remove(pick), topic);
        }
    }

    fn prune(&mut self, node: Index, peer: Index, topic: Topic) {
        self.overlay.leave(node, peer, topic);
        self.overlay.backoff.insert((node, peer, topic), self.now + BACKOFF);
        self.counters.prunes += 1;
        self.control(node, peer, topic, false);
    }

    fn control(&mut self, from: Index, to: Index, topic: Topic, graft: bool) {
        if self.reaches(from, to) {
            let at = self.now + self.latency(from, to);
            let to = self.roll.life(to);
            self.queue.push(at, Event::Model(Model::Control { from, to, topic, graft }));
        }
    }

    pub(crate) fn control_arrived(&mut self, from: Index, to: Life, topic: Topic, graft: bool) {
        let node = to.node;
        if !self.is_alive(to) || !self.links.is_connected(from, node) {
            return;
        }
        if !graft {
            self.overlay.leave(node, from, topic);
            self.overlay.backoff.insert((node, from, topic), self.now + BACKOFF);
            if self.overlay.degree(node, topic) < self.overlay.setup.degree_low {
                self.beat_soon(node, HEARTBEAT);
            }
            return;
        }
        let full = self.overlay.degree(node, topic) >= self.overlay.setup.degree_high;
        // Beyond the limit only those that this node dialled itself: nobody can fill its mesh by dialling it.
        let welcome = self.overlay.attack.is_on() && self.overlay.is_outbound(node, from);
        if full && !welcome || !self.overlay.may_graft(node, from, topic, self.now) {
            return self.prune(node, from, topic);
        }
        self.overlay.enter(node, from, topic, self.now);
    }
}
