//! What may pass from the network into foca, and in whose name.
//!
//! foca believes every well-formed packet. Here a packet must come from the member that it names as sender, is freed of
//! strangers, and cannot do lasting harm: claims about this node are answered with a newer identity, and a node's own
//! word about itself outweighs what others said of it. That leaves a lying member the power to make others look lost
//! while it goes on lying, which is inherent in asking others at all.

use foca::{Member, Message};
use sinew_crdt_state::ids::NodeId;

use super::packet::{Identity, PACKET_MAX, Packet, PacketError};
use super::{HEARSAY_MAX, Membership, MembershipEffect, NodeState};
use crate::time::Time;

/// How far ahead of our own start a claimed incarnation is followed. In milliseconds 34 years: any clock set back between
/// two runs, and still so little that no lie can drive the counter to its end, where an identity could not be renewed.
const CLAIM_FOLLOW_MAX: u64 = 1 << 40;

/// Renewals by which a sender may lag behind what is held of it and still be told so the usual way. More than a packet
/// overtaken by others lags; fewer than would take noticeable time to catch up one by one.
const LAG_MAX: u32 = 2;

/// Why a packet was refused. The sender is faulty or hostile in every case but `Stranger`; sending again never helps.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Longer than any packet.
    #[error("a membership packet of {0} bytes is longer than any")]
    TooLong(usize),
    /// The sender is not known as a member: [`Membership::peer_up`] comes first.
    #[error("{0} is not known as a member")]
    Stranger(NodeId),
    /// Not a packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The packet names another sender than the connection proved.
    #[error("{from} sent a membership packet in the name of {named}")]
    Impersonation {
        /// Who sent it.
        from: NodeId,
        /// Who it says sent it.
        named: NodeId,
    },
    /// The packet is for another node; nobody relays them.
    #[error("a membership packet for {0} arrived here")]
    Misaddressed(NodeId),
    /// Well formed, but against the protocol.
    #[error("a membership packet broke the protocol")]
    Protocol(#[source] foca::Error),
}

impl Membership {
    /// Takes one packet that the authenticated member `from` sent.
    ///
    /// # Errors
    /// [`MembershipError`] when the packet was refused. Nothing changed then, except that after
    /// [`MembershipError::Protocol`] its sender counts as alive.
    pub fn receive(&mut self, now: Time, from: NodeId, bytes: &[u8]) -> Result<(), MembershipError> {
        self.io.now = now;
        if bytes.len() > PACKET_MAX {
            return Err(MembershipError::TooLong(bytes.len()));
        }
        if !self.members.contains_key(&from) {
            return Err(MembershipError::Stranger(from));
        }
        let mut packet = Packet::parse(bytes)?;
        let named = packet.header.src.node;
        if named != from {
            return Err(MembershipError::Impersonation { from, named });
        }
        if packet.header.dst.node != self.own {
            return Err(MembershipError::Misaddressed(packet.header.dst.node));
        }
        if self.left {
            return Ok(());
        }
        let claim = self.screen(&mut packet);
        self.touch(&packet);
        let answered = matches!(packet.header.message, Message::Ack(_)) && self.io.probing == Some(from);
        if matches!(packet.header.message, Message::Ack(_))
            && let Some(sent) = self.io.unanswered.remove(&from).flatten()
        {
            let trip = self.io.now - sent;
            self.io.effects.push_back(MembershipEffect::RoundTrip { node: from, trip });
        }
        let handled = self.foca.handle_data(&packet.to_bytes(), &mut self.io);
        // The second stage asks others only if there was no answer. With one it need not wake us; a wrong answer brings it
        // forward, to the liar's cost.
        if answered && let Some(second) = self.io.take_second_stage(from) {
            drop(self.foca.handle_timer(second, &mut self.io));
        }
        self.tell_if_suspect(from);
        if let Some(claim) = claim {
            self.outbid(&claim);
        }
        self.settle();
        handled.map_err(MembershipError::Protocol)
    }

    /// Changes `packet` into what foca may see. Returns the highest identity claimed for this node, if it beats ours.
    fn screen(&mut self, packet: &mut Packet) -> Option<Identity> {
        self.trust_own_word(packet.header.src);
        self.screen_message(packet);
        let mut claim = None;
        packet.updates.retain(|update| {
            let id = *update.id();
            let known = id == *self.foca.identity() || self.members.contains_key(&id.node);
            if !known && id.node == self.own {
                // foca would store itself as a member. Older lives of ours need no answer: ours wins against them.
                claim = claim.max(Some(id).filter(|id| id > self.foca.identity()));
            } else if !known {
                self.put_aside(update);
            }
            known
        });
        claim
    }

    /// Notes whom the packet may change.
    fn touch(&mut self, packet: &Packet) {
        let speaker = Member::alive(packet.header.src);
        let news = packet.updates.iter().chain(std::iter::once(&speaker)).filter(|update| !self.is_known(update));
        let nodes: Vec<NodeId> = news.map(|update| update.id().node).collect();
        self.touched.extend(nodes);
    }

    fn screen_message(&mut self, packet: &mut Packet) {
        let header = &mut packet.header;
        // Someone who missed our renewal speaks to our former self. Answering introduces the present one; foca would keep
        // silent and be taken for lost. But that the former self was given up is no news.
        if header.message != Message::TurnUndead {
            header.dst = *self.foca.identity();
        }
        match &header.message {
            // Other packets may have been on their way when the connection closed: no sign that the sender outlived it.
            Message::Ack(_) => self.answered(header.src.node),
            // Nobody makes us send to strangers. The news that came along are still good.
            Message::PingReq { target, .. } | Message::IndirectAck { target, .. }
                if target.node != self.own && !self.members.contains_key(&target.node) =>
            {
                header.message = Message::Gossip;
            }
            Message::ForwardedAck { origin, .. } => {
                let about = origin.node;
                if self.io.probing != Some(about) {
                    // foca would take it for an answer about whomever it probes now.
                    header.message = Message::Gossip;
                }
                self.answered(about);
            }
            _ => {}
        }
    }

    /// A node speaks for itself. If we were told of a later life of it than the one that speaks, its clock was set back
    /// or we were lied to; either way what we hold would lock it out for good. It is told, to `outbid` this everywhere.
    fn trust_own_word(&mut self, speaker: Identity) {
        if self.members.get(&speaker.node).is_some_and(|seen| seen.id == Some(speaker)) {
            return;
        }
        let Some(held) = self.member(speaker.node).cloned() else { return };
        let lag = held.id().renewal.saturating_sub(speaker.renewal);
        if *held.id() > speaker && (held.id().incarnation != speaker.incarnation || lag > LAG_MAX) {
            self.unlearn(speaker.node);
            self.send_packet(speaker, Message::Gossip, vec![held]);
        }
    }

    /// Moves past an identity that others hold for this node and that would win against ours.
    fn outbid(&mut self, claim: &Identity) {
        let near = claim.incarnation <= self.started_as.saturating_add(CLAIM_FOLLOW_MAX);
        // Once a period: two daemons with one key would otherwise outbid each other as fast as messages travel.
        if !near || claim <= self.foca.identity() || self.io.now < self.renew_not_before {
            return;
        }
        if let Some(next) = claim.successor() {
            self.renew_not_before = self.io.now + self.config.probe_period;
            super::encodes(self.foca.change_identity(next, &mut self.io));
        }
    }

    /// A suspect that still speaks should hear of it from us, now: gossip may reach it too late.
    fn tell_if_suspect(&mut self, node: NodeId) {
        if self.state(node) == Some(NodeState::Healthy) && !self.touched.contains(&node) {
            return;
        }
        if let Some(member) = self.member(node).filter(|member| member.state() == foca::State::Suspect) {
            let (id, update) = (*member.id(), member.clone());
            self.send_packet(id, Message::Gossip, vec![update]);
        }
    }

    fn put_aside(&mut self, update: &Member<Identity>) {
        let has_room = self.hearsay.len() < HEARSAY_MAX;
        match self.hearsay.get_mut(&update.id().node) {
            Some(held) if held.id() <= update.id() => *held = update.clone(),
            None if has_room => drop(self.hearsay.insert(update.id().node, update.clone())),
            _ => {}
        }
    }
}
