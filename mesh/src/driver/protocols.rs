//! What the protocols on an established connection say: inbound streams, gossip, discovery, reachability.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, autonat, identify, mdns, ping, relay};

use super::Driver;
use crate::address::{ip, is_relayed, node_id, usable, without_peer};
use crate::behaviour::{BehaviourEvent, gossip_topic};
use crate::blob::BlobStream;
use crate::config::{JOIN_BURST, JOIN_DEADLINE, JOIN_RATE};
use crate::dialer::Source;
use crate::error::Refusal;
use crate::event::{FrameClass, GossipId, MeshEvent, Topic, Verdict};
use crate::join;
use crate::status::NatStatus;
use crate::streams::{self, Inbound};
use crate::wire::{BULK, BULK_PACKED, CONTROL, HELLO, JOIN, SECRETS, TWIN, WireError};

/// A token bucket over all joins.
pub(super) struct JoinBudget {
    tokens: f64,
    filled: Instant,
}

impl JoinBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: f64::from(JOIN_BURST), filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(JOIN_RATE);
        self.tokens = (self.tokens + gained).min(f64::from(JOIN_BURST));
        self.filled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Driver {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => self.on_closed(peer_id, connection_id),
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, peer_id, .. } => self.on_accept_failed(peer_id, &error),
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.publish_listeners();
                self.starting.reported(listener_id);
                self.dialer.network_changed(Instant::now());
                self.events.tell(MeshEvent::Listening { addr: address });
            }
            SwarmEvent::ExpiredListenAddr { .. } => {
                self.publish_listeners();
                self.dialer.network_changed(Instant::now());
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if self.circuits.remove(&listener_id).is_none()
                    && let Err(error) = reason
                {
                    tracing::error!(%error, "a listener closed");
                }
                self.publish_listeners();
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                let external = self.swarm.external_addresses().cloned().collect();
                *self.shared.external.write().unwrap_or_else(std::sync::PoisonError::into_inner) = external;
            }
            _ => {}
        }
    }

    fn publish_listeners(&self) {
        let listen = self.swarm.listeners().cloned().collect();
        *self.shared.listen.write().unwrap_or_else(std::sync::PoisonError::into_inner) = listen;
    }

    fn on_accept_failed(&mut self, peer: Option<PeerId>, error: &ListenError) {
        match error {
            ListenError::LocalPeerId { address } => self.on_own_key(address, true),
            ListenError::Denied { cause } if cause.downcast_ref::<streams::Refused>().is_some() => {
                self.guard.count(peer, &Refusal::Banned);
            }
            other => tracing::debug!(error = %other, "an inbound connection failed"),
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(inbound) => self.on_inbound(inbound),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let id = GossipId { message: message_id, relayed_by: propagation_source };
                self.on_gossip(id, message);
            }
            BehaviourEvent::Ping(ping::Event { connection, result, .. }) => self.on_ping(connection, result),
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, info);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            BehaviourEvent::AutonatClient(event) => self.on_reachability(&event),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            }) => {
                tracing::debug!(relay = %crate::guard::name(&relay_peer_id), renewal, "a relay holds a place for us");
            }
            BehaviourEvent::Dcutr(event) => {
                tracing::debug!(peer = %crate::guard::name(&event.remote_peer_id), ok = event.result.is_ok(), "hole punch");
            }
            _ => {}
        }
    }

    fn on_inbound(&mut self, inbound: Inbound) {
        let (peer, connection) = (inbound.peer, inbound.connection);
        if !self.connections.contains_key(&connection) {
            // It closed meanwhile, and what its peer had shown on it went with it.
            return;
        }
        if inbound.protocol == HELLO {
            tokio::spawn(self.exchange(peer, connection).respond(inbound.stream));
            return;
        }
        if inbound.protocol == JOIN {
            self.on_join(inbound);
            return;
        }
        if inbound.protocol == TWIN {
            return self.on_twin_stream(inbound);
        }
        let secrets = inbound.protocol == SECRETS;
        let member = self.peers.get(&peer).and_then(|peer| peer.member.as_ref()).map(|member| member.verified.node);
        let packs = inbound.protocol == BULK_PACKED;
        match (member, inbound.protocol == CONTROL, packs || inbound.protocol == BULK) {
            (Some(_), true, _) => self.on_frames(inbound, FrameClass::Control, false),
            (Some(_), _, true) => self.on_frames(inbound, FrameClass::Bulk, packs),
            (Some(from), false, false) if secrets => {
                self.events.offer(MeshEvent::SecretStream { from, stream: BlobStream::new(inbound.stream) });
            }
            (Some(from), false, false) => {
                self.events.offer(MeshEvent::BlobStream { from, stream: BlobStream::new(inbound.stream) });
            }
            (None, true, _) => self.on_trespass(&inbound, "/sinew/control/1"),
            (None, _, true) if packs => self.on_trespass(&inbound, "/sinew/bulk/2"),
            (None, _, true) => self.on_trespass(&inbound, "/sinew/bulk/1"),
            (None, false, false) if secrets => self.on_trespass(&inbound, "/sinew/secrets/1"),
            (None, false, false) => self.on_trespass(&inbound, "/sinew/blobs/1"),
        }
    }

    fn on_join(&mut self, inbound: Inbound) {
        let Some(newcomer) = node_id(&inbound.peer) else {
            self.refuse(inbound.peer, Refusal::Stranger);
            return;
        };
        if !self.joins.take(Instant::now()) {
            self.note(Some(inbound.peer), Refusal::JoinRate);
            tokio::spawn(tokio::time::timeout(JOIN_DEADLINE, join::busy(inbound.stream)));
            return;
        }
        let serve = join::Serve {
            mesh: self.mesh,
            me: self.me,
            newcomer,
            peer: inbound.peer,
            connection: inbound.connection,
            clock: Arc::clone(&self.clock),
            driver: self.internal.0.clone(),
        };
        tokio::spawn(tokio::time::timeout(JOIN_DEADLINE, serve.run(inbound.stream)));
    }

    pub(super) fn on_join_ended(&mut self, peer: PeerId, id: ConnectionId, refusal: Option<Refusal>) {
        match refusal {
            // A connection that broke is nobody's fault.
            Some(refusal @ Refusal::JoinMalformed(WireError::Io(_))) => self.note(Some(peer), refusal),
            Some(refusal @ Refusal::JoinMalformed(_)) => return self.refuse(peer, refusal),
            Some(refusal) => self.note(Some(peer), refusal),
            None => {}
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.joined = true;
        }
    }

    fn on_ping(&mut self, id: ConnectionId, result: Result<std::time::Duration, ping::Failure>) {
        match result {
            Ok(rtt) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.rtt = Some(rtt);
                    if std::mem::take(&mut connection.doubted) {
                        let peer = connection.peer;
                        self.dialer.not_in_doubt(&peer);
                    }
                }
            }
            Err(ping::Failure::Unsupported) => {}
            // Half-open: the peer is gone without a word.
            Err(_) => {
                self.swarm.close_connection(id);
            }
        }
    }

    pub(super) fn publish(&mut self, topic: Topic, data: Bytes) {
        self.settle_publish();
        let topic = gossip_topic(topic, &self.mesh);
        match self.swarm.behaviour_mut().gossip.inner_mut().publish(topic, data) {
            Ok(_) => self.counters.gossip_sent += 1,
            Err(error) => {
                self.counters.gossip_dropped += 1;
                tracing::debug!(%error, "gossip was not published");
            }
        }
    }

    pub(super) fn judge(&mut self, id: &GossipId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Reject => MessageAcceptance::Reject,
            Verdict::Ignore => MessageAcceptance::Ignore,
        };
        let gossip = self.swarm.behaviour_mut().gossip.inner_mut();
        gossip.report_message_validation_result(&id.message, &id.relayed_by, acceptance);
    }

    fn on_gossip(&mut self, id: GossipId, message: gossipsub::Message) {
        let now = (self.clock)();
        let author = message.source.filter(|peer| self.members.get(peer).is_some_and(|expires_ms| *expires_ms > now));
        let topic = Topic::ALL.into_iter().find(|topic| topic.name(&self.mesh) == message.topic.as_str());
        let (Some(from), Some(relayed_by), Some(topic)) =
            (author.and_then(|peer| node_id(&peer)), node_id(&id.relayed_by), topic)
        else {
            // Not the relayer's fault: it may know members that we do not know yet.
            self.judge(&id, Verdict::Ignore);
            self.counters.gossip_dropped += 1;
            self.guard.count(message.source, &Refusal::GossipAuthor);
            return;
        };
        let event = MeshEvent::Gossip { id: id.clone(), from, relayed_by, topic, bytes: message.data.into() };
        if self.events.offer(event) {
            self.counters.gossip_received += 1;
        } else {
            self.counters.gossip_dropped += 1;
            self.judge(&id, Verdict::Ignore);
        }
    }

    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let now = Instant::now();
        for (peer, addr) in found {
            // Loopback in another host's announcement would lead back to ourselves.
            let far = ip(&addr).is_some_and(|ip| !ip.is_loopback());
            if far && self.guard.banned_until(&peer, now).is_none() {
                self.dialer.learn(peer, vec![addr], Source::Rumour, now);
            }
        }
    }

    /// A member told its addresses and protocols. Reserves a place on it if it is a bootstrap node that relays.
    fn on_identified(&mut self, peer: PeerId, id: ConnectionId, info: identify::Info) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (heard_from, outbound) = (connection.addr.clone(), connection.outbound);
        let addrs = usable(info.listen_addrs, Some(&heard_from));
        let relay_addr = if outbound { Some(without_peer(heard_from)) } else { addrs.first().cloned() };
        self.dialer.learn(peer, addrs, Source::Member, Instant::now());
        let relays = info.protocols.contains(&relay::HOP_PROTOCOL_NAME);
        let wanted = self.config.relay_client && self.nat != NatStatus::Public;
        let have = self.circuits.values().any(|relay| *relay == peer);
        if let (true, true, false, Some(addr)) = (wanted, relays, have, relay_addr)
            && !is_relayed(&addr)
            && self.dialer.is_bootstrap(&peer, &self.config.bootstrap)
        {
            match self.swarm.listen_on(addr.with(Protocol::P2p(peer)).with(Protocol::P2pCircuit)) {
                Ok(listener) => {
                    self.circuits.insert(listener, peer);
                }
                Err(error) => tracing::debug!(%error, "no place on a relay"),
            }
        }
    }

    fn on_reachability(&mut self, event: &autonat::v2::client::Event) {
        tracing::debug!(addr = %event.tested_addr, ok = event.result.is_ok(), "reachability tested");
        match (&event.result, self.nat) {
            (Ok(()), _) => {
                self.nat = NatStatus::Public;
                // Reachable: the places on relays are for those who are not.
                for (listener, _) in self.circuits.drain() {
                    self.swarm.remove_listener(listener);
                }
            }
            (Err(_), NatStatus::Unknown) => self.nat = NatStatus::Private,
            (Err(_), _) => {}
        }
    }
}
