//! Keeps a libp2p behaviour unaware of peers that have not shown membership.
//!
//! Gossip, Kademlia and the others greet every connection at once: they would send subscriptions and routing entries to
//! strangers. The gate withholds a connection, and what arrives on it, until the driver admits the peer, and replays
//! both then. It does not decide who is admitted.

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint, Multiaddr};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};

/// Handler events kept per withheld connection: the other side may verify us first and speak at once. What an honest
/// peer says in that round trip is a handful.
const HELD_EVENTS_MAX: usize = 16;

struct Held<B: NetworkBehaviour> {
    connection: ConnectionId,
    endpoint: ConnectedPoint,
    events: Vec<THandlerOutEvent<B>>,
}

/// `B` behind a gate.
pub(crate) struct Gate<B: NetworkBehaviour> {
    inner: B,
    admitted: HashSet<PeerId>,
    /// Connections that `inner` knows of, per peer.
    passed: HashMap<PeerId, usize>,
    held: HashMap<PeerId, Vec<Held<B>>>,
    waker: Option<Waker>,
}

impl<B: NetworkBehaviour> Gate<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self { inner, admitted: HashSet::new(), passed: HashMap::new(), held: HashMap::new(), waker: None }
    }

    pub(crate) const fn inner(&self) -> &B {
        &self.inner
    }

    pub(crate) const fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    /// Lets `peer` through until its last connection closes. Nothing happens when it has none.
    pub(crate) fn admit(&mut self, peer: PeerId) {
        let Some(held) = self.held.remove(&peer) else { return };
        self.admitted.insert(peer);
        for Held { connection, endpoint, events } in held {
            self.pass(peer, connection, &endpoint, &[]);
            for event in events {
                self.inner.on_connection_handler_event(peer, connection, event);
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn pass(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint, failed: &[Multiaddr]) {
        let passed = self.passed.entry(peer).or_default();
        let other_established = *passed;
        *passed += 1;
        self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: connection,
            endpoint,
            failed_addresses: failed,
            other_established,
        }));
    }

    fn established(&mut self, event: &ConnectionEstablished<'_>) {
        let ConnectionEstablished { peer_id, connection_id, endpoint, failed_addresses, .. } = *event;
        if self.admitted.contains(&peer_id) {
            self.pass(peer_id, connection_id, endpoint, failed_addresses);
        } else {
            let held = Held { connection: connection_id, endpoint: endpoint.clone(), events: Vec::new() };
            self.held.entry(peer_id).or_default().push(held);
        }
    }

    fn closed(&mut self, event: ConnectionClosed<'_>) {
        let peer = event.peer_id;
        if let Some(held) = self.held.get_mut(&peer) {
            held.retain(|h| h.connection != event.connection_id);
            if held.is_empty() {
                self.held.remove(&peer);
            }
            // Behaviours allot state when they make a handler and free it on close, so the pair must be complete.
            // The connection is gone: what `inner` wants to say on it is heard by nobody.
            self.pass(peer, event.connection_id, event.endpoint, &[]);
        }
        if let Some(passed) = self.passed.get_mut(&peer) {
            *passed = passed.saturating_sub(1);
        }
        self.inner.on_swarm_event(FromSwarm::ConnectionClosed(event));
        if event.remaining_established == 0 {
            self.admitted.remove(&peer);
            self.passed.remove(&peer);
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gate<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addrs: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(connection, peer, addrs, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(connection, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.established(&event),
            FromSwarm::ConnectionClosed(event) => self.closed(event),
            FromSwarm::AddressChange(change) if !self.admitted.contains(&change.peer_id) => {
                let held = self.held.get_mut(&change.peer_id).into_iter().flatten();
                for h in held.filter(|h| h.connection == change.connection_id) {
                    h.endpoint = change.new.clone();
                }
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        if self.admitted.contains(&peer) {
            self.inner.on_connection_handler_event(peer, connection, event);
            return;
        }
        let held = self.held.get_mut(&peer).into_iter().flatten().find(|h| h.connection == connection);
        if let Some(held) = held.filter(|h| h.events.len() < HELD_EVENTS_MAX) {
            held.events.push(event);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.waker = Some(cx.waker().clone());
        self.inner.poll(cx)
    }
}
