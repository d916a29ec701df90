//! One key with two boots: which of two daemons is let in. See [`crate::twin`].

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::Driver;
use crate::address::{ip, usable, without_peer};
use crate::error::Refusal;
use crate::event::MeshEvent;
use crate::hello::Verified;
use crate::streams::Inbound;
use crate::twin::{self, Boot, Here, Newcomer};
use crate::wire::TWIN;

impl Driver {
    /// A peer has shown its membership on a connection: it is let in, unless its key is connected under another boot.
    pub(super) fn on_verified(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        verified: Verified,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.boot = verified.boot;
        let Some((nonce, before)) = verified.boot.and_then(|boot| Some((boot.nonce, self.before(&peer, id, boot)?)))
        else {
            let _ = reply.send(self.admit(peer, verified));
            return;
        };
        let (opening, opened) = oneshot::channel();
        self.swarm.behaviour_mut().streams.open(peer, before, TWIN, opening);
        let newcomer = Newcomer { peer, connection: id, verified, nonce, reply };
        tokio::spawn(twin::ask(opened, self.mesh, newcomer, self.internal.0.clone()));
    }

    /// The connection of the peer on which it showed another boot, and that stands.
    fn before(&self, peer: &PeerId, id: ConnectionId, boot: Boot) -> Option<ConnectionId> {
        let ids = self.peers.get(peer)?.connections.iter().filter(|other| **other != id);
        ids.copied().find(|other| self.is_of_another(other, boot))
    }

    fn is_of_another(&self, id: &ConnectionId, boot: Boot) -> bool {
        let connection = self.connections.get(id).filter(|c| c.ready);
        connection.and_then(|c| c.boot).is_some_and(|other| other.nonce != boot.nonce)
    }

    /// The daemon that was connected before has said that it lives, or nothing.
    pub(super) fn on_asked(&mut self, newcomer: Newcomer, here: Option<Here>) {
        let Newcomer { peer, connection, verified, reply, .. } = newcomer;
        if !self.connections.contains_key(&connection) {
            return;
        }
        let boot = verified.boot.unwrap_or(Boot { number: 0, nonce: 0 });
        let before = self.before(&peer, connection, boot);
        let (Some(here), Some(before)) = (here, before) else {
            // The daemon was restarted, and this side had not noticed that its connection is dead.
            let ids = self.peers.get(&peer).map(|entry| entry.connections.clone()).unwrap_or_default();
            let dead: Vec<_> = ids.into_iter().filter(|id| self.is_of_another(id, boot)).collect();
            for dead in dead {
                if let Some(connection) = self.connections.get_mut(&dead) {
                    connection.ready = false;
                }
                self.swarm.close_connection(dead);
            }
            let _ = reply.send(self.admit(peer, verified));
            return;
        };
        let addr = self.address_of(&peer, before);
        let (opening, opened) = oneshot::channel();
        self.swarm.behaviour_mut().streams.open(peer, connection, TWIN, opening);
        tokio::spawn(twin::tell(opened, here, addr, reply));
    }

    /// Where a member can be found, for people.
    fn address_of(&self, peer: &PeerId, id: ConnectionId) -> Multiaddr {
        let heard_from = self.connections.get(&id).map(|c| &c.addr);
        let said = self.peers.get(peer).and_then(|entry| entry.member.as_ref()).map(|m| m.verified.addrs.clone());
        let said = usable(said.unwrap_or_default(), heard_from);
        // Of several the one on the host that the connection comes from.
        let near = heard_from.and_then(|from| said.iter().find(|addr| ip(addr).is_some() && ip(addr) == ip(from)));
        let found = near.or(said.first()).or(heard_from).cloned().unwrap_or_else(Multiaddr::empty);
        without_peer(found)
    }

    /// A peer asks whether this daemon lives, or tells of another one.
    pub(super) fn on_twin_stream(&mut self, inbound: Inbound) {
        let Some(boot) = self.config.boot else { return };
        let is_member = self.peers.get(&inbound.peer).is_some_and(|peer| peer.member.is_some());
        let driver = self.internal.0.clone();
        let serve = twin::Serve { identity: self.identity.clone(), mesh: self.mesh, boot, is_member, driver };
        tokio::spawn(serve.run(inbound.stream));
    }

    /// Another daemon has this node's key, and was here before.
    pub(super) fn on_twin(&mut self, boot: Boot, addr: Option<Multiaddr>) {
        self.events.tell(MeshEvent::Twin { boot, addr });
    }

    /// Somebody with this node's own key answered a dial, or called. It is this node itself wherever an address of a peer is
    /// one of this host's too: loopback, or an address that the peer had before. Whether it is another daemon, the members
    /// tell ([`crate::twin`]), so this is not worth an alarm.
    pub(super) fn on_own_key(&mut self, addr: &Multiaddr, called: bool) {
        let bare = without_peer(addr.clone());
        let own = || self.swarm.listeners().chain(self.swarm.external_addresses());
        let itself = own().any(|own| without_peer(own.clone()) == bare)
            || called && ip(addr).is_some_and(|from| own().any(|own| ip(own) == Some(from)));
        if itself {
            tracing::debug!(%addr, "an address of a peer leads to this node itself");
            return;
        }
        tracing::debug!(%addr, "this node's own key is at an address that is not known to be its own");
        self.note(None, Refusal::OwnKey);
    }
}
