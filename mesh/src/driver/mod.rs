//! The task that owns the swarm: it turns commands, swarm events and the reports of its helper tasks into connections,
//! admissions and events for the node. It never waits for anyone.

mod connections;
mod listen;
mod protocols;
mod report;
mod twins;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm};
use sinew_crdt_state::certificate::{Credential, Ticket};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::address::{node_id, peer_id};
use crate::behaviour::{self, Behaviour};
use crate::config::{EXPIRY_CHECK, MeshConfig};
use crate::dialer::{Dialer, Source};
use crate::error::{Refusal, StartError};
use crate::event::{DropReason, EventSink, GossipId, MeshEvent, Topic, Verdict};
use crate::guard::Guard;
use crate::handle::{Clock, Shared};
use crate::hello::{HelloFailure, Verified};
use crate::join::JoinReply;
use crate::lane::{Link, ReadEnd};
use crate::status::{LaneStatus, MeshStatus, NatStatus};
use crate::streams::StreamReply;
use crate::tally::Tally;
use crate::twin::{Boot, Here, Newcomer};

/// Reports of helper tasks on their way to the driver. They wait when it is full, so this only smooths bursts.
const INTERNAL_LEN: usize = 256;
/// How long a shutdown waits for what was said last to be written.
const FLUSH_DEADLINE: Duration = Duration::from_millis(500);
/// How long a shutdown waits for connections to close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// Members remembered for gossip authorship, connected or not.
const MEMBERS_MAX: usize = 16_384;

/// What the handle asks for.
pub(crate) enum Command {
    Publish(Topic, Bytes),
    Judge(GossipId, Verdict),
    Open(NodeId, StreamProtocol, StreamReply),
    Learn(NodeId, Vec<Multiaddr>),
    Member(NodeId, Box<Credential>),
    Dial(NodeId),
    Reach(NodeId),
    Known(oneshot::Sender<Vec<(NodeId, Vec<Multiaddr>)>>),
    Forget(NodeId),
    Drop(NodeId, DropReason),
    Reinstate(NodeId),
    Credential(Box<Credential>),
    Status(oneshot::Sender<MeshStatus>),
    Shutdown(oneshot::Sender<()>),
}

/// What helper tasks report.
pub(crate) enum Internal {
    Open { peer: PeerId, protocol: StreamProtocol, reply: StreamReply },
    Verified { peer: PeerId, connection: ConnectionId, verified: Verified, reply: oneshot::Sender<Result<(), Refusal>> },
    Ready { peer: PeerId, connection: ConnectionId },
    HelloFailed { peer: PeerId, connection: ConnectionId, failure: HelloFailure },
    ReadEnded { peer: PeerId, end: ReadEnd },
    JoinAsked { node: NodeId, ticket: Ticket, reply: JoinReply },
    JoinEnded { peer: PeerId, connection: ConnectionId, refusal: Option<Refusal> },
    Asked { newcomer: Box<Newcomer>, here: Option<Here> },
    Twin { boot: Boot, addr: Option<Multiaddr> },
}

/// What the driver starts from.
pub(crate) struct Setup<'a> {
    pub(crate) config: MeshConfig,
    pub(crate) identity: &'a Identity,
    pub(crate) credential: Credential,
    pub(crate) mesh: MeshId,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: EventSink,
}

struct Connection {
    peer: PeerId,
    addr: Multiaddr,
    outbound: bool,
    made: Instant,
    /// Something else is to be used where there is anything: nothing came over it for a while, or its peer has left it.
    doubted: bool,
    /// The membership exchange on it succeeded.
    ready: bool,
    /// A join was answered on it; it may end without a hello.
    joined: bool,
    /// As its hello said.
    boot: Option<Boot>,
    rtt: Option<Duration>,
}

#[derive(Default)]
struct Peer {
    connections: Vec<ConnectionId>,
    member: Option<Member>,
    writers: Vec<JoinHandle<()>>,
    /// Nothing was heard of it, so that a connection that comes now is better than those before.
    reaching: bool,
    /// The connection on which its frames of each class came last.
    came_on: [Option<ConnectionId>; 2],
    /// Of each class, the oldest first.
    readers: [VecDeque<AbortHandle>; 2],
    /// Streams asked for between admission and the first ready connection.
    opening: Vec<(StreamProtocol, StreamReply)>,
}

struct Member {
    verified: Verified,
    link: Arc<Link>,
}

#[derive(Default)]
struct Counters {
    gossip_sent: u64,
    gossip_received: u64,
    gossip_dropped: u64,
    dials_failed: u64,
    /// Control and bulk frames of peers that were forgotten.
    forgotten: [LaneStatus; 2],
}

/// See the module's description.
pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    config: MeshConfig,
    me: NodeId,
    identity: Identity,
    mesh: MeshId,
    credential: Credential,
    clock: Clock,
    shared: Arc<Shared>,
    events: EventSink,
    commands: mpsc::UnboundedReceiver<Command>,
    internal: (mpsc::Sender<Internal>, mpsc::Receiver<Internal>),
    connections: HashMap<ConnectionId, Connection>,
    peers: HashMap<PeerId, Peer>,
    /// Members by certificate, and when that expires (Unix ms).
    members: HashMap<PeerId, u64>,
    dialer: Dialer,
    bootstrap_dials: HashMap<ConnectionId, usize>,
    /// Dials under way that the dialer asked for; behaviours make others.
    peer_dials: HashSet<ConnectionId>,
    guard: Guard,
    joins: protocols::JoinBudget,
    /// When each connection must have shown membership, oldest first.
    deadlines: VecDeque<(Instant, ConnectionId)>,
    next_expiry_check: Instant,
    starting: listen::Starting,
    circuits: HashMap<ListenerId, PeerId>,
    nat: NatStatus,
    counters: Counters,
    tally: Arc<Tally>,
}

impl Driver {
    /// Binds the listeners. The receiver fires when all of them have reported an address.
    pub(crate) fn new(
        setup: Setup<'_>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<(Self, oneshot::Receiver<()>), StartError> {
        let Setup { config, identity, credential, mesh, clock, shared, events } = setup;
        let tally = Arc::<Tally>::default();
        let mut swarm = behaviour::node_swarm(&config, &mesh, identity, Arc::clone(&tally))?;
        let (starting, listening) = listen::listen(&mut swarm, &config.listen)?;
        for addr in &config.external {
            swarm.add_external_address(addr.clone());
        }
        let now = Instant::now();
        let mut dialer = Dialer::new(*swarm.local_peer_id(), &config.bootstrap, now);
        for (node, addrs) in &config.known {
            dialer.learn(peer_id(*node), addrs.clone(), Source::Member, now);
        }
        let driver = Self {
            swarm,
            config,
            me: identity.id(),
            identity: identity.clone(),
            mesh,
            credential,
            clock,
            shared,
            events,
            commands,
            internal: mpsc::channel(INTERNAL_LEN),
            connections: HashMap::new(),
            peers: HashMap::new(),
            members: HashMap::new(),
            dialer,
            bootstrap_dials: HashMap::new(),
            peer_dials: HashSet::new(),
            guard: Guard::default(),
            joins: protocols::JoinBudget::new(now),
            deadlines: VecDeque::new(),
            next_expiry_check: now + EXPIRY_CHECK,
            starting,
            circuits: HashMap::new(),
            nat: NatStatus::default(),
            counters: Counters::default(),
            tally,
        };
        Ok((driver, listening))
    }

    /// Runs until shut down.
    pub(crate) async fn run(mut self) {
        let done = loop {
            let wake = tokio::time::Instant::from_std(self.next_wake());
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                Some(report) = self.internal.1.recv() => self.on_internal(report),
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                () = tokio::time::sleep_until(wake) => self.on_time(Instant::now()),
            }
            if self.dialer.take_changed() {
                self.events.offer(MeshEvent::AddrsChanged);
            }
        };
        self.close().await;
        drop(self);
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    async fn close(&mut self) {
        // What was said last is to arrive: a node that leaves says so.
        let mut writers = Vec::new();
        for peer in self.peers.values_mut() {
            let ready = peer.connections.iter().any(|id| self.connections.get(id).is_some_and(|c| c.ready));
            if let Some(member) = peer.member.as_ref().filter(|_| ready) {
                [&member.link.control, &member.link.bulk].into_iter().for_each(crate::lane::Lane::end);
                writers.append(&mut peer.writers);
            }
            peer.writers.drain(..).for_each(|writer| writer.abort());
        }
        let aborts: Vec<_> = writers.iter().map(JoinHandle::abort_handle).collect();
        let written = async {
            let mut written = futures::future::join_all(writers);
            loop {
                tokio::select! {
                    _ = &mut written => return,
                    // Streams that are being opened are, meanwhile.
                    Some(report) = self.internal.1.recv() => self.on_internal(report),
                    _ = self.swarm.select_next_some() => {}
                }
            }
        };
        let _ = tokio::time::timeout(FLUSH_DEADLINE, written).await;
        aborts.iter().for_each(AbortHandle::abort);
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        // What has not closed by then is cut off when the swarm is dropped.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closed).await;
    }

    fn next_wake(&self) -> Instant {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        [self.dialer.wake(), deadline].into_iter().flatten().fold(self.next_expiry_check, Instant::min)
    }

    fn on_time(&mut self, now: Instant) {
        self.close_silent(now);
        self.dial_due(now);
        if self.next_expiry_check <= now {
            self.next_expiry_check = now + EXPIRY_CHECK;
            self.refuse_expired();
        }
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Publish(topic, data) => self.publish(topic, data),
            Command::Judge(id, verdict) => self.judge(&id, verdict),
            Command::Open(node, protocol, reply) => {
                let peer = peer_id(node);
                self.dialer.nudge(&peer, now);
                self.open(peer, protocol, reply);
            }
            Command::Learn(node, addrs) => {
                let peer = peer_id(node);
                if self.dialer.learn(peer, addrs, Source::Member, now) {
                    self.link(node, peer);
                }
            }
            Command::Member(node, credential) => {
                let peer = peer_id(node);
                if !self.guard.is_revoked(&peer) && credential.verify(self.mesh, node, (self.clock)()).is_ok() {
                    self.remember_member(peer, &credential);
                }
            }
            Command::Dial(node) => self.dial_for_send(node, now),
            Command::Reach(node) => self.reach(node, now),
            Command::Known(reply) => {
                let known = self.dialer.known().into_iter();
                let _ = reply.send(known.filter_map(|(peer, addrs)| Some((node_id(&peer)?, addrs))).collect());
            }
            Command::Forget(node) => self.forget(node),
            Command::Drop(node, DropReason::Misbehaved) => self.refuse(peer_id(node), Refusal::Misbehaved),
            Command::Drop(node, DropReason::Revoked) => {
                self.guard.revoke(peer_id(node));
                self.members.remove(&peer_id(node));
                self.refuse(peer_id(node), Refusal::Revoked);
            }
            Command::Reinstate(node) => {
                let peer = peer_id(node);
                self.guard.reinstate(&peer);
                self.swarm.behaviour_mut().streams.allow(&peer);
                self.dialer.dial_now(&peer, now);
            }
            Command::Credential(credential) => self.credential = *credential,
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Shutdown(_) => {}
        }
    }

    fn on_internal(&mut self, report: Internal) {
        match report {
            Internal::Open { peer, protocol, reply } => self.open(peer, protocol, reply),
            Internal::Verified { peer, connection, verified, reply } => {
                self.on_verified(peer, connection, verified, reply);
            }
            Internal::Asked { newcomer, here } => self.on_asked(*newcomer, here),
            Internal::Twin { boot, addr } => self.on_twin(boot, addr),
            Internal::Ready { peer, connection } => self.on_ready(peer, connection),
            Internal::HelloFailed { peer, connection, failure } => self.on_hello_failed(peer, connection, failure),
            Internal::ReadEnded { peer, end } => self.on_read_ended(peer, end),
            Internal::JoinAsked { node, ticket, reply } => {
                self.events.offer(MeshEvent::JoinRequest { node, ticket, reply });
            }
            Internal::JoinEnded { peer, connection, refusal } => self.on_join_ended(peer, connection, refusal),
        }
    }

    /// Counts a refusal and tells the node, without doing anything to the peer.
    fn note(&mut self, peer: Option<PeerId>, refusal: Refusal) {
        self.guard.count(peer, &refusal);
        self.events.offer(MeshEvent::Refused { node: peer.and_then(|peer| node_id(&peer)), reason: refusal });
    }

    /// Counts a refusal, disconnects the peer and keeps it away for a while.
    fn refuse(&mut self, peer: PeerId, refusal: Refusal) {
        let is_member = self.members.contains_key(&peer);
        let until = self.guard.ban(peer, is_member, Instant::now());
        self.note(Some(peer), refusal);
        if let Some(until) = until {
            self.swarm.behaviour_mut().streams.refuse(peer, until);
            self.dialer.hold(&peer, until);
        }
        // Not connected any more is just as well.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    /// The link to a peer that we may send to.
    fn link(&self, node: NodeId, peer: PeerId) -> Arc<Link> {
        let mut links = self.shared.links.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(links.entry(node).or_insert_with(|| Arc::new(Link::new(node, peer))))
    }

    fn remember_member(&mut self, peer: PeerId, credential: &Credential) {
        if self.members.len() >= MEMBERS_MAX {
            let connected: HashSet<_> = self.peers.keys().copied().collect();
            self.members.retain(|peer, _| connected.contains(peer));
        }
        self.members.insert(peer, crate::hello::expires_ms(credential));
    }

    fn dial_for_send(&mut self, node: NodeId, now: Instant) {
        let peer = peer_id(node);
        if self.peers.get(&peer).is_some_and(|peer| peer.member.is_some()) {
            return;
        }
        if self.guard.banned_until(&peer, now).is_some() || !self.dialer.nudge(&peer, now) {
            self.drain(&self.link(node, peer));
        }
    }

    fn forget(&mut self, node: NodeId) {
        let peer = peer_id(node);
        self.dialer.forget(&peer);
        if !self.peers.contains_key(&peer) {
            let link = self.shared.links.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&node);
            if let Some(link) = link {
                self.counters.forgotten[0] += link.control.status();
                self.counters.forgotten[1] += link.bulk.status();
            }
        }
    }

    /// Drops what waits for a peer that cannot be had.
    fn drain(&self, link: &Arc<Link>) {
        let link = Arc::clone(link);
        tokio::spawn(async move {
            link.control.drain().await;
            link.bulk.drain().await;
        });
    }

    fn settle_publish(&self) {
        self.shared.publishes.fetch_sub(1, Ordering::Relaxed);
    }
}
