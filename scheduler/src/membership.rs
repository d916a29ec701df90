//! Which members are alive, as far as this node can tell: SWIM failure detection, run by the `foca` crate, sans-IO.
//!
//! Each period a node pings one member; without an answer it asks up to three others to try (three misses, if you
//! count paths); without theirs the member is **suspect**, the mesh is told, and the member may object. When nobody
//! has heard an objection for the suspicion time it is **lost**. Cost per node does not depend on the size of the mesh,
//! only dissemination counts and suspicion time grow, with its logarithm.
//!
//! Who is a member is not decided here. Only nodes named by [`Membership::peer_up`] or [`Membership::learn`], that is
//! with a verified certificate, exist for the detector; what others say about strangers is put aside until then.
//! Nothing about work depends on these states being right: that is what leases are for. A member that lies can make
//! others look suspect or lost for as long as it keeps lying, and no longer: see `screen`. Draining and maintenance are
//! facts in the ledger, not observations, and so not states here.
//!
//! Sources: Das, Gupta, Motivala, "SWIM" (DSN 2002); Dadgar, Phillips, Currey, "Lifeguard" (2017) for telling a suspect
//! directly and for distrusting oneself after a pause.

mod config;
mod io;
mod packet;
mod probe;
mod screen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use foca::{Foca, Member, Message, NoCustomBroadcast, State, Timer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::ids::NodeId;

use crate::table::Table;
use crate::time::{Span, Time};
use config::foca_config;
use io::{Due, Io};
use packet::{Identity, Wire};

pub use config::MembershipConfig;
pub use packet::PacketError;
pub use screen::MembershipError;

/// A member as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Known to be a member, not heard of yet.
    Joining,
    /// Answers, itself or through others.
    Healthy,
    /// Did not answer and has not objected yet. Treated as alive, but not a node to give new work to.
    Suspect,
    /// Unreachable past the deadline. May come back.
    Lost,
    /// Said goodbye, or is no member any more. May come back.
    Left,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Left => "left",
        })
    }
}

/// What [`Membership`] wants done or noticed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipEffect {
    /// Deliver these bytes to the node's [`Membership::receive`]; connect first if needed and possible. May be lost,
    /// late, doubled or overtaken.
    Send {
        /// Receiver.
        to: NodeId,
        /// At most a few KiB.
        bytes: Vec<u8>,
    },
    /// A probe of the member was answered after so long.
    RoundTrip {
        /// The member.
        node: NodeId,
        /// There and back.
        trip: Span,
    },
    /// A member is now seen differently. A restart quicker than the detector shows in [`Membership::iter`] only.
    Changed {
        /// The member.
        node: NodeId,
        /// Before, none if it was no member.
        from: Option<NodeState>,
        /// From now on.
        to: NodeState,
    },
}

/// How one member stands.
#[derive(Debug, Clone, Copy)]
struct Seen {
    state: NodeState,
    /// As last read off foca; none while it was never heard of.
    id: Option<Identity>,
}

impl Seen {
    fn incarnation(&self) -> u64 {
        self.id.map_or(0, |id| id.incarnation)
    }
}

/// All members are read off foca this often, whatever was touched.
const LOOK_AT_ALL_EVERY: Span = Span::ms(10_000);

/// Strangers' states put aside. Far above the nodes that wait for their certificate to arrive; bounds what a member can
/// make us store.
const HEARSAY_MAX: usize = 256;

/// The failure detector of one node.
pub struct Membership {
    own: NodeId,
    config: MembershipConfig,
    foca: Foca<Identity, Wire, ChaCha8Rng, NoCustomBroadcast>,
    io: Io,
    /// Every verified member but this node, and how it was last reported.
    members: Table<Seen>,
    connected: BTreeSet<NodeId>,
    hearsay: BTreeMap<NodeId, Member<Identity>>,
    /// Members of whom foca may hold something else than was last read off it. Reading all of them after every input would
    /// cost each node the size of the mesh for every packet.
    touched: Vec<NodeId>,
    look_at_all: Time,
    /// Members that we probe outside foca's turns, and until when they may answer.
    probes: BTreeMap<NodeId, Time>,
    /// The connected member last spoken to for want of an answer, while that is still going on.
    reaching: Option<NodeId>,
    /// The incarnation given at the start. foca's identity may have moved past it.
    started_as: u64,
    /// No claim of others makes us renew before this.
    renew_not_before: Time,
    left: bool,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("identity", self.foca.identity())
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// A detector that knows nobody yet. `incarnation` should be greater than in the node's earlier runs, so that its
    /// return is believed at once; `seed` decides every choice that is left to chance.
    #[must_use]
    pub fn new(own: NodeId, incarnation: u64, seed: [u8; 32], config: MembershipConfig) -> Self {
        let identity = Identity { incarnation, ..Identity::unknown(own) };
        let mut jitter = ChaCha8Rng::from_seed(seed);
        jitter.set_stream(1);
        Self {
            own,
            config,
            foca: Foca::new(identity, foca_config(&config, 1), ChaCha8Rng::from_seed(seed), Wire),
            io: Io::new(jitter),
            members: Table::default(),
            connected: BTreeSet::new(),
            hearsay: BTreeMap::new(),
            touched: Vec::new(),
            look_at_all: Time::default(),
            probes: BTreeMap::new(),
            reaching: None,
            started_as: incarnation,
            renew_not_before: Time::default(),
            left: false,
        }
    }

    /// `node` is a verified member, whether or not there is a connection to it.
    pub fn learn(&mut self, now: Time, node: NodeId) {
        self.io.now = now;
        if node == self.own || self.left || self.members.contains_key(&node) {
            return;
        }
        self.members.insert(node, Seen { state: NodeState::Joining, id: None });
        self.io.effects.push_back(MembershipEffect::Changed { node, from: None, to: NodeState::Joining });
        self.io.schedule(self.config.join_deadline, Due::JoinOver(node));
        self.resize();
        if let Some(heard) = self.hearsay.remove(&node) {
            self.apply(heard, true);
        }
        self.settle();
    }

    /// `node` is no member any more: its certificate expired or was revoked. It ends as [`NodeState::Left`].
    pub fn forget(&mut self, now: Time, node: NodeId) {
        self.io.now = now;
        let Some(seen) = self.members.swap_remove(&node) else { return };
        self.connected.remove(&node);
        self.probes.remove(&node);
        self.unlearn(node);
        if seen.state != NodeState::Left {
            let (from, to) = (Some(seen.state), NodeState::Left);
            self.io.effects.push_back(MembershipEffect::Changed { node, from, to });
        }
        self.resize();
        self.settle();
    }

    /// A connection to `node` exists, authenticated, with a valid certificate shown.
    pub fn peer_up(&mut self, now: Time, node: NodeId) {
        self.learn(now, node);
        if node == self.own || self.left {
            return;
        }
        self.connected.insert(node);
        self.answered(node);
        if self.state(node) != Some(NodeState::Healthy) {
            self.announce(node);
        }
        self.reach_soon(node);
        self.settle();
    }

    /// The last connection to `node` closed. It is probed at once, with the help of others: the close may be a crash, or
    /// only an idle connection.
    pub fn peer_down(&mut self, now: Time, node: NodeId) {
        self.io.now = now;
        if self.connected.remove(&node) && !self.left {
            self.probe_after_close(node);
            self.settle();
        }
    }

    /// Runs every timer due at `now`.
    pub fn tick(&mut self, now: Time) {
        self.io.now = now;
        if !self.io.is_due() {
            return;
        }
        self.io.excuse_pause(self.config.probe_period);
        while let Some(due) = self.io.pop_due() {
            match due {
                // The errors are two ways of finding a timer late or outdated; foca has then already resumed.
                Due::Foca(turn @ Timer::PeriodicGossip(_)) if self.foca.updates_backlog() == 0 => self.io.park(turn),
                Due::Foca(timer) => {
                    self.touched.extend(timer_target(&timer));
                    // Whoever did not answer in the period that ends.
                    self.touched.extend(self.io.probing);
                    drop(self.foca.handle_timer(timer, &mut self.io));
                }
                Due::Reach => self.reach(),
                Due::JoinOver(node) => self.join_over(node),
                Due::Probed(verdict) => self.probed(&verdict),
                Due::SuspicionOver(suspect) => self.suspicion_over(&suspect),
            }
        }
        self.settle();
    }

    /// When [`Self::tick`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.io.poll_timeout()
    }

    /// The next thing to do. Drain after every input.
    pub fn poll_effect(&mut self) -> Option<MembershipEffect> {
        let next = self.io.effects.pop_front();
        if next.is_none() {
            self.io.effects = VecDeque::new();
        }
        next
    }

    /// How `node` is seen; none for strangers. This node itself is healthy until it leaves.
    #[must_use]
    pub fn state(&self, node: NodeId) -> Option<NodeState> {
        if node == self.own { Some(self.own_state()) } else { self.members.get(&node).map(|seen| seen.state) }
    }

    /// Every member including this node, by id, with its state and incarnation (0 while never heard of).
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, NodeState, u64)> + '_ {
        let own = (self.own, self.own_state(), self.foca.identity().incarnation);
        let others = |(node, seen): (&NodeId, &Seen)| (*node, seen.state, seen.incarnation());
        let mut all: Vec<(NodeId, NodeState, u64)> =
            self.members.iter().map(others).chain(std::iter::once(own)).collect();
        all.sort_unstable_by_key(|(node, ..)| *node);
        all.into_iter()
    }

    /// Says goodbye. Afterwards only the messages already queued as effects remain to be sent.
    pub fn leave(&mut self, now: Time) {
        self.io.now = now;
        if self.left {
            return;
        }
        if let Some(next) = self.foca.identity().successor() {
            let last = Identity { left: true, ..next };
            encodes(self.foca.change_identity(last, &mut self.io));
        }
        encodes(self.foca.leave_cluster(&mut self.io));
        // To some that is said already, and they pass it on; whoever sees the connection close should know before.
        let last = *self.foca.identity();
        let peers: Vec<NodeId> = self.connected.iter().copied().collect();
        for peer in peers {
            let to = self.member(peer).map_or(Identity::unknown(peer), |member| *member.id());
            self.send_packet(to, Message::Gossip, vec![Member::down(last)]);
        }
        self.left = true;
        self.io.clear_timers();
        let (from, to) = (Some(NodeState::Healthy), NodeState::Left);
        self.io.effects.push_back(MembershipEffect::Changed { node: self.own, from, to });
    }

    const fn own_state(&self) -> NodeState {
        if self.left { NodeState::Left } else { NodeState::Healthy }
    }

    /// What foca holds about `node`, down or not.
    fn member(&self, node: NodeId) -> Option<&Member<Identity>> {
        self.foca.iter_membership_state().find(|member| member.id().node == node)
    }

    fn apply(&mut self, member: Member<Identity>, broadcast: bool) {
        self.touched.push(member.id().node);
        encodes(self.foca.apply_many(std::iter::once(member), broadcast, &mut self.io));
    }

    /// Makes foca drop all it holds about `node`, which it otherwise never does.
    fn unlearn(&mut self, node: NodeId) {
        if let Some(id) = self.member(node).map(|member| *member.id()) {
            self.apply(Member::down(id), false);
            encodes(self.foca.handle_timer(Timer::RemoveDown(id), &mut self.io));
        }
    }

    /// Asks `node` to take us in. Its answer proves that it lives and names others.
    fn announce(&mut self, node: NodeId) {
        encodes(self.foca.announce(Identity::unknown(node), &mut self.io));
    }

    /// Speaks to `node` until it answers, if it is connected and has not.
    fn reach_soon(&mut self, node: NodeId) {
        let silent = matches!(self.state(node), Some(NodeState::Joining | NodeState::Lost));
        if silent && self.reaching.is_none() && self.connected.contains(&node) {
            self.reaching = Some(node);
            self.reach_later();
        }
    }

    fn reach_later(&mut self) {
        let after = self.io.jitter(self.config.probe_period);
        self.io.schedule(after, Due::Reach);
    }

    /// Speaks to one connected member that does not count as alive, in turn. Covers lost first messages, and a partition
    /// that healed without any connection having noticed: foca alone would stay idle once everyone was lost.
    fn reach(&mut self) {
        let silent = |node: &&NodeId| matches!(self.state(**node), Some(NodeState::Joining | NodeState::Lost));
        let next = self.connected.iter().find(|node| Some(**node) > self.reaching && silent(node));
        self.reaching = next.or_else(|| self.connected.iter().find(silent)).copied();
        if let Some(node) = self.reaching {
            self.announce(node);
            self.reach_later();
        }
    }

    fn join_over(&mut self, node: NodeId) {
        if self.state(node) == Some(NodeState::Joining) {
            self.report(node, NodeState::Lost, None);
        }
    }

    /// To be called at the end of every input: restarts probing if foca dropped it, reports what changed.
    fn settle(&mut self) {
        if self.left {
            return;
        }
        // With an identity just renewed, foca would not probe again before somebody spoke to it.
        encodes(self.foca.apply_many(std::iter::empty(), true, &mut self.io));
        for member in self.touched_members() {
            let id = *member.id();
            if self.report(id.node, state_of(&member), Some(id)) && member.state() == State::Suspect {
                self.watch_suspect(member);
            }
        }
        if self.foca.updates_backlog() > 0 {
            self.io.unpark(self.config.gossip_period);
        }
    }

    /// What foca holds of those that were touched, or of all when that is due.
    fn touched_members(&mut self) -> Vec<Member<Identity>> {
        let touched = std::mem::take(&mut self.touched);
        if self.io.now >= self.look_at_all {
            self.look_at_all = self.io.now + LOOK_AT_ALL_EVERY;
            return self.foca.iter_membership_state().cloned().collect();
        }
        if touched.is_empty() {
            return Vec::new();
        }
        self.foca.iter_membership_state().filter(|member| touched.contains(&member.id().node)).cloned().collect()
    }

    /// Whether `update` is what was last read off foca, so that it will change nothing there.
    fn is_known(&self, update: &Member<Identity>) -> bool {
        let seen = self.members.get(&update.id().node);
        seen.is_some_and(|seen| seen.id == Some(*update.id()) && seen.state == state_of(update))
    }

    /// Returns whether that was a change.
    fn report(&mut self, node: NodeId, to: NodeState, id: Option<Identity>) -> bool {
        let Some(seen) = self.members.get_mut(&node) else { return false };
        seen.id = id;
        if seen.state == to {
            return false;
        }
        let from = Some(std::mem::replace(&mut seen.state, to));
        self.io.effects.push_back(MembershipEffect::Changed { node, from, to });
        self.reach_soon(node);
        true
    }

    /// How long a suspect has in a mesh of this size.
    fn suspicion(&self) -> Span {
        let grown = foca_config(&self.config, self.members.len() + 1).suspect_to_down_after;
        Span(u64::try_from(grown.as_micros()).unwrap_or(u64::MAX))
    }

    fn resize(&mut self) {
        let config = foca_config(&self.config, self.members.len() + 1);
        self.foca.set_config(config).expect("probe timing never changes and no periodic task is ever enabled later");
    }
}

/// A member's state in our words.
fn state_of(member: &Member<Identity>) -> NodeState {
    match member.state() {
        _ if member.id().left => NodeState::Left,
        State::Alive => NodeState::Healthy,
        State::Suspect => NodeState::Suspect,
        State::Down => NodeState::Lost,
    }
}

/// Whom foca may judge when this timer fires.
const fn timer_target(timer: &Timer<Identity>) -> Option<NodeId> {
    match timer {
        Timer::SendIndirectProbe { probed_id, .. } => Some(probed_id.node),
        Timer::ChangeSuspectToDown { member_id, .. } => Some(member_id.node),
        Timer::RemoveDown(id) => Some(id.node),
        _ => None,
    }
}

/// foca fails for two reasons: bytes from outside, handled where they come in, or a codec that cannot write. Ours can:
/// a header fits every packet, and what does not fit behind it is left out.
fn encodes(result: Result<(), foca::Error>) {
    debug_assert!(result.is_ok(), "foca refused an input of our own: {result:?}");
}
