//! Probes of one member at a time of our choosing, which foca has no way to ask for: it takes the members in turn.
//!
//! A direct ping and requests to helpers go out together. They are made when a connection closed, to learn soon whether
//! that was a crash; and before a suspicion that others raised ends in a loss, since foca leaves that to whoever raised it
//! and the news of its verdict, or of the objection, may have missed us.

use foca::{Header, Member, Message, State};
use sinew_crdt_state::ids::NodeId;

use super::config::HELPERS;
use super::io::Due;
use super::packet::{Identity, Packet};
use super::{Membership, NodeState};
use crate::time::Span;

/// Number of these probes. Answers are told by the node they are about, so any will do.
const PROBE_NUMBER: u8 = 0;

impl Membership {
    /// Whether a node that just lost its connection still lives.
    pub(super) fn probe_after_close(&mut self, node: NodeId) {
        if self.state(node) != Some(NodeState::Healthy) {
            return;
        }
        if let Some(member) = self.member(node) {
            let suspect = Member::new(*member.id(), member.incarnation(), State::Suspect);
            self.probe(suspect);
        }
    }

    /// Asks for a sign of life; without one the member becomes `verdict`.
    fn probe(&mut self, verdict: Member<Identity>) {
        let target = *verdict.id();
        self.send_packet(target, Message::Ping(PROBE_NUMBER), Vec::new());
        for helper in self.helpers(target.node) {
            self.send_packet(helper, Message::PingReq { target, probe_number: PROBE_NUMBER }, Vec::new());
        }
        // The helpers' way is two round trips long.
        let patience = Span(self.config.probe_rtt.0.saturating_mul(2));
        self.probes.insert(target.node, self.io.now + patience);
        self.io.schedule(patience, Due::Probed(verdict));
    }

    /// A sign of life from `node`: an answer, first or second hand, or a new connection.
    pub(super) fn answered(&mut self, node: NodeId) {
        self.probes.remove(&node);
    }

    /// Time is up for the probe that would make a member `verdict`.
    pub(super) fn probed(&mut self, verdict: &Member<Identity>) {
        let node = verdict.id().node;
        // A later deadline belongs to a later probe.
        if self.probes.get(&node).is_none_or(|deadline| *deadline > self.io.now) {
            return;
        }
        self.probes.remove(&node);
        let same = |held: &Member<Identity>| held.id() == verdict.id() && held.incarnation() == verdict.incarnation();
        if !self.member(node).is_some_and(|held| same(held) && held.state() != State::Down) {
            return;
        }
        self.apply(verdict.clone(), true);
        if verdict.state() == State::Suspect {
            self.io.schedule(self.suspicion(), Due::SuspicionOver(verdict.clone()));
        }
    }

    /// Makes sure that a suspicion raised by others comes to an end here too.
    pub(super) fn watch_suspect(&mut self, suspect: Member<Identity>) {
        // Two periods for the news of whoever raised it to arrive first.
        let after = Span(self.suspicion().0.saturating_add(self.config.probe_period.0.saturating_mul(2)));
        self.io.schedule(after, Due::SuspicionOver(suspect));
    }

    /// Unless `suspect` objected, by a new identity or a higher refutation count, it has one last probe to answer.
    pub(super) fn suspicion_over(&mut self, suspect: &Member<Identity>) {
        if self.member(suspect.id().node) == Some(suspect) {
            self.probe(Member::new(*suspect.id(), suspect.incarnation(), State::Down));
        }
    }

    /// A packet of our own making, outside foca's bookkeeping. Without a refutation count, which only foca knows: the
    /// receiver then keeps the one it has.
    pub(super) fn send_packet(&mut self, to: Identity, message: Message<Identity>, updates: Vec<Member<Identity>>) {
        let header = Header { src: *self.foca.identity(), src_incarnation: 0, dst: to, message };
        self.io.send(to.node, Packet { header, updates }.to_bytes());
    }

    /// Up to [`HELPERS`] healthy members other than `node`, the first after it in id order: spread over the mesh since
    /// ids are, and no draw needed. Connected ones come first, they are sure to be reachable.
    fn helpers(&self, node: NodeId) -> Vec<Identity> {
        let others = self.members.iter().filter(|(helper, seen)| **helper != node && seen.state == NodeState::Healthy);
        let mut healthy: Vec<NodeId> = others.map(|(helper, _)| *helper).collect();
        healthy.sort_by_key(|helper| (!self.connected.contains(helper), *helper < node, *helper));
        healthy.iter().take(HELPERS).filter_map(|helper| self.member(*helper).map(|member| *member.id())).collect()
    }
}
