//! This node's own starts, and those of others: see [`crate::boots`].

use rand::RngExt;
use sinew_crdt_state::ids::{DiskId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};

use super::Core;
use crate::boots::start_of;
use crate::membership::{Membership, MembershipConfig};
use crate::serials;
use crate::wire::{Message, Seen};

impl Core {
    /// Shows who this is and which start of its disk, and what is remembered of the receiver's.
    pub(super) fn send_card(&mut self, to: NodeId) {
        let mut card = self.card();
        self.ctx.boots.show(&mut card, to);
        self.ctx.send(to, Message::Card(card));
    }

    pub(super) fn on_mark(&mut self, from: NodeId, mark: u64) {
        if mark > 0 {
            let start = self.ctx.peers.get(from).and_then(|peer| peer.card.as_ref()).map(start_of);
            self.ctx.boots.on_mark(from, mark, start, self.ctx.now.at);
        }
    }

    /// A job of this node's own came back from others: its number, and all below, were given out.
    pub(super) fn note_serial(&mut self, job: JobId) {
        let Some(live) = self.ctx.ledger.live(&job) else { return };
        let serial = live.state.spec.serial;
        if live.state.spec.submitter == self.ctx.own && serial > self.serial_last {
            let again = planted(Bug::SerialAgain);
            self.serial_last = if again { serial } else { serials::beyond(serial, self.nonce) };
        }
    }

    /// The disk's new number is on it: from here on this is a node that lost its disk, or one that was started more often than
    /// it knew.
    pub(super) fn on_renumbered(&mut self, disk: DiskId, incarnation: u64) {
        let other = disk != self.ctx.disk;
        self.ctx.on_renumbered(disk, incarnation);
        self.announce_anew();
        let card = self.card();
        self.ctx.peers.set_card(self.ctx.own, card);
        let peers: Vec<NodeId> = self.ctx.peers.connected().collect();
        for peer in peers {
            self.send_card(peer);
        }
        if other {
            self.stewards.on_renumbered(&mut self.ctx, &mut self.brains, self.serials_from);
        }
    }

    /// The failure detectors of others believe the higher count: this node's begins anew with it.
    fn announce_anew(&mut self) {
        let (own, now) = (self.ctx.own, self.ctx.now.at);
        let seed = self.ctx.rng.random();
        self.membership = Membership::new(own, self.ctx.incarnation, seed, MembershipConfig::default());
        let known: Vec<(NodeId, bool)> = self.ctx.peers.iter().map(|(node, peer)| (*node, peer.connected)).collect();
        for (node, connected) in known.into_iter().filter(|(node, _)| *node != own) {
            self.membership.learn(now, node);
            if connected {
                self.membership.peer_up(now, node);
            }
        }
    }

    /// What this node remembers of another one's starts, for checks.
    #[must_use]
    pub fn remembers(&self, node: NodeId) -> Option<&Seen> {
        self.ctx.boots.seen(node)
    }

    /// The number that this start drew at random.
    #[must_use]
    pub const fn nonce(&self) -> u64 {
        self.nonce
    }

    /// This node's disk, as it shows it.
    #[must_use]
    pub const fn disk(&self) -> DiskId {
        self.ctx.disk
    }
}
