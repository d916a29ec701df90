//! The other nodes as the scheduler sees them: roles, totals, what is free, and who fits a job.

use std::collections::BTreeMap;

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::ids::{DiskId, NodeId};
use sinew_crdt_state::spec::{JobSpec, PACE_MIN, Strategy};
use sinew_crdt_state::state::JobState;

use crate::config::{ASK_AGAIN, ASK_AGAIN_DOUBLED_MAX, REACH_AFTER, SHUN_ALL_DOUBLED_MAX, SHUN_ALL_FOR, silent_after};
use crate::distance::{RoundTrip, pace_at_best, pace_for_member};
use crate::resources::{Room, slots_in};
use crate::table::Table;
use crate::time::{Span, Time};
use crate::wire::{Card, LoadDigest};

/// Members remembered without a connection: enough for any mesh we aim at, a bound against floods.
const KNOWN_MAX: usize = 100_000;
/// Past failures fade by this share with every new result.
const FAILURE_DECAY: f64 = 0.95;

/// What is known of one node.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From its verified certificate.
    pub roles: Roles,
    /// Whether a connection is open.
    pub connected: bool,
    /// Its totals and labels.
    pub card: Option<Card>,
    /// What it had free when it last said.
    pub load: Option<LoadDigest>,
    /// When it said so.
    load_at: Time,
    /// Offers in a row that it declined without its load having changed in between.
    declined: u32,
    /// When it last said anything.
    pub heard: Time,
    /// A brain here gave up an award of it, or the failure detector doubts it, and it said nothing since.
    silent: bool,
    /// It is not dialled anew before this.
    reach_at: Time,
    /// Awards made here since its last load digest: thousandths of a core.
    cpu_promised: u64,
    /// The same for memory.
    memory_promised: u64,
    /// The same for disk.
    disk_promised: u64,
    /// Offers of brains here that it has not answered.
    offers: u32,
    /// What these would take: thousandths of a core.
    cpu_offered: u64,
    /// The same for memory.
    memory_offered: u64,
    /// The same for disk.
    disk_offered: u64,
    /// The round trip to it, where it was measured.
    pub(crate) trip: Option<RoundTrip>,
    /// What the transport measured last.
    ping: Span,
    /// Share of its tasks that failed lately, faded.
    pub failure_rate: f64,
    /// Protocol offences counted.
    pub offences: u64,
    /// It held tasks past their limit: it gets none before this ...
    shunned_until: Time,
    /// ... because of that, so often in a row.
    shuns: u32,
}

/// All known nodes, this one included.
#[derive(Debug)]
pub struct Peers {
    own: NodeId,
    map: Table<Peer>,
    /// How many of them are connected, this node left out.
    connections: usize,
    /// Members of the mesh as the transport counts them.
    mesh_size: usize,
    /// When the last set beat was sent that the node answered, and from which disk.
    contacts: BTreeMap<NodeId, (Time, DiskId)>,
    /// Grows with every piece of news that may let a waiting job start.
    pub(crate) news: u64,
}

impl Peers {
    pub(crate) fn new(own: NodeId) -> Self {
        Self { own, map: Table::default(), connections: 0, mesh_size: 0, contacts: BTreeMap::new(), news: 0 }
    }

    pub(crate) fn up(&mut self, node: NodeId, roles: Roles, now: Time) {
        if self.map.len() >= KNOWN_MAX && !self.map.contains_key(&node) {
            return;
        }
        let peer = self.map.entry(node).or_insert_with(|| Peer {
            roles,
            connected: false,
            card: None,
            load: None,
            load_at: now,
            declined: 0,
            heard: now,
            silent: false,
            reach_at: now,
            cpu_promised: 0,
            memory_promised: 0,
            disk_promised: 0,
            offers: 0,
            cpu_offered: 0,
            memory_offered: 0,
            disk_offered: 0,
            trip: None,
            ping: Span(0),
            failure_rate: 0.0,
            offences: 0,
            shunned_until: Time::default(),
            shuns: 0,
        });
        peer.roles = roles;
        self.news += u64::from(!peer.connected);
        self.connections += usize::from(!peer.connected && node != self.own);
        peer.connected = true;
        peer.heard = now;
        peer.silent = false;
    }

    /// A member that is known by its certificate only.
    pub(crate) fn learn(&mut self, node: NodeId, roles: Roles, now: Time) {
        if !self.map.contains_key(&node) {
            self.up(node, roles, now);
            self.down(node);
        }
    }

    pub(crate) fn down(&mut self, node: NodeId) {
        if let Some(peer) = self.map.get_mut(&node) {
            self.connections -= usize::from(peer.connected && node != self.own);
            peer.connected = false;
            peer.load = None;
        }
    }

    pub(crate) fn heard(&mut self, node: NodeId, now: Time) {
        let patience = silent_after(self.connections);
        if let Some(peer) = self.map.get_mut(&node) {
            // It was no candidate as long as it kept silent.
            self.news += u64::from(peer.silent || now - peer.heard >= patience);
            peer.heard = now;
            peer.silent = false;
        }
    }

    /// The node kept silent for longer than a lease lasts, or did not answer the failure detector. It counts as silent until it
    /// says something: what third parties say of it cannot keep it from work for longer.
    pub(crate) fn gave_up(&mut self, node: NodeId) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.silent = true;
        }
    }

    /// Returns whether the node is known to have had another disk before.
    pub(crate) fn set_card(&mut self, node: NodeId, card: Card) -> bool {
        let Some(peer) = self.map.get_mut(&node) else { return false };
        let disk = card.disk;
        self.news += u64::from(peer.card.as_ref() != Some(&card));
        let old = peer.card.replace(card);
        old.is_some_and(|old| old.disk != disk)
    }

    /// The disk that the node had when it last said so; one that nobody has when it never did.
    pub(crate) fn disk(&self, node: NodeId) -> DiskId {
        self.map.get(&node).and_then(|p| p.card.as_ref()).map_or(DiskId::default(), |card| card.disk)
    }

    pub(crate) fn set_load(&mut self, node: NodeId, load: LoadDigest, now: Time) {
        if let Some(peer) = self.map.get_mut(&node) {
            if peer.load != Some(load) {
                peer.declined = 0;
            }
            peer.load_at = now;
            let promised = peer.cpu_promised != 0 || peer.memory_promised != 0 || peer.disk_promised != 0;
            let same = peer.load == Some(load) && !promised;
            self.news += u64::from(!same);
            peer.load = Some(load);
            peer.cpu_promised = 0;
            peer.memory_promised = 0;
            peer.disk_promised = 0;
        }
    }

    /// The node says that it has room, as its last digest did not: it is worth asking now.
    pub(crate) fn may_have_room(&mut self, node: NodeId) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.load_at = Time::default();
            self.news += 1;
        }
    }

    /// The node had no room for what it was offered.
    pub(crate) fn declined(&mut self, node: NodeId) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.declined = peer.declined.saturating_add(1);
        }
    }

    /// The transport measured a round trip, now or some time ago.
    pub(crate) fn pinged(&mut self, node: NodeId, trip: Span, now: Time) {
        if let Some(peer) = self.map.get_mut(&node)
            && std::mem::replace(&mut peer.ping, trip) != trip
        {
            self.measured(node, trip, now);
        }
    }

    /// A message and its answer took so long.
    pub(crate) fn measured(&mut self, node: NodeId, trip: Span, now: Time) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.trip = Some(RoundTrip::with(peer.trip, trip, now));
        }
    }

    /// The round trip to a node. To this node itself there is none.
    pub(crate) fn trip(&self, node: NodeId) -> Option<RoundTrip> {
        self.map.get(&node).filter(|_| node != self.own).and_then(|peer| peer.trip)
    }

    /// The pace at which a brain here stays in charge by the answers of the nearest majority of a set.
    pub(crate) fn pace_of_set(&self, set: &[NodeId]) -> u8 {
        self.pace_of_majority(set, pace_for_member)
    }

    /// The pace below which it never does.
    pub(crate) fn pace_of_set_at_best(&self, set: &[NodeId]) -> u8 {
        self.pace_of_majority(set, pace_at_best)
    }

    fn pace_of_majority(&self, set: &[NodeId], pace: impl Fn(Option<RoundTrip>) -> u8) -> u8 {
        let mut paces: Vec<u8> = set.iter().map(|node| pace(self.trip(*node))).collect();
        paces.sort_unstable();
        paces.get(set.len() / 2).copied().unwrap_or(PACE_MIN)
    }

    /// Whether a connected node that somebody here waits for is to be dialled anew, because it has said nothing for so long.
    pub(crate) fn out_of_reach(&mut self, node: NodeId, silent_for: Span, now: Time) -> bool {
        let Some(peer) = self.map.get_mut(&node).filter(|peer| peer.connected) else { return false };
        let is_due = now - peer.heard >= silent_for && now >= peer.reach_at;
        if is_due {
            peer.reach_at = now + REACH_AFTER;
        }
        is_due
    }

    pub(crate) fn count_offence(&mut self, node: NodeId) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.offences += 1;
        }
    }

    /// The node kept tasks past their limit, and is given none for a while.
    pub(crate) fn shun(&mut self, node: NodeId, now: Time) {
        if let Some(peer) = self.map.get_mut(&node) {
            peer.shunned_until = now + Span(SHUN_ALL_FOR.0 << peer.shuns.min(SHUN_ALL_DOUBLED_MAX));
            peer.shuns = peer.shuns.saturating_add(1);
        }
    }

    /// Whether the node tells of its fetches, and wants to hear of those of others.
    pub(crate) fn understands_fetching(&self, node: NodeId) -> bool {
        node == self.own || self.map.get(&node).and_then(|p| p.card.as_ref()).is_some_and(|card| card.fetching)
    }

    /// How long nothing has been heard of the node; `None` of one that is not known.
    pub(crate) fn silent_for(&self, node: NodeId, now: Time) -> Option<Span> {
        if node == self.own { Some(Span(0)) } else { self.map.get(&node).map(|p| now - p.heard) }
    }

    pub(crate) fn count_results(&mut self, node: NodeId, done: u32, failed: u32) {
        if let Some(peer) = self.map.get_mut(&node) {
            if done > 0 {
                peer.shuns = 0;
            }
            let share = f64::from(failed) / f64::from(done.saturating_add(failed).max(1));
            peer.failure_rate = peer.failure_rate * FAILURE_DECAY + share * (1.0 - FAILURE_DECAY);
        }
    }

    /// Counts an award against the node's load until its next digest.
    pub(crate) fn promise(&mut self, node: NodeId, spec: &JobSpec, slots: u32) {
        if let Some(peer) = self.map.get_mut(&node) {
            let taken = taken_by(spec, slots);
            peer.cpu_promised += taken.cpu_milli;
            peer.memory_promised = peer.memory_promised.saturating_add(taken.memory_bytes);
            peer.disk_promised = peer.disk_promised.saturating_add(taken.disk_bytes);
        }
    }

    /// Counts an offer, and what it would take, until it is answered: no other job is to chase the same room.
    pub(crate) fn offer(&mut self, node: NodeId, spec: &JobSpec, slots: u32) {
        if let Some(peer) = self.map.get_mut(&node) {
            let taken = taken_by(spec, slots);
            peer.offers += 1;
            peer.cpu_offered += taken.cpu_milli;
            peer.memory_offered = peer.memory_offered.saturating_add(taken.memory_bytes);
            peer.disk_offered = peer.disk_offered.saturating_add(taken.disk_bytes);
        }
    }

    /// The offer counted by [`Self::offer`] was answered, or is given up.
    pub(crate) fn offer_ended(&mut self, node: NodeId, spec: &JobSpec, slots: u32) {
        if let Some(peer) = self.map.get_mut(&node) {
            let taken = taken_by(spec, slots);
            peer.offers = peer.offers.saturating_sub(1);
            peer.cpu_offered = peer.cpu_offered.saturating_sub(taken.cpu_milli);
            peer.memory_offered = peer.memory_offered.saturating_sub(taken.memory_bytes);
            peer.disk_offered = peer.disk_offered.saturating_sub(taken.disk_bytes);
        }
    }

    /// Room that was offered, or awarded, to one job is there for others again.
    pub(crate) const fn room_given_back(&mut self) {
        self.news += 1;
    }

    /// Offers of brains here that nobody has answered yet.
    #[must_use]
    pub fn offers_out(&self) -> u64 {
        self.map.values().map(|peer| u64::from(peer.offers)).sum()
    }

    /// When the last set beat was sent that `node` answered, as far as its answer counts for the job of `state`.
    pub(crate) fn set_contact(&self, node: NodeId, state: &JobState) -> Option<Time> {
        self.contacts.get(&node).filter(|(_, disk)| state.trusts(node, *disk)).map(|(sent, _)| *sent)
    }

    /// When the last set beat was sent that `node` answered, and from which disk.
    pub(crate) fn contact(&self, node: NodeId) -> Option<(Time, DiskId)> {
        self.contacts.get(&node).copied()
    }

    /// Returns whether it is the first contact with this disk.
    pub(crate) fn touch_contact(&mut self, node: NodeId, sent: Time, disk: DiskId) -> bool {
        let old = self.contacts.get(&node).copied();
        let sent = old.map_or(sent, |(before, _)| before.max(sent));
        self.contacts.insert(node, (sent, disk));
        old.is_none_or(|(_, before)| before != disk)
    }

    pub(crate) fn roles(&self, node: NodeId) -> Option<Roles> {
        self.map.get(&node).map(|p| p.roles)
    }

    /// One node.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<&Peer> {
        self.map.get(&node)
    }

    /// How many connections there are.
    pub(crate) const fn connections(&self) -> usize {
        self.connections
    }

    /// How many members the mesh has, as far as is known here.
    pub(crate) fn mesh_size(&self) -> usize {
        self.mesh_size.max(self.map.len())
    }

    pub(crate) const fn set_mesh_size(&mut self, nodes: usize) {
        self.mesh_size = nodes;
    }

    /// Every node, in the order in which they became known.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        self.map.iter()
    }

    pub(crate) fn is_connected(&self, node: NodeId) -> bool {
        node == self.own || self.map.get(&node).is_some_and(|p| p.connected)
    }

    /// Whether `node` is connected and said something lately.
    #[must_use]
    pub fn is_heard(&self, node: NodeId, now: Time) -> bool {
        node == self.own
            || self
                .map
                .get(&node)
                .is_some_and(|p| p.connected && !p.silent && now - p.heard < silent_after(self.connections))
    }

    /// Connected nodes, this one left out.
    pub(crate) fn connected(&self) -> impl Iterator<Item = NodeId> {
        self.map.iter().filter(|(n, p)| p.connected && **n != self.own).map(|(n, _)| *n)
    }

    /// Nodes with room for at least one task of `spec` that no offer or award of this node's has taken, best first, with their
    /// slots. When none is known to have any: those that had none when they last said, and may by now.
    pub(crate) fn candidates(&self, spec: &JobSpec, now: Time) -> Vec<(NodeId, u32)> {
        let takes = |node: NodeId, peer: &Peer| self.is_heard(node, now) && now >= peer.shunned_until;
        let heard = || self.map.iter().filter(|(node, peer)| takes(**node, peer));
        let mut found: Vec<(NodeId, u32, u64)> = heard()
            .filter_map(|(node, peer)| {
                let slots = peer.slots_for(spec).filter(|s| *s > 0)?;
                Some((*node, slots, penalty(peer, spec.strategy, slots)))
            })
            .collect();
        if found.is_empty() {
            let perhaps = heard().filter(|(_, peer)| peer.can_ever(spec) && peer.ask_at().is_some_and(|at| now >= at));
            found = perhaps.map(|(node, peer)| (*node, 1, peer.load_at.0)).collect();
        }
        // Rendezvous-like spreading of ties: nodes of equal worth are ordered differently for every job.
        let salt = spec.serial;
        found.sort_by_key(|(node, _, penalty)| (*penalty, mix(node, salt)));
        found.into_iter().map(|(node, slots, _)| (node, slots)).collect()
    }

    /// When a node that could run `spec`, and is not known to have room, is worth asking next. News of room come sooner, if any do.
    pub(crate) fn ask_at(&self, spec: &JobSpec, now: Time) -> Option<Time> {
        let able = self.map.iter().filter(|(node, peer)| self.is_heard(**node, now) && peer.can_ever(spec));
        able.filter_map(|(_, peer)| peer.ask_at().map(|at| at.max(peer.shunned_until))).min()
    }
}

/// What so many slots take.
fn taken_by(spec: &JobSpec, slots: u32) -> Room {
    let (need, slots) = (spec.resources, u64::from(slots));
    Room {
        cpu_milli: u64::from(need.cpu_milli.max(10)) * slots,
        memory_bytes: need.memory_bytes.saturating_mul(slots),
        disk_bytes: need.disk_bytes.saturating_mul(slots),
    }
}

impl Peer {
    /// Whether it could run tasks of `spec` if it had room, and takes work at all.
    fn can_ever(&self, spec: &JobSpec) -> bool {
        let Some(card) = self.card.as_ref() else { return false };
        let need = spec.resources;
        self.connected
            && self.roles.contains(Roles::RUN)
            && card.cpu_milli >= need.cpu_milli.max(1)
            && card.memory_bytes >= need.memory_bytes
            && card.disk_bytes >= need.disk_bytes
            && card.output_bytes_max.is_none_or(|most| spec.limits.output_bytes_max <= most)
            && card.runners.contains(spec.runners())
            && (spec.volumes.is_empty() || card.volumes.cover(&spec.needed_volumes()))
            && has_labels(card, spec)
            && self.load.is_some_and(|l| l.eligible)
    }

    /// Slots that it seems to have for tasks of `spec`; `None` when it can never run them.
    pub(crate) fn slots_for(&self, spec: &JobSpec) -> Option<u32> {
        let load = self.load.filter(|_| self.can_ever(spec))?;
        let disk_bytes_free = self.card.as_ref()?.disk_bytes.saturating_sub(load.disk_bytes_taken);
        let less = |free: u64, promised: u64, offered: u64| free.saturating_sub(promised.saturating_add(offered));
        let room = Room {
            cpu_milli: less(load.cpu_milli_free.into(), self.cpu_promised, self.cpu_offered),
            memory_bytes: less(load.memory_bytes_free, self.memory_promised, self.memory_offered),
            disk_bytes: less(disk_bytes_free, self.disk_promised, self.disk_offered),
        };
        Some(slots_in(room, spec.resources))
    }

    /// From when on what it last said of its load is so old that it is worth asking again; never while it has yet to answer.
    fn ask_at(&self) -> Option<Time> {
        let wait = Span(ASK_AGAIN.0 << self.declined.saturating_sub(1).min(ASK_AGAIN_DOUBLED_MAX));
        (self.offers == 0).then_some(self.load_at + wait)
    }
}

fn has_labels(card: &Card, spec: &JobSpec) -> bool {
    spec.labels.iter().all(|(k, v)| card.labels.get(k) == Some(v))
}

/// Lower is better: unreliable nodes last, far ones later, then by strategy.
fn penalty(peer: &Peer, strategy: Strategy, slots: u32) -> u64 {
    let unreliable = u64::from(peer.failure_rate > 0.5);
    // 20 ms steps: nodes in one room count as equally near.
    let far = peer.trip.map_or(0, |trip| trip.smoothed().as_ms() / 20);
    let fill = match strategy {
        Strategy::Binpack => u64::from(slots),
        Strategy::Spread => u64::from(u32::MAX - slots),
    };
    (unreliable << 60) | (far.min(0xffff) << 40) | fill
}

fn mix(node: &NodeId, salt: u64) -> u64 {
    let mut low = [0; 8];
    low.copy_from_slice(&node.0[..8]);
    (u64::from_le_bytes(low) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd)
}
