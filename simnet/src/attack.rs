//! Attacks on the gossip overlay by members with valid certificates, and what gossipsub 1.1 has against them beyond what
//! `overlay` models anyway. Named as in Vyzovitis et al., "GossipSub: Attack-Resilient Message Propagation in the Filecoin and
//! ETH2.0 Networks" (2020), section 4.
//!
//! *Censorship*: attackers sit in meshes and pass nothing on. *Eclipse*: they hold every slot of one victim's mesh and pass on
//! neither what it says nor what it should hear. *Cold boot*: they are there first, and a newcomer meets only them. How they
//! came to hold the slots is taken as given. They keep quiet rather than lie: they announce nothing, so that they
//! break no promise, and keep to the backoff, so that no behaviour penalty (P7) hits them. That is the strongest attack on
//! the daemon's scores, which punish invalid messages and not silence.
//!
//! Modelled while an attack is on: the outbound quota (`D_out`), grafts of outbound peers beyond `D_hi`, opportunistic grafting,
//! and of the scores the two that count deeds, time in mesh (P1) and first deliveries (P2), with the daemon's weights. The
//! other scores are zero for nodes that do as above. Flood publishing and IHAVE/IWANT are in `overlay`, always.

use std::collections::{BTreeMap, BTreeSet};

use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::Topic;

use crate::overlay::{BACKOFF, HEARTBEAT, TOPICS};
use crate::queue::{Event, Index, Life, Model};
use crate::world::World;

/// Heartbeats between two looks at whether a mesh could be better: libp2p's default.
const IMPROVE_EVERY: Span = Span(60 * HEARTBEAT.0);
/// A mesh whose median score is below this is to be improved, by so many peers at once: libp2p's defaults.
const IMPROVE_BELOW: f64 = 20.0;
const IMPROVE_BY: usize = 2;
/// Peers in a mesh that a node dialled itself, at least (`D_out`): as the daemon sets.
const OUTBOUND_MIN: usize = 1;
/// The daemon's weights: a second in the mesh, up to a hundred; a first delivery, up to a hundred, halved each second.
const MESH_SECOND: f64 = 0.01;
const MESH_SECONDS_MAX: f64 = 100.0;
const FIRST: f64 = 0.1;
const FIRSTS_MAX: f64 = 100.0;
const FIRSTS_KEPT: f64 = 0.5;

/// Who attacks whom, and what is counted meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Attack {
    attackers: BTreeSet<Index>,
    /// Attacks in force on everybody.
    on_all: u32,
    /// Attacks in force on one victim each.
    victims: BTreeMap<Index, u32>,
    /// Nodes that will look at their meshes.
    improving: BTreeSet<Index>,
    /// Since when a peer has been in a node's mesh, where that began under attack.
    joined: BTreeMap<(Index, Index, Topic), Time>,
    /// First deliveries by a peer, halved each second, and when they were last counted.
    firsts: BTreeMap<(Index, Index, Topic), (f64, Time)>,
}

impl Attack {
    pub(crate) fn is_on(&self) -> bool {
        self.on_all > 0 || !self.victims.is_empty()
    }

    /// Whether `node` keeps from `to` what `author` published.
    pub(crate) fn withholds(&self, node: Index, author: Index, to: Index) -> bool {
        self.is_on()
            && self.attackers.contains(&node)
            && (self.on_all > 0 || self.victims.contains_key(&author) || self.victims.contains_key(&to))
    }

    pub(crate) fn took_in(&mut self, node: Index, peer: Index, topic: Topic, now: Time) {
        if self.is_on() {
            self.joined.insert((node, peer, topic), now);
        }
    }

    pub(crate) fn delivered_first(&mut self, node: Index, peer: Index, topic: Topic, now: Time) {
        if self.is_on() {
            let (count, at) = self.firsts.entry((node, peer, topic)).or_insert((0.0, now));
            *count = (decayed(*count, now - *at) + 1.0).min(FIRSTS_MAX);
            *at = now;
        }
    }

    fn firsts(&self, node: Index, peer: Index, topic: Topic, now: Time) -> f64 {
        self.firsts.get(&(node, peer, topic)).map_or(0.0, |(count, at)| decayed(*count, now - *at))
    }
}

fn decayed(count: f64, after: Span) -> f64 {
    count * FIRSTS_KEPT.powf(after.0 as f64 / 1e6)
}

impl World {
    /// These nodes pass on no gossip but their own, until [`World::relent`].
    pub fn censor<'a>(&mut self, attackers: impl IntoIterator<Item = &'a str>) {
        let attackers: Vec<Index> = attackers.into_iter().map(|name| self.index(name)).collect();
        self.begin_censorship(&attackers);
    }

    /// These nodes connect to the victim, hold every slot of its gossip meshes, and pass on neither what it says nor what
    /// it should hear, until [`World::relent`].
    pub fn eclipse<'a>(&mut self, victim: &str, attackers: impl IntoIterator<Item = &'a str>) {
        let attackers: Vec<Index> = attackers.into_iter().map(|name| self.index(name)).collect();
        let victim = self.index(victim);
        self.begin_eclipse(victim, &attackers);
    }

    /// No node attacks the gossip overlay any more.
    pub fn relent(&mut self) {
        self.say(0, "GOSSIP ATTACKS END".to_owned());
        self.overlay.attack = Attack::default();
    }

    /// A node joins that has met these nodes only.
    pub fn join_meeting<'a>(&mut self, name: &str, setup: crate::NodeSetup, met: impl IntoIterator<Item = &'a str>) {
        let met: Vec<Index> = met.into_iter().map(|name| self.index(name)).collect();
        self.join_with(name, setup, Some(met));
    }

    /// Two nodes meet: the first dials the second, and again whenever their connection is lost.
    pub fn meet(&mut self, from: &str, to: &str) {
        let (from, to) = (self.index(from), self.index(to));
        self.links.keep(from, to);
        self.connect_soon(from, to, true);
    }

    /// A node joins that has met these attackers only and has no way to anybody else, until [`World::heal`].
    pub fn eclipse_all_of<'a>(
        &mut self,
        name: &str,
        setup: crate::NodeSetup,
        attackers: impl IntoIterator<Item = &'a str>,
    ) {
        let attackers: Vec<&str> = attackers.into_iter().collect();
        let others: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        self.join_meeting(name, setup, attackers.iter().copied());
        self.partition([name], others.iter().map(String::as_str).filter(|n| !attackers.contains(n)));
        self.eclipse(name, attackers);
    }

    /// Of a node's slots in the mesh for adverts, how many these nodes hold.
    #[must_use]
    pub fn mesh_slots_held(&self, name: &str, by: &[&str]) -> usize {
        let node = self.index(name);
        self.overlay.mesh(node, Topic::Advert).filter(|p| by.contains(&self.nodes[*p].name.as_str())).count()
    }

    pub(crate) fn begin_censorship(&mut self, attackers: &[Index]) {
        self.say(0, format!("GOSSIP CENSORED by {attackers:?}"));
        self.overlay.attack.on_all += 1;
        self.enlist(attackers);
    }

    pub(crate) fn end_censorship(&mut self) {
        self.overlay.attack.on_all = self.overlay.attack.on_all.saturating_sub(1);
    }

    pub(crate) fn begin_eclipse(&mut self, victim: Index, attackers: &[Index]) {
        self.say(victim, format!("ECLIPSED by {attackers:?}"));
        *self.overlay.attack.victims.entry(victim).or_default() += 1;
        self.enlist(attackers);
        for attacker in attackers.iter().filter(|a| **a != victim) {
            self.try_connect(*attacker, victim);
        }
        for topic in TOPICS {
            self.take_mesh(victim, attackers, topic);
        }
    }

    pub(crate) fn end_eclipse(&mut self, victim: Index) {
        if let Some(count) = self.overlay.attack.victims.get_mut(&victim) {
            *count -= 1;
            if *count == 0 {
                self.overlay.attack.victims.remove(&victim);
            }
        }
    }

    /// Nodes begin to look after their meshes as only an attack makes worth while.
    fn enlist(&mut self, attackers: &[Index]) {
        self.overlay.attack.attackers.extend(attackers);
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_up() && self.overlay.attack.improving.insert(node) {
                let wait = Span(self.dice(IMPROVE_EVERY.0));
                let life = self.roll.life(node);
                self.queue.push(self.now + wait, Event::Model(Model::Improve(life)));
            }
        }
    }

    /// Everybody else is pruned from the victim's mesh and the attackers are grafted.
    fn take_mesh(&mut self, victim: Index, attackers: &[Index], topic: Topic) {
        let honest: Vec<Index> = self.overlay.mesh(victim, topic).filter(|p| !attackers.contains(p)).collect();
        for peer in honest {
            for (one, other) in [(victim, peer), (peer, victim)] {
                self.overlay.leave(one, other, topic);
                self.overlay.backoff.insert((one, other, topic), self.now + BACKOFF);
            }
            self.beat_soon(peer, HEARTBEAT);
        }
        let high = self.overlay.setup.degree_high;
        for attacker in attackers.iter().filter(|a| self.reaches(**a, victim)).take(high).copied().collect::<Vec<_>>() {
            for (one, other) in [(victim, attacker), (attacker, victim)] {
                self.overlay.enter(one, other, topic, self.now);
            }
            self.counters.slots_taken += 1;
        }
        self.beat_soon(victim, HEARTBEAT);
    }

    fn score(&self, node: Index, peer: Index) -> f64 {
        let attack = &self.overlay.attack;
        let of_topic = |topic| {
            let in_mesh = self.overlay.mesh(node, topic).any(|p| p == peer);
            let since = attack.joined.get(&(node, peer, topic)).copied().unwrap_or_default();
            let seconds = if in_mesh { (self.now - since).0 as f64 / 1e6 } else { 0.0 };
            MESH_SECOND * seconds.min(MESH_SECONDS_MAX) + FIRST * attack.firsts(node, peer, topic, self.now)
        };
        TOPICS.into_iter().map(of_topic).sum()
    }

    /// A mesh without a peer that the node dialled itself takes one in: attackers can dial, but not make others dial them.
    pub(crate) fn fill_outbound(&mut self, node: Index, topic: Topic) {
        let mesh: Vec<Index> = self.overlay.mesh(node, topic).collect();
        let outbound = mesh.iter().filter(|p| self.overlay.is_outbound(node, **p)).count();
        if mesh.len() >= self.overlay.setup.degree_low && outbound < OUTBOUND_MIN {
            let free = self.graftable(node, topic).into_iter().filter(|p| self.overlay.is_outbound(node, *p)).collect();
            self.graft_from(node, topic, OUTBOUND_MIN - outbound, free);
        }
    }

    /// Now and then a node takes in peers that do better than the median of its mesh.
    pub(crate) fn improve(&mut self, life: Life) {
        let node = life.node;
        if !self.is_alive(life) || !self.overlay.attack.is_on() {
            self.overlay.attack.improving.remove(&node);
            return;
        }
        for topic in TOPICS {
            let mut scores: Vec<f64> = self.overlay.mesh(node, topic).map(|p| self.score(node, p)).collect();
            if scores.len() < 2 {
                continue;
            }
            scores.sort_by(f64::total_cmp);
            let middle = scores.len() / 2;
            let median = if scores.len().is_multiple_of(2) {
                f64::midpoint(scores[middle - 1], scores[middle])
            } else {
                scores[middle]
            };
            if median < IMPROVE_BELOW {
                let better =
                    self.graftable(node, topic).into_iter().filter(|p| self.score(node, *p) > median).collect();
                self.counters.improved += self.graft_from(node, topic, IMPROVE_BY, better);
            }
        }
        self.beat_soon(node, HEARTBEAT);
        self.queue.push(self.now + IMPROVE_EVERY, Event::Model(Model::Improve(life)));
    }

    /// Connected peers outside the mesh that may be grafted now.
    fn graftable(&self, node: Index, topic: Topic) -> Vec<Index> {
        let outside = |p: &Index| self.overlay.mesh(node, topic).all(|m| m != *p);
        self.links.peers(node).filter(outside).filter(|p| self.overlay.may_graft(node, *p, topic, self.now)).collect()
    }

    /// Of a mesh with too many, those to keep: the best, as gossipsub's `retain_scores` equals the daemon's `D`.
    pub(crate) fn worst_in_mesh(&self, node: Index, topic: Topic, surplus: usize) -> Vec<Index> {
        let mut mesh: Vec<(f64, Index)> = self.overlay.mesh(node, topic).map(|p| (self.score(node, p), p)).collect();
        mesh.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut outbound = mesh.iter().filter(|(_, p)| self.overlay.is_outbound(node, *p)).count();
        let mut worst = Vec::new();
        for (_, peer) in mesh {
            if worst.len() == surplus {
                break;
            }
            if self.overlay.is_outbound(node, peer) {
                if outbound <= OUTBOUND_MIN {
                    continue;
                }
                outbound -= 1;
            }
            worst.push(peer);
        }
        worst
    }
}
