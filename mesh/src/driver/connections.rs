//! Connections from the first byte to the last: dialling, the membership exchange, admission, streams, and the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use sinew_crdt_state::certificate::CredentialError;
use sinew_crdt_state::ids::NodeId;
use tokio::sync::oneshot;

use super::{Connection, Driver, Internal, Member};
use crate::address::{is_relayed, node_id, peer_id, usable};
use crate::config::{CONNECTION_DEADLINE, READERS_MAX};
use crate::dialer::{Dial, Source};
use crate::error::Refusal;
use crate::event::{FrameClass, MeshEvent};
use crate::hello::{Exchange, HelloFailure, Verified};
use crate::lane::{self, ReadEnd};
use crate::streams::{Inbound, StreamReply};
use crate::twin::Boot;
use crate::wire::{HELLO, Hello};

/// Streams that may wait for a fresh member's exchange to complete: half a round trip's worth.
const OPENING_MAX: usize = 64;

/// Whether we open the exchange. In a hole punch both sides dial; the one whose role was overridden listens.
fn initiates(endpoint: &ConnectedPoint) -> bool {
    match endpoint {
        ConnectedPoint::Dialer { role_override, .. } => *role_override == Endpoint::Dialer,
        ConnectedPoint::Listener { .. } => false,
    }
}

/// Whether two boots are of different starts.
fn is_another(before: Option<Boot>, now: Option<Boot>) -> bool {
    before.zip(now).is_some_and(|(before, now)| before.nonce != now.nonce)
}

impl Driver {
    pub(super) fn dial_due(&mut self, now: Instant) {
        for dial in self.dialer.due(now) {
            match dial {
                Dial::Peer(peer, addrs) => match self.guard.banned_until(&peer, now) {
                    Some(until) => self.dialer.hold(&peer, until),
                    None => self.dial_peer(peer, addrs, now),
                },
                Dial::Bootstrap(index, addr) => self.dial_bootstrap(index, addr, now),
            }
        }
    }

    fn dial_peer(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, now: Instant) {
        // A fresh port per dial: with a shared one, two nodes that dial each other in the same instant would make one
        // TCP connection on which both think they dialled.
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addrs)
            .allocate_new_port()
            .build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.peer_dials.insert(id);
            }
            Err(DialError::DialPeerConditionFalse(_)) => self.dialer.put_off(&peer, now),
            Err(_) => self.dialer.failed(&peer, now),
        }
    }

    fn dial_bootstrap(&mut self, index: usize, addr: Multiaddr, now: Instant) {
        // From the listening port, so that the other side sees the address under which NATs know us.
        let opts = DialOpts::unknown_peer_id().address(addr).build();
        let connection = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.bootstrap_dials.insert(connection, index);
            }
            Err(_) => {
                self.dialer.bootstrap_failed(index, now);
            }
        }
    }

    pub(super) fn on_dial_failed(&mut self, connection: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        let now = Instant::now();
        self.counters.dials_failed += 1;
        tracing::debug!(peer = ?peer.map(|p| crate::guard::name(&p)), %error, "a dial failed");
        if let DialError::LocalPeerId { address } = error {
            self.on_own_key(address, false);
        }
        if let Some(index) = self.bootstrap_dials.remove(&connection) {
            if self.dialer.bootstrap_failed(index, now) {
                tracing::warn!(%error, "a bootstrap address does not answer; it is tried again, up to every minute");
            }
            return;
        }
        let Some(peer) = peer else { return };
        match error {
            DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
                self.dialer.wrong(&peer, address);
            }
            DialError::Transport(tried) => tried.iter().for_each(|(addr, _)| self.dialer.missed(&peer, addr)),
            _ => {}
        }
        if !self.peer_dials.remove(&connection) {
            // The routing table dials for its own queries, many times in a millisecond: that says nothing about the peer.
            return;
        }
        self.dialer.failed(&peer, now);
        if let Some(link) = node_id(&peer).and_then(|node| self.known_link(&node))
            && !self.peers.contains_key(&peer)
        {
            self.drain(&link);
        }
    }

    fn known_link(&self, node: &NodeId) -> Option<Arc<lane::Link>> {
        self.shared.links.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(node).cloned()
    }

    pub(super) fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let now = Instant::now();
        let addr = endpoint.get_remote_address().clone();
        self.peer_dials.remove(&id);
        if let Some(index) = self.bootstrap_dials.remove(&id) {
            self.dialer.learn(peer, vec![addr.clone()], Source::Rumour, now);
            self.dialer.reached(index, peer);
        }
        self.dialer.connected(&peer);
        let outbound = endpoint.is_dialer();
        if outbound {
            self.dialer.worked(&peer, &addr, now);
        }
        let connection = Connection {
            peer,
            addr,
            outbound,
            made: now,
            doubted: false,
            ready: false,
            joined: false,
            boot: None,
            rtt: None,
        };
        self.connections.insert(id, connection);
        self.peers.entry(peer).or_default().connections.push(id);
        self.deadlines.push_back((now + CONNECTION_DEADLINE, id));
        if initiates(endpoint) {
            let (reply, opened) = oneshot::channel();
            self.swarm.behaviour_mut().streams.open(peer, id, HELLO, reply);
            tokio::spawn(self.exchange(peer, id).initiate(opened));
        }
    }

    pub(super) fn exchange(&self, peer: PeerId, connection: ConnectionId) -> Exchange {
        Exchange {
            mesh: self.mesh,
            me: Hello::new(self.credential.clone(), &self.advertised()).of(self.config.boot),
            peer,
            node: node_id(&peer),
            connection,
            clock: Arc::clone(&self.clock),
            driver: self.internal.0.clone(),
        }
    }

    /// Where we tell others to dial us: proven addresses first, as the list is cut.
    fn advertised(&self) -> Vec<Multiaddr> {
        self.swarm.external_addresses().chain(self.swarm.listeners()).cloned().collect()
    }

    /// Lets a verified peer in.
    pub(super) fn admit(&mut self, peer: PeerId, verified: Verified) -> Result<(), Refusal> {
        if self.guard.is_revoked(&peer) {
            return Err(Refusal::Revoked);
        }
        let link = self.link(verified.node, peer);
        let Some(entry) = self.peers.get_mut(&peer) else { return Ok(()) };
        let reached = entry.connections.iter().filter_map(|id| self.connections.get(id)).find(|c| c.outbound);
        let heard_from = entry.connections.iter().find_map(|id| self.connections.get(id)).map(|c| &c.addr);
        let mut addrs = usable(verified.addrs.clone(), heard_from);
        addrs.extend(reached.map(|c| crate::address::without_peer(c.addr.clone())).filter(|a| !addrs.contains(a)));
        let (node, credential, roles) = (verified.node, verified.credential.clone(), verified.roles);
        // Another start of its daemon knows nothing of what was said to the one before.
        let restarted = entry.member.as_ref().is_some_and(|member| is_another(member.verified.boot, verified.boot));
        let news = entry.member.is_none() || restarted;
        entry.member = Some(Member { verified, link: Arc::clone(&link) });
        link.up.store(true, Ordering::Relaxed);
        self.remember_member(peer, &credential);
        self.dialer.learn(peer, addrs.clone(), Source::Member, Instant::now());
        self.dialer.connected(&peer);
        let behaviour = self.swarm.behaviour_mut();
        behaviour.admit(peer);
        if let Some(kad) = behaviour.kad.inner_mut().as_mut() {
            for addr in &addrs {
                kad.add_address(&peer, addr.clone());
            }
        }
        if restarted {
            self.events.tell(MeshEvent::PeerDown { node });
        }
        if news {
            tracing::info!(peer = %node.short(), %roles, "member connected");
            self.events.tell(MeshEvent::PeerUp { node, credential, roles, addrs });
        }
        Ok(())
    }

    /// The exchange on a connection is complete on both sides: frames may flow on it.
    pub(super) fn on_ready(&mut self, peer: PeerId, id: ConnectionId) {
        let direct_before = self.best(&peer).is_some_and(|(_, relayed, doubted)| !relayed && !doubted);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ready = true;
        let better = !direct_before && !is_relayed(&connection.addr);
        let reached = self.peers.get_mut(&peer).is_some_and(|entry| std::mem::take(&mut entry.reaching));
        if reached {
            self.doubt_older(&peer, id);
        }
        self.dialer.ready(&peer, Instant::now());
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for (protocol, reply) in entry.opening.drain(..) {
            self.swarm.behaviour_mut().streams.open(peer, id, protocol, reply);
        }
        let Some(member) = &entry.member else { return };
        if entry.writers.is_empty() {
            let write = |class| tokio::spawn(lane::write(Arc::clone(&member.link), class, self.internal.0.clone()));
            entry.writers = vec![write(FrameClass::Control), write(FrameClass::Bulk)];
        } else if better || reached {
            member.link.control.reopen();
            member.link.bulk.reopen();
        }
    }

    pub(super) fn on_hello_failed(&mut self, peer: PeerId, id: ConnectionId, failure: HelloFailure) {
        match failure {
            HelloFailure::Refuse(Refusal::NoHello) => self.note(Some(peer), Refusal::NoHello),
            // The peer of this key that was here before did nothing wrong, and goes on.
            HelloFailure::Refuse(Refusal::Twin) => self.note(Some(peer), Refusal::Twin),
            HelloFailure::Refuse(refusal) => self.refuse(peer, refusal),
            HelloFailure::RefusedUs(kind) => self.note(Some(peer), Refusal::RefusedUs(kind)),
            HelloFailure::Broken => {}
        }
        self.swarm.close_connection(id);
    }

    /// The connection for a new stream, those in doubt last, direct before relayed, the oldest first; and whether it is relayed,
    /// and in doubt.
    fn best(&self, peer: &PeerId) -> Option<(ConnectionId, bool, bool)> {
        let ids = self.peers.get(peer)?.connections.iter();
        let ready = ids.filter_map(|id| Some((id, self.connections.get(id).filter(|c| c.ready)?)));
        ready
            .map(|(id, connection)| (*id, is_relayed(&connection.addr), connection.doubted))
            .min_by_key(|(_, relayed, doubted)| (*doubted, *relayed))
    }

    /// Nothing is heard of a member: it is dialled anew, where it is known to be. What there is stays in use until something better
    /// stands.
    pub(super) fn reach(&mut self, node: NodeId, now: Instant) {
        let peer = peer_id(node);
        if self.guard.banned_until(&peer, now).is_some() {
            return;
        }
        let Some(entry) = self.peers.get_mut(&peer) else {
            self.dialer.nudge(&peer, now);
            return;
        };
        entry.reaching = true;
        if let Some(addrs) = self.dialer.beside(&peer, now) {
            let dial = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addrs).allocate_new_port();
            if let Err(error) = self.swarm.dial(dial.build()) {
                tracing::debug!(peer = %node.short(), %error, "cannot dial beside a connection");
            }
        }
    }

    /// Connections of a peer that were made before this one are no longer to be used, as long as there is another.
    fn doubt_older(&mut self, peer: &PeerId, id: ConnectionId) {
        let Some(made) = self.connections.get(&id).map(|connection| connection.made) else { return };
        let Some(entry) = self.peers.get(peer) else { return };
        for other in entry.connections.iter().filter(|other| **other != id) {
            if let Some(connection) = self.connections.get_mut(other).filter(|connection| connection.made < made) {
                connection.doubted = true;
            }
        }
    }

    /// A member sends frames on this connection. If it sent them on an older one before, it has given that up: what is sent to it
    /// goes the new way too, from now on.
    fn follow(&mut self, peer: PeerId, id: ConnectionId, class: FrameClass) {
        let before = self.best(&peer);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        if entry.came_on[class as usize].replace(id).is_none_or(|on| on == id) {
            return;
        }
        self.doubt_older(&peer, id);
        if self.best(&peer) != before
            && let Some(member) = self.peers.get(&peer).and_then(|entry| entry.member.as_ref())
        {
            member.link.control.reopen();
            member.link.bulk.reopen();
        }
    }

    /// Opens a stream to a member, as soon as the exchange with it is complete. For others `reply` is dropped.
    pub(super) fn open(&mut self, peer: PeerId, protocol: StreamProtocol, reply: StreamReply) {
        if let Some((connection, ..)) = self.best(&peer) {
            self.swarm.behaviour_mut().streams.open(peer, connection, protocol, reply);
        } else if let Some(entry) = self.peers.get_mut(&peer)
            && entry.member.is_some()
            && entry.opening.len() < OPENING_MAX
        {
            entry.opening.push((protocol, reply));
        }
    }

    /// A member opened a control or bulk stream.
    pub(super) fn on_frames(&mut self, inbound: Inbound, class: FrameClass, packs: bool) {
        let Inbound { peer, connection, stream, .. } = inbound;
        self.follow(peer, connection, class);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let Some(member) = &entry.member else { return };
        let (link, sink, max) = (Arc::clone(&member.link), self.events.clone(), self.config.frame_len_max);
        let driver = self.internal.0.clone();
        let reader = tokio::spawn(async move {
            let end = lane::read(stream, &link, class, packs, sink, max).await;
            let _ = driver.send(Internal::ReadEnded { peer, end }).await;
        });
        let readers = &mut entry.readers[class as usize];
        readers.retain(|reader| !reader.is_finished());
        readers.push_back(reader.abort_handle());
        // Streams of connections that are dead, as yet unnoticed, are no offence: a link that comes and goes leaves many.
        if readers.len() > READERS_MAX
            && let Some(oldest) = readers.pop_front()
        {
            oldest.abort();
            self.note(Some(peer), Refusal::TooManyStreams);
        }
    }

    pub(super) fn on_read_ended(&mut self, peer: PeerId, end: ReadEnd) {
        match end {
            ReadEnd::TooLong { len, max } => self.refuse(peer, Refusal::FrameTooLong { len, max }),
            ReadEnd::Damaged(error) => self.refuse(peer, Refusal::FrameDamaged(error)),
            ReadEnd::Closed => {}
        }
    }

    /// A peer used a members' protocol without having shown membership.
    pub(super) fn on_trespass(&mut self, inbound: &Inbound, protocol: &'static str) {
        self.refuse(inbound.peer, Refusal::NotMember { protocol });
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let connection = self.connections.remove(&id);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.connections.retain(|other| *other != id);
        if !entry.connections.is_empty() {
            if let (Some(member), true) = (&entry.member, connection.is_some_and(|c| c.ready)) {
                member.link.control.reopen();
                member.link.bulk.reopen();
            }
            return;
        }
        let Some(entry) = self.peers.remove(&peer) else { return };
        entry.writers.iter().for_each(tokio::task::JoinHandle::abort);
        self.dialer.disconnected(&peer, connection.is_some_and(|c| c.ready), Instant::now());
        if let Some(member) = entry.member {
            member.link.up.store(false, Ordering::Relaxed);
            self.drain(&member.link);
            tracing::info!(peer = %member.verified.node.short(), "member disconnected");
            self.events.tell(MeshEvent::PeerDown { node: member.verified.node });
        }
    }

    /// Closes connections that have not shown membership in time.
    pub(super) fn close_silent(&mut self, now: Instant) {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            let Some(connection) = self.connections.get(&id).filter(|c| !c.ready) else { continue };
            if !connection.joined {
                self.note(Some(connection.peer), Refusal::NoHello);
            }
            self.swarm.close_connection(id);
        }
    }

    /// Refuses members whose certificate has run out while they were connected.
    pub(super) fn refuse_expired(&mut self) {
        let now = (self.clock)();
        self.members.retain(|_, expires_ms| *expires_ms > now);
        let expired =
            self.peers.iter().filter(|(peer, entry)| entry.member.is_some() && !self.members.contains_key(*peer));
        let expired: Vec<_> = expired.filter_map(|(peer, entry)| Some((*peer, entry.member.as_ref()?))).collect();
        let refusals: Vec<_> = expired
            .into_iter()
            .map(|(peer, member)| {
                let expires_ms = crate::hello::expires_ms(&member.verified.credential);
                (peer, CredentialError::Expired { node: member.verified.node, expires_ms })
            })
            .collect();
        for (peer, error) in refusals {
            self.refuse(peer, Refusal::Credential(error));
        }
    }
}
